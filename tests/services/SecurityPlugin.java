import java.util.*;
import org.apache.lucene.analysis.TokenStream;
import org.apache.lucene.analysis.email.UAX29URLEmailTokenizer;
import org.apache.lucene.analysis.miscellaneous.RemoveDuplicatesTokenFilter;
import org.apache.lucene.analysis.pattern.PatternCaptureGroupTokenFilter;
import org.elasticsearch.common.settings.Settings;
import org.elasticsearch.index.analysis.*;
import org.elasticsearch.indices.analysis.AnalysisModule.AnalysisProvider;
import org.elasticsearch.plugins.AnalysisPlugin;
import org.elasticsearch.plugins.Plugin;

/** What the index of API keys and users is declared with, from Lucene: the stock ones are in a module that is not published. */
public final class SecurityPlugin extends Plugin implements AnalysisPlugin {
    private interface Filter { TokenStream create(TokenStream tokens, Settings settings); }

    private static AnalysisProvider<TokenFilterFactory> filter(Filter filter) {
        return (index, environment, name, settings) -> new AbstractTokenFilterFactory(name, settings) {
            @Override public TokenStream create(TokenStream tokens) { return filter.create(tokens, settings); }
        };
    }

    @Override
    public Map<String, AnalysisProvider<TokenFilterFactory>> getTokenFilters() {
        return Map.of(
            "pattern_capture", filter((tokens, settings) -> new PatternCaptureGroupTokenFilter(tokens, true,
                settings.getAsList("patterns").stream().map(java.util.regex.Pattern::compile).toArray(java.util.regex.Pattern[]::new))),
            "unique", filter((tokens, settings) -> new RemoveDuplicatesTokenFilter(tokens)));
    }

    @Override
    public Map<String, AnalysisProvider<TokenizerFactory>> getTokenizers() {
        return Map.of("uax_url_email", (index, environment, name, settings) -> TokenizerFactory.newFactory(name, UAX29URLEmailTokenizer::new));
    }
}

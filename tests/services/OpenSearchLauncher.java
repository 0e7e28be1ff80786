import java.nio.file.*;
import java.util.*;
import org.opensearch.common.logging.LogConfigurator;
import org.opensearch.common.settings.Settings;
import org.opensearch.env.Environment;
import org.opensearch.node.InternalSettingsPreparer;
import org.opensearch.node.Node;
import org.opensearch.plugins.Plugin;
import org.opensearch.transport.Netty4Plugin;

/** Starts the stock OpenSearch server classes as one loopback node: args are HOME, then key=value settings. */
public final class OpenSearchLauncher extends Node {
    OpenSearchLauncher(Environment env, List<Class<? extends Plugin>> plugins) { super(env, plugins, false); }
    public static void main(String[] args) throws Exception {
        Path home = Path.of(args[0]).toAbsolutePath();
        Map<String, String> o = new LinkedHashMap<>();
        for (int i = 1; i < args.length; i++) { int eq = args[i].indexOf('='); o.put(args[i].substring(0, eq), args[i].substring(eq + 1)); }
        LogConfigurator.registerErrorListener();
        LogConfigurator.setNodeName("tests");
        Environment env = InternalSettingsPreparer.prepareEnvironment(
            Settings.builder().put("path.home", home.toString()).build(), o, home.resolve("config"), () -> "tests");
        Files.createDirectories(env.logsFile());
        LogConfigurator.configure(env);
        Node node = new OpenSearchLauncher(env, List.of(Netty4Plugin.class));
        Runtime.getRuntime().addShutdownHook(new Thread(() -> {
            try { node.close(); node.awaitClose(10, java.util.concurrent.TimeUnit.SECONDS); } catch (Exception e) { e.printStackTrace(); }
        }));
        node.start();
        while (true) Thread.sleep(Long.MAX_VALUE);
    }
}

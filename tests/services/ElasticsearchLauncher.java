import java.nio.file.*;
import java.util.*;
import org.elasticsearch.common.logging.LogConfigurator;
import org.elasticsearch.common.settings.Settings;
import org.elasticsearch.env.Environment;
import org.elasticsearch.node.InternalSettingsPreparer;
import org.elasticsearch.node.Node;
import org.elasticsearch.plugins.PluginsLoader;

/** Starts the stock Elasticsearch server classes as one loopback node: args are HOME, then key=value settings. */
public final class ElasticsearchLauncher {
    public static void main(String[] args) throws Exception {
        Path home = Path.of(args[0]).toAbsolutePath();
        Map<String, String> overrides = new LinkedHashMap<>();
        for (int i = 1; i < args.length; i++) {
            int eq = args[i].indexOf('=');
            overrides.put(args[i].substring(0, eq), args[i].substring(eq + 1));
        }
        LogConfigurator.registerErrorListener();
        LogConfigurator.setNodeName(overrides.getOrDefault("node.name", "tests"));
        Settings base = Settings.builder().put("path.home", home.toString()).build();
        Environment env = InternalSettingsPreparer.prepareEnvironment(base, overrides, home.resolve("config"), () -> "tests");
        Files.createDirectories(env.logsDir());
        LogConfigurator.configure(env, true);
        PluginsLoader loader = PluginsLoader.createPluginsLoader(
            PluginsLoader.loadModulesBundles(env.modulesDir()), Set.of(), Map.of(), false);
        Node node = new Node(env, loader);
        Runtime.getRuntime().addShutdownHook(new Thread(() -> {
            try { node.close(); node.awaitClose(10, java.util.concurrent.TimeUnit.SECONDS); } catch (Exception e) { e.printStackTrace(); }
        }));
        node.start();
        while (true) Thread.sleep(Long.MAX_VALUE); // SIGTERM runs the hook.
    }
}

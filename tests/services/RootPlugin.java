import java.util.*;
import java.util.function.*;
import org.elasticsearch.Build;
import org.elasticsearch.client.internal.node.NodeClient;
import org.elasticsearch.cluster.metadata.IndexNameExpressionResolver;
import org.elasticsearch.cluster.node.DiscoveryNodes;
import org.elasticsearch.cluster.service.ClusterService;
import org.elasticsearch.common.io.stream.NamedWriteableRegistry;
import org.elasticsearch.common.settings.*;
import org.elasticsearch.features.NodeFeature;
import org.elasticsearch.plugins.ActionPlugin;
import org.elasticsearch.plugins.Plugin;
import org.elasticsearch.rest.*;

/** GET / (and HEAD /): the stock handler is in a module that is not published; clients and tools ask for it. */
public final class RootPlugin extends Plugin implements ActionPlugin {
    private volatile ClusterService cluster;

    @Override
    public Collection<?> createComponents(PluginServices services) {
        cluster = services.clusterService();
        return List.of();
    }

    @Override
    public Collection<RestHandler> getRestHandlers(Settings s, NamedWriteableRegistry r, RestController c, ClusterSettings cs,
            IndexScopedSettings is, SettingsFilter f, IndexNameExpressionResolver n, Supplier<DiscoveryNodes> d, Predicate<NodeFeature> p) {
        return List.of(new Root());
    }

    private final class Root extends BaseRestHandler {
        @Override public String getName() { return "root"; }
        @Override public List<Route> routes() {
            return List.of(new Route(RestRequest.Method.GET, "/"), new Route(RestRequest.Method.HEAD, "/"));
        }
        @Override protected RestChannelConsumer prepareRequest(RestRequest request, NodeClient client) {
            return channel -> {
                Build b = Build.current();
                var x = channel.newBuilder();
                x.startObject();
                x.field("name", cluster.getNodeName());
                x.field("cluster_name", cluster.getClusterName().value());
                x.field("cluster_uuid", cluster.state().metadata().clusterUUID());
                x.startObject("version");
                x.field("number", b.version());
                x.field("build_flavor", b.flavor());
                x.field("build_type", b.type().displayName());
                x.field("build_hash", b.hash());
                x.field("build_date", b.date());
                x.field("build_snapshot", b.isSnapshot());
                x.field("lucene_version", org.apache.lucene.util.Version.LATEST.toString());
                x.field("minimum_wire_compatibility_version", b.minWireCompatVersion());
                x.field("minimum_index_compatibility_version", b.minIndexCompatVersion());
                x.endObject();
                x.field("tagline", "You Know, for Search");
                x.endObject();
                channel.sendResponse(new RestResponse(RestStatus.OK, x));
            };
        }
    }
}

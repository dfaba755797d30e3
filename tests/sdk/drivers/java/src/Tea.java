import com.aliyun.tea.TeaException;
import com.aliyun.tea.okhttp.ClientHelper;
import com.aliyun.teaopenapi.Client;
import com.aliyun.teaopenapi.models.Config;
import com.aliyun.teaopenapi.models.GlobalParameters;
import com.aliyun.teaopenapi.models.OpenApiRequest;
import com.aliyun.teaopenapi.models.Params;
import com.aliyun.teautil.models.ExtendsParameters;
import com.aliyun.teautil.models.RuntimeOptions;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.Map;

/** The library under com.aliyun:cams20200606, called as that package's generated code calls it. */
final class Tea implements Sdk {
    private final Job job;
    private final Client client;

    Tea(Job job) throws Exception {
        this.job = job;
        Config config = new Config()
                .setAccessKeyId(job.key())
                .setAccessKeySecret(job.secret())
                .setSecurityToken(job.token())
                .setRegionId("ap-southeast-1")
                .setEndpoint(job.endpoint())
                .setProtocol(job.protocol())
                .setHttpProxy(job.proxy())
                .setReadTimeout(job.timeoutMs())
                .setConnectTimeout(job.timeoutMs());
        if (job.ca() != null) {
            config.setCa(Files.readString(Path.of(job.ca())));
        }
        if (job.isV1()) {
            config.setSignatureAlgorithm("v2");
        }
        if (!job.hold().isEmpty()) {
            config.setGlobalParameters(new GlobalParameters().setHeaders(Map.of("x-flowgate-hold", job.hold())));
        }
        client = new Client(config);
    }

    @Override
    public Result call(Map<String, String> parameters, String key) throws Exception {
        Params params = new Params()
                .setAction(job.action())
                .setVersion(Job.VERSION)
                .setProtocol("HTTPS")
                .setPathname("/")
                .setMethod("POST")
                .setAuthType("AK")
                .setStyle("RPC")
                .setReqBodyType("formData")
                .setBodyType("json");
        OpenApiRequest request = job.inBody() ? new OpenApiRequest().setBody(parameters) : new OpenApiRequest().setQuery(parameters);
        RuntimeOptions runtime = new RuntimeOptions();
        if (key != null) {
            runtime.setExtendsParameters(new ExtendsParameters().setHeaders(job.keyHeaders(key)).setQueries(job.keyQueries(key)));
        }
        return Result.returned((Map<?, ?>) client.callApi(params, request, runtime).get("body"));
    }

    @Override
    public Result raised(Exception error) {
        if (error instanceof TeaException tea) {
            return Result.raised(tea, tea.getCode(), tea.getMessage(), tea.getStatusCode(), Result.retryAfter(tea.getData()));
        }
        return Result.raised(error, null, String.valueOf(error), null, null);
    }

    @Override
    public void close() {
        // A process has one HTTP client for each endpoint, which keeps trusting the authority of the first Config.
        ClientHelper.clients.clear();
    }
}

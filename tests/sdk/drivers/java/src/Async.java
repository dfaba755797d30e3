import com.aliyun.auth.credentials.Credential;
import com.aliyun.auth.credentials.provider.StaticCredentialProvider;
import com.aliyun.core.http.BodyType;
import com.aliyun.core.http.HttpClient;
import com.aliyun.core.http.HttpHeaders;
import com.aliyun.core.http.HttpMethod;
import com.aliyun.core.http.ProxyOptions;
import com.aliyun.httpcomponent.httpclient.ApacheAsyncHttpClientBuilder;
import com.aliyun.sdk.gateway.pop.BaseClientBuilder;
import com.aliyun.sdk.gateway.pop.Configuration;
import com.aliyun.sdk.gateway.pop.auth.SignatureVersion;
import com.aliyun.sdk.gateway.pop.exception.PopClientException;
import com.aliyun.sdk.gateway.pop.exception.PopServerException;
import com.aliyun.sdk.gateway.pop.models.CommonRequest;
import com.aliyun.sdk.gateway.pop.models.CommonResponse;
import darabonba.core.RequestStyle;
import darabonba.core.TeaAsyncHandler;
import darabonba.core.TeaRequest;
import darabonba.core.client.ClientExecutionParams;
import darabonba.core.client.ClientOverrideConfiguration;
import java.net.InetSocketAddress;
import java.net.URI;
import java.time.Duration;
import java.util.Map;
import java.util.concurrent.CompletableFuture;
import java.util.concurrent.ExecutionException;

/** The library under com.aliyun:alibabacloud-cams20200606, called as that package's generated code calls it. */
final class Async implements Sdk {
    private final Job job;
    private final TeaAsyncHandler client;

    Async(Job job) throws Exception {
        this.job = job;
        Credential credential = Credential.builder().accessKeyId(job.key()).accessKeySecret(job.secret()).securityToken(job.token()).build();
        ClientOverrideConfiguration override =
                ClientOverrideConfiguration.create().setProtocol(job.protocol()).setEndpointOverride(job.endpoint());
        if (job.timeoutMs() != null) {
            Duration timeout = Duration.ofMillis(job.timeoutMs());
            override.setConnectTimeout(timeout).setResponseTimeout(timeout);
        }
        if (!job.hold().isEmpty()) {
            override.setHttpHeaders(new HttpHeaders().set("x-flowgate-hold", job.hold()));
        }
        Builder builder = new Builder()
                .region("ap-southeast-1")
                .credentialsProvider(StaticCredentialProvider.create(credential))
                .overrideConfiguration(override);
        if (!job.isV1()) {
            builder.serviceConfiguration(Configuration.create().setSignatureVersion(SignatureVersion.V3));
        }
        HttpClient http = http(job);
        client = (http == null ? builder : builder.httpClient(http)).build();
    }

    /** The builder of the generated client. */
    private static final class Builder extends BaseClientBuilder<Builder, TeaAsyncHandler> {
        @Override
        protected String serviceName() {
            return "cams20200606";
        }

        @Override
        protected TeaAsyncHandler buildClient() {
            return new TeaAsyncHandler(applyClientConfiguration());
        }
    }

    /** The HTTP client of a job that needs other settings than the SDK's own. */
    private static HttpClient http(Job job) throws Exception {
        if (job.proxy() == null && job.ca() == null && job.certificate() == null) {
            return null;
        }
        ApacheAsyncHttpClientBuilder http = new ApacheAsyncHttpClientBuilder();
        if (job.proxy() != null) {
            URI proxy = URI.create(job.proxy());
            http.proxy(new ProxyOptions(ProxyOptions.Type.HTTP, new InetSocketAddress(proxy.getHost(), proxy.getPort())));
        }
        if (job.ca() != null) {
            http.x509TrustManagers(Tls.trust(job.ca()));
        }
        if (job.certificate() != null) {
            http.keyManagers(Tls.identity(job.certificate()));
        }
        return http.build();
    }

    @Override
    public Result call(Map<String, String> parameters, String key) throws Exception {
        CommonRequest.Builder model = CommonRequest.builder();
        parameters.forEach(job.inBody() ? model::putBodyParameters : model::putQueryParameters);
        job.keyHeaders(key).forEach(model::putHeaderParameters);
        job.keyQueries(key).forEach(model::putQueryParameters);
        CommonRequest input = model.build();
        TeaRequest request = TeaRequest.create()
                .setProduct("cams")
                .setVersion(Job.VERSION)
                .setEndpointRule("regional")
                .setStyle(RequestStyle.RPC)
                .setAction(job.action())
                .setMethod(HttpMethod.POST)
                .setPathRegex("/")
                .setBodyType(BodyType.JSON)
                .setBodyIsForm(job.inBody())
                .setReqBodyType(job.inBody() ? BodyType.FORM : BodyType.JSON)
                .formModel(input);
        ClientExecutionParams<CommonRequest, CommonResponse> execution = new ClientExecutionParams<CommonRequest, CommonResponse>()
                .withInput(input)
                .withRequest(request)
                .withOutput(CommonResponse.create());
        CompletableFuture<CommonResponse> response = client.execute(execution);
        return Result.returned((Map<?, ?>) response.get().getBody());
    }

    @Override
    public Result raised(Exception error) {
        Throwable cause = error instanceof ExecutionException ? error.getCause() : error;
        if (cause instanceof PopClientException pop) {
            return Result.raised(pop, pop.getErrCode(), pop.getErrMessage(), pop.getStatusCode(), Result.retryAfter(pop.getData()));
        }
        if (cause instanceof PopServerException pop) {
            return Result.raised(pop, pop.getErrCode(), pop.getErrMessage(), pop.getStatusCode(), Result.retryAfter(pop.getData()));
        }
        return Result.raised(cause, null, String.valueOf(cause), null, null);
    }

    @Override
    public void close() {
        client.close();
    }
}

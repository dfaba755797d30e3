import com.aliyuncs.CommonRequest;
import com.aliyuncs.DefaultAcsClient;
import com.aliyuncs.IAcsClient;
import com.aliyuncs.auth.SignatureVersion;
import com.aliyuncs.exceptions.ClientException;
import com.aliyuncs.http.HttpClientConfig;
import com.aliyuncs.http.MethodType;
import com.aliyuncs.http.ProtocolType;
import com.aliyuncs.http.clients.ApacheHttpClient;
import com.aliyuncs.profile.DefaultProfile;
import com.google.gson.Gson;
import java.io.IOException;
import java.io.UncheckedIOException;
import java.util.Map;

/** com.aliyun:aliyun-java-sdk-core with CommonRequest. */
final class Old implements Sdk {
    private static final Gson JSON = new Gson();

    private final Job job;
    private final IAcsClient client;

    Old(Job job) throws Exception {
        this.job = job;
        DefaultProfile profile = job.token() == null
                ? DefaultProfile.getProfile("ap-southeast-1", job.key(), job.secret())
                : DefaultProfile.getProfile("ap-southeast-1", job.key(), job.secret(), job.token());
        HttpClientConfig http = HttpClientConfig.getDefault();
        http.setHttpProxy(job.proxy());
        if (job.timeoutMs() != null) {
            http.setConnectionTimeoutMillis(job.timeoutMs());
            http.setReadTimeoutMillis(job.timeoutMs());
        }
        if (job.ca() != null) {
            http.setX509TrustManagers(Tls.trust(job.ca()));
        }
        if (job.certificate() != null) {
            http.setKeyManagers(Tls.identity(job.certificate()));
        }
        profile.setHttpClientConfig(http);
        client = new DefaultAcsClient(profile);
    }

    @Override
    public Result call(Map<String, String> parameters, String key) throws Exception {
        CommonRequest request = new CommonRequest();
        request.setSysDomain(job.endpoint());
        request.setSysProtocol(ProtocolType.valueOf(job.protocol()));
        request.setSysMethod(MethodType.POST);
        request.setSysVersion(Job.VERSION);
        request.setSysAction(job.action());
        if (!job.isV1()) {
            request.setSysSignatureVersion(SignatureVersion.V3);
        }
        if (!job.hold().isEmpty()) {
            request.putHeadParameter("x-flowgate-hold", job.hold());
        }
        job.keyHeaders(key).forEach(request::putHeadParameter);
        job.keyQueries(key).forEach(request::putQueryParameter);
        if (job.inBody()) {
            parameters.forEach(request::putBodyParameter);
        } else {
            parameters.forEach(request::putQueryParameter);
        }
        return Result.returned(JSON.fromJson(client.getCommonResponse(request).getData(), Map.class));
    }

    @Override
    public Result raised(Exception error) {
        if (error instanceof ClientException refused) {
            return Result.raised(refused, refused.getErrCode(), refused.getErrMsg(), null, null);
        }
        return Result.raised(error, null, String.valueOf(error), null, null);
    }

    @Override
    public void close() {
        client.shutdown();
        // A process has one HTTP client, with the settings of the first AcsClient, until it is closed.
        try {
            ApacheHttpClient.getInstance().close();
        } catch (IOException error) {
            throw new UncheckedIOException(error);
        }
    }
}

import java.nio.charset.StandardCharsets;
import java.security.GeneralSecurityException;
import java.security.MessageDigest;
import java.util.HexFormat;
import java.util.List;
import java.util.Map;

/** A job, as parties.py builds it. */
record Job(
        String key,
        String secret,
        String token,
        String endpoint,
        String proxy,
        String protocol,
        String ca,
        Certificate certificate,
        String scheme,
        Integer timeoutMs,
        boolean obeys,
        String hold,
        String action,
        String keyed,
        List<String> names) {

    /** An application's certificate: paths of PEM files. */
    record Certificate(String cert, String key) {}

    static final String VERSION = "2020-06-06";

    Map<String, String> parameters(String name) {
        return switch (action) {
            case "CreateFlow" -> Map.of("FlowName", name, "Categories", "[\"SIGN_UP\",\"OTHER\"]");
            case "ListFlow" -> Map.of("FlowName", name, "Page", "{\"Index\":1,\"Size\":10}");
            case "GetPreValidatePhoneId" -> Map.of("PhoneNumber", "1", "VerifyCode", name);
            default -> throw new IllegalArgumentException(action);
        };
    }

    /** Whether the generated clients put the action's parameters into the body: of the newest ones only this. */
    boolean inBody() {
        return action.equals("GetPreValidatePhoneId");
    }

    /** The idempotency key of the order for this flow, which each repetition has; null if the job has none. */
    String orderKey(String name) throws GeneralSecurityException {
        if (keyed == null) {
            return null;
        }
        MessageDigest sha256 = MessageDigest.getInstance("SHA-256");
        return HexFormat.of().formatHex(sha256.digest(name.getBytes(StandardCharsets.UTF_8)));
    }

    /** The headers that carry the key. */
    Map<String, String> keyHeaders(String key) {
        return "header".equals(keyed) ? Map.of("Idempotency-Key", key) : Map.of();
    }

    /** The parameters of the query that carry the key. */
    Map<String, String> keyQueries(String key) {
        return "token".equals(keyed) ? Map.of("ClientToken", key) : Map.of();
    }

    boolean isV1() {
        return scheme.equals("V1");
    }
}

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

    boolean isV1() {
        return scheme.equals("V1");
    }
}

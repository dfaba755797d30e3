import java.util.Map;

/** A result, as sdks.py describes it. */
record Result(
        boolean ok,
        String code,
        String flowName,
        String flowId,
        String exception,
        String message,
        Integer statusCode,
        Number retryAfter,
        Result second) {

    static Result returned(Map<?, ?> body) {
        Map<?, ?> data = body.get("Data") instanceof Map<?, ?> found ? found : Map.of();
        String name = (String) data.get("FlowName");
        String id = (String) data.get("FlowId");
        return new Result(true, (String) body.get("Code"), name, id, null, null, null, null, null);
    }

    static Result raised(Throwable error, String code, String message, Integer status, Number retryAfter) {
        return new Result(false, code, null, null, error.getClass().getSimpleName(), String.valueOf(message), status, retryAfter, null);
    }

    /** The time to retry, in milliseconds, that Flowgate's own refusals have in their body. */
    static Number retryAfter(Map<String, Object> data) {
        return data != null && data.get("RetryAfter") instanceof Number number ? number : null;
    }

    Result with(Result second) {
        return new Result(ok, code, flowName, flowId, exception, message, statusCode, retryAfter, second);
    }
}

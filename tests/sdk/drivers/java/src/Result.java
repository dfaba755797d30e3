import java.util.Map;

/** A result, as sdks.py describes it. */
record Result(boolean ok, String code, String flowName, String exception, String message, Integer statusCode, Number retryAfter, Result second) {
    static Result returned(Map<?, ?> body) {
        Object name = body.get("Data") instanceof Map<?, ?> data ? data.get("FlowName") : null;
        return new Result(true, (String) body.get("Code"), (String) name, null, null, null, null, null);
    }

    static Result raised(Throwable error, String code, String message, Integer status, Number retryAfter) {
        return new Result(false, code, null, error.getClass().getSimpleName(), String.valueOf(message), status, retryAfter, null);
    }

    /** The time to retry, in milliseconds, that Flowgate's own refusals have in their body. */
    static Number retryAfter(Map<String, Object> data) {
        return data != null && data.get("RetryAfter") instanceof Number number ? number : null;
    }

    Result with(Result second) {
        return new Result(ok, code, flowName, exception, message, statusCode, retryAfter, second);
    }
}

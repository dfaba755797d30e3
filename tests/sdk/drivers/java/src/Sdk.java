import java.util.Map;

/** A client of an SDK. */
interface Sdk extends AutoCloseable {
    /** Makes a call with these parameters and this idempotency key, which may be null, and returns what CAMS answered. */
    Result call(Map<String, String> parameters, String key) throws Exception;

    /** What the SDK threw. */
    Result raised(Exception error);

    @Override
    default void close() {}
}

import com.google.gson.FieldNamingPolicy;
import com.google.gson.Gson;
import com.google.gson.GsonBuilder;
import java.io.BufferedReader;
import java.io.InputStreamReader;
import java.io.PrintStream;
import java.nio.charset.StandardCharsets;
import java.util.List;
import java.util.concurrent.Callable;
import java.util.concurrent.ExecutorService;
import java.util.concurrent.Executors;
import java.util.concurrent.Future;

/** An application with one of the Java SDKs, which is the argument. Its input and output are those of python_new.py. */
public final class Driver {
    private static final Gson JSON = new GsonBuilder().setFieldNamingPolicy(FieldNamingPolicy.LOWER_CASE_WITH_UNDERSCORES).create();

    public static void main(String[] arguments) throws Exception {
        PrintStream out = new PrintStream(System.out, true, StandardCharsets.UTF_8);
        BufferedReader in = new BufferedReader(new InputStreamReader(System.in, StandardCharsets.UTF_8));
        out.println("ready");
        for (String line = in.readLine(); line != null; line = in.readLine()) {
            out.println(JSON.toJson(run(arguments[0], JSON.fromJson(line, Job.class))));
        }
        // The SDKs have threads that outlive their clients.
        System.exit(0);
    }

    private static Sdk client(String sdk, Job job) throws Exception {
        return switch (sdk) {
            case "java" -> new Tea(job);
            case "java-async" -> new Async(job);
            case "java-old" -> new Old(job);
            default -> throw new IllegalArgumentException(sdk);
        };
    }

    /** Makes all calls of the job at once. */
    private static List<Result> run(String name, Job job) throws Exception {
        ExecutorService threads = Executors.newFixedThreadPool(job.names().size());
        try (Sdk sdk = client(name, job)) {
            List<Callable<Result>> calls = job.names().stream().<Callable<Result>>map(flow -> () -> answer(sdk, job, flow)).toList();
            List<Result> results = new java.util.ArrayList<>();
            for (Future<Result> result : threads.invokeAll(calls)) {
                results.add(result.get());
            }
            return results;
        } finally {
            threads.shutdown();
        }
    }

    /** Makes a call. A job that obeys repeats it once at the time that a refusal gives. */
    private static Result answer(Sdk sdk, Job job, String name) throws Exception {
        Result first = call(sdk, job, name);
        if (!job.obeys() || first.retryAfter() == null || !"System.LimitControl".equals(first.code())) {
            return first;
        }
        Thread.sleep(first.retryAfter().longValue());
        return first.with(call(sdk, job, name));
    }

    private static Result call(Sdk sdk, Job job, String name) {
        try {
            return sdk.call(job.parameters(name), job.orderKey(name));
        } catch (Exception error) {
            return sdk.raised(error);
        }
    }
}

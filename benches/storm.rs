//! Delays during a storm of refusals. Thousands of calls wait in a lane of 200/s whose endpoint
//! accepts 100/s. Flowgate runs in this process, on one serving thread, beside a task that another
//! thread wakes every millisecond and that measures its delay. `/livez` and another lane's calls
//! are measured from outside. Method and figures: `benches/README.md`.

#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed benchmark")]
#![expect(
    clippy::print_stdout,
    reason = "the figures are what the benchmark is for"
)]

#[allow(dead_code, reason = "the tests' caller does more than send")]
#[path = "../tests/it/caller.rs"]
mod caller;

use std::ffi::OsString;
use std::hash::{DefaultHasher, Hasher};
use std::net::SocketAddr;
use std::process::ExitCode;
use std::time::Duration;

use cams_sim::{Kind, Limit, Settings, Sim, Verdict};
use clap::Parser;
use flowgate::{App, config};
use mimalloc::MiMalloc;
use nix::time::{ClockId, clock_gettime};
use tokio::runtime::{Builder, Runtime};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio::time::{Instant, interval, sleep, timeout};

use crate::caller::{Call, KEY, SECRET, try_exchange};

/// The binary's allocator.
#[global_allocator]
static ALLOCATOR: MiMalloc = MiMalloc;

#[derive(Parser)]
struct Options {
    /// Passed by cargo.
    #[arg(long, hide = true)]
    bench: bool,
    /// Number of simultaneous calls.
    #[arg(long, default_value_t = 4000)]
    calls: usize,
}

/// Flowgate's limit of CreateFlow, and the endpoint's.
const CONFIG: &str = r#"
[[accounts]]
id = "acme"
access_key_id = "LTAI-managed-1"
access_key_secret = { env = "MANAGED" }
[listen]
proxy = "127.0.0.1:0"
admin = "127.0.0.1:0"
max_connections_per_source = 9000
[limits]
CreateFlow = "200/1s"
"#;
const TAKES: u32 = 100;

/// The hold of the storm's calls, and of the other lane's calls.
const HOLD: &str = "50s";
const SHORT_HOLD: &str = "3s";

/// Intervals of the heartbeat on the serving thread, of the requests to `/livez`, and of the other
/// lane's calls.
const BEAT: Duration = Duration::from_millis(1);
const ASK: Duration = Duration::from_millis(10);
const CALL: Duration = Duration::from_millis(500);

/// In all but one of 10,000 beats a serving thread must be blocked for less than this many units of work:
/// 11 ms on the machine of the table. The host of a virtual machine may stop the thread for longer, and
/// its clock counts that as CPU time.
const MOST_HELD: u32 = 100;
const NEARLY_ALL: f64 = 0.9999;

/// The longest block of all must be shorter than this many units.
const LONGEST_HELD: u32 = 1000;

/// The bytes that are hashed in one unit of work, and the interval of its measurements.
const UNIT: usize = 500 * 1024;
const MEASURE: Duration = Duration::from_millis(100);

const HEAD: &str = "| the endpoint | 200, other answers | seconds | refusals | thread held, ms: p50, p99.9, most | beat late, ms | /livez, ms | ListFlow, ms; failed |\n\
                    |---|--:|--:|--:|--:|--:|--:|--:|";

/// A series of measured delays.
#[derive(Default)]
struct Delays(Vec<Duration>);

/// Measurements of the heartbeat.
#[derive(Default)]
struct Held {
    /// From a wake-up to its poll, including the time of other processes.
    late: Delays,
    /// The same, or the thread's CPU time since the previous beat if that is less: the task that
    /// ran at the wake-up blocked the thread for at most that plus the interval of the beats.
    held: Delays,
    /// The longest delay, and when it was.
    longest: Duration,
    longest_at: Option<Instant>,
}

// === impl Delays ===

impl Delays {
    /// In milliseconds: the median, the 99.9th percentile, the maximum.
    fn text(&self) -> String {
        let millis = |part| self.quantile(part).as_secs_f64() * 1e3;
        format!(
            "{:.2}, {:.2}, {:.2}",
            millis(0.5),
            millis(0.999),
            millis(1.0)
        )
    }

    fn quantile(&self, part: f64) -> Duration {
        let mut sorted = self.0.clone();
        sorted.sort();
        sorted[((sorted.len() - 1) as f64 * part) as usize]
    }
}

fn thread_cpu() -> Duration {
    clock_gettime(ClockId::CLOCK_THREAD_CPUTIME_ID)
        .unwrap()
        .into()
}

/// Wakes the heartbeat until it has ended.
fn wake(beats: &mpsc::UnboundedSender<Instant>) {
    while beats.send(Instant::now()).is_ok() {
        std::thread::sleep(BEAT);
    }
}

/// Measures the CPU time of a unit of work until the end of the storm, and returns the median.
fn unit_of_work(ended: &watch::Receiver<bool>) -> Duration {
    let bytes = vec![1_u8; UNIT];
    let mut units = Delays::default();
    while !*ended.borrow() || units.0.is_empty() {
        let before = thread_cpu();
        let mut hasher = DefaultHasher::new();
        hasher.write(std::hint::black_box(&bytes));
        std::hint::black_box(hasher.finish());
        units.0.push(thread_cpu() - before);
        std::thread::sleep(MEASURE);
    }
    units.0.sort();
    units.0[units.0.len() / 2]
}

/// Measures until the end of the storm.
async fn heartbeat(
    mut beats: mpsc::UnboundedReceiver<Instant>,
    ended: watch::Receiver<bool>,
) -> Held {
    let mut held = Held::default();
    let mut cpu = thread_cpu();
    while !*ended.borrow() {
        let late = beats.recv().await.unwrap().elapsed();
        let used = thread_cpu() - std::mem::replace(&mut cpu, thread_cpu());
        let at_most = late.min(used);
        if at_most > held.longest {
            (held.longest, held.longest_at) = (at_most, Some(Instant::now()));
        }
        held.late.0.push(late);
        held.held.0.push(at_most);
    }
    held
}

/// Requests `/livez` repeatedly, each time on a connection of its own.
async fn live(admin: SocketAddr, ended: watch::Receiver<bool>) -> Delays {
    let mut delays = Delays::default();
    let mut ticks = interval(ASK);
    let question = format!("GET /livez HTTP/1.1\r\nhost: {admin}\r\nconnection: close\r\n\r\n");
    while !*ended.borrow() {
        ticks.tick().await;
        let asked = Instant::now();
        let reply = try_exchange(admin, question.as_bytes()).await;
        assert_eq!(reply.map(|reply| reply.status), Some(200));
        delays.0.push(asked.elapsed());
    }
    delays
}

fn call(proxy: SocketAddr, action: &str, name: &str, hold: &str) -> Vec<u8> {
    let create = [("Categories", "[\"SIGN_UP\"]"), ("FlowName", name)];
    let parameters = if action == "CreateFlow" {
        &create[..]
    } else {
        &[]
    };
    let change = |call: &mut Call| {
        call.set("x-acs-action", action);
        call.push("x-flowgate-hold", hold);
    };
    Call::v3_with(&proxy.to_string(), parameters, change, (KEY, SECRET)).bytes()
}

/// Calls ListFlow repeatedly; counts responses other than 200.
async fn other_lane(proxy: SocketAddr, ended: watch::Receiver<bool>) -> (Delays, usize) {
    let mut delays = Delays::default();
    let mut failed = 0;
    let mut ticks = interval(CALL);
    while !*ended.borrow() {
        ticks.tick().await;
        let called = Instant::now();
        let reply = try_exchange(proxy, &call(proxy, "ListFlow", "", SHORT_HOLD)).await;
        failed += usize::from(reply.is_none_or(|reply| reply.status != 200));
        delays.0.push(called.elapsed());
    }
    (delays, failed)
}

/// Starts calls at once, and returns the status of each response.
async fn crowd(proxy: SocketAddr, calls: usize) -> Vec<Option<u16>> {
    let mut answers = JoinSet::new();
    for number in 0..calls {
        let bytes = call(proxy, "CreateFlow", &format!("flow-{number}"), HOLD);
        answers.spawn(async move { try_exchange(proxy, &bytes).await.map(|reply| reply.status) });
    }
    timeout(Duration::from_secs(120), answers.join_all())
        .await
        .unwrap()
}

fn runtime() -> Runtime {
    Builder::new_current_thread().enable_all().build().unwrap()
}

/// Runs Flowgate on this thread until the storm has ended. Unlike the binary's, this runtime checks
/// for tasks woken by other threads after each poll, so the heartbeat waits for one poll and not
/// for all ready tasks.
fn serve(
    upstream: &str,
    started: &std::sync::mpsc::Sender<[SocketAddr; 2]>,
    ended: watch::Receiver<bool>,
) -> Held {
    let runtime = Builder::new_current_thread()
        .enable_all()
        .global_queue_interval(1)
        .build()
        .unwrap();
    runtime.block_on(async {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("flowgate.toml");
        std::fs::write(
            &file,
            format!("upstream = {{ url = \"{upstream}\" }}\n{CONFIG}"),
        )
        .unwrap();
        let environment = [(OsString::from("MANAGED"), OsString::from(SECRET))];
        let app = App::start(config::load(Some(&file), environment).unwrap().config)
            .await
            .unwrap();
        started
            .send([app.proxy_address().unwrap(), app.admin_address().unwrap()])
            .unwrap();
        let (waker, beats) = mpsc::unbounded_channel();
        std::thread::spawn(move || wake(&waker));
        tokio::spawn(heartbeat(beats, ended)).await.unwrap()
    })
}

/// Runs one storm, prints a row, and returns whether nothing was blocked.
fn storm(name: &str, faults: &[&str], calls: usize) -> bool {
    // Flowgate ends after its clients.
    let (end, ended) = watch::channel(false);
    let (end_serving, serving_ended) = watch::channel(false);
    let (started, starts) = std::sync::mpsc::channel();
    let outside = runtime();
    let settings = Settings {
        latency: Duration::from_millis(30),
        keep_requests: false,
        ..Settings::default()
    };
    let settings = Settings {
        faults: faults.iter().map(|fault| fault.parse().unwrap()).collect(),
        ..settings
    };
    let limit = Limit {
        per_window: TAKES,
        kind: Kind::Sliding,
        ..Limit::default()
    };
    let sim = outside
        .block_on(Sim::start(
            settings.with_key(KEY, SECRET, "acme").with_limit(limit),
        ))
        .unwrap();
    let upstream = sim.url();
    let serving = std::thread::spawn(move || serve(&upstream, &started, serving_ended));
    let unit_ended = ended.clone();
    let working = std::thread::spawn(move || unit_of_work(&unit_ended));
    let [proxy, admin] = starts.recv().unwrap();
    let (begin, took, answers, lived, (listed, failed)) = outside.block_on(async {
        sleep(Duration::from_secs(2)).await;
        let begin = Instant::now();
        let asking = tokio::spawn(live(admin, ended.clone()));
        let listing = tokio::spawn(other_lane(proxy, ended.clone()));
        let answers = tokio::task::spawn_blocking(move || runtime().block_on(crowd(proxy, calls)))
            .await
            .unwrap();
        let took = begin.elapsed();
        end.send(true).unwrap();
        (
            begin,
            took,
            answers,
            asking.await.unwrap(),
            listing.await.unwrap(),
        )
    });
    end_serving.send(true).unwrap();
    let held = serving.join().unwrap();
    let unit = working.join().unwrap();
    let refused = sim
        .arrivals()
        .iter()
        .filter(|arrival| arrival.verdict == Verdict::Throttled)
        .count();
    let of = |wanted: fn(u16) -> bool| {
        answers
            .iter()
            .filter(|status| status.is_some_and(wanted))
            .count()
    };
    println!(
        "| {name} | {}, {} of {calls} | {:.1} | {refused} | {} | {} | {} | {}; {failed} of {} |",
        of(|status| status == 200),
        of(|status| status != 200),
        took.as_secs_f64(),
        held.held.text(),
        held.late.text(),
        lived.text(),
        listed.text(),
        listed.0.len()
    );
    let longest_at = held
        .longest_at
        .map_or(0.0, |at| at.saturating_duration_since(begin).as_secs_f64());
    eprintln!(
        "{name}: the longest hold was {longest_at:.2} s after the crowd came; a unit of work took {unit:.2?}"
    );
    let is_free = held.held.quantile(NEARLY_ALL) + BEAT < MOST_HELD * unit
        && held.longest + BEAT < LONGEST_HELD * unit;
    is_free && failed == 0 && answers.iter().all(Option::is_some)
}

fn main() -> ExitCode {
    let options = Options::parse();
    if !options.bench {
        return ExitCode::SUCCESS;
    }
    flowgate::process::hardening::raise_open_files().unwrap();
    println!("{HEAD}");
    let storms = [
        ("takes 100/s", &[][..]),
        (
            "and refuses a fifth besides",
            &["percent=20,action=CreateFlow,throttle"],
        ),
    ];
    let kept = storms.map(|(name, faults)| storm(name, faults, options.calls));
    if kept == [true; 2] {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}

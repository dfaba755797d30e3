//! A soak test for leaks. Two hundred accounts at full rate, callers that hang up, an endpoint that
//! throttles and loses responses, and repeated reloads. After `--minutes` (2) the process must hold
//! no more memory and descriptors than after a sixth of that time, and the results of all calls
//! must agree with the endpoint.
//!
//! Nonces may grow for a quarter of an hour, because they are remembered while their stamps are
//! valid. The soak knows their number and their maximum size; with enough rounds of `--warm-up`
//! nothing is added for them.

#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed soak")]
#![expect(clippy::print_stdout, reason = "the table is what the soak is for")]

#[allow(dead_code, reason = "the tests count more ends")]
#[path = "../tests/it/call_results.rs"]
mod call_results;
#[allow(dead_code, reason = "the tests' caller does more than send")]
#[path = "../tests/it/caller.rs"]
mod caller;
#[allow(dead_code, reason = "the tests' processes do more than run")]
#[path = "../tests/it/process.rs"]
mod process;
#[allow(dead_code, reason = "the tests' relays can be broken")]
#[path = "../tests/it/relay.rs"]
mod relay;

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use cams_sim::{Settings, Sim};
use clap::Parser;
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, sleep_until, timeout};

use crate::call_results::{CallResults, End};
use crate::caller::{Call, SECRET, read_reply};
use crate::process::Process;
use crate::relay::Relay;

const ACCOUNTS: usize = 200;
/// Percentage of calls that hang up.
const HANG_UPS: u32 = 5;
const ROUNDS: u32 = 6;
const APART: Duration = Duration::from_millis(15);
/// Maximum patience of a caller that hangs up, for each caller of the account: about its time in
/// the queue.
const PATIENCE: u64 = 300;
/// Number and interval of the readings before a round's end; the median does not depend on one
/// moment.
const READINGS: u32 = 15;
const READ: Duration = Duration::from_secs(1);
/// How long a nonce is remembered, and its size in bytes.
const REMEMBERED: Duration = Duration::from_secs(16 * 60);
const NONCE: f64 = 32.0;
const RELOAD: Duration = Duration::from_secs(3);
const FAULTS: [&str; 3] = [
    "percent=1,throttle,acs-retry-after=200",
    "percent=1,close-after",
    "percent=1,throttle",
];
/// A busy machine's delays must not bring a sixth call into a second.
const TOML: &str = "answer_timeout = \"5s\"\n[learn]\ngap = \"100ms\"\nmax_gap = \"100ms\"\n[queue]\nmax_hold = \"2m\"\n";
/// All callers have one address.
const ROOM: (&str, &str) = ("FLOWGATE_LISTEN__MAX_CONNECTIONS_PER_SOURCE", "9000");

#[derive(Parser)]
struct Arguments {
    #[arg(long, default_value_t = 2.0)]
    minutes: f64,
    /// Callers of each account: enough that no queue is ever empty.
    #[arg(long, default_value_t = 8)]
    callers: u32,
    /// Rounds before the first that counts, each a sixth of the minutes.
    #[arg(long, default_value_t = 0)]
    warm_up: u32,
    /// Passed by cargo to every benchmark.
    #[arg(long, hide = true)]
    bench: bool,
}

/// What the process holds.
#[derive(Clone, Copy)]
struct Held {
    /// Resident memory, in KiB.
    memory: u64,
    descriptors: usize,
    /// Calls of the round.
    calls: usize,
}

/// Unique flow names.
static NAMES: AtomicU64 = AtomicU64::new(0);

fn key(account: usize) -> String {
    format!("LTAI-{account}")
}

/// Memory and descriptors, the medians of the readings.
async fn held(id: u32) -> (u64, usize) {
    let mut memory = Vec::new();
    let mut descriptors = Vec::new();
    for _ in 0..READINGS {
        sleep(READ).await;
        let status = std::fs::read_to_string(format!("/proc/{id}/status")).unwrap();
        let line = status
            .lines()
            .find_map(|line| line.strip_prefix("VmRSS:"))
            .unwrap();
        memory.push(line.trim().strip_suffix(" kB").unwrap().parse().unwrap());
        descriptors.push(std::fs::read_dir(format!("/proc/{id}/fd")).unwrap().count());
    }
    memory.sort_unstable();
    descriptors.sort_unstable();
    (memory[memory.len() / 2], descriptors[descriptors.len() / 2])
}

/// One caller of an account, over one connection as long as it lasts, until the end.
async fn call_on(
    proxy: SocketAddr,
    key: Arc<str>,
    callers: u32,
    from: Instant,
    until: Instant,
) -> Vec<(String, End)> {
    let mut ends = Vec::new();
    sleep_until(from).await;
    let mut connection = None;
    while Instant::now() < until {
        let name = format!("flow-{}", NAMES.fetch_add(1, Ordering::Relaxed));
        let query = [("Categories", "[\"SIGN_UP\"]"), ("FlowName", name.as_str())];
        let hold = |call: &mut Call| call.push("x-flowgate-hold", "60s");
        let call = Call::v3_with(&proxy.to_string(), &query, hold, (&key, SECRET));
        let mut stream = match connection.take() {
            Some(stream) => stream,
            None => TcpStream::connect(proxy).await.unwrap(),
        };
        stream.write_all(&call.bytes()).await.unwrap();
        let hangs_up = fastrand::u32(..100) < HANG_UPS;
        let patience = if hangs_up {
            Duration::from_millis(fastrand::u64(..PATIENCE * u64::from(callers)))
        } else {
            Duration::from_secs(90)
        };
        let end = match timeout(patience, read_reply(&mut stream)).await {
            Ok(Some(reply)) => {
                connection = Some(stream);
                End::Answered {
                    status: reply.status,
                    code: reply.code(),
                }
            }
            Ok(None) => End::Closed,
            Err(_) if hangs_up => End::Gone,
            Err(_) => panic!("{name} hears nothing"),
        };
        ends.push((name, end));
    }
    ends
}

/// Reloads repeatedly, each time with another configuration.
async fn reload(flowgate: &Process, toml: &str) {
    for hold in (10..60).cycle() {
        sleep(RELOAD).await;
        flowgate.write(&toml.replace("max_hold", &format!("hold = \"{hold}s\"\nmax_hold")));
        flowgate.signal("-HUP").await;
    }
}

/// Runs all callers for a time; returns what the process held just before the end.
async fn round(
    flowgate: &Process,
    toml: &str,
    sim: &Sim,
    relay: &Relay,
    callers: u32,
    length: Duration,
) -> Held {
    let until = Instant::now() + length;
    let mut calls = JoinSet::new();
    for account in 0..ACCOUNTS {
        let key: Arc<str> = key(account).into();
        // Staggered: a thousand simultaneous calls would measure the machine.
        let from = Instant::now() + APART * u32::try_from(account).unwrap();
        (0..callers).for_each(|_| {
            drop(calls.spawn(call_on(flowgate.proxy, key.clone(), callers, from, until)))
        });
    }
    let holds = async {
        sleep_until(until - READ * READINGS).await;
        held(flowgate.id()).await
    };
    let (memory, descriptors) = tokio::select! {
        holds = holds => holds,
        () = reload(flowgate, toml) => unreachable!("it never ends"),
    };
    let mut results = CallResults::default();
    let ends: Vec<_> = calls.join_all().await.into_iter().flatten().collect();
    let calls = ends.len();
    results.note(ends);
    // Attempts of disconnected callers may still be in flight.
    sleep(Duration::from_secs(1)).await;
    let report = results.check(sim);
    let worst = relay.worst_second();
    assert!(worst <= 5, "{worst} in a second");
    assert_eq!(results.ended(&End::Closed), 0);
    let [ok, unknown] = ["OK", "Flowgate.OutcomeUnknown"].map(|code| results.count(code));
    println!(
        "| {ok} | {unknown} | {} | {} | {:.1} | {} |",
        results.ended(&End::Gone),
        report.refused,
        memory as f64 / 1024.0,
        descriptors
    );
    sim.reset();
    Held {
        memory,
        descriptors,
        calls,
    }
}

/// Checks that nothing but nonces has grown between the first counted round and the last.
fn check(rounds: &[Held], warm_up: usize, length: Duration) {
    let first = rounds[warm_up];
    let last = rounds[rounds.len() - 1];
    let nonces = |rounds: &[Held]| {
        let time = length * u32::try_from(rounds.len()).unwrap();
        rounds.iter().map(|round| round.calls).sum::<usize>() as f64
            * REMEMBERED.div_duration_f64(time).min(1.0)
    };
    let more = (nonces(rounds) - nonces(&rounds[..=warm_up])).max(0.0) * NONCE / 1024.0;
    let growth = (last.memory as f64 - more) / first.memory as f64 - 1.0;
    println!(
        "\nmemory {:+.1} % since round {}, {:+.1} % without {:.1} MiB for more nonces; descriptors {} -> {}",
        (last.memory as f64 / first.memory as f64 - 1.0) * 100.0,
        warm_up + 1,
        growth * 100.0,
        more / 1024.0,
        first.descriptors,
        last.descriptors
    );
    assert!(growth <= 0.10, "memory grows");
    assert!(
        last.descriptors <= first.descriptors + 20,
        "descriptors are left open"
    );
}

#[tokio::main]
async fn main() {
    let Arguments {
        minutes,
        callers,
        warm_up,
        ..
    } = Arguments::parse();
    let settings = (0..ACCOUNTS).fold(
        Settings {
            keep_requests: false,
            ..Settings::default()
        },
        |settings, account| settings.with_key(&key(account), SECRET, &account.to_string()),
    );
    let sim = Sim::start(settings).await.unwrap();
    let relay = Relay::to(sim.addr());
    sim.set_faults(FAULTS.map(|fault| fault.parse().unwrap()).to_vec());
    let account = |account| {
        format!(
            "[[accounts]]\nid = \"acme-{account}\"\naccess_key_id = \"{}\"\naccess_key_secret = {{ env = \"MANAGED\" }}\n",
            key(account)
        )
    };
    let toml = TOML.to_owned() + &(0..ACCOUNTS).map(account).collect::<String>();
    let flowgate =
        Process::towards(&relay.url(), &toml, tempfile::tempdir().unwrap(), &[ROOM]).await;
    println!(
        "| answered ok | unknown | hung up | refused at the endpoint | MiB | descriptors |\n|--:|--:|--:|--:|--:|--:|"
    );
    let length = Duration::from_secs_f64(minutes * 60.0 / f64::from(ROUNDS));
    let mut rounds = Vec::new();
    for _ in 0..warm_up + ROUNDS {
        rounds.push(round(&flowgate, &toml, &sim, &relay, callers, length).await);
    }
    flowgate.logged("configuration reloaded", 3).await;
    check(&rounds, usize::try_from(warm_up).unwrap(), length);
}

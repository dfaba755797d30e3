//! A soak test for leaks. Two hundred accounts at full rate, calls with idempotency keys and their
//! repetitions, callers that hang up, an endpoint that throttles and loses responses, and repeated
//! reloads. After `--minutes` (2) the process must hold no more memory and descriptors than after a
//! sixth of that time, and what was told of each call must agree with the endpoint.
//!
//! Nonces may grow for a quarter of an hour, because they are remembered while their stamps are
//! valid, and idempotency keys for a day. The soak knows their number and their maximum size; with
//! enough rounds of `--warm-up` nothing is added for nonces.

#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed soak")]
#![expect(clippy::print_stdout, reason = "the table is what the soak is for")]

#[allow(dead_code, reason = "the tests' caller does more than send")]
#[path = "../tests/it/caller.rs"]
mod caller;
#[allow(dead_code, reason = "the tests' calls have connections of their own")]
#[path = "../tests/it/ledger.rs"]
mod ledger;
#[allow(dead_code, reason = "the tests' processes do more than run")]
#[path = "../tests/it/process.rs"]
mod process;
#[allow(dead_code, reason = "the tests' relays can be broken")]
#[path = "../tests/it/relay.rs"]
mod relay;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use cams_sim::{Running, Settings, Sim};
use clap::Parser;
use parking_lot::Mutex;
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, sleep_until, timeout};

use crate::caller::{SECRET, read_reply};
use crate::ledger::{LOST, Ledger, Mix, Names, Order, Orders, Told, UNPROCESSED};
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
/// Maximum size of a finished idempotency key in bytes: about 210 (`cargo bench --bench keys`), and
/// half as much again when the table has just grown.
const KEY: f64 = 320.0;
/// Of all calls.
const MIX: Mix = Mix {
    keyed: 30.0,
    repeats: 2.0,
    lost: 1.0,
    unprocessed: 0.5,
};
const RELOAD: Duration = Duration::from_secs(3);
const FAULTS: [&str; 2] = [
    "percent=1,throttle,acs-retry-after=200",
    "percent=1,throttle",
];
/// A busy machine's delays must not bring a sixth call into a second.
const TOML: &str = "answer_timeout = \"5s\"\n[learn]\ngap = \"100ms\"\nmax_gap = \"100ms\"\n[queue]\nmax_hold = \"2m\"\n\
    [exactly_once]\nmax_keys = 10000000\n";
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
    /// The accounts have unique flow names, so the flow of an unknown outcome is looked for.
    #[arg(long)]
    unique_names: bool,
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
    /// Its calls with a new key.
    keys: usize,
}

/// What all rounds have in common.
struct Soak {
    flowgate: Process,
    toml: String,
    sim: Running,
    relay: Relay,
    names: Names,
    /// Callers of each account.
    callers: u32,
}

/// One caller of an account.
struct Caller {
    proxy: SocketAddr,
    orders: Arc<Mutex<Orders>>,
    /// Maximum patience of a call that hangs up, in milliseconds.
    patience: u64,
    from: Instant,
    until: Instant,
}

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

/// Reloads repeatedly, each time with another configuration.
async fn reload(flowgate: &Process, toml: &str) {
    for hold in (10..60).cycle() {
        sleep(RELOAD).await;
        flowgate.write(&toml.replace("max_hold", &format!("hold = \"{hold}s\"\nmax_hold")));
        flowgate.signal("-HUP").await;
    }
}

/// Checks that nothing but nonces and keys has grown between the first counted round and the last.
fn check(rounds: &[Held], warm_up: usize, length: Duration) {
    let first = rounds[warm_up];
    let last = rounds[rounds.len() - 1];
    let nonces = |rounds: &[Held]| {
        let time = length * u32::try_from(rounds.len()).unwrap();
        rounds.iter().map(|round| round.calls).sum::<usize>() as f64
            * REMEMBERED.div_duration_f64(time).min(1.0)
    };
    let keys: usize = rounds[warm_up + 1..].iter().map(|round| round.keys).sum();
    let more_nonces = (nonces(rounds) - nonces(&rounds[..=warm_up])).max(0.0) * NONCE;
    let more = (more_nonces + keys as f64 * KEY) / 1024.0;
    let growth = (last.memory as f64 - more) / first.memory as f64 - 1.0;
    println!(
        "\nmemory {:+.1} % since round {}, {:+.1} % without {:.1} MiB for more nonces and {keys} keys; descriptors {} -> {}",
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

/// The configuration of all accounts.
fn toml(names: Names) -> String {
    let account = |account| {
        format!(
            "[[accounts]]\nid = \"acme-{account}\"\naccess_key_id = \"{}\"\naccess_key_secret = {{ env = \"MANAGED\" }}\n{}",
            key(account),
            names.toml()
        )
    };
    TOML.to_owned() + &(0..ACCOUNTS).map(account).collect::<String>()
}

#[tokio::main]
async fn main() {
    let Arguments {
        minutes,
        callers,
        warm_up,
        unique_names,
        ..
    } = Arguments::parse();
    let names = if unique_names {
        Names::Unique
    } else {
        Names::Any
    };
    let settings = (0..ACCOUNTS).fold(
        Settings {
            keep_requests: false,
            ..Settings::default()
        },
        |settings, account| settings.with_key(&key(account), SECRET, &account.to_string()),
    );
    let sim = Sim::start(settings).await.unwrap();
    let relay = Relay::to(sim.addr());
    let faults = [LOST.as_slice(), &[UNPROCESSED], &FAULTS].concat();
    sim.set_faults(faults.iter().map(|fault| fault.parse().unwrap()).collect());
    let toml = toml(names);
    let folder = tempfile::tempdir().unwrap();
    let flowgate = Process::towards(&relay.url(), &toml, folder, &[ROOM]).await;
    let soak = Soak {
        flowgate,
        toml,
        sim,
        relay,
        names,
        callers,
    };
    println!(
        "| answered ok | keys | repeated | unknown | hung up | refused at the endpoint | MiB | descriptors |\n\
         |--:|--:|--:|--:|--:|--:|--:|--:|"
    );
    let length = Duration::from_secs_f64(minutes * 60.0 / f64::from(ROUNDS));
    let mut rounds = Vec::new();
    for number in 0..warm_up + ROUNDS {
        rounds.push(soak.round(number, length).await);
    }
    soak.flowgate.logged("configuration reloaded", 3).await;
    check(&rounds, usize::try_from(warm_up).unwrap(), length);
}

// === impl Soak ===

impl Soak {
    /// Runs all callers for a time; returns what the process held just before the end.
    async fn round(&self, number: u32, length: Duration) -> Held {
        let until = Instant::now() + length;
        let calls = self.callers(number, until);
        let holds = async {
            sleep_until(until - READ * READINGS).await;
            held(self.flowgate.id()).await
        };
        let (memory, descriptors) = tokio::select! {
            holds = holds => holds,
            () = reload(&self.flowgate, &self.toml) => unreachable!("it never ends"),
        };
        let mut ledger = Ledger::default();
        let calls: Vec<_> = calls.join_all().await.into_iter().flatten().collect();
        let mut held = Held {
            memory,
            descriptors,
            calls: calls.len(),
            keys: 0,
        };
        ledger.note(calls);
        held.keys = ledger.keys();
        // Attempts of disconnected callers may still be in flight.
        sleep(Duration::from_secs(1)).await;
        self.report(&ledger, &held);
        held.calls += ledger
            .settle(self.flowgate.proxy, &self.sim, self.names)
            .await;
        ledger.check(&self.sim, self.names);
        let worst = self.relay.worst_second();
        assert!(worst <= 5, "{worst} in a second");
        self.sim.reset();
        held
    }

    /// Starts the callers of all accounts.
    fn callers(&self, round: u32, until: Instant) -> JoinSet<Vec<(Order, Told)>> {
        let mut calls = JoinSet::new();
        for account in 0..ACCOUNTS {
            let orders = Orders::new(&key(account), &format!("flow-{round}-{account}"), MIX);
            let orders = Arc::new(Mutex::new(orders));
            // Staggered: a thousand simultaneous calls would measure the machine.
            let from = Instant::now() + APART * u32::try_from(account).unwrap();
            for _ in 0..self.callers {
                let caller = Caller {
                    proxy: self.flowgate.proxy,
                    orders: orders.clone(),
                    patience: PATIENCE * u64::from(self.callers),
                    from,
                    until,
                };
                calls.spawn(caller.run());
            }
        }
        calls
    }

    fn report(&self, ledger: &Ledger, held: &Held) {
        assert_eq!(ledger.count(|told| *told == Told::Closed), 0);
        println!(
            "| {} | {} | {} | {} | {} | {} | {:.1} | {} |",
            ledger.count(|told| matches!(told, Told::Created { .. })),
            held.keys,
            ledger.repeats(),
            ledger.count(|told| *told == Told::Unknown),
            ledger.count(|told| *told == Told::Gone),
            self.sim.report().refused,
            held.memory as f64 / 1024.0,
            held.descriptors
        );
    }
}

// === impl Caller ===

impl Caller {
    /// Calls over one connection as long as it lasts, until the end.
    async fn run(self) -> Vec<(Order, Told)> {
        let mut calls = Vec::new();
        sleep_until(self.from).await;
        let mut connection = None;
        while Instant::now() < self.until {
            let order = self.orders.lock().next();
            let told = self.call(&order, &mut connection).await;
            calls.push((order, told));
        }
        calls
    }

    async fn call(&self, order: &Order, connection: &mut Option<TcpStream>) -> Told {
        let call = order.call(self.proxy, "60s");
        let mut stream = match connection.take() {
            Some(stream) => stream,
            None => TcpStream::connect(self.proxy).await.unwrap(),
        };
        stream.write_all(&call.bytes()).await.unwrap();
        let hangs_up = fastrand::u32(..100) < HANG_UPS;
        let patience = if hangs_up {
            Duration::from_millis(fastrand::u64(..self.patience))
        } else {
            Duration::from_secs(90)
        };
        match timeout(patience, read_reply(&mut stream)).await {
            Ok(Some(reply)) => {
                *connection = Some(stream);
                Told::by(&reply)
            }
            Ok(None) => Told::Closed,
            Err(_) if hangs_up => Told::Gone,
            Err(_) => panic!("{order:?} hears nothing"),
        }
    }
}

//! The real program while its environment fails or it is killed: every caller gets one response or
//! a closed connection, no call is processed twice or reported wrongly, and no account sends six
//! calls within a second.

use std::net::SocketAddr;
use std::time::Duration;

use cams_sim::{Running, Settings, Sim};
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};

use crate::call_results::{self, CallResults, End};
use crate::harness::{GAP, Metrics};
use crate::ledger::{LOST, Ledger, Mix, Names, Order, Orders, Told, UNPROCESSED};
use crate::process::Process;
use crate::relay::{Condition, Relay};

/// An endpoint, the network path to it, and accounts that share it.
struct Stage {
    sim: Running,
    relay: Relay,
    accounts: usize,
    /// Whether Flowgate looks for the flow of an unknown outcome.
    names: Names,
}

/// The eighth call of each account is processed, and its response is cut.
const CUT: &str = "named=/7,cut";

/// Calls with and without keys. The storms are short, so more of them than a soak's are repeated
/// and lost.
const MIX: Mix = Mix {
    keyed: 30.0,
    repeats: 10.0,
    lost: 4.0,
    unprocessed: 2.0,
};
/// Percentage of callers that disconnect.
const DISCONNECTS: u32 = 5;

fn key(account: usize) -> String {
    format!("LTAI-{account}")
}

fn seconds(seconds: f64) -> Duration {
    Duration::from_secs_f64(seconds)
}

// === impl Stage ===

impl Stage {
    async fn new(accounts: usize, faults: &[&str]) -> Self {
        let settings = (0..accounts).fold(Settings::default(), |settings, account| {
            settings.with_key(&key(account), crate::caller::SECRET, &account.to_string())
        });
        let sim = Sim::start(settings).await.unwrap();
        sim.set_faults(faults.iter().map(|fault| fault.parse().unwrap()).collect());
        let relay = Relay::to(sim.addr());
        Self {
            sim,
            relay,
            accounts,
            names: Names::Any,
        }
    }

    fn with(self, names: Names) -> Self {
        Self { names, ..self }
    }

    /// The configuration; `upstream` continues that section.
    fn toml(&self, upstream: &str, more: &str) -> String {
        let account = |account| {
            let key = key(account);
            format!(
                "[[accounts]]\nid = \"acme-{account}\"\naccess_key_id = \"{key}\"\naccess_key_secret = {{ env = \"MANAGED\" }}\n{}",
                self.names.toml()
            )
        };
        let accounts: String = (0..self.accounts).map(account).collect();
        format!("{upstream}\n{accounts}{GAP}{more}")
    }

    async fn start(&self, upstream: &str, more: &str) -> Process {
        self.start_with(&self.toml(upstream, more), &[]).await
    }

    async fn start_with(&self, toml: &str, env: &[(&str, &str)]) -> Process {
        Process::towards(&self.relay.url(), toml, tempfile::tempdir().unwrap(), env).await
    }

    /// Starts calls of each account, spread over a time.
    fn storm(
        &self,
        name: &str,
        proxy: SocketAddr,
        calls: usize,
        over: Duration,
    ) -> JoinSet<(String, End)> {
        let mut storm = JoinSet::new();
        for account in 0..self.accounts {
            for index in 0..calls {
                let key = key(account);
                let name = format!("{name}-{account}/{index}");
                let after = over.mul_f64(index as f64 / calls as f64);
                storm.spawn(async move {
                    sleep(after).await;
                    let end = call_results::create(proxy, &key, &name, None).await;
                    (name, end)
                });
            }
        }
        storm
    }

    /// The orders of each account, with and without keys.
    fn orders(&self) -> Vec<Orders> {
        let orders = |account: usize| {
            let prefix = format!("flow-{account}");
            Orders::new(&key(account), &prefix, MIX)
        };
        (0..self.accounts).map(orders).collect()
    }

    /// Starts calls of these orders, spread over a time. Some callers disconnect.
    fn keyed_storm(
        &self,
        orders: &mut [Orders],
        proxy: SocketAddr,
        calls: usize,
        over: Duration,
    ) -> JoinSet<(Order, Told)> {
        let mut storm = JoinSet::new();
        for orders in orders {
            for index in 0..calls {
                let order = orders.next();
                let after = over.mul_f64(index as f64 / calls as f64);
                let patience = if fastrand::u32(..100) < DISCONNECTS {
                    over.mul_f64(fastrand::f64())
                } else {
                    Duration::from_secs(60)
                };
                storm.spawn(async move {
                    sleep(after).await;
                    let told = timeout(patience, order.send(proxy)).await;
                    (order, told.unwrap_or(Told::Gone))
                });
            }
        }
        storm
    }

    /// Repeats every key, and compares what was told with the flows of the endpoint.
    async fn balance(&self, ledger: &mut Ledger, proxy: SocketAddr) {
        ledger.settle(proxy, &self.sim, self.names).await;
        ledger.check(&self.sim, self.names);
        let worst = self.relay.worst_second();
        assert!(worst <= 5, "{worst} in a second");
    }

    /// Like [`check`](Self::check), for a hundred calls of four accounts, each with one cut
    /// response.
    fn check_cut(&self, results: &CallResults) {
        self.check(results);
        assert_eq!(
            (
                results.count("OK"),
                results.count("Flowgate.OutcomeUnknown")
            ),
            (96, 4)
        );
    }

    /// Checks the invariant, and that no caller has a closed connection.
    fn check(&self, results: &CallResults) {
        self.check_rate(results);
        assert_eq!(
            results.ended(&End::Closed),
            0,
            "Flowgate answers as long as it lives"
        );
    }

    fn check_rate(&self, results: &CallResults) {
        results.check(&self.sim);
        let worst = self.relay.worst_second();
        assert!(worst <= 5, "{worst} in a second");
    }
}

async fn ends(storm: JoinSet<(String, End)>) -> CallResults {
    let mut results = CallResults::default();
    results.note(storm.join_all().await);
    results
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_call_is_lost_when_the_endpoint_is_killed_and_restarted() {
    let stage = Stage::new(4, &[]).await;
    let flowgate = stage.start("answer_timeout = \"2s\"", "").await;
    let storm = stage.storm("flow", flowgate.proxy, 25, seconds(4.0));
    for _ in 0..2 {
        sleep(seconds(1.2)).await;
        stage.relay.is(Condition::Killed);
        sleep(seconds(0.8)).await;
        stage.relay.is(Condition::Open);
    }
    let results = ends(storm).await;
    stage.check(&results);
    let ok = results.count("OK");
    let unknown = results.count("Flowgate.OutcomeUnknown");
    assert_eq!(ok + unknown, 100, "the others wait for it");
    assert!(
        unknown <= 40,
        "only what was under way is unknown: {unknown}"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_call_is_lost_when_the_endpoint_freezes() {
    let stage = Stage::new(4, &[]).await;
    let flowgate = stage.start("answer_timeout = \"700ms\"", "").await;
    let storm = stage.storm("flow", flowgate.proxy, 25, seconds(4.0));
    sleep(seconds(1.5)).await;
    stage.relay.is(Condition::Frozen);
    sleep(seconds(2.0)).await;
    stage.relay.is(Condition::Open);
    let results = ends(storm).await;
    // The endpoint now processes what was in its buffers while it was frozen.
    sleep(seconds(0.5)).await;
    stage.check(&results);
    let ok = results.count("OK");
    let unknown = results.count("Flowgate.OutcomeUnknown");
    assert!(
        ok >= 50 && unknown > 0 && ok + unknown == 100,
        "{ok} {unknown}"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_call_in_a_hundred_has_each_fault() {
    let faults = [
        "named=/7,cut",
        "named=/13,close-after",
        "percent=1,close-before",
        "percent=1,reset",
        "percent=1,garbage",
        "percent=1,unavailable",
        "percent=1,throttle",
        "percent=1,throttle,acs-retry-after=300",
        "percent=1,html",
        "percent=1,slow=3s",
        "percent=1,redirect",
        "percent=1,empty",
    ];
    let stage = Stage::new(20, &faults).await;
    let flowgate = stage.start("answer_timeout = \"1s\"", "").await;
    let results = ends(stage.storm("flow", flowgate.proxy, 25, seconds(3.0))).await;
    stage.check(&results);
    let codes =
        ["OK", "Flowgate.OutcomeUnknown", "ServiceUnavailable"].map(|code| results.count(code));
    assert_eq!(codes.iter().sum::<usize>(), 500, "{codes:?}");
    assert!(
        codes[1] >= 40,
        "at least the calls whose responses were cut: {codes:?}"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_killed_process_is_replaced_by_another() {
    let stage = Stage::new(4, &[]).await;
    let first = stage.start("", "").await;
    let before = stage.storm("before", first.proxy, 40, seconds(0.5));
    sleep(seconds(2.0)).await;
    first.kill().await;
    let second = stage.start("", "").await;
    let after = stage.storm("after", second.proxy, 20, seconds(2.0));
    let mut results = ends(before).await;
    let closed = results.ended(&End::Closed);
    assert!(
        closed > 80,
        "queued callers have a closed connection: {closed}"
    );
    results.note(after.join_all().await);
    stage.check_rate(&results);
    assert_eq!(
        (results.ended(&End::Closed), results.count("OK")),
        (closed, 240 - closed),
        "the second serves all"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn with_lost_answers_each_key_has_one_flow_and_its_repeats_get_it() {
    lose_answers(Names::Any).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn with_unique_names_the_flow_of_each_lost_answer_is_found() {
    lose_answers(Names::Unique).await;
}

async fn lose_answers(names: Names) {
    let faults = [
        "percent=1,unavailable",
        "percent=1,throttle",
        "percent=1,throttle,acs-retry-after=300",
        "percent=1,garbage",
        "percent=1,slow=3s",
    ];
    let faults = [LOST.as_slice(), &[UNPROCESSED], &faults].concat();
    let stage = Stage::new(20, &faults).await.with(names);
    let flowgate = stage.start("answer_timeout = \"1s\"", "").await;
    let mut orders = stage.orders();
    let storm = stage.keyed_storm(&mut orders, flowgate.proxy, 30, seconds(3.0));
    sleep(seconds(1.5)).await;
    stage.relay.is(Condition::Killed);
    sleep(seconds(0.5)).await;
    stage.relay.is(Condition::Open);
    let mut ledger = Ledger::default();
    ledger.note(storm.join_all().await);
    assert_eq!(
        ledger.count(|told| *told == Told::Closed),
        0,
        "Flowgate answers as long as it lives"
    );
    stage.balance(&mut ledger, flowgate.proxy).await;
    let created = ledger.count(|told| matches!(told, Told::Created { .. }));
    let unknown = ledger.count(|told| *told == Told::Unknown);
    assert!(created > 400 && unknown > 5, "{created} {unknown}");
    let (keys, repeats) = (ledger.keys(), ledger.repeats());
    assert!(
        keys > 100 && repeats > keys + 30,
        "{keys} {repeats}, of which one for each key is the last"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn with_a_journal_each_key_has_one_flow_over_kills() {
    kill_with_a_journal(Names::Any).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn with_a_journal_the_flow_of_each_killed_call_is_found() {
    kill_with_a_journal(Names::Unique).await;
}

async fn kill_with_a_journal(names: Names) {
    let faults = [LOST.as_slice(), &[UNPROCESSED]].concat();
    let stage = Stage::new(8, &faults).await.with(names);
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("journal");
    let journal = format!("[journal]\npath = \"{}\"\n", path.display());
    let mut flowgate = stage.start("answer_timeout = \"2s\"", &journal).await;
    let mut orders = stage.orders();
    let mut ledger = Ledger::default();
    for _ in 0..3 {
        let storm = stage.keyed_storm(&mut orders, flowgate.proxy, 20, seconds(1.0));
        sleep(seconds(2.5)).await;
        flowgate.kill().await;
        flowgate = stage.start("answer_timeout = \"2s\"", &journal).await;
        ledger.note(storm.join_all().await);
    }
    let closed = ledger.count(|told| *told == Told::Closed);
    assert!(closed > 50, "calls were queued at the kills: {closed}");
    stage.balance(&mut ledger, flowgate.proxy).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_drain_answers_every_call_of_a_full_queue() {
    let stage = Stage::new(2, &[]).await;
    let flowgate = stage
        .start("", "[queue]\nmax_waiting = 30\n[drain]\ngrace = \"3s\"")
        .await;
    let storm = stage.storm("flow", flowgate.proxy, 60, Duration::ZERO);
    for account in 0..2 {
        let full =
            format!("flowgate_refused_total{{account=\"acme-{account}\",reason=\"queue_full\"}}");
        Metrics::until(flowgate.admin, &full, |refused| refused >= 20.0).await;
    }
    assert!(flowgate.terminate().await.success());
    let results = ends(storm).await;
    stage.check(&results);
    let codes = ["OK", "Flowgate.Draining", "System.LimitControl"].map(|code| results.count(code));
    assert_eq!(codes.iter().sum::<usize>(), 120, "{codes:?}");
    assert!(codes.iter().all(|count| *count > 0), "{codes:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stopped_process_continues_within_the_rate() {
    let stage = Stage::new(4, &[]).await;
    let flowgate = stage.start("", "").await;
    let storm = stage.storm("flow", flowgate.proxy, 25, seconds(4.0));
    for _ in 0..3 {
        sleep(seconds(0.7)).await;
        flowgate.signal("-STOP").await;
        sleep(seconds(1.3)).await;
        flowgate.signal("-CONT").await;
    }
    let results = ends(storm).await;
    stage.check(&results);
    assert_eq!(
        results.count("OK"),
        100,
        "no tokens bunch up, and no call is lost"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn repeated_reloads_lose_no_call() {
    let stage = Stage::new(4, &["percent=2,throttle", CUT]).await;
    let toml = stage.toml("answer_timeout = \"2s\"", "[queue]\nmax_hold = \"2m\"\n");
    let flowgate = stage.start_with(&toml, &[]).await;
    let storm = stage.storm("flow", flowgate.proxy, 25, seconds(4.0));
    for round in 0..80 {
        let max_waiting = if round % 4 == 3 {
            "\"many\"".to_owned()
        } else {
            (1000 + round).to_string()
        };
        flowgate.write(&format!("{toml}max_waiting = {max_waiting}\n"));
        flowgate.signal("-HUP").await;
        sleep(seconds(0.05)).await;
    }
    let results = ends(storm).await;
    stage.check_cut(&results);
    flowgate.logged("configuration reloaded", 5).await;
    flowgate
        .logged("configuration reload rejected; keeping the current one", 2)
        .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_journal_disk_loses_no_call() {
    let stage = Stage::new(4, &[CUT]).await;
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("journal");
    let journal = format!("[journal]\npath = \"{}\"\n", path.display());
    let flowgate = stage.start("answer_timeout = \"2s\"", &journal).await;
    let storm = stage.storm("flow", flowgate.proxy, 25, seconds(4.0));
    sleep(seconds(1.0)).await;
    flowgate.files_end_at(Some(std::fs::metadata(&path).unwrap().len()));
    Metrics::until(flowgate.admin, "flowgate_journal_errors_total", |errors| {
        errors >= 10.0
    })
    .await;
    flowgate.files_end_at(None);
    let results = ends(storm).await;
    stage.check_cut(&results);
    assert_eq!(
        Metrics::of(flowgate.admin).await.get("flowgate_journal_up"),
        1.0
    );
    let lines = std::fs::read_to_string(&path).unwrap().lines().count();
    assert!(
        (100..=190).contains(&lines),
        "some were lost, and most were not: {lines}"
    );
}

/// Debian's libfaketime, which scripts/test installs.
fn faketime() -> String {
    let at = |machine| format!("/usr/lib/{machine}-linux-gnu/faketime/libfaketimeMT.so.1");
    let found = ["x86_64", "aarch64"]
        .map(at)
        .into_iter()
        .find(|path| std::path::Path::new(path).exists());
    found.expect("libfaketime is installed")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn changes_of_the_clock_lose_no_call() {
    let stage = Stage::new(4, &["percent=5,throttle,acs-retry-after=500"]).await;
    let folder = tempfile::tempdir().unwrap();
    let clock = folder.path().join("clock");
    let set = |off: &str| {
        let new = folder.path().join("new");
        std::fs::write(&new, off).unwrap();
        std::fs::rename(new, &clock).unwrap();
    };
    set("+0");
    let library = faketime();
    let file = clock.display().to_string();
    let env = [
        ("LD_PRELOAD", library.as_str()),
        ("FAKETIME_TIMESTAMP_FILE", &file),
        ("FAKETIME_NO_CACHE", "1"),
        ("DONT_FAKE_MONOTONIC", "1"),
    ];
    // A correction would sign by CAMS's clock.
    let toml = stage.toml("correct_clock = false", "");
    let flowgate = stage.start_with(&toml, &env).await;
    let storm = stage.storm("flow", flowgate.proxy, 30, seconds(4.0));
    for (off, accepted) in [
        ("+300", 10),
        ("-300", 30),
        ("+600", 50),
        ("-600", 70),
        ("+0", 90),
    ] {
        while stage.sim.report().accepted < accepted {
            sleep(seconds(0.02)).await;
        }
        set(off);
    }
    let results = ends(storm).await;
    stage.check(&results);
    assert_eq!(
        results.count("OK"),
        120,
        "all of it is within the quarter of an hour that a stamp may be off"
    );
    let stamps = stage.sim.arrivals().into_iter().filter_map(|arrival| {
        arrival
            .headers
            .into_iter()
            .find(|(name, _)| name == "x-acs-date")
            .map(|(_, stamp)| stamp)
    });
    let mut minutes: Vec<_> = stamps.map(|stamp| stamp[..16].to_owned()).collect();
    minutes.sort();
    minutes.dedup();
    assert!(
        minutes.len() >= 5,
        "Flowgate signs by the clock that was set: {minutes:?}"
    );
}

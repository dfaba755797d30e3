//! Cost of an idempotency key. Flowgate runs on the first core; backend and load, this program
//! again, on the second. Calls with a key and calls without one alternate in short slices at the
//! same process, so that both meet the same machine; the ratio of a pair does not depend on the
//! minute. Then the memory of a finished key, from a counting allocator. Method and figures:
//! `benches/README.md`.

#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed benchmark")]
#![expect(
    clippy::print_stdout,
    reason = "the table is what the benchmark is for"
)]

#[path = "side_by_side/backend.rs"]
mod backend;
#[allow(dead_code, reason = "the tests' caller does more than send")]
#[path = "../tests/it/caller.rs"]
mod caller;
#[allow(dead_code, reason = "crowds wait elsewhere")]
#[path = "side_by_side/load.rs"]
mod load;
#[allow(dead_code, reason = "memory is measured in this process")]
#[path = "side_by_side/process.rs"]
mod process;

use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::process::Command;
use std::time::{Duration, SystemTime};

use cap::Cap;
use clap::{Parser, Subcommand};
use flowgate::testing::bench;
use flowgate::{App, config};
use mimalloc::MiMalloc;
use tokio::runtime::Builder;

use crate::process::Process;

/// The binary's allocator, with a counter.
#[global_allocator]
static ALLOCATOR: Cap<MiMalloc> = Cap::new(MiMalloc, usize::MAX);

#[derive(Parser)]
struct Options {
    /// Passed by cargo.
    #[arg(long, hide = true, global = true)]
    bench: bool,
    /// Pairs of slices in each place.
    #[arg(long, default_value_t = 9)]
    pairs: usize,
    /// Seconds of a slice with 64 connections; one with a single connection has half of them.
    #[arg(long, default_value_t = 2.0)]
    seconds: f64,
    /// Finished keys of which the memory is measured.
    #[arg(long, default_value_t = 100_000)]
    keys: usize,
    /// Address of a Redis that is empty, to measure calls with a shared store too.
    #[arg(long)]
    store: Option<String>,
    #[command(subcommand)]
    role: Option<Role>,
}

/// The role of this program when it starts itself.
#[derive(Subcommand)]
enum Role {
    Backend,
    Load(load::Load),
    /// Only the costs of a call.
    Calls,
    /// Only the memory of a finished key.
    Memory,
}

/// Flowgate's core.
const FLOWGATE: &str = "0";
/// The core of backend and load.
const OTHERS: &str = "1";
/// Many times more connections than cores.
const CONNECTIONS: usize = 64;
/// Longer than nonces are remembered; this time is simulated.
const NONCES: Duration = Duration::from_secs(17 * 60);
/// Room for the keys of every slice.
const MAX_KEYS: &str = "[exactly_once]\nmax_keys = 50000000\n";

/// One slice of calls; times in microseconds.
#[derive(Clone, Copy)]
struct Slice {
    /// CPU time of Flowgate for a call.
    cpu: f64,
    /// The median latency.
    p50: f64,
}

/// A slice without keys, and the one with keys beside it.
#[derive(Clone, Copy)]
struct Pair {
    plain: Slice,
    keyed: Slice,
}

/// A running Flowgate.
struct Flowgate {
    process: Process,
    address: SocketAddr,
}

fn main() {
    let options = Options::parse();
    let runtime = Builder::new_current_thread().enable_all().build().unwrap();
    match &options.role {
        Some(Role::Backend) => runtime.block_on(backend::serve()),
        Some(Role::Load(load)) => runtime.block_on(load.run()),
        Some(Role::Calls) => calls(&options),
        Some(Role::Memory) => runtime.block_on(memory(options.keys)),
        None => {
            calls(&options);
            runtime.block_on(memory(options.keys));
        }
    }
}

/// Prints the cost of a call for each place where keys are kept.
fn calls(options: &Options) {
    let mut backend = Process::this(OTHERS, &["backend".into()]);
    let upstream = backend.address();
    println!(
        "| the keys are in | CPU us: without, with a key | added | ratio: median, least, most | alone us: without, with | added |\n\
         |---|--:|--:|--:|--:|--:|"
    );
    let folder = tempfile::tempdir().unwrap();
    let journal = format!(
        "[journal]\npath = \"{}\"\n",
        folder.path().join("journal").display()
    );
    let mut places = vec![("memory", String::new()), ("memory and journal", journal)];
    if let Some(store) = &options.store {
        places.push(("the store", format!("[quota]\nstore = \"{store}\"\n")));
    }
    for (name, more) in places {
        let folder = tempfile::tempdir().unwrap();
        let mut flowgate = Flowgate::start(upstream, &more, folder.path());
        let crowd = flowgate.pairs(CONNECTIONS, options.seconds, options.pairs);
        let alone = flowgate.pairs(1, options.seconds / 2.0, options.pairs);
        flowgate.process.stop();
        print_row(name, &crowd, &alone);
    }
    backend.stop();
}

fn print_row(name: &str, crowd: &[Pair], alone: &[Pair]) {
    let cpu = [
        median(crowd, |pair| pair.plain.cpu),
        median(crowd, |pair| pair.keyed.cpu),
    ];
    let latency = [
        median(alone, |pair| pair.plain.p50),
        median(alone, |pair| pair.keyed.p50),
    ];
    let ratios = sorted(crowd, |pair| pair.keyed.cpu / pair.plain.cpu);
    println!(
        "| {name} | {:.1}, {:.1} | {:.2} | {:.3}, {:.3}, {:.3} | {:.0}, {:.0} | {:.1} |",
        cpu[0],
        cpu[1],
        median(crowd, |pair| pair.keyed.cpu - pair.plain.cpu),
        ratios[ratios.len() / 2],
        ratios[0],
        ratios[ratios.len() - 1],
        latency[0],
        latency[1],
        median(alone, |pair| pair.keyed.p50 - pair.plain.p50),
    );
}

fn sorted(pairs: &[Pair], value: impl Fn(&Pair) -> f64) -> Vec<f64> {
    let mut values: Vec<_> = pairs.iter().map(value).collect();
    values.sort_by(f64::total_cmp);
    values
}

fn median(pairs: &[Pair], value: impl Fn(&Pair) -> f64) -> f64 {
    let values = sorted(pairs, value);
    values[values.len() / 2]
}

/// Prints the memory of finished keys.
async fn memory(keys: usize) {
    let mut backend = Process::this(OTHERS, &["backend".into()]);
    let upstream = backend.address();
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("flowgate.toml");
    let ports = "[listen]\nproxy = \"127.0.0.1:0\"\nadmin = \"127.0.0.1:0\"\n";
    let none = "[limits]\npreset = \"none\"\n";
    let toml = format!(
        "{ports}{none}{MAX_KEYS}[upstream]\nurl = \"http://{upstream}\"\n{}",
        load::accounts(1, folder.path())
    );
    std::fs::write(&path, toml).unwrap();
    let app = App::start(config::load(Some(&path), []).unwrap().config)
        .await
        .unwrap();
    let proxy = app.proxy_address().unwrap();
    let measured = async |keyed: bool| {
        let load = load(proxy, CONNECTIONS, 1.0, keyed);
        let load = [
            load.as_slice(),
            &["--calls", &keys.to_string(), "--accounts", "1"].map(ToOwned::to_owned),
        ];
        let mut load = Process::this(OTHERS, &load.concat());
        load.line();
        load.go();
        let seen = tokio::task::spawn_blocking(move || load.line());
        let seen: load::Seen = serde_json::from_str(&seen.await.unwrap()).unwrap();
        assert_eq!((seen.answered, seen.failed), (keys, 0));
        // The connections' last tasks.
        tokio::time::sleep(Duration::from_secs(1)).await;
        bench::forget_idle(&app, SystemTime::now() + NONCES);
        let resident = process::resident_mib(std::process::id());
        (ALLOCATOR.allocated() as f64, resident * f64::from(1 << 20))
    };
    // The first calls fill buffers and pools that stay.
    measured(false).await;
    let before = measured(false).await;
    let after = measured(true).await;
    println!(
        "\n{keys} finished keys: {:.0} bytes each of live memory, {:.0} of resident memory",
        (after.0 - before.0) / keys as f64,
        (after.1 - before.1) / keys as f64,
    );
    app.drain().await;
    backend.stop();
}

/// The arguments of a load of managed accounts.
fn load(to: SocketAddr, connections: usize, seconds: f64, keyed: bool) -> Vec<String> {
    let mut arguments = vec!["load".to_owned(), to.to_string(), to.to_string()];
    arguments.extend([connections.to_string(), seconds.to_string()]);
    arguments.push("--managed".into());
    arguments.extend(keyed.then(|| "--keyed".into()));
    arguments
}

// === impl Flowgate ===

impl Flowgate {
    /// Starts it with one worker and without a log line per call, and waits until it accepts.
    fn start(upstream: SocketAddr, more: &str, folder: &Path) -> Self {
        let free = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = free.local_addr().unwrap();
        drop(free);
        let toml = format!(
            "log = {{ level = \"warn\" }}\n[listen]\nproxy = \"{address}\"\nadmin = \"127.0.0.1:0\"\n\
             max_connections_per_source = 1000\n[upstream]\nurl = \"http://{upstream}\"\n{MAX_KEYS}{more}{}",
            load::accounts(load::ACCOUNTS, folder)
        );
        let path = folder.join("flowgate.toml");
        std::fs::write(&path, toml).unwrap();
        let mut command = Command::new(env!("CARGO_BIN_EXE_flowgate"));
        command.arg("--config").arg(&path);
        command.env("TOKIO_WORKER_THREADS", "1");
        let process = Process::start(FLOWGATE, &command);
        // Loading nine thousand accounts takes seconds.
        for _ in 0..6000 {
            if TcpStream::connect(address).is_ok() {
                return Self { process, address };
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        panic!("Flowgate does not listen");
    }

    /// Slices with and without keys in turn. Every other pair begins with the keys.
    fn pairs(&mut self, connections: usize, seconds: f64, pairs: usize) -> Vec<Pair> {
        let mut slice = |keyed| self.slice(connections, seconds, keyed);
        let mut pair = |keyed_first: bool| {
            let first = slice(keyed_first);
            let second = slice(!keyed_first);
            let (plain, keyed) = if keyed_first {
                (second, first)
            } else {
                (first, second)
            };
            Pair { plain, keyed }
        };
        pair(true);
        (0..pairs).map(|index| pair(index % 2 == 0)).collect()
    }

    fn slice(&mut self, connections: usize, seconds: f64, keyed: bool) -> Slice {
        let arguments = load(self.address, connections, seconds, keyed);
        let mut load = Process::this(OTHERS, &arguments);
        load.line();
        let before = self.process.cpu();
        load.go();
        let seen: load::Seen = serde_json::from_str(&load.line()).unwrap();
        let cpu = self.process.cpu() - before;
        load.wait();
        assert_eq!(seen.failed, 0, "{seen:?}");
        Slice {
            cpu: cpu * 1e6 / seen.answered as f64,
            p50: seen.p50,
        }
    }
}

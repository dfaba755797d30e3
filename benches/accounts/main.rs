//! Memory after calls of a million accounts, one after another. Flowgate runs in this process with
//! a counting allocator: live bytes and resident memory before, at the peak, after an idle time,
//! and after the nonces are forgotten. Backend and load are this program again, on the other core.
//! Method and figures: `benches/README.md`.

#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed benchmark")]
#![expect(
    clippy::print_stdout,
    reason = "the table is what the benchmark is for"
)]

#[path = "../side_by_side/backend.rs"]
mod backend;
#[allow(dead_code, reason = "the tests' caller does more than send")]
#[path = "../../tests/it/caller.rs"]
mod caller;
#[allow(dead_code, reason = "crowds wait elsewhere")]
#[path = "../side_by_side/load.rs"]
mod load;
#[allow(dead_code, reason = "costs are measured elsewhere")]
#[path = "../side_by_side/process.rs"]
mod process;

use std::time::{Duration, SystemTime};

use cap::Cap;
use clap::{Parser, Subcommand};
use flowgate::testing::bench;
use flowgate::{App, config};
use mimalloc::MiMalloc;
use tokio::runtime::Builder;
use tokio::time::interval;

use crate::process::Process;

/// The binary's allocator, with a counter.
#[global_allocator]
static ALLOCATOR: Cap<MiMalloc> = Cap::new(MiMalloc, usize::MAX);

#[derive(Parser)]
struct Options {
    /// Passed by cargo.
    #[arg(long, hide = true)]
    bench: bool,
    /// Accounts in each of two rounds.
    #[arg(long, default_value_t = 1_000_000)]
    accounts: usize,
    /// Idle seconds after each round.
    #[arg(long, default_value_t = 25)]
    idle: u64,
    #[command(subcommand)]
    role: Option<Role>,
}

/// The role of this program when it starts itself.
#[derive(Subcommand)]
enum Role {
    Backend,
    Load(load::Load),
}

const CONNECTIONS: usize = 64;
/// Longer than nonces are remembered; this time is simulated.
const NONCES: Duration = Duration::from_secs(17 * 60);
const OTHERS: &str = "1";

fn main() {
    let options = Options::parse();
    let runtime = Builder::new_current_thread().enable_all().build().unwrap();
    match options.role {
        Some(Role::Backend) => runtime.block_on(backend::serve()),
        Some(Role::Load(load)) => runtime.block_on(load.run()),
        None => runtime.block_on(measure(&options)),
    }
}

async fn measure(options: &Options) {
    let mut backend = Process::this(OTHERS, &["backend".into()]);
    let upstream = backend.address().to_string();
    let variables = [
        ("UPSTREAM__URL", format!("http://{upstream}")),
        ("LISTEN__PROXY", "127.0.0.1:0".into()),
    ];
    let variables = variables
        .into_iter()
        .chain([("LISTEN__ADMIN", "127.0.0.1:0".into())]);
    let variables =
        variables.map(|(name, value)| (format!("FLOWGATE_{name}").into(), value.into()));
    let app = App::start(config::load(None, variables).unwrap().config)
        .await
        .unwrap();
    let proxy = app.proxy_address().unwrap().to_string();
    println!(
        "| round | live MiB: before | peak | after | without nonces | resident: before | after | requests/s |\n|--:|--:|--:|--:|--:|--:|--:|--:|"
    );
    for round in 1..=2 {
        let before = live();
        let resident = resident();
        let accounts = options.accounts.to_string();
        let arguments = [
            "load",
            "--calls",
            &accounts,
            &proxy,
            &upstream,
            &CONNECTIONS.to_string(),
            "1",
        ];
        let mut load = Process::this(OTHERS, &arguments.map(ToOwned::to_owned));
        load.line();
        load.go();
        let seen = tokio::task::spawn_blocking(move || {
            let seen: load::Seen = serde_json::from_str(&load.line()).unwrap();
            load.wait();
            seen
        });
        let (peak, seen) = peak_until(seen).await;
        assert_eq!((seen.answered, seen.failed), (options.accounts, 0));
        tokio::time::sleep(Duration::from_secs(options.idle)).await;
        let after = live();
        let per_second = seen.answered as f64 / seen.seconds;
        bench::forget_idle(&app, SystemTime::now() + NONCES);
        println!(
            "| {round} | {before:.1} | {peak:.1} | {after:.1} | {:.1} | {resident:.0} | {:.0} | {per_second:.0} |",
            live(),
            self::resident()
        );
    }
    app.drain().await;
    backend.stop();
}

/// The maximum of sampled live bytes while a task ran.
async fn peak_until<T>(mut running: tokio::task::JoinHandle<T>) -> (f64, T) {
    let mut peak = live();
    let mut look = interval(Duration::from_millis(10));
    loop {
        tokio::select! {
            ended = &mut running => return (peak, ended.unwrap()),
            _at = look.tick() => peak = peak.max(live()),
        }
    }
}

fn live() -> f64 {
    ALLOCATOR.allocated() as f64 / f64::from(1 << 20)
}

fn resident() -> f64 {
    process::resident_mib(std::process::id())
}

//! Cost of a request in each proxy. Each contender runs alone on the first core, with the same
//! backend and load on the second, for some rounds. Prints medians and ratios. Method:
//! `benches/README.md`.

#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed benchmark")]
#![expect(
    clippy::print_stdout,
    reason = "the table is what the benchmark is for"
)]

mod backend;
#[allow(dead_code, reason = "the tests' caller does more than send")]
#[path = "../../tests/it/caller.rs"]
mod caller;
mod contenders;
mod floor;
mod load;
mod memory;
mod process;
mod start;
mod table;

use std::net::SocketAddr;
use std::path::PathBuf;

use clap::{Parser, Subcommand};

use crate::contenders::{Kind, Programs};
use crate::process::Process;
use crate::table::{Row, Table};

#[derive(Parser)]
struct Options {
    /// Passed by cargo.
    #[arg(long, hide = true)]
    bench: bool,
    /// Runs of each contender.
    #[arg(long, default_value_t = 5)]
    rounds: usize,
    /// Seconds of load, per contender and round.
    #[arg(long, default_value_t = 3.0)]
    seconds: f64,
    /// Path of Envoy's binary, to include it.
    #[arg(long)]
    envoy: Option<PathBuf>,
    /// Path of nginx's module for JavaScript, such as
    /// /usr/lib/nginx/modules/ngx_http_js_module.so, to include a proxy that signs.
    #[arg(long)]
    njs: Option<PathBuf>,
    /// Another Flowgate than the one that was built with this benchmark, such as that of
    /// scripts/release/build.
    #[arg(long, default_value = env!("CARGO_BIN_EXE_flowgate"))]
    flowgate: PathBuf,
    /// Only contenders whose name contains this, and the direct path.
    #[arg(long, default_value = "")]
    only: String,
    #[command(subcommand)]
    role: Option<Role>,
}

/// The role of this program when it starts itself.
#[derive(Subcommand)]
enum Role {
    Backend,
    Floor {
        upstream: Option<SocketAddr>,
    },
    Load(load::Load),
    Crowd(load::Crowd),
    /// Memory of a waiting call, beside nginx and an empty server.
    Waiting,
    /// Start time and size of Flowgate's binary.
    Start,
}

/// The contender's core.
const CONTENDER: &str = "0";
/// The core of backend and load.
const OTHERS: &str = "1";
/// Many times more connections than cores.
const CONNECTIONS: usize = 64;

fn main() {
    let options = Options::parse();
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    match &options.role {
        Some(Role::Backend) => runtime.block_on(backend::serve()),
        Some(Role::Floor { upstream }) => runtime.block_on(floor::serve(*upstream)),
        Some(Role::Load(load)) => runtime.block_on(load.run()),
        Some(Role::Crowd(crowd)) => runtime.block_on(crowd.run()),
        Some(Role::Waiting) => memory::waiting(options.programs()),
        Some(Role::Start) => start::start(options.programs()),
        None => runtime.block_on(side_by_side(&options)),
    }
}

async fn side_by_side(options: &Options) {
    let mut backend = Process::this(OTHERS, &["backend".into()]);
    let upstream = backend.address();
    let mut table = Table::default();
    for round in 0..options.rounds {
        for kind in Kind::all(options.programs()) {
            let name = kind.name();
            if kind != Kind::Direct && !name.contains(&options.only) {
                continue;
            }
            eprintln!("round {} of {}: {name}", round + 1, options.rounds);
            table.add(name, measure(kind, upstream, options).await);
        }
    }
    println!("{table}");
    backend.stop();
}

// === impl Options ===

impl Options {
    fn programs(&self) -> Programs<'_> {
        Programs {
            flowgate: &self.flowgate,
            envoy: self.envoy.as_deref(),
            njs: self.njs.as_deref(),
        }
    }
}

/// Measures one contender under load, then with one connection.
async fn measure(kind: Kind, upstream: SocketAddr, options: &Options) -> Row {
    let folder = tempfile::tempdir().unwrap();
    let mut contender = contenders::start(kind, upstream, folder.path(), options.programs());
    let to = contender
        .as_ref()
        .map_or(upstream, |contender| contender.address);
    let host = if kind.is_managed() { to } else { upstream };
    let load = |connections: usize, seconds: f64| {
        let arguments = [
            to.to_string(),
            host.to_string(),
            connections.to_string(),
            seconds.to_string(),
        ];
        let mut arguments: Vec<_> = [["load".into()].as_slice(), &arguments].concat();
        arguments.extend(kind.is_managed().then(|| "--managed".to_owned()));
        let mut load = Process::this(OTHERS, &arguments);
        load.line();
        let before = contender
            .as_ref()
            .map(|contender| contender.process.cpu())
            .unwrap_or_default();
        load.go();
        let seen: load::Seen = serde_json::from_str(&load.line()).unwrap();
        let after = contender
            .as_ref()
            .map(|contender| contender.process.cpu())
            .unwrap_or_default();
        load.wait();
        assert_eq!(seen.failed, 0, "{}: {seen:?}", kind.name());
        (seen, after - before)
    };
    let (crowd, cpu) = load(CONNECTIONS, options.seconds);
    let (alone, _) = load(1, options.seconds / 2.0);
    let row = Row {
        per_second: crowd.answered as f64 / crowd.seconds,
        p50: crowd.p50,
        p99: crowd.p99,
        alone_p50: alone.p50,
        cpu: cpu * 1e6 / crowd.answered as f64,
        rss: contender
            .as_ref()
            .map(|contender| contender.process.rss_mib())
            .unwrap_or_default(),
    };
    if let Some(contender) = &mut contender {
        contender.process.stop();
    }
    row
}

//! Calls that succeed, their time, and whether the limit is kept. Three tables: crowds at several
//! rates, timed on the wire; lanes with a limit above the endpoint's; crowds through other rate
//! limiters. A broken promise ends the program with an error. Method and figures:
//! `benches/README.md`.

#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "a failed unwrap is a failed benchmark; it prints a table"
)]

use std::process::ExitCode;

use cams_sim::Kind;
use clap::{Parser, ValueEnum};

mod busy;
#[allow(
    dead_code,
    reason = "the tests' caller can do more than is needed here"
)]
#[path = "../../tests/it/caller.rs"]
mod caller;
mod case;
mod contender;
mod crowd;
mod endpoint;
mod flowgate;
mod learning;
#[allow(dead_code, reason = "the tests' processes do more than run")]
#[path = "../../tests/it/process.rs"]
mod process;
#[path = "../../tests/it/redis.rs"]
mod redis;
mod table;
mod wire;

/// Measures how many calls succeed, how fast, and whether the limit is kept.
#[derive(Parser)]
struct Arguments {
    /// Only rates of 5 and 200 per second, on the wire, beside busy loops.
    #[arg(long)]
    quick: bool,
    /// Run one part only.
    #[arg(long)]
    part: Option<Part>,
    /// Passed by `cargo bench` and not by `cargo test --all-targets`: without it nothing runs.
    #[arg(long, hide = true)]
    bench: bool,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Part {
    /// Rates from 5 to 1,000 per second, by the kernel's timestamps.
    Wire,
    /// A limit of twice the endpoint's.
    Learning,
    /// No limiter, nginx, a limiter in the caller, and Flowgate.
    Contenders,
}

#[tokio::main]
async fn main() -> ExitCode {
    let Arguments { quick, part, bench } = Arguments::parse();
    if !bench {
        return ExitCode::SUCCESS;
    }
    ::flowgate::process::hardening::raise_open_files().unwrap();
    let is_wanted = |which| {
        if quick {
            which == Part::Wire
        } else {
            part.is_none_or(|part| part == which)
        }
    };
    let mut broken: Vec<String> = Vec::new();
    if is_wanted(Part::Wire) {
        println!("{}", wire::HEAD);
        for row in wire::rows(quick) {
            broken.extend(row.run().await.err());
        }
        println!();
    }
    if is_wanted(Part::Learning) {
        println!("{}", learning::HEAD);
        for kind in [Kind::Sliding, Kind::Aligned] {
            broken.extend(learning::run(kind).await.err());
        }
        println!();
    }
    if is_wanted(Part::Contenders) {
        broken.extend(table::run().await);
    }
    broken
        .iter()
        .for_each(|promise| eprintln!("BROKEN {promise}"));
    if broken.is_empty() {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}

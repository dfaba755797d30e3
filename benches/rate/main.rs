//! How many calls get through, how fast, and is the limit kept? Three parts, each a table: crowds at several rates, timed on
//! the wire; lanes whose limit is higher than what the endpoint takes; crowds through other ways of keeping a rate.
//! A promise that is broken ends the program with an error. `benches/README.md` has the method and the figures.

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

/// Measures how many calls get through, how fast, and whether the limit is kept.
#[derive(Parser)]
struct Arguments {
    /// Only rates of 5 and 200 a second, on the wire, beside busy loops.
    #[arg(long)]
    quick: bool,
    /// One part instead of all.
    #[arg(long)]
    part: Option<Part>,
    /// What `cargo bench` says and `cargo test --all-targets` does not: without it nothing is run.
    #[arg(long, hide = true)]
    bench: bool,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Part {
    /// Rates from 5 to 1,000 a second, by the kernel's timestamps.
    Wire,
    /// A limit of twice what the endpoint takes.
    Learning,
    /// Nothing, nginx, a limiter in the caller, and Flowgate.
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

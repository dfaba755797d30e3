//! How many calls get through, how fast, and is the limit kept? Crowds of callers come at once, straight to a simulated
//! CAMS, through nginx `limit_req`, through a limiter of their own and through the Flowgate binary; one table says what
//! became of them. `benches/README.md` has the method and the figures.

#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "a failed unwrap is a failed benchmark; it prints a table"
)]

use std::fmt;
use std::time::Duration;

use cams_sim::{Kind, Limit};
use clap::Parser;
use futures_util::{StreamExt, stream};
use tokio::time::sleep;

use crate::contender::{ALL, Contender};
use crate::crowd::Outcome;

#[allow(dead_code, reason = "the tests' caller can do more than is needed here")]
#[path = "../../tests/it/caller.rs"]
mod caller;
mod contender;
mod crowd;

/// Measures how many calls get through, how fast, and whether the limit is kept.
#[derive(Parser)]
struct Arguments {
    /// Only 60 calls of one account.
    #[arg(long)]
    quick: bool,
    /// What `cargo bench` says and `cargo test --all-targets` does not: without it nothing is run.
    #[arg(long, hide = true)]
    bench: bool,
}

/// How many come.
#[derive(Clone, Copy)]
struct Size {
    accounts: usize,
    calls: usize,
    /// So many rows run at once; what comes in crowds of a thousand has the machine for itself.
    at_once: usize,
}

/// What the endpoint and the way to it are like.
#[derive(Clone, Copy)]
struct Case {
    size: Size,
    kind: Kind,
    jitter: Duration,
}

const SIZES: [Size; 3] = [
    Size { accounts: 1, calls: 60, at_once: 16 },
    Size { accounts: 1, calls: 600, at_once: 16 },
    Size { accounts: 20, calls: 60, at_once: 1 },
];

/// Between the starts of rows that run at once, so that their seconds do not begin together.
const APART: Duration = Duration::from_millis(530);

const HEAD: &str = "| calls | window | way | through | succeeded | refused at CAMS | seconds (optimum) | first five, s \
                    | worst second: received, counted |\n|---|---|---|---|--:|--:|--:|--:|--:|";

#[tokio::main]
async fn main() {
    let arguments = Arguments::parse();
    if !arguments.bench {
        return;
    }
    rlimit::increase_nofile_limit(u64::MAX).unwrap();
    let sizes = if arguments.quick { &SIZES[..1] } else { &SIZES };
    let mut rows = Vec::new();
    for size in sizes {
        let pairs = cases(*size).into_iter().flat_map(|case| ALL.map(|contender| (case, contender)));
        let tasks =
            pairs.enumerate().map(|(index, (case, through))| tokio::spawn(row(case, through, index % size.at_once)));
        let lines: Vec<_> = stream::iter(tasks).buffered(size.at_once).map(Result::unwrap).collect().await;
        rows.extend(lines);
    }
    println!("{HEAD}\n{}", rows.join("\n"));
}

fn cases(size: Size) -> Vec<Case> {
    let kinds = [Kind::Sliding, Kind::Aligned];
    let ways = [Duration::ZERO, Duration::from_millis(30)];
    kinds.into_iter().flat_map(|kind| ways.map(|jitter| Case { size, kind, jitter })).collect()
}

/// One line of the table.
async fn row(case: Case, contender: Contender, place: usize) -> String {
    let start = format!("| {case} | {contender} |");
    sleep(APART * u32::try_from(place).unwrap()).await;
    let Some(stage) = contender.prepare(case).await else { return format!("{start} not installed | | | | |") };
    let outcome = stage.run(case).await;
    let line = format!("{start} {}", outcome.cells(case));
    eprintln!("{line}");
    line
}

// === impl Case ===

impl Case {
    fn limit(self) -> Limit {
        Limit { kind: self.kind, ..Limit::default() }
    }

    /// A full second's calls at once, then as many each second.
    fn optimum(self) -> usize {
        self.size.calls.div_ceil(usize::try_from(self.limit().per_window).unwrap()) - 1
    }
}

impl fmt::Display for Case {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Size { accounts, calls, .. } = self.size;
        let many = if accounts > 1 { format!("{accounts} × {calls}") } else { calls.to_string() };
        let way = if self.jitter.is_zero() { "steady".into() } else { format!("0-{} ms", self.jitter.as_millis()) };
        write!(f, "{many} | {} | {way}", format!("{:?}", self.kind).to_lowercase())
    }
}

// === impl Outcome ===

impl Outcome {
    fn cells(&self, case: Case) -> String {
        let first_five = self.first_five.map_or("never".to_owned(), |at| format!("{:.2}", at.as_secs_f64()));
        format!(
            "{} of {} | {} | {:.2} ({}) | {first_five} | {}, {} |",
            self.succeeded,
            case.size.accounts * case.size.calls,
            self.refused,
            self.took.as_secs_f64(),
            case.optimum(),
            self.worst_received,
            self.worst_counted,
        )
    }
}

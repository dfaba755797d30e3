//! The comparison of the contenders at 5/s: one row for each crowd, kind of window, path and
//! contender.

use std::collections::BTreeMap;
use std::time::Duration;

use cams_sim::{Arrival, Kind};
use futures_util::{StreamExt, stream};
use tokio::time::{Instant, sleep};

use crate::case::Case;
use crate::contender::{ALL, Contender, Stage};
use crate::crowd::{Answer, Size, Target};

/// The result of a row.
struct Outcome {
    succeeded: usize,
    /// Number of refusals by CAMS, whether or not a caller received them.
    refused: u64,
    /// Until the last response.
    took: Duration,
    /// Until every account had five successes.
    first_five: Option<Duration>,
    /// The most calls of an account that CAMS received within a second.
    worst_received: usize,
    /// The same by the time of CAMS's decision, which is later by the path's jitter.
    worst_counted: usize,
}

/// The crowds, and how many rows of each run at once: a crowd of a thousand runs alone.
const SIZES: [(Size, usize); 3] = [
    (
        Size {
            accounts: 1,
            calls: 60,
        },
        16,
    ),
    (
        Size {
            accounts: 1,
            calls: 600,
        },
        16,
    ),
    (
        Size {
            accounts: 20,
            calls: 60,
        },
        1,
    ),
];

/// Offset between the starts of simultaneous rows, so that their seconds do not coincide.
const APART: Duration = Duration::from_millis(530);

const SECOND: Duration = Duration::from_secs(1);

pub(crate) const HEAD: &str = "| calls | window | way | through | succeeded | throttled | seconds (optimum) | first five, s | worst second: received, counted |\n\
                               |---|---|---|---|--:|--:|--:|--:|--:|";

/// Runs all rows, prints them, and returns the promises that Flowgate broke.
pub(crate) async fn run() -> Vec<String> {
    let mut rows = Vec::new();
    let mut broken = Vec::new();
    for (size, at_once) in SIZES {
        let pairs = cases(size)
            .into_iter()
            .flat_map(|case| ALL.map(|contender| (case, contender)));
        let tasks = pairs
            .enumerate()
            .map(|(index, (case, through))| tokio::spawn(row(case, through, index % at_once)));
        let done: Vec<_> = stream::iter(tasks)
            .buffered(at_once)
            .map(Result::unwrap)
            .collect()
            .await;
        for (line, promise) in done {
            rows.push(line);
            broken.extend(promise.err());
        }
    }
    println!("{HEAD}\n{}", rows.join("\n"));
    broken
}

fn cases(size: Size) -> Vec<Case> {
    let kinds = [Kind::Sliding, Kind::Aligned];
    let ways = [Duration::ZERO, Duration::from_millis(30)];
    kinds
        .into_iter()
        .flat_map(|kind| ways.map(|jitter| Case { size, kind, jitter }))
        .collect()
}

/// One row of the table, and whether it is as promised.
async fn row(case: Case, contender: Contender, place: usize) -> (String, Result<(), String>) {
    let start = format!("| {case} | {contender} |");
    sleep(APART * u32::try_from(place).unwrap()).await;
    let Some(stage) = contender.prepare(case).await else {
        return (format!("{start} not installed | | | | |"), Ok(()));
    };
    let target = Target {
        to: stage.to,
        host: &stage.host,
        limiters: &stage.limiters,
    };
    let outcome = Outcome::new(&target.crowd(case.size).await, &stage, case);
    let line = format!("{start} {}", outcome.cells(case));
    eprintln!("{line}");
    let is_kept = !matches!(contender, Contender::Flowgate) || outcome.is_kept(case);
    let promise = if is_kept { Ok(()) } else { Err(line.clone()) };
    (line, promise)
}

fn first_five(answers: &[Answer], accounts: usize) -> Option<Duration> {
    let mut successes = vec![Vec::new(); accounts];
    for answer in answers.iter().filter(|answer| answer.is_ok()) {
        successes[answer.account].push(answer.after);
    }
    let fifth = successes.into_iter().map(|mut moments| {
        moments.sort();
        moments.get(4).copied()
    });
    fifth.collect::<Option<Vec<_>>>()?.into_iter().max()
}

/// The most arrivals of one account within less than a second.
fn worst(arrivals: &[Arrival], moment: fn(&Arrival) -> Instant) -> usize {
    let mut accounts: BTreeMap<_, Vec<Instant>> = BTreeMap::new();
    for arrival in arrivals {
        accounts
            .entry(&arrival.account)
            .or_default()
            .push(moment(arrival));
    }
    accounts
        .into_values()
        .filter_map(worst_of_account)
        .max()
        .unwrap_or(0)
}

fn worst_of_account(mut moments: Vec<Instant>) -> Option<usize> {
    moments.sort();
    moments
        .iter()
        .enumerate()
        .map(|(index, first)| moments.partition_point(|other| *other - *first < SECOND) - index)
        .max()
}

// === impl Outcome ===

impl Outcome {
    fn new(answers: &[Answer], stage: &Stage, case: Case) -> Self {
        let arrivals = stage.cams.arrivals();
        Self {
            succeeded: answers.iter().filter(|answer| answer.is_ok()).count(),
            refused: stage.cams.report().refused,
            took: answers
                .iter()
                .map(|answer| answer.after)
                .max()
                .unwrap_or_default(),
            first_five: first_five(answers, case.size.accounts),
            worst_received: worst(&arrivals, |arrival| arrival.received),
            worst_counted: worst(&arrivals, |arrival| arrival.at),
        }
    }

    /// All calls succeed. On a steady path none is refused, and 600 calls use at least 99 % of the
    /// rate. With jitter one of 60 calls, or one of a hundred of 600, may be refused. For twenty
    /// simultaneous crowds nothing more is guaranteed.
    fn is_kept(&self, case: Case) -> bool {
        let Size { accounts, calls } = case.size;
        let (refusals, seconds) = match (case.jitter.is_zero(), calls) {
            (true, 600) => (0, case.optimum() as f64 / 0.99),
            (false, 600) => (6, 123.0),
            (true, _) => (0, 11.6),
            (false, _) if accounts > 1 => (usize::MAX, f64::INFINITY),
            (false, _) => (1, 11.6),
        };
        let refused = usize::try_from(self.refused).unwrap();
        let took = self.took.as_secs_f64();
        self.succeeded == case.size.total() && refused <= refusals && took <= seconds
    }

    fn cells(&self, case: Case) -> String {
        let first_five = self
            .first_five
            .map_or("never".to_owned(), |at| format!("{:.2}", at.as_secs_f64()));
        format!(
            "{} of {} | {} | {:.2} ({}) | {first_five} | {}, {} |",
            self.succeeded,
            case.size.total(),
            self.refused,
            self.took.as_secs_f64(),
            case.optimum(),
            self.worst_received,
            self.worst_counted,
        )
    }
}

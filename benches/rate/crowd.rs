//! What becomes of a crowd? All calls of a row start at once, each signed like an SDK's and on a connection of its own;
//! what their callers read and what CAMS saw are summed up.

use std::collections::BTreeMap;
use std::time::Duration;

use cams_sim::Arrival;
use futures_util::future::join_all;
use leaky_bucket::RateLimiter;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::{Instant, timeout};

use crate::Case;
use crate::caller::{Call, SECRET};
use crate::contender::{Stage, key};

/// What became of a row's calls.
pub(crate) struct Outcome {
    pub(crate) succeeded: usize,
    /// How often CAMS refused, whether its callers heard of it or not.
    pub(crate) refused: u64,
    /// Until the last was answered.
    pub(crate) took: Duration,
    /// Until every account had five successes.
    pub(crate) first_five: Option<Duration>,
    /// The most calls of an account that CAMS received within a second.
    pub(crate) worst_received: usize,
    /// The same by when CAMS decided on them, which is later by the jitter of the way.
    pub(crate) worst_counted: usize,
}

/// What a caller read, and when.
struct Answer {
    account: usize,
    after: Duration,
    code: String,
}

/// How long a caller waits, and says so to Flowgate.
const PATIENCE: Duration = Duration::from_secs(200);

const SECOND: Duration = Duration::from_secs(1);

// === impl Stage ===

impl Stage {
    /// Lets all come at once and waits for the last answer.
    pub(crate) async fn run(&self, case: Case) -> Outcome {
        let started = Instant::now();
        // One account's calls do not come before another's.
        let calls =
            (0..case.size.calls).flat_map(|number| (0..case.size.accounts).map(move |account| (number, account)));
        let answers = join_all(calls.map(|(number, account)| self.call(started, account, number))).await;
        let others: Vec<_> =
            answers.iter().filter(|answer| !["OK", "System.LimitControl"].contains(&&*answer.code)).collect();
        if let Some(other) = others.first() {
            eprintln!("{} calls ended otherwise, the first with {}", others.len(), other.code);
        }
        let arrivals = self.cams.arrivals();
        Outcome {
            succeeded: answers.iter().filter(|answer| answer.code == "OK").count(),
            refused: self.cams.report().refused,
            took: answers.iter().map(|answer| answer.after).max().unwrap_or_default(),
            first_five: first_five(&answers, case.size.accounts),
            worst_received: worst(&arrivals, |arrival| arrival.received),
            worst_counted: worst(&arrivals, |arrival| arrival.at),
        }
    }

    async fn call(&self, started: Instant, account: usize, number: usize) -> Answer {
        if let Some(limiter) = self.limiters.get(account) {
            RateLimiter::acquire_one(limiter).await;
        }
        let code = match timeout(PATIENCE, self.exchange(account, &format!("flow-{number}"))).await {
            Ok(code) => code.unwrap_or_else(|error| error.to_string()),
            Err(_) => "no answer in time".into(),
        };
        Answer { account, after: started.elapsed(), code }
    }

    /// Sends one CreateFlow and returns the `Code` of its answer.
    async fn exchange(&self, account: usize, flow: &str) -> std::io::Result<String> {
        let query = [("Categories", "[\"SIGN_UP\"]"), ("FlowName", flow)];
        let hold = format!("{}s", PATIENCE.as_secs());
        let mut call =
            Call::v3_with(&self.host, &query, |call| call.push("x-flowgate-hold", &hold), (&key(account), SECRET));
        // So that the answer ends where the connection does. It is not signed: it is meant for the next hop.
        call.push("connection", "close");
        let mut stream = TcpStream::connect(self.to).await?;
        stream.write_all(&call.bytes()).await?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await?;
        let body = answer.split_once("\r\n\r\n").map_or("", |(_, body)| body);
        let code = serde_json::from_str::<serde_json::Value>(body)
            .ok()
            .and_then(|body| body["Code"].as_str().map(str::to_owned));
        Ok(code.unwrap_or(answer))
    }
}

fn first_five(answers: &[Answer], accounts: usize) -> Option<Duration> {
    let mut successes = vec![Vec::new(); accounts];
    for answer in answers.iter().filter(|answer| answer.code == "OK") {
        successes[answer.account].push(answer.after);
    }
    let fifth = successes.into_iter().map(|mut moments| {
        moments.sort();
        moments.get(4).copied()
    });
    fifth.collect::<Option<Vec<_>>>()?.into_iter().max()
}

/// The most arrivals of one account that lie within less than a second.
fn worst(arrivals: &[Arrival], moment: fn(&Arrival) -> Instant) -> usize {
    let mut accounts: BTreeMap<_, Vec<Instant>> = BTreeMap::new();
    for arrival in arrivals {
        accounts.entry(&arrival.account).or_default().push(moment(arrival));
    }
    let of_account = |mut moments: Vec<Instant>| {
        moments.sort();
        let within =
            |(index, first): (usize, &Instant)| moments.partition_point(|other| *other - *first < SECOND) - index;
        moments.iter().enumerate().map(within).max()
    };
    accounts.into_values().filter_map(of_account).max().unwrap_or(0)
}

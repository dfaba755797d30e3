//! What arrived, when, and what became of it? Keeps every arrival, and sums them up: refusals by code, the worst window, how many came at all.

use std::collections::BTreeMap;
use std::time::Duration;

use bytes::Bytes;
use serde::Serialize;
use serde_json::{Value, json};
use tokio::time::Instant;

use crate::Scheme;

/// One call as it arrived.
#[derive(Debug, Clone)]
pub struct Arrival {
    /// When it had been read whole.
    pub received: Instant,
    /// When it was counted: later by the jitter.
    pub at: Instant,
    /// The account of its key, or the key's id if nobody has it; whether the signature was right or not.
    pub account: Option<String>,
    /// Its action.
    pub action: Option<String>,
    /// Its FlowName, from query or form.
    pub flow_name: Option<String>,
    /// Its signature nonce.
    pub nonce: Option<String>,
    /// How it was signed; `None` if it could not be read.
    pub scheme: Option<Scheme>,
    /// What was decided.
    pub verdict: Verdict,
    /// The fault that struck it.
    pub fault: Option<&'static str>,
    /// Its method.
    pub method: String,
    /// Its target as it came.
    pub target: String,
    /// Its headers in order, names in lower case.
    pub headers: Vec<(String, String)>,
    /// Its body.
    pub body: Bytes,
}

/// What was decided about a call, whatever its caller got to see.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// Processed; a CreateFlow created its flow.
    Accepted,
    /// Refused by flow control.
    Throttled,
    /// Refused with this code.
    Rejected(String),
    /// A fault kept it from being processed or answered.
    Lost,
}

/// The sum of all arrivals.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Report {
    /// Calls that came.
    pub arrived: u64,
    /// Calls that were processed.
    pub accepted: u64,
    /// Calls that flow control refused.
    pub refused: u64,
    /// Calls refused for anything else.
    pub rejected: u64,
    /// Calls that a fault swallowed unprocessed.
    pub lost: u64,
    /// Refusals of both kinds by code; flow control stands under `System.LimitControl`.
    pub codes: BTreeMap<String, u64>,
    /// Most calls of one account and one limited action that were received within less than one of its windows.
    pub worst_window: u64,
    /// The same of accepted ones, by the moment at which they were counted.
    pub worst_accepted: u64,
    /// Flows that exist.
    pub created: u64,
    /// FlowNames that an account created more than once.
    pub duplicates: Vec<String>,
    /// Calls that outsiders spent.
    pub outsiders: u64,
    /// Connections that were opened.
    pub connections: u64,
    /// Connections that ended because what came was not HTTP.
    pub not_http: u64,
    /// When the first call was received, in milliseconds since the start.
    pub first_ms: Option<u64>,
    /// When the last call was received, in milliseconds since the start.
    pub last_ms: Option<u64>,
}

// === impl Arrival ===

impl Arrival {
    /// As JSON, with milliseconds since `start`.
    pub(crate) fn to_json(&self, start: Instant) -> Value {
        let scheme = self.scheme.map(|scheme| format!("{scheme:?}"));
        let verdict = match &self.verdict {
            Verdict::Accepted => "accepted",
            Verdict::Throttled => "throttled",
            Verdict::Rejected(code) => code,
            Verdict::Lost => "lost",
        };
        json!({
            "received_ms": millis(self.received - start), "at_ms": millis(self.at - start), "account": self.account,
            "action": self.action, "flow_name": self.flow_name, "nonce": self.nonce, "scheme": scheme, "verdict": verdict,
            "fault": self.fault, "method": self.method, "target": self.target, "headers": self.headers,
            "body": String::from_utf8_lossy(&self.body),
        })
    }
}

// === impl Report ===

impl Report {
    /// Sums up arrivals; what they do not tell is left at nothing.
    pub(crate) fn of(
        arrivals: &[Arrival],
        window: impl Fn(&str) -> Option<Duration>,
        start: Instant,
    ) -> Self {
        let count = |wanted: fn(&Verdict) -> bool| {
            arrivals
                .iter()
                .filter(|arrival| wanted(&arrival.verdict))
                .count() as u64
        };
        let mut codes: BTreeMap<String, u64> = BTreeMap::new();
        for arrival in arrivals {
            match &arrival.verdict {
                Verdict::Rejected(code) => *codes.entry(code.clone()).or_default() += 1,
                Verdict::Throttled => {
                    *codes.entry("System.LimitControl".to_owned()).or_default() += 1
                }
                Verdict::Accepted | Verdict::Lost => {}
            }
        }
        let received = || arrivals.iter().map(|arrival| arrival.received);
        let accepted = arrivals
            .iter()
            .filter(|arrival| arrival.verdict == Verdict::Accepted);
        Self {
            arrived: arrivals.len() as u64,
            accepted: count(|verdict| *verdict == Verdict::Accepted),
            refused: count(|verdict| *verdict == Verdict::Throttled),
            rejected: count(|verdict| matches!(verdict, Verdict::Rejected(_))),
            lost: count(|verdict| *verdict == Verdict::Lost),
            codes,
            worst_window: worst(
                arrivals.iter().map(|arrival| (arrival, arrival.received)),
                &window,
            ),
            worst_accepted: worst(accepted.map(|arrival| (arrival, arrival.at)), &window),
            created: 0,
            duplicates: Vec::new(),
            outsiders: 0,
            connections: 0,
            not_http: 0,
            first_ms: received().min().map(|first| millis(first - start)),
            last_ms: received().max().map(|last| millis(last - start)),
        }
    }
}

/// The most moments of one account and limited action that lie within less than a window.
fn worst<'a>(
    arrivals: impl Iterator<Item = (&'a Arrival, Instant)>,
    window: impl Fn(&str) -> Option<Duration>,
) -> u64 {
    let mut lanes: BTreeMap<(Option<&str>, &str), Vec<Instant>> = BTreeMap::new();
    for (arrival, moment) in arrivals {
        if let Some(action) = arrival.action.as_deref() {
            lanes
                .entry((arrival.account.as_deref(), action))
                .or_default()
                .push(moment);
        }
    }
    let of_lane = |((_, action), mut moments): ((_, &str), Vec<Instant>)| {
        let window = window(action)?;
        moments.sort();
        let mut oldest = 0;
        let within = moments.iter().enumerate().map(|(newest, moment)| {
            while moment.duration_since(moments[oldest]) >= window {
                oldest += 1;
            }
            (newest - oldest + 1) as u64
        });
        within.max()
    };
    lanes.into_iter().filter_map(of_lane).max().unwrap_or(0)
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

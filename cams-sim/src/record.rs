//! Records every call with its time and its result, and sums them up: refusals by code, the worst
//! window, totals.

use std::collections::BTreeMap;
use std::time::Duration;

use bytes::Bytes;
use serde::Serialize;
use serde_json::{Value, json};
use tokio::time::Instant;

use crate::Scheme;

/// One received call.
#[derive(Debug, Clone)]
pub struct Arrival {
    /// When the kernel received the bytes that were read first; without a socket, when it was complete.
    pub received: Instant,
    /// When it was counted: later by the jitter.
    pub at: Instant,
    /// The account of its key, or the key's id if it is unknown. The signature may be wrong.
    pub account: Option<String>,
    /// Its action.
    pub action: Option<String>,
    /// Its FlowName, from query or form.
    pub flow_name: Option<String>,
    /// Its signature nonce.
    pub nonce: Option<String>,
    /// How it was signed; `None` if it could not be read.
    pub scheme: Option<Scheme>,
    /// The verdict.
    pub verdict: Verdict,
    /// The fault that affected it.
    pub fault: Option<&'static str>,
    /// Its method.
    pub method: String,
    /// Its target, unchanged.
    pub target: String,
    /// Its headers in order, with names in lower case.
    pub headers: Vec<(String, String)>,
    /// Its body.
    pub body: Bytes,
}

/// The verdict on a call, regardless of what its caller received.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// Processed; a CreateFlow created its flow, or creates it later by the fault `late`.
    Accepted,
    /// Refused by flow control.
    Throttled,
    /// Refused with this code.
    Rejected(String),
    /// A fault prevented its processing or its response.
    Lost,
}

/// The sum of all received calls.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Report {
    /// Received calls.
    pub arrived: u64,
    /// Processed calls.
    pub accepted: u64,
    /// Calls refused by flow control.
    pub refused: u64,
    /// Calls refused for another reason.
    pub rejected: u64,
    /// Calls that a fault discarded unprocessed.
    pub lost: u64,
    /// Refusals of both kinds by code; flow control counts as `System.LimitControl`.
    pub codes: BTreeMap<String, u64>,
    /// Maximum number of calls of one account and one limited action received within less than one
    /// window.
    pub worst_window: u64,
    /// The same for accepted calls, by the time at which they were counted.
    pub worst_accepted: u64,
    /// Existing flows.
    pub created: u64,
    /// FlowNames that an account created more than once.
    pub duplicates: Vec<String>,
    /// Calls spent by outsiders.
    pub outsiders: u64,
    /// Opened connections.
    pub connections: u64,
    /// Connections that ended because the bytes were not HTTP.
    pub not_http: u64,
    /// Requests for credentials by action, which are in none of the counts above.
    pub credentials: BTreeMap<String, u64>,
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
        json!({
            "received_ms": millis(self.received - start), "at_ms": millis(self.at - start), "account": self.account,
            "action": self.action, "flow_name": self.flow_name, "nonce": self.nonce, "scheme": scheme, "verdict": self.verdict.name(),
            "fault": self.fault, "method": self.method, "target": self.target, "headers": self.headers,
            "body": String::from_utf8_lossy(&self.body),
        })
    }
}

// === impl Verdict ===

impl Verdict {
    /// The name in records: that of the verdict, or the code.
    pub(crate) fn name(&self) -> &str {
        match self {
            Self::Accepted => "accepted",
            Self::Throttled => "throttled",
            Self::Rejected(code) => code,
            Self::Lost => "lost",
        }
    }
}

// === impl Report ===

impl Report {
    /// Sums up the calls; fields that they do not determine stay at zero.
    pub(crate) fn of(
        arrivals: &[Arrival],
        window: impl Fn(&str) -> Option<Duration>,
        start: Instant,
    ) -> Self {
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
            accepted: count(arrivals, |verdict| *verdict == Verdict::Accepted),
            refused: count(arrivals, |verdict| *verdict == Verdict::Throttled),
            rejected: count(arrivals, |verdict| matches!(verdict, Verdict::Rejected(_))),
            lost: count(arrivals, |verdict| *verdict == Verdict::Lost),
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
            credentials: BTreeMap::new(),
            first_ms: received().min().map(|first| millis(first - start)),
            last_ms: received().max().map(|last| millis(last - start)),
        }
    }
}

fn count(arrivals: &[Arrival], wanted: fn(&Verdict) -> bool) -> u64 {
    let wanted = arrivals.iter().filter(|arrival| wanted(&arrival.verdict));
    wanted.count() as u64
}

/// The maximum number of calls of one account and limited action within less than a window.
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
    lanes
        .into_iter()
        .filter_map(|((_, action), moments)| Some(worst_of_lane(moments, window(action)?)))
        .max()
        .unwrap_or(0)
}

fn worst_of_lane(mut moments: Vec<Instant>, window: Duration) -> u64 {
    moments.sort();
    let mut worst = 0;
    let mut oldest = 0;
    for (newest, moment) in moments.iter().enumerate() {
        while moment.duration_since(moments[oldest]) >= window {
            oldest += 1;
        }
        worst = worst.max(newest - oldest + 1);
    }
    worst as u64
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

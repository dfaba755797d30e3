//! What is counted of each account's calls of each action. A call is counted half a dozen times on its way, so its series
//! are looked up by their labels once, for the first call of the account and action, and kept.

use std::sync::Arc;
use std::time::Duration;

use dashmap::DashMap;
use prometheus::{Histogram, HistogramVec, IntCounter, IntCounterVec, IntGauge, IntGaugeVec};

use super::families::Families;
use super::{WAIT_BUCKETS, labels};
use crate::error::Outcome;
use crate::primitives::id::{AccountId, ActionName};

/// The series of all accounts and actions.
pub(super) struct Calls {
    requests: IntCounterVec,
    attempts: IntCounterVec,
    queue_wait: HistogramVec,
    upstream: HistogramVec,
    tokens: IntCounterVec,
    in_flight: IntGaugeVec,
    /// By their labels: those are closed sets, so callers cannot make this grow.
    known: DashMap<(AccountId, ActionName), Arc<CallMetrics>>,
}

/// The series of one account and action.
pub(crate) struct CallMetrics {
    /// Attempts that are under way.
    pub(crate) in_flight: IntGauge,
    /// Tokens granted to a call; these three are the account's, whatever the action.
    pub(crate) granted: IntCounter,
    /// Granted tokens whose clock was started by a send.
    pub(crate) spent: IntCounter,
    /// Granted tokens that were not used.
    pub(crate) returned: IntCounter,
    labels: (AccountId, ActionName),
    requests: IntCounterVec,
    attempts: IntCounterVec,
    queue_wait: Histogram,
    upstream: Histogram,
    /// How nearly every call and attempt ends.
    ended_well: IntCounter,
    answered_well: IntCounter,
}

/// How one attempt ended.
pub(crate) struct Attempt<'a> {
    /// HTTP status, or why there is none.
    pub(crate) status: &'a str,
    /// CAMS's code, from the fixed list.
    pub(crate) code: &'static str,
    /// From its sending.
    pub(crate) took: Duration,
}

const WELL: (&str, &str) = ("200", labels::OK);
/// Upper bounds in seconds: a gateway answers in tens of milliseconds, SDKs give up at 3 s or 10 s, Flowgate at 30 s.
const UPSTREAM_BUCKETS: &[f64] = &[
    0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0,
];

// === impl Calls ===

impl Calls {
    pub(super) fn new(r: &Families) -> Self {
        let call = &["account", "action"];
        let attempts =
            "Requests sent to CAMS, by HTTP status (or what came instead) and CAMS code.";
        let wait = "From a call's arrival to its first turn.";
        let tokens = "Tokens granted, spent and returned; granted = spent + returned + held.";
        Self {
            requests: r.counter(
                "requests_total",
                "Calls that ended, by how.",
                &["account", "action", "outcome"],
            ),
            attempts: r.counter(
                "attempts_total",
                attempts,
                &["account", "action", "status", "code"],
            ),
            queue_wait: r.histogram("queue_wait_seconds", wait, call, WAIT_BUCKETS),
            upstream: r.histogram(
                "upstream_seconds",
                "Time from a send to its end.",
                call,
                UPSTREAM_BUCKETS,
            ),
            tokens: r.counter("tokens_total", tokens, &["account", "event"]),
            in_flight: r.gauge("in_flight", "Attempts that are under way.", call),
            known: DashMap::new(),
        }
    }

    /// The series with these labels.
    pub(super) fn of(&self, labels: (AccountId, ActionName)) -> Arc<CallMetrics> {
        if let Some(known) = self.known.get(&labels) {
            return known.clone();
        }
        let series = Arc::new(self.look_up(labels.clone()));
        self.known.entry(labels).or_insert(series).clone()
    }

    /// A call has ended.
    pub(super) fn ended(&self, account: &str, action: &str, outcome: Outcome) {
        self.requests
            .with_label_values(&[account, action, outcome.label()])
            .inc();
    }

    fn look_up(&self, labels: (AccountId, ActionName)) -> CallMetrics {
        let [account, action] = [labels.0.as_str(), labels.1.as_str()];
        let token = |event| self.tokens.with_label_values(&[account, event]);
        CallMetrics {
            in_flight: self.in_flight.with_label_values(&[account, action]),
            granted: token("granted"),
            spent: token("spent"),
            returned: token("returned"),
            requests: self.requests.clone(),
            attempts: self.attempts.clone(),
            queue_wait: self.queue_wait.with_label_values(&[account, action]),
            upstream: self.upstream.with_label_values(&[account, action]),
            ended_well: self
                .requests
                .with_label_values(&[account, action, Outcome::Ok.label()]),
            answered_well: self
                .attempts
                .with_label_values(&[account, action, WELL.0, WELL.1]),
            labels,
        }
    }
}

// === impl CallMetrics ===

impl CallMetrics {
    /// A call got its first turn after `waited`.
    pub(crate) fn waited(&self, waited: Duration) {
        self.queue_wait.observe(waited.as_secs_f64());
    }

    /// An attempt has ended.
    pub(crate) fn attempt(&self, attempt: &Attempt<'_>) {
        let Attempt { status, code, took } = *attempt;
        if (status, code) == WELL {
            self.answered_well.inc();
        } else {
            let [account, action] = self.labels();
            self.attempts
                .with_label_values(&[account, action, status, code])
                .inc();
        }
        self.upstream.observe(took.as_secs_f64());
    }

    /// A call has ended.
    pub(crate) fn ended(&self, outcome: Outcome) {
        if let Outcome::Ok = outcome {
            self.ended_well.inc();
        } else {
            let [account, action] = self.labels();
            self.requests
                .with_label_values(&[account, action, outcome.label()])
                .inc();
        }
    }

    /// Account and action as they are called in metrics and on operators' pages.
    pub(crate) fn labels(&self) -> [&str; 2] {
        [self.labels.0.as_str(), self.labels.1.as_str()]
    }
}

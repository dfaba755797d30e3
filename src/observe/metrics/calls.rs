//! Counters of calls and attempts, by account and action. A call updates about six series, so they
//! are looked up by label once, for the first call of an account and action, and cached.

use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use prometheus::{Histogram, HistogramVec, IntCounter, IntCounterVec, IntGauge, IntGaugeVec};

use super::answer_time::AnswerTime;
use super::families::Families;
use super::{WAIT_BUCKETS, labels};
use crate::error::Outcome;
use crate::primitives::fast_map::FastDashMap;
use crate::primitives::id::{AccountId, ActionName};

/// The series of all accounts and actions.
pub(super) struct Calls {
    requests: IntCounterVec,
    attempts: IntCounterVec,
    queue_wait: HistogramVec,
    upstream: HistogramVec,
    tokens: IntCounterVec,
    in_flight: IntGaugeVec,
    /// Keyed by labels. These are closed sets, so callers cannot make the map grow.
    known: FastDashMap<(AccountId, ActionName), Arc<CallMetrics>>,
}

/// The series of one account and action.
pub(crate) struct CallMetrics {
    /// Attempts in flight.
    pub(crate) in_flight: IntGauge,
    /// Tokens granted to calls. This and the next two are counted per account, over all actions.
    pub(crate) granted: IntCounter,
    /// Granted tokens that a send has used.
    pub(crate) spent: IntCounter,
    /// Granted tokens that were returned unused.
    pub(crate) returned: IntCounter,
    labels: (AccountId, ActionName),
    requests: IntCounterVec,
    attempts: IntCounterVec,
    queue_wait: Histogram,
    upstream: Histogram,
    /// The most frequent series, cached.
    ended_well: IntCounter,
    answered_well: IntCounter,
    /// `None` before the first answer.
    answer_time: Mutex<Option<AnswerTime>>,
}

/// How one attempt ended.
pub(crate) struct Attempt<'a> {
    /// HTTP status, or `none` without an answer.
    pub(crate) status: &'a str,
    /// CAMS's code, from the fixed list.
    pub(crate) code: &'static str,
    /// Time since it was sent.
    pub(crate) took: Duration,
}

const WELL: (&str, &str) = ("200", labels::OK);
/// Upper bounds in seconds. A gateway answers within tens of milliseconds; SDKs time out after 3 s
/// or 10 s, Flowgate after 30 s.
const UPSTREAM_BUCKETS: &[f64] = &[
    0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0,
];

// === impl Calls ===

impl Calls {
    pub(super) fn new(r: &Families) -> Self {
        let call = &["account", "action"];
        let requests = "Calls that ended, by outcome.";
        let attempts = "Requests sent to CAMS, by HTTP status and CAMS code.";
        let wait = "Time in seconds from the arrival of a call to its first send permit.";
        let upstream = "Time in seconds from sending an attempt to its answer or failure.";
        let tokens =
            "Tokens granted to, spent by and returned by calls; granted = spent + returned + held.";
        Self {
            requests: r.counter(
                "requests_total",
                requests,
                &["account", "action", "outcome"],
            ),
            attempts: r.counter(
                "attempts_total",
                attempts,
                &["account", "action", "status", "code"],
            ),
            queue_wait: r.histogram("queue_wait_seconds", wait, call, WAIT_BUCKETS),
            upstream: r.histogram("upstream_seconds", upstream, call, UPSTREAM_BUCKETS),
            tokens: r.counter("tokens_total", tokens, &["account", "event"]),
            in_flight: r.gauge("in_flight", "Attempts in flight.", call),
            known: FastDashMap::default(),
        }
    }

    /// The series with these labels.
    pub(super) fn of(&self, labels: (AccountId, ActionName)) -> Arc<CallMetrics> {
        if let Some(known) = self.known(&labels) {
            return known;
        }
        let series = Arc::new(self.look_up(labels.clone()));
        self.known.entry(labels).or_insert(series).clone()
    }

    /// The series with these labels, if they were used before.
    pub(super) fn known(&self, labels: &(AccountId, ActionName)) -> Option<Arc<CallMetrics>> {
        self.known.get(labels).map(|known| known.clone())
    }

    /// Counts a call that has ended.
    pub(super) fn ended(&self, account: &str, action: &str, outcome: Outcome) {
        self.requests
            .with_label_values(&[account, action, outcome.label()])
            .inc();
    }

    fn look_up(&self, labels: (AccountId, ActionName)) -> CallMetrics {
        let account = labels.0.as_str();
        let action = labels.1.as_str();
        CallMetrics {
            in_flight: self.in_flight.with_label_values(&[account, action]),
            granted: self.tokens.with_label_values(&[account, "granted"]),
            spent: self.tokens.with_label_values(&[account, "spent"]),
            returned: self.tokens.with_label_values(&[account, "returned"]),
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
            answer_time: Mutex::default(),
            labels,
        }
    }
}

// === impl CallMetrics ===

impl CallMetrics {
    /// Observes how long a call waited for its first send permit.
    pub(crate) fn waited(&self, waited: Duration) {
        self.queue_wait.observe(waited.as_secs_f64());
    }

    /// Counts an attempt that has ended.
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

    /// Adds the duration of an answered attempt.
    pub(crate) fn answered(&self, took: Duration) {
        let mut answer_time = self.answer_time.lock();
        match &mut *answer_time {
            Some(known) => known.add(took),
            None => *answer_time = Some(AnswerTime::first(took)),
        }
    }

    /// How long CAMS usually takes; `None` before the first answer.
    pub(crate) fn answer_time(&self) -> Option<AnswerTime> {
        *self.answer_time.lock()
    }

    /// Counts a call that has ended.
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

    /// The labels as ids.
    pub(crate) fn label_ids(&self) -> &(AccountId, ActionName) {
        &self.labels
    }

    /// Account and action as metrics and the operators' page name them.
    pub(crate) fn labels(&self) -> [&str; 2] {
        [self.labels.0.as_str(), self.labels.1.as_str()]
    }
}

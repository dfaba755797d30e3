//! Records of calls and unknown outcomes. They are set during a scrape, so no series of an outcome
//! that has ended is left behind.

use std::time::Duration;

use prometheus::{GaugeVec, IntGauge, IntGaugeVec};

use super::families::Families;

/// The records of this process at the time of a scrape.
#[derive(Debug, Default)]
pub(crate) struct KeySample {
    /// The number of records by state: those of calls under way, of calls that have created a flow,
    /// and of calls whose outcome is unknown.
    pub(crate) running: usize,
    pub(crate) done: usize,
    pub(crate) unknown: usize,
    /// Maximum number of records.
    pub(crate) max: usize,
    pub(crate) outcomes: Vec<OutcomeSample>,
}

/// The unknown outcomes of an account in one state.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct OutcomeSample {
    pub(crate) account: String,
    /// One of [`UNKNOWN_STATES`].
    pub(crate) state: &'static str,
    pub(crate) count: usize,
    /// Time since the oldest one became unknown.
    pub(crate) oldest: Duration,
}

/// Gauges of records.
pub(super) struct KeyMetrics {
    keys: IntGaugeVec,
    max: IntGauge,
    unknown: IntGaugeVec,
    oldest: GaugeVec,
}

/// The states of records.
pub(super) const KEY_STATES: [&str; 3] = ["running", "done", "unknown"];
/// What happens to an unknown outcome: Flowgate looks for its flow, it has found something that an
/// operator must judge, or it waits for an operator without being looked for.
pub(crate) const UNKNOWN_STATES: [&str; 3] = ["sought", "ambiguous", "by_hand"];

// === impl KeyMetrics ===

impl KeyMetrics {
    pub(super) fn new(r: &Families) -> Self {
        let keys = "Records of calls with an idempotency key or a unique flow name, by state.";
        let max = "Maximum number of records: exactly_once.max_keys.";
        let unknown = "Calls whose outcome is unknown, by what happens to them. Absent for accounts \
                       without such calls.";
        let oldest = "Time in seconds since the oldest unknown outcome of an account. Absent for \
                      accounts without one.";
        Self {
            keys: r.gauge("keys", keys, &["state"]),
            max: r.only_gauge("keys_max", max),
            unknown: r.gauge("unknown_outcomes", unknown, &["account", "state"]),
            oldest: r.fraction("unknown_oldest_seconds", oldest, &["account"]),
        }
    }

    /// Sets all series. Scrapes are serialised by the caller.
    pub(super) fn set(&self, sample: &KeySample) {
        let KeySample {
            running,
            done,
            unknown,
            max,
            ref outcomes,
        } = *sample;
        for (state, count) in KEY_STATES.into_iter().zip([running, done, unknown]) {
            self.keys.with_label_values(&[state]).set(number(count));
        }
        self.max.set(number(max));
        self.unknown.reset();
        self.oldest.reset();
        for outcome in outcomes {
            let account = &*outcome.account;
            self.unknown
                .with_label_values(&[account, outcome.state])
                .set(number(outcome.count));
            let oldest = self.oldest.with_label_values(&[account]);
            oldest.set(oldest.get().max(outcome.oldest.as_secs_f64()));
        }
    }
}

fn number(count: usize) -> i64 {
    i64::try_from(count).unwrap_or(i64::MAX)
}

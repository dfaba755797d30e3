//! Gauges of the lanes. They are set from the lanes during a scrape, so no stale series is left
//! behind.

use parking_lot::Mutex;
use prometheus::{GaugeVec, IntGauge, IntGaugeVec};

use super::families::Families;

/// One lane, or all with its labels, at the moment of a scrape. The limiter fills it.
pub(crate) struct LaneSample<'a> {
    pub(crate) account: &'a str,
    pub(crate) action: &'a str,
    pub(crate) queued: usize,
    pub(crate) tokens_held: u32,
    pub(crate) oldest_wait_seconds: f64,
    pub(crate) predicted_wait_seconds: f64,
    pub(crate) hold_used: f64,
    pub(crate) pause_remaining_seconds: f64,
    pub(crate) limit_per_second: f64,
    pub(crate) effective_per_second: f64,
}

/// Gauges that are set during a scrape.
pub(super) struct LaneGauges {
    /// Serialises scrapes: one must not see the gauges that another has just reset.
    pub(super) scrape: Mutex<()>,
    pub(super) queued_bytes: IntGauge,
    pub(super) unverified_bytes: IntGauge,
    queued: IntGaugeVec,
    oldest_wait: GaugeVec,
    predicted_wait: GaugeVec,
    hold_used: GaugeVec,
    pause_remaining: GaugeVec,
    rate_limit: GaugeVec,
    tokens_held: IntGaugeVec,
}

// === impl LaneGauges ===

impl LaneGauges {
    pub(super) fn new(r: &Families) -> Self {
        let call = &["account", "action"];
        let queued_bytes = "Bytes held by calls that are queued or in flight.";
        let unverified = "Bytes held by bodies of callers that are not verified yet.";
        let oldest = "Time in seconds that the oldest queued call has waited.";
        let predicted = "Predicted wait in seconds of a call that arrives now.";
        let hold =
            "Largest fraction that any queued call has used of its allowed wait, from 0 to 1.";
        let pause = "Remaining seconds of a pause after a throttled attempt or by an operator.";
        let rate =
            "Calls per second: configured, and effective as learned from throttled attempts.";
        let tokens = "Tokens granted to calls and neither spent nor returned.";
        Self {
            scrape: Mutex::new(()),
            queued_bytes: r.only_gauge("queued_bytes", queued_bytes),
            unverified_bytes: r.only_gauge("unverified_bytes", unverified),
            queued: r.gauge("queued", "Calls that are queued.", call),
            oldest_wait: r.fraction("oldest_wait_seconds", oldest, call),
            predicted_wait: r.fraction("predicted_wait_seconds", predicted, call),
            hold_used: r.fraction("hold_used_ratio", hold, call),
            pause_remaining: r.fraction("pause_remaining_seconds", pause, call),
            rate_limit: r.fraction("rate_limit", rate, &["account", "action", "kind"]),
            tokens_held: r.gauge("tokens_held", tokens, call),
        }
    }

    /// Sets the gauges to the current state of the lanes; each pair of labels occurs once.
    pub(super) fn set(&self, lanes: &[LaneSample<'_>]) {
        self.reset();
        for lane in lanes {
            let account = lane.account;
            let action = lane.action;
            self.queued
                .with_label_values(&[account, action])
                .set(i64::try_from(lane.queued).unwrap_or(i64::MAX));
            self.tokens_held
                .with_label_values(&[account, action])
                .set(i64::from(lane.tokens_held));
            for (gauge, value) in [
                (&self.oldest_wait, lane.oldest_wait_seconds),
                (&self.predicted_wait, lane.predicted_wait_seconds),
                (&self.hold_used, lane.hold_used),
                (&self.pause_remaining, lane.pause_remaining_seconds),
            ] {
                gauge.with_label_values(&[account, action]).set(value);
            }
            for (kind, rate) in [
                ("configured", lane.limit_per_second),
                ("effective", lane.effective_per_second),
            ] {
                self.rate_limit
                    .with_label_values(&[account, action, kind])
                    .set(rate);
            }
        }
    }

    fn reset(&self) {
        self.queued.reset();
        self.tokens_held.reset();
        self.oldest_wait.reset();
        self.predicted_wait.reset();
        self.hold_used.reset();
        self.pause_remaining.reset();
        self.rate_limit.reset();
    }
}

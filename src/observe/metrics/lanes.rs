//! What the lanes say when somebody scrapes: read from them at that moment, so nothing is left behind.

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

/// What the lanes say when somebody scrapes.
pub(super) struct LaneGauges {
    pub(super) upstream_up: IntGauge,
    /// Of two scrapes at once, one would see what the other has just reset.
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
        let hold = "The largest part that a waiting call has used of the time that it may wait, from 0 to 1.";
        let pause = "What is left of a pause, after a throttle or by an operator.";
        let bytes = "Bytes of the bodies of calls that wait or are under way.";
        Self {
            scrape: Mutex::new(()),
            upstream_up: r.only_gauge(
                "upstream_up",
                "1 while CAMS can be reached, as the latest connections showed.",
            ),
            queued_bytes: r.only_gauge("queued_bytes", bytes),
            unverified_bytes: r.only_gauge(
                "unverified_bytes",
                "Bytes of bodies whose callers are not verified yet.",
            ),
            queued: r.gauge("queued", "Calls that are queued.", call),
            oldest_wait: r.fraction(
                "oldest_wait_seconds",
                "How long the longest waiting call has waited.",
                call,
            ),
            predicted_wait: r.fraction(
                "predicted_wait_seconds",
                "What a call that came now would wait.",
                call,
            ),
            hold_used: r.fraction("hold_used_ratio", hold, call),
            pause_remaining: r.fraction("pause_remaining_seconds", pause, call),
            rate_limit: r.fraction(
                "rate_limit",
                "Calls per second: configured, and effective as learned from throttle refusals.",
                &["account", "action", "kind"],
            ),
            tokens_held: r.gauge(
                "tokens_held",
                "Tokens granted and neither spent nor returned.",
                call,
            ),
        }
    }

    /// The lanes as they are now, each label once.
    pub(super) fn set(&self, lanes: &[LaneSample<'_>]) {
        self.reset();
        for lane in lanes {
            let call = [lane.account, lane.action];
            let set = |gauge: &GaugeVec, value| gauge.with_label_values(&call).set(value);
            self.queued
                .with_label_values(&call)
                .set(i64::try_from(lane.queued).unwrap_or(i64::MAX));
            self.tokens_held
                .with_label_values(&call)
                .set(i64::from(lane.tokens_held));
            set(&self.oldest_wait, lane.oldest_wait_seconds);
            set(&self.predicted_wait, lane.predicted_wait_seconds);
            set(&self.hold_used, lane.hold_used);
            set(&self.pause_remaining, lane.pause_remaining_seconds);
            let rate = |kind| self.rate_limit.with_label_values(&[call[0], call[1], kind]);
            rate("configured").set(lane.limit_per_second);
            rate("effective").set(lane.effective_per_second);
        }
    }

    fn reset(&self) {
        self.queued.reset();
        self.tokens_held.reset();
        [
            &self.oldest_wait,
            &self.predicted_wait,
            &self.hold_used,
            &self.pause_remaining,
            &self.rate_limit,
        ]
        .into_iter()
        .for_each(GaugeVec::reset);
    }
}

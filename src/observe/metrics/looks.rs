//! Metrics of unknown outcomes: how many there are, the looks for their flows, and how they end.

use std::time::Duration;

use prometheus::{HistogramVec, IntCounterVec};

use super::families::Families;

/// From the first look to a day.
const BUCKETS: &[f64] = &[
    1.0, 3.0, 10.0, 30.0, 120.0, 600.0, 1800.0, 3600.0, 14_400.0, 86_400.0,
];

/// Unknown outcomes, the looks for their flows, and their ends.
pub(super) struct LookMetrics {
    lost_calls: IntCounterVec,
    looks: IntCounterVec,
    resolutions: IntCounterVec,
    resolution_seconds: HistogramVec,
}

// === impl LookMetrics ===

impl LookMetrics {
    pub(super) fn new(r: &Families) -> Self {
        let lost =
            "Calls whose outcome became unknown. Repetitions that are told so again do not count.";
        let looks = "Looks for the flows of unknown outcomes, by what they have found.";
        let resolutions = "Unknown outcomes that have ended, by how.";
        let seconds =
            "Time in seconds from the end of an attempt to the end of its unknown outcome.";
        let labels = &["account", "result"];
        Self {
            lost_calls: r.counter("lost_calls_total", lost, &["account"]),
            looks: r.counter("looks_total", looks, labels),
            resolutions: r.counter("resolutions_total", resolutions, labels),
            resolution_seconds: r.histogram("resolution_seconds", seconds, &["account"], BUCKETS),
        }
    }

    /// The series of an account exists from the start: an alert watches it.
    pub(super) fn add_account(&self, account: &str) {
        drop(self.lost_calls.with_label_values(&[account]));
    }

    pub(super) fn lost(&self, account: &str) {
        self.lost_calls.with_label_values(&[account]).inc();
    }

    pub(super) fn looked(&self, account: &str, result: &str) {
        self.looks.with_label_values(&[account, result]).inc();
    }

    pub(super) fn resolved(&self, account: &str, result: &str, after: Duration) {
        self.resolutions.with_label_values(&[account, result]).inc();
        let seconds = self.resolution_seconds.with_label_values(&[account]);
        seconds.observe(after.as_secs_f64());
    }
}

//! Metrics of unknown outcomes: the looks for their flows, and how they end.

use std::time::Duration;

use prometheus::{HistogramVec, IntCounterVec};

use super::families::Families;

/// From the first look to a day.
const BUCKETS: &[f64] = &[
    1.0, 3.0, 10.0, 30.0, 120.0, 600.0, 1800.0, 3600.0, 14_400.0, 86_400.0,
];

/// The looks, and the ends of unknown outcomes.
pub(super) struct LookMetrics {
    looks: IntCounterVec,
    resolutions: IntCounterVec,
    resolution_seconds: HistogramVec,
}

// === impl LookMetrics ===

impl LookMetrics {
    pub(super) fn new(r: &Families) -> Self {
        let looks = "Looks for the flows of unknown outcomes, by what they have found.";
        let resolutions = "Unknown outcomes that have ended, by how.";
        let seconds = "Time from the end of an attempt to the end of its unknown outcome.";
        let labels = &["account", "result"];
        Self {
            looks: r.counter("looks_total", looks, labels),
            resolutions: r.counter("resolutions_total", resolutions, labels),
            resolution_seconds: r.histogram("resolution_seconds", seconds, &["account"], BUCKETS),
        }
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

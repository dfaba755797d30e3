//! Metrics of the export of traces. They are registered only if a collector is configured.

use prometheus::IntCounterVec;

use super::families::opts;

/// Metrics of the export of traces.
pub(super) struct TraceMetrics {
    exports: IntCounterVec,
}

// === impl TraceMetrics ===

impl TraceMetrics {
    pub(super) fn new() -> Self {
        let exports = opts(
            "trace_exports_total",
            "Batches of spans sent to the collector, by result.",
        );
        let exports = IntCounterVec::new(exports, &["result"]).expect("a valid name");
        for result in ["done", "failed"] {
            drop(exports.with_label_values(&[result]));
        }
        Self { exports }
    }
}

impl super::Metrics {
    /// Registers the metrics of the export.
    pub(crate) fn register_trace_export(&self) {
        self.families.add(Box::new(self.traces.exports.clone()));
    }

    /// Counts a batch that was accepted by the collector or failed.
    pub(crate) fn exported_traces(&self, done: bool) {
        let result = if done { "done" } else { "failed" };
        self.traces.exports.with_label_values(&[result]).inc();
    }
}

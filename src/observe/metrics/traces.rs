//! What is seen of the export of traces. Nothing of it is on the page when there is no collector.

use prometheus::IntCounterVec;

use super::families::opts;

/// What is seen of the export of traces.
pub(super) struct TraceMetrics {
    exports: IntCounterVec,
}

// === impl TraceMetrics ===

impl TraceMetrics {
    pub(super) fn new() -> Self {
        let exports = opts(
            "trace_exports_total",
            "Batches of spans that were sent to the collector, by result.",
        );
        let exports = IntCounterVec::new(exports, &["result"]).expect("a valid name");
        ["done", "failed"]
            .iter()
            .for_each(|result| drop(exports.with_label_values(&[*result])));
        Self { exports }
    }
}

impl super::Metrics {
    /// There is a collector: these metrics are on the page from now on.
    pub(crate) fn exports_traces(&self) {
        self.families.add(Box::new(self.traces.exports.clone()));
    }

    /// A batch was taken, or not.
    pub(crate) fn exported_traces(&self, done: bool) {
        self.traces
            .exports
            .with_label_values(&[if done { "done" } else { "failed" }])
            .inc();
    }
}

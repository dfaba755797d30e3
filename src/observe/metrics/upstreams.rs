//! Whether each upstream can be reached, the failed attempts to connect to it, and its clock. They
//! are set during a scrape, so no series of a removed upstream is left behind.

use std::sync::Arc;

use prometheus::{GaugeVec, IntCounterVec, IntGaugeVec};

use super::families::Families;
use crate::upstream::{Reach, Upstream};

/// The metrics of the upstreams.
pub(super) struct UpstreamMetrics {
    up: IntGaugeVec,
    failures: IntCounterVec,
    clock_offset: GaugeVec,
}

// === impl UpstreamMetrics ===

impl UpstreamMetrics {
    pub(super) fn new(r: &Families) -> Self {
        let up = "1 if the latest connections to this upstream succeeded, else 0.";
        let failures =
            "Connections to this upstream, or to the proxy on the way, that failed, by reason.";
        let offset = "This upstream's time minus this host's, in seconds. Absent until it has \
                      answered twice.";
        Self {
            up: r.gauge("upstream_up", up, &["upstream"]),
            failures: r.counter(
                "upstream_connect_failures_total",
                failures,
                &["upstream", "reason"],
            ),
            clock_offset: r.fraction("upstream_clock_offset_seconds", offset, &["upstream"]),
        }
    }

    /// Sets all series. Scrapes are serialised by the caller.
    pub(super) fn set(&self, upstreams: &[Arc<Upstream>]) {
        self.up.reset();
        self.failures.reset();
        self.clock_offset.reset();
        for upstream in upstreams {
            let url = upstream.url();
            self.up
                .with_label_values(&[url])
                .set(i64::from(upstream.reach() == Reach::Up));
            if let Some(offset) = upstream.clock().offset() {
                self.clock_offset.with_label_values(&[url]).set(offset);
            }
            for (failure, count) in upstream.failures() {
                self.failures
                    .with_label_values(&[url, failure.label()])
                    .inc_by(count);
            }
        }
    }
}

//! Whether each upstream can be reached, and the failed attempts to connect to it. They are set
//! during a scrape, so no series of a removed upstream is left behind.

use std::sync::Arc;

use prometheus::{IntCounterVec, IntGaugeVec};

use super::families::Families;
use crate::upstream::{Reach, Upstream};

/// The metrics of the upstreams.
pub(super) struct UpstreamMetrics {
    up: IntGaugeVec,
    failures: IntCounterVec,
}

// === impl UpstreamMetrics ===

impl UpstreamMetrics {
    pub(super) fn new(r: &Families) -> Self {
        let up = "1 if the latest connections to this upstream succeeded, else 0.";
        let failures =
            "Connections to this upstream, or to the proxy on the way, that failed, by reason.";
        Self {
            up: r.gauge("upstream_up", up, &["upstream"]),
            failures: r.counter(
                "upstream_connect_failures_total",
                failures,
                &["upstream", "reason"],
            ),
        }
    }

    /// Sets all series. Scrapes are serialised by the caller.
    pub(super) fn set(&self, upstreams: &[Arc<Upstream>]) {
        self.up.reset();
        self.failures.reset();
        for upstream in upstreams {
            let url = upstream.url();
            self.up
                .with_label_values(&[url])
                .set(i64::from(upstream.reach() == Reach::Up));
            for (failure, count) in upstream.failures() {
                self.failures
                    .with_label_values(&[url, failure.label()])
                    .inc_by(count);
            }
        }
    }
}

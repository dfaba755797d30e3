//! What is seen of the store that replicas share. Nothing of it is on the page before there is a store.

use std::time::Duration;

use prometheus::core::Collector;
use prometheus::{Gauge, HistogramOpts, HistogramVec, IntCounterVec, IntGauge};

use super::families::{Families, opts};

/// What is seen of the store.
pub(super) struct StoreMetrics {
    up: IntGauge,
    degraded: IntGauge,
    replicas: IntGauge,
    distance: Gauge,
    seconds: HistogramVec,
    errors: IntCounterVec,
}

const DISTANCE: &str = "The least round trip of the latest pings of the store.";

/// Upper bounds in seconds: over loopback an operation takes a tenth of a millisecond, in a region one, and after a
/// quarter of a second (by default) the store counts as down.
const BUCKETS: &[f64] = &[
    0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5,
    10.0,
];

// === impl StoreMetrics ===

impl StoreMetrics {
    pub(super) fn new() -> Self {
        let gauge = |name, help| IntGauge::with_opts(opts(name, help)).expect("a valid name");
        let help = "What an operation on the store took, failed ones included.";
        let seconds = HistogramOpts {
            common_opts: opts("store_seconds", help),
            buckets: BUCKETS.to_vec(),
        };
        let help = "Operations on the store that failed; none is tried while the store is down.";
        Self {
            up: gauge("store_up", "1 while the store that replicas share answers."),
            degraded: gauge(
                "store_degraded",
                "1 while the store is not up: what is granted then is this replica's part.",
            ),
            replicas: gauge(
                "replicas",
                "Replicas that share the quota, as the store last said.",
            ),
            distance: Gauge::with_opts(opts("store_distance_seconds", DISTANCE))
                .expect("a valid name"),
            seconds: HistogramVec::new(seconds, &["op"]).expect("a valid name"),
            errors: IntCounterVec::new(opts("store_errors_total", help), &["op"])
                .expect("a valid name"),
        }
    }

    pub(super) fn register(&self, families: &Families) {
        let collectors: [Box<dyn Collector>; 6] = [
            Box::new(self.up.clone()),
            Box::new(self.degraded.clone()),
            Box::new(self.replicas.clone()),
            Box::new(self.distance.clone()),
            Box::new(self.seconds.clone()),
            Box::new(self.errors.clone()),
        ];
        collectors
            .into_iter()
            .for_each(|collector| families.add(collector));
    }
}

impl super::Metrics {
    /// There is a store: its metrics are on the page from now on.
    pub(crate) fn has_store(&self) {
        self.store.register(&self.families);
    }

    /// Whether the store answers.
    pub(crate) fn store_up(&self, up: bool) {
        self.store.up.set(i64::from(up));
    }

    /// Whether tokens are granted without the store.
    pub(crate) fn store_degraded(&self, degraded: bool) {
        self.store.degraded.set(i64::from(degraded));
    }

    /// How many replicas share the quota.
    pub(crate) fn replicas(&self, replicas: usize) {
        self.store
            .replicas
            .set(i64::try_from(replicas).unwrap_or(i64::MAX));
    }

    /// How far away the store is.
    pub(crate) fn store_distance(&self, round_trip: Duration) {
        self.store.distance.set(round_trip.as_secs_f64());
    }

    /// An operation on the store has ended after `took`.
    pub(crate) fn store_operation(&self, op: &str, took: Duration, failed: bool) {
        self.store
            .seconds
            .with_label_values(&[op])
            .observe(took.as_secs_f64());
        let errors = self.store.errors.with_label_values(&[op]);
        if failed {
            errors.inc();
        }
    }
}

//! Metrics of the store that replicas share. They are registered only if a store is configured.

use std::time::Duration;

use prometheus::{Gauge, HistogramOpts, HistogramVec, IntCounterVec, IntGauge};

use super::families::{Families, opts};

/// Metrics of the store.
pub(super) struct StoreMetrics {
    up: IntGauge,
    degraded: IntGauge,
    keys_degraded: IntGauge,
    replicas: IntGauge,
    distance: Gauge,
    seconds: HistogramVec,
    errors: IntCounterVec,
}

/// Upper bounds in seconds. An operation takes about 0.1 ms over loopback and 1 ms within a region;
/// after 250 ms (by default) the store counts as down.
const BUCKETS: &[f64] = &[
    0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5,
    10.0,
];

// === impl StoreMetrics ===

impl StoreMetrics {
    pub(super) fn new() -> Self {
        let up = "1 if the store that replicas share answers, else 0.";
        let degraded =
            "1 while the store is down and this replica grants only its part of the quota.";
        let keys = "1 while the store is down, so that new idempotency keys are refused or sent without protection, else 0.";
        let replicas = "Replicas that share the quota, as last reported by the store.";
        let distance = "Shortest round trip of the latest pings of the store, in seconds.";
        let seconds = "Duration in seconds of each operation on the store, including failed ones.";
        let errors = "Failed operations on the store. None is tried while the store is down.";
        let seconds = HistogramOpts {
            common_opts: opts("store_seconds", seconds),
            buckets: BUCKETS.to_vec(),
        };
        Self {
            up: gauge("store_up", up),
            degraded: gauge("store_degraded", degraded),
            keys_degraded: gauge("keys_degraded", keys),
            replicas: gauge("replicas", replicas),
            distance: Gauge::with_opts(opts("store_distance_seconds", distance))
                .expect("a valid name"),
            seconds: HistogramVec::new(seconds, &["op"]).expect("a valid name"),
            errors: IntCounterVec::new(opts("store_errors_total", errors), &["op"])
                .expect("a valid name"),
        }
    }

    pub(super) fn register(&self, families: &Families) {
        families.add(Box::new(self.up.clone()));
        families.add(Box::new(self.degraded.clone()));
        families.add(Box::new(self.keys_degraded.clone()));
        families.add(Box::new(self.replicas.clone()));
        families.add(Box::new(self.distance.clone()));
        families.add(Box::new(self.seconds.clone()));
        families.add(Box::new(self.errors.clone()));
    }
}

fn gauge(name: &str, help: &str) -> IntGauge {
    IntGauge::with_opts(opts(name, help)).expect("a valid name")
}

impl super::Metrics {
    /// Registers the metrics of the store.
    pub(crate) fn register_store(&self) {
        self.store.register(&self.families);
    }

    /// Sets whether the store answers.
    pub(crate) fn store_up(&self, up: bool) {
        self.store.up.set(i64::from(up));
    }

    /// Sets whether idempotency keys are not shared with the other replicas.
    pub(crate) fn keys_degraded(&self, degraded: bool) {
        self.store.keys_degraded.set(i64::from(degraded));
    }

    /// Sets whether tokens are granted without the store.
    pub(crate) fn store_degraded(&self, degraded: bool) {
        self.store.degraded.set(i64::from(degraded));
    }

    /// Sets the number of replicas that share the quota.
    pub(crate) fn replicas(&self, replicas: usize) {
        self.store
            .replicas
            .set(i64::try_from(replicas).unwrap_or(i64::MAX));
    }

    /// Sets the round trip to the store.
    pub(crate) fn store_distance(&self, round_trip: Duration) {
        self.store.distance.set(round_trip.as_secs_f64());
    }

    /// Counts an operation on the store that has ended after `took`.
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

//! Every metric that Prometheus scrapes, as the fields of one struct; each help text is the field's meaning. Names are
//! prefixed `flowgate_`, in base units, and every label value comes from a closed set: accounts and clients from the
//! configuration (else `unknown` and `unverified`), actions that are limited or documented (else `other`), codes from a
//! fixed list (else `other`). docs/metrics.md is made from them.
//!
//! What is a state and not an event (queue lengths, waits, pauses, rates) is read from the lanes when somebody scrapes,
//! so a cancelled call cannot leave a gauge behind.

mod calls;
mod config;
mod families;
mod journal;
pub(crate) mod labels;
mod lanes;
mod store;
mod traces;

use std::sync::Arc;
use std::time::Duration;

use prometheus::process_collector::ProcessCollector;
use prometheus::{HistogramVec, IntCounterVec, IntGauge, IntGaugeVec};

use crate::error::{Outcome, Refusal};
use crate::observe::metrics::calls::Calls;
pub(crate) use crate::observe::metrics::calls::{Attempt, CallMetrics};
use crate::observe::metrics::config::ConfigMetrics;
pub(crate) use crate::observe::metrics::config::Reload;
use crate::observe::metrics::families::Families;
use crate::observe::metrics::journal::JournalMetrics;
use crate::observe::metrics::lanes::LaneGauges;
pub(crate) use crate::observe::metrics::lanes::LaneSample;
use crate::observe::metrics::store::StoreMetrics;
use crate::observe::metrics::traces::TraceMetrics;
use crate::primitives::id::{AccountId, ActionName};

/// All metrics of one process.
pub(crate) struct Metrics {
    families: Families,
    calls: Calls,
    refused: IntCounterVec,
    throttled: IntCounterVec,
    pauses: HistogramVec,
    client_turns: IntCounterVec,
    cancelled: IntCounterVec,
    shadow_decisions: IntCounterVec,
    signature_checks: IntCounterVec,
    operator_actions: IntCounterVec,
    /// Those of callers and of operators.
    pub(crate) connections: ConnectionMetrics,
    config: ConfigMetrics,
    lanes: LaneGauges,
    store: StoreMetrics,
    journal: JournalMetrics,
    traces: TraceMetrics,
}

/// Connections to both ports.
pub(crate) struct ConnectionMetrics {
    /// Open now.
    pub(crate) open: IntGauge,
    /// Ended with an error or turned away, by kind; what is not HTTP is counted here.
    pub(crate) errors: IntCounterVec,
    /// When the certificate ends that Flowgate shows, by the name of where.
    pub(crate) certificate_expiry: IntGaugeVec,
}

/// Memory that calls hold at a moment.
#[derive(Clone, Copy, Default)]
pub(crate) struct Bytes {
    pub(crate) queued: usize,
    pub(crate) unverified: usize,
}

/// Upper bounds in seconds. A token comes every 200 ms at 5/s, so the low end tells "at once" from "one token"; holds
/// end at 30 s by default and at 120 s at most.
const WAIT_BUCKETS: &[f64] = &[
    0.005, 0.05, 0.2, 0.5, 1.0, 2.0, 3.0, 5.0, 8.0, 10.0, 15.0, 20.0, 30.0, 60.0, 120.0,
];

// === impl Metrics ===

impl Metrics {
    pub(crate) fn new() -> Self {
        let r = Families::new();
        let call = &["account", "action"];
        let throttled =
            "Attempts that CAMS refused by throttling, by its code and where it said so.";
        let pauses = "Pauses after a throttle, by how long each was to last when it began.";
        let turns =
            "Turns that a client's calls of limited actions got: how much of the quota is whose.";
        let cancelled = "Callers that hung up, by where their call was.";
        let shadow =
            "Calls while Flowgate only observes, by what the limit would have done to them.";
        let checks = "Checks of callers' signatures, by result.";
        let orders = "Orders that operators gave to lanes.";
        Self {
            calls: Calls::new(&r),
            refused: r.counter(
                "refused_total",
                "Calls that Flowgate answered by itself, by why.",
                &["account", "reason"],
            ),
            throttled: r.counter("throttled_total", throttled, &["account", "code", "source"]),
            pauses: r.histogram("pause_seconds", pauses, call, WAIT_BUCKETS),
            client_turns: r.counter("client_turns_total", turns, &["account", "client"]),
            cancelled: r.counter("cancelled_total", cancelled, &["account", "stage"]),
            shadow_decisions: r.counter(
                "shadow_decisions_total",
                shadow,
                &["account", "action", "decision"],
            ),
            signature_checks: r.counter("signature_checks_total", checks, &["result"]),
            operator_actions: r.counter("operator_actions_total", orders, &["action"]),
            connections: ConnectionMetrics::new(&r),
            config: ConfigMetrics::new(&r),
            lanes: LaneGauges::new(&r),
            store: StoreMetrics::new(),
            journal: JournalMetrics::new(),
            traces: TraceMetrics::new(),
            families: describe_process(r),
        }
    }

    /// What is counted of the calls with these labels.
    pub(crate) fn calls(&self, labels: (AccountId, ActionName)) -> Arc<CallMetrics> {
        self.calls.of(labels)
    }

    /// A call has ended before more of it was known than this.
    pub(crate) fn ended(&self, account: &str, action: &str, outcome: Outcome) {
        self.calls.ended(account, action, outcome);
    }

    /// A call was answered by Flowgate itself.
    pub(crate) fn refused(&self, account: &str, refusal: &Refusal) {
        self.refused
            .with_label_values(&[account, refusal.kind.label()])
            .inc();
    }

    /// CAMS refused an attempt by throttling.
    pub(crate) fn throttled(&self, account: &str, code: &str, source: &str) {
        self.throttled
            .with_label_values(&[account, code, source])
            .inc();
    }

    /// A lane pauses for so long.
    pub(crate) fn paused(&self, account: &str, action: &str, pause: Duration) {
        self.pauses
            .with_label_values(&[account, action])
            .observe(pause.as_secs_f64());
    }

    /// A client's call of a limited action got a turn.
    pub(crate) fn client_turn(&self, account: &str, client: &str) {
        self.client_turns
            .with_label_values(&[account, client])
            .inc();
    }

    /// A caller hung up while its call was at `stage`: `queued` or `in_flight`.
    pub(crate) fn cancelled(&self, account: &str, stage: &str) {
        self.cancelled.with_label_values(&[account, stage]).inc();
    }

    /// What would have become of a call: `passed`, `waited` or `refused`.
    pub(crate) fn shadow_decision(&self, account: &str, action: &str, decision: &str) {
        self.shadow_decisions
            .with_label_values(&[account, action, decision])
            .inc();
    }

    /// A caller's signature was checked.
    pub(crate) fn signature_check(&self, result: &str) {
        self.signature_checks.with_label_values(&[result]).inc();
    }

    /// An operator gave an order: `pause`, `resume` or `flush`.
    pub(crate) fn operator_action(&self, action: &str) {
        self.operator_actions.with_label_values(&[action]).inc();
    }

    /// Everything in Prometheus' text format, with the lanes as they are now.
    pub(crate) fn render(
        &self,
        lanes: &[LaneSample<'_>],
        bytes: Bytes,
        upstream_up: bool,
    ) -> String {
        let _alone = self.lanes.scrape.lock();
        self.lanes.upstream_up.set(i64::from(upstream_up));
        self.lanes
            .queued_bytes
            .set(i64::try_from(bytes.queued).unwrap_or(i64::MAX));
        self.lanes
            .unverified_bytes
            .set(i64::try_from(bytes.unverified).unwrap_or(i64::MAX));
        self.lanes.set(lanes);
        self.families.render()
    }
}

// === impl ConnectionMetrics ===

impl ConnectionMetrics {
    fn new(r: &Families) -> Self {
        let help = "Connections that ended with an error or were turned away, by kind.";
        let expiry =
            "When the certificate ends that Flowgate shows, by where, in seconds since 1970.";
        Self {
            open: r.only_gauge("connections", "Open connections."),
            errors: r.counter("connection_errors_total", help, &["kind"]),
            certificate_expiry: r.gauge("certificate_expiry_timestamp_seconds", expiry, &["name"]),
        }
    }
}

/// The build, and what the system knows of the process.
fn describe_process(r: Families) -> Families {
    let build = r.gauge(
        "build_info",
        "Always 1; the version is the label.",
        &["version"],
    );
    build.with_label_values(&[env!("CARGO_PKG_VERSION")]).set(1);
    r.add(Box::new(ProcessCollector::for_self()));
    r
}

#[cfg(test)]
mod tests;

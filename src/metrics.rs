//! Every metric that Prometheus scrapes, as the fields of one struct; each help text is the field's meaning. Names are
//! prefixed `flowgate_`, in base units, and every label value comes from a closed set: accounts from the configuration
//! (else `unknown`), actions that are limited or documented (else `other`), codes from a fixed list (else `other`).
//!
//! What is a state and not an event (queue lengths, waits, pauses, rates) is read from the lanes when somebody scrapes,
//! so a cancelled call cannot leave a gauge behind.

mod config;
mod journal;
mod lanes;
mod store;

use std::time::Duration;

use prometheus::core::Collector;
use prometheus::process_collector::ProcessCollector;
use prometheus::{
    GaugeVec, HistogramOpts, HistogramVec, IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Opts, Registry,
    TextEncoder,
};

use crate::error::{Outcome, Refusal};
use crate::flow::queue::LaneView;
use crate::metrics::config::ConfigMetrics;
pub(crate) use crate::metrics::config::Reload;
use crate::metrics::journal::JournalMetrics;
use crate::metrics::lanes::LaneGauges;
use crate::metrics::store::StoreMetrics;

/// All metrics of one process.
pub(crate) struct Metrics {
    registry: Registry,
    requests: IntCounterVec,
    refused: IntCounterVec,
    attempts: IntCounterVec,
    throttled: IntCounterVec,
    queue_wait: HistogramVec,
    upstream: HistogramVec,
    tokens: IntCounterVec,
    cancelled: IntCounterVec,
    shadow_decisions: IntCounterVec,
    signature_checks: IntCounterVec,
    operator_actions: IntCounterVec,
    in_flight: IntGaugeVec,
    /// Those of callers and of operators.
    pub(crate) connections: ConnectionMetrics,
    config: ConfigMetrics,
    lanes: LaneGauges,
    store: StoreMetrics,
    journal: JournalMetrics,
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

/// The counters of one lane, looked up once.
pub(crate) struct LaneMetrics {
    /// Tokens granted to a call.
    pub(crate) granted: IntCounter,
    /// Granted tokens whose clock was started by a send.
    pub(crate) spent: IntCounter,
    /// Granted tokens that were not used.
    pub(crate) returned: IntCounter,
}

/// One attempt, as it is counted.
pub(crate) struct Attempt<'a> {
    pub(crate) account: &'a str,
    pub(crate) action: &'a str,
    /// HTTP status, or why there is none.
    pub(crate) status: &'a str,
    /// CAMS's code, from the fixed list.
    pub(crate) code: &'static str,
}

/// Memory that calls hold at a moment.
#[derive(Clone, Copy, Default)]
pub(crate) struct Bytes {
    pub(crate) queued: usize,
    pub(crate) unverified: usize,
}

/// Upper bounds in seconds. A token comes every 200 ms at 5/s, so the low end tells "at once" from "one token"; holds
/// end at 30 s by default and at 120 s at most.
const WAIT_BUCKETS: &[f64] = &[0.005, 0.05, 0.2, 0.5, 1.0, 2.0, 3.0, 5.0, 8.0, 10.0, 15.0, 20.0, 30.0, 60.0, 120.0];
/// Upper bounds in seconds: a gateway answers in tens of milliseconds, SDKs give up at 3 s or 10 s, Flowgate at 30 s.
const UPSTREAM_BUCKETS: &[f64] = &[0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0];

// === impl Metrics ===

impl Metrics {
    pub(crate) fn new() -> Self {
        let registry = Registry::new();
        let r = &registry;
        let call = &["account", "action"];
        let count = |name, help, labels: &[&str]| counter(r, name, help, labels);
        let attempts = "Requests sent to CAMS, by HTTP status (or what came instead) and CAMS code.";
        let throttled = "Attempts that CAMS refused by throttling, by its code and where it said so.";
        let tokens = "Tokens granted, spent and returned; granted = spent + returned + held.";
        let shadow = "Calls while Flowgate only observes, by what the limit would have done to them.";
        let metrics = Self {
            requests: count("requests_total", "Calls that ended, by how.", &["account", "action", "outcome"]),
            refused: count("refused_total", "Calls that Flowgate answered by itself, by why.", &["account", "reason"]),
            attempts: count("attempts_total", attempts, &["account", "action", "status", "code"]),
            throttled: count("throttled_total", throttled, &["account", "code", "source"]),
            queue_wait: histogram(
                r,
                "queue_wait_seconds",
                "From a call's arrival to its first turn.",
                call,
                WAIT_BUCKETS,
            ),
            upstream: histogram(r, "upstream_seconds", "Time from a send to its end.", call, UPSTREAM_BUCKETS),
            tokens: count("tokens_total", tokens, &["account", "event"]),
            cancelled: count(
                "cancelled_total",
                "Callers that hung up, by where their call was.",
                &["account", "stage"],
            ),
            shadow_decisions: count("shadow_decisions_total", shadow, &["account", "action", "decision"]),
            signature_checks: count("signature_checks_total", "Checks of callers' signatures, by result.", &["result"]),
            operator_actions: count("operator_actions_total", "Orders that operators gave to lanes.", &["action"]),
            in_flight: gauge(r, "in_flight", "Attempts that are under way.", call),
            connections: ConnectionMetrics::new(r),
            config: ConfigMetrics::new(r),
            lanes: LaneGauges::new(r),
            store: StoreMetrics::new(),
            journal: JournalMetrics::new(),
            registry: registry.clone(),
        };
        describe_process(r);
        ["pause", "resume", "flush"]
            .iter()
            .for_each(|action| drop(metrics.operator_actions.with_label_values(&[*action])));
        metrics
    }

    /// The counters of one account's tokens.
    pub(crate) fn lane(&self, account: &str) -> LaneMetrics {
        let event = |event| self.tokens.with_label_values(&[account, event]);
        LaneMetrics { granted: event("granted"), spent: event("spent"), returned: event("returned") }
    }

    /// A call has ended.
    pub(crate) fn ended(&self, account: &str, action: &str, outcome: Outcome) {
        self.requests.with_label_values(&[account, action, outcome.label()]).inc();
    }

    /// A call was answered by Flowgate itself.
    pub(crate) fn refused(&self, account: &str, refusal: &Refusal) {
        self.refused.with_label_values(&[account, refusal.kind.label()]).inc();
    }

    /// An attempt has ended after `took`.
    pub(crate) fn attempt(&self, attempt: &Attempt<'_>, took: Duration) {
        let Attempt { account, action, status, code } = attempt;
        self.attempts.with_label_values(&[*account, *action, *status, *code]).inc();
        self.upstream.with_label_values(&[*account, *action]).observe(took.as_secs_f64());
    }

    /// CAMS refused an attempt by throttling.
    pub(crate) fn throttled(&self, account: &str, code: &str, source: &str) {
        self.throttled.with_label_values(&[account, code, source]).inc();
    }

    /// A call got its turn after `waited`.
    pub(crate) fn waited(&self, account: &str, action: &str, waited: Duration) {
        self.queue_wait.with_label_values(&[account, action]).observe(waited.as_secs_f64());
    }

    /// A caller hung up while its call was at `stage`: `queued` or `in_flight`.
    pub(crate) fn cancelled(&self, account: &str, stage: &str) {
        self.cancelled.with_label_values(&[account, stage]).inc();
    }

    /// What would have become of a call: `passed`, `waited` or `refused`.
    pub(crate) fn shadow_decision(&self, account: &str, action: &str, decision: &str) {
        self.shadow_decisions.with_label_values(&[account, action, decision]).inc();
    }

    /// A caller's signature was checked.
    pub(crate) fn signature_check(&self, result: &str) {
        self.signature_checks.with_label_values(&[result]).inc();
    }

    /// An operator gave an order: `pause`, `resume` or `flush`.
    pub(crate) fn operator_action(&self, action: &str) {
        self.operator_actions.with_label_values(&[action]).inc();
    }

    /// Attempts under way of one account and action.
    pub(crate) fn in_flight(&self, account: &str, action: &str) -> IntGauge {
        self.in_flight.with_label_values(&[account, action])
    }

    /// Everything in Prometheus' text format, with the lanes as they are now.
    pub(crate) fn render(&self, lanes: &[LaneView], bytes: Bytes, upstream_up: bool) -> String {
        let _alone = self.lanes.scrape.lock();
        self.lanes.upstream_up.set(i64::from(upstream_up));
        self.lanes.queued_bytes.set(i64::try_from(bytes.queued).unwrap_or(i64::MAX));
        self.lanes.unverified_bytes.set(i64::try_from(bytes.unverified).unwrap_or(i64::MAX));
        self.lanes.set(lanes);
        let mut text = String::new();
        TextEncoder::new()
            .encode_utf8(&self.registry.gather(), &mut text)
            .expect("metrics that were registered can be encoded");
        text
    }
}

// === impl ConnectionMetrics ===

impl ConnectionMetrics {
    fn new(r: &Registry) -> Self {
        let help = "Connections that ended with an error or were turned away, by kind.";
        let expiry = "When the certificate ends that Flowgate shows, by where, in seconds since 1970.";
        Self {
            open: single(r, "connections", "Open connections."),
            errors: counter(r, "connection_errors_total", help, &["kind"]),
            certificate_expiry: gauge(r, "certificate_expiry_timestamp_seconds", expiry, &["name"]),
        }
    }
}

/// The build, and what the system knows of the process.
fn describe_process(r: &Registry) {
    let build = gauge(r, "build_info", "Always 1; the version is the label.", &["version"]);
    build.with_label_values(&[env!("CARGO_PKG_VERSION")]).set(1);
    let process = Box::new(ProcessCollector::for_self());
    r.register(process).expect("every metric is registered once");
}

fn opts(name: &str, help: &str) -> Opts {
    Opts::new(name, help).namespace("flowgate")
}

fn register<C: Collector + Clone + 'static>(registry: &Registry, collector: C) -> C {
    registry.register(Box::new(collector.clone())).expect("every metric is registered once");
    collector
}

fn counter(registry: &Registry, name: &str, help: &str, labels: &[&str]) -> IntCounterVec {
    register(registry, IntCounterVec::new(opts(name, help), labels).expect("a valid name"))
}

fn gauge(registry: &Registry, name: &str, help: &str, labels: &[&str]) -> IntGaugeVec {
    register(registry, IntGaugeVec::new(opts(name, help), labels).expect("a valid name"))
}

fn single(registry: &Registry, name: &str, help: &str) -> IntGauge {
    register(registry, IntGauge::with_opts(opts(name, help)).expect("a valid name"))
}

fn seconds(registry: &Registry, name: &str, help: &str, labels: &[&str]) -> GaugeVec {
    register(registry, GaugeVec::new(opts(name, help), labels).expect("a valid name"))
}

fn histogram(registry: &Registry, name: &str, help: &str, labels: &[&str], buckets: &[f64]) -> HistogramVec {
    let opts = HistogramOpts { common_opts: opts(name, help), buckets: buckets.to_vec() };
    register(registry, HistogramVec::new(opts, labels).expect("a valid name"))
}

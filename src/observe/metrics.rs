//! All Prometheus metrics. The help text of a metric states what is counted and in which unit.
//!
//! Names have the prefix `flowgate_` and use base units. Every label value comes from a closed set:
//! accounts and clients from the configuration (else `unknown` and `unverified`), actions that are
//! limited or documented (else `other`), codes from a fixed list (else `other`). The tables of
//! docs/metrics.md are generated from the code.
//!
//! State (queue lengths, waits, pauses, rates) is read from the lanes during a scrape, so a
//! cancelled call cannot leave a stale gauge behind.

mod answer_time;
mod calls;
mod config;
mod families;
mod journal;
mod keys;
pub(crate) mod labels;
mod lanes;
mod looks;
mod sessions;
mod store;
mod traces;
mod upstreams;

use std::sync::Arc;
use std::time::Duration;

use prometheus::process_collector::ProcessCollector;
use prometheus::{HistogramVec, IntCounter, IntCounterVec, IntGauge, IntGaugeVec};

use crate::error::{Outcome, Refusal};
pub(crate) use crate::observe::metrics::answer_time::AnswerTime;
use crate::observe::metrics::calls::Calls;
pub(crate) use crate::observe::metrics::calls::{Attempt, CallMetrics};
use crate::observe::metrics::config::ConfigMetrics;
pub(crate) use crate::observe::metrics::config::Reload;
use crate::observe::metrics::families::Families;
use crate::observe::metrics::journal::JournalMetrics;
use crate::observe::metrics::keys::KeyMetrics;
pub(crate) use crate::observe::metrics::keys::{KeySample, OutcomeSample};
use crate::observe::metrics::lanes::LaneGauges;
pub(crate) use crate::observe::metrics::lanes::LaneSample;
use crate::observe::metrics::looks::LookMetrics;
use crate::observe::metrics::sessions::SessionMetrics;
pub(crate) use crate::observe::metrics::sessions::SessionSample;
use crate::observe::metrics::store::StoreMetrics;
use crate::observe::metrics::traces::TraceMetrics;
use crate::observe::metrics::upstreams::UpstreamMetrics;
use crate::primitives::id::{AccountId, ActionName};
use crate::upstream::Upstream;

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
    signature_checks: SignatureChecks,
    keyed_calls: IntCounterVec,
    looks: LookMetrics,
    operator_actions: IntCounterVec,
    log_lines_dropped: IntCounter,
    /// Connections of callers and of operators.
    pub(crate) connections: ConnectionMetrics,
    config: ConfigMetrics,
    sessions: SessionMetrics,
    keys: KeyMetrics,
    lanes: LaneGauges,
    upstreams: UpstreamMetrics,
    store: StoreMetrics,
    journal: JournalMetrics,
    traces: TraceMetrics,
}

/// Connections to both ports.
pub(crate) struct ConnectionMetrics {
    pub(crate) open: IntGauge,
    /// Connections that ended with an error or were rejected, by kind. Input that is not HTTP is
    /// counted here.
    pub(crate) errors: IntCounterVec,
    /// Expiry of Flowgate's own certificates, by listener.
    pub(crate) certificate_expiry: IntGaugeVec,
}

/// Checks of callers' signatures.
struct SignatureChecks {
    by_result: IntCounterVec,
    /// The most frequent series, cached.
    verified: IntCounter,
    unverified: IntCounter,
}

/// Memory held by the bodies of calls, in bytes.
#[derive(Clone, Copy, Default)]
pub(crate) struct Bytes {
    pub(crate) queued: usize,
    pub(crate) unverified: usize,
}

/// The state that is read during a scrape.
#[derive(Default)]
pub(crate) struct Scrape<'a> {
    pub(crate) lanes: &'a [LaneSample<'a>],
    pub(crate) bytes: Bytes,
    pub(crate) upstreams: &'a [Arc<Upstream>],
    pub(crate) sessions: &'a [SessionSample<'a>],
    pub(crate) keys: KeySample,
}

/// Upper bounds in seconds. At 5/s a token is granted every 200 ms, so the low end separates "no
/// wait" from "one token". A hold is 30 s by default and 120 s at most.
const WAIT_BUCKETS: &[f64] = &[
    0.005, 0.05, 0.2, 0.5, 1.0, 2.0, 3.0, 5.0, 8.0, 10.0, 15.0, 20.0, 30.0, 60.0, 120.0,
];

// === impl Metrics ===

impl Metrics {
    pub(crate) fn new() -> Self {
        let r = Families::new();
        let call = &["account", "action"];
        let refused = "Calls that Flowgate refused itself, by reason.";
        let throttled =
            "Attempts that CAMS throttled, by its code and by the part of the answer that held it.";
        let pauses = "Planned length in seconds of each pause after a throttled attempt.";
        let turns = "Send permits granted to a client's calls of limited actions.";
        let cancelled = "Calls whose caller disconnected, by the stage of the call.";
        let shadow = "Calls in observe mode, by what the limit would have done to them.";
        let keyed = "Calls with an idempotency key, or taken for repetitions, by what they were answered with.";
        let actions = "Operator actions, by action.";
        let lines = "Log lines that were dropped because their reader was too slow.";
        Self {
            calls: Calls::new(&r),
            refused: r.counter("refused_total", refused, &["account", "reason"]),
            throttled: r.counter("throttled_total", throttled, &["account", "code", "source"]),
            pauses: r.histogram("pause_seconds", pauses, call, WAIT_BUCKETS),
            client_turns: r.counter("client_turns_total", turns, &["account", "client"]),
            cancelled: r.counter("cancelled_total", cancelled, &["account", "stage"]),
            shadow_decisions: r.counter(
                "shadow_decisions_total",
                shadow,
                &["account", "action", "decision"],
            ),
            signature_checks: SignatureChecks::new(&r),
            keyed_calls: r.counter("keyed_calls_total", keyed, &["account", "result"]),
            looks: LookMetrics::new(&r),
            operator_actions: r.counter("operator_actions_total", actions, &["action"]),
            log_lines_dropped: r.only_counter("log_lines_dropped_total", lines),
            connections: ConnectionMetrics::new(&r),
            config: ConfigMetrics::new(&r),
            sessions: SessionMetrics::new(&r),
            keys: KeyMetrics::new(&r),
            lanes: LaneGauges::new(&r),
            upstreams: UpstreamMetrics::new(&r),
            store: StoreMetrics::new(),
            journal: JournalMetrics::new(),
            traces: TraceMetrics::new(),
            families: describe_process(r),
        }
    }

    /// The series of an account and an action.
    pub(crate) fn calls(&self, labels: (AccountId, ActionName)) -> Arc<CallMetrics> {
        self.calls.of(labels)
    }

    /// The same, if they were used before.
    pub(crate) fn known_calls(&self, labels: &(AccountId, ActionName)) -> Option<Arc<CallMetrics>> {
        self.calls.known(labels)
    }

    /// Counts a call that ended before it was classified.
    pub(crate) fn ended(&self, account: &str, action: &str, outcome: Outcome) {
        self.calls.ended(account, action, outcome);
    }

    /// Counts a call with an idempotency key, or one that is taken for a repetition.
    pub(crate) fn keyed_call(&self, account: &str, result: &str) {
        self.keyed_calls.with_label_values(&[account, result]).inc();
    }

    /// Counts a call whose outcome has become unknown.
    pub(crate) fn lost_call(&self, account: &str) {
        self.looks.lost(account);
    }

    /// Counts a look for the flow of an unknown outcome.
    pub(crate) fn looked(&self, account: &str, result: &str) {
        self.looks.looked(account, result);
    }

    /// Counts an unknown outcome that has ended `after` its attempt.
    pub(crate) fn resolved(&self, account: &str, result: &str, after: Duration) {
        self.looks.resolved(account, result, after);
    }

    /// Counts a call that Flowgate refused itself.
    pub(crate) fn refused(&self, account: &str, refusal: &Refusal) {
        self.refused
            .with_label_values(&[account, refusal.kind.label()])
            .inc();
    }

    /// Counts an attempt that CAMS throttled.
    pub(crate) fn throttled(&self, account: &str, code: &str, source: &str) {
        self.throttled
            .with_label_values(&[account, code, source])
            .inc();
    }

    /// Observes the planned length of a lane's pause.
    pub(crate) fn paused(&self, account: &str, action: &str, pause: Duration) {
        self.pauses
            .with_label_values(&[account, action])
            .observe(pause.as_secs_f64());
    }

    /// Counts a send permit granted to a client's call of a limited action.
    pub(crate) fn client_turn(&self, account: &str, client: &str) {
        self.client_turns
            .with_label_values(&[account, client])
            .inc();
    }

    /// Counts a call whose caller disconnected at `stage`: `queued` or `in_flight`.
    pub(crate) fn cancelled(&self, account: &str, stage: &str) {
        self.cancelled.with_label_values(&[account, stage]).inc();
    }

    /// Counts what the limit would have done to a call: `passed`, `waited` or `refused`.
    pub(crate) fn shadow_decision(&self, account: &str, action: &str, decision: &str) {
        self.shadow_decisions
            .with_label_values(&[account, action, decision])
            .inc();
    }

    /// Counts a whole request whose signature is right, or cannot be checked.
    pub(crate) fn proved(&self, is_verified: bool) {
        let checks = &self.signature_checks;
        if is_verified {
            checks.verified.inc();
        } else {
            checks.unverified.inc();
        }
    }

    /// Counts a failed check of a caller's signature.
    pub(crate) fn signature_check(&self, result: &str) {
        let checks = &self.signature_checks.by_result;
        checks.with_label_values(&[result]).inc();
    }

    /// Counts an operator action: `pause`, `resume`, `flush` or `settle`.
    pub(crate) fn operator_action(&self, action: &str) {
        self.operator_actions.with_label_values(&[action]).inc();
    }

    /// Counts dropped log lines, of which there are `total` since the start. Returns how many are
    /// new.
    pub(crate) fn log_lines_dropped(&self, total: u64) -> u64 {
        let new = total.saturating_sub(self.log_lines_dropped.get());
        self.log_lines_dropped.inc_by(new);
        new
    }

    /// All metrics in Prometheus' text format, with this state.
    pub(crate) fn render(&self, scrape: &Scrape<'_>) -> String {
        let _serialised = self.lanes.scrape.lock();
        self.upstreams.set(scrape.upstreams);
        self.sessions
            .set(&self.config.credentials_end, scrape.sessions);
        self.keys.set(&scrape.keys);
        let Bytes { queued, unverified } = scrape.bytes;
        self.lanes
            .queued_bytes
            .set(i64::try_from(queued).unwrap_or(i64::MAX));
        self.lanes
            .unverified_bytes
            .set(i64::try_from(unverified).unwrap_or(i64::MAX));
        self.lanes.set(scrape.lanes);
        self.families.render()
    }
}

// === impl SignatureChecks ===

impl SignatureChecks {
    fn new(r: &Families) -> Self {
        let checks = "Checks of callers' signatures, by result.";
        let by_result = r.counter("signature_checks_total", checks, &["result"]);
        Self {
            verified: by_result.with_label_values(&["ok"]),
            unverified: by_result.with_label_values(&["unverified"]),
            by_result,
        }
    }
}

// === impl ConnectionMetrics ===

impl ConnectionMetrics {
    fn new(r: &Families) -> Self {
        let open = "Open connections to the proxy port and the admin port.";
        let errors = "Connections that ended with an error or were rejected, by kind.";
        let expiry = "Expiry of Flowgate's own certificate, in seconds since 1970, by listener.";
        Self {
            open: r.only_gauge("connections", open),
            errors: r.counter("connection_errors_total", errors, &["kind"]),
            certificate_expiry: r.gauge("certificate_expiry_timestamp_seconds", expiry, &["name"]),
        }
    }
}

/// Registers the build information and the process metrics of the operating system.
fn describe_process(r: Families) -> Families {
    let help = "Always 1; the label holds the version of Flowgate.";
    let build = r.gauge("build_info", help, &["version"]);
    build.with_label_values(&[env!("CARGO_PKG_VERSION")]).set(1);
    r.add(Box::new(ProcessCollector::for_self()));
    r
}

#[cfg(test)]
mod tests;

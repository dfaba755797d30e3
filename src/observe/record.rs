//! Records a call that has ended: one outcome in the metrics, one line in the log, one entry in the
//! list of recent calls. A record that is dropped before the call has ended counts as a caller that
//! disconnected.

mod recent;
mod way;

use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use hyper::StatusCode;
use hyper::header::HeaderMap;
use tokio::time::Instant;

use crate::acs::error_body;
use crate::error::{ClaimedIdentity, Kind, Outcome, Refusal};
use crate::observe::metrics::{CallMetrics, Metrics};
use crate::observe::otlp::{Call, Exporter};
use crate::observe::record::recent::EndedCall;
pub(crate) use crate::observe::record::recent::{CallDetails, CallView, Filter, Recent};
pub(crate) use crate::observe::record::way::{Arrival, AttemptNote, Way};
use crate::observe::trace::{Kind as StepKind, Timestamp, Trace};
use crate::operation::Operation;
use crate::primitives::id::AccountId;
use crate::primitives::text::{capped, capped_at, millis, whole_millis};

/// Where the results of calls are reported.
pub(crate) struct CallTelemetry {
    pub(crate) metrics: Arc<Metrics>,
    /// `None`: traces are not exported.
    pub(crate) otlp: Option<Exporter>,
    /// The latest calls that ended.
    pub(crate) recent: Recent,
}

/// The record of one call.
pub(crate) struct Record {
    telemetry: Arc<CallTelemetry>,
    arrived: Instant,
    /// Flowgate's request id, in refusals and in the log.
    request_id: Arc<str>,
    /// The caller's address; `None` for a Unix socket.
    from: Option<IpAddr>,
    claimed_identity: Option<ClaimedIdentity>,
    operation: Option<Arc<Operation>>,
    /// The series of the operation's account and action.
    metrics: Option<Arc<CallMetrics>>,
    /// The name of the flow, if the call has one; capped.
    flow_name: Option<Box<str>>,
    stage: Stage,
    attempts: u32,
    /// Milliseconds from the arrival to the latest send permit. A `Duration` would make the future of
    /// a call larger.
    waited_ms: Option<u32>,
    /// CAMS's request id of the latest attempt.
    cams_request_id: Option<Box<str>>,
    trace: Option<Box<Trace>>,
    /// Only for a call that waited or whose attempt failed.
    way: Option<Box<Way>>,
    order: Option<Box<OrderNote>>,
    ended: bool,
}

/// What the log line of a call with a record has of it.
struct OrderNote {
    /// The beginning of the record's name, in hexadecimal; never the key.
    once: Box<str>,
    /// Whether a repetition of the call finds its record.
    is_repeatable: bool,
    /// Flowgate's id of the order's first request, if that is another one.
    first_request_id: Option<Box<str>>,
}

/// The wait and the attempts of a call, for the headers of its answer.
#[derive(Clone, Copy, Debug)]
pub(crate) struct CallStats {
    /// Time from its arrival to the permit of its last attempt.
    pub(crate) waited: Duration,
    /// Number of attempts.
    pub(crate) attempts: u32,
}

/// What is noted of a call besides.
#[derive(Clone, Default)]
pub(crate) struct CallNotes {
    /// CAMS's request id of the latest attempt.
    cams_request_id: Option<Box<str>>,
    way: Option<Box<Way>>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Stage {
    Arriving,
    Queued,
    InFlight,
}

/// How a call ended, for the log.
struct CallEnd<'a> {
    outcome: Outcome,
    verdict: &'a str,
    status: u16,
    detail: &'a str,
}

/// The code of a successful attempt.
const OK: &str = "OK";

/// The longest `detail` in bytes. Flowgate's own text, in which each part from outside is bounded:
/// the longest names the services of a chain of roles, their status, code and request id.
const MAX_DETAIL: usize = 1000;
/// The same for the calls that are kept in memory.
const MAX_KEPT_DETAIL: usize = 400;

// === impl Record ===

impl Record {
    pub(crate) fn new(telemetry: Arc<CallTelemetry>, from: Option<IpAddr>) -> Self {
        Self {
            telemetry,
            arrived: Instant::now(),
            request_id: error_body::shared_request_id(),
            from,
            claimed_identity: None,
            operation: None,
            metrics: None,
            flow_name: None,
            stage: Stage::Arriving,
            attempts: 0,
            waited_ms: None,
            cams_request_id: None,
            trace: None,
            way: None,
            order: None,
            ended: false,
        }
    }

    /// The record of a call that continues without its caller: it counts the waits and the attempts,
    /// and not the end, which is that of each caller.
    pub(crate) fn background(telemetry: Arc<CallTelemetry>, request_id: &str) -> Self {
        let mut record = Self::new(telemetry, None);
        record.request_id = request_id.into();
        record.ended = true;
        record
    }

    /// The call has a record, whose name begins with `once`.
    pub(crate) fn has_order(&mut self, once: Box<str>, is_repeatable: bool) {
        let first_request_id = None;
        self.order = Some(Box::new(OrderNote {
            once,
            is_repeatable,
            first_request_id,
        }));
    }

    /// The record is that of an order with this first request, which may be this one.
    pub(crate) fn repeats(&mut self, first_request_id: &str) {
        if let Some(order) = &mut self.order {
            let is_other = *first_request_id != *self.request_id;
            order.first_request_id = is_other.then(|| first_request_id.into());
            self.stage = Stage::Queued;
        }
    }

    /// Takes over the attempts, the wait and the notes of the call that answered for this one.
    pub(crate) fn follow(&mut self, attempts: u32, waited: Duration, notes: CallNotes) {
        self.stage = Stage::Queued;
        self.cams_request_id = notes.cams_request_id;
        self.way = notes.way;
        self.count(CallStats { waited, attempts });
    }

    /// Its answer is that of an earlier call, with this `RequestId`.
    pub(crate) fn replays(&mut self, request_id: Option<&str>) {
        let other = request_id.filter(|id| **id != *self.request_id);
        self.cams_request_id = other.map(Into::into);
    }

    /// An attempt of the call that answers for this one may have left, and its answer is not known.
    pub(crate) fn follows_attempt(&mut self) {
        self.stage = Stage::InFlight;
    }

    /// Counts the attempts of the call of its record. A repetition does not count them as its own.
    pub(crate) fn count(&mut self, stats: CallStats) {
        if self.first_request_id().is_none() && stats.attempts > 0 {
            self.attempts = stats.attempts;
            self.waited_ms = Some(whole_millis(stats.waited));
        }
    }

    /// Joins the trace of the caller, or begins one for `percent` of the other calls.
    pub(crate) fn start_trace(&mut self, headers: &HeaderMap, wall: SystemTime, percent: u32) {
        let arrived = Timestamp {
            wall,
            at: self.arrived,
        };
        let is_exported = self.telemetry.otlp.is_some();
        let trace = Trace::of(headers, is_exported, arrived, || {
            fastrand::u32(..100) < percent
        });
        self.trace = trace.map(Box::new);
        tracing::debug!(
            request_id = &*self.request_id,
            from = self.from.map(tracing::field::display),
            "call has arrived"
        );
    }

    pub(crate) fn request_id(&self) -> &str {
        &self.request_id
    }

    /// The series of a queued call's account and action.
    pub(crate) fn metrics(&self) -> Arc<CallMetrics> {
        let metrics = self.metrics.as_ref();
        metrics.expect("a call is queued before it is sent").clone()
    }

    pub(crate) fn attempts(&self) -> u32 {
        self.attempts
    }

    fn waited(&self) -> Option<Duration> {
        self.waited_ms.map(u64::from).map(Duration::from_millis)
    }

    /// The wait and the attempts so far.
    pub(crate) fn service(&self) -> CallStats {
        CallStats {
            waited: self.waited().unwrap_or_default(),
            attempts: self.attempts,
        }
    }

    /// Notes the claimed caller.
    pub(crate) fn set_claimed_identity(&mut self, claimed_identity: ClaimedIdentity) {
        tracing::debug!(
            request_id = &*self.request_id,
            claims = claimed_identity.key.masked(),
            account = claimed_identity.account.as_ref().map(AccountId::as_str),
            "call is identified by its head"
        );
        self.claimed_identity = Some(claimed_identity);
    }

    /// Notes the name of the flow.
    pub(crate) fn set_flow_name(&mut self, flow_name: Option<&str>) {
        self.flow_name = flow_name.map(|name| capped(name).into());
    }

    /// The name of the flow, if it is known; capped.
    pub(crate) fn flow_name(&self) -> Option<&str> {
        self.flow_name.as_deref()
    }

    /// The call is classified and queued.
    pub(crate) fn queued(&mut self, operation: Arc<Operation>) {
        self.operation = Some(operation);
        self.stage = Stage::Queued;
        self.trace(|trace, now| trace.begin(StepKind::Queue, now));
        if let Some(operation) = self.operation.as_deref() {
            tracing::debug!(
                request_id = &*self.request_id,
                account = operation.account_label(),
                action = operation.action_label(),
                client = capped(operation.client.as_str()),
                hold_ms = millis(operation.hold),
                limited = operation.limit.is_some(),
                "call is queued"
            );
        }
    }

    /// The series of the call's account and action, which its lane has looked up.
    pub(crate) fn set_metrics(&mut self, metrics: Arc<CallMetrics>) {
        self.metrics = Some(metrics);
    }

    /// The call waits for a session of its account. Returns when the wait began.
    pub(crate) fn waits_for_session(&mut self) -> Instant {
        self.trace(|trace, now| trace.begin(StepKind::Session, now));
        tracing::debug!(
            request_id = &*self.request_id,
            "call waits for a session of its account"
        );
        Instant::now()
    }

    /// The wait that began then has ended, with a session or without one.
    pub(crate) fn waited_for_session(&mut self, began: Instant) {
        let waited = whole_millis(began.elapsed());
        let session_ms = &mut self.way.get_or_insert_default().session_ms;
        *session_ms = session_ms.saturating_add(waited);
        self.trace(|trace, now| trace.begin(StepKind::Queue, now));
        tracing::debug!(
            request_id = &*self.request_id,
            waited_ms = waited,
            "call has waited for a session"
        );
    }

    /// What was noted so far, for another record.
    pub(crate) fn take_notes(&mut self) -> CallNotes {
        CallNotes {
            cams_request_id: self.cams_request_id.take(),
            way: self.way.take(),
        }
    }

    /// Where the limiter notes the queue that the call finds.
    pub(crate) fn way(&mut self) -> &mut Option<Box<Way>> {
        &mut self.way
    }

    /// The call is queued again, after this back-off.
    pub(crate) fn queued_again(&mut self, after: Duration) {
        self.stage = Stage::Queued;
        let latest = self.way.as_mut().and_then(|way| way.attempts.last_mut());
        if let Some(latest) = latest {
            latest.back_off_ms = Some(whole_millis(after));
        }
        self.trace(|trace, now| trace.back_off(after, now));
        tracing::debug!(
            request_id = &*self.request_id,
            after_ms = millis(after),
            "call is queued again"
        );
    }

    /// The call got a send permit, this long after its arrival.
    pub(crate) fn permit_granted(&mut self, age: Duration) {
        self.trace(Trace::end);
        tracing::debug!(
            request_id = &*self.request_id,
            waited_ms = millis(age),
            "call may be sent"
        );
        if let Some(operation) = self.operation.as_deref()
            && operation.limit.is_some()
        {
            self.telemetry
                .metrics
                .client_turn(operation.account_label(), operation.client.as_str());
        }
        let is_first = self.waited_ms.replace(whole_millis(age)).is_none();
        if is_first && let Some(metrics) = &self.metrics {
            metrics.waited(age);
        }
    }

    /// An attempt with these headers is about to be sent. The headers of a relayed call are not
    /// changed.
    pub(crate) fn sent(&mut self, headers: &mut HeaderMap, is_relayed: bool) {
        self.attempts += 1;
        self.stage = Stage::InFlight;
        tracing::debug!(
            request_id = &*self.request_id,
            attempt = self.attempts,
            "attempt is signed and sent"
        );
        self.trace(|trace, now| {
            trace.begin(StepKind::Attempt, now);
            if !is_relayed {
                trace.insert_traceparent(headers);
            }
        });
    }

    /// The attempt was not sent.
    pub(crate) fn unsent(&mut self) {
        self.attempts -= 1;
        self.stage = Stage::Queued;
        self.failed(None, None);
        self.trace(Trace::unsent);
        tracing::debug!(request_id = &*self.request_id, "attempt was not sent");
    }

    /// The attempt was judged. `code` is CAMS's code, or the reason of an unknown outcome.
    pub(crate) fn judged(&mut self, code: &str, cams_request_id: Option<&str>) {
        self.cams_request_id = cams_request_id.map(Into::into);
        if code != OK {
            self.failed(Some(capped(code)), cams_request_id.map(capped));
        }
        self.trace(|trace, now| trace.judged(code, cams_request_id, now));
        tracing::debug!(
            request_id = &*self.request_id,
            attempt = self.attempts,
            verdict = capped(code),
            cams_request_id = cams_request_id.map(capped),
            "attempt is judged"
        );
    }

    /// Notes an attempt that failed, or was not sent if it has no code.
    fn failed(&mut self, code: Option<&str>, cams_request_id: Option<&str>) {
        let attempt = AttemptNote {
            permitted_ms: self.waited_ms.unwrap_or_default(),
            ended_ms: whole_millis(self.arrived.elapsed()),
            code: code.map(Into::into),
            cams_request_id: cams_request_id.map(Into::into),
            back_off_ms: None,
        };
        self.way.get_or_insert_default().failed(attempt);
    }

    /// CAMS's answer is passed on to the caller.
    pub(crate) fn answered(&mut self, outcome: Outcome, code: &str, status: StatusCode) {
        self.end(&CallEnd {
            outcome,
            verdict: code,
            status: status.as_u16(),
            detail: "",
        });
    }

    /// Flowgate refuses the call. Returns the refusal for the caller: if Flowgate stops while an
    /// attempt is in flight, its outcome is unknown.
    pub(crate) fn refused(&mut self, mut refusal: Refusal) -> Refusal {
        if self.stage == Stage::InFlight && matches!(refusal.kind, Kind::Draining | Kind::Internal)
        {
            let action = self.operation.as_ref().map_or("", |op| op.action.as_str());
            refusal = Refusal::unknown("Flowgate stopped before the answer came", action, None);
        }
        self.claimed_identity = self
            .claimed_identity
            .take()
            .or(refusal.claimed_identity.take());
        if let (Some(queued), Some(way)) = (refusal.queued, &mut self.way) {
            way.refused_at_arrival(queued);
        }
        let (account, _) = self.labels();
        self.telemetry.metrics.refused(account, &refusal);
        // A call that can be repeated is counted when its record ends: each repetition gets this, too.
        if refusal.kind == Kind::OutcomeUnknown && !self.is_repeatable() {
            self.telemetry.metrics.lost_call(account);
        }
        self.end(&CallEnd {
            outcome: refusal.kind.outcome(),
            verdict: refusal.kind.code(),
            status: refusal.kind.status().as_u16(),
            detail: &refusal.message,
        });
        refusal
    }

    /// The caller has disconnected.
    pub(crate) fn cancelled(&mut self) {
        let stage = if self.stage == Stage::InFlight {
            "in_flight"
        } else {
            "queued"
        };
        let (account, _) = self.labels();
        self.telemetry.metrics.cancelled(account, stage);
        self.end(&CallEnd {
            outcome: Outcome::Cancelled,
            verdict: "cancelled",
            status: 0,
            detail: stage,
        });
    }

    fn end(&mut self, ending: &CallEnd<'_>) {
        self.ended = true;
        let (account, action) = self.labels();
        match &self.metrics {
            Some(metrics) => metrics.ended(ending.outcome),
            None => self
                .telemetry
                .metrics
                .ended(account, action, ending.outcome),
        }
        let operation = self.operation.as_deref();
        tracing::info!(
            request_id = &*self.request_id,
            trace_id = self.trace.as_ref().map(|trace| trace.id()),
            account,
            action,
            from = self.from.map(tracing::field::display),
            client = operation.map(|operation| capped(operation.client.as_str())),
            // Only until the call is classified: the claimed key, verified or not.
            claims = self
                .claimed_identity
                .as_ref()
                .filter(|_| operation.is_none())
                .map(|claimed_identity| claimed_identity.key.masked()),
            tenant = operation
                .map(|operation| capped(operation.tenant.as_str()))
                .filter(|tenant| !tenant.is_empty()),
            outcome = ending.outcome.label(),
            verdict = capped(ending.verdict),
            status = ending.status,
            attempts = self.attempts,
            waited_ms = self
                .waited()
                .or_else(|| operation.map(|_| self.arrived.elapsed()))
                .map(millis),
            session_ms = self
                .way
                .as_ref()
                .map(|way| way.session_ms)
                .filter(|ms| *ms > 0),
            took_ms = millis(self.arrived.elapsed()),
            cams_request_id = self.cams_request_id.as_deref().map(capped),
            once = self.order.as_ref().map(|order| &*order.once),
            first_request_id = self.first_request_id(),
            detail = Some(capped_at(ending.detail, MAX_DETAIL)).filter(|detail| !detail.is_empty()),
            "call"
        );
        self.export(ending);
        self.remember(ending);
    }

    /// Exports the spans of the call, if it has any.
    fn export(&mut self, ending: &CallEnd<'_>) {
        let spans = self.trace.take().and_then(|trace| trace.into_spans());
        if let (Some(otlp), Some(spans)) = (&self.telemetry.otlp, spans) {
            let (account, action) = self.labels();
            otlp.export(&Call {
                spans,
                ended: Instant::now(),
                action,
                account,
                client: self
                    .operation
                    .as_deref()
                    .map_or("", |operation| capped(operation.client.as_str())),
                request_id: &self.request_id,
                outcome: ending.outcome,
                code: capped(ending.verdict),
                status: ending.status,
            });
        }
    }

    /// Updates the trace, if the call has one.
    fn trace(&mut self, note: impl FnOnce(&mut Trace, Instant)) {
        if let Some(trace) = &mut self.trace {
            note(trace, Instant::now());
        }
    }

    fn remember(&mut self, ending: &CallEnd<'_>) {
        let took = self.arrived.elapsed();
        self.telemetry.recent.push(EndedCall {
            request_id: self.request_id.clone(),
            cams_request_id: self.cams_request_id.take(),
            first_request_id: self.first_request_id().map(Into::into),
            at: self.arrived + took,
            operation: self.operation.clone(),
            account: self
                .claimed_identity
                .as_ref()
                .and_then(|claimed_identity| claimed_identity.account.clone()),
            flow_name: self.flow_name.take(),
            outcome: ending.outcome,
            is_lost: ending.outcome == Outcome::Unknown
                && (!self.is_repeatable() || self.attempts > 0 && !self.lacks_answer()),
            code: Some(capped(ending.verdict))
                .filter(|code| *code != OK)
                .map(Into::into),
            status: ending.status,
            attempts: self.attempts,
            waited: self.waited().unwrap_or(if self.operation.is_some() {
                took
            } else {
                Duration::ZERO
            }),
            took,
            was_sent: self.waited_ms.is_some() && self.attempts > 0 && !self.lacks_answer(),
            detail: Some(capped_at(ending.detail, MAX_KEPT_DETAIL))
                .filter(|detail| !detail.is_empty())
                .map(Into::into),
            way: self.way.take(),
        });
    }

    fn is_repeatable(&self) -> bool {
        self.order.as_ref().is_some_and(|order| order.is_repeatable)
    }

    /// Whether the call of its record was sent, and has no answer for this caller.
    fn lacks_answer(&self) -> bool {
        self.order.is_some() && self.stage == Stage::InFlight
    }

    fn first_request_id(&self) -> Option<&str> {
        self.order
            .as_ref()
            .and_then(|order| order.first_request_id.as_deref())
    }

    fn labels(&self) -> (&str, &str) {
        match &self.operation {
            Some(operation) => (operation.account_label(), operation.action_label()),
            None => {
                let account = self
                    .claimed_identity
                    .as_ref()
                    .and_then(|claimed_identity| claimed_identity.account.as_ref());
                (account.map_or("unknown", AccountId::as_str), "other")
            }
        }
    }
}

impl Drop for Record {
    fn drop(&mut self) {
        if !self.ended {
            self.cancelled();
        }
    }
}

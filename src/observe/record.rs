//! What is said of a call when it has ended: one outcome in the metrics, one line in the log, one of the page's last calls. A record that is dropped
//! without an end is a caller that hung up.

mod recent;

use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use hyper::StatusCode;
use hyper::header::HeaderMap;
use tokio::time::Instant;

use crate::acs::error_body;
use crate::error::{Claimant, Kind, Outcome, Refusal};
use crate::observe::metrics::{CallMetrics, Metrics};
use crate::observe::otlp::{Call, Exporter};
use crate::observe::record::recent::Ended;
pub(crate) use crate::observe::record::recent::Recent;
use crate::observe::trace::{Kind as Step, Moment, Trace};
use crate::operation::Operation;
use crate::primitives::id::AccountId;
use crate::primitives::text::{capped, millis};

/// Where the ends of calls are reported.
pub(crate) struct Sinks {
    pub(crate) metrics: Arc<Metrics>,
    /// None: traces go nowhere.
    pub(crate) otlp: Option<Exporter>,
    /// The calls that ended last.
    pub(crate) recent: Recent,
}

/// One call so far.
pub(crate) struct Record {
    sinks: Arc<Sinks>,
    arrived: Instant,
    /// Flowgate's own name for the call, in its answers and in the log.
    request_id: Box<str>,
    /// The address that it came from; none for a Unix socket.
    from: Option<IpAddr>,
    claimant: Option<Claimant>,
    operation: Option<Arc<Operation>>,
    /// What is counted of such operations.
    metrics: Option<Arc<CallMetrics>>,
    /// How the flow is to be called, if it is one.
    flow_name: Option<Box<str>>,
    stage: Stage,
    attempts: u32,
    /// From the arrival to the latest turn.
    waited: Option<Duration>,
    /// CAMS's name for the latest attempt.
    cams_request_id: Option<Box<str>>,
    trace: Option<Box<Trace>>,
    ended: bool,
}

/// What a call took to get CAMS's answer.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Service {
    /// From its arrival to the turn of the attempt that CAMS answered.
    pub(crate) waited: Duration,
    /// How often it was sent.
    pub(crate) attempts: u32,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Stage {
    Arriving,
    Queued,
    InFlight,
}

/// How a call ended, for the log.
struct Ending<'a> {
    outcome: Outcome,
    verdict: &'a str,
    status: u16,
    detail: &'a str,
}

// === impl Record ===

impl Record {
    pub(crate) fn new(sinks: Arc<Sinks>, from: Option<IpAddr>) -> Self {
        Self {
            sinks,
            arrived: Instant::now(),
            request_id: error_body::request_id().into(),
            from,
            claimant: None,
            operation: None,
            metrics: None,
            flow_name: None,
            stage: Stage::Arriving,
            attempts: 0,
            waited: None,
            cams_request_id: None,
            trace: None,
            ended: false,
        }
    }

    /// The call's head is here: it may be part of a trace.
    pub(crate) fn traced(&mut self, headers: &HeaderMap, wall: SystemTime, percent: u32) {
        let arrived = Moment {
            wall,
            at: self.arrived,
        };
        let begins = || fastrand::u32(..100) < percent;
        self.trace = Trace::of(headers, self.sinks.otlp.is_some(), arrived, begins).map(Box::new);
    }

    pub(crate) fn request_id(&self) -> &str {
        &self.request_id
    }

    pub(crate) fn attempts(&self) -> u32 {
        self.attempts
    }

    /// What it has taken so far.
    pub(crate) fn service(&self) -> Service {
        Service {
            waited: self.waited.unwrap_or_default(),
            attempts: self.attempts,
        }
    }

    /// The caller has named itself.
    pub(crate) fn claimed(&mut self, claimant: Claimant) {
        self.claimant = Some(claimant);
    }

    /// How the flow is to be called.
    pub(crate) fn named(&mut self, flow_name: Option<&str>) {
        self.flow_name = flow_name.map(|name| capped(name).into());
    }

    /// As far as it is known, and not at any length.
    pub(crate) fn flow_name(&self) -> Option<&str> {
        self.flow_name.as_deref()
    }

    /// The call is known and waits.
    pub(crate) fn queued(&mut self, operation: Arc<Operation>, metrics: Arc<CallMetrics>) {
        self.operation = Some(operation);
        self.metrics = Some(metrics);
        self.stage = Stage::Queued;
        self.trace(|trace, now| trace.begin(Step::Queue, now));
    }

    /// It was refused and waits again, after so long.
    pub(crate) fn queued_again(&mut self, after: Duration) {
        self.stage = Stage::Queued;
        self.trace(|trace, now| trace.back_off(after, now));
    }

    /// Its turn came, so long after it arrived.
    pub(crate) fn turn(&mut self, age: Duration) {
        self.trace(Trace::end);
        if let Some(operation) = self
            .operation
            .as_deref()
            .filter(|operation| operation.limit.is_some())
        {
            self.sinks
                .metrics
                .client_turn(operation.account_label(), operation.client.as_str());
        }
        if self.waited.replace(age).is_none() {
            self.metrics.iter().for_each(|metrics| metrics.waited(age));
        }
    }

    /// An attempt goes out, with this head. A relayed call's goes as it came.
    pub(crate) fn sent(&mut self, headers: &mut HeaderMap, is_relayed: bool) {
        self.attempts += 1;
        self.stage = Stage::InFlight;
        self.trace(|trace, now| {
            trace.begin(Step::Attempt, now);
            if !is_relayed {
                trace.onto(headers);
            }
        });
    }

    /// It did not, after all.
    pub(crate) fn unsent(&mut self) {
        self.attempts -= 1;
        self.stage = Stage::Queued;
        self.trace(Trace::unsent);
    }

    /// An attempt has come back, with CAMS's code, or why there is none, and CAMS's name for it.
    pub(crate) fn judged(&mut self, code: &str, cams_request_id: Option<&str>) {
        self.cams_request_id = cams_request_id.map(Into::into);
        self.trace(|trace, now| trace.judged(code, cams_request_id, now));
    }

    /// CAMS's answer is passed on.
    pub(crate) fn answered(&mut self, outcome: Outcome, code: &str, status: StatusCode) {
        self.end(&Ending {
            outcome,
            verdict: code,
            status: status.as_u16(),
            detail: "",
        });
    }

    /// Flowgate answers. What was in flight when the grace ended is unknown, whatever the reason says.
    pub(crate) fn refused(&mut self, mut refusal: Refusal) -> Refusal {
        if self.stage == Stage::InFlight && matches!(refusal.kind, Kind::Draining | Kind::Internal)
        {
            refusal = Refusal::unknown("Flowgate stopped before the answer came");
        }
        self.claimant = self.claimant.take().or(refusal.claimant.take());
        let (account, _) = self.labels();
        self.sinks.metrics.refused(account, &refusal);
        self.end(&Ending {
            outcome: refusal.kind.outcome(),
            verdict: refusal.kind.code(),
            status: refusal.kind.status().as_u16(),
            detail: &refusal.message,
        });
        refusal
    }

    /// The caller has hung up.
    pub(crate) fn cancelled(&mut self) {
        let stage = if self.stage == Stage::InFlight {
            "in_flight"
        } else {
            "queued"
        };
        let (account, _) = self.labels();
        self.sinks.metrics.cancelled(account, stage);
        let outcome = Outcome::Cancelled;
        self.end(&Ending {
            outcome,
            verdict: "cancelled",
            status: 0,
            detail: stage,
        });
    }

    fn end(&mut self, ending: &Ending<'_>) {
        self.ended = true;
        let (account, action) = self.labels();
        match &self.metrics {
            Some(metrics) => metrics.ended(ending.outcome),
            None => self.sinks.metrics.ended(account, action, ending.outcome),
        }
        let operation = self.operation.as_deref();
        tracing::info!(
            request_id = self.request_id,
            trace_id = self.trace.as_ref().map(|trace| trace.id()),
            account,
            action,
            from = self.from.map(tracing::field::display),
            client = operation.map(|operation| capped(operation.client.as_str())),
            // Until the call is known: whose key it names, proven or not.
            claims = self
                .claimant
                .as_ref()
                .filter(|_| operation.is_none())
                .map(|claimant| claimant.key.masked()),
            tenant = operation
                .map(|operation| capped(operation.tenant.as_str()))
                .filter(|tenant| !tenant.is_empty()),
            outcome = ending.outcome.label(),
            verdict = capped(ending.verdict),
            status = ending.status,
            attempts = self.attempts,
            waited_ms = self
                .waited
                .or_else(|| operation.map(|_| self.arrived.elapsed()))
                .map(millis),
            took_ms = millis(self.arrived.elapsed()),
            cams_request_id = self.cams_request_id.as_deref().map(capped),
            detail = Some(capped(ending.detail)).filter(|detail| !detail.is_empty()),
            "call"
        );
        self.export(ending);
        self.remember(ending);
    }

    /// Gives the call's spans away, if it has any.
    fn export(&mut self, ending: &Ending<'_>) {
        let spans = self.trace.take().and_then(|trace| trace.into_spans());
        if let (Some(otlp), Some(spans)) = (&self.sinks.otlp, spans) {
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

    /// Notes a step of the call's trace, if it has one.
    fn trace(&mut self, note: impl FnOnce(&mut Trace, Instant)) {
        if let Some(trace) = &mut self.trace {
            note(trace, Instant::now());
        }
    }

    fn remember(&mut self, ending: &Ending<'_>) {
        let took = self.arrived.elapsed();
        self.sinks.recent.push(Ended {
            at: self.arrived + took,
            operation: self.operation.clone(),
            account: self
                .claimant
                .as_ref()
                .and_then(|claimant| claimant.account.clone()),
            flow_name: self.flow_name.take(),
            outcome: ending.outcome,
            code: capped(ending.verdict).into(),
            status: ending.status,
            attempts: self.attempts,
            waited: self.waited.unwrap_or(if self.operation.is_some() {
                took
            } else {
                Duration::ZERO
            }),
            took,
        });
    }

    fn labels(&self) -> (&str, &str) {
        match &self.operation {
            Some(operation) => (operation.account_label(), operation.action_label()),
            None => {
                let account = self
                    .claimant
                    .as_ref()
                    .and_then(|claimant| claimant.account.as_ref());
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

//! What is said of a call when it has ended: one outcome in the metrics, one line in the log. A record that is dropped
//! without an end is a caller that hung up.

use std::sync::Arc;
use std::time::Duration;

use hyper::StatusCode;
use tokio::time::Instant;

use crate::app::Parts;
use crate::error::{Kind, Outcome, Refusal};
use crate::flow::classify::Operation;
use crate::flow::identify::Claim;
use crate::flow::judge::Verdict;
use crate::flow::reply;
use crate::id::AccountId;

/// One call so far.
pub(crate) struct Record {
    parts: Arc<Parts>,
    arrived: Instant,
    /// Flowgate's own name for the call, in its answers and in the log.
    request_id: String,
    /// The account that the caller's key belongs to, proven or not, if the configuration names it.
    account: Option<AccountId>,
    operation: Option<Arc<Operation>>,
    stage: Stage,
    attempts: u32,
    waited: Duration,
    ended: bool,
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
    cams_request_id: Option<&'a str>,
    detail: &'a str,
}

// === impl Record ===

impl Record {
    pub(crate) fn new(parts: Arc<Parts>) -> Self {
        Self {
            parts,
            arrived: Instant::now(),
            request_id: reply::request_id(),
            account: None,
            operation: None,
            stage: Stage::Arriving,
            attempts: 0,
            waited: Duration::ZERO,
            ended: false,
        }
    }

    pub(crate) fn request_id(&self) -> &str {
        &self.request_id
    }

    pub(crate) fn attempts(&self) -> u32 {
        self.attempts
    }

    /// The caller has named itself.
    pub(crate) fn claimed(&mut self, claim: &Claim) {
        self.account = claim.is_known().then(|| claim.account().clone());
    }

    /// The call is known and waits.
    pub(crate) fn queued(&mut self, operation: Arc<Operation>) {
        self.operation = Some(operation);
        self.stage = Stage::Queued;
    }

    /// It was refused by throttling and waits again.
    pub(crate) fn queued_again(&mut self) {
        self.stage = Stage::Queued;
    }

    /// Its turn came, so long after it arrived.
    pub(crate) fn turn(&mut self, age: Duration) {
        if self.attempts == 0 {
            self.waited = age;
            let (account, action) = self.labels();
            self.parts.metrics.waited(account, action, age);
        }
    }

    /// An attempt goes out.
    pub(crate) fn sent(&mut self) {
        self.attempts += 1;
        self.stage = Stage::InFlight;
    }

    /// It did not, after all.
    pub(crate) fn unsent(&mut self) {
        self.attempts -= 1;
        self.stage = Stage::Queued;
    }

    /// CAMS's answer is passed on.
    pub(crate) fn answered(&mut self, verdict: &Verdict, status: StatusCode) {
        let (outcome, code, cams_request_id) = match verdict {
            Verdict::Ok { code, request_id } => (Outcome::Ok, code.as_str(), request_id.as_deref()),
            Verdict::UpstreamError { code, request_id } => {
                (Outcome::UpstreamError, code.as_str(), request_id.as_deref())
            }
            Verdict::Throttled { code, request_id, .. } => (Outcome::Throttled, code.as_str(), request_id.as_deref()),
            Verdict::Credentials { code, request_id } => (Outcome::UpstreamError, code.as_str(), request_id.as_deref()),
            Verdict::Unknown { reason } => (Outcome::Unknown, *reason, None),
        };
        self.end(&Ending { outcome, verdict: code, status: status.as_u16(), cams_request_id, detail: "" });
    }

    /// Flowgate answers. What was in flight when the grace ended is unknown, whatever the reason says.
    pub(crate) fn refused(&mut self, mut refusal: Refusal) -> Refusal {
        if self.stage == Stage::InFlight && matches!(refusal.kind, Kind::Draining | Kind::Internal) {
            refusal = reply::unknown("Flowgate stopped before the answer came");
        }
        let (account, _) = self.labels();
        self.parts.metrics.refused(account, &refusal);
        self.end(&Ending {
            outcome: refusal.kind.outcome(),
            verdict: refusal.kind.code(),
            status: refusal.kind.status().as_u16(),
            cams_request_id: None,
            detail: &refusal.message,
        });
        refusal
    }

    /// The caller has hung up.
    pub(crate) fn cancelled(&mut self) {
        let stage = if self.stage == Stage::InFlight { "in_flight" } else { "queued" };
        let (account, _) = self.labels();
        self.parts.metrics.cancelled(account, stage);
        let outcome = Outcome::Cancelled;
        self.end(&Ending { outcome, verdict: "cancelled", status: 0, cams_request_id: None, detail: stage });
    }

    fn end(&mut self, ending: &Ending<'_>) {
        self.ended = true;
        let (account, action) = self.labels();
        self.parts.metrics.ended(account, action, ending.outcome);
        let operation = self.operation.as_deref();
        tracing::info!(
            request_id = self.request_id,
            account,
            action,
            client = operation.map(|operation| capped(operation.client.as_str())),
            tenant = operation.map(|operation| capped(operation.tenant.as_str())).filter(|tenant| !tenant.is_empty()),
            outcome = ending.outcome.label(),
            verdict = capped(ending.verdict),
            status = ending.status,
            attempts = self.attempts,
            waited_ms = millis(self.waited),
            took_ms = millis(self.arrived.elapsed()),
            cams_request_id = ending.cams_request_id.map(capped),
            detail = Some(capped(ending.detail)).filter(|detail| !detail.is_empty()),
            "call"
        );
    }

    fn labels(&self) -> (&str, &str) {
        match &self.operation {
            Some(operation) => (operation.account_label(), operation.action_label()),
            None => (self.account.as_ref().map_or("unknown", AccountId::as_str), "other"),
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

/// Text from outside is logged as an escaped field and not at any length.
fn capped(text: &str) -> &str {
    let end = (0..=200.min(text.len())).rev().find(|end| text.is_char_boundary(*end)).unwrap_or(0);
    &text[..end]
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

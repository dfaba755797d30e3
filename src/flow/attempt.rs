//! One attempt, from the token's use to its consequences. From here on it is a task of its own, which runs to its end
//! whether or not the caller stays: CAMS has counted it, and its end feeds the lane's pause, the metrics and the log.

use std::sync::Arc;

use prometheus::IntGauge;
use tokio::sync::oneshot;
use tokio::time::{Instant, timeout_at};

use crate::app::Parts;
use crate::flow::classify::Operation;
use crate::flow::forward::{Answer, Request, Sent, Upstream};
use crate::flow::judge::{self, Context, ThrottleSource, Verdict};
use crate::flow::queue::{Receipt, Turn};
use crate::flow::record::capped;
use crate::metrics;

/// What came of an attempt.
#[expect(clippy::large_enum_variant, reason = "made once per attempt and moved twice")]
pub(crate) enum Attempted {
    /// Nothing left this process: the connection had closed.
    Unsent,
    /// What happened, and the answer if there is one.
    Judged(Option<Answer>, Verdict),
}

/// What is sent, and of which call.
pub(crate) struct Sending {
    pub(crate) request: Request,
    pub(crate) operation: Arc<Operation>,
    /// What the judge must know.
    pub(crate) context: Context,
    /// When the caller's hold ends.
    pub(crate) answer_by: Instant,
}

/// Counts an attempt as under way until dropped.
struct InFlight(IntGauge);

/// Uses the turn and sends the request; tells what came of it, at the latest when the hold ends.
pub(crate) fn attempt(
    parts: &Arc<Parts>,
    turn: Turn<Upstream>,
    sending: Sending,
) -> impl Future<Output = Attempted> + use<> {
    let (told, outcome) = oneshot::channel();
    let answered = timeout_at(sending.answer_by, outcome);
    parts.attempts.spawn(run(parts.clone(), turn, sending, told));
    async move {
        let unknown = |reason| Attempted::Judged(None, Verdict::Unknown { reason });
        match answered.await {
            // The task tells its end unless it panics.
            Ok(told) => told.unwrap_or_else(|_| unknown("an error inside Flowgate")),
            Err(_) => unknown("CAMS has not answered within the hold"),
        }
    }
}

async fn run(parts: Arc<Parts>, turn: Turn<Upstream>, sending: Sending, told: oneshot::Sender<Attempted>) {
    let Sending { request, operation, context, answer_by: _ } = sending;
    let _in_flight = InFlight::new(parts.metrics.in_flight(operation.account_label(), operation.action_label()));
    let (connection, receipt) = turn.spend();
    let sent_at = Instant::now();
    let attempted = match connection.send(request).await {
        Sent::Unsent => {
            receipt.unsent();
            drop(told.send(Attempted::Unsent));
            return;
        }
        Sent::Answered(answer) => {
            let verdict = judge::judge(&answer, context);
            Attempted::Judged(Some(answer), verdict)
        }
        Sent::Lost(lost) => Attempted::Judged(None, lost.into()),
    };
    if let Attempted::Judged(answer, verdict) = &attempted {
        count(&parts, &operation, (answer.as_ref(), verdict), sent_at);
        settle(receipt, verdict);
    }
    if let Err(Attempted::Judged(_, verdict)) = told.send(attempted) {
        let (account, action) = (operation.account_label(), operation.action_label());
        let client = operation.client.as_str();
        let (code, cams_request_id) = (capped(verdict.code()), verdict.request_id().map(capped));
        tracing::info!(
            account,
            action,
            client,
            code,
            cams_request_id,
            "an attempt ended when nobody waited for it any more"
        );
    }
}

/// Tells the lane.
fn settle(receipt: Receipt<Upstream>, verdict: &Verdict) {
    match verdict {
        Verdict::Throttled { hint, .. } => receipt.throttled(*hint),
        Verdict::Unknown { .. } => drop(receipt),
        Verdict::Ok { .. } | Verdict::UpstreamError { .. } | Verdict::Credentials { .. } => receipt.answered(),
    }
}

fn count(parts: &Parts, operation: &Operation, (answer, verdict): (Option<&Answer>, &Verdict), sent_at: Instant) {
    let (account, action) = (operation.account_label(), operation.action_label());
    let code = match verdict {
        Verdict::Unknown { .. } => "unknown",
        known => judge::code_label(known.code()),
    };
    let status = answer.map_or("none".into(), |answer| answer.status.as_str().to_owned());
    let attempt = metrics::Attempt { account, action, status: &status, code };
    let took = sent_at.elapsed();
    parts.metrics.attempt(&attempt, took);
    // A refusal is quick, and says nothing of what a call takes.
    if let Verdict::Ok { .. } | Verdict::UpstreamError { .. } = verdict {
        parts.margins.answered(operation, took);
    }
    if let Verdict::Credentials { .. } = verdict {
        let (code, cams_request_id) = (capped(verdict.code()), verdict.request_id().map(capped));
        tracing::error!(account, code, cams_request_id, "CAMS does not accept this account's access key");
    }
    if let Verdict::Throttled { source, .. } = verdict {
        let source = match source {
            ThrottleSource::Body => "body",
            ThrottleSource::Header => "header",
        };
        parts.metrics.throttled(account, code, source);
    }
}

// === impl InFlight ===

impl InFlight {
    fn new(gauge: IntGauge) -> Self {
        gauge.inc();
        Self(gauge)
    }
}

impl Drop for InFlight {
    fn drop(&mut self) {
        self.0.dec();
    }
}

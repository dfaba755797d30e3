//! One attempt, from its permit to its consequences. It runs within its call as long as the call waits for it, and
//! as a task of its own when the caller has left or its hold is over: CAMS has counted it, so it runs to its end, which
//! feeds the lane's pause, the metrics and the log.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context as Polling, Poll};

use futures_util::FutureExt;
use tokio::runtime::Handle;
use tokio::time::{Instant, timeout_at};
use tokio_util::task::TaskTracker;

use crate::call::judge::{self, Context, ThrottleSource, Verdict};
use crate::call::services::CallServices;
use crate::limiter::{Receipt, SendPermit};
use crate::observe::journal::{self, Note};
use crate::observe::metrics::{self, CallMetrics, labels};
use crate::operation::Operation;
use crate::primitives::text::capped;
use crate::upstream::{Answer, Request, Sent, Upstream};

/// What came of an attempt.
pub(crate) enum Attempted {
    /// Nothing left this process: the connection had closed.
    Unsent,
    /// Something did.
    Judged(Box<Judged>),
}

/// What happened, and the answer if there is one.
pub(crate) struct Judged {
    pub(crate) answer: Option<Answer>,
    pub(crate) verdict: Verdict,
}

/// What is sent, and of which call.
pub(crate) struct Sending {
    pub(crate) request: Request,
    pub(crate) operation: Arc<Operation>,
    /// What is counted of such operations.
    pub(crate) metrics: Arc<CallMetrics>,
    /// What the judge must know.
    pub(crate) context: Context,
    pub(crate) deadlines: Deadlines,
    /// What the journal is told of it, if there is one.
    pub(crate) note: Option<Box<Note>>,
}

/// Until when a call may take.
#[derive(Clone, Copy)]
pub(crate) struct Deadlines {
    /// Nothing is sent after this.
    pub(crate) send_by: Instant,
    /// When the caller's hold ends.
    pub(crate) answer_by: Instant,
}

/// Counts an attempt as under way until dropped.
struct InFlight(Arc<CallMetrics>);

/// An attempt that its call waits for. Dropped before anything of it was sent, it is not sent; dropped later, it goes on as
/// a task.
struct Attended {
    /// None once it has ended, and while it is polled: one that panics is not polled again.
    run: Option<Pin<Box<dyn Future<Output = Attempted> + Send>>>,
    has_begun: Arc<AtomicBool>,
    operation: Arc<Operation>,
    tracker: TaskTracker,
}

/// Sends the request with this permit; tells what came of it, at the latest when the hold ends.
pub(crate) fn attempt(
    parts: &Arc<CallServices>,
    permit: SendPermit<Upstream>,
    sending: Sending,
) -> impl Future<Output = Attempted> + use<> {
    let answer_by = sending.deadlines.answer_by;
    timeout_at(answer_by, Attended::new(parts, permit, sending)).map(|answered| {
        let reason = "CAMS has not answered within the hold";
        answered.unwrap_or_else(|_| Attempted::judged(None, Verdict::Unknown { reason }))
    })
}

async fn run(
    parts: Arc<CallServices>,
    permit: SendPermit<Upstream>,
    sending: Sending,
    has_begun: Arc<AtomicBool>,
) -> Attempted {
    let Sending {
        request,
        operation,
        metrics,
        context,
        note,
        deadlines,
    } = sending;
    // Before the first byte leaves: a slow disk delays the attempt, and its token is held meanwhile.
    if let Some(note) = &note {
        let announced = Announced(Some(note));
        if timeout_at(deadlines.send_by, note.sent()).await.is_err() {
            return Attempted::Unsent;
        }
        announced.keep();
    }
    let Some((connection, receipt)) = permit.begin() else {
        if let Some(note) = &note {
            note.unsent();
        }
        return Attempted::Unsent;
    };
    has_begun.store(true, Ordering::Relaxed);
    let in_flight = InFlight::new(metrics);
    let sent_at = Instant::now();
    let (answer, verdict) = match connection.send(request, receipt.on_write()).await {
        Sent::Unsent => {
            if let Some(note) = &note {
                note.unsent();
            }
            receipt.unsent();
            return Attempted::Unsent;
        }
        Sent::Answered(answer) => {
            let verdict = judge::judge(&answer, context);
            (Some(answer), verdict)
        }
        Sent::Lost(lost) => (None, lost.into()),
    };
    if let Some(note) = &note {
        note_end(note, answer.as_ref(), &verdict);
    }
    count(
        &parts,
        (&operation, &in_flight.0),
        (answer.as_ref(), &verdict),
        sent_at,
    );
    settle(receipt, &verdict);
    Attempted::judged(answer, verdict)
}

/// An attempt that is written in the journal and has not begun. Dropped, it is noted as not sent.
struct Announced<'a>(Option<&'a Note>);

impl Announced<'_> {
    fn keep(mut self) {
        self.0 = None;
    }
}

impl Drop for Announced<'_> {
    fn drop(&mut self) {
        if let Some(note) = self.0 {
            note.unsent();
        }
    }
}

/// Says what came of an attempt that nobody waited for any more.
fn tell(operation: &Operation, attempted: &Attempted) {
    let Attempted::Judged(judged) = attempted else {
        return;
    };
    let verdict = &judged.verdict;
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

/// Writes an attempt's end into the journal.
pub(crate) fn note_end(note: &Note, answer: Option<&Answer>, verdict: &Verdict) {
    let outcome = match verdict {
        Verdict::Ok { .. } => journal::Outcome::Ok,
        Verdict::Throttled { .. } => journal::Outcome::Throttled,
        Verdict::UpstreamError { .. } => journal::Outcome::UpstreamError,
        Verdict::Credentials { .. } => journal::Outcome::Credentials,
        Verdict::Unknown { .. } => journal::Outcome::Unknown,
    };
    let body = answer.map(|answer| &answer.body);
    note.judged(outcome, verdict.code(), verdict.request_id(), body);
}

/// Tells the lane.
fn settle(receipt: Receipt<Upstream>, verdict: &Verdict) {
    match verdict {
        Verdict::Throttled { hint, .. } => receipt.throttled(*hint),
        Verdict::Unknown { .. } => drop(receipt),
        Verdict::Ok { .. } | Verdict::UpstreamError { .. } | Verdict::Credentials { .. } => {
            receipt.answered()
        }
    }
}

fn count(
    parts: &CallServices,
    (operation, metrics): (&Operation, &CallMetrics),
    (answer, verdict): (Option<&Answer>, &Verdict),
    sent_at: Instant,
) {
    let [account, _] = metrics.labels();
    let code = match verdict {
        Verdict::Unknown { .. } => labels::UNKNOWN,
        known => labels::code(known.code()),
    };
    let status = answer.map_or("none", |answer| answer.status.as_str());
    let took = sent_at.elapsed();
    metrics.attempt(&metrics::Attempt { status, code, took });
    // A refusal is quick, and says nothing of what a call takes.
    if let Verdict::Ok { .. } | Verdict::UpstreamError { .. } = verdict {
        parts.margins.answered(operation, took);
    }
    if let Verdict::Credentials { .. } = verdict {
        let (code, cams_request_id) = (capped(verdict.code()), verdict.request_id().map(capped));
        tracing::error!(
            account,
            code,
            cams_request_id,
            "CAMS does not accept this account's access key"
        );
    }
    if let Verdict::Throttled { source, .. } = verdict {
        let source = match source {
            ThrottleSource::Body => "body",
            ThrottleSource::Header => "header",
        };
        parts.metrics.throttled(account, code, source);
    }
}

// === impl Attempted ===

impl Attempted {
    fn judged(answer: Option<Answer>, verdict: Verdict) -> Self {
        Self::Judged(Box::new(Judged { answer, verdict }))
    }
}

// === impl Attended ===

impl Attended {
    fn new(parts: &Arc<CallServices>, permit: SendPermit<Upstream>, sending: Sending) -> Self {
        let (operation, has_begun) = (sending.operation.clone(), Arc::new(AtomicBool::new(false)));
        let run =
            parts
                .attempts
                .track_future(run(parts.clone(), permit, sending, has_begun.clone()));
        Self {
            run: Some(Box::pin(run)),
            has_begun,
            operation,
            tracker: parts.attempts.clone(),
        }
    }
}

impl Future for Attended {
    type Output = Attempted;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Polling<'_>) -> Poll<Attempted> {
        let mut run = self.run.take().expect("nobody polls what has ended");
        let polled = run.as_mut().poll(cx);
        if polled.is_pending() {
            self.run = Some(run);
        }
        polled
    }
}

impl Drop for Attended {
    fn drop(&mut self) {
        if !self.has_begun.load(Ordering::Relaxed) {
            return;
        }
        // Without a runtime the connection's task is gone, too.
        let (Some(run), Ok(runtime)) = (self.run.take(), Handle::try_current()) else {
            return;
        };
        let operation = self.operation.clone();
        self.tracker
            .spawn_on(async move { tell(&operation, &run.await) }, &runtime);
    }
}

// === impl InFlight ===

impl InFlight {
    fn new(metrics: Arc<CallMetrics>) -> Self {
        metrics.in_flight.inc();
        Self(metrics)
    }
}

impl Drop for InFlight {
    fn drop(&mut self) {
        self.0.in_flight.dec();
    }
}

#[cfg(test)]
mod tests {
    use std::num::NonZeroU32;
    use std::time::Duration;

    use tokio::net::TcpListener;

    use super::*;
    use crate::app::state::AppState;
    use crate::config::{self, Config, Limit};
    use crate::primitives::id::{AccountId, ActionName, ClientId, TenantId};

    fn operation(limit: Limit) -> Operation {
        Operation {
            account: AccountId::new("acme"),
            known: true,
            client: ClientId::new("team-a"),
            weight: 1,
            tenant: TenantId::new(""),
            action: ActionName::new("CreateFlow"),
            limit: Some(limit),
            hold: Duration::from_secs(10),
            wait: Duration::from_secs(10),
        }
    }

    fn limited(upstream: &TcpListener, journal: config::Journal, limit: Limit) -> Config {
        let url = format!("http://{}", upstream.local_addr().unwrap());
        let mut config = config::load(None, [("FLOWGATE_UPSTREAM__URL".into(), url.into())])
            .unwrap()
            .config;
        config.limits = [(ActionName::new("CreateFlow"), limit)].into();
        config.journal = Some(journal);
        config
    }

    #[tokio::test]
    async fn the_journal_is_told_before_the_permit_is_used() {
        let (upstream, folder) = (
            TcpListener::bind("127.0.0.1:0").await.unwrap(),
            tempfile::tempdir().unwrap(),
        );
        let path = folder.path().join("journal");
        let journal = config::Journal {
            path: path.clone(),
            max_size: 1 << 20,
            keep: 1,
        };
        let limit = Limit {
            count: NonZeroU32::MIN,
            window: Duration::from_millis(1),
        };
        let mut config = limited(&upstream, journal, limit);
        let parts = AppState::new(config.clone()).unwrap().calls().clone();
        let operation = operation(limit);
        let permit = parts
            .limiter
            .arrive(&operation, 0)
            .ok()
            .unwrap()
            .permit()
            .await
            .ok()
            .unwrap();
        // Another limit is another source of tokens: this permit's token is of no use any more.
        config.limits = [(
            ActionName::new("CreateFlow"),
            Limit {
                window: Duration::from_millis(2),
                ..limit
            },
        )]
        .into();
        parts.limiter.reload(&config);
        let note = parts
            .journal
            .as_ref()
            .unwrap()
            .note(Some("x"), &operation, "REQUEST-1");
        let sending = Sending {
            request: Request::default(),
            metrics: parts.metrics.calls(operation.labels()),
            context: Context {
                managed: true,
                limited: true,
            },
            deadlines: Deadlines {
                send_by: Instant::now() + operation.hold,
                answer_by: Instant::now() + operation.hold,
            },
            operation: Arc::new(operation),
            note: Some(Box::new(note)),
        };
        assert!(matches!(
            attempt(&parts, permit, sending).await,
            Attempted::Unsent
        ));
        parts.journal.as_ref().unwrap().flushed().await;
        let text = std::fs::read_to_string(&path).unwrap();
        let said = text
            .lines()
            .map(|line| serde_json::from_str::<serde_json::Value>(line).unwrap());
        let said: Vec<_> = said
            .map(|line| [line["event"].clone(), line["result"].clone()])
            .collect();
        assert_eq!(
            said,
            [
                ["sent".into(), serde_json::Value::Null],
                ["done".into(), "unsent".into()]
            ]
        );
    }
}

//! One attempt: sends the request with a permit and judges the answer. The attempt is polled by its
//! call. If the caller disconnects or the hold ends after the send has begun, the attempt continues
//! as a detached task: CAMS has counted it, so its result must still reach the lane's pause, the
//! metrics and the log.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context as Polling, Poll};
use std::time::{Duration, SystemTime};

use futures_util::future::{Either, ready};
use tokio::runtime::Handle;
use tokio::time::{Instant, timeout_at};

use crate::call::judge::{self, Context, ThrottleSource, Verdict};
use crate::call::services::CallServices;
use crate::config::Credentials;
use crate::limiter::{Receipt, SendPermit};
use crate::observe::journal::{self, Note};
use crate::observe::metrics::{self, CallMetrics, labels};
use crate::operation::Operation;
use crate::primitives::text::capped;
use crate::upstream::clock::{Correction, UpstreamClock};
use crate::upstream::{Connection, Request, Sent, Upstream, UpstreamResponse};

/// The result of an attempt.
pub(crate) enum Attempted {
    /// Nothing was sent: the connection was closed, or the permit had expired.
    Unsent,
    /// Nothing was sent, because the journal could not record the attempt, which has an idempotency
    /// key.
    Unrecorded,
    /// The request was sent, at least in part.
    Judged(Box<Judged>),
}

/// The verdict on a sent attempt, and the answer if there is one.
pub(crate) struct Judged {
    pub(crate) answer: Option<UpstreamResponse>,
    pub(crate) verdict: Verdict,
    /// What the attempt was signed with, if Flowgate signed it and the attempt has ended.
    pub(crate) credentials: Option<Arc<Credentials>>,
    /// Whether CAMS has refused the time stamp, and would now get another one.
    pub(crate) has_better_stamp: bool,
    /// The call that it belongs to, if the attempt has ended.
    operation: Option<Arc<Operation>>,
}

/// The request to send, and the call that it belongs to.
pub(crate) struct Sending {
    pub(crate) request: Request,
    pub(crate) operation: Arc<Operation>,
    /// The series of the operation's account and action.
    pub(crate) metrics: Arc<CallMetrics>,
    /// What Flowgate made the signature with; `None` if the caller made it.
    pub(crate) credentials: Option<Arc<Credentials>>,
    /// The correction of its time stamp.
    pub(crate) correction: Correction,
    pub(crate) deadlines: Deadlines,
    /// The entry in the journal, if there is a journal.
    pub(crate) note: Option<Box<Note>>,
}

/// The deadlines of a call.
#[derive(Clone, Copy)]
pub(crate) struct Deadlines {
    /// Nothing is sent after this.
    pub(crate) send_by: Instant,
    /// End of the caller's hold.
    pub(crate) answer_by: Instant,
}

/// Counts an attempt as in flight until dropped.
struct InFlight(Arc<CallMetrics>);

/// The hold has ended before CAMS's answer came.
pub(crate) struct HoldEnded;

/// An attempt in flight, which its call polls until the hold ends. If it is dropped, it continues as a
/// detached task.
struct DetachOnDrop {
    /// `None` after it has ended, and while it is polled, so that an attempt that panics is not
    /// polled again.
    run: Option<Pin<Box<dyn Future<Output = Attempted> + Send>>>,
    /// End of the caller's hold. `run` polls its task then.
    answer_by: Instant,
    services: Arc<CallServices>,
}

/// Sends the request with its permit. Fails at the end of the hold, with [`unanswered`] as result.
/// Not an `async fn`: its future would hold these arguments until it ends.
pub(crate) fn attempt(
    services: &Arc<CallServices>,
    permit: SendPermit<Upstream>,
    sending: Box<Sending>,
) -> impl Future<Output = Result<Attempted, HoldEnded>> + use<> {
    // Boxed: few deployments have a journal, and its future would count in that of each call.
    if sending.note.is_some() {
        let journalled: Rare = Box::pin(journalled(services.clone(), permit, sending));
        return Either::Left(journalled);
    }
    match begin(services.clone(), permit, sending) {
        Ok(begun) => Either::Right(begun),
        Err(unsent) => Either::Left(Box::pin(ready(Ok(unsent)))),
    }
}

/// An attempt with a journal, or one that is not sent.
type Rare = Pin<Box<dyn Future<Output = Result<Attempted, HoldEnded>> + Send>>;

/// Sends an attempt after it is recorded in the journal.
async fn journalled(
    services: Arc<CallServices>,
    permit: SendPermit<Upstream>,
    sending: Box<Sending>,
) -> Result<Attempted, HoldEnded> {
    if let Some(note) = &sending.note {
        if let Err(unsent) = record(note, sending.deadlines.send_by).await {
            return Ok(unsent);
        }
        let credentials = sending.credentials.as_ref();
        if !is_session_in_force(&services, &sending.operation, credentials) {
            note.unsent();
            return Ok(Attempted::Unsent);
        }
    }
    match begin(services, permit, sending) {
        Ok(begun) => begun.await,
        Err(unsent) => Ok(unsent),
    }
}

/// Uses the permit, and from then on follows the attempt to its end, in any case.
fn begin(
    services: Arc<CallServices>,
    permit: SendPermit<Upstream>,
    sending: Box<Sending>,
) -> Result<DetachOnDrop, Attempted> {
    let Some((connection, receipt)) = permit.begin() else {
        if let Some(note) = &sending.note {
            note.unsent();
        }
        return Err(Attempted::Unsent);
    };
    Ok(DetachOnDrop {
        answer_by: sending.deadlines.answer_by,
        run: Some(Box::pin(run(
            services.clone(),
            connection,
            receipt,
            sending,
        ))),
        services,
    })
}

/// The result of an attempt for a call whose hold has ended.
#[cold]
pub(crate) fn unanswered(_: HoldEnded) -> Attempted {
    let verdict = Verdict::Unknown {
        reason: "CAMS has not answered within the hold",
        request_id: None,
    };
    Attempted::judged(None, verdict)
}

async fn run(
    services: Arc<CallServices>,
    connection: Connection,
    receipt: Receipt<Upstream>,
    sending: Box<Sending>,
) -> Attempted {
    let Sending {
        request,
        operation,
        metrics,
        credentials,
        correction,
        deadlines,
        note,
    } = *sending;
    let in_flight = InFlight::new(metrics);
    let clock = connection.clock().clone();
    let sent_at = Instant::now();
    let sent = connection
        .send_from(sent_at, request, receipt.on_write(), deadlines.answer_by)
        .await;
    let Some(mut judged) = Judged::new(sent, &operation, credentials) else {
        if let Some(note) = &note {
            note.unsent();
        }
        receipt.unsent();
        return Attempted::Unsent;
    };
    if let Some(note) = &note {
        note_end(note, judged.answer.as_ref(), &judged.verdict);
    }
    let took = sent_at.elapsed();
    judged.set_clock(&clock, correction, sent_at, took);
    count(&services, &operation, &in_flight.0, &judged, took);
    settle(receipt, &judged.verdict);
    judged.operation = Some(operation);
    Attempted::Judged(Box::new(judged))
}

/// Records the attempt in the journal. Fails if it must not be sent.
async fn record(note: &Note, send_by: Instant) -> Result<(), Attempted> {
    match announce(note, send_by).await {
        Announcement::Recorded => Ok(()),
        Announcement::Lost if !note.must_be_recorded() => Ok(()),
        Announcement::Lost => {
            note.unsent();
            Err(Attempted::Unrecorded)
        }
        Announcement::Late => Err(Attempted::Unsent),
    }
}

/// Whether the session that an attempt is signed with is still in force: it may have ended while the
/// journal was written.
fn is_session_in_force(
    services: &CallServices,
    operation: &Operation,
    signed_with: Option<&Arc<Credentials>>,
) -> bool {
    let config_snapshot = services.current_config.load();
    let Some(keeper) = config_snapshot.directory.keeper(&operation.account) else {
        return true;
    };
    match (keeper.current(), signed_with) {
        (Some(current), Some(signed_with)) => Arc::ptr_eq(&current, signed_with),
        (None, Some(_)) => false,
        (_, None) => true,
    }
}

/// What became of the journal's line of an attempt.
enum Announcement {
    Recorded,
    Lost,
    /// It was not written by the deadline.
    Late,
}

/// Journals that the attempt is about to be sent, before its first byte is. A slow disk delays the
/// attempt, which holds its token.
async fn announce(note: &Note, send_by: Instant) -> Announcement {
    let announced = Announced(Some(note));
    let Ok(is_recorded) = timeout_at(send_by, note.sent()).await else {
        return Announcement::Late;
    };
    announced.keep();
    if is_recorded {
        Announcement::Recorded
    } else {
        Announcement::Lost
    }
}

/// An attempt that is in the journal and has not begun. If it is dropped, the journal records it as
/// not sent.
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

/// Logs the result of a detached attempt.
fn log_detached(attempted: &Attempted) {
    let Attempted::Judged(judged) = attempted else {
        return;
    };
    let Some(operation) = &judged.operation else {
        return;
    };
    let verdict = &judged.verdict;
    tracing::info!(
        account = operation.account_label(),
        action = operation.action_label(),
        client = operation.client.as_str(),
        code = capped(verdict.code()),
        cams_request_id = verdict.request_id().map(capped),
        "detached attempt finished"
    );
}

/// Writes the result of an attempt into the journal.
pub(crate) fn note_end(note: &Note, answer: Option<&UpstreamResponse>, verdict: &Verdict) {
    let outcome = match verdict {
        Verdict::Ok { .. } => journal::Outcome::Ok,
        Verdict::Throttled { .. } => journal::Outcome::Throttled,
        // A relayed call, whose nonce is its caller's: the copy may be the caller's own, or one that
        // was made on the way and executed.
        Verdict::UpstreamError { code, .. } if judge::is_copy_code(code) => {
            journal::Outcome::Unknown
        }
        Verdict::UpstreamError { .. } => journal::Outcome::UpstreamError,
        Verdict::Credentials { .. } | Verdict::Clock { .. } => journal::Outcome::Credentials,
        Verdict::Unknown { .. } => journal::Outcome::Unknown,
    };
    let body = answer.map(|answer| &answer.body);
    note.judged(outcome, verdict.code(), verdict.request_id(), body);
}

/// Reports the verdict to the lane.
fn settle(receipt: Receipt<Upstream>, verdict: &Verdict) {
    match verdict {
        Verdict::Throttled { hint, .. } => receipt.throttled(*hint),
        Verdict::Unknown { .. } => drop(receipt),
        Verdict::Ok { .. }
        | Verdict::UpstreamError { .. }
        | Verdict::Credentials { .. }
        | Verdict::Clock { .. } => receipt.answered(),
    }
}

fn count(
    services: &CallServices,
    operation: &Operation,
    metrics: &CallMetrics,
    judged: &Judged,
    took: Duration,
) {
    let Judged {
        answer, verdict, ..
    } = judged;
    let [account, _] = metrics.labels();
    let code = match verdict {
        Verdict::Unknown { .. } => labels::UNKNOWN,
        known => labels::code(known.code()),
    };
    let status = answer
        .as_ref()
        .map_or("none", |answer| answer.status.as_str());
    metrics.attempt(&metrics::Attempt { status, code, took });
    // Throttled attempts are answered quickly, so their duration is not that of a call.
    if let Verdict::Ok { .. } | Verdict::UpstreamError { .. } = verdict {
        metrics.answered(took);
    }
    log_verdict(account, operation, verdict);
    if let Verdict::Throttled { source, .. } = verdict {
        let source = match source {
            ThrottleSource::Body => "body",
            ThrottleSource::Header => "header",
        };
        services.metrics.throttled(account, code, source);
    }
}

/// Logs the verdicts that an operator must act upon.
fn log_verdict(account: &str, operation: &Operation, verdict: &Verdict) {
    match verdict {
        Verdict::Credentials { .. } => tracing::error!(
            account,
            code = capped(verdict.code()),
            cams_request_id = verdict.request_id().map(capped),
            "CAMS does not accept this account's access key"
        ),
        Verdict::Clock { code, offset, .. } => tracing::warn!(
            account,
            code = capped(code),
            offset_seconds = offset,
            cams_request_id = verdict.request_id().map(capped),
            "CAMS rejected a time stamp"
        ),
        Verdict::Unknown { reason, request_id } if *reason == judge::COPY_ARRIVED => {
            tracing::warn!(
                account,
                action = operation.action_label(),
                cams_request_id = request_id.as_deref().map(capped),
                "CAMS received a request twice"
            );
        }
        _ => {}
    }
}

// === impl Attempted ===

impl Attempted {
    fn judged(answer: Option<UpstreamResponse>, verdict: Verdict) -> Self {
        Self::Judged(Box::new(Judged {
            answer,
            verdict,
            credentials: None,
            has_better_stamp: false,
            operation: None,
        }))
    }
}

// === impl Judged ===

impl Judged {
    /// `None` if nothing was sent.
    fn new(
        sent: Sent,
        operation: &Operation,
        credentials: Option<Arc<Credentials>>,
    ) -> Option<Self> {
        let context = Context {
            managed: credentials.is_some(),
            limited: operation.limit.is_some(),
            action: operation.action.as_str(),
        };
        match sent {
            Sent::Unsent => None,
            Sent::Answered(answer) => Some(Self {
                verdict: judge::judge(&answer, context, SystemTime::now)
                    .without_secrets_of(credentials.as_deref()),
                answer: Some(answer),
                credentials,
                has_better_stamp: false,
                operation: None,
            }),
            Sent::Lost(lost) => Some(Self {
                verdict: lost.into(),
                answer: None,
                credentials,
                has_better_stamp: false,
                operation: None,
            }),
        }
    }

    /// Reads CAMS's time from an answer of CAMS to a request whose stamp had this correction.
    fn set_clock(
        &mut self,
        clock: &UpstreamClock,
        correction: Correction,
        sent_at: Instant,
        took: Duration,
    ) {
        let Some(answer) = &self.answer else { return };
        match self.verdict {
            Verdict::Clock { .. } => {
                clock.stamp_refused(&answer.headers, took, SystemTime::now(), correction);
                self.has_better_stamp = clock.correction() != correction;
            }
            Verdict::Unknown { .. } => {}
            _ if clock.is_due(sent_at + took) => {
                clock.answered(&answer.headers, took, SystemTime::now(), correction);
            }
            _ => {}
        }
    }
}

// === impl DetachOnDrop ===

impl Future for DetachOnDrop {
    type Output = Result<Attempted, HoldEnded>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Polling<'_>) -> Poll<Self::Output> {
        let mut run = self
            .run
            .take()
            .expect("an attempt is not polled after it has ended");
        if let Poll::Ready(attempted) = run.as_mut().poll(cx) {
            return Poll::Ready(Ok(attempted));
        }
        self.run = Some(run);
        if Instant::now() < self.answer_by {
            Poll::Pending
        } else {
            Poll::Ready(Err(HoldEnded))
        }
    }
}

impl Drop for DetachOnDrop {
    fn drop(&mut self) {
        if let Some(run) = self.run.take() {
            self.detach(run);
        }
    }
}

impl DetachOnDrop {
    #[cold]
    fn detach(&self, run: Pin<Box<dyn Future<Output = Attempted> + Send>>) {
        // Without a runtime the task of the connection has ended, too.
        let Ok(runtime) = Handle::try_current() else {
            return;
        };
        let attempts = &self.services.attempts;
        attempts.spawn_on(async move { log_detached(&run.await) }, &runtime);
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
    async fn the_journal_is_written_before_the_permit_is_used() {
        let upstream = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let folder = tempfile::tempdir().unwrap();
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
        let services = AppState::new(config.clone()).unwrap().calls().clone();
        let operation = operation(limit);
        let permit = services
            .limiter
            .arrive(&operation, 0)
            .ok()
            .unwrap()
            .permit()
            .await
            .ok()
            .unwrap();
        // A changed limit replaces the source of tokens, so this permit's token becomes invalid.
        config.limits = [(
            ActionName::new("CreateFlow"),
            Limit {
                window: Duration::from_millis(2),
                ..limit
            },
        )]
        .into();
        services.limiter.reload(&config);
        let note =
            services
                .journal
                .as_ref()
                .unwrap()
                .note(Some("x"), &operation, "REQUEST-1", None);
        let sending = Sending {
            request: Request::default(),
            metrics: services.metrics.calls(operation.labels()),
            credentials: None,
            correction: Correction::default(),
            deadlines: Deadlines {
                send_by: Instant::now() + operation.hold,
                answer_by: Instant::now() + operation.hold,
            },
            operation: Arc::new(operation),
            note: Some(Box::new(note)),
        };
        assert!(matches!(
            attempt(&services, permit, Box::new(sending)).await,
            Ok(Attempted::Unsent)
        ));
        services.journal.as_ref().unwrap().flushed().await;
        let text = std::fs::read_to_string(&path).unwrap();
        let entries: Vec<_> = text
            .lines()
            .map(|line| serde_json::from_str::<serde_json::Value>(line).unwrap())
            .map(|line| [line["event"].clone(), line["result"].clone()])
            .collect();
        assert_eq!(
            entries,
            [
                ["sent".into(), serde_json::Value::Null],
                ["done".into(), "unsent".into()]
            ]
        );
    }
}

//! One call from arrival to reply. Each step is a module, and its result is the input of a later
//! step: the caller (`Caller`, of which `Sendable` is kept), the operation (`Operation`), the
//! permission to send (`SendPermit`), the result of an attempt (`Verdict`), and whether to retry
//! (`Decision`).

pub(crate) mod attempt;
pub(crate) mod body;
pub(crate) mod classify;
pub(crate) mod credentials;
pub(crate) mod current_config;
pub(crate) mod hold;
mod idempotency;
pub(crate) mod identify;
pub(crate) mod judge;
pub(crate) mod looks;
pub(crate) mod reply;
pub(crate) mod retry;
pub(crate) mod services;
mod shared_key;
pub(crate) mod sign;
#[cfg(test)]
pub(crate) mod tests;
pub(crate) mod unknown;
pub(crate) mod unread;
mod waiting;

use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use futures_util::FutureExt;
use futures_util::future::{Either, ready};
use http_body_util::Full;
use hyper::body::Body;
use hyper::{Request, Response};
use tokio::time::{Instant, Sleep};

use crate::acs::actions::{self, Effect};
use crate::call::attempt::{Attempted, Deadlines, HoldEnded, Judged, Sending};
use crate::call::credentials::SessionWait;
use crate::call::idempotency::OrderCall;
use crate::call::identify::{Caller, Claim, Sendable};
use crate::call::judge::Verdict;
use crate::call::reply::ErrorFormat;
use crate::call::retry::{Decision, RetryState};
use crate::call::services::CallServices;
use crate::config::{Listen, Mode};
use crate::error::{Kind, Refusal};
use crate::limiter::{self, LimitedCall, SendPermit};
use crate::observe::journal::{JournalOrder, Note};
use crate::observe::record::Record;
use crate::operation::Operation;
use crate::process::shutdown::Phase;
use crate::server::CallerDisconnected;
use crate::server::per_address::{CallSource, TooManyCalls};
use crate::server::socket::Disconnect;
use crate::server::timeouts::LARGE_HEAD;
use crate::upstream::{Connection, Upstream, UpstreamResponse};

/// Why a call ends without an answer from CAMS.
enum CallFailure {
    /// Flowgate refuses the call.
    Refused(Refusal),
    /// The caller has disconnected.
    CallerDisconnected,
}

impl From<Refusal> for CallFailure {
    fn from(refusal: Refusal) -> Self {
        Self::Refused(refusal)
    }
}

/// Answers one request. The call ends with the last step, when the caller disconnects, when the
/// drain's grace period ends, or with a panic. The connection polls this future again when a
/// shutdown phase begins.
pub(crate) async fn call<B>(
    services: Arc<CallServices>,
    request: Box<Request<B>>,
    disconnect: Disconnect,
) -> Result<Response<Full<Bytes>>, CallerDisconnected>
where
    B: Body<Data = Bytes> + Unpin,
{
    let CallSource { address, admission } = disconnect.begin_call(request.headers());
    let mut record = Record::new(services.telemetry.clone(), address);
    let mut format = ErrorFormat::default();
    let end = {
        let steps = AssertUnwindSafe(steps(
            &services,
            request,
            admission,
            &disconnect,
            &mut record,
            &mut format,
        ))
        .catch_unwind();
        tokio::select! {
            biased;
            end = steps => end.unwrap_or_else(|_panic| Err(reply::internal().into())),
            () = disconnect.wait() => Err(CallFailure::CallerDisconnected),
            () = services.phases.now_in(Phase::Over) => Err(CallFailure::Refused(limiter::draining())),
        }
    };
    disconnect.end_call();
    let response = match end {
        Ok(response) => response,
        Err(CallFailure::CallerDisconnected) => {
            record.cancelled();
            return Err(CallerDisconnected);
        }
        Err(CallFailure::Refused(refusal)) => {
            let refusal = record.refused(refusal);
            reply::refuse(&refusal, &format, record.request_id())
        }
    };
    Ok(reply::closing(response, services.phases.now()))
}

/// The steps of a call.
async fn steps<B>(
    services: &Arc<CallServices>,
    request: Box<Request<B>>,
    admission: Result<(), TooManyCalls>,
    disconnect: &Disconnect,
    record: &mut Record,
    format: &mut ErrorFormat,
) -> Result<Response<Full<Bytes>>, CallFailure>
where
    B: Body<Data = Bytes> + Unpin,
{
    // Boxed, so that a queued call does not reserve memory for this finished step.
    let arrived = Box::pin(arrive(services, request, admission, record, format));
    let accepted = match arrived.await? {
        Arrived::Accepted(accepted) => accepted,
        Arrived::Answered(response) => return Ok(response),
    };
    let mut call = ActiveCall::new(services, accepted, record)?;
    loop {
        call.have_session().await?;
        let permit = call.queue().await?;
        if disconnect.has_disconnected() {
            return Err(CallFailure::CallerDisconnected);
        }
        let Some((permit, sending)) = call.sign(permit)? else {
            continue;
        };
        let attempted = call.attempt(permit, sending).await;
        let Some(judged) = call.judge(attempted).await else {
            continue;
        };
        match call.decide(&judged.verdict) {
            Decision::Again { after } => {
                drop(judged);
                call.back_off(after).await;
            }
            Decision::Reply { advice } => return Ok(call.reply(*judged, advice)?),
        }
    }
}

/// A call from the queue to its reply, with everything that is kept of it.
struct ActiveCall<'a> {
    services: &'a Arc<CallServices>,
    record: &'a mut Record,
    call: Sendable,
    operation: Arc<Operation>,
    /// Its place in the queue, kept through retries.
    limited_call: LimitedCall<Upstream>,
    /// The generation of the configuration that it was last checked with.
    generation: u64,
    /// Set if it continues without its caller.
    background: Option<Box<Background>>,
    /// Whether its credentials were renewed, which is done at most once.
    renewed: bool,
    /// Whether it was sent again with a corrected time stamp, which is done at most once.
    restamped: bool,
}

/// The permission to send a signed request. Passed by value: a borrowed permit would be a part of the
/// future of every queued call.
type Signed = (SendPermit<Upstream>, Box<Sending>);

/// A call that has no caller, or continues without it.
struct Background {
    /// The key in the journal. `None`: a call of Flowgate's own, which is not in the journal.
    journal_key: Option<JournalOrder>,
    /// Until then an answer is waited for.
    answer_by: Instant,
}

// === impl ActiveCall ===

impl<'a> ActiveCall<'a> {
    fn new(
        services: &'a Arc<CallServices>,
        accepted: AcceptedCall,
        record: &'a mut Record,
    ) -> Result<Self, Refusal> {
        let AcceptedCall {
            call,
            operation,
            upstream,
            bytes,
            generation,
            order: _,
        } = accepted;
        record.queued(operation.clone());
        let limited_call = services.limiter.arrive_via(upstream, &operation, bytes)?;
        record.set_metrics(limited_call.metrics(&operation));
        Ok(Self {
            services,
            record,
            call,
            operation,
            limited_call,
            generation,
            background: None,
            renewed: false,
            restamped: false,
        })
    }

    /// A call without a caller: an attempt has the time that the upstream's answer may take. Without
    /// a key it is not in the journal.
    fn in_background(
        services: &'a Arc<CallServices>,
        accepted: AcceptedCall,
        record: &'a mut Record,
        journal_key: Option<JournalOrder>,
    ) -> Result<Self, Refusal> {
        let mut call = Self::new(services, accepted, record)?;
        let answer_timeout = services
            .current_config
            .load_full()
            .config
            .upstream
            .answer_timeout;
        call.background = Some(Box::new(Background {
            answer_by: call.answer_by() + answer_timeout,
            journal_key,
        }));
        Ok(call)
    }

    /// Waits for a session and for the permission to send.
    async fn permit(&mut self) -> Result<SendPermit<Upstream>, Refusal> {
        self.have_session().await?;
        self.queue().await
    }

    /// Waits until the call's account has a session to sign with. Boxed if there is none, so that
    /// other calls do not reserve memory for it.
    fn have_session(&mut self) -> impl Future<Output = Result<(), Refusal>> {
        if self.call.missing_session().is_none() {
            return Either::Left(ready(Ok(())));
        }
        Either::Right(Box::pin(self.wait_for_session()))
    }

    async fn wait_for_session(&mut self) -> Result<(), Refusal> {
        let began = self.record.waits_for_session();
        let wait = SessionWait {
            services: self.services,
            call: &mut self.call,
            operation: &self.operation,
            generation: &mut self.generation,
            send_by: self.limited_call.send_by(),
        };
        let waited = wait.run().await;
        self.record.waited_for_session(began);
        waited
    }

    /// Waits for the permission to send one attempt. Not an `async fn`: that would enlarge the
    /// future of every queued call.
    fn queue(&mut self) -> impl Future<Output = Result<SendPermit<Upstream>, Refusal>> {
        self.limited_call.permit_for(self.record.way())
    }

    /// Builds the request of one attempt with the current configuration, for the permit's
    /// connection. Returns `None` if the account's session has ended while the call was queued: then
    /// the permit is given back.
    fn sign(&mut self, permit: SendPermit<Upstream>) -> Result<Option<Signed>, Refusal> {
        self.record.permit_granted(self.limited_call.age());
        let config_snapshot = self.services.current_config.load();
        config_snapshot.recheck(
            &mut self.call,
            &self.operation.account,
            &mut self.generation,
        )?;
        let connection = permit.connection();
        check_upstream(self.limited_call.connector(), connection)?;
        let correction = connection.clock().correction();
        let stamp = correction.apply(SystemTime::now());
        let Some(ready) = self.call.ready() else {
            self.record.queued_again(Duration::ZERO);
            return Ok(None);
        };
        let mut request = sign::sign(&ready, connection.host(), stamp)?;
        let credentials = ready.into_credentials();
        self.record
            .sent(request.headers_mut(), credentials.is_none());
        let note = self.note().map(Box::new);
        let sending = Box::new(Sending {
            request,
            operation: self.operation.clone(),
            metrics: self.record.metrics(),
            credentials,
            correction,
            deadlines: Deadlines {
                send_by: self.limited_call.send_by(),
                answer_by: self.answer_by(),
            },
            note,
        });
        Ok(Some((permit, sending)))
    }

    /// The entry of an attempt in the journal, if it has one.
    fn note(&self) -> Option<Note> {
        let journal = self.services.journal.as_ref()?;
        let key = match &self.background {
            Some(background) => Some(background.journal_key.as_ref()?),
            None => None,
        };
        let flow_name = self.record.flow_name();
        let request_id = self.record.request_id();
        Some(journal.note(flow_name, &self.operation, request_id, key))
    }

    /// The attempts of the call may leave although the journal cannot record them.
    fn needs_no_journal(&mut self) {
        let background = self.background.as_deref_mut();
        if let Some(order) = background.and_then(|background| background.journal_key.as_mut()) {
            order.is_required = false;
        }
    }

    /// The store cannot record the key of the call: its attempts from now on say so in the journal.
    fn is_not_in_store(&mut self) {
        let background = self.background.as_deref_mut();
        if let Some(order) = background.and_then(|background| background.journal_key.as_mut()) {
            order.is_in_store = false;
        }
    }

    /// Sends one attempt. Not an `async fn`: its future would hold these arguments until it ends.
    fn attempt(
        &self,
        permit: SendPermit<Upstream>,
        sending: Box<Sending>,
    ) -> impl Future<Output = Result<Attempted, HoldEnded>> + use<> {
        attempt::attempt(self.services, permit, sending)
    }

    /// Records the result of an attempt. Returns `None` if the call must be sent again immediately:
    /// nothing was sent, or CAMS rejected the session or the time stamp and there is a better one,
    /// which is tried once.
    async fn judge(&mut self, attempted: Result<Attempted, HoldEnded>) -> Option<Box<Judged>> {
        let attempted = attempted.unwrap_or_else(attempt::unanswered);
        let Attempted::Judged(judged) = attempted else {
            self.record.unsent();
            return None;
        };
        let verdict = &judged.verdict;
        self.record.judged(verdict.code(), verdict.request_id());
        if verdict.is_old_session() {
            if std::mem::replace(&mut self.renewed, true) {
                self.report_refused(&judged);
            } else if Box::pin(self.renew_credentials(&judged)).await {
                self.record.queued_again(Duration::ZERO);
                return None;
            }
        }
        if judged.has_better_stamp && !std::mem::replace(&mut self.restamped, true) {
            self.record.queued_again(Duration::ZERO);
            return None;
        }
        Some(judged)
    }

    /// Waits for other credentials than those that CAMS has refused. Returns whether there are any.
    async fn renew_credentials(&self, judged: &Judged) -> bool {
        let current_config = &self.services.current_config;
        let config_snapshot = current_config.load_full();
        let keeper = config_snapshot.directory.keeper(&self.operation.account);
        match (keeper, &judged.credentials) {
            (Some(keeper), Some(refused)) => {
                // After the send-by time the call is not sent again.
                let give_up = self.limited_call.send_by();
                keeper.replace(refused, give_up).await
            }
            _ => {
                let give_up = self.answer_by();
                current_config
                    .wait_for_reload(self.generation, give_up)
                    .await
            }
        }
    }

    /// Reports that CAMS has refused the session that replaced a refused one: other calls wait for
    /// another one.
    fn report_refused(&self, judged: &Judged) {
        let config_snapshot = self.services.current_config.load();
        let keeper = config_snapshot.directory.keeper(&self.operation.account);
        if let (Some(keeper), Some(refused)) = (keeper, &judged.credentials) {
            keeper.refused(refused);
        }
    }

    /// Decides whether the call is sent again.
    fn decide(&self, verdict: &Verdict) -> Decision {
        if !retry::may_follow(verdict) {
            return Decision::NO_RETRY;
        }
        let config = &self.services.current_config.load_full().config;
        let state = RetryState {
            sent: self.record.attempts(),
            can_repeat: self.is_managed() && config.mode == Mode::Enforce,
            has_lane: self.operation.limit.is_some(),
            is_read: matches!(verdict, Verdict::Unknown { .. }) && self.only_reads(),
            left: self.limited_call.left(),
        };
        retry::decide(verdict, state, &config.retry, fastrand::f64())
    }

    /// Waits before the call queues again.
    fn back_off(&mut self, after: Duration) -> Sleep {
        self.record.queued_again(after);
        tokio::time::sleep(after)
    }

    /// The answer for the caller, made from CAMS's answer.
    fn reply(
        &mut self,
        judged: Judged,
        advice: Duration,
    ) -> Result<Response<Full<Bytes>>, Refusal> {
        let response = self.pass_on(judged.answer, &judged.verdict, advice)?;
        let verdict = &judged.verdict;
        self.record
            .answered(verdict.outcome(), verdict.code(), response.status());
        Ok(response)
    }

    fn pass_on(
        &self,
        answer: Option<UpstreamResponse>,
        verdict: &Verdict,
        advice: Duration,
    ) -> Result<Response<Full<Bytes>>, Refusal> {
        let service = self.record.service();
        let predicted_wait = || self.limited_call.predicted_wait().max(advice);
        let action = self.operation.action.as_str();
        reply::pass_on(answer, verdict, action, service, predicted_wait)
    }

    /// The end of the hold; of a call that continues without its caller, later.
    fn answer_by(&self) -> Instant {
        match &self.background {
            Some(background) => background.answer_by,
            None => self.limited_call.arrived() + self.operation.hold,
        }
    }

    fn only_reads(&self) -> bool {
        actions::effect(self.operation.action.as_str()) == Effect::Read
    }

    /// Whether Flowgate signs the call.
    fn is_managed(&self) -> bool {
        matches!(self.call, Sendable::Verified(_))
    }
}

/// Refuses a call whose account was moved to another upstream while it was queued: it may name the
/// earlier one, and CAMS elsewhere has other data.
fn check_upstream(upstream: &Upstream, connection: &Connection) -> Result<(), Refusal> {
    if upstream.owns(connection) || upstream.host() == connection.host() {
        return Ok(());
    }
    let message = "A reload of Flowgate's configuration moved this account to another upstream. \
                   CAMS has done nothing.";
    Err(Refusal::after(
        Kind::Flushed,
        Duration::from_secs(1),
        message,
    ))
}

/// Bytes that the connection holds for a large head while its call is queued. Those of an ordinary
/// one are part of a connection's cost.
fn large_head(size: usize) -> usize {
    if size > LARGE_HEAD { size } else { 0 }
}

/// The refusal of a call whose source has too many.
fn too_many_calls(error: TooManyCalls) -> Refusal {
    Refusal::after(
        Kind::QueueFull,
        Duration::from_secs(1),
        format!("Flowgate refused the call: {error}."),
    )
}

/// A complete call, with the parts that later steps need.
struct AcceptedCall {
    call: Sendable,
    operation: Arc<Operation>,
    /// The upstream of its account.
    upstream: Arc<Upstream>,
    /// Bytes that the call holds while it is queued.
    bytes: usize,
    /// The generation of the configuration that it was identified with.
    generation: u64,
    /// The order that its idempotency key stands for, if it has one.
    order: Option<Box<OrderCall>>,
}

/// What follows from the steps before the queue.
enum Arrived {
    /// The call takes its place in the queue.
    Accepted(AcceptedCall),
    /// The call of its idempotency key has answered it.
    Answered(Response<Full<Bytes>>),
}

/// The steps before the queue. A call with an idempotency key is answered here.
async fn arrive<B>(
    services: &Arc<CallServices>,
    request: Box<Request<B>>,
    admission: Result<(), TooManyCalls>,
    record: &mut Record,
    format: &mut ErrorFormat,
) -> Result<Arrived, Refusal>
where
    B: Body<Data = Bytes> + Unpin,
{
    let mut accepted = accept(services, request, admission, record, format).await?;
    let Some(order) = accepted.order.take() else {
        return Ok(Arrived::Accepted(accepted));
    };
    // Boxed, like the other rare waits of an arrival: each call allocates for the largest of them.
    let answer = Box::pin(idempotency::answer(
        services, accepted, &order, record, format,
    ));
    Ok(Arrived::Answered(answer.await?))
}

/// Identifies the caller, reads the body, and classifies the operation.
async fn accept<B>(
    services: &Arc<CallServices>,
    request: Box<Request<B>>,
    admission: Result<(), TooManyCalls>,
    record: &mut Record,
    format: &mut ErrorFormat,
) -> Result<AcceptedCall, Refusal>
where
    B: Body<Data = Bytes> + Unpin,
{
    let accepted = SystemTime::now();
    let config_snapshot = services.current_config.load_full();
    let config = &config_snapshot.config;
    let directory = &config_snapshot.directory;
    let (head, body) = request.into_parts();
    *format = ErrorFormat::of(&head);
    record.start_trace(&head.headers, accepted, config.telemetry.sample_percent);
    admission.map_err(too_many_calls)?;
    let head_size = body::check_head(&head, config.listen.max_header)?;
    let claim = services.count_failed_check(identify::head(&head, directory, accepted))?;
    if let Some(claim) = &claim {
        record.set_claimed_identity(claim.claimed_identity());
    }
    let body = if body.is_end_stream() {
        Bytes::new()
    } else {
        let body = Box::pin(read_body(services, claim.as_ref(), body, &config.listen)).await?;
        format.read_body(&head, &body);
        body
    };
    let claim = if let Some(claim) = claim {
        claim
    } else {
        let claim = identify::form(&head, &body, directory, accepted);
        let claim = services.count_failed_check(claim)?;
        record.set_claimed_identity(claim.claimed_identity());
        claim
    };
    let proved = prove(services, claim, body, accepted).await;
    let mut caller = services.count_proof(proved)?;
    let operation = classify::classify(&caller, &head.headers, config, &services.margins)?;
    record.set_flow_name(caller.flow_name().as_deref());
    let order = idempotency::order(&mut caller, &head.headers, config, record.request_id())?;
    Ok(AcceptedCall {
        operation: Arc::new(operation),
        upstream: config_snapshot.upstreams.get(caller.upstream()).clone(),
        bytes: caller.bytes().max(large_head(head_size)),
        call: caller.into_sendable(),
        generation: config_snapshot.generation,
        order,
    })
}

/// Reads the body of a call that is not known to be a replay, within the bounds of its caller.
async fn read_body<B>(
    services: &CallServices,
    claim: Option<&Claim>,
    body: B,
    listen: &Listen,
) -> Result<Bytes, Refusal>
where
    B: Body<Data = Bytes> + Unpin,
{
    if let Some(claim) = claim {
        services.count_failed_check(claim.check_nonce(&services.nonces))?;
    }
    body::read(body, services.body_bounds(claim, listen)).await
}

/// Verifies the call as a whole and takes its nonce, in this process and in the store.
async fn prove(
    services: &CallServices,
    claim: Claim,
    body: Bytes,
    accepted: SystemTime,
) -> Result<Caller, Refusal> {
    let nonce = services.quota.as_ref().map(|quota| (quota, claim.nonce()));
    let caller = claim.prove(body, &services.nonces, accepted)?;
    let Some((quota, nonce)) = nonce else {
        return Ok(caller);
    };
    let is_new = Box::pin(quota.take_nonce(&nonce.digest, nonce.until, accepted)).await;
    // While the store is down, each replica relies on its own memory of nonces.
    if is_new.unwrap_or(true) {
        Ok(caller)
    } else {
        Err(identify::used())
    }
}

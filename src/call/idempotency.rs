//! Calls with an idempotency key. The call of a key runs as a task, and its callers wait for the
//! record of the key: it continues when they disconnect, and a repetition of the call waits with
//! them.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::Full;
use hyper::header::HeaderMap;
use hyper::{Response, StatusCode};
use tokio::time::{Instant, timeout_at};

use super::attempt::{Attempted, Judged};
use super::identify::Caller;
use super::judge::Verdict;
use super::reply::{self, ErrorFormat};
use super::retry::Decision;
use super::services::CallServices;
use super::{AcceptedCall, ActiveCall};
use crate::acs::created_flow::CreatedFlow;
use crate::acs::flow_id;
use crate::config::{Config, Mode};
use crate::error::{Kind, Outcome, Refusal};
use crate::idempotency::KeyState;
use crate::idempotency::fingerprint::{Fingerprint, RecordName, fingerprint, record_name};
use crate::idempotency::key::{self, CLIENT_TOKEN};
use crate::idempotency::record::{Answer, Created, End, Ending, Progress, UnknownOutcome, Waiter};
use crate::idempotency::records::{Claim, Found, Marked};
use crate::observe::journal::JournalKey;
use crate::observe::record::{CallStats, Record};
use crate::operation::Operation;
use crate::primitives::id::ClientId;

/// The one action whose calls may have a key.
const ACTION: &str = "CreateFlow";

/// When a call that waits for another one of its key should be repeated.
const REPEAT_AFTER: Duration = Duration::from_secs(1);

/// The order that a key stands for.
pub(super) struct Order {
    name: RecordName,
    fingerprint: Fingerprint,
    client: ClientId,
    flow_name: Box<str>,
    categories: Vec<String>,
}

/// A call with a key, and what its answer needs.
struct KeyedCall<'a> {
    services: &'a Arc<CallServices>,
    operation: &'a Operation,
    order: &'a Order,
    format: &'a ErrorFormat,
    /// The end of the hold.
    answer_by: Instant,
}

/// Who runs the call: the claim, until an attempt may leave; then the mark.
enum Owner {
    Claimed(Claim),
    Marked(Marked),
}

/// Reads the order of a call. `None`: the call has no key, or keys are not honoured. A `ClientToken`
/// is not sent to CAMS, which does not know it.
pub(super) fn order(
    caller: &mut Caller,
    headers: &HeaderMap,
    config: &Config,
) -> Result<Option<Box<Order>>, Refusal> {
    let is_honoured = config.exactly_once.keys && config.mode == Mode::Enforce;
    if !is_honoured || caller.action().as_str() != ACTION {
        return Ok(None);
    }
    let key = key::read(headers, caller.params().get(CLIENT_TOKEN))
        .map_err(|error| Refusal::new(Kind::BadRequest, format!("Flowgate: {error}.")))?;
    let Some(key) = key else {
        return Ok(None);
    };
    let Caller::Verified(call) = &*caller else {
        let message = "An idempotency key needs an account whose calls Flowgate signs: the caller \
                       of a relayed call is not verified, so it may not be shown an answer.";
        return Err(Refusal::new(Kind::BadRequest, message));
    };
    // All keys and sessions of an account itself are one client: a session changes every hour.
    let client = call
        .client_config()
        .map_or_else(|| ClientId::new(""), |client| client.id.clone());
    let flow_name = caller.flow_name().unwrap_or_default().into();
    let order = Order {
        name: record_name(caller.account().as_str(), client.as_str(), &key),
        fingerprint: fingerprint(
            ACTION,
            call.params().iter(),
            call.json().map(|json| &json[..]),
        ),
        categories: categories(caller),
        client,
        flow_name,
    };
    caller.remove_param(CLIENT_TOKEN);
    Ok(Some(Box::new(order)))
}

/// The categories of the flow, from a parameter or from a JSON body.
fn categories(caller: &Caller) -> Vec<String> {
    let parameter = caller.params().get("Categories");
    parameter
        .and_then(|text| serde_json::from_str(text).ok())
        .unwrap_or_default()
}

/// Answers a call with a key, within its hold.
pub(super) async fn answer(
    services: &Arc<CallServices>,
    accepted: AcceptedCall,
    order: &Order,
    record: &mut Record,
    format: &ErrorFormat,
) -> Result<Response<Full<Bytes>>, Refusal> {
    let operation = accepted.operation.clone();
    let metrics = services.metrics.calls(operation.labels());
    record.queued(operation.clone(), metrics);
    let call = KeyedCall {
        services,
        operation: &operation,
        order,
        format,
        answer_by: Instant::now() + operation.hold,
    };
    let answered = call.answer(accepted, record).await;
    let state = match &answered {
        Ok(response) => reply::key_state(response.headers()),
        Err(refusal) => refusal.key,
    };
    let account = operation.account_label();
    services
        .metrics
        .keyed_call(account, state.unwrap_or(KeyState::Refused.label()));
    answered
}

/// Waits for the end of the call, at most until the end of the hold. The record learns when an
/// attempt may have left: if Flowgate stops after that, the outcome is unknown.
async fn wait(
    mut waiter: Waiter,
    answer_by: Instant,
    record: &mut Record,
) -> Result<Arc<Ending>, Refusal> {
    let ended = timeout_at(answer_by, async {
        waiter.opened().await;
        record.follows_attempt();
        waiter.end().await
    });
    match ended.await {
        Ok(ending) => Ok(ending),
        Err(_elapsed) => Err(pending(&waiter.progress())),
    }
}

/// The answer to the first caller: CAMS's own.
fn first(ending: &Ending, record: &mut Record) -> Result<Response<Full<Bytes>>, Refusal> {
    let Some(answer) = &ending.answer else {
        return Err(reply::internal());
    };
    record.follow(answer.attempts, answer.waited);
    match &answer.result {
        Ok(response) => {
            record.answered(answer.outcome, &answer.code, response.status());
            let mut response = response.clone();
            reply::mark_key(response.headers_mut(), state_of(&ending.end));
            Ok(response)
        }
        Err(refusal) if ending.was_sent() => {
            Err(refusal.clone().with_key(state_of(&ending.end).label()))
        }
        Err(refusal) => Err(refusal.clone()),
    }
}

fn state_of(end: &End) -> KeyState {
    match end {
        End::Done(_) | End::Released => KeyState::First,
        End::Unknown(_) => KeyState::Unknown,
    }
}

fn unknown_outcome(unknown: &UnknownOutcome) -> Refusal {
    Refusal::unknown(&unknown.reason, ACTION, unknown.request_id.as_deref())
        .with_key(KeyState::Unknown.label())
}

fn mismatch() -> Refusal {
    let message = "The idempotency key was used before with other parameters. A key stands for one \
                   order: use a new key for a new one.";
    Refusal::new(Kind::IdempotentParameterMismatch, message).with_key(KeyState::Mismatch.label())
}

fn unrecorded() -> Refusal {
    let message = "Flowgate cannot record the idempotency key in its journal, so it sent nothing. \
                   Repeat the call with the same key.";
    Refusal::after(Kind::KeysUnavailable, REPEAT_AFTER, message)
}

fn full() -> Refusal {
    let message = "Flowgate remembers no more idempotency keys (exactly_once.max_keys), so it \
                   cannot honour this one. Nothing was sent.";
    Refusal::after(Kind::KeysFull, Duration::from_secs(60), message)
}

/// The refusal of a call whose hold is over before the call of its key has ended.
fn pending(progress: &Progress) -> Refusal {
    let refusal = match progress {
        Progress::Open => Refusal {
            retry_after: Some(REPEAT_AFTER),
            ..Refusal::unknown("CAMS has not answered within the hold", ACTION, None)
        },
        Progress::Claimed | Progress::Ended(_) => Refusal::after(
            Kind::HoldExpired,
            REPEAT_AFTER,
            "The call of this idempotency key is still queued. Repeat the call with the same key.",
        ),
    };
    refusal.with_key(KeyState::Pending.label())
}

/// Runs the call of a key to its end.
async fn run(
    services: Arc<CallServices>,
    call: AcceptedCall,
    claim: Claim,
    mut record: Record,
    key: JournalKey,
) {
    let mut owner = Some(Owner::Claimed(claim));
    let call = ActiveCall::in_background(&services, call, &mut record, key);
    let driven = match call {
        Ok(call) => Box::pin(drive(call, &mut owner)).await,
        Err(refusal) => Err(refusal),
    };
    let answer = match driven {
        Ok(Some(ended)) => ended,
        // Its callers have left; dropping the claim frees the key.
        Ok(None) => return,
        Err(refusal) => (End::Released, refused(refusal, &record)),
    };
    let (end, answer) = answer;
    match owner.take() {
        Some(Owner::Claimed(claim)) => claim.release(answer),
        Some(Owner::Marked(marked)) => marked.end(end, answer),
        None => {}
    }
}

/// The steps of a call with a key, as those of another one. Returns `None` if all callers have left
/// before anything was sent. A refusal means that nothing was executed: after an attempt with
/// another result the call does not return to the queue.
async fn drive(
    mut call: ActiveCall<'_>,
    owner: &mut Option<Owner>,
) -> Result<Option<(End, Answer)>, Refusal> {
    loop {
        let permit = match &*owner {
            Some(Owner::Claimed(claim)) => tokio::select! {
                biased;
                permit = call.permit() => permit?,
                () = claim.abandoned() => return Ok(None),
            },
            _ => call.permit().await?,
        };
        let Some(sending) = call.sign(permit)? else {
            continue;
        };
        *owner = owner.take().map(Owner::mark);
        let attempted = call.attempt(sending).await;
        if matches!(attempted, Attempted::Unrecorded) {
            call.record.unsent();
            return Err(unrecorded());
        }
        let Some(judged) = call.judge(attempted).await else {
            continue;
        };
        match call.decide(&judged.verdict) {
            Decision::Again { after } => call.back_off(after).await,
            Decision::Reply { advice } => return Ok(Some(ended(&mut call, *judged, advice))),
        }
    }
}

/// What a judged attempt has done, and the answer to the first caller.
fn ended(call: &mut ActiveCall<'_>, judged: Judged, advice: Duration) -> (End, Answer) {
    let end = end_of(&judged);
    let outcome = judged.verdict.outcome();
    let code = judged.verdict.code().into();
    let result = call.pass_on(judged.answer, &judged.verdict, advice);
    let CallStats { waited, attempts } = call.record.service();
    let answer = Answer {
        result,
        outcome,
        code,
        attempts,
        waited,
    };
    (end, answer)
}

fn end_of(judged: &Judged) -> End {
    let unknown = |reason: &str| {
        End::Unknown(Arc::new(UnknownOutcome {
            reason: reason.into(),
            request_id: judged.verdict.request_id().map(Into::into),
        }))
    };
    match &judged.verdict {
        Verdict::Ok { request_id, .. } => {
            let body = judged.answer.as_ref().map(|answer| &answer.body);
            match body.and_then(|body| flow_id::read(body)) {
                Some(flow_id) => End::Done(Arc::new(Created {
                    flow_id: flow_id.into(),
                    request_id: request_id.as_deref().map(Into::into),
                })),
                None => unknown("a success without a FlowId"),
            }
        }
        Verdict::Unknown { reason, .. } => unknown(reason),
        Verdict::Throttled { .. }
        | Verdict::UpstreamError { .. }
        | Verdict::Credentials { .. }
        | Verdict::Clock { .. } => End::Released,
    }
}

fn refused(refusal: Refusal, record: &Record) -> Answer {
    let CallStats { waited, attempts } = record.service();
    Answer {
        outcome: refusal.kind.outcome(),
        code: refusal.kind.code().into(),
        result: Err(refusal),
        attempts,
        waited,
    }
}

// === impl Order ===

impl Order {
    fn journal_key(&self) -> JournalKey {
        JournalKey {
            name: self.name.hex(),
            fingerprint: self.fingerprint.hex(),
        }
    }
}

// === impl KeyedCall ===

impl KeyedCall<'_> {
    async fn answer(
        &self,
        mut accepted: AcceptedCall,
        record: &mut Record,
    ) -> Result<Response<Full<Bytes>>, Refusal> {
        let Self {
            services, order, ..
        } = *self;
        loop {
            let found = services
                .records
                .find(order.name, &order.client, order.fingerprint);
            match found {
                Found::New(claim, waiter) => {
                    let own = Record::background(services.telemetry.clone(), record.request_id());
                    let run = run(services.clone(), accepted, claim, own, order.journal_key());
                    services.attempts.spawn(run);
                    let ending = wait(waiter, self.answer_by, record).await?;
                    return first(&ending, record);
                }
                Found::Running(waiter) => {
                    let ending = self.attach(waiter, accepted.bytes, record).await?;
                    if let Some(answer) = self.attached(&ending, record) {
                        return answer;
                    }
                    // Flowgate refused the call of the key; this one tries for itself.
                    accepted.operation = Arc::new(self.operation_now());
                }
                Found::Done(created) => {
                    return Ok(self.replay(&created, KeyState::Replayed, record));
                }
                Found::Unknown(unknown) => return Err(unknown_outcome(&unknown)),
                Found::Mismatch => return Err(mismatch()),
                Found::Full => return Err(full()),
            }
        }
    }

    /// Waits for the call of the key as one of its callers.
    async fn attach(
        &self,
        waiter: Waiter,
        bytes: usize,
        record: &mut Record,
    ) -> Result<Arc<Ending>, Refusal> {
        let Self {
            services,
            operation,
            ..
        } = *self;
        let queue = services.current_config.load_full().config.queue.clone();
        let awaited = "the call of their idempotency key";
        let _counted = services.key_waits.enter(operation, &queue, awaited)?;
        let _reserved = services.limiter.reserve(operation, bytes)?;
        wait(waiter, self.answer_by, record).await
    }

    /// The answer of the call that this one has waited for. `None`: it was not sent.
    fn attached(
        &self,
        ending: &Ending,
        record: &mut Record,
    ) -> Option<Result<Response<Full<Bytes>>, Refusal>> {
        match &ending.end {
            End::Done(created) => Some(Ok(self.replay(created, KeyState::Attached, record))),
            End::Unknown(unknown) => Some(Err(unknown_outcome(unknown))),
            // CAMS's own refusal is for all who waited for it.
            End::Released if ending.was_sent() => Some(first(ending, record)),
            End::Released if Instant::now() >= self.answer_by => {
                Some(Err(pending(&Progress::Claimed)))
            }
            End::Released => None,
        }
    }

    /// The operation with what is left of the hold.
    fn operation_now(&self) -> Operation {
        let left = self.answer_by.saturating_duration_since(Instant::now());
        let passed = self.operation.hold.saturating_sub(left);
        Operation {
            hold: left,
            wait: self.operation.wait.saturating_sub(passed),
            ..self.operation.clone()
        }
    }

    /// The answer of an earlier call of the key.
    fn replay(
        &self,
        created: &Created,
        state: KeyState,
        record: &mut Record,
    ) -> Response<Full<Bytes>> {
        let Order {
            flow_name,
            categories,
            ..
        } = self.order;
        let request_id = created.request_id.as_deref().unwrap_or_default();
        let flow = CreatedFlow::new(request_id, &created.flow_id, flow_name, categories);
        let response = reply::replay(&flow, state, self.format);
        record.answered(Outcome::Ok, "OK", StatusCode::OK);
        response
    }
}

// === impl Owner ===

impl Owner {
    /// An attempt may leave from now on.
    fn mark(self) -> Self {
        match self {
            Self::Claimed(claim) => Self::Marked(claim.mark()),
            Self::Marked(marked) => Self::Marked(marked),
        }
    }
}

//! Calls with a record: those with an idempotency key, and every CreateFlow of an account whose flow
//! names are unique. The call of a record runs as a task, and its callers wait for the record: it
//! continues when they disconnect, and a repetition of the call waits with them.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::Full;
use hyper::header::HeaderMap;
use hyper::{Response, StatusCode};
use tokio::time::{Instant, sleep_until, timeout_at};

use super::attempt::{Attempted, Judged};
use super::identify::{Caller, Verified};
use super::judge::Verdict;
use super::reply::{self, ErrorFormat};
use super::retry::Decision;
use super::services::CallServices;
use super::shared_key::{ClaimedKey, SharedKey};
use super::{AcceptedCall, ActiveCall, unknown};
use crate::acs::created_flow::CreatedFlow;
use crate::acs::flow_id;
use crate::config::{Config, FlowNames, Mode, OnKeyLoss};
use crate::error::{Kind, Outcome, Refusal};
use crate::idempotency::KeyState;
use crate::idempotency::fingerprint::{RecordName, equal_name, fingerprint, record_name};
use crate::idempotency::key::{self, CLIENT_TOKEN, IdempotencyKey};
use crate::idempotency::record::{
    Answer, Attempts, Created, End, Ending, FlowDescription, LostRecord, Order, OrderKind,
    Progress, Search, UnknownOutcome, Waiter,
};
use crate::idempotency::records::{CallEnd, Claim, Found, Loss, Marked};
use crate::idempotency::shared::{LearnedBy, SharedState};
use crate::observe::journal::JournalOrder;
use crate::observe::record::{CallStats, Record};
use crate::operation::Operation;
use crate::primitives::id::ClientId;
use crate::process::shutdown::Phase;

/// The one action whose calls may have a record.
const ACTION: &str = "CreateFlow";

/// Why the outcome of a call in flight is unknown at the end of its hold.
const LATE: &str = "CAMS has not answered within the hold";

/// The same of a call whose key is known to this process only.
const UNRECORDED: &str = "there is no answer yet, and the idempotency key could not be recorded";

/// When a call that waits for another one of its key should be repeated.
const REPEAT_AFTER: Duration = Duration::from_secs(1);

/// A call with a record.
pub(super) struct OrderCall {
    name: RecordName,
    order: Arc<Order>,
    /// Whether Flowgate looks for the flow if its outcome is unknown.
    is_sought: bool,
}

/// A call with a record, and what its answer needs.
struct KeyedCall<'a> {
    services: &'a Arc<CallServices>,
    operation: &'a Operation,
    order: &'a OrderCall,
    format: &'a ErrorFormat,
    /// The end of the hold.
    answer_by: Instant,
}

/// Who runs the call: the claim, until an attempt may leave; then the mark.
enum Owner {
    Claimed(Claim),
    Marked(Marked),
}

/// A call that runs as the task of its record.
struct Runner {
    services: Arc<CallServices>,
    owner: Option<Owner>,
    /// The key among the replicas, if there are any.
    shared: Option<SharedKey>,
    /// Whether the call may be sent although the store cannot record its key.
    on_loss: OnKeyLoss,
    /// False after that, or after it was sent although the journal could not.
    is_protected: bool,
    /// False: the store could not record its key.
    is_in_store: bool,
    /// Whether Flowgate looks for the flow if its outcome is unknown.
    is_sought: bool,
    /// Whether a repetition of the call finds its record.
    is_repeatable: bool,
    /// No request of the call has a later time stamp than this.
    stamped_until: Instant,
    /// The order, if it has no key and looks must know its flow.
    keyless: Option<(RecordName, Arc<Order>)>,
}

/// How the call of a record has ended, and the answer of this process, if there is one.
type Driven = Result<Option<(CallEnd, Option<Answer>)>, Refusal>;

/// Reads the order of a call. `None`: it has no record. A `ClientToken` is not sent to CAMS, which
/// does not know it.
pub(super) fn order(
    caller: &mut Caller,
    headers: &HeaderMap,
    config: &Config,
    request_id: &str,
) -> Result<Option<Box<OrderCall>>, Refusal> {
    if caller.action().as_str() != ACTION || config.mode != Mode::Enforce {
        return Ok(None);
    }
    let key = if config.exactly_once.keys {
        key::read(headers, caller.params().get(CLIENT_TOKEN))
            .map_err(|error| Refusal::new(Kind::BadRequest, format!("Flowgate: {error}.")))?
    } else {
        None
    };
    let call = match &*caller {
        Caller::Verified(call) => call,
        Caller::Relayed(_) if key.is_none() => return Ok(None),
        Caller::Relayed(_) => {
            let message = "An idempotency key needs an account whose calls Flowgate signs: the \
                           caller of a relayed call is not verified, so it may not be shown an \
                           answer.";
            return Err(Refusal::new(Kind::BadRequest, message));
        }
    };
    let is_sought = call.flow_names() == FlowNames::Unique;
    if key.is_none() && !is_sought {
        return Ok(None);
    }
    let order = OrderCall::new(call, caller, key.as_ref(), request_id);
    if key.is_some() {
        caller.remove_param(CLIENT_TOKEN);
    }
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
    order: &OrderCall,
    record: &mut Record,
    format: &ErrorFormat,
) -> Result<Response<Full<Bytes>>, Refusal> {
    let operation = accepted.operation.clone();
    let metrics = services.metrics.calls(operation.labels());
    record.queued(operation.clone());
    record.set_metrics(metrics);
    record.has_order(order.name.short().into(), order.is_repeatable());
    let call = KeyedCall {
        services,
        operation: &operation,
        order,
        format,
        answer_by: Instant::now() + operation.hold,
    };
    let mut answered = call.answer(accepted, record).await;
    if !services.records.is_protected(order.name) {
        unprotect(&mut answered);
    }
    let state = match &answered {
        Ok(response) => reply::key_state(response.headers()),
        Err(refusal) => refusal.key,
    };
    if call.is_repeatable() || state.is_some() {
        let account = operation.account_label();
        let state = state.unwrap_or(KeyState::Refused.label());
        services.metrics.keyed_call(account, state);
    }
    answered
}

/// A later process or another replica may not know the record: as without a key, a repetition could
/// create another flow.
fn unprotect(answered: &mut Result<Response<Full<Bytes>>, Refusal>) {
    match answered {
        Ok(response) => reply::unmark_key(response.headers_mut()),
        Err(refusal) => {
            refusal.key = None;
            if refusal.kind == Kind::OutcomeUnknown && refusal.retry_after.take().is_some() {
                *refusal = Refusal::unknown(UNRECORDED, ACTION, None);
            }
        }
    }
}

/// A caller that waits for a record. If it leaves, its own record learns whether CAMS may have
/// executed the call: then the outcome is unknown to it.
struct Waiting<'a> {
    waiter: Waiter,
    /// Whether replicas share the key.
    is_shared: bool,
    record: &'a mut Record,
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        // Read before and after: the record may end when its last caller leaves, and an attempt that
        // begins all the same has been noted by then.
        let before = self.waiter.may_be_executed(self.is_shared);
        self.waiter.leave();
        if let Some(attempts) = self.waiter.attempts() {
            self.record.count(attempts.stats);
        }
        if before || self.waiter.may_be_executed(self.is_shared) {
            self.record.follows_attempt();
        }
    }
}

/// The refusal of a call whose outcome is unknown. `who` sends no repetition of it; `None`: each call is another
/// order.
fn unknown_outcome(unknown: &UnknownOutcome, who: Option<&str>) -> Refusal {
    let request_id = unknown.request_id.as_deref();
    let refusal = if let Some(who) = who {
        let first = &unknown.order.request_id;
        let advice = format!(
            "Look for the flow (with ListFlow), and let an operator of Flowgate settle request {first}: \
             before that {who} sends no repetition."
        );
        Refusal::unknown_with(&unknown.reason, &advice, request_id)
    } else {
        Refusal::unknown(&unknown.reason, ACTION, request_id)
    };
    Refusal {
        message: with_finding(refusal.message, unknown),
        ..refusal
    }
    .with_key(KeyState::Unknown.label())
}

/// Adds what the looks have found.
fn with_finding(message: String, unknown: &UnknownOutcome) -> String {
    match &unknown.search {
        Search::Ambiguous(found) => format!("{message} Flowgate has looked for it: {found}."),
        Search::None | Search::Active => message,
    }
}

/// The refusal of a call whose hold is over while Flowgate looks for its flow.
fn sought(unknown: &UnknownOutcome) -> Refusal {
    Refusal {
        retry_after: Some(REPEAT_AFTER),
        ..unknown_outcome(unknown, None)
    }
}

/// What a caller is told that may repeat its call while Flowgate looks for its flow.
fn sought_message(ending: &Ending) -> Option<String> {
    let End::Unknown(unknown) = &ending.end else {
        return None;
    };
    let reason = &unknown.reason;
    Some(format!(
        "The call was sent to CAMS, but its outcome is unknown: {reason}. Flowgate looks for its \
         flow. Repeat the call unchanged: it is not sent again before Flowgate knows."
    ))
}

/// How a caller learns of a flow that was not created by its own attempt.
fn learned(ending: &Ending) -> KeyState {
    if ending.is_resolved {
        KeyState::Resolved
    } else {
        KeyState::Replayed
    }
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

fn unshared() -> Refusal {
    let message = "The store that replicas share cannot record the idempotency key, so Flowgate sent \
                   nothing. Repeat the call with the same key.";
    Refusal::after(Kind::KeysUnavailable, REPEAT_AFTER, message)
}

fn full() -> Refusal {
    let message = "Flowgate remembers no more idempotency keys, or no more of this client, which \
                   may have half of exactly_once.max_keys. It cannot honour this one; nothing was \
                   sent.";
    Refusal::after(Kind::KeysFull, Duration::from_secs(60), message)
}

/// The refusal of a call whose hold is over before the call of its key has ended.
fn pending(progress: &Progress) -> Refusal {
    let refusal = match progress {
        Progress::Open => Refusal::after(
            Kind::OutcomeUnknown,
            REPEAT_AFTER,
            "The call of this idempotency key was sent, and CAMS has not answered yet. Repeat the \
             call unchanged: it is not sent again, and gets the answer if there is one.",
        ),
        Progress::Sought(ending) | Progress::Ended(ending) => match &ending.end {
            End::Unknown(unknown) => return sought(unknown),
            End::Done(_) | End::Released => still_queued(),
        },
        Progress::Claimed => still_queued(),
    };
    refusal.with_key(KeyState::Pending.label())
}

fn still_queued() -> Refusal {
    Refusal::after(
        Kind::HoldExpired,
        REPEAT_AFTER,
        "The call of this idempotency key is still queued. Repeat the call with the same key.",
    )
}

/// The answer to the first caller.
fn answer_of(call: &mut ActiveCall<'_>, judged: Judged, advice: Duration) -> Answer {
    let outcome = judged.verdict.outcome();
    let code = judged.verdict.code().into();
    let result = call.pass_on(judged.answer, &judged.verdict, advice);
    let CallStats { waited, attempts } = call.record.service();
    Answer {
        result,
        outcome,
        code,
        attempts,
        waited,
        notes: call.record.take_notes(),
        is_protected: true,
    }
}

/// What a judged attempt has done. `attempt` is its name in the journal.
fn end_of(judged: &Judged, attempt: Option<Box<str>>, is_sought: bool) -> CallEnd {
    let unknown = |reason: &str| {
        CallEnd::Unknown(Loss {
            reason: reason.into(),
            request_id: judged.verdict.request_id().map(Into::into),
            attempt,
            call: None,
            is_sought,
        })
    };
    match &judged.verdict {
        Verdict::Ok { request_id, .. } => {
            let body = judged.answer.as_ref().map(|answer| &answer.body);
            match body.and_then(|body| flow_id::read(body)) {
                Some(flow_id) => CallEnd::Created(Created {
                    flow_id: flow_id.into(),
                    request_id: request_id.as_deref().map(Into::into),
                }),
                None => unknown("a success without a FlowId"),
            }
        }
        Verdict::Unknown { reason, .. } => unknown(reason),
        Verdict::Throttled { .. }
        | Verdict::UpstreamError { .. }
        | Verdict::Credentials { .. }
        | Verdict::Clock { .. } => CallEnd::NotCreated,
    }
}

fn refused(refusal: Refusal, record: &mut Record) -> Answer {
    let CallStats { waited, attempts } = record.service();
    Answer {
        outcome: refusal.kind.outcome(),
        code: refusal.kind.code().into(),
        result: Err(refusal),
        attempts,
        waited,
        notes: record.take_notes(),
        is_protected: true,
    }
}

// === impl OrderCall ===

impl OrderCall {
    fn new(
        call: &Verified,
        caller: &Caller,
        key: Option<&IdempotencyKey>,
        request_id: &str,
    ) -> Self {
        let account = caller.account();
        // All keys and sessions of an account itself are one client: a session changes every hour.
        let client = call
            .client_config()
            .map_or_else(|| ClientId::new(""), |client| client.id.clone());
        let json = call.json().map(|json| &json[..]);
        let fingerprint = fingerprint(ACTION, call.params().iter(), json);
        let (kind, name) = match key {
            Some(key) => {
                let name = record_name(account.as_str(), client.as_str(), key);
                (OrderKind::Keyed, name)
            }
            None if call.adopts_repeats() => {
                let name = equal_name(account.as_str(), client.as_str(), fingerprint);
                (OrderKind::Equal, name)
            }
            None => (OrderKind::Single, RecordName::random()),
        };
        let order = Order {
            account: account.clone(),
            client,
            kind,
            fingerprint,
            request_id: request_id.into(),
            flow: FlowDescription {
                name: caller.flow_name().unwrap_or_default().into(),
                space: caller
                    .params()
                    .get("CustSpaceId")
                    .unwrap_or_default()
                    .into(),
                categories: categories(caller),
            },
        };
        let is_unique = call.flow_names() == FlowNames::Unique;
        Self {
            name,
            is_sought: is_unique && order.flow.can_be_sought(),
            order: Arc::new(order),
        }
    }

    /// Whether a repetition of the call finds its record.
    fn is_repeatable(&self) -> bool {
        self.order.kind != OrderKind::Single
    }

    fn journal_order(&self) -> JournalOrder {
        let flow = &self.order.flow;
        JournalOrder {
            name: self.name.hex(),
            fingerprint: self.order.fingerprint.hex(),
            kind: self.order.kind,
            is_required: self.order.kind == OrderKind::Keyed,
            is_in_store: true,
            flow_name: flow.name.to_string(),
            space: flow.space.to_string(),
            categories: flow.categories.clone(),
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
            match services.records.find(order.name, &order.order) {
                Found::New(claim, waiter) => {
                    record.repeats(&order.order.request_id);
                    let own = Record::background(services.telemetry.clone(), record.request_id());
                    let runner = Runner::new(services, order, claim, &accepted);
                    let journal = services.journal.as_ref();
                    let journal = journal.map(|_| order.journal_order());
                    let run = runner.run(accepted, own, journal);
                    services.attempts.spawn(Box::pin(run));
                    return match self.wait(waiter, record).await {
                        Ok(ending) => self.first(&ending, record),
                        // CAMS's own answer, if there is one.
                        Err(Progress::Sought(ending)) if ending.answer.is_some() => {
                            self.first(&ending, record)
                        }
                        Err(progress) => Err(self.pending(&progress)),
                    };
                }
                Found::Running(waiter) => {
                    record.repeats(&waiter.first_request_id());
                    let ending = self.attach(waiter, accepted.bytes, record).await?;
                    if let Some(answer) = self.attached(&ending, record) {
                        return answer;
                    }
                    // Nothing was created by the call of the key; this one tries for itself.
                    accepted.operation = Arc::new(self.operation_now());
                }
                Found::Done(created) => {
                    return Ok(self.replay(&created, KeyState::Replayed, record));
                }
                Found::Unknown(unknown) => {
                    // So it is to a caller that leaves meanwhile.
                    record.repeats(&unknown.order.request_id);
                    record.follows_attempt();
                    let seen = Box::pin(self.seen_elsewhere(&unknown)).await;
                    let ended = seen.as_ref().and_then(|state| state.end_of(&unknown));
                    match (ended, seen) {
                        // Another repetition may have been first.
                        (Some(end), _) => {
                            drop(unknown::resolve_here(services, order.name, &unknown, end));
                        }
                        // Another process has the call under way again.
                        (None, Some(SharedState::Claimed(_) | SharedState::Open(_))) => {
                            return Err(self.pending(&Progress::Open));
                        }
                        (None, _) => return Err(self.unknown(&unknown)),
                    }
                }
                Found::Mismatch => return Err(mismatch()),
                Found::Full => return Err(full()),
            }
        }
    }

    /// What the store says of a key whose outcome is unknown here; `None` if that is not about this call.
    async fn seen_elsewhere(&self, unknown: &UnknownOutcome) -> Option<SharedState> {
        let name = self.order.name;
        let shared = self.services.shared_records.as_ref()?;
        if unknown.order.kind != OrderKind::Keyed || !self.services.records.is_in_store(name) {
            return None;
        }
        shared.read(name, &unknown.order).await.ok()
    }

    /// Waits for the end of the call, at most until the end of the hold. Also until the end of a
    /// drain, if a later process or another replica will know the record.
    async fn wait(&self, waiter: Waiter, record: &mut Record) -> Result<Arc<Ending>, Progress> {
        let is_shared = self.services.shared_records.is_some();
        let mut waiting = Waiting {
            waiter,
            is_shared: is_shared && self.order.order.kind == OrderKind::Keyed,
            record,
        };
        let is_kept = self.services.journal.is_some() || self.services.shared_records.is_some();
        let phases = &self.services.phases;
        let stopped = async {
            if !is_kept || !self.is_repeatable() {
                std::future::pending::<()>().await;
            }
            phases.now_in(Phase::Over).await;
        };
        let ended = tokio::select! {
            biased;
            ended = timeout_at(self.answer_by, waiting.waiter.end()) => ended.ok(),
            () = stopped => None,
        };
        ended.ok_or_else(|| waiting.waiter.progress())
    }

    /// The answer to the first caller: CAMS's own, if there is one.
    fn first(
        &self,
        ending: &Ending,
        record: &mut Record,
    ) -> Result<Response<Full<Bytes>>, Refusal> {
        let Some(answer) = &ending.answer else {
            return match &ending.end {
                End::Done(created) => Ok(self.replay(created, learned(ending), record)),
                End::Unknown(unknown) => {
                    record.repeats(&unknown.order.request_id);
                    Err(self.unknown(unknown))
                }
                End::Released if ending.is_resolved => Err(self.absent()),
                End::Released => Err(reply::internal()),
            };
        };
        record.follow(answer.attempts, answer.waited, answer.notes.clone());
        let state = self.state_of(&ending.end).filter(|_| answer.is_protected);
        match &answer.result {
            Ok(response) => {
                record.answered(answer.outcome, &answer.code, response.status());
                let mut response = response.clone();
                if let Some(state) = state {
                    reply::mark_key(response.headers_mut(), state);
                }
                Ok(response)
            }
            Err(refusal) => {
                let mut refusal = refusal.clone();
                // Another replica may have sent it.
                if refusal.kind == Kind::OutcomeUnknown && matches!(ending.end, End::Released) {
                    record.follows_attempt();
                }
                if ending.was_sent() {
                    let key = refusal.key;
                    refusal.key = state.map(|state| key.unwrap_or(state.label()));
                }
                if let End::Unknown(unknown) = &ending.end
                    && self.is_repeatable()
                {
                    if unknown.search == Search::Active {
                        refusal.retry_after = Some(self.repeat_after());
                        refusal.message = sought_message(ending).unwrap_or(refusal.message);
                    } else {
                        refusal.message = self.unknown(unknown).message;
                    }
                }
                Err(refusal)
            }
        }
    }

    /// The refusal of a call whose outcome is unknown.
    fn unknown(&self, unknown: &UnknownOutcome) -> Refusal {
        let Self {
            services, order, ..
        } = *self;
        let kind = order.order.kind;
        // While the table is full there is no record of a call without a key.
        let is_known = kind == OrderKind::Keyed || services.records.is_unknown(order.name, unknown);
        if kind == OrderKind::Single || !is_known {
            return unknown_outcome(unknown, None);
        }
        // Otherwise another replica or a later process may send one.
        let is_kept = kind == OrderKind::Keyed
            && (services.journal.is_some() || services.shared_records.is_some());
        let who = if is_kept && services.records.is_protected(order.name) {
            "Flowgate"
        } else {
            "this process of Flowgate"
        };
        unknown_outcome(unknown, Some(who))
    }

    /// What the answer to the first caller has to do with its record. A call that cannot be repeated
    /// is not protected.
    fn state_of(&self, end: &End) -> Option<KeyState> {
        let state = match end {
            End::Done(_) | End::Released => KeyState::First,
            End::Unknown(_) => KeyState::Unknown,
        };
        self.is_repeatable().then_some(state)
    }

    /// Whether a repetition of the call finds its record.
    fn is_repeatable(&self) -> bool {
        self.order.is_repeatable()
    }

    /// The refusal of a call whose hold is over before its record has ended.
    fn pending(&self, progress: &Progress) -> Refusal {
        if !self.is_repeatable() && matches!(progress, Progress::Open) {
            return Refusal::unknown(LATE, ACTION, None);
        }
        let mut refusal = pending(progress);
        if self.is_repeatable() {
            if let Progress::Sought(ending) = progress {
                refusal.retry_after = Some(self.repeat_after());
                refusal.message = sought_message(ending).unwrap_or(refusal.message);
            }
            return refusal;
        }
        // As for other calls: a repetition would create another flow.
        let is_queued = matches!(progress, Progress::Claimed);
        Refusal {
            key: None,
            retry_after: refusal.retry_after.filter(|_| is_queued),
            ..refusal
        }
    }

    /// When a call whose flow is looked for should be repeated: after the next look.
    fn repeat_after(&self) -> Duration {
        let looks = &self.services.looks;
        looks.repeat_after(self.order.name, Instant::now())
    }

    /// Looks have proved that the flow does not exist: the caller may try again.
    fn absent(&self) -> Refusal {
        let message = "CAMS has not created the flow. Repeat the call.";
        let refusal = Refusal::after(Kind::HoldExpired, REPEAT_AFTER, message);
        if self.is_repeatable() {
            refusal.with_key(KeyState::Pending.label())
        } else {
            refusal
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
        let waited = self.wait(waiter, record).await;
        waited.map_err(|progress| self.pending(&progress))
    }

    /// The answer of the call that this one has waited for. `None`: it was not sent.
    fn attached(
        &self,
        ending: &Ending,
        record: &mut Record,
    ) -> Option<Result<Response<Full<Bytes>>, Refusal>> {
        match &ending.end {
            End::Done(created) => {
                let state = if ending.is_resolved {
                    KeyState::Resolved
                } else {
                    self.attached_state()
                };
                Some(Ok(self.replay(created, state, record)))
            }
            End::Unknown(unknown) => Some(Err(self.unknown(unknown))),
            // CAMS's own refusal is for all who waited for it.
            End::Released if ending.was_sent() => {
                let refused = self.first(ending, record);
                let first = KeyState::First.label();
                Some(refused.map_err(|refusal| match refusal.key {
                    Some(key) if key == first => refusal.with_key(self.attached_state().label()),
                    _ => refusal,
                }))
            }
            End::Released if Instant::now() >= self.answer_by => {
                Some(Err(self.pending(&Progress::Claimed)))
            }
            End::Released => None,
        }
    }

    /// Whether the call has no key, and is taken for a repetition.
    fn is_adopted(&self) -> bool {
        self.order.order.kind == OrderKind::Equal
    }

    /// What the answer to a call says that has waited for another one.
    fn attached_state(&self) -> KeyState {
        if self.is_adopted() {
            KeyState::Adopted
        } else {
            KeyState::Attached
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
        let FlowDescription {
            name, categories, ..
        } = &self.order.order.flow;
        let request_id = created.request_id.as_deref().unwrap_or_default();
        let flow = CreatedFlow::new(request_id, &created.flow_id, name, categories);
        let state = match state {
            KeyState::Replayed if self.is_adopted() => KeyState::Adopted,
            state => state,
        };
        let response = reply::replay(&flow, state, self.format);
        record.replays(created.request_id.as_deref());
        record.answered(Outcome::Ok, "OK", StatusCode::OK);
        response
    }
}

// === impl Runner ===

impl Runner {
    fn new(
        services: &Arc<CallServices>,
        order: &OrderCall,
        claim: Claim,
        accepted: &AcceptedCall,
    ) -> Self {
        let hold = accepted.operation.hold;
        let shared = services.shared_records.as_ref();
        let shared = shared.filter(|_| order.order.kind == OrderKind::Keyed);
        let is_sought = order.is_sought;
        Self {
            services: services.clone(),
            owner: Some(Owner::Claimed(claim)),
            shared: shared
                .map(|shared| SharedKey::new(shared, order.name, &order.order, hold, is_sought)),
            on_loss: services.current_config.load().config.exactly_once.on_loss,
            is_protected: true,
            is_in_store: true,
            is_sought,
            is_repeatable: order.is_repeatable(),
            stamped_until: Instant::now() + hold,
            keyless: is_sought
                .then(|| (order.name, order.order.clone()))
                .filter(|(_, order)| order.kind != OrderKind::Keyed),
        }
    }

    /// Runs the call of a record to its end.
    async fn run(mut self, call: AcceptedCall, mut record: Record, journal: Option<JournalOrder>) {
        let services = self.services.clone();
        let driven = match self.claim_shared().await {
            Ok(None) => match ActiveCall::in_background(&services, call, &mut record, journal) {
                Ok(call) => Box::pin(self.drive(call)).await,
                Err(refusal) => Err(refusal),
            },
            Ok(Some(driven)) => driven,
            Err(refusal) => Err(refusal),
        };
        let (end, answer) = match driven {
            Ok(Some(ended)) => ended,
            // Its callers have left; dropping the claim frees the record.
            Ok(None) => (CallEnd::NotCreated, None),
            Err(refusal) => (CallEnd::NotCreated, Some(refused(refusal, &mut record))),
        };
        self.end(end, answer).await;
    }

    /// Claims the key among the replicas, if there are any. Returns the end if another replica has
    /// run the call.
    async fn claim_shared(&mut self) -> Result<Option<Driven>, Refusal> {
        let Some(shared) = &mut self.shared else {
            return Ok(None);
        };
        let claimed = match &self.owner {
            Some(Owner::Claimed(claim)) => {
                claim.forget_attempts();
                shared.claim(|| claim.follow(), claim.abandoned()).await
            }
            Some(Owner::Marked(marked)) => {
                marked.forget_attempts();
                let gone = sleep_until(self.stamped_until);
                shared.claim(|| marked.follow(), gone).await
            }
            None => return Ok(None),
        };
        match claimed {
            Ok(ClaimedKey::Mine) => Ok(None),
            Ok(ClaimedKey::Ended(end, stamped_until)) => {
                // The end is in the store already.
                self.shared = None;
                self.stamped_until = stamped_until;
                Ok(Some(Ok(Some((end, None)))))
            }
            Ok(ClaimedKey::Mismatch) => Err(mismatch()),
            Ok(ClaimedKey::Abandoned { .. }) if matches!(self.owner, Some(Owner::Claimed(_))) => {
                Ok(Some(Ok(None)))
            }
            // The hold is over.
            Ok(ClaimedKey::Abandoned { is_followed: true }) => Err(pending(&Progress::Open)),
            // CAMS has refused the earlier attempts of this replica.
            Ok(ClaimedKey::Abandoned { is_followed: false }) => Err(pending(&Progress::Claimed)),
            Err(_logged) => self.lose_store().map(|()| None),
        }
    }

    /// The store cannot record the key: the call is sent without protection, or refused.
    fn lose_store(&mut self) -> Result<(), Refusal> {
        if self.on_loss == OnKeyLoss::Refuse {
            return Err(unshared());
        }
        self.shared = None;
        self.is_in_store = false;
        self.lose_protection(LostRecord::Store);
        Ok(())
    }

    fn lose_protection(&mut self, lost: LostRecord) {
        self.is_protected = false;
        match &self.owner {
            Some(Owner::Claimed(claim)) => claim.lose_protection(lost),
            Some(Owner::Marked(marked)) => marked.lose_protection(lost),
            None => {}
        }
    }

    /// Whether a caller waits for the marked call.
    fn is_awaited(&self) -> bool {
        matches!(&self.owner, Some(Owner::Marked(marked)) if marked.is_awaited())
    }

    /// Waits until no caller waits for the call any more.
    async fn abandoned(&self) {
        match &self.owner {
            Some(Owner::Claimed(claim)) => claim.abandoned().await,
            Some(Owner::Marked(marked)) => marked.abandoned().await,
            None => std::future::pending().await,
        }
    }

    /// The journal cannot record the attempt: the call is sent without protection, or refused.
    fn lose_journal(&mut self, call: &mut ActiveCall<'_>) -> Result<(), Refusal> {
        if self.on_loss == OnKeyLoss::Refuse {
            return Err(unrecorded());
        }
        self.lose_protection(LostRecord::Journal);
        call.needs_no_journal();
        call.record.queued_again(Duration::ZERO);
        Ok(())
    }

    /// The steps of a call with a record, as those of another one. Returns `None` if all callers have
    /// left while nothing of it was under way. A refusal means that nothing was executed: after an attempt
    /// with another result the call does not return to the queue.
    async fn drive(&mut self, mut call: ActiveCall<'_>) -> Driven {
        loop {
            // Nothing of the call can be executed here: no attempt is under way, and CAMS has refused
            // the earlier ones.
            self.note_attempts(&call, false);
            let permit = tokio::select! {
                biased;
                () = self.abandoned() => return Ok(None),
                permit = call.permit() => permit?,
            };
            if !self.is_in_store {
                call.is_not_in_store();
            }
            let Some((permit, sending)) = call.sign(permit)? else {
                continue;
            };
            if !self.mark(&mut call).await? {
                drop((permit, sending));
                call.record.queued_again(Duration::ZERO);
                match self.claim_shared().await? {
                    Some(ended) => return ended,
                    None => continue,
                }
            }
            // Its callers may have left while the store marked the key.
            if !self.is_awaited() {
                call.record.unsent();
                self.note_attempts(&call, false);
                drop((permit, sending));
                return Ok(None);
            }
            let attempt = sending.note.as_ref().map(|note| note.attempt().into());
            let attempted = call.attempt(permit, sending).await;
            if matches!(attempted, Ok(Attempted::Unrecorded)) {
                call.record.unsent();
                self.lose_journal(&mut call)?;
                continue;
            }
            let Some(judged) = call.judge(attempted).await else {
                continue;
            };
            match call.decide(&judged.verdict) {
                Decision::Again { after } => {
                    self.note_attempts(&call, false);
                    call.back_off(after).await;
                }
                Decision::Reply { advice } => {
                    let end = end_of(&judged, attempt, self.is_sought);
                    // Otherwise the refusal of its one caller counts.
                    if self.is_repeatable && matches!(end, CallEnd::Unknown(_)) {
                        let account = call.operation.account_label();
                        self.services.metrics.lost_call(account);
                    }
                    return Ok(Some((end, Some(answer_of(&mut call, *judged, advice)))));
                }
            }
        }
    }

    /// Notes the attempts so far, for callers that leave.
    fn note_attempts(&self, call: &ActiveCall<'_>, is_in_flight: bool) {
        let stats = call.record.service();
        let attempts = Attempts {
            stats,
            is_in_flight,
        };
        match &self.owner {
            Some(Owner::Claimed(claim)) => claim.note_attempts(attempts),
            Some(Owner::Marked(marked)) => marked.note_attempts(attempts),
            None => {}
        }
    }

    /// An attempt that is signed may leave from now on. False: it may not, because another replica may
    /// have the key, or because the store has just been lost.
    async fn mark(&mut self, call: &mut ActiveCall<'_>) -> Result<bool, Refusal> {
        self.stamped_until = call.limited_call.send_by();
        if let Some(shared) = &self.shared {
            match shared.mark(self.stamped_until).await {
                Ok(true) => {}
                Ok(false) => {
                    call.record.unsent();
                    return Ok(false);
                }
                // What is signed has no line yet that says so.
                Err(_logged) => {
                    call.record.unsent();
                    self.lose_store()?;
                    return Ok(false);
                }
            }
        }
        let stamped_until = self.stamped_until;
        self.note_attempts(call, true);
        self.owner = self.owner.take().map(|owner| owner.mark(stamped_until));
        Ok(true)
    }

    /// Tells the other replicas first, then those that wait.
    async fn end(mut self, end: CallEnd, answer: Option<Answer>) {
        if let Some(shared) = &self.shared {
            shared.settle(&end, self.stamped_until).await;
        }
        if let (CallEnd::Created(created), Some((name, order))) = (&end, self.keyless.take()) {
            self.note_flow(name, order, created.flow_id.clone());
        }
        let is_protected = self.is_protected;
        let answer = answer.map(|answer| Answer {
            is_protected,
            ..answer
        });
        match (self.owner.take(), answer) {
            (Some(Owner::Claimed(claim)), Some(answer)) => claim.release(answer),
            (Some(Owner::Marked(marked)), Some(answer)) => marked.end(end, answer),
            (Some(Owner::Claimed(claim)), None) => match end {
                CallEnd::NotCreated => drop(claim),
                end => claim.learn(end, self.stamped_until),
            },
            (Some(Owner::Marked(marked)), None) => marked.learn(end, self.stamped_until),
            (None, _) => {}
        }
        if let Some(shared) = &self.shared {
            shared.ended();
        }
    }

    /// Tells the looks of other replicas to which call the flow belongs.
    fn note_flow(&self, name: RecordName, order: Arc<Order>, flow_id: Box<str>) {
        let Some(shared) = self.services.shared_records.clone() else {
            return;
        };
        let note = async move {
            drop(
                shared
                    .take_flow(name, &order, &flow_id, LearnedBy::Answer)
                    .await,
            );
        };
        self.services.attempts.spawn(Box::pin(note));
    }
}

// === impl Owner ===

impl Owner {
    /// An attempt may leave from now on.
    fn mark(self, stamped_until: Instant) -> Self {
        match self {
            Self::Claimed(claim) => Self::Marked(claim.mark(stamped_until)),
            Self::Marked(marked) => Self::Marked(marked.again()),
        }
    }
}

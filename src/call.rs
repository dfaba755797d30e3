//! One call from arrival to reply, a line per step. Each step is a file of that name and leaves a value that the next
//! one needs: who asks (`Caller`, of which `Sendable` is kept), what is asked (`Operation`), the permission to send
//! (`Turn`), what happened (`Verdict`), what now (`Decision`).

pub(crate) mod attempt;
pub(crate) mod body;
pub(crate) mod classify;
pub(crate) mod hold;
pub(crate) mod identify;
pub(crate) mod judge;
pub(crate) mod reply;
pub(crate) mod retry;
pub(crate) mod services;
pub(crate) mod settings;
pub(crate) mod sign;
#[cfg(test)]
mod tests;

use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use futures_util::FutureExt;
use http_body_util::Full;
use hyper::body::Body;
use hyper::{Request, Response};
use tokio::time::Instant;

use crate::call::attempt::{Attempted, Deadlines, Judged, Sending};
use crate::call::identify::Sendable;
use crate::call::judge::Context;
use crate::call::reply::Manner;
use crate::call::retry::{Decision, Tries};
use crate::call::services::CallServices;
use crate::call::settings::Settings;
use crate::config::Mode;
use crate::error::Refusal;
use crate::limiter;
use crate::observe::journal::Journal;
use crate::observe::record::Record;
use crate::operation::Operation;
use crate::process::shutdown::Phase;
use crate::server::Gone;
use crate::server::socket::Hangup;

/// Why a call ends without an answer of CAMS.
enum End {
    /// Flowgate answers.
    Refused(Refusal),
    /// The caller has hung up.
    Gone,
}

impl From<Refusal> for End {
    fn from(refusal: Refusal) -> Self {
        Self::Refused(refusal)
    }
}

/// Answers one request, whatever happens: the steps' end, a hang-up, the end of a drain's grace, or a panic. Whoever
/// polls it does so anew when a phase begins.
pub(crate) async fn call<B>(
    parts: Arc<CallServices>,
    request: Box<Request<B>>,
    hangup: Hangup,
) -> Result<Response<Full<Bytes>>, Gone>
where
    B: Body<Data = Bytes> + Unpin,
{
    let (parts, hangup) = (&parts, &hangup);
    let mut record = Record::new(parts.sinks.clone(), hangup.from());
    let mut manner = Manner::default();
    let end = {
        let steps = AssertUnwindSafe(steps(parts, request, hangup, (&mut record, &mut manner)))
            .catch_unwind();
        tokio::select! {
            biased;
            end = steps => end.unwrap_or_else(|_panic| Err(reply::internal().into())),
            () = hangup.happened() => Err(End::Gone),
            () = parts.phases.now_in(Phase::Over) => Err(End::Refused(limiter::draining())),
        }
    };
    let response = match end {
        Ok(response) => response,
        Err(End::Gone) => {
            record.cancelled();
            return Err(Gone);
        }
        Err(End::Refused(refusal)) => {
            let refusal = record.refused(refusal);
            reply::refuse(&refusal, &manner, record.request_id())
        }
    };
    Ok(reply::closing(response, parts.phases.now()))
}

/// The table of contents.
async fn steps<B>(
    parts: &Arc<CallServices>,
    request: Box<Request<B>>,
    hangup: &Hangup,
    (record, manner): (&mut Record, &mut Manner),
) -> Result<Response<Full<Bytes>>, End>
where
    B: Body<Data = Bytes> + Unpin,
{
    // Boxed, so that a call that waits has no room for it any more.
    let Arrived {
        mut call,
        operation,
        bytes,
        mut generation,
    } = Box::pin(arrive(parts, request, record, manner)).await?;
    let context = Context {
        managed: matches!(call, Sendable::Verified(_)),
        limited: operation.limit.is_some(),
    };
    let metrics = parts.metrics.calls(operation.labels());
    record.queued(operation.clone(), metrics.clone());
    let answer_by = Instant::now() + operation.hold;
    let mut place = parts.limiter.arrive(&operation, bytes)?;
    let mut renewed = false;
    loop {
        let permit = place.permit().await?;
        record.turn(place.age());
        if hangup.has_happened() {
            return Err(End::Gone);
        }
        let sending = {
            let settings = parts.settings.load();
            settings.recheck(&mut call, &operation.account, &mut generation)?;
            let mut request = sign::sign(&call, &settings.config.upstream.host, SystemTime::now());
            record.sent(request.headers_mut(), !context.managed);
            let note = |journal: &Arc<Journal>| {
                Box::new(journal.note(record.flow_name(), &operation, record.request_id()))
            };
            let note = parts.journal.as_ref().map(note);
            let deadlines = Deadlines {
                send_by: place.send_by(),
                answer_by,
            };
            Sending {
                request,
                operation: operation.clone(),
                metrics: metrics.clone(),
                context,
                deadlines,
                note,
            }
        };
        let after = {
            let Attempted::Judged(judged) = attempt::attempt(parts, permit, sending).await else {
                record.unsent();
                continue;
            };
            record.judged(judged.verdict.code(), judged.verdict.request_id());
            if judged.verdict.is_old_session()
                && !std::mem::replace(&mut renewed, true)
                && Box::pin(parts.settings.reread(generation, answer_by)).await
            {
                record.queued_again(Duration::ZERO);
                continue;
            }
            let (sent, left) = (record.attempts(), place.left());
            let settings = parts.settings.load_full();
            let can_repeat = context.managed && settings.config.mode == Mode::Enforce;
            let tries = Tries {
                sent,
                can_repeat,
                has_lane: context.limited,
                left,
            };
            match retry::decide(
                &judged.verdict,
                tries,
                &settings.config.retry,
                fastrand::f64(),
            ) {
                Decision::Again { after } => after,
                Decision::Reply { advice } => {
                    let Judged { answer, verdict } = *judged;
                    let response = reply::pass_on(answer, &verdict, record.service(), || {
                        place.predicted_wait().max(advice)
                    })?;
                    record.answered(verdict.outcome(), verdict.code(), response.status());
                    return Ok(response);
                }
            }
        };
        record.queued_again(after);
        tokio::time::sleep(after).await;
    }
}

/// A call that has arrived, whole, as far as it is of use from now on.
struct Arrived {
    call: Sendable,
    operation: Arc<Operation>,
    /// How many bytes wait with it.
    bytes: usize,
    /// The settings that it was identified with.
    generation: u64,
}

/// The steps before the call may wait: who asks, and for what.
async fn arrive<B>(
    parts: &Arc<CallServices>,
    request: Box<Request<B>>,
    record: &mut Record,
    manner: &mut Manner,
) -> Result<Arrived, Refusal>
where
    B: Body<Data = Bytes> + Unpin,
{
    let arrived = SystemTime::now();
    let settings = parts.settings.load_full();
    let Settings {
        config,
        directory,
        generation,
    } = &*settings;
    let (head, body) = request.into_parts();
    *manner = Manner::of(&head);
    record.traced(&head.headers, arrived, config.telemetry.sample_percent);
    body::check_head(&head, config.listen.max_header)?;
    let claim = parts.checked(identify::head(&head, directory, arrived))?;
    record.claimed(claim.claimant());
    let body = match body.is_end_stream() {
        true => Bytes::new(),
        false => {
            parts.checked(claim.check_nonce(&parts.nonces))?;
            body::read(body, parts.allowance(&claim, &config.listen)).await?
        }
    };
    let nonce = parts.quota.as_ref().map(|quota| (quota, claim.nonce()));
    let mut proved = claim.prove(body, &parts.nonces, arrived);
    if let (Some((quota, nonce)), Ok(_)) = (nonce, &proved)
        // While the store is away, each replica's own memory is all there is.
        && !quota.take_nonce(&nonce.digest, nonce.until, arrived).await.unwrap_or(true)
    {
        proved = Err(identify::used());
    }
    let caller = parts.proved(proved)?;
    let operation = classify::classify(&caller, &head.headers, config, &parts.margins)?;
    record.named(caller.flow_name().as_deref());
    let (operation, bytes, generation) = (Arc::new(operation), caller.bytes(), *generation);
    Ok(Arrived {
        call: caller.into_sendable(),
        operation,
        bytes,
        generation,
    })
}

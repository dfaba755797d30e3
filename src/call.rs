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
use tokio::time::{Instant, Sleep};

use crate::call::attempt::{Attempted, Deadlines, Judged, Sending};
use crate::call::identify::Sendable;
use crate::call::judge::{Context, Verdict};
use crate::call::reply::Manner;
use crate::call::retry::{Decision, Tries};
use crate::call::services::CallServices;
use crate::call::settings::Settings;
use crate::config::Mode;
use crate::error::Refusal;
use crate::limiter::{self, LimitedCall, SendPermit};
use crate::observe::metrics::CallMetrics;
use crate::observe::record::Record;
use crate::operation::Operation;
use crate::process::shutdown::Phase;
use crate::server::Gone;
use crate::server::socket::Hangup;
use crate::upstream::Upstream;

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
    services: Arc<CallServices>,
    request: Box<Request<B>>,
    hangup: Hangup,
) -> Result<Response<Full<Bytes>>, Gone>
where
    B: Body<Data = Bytes> + Unpin,
{
    let mut record = Record::new(services.sinks.clone(), hangup.from());
    let mut manner = Manner::default();
    let end = {
        let steps = AssertUnwindSafe(steps(&services, request, &hangup, &mut record, &mut manner))
            .catch_unwind();
        tokio::select! {
            biased;
            end = steps => end.unwrap_or_else(|_panic| Err(reply::internal().into())),
            () = hangup.happened() => Err(End::Gone),
            () = services.phases.now_in(Phase::Over) => Err(End::Refused(limiter::draining())),
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
    Ok(reply::closing(response, services.phases.now()))
}

/// The table of contents.
async fn steps<B>(
    services: &Arc<CallServices>,
    request: Box<Request<B>>,
    hangup: &Hangup,
    record: &mut Record,
    manner: &mut Manner,
) -> Result<Response<Full<Bytes>>, End>
where
    B: Body<Data = Bytes> + Unpin,
{
    // Boxed, so that a call that waits has no room for its arrival any more.
    let arrived = Box::pin(arrive(services, request, record, manner)).await?;
    let mut call = Admitted::new(services, arrived, record)?;
    loop {
        let permit = call.queue().await?;
        let sending = call.sign(hangup)?;
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

/// A call that is admitted, and all that is kept of it until its end.
struct Admitted<'a> {
    services: &'a Arc<CallServices>,
    record: &'a mut Record,
    call: Sendable,
    operation: Arc<Operation>,
    /// What is counted of such operations.
    metrics: Arc<CallMetrics>,
    /// Its place in the queue, kept through retries.
    place: LimitedCall<Upstream>,
    /// When its hold ends.
    answer_by: Instant,
    /// The settings that it was last checked with.
    generation: u64,
    /// Whether its credentials were read again, which is done once.
    renewed: bool,
}

// === impl Admitted ===

impl<'a> Admitted<'a> {
    fn new(
        services: &'a Arc<CallServices>,
        arrived: Arrived,
        record: &'a mut Record,
    ) -> Result<Self, Refusal> {
        let Arrived {
            call,
            operation,
            bytes,
            generation,
        } = arrived;
        let metrics = services.metrics.calls(operation.labels());
        record.queued(operation.clone(), metrics.clone());
        let answer_by = Instant::now() + operation.hold;
        let place = services.limiter.arrive(&operation, bytes)?;
        Ok(Self {
            services,
            record,
            call,
            operation,
            metrics,
            place,
            answer_by,
            generation,
            renewed: false,
        })
    }

    /// Waits for the permission to send one attempt. Not an `async fn`: while a call waits, each word of its future counts.
    fn queue(&mut self) -> impl Future<Output = Result<SendPermit<Upstream>, Refusal>> {
        self.place.permit()
    }

    /// The call's turn has come: makes the request of one attempt, with what is in force now, if the caller is still there.
    fn sign(&mut self, hangup: &Hangup) -> Result<Sending, End> {
        self.record.turn(self.place.age());
        if hangup.has_happened() {
            return Err(End::Gone);
        }
        let context = self.context();
        let settings = self.services.settings.load();
        settings.recheck(
            &mut self.call,
            &self.operation.account,
            &mut self.generation,
        )?;
        let host = &settings.config.upstream.host;
        let mut request = sign::sign(&self.call, host, SystemTime::now());
        self.record.sent(request.headers_mut(), !context.managed);
        let note = self.services.journal.as_ref().map(|journal| {
            let (flow_name, id) = (self.record.flow_name(), self.record.request_id());
            Box::new(journal.note(flow_name, &self.operation, id))
        });
        Ok(Sending {
            request,
            operation: self.operation.clone(),
            metrics: self.metrics.clone(),
            context,
            deadlines: Deadlines {
                send_by: self.place.send_by(),
                answer_by: self.answer_by,
            },
            note,
        })
    }

    /// Sends one attempt. Not an `async fn`, whose future would hold these arguments to its end.
    fn attempt(
        &self,
        permit: SendPermit<Upstream>,
        sending: Sending,
    ) -> impl Future<Output = Attempted> + use<> {
        attempt::attempt(self.services, permit, sending)
    }

    /// What happened; none if the call is to be sent again at once: nothing left this process, or CAMS did not know the
    /// session any more and another one could be read, which is tried once.
    async fn judge(&mut self, attempted: Attempted) -> Option<Box<Judged>> {
        let Attempted::Judged(judged) = attempted else {
            self.record.unsent();
            return None;
        };
        let verdict = &judged.verdict;
        self.record.judged(verdict.code(), verdict.request_id());
        if verdict.is_old_session() && !std::mem::replace(&mut self.renewed, true) {
            let settings = &self.services.settings;
            if Box::pin(settings.reread(self.generation, self.answer_by)).await {
                self.record.queued_again(Duration::ZERO);
                return None;
            }
        }
        Some(judged)
    }

    /// Whether it is sent again.
    fn decide(&self, verdict: &Verdict) -> Decision {
        let context = self.context();
        let config = &self.services.settings.load_full().config;
        let tries = Tries {
            sent: self.record.attempts(),
            can_repeat: context.managed && config.mode == Mode::Enforce,
            has_lane: context.limited,
            left: self.place.left(),
        };
        retry::decide(verdict, tries, &config.retry, fastrand::f64())
    }

    /// Waits before the call queues again.
    fn back_off(&mut self, after: Duration) -> Sleep {
        self.record.queued_again(after);
        tokio::time::sleep(after)
    }

    /// CAMS's answer as the caller gets it.
    fn reply(
        &mut self,
        judged: Judged,
        advice: Duration,
    ) -> Result<Response<Full<Bytes>>, Refusal> {
        let Judged { answer, verdict } = judged;
        let service = self.record.service();
        let predicted_wait = || self.place.predicted_wait().max(advice);
        let response = reply::pass_on(answer, &verdict, service, predicted_wait)?;
        self.record
            .answered(verdict.outcome(), verdict.code(), response.status());
        Ok(response)
    }

    fn context(&self) -> Context {
        Context {
            managed: matches!(self.call, Sendable::Verified(_)),
            limited: self.operation.limit.is_some(),
        }
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
    services: &Arc<CallServices>,
    request: Box<Request<B>>,
    record: &mut Record,
    manner: &mut Manner,
) -> Result<Arrived, Refusal>
where
    B: Body<Data = Bytes> + Unpin,
{
    let arrived = SystemTime::now();
    let settings = services.settings.load_full();
    let Settings {
        config,
        directory,
        generation,
    } = &*settings;
    let (head, body) = request.into_parts();
    *manner = Manner::of(&head);
    record.traced(&head.headers, arrived, config.telemetry.sample_percent);
    body::check_head(&head, config.listen.max_header)?;
    let claim = services.checked(identify::head(&head, directory, arrived))?;
    record.claimed(claim.claimant());
    let body = match body.is_end_stream() {
        true => Bytes::new(),
        false => {
            services.checked(claim.check_nonce(&services.nonces))?;
            body::read(body, services.allowance(&claim, &config.listen)).await?
        }
    };
    let nonce = services.quota.as_ref().map(|quota| (quota, claim.nonce()));
    let mut proved = claim.prove(body, &services.nonces, arrived);
    if let (Some((quota, nonce)), Ok(_)) = (nonce, &proved)
        // While the store is away, each replica's own memory is all there is.
        && !quota.take_nonce(&nonce.digest, nonce.until, arrived).await.unwrap_or(true)
    {
        proved = Err(identify::used());
    }
    let caller = services.proved(proved)?;
    let operation = classify::classify(&caller, &head.headers, config, &services.margins)?;
    record.named(caller.flow_name().as_deref());
    let (operation, bytes, generation) = (Arc::new(operation), caller.bytes(), *generation);
    Ok(Arrived {
        call: caller.into_sendable(),
        operation,
        bytes,
        generation,
    })
}

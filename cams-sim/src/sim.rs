//! The simulated endpoint as one value. A call is counted and processed at one moment, under one
//! lock, after its jitter; latency and faults of the response come after that.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use hyper::header::DATE;
use hyper::{Request, Response};
use parking_lot::Mutex;
use serde_json::Value;
use tokio::time::{Instant, sleep};

use crate::answer::{Form, spoil};
use crate::auth::Gatekeeper;
use crate::fault::Faults;
use crate::flows::Flows;
use crate::limit::Limits;
use crate::refusal::Refusal;
use crate::request::{Call, header};
use crate::{Answer, Arrival, Fault, Limit, Report, Rule, Settings, Verdict};

/// The simulated CAMS endpoint. Clones share one endpoint.
#[derive(Debug, Clone)]
pub struct Sim {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    settings: Settings,
    start: Instant,
    state: Mutex<State>,
    connections: AtomicU64,
    not_http: AtomicU64,
}

/// All mutable state, under one lock, so that calls are counted in one order.
#[derive(Debug)]
struct State {
    gatekeeper: Gatekeeper,
    limits: Limits,
    faults: Faults,
    flows: Flows,
    arrivals: Vec<Arrival>,
    dice: fastrand::Rng,
}

// === impl Sim ===

impl Sim {
    /// A simulated endpoint without a port; [`Sim::start`] gives it one.
    #[must_use]
    pub fn new(settings: Settings) -> Self {
        let start = Instant::now();
        let state = State {
            gatekeeper: Gatekeeper::new(&settings, start),
            limits: Limits::new(&settings.limits, start),
            faults: Faults::new(settings.faults.clone(), settings.seed),
            flows: Flows::default(),
            arrivals: Vec::new(),
            dice: fastrand::Rng::with_seed(settings.seed),
        };
        Self {
            inner: Arc::new(Inner {
                settings,
                start,
                state: Mutex::new(state),
                connections: AtomicU64::new(0),
                not_http: AtomicU64::new(0),
            }),
        }
    }

    /// Answers one call. A received call is processed even if the caller disconnects; to get that
    /// here, run this in a task of its own.
    pub async fn answer(&self, request: Request<Bytes>) -> Answer {
        let received = Instant::now();
        let jitter = u64::try_from(self.inner.settings.jitter.as_millis()).unwrap_or(u64::MAX);
        if jitter > 0 {
            let drawn = self.inner.state.lock().dice.u64(0..=jitter);
            sleep(Duration::from_millis(drawn)).await;
        }
        let (answer, slow) = self.process(received, &request);
        let latency = self.inner.settings.latency + slow;
        if !latency.is_zero() {
            sleep(latency).await;
        }
        answer
    }

    /// Replaces the active faults.
    pub fn set_faults(&self, rules: Vec<Rule>) {
        self.inner.state.lock().faults.set(rules);
    }

    /// Replaces the limit of an action. Spent calls stay spent.
    pub fn set_limit(&self, action: &str, limit: Limit) {
        self.inner
            .state
            .lock()
            .limits
            .set(action, limit, Instant::now());
    }

    /// Sets the time of day, which then follows tokio's clock; `None` returns to the system's
    /// clock.
    pub fn set_now(&self, now: Option<SystemTime>) {
        self.inner
            .state
            .lock()
            .gatekeeper
            .set_clock(now, Instant::now());
    }

    /// All calls, in the order in which they were counted.
    #[must_use]
    pub fn arrivals(&self) -> Vec<Arrival> {
        self.inner.state.lock().arrivals.clone()
    }

    /// All calls as JSON.
    pub(crate) fn arrivals_json(&self) -> Value {
        self.inner
            .state
            .lock()
            .arrivals
            .iter()
            .map(|arrival| arrival.to_json(self.inner.start))
            .collect()
    }

    /// The sum of all calls.
    #[must_use]
    pub fn report(&self) -> Report {
        let state = &mut *self.inner.state.lock();
        let report = Report::of(
            &state.arrivals,
            |action| state.limits.window(action),
            self.inner.start,
        );
        Report {
            created: state.flows.count(),
            duplicates: state.flows.duplicates(),
            outsiders: state.limits.outsiders(Instant::now()),
            connections: self.inner.connections.load(Ordering::Relaxed),
            not_http: self.inner.not_http.load(Ordering::Relaxed),
            ..report
        }
    }

    /// Clears records, flows and counts; limits and nonces are kept.
    pub fn reset(&self) {
        let state = &mut *self.inner.state.lock();
        state.arrivals.clear();
        state.flows = Flows::default();
        self.inner.connections.store(0, Ordering::Relaxed);
        self.inner.not_http.store(0, Ordering::Relaxed);
    }

    pub(crate) fn count_connection(&self) {
        self.inner.connections.fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn count_not_http(&self) {
        self.inner.not_http.fetch_add(1, Ordering::Relaxed);
    }

    /// Processes a call now; the duration is the delay that a fault adds to the response.
    fn process(&self, received: Instant, request: &Request<Bytes>) -> (Answer, Duration) {
        let settings = &self.inner.settings;
        let state = &mut *self.inner.state.lock();
        let now = Instant::now();
        let mut arrival = arrival(received, now, request, settings.keep_requests);
        let mut form = Form {
            host: header(request.headers(), "host"),
            request_id: request_id(&mut state.dice),
            ..Form::default()
        };
        let read = Call::read(request, settings.strict);
        let mut fault = None;
        let mut copy = None;
        let outcome = match read {
            Err(refusal) => Err(refusal),
            Ok(call) => {
                describe(&mut arrival, &call, state.gatekeeper.account(&call));
                (form.xml, form.action) = (call.xml, call.action.clone());
                fault = state.faults.pick(&call.action, call.parameter("FlowName"));
                let judged = state.judge(&call, request, fault.as_ref(), now);
                if judged.is_ok() && fault == Some(Fault::Copied) {
                    copy = state.judge(&call, request, None, now).err();
                }
                judged
            }
        };
        arrival.fault = fault.as_ref().map(Fault::name);
        arrival.verdict = match &outcome {
            _ if matches!(fault, Some(Fault::CloseBefore | Fault::Redirect)) => Verdict::Lost,
            Ok(_) => Verdict::Accepted,
            Err(refusal) if refusal.is_throttle() => Verdict::Throttled,
            Err(refusal) => Verdict::Rejected(refusal.code.clone()),
        };
        state.arrivals.push(arrival);
        let mut answer: Response<Bytes> = match (outcome, &fault, copy) {
            (Ok(_), Some(Fault::Copied), Some(refusal)) => form.refusal(&refusal),
            (Ok(_), Some(Fault::Failed), _) => form.refusal(&Refusal::new("InternalError")),
            (Ok(mut body), Some(Fault::NoData), _) => {
                body.as_object_mut().map(|body| body.remove("Data"));
                form.success(body)
            }
            (Ok(body), ..) => form.success(body),
            (Err(refusal), ..) => form.refusal(&refusal),
        };
        if let Some(time) = state.gatekeeper.set_time(now) {
            let date = httpdate::fmt_http_date(time);
            let date = date.parse().expect("a date is a header's value");
            answer.headers_mut().insert(DATE, date);
        }
        match fault {
            None => (Answer::Http(answer), Duration::ZERO),
            Some(fault) => {
                let slow = if let Fault::Slow(slow) = fault {
                    slow
                } else {
                    Duration::ZERO
                };
                (spoil(&fault, answer), slow)
            }
        }
    }
}

// === impl State ===

impl State {
    fn judge(
        &mut self,
        call: &Call,
        request: &Request<Bytes>,
        fault: Option<&Fault>,
        now: Instant,
    ) -> Result<Value, Refusal> {
        match fault {
            Some(Fault::Unavailable(hints)) => {
                return Err(Refusal::new("ServiceUnavailable").with_hints(*hints));
            }
            Some(Fault::CloseBefore | Fault::Redirect) => {
                return Err(Refusal::new("InternalError"));
            }
            _ => {}
        }
        self.gatekeeper.admit(call, request, now)?;
        if let Some(refusal) = fault.and_then(Fault::refusal) {
            return Err(refusal);
        }
        let account = self.gatekeeper.account(call);
        let throttled = |hints| Refusal::new("System.LimitControl").with_hints(hints);
        self.limits
            .admit(&account, &call.action, now)
            .map_err(throttled)?;
        self.flows.run(&account, call)
    }
}

/// What is known of a call before it is decoded.
fn arrival(received: Instant, at: Instant, request: &Request<Bytes>, keep: bool) -> Arrival {
    let headers = request
        .headers()
        .iter()
        .map(|(name, value)| (name.to_string(), lossy(value.as_bytes())));
    Arrival {
        received,
        at,
        account: None,
        action: None,
        flow_name: None,
        nonce: None,
        scheme: None,
        verdict: Verdict::Lost,
        fault: None,
        method: request.method().to_string(),
        target: if keep {
            request.uri().to_string()
        } else {
            String::new()
        },
        headers: if keep { headers.collect() } else { Vec::new() },
        body: if keep {
            request.body().clone()
        } else {
            Bytes::new()
        },
    }
}

fn describe(arrival: &mut Arrival, call: &Call, account: String) {
    arrival.account = Some(account);
    arrival.action = Some(call.action.clone());
    arrival.flow_name = call.parameter("FlowName").map(str::to_owned);
    arrival.nonce = Some(call.nonce.clone()).filter(|nonce| !nonce.is_empty());
    arrival.scheme = Some(call.scheme);
}

fn lossy(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// An id in the form of the API page's example.
fn request_id(dice: &mut fastrand::Rng) -> String {
    let hex = format!("{:032X}", dice.u128(..));
    format!(
        "{}-{}-{}-{}-{}",
        &hex[..8],
        &hex[8..12],
        &hex[12..16],
        &hex[16..20],
        &hex[20..]
    )
}

#[cfg(test)]
mod tests;

//! The simulated endpoint as one value. A call is counted and processed at one moment, under one
//! lock, after its jitter; latency and faults of the response come after that. A request for
//! credentials takes the same way, but has its own rules, limits and records.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use hyper::header::DATE;
use hyper::{Request, Response};
use parking_lot::Mutex;
use serde_json::Value;
use tokio::sync::watch;
use tokio::time::{Instant, sleep};

use crate::answer::{Form, spoil};
use crate::auth::Gatekeeper;
use crate::fault::Faults;
use crate::flows::{Caller, Flow, Flows, NewFlow};
use crate::limit::Limits;
use crate::metadata::{self, Denial, Route, Tokens};
use crate::refusal::Refusal;
use crate::request::{Call, check_head, header};
use crate::session::{Holder, Session};
use crate::{
    Answer, Arrival, CredentialRequest, Fault, Limit, Report, Rule, Settings, Verdict, sts,
};

/// The simulated CAMS endpoint, which answers calls of STS as well. Clones share one endpoint.
#[derive(Debug, Clone)]
pub struct Sim {
    inner: Arc<Inner>,
    door: Door,
}

/// What a [`Sim`] answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Door {
    /// Calls of CAMS and STS.
    Api,
    /// Requests to the metadata service and the credentials URI.
    Metadata,
}

#[derive(Debug)]
struct Inner {
    settings: Settings,
    start: Instant,
    state: Mutex<State>,
    /// Tells that the active faults have been replaced.
    replaced: watch::Sender<()>,
    connections: AtomicU64,
    not_http: AtomicU64,
}

/// All mutable state, under one lock, so that calls are counted in one order.
#[derive(Debug)]
struct State {
    gatekeeper: Gatekeeper,
    limits: Limits,
    sts_limits: Limits,
    tokens: Tokens,
    faults: Faults,
    flows: Flows,
    arrivals: Vec<Arrival>,
    credential_requests: Vec<CredentialRequest>,
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
            sts_limits: Limits::new(&sts_limits(&settings.sts.limit), start),
            tokens: Tokens::default(),
            faults: Faults::new(settings.faults.clone(), settings.seed),
            flows: Flows::new(settings.flows.clone()),
            arrivals: Vec::new(),
            credential_requests: Vec::new(),
            dice: fastrand::Rng::with_seed(settings.seed),
        };
        Self {
            inner: Arc::new(Inner {
                settings,
                start,
                state: Mutex::new(state),
                replaced: watch::Sender::default(),
                connections: AtomicU64::new(0),
                not_http: AtomicU64::new(0),
            }),
            door: Door::Api,
        }
    }

    /// The metadata service and the credentials URI of the same simulator, to be served by a
    /// listener of their own: the sessions that they issue are callers of CAMS.
    #[must_use]
    pub fn metadata(&self) -> Self {
        Self {
            inner: Arc::clone(&self.inner),
            door: Door::Metadata,
        }
    }

    /// Answers one call. A received call is processed even if the caller disconnects; to get that
    /// here, run this in a task of its own.
    pub async fn answer(&self, request: Request<Bytes>) -> Answer {
        self.answer_received(request, Instant::now()).await
    }

    /// The same for a call that was received at `received`.
    pub(crate) async fn answer_received(
        &self,
        request: Request<Bytes>,
        received: Instant,
    ) -> Answer {
        let mut replaced = self.inner.replaced.subscribe();
        let jitter = u64::try_from(self.inner.settings.jitter.as_millis()).unwrap_or(u64::MAX);
        if jitter > 0 {
            let drawn = self.inner.state.lock().dice.u64(0..=jitter);
            sleep(Duration::from_millis(drawn)).await;
        }
        let (answer, slow) = match self.door {
            Door::Metadata => self.process_metadata(received, &request),
            Door::Api if sts::is_call(&request) => self.process_sts(received, &request),
            Door::Api => self.process(received, &request),
        };
        if slow == Duration::MAX {
            // An error would mean that the simulator has ended.
            drop(replaced.changed().await);
            return answer;
        }
        let latency = self.inner.settings.latency + slow;
        if !latency.is_zero() {
            sleep(latency).await;
        }
        answer
    }

    /// Replaces the active faults, and releases the responses that they keep.
    pub fn set_faults(&self, rules: Vec<Rule>) {
        self.inner.state.lock().faults.set(rules);
        self.inner.replaced.send_replace(());
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

    /// Ends all sessions that STS and the metadata service have issued.
    pub fn end_sessions(&self) {
        let now = Instant::now();
        self.inner.state.lock().gatekeeper.end_sessions(now);
    }

    /// Every secret that was issued, for tests that search outputs for them: secrets and tokens of
    /// sessions, and tokens of the metadata service.
    #[must_use]
    pub fn issued_secrets(&self) -> Vec<String> {
        let state = self.inner.state.lock();
        let sessions = state.gatekeeper.issued_secrets();
        sessions.chain(state.tokens.all()).cloned().collect()
    }

    /// All requests for credentials, in order.
    #[must_use]
    pub fn credential_requests(&self) -> Vec<CredentialRequest> {
        self.inner.state.lock().credential_requests.clone()
    }

    /// All requests for credentials as JSON.
    pub(crate) fn credential_requests_json(&self) -> Value {
        let state = self.inner.state.lock();
        let requests = state.credential_requests.iter();
        requests
            .map(|request| request.to_json(self.inner.start))
            .collect()
    }

    /// All calls of CAMS, in the order in which they were counted.
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
        let now = Instant::now();
        let report = Report::of(
            &state.arrivals,
            |action| state.limits.window(action),
            self.inner.start,
        );
        let mut credentials = BTreeMap::new();
        for request in &state.credential_requests {
            *credentials.entry(request.action.clone()).or_default() += 1;
        }
        Report {
            credentials,
            created: state.flows.existing(now).len() as u64,
            duplicates: state.flows.duplicates(now),
            outsiders: state.limits.outsiders(now),
            connections: self.inner.connections.load(Ordering::Relaxed),
            not_http: self.inner.not_http.load(Ordering::Relaxed),
            ..report
        }
    }

    /// All flows that exist, of every account, in the order of their creation.
    #[must_use]
    pub fn flows(&self) -> Vec<Flow> {
        let state = self.inner.state.lock();
        state.flows.existing(Instant::now()).to_vec()
    }

    /// All flows as JSON.
    pub(crate) fn flows_json(&self) -> Value {
        self.flows()
            .iter()
            .map(|flow| flow.to_json(self.inner.start))
            .collect()
    }

    /// Creates a flow now, without a call, and returns its `FlowId`.
    pub fn create_flow(&self, flow: NewFlow) -> String {
        let flows = &mut self.inner.state.lock().flows;
        flows.create(flow, Instant::now()).id.clone()
    }

    /// Renames a flow without a call. Returns false if no flow has this `FlowId`.
    pub fn rename_flow(&self, id: &str, name: &str) -> bool {
        let flows = &mut self.inner.state.lock().flows;
        flows.rename(id, name, Instant::now()).is_some()
    }

    /// Deletes a flow of any status without a call. Returns false if no flow has this `FlowId`.
    pub fn delete_flow(&self, id: &str) -> bool {
        let flows = &mut self.inner.state.lock().flows;
        flows.delete(id, Instant::now()).is_some()
    }

    /// Clears records, flows and counts; limits, nonces and sessions are kept.
    pub fn reset(&self) {
        let state = &mut *self.inner.state.lock();
        state.arrivals.clear();
        state.credential_requests.clear();
        state.flows.forget();
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
            product: "cams",
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
                    copy = Some(Refusal::new("SignatureNonceUsed"));
                }
                judged
            }
        };
        arrival.fault = fault.as_ref().map(Fault::name);
        arrival.verdict = match &outcome {
            _ if fault.as_ref().is_some_and(Fault::loses) => Verdict::Lost,
            Ok(_) => Verdict::Accepted,
            Err(refusal) => refusal.verdict(),
        };
        state.arrivals.push(arrival);
        let answer: Response<Bytes> = match (outcome, &fault, copy) {
            (Ok(_), Some(Fault::Copied), Some(refusal)) => form.refusal(&refusal),
            (Ok(_), Some(Fault::Failed), _) => form.refusal(&Refusal::new("InternalError")),
            (Ok(mut body), Some(Fault::NoData), _) => {
                body.as_object_mut().map(|body| body.remove("Data"));
                form.success(body)
            }
            (Ok(body), ..) => form.success(body),
            (Err(refusal), ..) => form.refusal(&refusal),
        };
        state.finish(answer, fault, now)
    }

    /// The same for a call of STS.
    fn process_sts(&self, received: Instant, request: &Request<Bytes>) -> (Answer, Duration) {
        let settings = &self.inner.settings;
        let state = &mut *self.inner.state.lock();
        let now = Instant::now();
        let mut record = CredentialRequest::of(request, received);
        let mut form = Form {
            host: header(request.headers(), "host"),
            request_id: request_id(&mut state.dice),
            product: "Sts",
            ..Form::default()
        };
        let mut fault = None;
        let outcome = Call::read(request, settings.strict).and_then(|call| {
            record.describe(&call);
            (form.xml, form.action) = (call.xml, call.action.clone());
            fault = state
                .faults
                .pick_of("sts", &call.action, call.parameter("RoleSessionName"));
            state.judge_sts(&call, request, fault.as_ref(), now, settings)
        });
        record.fault = fault.as_ref().map(Fault::name);
        record.verdict = match &outcome {
            _ if fault.as_ref().is_some_and(Fault::loses) => Verdict::Lost,
            Ok(_) => Verdict::Accepted,
            Err(refusal) => refusal.verdict(),
        };
        let answer = match outcome {
            Ok(_) if fault == Some(Fault::Failed) => form.refusal(&Refusal::new("InternalError")),
            Ok(body) => {
                let issued = body["Credentials"]["AccessKeyId"].as_str();
                record.issued = issued.map(str::to_owned);
                form.success(body)
            }
            Err(refusal) => form.refusal(&refusal),
        };
        state.credential_requests.push(record);
        state.finish(answer, fault, now)
    }

    /// The same for a request to the metadata service or the credentials URI.
    fn process_metadata(&self, received: Instant, request: &Request<Bytes>) -> (Answer, Duration) {
        let settings = &self.inner.settings;
        let state = &mut *self.inner.state.lock();
        let now = Instant::now();
        let mut record = CredentialRequest::of(request, received);
        let mut fault = None;
        let outcome = match Route::of(request.uri().path()) {
            None => Err(Denial::new(404, "not found")),
            Some(route) => {
                record.action = route.action().to_owned();
                fault = state.faults.pick_of("metadata", route.action(), None);
                state.judge_metadata(route, request, fault.as_ref(), now, settings, &mut record)
            }
        };
        record.fault = fault.as_ref().map(Fault::name);
        record.verdict = match &outcome {
            _ if fault.as_ref().is_some_and(Fault::loses) => Verdict::Lost,
            Ok(_) => Verdict::Accepted,
            Err(denial) => Verdict::Rejected(denial.status.to_string()),
        };
        state.credential_requests.push(record);
        let answer = outcome.unwrap_or_else(|denial| denial.answer());
        state.finish(answer, fault, now)
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
        if let Some(refusal) = fault.and_then(Fault::early_refusal) {
            return Err(refusal);
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
        let caller = Caller {
            account: &account,
            now,
            late: fault.map_or(Duration::ZERO, Fault::lateness),
        };
        self.flows.run(caller, call)
    }

    fn judge_sts(
        &mut self,
        call: &Call,
        request: &Request<Bytes>,
        fault: Option<&Fault>,
        now: Instant,
        settings: &Settings,
    ) -> Result<Value, Refusal> {
        if let Some(refusal) = fault.and_then(Fault::early_refusal) {
            return Err(refusal);
        }
        let account = if sts::is_anonymous(&call.action) {
            self.gatekeeper.admit_anonymous(call, request, now)?;
            sts::account_of_role(call).unwrap_or_default()
        } else {
            self.gatekeeper.admit(call, request, now)?;
            self.gatekeeper.account(call)
        };
        if let Some(refusal) = fault.and_then(Fault::refusal) {
            return Err(refusal);
        }
        let throttled = |hints| Refusal::new("Throttling.User").with_hints(hints);
        self.sts_limits
            .admit(&account, &call.action, now)
            .map_err(throttled)?;
        match call.action.as_str() {
            "GetCallerIdentity" => {
                let holder = self.gatekeeper.session(call).map(|session| &session.holder);
                Ok(sts::identity(
                    &account,
                    &call.credential.access_key_id,
                    holder,
                ))
            }
            "AssumeRole" | "AssumeRoleWithOIDC" => {
                let time = self.gatekeeper.time(now);
                let demand = sts::demand(call, &settings.sts, settings.strict, time)?;
                let mut body = sts::describe(&demand.holder, demand.claims.as_ref());
                let session = self.issue(demand.holder, demand.lifetime, fault, now);
                body["Credentials"] = Value::Object(session.members(fault));
                Ok(body)
            }
            "" => Err(Refusal::missing("Action")),
            _ => Err(Refusal::new("InvalidApi.NotFound")),
        }
    }

    fn judge_metadata(
        &mut self,
        route: Route,
        request: &Request<Bytes>,
        fault: Option<&Fault>,
        now: Instant,
        settings: &Settings,
        record: &mut CredentialRequest,
    ) -> Result<Response<Bytes>, Denial> {
        let forced = fault.and_then(|fault| fault.early_refusal().or_else(|| fault.refusal()));
        let strict = settings.strict.then(|| check_head(request).err()).flatten();
        if let Some(refusal) = forced.or(strict) {
            return Err(Denial::new(refusal.status, &refusal.message));
        }
        let settings_of = &settings.metadata;
        route.check(request, &self.tokens, settings_of, now)?;
        match route {
            Route::Token => {
                let token = self.tokens.issue(request, now, &mut self.dice)?;
                Ok(metadata::text_answer(&token, settings_of))
            }
            Route::Role => {
                let role = settings_of.role.as_deref().unwrap_or_default();
                Ok(metadata::text_answer(role, settings_of))
            }
            Route::Credentials | Route::Uri => {
                let lifetime = settings.sts.lifetime.unwrap_or(metadata::LIFETIME);
                let session = self.issue(metadata::holder(settings_of), lifetime, fault, now);
                record.issued = Some(session.key.access_key_id.clone());
                let time = self.gatekeeper.time(now);
                Ok(metadata::session_answer(&session, time, fault))
            }
        }
    }

    /// Issues a session, which is a caller from now on.
    fn issue(
        &mut self,
        holder: Holder,
        lifetime: Duration,
        fault: Option<&Fault>,
        now: Instant,
    ) -> Session {
        let time = self.gatekeeper.time(now);
        let session = Session::issue(holder, time, lifetime, fault, &mut self.dice);
        self.gatekeeper.add(session.clone());
        session
    }

    /// Adds the date of a set clock, and breaks the response as the fault demands.
    fn finish(
        &self,
        mut answer: Response<Bytes>,
        fault: Option<Fault>,
        now: Instant,
    ) -> (Answer, Duration) {
        if let Some(time) = self.gatekeeper.set_time(now) {
            let date = httpdate::fmt_http_date(time);
            let date = date.parse().expect("a date is a header's value");
            answer.headers_mut().insert(DATE, date);
        }
        match fault {
            None => (Answer::Http(answer), Duration::ZERO),
            Some(fault) => (spoil(&fault, answer), fault.delay()),
        }
    }
}

/// The same limit for each action of STS.
fn sts_limits(limit: &Limit) -> BTreeMap<String, Limit> {
    ["AssumeRole", "AssumeRoleWithOIDC", "GetCallerIdentity"]
        .map(|action| (action.to_owned(), limit.clone()))
        .into()
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

//! Calls of an account whose session Flowgate obtains itself, from arrival to reply, in simulated
//! time. CAMS is a listener on loopback.

use parking_lot::Mutex;
use tokio::task::JoinSet;

use super::*;
use crate::call::current_config::Endpoints;
use crate::config::{AccountCredentials, Credentials, EcsRole, LoadedFrom, SessionSource};
use crate::credentials::error::FailureKind;
use crate::credentials::keepers::scripted::{Behaviour, Script};
use crate::observe::metrics::{Scrape, SessionSample, labels};
use crate::primitives::id::AccessKeyId;

const OLD: &str = r#"{"Code":"InvalidSecurityToken.Expired","Message":"Specified SecurityToken is expired.","RequestId":"R-1"}"#;
const DONE: &str = r#"{"Code":"OK","RequestId":"R-2"}"#;
const HOUR: Duration = Duration::from_secs(3600);

/// A CAMS that answers each request by the key that signed it, and keeps those keys and their
/// tokens.
#[derive(Default)]
struct Cams {
    keys: Mutex<Vec<(String, String)>>,
    /// The status with which old sessions are refused, and the keys of those sessions.
    refused: Mutex<(u16, Vec<&'static str>)>,
    /// How long it takes to answer.
    takes: Mutex<Duration>,
}

/// A Flowgate whose account `acme` has the session of a scripted source.
pub(crate) struct Gateway {
    pub(crate) services: Arc<CallServices>,
    pub(crate) script: Arc<Script>,
    cams: Arc<Cams>,
}

pub(crate) fn seconds(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

pub(crate) fn session(lifetime: Duration, after: Duration) -> Behaviour {
    Behaviour {
        result: Ok(lifetime),
        after,
    }
}

pub(crate) fn failure(kind: FailureKind) -> Behaviour {
    Behaviour {
        result: Err(kind),
        after: Duration::ZERO,
    }
}

/// Any source: the script answers for it.
fn source(role: &str) -> AccountCredentials {
    AccountCredentials::Session(SessionSource::EcsRole(EcsRole {
        role: Some(role.to_owned()),
        allow_v1: false,
        address: "100.100.100.200:80".parse().unwrap(),
    }))
}

/// Credentials that are read with the configuration.
fn fixed() -> AccountCredentials {
    let credentials = Credentials {
        access_key_id: AccessKeyId::new("STS.7"),
        secret: Secret::new("session-secret-7"),
        security_token: Some(Secret::new("session-token-7")),
        expires: None,
    };
    AccountCredentials::Loaded(credentials, LoadedFrom::Keys)
}

// === impl Cams ===

impl Endpoint for Cams {
    async fn answer(&self, head: &str) -> Option<(u16, String)> {
        let header = |name: &str| {
            let line = head.lines().find_map(|line| line.strip_prefix(name));
            line.unwrap_or_default().to_owned()
        };
        let key = header("x-acs-accesskey-id: ");
        assert!(header("authorization: ").contains(&format!("Credential={key},")));
        let (status, body) = {
            let (status, refused) = &*self.refused.lock();
            let is_old = refused.contains(&&*key);
            if is_old { (*status, OLD) } else { (200, DONE) }
        };
        let token = header("x-acs-security-token: ");
        self.keys.lock().push((key, token));
        let takes = *self.takes.lock();
        tokio::time::sleep(takes).await;
        Some((status, body.to_owned()))
    }
}

impl Cams {
    /// The number of the session of each request, in order of arrival. Its token must belong to it.
    fn sessions(&self) -> Vec<usize> {
        let keys = self.keys.lock();
        let numbers = keys.iter().map(|(key, token)| {
            let number = key.strip_prefix("STS.").unwrap();
            assert_eq!(*token, format!("session-token-{number}"));
            number.parse().unwrap()
        });
        numbers.collect()
    }
}

// === impl Gateway ===

impl Gateway {
    pub(crate) async fn new(answer: Behaviour, settings: &[(&str, &str)]) -> Self {
        let cams = Arc::new(Cams::default());
        let url = listen(cams.clone()).await;
        let unlimited = ("FLOWGATE_LIMITS__PRESET", "none");
        let settings = [&[unlimited], settings].concat();
        let state = AppState::new(config(&url, &settings)).unwrap();
        let gateway = Self {
            services: state.calls().clone(),
            script: Script::new(answer),
            cams,
        };
        gateway.reload(source("flowgate"));
        gateway
    }

    /// Puts other credentials of the account in force.
    fn reload(&self, credentials: AccountCredentials) {
        self.reload_with(|config| config.accounts[0].credentials = Some(credentials));
    }

    /// Puts a changed configuration in force.
    fn reload_with(&self, change: impl FnOnce(&mut Config)) {
        let before = self.services.current_config.load_full();
        let mut config = before.config.clone();
        change(&mut config);
        let endpoints = Endpoints {
            upstreams: before.upstreams.reloaded(&config, None).unwrap(),
            keepers: self.script.keepers(&config, Some(&before.keepers)),
        };
        let next = Arc::new(before.next(config, endpoints));
        self.services.limiter.reload(&next.config);
        self.services.current_config.store(next);
    }

    /// Begins a call. Its task is polled when a shutdown phase begins, as a connection's is.
    async fn begin(&self, hold: &str) -> impl Future<Output = Ended> + Send + 'static {
        let connected = Connected::to(&self.services).await;
        let services = self.services.clone();
        let mut phases = services.phases.clone();
        let request = signed("ListFlow", hold, &[]);
        async move {
            let mut reply = Box::pin(connected.call(services, request));
            let reply = tokio::select! {
                biased;
                reply = &mut reply => reply,
                () = phases.reached(Phase::Over) => reply.await,
            };
            let status = reply.status().as_u16();
            let body = reply.into_body().collect().await.unwrap().to_bytes();
            let body: serde_json::Value = serde_json::from_slice(&body).unwrap();
            Ended {
                status,
                code: body["Code"].as_str().unwrap().to_owned(),
                message: body["Message"].as_str().unwrap_or_default().to_owned(),
            }
        }
    }

    async fn ask(&self, hold: &str) -> Ended {
        self.begin(hold).await.await
    }

    /// Begins `count` calls at once, each in a task.
    pub(crate) async fn together(&self, count: usize, hold: &str) -> JoinSet<Ended> {
        let mut calls = JoinSet::new();
        for _ in 0..count {
            calls.spawn(self.begin(hold).await);
        }
        calls
    }

    fn metrics(&self) -> String {
        let config_snapshot = self.services.current_config.load();
        let accounts = config_snapshot.session_accounts().iter();
        let samples: Vec<SessionSample<'_>> = accounts
            .map(|account| account.sample(self.services.session_waits.waiting(&account.id)))
            .collect();
        let metrics = &self.services.metrics;
        metrics.render(&Scrape {
            sessions: &samples,
            ..Scrape::default()
        })
    }
}

/// The reply to a call.
#[derive(Debug)]
pub(crate) struct Ended {
    status: u16,
    code: String,
    message: String,
}

// === impl Ended ===

impl Ended {
    fn is(&self, status: u16, code: &str) -> bool {
        (self.status, &*self.code) == (status, code)
    }

    fn is_without_credentials(&self) -> bool {
        self.is(403, "Flowgate.AccountCredentials")
    }
}

#[tokio::test(start_paused = true)]
async fn calls_without_a_session_wait_for_one_request_and_are_signed_with_its_session() {
    let gateway = Gateway::new(session(HOUR, seconds(7)), &[]).await;
    let start = Instant::now();
    let calls = gateway.together(200, "30s").await.join_all().await;
    assert!(calls.iter().all(|call| call.is(200, "OK")), "{calls:?}");
    assert_eq!(start.elapsed().as_secs(), 7);
    assert_eq!(gateway.script.requests(), 1);
    assert_eq!(gateway.cams.sessions(), [1; 200]);
}

#[tokio::test(start_paused = true)]
async fn no_call_waits_while_a_session_is_refreshed() {
    let gateway = Gateway::new(session(HOUR, Duration::ZERO), &[]).await;
    assert!(gateway.ask("30s").await.is(200, "OK"));
    gateway.script.set(session(HOUR, seconds(7)));
    while gateway.script.requests() < 2 {
        tokio::time::sleep(seconds(1)).await;
    }
    let start = Instant::now();
    let calls = gateway.together(200, "30s").await.join_all().await;
    assert!(calls.iter().all(|call| call.is(200, "OK")), "{calls:?}");
    assert!(start.elapsed() < seconds(1), "{:?}", start.elapsed());
    assert_eq!(gateway.script.requests(), 2);
    assert_eq!(gateway.cams.sessions(), [1; 201]);
}

#[tokio::test(start_paused = true)]
async fn after_the_end_of_a_session_nothing_is_sent_until_the_source_answers_again() {
    let gateway = Gateway::new(session(seconds(600), Duration::ZERO), &[]).await;
    assert!(gateway.ask("10s").await.is(200, "OK"));
    gateway.script.set(failure(FailureKind::ServiceError));
    tokio::time::sleep(seconds(590)).await;
    assert!(
        gateway.ask("5s").await.is(200, "OK"),
        "the old session is valid"
    );
    tokio::time::sleep(seconds(10)).await;
    let start = Instant::now();
    let refused = gateway.ask("8s").await;
    assert!(refused.is_without_credentials(), "{refused:?}");
    assert!(refused.message.contains(
        "sts.aliyuncs.com: the service refuses, status 503, code ServiceUnavailable, request id STS-REQUEST-1"
    ), "{refused:?}");
    assert!(!refused.message.contains("session-"), "{refused:?}");
    assert!((4..=8).contains(&start.elapsed().as_secs()));
    assert_eq!(gateway.cams.sessions(), [1, 1]);
    let metrics = gateway.metrics();
    let failed = "flowgate_credentials_refreshes_total{account=\"acme\",result=\"service_error\"}";
    assert!(metrics.contains(failed), "{metrics}");
    gateway.script.set(session(HOUR, Duration::ZERO));
    let start = Instant::now();
    assert!(gateway.ask("60s").await.is(200, "OK"));
    assert!(start.elapsed() <= seconds(31));
    assert_eq!(gateway.cams.sessions()[2], gateway.script.requests());
}

#[tokio::test(start_paused = true)]
async fn calls_whose_session_cams_refuses_share_one_request_and_are_sent_once_more() {
    for status in [400, 403] {
        let gateway = Gateway::new(session(HOUR, Duration::ZERO), &[]).await;
        assert!(gateway.ask("10s").await.is(200, "OK"));
        *gateway.cams.refused.lock() = (status, vec!["STS.1"]);
        gateway.script.set(session(HOUR, seconds(2)));
        // All are in flight before the first is refused.
        *gateway.cams.takes.lock() = seconds(1);
        let calls = gateway.together(20, "30s").await.join_all().await;
        assert!(calls.iter().all(|call| call.is(200, "OK")), "{calls:?}");
        assert_eq!(gateway.script.requests(), 2);
        let sessions = gateway.cams.sessions();
        assert_eq!(sessions[1..], [[1; 20], [2; 20]].concat());
    }
}

#[tokio::test(start_paused = true)]
async fn a_session_that_is_refused_again_ends_the_call_without_a_third_attempt() {
    let gateway = Gateway::new(session(HOUR, Duration::ZERO), &[]).await;
    *gateway.cams.refused.lock() = (400, vec!["STS.1", "STS.2"]);
    let refused = gateway.ask("30s").await;
    assert!(refused.is_without_credentials(), "{refused:?}");
    assert_eq!(gateway.cams.sessions(), [1, 2]);
    // The next call waits: nothing is signed with a session that was just refused.
    let refused = gateway.ask("4s").await;
    assert!(refused.is_without_credentials(), "{refused:?}");
    assert!(
        refused.message.contains("refused before its end"),
        "{refused:?}"
    );
    assert_eq!(gateway.cams.sessions(), [1, 2]);
    // By now CAMS knows the new session everywhere.
    *gateway.cams.refused.lock() = (400, vec!["STS.1"]);
    assert!(gateway.ask("30s").await.is(200, "OK"));
    assert_eq!(gateway.cams.sessions(), [1, 2, 2]);
    assert_eq!(gateway.script.requests(), 2);
}

#[tokio::test(start_paused = true)]
async fn a_call_renews_its_session_once_also_if_another_one_could_be_demanded() {
    let gateway = Gateway::new(session(HOUR, Duration::ZERO), &[]).await;
    assert!(gateway.ask("10s").await.is(200, "OK"));
    *gateway.cams.refused.lock() = (403, vec!["STS.1", "STS.2"]);
    // By the second refusal another session may be demanded again.
    *gateway.cams.takes.lock() = seconds(11);
    let refused = gateway.ask("60s").await;
    assert!(refused.is_without_credentials(), "{refused:?}");
    assert_eq!(gateway.cams.sessions(), [1, 1, 2]);
}

#[tokio::test(start_paused = true)]
async fn while_the_source_fails_calls_with_a_refused_session_wait_for_another_one() {
    let gateway = Gateway::new(session(HOUR, Duration::ZERO), &[]).await;
    assert!(gateway.ask("10s").await.is(200, "OK"));
    *gateway.cams.refused.lock() = (400, vec!["STS.1"]);
    gateway.script.set(failure(FailureKind::ServiceError));
    let mut calls = gateway.together(5, "60s").await;
    let later = gateway.begin("60s").await;
    tokio::time::sleep(seconds(4)).await;
    gateway.script.set(session(HOUR, Duration::ZERO));
    while let Some(call) = calls.join_next().await {
        let call = call.unwrap();
        assert!(call.is(200, "OK"), "{call:?}");
    }
    assert!(later.await.is(200, "OK"));
}

#[tokio::test(start_paused = true)]
async fn a_session_that_ends_while_a_call_is_queued_gives_the_permit_back() {
    // The first token comes 20 s after the start; the session has ended by then.
    let limit = [("FLOWGATE_LIMITS__LISTFLOW", "1/20s")];
    let gateway = Gateway::new(session(seconds(15), Duration::ZERO), &limit).await;
    let call = tokio::spawn(gateway.begin("60s").await);
    tokio::time::sleep(seconds(1)).await;
    gateway.script.set(failure(FailureKind::Unreachable));
    tokio::time::sleep(seconds(24)).await;
    assert!(!call.is_finished());
    assert!(gateway.cams.sessions().is_empty());
    gateway.script.set(session(HOUR, Duration::ZERO));
    let ended = call.await.unwrap();
    assert!(ended.is(200, "OK"), "{ended:?}");
    assert_eq!(gateway.cams.sessions(), [gateway.script.requests()]);
    let returned = "flowgate_tokens_total{account=\"acme\",event=\"returned\"} 1\n";
    let metrics = gateway.metrics();
    assert!(metrics.contains(returned), "{metrics}");
}

#[tokio::test(start_paused = true)]
async fn metrics_show_the_session_of_an_account_and_forget_it_with_its_source() {
    const EXPIRY: &str = "flowgate_credentials_expiry_timestamp_seconds{account=\"acme\"}";
    const OBTAINED: &str = "flowgate_credentials_obtained_timestamp_seconds{account=\"acme\"}";
    const REFRESHES: &str = "flowgate_credentials_refreshes_total{account=\"acme\",result=";
    let gateway = Gateway::new(failure(FailureKind::Throttled), &[]).await;
    tokio::time::sleep(Duration::from_millis(1)).await;
    let metrics = gateway.metrics();
    assert!(
        !metrics.contains(EXPIRY) && !metrics.contains(OBTAINED),
        "{metrics}"
    );
    let results = [
        ("ok", 0),
        ("refused", 0),
        ("throttled", 1),
        ("unreachable", 0),
    ];
    for (result, count) in results {
        let line = format!("{REFRESHES}\"{result}\"}} {count}\n");
        assert!(metrics.contains(&line), "{line} {metrics}");
    }
    assert_eq!(metrics.matches(REFRESHES).count(), results.len());
    gateway.script.set(session(HOUR, Duration::ZERO));
    assert!(gateway.ask("30s").await.is(200, "OK"));
    // A second scrape does not add to the first.
    drop(gateway.metrics());
    let metrics = gateway.metrics();
    assert!(
        metrics.contains(EXPIRY) && metrics.contains(OBTAINED),
        "{metrics}"
    );
    assert!(
        metrics.contains(&format!("{REFRESHES}\"ok\"}} 1\n")),
        "{metrics}"
    );
    gateway.reload(fixed());
    let metrics = gateway.metrics();
    for name in [EXPIRY, OBTAINED, REFRESHES] {
        assert!(!metrics.contains(name), "{metrics}");
    }
}

#[test]
fn the_results_of_refreshes_are_the_kinds_of_failures() {
    assert_eq!(
        labels::FAILED_REFRESHES,
        FailureKind::ALL.map(FailureKind::label)
    );
}

#[tokio::test(start_paused = true)]
async fn a_reload_that_corrects_the_source_ends_the_wait() {
    let gateway = Gateway::new(failure(FailureKind::Refused), &[]).await;
    let call = tokio::spawn(gateway.begin("120s").await);
    tokio::time::sleep(seconds(10)).await;
    gateway.script.set(session(HOUR, Duration::ZERO));
    let start = Instant::now();
    gateway.reload(source("another"));
    let ended = call.await.unwrap();
    assert!(ended.is(200, "OK"), "{ended:?}");
    assert!(
        start.elapsed() < seconds(1),
        "a refused source is asked once a minute"
    );
}

#[tokio::test(start_paused = true)]
async fn a_reload_to_fixed_credentials_ends_the_wait() {
    let gateway = Gateway::new(failure(FailureKind::Refused), &[]).await;
    let call = tokio::spawn(gateway.begin("120s").await);
    tokio::time::sleep(seconds(1)).await;
    gateway.reload(fixed());
    let ended = call.await.unwrap();
    assert!(ended.is(200, "OK"), "{ended:?}");
    assert_eq!(gateway.cams.sessions(), [7]);
}

#[tokio::test(start_paused = true)]
async fn calls_wait_for_a_session_through_a_drain_until_its_grace_ends() {
    let gateway = Gateway::new(failure(FailureKind::Unreachable), &[]).await;
    let call = tokio::spawn(gateway.begin("120s").await);
    tokio::time::sleep(seconds(1)).await;
    gateway.services.phases.enter(Phase::Draining);
    gateway.script.set(session(HOUR, Duration::ZERO));
    assert!(call.await.unwrap().is(200, "OK"));

    let gateway = Gateway::new(failure(FailureKind::Unreachable), &[]).await;
    let call = tokio::spawn(gateway.begin("120s").await);
    tokio::time::sleep(seconds(1)).await;
    gateway.services.phases.enter(Phase::Draining);
    tokio::time::sleep(seconds(10)).await;
    let start = Instant::now();
    gateway.services.phases.enter(Phase::Over);
    let ended = call.await.unwrap();
    assert!(ended.is(503, "Flowgate.Draining"), "{ended:?}");
    assert!(start.elapsed() < seconds(1));
}

#[tokio::test(start_paused = true)]
async fn waiting_calls_are_bounded_per_client_and_leave_when_they_end() {
    let bounds = [("FLOWGATE_QUEUE__MAX_WAITING_PER_CLIENT", "3")];
    let gateway = Gateway::new(session(HOUR, seconds(5)), &bounds).await;
    let calls = gateway.together(5, "30s").await.join_all().await;
    let refused: Vec<_> = calls.iter().filter(|call| !call.is(200, "OK")).collect();
    assert_eq!(refused.len(), 2);
    for call in refused {
        assert!(call.is(400, "System.LimitControl"), "{call:?}");
    }
    // Callers that disconnect make room, too.
    gateway.reload(source("another"));
    let waiting = gateway.together(3, "30s").await;
    tokio::time::sleep(seconds(1)).await;
    assert!(gateway.ask("30s").await.is(400, "System.LimitControl"));
    drop(waiting);
    tokio::task::yield_now().await;
    let calls = gateway.together(3, "30s").await.join_all().await;
    assert!(calls.iter().all(|call| call.is(200, "OK")), "{calls:?}");
}

#[tokio::test(start_paused = true)]
async fn calls_that_wait_for_a_session_are_counted_and_their_refusals_are_no_errors_of_cams() {
    const WAITING: &str = "flowgate_credentials_waiting{account=\"acme\"}";
    const SUCCESSFUL: &str = "flowgate_credentials_last_refresh_successful{account=\"acme\"}";
    let gateway = Gateway::new(session(HOUR, seconds(1)), &[]).await;
    let metrics = gateway.metrics();
    assert!(metrics.contains(&format!("{WAITING} 0\n")), "{metrics}");
    assert!(!metrics.contains(SUCCESSFUL), "no refresh has ended");
    gateway.script.set(failure(FailureKind::ServiceError));
    gateway.reload(source("another"));
    let waiting = gateway.together(20, "10s").await;
    tokio::time::sleep(seconds(2)).await;
    let metrics = gateway.metrics();
    assert!(metrics.contains(&format!("{WAITING} 20\n")), "{metrics}");
    assert!(metrics.contains(&format!("{SUCCESSFUL} 0\n")), "{metrics}");
    let ended = waiting.join_all().await;
    assert!(ended.iter().all(Ended::is_without_credentials), "{ended:?}");
    let begin = "No session to sign with: sts.aliyuncs.com: the service refuses, status 503, code \
                 ServiceUnavailable, request id STS-REQUEST-1.";
    assert!(ended[0].message.starts_with(begin), "{ended:?}");
    gateway.script.set(session(HOUR, Duration::ZERO));
    assert!(gateway.ask("60s").await.is(200, "OK"));
    let metrics = gateway.metrics();
    for line in [
        format!("{WAITING} 0\n"),
        format!("{SUCCESSFUL} 1\n"),
        "flowgate_refused_total{account=\"acme\",reason=\"no_session\"} 20\n".to_owned(),
        "flowgate_refused_total{account=\"acme\",reason=\"credentials\"} 0\n".to_owned(),
        "flowgate_requests_total{account=\"acme\",action=\"ListFlow\",outcome=\"refused\"} 20\n"
            .to_owned(),
    ] {
        assert!(metrics.contains(&line), "{line} {metrics}");
    }
    gateway.reload(fixed());
    let metrics = gateway.metrics();
    assert!(
        !metrics.contains(WAITING) && !metrics.contains(SUCCESSFUL),
        "{metrics}"
    );
}

#[tokio::test(start_paused = true)]
async fn a_call_whose_client_or_account_is_removed_stops_to_wait() {
    for removes_account in [false, true] {
        let gateway = Gateway::new(failure(FailureKind::Refused), &[]).await;
        let call = tokio::spawn(gateway.begin("120s").await);
        tokio::time::sleep(seconds(1)).await;
        let start = Instant::now();
        gateway.reload_with(|config| {
            config.clients.clear();
            if removes_account {
                config.accounts.clear();
            }
        });
        let ended = call.await.unwrap();
        assert!(ended.is(403, "Flowgate.Forbidden"), "{ended:?}");
        assert!(start.elapsed() < seconds(1));
        // No client uses the source, so it is not asked any more.
        assert!(
            gateway
                .services
                .current_config
                .load()
                .session_accounts()
                .is_empty()
        );
        let requests = gateway.script.requests();
        tokio::time::sleep(seconds(600)).await;
        assert_eq!(gateway.script.requests(), requests);
    }
}

#[tokio::test(start_paused = true)]
async fn a_queued_call_is_signed_with_the_session_that_replaces_fixed_credentials() {
    let limit = [("FLOWGATE_LIMITS__LISTFLOW", "1/20s")];
    let gateway = Gateway::new(session(HOUR, seconds(1)), &limit).await;
    gateway.reload(fixed());
    let call = tokio::spawn(gateway.begin("60s").await);
    tokio::time::sleep(seconds(2)).await;
    gateway.reload(source("another"));
    let ended = call.await.unwrap();
    assert!(ended.is(200, "OK"), "{ended:?}");
    assert_eq!(gateway.cams.sessions(), [gateway.script.requests()]);
}

#[tokio::test(start_paused = true)]
async fn a_session_that_a_reload_has_replaced_is_not_replaced_again() {
    let gateway = Gateway::new(session(HOUR, Duration::ZERO), &[]).await;
    assert!(gateway.ask("10s").await.is(200, "OK"));
    *gateway.cams.refused.lock() = (400, vec!["STS.1"]);
    // The keeper of the other source has the second session by the time of the refusal.
    gateway.script.set(session(HOUR, Duration::ZERO));
    gateway.reload(source("another"));
    let ended = gateway.ask("10s").await;
    assert!(ended.is(200, "OK"), "{ended:?}");
    assert_eq!(gateway.cams.sessions(), [1, 2]);
    assert_eq!(gateway.script.requests(), 2);
}

#[tokio::test(start_paused = true)]
async fn calls_in_observe_mode_wait_for_a_session_too() {
    let observe = [
        ("FLOWGATE_MODE", "observe"),
        ("FLOWGATE_LIMITS__LISTFLOW", "1/20s"),
    ];
    let gateway = Gateway::new(session(HOUR, seconds(3)), &observe).await;
    let calls = gateway.together(3, "30s").await.join_all().await;
    assert!(calls.iter().all(|call| call.is(200, "OK")), "{calls:?}");
    assert_eq!(gateway.cams.sessions(), [1; 3]);
}

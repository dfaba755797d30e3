//! Calls whose answer is lost, and the looks for their flows, in simulated time. CAMS is a listener
//! on loopback that keeps flows.

use std::collections::VecDeque;

use hyper::Response;
use parking_lot::Mutex;
use tokio::task::{JoinHandle, JoinSet};

use super::sessions::seconds;
use super::*;
use crate::acs::decode::Params;
use crate::call::looks;
use crate::call::unknown;
use crate::config::FlowNames;
use crate::idempotency::looks::FLOW_OF_ANOTHER;
use crate::idempotency::record::{Created, Resolution, Search, UnknownOutcome};
use crate::observe::metrics::Scrape;

/// What happens to a CreateFlow.
#[derive(Clone, Copy)]
enum Fault {
    /// It is executed, and the connection closes.
    CloseAfter,
    /// It is not executed, and the connection closes.
    CloseBefore,
    /// It is executed so much later; the connection closes now.
    Late(Duration),
    /// It is not executed, and CAMS reports a failure of its own.
    Unavailable,
    /// A copy of it was executed before.
    Twice,
}

struct Flow {
    id: String,
    name: String,
    space: String,
    categories: &'static str,
    status: &'static str,
    /// From then on ListFlow shows it.
    shown_from: Instant,
}

/// How CAMS shows flows.
#[derive(Clone, Copy)]
struct Showing {
    /// How long a new flow is not shown.
    lag: Duration,
    max_page: usize,
    /// The filter ignores case and shows longer names.
    is_fuzzy: bool,
    /// The status and code with which looks are refused.
    refusal: Option<(u16, &'static str)>,
}

/// One request to CAMS.
struct Seen {
    at: Instant,
    action: String,
    /// Whether it is a look of Flowgate's own: it asks for pages.
    is_look: bool,
}

struct Cams {
    flows: Mutex<Vec<Flow>>,
    faults: Mutex<VecDeque<Fault>>,
    showing: Mutex<Showing>,
    seen: Mutex<Vec<Seen>>,
}

/// A Flowgate whose account `acme` has unique flow names.
struct Gateway {
    state: AppState,
    services: Arc<CallServices>,
    cams: Arc<Cams>,
    looks: JoinHandle<()>,
}

/// The reply to a call.
#[derive(Debug)]
struct Reply {
    status: u16,
    key: Option<String>,
    retry_after: Option<u64>,
    message: String,
    flow_id: Option<String>,
}

const SIGN_UP: &str = r#"["SIGN_UP"]"#;

fn minutes(minutes: u64) -> Duration {
    seconds(60 * minutes)
}

/// A call of the client, with or without an idempotency key.
fn request(
    action: &str,
    key: Option<&str>,
    hold: &str,
    params: &[(&str, &str)],
) -> Box<Request<Full<Bytes>>> {
    let mut request = signed(action, hold, params);
    if let Some(key) = key {
        let headers = request.headers_mut();
        headers.insert("idempotency-key", key.parse().unwrap());
    }
    request
}

fn create(key: &str, hold: &str, space: &str) -> Box<Request<Full<Bytes>>> {
    let params = [
        ("Categories", SIGN_UP),
        ("CustSpaceId", space),
        ("FlowName", "Welcome"),
    ];
    request("CreateFlow", Some(key), hold, &params)
}

// === impl Cams ===

impl Endpoint for Cams {
    async fn answer(&self, head: &str) -> Option<(u16, String)> {
        let action = head
            .lines()
            .find_map(|line| line.strip_prefix("x-acs-action: "))
            .unwrap();
        let target = head.split(' ').nth(1).unwrap();
        let params = Params::from_query(target.strip_prefix("/?").unwrap_or_default()).unwrap();
        self.seen.lock().push(Seen {
            at: Instant::now(),
            action: action.to_owned(),
            is_look: params.get("Page").is_some(),
        });
        let error = |status, code: &str| Some((status, format!(r#"{{"Code":"{code}"}}"#)));
        let refusal = self.showing.lock().refusal;
        match (action, refusal) {
            ("CreateFlow", _) => match self.faults.lock().pop_front() {
                None => {
                    let id = self.create(&params, Duration::ZERO);
                    let data = format!(r#"{{"FlowId":"{id}"}}"#);
                    Some((
                        200,
                        format!(r#"{{"Code":"OK","RequestId":"R","Data":{data}}}"#),
                    ))
                }
                Some(Fault::CloseBefore) => None,
                Some(Fault::CloseAfter) => {
                    self.create(&params, Duration::ZERO);
                    None
                }
                Some(Fault::Late(late)) => {
                    self.create(&params, late);
                    None
                }
                Some(Fault::Unavailable) => error(503, "ServiceUnavailable"),
                Some(Fault::Twice) => {
                    self.create(&params, Duration::ZERO);
                    error(400, "SignatureNonceUsed")
                }
            },
            (_, Some((status, code))) => error(status, code),
            ("ListFlow", _) => Some((200, self.list(&params))),
            ("GetFlow", _) => Some((200, self.get(&params))),
            _ => unreachable!("{action}"),
        }
    }
}

impl Cams {
    fn new() -> Arc<Self> {
        let showing = Showing {
            lag: Duration::ZERO,
            max_page: 100,
            is_fuzzy: false,
            refusal: None,
        };
        Arc::new(Self {
            flows: Mutex::default(),
            faults: Mutex::default(),
            showing: Mutex::new(showing),
            seen: Mutex::default(),
        })
    }

    fn create(&self, params: &Params, late: Duration) -> String {
        let name = params.get("FlowName").unwrap();
        let space = params.get("CustSpaceId").unwrap_or_default();
        let lag = self.showing.lock().lag;
        self.add(name, space, Instant::now() + late + lag)
    }

    /// Adds a draft, and returns its id.
    fn add(&self, name: &str, space: &str, shown_from: Instant) -> String {
        let mut flows = self.flows.lock();
        let id = (flows.len() + 1).to_string();
        flows.push(Flow {
            id: id.clone(),
            name: name.to_owned(),
            space: space.to_owned(),
            categories: SIGN_UP,
            status: "DRAFT",
            shown_from,
        });
        id
    }

    fn list(&self, params: &Params) -> String {
        let showing = *self.showing.lock();
        let page: serde_json::Value =
            serde_json::from_str(params.get("Page").unwrap_or(r#"{"Index":1,"Size":20}"#)).unwrap();
        let number = |name: &str| usize::try_from(page[name].as_u64().unwrap()).unwrap();
        let size = number("Size").min(showing.max_page);
        let now = Instant::now();
        let is_shown = |flow: &&Flow| {
            let matches = |name: &str| {
                let found = flow.name.to_lowercase();
                flow.name == name || showing.is_fuzzy && found.contains(&name.to_lowercase())
            };
            flow.shown_from <= now
                && params.get("CustSpaceId").unwrap_or_default() == flow.space
                && params.get("FlowName").is_none_or(matches)
        };
        let flows = self.flows.lock();
        let shown: Vec<_> = flows
            .iter()
            .filter(is_shown)
            .skip((number("Index") - 1) * size)
            .take(size)
            .map(|flow| {
                let Flow {
                    id,
                    name,
                    categories,
                    ..
                } = flow;
                format!(r#"{{"FlowId":"{id}","FlowName":"{name}","Categories":{categories}}}"#)
            })
            .collect();
        format!(r#"{{"Code":"OK","Data":[{}]}}"#, shown.join(","))
    }

    fn get(&self, params: &Params) -> String {
        let flows = self.flows.lock();
        let id = params.get("FlowId").unwrap();
        let Flow { status, .. } = flows.iter().find(|flow| flow.id == id).unwrap();
        format!(r#"{{"Code":"OK","Data":{{"FlowId":"{id}","Status":"{status}"}}}}"#)
    }

    fn fault(&self, fault: Fault) {
        self.faults.lock().push_back(fault);
    }

    fn flows(&self) -> usize {
        self.flows.lock().len()
    }

    fn count(&self, action: &str) -> usize {
        let seen = self.seen.lock();
        seen.iter().filter(|seen| seen.action == action).count()
    }
}

// === impl Gateway ===

impl Gateway {
    async fn new(settings: &[(&str, &str)]) -> Self {
        let cams = Cams::new();
        let url = listen(cams.clone()).await;
        let unique = ("FLOWGATE_ACCOUNTS__0__FLOW_NAMES", "unique");
        let settings = [&[unique], settings].concat();
        let state = AppState::new(config(&url, &settings)).unwrap();
        let services = state.calls().clone();
        let looks = tokio::spawn(looks::run(Arc::downgrade(&services)));
        Self {
            state,
            services,
            cams,
            looks,
        }
    }

    /// Reloads the configuration with these names of flows.
    fn reload(&self, names: FlowNames) {
        let mut config = self.services.current_config.load().config.clone();
        config.accounts[0].flow_names = names;
        let endpoints = self.state.next_endpoints(&config, None).unwrap();
        self.state.apply(config, endpoints, None);
    }

    /// A Flowgate that has created a flow in the space before.
    async fn with_flow_in(space: &str) -> Self {
        let gateway = Self::new(&[]).await;
        let params = [
            ("Categories", SIGN_UP),
            ("CustSpaceId", space),
            ("FlowName", "Another"),
        ];
        let request = request("CreateFlow", Some("K-0"), "10s", &params);
        gateway.call(request).await.is(200, Some("first"));
        gateway
    }

    /// Begins a call.
    async fn begin(
        &self,
        request: Box<Request<Full<Bytes>>>,
    ) -> impl Future<Output = Reply> + Send + 'static {
        let connected = Connected::to(&self.services).await;
        let services = self.services.clone();
        async move { Reply::read(connected.call(services, request).await).await }
    }

    async fn call(&self, request: Box<Request<Full<Bytes>>>) -> Reply {
        self.begin(request).await.await
    }

    /// Repeats the call of K-1 once a minute until it is answered otherwise than as unknown. Returns
    /// the answer and the minutes.
    async fn repeat(&self, space: &str, limit: u64) -> (Reply, u64) {
        for minute in 0..limit {
            let reply = self.call(create("K-1", "1s", space)).await;
            if reply.status != 409 {
                return (reply, minute);
            }
            assert!(
                reply
                    .retry_after
                    .is_none_or(|after| (1..=60).contains(&after))
            );
            tokio::time::sleep(minutes(1)).await;
        }
        (self.call(create("K-1", "1s", space)).await, limit)
    }

    fn unknown(&self) -> Vec<Arc<UnknownOutcome>> {
        let unknown = self.services.records.unknown().into_iter();
        unknown.map(|(_, outcome)| outcome).collect()
    }

    fn has_metric(&self, line: &str) {
        let metrics = &self.services.metrics;
        let text = metrics.render(&Scrape::default());
        assert!(text.contains(&format!("{line}\n")), "{line}: {text}");
    }
}

// === impl Reply ===

impl Reply {
    async fn read(reply: Response<Full<Bytes>>) -> Self {
        let header = |name: &str| {
            let value = reply.headers().get(name)?;
            Some(value.to_str().unwrap().to_owned())
        };
        let status = reply.status().as_u16();
        let key = header("x-flowgate-idempotency");
        let retry_after = header("retry-after").map(|text| text.parse().unwrap());
        let body = reply.into_body().collect().await.unwrap().to_bytes();
        let body: serde_json::Value = serde_json::from_slice(&body).unwrap();
        let text = |value: &serde_json::Value| value.as_str().map(str::to_owned);
        Self {
            status,
            key,
            retry_after,
            message: text(&body["Message"]).unwrap_or_default(),
            flow_id: text(&body["Data"]["FlowId"]),
        }
    }

    #[track_caller]
    fn is(&self, status: u16, key: Option<&str>) {
        assert_eq!(
            (self.status, self.key.as_deref()),
            (status, key),
            "{self:?}"
        );
    }
}

#[tokio::test(start_paused = true)]
async fn a_lost_answer_is_found_within_the_hold() {
    let gateway = Gateway::new(&[]).await;
    gateway.cams.fault(Fault::CloseAfter);
    let reply = gateway.call(create("K-1", "10s", "s-1")).await;
    reply.is(200, Some("resolved"));
    assert_eq!(reply.flow_id.as_deref(), Some("1"));
    let again = gateway.call(create("K-1", "10s", "s-1")).await;
    again.is(200, Some("replayed"));
    assert_eq!(again.flow_id.as_deref(), Some("1"));
    assert_eq!(
        (gateway.cams.flows(), gateway.cams.count("CreateFlow")),
        (1, 1)
    );
    gateway.has_metric(r#"flowgate_looks_total{account="acme",result="found"} 1"#);
    gateway.has_metric(r#"flowgate_resolutions_total{account="acme",result="created"} 1"#);
}

#[tokio::test(start_paused = true)]
async fn a_call_without_a_key_learns_of_its_lost_flow_too() {
    let gateway = Gateway::new(&[]).await;
    gateway.cams.fault(Fault::CloseAfter);
    let params = [("Categories", SIGN_UP), ("FlowName", "Welcome")];
    let reply = gateway
        .call(request("CreateFlow", None, "10s", &params))
        .await;
    reply.is(200, Some("resolved"));
    assert_eq!(gateway.cams.flows(), 1);
}

#[tokio::test(start_paused = true)]
async fn the_flow_of_another_call_without_a_key_is_not_handed_out() {
    let gateway = Gateway::new(&[]).await;
    gateway.cams.fault(Fault::CloseBefore);
    let params = [("Categories", SIGN_UP), ("FlowName", "Welcome")];
    let again = || request("CreateFlow", None, "10s", &params);
    let lost = tokio::spawn(gateway.begin(again()).await);
    while gateway.unknown().is_empty() {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    let created = gateway.call(again()).await;
    assert_eq!(
        (created.status, created.flow_id.as_deref()),
        (200, Some("1"))
    );
    let lost = lost.await.unwrap();
    lost.is(409, Some("unknown"));
    assert!(lost.message.contains("another order"), "{lost:?}");
}

#[tokio::test(start_paused = true)]
async fn what_was_not_executed_is_sent_again_after_the_proof_of_absence() {
    let gateway = Gateway::with_flow_in("s-1").await;
    gateway.cams.fault(Fault::CloseBefore);
    let (reply, minute) = gateway.repeat("s-1", 60).await;
    reply.is(200, Some("first"));
    assert!((31..=34).contains(&minute), "{minute}");
    assert_eq!(
        (gateway.cams.flows(), gateway.cams.count("CreateFlow")),
        (2, 3)
    );
    gateway.has_metric(r#"flowgate_resolutions_total{account="acme",result="absent"} 1"#);
}

#[tokio::test(start_paused = true)]
async fn what_is_executed_or_shown_later_is_found_later() {
    for lag in [0, 10] {
        let gateway = Gateway::with_flow_in("s-1").await;
        gateway.cams.showing.lock().lag = seconds(lag);
        gateway.cams.fault(Fault::Late(seconds(60)));
        let (reply, minute) = gateway.repeat("s-1", 60).await;
        assert_eq!((reply.status, reply.flow_id.as_deref()), (200, Some("2")));
        assert!((2..=3).contains(&minute), "{minute}");
        assert_eq!(
            (gateway.cams.flows(), gateway.cams.count("CreateFlow")),
            (2, 2)
        );
    }
}

#[tokio::test(start_paused = true)]
async fn a_request_that_arrived_twice_is_looked_for() {
    let gateway = Gateway::new(&[]).await;
    gateway.cams.fault(Fault::Twice);
    let reply = gateway.call(create("K-1", "10s", "s-1")).await;
    assert_eq!(
        (reply.status, reply.flow_id),
        (200, Some("1".to_owned())),
        "{:?}",
        reply.key
    );
    assert_eq!(
        (gateway.cams.flows(), gateway.cams.count("CreateFlow")),
        (1, 1)
    );
}

#[tokio::test(start_paused = true)]
async fn a_failure_of_cams_is_repeated_only_after_the_proof_of_absence() {
    let gateway = Gateway::with_flow_in("s-1").await;
    gateway.cams.fault(Fault::Unavailable);
    let first = gateway.call(create("K-1", "2s", "s-1")).await;
    first.is(409, Some("unknown"));
    let again = gateway.call(create("K-1", "2s", "s-1")).await;
    again.is(409, Some("unknown"));
    assert!(again.retry_after.is_some());
    assert_eq!(gateway.cams.count("CreateFlow"), 2);
    let (reply, minute) = gateway.repeat("s-1", 60).await;
    reply.is(200, Some("first"));
    assert!((31..=34).contains(&minute), "{minute}");
    assert_eq!(gateway.cams.flows(), 2);
}

#[tokio::test(start_paused = true)]
async fn names_that_are_not_unique_are_never_handed_out() {
    let shown = Instant::now();
    let two = Gateway::with_flow_in("s-1").await;
    two.cams.add("Welcome", "s-1", shown);
    two.cams.add("Welcome", "s-1", shown);
    two.cams.fault(Fault::CloseAfter);
    let older = Gateway::with_flow_in("s-1").await;
    older.cams.add("Welcome", "s-1", shown);
    older.cams.flows.lock()[1].status = "PUBLISHED";
    older.cams.fault(Fault::CloseBefore);
    for (gateway, why) in [(two, "several flows"), (older, "no draft")] {
        let reply = gateway.call(create("K-1", "10s", "s-1")).await;
        reply.is(409, Some("unknown"));
        assert_eq!(reply.retry_after, None);
        assert!(reply.message.contains(why), "{reply:?}");
        gateway.has_metric(r#"flowgate_looks_total{account="acme",result="ambiguous"} 1"#);
        tokio::time::sleep(minutes(90)).await;
        gateway
            .call(create("K-1", "10s", "s-1"))
            .await
            .is(409, Some("unknown"));
        let unknown = gateway.unknown();
        assert!(
            matches!(unknown[0].search, Search::Ambiguous(_)),
            "{unknown:?}"
        );
        assert_eq!(gateway.cams.count("CreateFlow"), 2);
    }
}

#[tokio::test(start_paused = true)]
async fn a_caller_of_an_unknown_outcome_is_told_which_request_to_settle() {
    let adopt = ("FLOWGATE_ACCOUNTS__0__ADOPT_REPEATS", "true");
    for (key, settings, is_named) in [
        (Some("K-1"), &[][..], true),
        (None, &[adopt], true),
        // A repetition of this one is another order.
        (None, &[], false),
    ] {
        let gateway = Gateway::new(settings).await;
        gateway.cams.add("Welcome", "s-1", Instant::now());
        gateway.cams.fault(Fault::CloseAfter);
        let params = [
            ("Categories", SIGN_UP),
            ("CustSpaceId", "s-1"),
            ("FlowName", "Welcome"),
        ];
        let reply = gateway
            .call(request("CreateFlow", key, "10s", &params))
            .await;
        assert_eq!(reply.status, 409, "{reply:?}");
        let first = gateway.unknown()[0].order.request_id.clone();
        let advice = format!(
            "settle request {first}: before that this process of Flowgate sends no repetition."
        );
        assert_eq!(reply.message.contains(&advice), is_named, "{reply:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_caller_whose_call_has_no_record_is_not_told_that_its_flow_is_looked_for() {
    let adopt = ("FLOWGATE_ACCOUNTS__0__ADOPT_REPEATS", "true");
    let two = ("FLOWGATE_EXACTLY_ONCE__MAX_KEYS", "2");
    let gateway = Gateway::new(&[adopt, two]).await;
    gateway.cams.showing.lock().refusal = Some((503, "ServiceUnavailable"));
    for (space, is_sought) in [("s-1", true), ("s-2", true), ("s-3", false)] {
        gateway.cams.fault(Fault::CloseBefore);
        let params = [
            ("Categories", SIGN_UP),
            ("CustSpaceId", space),
            ("FlowName", "Welcome"),
        ];
        let lost = gateway
            .call(request("CreateFlow", None, "10s", &params))
            .await;
        assert_eq!(lost.status, 409, "{lost:?}");
        let is_told = lost.message.contains("Flowgate looks for its flow");
        assert_eq!(is_told, is_sought, "{space}: {lost:?}");
        let is_advised = lost.message.contains("before you repeat it");
        assert_eq!(is_advised, !is_sought, "{space}: {lost:?}");
    }
    assert_eq!(gateway.unknown().len(), 2);
}

#[tokio::test(start_paused = true)]
async fn the_flow_is_found_among_many_that_are_similar() {
    let gateway = Gateway::new(&[]).await;
    for number in 0..130 {
        let name = format!("welcome {number}");
        gateway.cams.add(&name, "s-1", Instant::now());
    }
    *gateway.cams.showing.lock() = Showing {
        max_page: 20,
        is_fuzzy: true,
        lag: Duration::ZERO,
        refusal: None,
    };
    gateway.cams.fault(Fault::CloseAfter);
    let reply = gateway.call(create("K-1", "30s", "s-1")).await;
    reply.is(200, Some("resolved"));
    assert_eq!(reply.flow_id.as_deref(), Some("131"));
}

#[tokio::test(start_paused = true)]
async fn a_near_name_and_a_space_without_a_known_flow_prove_no_absence() {
    let near = Gateway::with_flow_in("s-1").await;
    near.cams.add("welcome ", "s-1", Instant::now());
    let empty = Gateway::with_flow_in("s-2").await;
    for gateway in [near, empty] {
        gateway.cams.fault(Fault::CloseBefore);
        let (reply, _) = gateway.repeat("s-1", 120).await;
        reply.is(409, Some("unknown"));
        assert_eq!(gateway.cams.count("CreateFlow"), 2);
        let (name, outcome) = gateway.services.records.unknown().remove(0);
        unknown::resolve(
            &gateway.services,
            name,
            &outcome,
            Resolution::SettledNotCreated,
        )
        .await
        .unwrap();
        let reply = gateway.call(create("K-1", "1s", "s-1")).await;
        reply.is(200, Some("first"));
    }
}

#[tokio::test(start_paused = true)]
async fn a_flow_that_is_created_in_the_space_later_makes_absence_provable() {
    let gateway = Gateway::with_flow_in("s-2").await;
    gateway.cams.fault(Fault::CloseBefore);
    let (reply, _) = gateway.repeat("s-1", 40).await;
    reply.is(409, Some("unknown"));
    let params = [
        ("Categories", SIGN_UP),
        ("CustSpaceId", "s-1"),
        ("FlowName", "Another"),
    ];
    let other = request("CreateFlow", Some("K-2"), "10s", &params);
    gateway.call(other).await.is(200, Some("first"));
    let (reply, minute) = gateway.repeat("s-1", 90).await;
    reply.is(200, Some("first"));
    assert!(minute <= 60, "{minute}");
}

#[tokio::test(start_paused = true)]
async fn an_account_that_may_not_look_waits_an_hour() {
    let gateway = Gateway::with_flow_in("s-1").await;
    gateway.cams.showing.lock().refusal = Some((403, "NoPermission"));
    gateway.cams.fault(Fault::CloseAfter);
    gateway
        .call(create("K-1", "10s", "s-1"))
        .await
        .is(409, Some("unknown"));
    tokio::time::sleep(minutes(55)).await;
    assert_eq!(gateway.cams.count("ListFlow"), 1);
    let forbidden = gateway.services.looks.forbidden();
    assert_eq!(&*forbidden[0].1.code, "NoPermission");
    gateway.cams.showing.lock().refusal = None;
    tokio::time::sleep(minutes(6)).await;
    let reply = gateway.call(create("K-1", "10s", "s-1")).await;
    assert_eq!((reply.status, reply.flow_id.as_deref()), (200, Some("2")));
    assert!(gateway.services.looks.forbidden().is_empty());
    gateway.has_metric(r#"flowgate_looks_total{account="acme",result="refused"} 1"#);
}

#[tokio::test(start_paused = true)]
async fn large_pages_that_cams_refuses_are_replaced_by_small_ones() {
    let gateway = Gateway::new(&[]).await;
    gateway.cams.fault(Fault::CloseAfter);
    gateway.cams.showing.lock().refusal = Some((400, "InvalidParameter.Page"));
    let reply = gateway.begin(create("K-1", "30s", "s-1")).await;
    let reply = tokio::spawn(reply);
    while gateway.cams.count("ListFlow") < 2 {
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    gateway.cams.showing.lock().refusal = None;
    reply.await.unwrap().is(200, Some("resolved"));
}

#[tokio::test(start_paused = true)]
async fn looks_leave_four_fifths_of_listflow_to_a_client_that_saturates_it() {
    let gateway = Gateway::with_flow_in("s-1").await;
    for number in 0..400 {
        gateway
            .cams
            .add(&format!("Flow {number}"), "s-1", Instant::now());
    }
    gateway.cams.showing.lock().max_page = 10;
    gateway.cams.showing.lock().is_fuzzy = true;
    gateway.cams.fault(Fault::CloseAfter);
    let params = [
        ("Categories", SIGN_UP),
        ("CustSpaceId", "s-1"),
        ("FlowName", "flow"),
    ];
    let lost = request("CreateFlow", Some("K-1"), "60s", &params);
    let lost = tokio::spawn(gateway.begin(lost).await);
    let mut load = JoinSet::new();
    let began = Instant::now();
    for _ in 0..150 {
        let params = [("CustSpaceId", "s-1")];
        load.spawn(
            gateway
                .begin(request("ListFlow", None, "60s", &params))
                .await,
        );
    }
    while let Some(reply) = load.join_next().await {
        assert_eq!(reply.unwrap().status, 200);
    }
    let took = began.elapsed();
    lost.abort();
    let seen = gateway.cams.seen.lock();
    let lists: Vec<_> = seen
        .iter()
        .filter(|seen| seen.action == "ListFlow")
        .collect();
    let during = lists.iter().filter(|seen| seen.at <= began + took);
    let looks = during.filter(|seen| seen.is_look).count();
    assert!(looks >= 20, "{looks} looks in {took:?}");
    assert!(looks * 4 <= 150, "{looks} looks in {took:?}");
    for six in lists.windows(6) {
        assert!(
            six[5].at - six[0].at >= seconds(1),
            "more than five in a second"
        );
    }
}

#[tokio::test(start_paused = true)]
async fn looks_end_with_a_drain_and_hold_nothing() {
    let gateway = Gateway::new(&[]).await;
    gateway.cams.fault(Fault::CloseBefore);
    gateway
        .call(create("K-1", "5s", "s-1"))
        .await
        .is(409, Some("unknown"));
    let looks = gateway.cams.count("ListFlow");
    gateway.services.phases.enter(Phase::Draining);
    gateway.looks.await.unwrap();
    tokio::time::sleep(minutes(60)).await;
    assert_eq!(gateway.cams.count("ListFlow"), looks);
}

#[tokio::test(start_paused = true)]
async fn a_flow_that_an_operator_names_is_replayed() {
    let gateway = Gateway::with_flow_in("s-1").await;
    gateway.cams.fault(Fault::CloseBefore);
    gateway
        .call(create("K-1", "5s", "s-1"))
        .await
        .is(409, Some("unknown"));
    let (name, outcome) = gateway.services.records.unknown().remove(0);
    let created = Created {
        flow_id: "77".into(),
        request_id: None,
    };
    unknown::resolve(
        &gateway.services,
        name,
        &outcome,
        Resolution::SettledCreated(created),
    )
    .await
    .unwrap();
    let reply = gateway.call(create("K-1", "5s", "s-1")).await;
    reply.is(200, Some("replayed"));
    assert_eq!(reply.flow_id.as_deref(), Some("77"));
    let looks = gateway.cams.count("ListFlow");
    tokio::time::sleep(minutes(60)).await;
    assert_eq!(gateway.cams.count("ListFlow"), looks);
}

#[tokio::test(start_paused = true)]
async fn a_flow_that_an_operator_has_given_to_another_call_ends_the_search_for_it() {
    let gateway = Gateway::new(&[]).await;
    gateway.cams.showing.lock().refusal = Some((503, "ServiceUnavailable"));
    for (fault, key, space) in [
        (Fault::CloseAfter, "K-1", "s-1"),
        (Fault::CloseBefore, "K-2", "s-2"),
    ] {
        gateway.cams.fault(fault);
        let lost = gateway.call(create(key, "5s", space)).await;
        lost.is(409, Some("unknown"));
    }
    let unknown = gateway.services.records.unknown();
    let is_second = |outcome: &UnknownOutcome| &*outcome.order.flow.space == "s-2";
    let (name, outcome) = unknown.iter().find(|(_, it)| is_second(it)).unwrap();
    let wrong = Some(&*gateway.cams.flows.lock()[0].id.clone());
    let word = unknown::settle(&gateway.services, *name, outcome, wrong).await;
    assert_eq!(word, Ok(unknown::Recorded::Yes));
    gateway.cams.showing.lock().refusal = None;
    let told = gateway.call(create("K-1", "60s", "s-1")).await;
    told.is(409, Some("unknown"));
    assert!(told.message.contains(FLOW_OF_ANOTHER), "{told:?}");
    assert_eq!(told.retry_after, None);
    let looks = gateway.cams.count("ListFlow");
    tokio::time::sleep(minutes(90)).await;
    assert_eq!(gateway.cams.count("ListFlow"), looks);
    assert!(matches!(gateway.unknown()[0].search, Search::Ambiguous(_)));
}

#[tokio::test(start_paused = true)]
async fn a_reload_to_unique_names_begins_the_search_for_an_unknown_outcome() {
    let gateway = Gateway::new(&[]).await;
    gateway.reload(FlowNames::Any);
    gateway.cams.fault(Fault::CloseAfter);
    gateway.cams.fault(Fault::CloseAfter);
    let lost = gateway.call(create("K-1", "10s", "s-1")).await;
    lost.is(409, Some("unknown"));
    assert_eq!(lost.retry_after, None);
    let params = [("FlowName", "Without categories")];
    let cannot_be_sought = request("CreateFlow", Some("K-2"), "10s", &params);
    let lost = gateway.call(cannot_be_sought).await;
    lost.is(409, Some("unknown"));
    let searches = || {
        let unknown = gateway.unknown().into_iter();
        unknown
            .map(|outcome| outcome.search.clone())
            .collect::<Vec<_>>()
    };
    tokio::time::sleep(minutes(60)).await;
    assert_eq!(searches(), [Search::None, Search::None]);
    assert_eq!(gateway.cams.count("ListFlow"), 0);
    gateway.reload(FlowNames::Unique);
    assert_eq!(searches(), [Search::Active, Search::None]);
    let found = gateway.call(create("K-1", "10s", "s-1")).await;
    found.is(200, Some("resolved"));
    assert_eq!(found.flow_id.as_deref(), Some("1"));
    assert_eq!(searches(), [Search::None]);
}

#[tokio::test(start_paused = true)]
async fn a_reload_to_other_names_ends_the_search_and_the_wait_for_it() {
    let gateway = Gateway::with_flow_in("s-1").await;
    gateway.cams.fault(Fault::CloseBefore);
    let waiting = tokio::spawn(gateway.begin(create("K-1", "60s", "s-1")).await);
    tokio::time::sleep(seconds(20)).await;
    assert_eq!(gateway.unknown()[0].search, Search::Active);
    let reloaded = Instant::now();
    gateway.reload(FlowNames::Any);
    let told = waiting.await.unwrap();
    told.is(409, Some("unknown"));
    assert_eq!(told.retry_after, None, "{told:?}");
    assert!(reloaded.elapsed() < seconds(1));
    assert_eq!(gateway.unknown()[0].search, Search::None);
    let looks = gateway.cams.count("ListFlow");
    tokio::time::sleep(minutes(60)).await;
    let again = gateway.call(create("K-1", "10s", "s-1")).await;
    again.is(409, Some("unknown"));
    assert_eq!(again.retry_after, None, "{again:?}");
    assert_eq!(gateway.cams.count("ListFlow"), looks);
    assert_eq!(gateway.cams.count("CreateFlow"), 2);
}

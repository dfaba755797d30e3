//! The status page and its data: its files, its event stream, and operator actions on lanes.

use std::net::SocketAddr;

use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::caller::{self, Call, KEY, Reply, SECRET};
use crate::harness::{self, Harness};
use crate::operator::{OPERATOR, TOKEN, command, post};
use crate::process::Process;

/// Operator actions with the token `team-secret-1`.
pub(crate) const ORDERS: &str =
    "[listen]\nadmin_token = { env = \"TEAM\" }\nadmin_actions = true\n";

/// A client of `/events`, and its unread text.
pub(crate) struct Stream(TcpStream, String);

impl Stream {
    pub(crate) async fn open(admin: SocketAddr) -> Self {
        let mut stream = TcpStream::connect(admin).await.unwrap();
        stream
            .write_all(format!("GET /events HTTP/1.1\r\nhost: {admin}\r\n\r\n").as_bytes())
            .await
            .unwrap();
        Self(stream, String::new())
    }

    /// The next snapshot; `None` when the stream has ended.
    pub(crate) async fn next(&mut self) -> Option<Value> {
        loop {
            if let Some((event, rest)) = self
                .1
                .split_once("data: ")
                .and_then(|(_, rest)| rest.split_once("\n\n"))
            {
                let event = serde_json::from_str(event).unwrap();
                self.1 = rest.to_owned();
                return Some(event);
            }
            assert!(!self.1.contains("HTTP/1.1 503"), "{}", self.1);
            if read(&mut self.0, &mut self.1).await == 0 {
                return None;
            }
        }
    }
}

/// Whether one more stream can be opened.
async fn follows(admin: SocketAddr) -> bool {
    let mut stream = Stream::open(admin).await;
    read(&mut stream.0, &mut stream.1).await;
    stream.1.starts_with("HTTP/1.1 200 ")
}

/// Reads available bytes; 0 at the end.
async fn read(stream: &mut TcpStream, text: &mut String) -> usize {
    let mut bytes = Vec::new();
    let read = stream.read_buf(&mut bytes).await.unwrap();
    text.push_str(std::str::from_utf8(&bytes).expect("snapshots here are ASCII"));
    read
}

fn lane() -> Value {
    json!({ "account": "acme", "action": "CreateFlow" })
}

#[tokio::test]
async fn the_page_is_served_from_the_binary_and_can_load_nothing_else() {
    let harness = Harness::new("").await;
    let csp = "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self' data:; \
               frame-ancestors 'none'; base-uri 'none'; form-action 'none'";
    for (path, content_type) in [
        ("/", "text/html; charset=utf-8"),
        ("/page.css", "text/css; charset=utf-8"),
        ("/call.html", "text/html; charset=utf-8"),
        ("/page.js", "text/javascript; charset=utf-8"),
        ("/call.js", "text/javascript; charset=utf-8"),
        ("/callview.js", "text/javascript; charset=utf-8"),
        ("/charts.js", "text/javascript; charset=utf-8"),
        ("/common.js", "text/javascript; charset=utf-8"),
        ("/lanes", "application/json"),
        ("/nothing", "text/plain; charset=utf-8"),
    ] {
        let page = harness.get(path).await;
        assert_eq!(page.header("content-type"), Some(content_type), "{path}");
        for (name, value) in [
            ("content-security-policy", csp),
            ("cache-control", "no-store"),
            ("x-content-type-options", "nosniff"),
            ("x-frame-options", "DENY"),
            ("referrer-policy", "no-referrer"),
        ] {
            assert_eq!(page.header(name), Some(value), "{path}");
        }
        assert!(
            page.headers
                .iter()
                .all(|(name, _)| name != "set-cookie" && !name.starts_with("access-control"))
        );
    }
    for path in ["/", "/call.html"] {
        let page = harness.get(path).await.body;
        assert!(
            !page.contains("<script>") && !page.contains(" style=") && !page.contains("src=\"http")
        );
    }
    for path in [
        "/page.js",
        "/call.js",
        "/callview.js",
        "/charts.js",
        "/common.js",
    ] {
        let script = harness.get(path).await.body;
        for way in [
            "innerHTML",
            "outerHTML",
            "insertAdjacentHTML",
            "document.write",
            "eval(",
            "Storage",
            "cookie",
        ] {
            assert!(!script.contains(way), "{path}: {way}");
        }
    }
}

#[tokio::test]
async fn a_call_is_found_by_either_request_id_with_its_attempts_and_why_it_waited() {
    let harness = Harness::new("").await;
    harness
        .sim
        .set_faults(vec!["next=1,throttle,acs-retry-after=300".parse().unwrap()]);
    let reply = Call::v3(&harness.host(), "<b>").send(harness.proxy).await;
    assert_eq!(reply.status, 200);
    let calls = harness.get("/calls?account=acme&outcome=ok").await.json();
    let [listed] = &calls["calls"].as_array().unwrap()[..] else {
        panic!("{calls}")
    };
    let cams_request_id = reply.json()["RequestId"].clone();
    assert_eq!(listed["cams_request_id"], cams_request_id);
    let none = harness.get("/calls?client=another").await.json();
    assert_eq!(none, json!({ "calls": [] }));
    for id in [&listed["request_id"], &cams_request_id] {
        let id = id.as_str().unwrap();
        let call = harness.get(&format!("/calls/{id}")).await.json();
        assert_eq!(call["request_id"], listed["request_id"]);
        assert_eq!(
            (&call["flow_name"], &call["attempts"]),
            (&json!("<b>"), &json!(2))
        );
        let tries = call["tries"].as_array().unwrap();
        let codes: Vec<_> = tries.iter().map(|one| &one["code"]).collect();
        assert_eq!(codes, ["System.LimitControl", "OK"]);
        assert!(tries[0]["cams_request_id"].is_string(), "{call}");
        let why = call["why"].to_string();
        assert!(
            why.contains("queued again once, after System.LimitControl"),
            "{call}"
        );
        assert!(!call.to_string().contains(SECRET), "{call}");
    }
    let history = harness.get("/history").await.json();
    assert_eq!(history["interval_seconds"], 5);
    let ended = history["total"]["ended"].as_object().unwrap();
    assert_eq!(ended.len(), 8, "{history}");
}

#[tokio::test]
async fn the_way_of_a_call_with_an_idempotency_key_is_known_and_a_repetition_has_none() {
    let harness = Harness::new("").await;
    let send = async || {
        let mut call = Call::v3(&harness.host(), "once");
        call.push("idempotency-key", "key-1");
        call.send(harness.proxy).await
    };
    let first = send().await;
    assert_eq!(send().await.status, 200);
    let calls = harness.get("/calls").await.json();
    let ids: Vec<_> = calls["calls"]
        .as_array()
        .unwrap()
        .iter()
        .map(|call| call["request_id"].as_str().unwrap())
        .collect();
    let [repetition, original] = ids[..] else {
        panic!("{calls}")
    };
    let by_cams = first.json()["RequestId"].as_str().unwrap().to_owned();
    for id in [original, &by_cams] {
        let call = harness.get(&format!("/calls/{id}")).await.json();
        assert_eq!(call["request_id"], original);
        assert_eq!(call["tries"][0]["code"], "OK", "{call}");
        assert_eq!(call["tries"][0]["cams_request_id"], by_cams, "{call}");
    }
    let call = harness.get(&format!("/calls/{repetition}")).await.json();
    assert_eq!((&call["tries"], &call["attempts"]), (&json!([]), &json!(0)));
}

#[tokio::test]
async fn a_browser_gets_the_page_of_a_call_and_its_data_needs_the_token_beyond_loopback() {
    let harness = Harness::new("").await;
    let admin = harness.admin;
    let get = async |accept: &str| {
        let request =
            format!("GET /calls/A-1 HTTP/1.1\r\nhost: {admin}\r\naccept: {accept}\r\n\r\n");
        caller::exchange(admin, request.as_bytes()).await.unwrap()
    };
    let page = get("text/html,*/*;q=0.8").await;
    assert_eq!(page.status, 200);
    assert_eq!(page.body, harness.get("/call.html").await.body);
    assert_eq!(get("application/json").await.status, 404);
}

#[tokio::test]
async fn a_stream_shows_lanes_and_calls_and_no_secret() {
    let harness = Harness::new("").await;
    let hostile = "<img src=x onerror=alert(1)>";
    assert_eq!(
        Call::v3(&harness.host(), hostile)
            .send(harness.proxy)
            .await
            .status,
        200
    );
    let other = "sts-unknown-1";
    Call::v3_with(
        &harness.host(),
        &[("FlowName", "x")],
        |_| {},
        (other, SECRET),
    )
    .send(harness.proxy)
    .await;
    let mut stream = Stream::open(harness.app.admin_address().unwrap()).await;
    let first = stream.next().await.unwrap();
    assert_eq!(
        (&first["phase"], &first["mode"], &first["may_order"]),
        (&json!("serving"), &json!("enforce"), &json!(false))
    );
    assert_eq!(
        (
            &first["upstreams"][0]["reachable"],
            &first["store"],
            &first["config"]["refused"]
        ),
        (&json!(true), &Value::Null, &Value::Null)
    );
    let lane = &first["lanes"][0];
    assert_eq!(
        (&lane["account"], &lane["action"], &lane["granted"]),
        (&json!("acme"), &json!("CreateFlow"), &json!(1))
    );
    let [unknown, known] = &first["calls"].as_array().unwrap()[..] else {
        panic!("{first}")
    };
    assert_eq!(
        (&known["flow_name"], &known["outcome"], &known["status"]),
        (&json!(hostile), &json!("ok"), &json!(200))
    );
    assert_eq!(
        (&known["client"], &known["attempts"]),
        (&json!("LTAI***-1"), &json!(1))
    );
    assert_eq!(
        (&unknown["account"], &unknown["code"]),
        (&json!("unknown"), &json!("InvalidAccessKeyId.NotFound"))
    );
    let text = first.to_string();
    assert!(
        [SECRET, KEY, other]
            .iter()
            .all(|secret| !text.contains(secret)),
        "{text}"
    );
    assert!(
        stream.next().await.unwrap()["at_ms"].as_u64() > first["at_ms"].as_u64(),
        "a second later"
    );
}

#[tokio::test]
async fn at_most_sixteen_event_streams_are_open() {
    let harness = Harness::new("").await;
    let admin = harness.app.admin_address().unwrap();
    let mut streams = Vec::new();
    for _ in 0..16 {
        let mut stream = Stream::open(admin).await;
        stream.next().await.unwrap();
        streams.push(stream);
    }
    let refused = harness.get("/events").await;
    assert_eq!(
        (refused.status, refused.body.as_str()),
        (
            503,
            "16 pages are connected, which is the limit: close one, or read /lanes.\n"
        )
    );
    drop(streams);
    // A closed stream is noticed when the next snapshots are written.
    let give_up = tokio::time::Instant::now() + std::time::Duration::from_secs(60);
    while !follows(admin).await {
        assert!(
            tokio::time::Instant::now() < give_up,
            "their places stay taken"
        );
        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
    }
}

#[tokio::test]
async fn a_drain_is_shown_in_the_stream_and_ends_it() {
    let Harness { app, sim: _sim, .. } = Harness::new("[drain]\ndelay = \"2s\"\n").await;
    let mut stream = Stream::open(app.admin_address().unwrap()).await;
    assert_eq!(stream.next().await.unwrap()["phase"], "serving");
    let drain = tokio::spawn(app.drain());
    let mut phases = Vec::new();
    while let Some(snapshot) = stream.next().await {
        phases.push(snapshot["phase"].as_str().unwrap().to_owned());
    }
    assert!(phases.contains(&"leaving".to_owned()), "{phases:?}");
    assert_eq!(phases.last().unwrap(), "over");
    drain.await.unwrap();
}

#[tokio::test]
#[expect(clippy::too_many_lines, reason = "one table")]
async fn operator_actions_need_a_token_and_a_valid_request() {
    let harness = Harness::new(ORDERS).await;
    let admin = harness.app.admin_address().unwrap();
    let host = admin.to_string();
    let body = lane().to_string();
    let ours = ("host", &*host);
    let token = ("authorization", TOKEN);
    let kind = ("content-type", "application/json");
    for (status, headers, body) in [
        (401, vec![ours, kind], &*body),
        (
            401,
            vec![ours, kind, ("authorization", "Bearer team-secret-2")],
            &*body,
        ),
        (
            401,
            vec![ours, kind, ("cookie", "token=team-secret-1")],
            &*body,
        ),
        (421, vec![("host", "rebound.example"), token, kind], &*body),
        (
            403,
            vec![ours, token, kind, ("sec-fetch-site", "cross-site")],
            &*body,
        ),
        (415, vec![ours, token], &*body),
        (
            415,
            vec![ours, token, ("content-type", "text/plain")],
            &*body,
        ),
        (
            415,
            vec![
                ours,
                token,
                ("content-type", "application/x-www-form-urlencoded"),
            ],
            &*body,
        ),
        (400, vec![ours, token, kind], ""),
        (400, vec![ours, token, kind], "[]"),
        (400, vec![ours, token, kind], r#"{"account":"acme"}"#),
        (
            400,
            vec![ours, token, kind],
            r#"{"account":"acme","action":"CreateFlow","account":"acme"}"#,
        ),
        (
            400,
            vec![ours, token, kind],
            r#"{"account":"acme","action":"CreateFlow","minutes":1}"#,
        ),
        (
            400,
            vec![ours, token, kind],
            r#"{"account":"acme","action":"CreateFlow","seconds":0}"#,
        ),
        (
            400,
            vec![ours, token, kind],
            r#"{"account":"acme","action":"CreateFlow","seconds":86401}"#,
        ),
        (
            400,
            vec![ours, token, kind],
            r#"{"account":"acme","action":"CreateFlow","seconds":-1}"#,
        ),
        (
            404,
            vec![ours, token, kind],
            r#"{"account":"unknown","action":"CreateFlow"}"#,
        ),
        (
            404,
            vec![ours, token, kind],
            r#"{"account":"acme","action":"NoSuchAction"}"#,
        ),
        (413, vec![ours, token, kind], &*" ".repeat(4097)),
        (
            200,
            vec![
                ours,
                token,
                ("content-type", "Application/JSON; charset=utf-8"),
            ],
            &*body,
        ),
    ] {
        let reply = post(admin, "/lanes/pause", &headers, body).await;
        assert_eq!(reply.status, status, "{headers:?} {body}: {reply:?}");
        assert_eq!(reply.header("www-authenticate").is_some(), status == 401);
    }
    for path in ["/lanes/resume", "/lanes/flush"] {
        let body = r#"{"account":"acme","action":"CreateFlow","seconds":1}"#;
        assert_eq!(
            post(admin, path, &[ours, token, kind], body).await.status,
            400,
            "{path}"
        );
        let page = harness.get(path).await;
        assert_eq!((page.status, page.header("allow")), (405, Some("POST")));
    }
    // The token is accepted only in the header.
    assert_eq!(
        post(
            admin,
            "/lanes/flush?token=team-secret-1",
            &[ours, kind],
            &body
        )
        .await
        .status,
        401
    );
    assert_eq!(
        harness
            .metrics()
            .await
            .sum("flowgate_operator_actions_total"),
        1.0
    );
}

#[tokio::test]
async fn operator_actions_are_off_by_default_and_in_observe_mode() {
    let token_only = "[listen]\nadmin_token = { env = \"TEAM\" }\n";
    let observing = format!("{ORDERS}[log]\nlevel = \"info\"\n");
    for (more, status) in [("", 403), (token_only, 403)] {
        let harness = Harness::new(more).await;
        assert_eq!(
            command(harness.app.admin_address().unwrap(), "pause", &lane())
                .await
                .status,
            status,
            "{more}"
        );
    }
    let sim = cams_sim::Sim::start(cams_sim::Settings::default().with_key(KEY, SECRET, "acme"))
        .await
        .unwrap();
    let toml = format!(
        "mode = \"observe\"\n{}[upstream]\nurl = \"{}\"\n{observing}",
        crate::process::ACME,
        sim.url()
    );
    let harness = Harness::configured(sim, &toml).await;
    assert_eq!(
        command(harness.app.admin_address().unwrap(), "pause", &lane())
            .await
            .status,
        409
    );
}

#[tokio::test]
async fn pause_resume_and_flush_work_and_are_logged_and_counted() {
    let sim = cams_sim::Sim::start(cams_sim::Settings::default().with_key(KEY, SECRET, "acme"))
        .await
        .unwrap();
    let gate = Process::with_env(&sim, "[queue]\nhold = \"90s\"\n", &OPERATOR).await;
    let paused = command(
        gate.admin,
        "pause",
        &json!({ "account": "acme", "action": "CreateFlow", "seconds": 80 }),
    )
    .await;
    let answer = json!({ "order": "pause", "account": "acme", "action": "CreateFlow", "seconds": 80,
        "told": 0, "queued": 0, "scope": "the whole lane" });
    assert_eq!((paused.status, paused.json()), (200, answer));
    let call = |name: &'static str| {
        let proxy = gate.proxy;
        tokio::spawn(async move { Call::v3(&proxy.to_string(), name).send(proxy).await })
    };
    let queued = "flowgate_queued{account=\"acme\",action=\"CreateFlow\"}";
    let flushed = call("flushed");
    harness::Metrics::until(gate.admin, queued, |waiting| waiting == 1.0).await;
    assert_eq!(
        command(gate.admin, "flush", &lane()).await.json()["told"],
        1
    );
    let flushed = flushed.await.unwrap();
    assert_eq!(
        (flushed.status, flushed.code().as_str()),
        (400, "System.LimitControl")
    );
    assert!(
        flushed.json()["Message"]
            .as_str()
            .unwrap()
            .contains("an operator has flushed the queue"),
        "{flushed:?}"
    );
    let advice: u64 = flushed
        .header("x-acs-retry-after")
        .unwrap()
        .parse()
        .unwrap();
    assert!(
        (60_000..=81_005).contains(&advice),
        "the rest of the pause: {advice}"
    );
    let served = call("served");
    harness::Metrics::until(gate.admin, queued, |waiting| waiting == 1.0).await;
    assert!(sim.arrivals().is_empty(), "no call is sent");
    assert_eq!(
        command(gate.admin, "resume", &lane()).await.json()["queued"],
        1
    );
    assert_eq!(served.await.unwrap().status, 200);
    let metrics = harness::Metrics::of(gate.admin).await;
    for action in ["pause", "resume", "flush"] {
        assert_eq!(
            metrics.get(&format!(
                "flowgate_operator_actions_total{{action=\"{action}\"}}"
            )),
            1.0,
            "{action}"
        );
    }
    assert_eq!(
        metrics.get("flowgate_refused_total{account=\"acme\",reason=\"flushed\"}"),
        1.0
    );
    let said = gate.logged("operator action on a lane", 3).await;
    let said: Vec<_> = said
        .iter()
        .map(|event| (&event["level"], &event["order"], &event["action"]))
        .collect();
    let warn = json!("WARN");
    let action = json!("CreateFlow");
    let names = [json!("pause"), json!("flush"), json!("resume")];
    assert_eq!(
        said,
        [
            (&warn, &names[0], &action),
            (&warn, &names[1], &action),
            (&warn, &names[2], &action)
        ]
    );
}

#[tokio::test]
async fn repetitions_of_a_lost_call_and_calls_that_wait_are_not_counted_as_lost() {
    let harness = Harness::new("").await;
    let keyed = |key: &'static str, hold: &'static str| {
        let query = [("Categories", "[\"SIGN_UP\"]"), ("FlowName", key)];
        let with_key = |call: &mut Call| {
            call.push("idempotency-key", key);
            call.push("x-flowgate-hold", hold);
        };
        Call::v3_with(&harness.host(), &query, with_key, (KEY, SECRET))
    };
    let fault = |fault: &str| harness.sim.set_faults(vec![fault.parse().unwrap()]);
    let state = |reply: &Reply| {
        let state = reply.header("x-flowgate-idempotency").unwrap_or_default();
        (reply.status, state.to_owned())
    };
    fault("next=1,close-after");
    let lost = Call::v3(&harness.host(), "lost").send(harness.proxy).await;
    assert_eq!(state(&lost), (409, String::new()));
    fault("next=1,close-after");
    for _ in 0..3 {
        let lost = keyed("lost-key", "30s").send(harness.proxy).await;
        assert_eq!(state(&lost), (409, "unknown".to_owned()));
    }
    fault("next=1,held");
    let (slow, proxy) = (keyed("slow", "30s"), harness.proxy);
    let slow = tokio::spawn(async move { slow.send(proxy).await });
    while harness.sim.report().arrived < 3 {
        tokio::task::yield_now().await;
    }
    let waits = keyed("slow", "200ms").send(harness.proxy).await;
    assert_eq!(state(&waits), (409, "pending".to_owned()));
    harness.sim.set_faults(vec![]);
    assert_eq!(slow.await.unwrap().status, 200);

    let metrics = harness.metrics().await;
    let refused = "flowgate_refused_total{account=\"acme\",reason=\"outcome_unknown\"}";
    let lost = "flowgate_lost_calls_total{account=\"acme\"}";
    assert_eq!(
        [refused, lost].map(|series| metrics.get(series)),
        [5.0, 2.0]
    );
    let shown = Stream::open(harness.admin).await.next().await.unwrap();
    let calls = shown["calls"].as_array().unwrap().iter();
    let lost = calls.filter(|call| call["lost"] == json!(true));
    let lost: Vec<_> = lost
        .map(|call| call["flow_name"].as_str().unwrap())
        .collect();
    assert_eq!(lost, ["lost-key", "lost"]);
}

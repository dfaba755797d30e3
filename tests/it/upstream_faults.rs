//! Faults of CAMS: a call that may have been processed is not repeated, every caller gets a correct
//! response, and broken responses are not passed on.

use std::collections::BTreeSet;
use std::time::{Duration, SystemTime};

use cams_sim::{Settings, Sim};
use tokio::net::TcpListener;
use tokio::time::Instant;

use crate::caller::{Call, KEY, Reply, SECRET};
use crate::harness::Harness;

/// Sends one CreateFlow with a fault.
async fn struck(harness: &Harness, fault: &str) -> Reply {
    harness.sim.reset();
    harness
        .sim
        .set_faults(vec![format!("next=1,{fault}").parse().unwrap()]);
    Call::v3(&harness.host(), "x").send(harness.proxy).await
}

#[tokio::test]
async fn a_call_that_may_have_been_processed_is_unknown_and_not_retried() {
    let harness = Harness::with(
        Settings::default(),
        "answer_timeout = \"700ms\"\nmax_response = \"64KiB\"",
    )
    .await;
    for (fault, created) in [
        ("close-before", 0),
        ("close-after", 1),
        ("reset", 1),
        ("copied", 1),
        ("failed", 1),
        ("no-data", 1),
        ("unavailable", 0),
        ("slow=5s", 1),
        ("garbage", 1),
        ("html", 1),
        ("empty", 1),
        ("cut", 1),
        ("huge=100000", 1),
        ("redirect", 0),
    ] {
        let reply = struck(&harness, fault).await;
        assert_eq!(
            (reply.status, reply.code().as_str()),
            (409, "Flowgate.OutcomeUnknown"),
            "{fault}"
        );
        assert_eq!(
            reply.header("x-flowgate-error"),
            Some("Flowgate.OutcomeUnknown")
        );
        assert_eq!(
            (
                reply.header("x-acs-retry-after"),
                reply.header("retry-after")
            ),
            (None, None),
            "{fault}"
        );
        assert!(reply.body.contains("ListFlow"), "{fault}: says what to do");
        let report = harness.sim.report();
        assert_eq!((report.arrived, report.created), (1, created), "{fault}");
    }
    let metrics = harness.metrics().await;
    assert_eq!(
        metrics.outcome("acme", "CreateFlow", "outcome_unknown"),
        14.0
    );
    assert_eq!(metrics.sum("flowgate_requests_total"), 14.0);
    assert_eq!(
        Call::v3(&harness.host(), "afterwards")
            .send(harness.proxy)
            .await
            .status,
        200
    );
}

/// A call of an action without parameters.
fn plain(harness: &Harness, action: &str) -> Call {
    let named = |call: &mut Call| call.set("x-acs-action", action);
    Call::v3_with(&harness.host(), &[], named, (KEY, SECRET))
}

#[tokio::test]
async fn a_503_is_returned_unchanged_with_any_hint_unless_something_may_be_created() {
    let harness = Harness::new("").await;
    for hint in ["", ",retry-after=1", ",acs-retry-after=50"] {
        for action in ["ListFlow", "PublishFlow"] {
            harness.sim.reset();
            let fault = format!("next=1,unavailable{hint}");
            harness.sim.set_faults(vec![fault.parse().unwrap()]);
            let reply = plain(&harness, action).send(harness.proxy).await;
            assert_eq!(
                (reply.status, reply.header("x-flowgate-error")),
                (503, None)
            );
            assert_eq!(harness.sim.report().arrived, 1);
        }
        let reply = struck(&harness, &format!("unavailable{hint}")).await;
        assert_eq!(
            (reply.status, reply.code().as_str()),
            (409, "Flowgate.OutcomeUnknown")
        );
        assert_eq!(reply.header("x-acs-retry-after"), None);
        assert_eq!(harness.sim.report().arrived, 1);
    }
    let metrics = harness.metrics().await;
    for (action, outcome) in [
        ("ListFlow", "upstream_error"),
        ("PublishFlow", "upstream_error"),
        ("CreateFlow", "outcome_unknown"),
    ] {
        assert_eq!(metrics.outcome("acme", action, outcome), 3.0, "{action}");
    }
}

#[tokio::test]
async fn a_copy_on_the_way_leaves_every_call_with_an_unknown_outcome() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("journal");
    let more = format!("[journal]\npath = \"{}\"", path.display());
    let harness = Harness::new(&more).await;
    for action in ["CreateFlow", "ListFlow", "PublishFlow", "ListInstance"] {
        harness.sim.set_faults(vec!["copied".parse().unwrap()]);
        let call = match action {
            "CreateFlow" => Call::v3(&harness.host(), "copied"),
            _ => plain(&harness, action),
        };
        let reply = call.send(harness.proxy).await;
        assert_eq!(
            (reply.status, reply.code().as_str()),
            (409, "Flowgate.OutcomeUnknown"),
            "{action}"
        );
        assert!(
            reply.body.contains("already received a copy"),
            "{}",
            reply.body
        );
    }
    let report = harness.sim.report();
    assert_eq!((report.arrived, report.created), (4, 1), "the flow exists");
    harness.app.drain().await;
    let listed = std::process::Command::new(env!("CARGO_BIN_EXE_flowgate"))
        .args(["journal", "--unknown"])
        .arg(&path)
        .output()
        .unwrap();
    let listed = String::from_utf8(listed.stdout).unwrap();
    assert_eq!(listed.matches("acme").count(), 4, "{listed}");
    assert!(listed.contains("copied"), "{listed}");
}

#[tokio::test]
async fn the_replay_of_a_relayed_call_is_just_refused() {
    let sim = Sim::start(Settings::default().with_key(KEY, SECRET, "acme"))
        .await
        .unwrap();
    let toml = format!(
        "unknown_keys = \"relay\"\n[upstream]\nurl = \"{}\"\n",
        sim.url()
    );
    let harness = Harness::configured(sim, &toml).await;
    harness.sim.set_faults(vec!["copied".parse().unwrap()]);
    let reply = Call::v1(&harness.host(), "relayed")
        .send(harness.proxy)
        .await;
    assert_eq!(
        (reply.status, reply.code().as_str()),
        (400, "SignatureNonceUsed")
    );
    assert_eq!(reply.header("x-flowgate-error"), None);
}

#[tokio::test]
async fn a_wrong_clock_is_named_measured_and_corrected() {
    for (minutes, side) in [(20, "behind"), (-20, "ahead of")] {
        for correct in [true, false] {
            let more = format!("correct_clock = {correct}");
            let harness = Harness::new(&more).await;
            let offset = Duration::from_secs(1200);
            let now = SystemTime::now();
            let cams = if minutes > 0 {
                now + offset
            } else {
                now - offset
            };
            harness.sim.set_now(Some(cams));
            let reply = Call::v3(&harness.host(), "one").send(harness.proxy).await;
            let report = harness.sim.report();
            // The simulator's clock stands still meanwhile.
            let passed = now.elapsed().unwrap().as_secs() + 1;
            if correct {
                assert_eq!(reply.status, 200, "{reply:?}");
                assert_eq!((report.arrived, report.created), (2, 1));
                let next = Call::v1(&harness.host(), "two").send(harness.proxy).await;
                assert_eq!(next.status, 200, "{next:?}");
                assert_eq!(
                    harness.sim.report().arrived,
                    3,
                    "signed with the right time"
                );
            } else {
                assert_eq!(
                    (reply.status, reply.code().as_str()),
                    (403, "Flowgate.AccountCredentials")
                );
                let mut seconds = 1200 - passed..=1200 + passed;
                let is_told = |seconds| {
                    let text = format!("{seconds} seconds {side} CAMS's");
                    reply.body.contains(&text)
                };
                assert!(seconds.any(is_told), "{}", reply.body);
                assert_eq!((report.arrived, report.created), (1, 0));
            }
            let metrics = harness.metrics().await;
            let url = &harness.sim.url();
            let series = format!("flowgate_upstream_clock_offset_seconds{{upstream=\"{url}\"}}");
            let seconds = metrics.get(&series);
            let off = f64::from(minutes * 60);
            let passed = now.elapsed().unwrap().as_secs_f64() + 1.0;
            assert!((seconds - off).abs() <= passed, "{seconds}");
        }
    }
}

#[tokio::test]
async fn a_clock_that_is_set_right_while_stamps_are_corrected_refuses_no_call() {
    let harness = Harness::new("").await;
    let ahead = SystemTime::now() + Duration::from_secs(1200);
    harness.sim.set_now(Some(ahead));
    let reply = Call::v3(&harness.host(), "one").send(harness.proxy).await;
    assert_eq!(reply.status, 200, "{reply:?}");
    harness.sim.set_now(None);
    let calls = (0..10).map(|index| {
        let call = Call::v3(&harness.host(), &format!("two {index}"));
        async move { call.send(harness.proxy).await }
    });
    for reply in futures_util::future::join_all(calls).await {
        assert_eq!(reply.status, 200, "{reply:?}");
    }
    assert_eq!(harness.sim.report().created, 11);
}

#[tokio::test]
async fn a_stamp_is_corrected_once_per_call() {
    let harness = Harness::new("").await;
    harness
        .sim
        .set_now(Some(SystemTime::now() + Duration::from_secs(1200)));
    let refused = "refuse=InvalidTimeStamp.Expired".parse().unwrap();
    harness.sim.set_faults(vec![refused]);
    let reply = Call::v3(&harness.host(), "x").send(harness.proxy).await;
    assert_eq!(
        (reply.status, reply.code().as_str()),
        (403, "Flowgate.AccountCredentials")
    );
    assert_eq!(harness.sim.report().arrived, 2);
}

#[tokio::test]
async fn a_retry_after_date_is_waited_for() {
    let harness = Harness::new("").await;
    let start = Instant::now();
    let reply = struck(&harness, "throttle,retry-at=3").await;
    assert_eq!(reply.status, 200, "{reply:?}");
    assert!(
        start.elapsed() >= Duration::from_secs(2),
        "{:?}",
        start.elapsed()
    );
    let arrivals = harness.sim.arrivals();
    let [first, second] = &arrivals[..] else {
        panic!("{arrivals:?}");
    };
    let apart = second.at - first.at;
    assert!(apart >= Duration::from_secs(3), "{apart:?}");
}

#[tokio::test]
async fn a_lost_read_may_be_repeated_and_by_flowgate_if_configured() {
    for (reads, status, arrived) in [(false, 409, 1), (true, 200, 3)] {
        let harness = Harness::new(&format!("[retry]\nreads = {reads}")).await;
        for (action, parameters) in [("ListFlow", true), ("ListInstance", false)] {
            harness.sim.reset();
            let lost = ["next=1,close-after", "next=1,copied"];
            let lost = lost.map(|fault| fault.parse().unwrap());
            harness.sim.set_faults(lost.to_vec());
            let query: &[_] = if parameters {
                &[("FlowName", "x")]
            } else {
                &[]
            };
            let named = |call: &mut Call| call.set("x-acs-action", action);
            let call = Call::v3_with(&harness.host(), query, named, (KEY, SECRET));
            let reply = call.send(harness.proxy).await;
            assert_eq!(reply.status, status, "{reply:?}");
            if !reads {
                assert!(
                    reply.body.contains("may simply be repeated"),
                    "{}",
                    reply.body
                );
            }
            let nonces: BTreeSet<_> = harness
                .sim
                .arrivals()
                .into_iter()
                .filter_map(|arrival| arrival.nonce)
                .collect();
            assert_eq!(harness.sim.report().arrived, arrived);
            assert_eq!(nonces.len() as u64, arrived, "a nonce each");
        }
        let tokens = harness.metrics().await;
        let spent = tokens.get("flowgate_tokens_total{account=\"acme\",event=\"spent\"}");
        assert_eq!(spent, if reads { 3.0 } else { 1.0 }, "a token each");
        // A call that creates is not repeated.
        let reply = struck(&harness, "close-after").await;
        assert_eq!((reply.status, harness.sim.report().arrived), (409, 1));
    }
}

#[tokio::test]
async fn throttling_is_recognised_in_every_response_form() {
    let harness = Harness::new("").await;
    for fault in [
        "throttle",
        "throttle,code=Throttling",
        "throttle,code=Throttling.User,time-left=30",
        "throttle,status=429",
        "throttle,ok",
        "throttle,xml",
        "throttle,retry-after=1",
    ] {
        let reply = struck(&harness, fault).await;
        assert_eq!(reply.status, 200, "{fault}: {reply:?}");
        let report = harness.sim.report();
        assert_eq!((report.arrived, report.created), (2, 1), "{fault}");
    }
}

#[tokio::test]
async fn a_flow_name_that_looks_like_an_error_code_is_not_one() {
    let harness = Harness::new("").await;
    let name = "a\",\"Code\":\"System.LimitControl\",\"x\":\"";
    let reply = Call::v3(&harness.host(), name).send(harness.proxy).await;
    assert_eq!(
        (reply.status, reply.json()["Data"]["FlowName"].as_str()),
        (200, Some(name))
    );
    assert_eq!(harness.sim.report().arrived, 1);
}

#[tokio::test]
async fn a_rejected_signature_of_flowgate_is_not_shown_to_the_caller() {
    let toml = "[[accounts]]\nid = \"acme\"\naccess_key_id = \"LTAI-managed-1\"\naccess_key_secret = { env = \"WRONG\" }\n";
    let sim =
        Sim::start(Settings::default().with_key("LTAI-managed-1", "managed-secret-1", "acme"))
            .await
            .unwrap();
    let url = sim.url();
    let harness = Harness::configured(sim, &format!("{toml}[upstream]\nurl = \"{url}\"")).await;
    let query = [("Categories", "[\"SIGN_UP\"]"), ("FlowName", "x")];
    let call = Call::v3_with(
        &harness.host(),
        &query,
        |_| {},
        ("LTAI-managed-1", "not-the-secret"),
    );
    let reply = call.send(harness.proxy).await;
    assert_eq!(
        (reply.status, reply.code().as_str()),
        (403, "Flowgate.AccountCredentials")
    );
    assert!(
        !reply.body.contains("LTAI-managed-1") && !reply.body.contains("string to sign"),
        "{}",
        reply.body
    );
    assert_eq!(
        harness
            .metrics()
            .await
            .outcome("acme", "CreateFlow", "upstream_error"),
        1.0
    );
}

#[tokio::test]
async fn an_unreachable_upstream_costs_the_hold_and_no_token() {
    let dead = TcpListener::bind("127.0.0.1:0")
        .await
        .unwrap()
        .local_addr()
        .unwrap();
    let sim = Sim::start(Settings::default()).await.unwrap();
    let harness =
        Harness::in_front_of(sim, &format!("http://{dead}"), "[queue]\nhold = \"2s\"").await;
    let start = Instant::now();
    let reply = Call::v3(&harness.host(), "x").send(harness.proxy).await;
    assert_eq!(
        (reply.status, reply.code().as_str()),
        (503, "Flowgate.UpstreamUnreachable")
    );
    // The hold without the margin for a response.
    assert!(start.elapsed() >= Duration::from_millis(1800));
    assert!(
        reply
            .header("x-acs-retry-after")
            .unwrap()
            .parse::<u64>()
            .unwrap()
            > 0
    );
    let metrics = harness.metrics().await;
    assert_eq!(metrics.outcome("acme", "CreateFlow", "unreachable"), 1.0);
    let tokens = |event| {
        metrics.get(&format!(
            "flowgate_tokens_total{{account=\"acme\",event=\"{event}\"}}"
        ))
    };
    assert_eq!(
        (tokens("spent"), tokens("granted")),
        (0.0, tokens("returned"))
    );
    assert_eq!(
        harness.get("/lanes").await.json()["upstream"]["reachable"],
        false
    );
}

#[tokio::test]
async fn calls_wait_for_an_upstream_that_returns() {
    let reserved = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = reserved.local_addr().unwrap();
    drop(reserved);
    let placeholder = Sim::start(Settings::default()).await.unwrap();
    let harness = Harness::in_front_of(placeholder, &format!("http://{address}"), "").await;
    let mut calls = tokio::task::JoinSet::new();
    for index in 0..5 {
        let call = Call::v3(&harness.host(), &format!("flow-{index}"));
        let proxy = harness.proxy;
        calls.spawn(async move { call.send(proxy).await.status });
    }
    harness
        .until(
            "flowgate_queued{account=\"acme\",action=\"CreateFlow\"}",
            5.0,
        )
        .await;
    let settings = Settings::default().with_key("LTAI-managed-1", "managed-secret-1", "acme");
    let late = Sim::new(settings)
        .listen(TcpListener::bind(address).await.unwrap())
        .unwrap();
    assert_eq!(calls.join_all().await, [200; 5]);
    assert_eq!(late.report().created, 5);
}

#[tokio::test]
async fn a_stale_connection_loses_no_call() {
    let harness = Harness::new("").await;
    assert_eq!(
        Call::v3(&harness.host(), "one")
            .send(harness.proxy)
            .await
            .status,
        200
    );
    // The endpoint closes idle connections, as servers do, and keeps listening.
    let address = harness.sim.addr();
    let sim = harness.sim.stop().await;
    let again = sim
        .listen(TcpListener::bind(address).await.unwrap())
        .unwrap();
    let call = Call::v3(&harness.proxy.to_string(), "two");
    let reply = call.send(harness.proxy).await;
    assert_eq!(
        (reply.status, reply.json()["Data"]["FlowName"].as_str()),
        (200, Some("two")),
        "{reply:?}"
    );
    assert_eq!(again.report().created, 2);
}

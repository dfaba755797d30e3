//! STS that is dead from the start, dies later, is slow, throttles or refuses: what callers see, and
//! what operators see.

use std::time::Duration;

use serde_json::Value;
use tokio::process::Command;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep};

use super::cloud::{Cloud, OIDC, create, refreshes, refreshes_series, send};
use crate::caller::Reply;
use crate::harness::{Metrics, get};
use crate::process::Process;
use crate::relay::Condition;
use crate::status::Stream;

/// The refusal of a call whose account has no session, which names the cause.
fn assert_no_session(reply: &Reply, named: &[&str]) {
    assert_eq!(
        (reply.status, &*reply.code()),
        (403, "Flowgate.AccountCredentials"),
        "{reply:?}"
    );
    for text in named {
        assert!(reply.body.contains(text), "{text} in {}", reply.body);
    }
}

/// Waits until the account has this many failed refreshes of a kind, and returns all metrics.
async fn until_failed(process: &Process, kind: &str, times: f64) -> Metrics {
    let series = refreshes_series("default", kind);
    Metrics::until(process.admin, &series, |seen| seen >= times).await
}

/// The account's credentials on the status page, once they are as wished: a snapshot is up to a
/// second old.
async fn shown(process: &Process, wished: impl Fn(&Value) -> bool) -> Value {
    let mut stream = Stream::open(process.admin).await;
    let mut last = Value::Null;
    for _ in 0..30 {
        let page = stream.next().await.unwrap();
        let rows = page["credentials"].as_array().unwrap();
        let row = rows.iter().find(|row| row["account"] == "default");
        last = row.unwrap_or_else(|| panic!("no account: {page}")).clone();
        if wished(&last) {
            return last;
        }
    }
    panic!("{last}");
}

#[tokio::test]
async fn calls_wait_for_an_sts_that_is_dead_from_the_start_and_pass_once_it_lives() {
    let cloud = Cloud::start(None).await;
    cloud.sts.is(Condition::Killed);
    let process = cloud.sidecar().await;
    let waited = Instant::now();
    let reply = send(&process, "early", "2s").await;
    assert_no_session(&reply, &[&cloud.sts_address()]);
    // It was not refused before its hold has ended, less the margin.
    assert!(waited.elapsed() >= Duration::from_millis(1_500));
    let metrics = until_failed(&process, "unreachable", 1.0).await;
    assert_eq!(refreshes(&metrics, "default", "ok"), 0.0);
    let shown = shown(&process, |row| !row["failure"].is_null()).await;
    assert_eq!(shown["source"], "oidc", "{shown}");
    assert!(shown["seconds"].is_null(), "{shown}");
    assert_eq!(shown["failure"]["kind"], "unreachable", "{shown}");
    let failure = shown["failure"]["text"].as_str().unwrap();
    assert!(failure.contains(&cloud.sts_address()), "{shown}");

    // The hold is as long as the longest pause between two attempts.
    let waiting = create(&process.proxy.to_string(), "late", "30s");
    let proxy = process.proxy;
    let waiting = tokio::spawn(async move { waiting.send(proxy).await });
    cloud.sts.is(Condition::Open);
    let reply = waiting.await.unwrap();
    assert_eq!(reply.status, 200, "{reply:?}");
    assert_eq!(cloud.requests(OIDC).len(), 1);
    let shown = self::shown(&process, |row| row["failure"].is_null()).await;
    let seconds = shown["seconds"].as_i64().unwrap();
    assert!((3_500..=3_600).contains(&seconds), "{shown}");
}

#[tokio::test]
async fn a_session_is_used_to_its_end_and_never_after_while_sts_fails() {
    let cloud = Cloud::start(Some(Duration::from_secs(9))).await;
    let process = cloud.sidecar().await;
    assert_eq!(send(&process, "first", "30s").await.status, 200);
    cloud.break_sts(&["unavailable"]);
    let mut served = 0;
    let refused = loop {
        let reply = send(&process, &format!("flow-{served}"), "2s").await;
        if reply.status != 200 {
            break reply;
        }
        served += 1;
        // Within the rate: no call waits for its turn.
        sleep(Duration::from_millis(300)).await;
    };
    assert_no_session(
        &refused,
        &[&cloud.sts_address(), "503", "ServiceUnavailable"],
    );
    // The session was used after the first failed refresh.
    let metrics = until_failed(&process, "service_error", 1.0).await;
    assert_eq!(refreshes(&metrics, "default", "ok"), 1.0);
    let failed_at = cloud.requests(OIDC)[1].received;
    let arrivals = cloud.sim.arrivals();
    let later = arrivals.iter().filter(|call| call.received > failed_at);
    assert!(later.count() > 1, "{served}");
    // CAMS has not seen it after its end.
    assert_eq!(cloud.sim.report().codes.len(), 0);
    let before = arrivals.len();
    for name in ["a", "b", "c"] {
        assert_no_session(&send(&process, name, "2s").await, &[]);
    }
    assert_eq!(cloud.sim.arrivals().len(), before);

    cloud.break_sts(&[]);
    let reply = send(&process, "recovered", "30s").await;
    assert_eq!(reply.status, 200, "{reply:?}");
    assert_eq!(cloud.sim.report().codes.len(), 0);
}

#[tokio::test]
async fn all_calls_wait_for_one_slow_request() {
    let cloud = Cloud::start(None).await;
    cloud.break_sts(&["next=1,slow=7s"]);
    let process = cloud.sidecar().await;
    let mut calls = JoinSet::new();
    for number in 0..20 {
        let call = create(&process.proxy.to_string(), &format!("flow-{number}"), "40s");
        let proxy = process.proxy;
        calls.spawn(async move { call.send(proxy).await.status });
    }
    assert_eq!(calls.join_all().await, [200; 20]);
    assert_eq!(cloud.requests(OIDC).len(), 1);
    let metrics = Metrics::of(process.admin).await;
    assert_eq!(refreshes(&metrics, "default", "ok"), 1.0);
}

#[tokio::test]
async fn a_request_that_sts_throttles_is_repeated_after_a_pause() {
    let cloud = Cloud::start(None).await;
    cloud.break_sts(&["next=2,throttle,code=Throttling.User"]);
    let process = cloud.sidecar().await;
    let reply = send(&process, "patient", "30s").await;
    assert_eq!(reply.status, 200, "{reply:?}");
    let requests = cloud.requests(OIDC);
    assert_eq!(requests.len(), 3);
    // 1 s, then 2 s, with jitter.
    let gaps = requests
        .windows(2)
        .map(|pair| pair[1].received - pair[0].received);
    for (gap, least) in gaps.zip([500, 1_000]) {
        assert!(gap >= Duration::from_millis(least), "{gap:?}");
    }
    let metrics = until_failed(&process, "throttled", 2.0).await;
    assert_eq!(refreshes(&metrics, "default", "ok"), 1.0);
    assert_eq!(refreshes(&metrics, "default", "refused"), 0.0);
}

#[tokio::test]
async fn a_refusal_is_told_to_callers_and_not_repeated_for_each_of_them() {
    let cloud = Cloud::start(None).await;
    cloud.break_sts(&["refuse=AuthenticationFail.NoPermission,status=403"]);
    let process = cloud.sidecar().await;
    for name in ["a", "b", "c", "d", "e"] {
        let reply = send(&process, name, "500ms").await;
        let named = [&*cloud.sts_address(), "AuthenticationFail.NoPermission"];
        assert_no_session(&reply, &named);
    }
    let metrics = until_failed(&process, "refused", 1.0).await;
    assert_eq!(refreshes(&metrics, "default", "refused"), 1.0);
    assert_eq!(cloud.requests(OIDC).len(), 1);
    assert_eq!(cloud.sim.report().arrived, 0);
    let shown = shown(&process, |row| !row["failure"].is_null()).await;
    let failure = &shown["failure"];
    assert_eq!(failure["kind"], "refused", "{failure}");
    let text = failure["text"].as_str().unwrap();
    assert!(text.contains("AuthenticationFail.NoPermission"), "{text}");
    // The log has the whole cause, too: of each call, and of the source.
    assert!(
        text.contains("status 403") && text.contains("request id "),
        "{text}"
    );
    let calls = logged(&process, "call");
    assert_eq!(calls.len(), 5);
    for call in &calls {
        assert_eq!(
            (&call["outcome"], &call["attempts"]),
            (&"refused".into(), &0.into())
        );
        assert!(call["detail"].as_str().unwrap().contains(text), "{call}");
    }
    let lines = logged(&process, "no valid session: calls cannot be signed");
    let [line] = &lines[..] else {
        panic!("{lines:?}")
    };
    assert_eq!(line["accounts"], "default", "{line}");
    assert_eq!(line["place"], cloud.sts_address(), "{line}");
    assert_eq!(line["error"], text, "{line}");
}

/// The log lines with a message.
fn logged(process: &Process, message: &str) -> Vec<Value> {
    let log = process.log();
    let lines = log.lines().map(|line| line.parse::<Value>().unwrap());
    lines.filter(|line| line["message"] == message).collect()
}

#[tokio::test]
async fn waiting_calls_are_shown_by_the_metric_by_lanes_and_by_flowgate_status() {
    let cloud = Cloud::start(None).await;
    cloud.break_sts(&["unavailable"]);
    let process = cloud.sidecar().await;
    let proxy = process.proxy;
    let mut calls = JoinSet::new();
    for number in 0..3 {
        let call = create(&proxy.to_string(), &format!("flow-{number}"), "60s");
        calls.spawn(async move { call.send(proxy).await.status });
    }
    let waiting = "flowgate_credentials_waiting{account=\"default\"}";
    Metrics::until(process.admin, waiting, |seen| seen == 3.0).await;
    until_failed(&process, "service_error", 1.0).await;
    let lanes: Value = get(process.admin, "/lanes").await.body.parse().unwrap();
    let session = &lanes["sessions"][0];
    assert_eq!(
        (&session["account"], &session["waiting"]),
        (&"default".into(), &3.into())
    );
    let status = Command::new(env!("CARGO_BIN_EXE_flowgate"))
        .args(["status", "--admin", &process.admin.to_string()])
        .output()
        .await
        .unwrap();
    let status = String::from_utf8(status.stdout).unwrap();
    let begin = "account default (oidc): no session, calls waiting 3; the last request failed ";
    let line = status.lines().find(|line| line.starts_with(begin));
    let line = line.unwrap_or_else(|| panic!("{status}"));
    let cause = format!(
        "s ago: {}: the service is unavailable, status 503, code ServiceUnavailable, request id ",
        cloud.sts_address()
    );
    assert!(line.contains(&cause), "{status}");
    assert!(status.contains(", waiting for a session 3;"), "{status}");

    cloud.break_sts(&[]);
    assert_eq!(calls.join_all().await, [200; 3]);
    let metrics = Metrics::until(process.admin, waiting, |seen| seen == 0.0).await;
    let successful = "flowgate_credentials_last_refresh_successful{account=\"default\"}";
    assert_eq!(metrics.get(successful), 1.0);
    let lanes: Value = get(process.admin, "/lanes").await.body.parse().unwrap();
    assert_eq!(lanes["sessions"], serde_json::json!([]));
}

/// What `/config` tells about an account: the source, and nothing of a session.
#[tokio::test]
async fn the_configuration_page_names_the_source() {
    let cloud = Cloud::start(None).await;
    let process = cloud.sidecar().await;
    assert_eq!(send(&process, "any", "30s").await.status, 200);
    let config = get(process.admin, "/config").await.body;
    for named in ["oidc", super::cloud::ROLE, super::cloud::PROVIDER] {
        assert!(config.contains(named), "{named} in {config}");
    }
    assert!(config.contains(&cloud.sts_address()), "{config}");
    for secret in cloud.sim.issued_secrets() {
        assert!(!config.contains(&secret), "{config}");
    }
}

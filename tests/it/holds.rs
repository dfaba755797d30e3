//! No call waits longer than its caller: the hold by SDK, by header, and with a reserve for CAMS's
//! response; and the headers that report the wait.

use std::time::Duration;

use cams_sim::Settings;
use tokio::task::JoinSet;
use tokio::time::Instant;

use crate::caller::{Call, KEY, Reply, SECRET};
use crate::harness::Harness;

const PYTHON: &str = "AlibabaCloud (Linux; x86_64) Python/3.11.7 Core/0.4.3 TeaDSL/2";
const NODE: &str = "AlibabaCloud (linux; x64) Node.js/v20.20.2 Core/1.0.1 TeaDSL/1";
/// Nothing is sent in the first second of a process.
const FIRST_SECOND: Duration = Duration::from_millis(1100);

/// A call with these headers.
fn call(harness: &Harness, name: &str, headers: &[(&str, &str)]) -> Call {
    let mut call = Call::v3(&harness.host(), name);
    headers
        .iter()
        .for_each(|(name, value)| call.push(name, value));
    call
}

/// Simultaneous calls, each with its response and its duration.
async fn burst(
    harness: &Harness,
    calls: usize,
    headers: &[(&str, &str)],
) -> Vec<(Reply, Duration)> {
    let mut burst = JoinSet::new();
    for index in 0..calls {
        let call = call(harness, &format!("flow-{index}"), headers);
        let proxy = harness.proxy;
        burst.spawn(async move {
            let start = Instant::now();
            (call.send(proxy).await, start.elapsed())
        });
    }
    burst.join_all().await
}

/// Counts the served calls of a burst, each with its turn within `time_out`; checks that the others
/// got Retry-After immediately.
fn served(replies: &[(Reply, Duration)], time_out: Duration) -> u64 {
    for (reply, took) in replies {
        if reply.status == 200 {
            let waited = reply.header("x-flowgate-waited").unwrap();
            let waited = Duration::from_millis(waited.parse().unwrap());
            assert!(waited < time_out, "sent after {waited:?}");
            continue;
        }
        assert_eq!(
            (reply.status, reply.code().as_str()),
            (400, "System.LimitControl"),
            "{reply:?}"
        );
        let after: u64 = reply.header("x-acs-retry-after").unwrap().parse().unwrap();
        assert!(after > 0 && after < 60_000, "{after}");
        assert!(*took < time_out / 2, "refused after {took:?}");
    }
    replies
        .iter()
        .map(|(reply, _)| u64::from(reply.status == 200))
        .sum()
}

#[tokio::test]
async fn the_hold_of_the_python_sdk_is_10_s() {
    // Half the gap of other tests, so that the tenth window is well within the ten seconds.
    let harness = Harness::new("[learn]\ngap = \"50ms\"\nmax_gap = \"50ms\"").await;
    tokio::time::sleep(FIRST_SECOND).await;
    let replies = burst(&harness, 100, &[("user-agent", PYTHON)]).await;
    let served = served(&replies, Duration::from_secs(10));
    // Ten windows of five; calls that came slightly later may fit into one more.
    assert!((50..=55).contains(&served), "{served} served");
    let report = harness.sim.report();
    assert_eq!(
        (report.created, report.arrived, report.worst_window),
        (served, served, 5)
    );
    let metrics = harness.metrics().await;
    assert_eq!(metrics.outcome("acme", "CreateFlow", "ok") as u64, served);
    assert_eq!(
        metrics.outcome("acme", "CreateFlow", "refused") as u64,
        100 - served
    );
}

#[tokio::test]
async fn the_hold_of_the_node_sdk_is_3_s() {
    let harness = Harness::new("").await;
    tokio::time::sleep(FIRST_SECOND).await;
    let replies = burst(&harness, 30, &[("user-agent", NODE)]).await;
    let served = served(&replies, Duration::from_secs(3));
    assert!((15..=20).contains(&served), "{served} served");
    assert_eq!(harness.sim.report().created, served);
}

#[tokio::test]
async fn calls_that_follow_retry_after_succeed() {
    let harness = Harness::new("").await;
    tokio::time::sleep(FIRST_SECOND).await;
    let mut calls = JoinSet::new();
    for index in 0..40 {
        let headers = [("user-agent", NODE)];
        let names = [format!("flow-{index}"), format!("flow-{index} again")];
        let [first, second] = names.map(|name| call(&harness, &name, &headers));
        let proxy = harness.proxy;
        calls.spawn(async move {
            let reply = first.send(proxy).await;
            let Some(after) = reply.header("x-acs-retry-after") else {
                return (1, reply.status);
            };
            tokio::time::sleep(Duration::from_millis(after.parse().unwrap())).await;
            (2, second.send(proxy).await.status)
        });
    }
    let ends = calls.join_all().await;
    let tries = |tries| ends.iter().filter(|end| **end == (tries, 200)).count();
    assert_eq!(tries(1) + tries(2), 40, "{ends:?}");
    assert!((15..=20).contains(&tries(1)), "{ends:?}");
    let report = harness.sim.report();
    assert_eq!((report.created, report.worst_window), (40, 5));
}

#[tokio::test]
async fn a_caller_can_set_its_hold() {
    let harness = Harness::new("[queue]\nhold = \"2m\"").await;
    tokio::time::sleep(FIRST_SECOND).await;
    let replies = burst(
        &harness,
        14,
        &[("x-flowgate-hold", "2000"), ("user-agent", PYTHON)],
    )
    .await;
    assert_eq!(
        served(&replies, Duration::from_secs(2)),
        10,
        "two windows of five"
    );
    assert!(!harness.sim.arrivals().iter().any(|arrival| {
        arrival
            .headers
            .iter()
            .any(|(name, _)| name.contains("hold"))
    }));
}

#[tokio::test]
async fn an_invalid_hold_is_a_bad_request() {
    let harness = Harness::new("").await;
    for values in [
        &["-1"][..],
        &[""],
        &["0"],
        &["forever"],
        &["25h"],
        &["1s", "1s"],
    ] {
        let headers: Vec<_> = values
            .iter()
            .map(|value| ("x-flowgate-hold", *value))
            .collect();
        let reply = call(&harness, "x", &headers).send(harness.proxy).await;
        assert_eq!(
            (reply.status, reply.code().as_str()),
            (400, "Flowgate.BadRequest"),
            "{values:?}"
        );
        assert!(reply.body.contains("x-flowgate-hold"), "{}", reply.body);
    }
    assert_eq!(harness.sim.report().arrived, 0);
    assert_eq!(
        harness.metrics().await.outcome("acme", "other", "invalid"),
        6.0
    );
}

#[tokio::test]
async fn at_the_end_of_the_hold_the_outcome_is_unknown_and_the_attempt_continues() {
    let harness = Harness::with(
        Settings {
            latency: Duration::from_secs(6),
            ..Settings::default()
        },
        "",
    )
    .await;
    let start = Instant::now();
    let list = |call: &mut Call| {
        call.set("x-acs-action", "ListInstance");
        call.push("x-flowgate-hold", "1s");
    };
    let limited = call(
        &harness,
        "created all the same",
        &[("x-flowgate-hold", "1500ms")],
    );
    let unlimited = Call::v3_with(&harness.host(), &[], list, (KEY, SECRET));
    for (reply, least, advice) in [
        (
            unlimited.send(harness.proxy).await,
            1000,
            "simply be repeated",
        ),
        (limited.send(harness.proxy).await, 2500, "ListFlow"),
    ] {
        let took = start.elapsed();
        assert_eq!(
            (reply.status, reply.code().as_str()),
            (409, "Flowgate.OutcomeUnknown")
        );
        assert!(
            reply.body.contains("within the hold") && reply.body.contains(advice),
            "{}",
            reply.body
        );
        assert_eq!(
            (
                reply.header("x-acs-retry-after"),
                reply.header("x-flowgate-waited")
            ),
            (None, None)
        );
        assert!(took >= Duration::from_millis(least), "{took:?}");
    }
    assert_eq!(
        harness
            .metrics()
            .await
            .outcome("acme", "CreateFlow", "outcome_unknown"),
        1.0
    );
    let ended = "flowgate_attempts_total{account=\"acme\",action=\"CreateFlow\",code=\"OK\",status=\"200\"}";
    assert_eq!(harness.metrics().await.get(ended), 0.0);
    harness.until(ended, 1.0).await;
    let metrics = harness.metrics().await;
    assert_eq!(
        (
            metrics.sum("flowgate_attempts_total"),
            metrics.sum("flowgate_requests_total")
        ),
        (2.0, 2.0)
    );
    assert_eq!(harness.sim.report().created, 1);
}

#[tokio::test]
async fn the_hold_reserves_the_usual_answer_time_of_cams() {
    let harness = Harness::with(
        Settings {
            latency: Duration::from_secs(1),
            ..Settings::default()
        },
        "",
    )
    .await;
    // This call measures the response time: one second. After it, every token is back.
    assert_eq!(
        call(&harness, "first", &[])
            .send(harness.proxy)
            .await
            .status,
        200
    );
    tokio::time::sleep(FIRST_SECOND).await;
    // Calls of a third window would be sent within the hold, and answered after it.
    let replies = burst(&harness, 12, &[("x-flowgate-hold", "2600ms")]).await;
    assert_eq!(served(&replies, Duration::from_millis(2600)), 10);
    assert_eq!(harness.sim.report().created, 11);
}

#[tokio::test]
async fn responses_have_the_wait_and_the_number_of_attempts() {
    let harness = Harness::new("[retry]\nmax_attempts = 2").await;
    tokio::time::sleep(FIRST_SECOND).await;
    let of = |reply: &Reply| {
        let number = |name| {
            reply
                .header(name)
                .map(|value| value.parse::<u64>().unwrap())
        };
        (
            reply.status,
            number("x-flowgate-waited").unwrap(),
            number("x-flowgate-attempts").unwrap(),
        )
    };
    let send = async |fault: &str| {
        harness.sim.set_faults(if fault.is_empty() {
            vec![]
        } else {
            vec![fault.parse().unwrap()]
        });
        of(&call(&harness, "x", &[]).send(harness.proxy).await)
    };
    let (status, waited, attempts) = send("").await;
    assert_eq!((status, attempts), (200, 1));
    assert!(waited < 500, "{waited}");
    let (status, _, attempts) = send("next=1,refuse=Product.Unsubscript").await;
    assert_eq!((status, attempts), (400, 1));
    let (status, waited, attempts) = send("next=1,throttle,acs-retry-after=700").await;
    assert_eq!((status, attempts), (200, 2));
    assert!((700..5000).contains(&waited), "{waited}");
    let (status, waited, attempts) = send("always,throttle,acs-retry-after=700").await;
    assert_eq!((status, attempts), (400, 2));
    assert!((700..5000).contains(&waited), "{waited}");
}

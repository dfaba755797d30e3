//! Idempotency keys, in the memory of one process: one key, one flow, and everybody who asks learns
//! its id.

use std::time::Duration;

use serde_json::Value;
use tokio::task::JoinSet;

use crate::caller::{Call, KEY, Reply, SECRET};
use crate::harness::Harness;
use crate::keyed_calls::{flow_id, is, order, state};

const CATEGORIES: &str = "[\"SIGN_UP\"]";

/// A client of the account.
const TEAM: &str = "\n[[clients]]\naccess_key_id = \"team-a\"\n\
    access_key_secret = { env = \"TEAM\" }\naccount = \"acme\"\nactions = [\"*\"]\n";

/// A CreateFlow of signature version 3 with this key.
fn keyed(harness: &Harness, key: &str, flow: &str) -> Call {
    order(&harness.host(), key, flow)
}

async fn send(harness: &Harness, call: &Call) -> Reply {
    call.send(harness.proxy).await
}

#[tokio::test]
async fn a_repeated_call_is_answered_with_the_flow_of_the_first() {
    let harness = Harness::new("").await;
    let first = send(&harness, &keyed(&harness, "order-1", "Welcome")).await;
    is(&first, 200, "first");
    let second = send(&harness, &keyed(&harness, "order-1", "Welcome")).await;
    is(&second, 200, "replayed");
    assert_eq!(flow_id(&first), flow_id(&second));
    let request_id = |reply: &Reply| {
        let body: serde_json::Value = serde_json::from_str(&reply.body).unwrap();
        body["RequestId"].clone()
    };
    assert_eq!(request_id(&first), request_id(&second));
    assert_eq!(second.header("x-flowgate-attempts"), Some("0"));
    assert_eq!(harness.sim.arrivals().len(), 1);
}

#[tokio::test]
async fn a_hundred_calls_of_one_key_at_once_are_one_attempt() {
    let harness = Harness::new("").await;
    let mut calls = JoinSet::new();
    for _ in 0..100 {
        let call = keyed(&harness, "order-1", "Welcome");
        let proxy = harness.proxy;
        calls.spawn(async move { call.send(proxy).await });
    }
    let replies = calls.join_all().await;
    let ids: std::collections::BTreeSet<_> = replies.iter().map(flow_id).collect();
    assert_eq!(ids.len(), 1);
    assert_eq!(
        replies
            .iter()
            .filter(|reply| state(reply) == "first")
            .count(),
        1
    );
    assert_eq!(harness.sim.arrivals().len(), 1);
}

#[tokio::test]
async fn another_order_under_a_key_is_refused_also_while_the_first_is_in_flight() {
    let harness = Harness::new("").await;
    harness.sim.set_faults(vec!["next=1,held".parse().unwrap()]);
    let first = keyed(&harness, "order-1", "Welcome");
    let proxy = harness.proxy;
    let first = tokio::spawn(async move { first.send(proxy).await });
    harness
        .until(
            "flowgate_in_flight{account=\"acme\",action=\"CreateFlow\"}",
            1.0,
        )
        .await;
    for _ in 0..2 {
        let other = send(&harness, &keyed(&harness, "order-1", "Other")).await;
        is(&other, 400, "mismatch");
        assert!(
            other.body.contains("IdempotentParameterMismatch"),
            "{}",
            other.body
        );
    }
    harness.sim.set_faults(vec![]);
    is(&first.await.unwrap(), 200, "first");
    let other = send(&harness, &keyed(&harness, "order-1", "Other")).await;
    is(&other, 400, "mismatch");
    assert_eq!(harness.sim.arrivals().len(), 1);
}

#[tokio::test]
async fn a_key_is_the_same_in_every_signature_version_and_carrier() {
    let harness = Harness::new("").await;
    let first = send(&harness, &keyed(&harness, "order-1", "Welcome")).await;
    is(&first, 200, "first");
    let form = [
        ("Categories", "[ \"SIGN_UP\" ]"),
        ("ClientToken", "order-1"),
        ("FlowName", "Welcome"),
    ];
    let v1 = Call::v1_with(&harness.host(), &form, |_| {}, (KEY, SECRET));
    let second = send(&harness, &v1).await;
    is(&second, 200, "replayed");
    assert_eq!(flow_id(&first), flow_id(&second));
    let as_xml = |call: &mut Call| {
        for (name, value) in &mut call.query {
            if name == "Format" {
                *value = "XML".into();
            }
        }
    };
    let xml = send(
        &harness,
        &Call::v1_with(&harness.host(), &form, as_xml, (KEY, SECRET)),
    )
    .await;
    is(&xml, 200, "replayed");
    assert!(
        xml.body
            .contains(&format!("<FlowId>{}</FlowId>", flow_id(&first))),
        "{}",
        xml.body
    );
    assert_eq!(harness.sim.arrivals().len(), 1);
}

#[tokio::test]
async fn a_client_token_is_not_sent_to_cams() {
    let harness = Harness::new("").await;
    let query = [
        ("Categories", CATEGORIES),
        ("ClientToken", "order-1"),
        ("FlowName", "Welcome"),
    ];
    let call = Call::v3_with(&harness.host(), &query, |_| {}, (KEY, SECRET));
    is(&send(&harness, &call).await, 200, "first");
    for arrival in harness.sim.arrivals() {
        let text = format!("{arrival:?}");
        assert!(
            !text.contains("order-1") && !text.contains("ClientToken"),
            "{text}"
        );
    }
}

#[tokio::test]
async fn a_refused_call_frees_its_key() {
    let harness = Harness::new("").await;
    harness
        .sim
        .set_faults(vec!["next=1,refuse=Ram.PermissionDeny".parse().unwrap()]);
    let refused = send(&harness, &keyed(&harness, "order-1", "Welcome")).await;
    assert_eq!(refused.status, 400);
    assert!(
        refused.body.contains("Ram.PermissionDeny"),
        "{}",
        refused.body
    );
    let again = send(&harness, &keyed(&harness, "order-1", "Welcome")).await;
    is(&again, 200, "first");
    assert_eq!(harness.sim.arrivals().len(), 2);
}

#[tokio::test]
async fn a_call_continues_without_its_caller_and_the_repetition_gets_its_answer() {
    let harness = Harness::new("").await;
    harness
        .sim
        .set_faults(vec!["next=1,slow=3s".parse().unwrap()]);
    let call = keyed(&harness, "order-1", "Welcome");
    let proxy = harness.proxy;
    let first = tokio::spawn(async move { call.send(proxy).await });
    harness
        .until(
            "flowgate_in_flight{account=\"acme\",action=\"CreateFlow\"}",
            1.0,
        )
        .await;
    first.abort();
    let with_hold = |call: &mut Call| {
        call.push("idempotency-key", "order-1");
        call.push("x-flowgate-hold", "200ms");
    };
    let query = [("Categories", CATEGORIES), ("FlowName", "Welcome")];
    let early = Call::v3_with(&harness.host(), &query, with_hold, (KEY, SECRET));
    let early = send(&harness, &early).await;
    is(&early, 409, "pending");
    assert!(early.header("retry-after").is_some(), "{early:?}");
    let repeat = "Repeat the call unchanged: it is not sent again";
    assert!(early.body.contains(repeat), "{early:?}");
    let second = send(&harness, &keyed(&harness, "order-1", "Welcome")).await;
    is(&second, 200, "attached");
    assert_eq!(harness.sim.arrivals().len(), 1);
    // What operators are told of the three.
    let calls = harness.get("/calls").await.json();
    let ended = |outcome: &str| {
        let calls = calls["calls"].as_array().unwrap().iter();
        calls
            .clone()
            .find(|call| call["outcome"] == outcome)
            .unwrap()
    };
    let [first, early, second] = ["cancelled", "outcome_unknown", "ok"].map(ended);
    assert_eq!(
        (&first["attempts"], &first["first_request_id"]),
        (&1.into(), &Value::Null)
    );
    for repetition in [early, second] {
        assert_eq!(repetition["attempts"], 0);
        assert_eq!(repetition["first_request_id"], first["request_id"]);
        assert_eq!(repetition["lost"], false);
    }
    let path = format!("/calls/{}", first["request_id"].as_str().unwrap());
    let why = harness.get(&path).await.json()["why"].to_string();
    assert!(why.contains("CAMS may have executed the call"), "{why}");
}

#[tokio::test]
async fn a_caller_that_leaves_a_throttled_call_has_done_nothing() {
    let harness = Harness::new("").await;
    let throttle = "next=1,throttle,acs-retry-after=20000";
    harness.sim.set_faults(vec![throttle.parse().unwrap()]);
    let call = keyed(&harness, "order-1", "Welcome");
    let proxy = harness.proxy;
    let caller = tokio::spawn(async move { call.send(proxy).await });
    let throttled =
        "flowgate_throttled_total{account=\"acme\",code=\"System.LimitControl\",source=\"body\"}";
    harness.until(throttled, 1.0).await;
    let queued = "flowgate_queued{account=\"acme\",action=\"CreateFlow\"}";
    harness.until(queued, 1.0).await;
    // As before its first attempt, a repetition is not told that its outcome is unknown.
    let early = [("idempotency-key", "order-1"), ("x-flowgate-hold", "200ms")];
    let query = [("Categories", CATEGORIES), ("FlowName", "Welcome")];
    let push = |call: &mut Call| {
        early
            .iter()
            .for_each(|(name, value)| call.push(name, value))
    };
    let early = Call::v3_with(&harness.host(), &query, push, (KEY, SECRET));
    let early = send(&harness, &early).await;
    is(&early, 400, "pending");
    assert!(early.body.contains("is still queued"), "{early:?}");
    caller.abort();
    let cancelled = "flowgate_cancelled_total{account=\"acme\",stage=\"queued\"}";
    harness.until(cancelled, 1.0).await;
    let call = harness.get("/calls?outcome=cancelled").await.json()["calls"][0].clone();
    assert_eq!(call["attempts"], 1);
    let path = format!("/calls/{}", call["request_id"].as_str().unwrap());
    let why = harness.get(&path).await.json()["why"].to_string();
    assert!(
        why.contains("while it was queued again: CAMS has done nothing"),
        "{why}"
    );
}

#[tokio::test]
async fn a_repetition_of_a_queued_call_is_told_to_repeat_with_the_same_key() {
    let harness = Harness::new("[limits]\nCreateFlow = \"1/60s\"\n").await;
    let held = |hold: &str| {
        let with_key = |call: &mut Call| {
            call.push("idempotency-key", "order-1");
            call.push("x-flowgate-hold", hold);
        };
        let query = [("Categories", CATEGORIES), ("FlowName", "Welcome")];
        Call::v3_with(&harness.host(), &query, with_key, (KEY, SECRET))
    };
    // The first token comes a minute after the start.
    let queued = held("120s");
    let proxy = harness.proxy;
    let queued = tokio::spawn(async move { queued.send(proxy).await });
    while harness.lane().await["queued"] != 1 {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    let early = send(&harness, &held("200ms")).await;
    is(&early, 400, "pending");
    assert_eq!(early.code(), "System.LimitControl");
    assert!(early.header("retry-after").is_some(), "{early:?}");
    let repeat = "Repeat the call with the same key.";
    assert!(early.body.contains(repeat), "{early:?}");
    queued.abort();
    assert_eq!(harness.sim.arrivals().len(), 0);
}

#[tokio::test]
async fn a_lost_answer_is_unknown_to_every_repetition_and_never_sent_again() {
    let harness = Harness::new("").await;
    harness
        .sim
        .set_faults(vec!["next=1,close-after".parse().unwrap()]);
    for _ in 0..3 {
        let reply = send(&harness, &keyed(&harness, "order-1", "Welcome")).await;
        is(&reply, 409, "unknown");
        assert!(reply.header("retry-after").is_none(), "{reply:?}");
        assert!(
            reply.body.contains("Flowgate.OutcomeUnknown"),
            "{}",
            reply.body
        );
    }
    assert_eq!(harness.sim.arrivals().len(), 1);
}

#[tokio::test]
async fn a_key_belongs_to_one_client() {
    let harness = Harness::new(TEAM).await;
    let own = send(&harness, &keyed(&harness, "order-1", "Welcome")).await;
    is(&own, 200, "first");
    let query = [("Categories", CATEGORIES), ("FlowName", "Welcome")];
    let with_key = |call: &mut Call| call.push("idempotency-key", "order-1");
    let team = ("team-a", "team-secret-1");
    let of_team = Call::v3_with(&harness.host(), &query, with_key, team);
    let of_team = send(&harness, &of_team).await;
    is(&of_team, 200, "first");
    assert_ne!(flow_id(&own), flow_id(&of_team));
}

#[tokio::test]
async fn a_key_that_cannot_be_honoured_is_refused_and_nothing_is_sent() {
    let harness = Harness::new("\n[exactly_once]\nmax_keys = 2\n").await;
    for bad in ["", "a b"] {
        let reply = send(&harness, &keyed(&harness, bad, "Welcome")).await;
        assert_eq!(reply.status, 400, "{bad:?} {reply:?}");
    }
    is(
        &send(&harness, &keyed(&harness, "a", "Welcome")).await,
        200,
        "first",
    );
    let full = send(&harness, &keyed(&harness, "b", "Welcome")).await;
    assert_eq!(full.status, 400);
    assert!(full.body.contains("System.LimitControl"), "{}", full.body);
    is(
        &send(&harness, &keyed(&harness, "a", "Welcome")).await,
        200,
        "replayed",
    );
    assert_eq!(harness.sim.arrivals().len(), 1);
}

#[tokio::test]
async fn in_observe_mode_and_with_keys_off_nothing_is_promised() {
    for settings in ["\n[exactly_once]\nkeys = false\n"] {
        let harness = Harness::new(settings).await;
        for _ in 0..2 {
            let reply = send(&harness, &keyed(&harness, "order-1", "Welcome")).await;
            is(&reply, 200, "");
        }
        assert_eq!(harness.sim.arrivals().len(), 2);
    }
}

#[tokio::test]
async fn a_claimed_call_whose_callers_have_left_is_not_sent() {
    let harness = Harness::new("").await;
    let mut before = JoinSet::new();
    for number in 0..5 {
        let call = Call::v3(&harness.host(), &format!("before-{number}"));
        let proxy = harness.proxy;
        before.spawn(async move { call.send(proxy).await });
    }
    before.join_all().await;
    let call = keyed(&harness, "order-1", "Welcome");
    let proxy = harness.proxy;
    let waiting = tokio::spawn(async move { call.send(proxy).await });
    while harness.lane().await["queued"] != 1 {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    waiting.abort();
    while harness.lane().await["queued"] != 0 {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    let again = send(&harness, &keyed(&harness, "order-1", "Welcome")).await;
    is(&again, 200, "first");
    assert_eq!(harness.sim.arrivals().len(), 6);
}

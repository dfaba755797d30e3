//! Calls without an idempotency key, of an account whose flow names are unique: an equal call is a
//! repetition while the first one is under way, and if no caller has got its answer.

use cams_sim::{Settings, Sim};
use tokio::task::JoinSet;

use crate::caller::{Call, KEY, Reply, SECRET};
use crate::harness::{GAP, Harness};
use crate::keyed_calls::flow_id;

const CATEGORIES: &str = "[\"SIGN_UP\"]";
const IN_FLIGHT: &str = "flowgate_in_flight{account=\"acme\",action=\"CreateFlow\"}";

async fn adopting() -> Harness {
    let sim = Sim::start(Settings::default().with_key(KEY, SECRET, "acme"))
        .await
        .unwrap();
    let upstream = sim.url();
    let toml = format!(
        "[[accounts]]\nid = \"acme\"\naccess_key_id = \"{KEY}\"\n\
         access_key_secret = {{ env = \"MANAGED\" }}\nflow_names = \"unique\"\n\
         adopt_repeats = true\n{GAP}[upstream]\nurl = \"{upstream}\"\n"
    );
    Harness::configured(sim, &toml).await
}

fn create(harness: &Harness, flow: &str, key: Option<&str>) -> Call {
    let query = [("Categories", CATEGORIES), ("FlowName", flow)];
    let with_key = |call: &mut Call| {
        if let Some(key) = key {
            call.push("idempotency-key", key);
        }
    };
    Call::v3_with(&harness.host(), &query, with_key, (KEY, SECRET))
}

async fn send(harness: &Harness, flow: &str, key: Option<&str>) -> Reply {
    create(harness, flow, key).send(harness.proxy).await
}

fn state(reply: &Reply) -> &str {
    assert_eq!(reply.status, 200, "{reply:?}");
    reply.header("x-flowgate-idempotency").unwrap_or_default()
}

#[tokio::test]
async fn equal_calls_at_the_same_time_are_one_flow() {
    let harness = adopting().await;
    harness
        .sim
        .set_faults(vec!["next=1,slow=5s".parse().unwrap()]);
    let mut calls = JoinSet::new();
    for _ in 0..10 {
        let call = create(&harness, "Welcome", None);
        let proxy = harness.proxy;
        calls.spawn(async move { call.send(proxy).await });
    }
    let replies = calls.join_all().await;
    let count = |wanted| {
        let states = replies.iter().map(state);
        states.filter(|state| *state == wanted).count()
    };
    assert_eq!((count("first"), count("adopted")), (1, 9));
    assert!(
        replies
            .iter()
            .all(|reply| flow_id(reply) == flow_id(&replies[0]))
    );
    assert_eq!(harness.sim.arrivals().len(), 1);
}

#[tokio::test]
async fn an_equal_call_after_an_answer_is_another_order() {
    let harness = adopting().await;
    let first = send(&harness, "Welcome", None).await;
    let second = send(&harness, "Welcome", None).await;
    assert_eq!((state(&first), state(&second)), ("first", "first"));
    assert_ne!(flow_id(&first), flow_id(&second));
}

#[tokio::test]
async fn an_answer_that_no_caller_got_is_for_one_equal_call() {
    let harness = adopting().await;
    harness.sim.set_faults(vec!["next=1,held".parse().unwrap()]);
    let call = create(&harness, "Welcome", None);
    let proxy = harness.proxy;
    let first = tokio::spawn(async move { call.send(proxy).await });
    harness.until(IN_FLIGHT, 1.0).await;
    first.abort();
    harness
        .until(
            "flowgate_cancelled_total{account=\"acme\",stage=\"in_flight\"}",
            1.0,
        )
        .await;
    harness.sim.set_faults(vec![]);
    harness.until(IN_FLIGHT, 0.0).await;
    let second = send(&harness, "Welcome", None).await;
    assert_eq!(state(&second), "adopted");
    let third = send(&harness, "Welcome", None).await;
    assert_eq!(state(&third), "first");
    assert_ne!(flow_id(&second), flow_id(&third));
    assert_eq!(harness.sim.arrivals().len(), 2);
}

#[tokio::test]
async fn two_keys_are_two_orders_however_equal_they_are() {
    let harness = adopting().await;
    let first = send(&harness, "Welcome", Some("order-1")).await;
    let second = send(&harness, "Welcome", Some("order-2")).await;
    assert_eq!((state(&first), state(&second)), ("first", "first"));
    assert_ne!(flow_id(&first), flow_id(&second));
}

//! Looks and operators over replicas that share a store: a flow belongs to one call, whichever
//! replica has run it, also if the promise of unique flow names was broken.

use cams_sim::Running;
use serde_json::Value;

use crate::caller::{Call, KEY, Reply, SECRET};
use crate::harness;
use crate::idempotency_replicas::until_served;
use crate::keyed_calls::{endpoint, flow_id, state};
use crate::process::{ACME, Process};
use crate::redis::Redis;
use crate::unknown::{created, request_id, settle};

/// Two replicas for an account with unique flow names, whose operators may act. Both are known in
/// the store.
async fn replicas(sim: &Running, redis: &Redis) -> [Process; 2] {
    let toml = format!(
        "{ACME}flow_names = \"unique\"\n[limits]\npreset = \"none\"\n[quota]\nstore = \"{}\"\n",
        redis.url()
    );
    let env = [
        ("FLOWGATE_LISTEN__ADMIN_TOKEN__ENV", "TEAM"),
        ("FLOWGATE_LISTEN__ADMIN_ACTIONS", "true"),
    ];
    let start = || Process::configured(sim, &toml, tempfile::tempdir().unwrap(), &env);
    let replicas = [start().await, start().await];
    for (number, replica) in replicas.iter().enumerate() {
        until_served(replica, &format!("warm-{number}"), "first").await;
    }
    replicas
}

/// A CreateFlow of the flow `twice`.
fn twice(replica: &Process, key: Option<&str>, hold: &str) -> Call {
    let query = [("Categories", "[\"SIGN_UP\"]"), ("FlowName", "twice")];
    let with_headers = |call: &mut Call| {
        if let Some(key) = key {
            call.push("idempotency-key", key);
        }
        call.push("x-flowgate-hold", hold);
    };
    Call::v3_with(
        &replica.proxy.to_string(),
        &query,
        with_headers,
        (KEY, SECRET),
    )
}

async fn send(replica: &Process, key: Option<&str>, hold: &str) -> Reply {
    twice(replica, key, hold).send(replica.proxy).await
}

/// The unknown outcome of the flow `twice`, once looks are over.
async fn ambiguous(replica: &Process) -> Value {
    loop {
        let page = harness::get(replica.admin, "/unknown").await.json();
        let unknown = page["unknown"].as_array().unwrap();
        let found = unknown.iter().find(|one| one["state"] == "ambiguous");
        if let Some(found) = found {
            return found.clone();
        }
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn the_flow_of_a_call_at_one_replica_is_not_found_for_another_call_at_another() {
    for first_key in [Some("one"), None] {
        let sim = endpoint(&[]).await;
        let redis = Redis::start().await;
        let [a, b] = replicas(&sim, &redis).await;
        let first = send(&a, first_key, "10s").await;
        assert_eq!(first.status, 200, "{first:?}");
        sim.set_faults(vec!["action=CreateFlow,close-before".parse().unwrap()]);
        let lost = send(&b, Some("two"), "10s").await;
        assert_eq!((lost.status, state(&lost)), (409, "unknown"), "{lost:?}");
        let found = ambiguous(&b).await;
        assert_eq!(
            found["found"],
            "the flow of this name belongs to another order"
        );
        // An operator errs.
        let id = request_id(b.admin, "twice").await;
        let wrong = settle(b.admin, &created(&id, &flow_id(&first))).await;
        assert_eq!(wrong.status, 409, "{wrong:?}");
        let right = settle(b.admin, &created(&id, "4711")).await;
        assert_eq!(right.status, 200, "{right:?}");
        assert_eq!(flow_id(&send(&a, Some("two"), "10s").await), "4711");
        if first_key.is_some() {
            let again = send(&b, first_key, "10s").await;
            assert_eq!(flow_id(&again), flow_id(&first));
        }
    }
}

#[tokio::test]
async fn the_flow_of_a_call_under_way_at_one_replica_is_not_found_for_another_call_at_another() {
    // CAMS creates the flow at once, and answers late.
    let sim = endpoint(&[]).await;
    let redis = Redis::start().await;
    let [a, b] = replicas(&sim, &redis).await;
    sim.set_faults(vec![
        "next=1,action=CreateFlow,slow=4s".parse().unwrap(),
        "action=CreateFlow,close-before".parse().unwrap(),
    ]);
    let arrived = sim.report().arrived;
    let call = twice(&a, Some("one"), "20s");
    let proxy = a.proxy;
    let slow = tokio::spawn(async move { call.send(proxy).await });
    while sim.report().arrived == arrived {
        tokio::task::yield_now().await;
    }
    let lost = send(&b, Some("two"), "20s").await;
    assert_eq!((lost.status, state(&lost)), (409, "unknown"), "{lost:?}");
    let slow = slow.await.unwrap();
    assert_eq!((slow.status, state(&slow)), (200, "first"), "{slow:?}");
    let again = send(&b, Some("one"), "20s").await;
    assert_eq!(flow_id(&again), flow_id(&slow));
    assert_eq!(ambiguous(&b).await["state"], "ambiguous");
}

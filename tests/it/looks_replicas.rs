//! Looks and operators over replicas that share a store: a flow belongs to one call, whichever
//! replica has run it, also if the promise of unique flow names was broken.

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use cams_sim::Running;
use regex::Regex;
use serde_json::Value;

use crate::caller::{Call, KEY, Reply, SECRET, try_exchange};
use crate::harness::{self, Metrics};
use crate::idempotency_replicas::until_served;
use crate::journal::written;
use crate::keyed_calls::{endpoint, flow_id, state};
use crate::process::{ACME, Process};
use crate::redis::Redis;
use crate::unknown::{created, listed, request_id, say, settle, status};

/// Two replicas for an account with unique flow names, whose operators may act. Both are known in
/// the store.
async fn replicas(sim: &Running, redis: &Redis) -> [Process; 2] {
    let toml = format!(
        "{ACME}flow_names = \"unique\"\n[limits]\npreset = \"none\"\n\
         [quota]\nstore = \"{}\"\nstore_timeout = \"10s\"\n",
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
        tokio::time::sleep(Duration::from_millis(10)).await;
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

#[tokio::test]
async fn a_flow_that_an_operator_has_given_to_another_call_is_not_found_at_another_replica() {
    let sim = endpoint(&[]).await;
    let redis = Redis::start().await;
    let [a, b] = replicas(&sim, &redis).await;
    let rules = [
        "action=ListFlow,failed",
        "next=1,action=CreateFlow,close-after",
        "action=CreateFlow,close-before",
    ];
    sim.set_faults(rules.map(|rule| rule.parse().unwrap()).into());
    let flows = sim.flows().len();
    let lost = send(&a, Some("two"), "2s").await;
    assert_eq!((lost.status, state(&lost)), (409, "unknown"), "{lost:?}");
    let flow = sim.flows()[flows].id.clone();
    // An operator takes the flow for that of a call without a key.
    let keyless = Call::v3_with(
        &b.proxy.to_string(),
        &[("Categories", "[\"SIGN_UP\"]"), ("FlowName", "keyless")],
        |call| call.push("x-flowgate-hold", "30s"),
        (KEY, SECRET),
    );
    let proxy = b.proxy;
    let keyless = tokio::spawn(async move { keyless.send(proxy).await });
    let is_keyless = |one: &Value| one["flow_name"] == "keyless";
    while !listed(b.admin).await.iter().any(is_keyless) {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    let id = request_id(b.admin, "keyless").await;
    let word = settle(b.admin, &created(&id, &flow)).await;
    assert_eq!(word.status, 200, "{word:?}");
    let settled = keyless.await.unwrap();
    assert_eq!((settled.status, flow_id(&settled)), (200, flow));
    sim.set_faults(Vec::new());
    let told = send(&a, Some("two"), "60s").await;
    assert_eq!((told.status, state(&told)), (409, "unknown"), "{told:?}");
    assert!(
        told.body
            .contains("the flow of this name belongs to another order"),
        "{told:?}"
    );
}

#[tokio::test]
async fn a_word_about_a_call_without_a_key_that_a_crash_loses_can_be_said_again() {
    let rules = [
        "next=1,action=CreateFlow,close-after",
        "action=ListFlow,failed",
    ];
    let sim = endpoint(&rules).await;
    let redis = Redis::start().await;
    let folder = tempfile::tempdir().unwrap();
    let journal = folder.path().join("journal");
    let toml = format!(
        "{ACME}flow_names = \"unique\"\n[limits]\npreset = \"none\"\n[journal]\npath = \"{}\"\n\
         [quota]\nstore = \"{}\"\nstore_timeout = \"10s\"\n",
        journal.display(),
        redis.url()
    );
    let env = [
        ("FLOWGATE_LISTEN__ADMIN_TOKEN__ENV", "TEAM"),
        ("FLOWGATE_LISTEN__ADMIN_ACTIONS", "true"),
    ];
    let start = || Process::configured(&sim, &toml, tempfile::tempdir().unwrap(), &env);
    let process = start().await;
    let lost = send(&process, None, "3s").await;
    assert_eq!(lost.status, 409, "{lost:?}");
    let flow = sim.flows()[0].id.clone();
    let id = request_id(process.admin, "twice").await;
    // The store is new, or the process is.
    let word = created(&id, &flow);
    let said = say(process.admin, &word).await;
    assert_eq!(status(&said), 200, "{said:?}");
    written(&journal, 3).await;
    process.kill().await;
    let lines = std::fs::read_to_string(&journal).unwrap();
    let before = lines.trim_end().rsplit_once('\n').unwrap().0;
    assert!(!before.contains("resolved"));
    std::fs::write(&journal, format!("{before}\n")).unwrap();
    let process = start().await;
    assert_eq!(request_id(process.admin, "twice").await, id);
    let again = say(process.admin, &word).await;
    assert_eq!(status(&again), 200, "{again:?}");
    assert!(listed(process.admin).await.is_empty());
}

/// Makes all lines of a journal one hour old.
fn make_old(journal: &Path) {
    let mut date = Command::new("date");
    let hour_ago = date.args(["-u", "-d", "1 hour ago", "+%FT%T.000Z"]);
    let hour_ago = String::from_utf8(hour_ago.output().unwrap().stdout).unwrap();
    let old = format!("\"time\":\"{}\"", hour_ago.trim());
    let lines = std::fs::read_to_string(journal).unwrap();
    let time = Regex::new("\"time\":\"[^\"]*\"").unwrap();
    std::fs::write(journal, &*time.replace_all(&lines, old)).unwrap();
}

#[tokio::test]
async fn a_look_whose_end_the_store_has_not_confirmed_is_repeated_soon() {
    let sim = endpoint(&["next=1,action=CreateFlow,slow=60s"]).await;
    let folder = tempfile::tempdir().unwrap();
    let journal = folder.path().join("journal");
    let toml = format!(
        "flow_names = \"unique\"\n[limits]\npreset = \"none\"\n[journal]\npath = \"{}\"\n",
        journal.display()
    );
    let process = Process::start(&sim, &toml).await;
    let call = twice(&process, Some("one"), "20s").bytes();
    let proxy = process.proxy;
    let lost = tokio::spawn(async move { try_exchange(proxy, &call).await });
    while sim.flows().is_empty() {
        tokio::task::yield_now().await;
    }
    process.kill().await;
    assert!(lost.await.unwrap().is_none());
    // All early looks are over: after one that counts, the next is half an hour later.
    make_old(&journal);
    let redis = Redis::start().await;
    // The script that records what a look has found writes, and then fails.
    redis.ask(&["ACL", "SETUSER", "default", "-hdel"]).await;
    let store = format!(
        "{toml}[quota]\nstore = \"{}\"\nstore_timeout = \"10s\"\n",
        redis.url()
    );
    let process = Process::start(&sim, &store).await;
    loop {
        let page = harness::get(process.admin, "/unknown").await.json();
        let unknown = page["unknown"].as_array().unwrap();
        let Some(one) = unknown.first() else {
            break;
        };
        let next_look = one["next_look_seconds"].as_u64();
        assert!(next_look.is_none_or(|seconds| seconds <= 600), "{one}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    let metrics = Metrics::of(process.admin).await;
    let found = "flowgate_looks_total{account=\"acme\",result=\"found\"}";
    assert!(metrics.get(found) >= 1.0);
    let again = send(&process, Some("one"), "20s").await;
    assert_eq!((again.status, state(&again)), (200, "replayed"));
    assert_eq!(flow_id(&again), sim.flows()[0].id);
    assert_eq!(sim.flows().len(), 1);
}

//! Unknown outcomes in the hands of an operator: what the admin port, the journal and the log show
//! of them, and how an operator ends one.

use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

use cams_sim::Running;
use serde_json::{Value, json};
use tokio::time::Instant;

use crate::caller::{Call, KEY, Reply, SECRET};
use crate::harness::{self, Harness, Metrics};
use crate::journal::written;
use crate::keyed_calls::{self, is};
use crate::operator::{TOKEN, post};
use crate::process::Process;
use crate::redis::Redis;
use crate::status::ORDERS;

/// An endpoint without limits and with this fault.
async fn endpoint(fault: &str) -> Running {
    keyed_calls::endpoint(&[fault]).await
}

/// A Flowgate with this journal, whose operators may act.
async fn start(sim: &Running, journal: &Path) -> Process {
    start_with(
        sim,
        &format!("[journal]\npath = \"{}\"\n", journal.display()),
    )
    .await
}

/// A Flowgate without limits whose operators may act.
async fn start_with(sim: &Running, more: &str) -> Process {
    let toml = format!("{more}[limits]\npreset = \"none\"\n");
    let env = [
        ("FLOWGATE_LISTEN__ADMIN_TOKEN__ENV", "TEAM"),
        ("FLOWGATE_LISTEN__ADMIN_ACTIONS", "true"),
    ];
    Process::with_env(sim, &toml, &env).await
}

/// A store that may answer late, as on a busy machine.
fn with_store(redis: &Redis) -> String {
    format!(
        "[quota]\nstore = \"{}\"\nstore_timeout = \"10s\"\n",
        redis.url()
    )
}

async fn replicas(sim: &Running, redis: &Redis) -> [Process; 2] {
    let store = with_store(redis);
    [start_with(sim, &store).await, start_with(sim, &store).await]
}

/// Loses the answer to a call of these replicas. Returns its request id, which is the same at both.
async fn lose([a, b]: [&Process; 2], name: &str) -> String {
    for replica in [a, b] {
        is(&send(replica.proxy, name).await, 409, "unknown");
    }
    let id = request_id(a.admin, name).await;
    assert_eq!(request_id(b.admin, name).await, id);
    id
}

/// Sends a CreateFlow of this name, which is also its key.
async fn send(proxy: SocketAddr, name: &str) -> Reply {
    let query = [
        ("Categories", "[\"SIGN_UP\"]"),
        ("CustSpaceId", "cams-1"),
        ("FlowName", name),
    ];
    let with_key = |call: &mut Call| call.push("idempotency-key", name);
    Call::v3_with(&proxy.to_string(), &query, with_key, (KEY, SECRET))
        .send(proxy)
        .await
}

/// The unknown outcomes that the admin port lists.
pub(crate) async fn listed(admin: SocketAddr) -> Vec<Value> {
    let page = harness::get(admin, "/unknown").await;
    assert_eq!(page.status, 200, "{page:?}");
    page.json()["unknown"].as_array().unwrap().clone()
}

/// The request id of the unknown outcome of this flow, once it is listed.
pub(crate) async fn request_id(admin: SocketAddr, flow_name: &str) -> String {
    let give_up = Instant::now() + Duration::from_secs(60);
    loop {
        let listed = listed(admin).await;
        let found = listed.iter().find(|one| one["flow_name"] == flow_name);
        if let Some(found) = found {
            return found["request_id"].as_str().unwrap().to_owned();
        }
        assert!(Instant::now() < give_up, "{flow_name}: {listed:?}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

pub(crate) async fn settle(admin: SocketAddr, body: &str) -> Reply {
    let host = admin.to_string();
    let headers = [
        ("host", &*host),
        ("authorization", TOKEN),
        ("content-type", "application/json"),
    ];
    post(admin, "/unknown/settle", &headers, body).await
}

/// The status of an answer to a word. A word that waits for a slow disk (202) holds, too.
pub(crate) fn status(said: &Reply) -> u16 {
    match said.status {
        202 => 200,
        other => other,
    }
}

/// Says a word until the store can take it.
pub(crate) async fn say(admin: SocketAddr, word: &str) -> Reply {
    let give_up = Instant::now() + Duration::from_secs(60);
    loop {
        let said = settle(admin, word).await;
        if said.status != 503 {
            return said;
        }
        assert!(Instant::now() < give_up, "{said:?}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// Waits until the journal has the ends of this many unknown outcomes.
async fn ends_written(path: &Path, count: usize) {
    let give_up = Instant::now() + Duration::from_secs(60);
    loop {
        let text = std::fs::read_to_string(path).unwrap();
        let found = text.matches("\"event\":\"resolved\"").count();
        if found >= count {
            return;
        }
        assert!(Instant::now() < give_up, "{found} of {count} ends: {text}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

pub(crate) fn created(request_id: &str, flow_id: &str) -> String {
    json!({ "request_id": request_id, "outcome": "created", "flow_id": flow_id }).to_string()
}

fn not_created(request_id: &str) -> String {
    json!({ "request_id": request_id, "outcome": "not_created" }).to_string()
}

/// The exit code and the output of `flowgate journal --unknown`.
fn journal(path: &Path, flags: &[&str]) -> (i32, String) {
    let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_flowgate"));
    let output = command
        .arg("journal")
        .arg(path)
        .arg("--unknown")
        .args(flags)
        .output()
        .unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    (output.status.code().unwrap(), text)
}

#[tokio::test]
#[expect(clippy::too_many_lines, reason = "one story")]
async fn an_operators_word_ends_an_unknown_outcome_also_over_a_restart() {
    let sim = endpoint("next=2,close-after").await;
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("journal");
    let process = start(&sim, &path).await;
    for name in ["made", "unmade"] {
        is(&send(process.proxy, name).await, 409, "unknown");
        let again = send(process.proxy, name).await;
        is(&again, 409, "unknown");
        assert_eq!(again.header("retry-after"), None);
    }
    assert_eq!(sim.report().arrived, 2);
    let first = &listed(process.admin).await[0];
    for (field, value) in [
        ("account", json!("acme")),
        ("client", json!("")),
        ("flow_name", json!("made")),
        ("space", json!("cams-1")),
        ("categories", json!(["SIGN_UP"])),
        ("reason", json!("the connection closed before an answer")),
        ("state", json!("by_hand")),
        ("found", Value::Null),
        ("next_look_seconds", Value::Null),
    ] {
        assert_eq!(first[field], value, "{field} of {first}");
    }
    let metrics = Metrics::of(process.admin).await;
    let unknown = "flowgate_unknown_outcomes{account=\"acme\",state=\"by_hand\"}";
    assert_eq!(metrics.get(unknown), 2.0);
    assert!(metrics.get("flowgate_unknown_oldest_seconds{account=\"acme\"}") < 3600.0);
    assert_eq!(metrics.get("flowgate_keys{state=\"unknown\"}"), 2.0);
    assert_eq!(metrics.get("flowgate_keys{state=\"done\"}"), 0.0);
    written(&path, 4).await;
    let (code, table) = journal(&path, &[]);
    assert_eq!(
        (code, table.matches("unknown: the connection").count()),
        (1, 2),
        "{table}"
    );

    let made = request_id(process.admin, "made").await;
    let unmade = request_id(process.admin, "unmade").await;
    let answer = settle(process.admin, &created(&made, "77")).await;
    assert_eq!(status(&answer), 200, "{answer:?}");
    let answer = answer.json();
    assert_eq!(
        [
            &answer["order"],
            &answer["outcome"],
            &answer["flow_id"],
            &answer["flow_name"]
        ],
        ["settle", "created", "77", "made"]
    );
    let replayed = send(process.proxy, "made").await;
    is(&replayed, 200, "replayed");
    assert_eq!(replayed.json()["Data"]["FlowId"], "77");
    assert_eq!(replayed.json()["RequestId"], made);
    assert_eq!(
        settle(process.admin, &created(&made, "78")).await.status,
        404
    );
    let taken = settle(process.admin, &created(&unmade, "77")).await;
    assert_eq!(taken.status, 409, "{taken:?}");
    assert_eq!(journal(&path, &[]).0, 1);
    let answer = settle(process.admin, &not_created(&unmade)).await;
    assert_eq!(status(&answer), 200, "{answer:?}");
    assert!(listed(process.admin).await.is_empty());
    let metrics = Metrics::of(process.admin).await;
    assert_eq!(metrics.sum("flowgate_unknown_outcomes"), 0.0);
    let settled = "flowgate_operator_actions_total{action=\"settle\"}";
    assert_eq!(metrics.get(settled), 2.0);
    let said = process
        .logged("operator action on an unknown outcome", 2)
        .await;
    let said: Vec<_> = said
        .iter()
        .map(|event| {
            [
                &event["level"],
                &event["order"],
                &event["outcome"],
                &event["flow_id"],
            ]
        })
        .collect();
    assert_eq!(
        json!(said),
        json!([
            ["WARN", "settle", "created", "77"],
            ["WARN", "settle", "not_created", null]
        ])
    );
    ends_written(&path, 2).await;
    process.kill().await;

    let (code, table) = journal(&path, &[]);
    assert_eq!(code, 0, "{table}");
    assert!(
        table.contains("settled: created 77") && table.contains("settled: not created"),
        "{table}"
    );
    let page: Value = serde_json::from_str(&journal(&path, &["--json"]).1).unwrap();
    assert_eq!(page["open"], json!([]), "{page}");
    assert_eq!(page["resolved"][0]["resolution"]["flow_id"], "77", "{page}");
    let process = start(&sim, &path).await;
    let replayed = send(process.proxy, "made").await;
    is(&replayed, 200, "replayed");
    assert_eq!(replayed.json()["Data"]["FlowId"], "77");
    assert_eq!(replayed.json()["RequestId"], made);
    is(&send(process.proxy, "unmade").await, 200, "first");
    assert_eq!(sim.report().arrived, 3);
}

#[tokio::test]
async fn the_first_word_of_two_operators_holds_at_both_replicas() {
    let sim = endpoint("always,close-after").await;
    let redis = Redis::start().await;
    let [a, b] = replicas(&sim, &redis).await;
    let another: fn(&str) -> String = |id| created(id, "2");
    for (name, flow_id, second_word, status) in [
        ("created-twice", "1", another, 404),
        ("created-once", "3", not_created, 404),
        ("created", "4", |id| created(id, "4"), 200),
    ] {
        let id = lose([&a, &b], name).await;
        let first = settle(a.admin, &created(&id, flow_id)).await;
        assert_eq!(first.status, 200, "{first:?}");
        let second = settle(b.admin, &second_word(&id)).await;
        assert_eq!(second.status, status, "{name}: {second:?}");
        for replica in [&a, &b] {
            let replayed = send(replica.proxy, name).await;
            is(&replayed, 200, "replayed");
            let body = replayed.json();
            assert_eq!(body["Data"]["FlowId"], flow_id, "{name}");
            assert_eq!(body["RequestId"], id, "{name}");
            assert!(listed(replica.admin).await.is_empty());
        }
    }
    assert_eq!(sim.report().arrived, 3);
}

#[tokio::test]
async fn a_word_of_created_does_not_hold_while_another_replica_repeats_the_call() {
    let sim = endpoint("next=1,close-after").await;
    let redis = Redis::start().await;
    let [a, b] = replicas(&sim, &redis).await;
    let id = lose([&a, &b], "lost").await;
    let first = settle(a.admin, &not_created(&id)).await;
    assert_eq!(first.status, 200, "{first:?}");
    sim.set_faults(vec!["next=1,slow=5s".parse().unwrap()]);
    let proxy = a.proxy;
    let again = tokio::spawn(async move { send(proxy, "lost").await });
    while sim.report().arrived < 2 {
        tokio::task::yield_now().await;
    }
    let second = settle(b.admin, &created(&id, "2")).await;
    assert_eq!(second.status, 404, "{second:?}");
    assert!(listed(b.admin).await.is_empty());
    let at_b = send(b.proxy, "lost").await;
    let at_a = again.await.unwrap();
    is(&at_a, 200, "first");
    is(&at_b, 200, "replayed");
    assert_eq!(at_a.json()["Data"]["FlowId"], at_b.json()["Data"]["FlowId"]);
    assert_eq!(sim.report().arrived, 2);
}

#[tokio::test]
async fn a_word_of_not_created_holds_before_the_call_is_repeated() {
    let sim = endpoint("next=1,close-after").await;
    let redis = Redis::start().await;
    let [a, b] = replicas(&sim, &redis).await;
    let id = lose([&a, &b], "lost").await;
    let first = settle(a.admin, &not_created(&id)).await;
    assert_eq!(first.status, 200, "{first:?}");
    let second = settle(b.admin, &created(&id, "2")).await;
    assert_eq!(second.status, 404, "{second:?}");
    assert!(listed(b.admin).await.is_empty());
    is(&send(b.proxy, "lost").await, 200, "first");
    is(&send(a.proxy, "lost").await, 200, "replayed");
}

#[tokio::test]
async fn a_word_of_a_call_does_not_end_a_later_one_of_another_replica() {
    let sim = endpoint("always,close-after").await;
    let redis = Redis::start().await;
    let [a, b] = replicas(&sim, &redis).await;
    let not_created_of: fn(&str, &str) -> String = |id, _| not_created(id);
    // What is true of the first call may be said late.
    for (number, (word, status)) in [
        (created as fn(&str, &str) -> String, 404),
        (not_created_of, 200),
    ]
    .into_iter()
    .enumerate()
    {
        let name = format!("lost-{number}");
        let id = lose([&a, &b], &name).await;
        assert_eq!(settle(b.admin, &not_created(&id)).await.status, 200);
        is(&send(b.proxy, &name).await, 409, "unknown");
        let late = settle(a.admin, &word(&id, "77")).await;
        assert_eq!(late.status, status, "{late:?}");
        for replica in [&a, &b] {
            is(&send(replica.proxy, &name).await, 409, "unknown");
        }
        assert_eq!(sim.report().arrived, 2 * (number as u64 + 1));
        let again = request_id(a.admin, &name).await;
        assert_ne!(again, id);
        let said = settle(a.admin, &word(&again, "78")).await;
        assert_eq!(said.status, 200, "{said:?}");
    }
}

/// A failover brings back a call of the key with other parameters, whose end the server has not got.
#[tokio::test]
async fn a_failover_that_brings_an_earlier_order_back_ends_no_unknown_outcome() {
    let sim = endpoint("next=2,close-after").await;
    let redis = Redis::start().await;
    let [a, b] = replicas(&sim, &redis).await;
    for (name, state) in [("claimed", "c"), ("open", "o")] {
        let id = lose([&a, &b], name).await;
        let keys = redis.ask(&["--raw", "KEYS", "*"]).await;
        let mut of_call = String::new();
        for key in keys.lines().map(str::trim) {
            let value = redis.ask(&["--raw", "GET", key]).await;
            if value.contains(&id) {
                key.clone_into(&mut of_call);
            }
        }
        let earlier = format!("{state}|EARLIER:1|00000000000000aa|1|00||");
        let script = "redis.call('FLUSHALL') redis.call('SET', KEYS[1], ARGV[1], 'PX', 8000)";
        redis.ask(&["EVAL", script, "1", &of_call, &earlier]).await;
        for _ in 0..2 {
            is(&send(a.proxy, name).await, 409, "unknown");
            // Its records are in the store again.
            while !redis.ask(&["--raw", "GET", &of_call]).await.contains(&id) {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        }
        // Until all replicas have published.
        let said = say(a.admin, &created(&id, name)).await;
        assert_eq!(said.status, 200, "{said:?}");
        is(&send(b.proxy, name).await, 200, "replayed");
    }
    assert_eq!(sim.report().arrived, 2);
}

#[tokio::test]
async fn a_word_is_refused_while_the_store_cannot_record_it() {
    let sim = endpoint("next=1,close-after").await;
    let mut redis = Redis::start().await;
    let [a, b] = replicas(&sim, &redis).await;
    let id = lose([&a, &b], "lost").await;
    redis.stop().await;
    let degraded = "flowgate_keys_degraded";
    Metrics::until(a.admin, degraded, |seen| seen == 1.0).await;
    for word in [created(&id, "1"), not_created(&id)] {
        let refused = settle(a.admin, &word).await;
        assert_eq!(refused.status, 503, "{refused:?}");
        assert_eq!(listed(a.admin).await.len(), 1);
    }
    redis.start_again().await;
    // The store is new: a word is taken when both replicas have published.
    let taken = say(a.admin, &created(&id, "1")).await;
    assert_eq!(taken.status, 200, "{taken:?}");
    for replica in [&a, &b] {
        let again = send(replica.proxy, "lost").await;
        is(&again, 200, "replayed");
        assert_eq!(again.json()["Data"]["FlowId"], "1");
    }
}

#[tokio::test]
async fn the_store_does_not_resolve_a_call_that_it_does_not_know() {
    let sim = endpoint("always,close-after").await;
    let redis = Redis::start().await;
    let more = format!(
        "[exactly_once]\non_loss = \"send\"\n[quota]\nstore = \"{}\"\nstore_timeout = \"3s\"\n",
        redis.url()
    );
    let [a, b] = [start_with(&sim, &more).await, start_with(&sim, &more).await];
    lose([&a, &b], "warm").await;
    let degraded = "flowgate_keys_degraded";
    redis.freeze().await;
    Metrics::until(a.admin, degraded, |seen| seen == 1.0).await;
    let names = ["created", "unmade"];
    for name in names {
        is(&send(a.proxy, name).await, 409, "");
    }
    redis.thaw().await;
    for replica in [&a, &b] {
        Metrics::until(replica.admin, degraded, |seen| seen == 0.0).await;
    }
    let arrived = sim.report().arrived;
    for name in names {
        is(&send(a.proxy, name).await, 409, "");
    }
    assert_eq!(sim.report().arrived, arrived);
    let word = created(&request_id(a.admin, "created").await, "7");
    assert_eq!(settle(a.admin, &word).await.status, 200);
    let word = not_created(&request_id(a.admin, "unmade").await);
    assert_eq!(settle(a.admin, &word).await.status, 200);
    sim.set_faults(Vec::new());
    let told = send(a.proxy, "created").await;
    is(&told, 200, "");
    assert_eq!(told.json()["Data"]["FlowId"], "7");
    is(&send(a.proxy, "unmade").await, 200, "first");
    is(&send(b.proxy, "unmade").await, 200, "replayed");
}

#[tokio::test]
async fn a_word_that_the_journal_cannot_record_holds_and_a_restart_may_forget_it() {
    let sim = endpoint("next=2,close-after").await;
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("journal");
    let process = start(&sim, &path).await;
    for name in ["made", "unmade"] {
        is(&send(process.proxy, name).await, 409, "unknown");
    }
    process.files_end_at(Some(0));
    let [made, unmade] = [
        request_id(process.admin, "made").await,
        request_id(process.admin, "unmade").await,
    ];
    for word in [created(&made, "1"), not_created(&unmade)] {
        let said = settle(process.admin, &word).await;
        let seen = (said.status, &said.json()["pending"]);
        assert_eq!(seen, (202, &json!(["journal"])), "{said:?}");
        assert_eq!(settle(process.admin, &word).await.status, 404);
    }
    is(&send(process.proxy, "made").await, 200, "replayed");
    process.files_end_at(None);
    process.terminate().await;
    // It is said again.
    let process = start(&sim, &path).await;
    for (id, name) in [(&made, "made"), (&unmade, "unmade")] {
        is(&send(process.proxy, name).await, 409, "unknown");
        assert_eq!(request_id(process.admin, name).await, **id);
    }
    for word in [created(&made, "1"), not_created(&unmade)] {
        let said = settle(process.admin, &word).await;
        assert_eq!(status(&said), 200, "{said:?}");
    }
    is(&send(process.proxy, "made").await, 200, "replayed");
    is(&send(process.proxy, "unmade").await, 200, "first");
}

#[tokio::test]
async fn a_word_that_the_store_does_not_take_is_refused_and_can_be_said_again() {
    let sim = endpoint("next=2,close-after").await;
    let redis = Redis::start().await;
    let [a, b] = replicas(&sim, &redis).await;
    let unmade = lose([&a, &b], "unmade").await;
    let made = lose([&a, &b], "made").await;
    // Reading a record needs neither command, recording a word one of them.
    for (name, word, command, at_b) in [
        ("unmade", not_created(&unmade), "del", "first"),
        ("made", created(&made, "7"), "set", "replayed"),
    ] {
        redis
            .ask(&["ACL", "SETUSER", "default", &format!("-{command}")])
            .await;
        assert_eq!(settle(a.admin, &word).await.status, 503, "{name}");
        for replica in [&a, &b] {
            let listed = listed(replica.admin).await;
            assert!(
                listed.iter().any(|it| it["flow_name"] == name),
                "{listed:?}"
            );
        }
        is(&send(b.proxy, name).await, 409, "unknown");
        redis
            .ask(&["ACL", "SETUSER", "default", &format!("+{command}")])
            .await;
        let said = say(a.admin, &word).await;
        assert_eq!(said.status, 200, "{said:?}");
        let told = send(b.proxy, name).await;
        is(&told, 200, at_b);
        let at_a = send(a.proxy, name).await;
        is(&at_a, 200, "replayed");
        let ids = [told, at_a].map(|reply| reply.json()["Data"]["FlowId"].clone());
        assert_eq!(ids[0], ids[1], "{name}");
        assert_eq!(ids[0] == "7", name == "made");
    }
    let settled = "flowgate_operator_actions_total{action=\"settle\"}";
    assert_eq!(Metrics::of(a.admin).await.get(settled), 2.0);
    assert_eq!(sim.report().arrived, 3);
}

#[tokio::test]
async fn of_two_words_with_one_flow_id_while_the_store_refuses_writes_one_holds() {
    let sim = endpoint("next=2,close-after").await;
    let redis = Redis::start().await;
    let [a, b] = replicas(&sim, &redis).await;
    let ids = [lose([&a, &b], "one").await, lose([&a, &b], "two").await];
    let words = ids.map(|id| created(&id, "4711"));
    redis.ask(&["ACL", "SETUSER", "default", "-set"]).await;
    for (replica, word) in [(&a, &words[0]), (&b, &words[1])] {
        assert_eq!(settle(replica.admin, word).await.status, 503);
    }
    redis.ask(&["ACL", "SETUSER", "default", "+set"]).await;
    let mut said = Vec::new();
    for (replica, word) in [(&b, &words[1]), (&a, &words[0])] {
        said.push(say(replica.admin, word).await.status);
    }
    assert_eq!(said, [200, 409]);
    for replica in [&a, &b] {
        is(&send(replica.proxy, "one").await, 409, "unknown");
        is(&send(replica.proxy, "two").await, 200, "replayed");
    }
}

#[tokio::test]
async fn of_two_words_at_one_process_the_journal_has_the_one_that_holds() {
    let sim = endpoint("always,close-after").await;
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("journal");
    let process = start(&sim, &path).await;
    let name = |number: usize| format!("lost-{number}");
    let mut expected = Vec::new();
    for number in 0..20 {
        is(&send(process.proxy, &name(number)).await, 409, "unknown");
        let id = request_id(process.admin, &name(number)).await;
        let words = [created(&id, &number.to_string()), not_created(&id)];
        let first = fastrand::usize(..2);
        let (first, second) = tokio::join!(
            settle(process.admin, &words[first]),
            settle(process.admin, &words[1 - first])
        );
        let mut said = [first, second];
        said.sort_by_key(status);
        let statuses = [status(&said[0]), status(&said[1])];
        assert_eq!(statuses, [200, 404], "{said:?}");
        expected.push(said[0].json()["outcome"].as_str().unwrap().to_owned());
    }
    ends_written(&path, 20).await;
    process.terminate().await;
    sim.set_faults(Vec::new());
    let process = start(&sim, &path).await;
    for (number, outcome) in expected.iter().enumerate() {
        let state = if outcome == "created" {
            "replayed"
        } else {
            "first"
        };
        is(&send(process.proxy, &name(number)).await, 200, state);
    }
}

#[tokio::test]
async fn of_two_words_at_the_same_time_one_holds() {
    let sim = endpoint("always,close-after").await;
    let redis = Redis::start().await;
    let [a, b] = replicas(&sim, &redis).await;
    for number in 1..=20 {
        let name = format!("lost-{number}");
        let id = lose([&a, &b], &name).await;
        let words = [created(&id, &number.to_string()), not_created(&id)];
        let (first, second) = tokio::join!(settle(a.admin, &words[0]), settle(b.admin, &words[1]));
        let mut statuses = [first.status, second.status];
        statuses.sort_unstable();
        assert_eq!(statuses, [200, 404], "{first:?} {second:?}");
    }
}

#[tokio::test]
async fn of_two_words_with_one_flow_at_the_same_time_one_holds() {
    let sim = endpoint("always,close-after").await;
    let redis = Redis::start().await;
    let folder = tempfile::tempdir().unwrap();
    let path = |number: usize| folder.path().join(format!("journal-{number}"));
    let more = |number: usize| {
        let path = path(number);
        format!(
            "[journal]\npath = \"{}\"\n{}",
            path.display(),
            with_store(&redis)
        )
    };
    let [a, b] = [
        start_with(&sim, &more(0)).await,
        start_with(&sim, &more(1)).await,
    ];
    lose([&a, &b], "warm").await;
    let mut held_at_a = 0;
    for (number, second) in (0..20).map(|number| (number, [&a, &b][number % 2])) {
        let names = ["one", "two"].map(|call| format!("{call}-{number}"));
        for (replica, name) in [(&a, &names[0]), (second, &names[1])] {
            is(&send(replica.proxy, name).await, 409, "unknown");
        }
        let flow = format!("7{number}");
        let words = [
            created(&request_id(a.admin, &names[0]).await, &flow),
            created(&request_id(second.admin, &names[1]).await, &flow),
        ];
        let (one, two) = tokio::join!(settle(a.admin, &words[0]), settle(second.admin, &words[1]));
        let mut statuses = [status(&one), status(&two)];
        statuses.sort_unstable();
        assert_eq!(statuses, [200, 409], "{one:?} {two:?}");
        held_at_a += usize::from(one.status != 409 || number % 2 == 0);
        // The other one is still unknown.
        let (replica, name) = if one.status == 409 {
            (&a, &names[0])
        } else {
            (second, &names[1])
        };
        is(&send(replica.proxy, name).await, 409, "unknown");
    }
    // Also over a restart: 10 calls of each, and the one that was lost first.
    let unknown = listed(a.admin).await.len();
    ends_written(&path(0), held_at_a).await;
    a.terminate().await;
    let a = start_with(&sim, &more(0)).await;
    assert_eq!(listed(a.admin).await.len(), unknown);
}

/// A Flowgate that looks for the flows of calls without a key, at an endpoint that loses every answer
/// and lists no flow.
async fn start_without_lists(path: &Path) -> (Running, Process) {
    let faults = [
        "always,action=CreateFlow,close-after",
        "always,action=ListFlow,unavailable",
    ];
    let sim = keyed_calls::endpoint(&faults).await;
    let more = format!(
        "flow_names = \"unique\"\n[journal]\npath = \"{}\"\n",
        path.display()
    );
    let process = start_with(&sim, &more).await;
    (sim, process)
}

/// Loses a call of this name with or without a key. Returns its request id.
async fn lose_within(process: &Process, name: &str, has_key: bool) -> String {
    let query = [
        ("Categories", "[\"SIGN_UP\"]"),
        ("CustSpaceId", "cams-1"),
        ("FlowName", name),
    ];
    let more = |call: &mut Call| {
        call.push("x-flowgate-hold", "3s");
        if has_key {
            call.push("idempotency-key", name);
        }
    };
    let call = Call::v3_with(&process.proxy.to_string(), &query, more, (KEY, SECRET));
    let reply = call.send(process.proxy).await;
    assert_eq!(reply.status, 409, "{reply:?}");
    request_id(process.admin, name).await
}

#[tokio::test]
async fn of_two_words_about_a_call_without_a_key_the_journal_has_the_one_that_holds() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("journal");
    let (_sim, process) = start_without_lists(&path).await;
    for number in 0..5 {
        let name = format!("lost-{number}");
        let id = lose_within(&process, &name, false).await;
        let word = created(&id, &format!("77{number}"));
        let words = tokio::join!(settle(process.admin, &word), settle(process.admin, &word));
        let mut statuses = [status(&words.0), status(&words.1)];
        statuses.sort_unstable();
        assert_eq!(statuses, [200, 404]);
    }
    ends_written(&path, 5).await;
    process.terminate().await;
    let (code, table) = journal(&path, &[]);
    assert_eq!(code, 0, "{table}");
    assert_eq!(table.matches("settled: created 77").count(), 5, "{table}");
}

#[tokio::test]
async fn a_word_gives_no_call_the_flow_of_another() {
    let folder = tempfile::tempdir().unwrap();
    let (_sim, process) = start_without_lists(&folder.path().join("journal")).await;
    for (name, has_key, expected) in [("a", false, 200), ("b", false, 409), ("c", true, 409)] {
        let id = lose_within(&process, name, has_key).await;
        let said = settle(process.admin, &created(&id, "77")).await;
        assert_eq!(status(&said), expected, "{name}: {said:?}");
    }
}

#[tokio::test]
async fn a_word_about_a_call_in_flight_at_another_process_of_the_journal_makes_no_second_flow() {
    let sim = endpoint("next=1,action=GetX,close-after").await;
    let redis = Redis::start().await;
    let folder = tempfile::tempdir().unwrap();
    let journal = format!(
        "[journal]\npath = \"{}\"\n",
        folder.path().join("journal").display()
    );
    let more = |redis: &Redis| format!("{journal}{}", with_store(redis));
    let first = start_with(&sim, &more(&redis)).await;
    while send(first.proxy, "before").await.status != 200 {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    sim.set_faults(vec!["next=1,action=CreateFlow,slow=6s".parse().unwrap()]);
    let arrived = sim.report().arrived;
    let proxy = first.proxy;
    let slow = tokio::spawn(async move { send(proxy, "k").await });
    while sim.report().arrived == arrived {
        tokio::task::yield_now().await;
    }
    let second = start_with(&sim, &more(&redis)).await;
    let flows = || -> Vec<_> {
        sim.flows()
            .into_iter()
            .filter(|it| it.name == "k")
            .collect()
    };
    if let Some(outcome) = listed(second.admin).await.first() {
        while flows().is_empty() && !slow.is_finished() {
            tokio::task::yield_now().await;
        }
        let id = outcome["request_id"].as_str().unwrap();
        settle(second.admin, &created(id, &flows()[0].id)).await;
    }
    slow.await.unwrap();
    first.terminate().await;
    second.terminate().await;

    // The journal alone: the store is a new one.
    let store = Redis::start().await;
    let third = start_with(&sim, &more(&store)).await;
    let reply = loop {
        let reply = send(third.proxy, "k").await;
        if reply.status == 200 {
            break reply;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    };
    is(&reply, 200, "replayed");
    assert_eq!(flows().len(), 1);
    assert_eq!(reply.json()["Data"]["FlowId"], flows()[0].id);
}

#[tokio::test]
async fn only_a_permitted_and_complete_word_ends_an_unknown_outcome() {
    for (more, headers, status) in [
        ("", vec![("authorization", TOKEN)], 403),
        (
            "[listen]\nadmin_token = { env = \"TEAM\" }\n",
            vec![("authorization", TOKEN)],
            403,
        ),
        (ORDERS, vec![], 401),
        (ORDERS, vec![("authorization", "Bearer team-secret-2")], 401),
    ] {
        let harness = Harness::new(more).await;
        let host = harness.admin.to_string();
        let ours = [("host", &*host), ("content-type", "application/json")];
        let headers = [&ours[..], &headers].concat();
        let reply = post(
            harness.admin,
            "/unknown/settle",
            &headers,
            &not_created("R"),
        )
        .await;
        assert_eq!(reply.status, status, "{more}: {reply:?}");
    }
    let harness = Harness::new(ORDERS).await;
    harness
        .sim
        .set_faults(vec!["next=1,close-after".parse().unwrap()]);
    is(&send(harness.proxy, "lost").await, 409, "unknown");
    let id = request_id(harness.admin, "lost").await;
    let by_hand = |fields: &[(&str, &str)]| {
        let fields = fields
            .iter()
            .map(|(name, value)| ((*name).to_owned(), json!(value)));
        Value::Object(fields.collect()).to_string()
    };
    for (status, body) in [
        (400, String::new()),
        (400, "[]".to_owned()),
        (400, format!("\"{id}\"")),
        (400, by_hand(&[("request_id", &id)])),
        (400, by_hand(&[("request_id", &id), ("outcome", "created")])),
        (400, by_hand(&[("request_id", &id), ("outcome", "absent")])),
        (
            400,
            by_hand(&[
                ("request_id", &id),
                ("outcome", "not_created"),
                ("flow_id", "7"),
            ]),
        ),
        (
            400,
            by_hand(&[
                ("request_id", &id),
                ("outcome", "not_created"),
                ("by", "me"),
            ]),
        ),
        (400, created(&id, "")),
        (400, created(&id, "<b>7</b>")),
        (404, created("no-such-request", "7")),
        (404, not_created("")),
        (413, " ".repeat(4097)),
    ] {
        let reply = settle(harness.admin, &body).await;
        assert_eq!(reply.status, status, "{body}: {reply:?}");
    }
    let page = harness.get("/unknown/settle").await;
    assert_eq!((page.status, page.header("allow")), (405, Some("POST")));
    assert_eq!(listed(harness.admin).await.len(), 1);
    let metrics = harness.metrics().await;
    assert_eq!(metrics.sum("flowgate_operator_actions_total"), 0.0);
    is(&send(harness.proxy, "lost").await, 409, "unknown");
    assert_eq!(harness.sim.arrivals().len(), 1);
}

#[tokio::test]
async fn the_log_line_of_a_repetition_names_the_first_call() {
    let sim = endpoint("named=slow,slow=2s").await;
    let folder = tempfile::tempdir().unwrap();
    let process = start(&sim, &folder.path().join("journal")).await;
    let proxy = process.proxy;
    let first = tokio::spawn(async move { send(proxy, "slow-key").await });
    while sim.report().arrived < 1 {
        tokio::task::yield_now().await;
    }
    is(&send(proxy, "slow-key").await, 200, "attached");
    is(&first.await.unwrap(), 200, "first");
    is(&send(proxy, "slow-key").await, 200, "replayed");
    let query = [("FlowName", "unkeyed")];
    Call::v3_with(&proxy.to_string(), &query, |_| {}, (KEY, SECRET))
        .send(proxy)
        .await;
    let lines = process.logged("call", 4).await;
    let of_key: Vec<_> = lines
        .iter()
        .filter(|line| line.get("once").is_some())
        .collect();
    assert_eq!(of_key.len(), 3, "{lines:?}");
    let once = of_key[0]["once"].as_str().unwrap();
    assert!(
        once.len() == 8 && once.bytes().all(|byte| byte.is_ascii_hexdigit()),
        "{once}"
    );
    assert!(of_key.iter().all(|line| line["once"] == once), "{lines:?}");
    let repeats: Vec<_> = of_key
        .iter()
        .filter_map(|line| line.get("first_request_id"))
        .collect();
    assert_eq!(repeats.len(), 1, "only the attached one: {lines:?}");
    assert!(
        of_key.iter().any(|line| line["request_id"] == *repeats[0]),
        "{lines:?}"
    );
}

//! The connection to the shared store: each kind of store is found, an unusable one is reported
//! clearly, and each change of state is logged once.

use cams_sim::{Settings, Sim};
use flowgate::App;
use serde_json::Value;

use crate::harness::{self, Harness, Metrics};
use crate::process::Process;
use crate::redis::{Cluster, Redis, SERVICE, Watched};

const UP: &str = "flowgate_store_up";

/// The secret is in the tests' variable `TEAM`.
const PASSWORD: &str = "store_password = { env = \"TEAM\" }\n";

async fn process(quota: &str) -> Process {
    let sim = Sim::start(Settings::default()).await.unwrap();
    Process::start(&sim, &format!("[quota]\n{quota}")).await
}

#[tokio::test]
async fn without_a_store_nothing_is_said_of_one() {
    let harness = Harness::new("").await;
    assert_eq!(harness.get("/lanes").await.json()["store"], Value::Null);
    let page = harness.get("/metrics").await.body;
    assert!(
        !page.contains("flowgate_store") && !page.contains("flowgate_replicas"),
        "{page}"
    );
}

#[tokio::test]
async fn a_store_is_found_and_its_loss_and_return_reported() {
    let mut redis = Redis::start().await;
    let harness = Harness::new(&format!("[quota]\nstore = \"{}/3\"", redis.url())).await;
    harness.until(UP, 1.0).await;
    let is_up = async || harness.get("/lanes").await.json()["store"]["up"].clone();
    assert_eq!(is_up().await, true);
    redis.stop().await;
    let admin = harness.app.admin_address().unwrap();
    let metrics = Metrics::until(admin, UP, |up| up == 0.0).await;
    assert!(metrics.sum("flowgate_store_errors_total") >= 1.0);
    assert_eq!(is_up().await, false);
    redis.start_again().await;
    harness.until(UP, 1.0).await;
    assert!(
        harness
            .metrics()
            .await
            .get("flowgate_store_seconds_count{op=\"connect\"}")
            >= 2.0
    );
}

#[tokio::test]
async fn the_documented_rights_of_the_store_user_are_enough() {
    let user = "flowgate on >team-secret-1 ~flowgate:* +@read +@write +@scripting +@connection +info +time";
    let options: Vec<_> = ["--user"].into_iter().chain(user.split(' ')).collect();
    let redis = Redis::with(&[&options[..], &["--requirepass", "another"]].concat()).await;
    let quota = format!(
        "store = \"{}\"\nstore_username = \"flowgate\"\n{PASSWORD}",
        redis.url()
    );
    Harness::new(&format!("[quota]\n{quota}"))
        .await
        .until(UP, 1.0)
        .await;
}

/// The reason why a start with a user of these rights fails, if it does.
async fn refused(rights: &str) -> Option<String> {
    let user = format!("flowgate on >team-secret-1 {rights}");
    let options: Vec<_> = ["--user"].into_iter().chain(user.split(' ')).collect();
    let redis = Redis::with(&[&options[..], &["--requirepass", "another"]].concat()).await;
    let folder = tempfile::tempdir().unwrap();
    let quota = format!(
        "[quota]\nstore = \"{}\"\nstore_username = \"flowgate\"\n{PASSWORD}",
        redis.url()
    );
    let started = App::start(harness::load(&folder, &quota)).await;
    started.err().map(|error| error.to_string())
}

#[tokio::test]
async fn a_store_user_without_a_right_stops_the_start_with_the_reason() {
    for (rights, missing) in [
        (
            "~flowgate:* +@read +@write +@connection +info +time",
            "script|load",
        ),
        (
            "~flowgate:* +@read +@write +@scripting +@connection +info",
            "run this command",
        ),
        (
            "~flowgate:* +@read +@scripting +@connection +info +time",
            "set",
        ),
        (
            "~other:* +@read +@write +@scripting +@connection +info +time",
            "key",
        ),
    ] {
        let reason = refused(rights)
            .await
            .unwrap_or_else(|| panic!("{rights} is enough"));
        let known = reason
            .starts_with("quota.store: the shared store does not permit what Flowgate needs (");
        assert!(
            known
                && reason
                    .split("): ")
                    .nth(1)
                    .is_some_and(|said| said.contains(missing)),
            "{reason}"
        );
    }
    // The right to INFO is optional.
    assert_eq!(
        refused("~flowgate:* +@read +@write +@scripting +@connection +time").await,
        None
    );
}

#[tokio::test]
async fn a_lost_right_of_the_store_user_is_logged_once() {
    let redis = Redis::start().await;
    let flowgate = process(&format!("store = \"{}\"", redis.url())).await;
    flowgate.logged("the shared store is up", 1).await;
    assert_eq!(
        redis
            .ask(&["ACL", "SETUSER", "default", "-@scripting"])
            .await
            .trim(),
        "OK"
    );
    let event = flowgate.logged("the shared store is down", 1).await[0].clone();
    assert!(
        event["reason"].as_str().unwrap().contains("evalsha"),
        "{event}"
    );
    let unfit = "the shared store cannot be used; retrying";
    flowgate.logged(unfit, 1).await;
    Metrics::until(
        flowgate.admin,
        "flowgate_store_errors_total{op=\"connect\"}",
        |times| times >= 3.0,
    )
    .await;
    let metrics = Metrics::of(flowgate.admin).await;
    assert_eq!(
        (metrics.get(UP), metrics.get("flowgate_store_degraded")),
        (0.0, 1.0)
    );
    assert_eq!(flowgate.logged(unfit, 1).await.len(), 1);
    redis
        .ask(&["ACL", "SETUSER", "default", "+@scripting"])
        .await;
    Metrics::until(flowgate.admin, UP, |up| up == 1.0).await;
}

#[tokio::test]
async fn the_store_certificate_is_verified_with_the_ca_file() {
    let redis = Redis::with_tls().await;
    let other = Redis::with_tls().await;
    let quota = |ca: &Redis| {
        format!(
            "store = \"{}\"\nstore_ca_file = {:?}",
            redis.url(),
            ca.ca_file()
        )
    };
    Harness::new(&format!("[quota]\n{}", quota(&redis)))
        .await
        .until(UP, 1.0)
        .await;
    let flowgate = process(&quota(&other)).await;
    let event = &flowgate
        .logged("the shared store cannot be reached; retrying", 1)
        .await[0];
    assert!(
        event["reason"].as_str().unwrap().contains("certificate"),
        "{event}"
    );
}

#[tokio::test]
async fn a_cluster_can_be_used() {
    let cluster = Cluster::start().await;
    Harness::new(&format!("[quota]\nstore = {}", cluster.urls()))
        .await
        .until(UP, 1.0)
        .await;
    // One node is enough to find the others.
    let quota = format!(
        "[quota]\nstore = \"{}\"\nstore_cluster = true",
        cluster.nodes[1].url()
    );
    Harness::new(&quota).await.until(UP, 1.0).await;
}

#[tokio::test]
async fn a_failover_of_the_sentinels_is_followed() {
    let mut watched = Watched::start().await;
    let flowgate = process(&format!(
        "store = {}\nstore_sentinel = \"{SERVICE}\"",
        watched.urls()
    ))
    .await;
    flowgate.logged("the shared store is up", 1).await;
    watched.master.stop().await;
    let events = flowgate.logged("the shared store is up", 2).await;
    assert_eq!(events[1]["restarted"], true);
    let run = watched.replica.ask(&["INFO", "server"]).await;
    assert!(
        run.contains(events[1]["run_id"].as_str().unwrap()),
        "{events:?} {run}"
    );
    assert_eq!(
        flowgate.logged("the shared store is down", 1).await.len(),
        1
    );
}

#[tokio::test]
async fn a_wrong_store_password_is_logged_once_without_it() {
    let redis = Redis::with(&["--requirepass", "another"]).await;
    let flowgate = process(&format!("store = \"{}\"\n{PASSWORD}", redis.url())).await;
    let refused = "the shared store cannot be used; retrying";
    let event = flowgate.logged(refused, 1).await[0].clone();
    assert_eq!(
        event["reason"],
        "Password authentication failed - AuthenticationFailed"
    );
    Metrics::until(
        flowgate.admin,
        "flowgate_store_errors_total{op=\"connect\"}",
        |times| times >= 3.0,
    )
    .await;
    assert_eq!(Metrics::of(flowgate.admin).await.get(UP), 0.0);
    assert_eq!(flowgate.logged(refused, 1).await.len(), 1);
}

#[tokio::test]
async fn an_evicting_store_stops_the_start() {
    let redis = Redis::with(&["--maxmemory-policy", "allkeys-lru"]).await;
    let folder = tempfile::tempdir().unwrap();
    let refused = App::start(harness::load(
        &folder,
        &format!("[quota]\nstore = \"{}\"", redis.url()),
    ))
    .await;
    let expected = "quota.store: the shared store evicts keys (maxmemory-policy allkeys-lru), which would forget spent tokens: set it to noeviction";
    assert_eq!(
        refused.err().map(|error| error.to_string()).as_deref(),
        Some(expected)
    );
}

#[tokio::test]
async fn a_restarted_store_is_distinguished_from_a_broken_connection() {
    let mut redis = Redis::start().await;
    let flowgate = process(&format!("store = \"{}\"", redis.url())).await;
    let up = "the shared store is up";
    flowgate.logged(up, 1).await;
    assert_eq!(
        redis
            .ask(&["CLIENT", "KILL", "TYPE", "normal"])
            .await
            .trim(),
        "1"
    );
    flowgate.logged(up, 2).await;
    redis.stop().await;
    redis.start_again().await;
    let events = flowgate.logged(up, 3).await;
    let restarted: Vec<_> = events
        .iter()
        .map(|event| event["restarted"].as_bool().unwrap())
        .collect();
    assert_eq!(restarted, [false, false, true]);
    assert_eq!(events[0]["run_id"], events[1]["run_id"]);
    assert_ne!(events[1]["run_id"], events[2]["run_id"]);
    assert_eq!(
        flowgate.logged("the shared store is down", 2).await.len(),
        2
    );
}

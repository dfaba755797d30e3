//! Sessions whose secrets Flowgate does not have, as applications with RRSA or AssumeRole get them:
//! a rule in `aliases` assigns them to their account, so that all of them share its lane.

use cams_sim::{Running, Settings, Sim};
use flowgate::App;
use tokio::task::JoinSet;

use crate::caller::{Call, KEY, Reply, SECRET};
use crate::harness::{GAP, Harness, Metrics, load};
use crate::process::Process;
use crate::redis::Redis;

const REAL: &str = "cams.ap-southeast-1.aliyuncs.com";
const SESSIONS: [[&str; 3]; 4] = [
    ["STS.NU1first", "secret-1", "token-1"],
    ["STS.NU2second", "secret-2", "token-2"],
    ["STS.NU3third", "secret-3", "token-3"],
    ["STS.NU4fourth", "secret-4", "token-4"],
];
/// An account that exists only to pace its relayed callers.
const PACED: &str = "[[accounts]]\nid = \"acme\"\naliases = [\"STS.*\"]\n";

/// An endpoint that counts the calls of all sessions, and of the managed key, for one account.
async fn sim() -> Running {
    let mut settings = Settings::default().with_key(KEY, SECRET, "acme");
    let keys = SESSIONS.map(|[key, secret, token]| format!("{key}:{secret}:acme:{token}"));
    settings
        .keys
        .extend(keys.iter().map(|key| key.parse().unwrap()));
    Sim::start(settings).await.unwrap()
}

fn upstream(sim: &Running) -> String {
    format!(
        "{GAP}[upstream]\nurl = \"{}\"\nhost = \"{REAL}\"\n",
        sim.url()
    )
}

/// A call of one of the sessions: version 1, or version 3 as it comes through `http_proxy`.
fn call(number: usize) -> Call {
    let [key, secret, token] = SESSIONS[number % SESSIONS.len()];
    let name = format!("flow-{number}");
    let fields = [("Categories", "[\"SIGN_UP\"]"), ("FlowName", name.as_str())];
    if number.is_multiple_of(3) {
        let token = |call: &mut Call| {
            call.push("x-acs-accesskey-id", key);
            call.push("x-acs-security-token", token);
        };
        return Call::v3_with(REAL, &fields, token, (key, secret));
    }
    let token = |call: &mut Call| call.query.push(("SecurityToken".into(), token.into()));
    Call::v1_with(REAL, &fields, token, (key, secret))
}

/// Starts 20 simultaneous calls of the four sessions, in turn at these addresses.
fn twenty(proxies: &[std::net::SocketAddr]) -> JoinSet<Reply> {
    let mut calls = JoinSet::new();
    for number in 0..20 {
        let proxy = proxies[number / SESSIONS.len() % proxies.len()];
        calls.spawn(async move { call(number).send(proxy).await });
    }
    calls
}

/// Every call was answered with success, and CAMS has throttled none of them.
fn assert_all_served(sim: &Running, replies: &[Reply]) {
    let statuses: Vec<_> = replies.iter().filter(|reply| reply.status != 200).collect();
    assert!(statuses.is_empty(), "{statuses:?}");
    let report = sim.report();
    assert_eq!(
        (
            report.created as usize,
            report.refused,
            report.duplicates.len()
        ),
        (replies.len(), 0, 0)
    );
    assert!(report.worst_window <= 5, "{}", report.worst_window);
}

#[tokio::test]
async fn sessions_of_an_account_without_a_secret_share_one_lane() {
    let sim = sim().await;
    let toml = format!("{PACED}{}", upstream(&sim));
    let harness = Harness::configured(sim, &toml).await;
    let replies = twenty(&[harness.proxy]).join_all().await;
    assert_all_served(&harness.sim, &replies);
    let lanes = harness.get("/lanes").await.json()["lanes"].clone();
    assert_eq!(lanes.as_array().map(Vec::len), Some(1), "{lanes}");
    assert_eq!(lanes[0]["account"], "acme", "{lanes}");
    let metrics = harness.metrics().await;
    assert_eq!(metrics.outcome("acme", "CreateFlow", "ok"), 20.0);
    assert_eq!(
        metrics.sum("flowgate_requests_total"),
        20.0,
        "nothing is counted for an unknown account"
    );
}

#[tokio::test]
async fn sessions_share_the_lane_of_their_managed_account() {
    let sim = sim().await;
    let toml = format!(
        "[[accounts]]\nid = \"acme\"\naccess_key_id = \"{KEY}\"\naccess_key_secret = {{ env = \"MANAGED\" }}\naliases = [\"STS.*\"]\n{}",
        upstream(&sim)
    );
    let harness = Harness::configured(sim, &toml).await;
    let mut calls = twenty(&[harness.proxy]);
    for number in 0..5 {
        let call = Call::v3(&harness.host(), &format!("managed-{number}"));
        let proxy = harness.proxy;
        calls.spawn(async move { call.send(proxy).await });
    }
    let replies = calls.join_all().await;
    assert_all_served(&harness.sim, &replies);
    assert_eq!(
        harness.metrics().await.outcome("acme", "CreateFlow", "ok"),
        25.0
    );
}

#[tokio::test]
async fn replicas_share_the_lane_of_all_sessions_through_the_store() {
    let redis = Redis::start().await;
    let sim = sim().await;
    // A replica that misses the store has its part of the quota only a second after it has seen it.
    let toml = format!(
        "{PACED}{}[quota]\nstore = \"{}\"\nstore_timeout = \"10s\"\n",
        upstream(&sim),
        redis.url()
    );
    let harness = Harness::configured(sim, &toml).await;
    let folder = tempfile::tempdir().unwrap();
    let other = App::start(load(&folder, &toml)).await.unwrap();
    let proxies = [harness.proxy, other.proxy_address().unwrap()];
    let replies = twenty(&proxies).join_all().await;
    assert_all_served(&harness.sim, &replies);
    let there = Metrics::of(other.admin_address().unwrap()).await;
    let here = harness.metrics().await;
    let served = [here, there].map(|metrics| metrics.outcome("acme", "CreateFlow", "ok"));
    assert!(served.iter().all(|count| *count > 0.0), "{served:?}");
    assert_eq!(served.iter().sum::<f64>(), 20.0);
}

#[tokio::test]
async fn a_reload_that_adds_the_rule_joins_the_sessions() {
    let sim = sim().await;
    let relaying = format!("host = \"{REAL}\"\n{GAP}");
    let folder = tempfile::tempdir().unwrap();
    let flowgate = Process::configured(&sim, &relaying, folder, &[]).await;
    let alone = call(21).send(flowgate.proxy).await;
    let unknown =
        "flowgate_requests_total{account=\"unknown\",action=\"CreateFlow\",outcome=\"ok\"}";
    assert_eq!(Metrics::of(flowgate.admin).await.get(unknown), 1.0);
    flowgate.write(&format!("{relaying}{PACED}"));
    flowgate.signal("-HUP").await;
    flowgate.logged("configuration reloaded", 1).await;
    let mut replies = twenty(&[flowgate.proxy]).join_all().await;
    let metrics = Metrics::of(flowgate.admin).await;
    assert_eq!(metrics.outcome("acme", "CreateFlow", "ok"), 20.0);
    assert_eq!(metrics.get(unknown), 1.0);
    replies.push(alone);
    assert_all_served(&sim, &replies);
}

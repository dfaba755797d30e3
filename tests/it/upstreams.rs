//! Accounts with upstreams of their own: each call goes where its account belongs, an upstream that
//! is down stops only its accounts, and a reload moves an account without losing a call.

use std::net::SocketAddr;

use cams_sim::{Running, Settings, Sim};
use tokio::net::TcpListener;
use tokio::task::JoinSet;

use crate::caller::{Call, KEY, Reply, SECRET};
use crate::harness::{self, GAP, Harness, Metrics, are_served};
use crate::operator::{OPERATOR, pause, resume, until_queued};
use crate::process::{ACME, Process};

/// The account `other`, with the secret in `TEAM`.
const OTHER: (&str, &str) = ("LTAI-other-01", "team-secret-1");
const OWN: (&str, &str) = (KEY, SECRET);
/// A relayed key of `other`: the simulator knows its secret, Flowgate does not.
const ALIAS: (&str, &str) = ("LTAI-alias-01", "alias-secret-1");

async fn sim() -> Running {
    let settings = Settings::default()
        .with_key(OWN.0, OWN.1, "acme")
        .with_key(OTHER.0, OTHER.1, "other")
        .with_key(ALIAS.0, ALIAS.1, "other");
    Sim::start(settings).await.unwrap()
}

fn other(url: &str) -> String {
    format!(
        "[[accounts]]\nid = \"other\"\naccess_key_id = \"{}\"\naccess_key_secret = {{ env = \"TEAM\" }}\n\
         aliases = [\"{}\"]\nupstream = \"{url}\"\n",
        OTHER.0, ALIAS.0
    )
}

/// `acme` calls the first simulator, `other` this URL.
async fn two(first: Running, url: &str, more: &str) -> Harness {
    let toml = format!(
        "{ACME}{}{GAP}[upstream]\nurl = \"{}\"\n{more}",
        other(url),
        first.url()
    );
    Harness::configured(first, &toml).await
}

fn call(host: &str, name: &str, key: (&str, &str)) -> Call {
    let query = [("Categories", "[\"SIGN_UP\"]"), ("FlowName", name)];
    Call::v3_with(host, &query, |_| {}, key)
}

fn together(to: SocketAddr, count: usize, key: (&'static str, &'static str)) -> JoinSet<Reply> {
    let mut calls = JoinSet::new();
    for index in 0..count {
        let call = call(&to.to_string(), &format!("{}-{index}", key.0), key);
        calls.spawn(async move { call.send(to).await });
    }
    calls
}

/// Longer than an operator's pause.
const HOLD: &str = "[queue]\nhold = \"60s\"\n";

/// Starts 20 calls, and returns after all have arrived and the first ones were sent.
async fn twenty(
    flowgate: &Process,
    account: &str,
    key: (&'static str, &'static str),
) -> JoinSet<Reply> {
    pause(flowgate, account).await;
    let calls = together(flowgate.proxy, 20, key);
    until_queued(flowgate, account, |calls| calls == 20.0).await;
    resume(flowgate, account).await;
    until_queued(flowgate, account, |calls| calls <= 15.0).await;
    calls
}

fn up(upstream: &str) -> String {
    format!("flowgate_upstream_up{{upstream=\"{upstream}\"}}")
}

#[tokio::test]
async fn each_account_calls_its_own_upstream_at_its_own_rate() {
    let elsewhere = sim().await;
    let harness = two(sim().await, &elsewhere.url(), "").await;
    let [own, others] = [OWN, OTHER].map(|key| together(harness.proxy, 10, key));
    for calls in [own, others] {
        let replies = calls.join_all().await;
        are_served(&replies);
    }
    for (sim, key) in [(&harness.sim, OWN.0), (&elsewhere, OTHER.0)] {
        let report = sim.report();
        assert_eq!((report.created, report.arrived), (10, 10), "{key}");
        assert_eq!(report.worst_window, 5, "{key}");
    }
    let metrics = harness.metrics().await;
    assert_eq!(metrics.get(&up(&harness.sim.url())), 1.0);
    assert_eq!(metrics.get(&up(&elsewhere.url())), 1.0);
    let config = harness.get("/config").await.json();
    assert_eq!(config["accounts"][0]["upstream"], serde_json::Value::Null);
    assert_eq!(config["accounts"][1]["upstream"], elsewhere.url());
    let upstreams = &harness.get("/lanes").await.json()["upstreams"];
    assert_eq!(upstreams[0]["url"], harness.sim.url());
    assert_eq!(upstreams[1]["url"], elsewhere.url());
}

#[tokio::test]
async fn an_upstream_that_is_down_stops_only_its_accounts() {
    let dead = TcpListener::bind("127.0.0.1:0")
        .await
        .unwrap()
        .local_addr()
        .unwrap();
    let dead = format!("http://{dead}");
    let harness = two(sim().await, &dead, "[queue]\nhold = \"2s\"\n").await;
    let [own, others] = [OWN, OTHER].map(|key| together(harness.proxy, 3, key));
    for reply in own.join_all().await {
        assert_eq!(reply.status, 200);
    }
    for reply in others.join_all().await {
        assert_eq!(
            (reply.status, reply.code().as_str()),
            (503, "Flowgate.UpstreamUnreachable")
        );
    }
    // An action without a limit has no lane: it takes the connection of its account too.
    for (key, status) in [(OWN, 200), (OTHER, 503)] {
        let list = Call::v3_with(
            &harness.host(),
            &[],
            |call| call.set("x-acs-action", "ListFlow"),
            key,
        );
        assert_eq!(list.send(harness.proxy).await.status, status, "{}", key.0);
    }
    let metrics = harness.metrics().await;
    assert_eq!(metrics.get(&up(&harness.sim.url())), 1.0);
    assert_eq!(metrics.get(&up(&dead)), 0.0);
    let refused = |upstream: &str| {
        metrics.get(&format!(
            "flowgate_upstream_connect_failures_total{{reason=\"connect\",upstream=\"{upstream}\"}}"
        ))
    };
    assert_eq!(refused(&harness.sim.url()), 0.0);
    assert!(refused(&dead) >= 1.0);
    let page = harness.get("/lanes").await.json();
    assert_eq!(page["upstreams"][0]["reachable"], true);
    assert_eq!(page["upstreams"][1]["reachable"], false);
    assert_eq!(harness.get("/readyz").await.status, 200);
}

#[tokio::test]
async fn a_call_that_names_the_upstream_of_another_account_is_refused() {
    let elsewhere = sim().await;
    let harness = two(sim().await, &elsewhere.url(), "").await;
    let [first, second] = [harness.sim.addr(), elsewhere.addr()].map(|it| it.to_string());
    let mismatch = "Flowgate.SignedHostMismatch";
    for (key, host, code) in [
        (OWN, &first, ""),
        (OWN, &second, mismatch),
        (OTHER, &second, ""),
        (OTHER, &first, mismatch),
        // Relayed: the host that was signed must be the one of the account's upstream.
        (ALIAS, &second, ""),
        (ALIAS, &first, mismatch),
    ] {
        let mut v3 = call(host, &format!("{}-{host}-v3", key.0), key);
        v3.path = format!("http://{host}/");
        let form = [
            ("Categories", "[\"SIGN_UP\"]"),
            ("FlowName", &*format!("{}-{host}-v1", key.0)),
        ];
        // Version 1 does not sign the host, so it is checked as it is written.
        let v1 = Call::v1_with(host, &form, |_| {}, key);
        for call in [v3, v1] {
            let reply = call.send(harness.proxy).await;
            if code.is_empty() {
                assert_eq!(reply.status, 200, "{} {host}: {reply:?}", key.0);
            } else {
                assert_eq!((reply.status, &*reply.code()), (400, code), "{}", key.0);
                let own = if key == OWN { &first } else { &second };
                assert!(reply.body.contains(own), "names its upstream: {reply:?}");
            }
        }
    }
    assert_eq!(
        (harness.sim.report().arrived, elsewhere.report().arrived),
        (2, 4)
    );
}

#[tokio::test]
async fn a_reload_moves_an_account_and_tells_its_queued_calls() {
    let [first, before, after] = [sim().await, sim().await, sim().await];
    let folder = tempfile::tempdir().unwrap();
    let toml = |url: &str| format!("{ACME}{}{GAP}{HOLD}", other(url));
    let flowgate = Process::configured(&first, &toml(&before.url()), folder, &OPERATOR).await;
    let mut own = together(flowgate.proxy, 20, OWN);
    let others = twenty(&flowgate, "other", OTHER).await;
    flowgate.write(&toml(&after.url()));
    flowgate.signal("-HUP").await;
    flowgate.logged("configuration reloaded", 1).await;
    let replies = others.join_all().await;
    let sent = replies.iter().filter(|reply| reply.status == 200).count();
    let moved = replies.iter().filter(|reply| {
        reply.code() == "System.LimitControl"
            && reply.body.contains("another upstream")
            && reply.header("x-acs-retry-after").is_some()
    });
    assert_eq!(sent + moved.count(), 20, "{replies:?}");
    assert_eq!(
        (before.report().created, after.report().created),
        (sent as u64, 0)
    );
    let again = call(&flowgate.proxy.to_string(), "again", OTHER);
    assert_eq!(again.send(flowgate.proxy).await.status, 200);
    assert_eq!(
        (before.report().arrived, after.report().created),
        (sent as u64, 1)
    );
    while let Some(reply) = own.join_next().await {
        assert_eq!(reply.unwrap().status, 200);
    }
    let report = first.report();
    assert_eq!((report.created, report.worst_window), (20, 5));
    // The replaced upstream has no series left, and its idle connections are closed.
    let metrics = Metrics::of(flowgate.admin).await;
    assert_eq!(metrics.sum("flowgate_upstream_up"), 2.0);
    assert_eq!(metrics.get(&up(&after.url())), 1.0);
    let tokens = |event| {
        metrics.get(&format!(
            "flowgate_tokens_total{{account=\"other\",event=\"{event}\"}}"
        ))
    };
    assert_eq!(tokens("granted"), tokens("spent") + tokens("returned"));
    assert_eq!(tokens("spent"), (sent + 1) as f64);
}

#[tokio::test]
async fn a_reload_replaces_the_upstream_of_all_accounts_and_keeps_queued_calls_of_the_same_host() {
    let [before, after] = [sim().await, sim().await];
    let folder = tempfile::tempdir().unwrap();
    let toml = format!("host = \"cams.ap-southeast-1.aliyuncs.com\"\n{ACME}{GAP}{HOLD}");
    let flowgate = Process::configured(&before, &toml, folder, &OPERATOR).await;
    let calls = twenty(&flowgate, "acme", OWN).await;
    pause(&flowgate, "acme").await;
    let queued = until_queued(&flowgate, "acme", |_| true).await;
    let path = flowgate.folder.path().join("flowgate.toml");
    let text = std::fs::read_to_string(&path).unwrap();
    std::fs::write(&path, text.replace(&before.url(), &after.url())).unwrap();
    flowgate.signal("-HUP").await;
    flowgate.logged("configuration reloaded", 1).await;
    resume(&flowgate, "acme").await;
    for reply in calls.join_all().await {
        assert_eq!(reply.status, 200, "{reply:?}");
    }
    let [earlier, later] = [before.report(), after.report()];
    assert_eq!(earlier.created + later.created, 20);
    assert!(later.created >= queued as u64, "{queued}: {later:?}");
    let url = &harness::get(flowgate.admin, "/config").await.json()["upstream"]["url"];
    assert_eq!(*url, after.url());
}

//! The way out through an HTTP proxy: calls pass through its tunnels, a failure before the tunnel is
//! open is certainly not sent, and the proxy's credentials are shown nowhere.

use std::time::Duration;

use cams_sim::{Running, Settings, Sim};
use tokio::net::TcpListener;
use tokio::task::JoinSet;

use crate::caller::{Call, KEY, SECRET};
use crate::connect_proxy::{Behaviour, ConnectProxy};
use crate::harness::{Harness, Metrics};
use crate::process::{ACME, Process};

const BASIC: &str = "Basic cHJveHktdXNlcjpodW50ZXIy";
const CREDENTIALS: &str = "proxy-user:hunter2";

async fn sim() -> Running {
    Sim::start(Settings::default().with_key(KEY, SECRET, "acme"))
        .await
        .unwrap()
}

async fn behind(proxy: &ConnectProxy, more: &str) -> Harness {
    Harness::new(&format!("proxy = \"http://{}\"\n{more}", proxy.address)).await
}

fn failures(metrics: &Metrics, harness: &Harness, reason: &str) -> f64 {
    metrics.get(&format!(
        "flowgate_upstream_connect_failures_total{{reason=\"{reason}\",upstream=\"{}\"}}",
        harness.sim.url()
    ))
}

#[tokio::test]
async fn every_call_passes_through_a_tunnel_at_the_legal_rate() {
    let proxy = ConnectProxy::start(Behaviour::Opens).await;
    let harness = behind(&proxy, "").await;
    let mut calls = JoinSet::new();
    for index in 0..15 {
        let call = Call::v3(&harness.host(), &format!("flow-{index}"));
        let to = harness.proxy;
        calls.spawn(async move { call.send(to).await.status });
    }
    assert_eq!(calls.join_all().await, [200; 15]);
    let report = harness.sim.report();
    assert_eq!((report.created, report.worst_window), (15, 5));
    let heads = proxy.heads();
    let target = format!("CONNECT {} HTTP/1.1\r\n", harness.sim.addr());
    assert!(!heads.is_empty() && heads.len() <= 15);
    assert!(heads.iter().all(|head| head.starts_with(&target)));
    // Nothing else than the tunnel's requests reached the proxy itself.
    assert!(heads.iter().all(|head| !head.contains("x-acs-")));
    let lanes = harness.get("/lanes").await.json();
    assert_eq!(
        lanes["upstream"]["proxy"],
        format!("http://{}", proxy.address)
    );
    assert_eq!(lanes["upstream"]["reachable"], true);
}

/// Refuses a call through this proxy, and checks what is shown of it.
async fn is_refused(behaviour: Behaviour, label: &str, reason: &str) {
    // Only the proxy that stalls needs a short time.
    let more = if behaviour == Behaviour::Stalls {
        "connect_timeout = \"200ms\"\n[queue]\nhold = \"2s\"\n"
    } else {
        "connect_timeout = \"5s\"\n[queue]\nhold = \"10s\"\n"
    };
    let proxy = ConnectProxy::start(behaviour).await;
    let harness = behind(&proxy, more).await;
    let reply = Call::v3(&harness.host(), "x").send(harness.proxy).await;
    assert_eq!(
        (reply.status, reply.code().as_str()),
        (503, "Flowgate.UpstreamUnreachable"),
        "{label}"
    );
    assert!(reply.header("x-acs-retry-after").is_some(), "{label}");
    let lanes = harness.get("/lanes").await.json();
    assert_eq!(lanes["upstream"]["reachable"], false, "{label}");
    let target = harness.sim.addr().to_string();
    let expected = reason.replace("TARGET", &target);
    assert_eq!(lanes["upstream"]["reason"], expected, "{label}");
    assert_eq!(lanes["upstreams"].as_array().unwrap().len(), 1, "{label}");
    let metrics = harness.metrics().await;
    let counted = metrics.sum("flowgate_upstream_connect_failures_total");
    assert!(counted >= 1.0, "{label}");
    assert_eq!(failures(&metrics, &harness, label), counted, "{label}");
    let tokens = |event| {
        metrics.get(&format!(
            "flowgate_tokens_total{{account=\"acme\",event=\"{event}\"}}"
        ))
    };
    assert_eq!(tokens("spent"), 0.0, "{label}");
    assert_eq!(tokens("granted"), tokens("returned"), "{label}");
    assert_eq!(metrics.outcome("acme", "CreateFlow", "unreachable"), 1.0);
    assert_eq!(harness.sim.report().arrived, 0, "{label}");
    // An unreachable upstream does not make a replica unready.
    assert_eq!(harness.get("/readyz").await.status, 200, "{label}");
}

#[tokio::test]
async fn each_failure_of_the_proxy_is_not_sent_and_is_shown_with_its_reason() {
    let rows = [
        (
            Behaviour::Stalls,
            "proxy_timeout",
            "the proxy has not answered within 200ms",
        ),
        (
            Behaviour::Demands(BASIC),
            "proxy_authentication",
            "the proxy demands a user and a password (407): set upstream.proxy_credentials",
        ),
        (
            Behaviour::Says(b"HTTP/1.1 403 Forbidden\r\n\r\n"),
            "proxy_forbidden",
            "the proxy forbids a tunnel to TARGET (403)",
        ),
        (
            Behaviour::Says(b"HTTP/1.1 502 Bad Gateway\r\n\r\n"),
            "proxy_bad_gateway",
            "the proxy cannot reach TARGET (502)",
        ),
        (
            Behaviour::Says(b"220 smtp.example ESMTP\r\n"),
            "proxy_answer",
            "the proxy's answer is not HTTP",
        ),
        (
            Behaviour::Says(b""),
            "proxy_closed",
            "the proxy closed the connection before it had answered",
        ),
    ];
    let mut checks = JoinSet::new();
    for (behaviour, label, reason) in rows {
        checks.spawn(is_refused(behaviour, label, reason));
    }
    checks.join_all().await;
}

#[tokio::test]
async fn calls_wait_for_a_proxy_that_returns() {
    let reserved = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = reserved.local_addr().unwrap();
    drop(reserved);
    let harness = Harness::new(&format!("proxy = \"http://{address}\"")).await;
    let mut calls = JoinSet::new();
    for index in 0..5 {
        let call = Call::v3(&harness.host(), &format!("flow-{index}"));
        let to = harness.proxy;
        calls.spawn(async move { call.send(to).await.status });
    }
    let up = format!("flowgate_upstream_up{{upstream=\"{}\"}}", harness.sim.url());
    harness
        .until(
            "flowgate_queued{account=\"acme\",action=\"CreateFlow\"}",
            5.0,
        )
        .await;
    Metrics::until(harness.admin, &up, |up| up == 0.0).await;
    let listener = TcpListener::bind(address).await.unwrap();
    let _proxy = ConnectProxy::on(listener, Behaviour::Opens);
    assert_eq!(calls.join_all().await, [200; 5]);
    assert_eq!(harness.sim.report().created, 5);
    assert_eq!(harness.metrics().await.get(&up), 1.0);
}

#[tokio::test]
async fn a_tunnel_that_breaks_after_the_call_was_sent_leaves_the_outcome_unknown() {
    let proxy = ConnectProxy::start(Behaviour::Opens).await;
    let harness = behind(&proxy, "").await;
    harness
        .sim
        .set_faults(vec!["next=1,slow=30s".parse().unwrap()]);
    let call = Call::v3(&harness.host(), "x");
    let to = harness.proxy;
    let reply = tokio::spawn(async move { call.send(to).await });
    while harness.sim.report().arrived == 0 {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    proxy.behaves(Behaviour::Says(b"HTTP/1.1 502 Bad Gateway\r\n\r\n"));
    let reply = reply.await.unwrap();
    assert_eq!(
        (reply.status, reply.code().as_str()),
        (409, "Flowgate.OutcomeUnknown")
    );
    assert_eq!(harness.sim.report().arrived, 1);
}

#[tokio::test]
async fn credentials_are_read_again_and_shown_nowhere() {
    let sim = sim().await;
    let proxy = ConnectProxy::start(Behaviour::Demands(BASIC)).await;
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("proxy");
    std::fs::write(&file, "proxy-user:not-the-password\n").unwrap();
    let toml = format!(
        "proxy = \"http://{}\"\nproxy_credentials = {{ file = \"proxy\" }}\n{ACME}[queue]\nhold = \"2s\"\n",
        proxy.address
    );
    let flowgate = Process::configured(&sim, &toml, folder, &[("RUST_LOG", "trace")]).await;
    let call = |name: &str| Call::v3(&flowgate.proxy.to_string(), name);
    assert_eq!(call("one").send(flowgate.proxy).await.status, 503);
    let warned = flowgate.logged("upstream cannot be reached", 1).await;
    assert_eq!(
        warned[0]["reason"],
        "the proxy does not accept upstream.proxy_credentials (407)"
    );
    std::fs::write(&file, CREDENTIALS).unwrap();
    flowgate.signal("-HUP").await;
    flowgate.logged("configuration reloaded", 1).await;
    assert_eq!(call("two").send(flowgate.proxy).await.status, 200);
    let mut shown = String::new();
    for path in ["/config", "/lanes", "/metrics", "/"] {
        shown += &crate::harness::get(flowgate.admin, path).await.body;
    }
    let config = crate::harness::get(flowgate.admin, "/config").await.json();
    assert_eq!(
        config["upstream"]["proxy"],
        format!("http://{}", proxy.address)
    );
    assert_eq!(config["upstream"]["proxy_credentials"], true);
    shown += &flowgate.log();
    for secret in ["hunter2", "not-the-password", "cHJveHktdXNlcj"] {
        assert!(!shown.contains(secret), "{secret}");
    }
}

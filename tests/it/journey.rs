//! The complete path of a call: both signature versions, every place for parameters, every request
//! form, retries, relaying.

use std::time::Duration;

use cams_sim::{Key, Settings, Sim, Verdict};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::task::JoinSet;
use tokio::time::Instant;

use crate::caller::{self, Call, KEY, SECRET};
use crate::harness::Harness;

const REAL: &str = "cams.ap-southeast-1.aliyuncs.com";

#[tokio::test]
async fn both_signature_versions_create_a_flow_and_get_the_response_of_cams() {
    let harness = Harness::new("").await;
    for (name, call) in [
        ("v3 flow", Call::v3(&harness.host(), "v3 flow")),
        ("v1 flow", Call::v1(&harness.host(), "v1 flow")),
    ] {
        let reply = call.send(harness.proxy).await;
        assert_eq!(reply.status, 200);
        assert_eq!(reply.json()["Code"], "OK");
        assert_eq!(reply.json()["Data"]["FlowName"], name);
        assert_eq!(reply.header("x-flowgate-error"), None);
    }
    let report = harness.sim.report();
    assert_eq!(
        (report.created, report.accepted, report.rejected),
        (2, 2, 0)
    );
}

#[tokio::test]
async fn the_sent_request_is_rebuilt_and_signed_again_without_the_callers_credentials() {
    let harness = Harness::new("").await;
    let call = Call::v3_with(
        &harness.host(),
        &[
            ("Categories", "[\"SIGN_UP\"]"),
            (
                "FlowName",
                "a b+c~d*e'f(g)h!i/j&k=l%m\"n<中文>é€😀;:@,?#[]\\^`{|}",
            ),
        ],
        |call| {
            call.push("x-acs-security-token", "callers-token");
            call.push("x-acs-accesskey-id", KEY);
            call.push("x-custom", "callers-own");
            call.push("x-acs-unknown", "signed-but-unknown");
        },
        (KEY, SECRET),
    );
    let reply = call.send(harness.proxy).await;
    assert_eq!(
        reply.json()["Data"]["FlowName"],
        "a b+c~d*e'f(g)h!i/j&k=l%m\"n<中文>é€😀;:@,?#[]\\^`{|}"
    );
    let arrivals = harness.sim.arrivals();
    let mut names: Vec<_> = arrivals[0]
        .headers
        .iter()
        .map(|(name, _)| name.to_ascii_lowercase())
        .collect();
    names.sort();
    assert_eq!(
        names,
        [
            "accept",
            "accept-encoding",
            "authorization",
            "content-length",
            "host",
            "user-agent",
            "x-acs-action",
            "x-acs-content-sha256",
            "x-acs-date",
            "x-acs-signature-nonce",
            "x-acs-version"
        ]
    );
    assert_ne!(
        arrivals[0].nonce.as_deref(),
        Some(call.header("x-acs-signature-nonce"))
    );
}

#[tokio::test]
async fn twenty_simultaneous_calls_succeed_within_the_rate() {
    // With the default gap.
    let harness = Harness::new("[learn]").await;
    // Nothing is sent in the first second of a process.
    tokio::time::sleep(Duration::from_millis(1100)).await;
    let mut calls = JoinSet::new();
    for index in 0..20 {
        let name = format!("flow-{index}");
        let call = if index % 2 == 0 {
            Call::v3(&harness.host(), &name)
        } else {
            Call::v1(&harness.host(), &name)
        };
        let proxy = harness.proxy;
        calls.spawn(async move { call.send(proxy).await.status });
    }
    assert_eq!(calls.join_all().await, [200; 20]);
    let report = harness.sim.report();
    assert_eq!(
        (report.created, report.duplicates.len(), report.worst_window),
        (20, 0, 5)
    );
    let metrics = harness.metrics().await;
    assert_eq!(metrics.outcome("acme", "CreateFlow", "ok"), 20.0);
    let tokens = |event| {
        metrics.get(&format!(
            "flowgate_tokens_total{{account=\"acme\",event=\"{event}\"}}"
        ))
    };
    assert_eq!(tokens("granted"), tokens("spent") + tokens("returned"));
    assert_eq!(
        metrics.get("flowgate_tokens_held{account=\"acme\",action=\"CreateFlow\"}"),
        0.0
    );
}

#[tokio::test]
async fn a_throttled_call_is_signed_again_and_retried_after_the_hint() {
    let harness = Harness::new("").await;
    harness
        .sim
        .set_faults(vec!["next=2,throttle,acs-retry-after=700".parse().unwrap()]);
    let start = Instant::now();
    let reply = Call::v3(&harness.host(), "again").send(harness.proxy).await;
    assert_eq!(
        (reply.status, reply.json()["Data"]["FlowName"].as_str()),
        (200, Some("again"))
    );
    assert!(
        start.elapsed() >= Duration::from_millis(1400),
        "two pauses of 700 ms"
    );
    let arrivals = harness.sim.arrivals();
    let verdicts: Vec<_> = arrivals
        .iter()
        .map(|arrival| arrival.verdict.clone())
        .collect();
    assert_eq!(
        verdicts,
        [Verdict::Throttled, Verdict::Throttled, Verdict::Accepted]
    );
    let nonces: std::collections::BTreeSet<_> = arrivals
        .iter()
        .map(|arrival| arrival.nonce.clone())
        .collect();
    assert_eq!(nonces.len(), 3, "a nonce for each attempt");
    let metrics = harness.metrics().await;
    let throttled =
        "flowgate_throttled_total{account=\"acme\",code=\"System.LimitControl\",source=\"body\"}";
    assert_eq!(metrics.get(throttled), 2.0);
    assert_eq!(metrics.outcome("acme", "CreateFlow", "ok"), 1.0);
    assert_eq!(metrics.sum("flowgate_requests_total"), 1.0);
}

#[tokio::test]
async fn after_the_last_attempt_the_response_has_retry_after() {
    let harness = Harness::new("[retry]\nmax_attempts = 2").await;
    harness
        .sim
        .set_faults(vec!["always,throttle,acs-retry-after=300".parse().unwrap()]);
    let reply = Call::v3(&harness.host(), "never").send(harness.proxy).await;
    assert_eq!(
        (reply.status, reply.code().as_str()),
        (400, "System.LimitControl")
    );
    assert_eq!(
        reply.header("x-flowgate-error"),
        None,
        "the answer is CAMS's"
    );
    let after: u64 = reply.header("x-acs-retry-after").unwrap().parse().unwrap();
    assert!(after >= 300, "{after}");
    assert_eq!(harness.sim.report().refused, 2);
    assert_eq!(
        harness
            .metrics()
            .await
            .outcome("acme", "CreateFlow", "throttled"),
        1.0
    );
}

#[tokio::test]
async fn an_outsider_on_the_same_quota_delays_calls_and_loses_none() {
    let limit = cams_sim::Limit {
        outsider_every: Some(Duration::from_millis(500)),
        ..cams_sim::Limit::default()
    };
    let harness = Harness::with(Settings::default().with_limit(limit), "").await;
    let mut calls = JoinSet::new();
    for index in 0..15 {
        let call = Call::v3(&harness.host(), &format!("flow-{index}"));
        let proxy = harness.proxy;
        calls.spawn(async move { call.send(proxy).await.status });
    }
    assert_eq!(calls.join_all().await, [200; 15]);
    let report = harness.sim.report();
    assert_eq!((report.created, report.duplicates.len()), (15, 0));
}

#[tokio::test]
async fn an_action_without_a_limit_does_not_wait() {
    let harness = Harness::new("").await;
    let change = |call: &mut Call| call.set("x-acs-action", "ListInstance");
    for _ in 0..10 {
        let reply = Call::v3_with(&harness.host(), &[], change, (KEY, SECRET))
            .send(harness.proxy)
            .await;
        assert_eq!(
            (reply.status, reply.json()["Code"].as_str()),
            (200, Some("OK"))
        );
    }
    let metrics = harness.metrics().await;
    assert_eq!(metrics.outcome("acme", "other", "ok"), 10.0);
    assert_eq!(metrics.sum("flowgate_tokens_total"), 0.0);
}

#[tokio::test]
async fn two_actions_of_an_account_have_two_lanes() {
    let harness = Harness::new("").await;
    Call::v3(&harness.host(), "one").send(harness.proxy).await;
    let list = |call: &mut Call| call.set("x-acs-action", "ListFlow");
    let reply = Call::v3_with(&harness.host(), &[], list, (KEY, SECRET))
        .send(harness.proxy)
        .await;
    assert_eq!(reply.status, 200);
    assert!(reply.body.contains("one"), "{}", reply.body);
    let lanes = harness.get("/lanes").await.json();
    let mut actions: Vec<_> = lanes["lanes"]
        .as_array()
        .unwrap()
        .iter()
        .map(|lane| lane["action"].clone())
        .collect();
    actions.sort_by_key(ToString::to_string);
    assert_eq!(actions, ["CreateFlow", "ListFlow"]);
}

#[tokio::test]
async fn business_errors_are_returned_unchanged_and_not_retried() {
    let harness = Harness::new("").await;
    for code in [
        "Product.Unsubscript",
        "Ram.PermissionDeny",
        "Unknown.ResourceOwnerId",
        "isv.BUSINESS_LIMIT_CONTROL",
    ] {
        harness.sim.reset();
        harness
            .sim
            .set_faults(vec![format!("next=1,refuse={code}").parse().unwrap()]);
        let reply = Call::v3(&harness.host(), "x").send(harness.proxy).await;
        assert_eq!(reply.code(), code);
        assert_eq!(harness.sim.report().arrived, 1);
    }
    assert_eq!(
        harness
            .metrics()
            .await
            .outcome("acme", "CreateFlow", "upstream_error"),
        4.0
    );
}

#[tokio::test]
async fn every_request_form_of_the_sdks_is_accepted() {
    let harness = Harness::with(Settings::default(), &format!("host = \"{REAL}\"")).await;
    let host = harness.host();
    let absolute = |call: Call| {
        let rest = call.target();
        Call {
            path: format!("http://{REAL}{}", &rest),
            query: Vec::new(),
            ..call
        }
    };
    let chunked = {
        let mut call = Call::v1(&host, "chunked");
        let body = std::mem::take(&mut call.body);
        call.push("transfer-encoding", "chunked");
        let (one, two) = body.split_at(7);
        call.body = format!(
            "{:x}\r\n{}\r\n{:x};x=y\r\n{}\r\n0\r\n\r\n",
            one.len(),
            utf8(one),
            two.len(),
            utf8(two)
        )
        .into();
        call
    };
    let slashes = Call {
        path: "//".into(),
        ..Call::v3(&host, "slashes")
    };
    for (name, call) in [
        (
            "a scheme in the host",
            Call::v3(&format!("http://{host}"), "a scheme in the host"),
        ),
        (
            "a path in the host",
            Call::v3(&format!("{host}/"), "a path in the host"),
        ),
        ("absolute v3", absolute(Call::v3(REAL, "absolute v3"))),
        ("absolute v1", absolute(Call::v1(REAL, "absolute v1"))),
        ("chunked", chunked),
        ("slashes", slashes),
    ] {
        let reply = call.send(harness.proxy).await;
        assert_eq!(
            (reply.status, reply.json()["Data"]["FlowName"].as_str()),
            (200, Some(name)),
            "{reply:?}"
        );
    }
}

fn utf8(bytes: &[u8]) -> &str {
    std::str::from_utf8(bytes).unwrap()
}

#[tokio::test]
async fn a_connection_serves_several_calls() {
    let harness = Harness::new("").await;
    let mut stream = tokio::net::TcpStream::connect(harness.proxy).await.unwrap();
    for index in 0..6 {
        let name = format!("flow-{index}");
        stream
            .write_all(&Call::v3(&harness.host(), &name).bytes())
            .await
            .unwrap();
        let reply = caller::read_reply(&mut stream).await.unwrap();
        assert_eq!(reply.json()["Data"]["FlowName"], name);
    }
    assert_eq!(harness.metrics().await.get("flowgate_connections"), 2.0);
    assert_eq!(
        harness.sim.report().connections,
        1,
        "one connection to CAMS, used again"
    );
}

#[tokio::test]
async fn the_proxy_can_listen_on_a_unix_socket() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("flowgate.sock");
    let harness = Harness::new(&format!("[listen]\nproxy = \"unix:{}\"", path.display())).await;
    let mut stream = tokio::net::UnixStream::connect(&path).await.unwrap();
    let mut call = Call::v3("localhost", "over a socket");
    call.push("connection", "close");
    stream.write_all(&call.bytes()).await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    assert!(
        answer.starts_with("HTTP/1.1 200 OK\r\n") && answer.contains("over a socket"),
        "{answer}"
    );
    harness.app.drain().await;
    assert!(!path.exists(), "the socket is removed");
}

#[tokio::test]
async fn a_client_key_spends_its_accounts_quota_within_its_permissions() {
    let team = "[[clients]]\naccess_key_id = \"team-a\"\naccess_key_secret = { env = \"TEAM\" }\naccount = \"acme\"\n\
                actions = [\"CreateFlow\"]\ncust_space_ids = [\"cams-1\"]";
    let harness = Harness::new(team).await;
    let key = ("team-a", "team-secret-1");
    let host = harness.host();
    let with = |query: &[(&str, &str)]| {
        let mut all = vec![("Categories", "[\"SIGN_UP\"]"), ("FlowName", "x")];
        all.extend_from_slice(query);
        Call::v3_with(&host, &all, |_| {}, key)
    };
    let reply = with(&[("CustSpaceId", "cams-1")]).send(harness.proxy).await;
    assert_eq!(reply.status, 200, "{reply:?}");
    assert!(
        harness.sim.arrivals()[0]
            .headers
            .iter()
            .any(|(_, value)| value.contains(&format!("Credential={KEY},")))
    );
    for query in [
        vec![("CustSpaceId", "cams-2")],
        vec![],
        vec![("CustSpaceId", "cams-1"), ("CustWabaId", "w")],
        vec![("CustSpaceId", "cams-1"), ("IsvCode", "i")],
    ] {
        let reply = with(&query).send(harness.proxy).await;
        assert_eq!(
            (reply.status, reply.code().as_str()),
            (403, "Flowgate.Forbidden"),
            "{query:?}"
        );
    }
    let list = |call: &mut Call| call.set("x-acs-action", "ListFlow");
    let reply = Call::v3_with(&host, &[("CustSpaceId", "cams-1")], list, key)
        .send(harness.proxy)
        .await;
    assert_eq!(
        (reply.status, reply.code().as_str()),
        (403, "Flowgate.Forbidden")
    );
    assert_eq!(harness.sim.report().arrived, 1);
}

#[tokio::test]
async fn a_relayed_account_is_paced_and_gets_retry_after_and_is_not_retried() {
    let settings = Settings {
        keys: vec!["LTAI-relayed:relayed-secret:acme".parse::<Key>().unwrap()],
        ..Settings::default()
    };
    let sim = Sim::start(settings).await.unwrap();
    let upstream = sim.url();
    let toml = format!(
        "[[accounts]]\nid = \"other\"\naliases = [\"LTAI-relayed\"]\n[upstream]\nurl = \"{upstream}\"\nhost = \"{REAL}\""
    );
    let harness = Harness::configured(sim, &toml).await;
    let key = ("LTAI-relayed", "relayed-secret");
    let form = [("Categories", "[\"SIGN_UP\"]"), ("FlowName", "relayed")];

    let v1 = Call::v1_with(&harness.host(), &form, |_| {}, key);
    assert_eq!(v1.send(harness.proxy).await.status, 200);
    let arrival = &harness.sim.arrivals()[0];
    assert_eq!(arrival.target, v1.target(), "the caller's bytes");
    assert_eq!(arrival.body, v1.body);

    // V3 signs the host, so the real name is accepted, in absolute form or in Host.
    let v3 = Call::v3_with(REAL, &form, |_| {}, key);
    assert_eq!(v3.send(harness.proxy).await.status, 200);
    let reply = Call::v3_with(&harness.host(), &form, |_| {}, key)
        .send(harness.proxy)
        .await;
    assert_eq!(
        (reply.status, reply.code().as_str()),
        (400, "Flowgate.SignedHostMismatch")
    );

    harness
        .sim
        .set_faults(vec!["next=1,throttle".parse().unwrap()]);
    let reply = Call::v1_with(&harness.host(), &form, |_| {}, key)
        .send(harness.proxy)
        .await;
    assert_eq!(
        (reply.status, reply.code().as_str()),
        (400, "System.LimitControl")
    );
    assert!(
        reply
            .header("x-acs-retry-after")
            .unwrap()
            .parse::<u64>()
            .unwrap()
            > 0
    );
    assert_eq!(harness.sim.report().refused, 1, "one attempt");
    let metrics = harness.metrics().await;
    assert_eq!(metrics.outcome("other", "CreateFlow", "ok"), 2.0);
    assert_eq!(metrics.outcome("other", "CreateFlow", "throttled"), 1.0);
}

#[tokio::test]
async fn a_tls_upstream_with_a_private_root_is_verified() {
    let authority = rcgen::KeyPair::generate().unwrap();
    let mut params = rcgen::CertificateParams::new(Vec::<String>::new()).unwrap();
    params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    let root = params.self_signed(&authority).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let ca_file = folder.path().join("ca.pem");
    std::fs::write(&ca_file, root.pem()).unwrap();
    let issuer = rcgen::Issuer::new(params, authority);
    let leaf_key = rcgen::KeyPair::generate().unwrap();
    let leaf = rcgen::CertificateParams::new(vec![REAL.to_owned()])
        .unwrap()
        .signed_by(&leaf_key, &issuer)
        .unwrap();
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let key = rustls::pki_types::PrivateKeyDer::try_from(leaf_key.serialize_der()).unwrap();
    let provider = std::sync::Arc::new(rustls::crypto::ring::default_provider());
    let server = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![leaf.der().clone()], key)
        .unwrap();
    let acceptor = tokio_rustls::TlsAcceptor::from(std::sync::Arc::new(server));
    let sim = Sim::new(Settings {
        host: Some(REAL.into()),
        ..Settings::default().with_key(KEY, SECRET, "acme")
    });
    let endpoint = sim.clone();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let acceptor = acceptor.clone();
            let endpoint = endpoint.clone();
            tokio::spawn(async move {
                if let Ok(stream) = acceptor.accept(stream).await {
                    endpoint.serve_connection(stream).await;
                }
            });
        }
    });
    let pinned = format!("connect_to = [\"{address}\"]");
    let url = format!("https://{REAL}");
    let trusting = Harness::in_front_of(
        Sim::start(Settings::default()).await.unwrap(),
        &url,
        &format!("{pinned}\nca_file = \"{}\"", ca_file.display()),
    )
    .await;
    let reply = Call::v3(&trusting.host(), "over TLS")
        .send(trusting.proxy)
        .await;
    assert_eq!(
        (reply.status, reply.json()["Data"]["FlowName"].as_str()),
        (200, Some("over TLS"))
    );

    let doubting = Harness::in_front_of(
        Sim::start(Settings::default()).await.unwrap(),
        &url,
        &format!("{pinned}\n[queue]\nhold = \"3s\""),
    )
    .await;
    let reply = Call::v3(&doubting.host(), "unknown root")
        .send(doubting.proxy)
        .await;
    assert_eq!(
        (reply.status, reply.code().as_str()),
        (503, "Flowgate.UpstreamUnreachable")
    );
    assert_eq!(sim.report().created, 1);
}

#[tokio::test]
async fn the_listen_backlog_holds_a_crowd() {
    let harness = Harness::new("").await;
    // Nothing is awaited here, so nothing is accepted meanwhile.
    let connect =
        |_| std::net::TcpStream::connect_timeout(&harness.proxy, Duration::from_millis(500));
    let crowd: Result<Vec<_>, _> = (0..300).map(connect).collect();
    assert_eq!(crowd.unwrap().len(), 300);
}

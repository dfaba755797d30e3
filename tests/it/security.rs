//! Security properties of the whole program: nonces over a restart, the dialled address, and its
//! limits under load.

use std::time::Duration;

use cams_sim::{Running, Settings, Sim};
use rustix::process::{Resource, Rlimit, getrlimit, prlimit};
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;
use tokio::process::Command;
use tokio::time::sleep;

use crate::caller::{self, Call, KEY, SECRET};
use crate::harness::{Harness, Metrics};
use crate::process::{PROXY_VARIABLES, Process};

async fn endpoint() -> Running {
    Sim::start(Settings::default().with_key(KEY, SECRET, "acme"))
        .await
        .unwrap()
}

#[tokio::test]
async fn a_replay_is_refused_after_a_restart() {
    let sim = endpoint().await;
    let first = Process::start(&sim, "").await;
    // The next process has another port, and version 1 does not sign the host.
    let call = Call::v1(&first.proxy.to_string(), "once");
    assert_eq!(call.send(first.proxy).await.status, 200);
    first.kill().await;
    // A process refuses stamps from before its start, whose nonces it cannot know.
    sleep(Duration::from_secs(6)).await;
    let second = Process::start(&sim, "").await;
    let reply = call.send(second.proxy).await;
    assert_eq!(
        (reply.status, reply.code().as_str()),
        (400, "InvalidTimeStamp.Expired")
    );
    assert_eq!(sim.report().arrived, 1);
}

#[tokio::test]
async fn proxy_variables_are_ignored() {
    let sim = endpoint().await;
    let elsewhere = endpoint().await;
    let url = elsewhere.url();
    let flowgate =
        Process::with_env(&sim, "", &PROXY_VARIABLES.map(|name| (name, url.as_str()))).await;
    assert_eq!(
        Call::v3(&flowgate.proxy.to_string(), "x")
            .send(flowgate.proxy)
            .await
            .status,
        200
    );
    assert_eq!(
        (sim.report().created, elsewhere.report().connections),
        (1, 0)
    );
}

#[tokio::test]
async fn a_proxy_variable_that_is_not_read_is_named_by_check_and_at_start() {
    let expected = "HTTPS_PROXY, all_proxy: not read by Flowgate, which connects to CAMS directly: \
                    set upstream.proxy to use a proxy";
    let proxies = [
        ("HTTPS_PROXY", "http://user:hunter2@proxy.test:3128"),
        ("all_proxy", "socks5://proxy.test"),
    ];
    let check = async |more: &[(&str, &str)]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_flowgate"));
        let output = command
            .env_clear()
            .arg("check")
            .envs(proxies)
            .envs(more.iter().copied())
            .output()
            .await
            .unwrap();
        assert!(output.status.success());
        String::from_utf8([output.stdout, output.stderr].concat()).unwrap()
    };
    let said = check(&[]).await;
    assert!(
        said.contains(expected) && !said.contains("hunter2"),
        "{said}"
    );
    let proxy = ("FLOWGATE_UPSTREAM__PROXY", "http://proxy.test:3128");
    assert!(!check(&[proxy]).await.contains("HTTPS_PROXY"));
    for (exempt, is_warned) in [
        ("localhost, .aliyuncs.com", false),
        ("*", false),
        ("uncs.com,", true),
    ] {
        let said = check(&[("no_proxy", exempt)]).await;
        assert_eq!(said.contains("HTTPS_PROXY"), is_warned, "{exempt}: {said}");
    }
    // The simulator is on this machine, where no proxy is expected.
    let loopback = ("FLOWGATE_UPSTREAM__URL", "http://127.0.0.1:1");
    assert!(!check(&[loopback]).await.contains("HTTPS_PROXY"));
    let flowgate = Process::from_env(&proxies).await;
    let warnings = flowgate.logged("configuration", 1).await;
    assert!(
        warnings.iter().any(|event| event["warning"] == expected),
        "{warnings:?}"
    );
}

/// Starts with this limit of descriptors.
async fn limited(sim: &Running, descriptors: u32) -> Process {
    let mut command = Command::new("prlimit");
    command
        .arg(format!("--nofile={descriptors}"))
        .arg(env!("CARGO_BIN_EXE_flowgate"));
    let env = [
        ("FLOWGATE_LISTEN__PROXY", "127.0.0.1:0"),
        ("FLOWGATE_LISTEN__ADMIN", "127.0.0.1:0"),
        ("FLOWGATE_LOG__FORMAT", "json"),
        ("FLOWGATE_UPSTREAM__URL", &sim.url()),
        ("ALIBABA_CLOUD_ACCESS_KEY_ID", KEY),
        ("ALIBABA_CLOUD_ACCESS_KEY_SECRET", SECRET),
    ];
    command.envs(env);
    Process::launch(command, tempfile::tempdir().unwrap()).await
}

#[tokio::test]
async fn file_descriptors_are_reserved_for_operators_and_cams() {
    let sim = endpoint().await;
    let flowgate = limited(&sim, 300).await;
    let mut streams = Vec::new();
    for _ in 0..400 {
        streams.push(TcpStream::connect(flowgate.proxy).await.unwrap());
    }
    let turned_away = "flowgate_connection_errors_total{kind=\"too_many\"}";
    Metrics::until(flowgate.admin, turned_away, |count| count >= 250.0).await;
    // An accepted caller is served, over a connection that the endpoint still gets.
    let first = &mut streams[0];
    first
        .write_all(&Call::v3(&flowgate.proxy.to_string(), "x").bytes())
        .await
        .unwrap();
    assert_eq!(caller::read_reply(first).await.unwrap().status, 200);
    assert_eq!(
        Metrics::of(flowgate.admin)
            .await
            .get("flowgate_connection_errors_total{kind=\"accept\"}"),
        0.0
    );
}

#[tokio::test]
async fn a_listener_survives_running_out_of_descriptors() {
    let sim = endpoint().await;
    let flowgate = Process::start(&sim, "").await;
    let open = std::fs::read_dir(format!("/proc/{}/fd", flowgate.id()))
        .unwrap()
        .count();
    let few = Rlimit {
        current: Some(u64::try_from(open).unwrap() + 4),
        maximum: getrlimit(Resource::Nofile).maximum,
    };
    let before = prlimit(Some(flowgate.pid()), Resource::Nofile, few).unwrap();
    let mut streams = Vec::new();
    for _ in 0..20 {
        streams.push(TcpStream::connect(flowgate.proxy).await.unwrap());
    }
    flowgate.logged("cannot accept a connection", 3).await;
    drop(streams);
    let reply = caller::exchange(flowgate.proxy, b"GET / HTTP/1.1\r\nhost: x\r\n\r\n")
        .await
        .unwrap();
    assert_eq!(reply.code(), "IncompleteSignature", "it answers again");
    prlimit(Some(flowgate.pid()), Resource::Nofile, before).unwrap();
    assert_eq!(
        Call::v3(&flowgate.proxy.to_string(), "x")
            .send(flowgate.proxy)
            .await
            .status,
        200
    );
    assert!(
        Metrics::of(flowgate.admin)
            .await
            .get("flowgate_connection_errors_total{kind=\"accept\"}")
            >= 3.0
    );
}

#[tokio::test]
async fn incoming_bodies_count_against_their_clients_part() {
    const BODY: usize = 200 * 1024;
    let team = "[listen]\nmax_body = \"256KiB\"\n[queue]\nmax_bytes = \"512KiB\"\n[[clients]]\naccess_key_id = \"team-a\"\naccess_key_secret = { env = \"TEAM\" }\n\
                account = \"acme\"\nactions = [\"*\"]";
    let harness = Harness::new(team).await;
    let form = |call: &mut Call| {
        call.push("content-type", "application/x-www-form-urlencoded");
        call.body = b"FlowName=x&Categories=%5B%22OTHER%22%5D&x=".to_vec();
        call.body.resize(BODY, b'x');
    };
    let call = |signer| Call::v3_with(&harness.host(), &[], form, signer);
    let begun = |signer| {
        let mut bytes = call(signer).bytes();
        bytes.truncate(bytes.len() - 1);
        bytes
    };
    let mut stream = TcpStream::connect(harness.proxy).await.unwrap();
    stream
        .write_all(&begun(("team-a", "team-secret-1")))
        .await
        .unwrap();
    harness
        .until("flowgate_queued_bytes", (BODY - 1) as f64)
        .await;
    let refused = caller::exchange(harness.proxy, &begun(("team-a", "team-secret-1")))
        .await
        .unwrap();
    assert_eq!(
        (refused.status, refused.code().as_str()),
        (400, "System.LimitControl"),
        "its half is taken"
    );
    assert_eq!(
        call((KEY, SECRET)).send(harness.proxy).await.status,
        200,
        "the others have theirs"
    );
    drop(stream);
    harness.until("flowgate_queued_bytes", 0.0).await;
    assert_eq!(
        call(("team-a", "team-secret-1"))
            .send(harness.proxy)
            .await
            .status,
        200
    );
}

#[tokio::test]
async fn a_replay_is_refused_before_its_body_is_read() {
    let harness = Harness::new("").await;
    let form = |call: &mut Call| {
        call.push("content-type", "application/x-www-form-urlencoded");
        call.body = b"FlowName=x&Categories=%5B%22OTHER%22%5D".to_vec();
    };
    let call = Call::v3_with(&harness.host(), &[], form, (KEY, SECRET));
    assert_eq!(call.send(harness.proxy).await.status, 200);
    let mut head = call.bytes();
    head.truncate(head.len() - call.body.len());
    // No byte of the body is sent.
    assert_eq!(
        caller::exchange(harness.proxy, &head).await.unwrap().code(),
        "SignatureNonceUsed"
    );
}

#[tokio::test]
async fn bodies_of_unverified_callers_have_a_budget_of_their_own() {
    const BODY: usize = 63 * 1024;
    let harness = Harness::new("[listen]\nmax_body = \"64KiB\"\nmax_unverified = \"256KiB\"").await;
    let begun = |name: &str| {
        let mut call = Call::v1(&harness.host(), name);
        call.body.extend([b'x'; BODY]);
        let mut bytes = call.bytes();
        bytes.truncate(bytes.len() - 1);
        bytes
    };
    let mut streams = Vec::new();
    for name in ["one", "two", "three", "four"] {
        let mut stream = TcpStream::connect(harness.proxy).await.unwrap();
        stream.write_all(&begun(name)).await.unwrap();
        streams.push(stream);
    }
    harness
        .until("flowgate_unverified_bytes", 4.0 * BODY as f64)
        .await;
    let refused = caller::exchange(harness.proxy, &begun("five"))
        .await
        .unwrap();
    assert_eq!(
        (refused.status, refused.code().as_str()),
        (400, "System.LimitControl")
    );
    assert!(refused.header("x-acs-retry-after").is_some());
    let form = |call: &mut Call| {
        call.push("content-type", "application/x-www-form-urlencoded");
        call.body = b"FlowName=x&Categories=%5B%22OTHER%22%5D".to_vec();
    };
    let proved = Call::v3_with(&harness.host(), &[], form, (KEY, SECRET));
    assert_eq!(
        proved.send(harness.proxy).await.status,
        200,
        "verified callers have another budget"
    );
    drop(streams);
    Metrics::until(
        harness.app.admin_address().unwrap(),
        "flowgate_unverified_bytes",
        |bytes| bytes == 0.0,
    )
    .await;
    assert_eq!(
        Call::v1(&harness.host(), "with room")
            .send(harness.proxy)
            .await
            .status,
        200
    );
}

//! A drain: readiness goes down first, calls that fit into the grace finish within the rate, and
//! the others are refused immediately.

use std::time::Duration;

use cams_sim::{Settings, Sim};
use rustix::fs::{CWD, FileType, Mode, OFlags};
use rustix::process::{Signal, kill_process};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::task::{JoinHandle, JoinSet};
use tokio::time::Instant;

use crate::caller::{Call, KEY, Reply, SECRET, read_reply};
use crate::harness::{Harness, Metrics, get};
use crate::process::Process;
use crate::redis::Redis;

/// The bytes that waiting calls hold.
const HELD: &str = "flowgate_queued_bytes";

async fn together(harness: &Harness, count: usize) -> JoinSet<Reply> {
    let mut calls = JoinSet::new();
    for index in 0..count {
        let call = Call::v3(&harness.host(), &format!("flow-{index}"));
        let proxy = harness.proxy;
        calls.spawn(async move { call.send(proxy).await });
    }
    harness
        .until(
            "flowgate_queued{account=\"acme\",action=\"CreateFlow\"}",
            count as f64 - 10.0,
        )
        .await;
    calls
}

#[tokio::test]
async fn calls_that_fit_into_the_grace_finish_and_others_are_refused() {
    // All of them would take eleven seconds. Time for an answer is kept, which on a busy machine is long.
    let harness = Harness::new("[drain]\ngrace = \"6s\"").await;
    let calls = together(&harness, 60).await;
    let proxy = harness.proxy;
    harness.app.drain().await;
    assert!(
        TcpStream::connect(proxy).await.is_err(),
        "the listener is closed"
    );
    let replies = calls.join_all().await;
    let ok = replies.iter().filter(|reply| reply.status == 200).count();
    let refused: Vec<_> = replies.iter().filter(|reply| reply.status != 200).collect();
    assert!((10..=40).contains(&ok), "{ok} of 60 fit into six seconds");
    assert_eq!(ok + refused.len(), 60, "every call has a response");
    for reply in refused {
        assert_eq!(
            (reply.status, reply.code().as_str()),
            (503, "Flowgate.Draining")
        );
        assert!(
            reply.header("x-acs-retry-after").is_some() && reply.header("retry-after").is_some()
        );
    }
    let report = harness.sim.report();
    assert_eq!((report.created as usize, report.worst_window), (ok, 5));
}

#[tokio::test]
async fn calls_in_flight_at_the_end_of_the_grace_get_outcome_unknown() {
    let settings = Settings {
        latency: Duration::from_secs(20),
        ..Settings::default()
    };
    let harness = Harness::with(settings, "[drain]\ngrace = \"200ms\"").await;
    let call = Call::v3(&harness.host(), "slow");
    let proxy = harness.proxy;
    let calling = tokio::spawn(async move { call.send(proxy).await });
    harness
        .until(
            "flowgate_in_flight{account=\"acme\",action=\"CreateFlow\"}",
            1.0,
        )
        .await;
    harness.app.drain().await;
    let reply = calling.await.unwrap();
    assert_eq!(
        (reply.status, reply.code().as_str()),
        (409, "Flowgate.OutcomeUnknown")
    );
    assert_eq!(reply.header("x-acs-retry-after"), None);
}

/// A CreateFlow of one name, with or without an idempotency key.
fn order(process: &Process, key: Option<&str>) -> JoinHandle<Reply> {
    let query = [("Categories", "[\"SIGN_UP\"]"), ("FlowName", "slow")];
    let with_key = |call: &mut Call| {
        if let Some(key) = key {
            call.push("idempotency-key", key);
        }
    };
    let proxy = process.proxy;
    let call = Call::v3_with(&proxy.to_string(), &query, with_key, (KEY, SECRET));
    tokio::spawn(async move { call.send(proxy).await })
}

#[tokio::test]
async fn callers_are_told_to_repeat_only_if_their_key_is_known_after_the_drain() {
    let redis = Redis::start().await;
    let folder = tempfile::tempdir().unwrap();
    let journal = folder.path().join("journal");
    let journal = format!("[journal]\npath = \"{}\"\n", journal.display());
    let store = format!(
        "[quota]\nstore = \"{}\"\nstore_timeout = \"10s\"\n",
        redis.url()
    );
    for (keeper, is_kept) in [(journal, true), (store, true), (String::new(), false)] {
        let settings = Settings {
            latency: Duration::from_secs(60),
            ..Settings::default()
        };
        let sim = Sim::start(settings.with_key(KEY, SECRET, "acme"))
            .await
            .unwrap();
        let toml = format!("flow_names = \"unique\"\n[drain]\ngrace = \"500ms\"\n{keeper}");
        let process = Process::start(&sim, &toml).await;
        let first = order(&process, Some("order-1"));
        let unkeyed = order(&process, None);
        while sim.report().arrived < 2 {
            tokio::task::yield_now().await;
        }
        let held = Metrics::of(process.admin).await.get(HELD);
        let repetition = order(&process, Some("order-1"));
        Metrics::until(process.admin, HELD, |bytes| bytes > held).await;
        assert!(process.terminate().await.success());
        let state = if is_kept { Some("pending") } else { None };
        for (reply, state) in [(first, state), (repetition, state), (unkeyed, None)] {
            let reply = reply.await.unwrap();
            let seen = reply.header("x-flowgate-idempotency");
            assert_eq!((reply.status, seen), (409, state), "{keeper} {reply:?}");
            assert_eq!(reply.code(), "Flowgate.OutcomeUnknown");
            let is_told = reply.header("retry-after").is_some();
            assert_eq!(is_told, state.is_some(), "{keeper} {reply:?}");
            assert_eq!(is_told, reply.body.contains("Repeat the call unchanged"));
        }
        assert_eq!(sim.report().arrived, 2);
    }
}

#[tokio::test]
async fn readiness_goes_down_first_and_responses_close_their_connections() {
    let harness = Harness::new("[drain]\ndelay = \"3s\"").await;
    assert_eq!(harness.get("/readyz").await.status, 200);
    let reply = Call::v3(&harness.host(), "before")
        .send(harness.proxy)
        .await;
    assert_eq!(reply.header("connection"), None);
    let admin = harness.app.admin_address().unwrap();
    let proxy = harness.proxy;
    let host = harness.host();
    let drain = tokio::spawn(harness.app.drain());
    while get(admin, "/readyz").await.status == 200 {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    assert_eq!(get(admin, "/livez").await.status, 200);
    let reply = Call::v3(&host, "during").send(proxy).await;
    assert_eq!(
        (reply.status, reply.header("connection")),
        (200, Some("close"))
    );
    drain.await.unwrap();
}

#[tokio::test]
async fn a_drain_answers_new_connections_and_does_not_wait_for_silent_ones() {
    let grace = Duration::from_secs(20);
    let harness = Harness::new("[drain]\ngrace = \"20s\"").await;
    let proxy = harness.proxy;
    let host = harness.host();
    let mut quick = TcpStream::connect(proxy).await.unwrap();
    let mut silent = TcpStream::connect(proxy).await.unwrap();
    // Later callers are admitted later.
    assert_eq!(Call::v3(&host, "later").send(proxy).await.status, 200);
    let start = Instant::now();
    let drain = tokio::spawn(harness.app.drain());
    while TcpStream::connect(proxy).await.is_ok() {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    quick
        .write_all(&Call::v3(&host, "quick").bytes())
        .await
        .unwrap();
    let reply = read_reply(&mut quick).await.expect("an answer");
    assert_eq!(
        (reply.status, reply.header("connection")),
        (200, Some("close"))
    );
    drain.await.unwrap();
    assert!(start.elapsed() < grace, "{:?}", start.elapsed());
    assert_eq!(silent.read(&mut [0]).await.unwrap(), 0);
}

#[tokio::test]
async fn the_admin_port_works_until_the_end_of_the_drain() {
    let harness = Harness::new("[drain]\ngrace = \"4s\"").await;
    let calls = together(&harness, 20).await;
    let admin = harness.app.admin_address().unwrap();
    let drain = tokio::spawn(harness.app.drain());
    while get(admin, "/readyz").await.status == 200 {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    for path in ["/metrics", "/livez", "/lanes"] {
        assert_eq!(get(admin, path).await.status, 200, "{path}");
    }
    assert_eq!(get(admin, "/readyz").await.body, "draining\n");
    assert!(!drain.is_finished());
    calls.join_all().await;
    drain.await.unwrap();
}

#[tokio::test]
async fn no_attempt_is_sent_that_could_not_be_answered_within_the_grace() {
    let settings = Settings {
        latency: Duration::from_millis(400),
        ..Settings::default()
    };
    let harness = Harness::with(settings, "[drain]\ngrace = \"3s\"").await;
    let calls = together(&harness, 30).await;
    harness.app.drain().await;
    let mut statuses: Vec<_> = calls
        .join_all()
        .await
        .iter()
        .map(|reply| reply.status)
        .collect();
    statuses.sort_unstable();
    statuses.dedup();
    assert_eq!(statuses, [200, 503], "answered or refused, none unknown");
}

#[tokio::test]
async fn a_drain_waits_for_attempts_of_disconnected_callers() {
    let harness = Harness::new("[drain]\ngrace = \"60s\"").await;
    harness.sim.set_faults(vec!["next=1,held".parse().unwrap()]);
    let mut stream = TcpStream::connect(harness.proxy).await.unwrap();
    stream
        .write_all(&Call::v3(&harness.host(), "x").bytes())
        .await
        .unwrap();
    harness
        .until(
            "flowgate_in_flight{account=\"acme\",action=\"CreateFlow\"}",
            1.0,
        )
        .await;
    drop(stream);
    harness
        .until(
            "flowgate_cancelled_total{account=\"acme\",stage=\"in_flight\"}",
            1.0,
        )
        .await;
    let mut drain = std::pin::pin!(harness.app.drain());
    let waited = tokio::time::timeout(Duration::from_millis(500), &mut drain).await;
    assert!(waited.is_err(), "the drain waits for the attempt");
    harness.sim.set_faults(vec![]);
    drain.await;
    assert_eq!(harness.sim.report().created, 1);
}

#[tokio::test]
async fn a_hand_over_stops_sending_immediately() {
    let harness = Harness::new("[drain]\ndelay = \"2s\"\ngrace = \"3s\"\nhand_over = true").await;
    let calls = together(&harness, 30).await;
    let proxy = harness.proxy;
    let host = harness.host();
    let draining = tokio::spawn(harness.app.drain());
    let replies = calls.join_all().await;
    let refused: Vec<_> = replies.iter().filter(|reply| reply.status != 200).collect();
    assert!(
        refused
            .iter()
            .all(|reply| (reply.status, reply.code().as_str()) == (503, "Flowgate.Draining"))
    );
    assert!(
        refused
            .iter()
            .all(|reply| reply.header("x-acs-retry-after").is_some())
    );
    assert!(
        !draining.is_finished(),
        "they were refused before the listener closed"
    );
    let created = harness.sim.report().created as usize;
    assert_eq!(created + refused.len(), 30);
    assert_eq!(
        Call::v3(&host, "late").send(proxy).await.code(),
        "Flowgate.Draining"
    );
    // Actions without a limit are still sent.
    let free = Call::v3_with(
        &host,
        &[],
        |call| call.set("x-acs-action", "GetAccountInfo"),
        (KEY, SECRET),
    );
    assert_ne!(free.send(proxy).await.code(), "Flowgate.Draining");
    draining.await.unwrap();
    assert_eq!(
        harness.sim.report().created as usize,
        created,
        "nothing of a limited action was sent any more"
    );
}

#[tokio::test]
async fn a_hanging_file_does_not_delay_the_exit() {
    let sim = Sim::start(Settings::default().with_key(KEY, SECRET, "acme"))
        .await
        .unwrap();
    let flowgate = Process::start(&sim, "").await;
    let config = flowgate.folder.path().join("flowgate.toml");
    let pipe = flowgate.folder.path().join("pipe");
    // Reading a pipe lasts until all writers have closed it, as on a hanging mount.
    rustix::fs::mknodat(CWD, &pipe, FileType::Fifo, Mode::RUSR | Mode::WUSR, 0).unwrap();
    std::fs::rename(&pipe, &config).unwrap();
    flowgate.signal("-HUP").await;
    // Opening a pipe for writing fails until it has a reader.
    let give_up = Instant::now() + Duration::from_secs(30);
    let _writer = loop {
        match rustix::fs::open(&config, OFlags::WRONLY | OFlags::NONBLOCK, Mode::empty()) {
            Ok(writer) => break writer,
            Err(error) => assert!(Instant::now() < give_up, "the pipe has no reader: {error}"),
        }
        tokio::task::yield_now().await;
    };
    let ended = tokio::time::timeout(Duration::from_secs(30), flowgate.terminate()).await;
    assert!(ended.expect("it ends").success());
}

/// `timeout` of coreutils sends a signal to the process and to its group.
#[tokio::test]
async fn a_copy_of_the_signal_does_not_end_the_drain_and_a_later_signal_does() {
    for (again_after, status) in [(0, 200), (1500, 0)] {
        let settings = Settings {
            latency: Duration::from_secs(4),
            ..Settings::default()
        };
        let sim = Sim::start(settings.with_key(KEY, SECRET, "acme"))
            .await
            .unwrap();
        let process = Process::start(&sim, "").await;
        let mut stream = process.come("x").await;
        Metrics::until(
            process.admin,
            "flowgate_tokens_total{account=\"acme\",event=\"spent\"}",
            |spent| spent == 1.0,
        )
        .await;
        kill_process(process.pid(), Signal::TERM).unwrap();
        process
            .logged("draining; a second signal exits immediately", 1)
            .await;
        tokio::time::sleep(Duration::from_millis(again_after)).await;
        kill_process(process.pid(), Signal::TERM).unwrap();
        let reply = read_reply(&mut stream).await;
        assert_eq!(
            reply.map_or(0, |reply| reply.status),
            status,
            "the second signal after {again_after} ms"
        );
    }
}

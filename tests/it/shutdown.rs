//! A drain: readiness goes first, what fits into the grace finishes at the legal rate, the rest is told at once.

use std::time::Duration;

use cams_sim::{Settings, Sim};
use rustix::fs::{CWD, FileType, Mode, OFlags};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio::time::Instant;

use crate::caller::{Call, KEY, Reply, SECRET, read_reply};
use crate::process::Process;
use crate::world::{World, get};

async fn together(world: &World, count: usize) -> JoinSet<Reply> {
    let mut calls = JoinSet::new();
    for index in 0..count {
        let (call, proxy) = (
            Call::v3(&world.host(), &format!("flow-{index}")),
            world.proxy,
        );
        calls.spawn(async move { call.send(proxy).await });
    }
    world
        .until(
            "flowgate_queued{account=\"acme\",action=\"CreateFlow\"}",
            count as f64 - 10.0,
        )
        .await;
    calls
}

#[tokio::test]
async fn what_fits_finishes_and_the_rest_is_told_at_once() {
    let world = World::new("[drain]\ngrace = \"3s\"").await;
    let calls = together(&world, 60).await;
    let proxy = world.proxy;
    let start = Instant::now();
    world.app.drain().await;
    assert!(
        start.elapsed() < Duration::from_secs(5),
        "{:?}",
        start.elapsed()
    );
    assert!(
        TcpStream::connect(proxy).await.is_err(),
        "nobody listens any more"
    );
    let replies = calls.join_all().await;
    let ok = replies.iter().filter(|reply| reply.status == 200).count();
    let told: Vec<_> = replies.iter().filter(|reply| reply.status != 200).collect();
    assert!((10..=20).contains(&ok), "{ok} of 60 fit into three seconds");
    assert_eq!(ok + told.len(), 60, "nobody is left without an answer");
    for reply in told {
        assert_eq!(
            (reply.status, reply.code().as_str()),
            (503, "Flowgate.Draining")
        );
        assert!(
            reply.header("x-acs-retry-after").is_some() && reply.header("retry-after").is_some()
        );
    }
    let report = world.sim.report();
    assert_eq!((report.created as usize, report.worst_window), (ok, 5));
}

#[tokio::test]
async fn what_is_in_flight_when_the_grace_ends_is_answered_as_unknown() {
    let settings = Settings {
        latency: Duration::from_secs(20),
        ..Settings::default()
    };
    let world = World::with(settings, "[drain]\ngrace = \"200ms\"").await;
    let (call, proxy) = (Call::v3(&world.host(), "slow"), world.proxy);
    let calling = tokio::spawn(async move { call.send(proxy).await });
    world
        .until(
            "flowgate_in_flight{account=\"acme\",action=\"CreateFlow\"}",
            1.0,
        )
        .await;
    world.app.drain().await;
    let reply = calling.await.unwrap();
    assert_eq!(
        (reply.status, reply.code().as_str()),
        (409, "Flowgate.OutcomeUnknown")
    );
    assert_eq!(reply.header("x-acs-retry-after"), None);
}

#[tokio::test]
async fn readiness_goes_first_and_answers_say_close_while_it_still_accepts() {
    let world = World::new("[drain]\ndelay = \"3s\"").await;
    assert_eq!(world.get("/readyz").await.status, 200);
    let reply = Call::v3(&world.host(), "before").send(world.proxy).await;
    assert_eq!(reply.header("connection"), None);
    let (admin, proxy) = (world.app.admin_address().unwrap(), world.proxy);
    let host = world.host();
    let drain = tokio::spawn(world.app.drain());
    while get(admin, "/readyz").await.status == 200 {
        tokio::task::yield_now().await;
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
async fn whoever_has_just_been_let_in_is_answered_and_who_says_nothing_is_not_waited_for() {
    let grace = Duration::from_secs(20);
    let world = World::new("[drain]\ngrace = \"20s\"").await;
    let (proxy, host) = (world.proxy, world.host());
    let mut quick = TcpStream::connect(proxy).await.unwrap();
    let mut silent = TcpStream::connect(proxy).await.unwrap();
    // Who comes later is let in later.
    assert_eq!(Call::v3(&host, "later").send(proxy).await.status, 200);
    let start = Instant::now();
    let drain = tokio::spawn(world.app.drain());
    while TcpStream::connect(proxy).await.is_ok() {
        tokio::task::yield_now().await;
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
async fn operators_see_the_drain_until_its_end() {
    let world = World::new("[drain]\ngrace = \"4s\"").await;
    let calls = together(&world, 20).await;
    let admin = world.app.admin_address().unwrap();
    let drain = tokio::spawn(world.app.drain());
    while get(admin, "/readyz").await.status == 200 {
        tokio::task::yield_now().await;
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
async fn nothing_is_sent_that_could_not_be_answered_within_the_grace() {
    let settings = Settings {
        latency: Duration::from_millis(400),
        ..Settings::default()
    };
    let world = World::with(settings, "[drain]\ngrace = \"3s\"").await;
    let calls = together(&world, 30).await;
    world.app.drain().await;
    let mut statuses: Vec<_> = calls
        .join_all()
        .await
        .iter()
        .map(|reply| reply.status)
        .collect();
    statuses.sort_unstable();
    statuses.dedup();
    assert_eq!(statuses, [200, 503], "answered or told, nothing unknown");
}

#[tokio::test]
async fn an_attempt_whose_caller_has_gone_is_waited_for() {
    let settings = Settings {
        latency: Duration::from_millis(1500),
        ..Settings::default()
    };
    let world = World::with(settings, "[drain]\ngrace = \"20s\"").await;
    let mut stream = TcpStream::connect(world.proxy).await.unwrap();
    stream
        .write_all(&Call::v3(&world.host(), "x").bytes())
        .await
        .unwrap();
    world
        .until(
            "flowgate_in_flight{account=\"acme\",action=\"CreateFlow\"}",
            1.0,
        )
        .await;
    drop(stream);
    world
        .until(
            "flowgate_cancelled_total{account=\"acme\",stage=\"in_flight\"}",
            1.0,
        )
        .await;
    let start = Instant::now();
    world.app.drain().await;
    assert!(
        start.elapsed() > Duration::from_millis(500),
        "{:?}",
        start.elapsed()
    );
    assert_eq!(world.sim.report().created, 1);
}

#[tokio::test]
async fn a_hand_over_leaves_the_quota_to_the_successor_at_once() {
    let world = World::new("[drain]\ndelay = \"2s\"\ngrace = \"3s\"\nhand_over = true").await;
    let calls = together(&world, 30).await;
    let (proxy, host) = (world.proxy, world.host());
    let draining = tokio::spawn(world.app.drain());
    let replies = calls.join_all().await;
    let told: Vec<_> = replies.iter().filter(|reply| reply.status != 200).collect();
    assert!(
        told.iter()
            .all(|reply| (reply.status, reply.code().as_str()) == (503, "Flowgate.Draining"))
    );
    assert!(
        told.iter()
            .all(|reply| reply.header("x-acs-retry-after").is_some())
    );
    assert!(
        !draining.is_finished(),
        "they were told while it still accepts"
    );
    let created = world.sim.report().created as usize;
    assert_eq!(created + told.len(), 30);
    assert_eq!(
        Call::v3(&host, "late").send(proxy).await.code(),
        "Flowgate.Draining"
    );
    // What has no limit goes on.
    let free = Call::v3_with(
        &host,
        &[],
        |call| call.set("x-acs-action", "GetAccountInfo"),
        (KEY, SECRET),
    );
    assert_ne!(free.send(proxy).await.code(), "Flowgate.Draining");
    draining.await.unwrap();
    assert_eq!(
        world.sim.report().created as usize,
        created,
        "nothing of a limited action was sent any more"
    );
}

#[tokio::test]
async fn a_file_that_cannot_be_read_to_its_end_does_not_keep_the_process() {
    let sim = Sim::start(Settings::default().with_key(KEY, SECRET, "acme"))
        .await
        .unwrap();
    let flowgate = Process::start(&sim, "").await;
    let (config, pipe) = (
        flowgate.folder.path().join("flowgate.toml"),
        flowgate.folder.path().join("pipe"),
    );
    // Reading a pipe lasts for as long as somebody may write, as on a mount that hangs.
    rustix::fs::mknodat(CWD, &pipe, FileType::Fifo, Mode::RUSR | Mode::WUSR, 0).unwrap();
    std::fs::rename(&pipe, &config).unwrap();
    flowgate.signal("-HUP").await;
    // Without a reader a pipe cannot be opened in this way.
    let give_up = Instant::now() + Duration::from_secs(30);
    let _writer = loop {
        match rustix::fs::open(&config, OFlags::WRONLY | OFlags::NONBLOCK, Mode::empty()) {
            Ok(writer) => break writer,
            Err(error) => assert!(Instant::now() < give_up, "nobody reads the pipe: {error}"),
        }
        tokio::task::yield_now().await;
    };
    let ended = tokio::time::timeout(Duration::from_secs(30), flowgate.terminate()).await;
    assert!(ended.expect("it ends").success());
}

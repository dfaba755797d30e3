//! Memory, descriptors and threads of a process. They can only be measured in a process of its own.

use std::time::Duration;

use cams_sim::{Running, Settings, Sim};
use tokio::task::JoinSet;

use crate::caller::{Call, KEY, SECRET};
use crate::harness::{self, GAP, Metrics};
use crate::process::Process;

const QUEUED: &str = "flowgate_queued{account=\"acme\",action=\"CreateFlow\"}";

/// Sends a thousand calls, a few of which stay; the others hang up together.
async fn burst(flowgate: &Process, sim: &Running, round: usize) {
    assert!(
        flowgate::process::hardening::raise_open_files().unwrap() > 4000,
        "room for two thousand sockets"
    );
    sim.set_faults(vec![
        "next=1,throttle,acs-retry-after=8000".parse().unwrap(),
    ]);
    let stays = flowgate.come(&format!("first-{round}")).await;
    let throttled =
        "flowgate_throttled_total{account=\"acme\",code=\"System.LimitControl\",source=\"body\"}";
    Metrics::until(flowgate.admin, throttled, |times| times >= round as f64).await;
    let mut go = Vec::new();
    for index in 0..1000 {
        go.push(flowgate.come(&format!("goes-{round}-{index}")).await);
    }
    let mut stay = JoinSet::new();
    for index in 0..10 {
        let call = Call::v3(
            &flowgate.proxy.to_string(),
            &format!("stays-{round}-{index}"),
        );
        let proxy = flowgate.proxy;
        stay.spawn(async move { call.send(proxy).await.status });
    }
    Metrics::until(flowgate.admin, QUEUED, |queued| queued >= 1011.0).await;
    tokio::time::sleep(Duration::from_millis(100)).await;
    drop(go);
    assert_eq!(
        stay.join_all().await,
        [200; 10],
        "their tokens serve others"
    );
    drop(stays);
    // The scrape has one connection of its own.
    let metrics = Metrics::until(flowgate.admin, "flowgate_connections", |open| open == 1.0).await;
    assert_eq!(
        (metrics.get(QUEUED), metrics.get("flowgate_queued_bytes")),
        (0.0, 0.0)
    );
}

/// The metrics after every worker has had work again: the allocator returns a worker's freed memory
/// when that worker next allocates, and after a burst a worker may be idle.
async fn settled(flowgate: &Process) -> Metrics {
    let proxy = flowgate.proxy;
    let crowd: JoinSet<u16> = (0..64)
        .map(|_| async move { harness::get(proxy, "/").await.status })
        .collect();
    assert_eq!(crowd.join_all().await, [400; 64]);
    Metrics::of(flowgate.admin).await
}

#[tokio::test]
async fn a_thousand_hang_ups_release_memory_and_descriptors() {
    let sim = Sim::start(Settings::default().with_key(KEY, SECRET, "acme"))
        .await
        .unwrap();
    let flowgate = Process::start(&sim, "[queue]\nhold = \"10m\"\nmax_hold = \"10m\"").await;
    // The first round sets the level: buffers and threads that any such load creates once.
    burst(&flowgate, &sim, 1).await;
    let before = settled(&flowgate).await;
    burst(&flowgate, &sim, 2).await;
    let after = settled(&flowgate).await;
    let cancelled = "flowgate_cancelled_total{account=\"acme\",stage=\"queued\"}";
    assert_eq!(after.get(cancelled), 2000.0);
    let arrivals = sim.arrivals();
    let gone = arrivals.iter().filter(|arrival| {
        arrival
            .flow_name
            .as_deref()
            .is_some_and(|name| name.starts_with("goes"))
    });
    assert_eq!((sim.report().created, gone.count()), (22, 0));
    let descriptors = |metrics: &Metrics| metrics.get("process_open_fds");
    assert!(
        descriptors(&after) <= descriptors(&before) + 2.0,
        "{} {}",
        descriptors(&before),
        descriptors(&after)
    );
    let memory = |metrics: &Metrics| metrics.get("process_resident_memory_bytes");
    // A thousand calls that stayed would double it.
    assert!(
        memory(&after) <= 1.6 * memory(&before),
        "{} {}",
        memory(&before),
        memory(&after)
    );
}

#[tokio::test]
async fn one_worker_thread_is_enough() {
    let sim = Sim::start(Settings::default().with_key(KEY, SECRET, "acme"))
        .await
        .unwrap();
    let flowgate = Process::with_threads(&sim, GAP, 1).await;
    let mut calls = JoinSet::new();
    for index in 0..12 {
        let call = Call::v3(&flowgate.proxy.to_string(), &format!("one-{index}"));
        let proxy = flowgate.proxy;
        calls.spawn(async move { call.send(proxy).await.status });
    }
    // The thread is free while they wait. One more thread writes the log, and one has built this
    // page. A blocking job at that moment has another one.
    let threads = Metrics::of(flowgate.admin).await.get("process_threads");
    assert!((3.0..=4.0).contains(&threads), "{threads}");
    assert_eq!(calls.join_all().await, [200; 12]);
    assert_eq!((sim.report().created, sim.report().refused), (12, 0));
}

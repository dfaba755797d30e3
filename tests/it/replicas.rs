//! A shared quota, with processes over real sockets and a real store: no account exceeds its limit
//! when the store or a replica fails, and no call is lost or processed twice.

use std::net::SocketAddr;
use std::time::Duration;

use cams_sim::{Running, Settings, Sim};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep};

use crate::caller::{Call, KEY, Reply, SECRET, exchange};
use crate::harness::{self, GAP, Metrics, are_served};
use crate::process::Process;
use crate::redis::{Cluster, Redis, SERVICE, Watched};

/// Replicas without a balancer: each is called directly.
struct Fleet {
    sim: Running,
    replicas: Vec<Process>,
}

/// Delays that a busy machine may add between Flowgate's clock and the endpoint's.
const PATH: Duration = Duration::from_millis(50);

/// Continues `[quota]`: a store that may answer late, as on a busy machine.
const PATIENT: &str = "\nstore_timeout = \"10s\"\n";

/// A relay to the store that can be slowed down, or blocked without closing.
pub(crate) struct Way {
    pub(crate) address: SocketAddr,
    pub(crate) condition: watch::Sender<Condition>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Condition {
    Open,
    Slow(Duration),
    /// Only the server's bytes are delayed.
    Late(Duration),
    Shut,
}

// === impl Way ===

impl Way {
    pub(crate) async fn to(port: u16) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let condition = watch::Sender::new(Condition::Open);
        let seen = condition.subscribe();
        tokio::spawn(async move {
            while let Ok((near, _)) = listener.accept().await {
                let (near_read, near_write) = near.into_split();
                let (far_read, far_write) = TcpStream::connect(("127.0.0.1", port))
                    .await
                    .unwrap()
                    .into_split();
                tokio::spawn(pass(near_read, far_write, seen.clone(), false));
                tokio::spawn(pass(far_read, near_write, seen.clone(), true));
            }
        });
        Self { address, condition }
    }
}

async fn pass(
    mut from: OwnedReadHalf,
    mut to: OwnedWriteHalf,
    mut condition: watch::Receiver<Condition>,
    is_back: bool,
) {
    let mut buffer = [0; 16 * 1024];
    while let Ok(read @ 1..) = from.read(&mut buffer).await {
        let now = *condition.borrow_and_update();
        match now {
            Condition::Slow(by) => sleep(by).await,
            Condition::Late(by) if is_back => sleep(by).await,
            Condition::Late(_) | Condition::Open | Condition::Shut => {}
        }
        if condition
            .wait_for(|now| *now != Condition::Shut)
            .await
            .is_err()
        {
            return;
        }
        if to.write_all(&buffer[..read]).await.is_err() {
            return;
        }
    }
}

// === impl Fleet ===

impl Fleet {
    /// Starts replicas and waits until each knows all of them. `quota` is TOML.
    async fn start(replicas: usize, quota: &str) -> Self {
        let fleet = Self::without_store(replicas, quota).await;
        fleet.all("flowgate_replicas", replicas as f64).await;
        fleet
    }

    async fn without_store(replicas: usize, quota: &str) -> Self {
        Self::with_quotas(&vec![quota.to_owned(); replicas]).await
    }

    /// Starts a replica with each of these quotas.
    async fn with_quotas(quotas: &[String]) -> Self {
        let sim = Sim::start(Settings::default().with_key(KEY, SECRET, "acme"))
            .await
            .unwrap();
        let mut replicas = Vec::new();
        for quota in quotas {
            let more = format!("[queue]\nhold = \"1m\"\nmax_hold = \"1m\"\n{GAP}[quota]\n{quota}");
            replicas.push(Process::start(&sim, &more).await);
        }
        Self { sim, replicas }
    }

    /// Waits until each has its part, which it uses while the store is down: all have known it for
    /// a second.
    async fn have_parts(&self) {
        sleep(Duration::from_secs(1)).await;
        let beats = "flowgate_store_seconds_count{op=\"beat\"}";
        for replica in &self.replicas {
            let before = Metrics::of(replica.admin).await.get(beats);
            // The first of the two may have been sent earlier.
            Metrics::until(replica.admin, beats, |now| now >= before + 2.0).await;
        }
    }

    /// Waits until the series has this value at all of them.
    async fn all(&self, series: &str, value: f64) {
        for replica in &self.replicas {
            Metrics::until(replica.admin, series, |seen| seen == value).await;
        }
    }

    /// Starts calls, distributed over the replicas.
    fn calls(&self, name: &str, number: usize) -> JoinSet<Reply> {
        let mut calls = JoinSet::new();
        for index in 0..number {
            let proxy = self.replicas[index % self.replicas.len()].proxy;
            let call = Call::v3(&proxy.to_string(), &format!("{name}-{index}"));
            calls.spawn(async move { call.send(proxy).await });
        }
        calls
    }

    /// The most attempts within a second at the endpoint, without the delays of the path.
    fn worst_second(&self) -> usize {
        let mut at: Vec<_> = self
            .sim
            .arrivals()
            .iter()
            .map(|arrival| arrival.received)
            .collect();
        at.sort();
        let second = Duration::from_secs(1) - PATH;
        at.iter()
            .enumerate()
            .map(|(i, from)| at[i..].partition_point(|other| *other < *from + second))
            .max()
            .unwrap()
    }

    /// Checks that every call was processed once.
    fn all_served(&self, answers: &[Reply]) {
        are_served(answers);
        let report = self.sim.report();
        assert_eq!(
            (report.created, report.duplicates),
            (answers.len() as u64, Vec::<String>::new())
        );
    }
}

#[tokio::test]
async fn two_replicas_share_one_quota() {
    let redis = Redis::start().await;
    let fleet = Fleet::start(2, &format!("store = \"{}\"{PATIENT}", redis.url())).await;
    let answers = fleet.calls("call", 40).join_all().await;
    fleet.all_served(&answers);
    assert_eq!(fleet.worst_second(), 5);
}

#[tokio::test]
async fn the_quota_is_shared_over_tls_a_cluster_and_sentinels() {
    let (tls, cluster, watched) =
        tokio::join!(Redis::with_tls(), Cluster::start(), Watched::start());
    let quotas = [
        format!(
            "store = \"{}\"\nstore_ca_file = {:?}",
            tls.url(),
            tls.ca_file()
        ),
        format!("store = {}", cluster.urls()),
        format!("store = {}\nstore_sentinel = \"{SERVICE}\"", watched.urls()),
    ];
    for quota in quotas {
        let fleet = Fleet::start(2, &format!("{quota}{PATIENT}")).await;
        let answers = fleet.calls("call", 12).join_all().await;
        fleet.all_served(&answers);
        assert_eq!(fleet.worst_second(), 5, "{quota}");
    }
}

#[tokio::test]
async fn a_restarted_store_loses_no_call_and_keeps_the_rate() {
    let mut redis = Redis::start().await;
    let fleet = Fleet::start(2, &format!("store = \"{}\"", redis.url())).await;
    fleet.have_parts().await;
    let calls = fleet.calls("call", 60);
    sleep(Duration::from_secs(2)).await;
    redis.stop().await;
    fleet.all("flowgate_store_degraded", 1.0).await;
    // Each continues with its part and stays ready.
    sleep(Duration::from_secs(6)).await;
    let before = fleet.sim.report().created;
    assert_eq!(
        harness::get(fleet.replicas[0].admin, "/readyz")
            .await
            .status,
        200
    );
    redis.start_again().await;
    let answers = calls.join_all().await;
    fleet.all_served(&answers);
    assert!(fleet.worst_second() <= 5, "{}", fleet.worst_second());
    assert!(
        before > 15,
        "the replicas have sent on without the store: {before}"
    );
    fleet.all("flowgate_store_degraded", 0.0).await;
}

#[tokio::test]
async fn a_frozen_store_counts_as_down_until_it_responds() {
    let redis = Redis::start().await;
    let fleet = Fleet::start(2, &format!("store = \"{}\"", redis.url())).await;
    fleet.have_parts().await;
    let calls = fleet.calls("call", 50);
    sleep(Duration::from_secs(2)).await;
    redis.freeze().await;
    fleet.all("flowgate_store_degraded", 1.0).await;
    sleep(Duration::from_secs(3)).await;
    redis.thaw().await;
    let answers = calls.join_all().await;
    fleet.all_served(&answers);
    assert!(fleet.worst_second() <= 5, "{}", fleet.worst_second());
}

#[tokio::test]
async fn a_failover_under_load_keeps_the_rate() {
    let mut watched = Watched::start().await;
    let quota = format!("store = {}\nstore_sentinel = \"{SERVICE}\"", watched.urls());
    let fleet = Fleet::start(2, &quota).await;
    fleet.have_parts().await;
    let calls = fleet.calls("call", 50);
    sleep(Duration::from_secs(2)).await;
    watched.master.stop().await;
    let answers = calls.join_all().await;
    fleet.all_served(&answers);
    assert!(fleet.worst_second() <= 5, "{}", fleet.worst_second());
}

#[tokio::test]
async fn a_slow_store_counts_as_down() {
    let redis = Redis::start().await;
    let way = Way::to(redis.port).await;
    let fleet = Fleet::start(2, &format!("store = \"redis://{}\"", way.address)).await;
    fleet.have_parts().await;
    let calls = fleet.calls("call", 40);
    sleep(Duration::from_secs(2)).await;
    way.condition
        .send_replace(Condition::Slow(Duration::from_millis(500)));
    fleet.all("flowgate_store_degraded", 1.0).await;
    sleep(Duration::from_secs(2)).await;
    way.condition.send_replace(Condition::Open);
    let answers = calls.join_all().await;
    fleet.all_served(&answers);
    assert!(fleet.worst_second() <= 5, "{}", fleet.worst_second());
}

#[tokio::test]
async fn a_store_at_any_latency_is_used_or_reported_down() {
    // Each is far from the timeout, because a busy machine adds to it.
    for distance in [0, 5, 20, 100, 3000] {
        let redis = Redis::start().await;
        let way = Way::to(redis.port).await;
        let quota = format!(
            "store = \"redis://{}\"\nstore_timeout = \"1s\"",
            way.address
        );
        let fleet = Fleet::start(1, &quota).await;
        fleet.have_parts().await;
        way.condition
            .send_replace(Condition::Late(Duration::from_millis(distance)));
        let admin = fleet.replicas[0].admin;
        let up = Metrics::until(admin, "flowgate_store_up", |up| {
            (up == 1.0) == (distance < 1000)
        })
        .await;
        let answers = fleet.calls("call", 10).join_all().await;
        // The timeout allows each call to be served from this replica's part too.
        fleet.all_served(&answers);
        assert!(
            fleet.worst_second() <= 5,
            "{} at {distance} ms",
            fleet.worst_second()
        );
        let metrics = Metrics::of(admin).await;
        assert_eq!(
            metrics.get("flowgate_store_up"),
            up.get("flowgate_store_up"),
            "{distance} ms"
        );
        // The connection may be older than the delay, so its minimum round trip may still be
        // shorter.
        assert!(metrics.get("flowgate_store_distance_seconds") < 0.25);
    }
}

#[tokio::test]
async fn a_distant_store_is_used_and_its_latency_reported() {
    let redis = Redis::start().await;
    let way = Way::to(redis.port).await;
    way.condition
        .send_replace(Condition::Late(Duration::from_millis(60)));
    let quota = format!("store = \"redis://{}\"{PATIENT}", way.address);
    let fleet = Fleet::start(2, &quota).await;
    let answers = fleet.calls("call", 20).join_all().await;
    fleet.all_served(&answers);
    assert!(fleet.worst_second() <= 5, "{}", fleet.worst_second());
    for replica in &fleet.replicas {
        let metrics = Metrics::of(replica.admin).await;
        assert_eq!(metrics.get("flowgate_store_up"), 1.0);
        assert!(metrics.get("flowgate_store_distance_seconds") >= 0.06);
        let events = replica
            .logged("the shared store is far away; this reduces the rate", 1)
            .await;
        assert_eq!(events.len(), 1);
    }
}

#[tokio::test]
async fn a_disconnected_replica_uses_only_its_part() {
    let redis = Redis::start().await;
    let way = Way::to(redis.port).await;
    let stores = [format!("redis://{}", way.address), redis.url()];
    // Also on a busy machine the other one answers within that.
    let quotas = stores.map(|store| format!("store = \"{store}\"\nstore_timeout = \"3s\""));
    let fleet = Fleet::with_quotas(&quotas).await;
    fleet.all("flowgate_replicas", 2.0).await;
    fleet.have_parts().await;
    let calls = fleet.calls("call", 70);
    sleep(Duration::from_secs(2)).await;
    // Nothing passes, and the server still sees an open connection.
    way.condition.send_replace(Condition::Shut);
    Metrics::until(
        fleet.replicas[0].admin,
        "flowgate_store_degraded",
        |degraded| degraded == 1.0,
    )
    .await;
    let answers = calls.join_all().await;
    fleet.all_served(&answers);
    assert!(fleet.worst_second() <= 5, "{}", fleet.worst_second());
    let degraded = Metrics::of(fleet.replicas[1].admin)
        .await
        .get("flowgate_store_degraded");
    assert_eq!(degraded, 0.0, "the other one has its store");
}

#[tokio::test]
async fn a_flushed_store_costs_one_burst_and_no_call() {
    let redis = Redis::start().await;
    let fleet = Fleet::start(2, &format!("store = \"{}\"{PATIENT}", redis.url())).await;
    let calls = fleet.calls("call", 40);
    sleep(Duration::from_millis(2500)).await;
    redis.flush().await;
    let answers = calls.join_all().await;
    fleet.all_served(&answers);
    assert!(fleet.worst_second() <= 10, "{}", fleet.worst_second());
}

#[tokio::test]
async fn a_killed_replica_loses_only_its_own_calls() {
    let redis = Redis::start().await;
    let mut fleet = Fleet::start(3, &format!("store = \"{}\"{PATIENT}", redis.url())).await;
    let victim = fleet.replicas.pop().unwrap();
    let proxy = victim.proxy;
    let mut lost = JoinSet::new();
    for index in 0..20 {
        let call = Call::v3(&proxy.to_string(), &format!("lost-{index}"));
        lost.spawn(async move { exchange(proxy, &call.bytes()).await.is_some() });
    }
    let calls = fleet.calls("call", 60);
    sleep(Duration::from_secs(3)).await;
    victim.kill().await;
    let killed = Instant::now();
    fleet.all("flowgate_replicas", 2.0).await;
    let answers = calls.join_all().await;
    are_served(&answers);
    let answered = lost
        .join_all()
        .await
        .into_iter()
        .filter(|answered| *answered)
        .count();
    assert!(fleet.worst_second() <= 5, "{}", fleet.worst_second());
    // One second later the whole quota is available, until all calls were served.
    let mut after: Vec<_> = fleet
        .sim
        .arrivals()
        .iter()
        .map(|arrival| arrival.received)
        .collect();
    after.retain(|at| *at > killed + Duration::from_secs(2));
    let seconds = after.last().unwrap().duration_since(after[0]).as_secs_f64();
    assert!(
        after.len() as f64 >= 4.0 * seconds,
        "{} in {seconds} s",
        after.len()
    );
    let report = fleet.sim.report();
    assert!(
        report.created >= 60 + answered as u64 && report.duplicates.is_empty(),
        "{report:?}"
    );
}

#[tokio::test]
async fn before_the_first_contact_with_the_store_nothing_is_sent() {
    let mut redis = Redis::start().await;
    redis.stop().await;
    let quota = format!("store = \"{}\"{PATIENT}", redis.url());
    let fleet = Fleet::without_store(1, &quota).await;
    let refused = fleet.calls("call", 1).join_all().await.pop().unwrap();
    assert_eq!(
        (refused.status, refused.code().as_str()),
        (400, "System.LimitControl")
    );
    assert!(refused.header("x-acs-retry-after").is_some(), "{refused:?}");
    assert!(fleet.sim.arrivals().is_empty());
    redis.start_again().await;
    fleet.all("flowgate_store_up", 1.0).await;
    let answers = fleet.calls("call", 5).join_all().await;
    fleet.all_served(&answers);
}

#[tokio::test]
async fn with_on_store_failure_refuse_calls_are_refused_while_the_store_is_down() {
    let mut redis = Redis::start().await;
    let quota = format!(
        "store = \"{}\"\non_store_failure = \"refuse\"{PATIENT}",
        redis.url()
    );
    let fleet = Fleet::start(2, &quota).await;
    let served = fleet.calls("served", 5).join_all().await;
    fleet.all_served(&served);
    redis.stop().await;
    fleet.all("flowgate_store_up", 0.0).await;
    for refused in fleet.calls("refused", 4).join_all().await {
        assert_eq!(
            (refused.status, refused.code().as_str()),
            (400, "System.LimitControl")
        );
        assert_eq!(
            refused.header("x-flowgate-error"),
            Some("System.LimitControl")
        );
    }
    assert_eq!(fleet.sim.report().created, 5);
}

#[tokio::test]
async fn a_nonce_is_good_for_one_replica() {
    let redis = Redis::start().await;
    let fleet = Fleet::start(2, &format!("store = \"{}\"{PATIENT}", redis.url())).await;
    let [one, other] = [0, 1].map(|index| fleet.replicas[index].proxy);
    let call = Call::v1(&one.to_string(), "once");
    assert_eq!(call.send(one).await.status, 200);
    // The same bytes at the other replica.
    assert_eq!(call.send(other).await.code(), "SignatureNonceUsed");
    assert_eq!(fleet.sim.report().created, 1);
}

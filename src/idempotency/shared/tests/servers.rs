//! The operations on real servers: one server, and a cluster.

use std::time::Duration;

use super::super::*;
use super::scripts::{TIMES, created, name, order};
use crate::config::{self, Topology};
use crate::limiter::shared::probe::DealProbe;
use crate::observe::metrics::Metrics;
use crate::servers::{Cluster, Redis};

const HOLD: Duration = Duration::from_secs(30);

/// A replica that sends heartbeats and publishes nothing but `records`.
fn replica(
    topology: Topology,
    ports: &[u16],
    replica: &str,
    records: Vec<Published>,
) -> Arc<SharedRecords> {
    let settings = config::Store {
        // However busy the machine is, the store is not down.
        timeout: Duration::from_secs(10),
        ..config::Store::on(topology, ports)
    };
    let probe = Box::new(DealProbe::new(&settings));
    let store = Store::open(&settings, probe, Arc::new(Metrics::new())).unwrap();
    let metrics = Arc::new(Metrics::new());
    let shared = Arc::new(SharedRecords::new(store, replica, TIMES, metrics));
    let keeper = shared.clone();
    tokio::spawn(async move { keeper.keep(|| records.clone()).await });
    shared
}

fn claim_of(shared: &SharedRecords, number: usize) -> KeyClaim {
    KeyClaim::of(name(number), &order(number), shared.new_owner())
}

/// Claims the key, and waits until the store is up and the gate is open.
async fn claim(shared: &SharedRecords, claim: &KeyClaim) -> SharedState {
    let give_up = Instant::now() + Duration::from_secs(60);
    loop {
        match shared.claim(claim, HOLD).await {
            Ok(SharedState::Gated) | Err(Unavailable::Down) => {}
            other => return other.unwrap(),
        }
        assert!(Instant::now() < give_up, "the gate stays closed");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

async fn each_operation_once(topology: Topology, ports: &[u16]) {
    let [a, b] = ["a", "b"].map(|name| replica(topology.clone(), ports, name, Vec::new()));
    let [of_a, of_b] = [claim_of(&a, 1), claim_of(&b, 1)];
    assert_eq!(claim(&a, &of_a).await, SharedState::Mine);
    assert_eq!(claim(&b, &of_b).await, SharedState::Claimed);
    assert_eq!(b.mark(&of_b, HOLD).await, Ok(false));
    assert_eq!(a.mark(&of_a, HOLD).await, Ok(true));
    assert_eq!(b.read(name(1), &order(1)).await, Ok(SharedState::Open));
    assert_eq!(b.read(name(1), &order(2)).await, Ok(SharedState::Mismatch));
    assert_eq!(b.read(name(2), &order(2)).await, Ok(SharedState::Absent));
    let look = LearnedBy::Look;
    let taken = b.take_flow(name(2), &order(1), "7", look).await;
    assert_eq!(taken, Ok(Taken::OtherOpen));
    assert_eq!(b.lease_look(name(1)).await, Ok(true));
    assert_eq!(a.lease_look(name(1)).await, Ok(false));
    let settlement = Settlement {
        claim: of_a,
        end: SharedEnd::Done(created(7)),
        signed_until: Instant::now(),
    };
    assert!(a.settle(settlement).await.unwrap().is_settled);
    let done = SharedState::Done(created(7));
    assert_eq!(b.read(name(1), &order(1)).await, Ok(done.clone()));
    assert_eq!(b.claim(&of_b, HOLD).await, Ok(done));
    let taken = b.take_flow(name(2), &order(1), "7", look).await;
    assert_eq!(taken, Ok(Taken::Owned));
    a.leave().await.unwrap();
}

#[tokio::test]
async fn one_server_runs_each_operation() {
    let redis = Redis::start().await;
    each_operation_once(Topology::Single, &[redis.port]).await;
    let key = format!("flowgate:{{once}}:{}", name(1).hex());
    let bytes = redis.ask(&["MEMORY", "USAGE", &key]).await;
    let bytes: u32 = bytes.trim_start_matches(':').trim().parse().unwrap();
    let flow = redis
        .ask(&["MEMORY", "USAGE", "flowgate:{once}:flow:7"])
        .await;
    let flow: u32 = flow.trim_start_matches(':').trim().parse().unwrap();
    assert!(
        bytes + flow <= 374,
        "a finished key takes {bytes} and {flow} bytes"
    );
}

#[tokio::test]
async fn a_cluster_runs_each_operation() {
    let cluster = Cluster::start().await;
    let ports: Vec<_> = cluster.nodes.iter().map(|node| node.port).collect();
    each_operation_once(Topology::Cluster, &ports).await;
}

#[tokio::test]
async fn after_a_flush_a_replica_publishes_what_it_knows() {
    let redis = Redis::start().await;
    let claimed = KeyClaim::of(name(1), &order(1), Owner::none());
    let published = Published {
        claim: claimed,
        end: Some(SharedEnd::Done(created(7))),
        signed_until: Instant::now(),
        lifetime: TIMES.keep,
    };
    let many = (2..250).map(|number| Published {
        claim: KeyClaim::of(name(number), &order(number), Owner::none()),
        ..published.clone()
    });
    let records = many.chain([published.clone()]).collect();
    let a = replica(Topology::Single, &[redis.port], "a", records);
    let b = replica(Topology::Single, &[redis.port], "b", Vec::new());
    let new = claim_of(&b, 1000);
    assert_eq!(claim(&b, &new).await, SharedState::Mine);
    redis.flush().await;
    assert_eq!(b.mark(&new, HOLD).await, Ok(false), "its claim is lost");
    let done = SharedState::Done(created(7));
    assert_eq!(claim(&b, &claim_of(&b, 1)).await, done);
    assert_eq!(claim(&b, &claim_of(&b, 249)).await, done);
    drop(a);
}

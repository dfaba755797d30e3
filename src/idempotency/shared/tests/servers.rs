//! The operations on real servers: one server, and a cluster.

use std::time::Duration;

use super::super::*;
use super::scripts::{TIMES, claim_of, created, name, order};
use crate::config::{self, Topology};
use crate::idempotency::record::Search;
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
    let [of_a, of_b] = [claim_of(1), claim_of(1)];
    assert_eq!(claim(&a, &of_a).await, SharedState::Mine);
    let claimed = claim(&b, &of_b).await;
    assert!(matches!(claimed, SharedState::Claimed(_)), "{claimed:?}");
    assert_eq!(b.mark(&of_b, HOLD).await, Ok(false));
    assert_eq!(a.mark(&of_a, HOLD).await, Ok(true));
    let open = b.read(name(1), &order(1)).await;
    assert!(matches!(open, Ok(SharedState::Open(_))), "{open:?}");
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
    assert_eq!(a.settle(settlement).await, Ok(Settled::Yes));
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
    let claimed = claim_of(1);
    let published = Published {
        claim: claimed,
        end: Some(SharedEnd::Done(created(7))),
        signed_until: Instant::now(),
        lifetime: TIMES.keep,
    };
    let many = (2..250).map(|number| Published {
        claim: claim_of(number),
        ..published.clone()
    });
    let records = many.chain([published.clone()]).collect();
    let a = replica(Topology::Single, &[redis.port], "a", records);
    let b = replica(Topology::Single, &[redis.port], "b", Vec::new());
    let new = claim_of(1000);
    assert_eq!(claim(&b, &new).await, SharedState::Mine);
    redis.flush().await;
    assert_eq!(b.mark(&new, HOLD).await, Ok(false), "its claim is lost");
    let done = SharedState::Done(created(7));
    assert_eq!(claim(&b, &claim_of(1)).await, done);
    assert_eq!(claim(&b, &claim_of(249)).await, done);
    drop(a);
}

/// Loses a call of `a` whose unknown outcome, and then a word about it, the store could not be told.
async fn lost_while_the_store_refuses(
    redis: &Redis,
    a: &SharedRecords,
    number: usize,
) -> Arc<UnknownOutcome> {
    let of_a = claim_of(number);
    assert_eq!(claim(a, &of_a).await, SharedState::Mine);
    assert_eq!(a.mark(&of_a, HOLD).await, Ok(true));
    let outcome = Arc::new(UnknownOutcome {
        reason: "the test lost it".into(),
        request_id: None,
        order: Arc::new(Order {
            request_id: of_a.id.call.clone(),
            ..order(number)
        }),
        attempt: None,
        at: std::time::SystemTime::now(),
        ended: Instant::now(),
        stamped_until: Instant::now(),
        search: Search::None,
    });
    redis
        .ask(&["ACL", "SETUSER", "default", "-set", "-del"])
        .await;
    let unknown = Settlement {
        claim: of_a,
        end: SharedEnd::Unknown { request_id: None },
        signed_until: Instant::now(),
    };
    assert!(a.settle(unknown).await.is_err());
    outcome
}

/// The store takes writes again.
async fn accept_writes(redis: &Redis) {
    redis
        .ask(&["ACL", "SETUSER", "default", "+set", "+del"])
        .await;
}

#[tokio::test]
async fn a_word_that_the_store_does_not_take_is_forgotten_and_can_be_said_again() {
    let redis = Redis::start().await;
    let a = replica(Topology::Single, &[redis.port], "a", Vec::new());
    let outcome = lost_while_the_store_refuses(&redis, &a, 1).await;
    let word = SharedEnd::SettledNotCreated;
    let said = a.resolve(name(1), &outcome, word.clone()).await;
    assert!(said.is_err());
    accept_writes(&redis).await;
    // The end of the call itself is told.
    let told = claim(&a, &claim_of(1)).await;
    assert!(matches!(told, SharedState::Unknown(_)), "{told:?}");
    let said = a.resolve(name(1), &outcome, word).await;
    assert_eq!(said, Ok(Settled::Yes));
    assert_eq!(claim(&a, &claim_of(1)).await, SharedState::Mine);
}

#[tokio::test]
async fn a_word_follows_what_the_store_was_not_told_before() {
    let redis = Redis::start().await;
    let a = replica(Topology::Single, &[redis.port], "a", Vec::new());
    let outcome = lost_while_the_store_refuses(&redis, &a, 1).await;
    accept_writes(&redis).await;
    let said = loop {
        let said = a.resolve(name(1), &outcome, SharedEnd::SettledNotCreated);
        match said.await {
            Ok(settled) => break settled,
            // The store is up again in some milliseconds.
            Err(_) => tokio::time::sleep(Duration::from_millis(20)).await,
        }
    };
    assert_eq!(said, Settled::Yes);
    assert_eq!(claim(&a, &claim_of(1)).await, SharedState::Mine);
}

#[tokio::test]
async fn a_word_that_comes_too_early_is_not_told_later() {
    let redis = Redis::start().await;
    let a = replica(Topology::Single, &[redis.port], "a", Vec::new());
    let outcome = lost_while_the_store_refuses(&redis, &a, 1).await;
    accept_writes(&redis).await;
    let told = claim(&a, &claim_of(1)).await;
    assert!(matches!(told, SharedState::Unknown(_)), "{told:?}");
    {
        let _take_over = a.take_over();
        let gated = a.resolve(name(1), &outcome, SharedEnd::SettledNotCreated);
        assert_eq!(gated.await, Ok(Settled::Kept(SharedState::Gated)));
    }
    // Until the publication the word is too early.
    let said = loop {
        let found = claim(&a, &claim_of(1)).await;
        assert!(matches!(found, SharedState::Unknown(_)), "{found:?}");
        let said = a.resolve(name(1), &outcome, SharedEnd::SettledNotCreated);
        match said.await {
            Ok(Settled::Kept(SharedState::Gated)) => {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
            said => break said,
        }
    };
    assert_eq!(said, Ok(Settled::Yes));
    assert_eq!(claim(&a, &claim_of(1)).await, SharedState::Mine);
}

//! The shared quota: what a replica withholds, and the script on a real server.

use super::*;
use crate::servers::Cluster;

mod deal;

#[tokio::test(start_paused = true)]
async fn parts_are_withheld_only_if_they_may_be_used() {
    let limit = Limit {
        count: NonZeroU32::new(4).unwrap(),
        window: Duration::from_secs(1),
    };
    let settings = config::Store::on(config::Topology::Single, &[1]);
    let cap = |on_failure| {
        let quota = Quota::open(&settings, on_failure, Arc::new(Metrics::new())).unwrap();
        let seen = [(quota.replica(), 0), ("vanished", 5)].map(|(name, silent)| {
            members::ReportedReplica {
                name: name.to_owned(),
                connection_id: UNKNOWN,
                run: String::new(),
                silent: Duration::from_secs(silent),
                has_left: false,
            }
        });
        quota.members.lock().update(seen, Instant::now());
        quota.cap(limit)
    };
    assert_eq!(
        (cap(OnStoreFailure::Share), cap(OnStoreFailure::Refuse)),
        (2, 4)
    );
}

/// However busy the machine is, the store is not down.
fn patient(settings: config::Store) -> config::Store {
    config::Store {
        timeout: Duration::from_secs(10),
        ..settings
    }
}

/// A replica that sends heartbeats.
async fn replica(settings: &config::Store) -> Arc<Quota> {
    let quota = Quota::open(settings, OnStoreFailure::Share, Arc::new(Metrics::new())).unwrap();
    tokio::spawn(quota.clone().keep(|| {}));
    quota
}

async fn until(what: &str, is_so: impl Fn() -> bool) {
    let give_up = Instant::now() + Duration::from_secs(60);
    while !is_so() {
        assert!(Instant::now() < give_up, "{what}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test]
async fn in_a_cluster_nothing_is_withheld_for_replaced_replicas() {
    let cluster = Cluster::start().await;
    let ports: Vec<_> = cluster.nodes.iter().map(|node| node.port).collect();
    let settings = patient(config::Store::on(config::Topology::Cluster, &ports));
    let limit = Limit {
        count: NonZeroU32::new(5).unwrap(),
        window: Duration::from_secs(1),
    };
    let mut replicas = vec![
        replica(&settings).await,
        replica(&settings).await,
        replica(&settings).await,
    ];
    until("all know of all", || {
        replicas.iter().all(|replica| replica.replicas() == 3)
    })
    .await;
    for _ in 0..3 {
        replicas.remove(0).leave().await;
        until("it is known to have left", || {
            replicas.iter().all(|replica| replica.replicas() == 2)
        })
        .await;
        // It would have vanished by then.
        tokio::time::sleep(2 * members::VANISHED).await;
        for replica in &replicas {
            assert_eq!((replica.replicas(), replica.cap(limit)), (2, 5));
        }
        replicas.push(replica(&settings).await);
        until("all know of the new one", || {
            replicas.iter().all(|replica| replica.replicas() == 3)
        })
        .await;
    }
    // One that dies is withheld its part, as the others cannot see whether it is dead.
    let dies = replicas.remove(0);
    dies.has_left.store(true, Ordering::Relaxed);
    until("its part is withheld", || {
        replicas.iter().all(|replica| replica.cap(limit) < 5)
    })
    .await;
}

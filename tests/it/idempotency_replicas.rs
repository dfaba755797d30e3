//! Idempotency keys over replicas that share a store: one key, one flow, also when a replica or the
//! store fails.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use cams_sim::Running;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep};

use crate::caller::{Call, Reply, try_exchange};
use crate::harness::Metrics;
use crate::keyed_calls::{created, created_twice, endpoint, flow_id, learn, order, state};
use crate::process::Process;
use crate::redis::Redis;
use crate::replicas::{Condition, Way};

/// A replica without limits. On a busy machine the store may answer late.
async fn replica(sim: &Running, redis: &Redis, more: &str) -> Process {
    replica_of(sim, &redis.url(), more).await
}

async fn replica_of(sim: &Running, store: &str, more: &str) -> Process {
    let toml = format!(
        "{more}\n[limits]\npreset = \"none\"\n\
         [quota]\nstore = \"{store}\"\nstore_timeout = \"10s\"\n"
    );
    Process::start(sim, &toml).await
}

/// A replica that sends keyed calls without protection while the store does not answer. On a busy machine an
/// answer may take long.
async fn sending_replica(sim: &Running, redis: &Redis, more: &str) -> Process {
    let store = redis.url();
    let toml = format!(
        "{more}\n[exactly_once]\non_loss = \"send\"\n[limits]\npreset = \"none\"\n\
         [quota]\nstore = \"{store}\"\nstore_timeout = \"3s\"\n"
    );
    Process::start(sim, &toml).await
}

/// Two replicas that have claimed a key each, so that both are known in the store.
async fn replicas(sim: &Running, redis: &Redis) -> [Process; 2] {
    let replicas = [replica(sim, redis, "").await, replica(sim, redis, "").await];
    for (number, replica) in replicas.iter().enumerate() {
        let name = format!("warm-{number}");
        until_served(replica, &name, "first").await;
    }
    replicas
}

/// Repeats a call until it is answered with 200.
pub(crate) async fn until_served(replica: &Process, name: &str, expected: &str) -> Reply {
    let give_up = Instant::now() + Duration::from_secs(60);
    loop {
        let reply = send(replica, name).await;
        if reply.status == 200 {
            assert_eq!(state(&reply), expected, "{reply:?}");
            return reply;
        }
        assert!(Instant::now() < give_up, "{reply:?}");
        sleep(Duration::from_millis(50)).await;
    }
}

/// A CreateFlow whose key is the name of its flow.
fn keyed(host: &str, name: &str) -> Call {
    order(host, name, name)
}

async fn send(replica: &Process, name: &str) -> Reply {
    let call = keyed(&replica.proxy.to_string(), name);
    call.send(replica.proxy).await
}

#[tokio::test]
async fn a_hundred_calls_of_one_key_over_two_replicas_are_one_attempt() {
    let sim = endpoint(&["named=welcome,slow=200ms"]).await;
    let redis = Redis::start().await;
    let replicas = replicas(&sim, &redis).await;
    let mut calls = JoinSet::new();
    for number in 0..100 {
        let proxy = replicas[number % 2].proxy;
        let call = keyed(&proxy.to_string(), "welcome");
        calls.spawn(async move { call.send(proxy).await });
    }
    let replies = calls.join_all().await;
    let ids: BTreeSet<_> = replies.iter().map(flow_id).collect();
    assert_eq!(ids.len(), 1);
    let first = replies.iter().filter(|reply| state(reply) == "first");
    assert_eq!(first.count(), 1);
    assert_eq!(created(&sim)["welcome"], 1);
    for replica in &replicas {
        let again = send(replica, "welcome").await;
        assert_eq!(state(&again), "replayed", "{again:?}");
        let host = replica.proxy.to_string();
        let other = order(&host, "welcome", "other");
        let other = other.send(replica.proxy).await;
        assert_eq!(
            (other.status, state(&other)),
            (400, "mismatch"),
            "{other:?}"
        );
    }
}

#[tokio::test]
async fn a_key_whose_call_was_refused_is_free_at_all_replicas() {
    let sim = endpoint(&["named=forbidden,refuse=Ram.PermissionDeny"]).await;
    let redis = Redis::start().await;
    let [a, b] = replicas(&sim, &redis).await;
    let refused = send(&a, "forbidden").await;
    assert_eq!(refused.code(), "Ram.PermissionDeny");
    sim.set_faults(Vec::new());
    let again = send(&b, "forbidden").await;
    assert_eq!((again.status, state(&again)), (200, "first"), "{again:?}");
}

/// Calls of 40 keys at each of these addresses, until all of them have gone. Returns the flow ids.
fn work(replicas: &[&Process]) -> JoinSet<Vec<(String, String)>> {
    let mut workers = JoinSet::new();
    for worker in 0..8 {
        let proxy = replicas[worker % replicas.len()].proxy;
        workers.spawn(async move {
            let mut answers = Vec::new();
            for number in (0..120).map(|number| number % 40) {
                let name = format!("flow-{number}");
                let call = keyed(&proxy.to_string(), &name);
                let Some(reply) = try_exchange(proxy, &call.bytes()).await else {
                    return answers;
                };
                if reply.status == 200 {
                    answers.push((name, flow_id(&reply)));
                } else {
                    let expected = ["Flowgate.OutcomeUnknown", "System.LimitControl"];
                    assert!(expected.contains(&&*reply.code()), "{reply:?}");
                }
            }
            answers
        });
    }
    workers
}

#[tokio::test]
async fn no_key_is_executed_twice_over_kills_of_a_replica_at_random_times() {
    let sim = endpoint(&["percent=20,slow=30ms", "percent=5,close-after"]).await;
    let redis = Redis::start().await;
    let stays = replica(&sim, &redis, "").await;
    let mut answered = BTreeMap::new();
    for _round in 0..6 {
        let dies = replica(&sim, &redis, "").await;
        until_known(&[&stays, &dies]).await;
        let arrived = sim.report().arrived + u64::from(fastrand::u8(1..12));
        let workers = work(&[&stays, &dies]);
        let give_up = Instant::now() + Duration::from_secs(5);
        while sim.report().arrived < arrived && Instant::now() < give_up {
            tokio::task::yield_now().await;
        }
        dies.kill().await;
        learn(&mut answered, workers).await;
    }
    assert_eq!(created_twice(&sim), []);
    assert!(answered.len() > 10, "{}", answered.len());
}

async fn until_known(replicas: &[&Process]) {
    for replica in replicas {
        Metrics::until(replica.admin, "flowgate_keys_degraded", |seen| seen == 0.0).await;
    }
}

#[tokio::test]
async fn no_key_is_executed_twice_while_a_replica_is_frozen_again_and_again() {
    let sim = endpoint(&["percent=20,slow=30ms"]).await;
    let redis = Redis::start().await;
    let [a, b] = replicas(&sim, &redis).await;
    let mut answered = BTreeMap::new();
    let workers = work(&[&a, &b]);
    for _ in 0..20 {
        sleep(Duration::from_millis(fastrand::u64(1..60))).await;
        a.signal("-STOP").await;
        sleep(Duration::from_millis(fastrand::u64(1..150))).await;
        a.signal("-CONT").await;
    }
    learn(&mut answered, workers).await;
    assert_eq!(created_twice(&sim), []);
    assert_eq!(answered.len(), 40);
}

#[tokio::test]
async fn after_a_flush_a_call_in_flight_is_found_by_the_other_replica() {
    let sim = endpoint(&["named=slow,slow=8s"]).await;
    let redis = Redis::start().await;
    let [a, b] = replicas(&sim, &redis).await;
    let call = keyed(&a.proxy.to_string(), "slow");
    let proxy = a.proxy;
    let slow = tokio::spawn(async move { call.send(proxy).await });
    while sim.report().arrived < 3 {
        tokio::task::yield_now().await;
    }
    redis.flush().await;
    let found = until_replayed(&b, "slow").await;
    let first = slow.await.unwrap();
    assert_eq!((first.status, state(&first)), (200, "first"), "{first:?}");
    assert_eq!(flow_id(&found), flow_id(&first));
    // What was done before the flush is known again, too.
    until_replayed(&b, "warm-0").await;
    assert_eq!(created_twice(&sim), []);
}

/// Repeats a call until it is answered with the flow of another one.
async fn until_replayed(replica: &Process, name: &str) -> Reply {
    until_served(replica, name, "replayed").await
}

#[tokio::test]
async fn without_the_store_new_keys_are_refused_or_sent_without_protection() {
    let sim = endpoint(&[]).await;
    let mut redis = Redis::start().await;
    let refuses = replica(&sim, &redis, "").await;
    let sends = sending_replica(&sim, &redis, "").await;
    let done = until_served(&refuses, "done", "first").await;
    redis.stop().await;
    for replica in [&refuses, &sends] {
        Metrics::until(replica.admin, "flowgate_keys_degraded", |seen| seen == 1.0).await;
    }
    let again = send(&refuses, "done").await;
    assert_eq!(state(&again), "replayed", "{again:?}");
    assert_eq!(flow_id(&again), flow_id(&done));
    let new = send(&refuses, "new").await;
    assert_eq!(
        (new.status, new.code()),
        (400, "System.LimitControl".into()),
        "{new:?}"
    );
    assert!(new.header("retry-after").is_some(), "{new:?}");
    let without = Call::v3(&refuses.proxy.to_string(), "unkeyed");
    assert_eq!(without.send(refuses.proxy).await.status, 200);
    let sent = send(&sends, "unprotected").await;
    assert_eq!((sent.status, state(&sent)), (200, ""), "{sent:?}");
    // The other replica does not know it, now or later.
    let again = send(&sends, "unprotected").await;
    assert_eq!((again.status, state(&again)), (200, ""), "{again:?}");
    assert_eq!(flow_id(&again), flow_id(&sent));

    redis.start_again().await;
    let served = until_served(&refuses, "new", "first").await;
    let replayed = until_replayed(&sends, "new").await;
    assert_eq!(flow_id(&served), flow_id(&replayed));
    until_replayed(&sends, "done").await;
    assert_eq!(created_twice(&sim), []);
}

#[tokio::test]
async fn what_was_sent_without_the_store_stays_unprotected_over_a_restart() {
    let sim = endpoint(&[]).await;
    let redis = Redis::start().await;
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("journal");
    let journal = format!("[journal]\npath = \"{}\"\n", path.display());
    let first = sending_replica(&sim, &redis, &journal).await;
    until_served(&first, "warm", "first").await;
    redis.freeze().await;
    let degraded = "flowgate_keys_degraded";
    Metrics::until(first.admin, degraded, |seen| seen == 1.0).await;
    let sent = send(&first, "sent").await;
    assert_eq!((sent.status, state(&sent)), (200, ""), "{sent:?}");
    redis.thaw().await;
    first.terminate().await;
    let lines = std::fs::read_to_string(&path).unwrap();
    assert_eq!(lines.matches("\"unprotected\":true").count(), 1, "{lines}");

    let later = sending_replica(&sim, &redis, &journal).await;
    Metrics::until(later.admin, degraded, |seen| seen == 0.0).await;
    let again = until_served(&later, "sent", "").await;
    assert_eq!(flow_id(&again), flow_id(&sent));
    until_replayed(&later, "warm").await;
    // The store does not have it, so another replica cannot answer with it.
    let other = replica(&sim, &redis, "").await;
    let own = until_served(&other, "sent", "first").await;
    assert_ne!(flow_id(&own), flow_id(&sent));
}

#[tokio::test]
async fn a_call_whose_mark_the_store_does_not_take_is_unprotected_over_a_restart_too() {
    let sim = endpoint(&[]).await;
    let redis = Redis::start().await;
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("journal");
    let journal = format!("[journal]\npath = \"{}\"\n", path.display());
    let first = sending_replica(&sim, &redis, &journal).await;
    until_served(&first, "warm", "first").await;
    // A claim does not need this command, a mark does.
    redis.ask(&["ACL", "SETUSER", "default", "-pexpire"]).await;
    let sent = send(&first, "sent").await;
    assert_eq!((sent.status, state(&sent)), (200, ""), "{sent:?}");
    redis.ask(&["ACL", "SETUSER", "default", "+pexpire"]).await;
    first.terminate().await;
    let lines = std::fs::read_to_string(&path).unwrap();
    assert_eq!(lines.matches("\"unprotected\":true").count(), 1, "{lines}");
    assert_eq!(lines.matches("\"event\":\"sent\"").count(), 2, "{lines}");
    let later = sending_replica(&sim, &redis, &journal).await;
    Metrics::until(later.admin, "flowgate_keys_degraded", |seen| seen == 0.0).await;
    let again = until_served(&later, "sent", "").await;
    assert_eq!(flow_id(&again), flow_id(&sent));
    assert_eq!(created_twice(&sim), []);
}

#[tokio::test]
async fn a_lost_call_of_a_process_without_the_store_is_not_resolved_by_the_store() {
    let sim = endpoint(&["named=lost,close-after"]).await;
    let redis = Redis::start().await;
    let folder = tempfile::tempdir().unwrap();
    let journal = folder.path().join("journal");
    let journal = format!("[journal]\npath = \"{}\"\n", journal.display());
    let limits = "[limits]\npreset = \"none\"\n";
    let earlier = Process::start(&sim, &format!("{journal}{limits}")).await;
    // The store is new in the configuration. The restart has an overlap.
    let later = replica(&sim, &redis, &journal).await;
    let other = replica(&sim, &redis, "").await;
    until_served(&later, "warm", "first").await;
    let lost = send(&earlier, "lost").await;
    assert_eq!((lost.status, state(&lost)), (409, "unknown"), "{lost:?}");
    let done = send(&earlier, "done").await;
    assert_eq!((done.status, state(&done)), (200, "first"), "{done:?}");
    earlier.terminate().await;
    let shared = "flowgate_journal_shared";
    Metrics::until(later.admin, shared, |shared| shared == 0.0).await;
    let again = send(&later, "lost").await;
    assert_eq!((again.status, state(&again)), (409, "unknown"), "{again:?}");
    // The other replicas learn of them, too, before this one takes a new key.
    until_served(&later, "new", "first").await;
    let found = until_replayed(&other, "done").await;
    assert_eq!(flow_id(&found), flow_id(&done));
    let again = send(&other, "lost").await;
    assert_eq!((again.status, state(&again)), (409, "unknown"), "{again:?}");
    assert_eq!(created_twice(&sim), []);
}

#[tokio::test]
async fn a_call_whose_caller_leaves_while_the_store_marks_its_key_is_not_sent() {
    let redis = Redis::start().await;
    let way = Way::to(redis.port).await;
    let sim = endpoint(&[]).await;
    let replica = replica_of(&sim, &format!("redis://{}", way.address), "").await;
    until_served(&replica, "warm", "first").await;
    way.condition
        .send_replace(Condition::Late(Duration::from_secs(2)));
    let claims = "flowgate_store_seconds_count{op=\"claim\"}";
    let before = Metrics::of(replica.admin).await.get(claims);
    let proxy = replica.proxy;
    let call = keyed(&proxy.to_string(), "left");
    let caller = tokio::spawn(async move { call.send(proxy).await });
    Metrics::until(replica.admin, claims, |claims| claims > before).await;
    caller.abort();
    let left = "flowgate_cancelled_total{account=\"acme\",stage=\"queued\"}";
    Metrics::until(replica.admin, left, |left| left == 1.0).await;
    way.condition.send_replace(Condition::Open);
    let running = "flowgate_keys{state=\"running\"}";
    Metrics::until(replica.admin, running, |running| running == 0.0).await;
    until_served(&replica, "left", "first").await;
    assert_eq!(sim.report().arrived, 2);
}

#[tokio::test]
async fn a_call_that_follows_another_replica_is_not_sent_when_the_store_stops() {
    let mut redis = Redis::start().await;
    let sim = endpoint(&["named=slow,held"]).await;
    let ahead = replica(&sim, &redis, "").await;
    let follower = sending_replica(&sim, &redis, "").await;
    for (replica, name) in [(&ahead, "warm-0"), (&follower, "warm-1")] {
        until_served(replica, name, "first").await;
    }
    let proxy = ahead.proxy;
    let first = keyed(&proxy.to_string(), "slow");
    let first = tokio::spawn(async move { first.send(proxy).await });
    while sim.report().arrived < 3 {
        tokio::task::yield_now().await;
    }
    let claims = "flowgate_store_seconds_count{op=\"claim\"}";
    let before = Metrics::of(follower.admin).await.get(claims);
    let proxy = follower.proxy;
    let mut second = keyed(&proxy.to_string(), "slow");
    second.push("x-flowgate-hold", "5s");
    let second = tokio::spawn(async move { second.send(proxy).await });
    Metrics::until(follower.admin, claims, |claims| claims > before).await;
    redis.stop().await;
    let second = second.await.unwrap();
    assert_eq!(
        (second.status, state(&second)),
        (409, "pending"),
        "{second:?}"
    );
    assert_eq!(
        sim.report().arrived,
        3,
        "only the other replica has sent it"
    );
    sim.set_faults(vec![]);
    assert_eq!(first.await.unwrap().status, 200);
}

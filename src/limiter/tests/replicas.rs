//! All replicas together: one quota, one pause, one probe, one pace, and each replica is served.

use super::*;
use crate::limiter::shared::protocol::{DealRequest, Op, Pauses};
use crate::servers::Redis;

/// `replicas` replicas that share a quota.
pub(super) async fn fleet(server: &Redis, replicas: usize) -> Vec<Arc<Harness>> {
    let prefix = format!("test{}:", fastrand::u64(..));
    let harnesses: JoinSet<Harness> = (0..replicas)
        .map(|_| Harness::replica(server.port, prefix.clone()))
        .collect();
    harnesses
        .join_all()
        .await
        .into_iter()
        .map(Arc::new)
        .collect()
}

/// Sends a call. Returns a time just before the send, and the receipt.
async fn sent(harness: &Harness) -> (Instant, Receipt<TestConnector>) {
    let mut call = harness.arrive(60 * SECOND).unwrap();
    loop {
        let permit = call.permit().await.unwrap();
        let before = Instant::now();
        if let Some((_, receipt)) = permit.spend() {
            return (before, receipt);
        }
    }
}

/// Loads each replica with `callers` callers, each of which sends one call after the other. Returns
/// the time and the replica of each send.
async fn load(
    harnesses: &[Arc<Harness>],
    callers: &[usize],
    duration: Duration,
) -> Vec<(Instant, usize)> {
    let sends = Arc::new(Mutex::new(Vec::new()));
    let mut calls = JoinSet::new();
    for (index, (harness, callers)) in harnesses.iter().zip(callers).enumerate() {
        for _ in 0..*callers {
            let harness = harness.clone();
            let sends = sends.clone();
            calls.spawn(async move {
                loop {
                    let (at, receipt) = sent(&harness).await;
                    sends.lock().push((at, index));
                    sleep(Duration::from_millis(20)).await;
                    receipt.answered();
                }
            });
        }
    }
    sleep(duration).await;
    calls.shutdown().await;
    let mut sends = std::mem::take(&mut *sends.lock());
    sends.sort();
    sends
}

fn moments(sends: &[(Instant, usize)]) -> Vec<Instant> {
    sends.iter().map(|(at, _)| *at).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn replicas_keep_the_limit_together_and_each_is_served() {
    let server = Redis::start().await;
    let harnesses = fleet(&server, 3).await;
    // Many callers at the first replica, and at the others enough that a call always waits.
    let sends = load(&harnesses, &[60, 6, 6], 8 * SECOND).await;
    assert_eq!(worst_second(&moments(&sends)), 5);
    assert!(sends.len() > 5 * 6, "the quota is used: {}", sends.len());
    for replica in 0..3 {
        let counts: Vec<usize> = (0..sends.len())
            .filter(|at| sends[*at].1 == replica)
            .collect();
        let longest = counts
            .windows(2)
            .map(|pair| pair[1] - pair[0])
            .max()
            .unwrap();
        // Slots of the same date are used in any order.
        assert!(
            longest <= 2 * 3 + 4,
            "replica {replica} had none of {longest} sends: {counts:?}"
        );
    }
}

/// How many of the first sixty or so sends each replica had, while the calls of these (client,
/// tenant) pairs wait at it all the time.
async fn sends_per_replica(harnesses: &[Arc<Harness>], waiting: &[&[(&str, &str)]]) -> Vec<usize> {
    let sends = Arc::new(Mutex::new(Vec::new()));
    let mut calls = JoinSet::new();
    for (index, (harness, waiting)) in harnesses.iter().zip(waiting).enumerate() {
        for (client, tenant) in waiting.iter().flat_map(|who| [*who; 12]) {
            let harness = harness.clone();
            let sends = sends.clone();
            let who = Operation {
                tenant: TenantId::new(tenant),
                ..operation(client, 60 * SECOND)
            };
            calls.spawn(async move {
                loop {
                    let mut call = harness.queue.arrive(&who, 10).unwrap();
                    if let Some((_, receipt)) = call.permit().await.unwrap().spend() {
                        sends.lock().push(index);
                        receipt.answered();
                    }
                }
            });
        }
    }
    while sends.lock().len() < 60 {
        sleep(SECOND / 10).await;
    }
    calls.shutdown().await;
    let sends = sends.lock();
    (0..harnesses.len())
        .map(|index| sends.iter().filter(|sent| **sent == index).count())
        .collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn replicas_are_served_by_clients_and_tenants_and_not_by_calls() {
    let server = Redis::start().await;
    for (waiting, expected) in [
        // Three tenants of a client here, one there; and the other way round.
        (
            [&[("a", "x"), ("a", "y"), ("a", "z")][..], &[("a", "w")][..]],
            (35..=45, 15..=25),
        ),
        // Two clients here, one there; tenants do not make a client heavier.
        (
            [
                &[("a", ""), ("b", "")],
                &[("c", "x"), ("c", "y"), ("c", "z")],
            ],
            (35..=45, 15..=25),
        ),
        // Both are equal.
        (
            [&[("a", ""), ("b", "")], &[("c", ""), ("d", "")]],
            (25..=35, 25..=35),
        ),
    ] {
        let harnesses = fleet(&server, 2).await;
        let counts = sends_per_replica(&harnesses, &waiting).await;
        assert!(
            expected.0.contains(&counts[0]) && expected.1.contains(&counts[1]),
            "{waiting:?}: {counts:?}"
        );
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_throttle_pauses_all_replicas_and_one_probe_is_sent_for_all() {
    let server = Redis::start().await;
    let harnesses = fleet(&server, 2).await;
    // Each replica has used the lane.
    for harness in &harnesses {
        sent(harness).await.1.answered();
    }
    let (_, refused) = sent(&harnesses[0]).await;
    let start = Instant::now();
    refused.throttled(Some(2 * SECOND));
    // When this replica has the answer, the store has the report.
    while harnesses[0].view().pause_remaining_seconds == 0.0 {
        sleep(Duration::from_millis(1)).await;
    }
    let sends = load(&harnesses, &[4, 4], 5 * SECOND / 2).await;
    let pauses: Vec<Duration> = sends.iter().map(|(at, _)| *at - start).collect();
    assert!(pauses[0] >= 2 * SECOND, "{pauses:?}");
    assert!(
        pauses[1] - pauses[0] >= Duration::from_millis(20),
        "one probe, and the others when it is answered: {pauses:?}"
    );
    // Both have learned the same rate; the gap is each replica's own.
    let [one, other] = [&harnesses[0], &harnesses[1]].map(|harness| harness.view());
    assert_eq!(one.tokens_usable, other.tokens_usable);
    let stretched = |view: &LaneView| {
        f64::from(view.tokens_usable) / view.effective_per_second - view.gap_seconds
    };
    assert!(stretched(&one) > 1.005, "{one:?}");
    assert!(
        (stretched(&one) - stretched(&other)).abs() < 0.02,
        "{} {} {other:?}",
        stretched(&one),
        stretched(&other)
    );
}

#[tokio::test]
async fn slots_that_were_dealt_before_a_refusal_was_known_belong_to_its_episode() {
    let server = Redis::start().await;
    let harness = Harness::sharing(&server).await;
    let quota = harness.queue.inner.quota.clone().unwrap();
    let ask = async |replica, wanted, op: Op| {
        // Its one token is back soon, so the second slot is dated ahead.
        let limit = Limit {
            count: NonZeroU32::MIN,
            window: SECOND / 5,
        };
        let request = DealRequest {
            replica,
            limit,
            tokens: 1,
            window: limit.window,
            gap: GAP,
            spacing: Duration::ZERO,
            slack: quota.slack(),
            cap: 1,
            version: 0,
            pace: None,
            wanted,
            waiting: &[],
            unused: &[],
            late: &[],
            max_pause: RETRY.max_pause,
        };
        quota
            .take(
                &AccountId::new("acme"),
                &ActionName::new("Other"),
                &op,
                &request,
            )
            .await
            .unwrap()
            .view
    };
    let refused = |at, hint| Op::Throttled {
        at,
        pauses: Some(Pauses {
            new: hint,
            same: Some(hint),
        }),
    };
    let first = ask("one", 1, Op::Take).await.slots[0];
    let ahead = ask("other", 1, Op::Take).await.slots[0];
    let known = ask("one", 0, refused(first.at, SECOND / 2)).await;
    assert!(
        known.new_episode && known.now < ahead.at && ahead.at < known.open,
        "{known:?}, {ahead:?}"
    );
    let again = ask("other", 0, refused(ahead.at, SECOND / 2)).await;
    assert_eq!((again.new_episode, again.level), (false, 1));
    // A refusal of an attempt after the pause is a new episode.
    let mut probe = ask("one", 1, Op::Take).await;
    while probe.slots.is_empty() {
        sleep(Duration::from_millis(5)).await;
        probe = ask("one", 1, Op::Take).await;
    }
    assert!(
        probe.slots[0].probe && probe.slots[0].at >= again.open,
        "{probe:?}"
    );
    let news = ask("one", 0, refused(probe.slots[0].at, SECOND)).await;
    assert_eq!((news.new_episode, news.level), (true, 2));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_flushed_store_costs_one_burst_at_most() {
    let server = Redis::start().await;
    let harnesses = fleet(&server, 2).await;
    let flush = async {
        sleep(5 * SECOND / 2).await;
        server.flush().await;
    };
    let (sends, ()) = tokio::join!(load(&harnesses, &[20, 20], 5 * SECOND), flush);
    assert!(
        worst_second(&moments(&sends)) <= 10,
        "{}",
        worst_second(&moments(&sends))
    );
    assert!(sends.len() >= 20, "{}", sends.len());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_slots_of_a_dead_replica_are_lost_for_a_second() {
    let server = Redis::start().await;
    let prefix = format!("test{}:", fastrand::u64(..));
    let other = Harness::replica(server.port, prefix.clone()).await;
    // The replica ends with its runtime, while it is working.
    let dying = std::thread::spawn({
        let port = server.port;
        move || {
            let runtime = tokio::runtime::Builder::new_multi_thread()
                .worker_threads(1)
                .enable_all()
                .build()
                .unwrap();
            let harness = Arc::new(runtime.block_on(Harness::replica(port, prefix)));
            let sends = runtime.block_on(load(&[harness], &[20], 2 * SECOND));
            runtime.shutdown_background();
            sends
        }
    });
    let sends = load(&[Arc::new(other)], &[20], 9 * SECOND).await;
    let dead = dying.join().unwrap();
    let all: Vec<Instant> = moments(&sends).into_iter().chain(moments(&dead)).collect();
    assert_eq!(worst_second(&all), 5);
    let died = dead.last().unwrap().0;
    // Five each 1.02 s from then on, wherever they begin: ten in 2.4 s at least, and nine with a
    // part withheld.
    let from = died + SECOND;
    let after = sends
        .iter()
        .filter(|(at, _)| *at > from && *at <= from + 12 * SECOND / 5)
        .count();
    assert!(after >= 10, "the whole quota soon after: {after}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn at_two_hundred_per_second_all_calls_are_sent_within_the_limit() {
    let server = Redis::start().await;
    for replicas in [1, 3] {
        let harnesses = fleet(&server, replicas).await;
        let limit = Limit {
            count: NonZeroU32::new(200).unwrap(),
            window: SECOND,
        };
        let operation = Operation {
            limit: Some(limit),
            action: ActionName::new("Fast"),
            ..operation("a", 60 * SECOND)
        };
        // The first second of the store, and of the process, is over.
        for harness in &harnesses {
            drop(
                harness
                    .queue
                    .arrive(&operation, 10)
                    .unwrap()
                    .permit()
                    .await
                    .unwrap(),
            );
        }
        let sends = Arc::new(Mutex::new(Vec::new()));
        let mut calls = JoinSet::new();
        for index in 0..600 {
            let harness = harnesses[index % replicas].clone();
            let operation = operation.clone();
            let sends = sends.clone();
            calls.spawn(async move {
                let mut call = harness.queue.arrive(&operation, 10).unwrap();
                loop {
                    let permit = call.permit().await.unwrap();
                    let at = Instant::now();
                    if let Some((_, receipt)) = permit.spend() {
                        sends.lock().push(at);
                        return receipt.answered();
                    }
                }
            });
        }
        calls.join_all().await;
        let sends = sends.lock().clone();
        assert_eq!(sends.len(), 600);
        assert!(worst_second(&sends) <= 200, "{}", worst_second(&sends));
    }
}

//! What every token source guarantees. The same tests run over both: the memory of one process, in
//! simulated time, and the store that replicas share, a real server in real time. They check only
//! the order of events and what may not be earlier than what, not how fast the machine is.

use super::*;
use crate::servers::Redis;

/// Defines each test for both sources.
macro_rules! of_both {
    ($($name:ident),* $(,)?) => {
        mod memory {
            use super::*;
            $(#[tokio::test(start_paused = true)]
            async fn $name() {
                super::$name(Harness::new(GAP).await).await;
            })*
        }

        mod store {
            use super::*;
            $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $name() {
                let server = Redis::start().await;
                super::$name(Harness::sharing(&server).await).await;
            })*
        }
    };
}

of_both!(
    each_token_is_back_one_window_and_gap_after_its_own_use,
    no_second_has_six_sends_whatever_happens_to_permits,
    an_unused_permit_serves_another_call,
    after_a_throttle_nothing_is_sent_before_its_hint_then_one_probe_and_then_all,
    a_probe_that_was_never_sent_is_followed_by_another,
    a_probe_that_is_refused_pauses_the_lane_again,
    episodes_lower_the_rate,
    refusals_of_one_episode_are_one_congestion_event_and_the_longest_hint_holds,
    callers_that_disconnect_leave_their_tokens_to_others,
    each_account_that_the_configuration_does_not_name_has_a_quota_of_its_own,
);

type Used = (TestConnection, Receipt<TestConnector>);

/// Sends a call as soon as possible. A permit that arrives too late to be used does not count.
async fn sent(harness: &Harness) -> Used {
    sent_as(harness, &operation("a", 60 * SECOND)).await
}

async fn sent_as(harness: &Harness, operation: &Operation) -> Used {
    let mut call = harness.queue.arrive(operation, 100).unwrap();
    loop {
        if let Some(used) = call.permit().await.unwrap().spend() {
            return used;
        }
    }
}

/// Sends a call if that is possible within this time.
async fn could_be_sent(harness: &Harness, within: Duration) -> Option<Used> {
    tokio::time::timeout(within, sent(harness)).await.ok()
}

async fn each_account_that_the_configuration_does_not_name_has_a_quota_of_its_own(
    harness: Harness,
) {
    let unknown_key = |key| Operation {
        account: AccountId::new(key),
        known: false,
        ..operation("unverified", 30 * SECOND)
    };
    sent_as(&harness, &unknown_key("?one"))
        .await
        .1
        .throttled(Some(59 * SECOND));
    // When this replica has the answer, the store has the report.
    while harness.view().pause_remaining_seconds == 0.0 {
        sleep(Duration::from_millis(1)).await;
    }
    // If the pause applied to all accounts, the call would get no permit.
    sent_as(&harness, &unknown_key("?other")).await.1.answered();
}

async fn each_token_is_back_one_window_and_gap_after_its_own_use(harness: Harness) {
    let start = Instant::now();
    let mut first = Vec::new();
    for at in [0, 50, 100, 250, 400] {
        sleep_until(start + Duration::from_millis(at)).await;
        let before = Instant::now();
        sent(&harness).await.1.answered();
        first.push(before);
    }
    assert!(first[4] - first[0] < SECOND, "five go without waiting");
    for first in first {
        sent(&harness).await.1.answered();
        assert!(first.elapsed() >= SECOND + GAP, "{:?}", first.elapsed());
    }
}

async fn no_second_has_six_sends_whatever_happens_to_permits(harness: Harness) {
    let harness = Arc::new(harness);
    let sends = Arc::new(Mutex::new(Vec::new()));
    let mut calls = JoinSet::new();
    for index in 0..50_u64 {
        let harness = harness.clone();
        let sends = sends.clone();
        calls.spawn(async move {
            let mut random = fastrand::Rng::with_seed(index);
            sleep(Duration::from_millis(random.u64(..2000))).await;
            let mut call = harness.arrive(60 * SECOND).unwrap();
            loop {
                let permit = call.permit().await.unwrap();
                sleep(Duration::from_millis([0, 0, 2, 30][random.usize(..4)])).await;
                if random.u8(..6) == 0 {
                    continue;
                }
                let at = Instant::now();
                if let Some((_connection, receipt)) = permit.spend() {
                    sends.lock().push(at);
                    sleep(Duration::from_millis(random.u64(..50))).await;
                    return receipt.answered();
                }
            }
        });
    }
    calls.join_all().await;
    let sends = sends.lock().clone();
    assert_eq!((sends.len(), worst_second(&sends)), (50, 5));
    let (granted, spent, returned) = harness.tokens();
    assert_eq!((granted, spent), (spent + returned, 50));
}

async fn an_unused_permit_serves_another_call(harness: Harness) {
    for _ in 0..4 {
        sent(&harness).await.1.answered();
    }
    let mut unused = harness.arrive(60 * SECOND).unwrap();
    let permit = unused.permit().await.unwrap();
    let start = Instant::now();
    let other = tokio::spawn({
        let mut call = harness.arrive(60 * SECOND).unwrap();
        async move { while call.permit().await.unwrap().spend().is_none() {} }
    });
    drop(permit);
    other.await.unwrap();
    assert!(
        start.elapsed() < SECOND,
        "it is not the first token's next use: {:?}",
        start.elapsed()
    );
}

async fn after_a_throttle_nothing_is_sent_before_its_hint_then_one_probe_and_then_all(
    harness: Harness,
) {
    let (_, refused) = sent(&harness).await;
    let start = Instant::now();
    refused.throttled(Some(3 * SECOND / 2));
    let (_, probe) = sent(&harness).await;
    assert!(start.elapsed() >= 3 * SECOND / 2, "{:?}", start.elapsed());
    assert!(
        could_be_sent(&harness, SECOND / 2).await.is_none(),
        "the probe is in progress"
    );
    probe.answered();
    let answered = Instant::now();
    for _ in 0..4 {
        sent(&harness).await.1.answered();
    }
    assert!(
        answered.elapsed() < SECOND,
        "the others go together: {:?}",
        answered.elapsed()
    );
}

async fn a_probe_that_was_never_sent_is_followed_by_another(harness: Harness) {
    sent(&harness).await.1.throttled(Some(SECOND / 10));
    let (_, probe) = sent(&harness).await;
    probe.unsent();
    let (_, probe) = sent(&harness).await;
    assert!(
        could_be_sent(&harness, SECOND / 2).await.is_none(),
        "the second probe is in progress"
    );
    probe.answered();
    sent(&harness).await.1.answered();
}

async fn a_probe_that_is_refused_pauses_the_lane_again(harness: Harness) {
    sent(&harness).await.1.throttled(Some(SECOND / 10));
    let (_, probe) = sent(&harness).await;
    let start = Instant::now();
    probe.throttled(Some(SECOND));
    sent(&harness).await.1.answered();
    assert!(start.elapsed() >= SECOND, "{:?}", start.elapsed());
}

async fn episodes_lower_the_rate(harness: Harness) {
    sent(&harness).await.1.answered();
    let rate = || harness.view().effective_per_second;
    for _ in 0..5 {
        let (_, throttled) = sent(&harness).await;
        // Between episodes it rises, the more the slower the machine is.
        let before = rate();
        throttled.throttled(Some(Duration::from_millis(1)));
        // Over a store the report is on its way. If the rate is never lower, this has no end.
        while rate() >= before {
            sleep(Duration::from_millis(1)).await;
        }
        sent(&harness).await.1.answered();
    }
    assert!(rate() > 0.2, "{}", rate());
}

async fn refusals_of_one_episode_are_one_congestion_event_and_the_longest_hint_holds(
    harness: Harness,
) {
    let mut used = Vec::new();
    for _ in 0..5 {
        used.push(sent(&harness).await);
    }
    let start = Instant::now();
    for (index, (_connection, receipt)) in (1_u64..).zip(used) {
        receipt.throttled(Some(Duration::from_millis(200 * index)));
    }
    let (_, probe) = sent(&harness).await;
    assert!(start.elapsed() >= SECOND, "{:?}", start.elapsed());
    // All five were throttled. The remaining rate is far higher than after five congestion events.
    let view = harness.view();
    assert!((1.0..4.9).contains(&view.effective_per_second), "{view:?}");
    probe.answered();
}

async fn callers_that_disconnect_leave_their_tokens_to_others(harness: Harness) {
    let harness = Arc::new(harness);
    for _round in 0..2 {
        let start = Instant::now();
        let mut go = JoinSet::new();
        for _ in 0..30 {
            let harness = harness.clone();
            go.spawn(async move {
                could_be_sent(&harness, SECOND / 2)
                    .await
                    .map(|used| used.1.answered())
            });
        }
        let sent_at_once = go.join_all().await.into_iter().flatten().count();
        assert_eq!(sent_at_once, 5, "the first five go, the others hang up");
        for _ in 0..5 {
            sent(&harness).await.1.answered();
        }
        assert!(
            start.elapsed() >= SECOND + GAP && start.elapsed() < 2 * (SECOND + GAP),
            "{:?}",
            start.elapsed()
        );
        sleep(2 * SECOND).await;
    }
    assert_eq!(harness.view().queued, 0);
}

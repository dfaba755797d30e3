//! A throttle refusal pauses the lane. One probe follows, then the normal rate.

use super::*;

#[tokio::test(start_paused = true)]
async fn a_throttle_pauses_every_call_then_one_probe_then_the_learned_rate() {
    let harness = Harness::new(GAP).await;
    let start = Instant::now();
    let mut first = harness.arrive(30 * SECOND).unwrap();
    let (_, receipt) = first.permit().await.unwrap().spend().unwrap();
    sleep(Duration::from_millis(20)).await;
    receipt.throttled(Some(3 * SECOND));
    let mut calls = JoinSet::new();
    for index in 0..4 {
        let mut call = harness.arrive(30 * SECOND).unwrap();
        calls.spawn(async move {
            let (_, receipt) = call.permit().await.unwrap().spend().unwrap();
            let at = start.elapsed();
            sleep(Duration::from_millis(40)).await;
            receipt.answered();
            (index, at.as_millis())
        });
    }
    // The throttled call comes back last, but is the probe because it arrived first.
    sleep(Duration::from_millis(100)).await;
    let (_, receipt) = first.permit().await.unwrap().spend().unwrap();
    assert_eq!(start.elapsed().as_millis(), 3020);
    sleep(Duration::from_millis(40)).await;
    receipt.answered();
    // A refusal without any accepted attempt before it lowers the rate: from the probe on, calls
    // are written one at a time.
    let spacing = 1000.0 / harness.view().effective_per_second;
    let mut left: Vec<_> = calls
        .join_all()
        .await
        .into_iter()
        .map(|(_, at)| at)
        .collect();
    left.sort_unstable();
    assert!((200.0..220.0).contains(&spacing), "{spacing}");
    for (index, at) in (1..).zip(left) {
        let expected = 3020.0 + spacing * f64::from(index);
        assert!(
            (at as f64 - expected).abs() <= 10.0,
            "{at} instead of {expected}"
        );
    }
}

#[tokio::test(start_paused = true)]
async fn a_probe_with_an_unknown_end_does_not_block_the_lane() {
    let harness = Harness::new(GAP).await;
    let (_, receipt) = harness
        .arrive(30 * SECOND)
        .unwrap()
        .permit()
        .await
        .unwrap()
        .spend()
        .unwrap();
    receipt.throttled(Some(SECOND));
    let (_, probe) = harness
        .arrive(30 * SECOND)
        .unwrap()
        .permit()
        .await
        .unwrap()
        .spend()
        .unwrap();
    let mut next = harness.arrive(30 * SECOND).unwrap();
    let waiting = tokio::spawn(async move { next.permit().await.map(drop) });
    sleep(SECOND).await;
    assert!(!waiting.is_finished());
    drop(probe);
    waiting.await.unwrap().unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_slow_probe_stops_the_lane_for_a_second_at_most() {
    let harness = Harness::new(GAP).await;
    pause(&harness, SECOND).await;
    let (_, probe) = harness
        .arrive(30 * SECOND)
        .unwrap()
        .permit()
        .await
        .unwrap()
        .spend()
        .unwrap();
    let start = Instant::now();
    harness
        .arrive(30 * SECOND)
        .unwrap()
        .permit()
        .await
        .unwrap()
        .spend()
        .unwrap()
        .1
        .answered();
    assert_eq!(start.elapsed(), SECOND);
    // If it is throttled after all, that is a new episode.
    probe.throttled(Some(SECOND));
    assert!(harness.view().pause_remaining_seconds > 0.9);
}

#[tokio::test(start_paused = true)]
async fn calls_that_a_throttle_pause_makes_late_are_refused_immediately() {
    let harness = Harness::new(GAP).await;
    let mut receipts = Vec::new();
    for _ in 0..5 {
        receipts.push(
            harness
                .arrive(30 * SECOND)
                .unwrap()
                .permit()
                .await
                .unwrap()
                .spend()
                .unwrap()
                .1,
        );
    }
    let start = Instant::now();
    let mut ends = JoinSet::new();
    for (index, hold) in [5, 30, 5, 30].into_iter().enumerate() {
        let mut call = harness.arrive(hold * SECOND).unwrap();
        ends.spawn(async move {
            (
                index,
                call.permit()
                    .await
                    .map(drop)
                    .map_err(|refusal| refusal.kind),
                start.elapsed(),
            )
        });
    }
    sleep(Duration::from_millis(10)).await;
    receipts.pop().unwrap().throttled(Some(20 * SECOND));
    let ends: BTreeMap<_, _> = ends
        .join_all()
        .await
        .into_iter()
        .map(|(index, end, at)| (index, (end, at)))
        .collect();
    let refused_at = Duration::from_millis(10);
    let paused = Duration::from_millis(20_010);
    for index in [0, 2] {
        assert_eq!(ends[&index], (Err(Kind::WaitTooLong), refused_at));
    }
    assert_eq!(ends[&1], (Ok(()), paused));
    assert_eq!(ends[&3].0, Ok(()));
    // A new call is refused immediately, too, with `Retry-After`.
    pause(&harness, 20 * SECOND).await;
    let refusal = harness
        .arrive(5 * SECOND)
        .unwrap()
        .permit()
        .await
        .err()
        .unwrap();
    // The rest of the pause after its hold, plus a window at the rate that two episodes have
    // lowered.
    let view = harness.view();
    let window = Duration::from_secs_f64(f64::from(view.tokens_usable) / view.effective_per_second);
    assert_eq!(refusal.kind, Kind::WaitTooLong);
    assert!(
        refusal.retry_after.unwrap().abs_diff(15 * SECOND + window) < Duration::from_millis(1),
        "{refusal:?}"
    );
}

#[tokio::test(start_paused = true)]
async fn a_throttled_lane_is_not_removed() {
    let harness = Harness::new(GAP).await;
    pause(&harness, SECOND).await;
    sleep(10 * SECOND).await;
    harness.queue.forget_idle();
    let mut permits = Vec::new();
    permits.push(harness.arrive(30 * SECOND).unwrap().permit().await.unwrap());
    let second = tokio::time::timeout(SECOND, async {
        harness
            .arrive(30 * SECOND)
            .unwrap()
            .permit()
            .await
            .map(drop)
    });
    assert!(second.await.is_err(), "only one probe is sent");
}

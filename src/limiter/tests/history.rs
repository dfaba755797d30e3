//! What is kept for operators: the samples of the last 15 minutes, and the queue that a call finds.

use super::*;
use crate::observe::history::Ended;
use crate::observe::record::{Arrival, Way};

#[tokio::test(start_paused = true)]
async fn a_sample_has_what_a_lane_did_although_the_lane_was_forgotten_before_it() {
    let harness = Harness::new(GAP).await;
    harness.queue.sample(Ended::default());
    for _ in 0..3 {
        drop(
            harness
                .arrive(SECOND)
                .unwrap()
                .permit()
                .await
                .unwrap()
                .spend(),
        );
    }
    sleep(3 * SECOND).await;
    harness.queue.forget_idle();
    assert!(harness.queue.lanes().is_empty());
    sleep(2 * SECOND).await;
    harness.queue.sample(Ended::default());
    let history = harness.queue.history();
    let latest = |values: &[Option<f64>]| *values.last().unwrap();
    assert_eq!(latest(&history.total.granted_per_second), Some(0.6));
    assert_eq!(latest(&history.total.limit_per_second), Some(5.0));
    let lane = &history.lanes[0];
    assert_eq!((&*lane.account, &*lane.action), ("acme", "CreateFlow"));
    assert_eq!(latest(&lane.granted_per_second), Some(0.6));
}

#[tokio::test(start_paused = true)]
async fn a_sample_has_the_queue_and_a_pause_that_ended_within_its_interval() {
    let harness = Harness::new(GAP).await;
    harness.queue.sample(Ended::default());
    pause(&harness, SECOND).await;
    sleep(5 * SECOND).await;
    harness
        .queue
        .handle_command("acme", "CreateFlow", false, Command::Pause(None))
        .await;
    let mut waiting = JoinSet::new();
    for _ in 0..4 {
        let mut call = harness.arrive(90 * SECOND).unwrap();
        waiting.spawn(async move { call.permit().await.is_ok() });
    }
    sleep(Duration::from_millis(1)).await;
    harness.queue.sample(Ended::default());
    sleep(5 * SECOND).await;
    harness.queue.sample(Ended::default());
    let history = harness.queue.history();
    let lane = &history.lanes[0];
    let last_two = |values: &[Option<u32>]| values[values.len() - 2..].to_vec();
    assert_eq!(last_two(&lane.throttled), [Some(1), Some(0)]);
    assert_eq!(last_two(&lane.queued), [Some(4), Some(4)]);
    assert_eq!(lane.paused.last(), Some(&Some(2)));
    assert_eq!(history.total.paused_lanes.last(), Some(&Some(1)));
}

#[tokio::test(start_paused = true)]
async fn a_call_notes_the_queue_that_it_finds_unless_it_is_granted_at_once() {
    let harness = Harness::new(GAP).await;
    let mut way: Option<Box<Way>> = None;
    let mut call = harness.arrive(30 * SECOND).unwrap();
    let (_, receipt) = call.permit_for(&mut way).await.unwrap().spend().unwrap();
    assert!(way.is_none());
    receipt.throttled(Some(2 * SECOND));
    let mut first = harness.arrive(30 * SECOND).unwrap();
    let waiting = tokio::spawn(async move { first.permit().await.is_ok() });
    sleep(SECOND).await;
    let mut second = harness.arrive(30 * SECOND).unwrap();
    second.permit_for(&mut way).await.unwrap();
    let arrival = way.take().and_then(|way| way.arrival).unwrap();
    assert!(arrival.predicted_ms >= 1000, "{arrival:?}");
    let expected = Arrival {
        ahead: 1,
        predicted_ms: arrival.predicted_ms,
        queued: true,
        tokens_free: arrival.tokens_free,
        tokens: 5,
        pause_ms: 1000,
        paused_by_operator: false,
    };
    assert_eq!(arrival, expected);
    assert!(waiting.await.unwrap());
    pause(&harness, 20 * SECOND).await;
    let mut refused = harness.arrive(SECOND).unwrap();
    assert!(refused.permit_for(&mut way).await.is_err());
    let arrival = way.and_then(|way| way.arrival).unwrap();
    assert_eq!((arrival.queued, arrival.pause_ms), (false, 20_000));
}

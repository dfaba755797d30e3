//! The calls that are refused: at the end of a hold, at a bound of the queue, while the upstream is
//! down, in a drain.

use super::*;
use crate::limiter::lane::Event;

#[tokio::test(start_paused = true)]
async fn a_wait_that_exceeds_its_forecast_ends_with_the_hold() {
    let harness = Harness::new(GAP).await;
    harness.connector.delay_ms.store(60_000, Ordering::Relaxed);
    let start = Instant::now();
    let refusal = harness
        .arrive(5 * SECOND)
        .unwrap()
        .permit()
        .await
        .err()
        .unwrap();
    assert_eq!(
        (refusal.kind, start.elapsed()),
        (Kind::HoldExpired, 5 * SECOND)
    );
    assert!(refusal.retry_after.is_some());
}

#[tokio::test(start_paused = true)]
async fn a_call_that_comes_back_after_its_hold_is_not_sent() {
    let harness = Harness::new(GAP).await;
    let mut call = harness.arrive(5 * SECOND).unwrap();
    let (_, receipt) = call.permit().await.unwrap().spend().unwrap();
    sleep(20 * SECOND).await;
    receipt.throttled(Some(SECOND));
    sleep(2 * SECOND).await;
    assert_eq!(call.permit().await.err().unwrap().kind, Kind::HoldExpired);
}

#[tokio::test(start_paused = true)]
async fn connections_for_all_calls_with_a_token_are_requested_concurrently() {
    let harness = Harness::new(GAP).await;
    harness.connector.delay_ms.store(100, Ordering::Relaxed);
    let mut calls = JoinSet::new();
    for _ in 0..9 {
        let mut call = harness.arrive(30 * SECOND).unwrap();
        calls.spawn(async move { call.permit().await.unwrap().spend().unwrap().1.answered() });
    }
    calls.join_all().await;
    assert_eq!(harness.connector.wanted.load(Ordering::Relaxed), 5);
}

#[tokio::test(start_paused = true)]
async fn a_predicted_wait_beyond_the_hold_is_refused_immediately_with_retry_after() {
    let harness = Harness::new(GAP).await;
    for _ in 0..5 {
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
    }
    let mut waiting = Vec::new();
    for _ in 0..25 {
        let mut call = harness.arrive(30 * SECOND).unwrap();
        waiting.push(tokio::spawn(async move {
            call.permit().await.unwrap().spend().unwrap().1.answered()
        }));
    }
    tokio::task::yield_now().await;
    let refusal = harness
        .arrive(5 * SECOND)
        .unwrap()
        .permit()
        .await
        .err()
        .unwrap();
    assert_eq!(refusal.kind, Kind::WaitTooLong);
    assert_eq!(refusal.retry_after, Some((SECOND + GAP) * 7 - 5 * SECOND));
    assert_eq!(
        refusal.queued,
        Some(crate::error::Queued {
            ahead: 25,
            wait: (SECOND + GAP) * 6
        })
    );
    // Calls that are refused together get `Retry-After` times spread at the rate of the lane.
    for later in 1..10_u32 {
        let refusal = harness
            .arrive(5 * SECOND)
            .unwrap()
            .permit()
            .await
            .err()
            .unwrap();
        assert_eq!(
            refusal.retry_after,
            Some((SECOND + GAP) * 7 - 5 * SECOND + (SECOND + GAP) / 5 * later)
        );
    }
    assert_eq!(harness.view().queued, 25);
    for task in waiting {
        task.await.unwrap();
    }
}

#[tokio::test(start_paused = true)]
async fn every_bound_of_the_queue_is_kept_and_named() {
    let harness = Harness::with(GAP, |bounds| {
        bounds.max_waiting = 4;
        bounds.max_waiting_per_client = 3;
        bounds.max_bytes = 1000;
    })
    .await;
    for _ in 0..5 {
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
    }
    let mut waiting = Vec::new();
    for client in ["a", "a", "a", "a", "b", "b"] {
        let mut call = harness
            .queue
            .arrive(&operation(client, 30 * SECOND), 100)
            .unwrap();
        waiting.push(tokio::spawn(async move {
            call.permit()
                .await
                .map(drop)
                .map_err(|refusal| refusal.message)
        }));
        tokio::task::yield_now().await;
    }
    let mut ends = Vec::new();
    for task in waiting.drain(..) {
        ends.push(task.await.unwrap());
    }
    let client_full = Err("This client's part of the queue of 3 waiting calls is full. CAMS has done nothing. Repeat it after the retry time.".to_owned());
    // The second call of b arrives at a full queue. Client a has the most calls, so its newest one
    // is evicted.
    let evicted = Err("The queue of 4 waiting calls is full. CAMS has done nothing. Repeat it after the retry time.".to_owned());
    assert_eq!(ends, [Ok(()), Ok(()), evicted, client_full, Ok(()), Ok(())]);
    // Each call uses 100 of the 1000 bytes. A client may use half of them.
    let arrive = |client| harness.queue.arrive(&operation(client, 30 * SECOND), 100);
    let why = |client| arrive(client).err().unwrap().message;
    let calls_of_a: Vec<_> = (0..5).map(|_| arrive("a").unwrap()).collect();
    assert_eq!(
        why("a"),
        "This client's part of Flowgate's memory for queued calls is full."
    );
    let calls_of_b: Vec<_> = (0..5).map(|_| arrive("b").unwrap()).collect();
    assert_eq!(why("c"), "Flowgate's memory for queued calls is full.");
    drop((calls_of_a, calls_of_b));
    assert!(arrive("c").is_ok());
    harness.queue.forget_idle();
    assert!(harness.queue.inner.client_budgets.is_empty());
    assert_eq!(harness.bounds.max_bytes, 1000);
}

#[tokio::test(start_paused = true)]
async fn the_refusal_at_the_end_of_the_hold_names_an_upstream_that_is_down() {
    let harness = Harness::new(GAP).await;
    harness.connector.is_down.store(true, Ordering::Relaxed);
    let start = Instant::now();
    let refusal = harness
        .arrive(3 * SECOND)
        .unwrap()
        .permit()
        .await
        .err()
        .unwrap();
    assert_eq!(
        (refusal.kind, start.elapsed()),
        (Kind::UpstreamUnreachable, 3 * SECOND)
    );
    assert_eq!(harness.tokens(), (0, 0, 0));
    let mut call = harness.arrive(30 * SECOND).unwrap();
    let waiting =
        tokio::spawn(async move { call.permit().await.unwrap().spend().unwrap().1.answered() });
    sleep(SECOND).await;
    harness.connector.is_down.store(false, Ordering::Relaxed);
    waiting.await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_worker_that_panics_is_replaced_and_its_queue_is_served() {
    let harness = Harness::new(GAP).await;
    harness.connector.delay_ms.store(1, Ordering::Relaxed);
    harness.connector.panics.store(true, Ordering::Relaxed);
    let mut calls = JoinSet::new();
    for _ in 0..7 {
        let mut call = harness.arrive(30 * SECOND).unwrap();
        calls.spawn(async move { call.permit().await.unwrap().spend().unwrap().1.answered() });
    }
    assert_eq!(calls.join_all().await.len(), 7);
    assert!(
        !harness.connector.panics.load(Ordering::Relaxed),
        "the worker has panicked"
    );
}

#[tokio::test(start_paused = true)]
async fn a_drain_serves_the_calls_that_fit_and_refuses_the_rest_immediately() {
    let harness = Harness::new(GAP).await;
    let start = Instant::now();
    let mut calls = JoinSet::new();
    for index in 0..40_u32 {
        let mut call = harness.arrive(120 * SECOND).unwrap();
        calls.spawn(async move {
            let end = call
                .permit()
                .await
                .map(|permit| permit.spend().unwrap().1.answered())
                .map_err(|refusal| refusal.kind);
            (index, end, start.elapsed())
        });
    }
    sleep(Duration::from_millis(1)).await;
    harness.queue.drain(start + 5 * SECOND);
    let ends: BTreeMap<_, _> = calls
        .join_all()
        .await
        .into_iter()
        .map(|(i, end, at)| (i, (end, at)))
        .collect();
    for (index, (end, at)) in ends {
        if index < 25 {
            assert_eq!((end, at), (Ok(()), (SECOND + GAP) * (index / 5)));
        } else {
            assert_eq!((end, at), (Err(Kind::Draining), Duration::from_millis(1)));
        }
    }
    sleep_until(start + 6 * SECOND).await;
    assert_eq!(
        harness
            .arrive(30 * SECOND)
            .unwrap()
            .permit()
            .await
            .err()
            .map(|r| r.kind),
        Some(Kind::Draining)
    );
}

#[tokio::test(start_paused = true)]
async fn an_action_without_a_limit_needs_no_lane() {
    let harness = Harness::new(GAP).await;
    let mut free = operation("a", SECOND);
    free.limit = None;
    let start = Instant::now();
    for _ in 0..1000 {
        harness
            .queue
            .arrive(&free, 0)
            .unwrap()
            .permit()
            .await
            .unwrap()
            .spend()
            .unwrap()
            .1
            .answered();
    }
    assert_eq!(start.elapsed(), Duration::ZERO);
    assert!(harness.queue.lanes().is_empty());
}

#[tokio::test(start_paused = true)]
async fn without_tokens_the_advice_is_seconds_and_not_a_day() {
    let harness = Harness::new(GAP).await;
    let call = harness.arrive(SECOND).unwrap();
    harness.set_source(Source::None);
    assert_eq!(call.predicted_wait(), 2 * SECOND);
    harness.set_dealt(0, 0);
    assert_eq!(call.predicted_wait(), 2 * SECOND);
    harness.set_dealt(0, 5);
    assert_eq!(call.predicted_wait(), Duration::ZERO);
}

#[tokio::test(start_paused = true)]
async fn calls_are_refused_immediately_while_all_tokens_are_withheld() {
    let harness = Harness::new(GAP).await;
    harness.set_dealt(0, 5);
    let mut waiting = harness.arrive(30 * SECOND).unwrap();
    let waiting = tokio::spawn(async move { waiting.permit().await.err().unwrap() });
    sleep(SECOND).await;
    harness.set_dealt(0, 0);
    harness
        .queue
        .lane(&operation("a", SECOND))
        .event(Event::DrainBegan);
    let newcomer = harness
        .arrive(30 * SECOND)
        .unwrap()
        .permit()
        .await
        .err()
        .unwrap();
    for refusal in [waiting.await.unwrap(), newcomer] {
        assert_eq!(
            (refusal.kind, refusal.retry_after),
            (Kind::StoreUnavailable, Some(2 * SECOND))
        );
    }
}

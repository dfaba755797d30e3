//! The times of grants, to the millisecond, and the call that gets an unused permit.

use super::*;

#[tokio::test(start_paused = true)]
async fn sixty_calls_at_once_are_sent_in_eleven_windows_and_gaps() {
    let harness = Harness::new(GAP).await;
    let start = Instant::now();
    let mut calls = JoinSet::new();
    for index in 0..60_u32 {
        let mut call = harness.arrive(120 * SECOND).unwrap();
        calls.spawn(async move {
            call.permit().await.unwrap().spend().unwrap().1.answered();
            (index, start.elapsed())
        });
    }
    let left: BTreeMap<u32, Duration> = calls.join_all().await.into_iter().collect();
    for (index, at) in left {
        assert_eq!(at, (SECOND + GAP) * (index / 5), "call {index}");
    }
    assert_eq!(harness.tokens(), (60, 60, 0));
}

#[tokio::test(start_paused = true)]
async fn after_idle_time_five_calls_are_sent_immediately_and_the_sixth_after_a_window() {
    let harness = Harness::new(GAP).await;
    for _round in 0..3 {
        let start = Instant::now();
        for index in 0..6 {
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
            let expected = if index < 5 {
                Duration::ZERO
            } else {
                SECOND + GAP
            };
            assert_eq!(start.elapsed(), expected);
        }
        sleep(3 * SECOND).await;
    }
}

#[tokio::test(start_paused = true)]
async fn nothing_leaves_in_the_first_second_of_a_process() {
    let mut harness = Harness::new(GAP).await;
    let inner = Arc::get_mut(&mut Arc::get_mut(&mut harness.queue).unwrap().inner).unwrap();
    inner.started = Instant::now();
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
    assert_eq!(start.elapsed(), SECOND + GAP);
}

#[tokio::test(start_paused = true)]
async fn an_unused_permit_goes_to_the_next_call_immediately() {
    let harness = Harness::new(GAP).await;
    let mut permits = Vec::new();
    for _ in 0..5 {
        permits.push(harness.arrive(30 * SECOND).unwrap().permit().await.unwrap());
    }
    let mut sixth = harness.arrive(30 * SECOND).unwrap();
    let start = Instant::now();
    let waiting =
        tokio::spawn(async move { sixth.permit().await.map(|permit| (permit, Instant::now())) });
    sleep(Duration::from_millis(70)).await;
    permits.pop();
    let (_turn, at) = waiting.await.unwrap().unwrap();
    assert_eq!(at - start, Duration::from_millis(70));
    assert_eq!(harness.tokens(), (6, 0, 1));
}

#[tokio::test(start_paused = true)]
async fn no_call_hangs_whichever_others_leave() {
    for seed in 0..200 {
        let mut random = fastrand::Rng::with_seed(seed);
        let harness = Harness::new(GAP).await;
        let mut stay = Vec::new();
        let mut leave = Vec::new();
        for _ in 0..20 {
            let mut call = harness.arrive(120 * SECOND).unwrap();
            let task = tokio::spawn(async move {
                call.permit().await.unwrap().spend().unwrap().1.answered();
            });
            if random.bool() {
                stay.push(task)
            } else {
                leave.push(task)
            }
        }
        sleep(Duration::from_millis(random.u64(0..2500))).await;
        leave.iter().for_each(tokio::task::JoinHandle::abort);
        for task in stay {
            task.await.unwrap();
        }
        sleep(2 * SECOND).await;
        harness.queue.forget_idle();
        assert!(
            harness.queue.lanes().is_empty(),
            "seed {seed}: the lane is at rest"
        );
        let (granted, spent, returned) = harness.tokens();
        assert_eq!(granted, spent + returned, "seed {seed}");
        assert_eq!(
            harness.connector.open.load(Ordering::Relaxed),
            0,
            "seed {seed}: connections are given back"
        );
    }
}

#[tokio::test(start_paused = true)]
async fn a_slot_that_expires_before_its_use_is_not_used() {
    let harness = Harness::new(GAP).await;
    harness.set_dealt(1, 5);
    harness.connector.lookup_ms.store(20, Ordering::Relaxed);
    let permit = harness
        .arrive(SECOND)
        .unwrap()
        .permit()
        .await
        .expect("it is granted");
    assert!(permit.spend().is_none(), "the slot has expired");
    assert_eq!(harness.tokens(), (1, 0, 1));
}

#[tokio::test(start_paused = true)]
async fn a_slot_that_expires_while_a_connection_is_looked_up_is_not_granted() {
    let harness = Harness::new(GAP).await;
    harness.set_dealt(1, 5);
    let lane = harness.queue.lane(&operation("a", SECOND));
    lane.lock()
        .state
        .lane
        .pause_until(Instant::now() + Duration::from_millis(10));
    harness.connector.lookup_ms.store(20, Ordering::Relaxed);
    let refusal = harness
        .arrive(SECOND)
        .unwrap()
        .permit()
        .await
        .err()
        .unwrap();
    assert_eq!(
        (refusal.kind, harness.tokens()),
        (Kind::HoldExpired, (0, 0, 0))
    );
    harness.set_dealt(1, 5);
    harness.connector.lookup_ms.store(0, Ordering::Relaxed);
    assert!(harness.arrive(SECOND).unwrap().permit().await.is_ok());
}

//! When does a turn come, to the millisecond, and to whom does one go that is not used?

use super::*;

#[tokio::test(start_paused = true)]
async fn sixty_at_once_leave_in_eleven_seconds_and_eleven_gaps() {
    let world = World::new(GAP).await;
    let start = Instant::now();
    let mut calls = JoinSet::new();
    for index in 0..60_u32 {
        let mut call = world.arrive(120 * SECOND).unwrap();
        calls.spawn(async move {
            call.permit().await.unwrap().spend().unwrap().1.answered();
            (index, start.elapsed())
        });
    }
    let left: BTreeMap<u32, Duration> = calls.join_all().await.into_iter().collect();
    for (index, at) in left {
        assert_eq!(at, (SECOND + GAP) * (index / 5), "call {index}");
    }
    assert_eq!(world.tokens(), (60, 60, 0));
}

#[tokio::test(start_paused = true)]
async fn the_fifth_call_after_idleness_waits_nothing_and_the_sixth_a_window() {
    let world = World::new(GAP).await;
    for _round in 0..3 {
        let start = Instant::now();
        for index in 0..6 {
            world
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
    let mut world = World::new(GAP).await;
    let shared = Arc::get_mut(&mut Arc::get_mut(&mut world.queue).unwrap().shared).unwrap();
    shared.started = Instant::now();
    let start = Instant::now();
    world
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
async fn a_turn_that_is_not_used_goes_to_the_next_at_once() {
    let world = World::new(GAP).await;
    let mut turns = Vec::new();
    for _ in 0..5 {
        turns.push(world.arrive(30 * SECOND).unwrap().permit().await.unwrap());
    }
    let mut sixth = world.arrive(30 * SECOND).unwrap();
    let start = Instant::now();
    let waiting =
        tokio::spawn(async move { sixth.permit().await.map(|turn| (turn, Instant::now())) });
    sleep(Duration::from_millis(70)).await;
    turns.pop();
    let (_turn, at) = waiting.await.unwrap().unwrap();
    assert_eq!(at - start, Duration::from_millis(70));
    assert_eq!(world.tokens(), (6, 0, 1));
}

#[tokio::test(start_paused = true)]
async fn whoever_leaves_in_whatever_subset_nobody_hangs() {
    for seed in 0..200 {
        let mut random = fastrand::Rng::with_seed(seed);
        let world = World::new(GAP).await;
        let mut stay = Vec::new();
        let mut leave = Vec::new();
        for _ in 0..20 {
            let mut call = world.arrive(120 * SECOND).unwrap();
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
        world.queue.forget_idle();
        assert!(
            world.queue.lanes().is_empty(),
            "seed {seed}: the lane is at rest"
        );
        let (granted, spent, returned) = world.tokens();
        assert_eq!(granted, spent + returned, "seed {seed}");
        assert_eq!(
            world.door.open.load(Ordering::Relaxed),
            0,
            "seed {seed}: connections are given back"
        );
    }
}

#[tokio::test(start_paused = true)]
async fn a_slot_that_becomes_too_late_before_it_is_used_is_not_used() {
    let world = World::new(GAP).await;
    world.dealt(1, 5);
    world.door.looks_ms.store(20, Ordering::Relaxed);
    let permit = world
        .arrive(SECOND)
        .unwrap()
        .permit()
        .await
        .expect("it is granted");
    assert!(permit.spend().is_none(), "it is too late to be used");
    assert_eq!(world.tokens(), (1, 0, 1));
}

#[tokio::test(start_paused = true)]
async fn a_slot_that_becomes_too_late_while_a_connection_is_looked_for_is_not_granted_and_ends_no_worker()
 {
    let world = World::new(GAP).await;
    world.dealt(1, 5);
    let lane = world.queue.lane(&operation("a", SECOND));
    lane.lock()
        .state
        .lane
        .pause_until(Instant::now() + Duration::from_millis(10));
    world.door.looks_ms.store(20, Ordering::Relaxed);
    let refusal = world.arrive(SECOND).unwrap().permit().await.err().unwrap();
    assert_eq!(
        (refusal.kind, world.tokens()),
        (Kind::HoldExpired, (0, 0, 0))
    );
    world.dealt(1, 5);
    world.door.looks_ms.store(0, Ordering::Relaxed);
    assert!(world.arrive(SECOND).unwrap().permit().await.is_ok());
}

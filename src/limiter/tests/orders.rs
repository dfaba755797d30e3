//! What an operator orders: a lane that pauses sends nobody, one that goes on goes on at its rate, and whoever waits in one
//! that is flushed is told at once.

use super::*;
use crate::limiter::order::CommandResult;

/// So many calls come with this hold, and are told what became of them and when, from now on.
fn come(world: &World, count: usize, hold: Duration) -> JoinSet<(Option<Kind>, u128)> {
    let (mut calls, start) = (JoinSet::new(), Instant::now());
    for _ in 0..count {
        let mut call = world.arrive(hold).unwrap();
        calls.spawn(async move {
            let turn = call.permit().await.map(|turn| drop(turn.spend()));
            (
                turn.err().map(|refusal| refusal.kind),
                start.elapsed().as_millis(),
            )
        });
    }
    calls
}

async fn ends(calls: JoinSet<(Option<Kind>, u128)>) -> Vec<(Option<Kind>, u128)> {
    let mut ends = calls.join_all().await;
    ends.sort_by_key(|(_, at)| *at);
    ends
}

async fn order(world: &World, order: Order) -> CommandResult {
    world
        .queue
        .order("acme", "CreateFlow", false, order)
        .await
        .expect("there is a lane")
}

#[tokio::test(start_paused = true)]
async fn nobody_is_sent_until_the_pause_is_over_and_then_at_the_rate() {
    let world = World::new(GAP).await;
    let calls = come(&world, 8, 30 * SECOND);
    sleep(Duration::from_millis(100)).await;
    assert_eq!(
        order(&world, Order::Pause(Some(7 * SECOND))).await,
        CommandResult { told: 0, queued: 3 }
    );
    let more = come(&world, 4, 30 * SECOND);
    sleep(SECOND).await;
    let view = world.view();
    assert_eq!(
        (view.queued, view.pause_remaining_seconds, view.granted),
        (7, 6.0, 5)
    );
    assert_eq!(
        view.operator_pause
            .and_then(|pause| pause.remaining_seconds),
        Some(6.0)
    );
    // All tokens are free at its end, and no probe goes before the others.
    let sent = |at| (None, at);
    assert_eq!(
        ends(calls).await,
        [
            sent(0),
            sent(0),
            sent(0),
            sent(0),
            sent(0),
            sent(7100),
            sent(7100),
            sent(7100)
        ]
    );
    assert_eq!(
        ends(more).await,
        [sent(7000), sent(7000), sent(8005), sent(8005)]
    );
    assert_eq!(world.view().operator_pause, None);
}

#[tokio::test(start_paused = true)]
async fn without_an_end_it_lasts_until_it_is_resumed() {
    let world = World::new(GAP).await;
    drop(world.arrive(SECOND).unwrap().permit().await.unwrap());
    order(&world, Order::Pause(None)).await;
    let patient = come(&world, 6, 300 * SECOND);
    sleep(200 * SECOND).await;
    assert_eq!(
        world.view().operator_pause,
        Some(view::OperatorPause {
            remaining_seconds: None
        })
    );
    assert_eq!(
        order(&world, Order::Resume).await,
        CommandResult { told: 0, queued: 6 }
    );
    let sent = |at| (None, at);
    let expected = [
        sent(200_000),
        sent(200_000),
        sent(200_000),
        sent(200_000),
        sent(200_000),
        sent(201_005),
    ];
    assert_eq!(ends(patient).await, expected);
}

#[tokio::test(start_paused = true)]
async fn whom_it_makes_late_is_told_at_once_and_when_to_come_back() {
    let world = World::new(GAP).await;
    let (impatient, patient) = (come(&world, 7, 5 * SECOND), come(&world, 2, 90 * SECOND));
    sleep(Duration::from_millis(10)).await;
    assert_eq!(
        order(&world, Order::Pause(Some(20 * SECOND))).await,
        CommandResult { told: 2, queued: 2 }
    );
    assert_eq!(
        ends(impatient).await[5..],
        [(Some(Kind::WaitTooLong), 10); 2]
    );
    let refusal = world
        .arrive(5 * SECOND)
        .unwrap()
        .permit()
        .await
        .err()
        .unwrap();
    // What is left of the pause after its hold, and a window; two were told before, and each gets a moment of its own.
    let least = 15 * SECOND + SECOND + GAP;
    let advice = refusal.retry_after.unwrap();
    assert_eq!(refusal.kind, Kind::WaitTooLong);
    assert!((least..least + SECOND).contains(&advice), "{advice:?}");
    // A pause without an end is forecast, too, and nobody is sent away for long.
    order(&world, Order::Pause(None)).await;
    let refusal = world
        .arrive(5 * SECOND)
        .unwrap()
        .permit()
        .await
        .err()
        .unwrap();
    assert!(
        (55 * SECOND..60 * SECOND).contains(&refusal.retry_after.unwrap()),
        "{refusal:?}"
    );
    order(&world, Order::Resume).await;
    assert_eq!(ends(patient).await, [(None, 1005); 2]);
}

#[tokio::test(start_paused = true)]
async fn a_flush_tells_everybody_and_leaves_the_lane_as_it_is() {
    let world = World::new(GAP).await;
    let calls = come(&world, 9, 30 * SECOND);
    sleep(Duration::from_millis(300)).await;
    assert_eq!(
        order(&world, Order::Flush).await,
        CommandResult { told: 4, queued: 0 }
    );
    assert_eq!(ends(calls).await[5..], [(Some(Kind::Flushed), 300); 4]);
    assert_eq!(world.tokens(), (5, 5, 0));
    // Who comes now is served as if nobody had waited.
    assert_eq!(ends(come(&world, 2, 30 * SECOND)).await, [(None, 705); 2]);
    assert_eq!(
        order(&world, Order::Flush).await,
        CommandResult { told: 0, queued: 0 }
    );
}

#[tokio::test(start_paused = true)]
async fn who_is_flushed_comes_back_one_after_the_other() {
    let world = World::new(GAP).await;
    order_new(&world, Order::Pause(Some(10 * SECOND))).await;
    let mut calls = JoinSet::new();
    for _ in 0..10 {
        let mut call = world.arrive(30 * SECOND).unwrap();
        calls.spawn(async move { call.permit().await.err().unwrap() });
    }
    sleep(SECOND).await;
    assert_eq!(order(&world, Order::Flush).await.told, 10);
    let mut advice: Vec<_> = calls
        .join_all()
        .await
        .into_iter()
        .map(|refusal| refusal.retry_after.unwrap())
        .collect();
    advice.sort_unstable();
    assert_eq!(
        advice[0],
        10 * SECOND + GAP,
        "the rest of the pause, and a window"
    );
    assert!(
        advice
            .windows(2)
            .all(|two| two[1] - two[0] == (SECOND + GAP) / 5),
        "{advice:?}"
    );
}

#[tokio::test(start_paused = true)]
async fn a_lane_that_nobody_has_called_can_be_paused_and_is_kept() {
    let world = World::new(GAP).await;
    assert_eq!(
        world
            .queue
            .order("acme", "CreateFlow", false, Order::Flush)
            .await,
        None
    );
    assert_eq!(
        world
            .queue
            .order("acme", "Unlimited", true, Order::Flush)
            .await,
        None,
        "it has no lane"
    );
    order_new(&world, Order::Pause(Some(100 * SECOND))).await;
    sleep(99 * SECOND).await;
    world.queue.forget_idle();
    assert_eq!(ends(come(&world, 1, 30 * SECOND)).await, [(None, 1000)]);
    sleep(10 * SECOND).await;
    world.queue.forget_idle();
    assert!(world.queue.lanes().is_empty(), "it is over");
}

#[tokio::test(start_paused = true)]
async fn a_throttle_and_a_reload_leave_the_order_in_force() {
    let world = World::new(GAP).await;
    let receipt = world
        .arrive(SECOND)
        .unwrap()
        .permit()
        .await
        .unwrap()
        .spend()
        .unwrap()
        .1;
    order(&world, Order::Pause(Some(30 * SECOND))).await;
    receipt.throttled(Some(2 * SECOND));
    super::reload::reload(&world, Some((2, 1000)), |_| {});
    let view = world.view();
    assert_eq!((view.pause_remaining_seconds, view.tokens), (30.0, 2));
    order(&world, Order::Resume).await;
    assert_eq!(
        world.view().pause_remaining_seconds,
        2.0,
        "that of CAMS goes on"
    );
}

#[tokio::test(start_paused = true)]
async fn lanes_of_one_label_are_one() {
    let world = World::new(GAP).await;
    let mut turns = Vec::new();
    for key in ["?a", "?b"] {
        for _ in 0..3 {
            let stranger = Operation {
                account: AccountId::new(key),
                known: false,
                ..operation("unverified", SECOND)
            };
            let mut call = world.queue.arrive(&stranger, 1).unwrap();
            turns.push(call.permit().await.unwrap());
        }
    }
    let obeyed = world
        .queue
        .order("unknown", "CreateFlow", false, Order::Pause(None))
        .await;
    assert_eq!(obeyed, Some(CommandResult::default()));
    let views = world.queue.lanes_by_label();
    let [view] = &views[..] else {
        panic!("{views:?}")
    };
    assert_eq!(
        (
            view.account.as_str(),
            view.tokens,
            view.tokens_held,
            view.granted
        ),
        ("unknown", 10, 6, 6)
    );
    assert!(
        world
            .queue
            .lanes()
            .iter()
            .all(|view| view.operator_pause.is_some())
    );
}

/// The same for a lane that may not be there yet.
async fn order_new(world: &World, order: Order) -> CommandResult {
    super::reload::reload(world, Some((5, 1000)), |_| {});
    world
        .queue
        .order("acme", "CreateFlow", true, order)
        .await
        .expect("the action is limited")
}

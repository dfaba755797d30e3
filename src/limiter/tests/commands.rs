//! Operators' commands: a paused lane sends nothing, a resumed one continues at its rate, and a
//! flush refuses every queued call immediately.

use super::*;
use crate::limiter::commands::CommandResult;

/// Starts `count` calls with this hold. Each returns the kind of its refusal, if any, and the time
/// in milliseconds since now.
fn start_calls(harness: &Harness, count: usize, hold: Duration) -> JoinSet<(Option<Kind>, u128)> {
    let mut calls = JoinSet::new();
    let start = Instant::now();
    for _ in 0..count {
        let mut call = harness.arrive(hold).unwrap();
        calls.spawn(async move {
            let permit = call.permit().await.map(|permit| drop(permit.spend()));
            (
                permit.err().map(|refusal| refusal.kind),
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

async fn send(harness: &Harness, command: Command) -> CommandResult {
    harness
        .queue
        .handle_command("acme", "CreateFlow", false, command)
        .await
        .expect("there is a lane")
}

#[tokio::test(start_paused = true)]
async fn no_call_is_sent_during_a_pause_and_then_calls_are_sent_at_the_rate() {
    let harness = Harness::new(GAP).await;
    let calls = start_calls(&harness, 8, 30 * SECOND);
    sleep(Duration::from_millis(100)).await;
    assert_eq!(
        send(&harness, Command::Pause(Some(7 * SECOND))).await,
        CommandResult {
            refused: 0,
            queued: 3
        }
    );
    let more = start_calls(&harness, 4, 30 * SECOND);
    sleep(SECOND).await;
    let view = harness.view();
    assert_eq!(
        (view.queued, view.pause_remaining_seconds, view.granted),
        (7, 6.0, 5)
    );
    assert_eq!(
        view.operator_pause
            .and_then(|pause| pause.remaining_seconds),
        Some(6.0)
    );
    // All tokens are free at the end of the pause, and no probe is sent first.
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
    assert_eq!(harness.view().operator_pause, None);
}

#[tokio::test(start_paused = true)]
async fn an_indefinite_pause_lasts_until_it_is_resumed() {
    let harness = Harness::new(GAP).await;
    drop(harness.arrive(SECOND).unwrap().permit().await.unwrap());
    send(&harness, Command::Pause(None)).await;
    let patient = start_calls(&harness, 6, 300 * SECOND);
    sleep(200 * SECOND).await;
    assert_eq!(
        harness.view().operator_pause,
        Some(view::OperatorPauseView {
            remaining_seconds: None
        })
    );
    assert_eq!(
        send(&harness, Command::Resume).await,
        CommandResult {
            refused: 0,
            queued: 6
        }
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
async fn calls_that_a_pause_makes_late_are_refused_immediately_with_retry_after() {
    let harness = Harness::new(GAP).await;
    let impatient = start_calls(&harness, 7, 5 * SECOND);
    let patient = start_calls(&harness, 2, 90 * SECOND);
    sleep(Duration::from_millis(10)).await;
    assert_eq!(
        send(&harness, Command::Pause(Some(20 * SECOND))).await,
        CommandResult {
            refused: 2,
            queued: 2
        }
    );
    assert_eq!(
        ends(impatient).await[5..],
        [(Some(Kind::WaitTooLong), 10); 2]
    );
    let refusal = harness
        .arrive(5 * SECOND)
        .unwrap()
        .permit()
        .await
        .err()
        .unwrap();
    // The rest of the pause after the hold, plus a window. Two calls were refused before, and each
    // gets a time of its own.
    let least = 15 * SECOND + SECOND + GAP;
    let advice = refusal.retry_after.unwrap();
    assert_eq!(refusal.kind, Kind::WaitTooLong);
    assert!((least..least + SECOND).contains(&advice), "{advice:?}");
    // An indefinite pause has a forecast, too, so that `Retry-After` is not long.
    send(&harness, Command::Pause(None)).await;
    let refusal = harness
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
    send(&harness, Command::Resume).await;
    assert_eq!(ends(patient).await, [(None, 1005); 2]);
}

#[tokio::test(start_paused = true)]
async fn a_flush_refuses_every_queued_call_and_changes_nothing_else() {
    let harness = Harness::new(GAP).await;
    let calls = start_calls(&harness, 9, 30 * SECOND);
    sleep(Duration::from_millis(300)).await;
    assert_eq!(
        send(&harness, Command::Flush).await,
        CommandResult {
            refused: 4,
            queued: 0
        }
    );
    assert_eq!(ends(calls).await[5..], [(Some(Kind::Flushed), 300); 4]);
    assert_eq!(harness.tokens(), (5, 5, 0));
    // A new call is served as if none had been queued.
    assert_eq!(
        ends(start_calls(&harness, 2, 30 * SECOND)).await,
        [(None, 705); 2]
    );
    assert_eq!(
        send(&harness, Command::Flush).await,
        CommandResult {
            refused: 0,
            queued: 0
        }
    );
}

#[tokio::test(start_paused = true)]
async fn flushed_calls_get_retry_after_times_spread_at_the_rate() {
    let harness = Harness::new(GAP).await;
    send_to_new(&harness, Command::Pause(Some(10 * SECOND))).await;
    let mut calls = JoinSet::new();
    for _ in 0..10 {
        let mut call = harness.arrive(30 * SECOND).unwrap();
        calls.spawn(async move { call.permit().await.err().unwrap() });
    }
    sleep(SECOND).await;
    assert_eq!(send(&harness, Command::Flush).await.refused, 10);
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
async fn a_lane_without_calls_can_be_paused_and_is_kept() {
    let harness = Harness::new(GAP).await;
    assert_eq!(
        harness
            .queue
            .handle_command("acme", "CreateFlow", false, Command::Flush)
            .await,
        None
    );
    assert_eq!(
        harness
            .queue
            .handle_command("acme", "Unlimited", true, Command::Flush)
            .await,
        None,
        "the action has no lane"
    );
    send_to_new(&harness, Command::Pause(Some(100 * SECOND))).await;
    sleep(99 * SECOND).await;
    harness.queue.forget_idle();
    assert_eq!(
        ends(start_calls(&harness, 1, 30 * SECOND)).await,
        [(None, 1000)]
    );
    sleep(10 * SECOND).await;
    harness.queue.forget_idle();
    assert!(harness.queue.lanes().is_empty(), "the pause is over");
}

#[tokio::test(start_paused = true)]
async fn a_throttle_and_a_reload_leave_an_operators_pause_in_force() {
    let harness = Harness::new(GAP).await;
    let receipt = harness
        .arrive(SECOND)
        .unwrap()
        .permit()
        .await
        .unwrap()
        .spend()
        .unwrap()
        .1;
    send(&harness, Command::Pause(Some(30 * SECOND))).await;
    receipt.throttled(Some(2 * SECOND));
    super::reload::reload(&harness, Some((2, 1000)), |_| {});
    let view = harness.view();
    assert_eq!((view.pause_remaining_seconds, view.tokens), (30.0, 2));
    send(&harness, Command::Resume).await;
    assert_eq!(
        harness.view().pause_remaining_seconds,
        2.0,
        "the throttle pause continues"
    );
}

#[tokio::test(start_paused = true)]
async fn lanes_with_the_same_label_are_merged() {
    let harness = Harness::new(GAP).await;
    let mut permits = Vec::new();
    for key in ["?a", "?b"] {
        for _ in 0..3 {
            let stranger = Operation {
                account: AccountId::new(key),
                known: false,
                ..operation("unverified", SECOND)
            };
            let mut call = harness.queue.arrive(&stranger, 1).unwrap();
            permits.push(call.permit().await.unwrap());
        }
    }
    let result = harness
        .queue
        .handle_command("unknown", "CreateFlow", false, Command::Pause(None))
        .await;
    assert_eq!(result, Some(CommandResult::default()));
    let views = harness.queue.lanes_by_label();
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
        harness
            .queue
            .lanes()
            .iter()
            .all(|view| view.operator_pause.is_some())
    );
}

/// Sends a command to a lane that may not exist yet.
async fn send_to_new(harness: &Harness, command: Command) -> CommandResult {
    super::reload::reload(harness, Some((5, 1000)), |_| {});
    harness
        .queue
        .handle_command("acme", "CreateFlow", true, command)
        .await
        .expect("the action is limited")
}

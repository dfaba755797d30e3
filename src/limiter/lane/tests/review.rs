//! A long queue is reviewed in pieces, and one throttle episode causes one review.

use super::Step::*;
use super::*;

const LONG: u64 = 10_000;

/// A lane of 200 per second with 200 attempts in progress and this number of queued calls.
fn waiting(calls: u64, hold: impl Fn(u64) -> u64) -> Harness {
    let mut harness = Harness::warm(200);
    for call in 1..=200 {
        harness.send_one(call, 0);
    }
    for call in 0..calls {
        harness.apply(Arrive(1000 + call, "a", hold(call)));
    }
    harness
}

/// Reviews until nothing is due. Returns the number of pieces and of refused calls.
fn review(harness: &mut Harness, at: u64) -> (usize, usize) {
    let mut pieces = 0;
    let mut refused = 0;
    let mut next = harness.step(at, Check).1;
    while next == "review" {
        let seen = harness.step(at, Review);
        refused += seen.0.matches("refuse").count();
        (pieces, next) = (pieces + 1, seen.1);
    }
    (pieces, refused)
}

#[test]
fn a_long_queue_is_reviewed_in_pieces_once_per_episode() {
    let mut harness = waiting(LONG, |_| HOLD);
    harness.row(
        "the first",
        (10, Throttled(1, Some(20_000)), "pauses 20000", "review"),
    );
    for call in 2..=50 {
        harness.row("the others", (10, Throttled(call, None), "", "review"));
    }
    assert_eq!(review(&mut harness, 10), (LONG.div_ceil(128) as usize, 0));
    assert!(!harness.lane.has_review() || harness.step(59, Check).1.starts_with("pause"));
}

#[test]
fn a_new_review_waits_for_the_one_in_progress_and_a_minimum_interval() {
    let mut harness = waiting(LONG, |_| HOLD);
    harness.row(
        "the first",
        (10, Throttled(1, Some(20_000)), "pauses 20000", "review"),
    );
    for _ in 0..10 {
        harness.row("a piece", (10, Review, "", "review"));
    }
    harness.row("another", (10, Throttled(2, Some(30_000)), "", "review"));
    let (pieces, _) = review(&mut harness, 11);
    assert_eq!(pieces, LONG.div_ceil(128) as usize - 10);
    harness.row("not at once", (60, Check, "", "pause 30010"));
    harness.row("a moment later", (61, Check, "", "review"));
    assert_eq!(review(&mut harness, 61).0, LONG.div_ceil(128) as usize);
    assert!(!harness.lane.has_review());
}

#[test]
fn exactly_the_calls_that_become_late_are_refused() {
    // Half of the calls have a hold that is never over.
    let mut harness = waiting(1000, |call| if call % 2 == 0 { HOLD } else { 15_000 });
    harness.row(
        "the first",
        (10, Throttled(1, Some(20_000)), "pauses 20000", "review"),
    );
    assert_eq!(review(&mut harness, 10).1, 500);
    assert_eq!(harness.lane.queue().len(), 500);
    assert!(
        harness
            .lane
            .queue()
            .waiting()
            .all(|(entry, _)| entry.sequence.0 % 2 == 0)
    );
}

#[test]
fn a_walk_visits_each_call_once_while_calls_are_served_and_leave() {
    let mut harness = waiting(1000, |_| HOLD);
    harness.row("an order", (10, Pause(Some(1000)), "", "review"));
    harness.row("a piece", (10, Review, "", "review"));
    harness.step(1010, Check);
    for call in 1000..1100 {
        assert_eq!(harness.step(1010, Connected).0, format!("grant {call}"));
    }
    for call in 1300..1400 {
        harness.step(1010, Leave(call));
    }
    let mut pieces = 1;
    while harness.lane.has_review() {
        harness.step(1010, Review);
        pieces += 1;
        assert!(pieces < 20);
    }
    assert_eq!((pieces, harness.lane.queue().len()), (8, 800));
}

#[test]
fn a_drain_that_ends_soon_after_a_long_review_refuses_all_without_a_busy_wait() {
    let mut harness = waiting(LONG, |_| HOLD);
    harness.row("a drain", (10, Drain(20), "", "review"));
    harness.drain_by = Some(harness.at(60_000));
    review(&mut harness, 10);
    harness.drain_by = Some(harness.at(20));
    let (next, check_at) = {
        let cx = Context {
            now: harness.at(20),
            rules: &harness.rules,
            drain_by: harness.drain_by,
        };
        harness.lane.next(true, cx)
    };
    assert_eq!((next, check_at), (Next::Event, Some(harness.at(60))));
    let (pieces, refused) = review(&mut harness, 60);
    assert_eq!(
        (pieces, refused),
        (LONG.div_ceil(128) as usize, LONG as usize)
    );
}

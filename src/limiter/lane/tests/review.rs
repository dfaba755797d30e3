//! The review of a long queue goes in pieces, and one episode of refusals costs one.

use super::Do::*;
use super::*;

const LONG: u64 = 10_000;

/// A lane of 200 a second in which this many calls wait behind a refusal that pauses it for long.
fn waiting(calls: u64, hold: impl Fn(u64) -> u64) -> World {
    let mut world = World::warm(200);
    for call in 1..=200 {
        world.sends(call, 0);
    }
    for call in 0..calls {
        world.does(Arrive(1000 + call, "a", hold(call)));
    }
    world
}

/// Reviews until nothing is due: how many pieces, and how many calls were refused.
fn review(world: &mut World, at: u64) -> (usize, usize) {
    let (mut pieces, mut refused) = (0, 0);
    let mut next = world.happens(at, Look).1;
    while next == "review" {
        let seen = world.happens(at, Review);
        refused += seen.0.matches("refuse").count();
        (pieces, next) = (pieces + 1, seen.1);
    }
    (pieces, refused)
}

#[test]
fn a_long_queue_is_reviewed_in_pieces_once_an_episode() {
    let mut world = waiting(LONG, |_| HOLD);
    world.row(
        "the first",
        (10, Throttled(1, Some(20_000)), "pauses 20000", "review"),
    );
    for call in 2..=50 {
        world.row("the others", (10, Throttled(call, None), "", "review"));
    }
    assert_eq!(review(&mut world, 10), (LONG.div_ceil(128) as usize, 0));
    assert!(!world.lane.has_review() || world.happens(59, Look).1.starts_with("pause"));
}

#[test]
fn new_requests_wait_for_the_review_that_is_under_way_and_then_for_a_moment() {
    let mut world = waiting(LONG, |_| HOLD);
    world.row(
        "the first",
        (10, Throttled(1, Some(20_000)), "pauses 20000", "review"),
    );
    for _ in 0..10 {
        world.row("a piece", (10, Review, "", "review"));
    }
    world.row("another", (10, Throttled(2, Some(30_000)), "", "review"));
    let (pieces, _) = review(&mut world, 11);
    assert_eq!(pieces, LONG.div_ceil(128) as usize - 10);
    world.row("not at once", (60, Look, "", "pause 30010"));
    world.row("a moment later", (61, Look, "", "review"));
    assert_eq!(review(&mut world, 61).0, LONG.div_ceil(128) as usize);
    assert!(!world.lane.has_review());
}

#[test]
fn exactly_the_calls_that_become_late_are_refused() {
    // The rate that is learned decides who is late: half of the calls can wait for ever.
    let mut world = waiting(1000, |call| if call % 2 == 0 { HOLD } else { 15_000 });
    world.row(
        "the first",
        (10, Throttled(1, Some(20_000)), "pauses 20000", "review"),
    );
    assert_eq!(review(&mut world, 10).1, 500);
    assert_eq!(world.lane.queue().len(), 500);
    assert!(
        world
            .lane
            .queue()
            .waiting()
            .all(|(entry, _)| entry.place.0 % 2 == 0)
    );
}

#[test]
fn a_walk_meets_each_call_once_while_calls_are_served_and_leave() {
    let mut world = waiting(1000, |_| HOLD);
    world.row("an order", (10, Order(Some(1000)), "", "review"));
    world.row("a piece", (10, Review, "", "review"));
    world.happens(1010, Look);
    for call in 1000..1100 {
        assert_eq!(world.happens(1010, Connected).0, format!("grant {call}"));
    }
    for call in 1300..1400 {
        world.happens(1010, Leave(call));
    }
    let mut pieces = 1;
    while world.lane.has_review() {
        world.happens(1010, Review);
        pieces += 1;
        assert!(pieces < 20);
    }
    assert_eq!((pieces, world.lane.queue().len()), (8, 800));
}

#[test]
fn a_drain_that_ends_soon_after_a_long_review_refuses_all_without_a_busy_wait() {
    let mut world = waiting(LONG, |_| HOLD);
    world.row("a drain", (10, Drain(20), "", "review"));
    world.drain_by = Some(world.at(60_000));
    review(&mut world, 10);
    world.drain_by = Some(world.at(20));
    let (next, look_at) = {
        let cx = Context {
            now: world.at(20),
            rules: &world.rules,
            drain_by: world.drain_by,
        };
        world.lane.next(true, cx)
    };
    assert_eq!((next, look_at), (Next::Event, Some(world.at(60))));
    let (pieces, refused) = review(&mut world, 60);
    assert_eq!(
        (pieces, refused),
        (LONG.div_ceil(128) as usize, LONG as usize)
    );
}

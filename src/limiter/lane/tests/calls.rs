//! Calls that arrive, wait, leave and are granted; grants that are written, returned, or of no use any more.

use super::Do::*;
use super::*;

#[test]
fn a_lone_call_is_granted_at_once() {
    let mut world = World::warm(5);
    world.rows([
        (0, Pass(1), "grant 1", "rest"),
        (0, MaySend(1), "yes", "rest"),
        (3, Written(1, 2), "", "rest"),
        (40, Accepted(1), "", "rest"),
    ]);
    assert_eq!((world.lane.granted(), world.lane.source().held()), (1, 0));
}

#[test]
fn the_first_of_a_cold_lane_waits_for_a_token() {
    World::cold(5).rows([
        (0, Pass(1), "closed", "rest"),
        (0, Arrive(1, "a", HOLD), "", "token 1005"),
        (1004, Connected, "", "token 1005"),
        (1005, Look, "", "grant"),
        (1005, Connected, "grant 1", "rest"),
        (1005, Connected, "", "rest"),
    ]);
}

#[test]
fn as_many_as_the_count_go_together_and_the_next_waits_for_the_first_write() {
    World::warm(2).rows([
        (0, Arrive(1, "a", HOLD), "", "grant"),
        (0, Arrive(2, "a", HOLD), "", "grant"),
        (0, Arrive(3, "a", HOLD), "", "grant"),
        (0, Connected, "grant 1", "grant"),
        (0, Connected, "grant 2", "event"),
        (0, Pass(4), "closed", "event"),
        (0, Connected, "", "event"),
        (3, Written(2, 2), "", "token 1007"),
        (9, Written(1, 1), "", "token 1006"),
        (1006, Look, "", "grant"),
        (1006, Connected, "grant 3", "rest"),
    ]);
}

#[test]
fn a_tokens_clock_runs_from_a_write_that_is_late_by_a_second() {
    World::warm(1).rows([
        (0, Arrive(1, "a", HOLD), "", "grant"),
        (0, Arrive(2, "a", HOLD), "", "grant"),
        (0, Connected, "grant 1", "event"),
        (0, MaySend(1), "yes", "event"),
        (999, Look, "", "event"),
        // Written at a second, and reported half of one later.
        (1500, Written(1, 1000), "", "token 2005"),
        (1510, Accepted(1), "", "token 2005"),
        (2005, Look, "", "grant"),
    ]);
}

#[test]
fn a_returned_grants_token_goes_to_the_next_call() {
    let mut world = World::warm(1);
    world.rows([
        (0, Arrive(1, "a", HOLD), "", "grant"),
        (0, Arrive(2, "a", HOLD), "", "grant"),
        (0, Connected, "grant 1", "event"),
        (50, Returned(1), "", "grant"),
        (50, Connected, "grant 2", "rest"),
    ]);
    assert_eq!((world.lane.granted(), world.lane.source().held()), (2, 1));
}

#[test]
fn every_end_of_an_untroubled_attempt_leaves_the_lane_open() {
    for end in [Accepted, Unknown, Unsent] {
        let mut world = World::warm(2);
        world.sends(1, 0);
        world.rows([
            (10, end(1), "", "rest"),
            (10, Pass(2), "grant 2", "rest"),
            (10, Pass(3), "closed", "rest"),
        ]);
    }
}

#[test]
fn a_caller_that_hangs_up_leaves_at_any_stage() {
    World::warm(1).rows([
        (0, Arrive(1, "a", HOLD), "", "grant"),
        (0, Arrive(2, "a", HOLD), "", "grant"),
        (0, Arrive(3, "a", HOLD), "", "grant"),
        // While it is next, and again.
        (1, Leave(1), "", "grant"),
        (1, Leave(1), "", "grant"),
        (1, Connected, "grant 2", "event"),
        // While it waits behind a held token.
        (2, Leave(3), "", "rest"),
        // With its grant: it is not in the queue any more.
        (3, Leave(2), "", "rest"),
        (3, Returned(2), "", "rest"),
        (3, Pass(4), "grant 4", "rest"),
    ]);
}

#[test]
fn calls_wait_for_as_many_connections_as_can_be_used() {
    let mut world = World::warm(2);
    world.has_connection = false;
    world.rows([
        (0, Arrive(1, "a", HOLD), "", "connect 1"),
        (0, Arrive(2, "a", HOLD), "", "connect 2"),
        (0, Arrive(3, "a", HOLD), "", "connect 2"),
        (5, Connected, "grant 1", "connect 1"),
        (5, Connected, "grant 2", "connect 1"),
    ]);
}

#[test]
fn a_call_whose_turn_comes_too_late_is_refused_when_it_arrives() {
    World::cold(1).rows([
        (0, Arrive(1, "a", AWAY - 1), "refuse 1 WaitTooLong", "rest"),
        (0, Arrive(2, "a", AWAY), "", "token 1005"),
        (
            0,
            Arrive(3, "a", 2 * AWAY - 1),
            "refuse 3 WaitTooLong",
            "token 1005",
        ),
        (0, Arrive(4, "a", 2 * AWAY), "", "token 1005"),
        (0, Arrive(5, "a", 0), "expire 5", "token 1005"),
        // The turn of another client's first call comes before the second of this one.
        (0, Arrive(6, "b", 2 * AWAY), "", "token 1005"),
    ]);
}

#[test]
fn a_call_that_goes_before_others_lets_those_be_refused_that_become_late() {
    World::cold(1).rows([
        (0, Arrive(1, "a", HOLD), "", "token 1005"),
        (0, Arrive(2, "a", 2 * AWAY + 10), "", "token 1005"),
        (0, Arrive(3, "b", HOLD), "", "token 1005"),
        // Arrivals are gathered for a moment.
        (19, Look, "", "token 1005"),
        (20, Look, "", "review"),
        (20, Review, "refuse 2 WaitTooLong", "token 1005"),
    ]);
}

#[test]
fn a_full_queue_takes_from_the_client_with_the_most_calls() {
    let mut world = World::cold(5);
    (
        world.rules.bounds.max_waiting,
        world.rules.bounds.max_waiting_per_client,
    ) = (3, 2);
    world.rows([
        (0, Arrive(1, "a", HOLD), "", "token 1005"),
        (0, Arrive(2, "a", HOLD), "", "token 1005"),
        (0, Arrive(3, "a", HOLD), "refuse 3 QueueFull", "token 1005"),
        (0, Arrive(4, "b", HOLD), "", "token 1005"),
        (0, Arrive(5, "b", HOLD), "refuse 2 QueueFull", "token 1005"),
        (0, Arrive(6, "b", HOLD), "refuse 6 QueueFull", "token 1005"),
        (0, Arrive(7, "c", HOLD), "refuse 5 QueueFull", "token 1005"),
        (0, Arrive(8, "a", HOLD), "refuse 8 QueueFull", "token 1005"),
        // A call that comes back was admitted before. It lets the queue be reviewed.
        (0, Again(9, "a", HOLD), "", "review"),
        (0, Review, "", "token 1005"),
    ]);
    assert_eq!(world.lane.queue().len(), 4);
}

#[test]
fn a_call_that_comes_back_stands_where_it_stood() {
    let mut world = World::warm(1);
    world.rows([
        (0, Arrive(1, "a", HOLD), "", "grant"),
        (0, Connected, "grant 1", "rest"),
        (0, Written(1, 0), "", "rest"),
        (0, Arrive(2, "a", HOLD), "", "token 1005"),
        (500, Again(1, "a", HOLD), "", "review"),
        (500, Review, "", "token 1005"),
        (1005, Connected, "grant 1", "event"),
    ]);
}

#[test]
fn no_call_is_sent_after_its_hold() {
    World::cold(1).rows([
        (0, Arrive(1, "a", 1100), "", "token 1005"),
        (0, Arrive(2, "a", 2500), "", "token 1005"),
        // The thread is late.
        (1101, Connected, "expire 1", "grant"),
        (1102, Connected, "grant 2", "rest"),
        (2500, MaySend(2), "yes", "rest"),
        (2501, MaySend(2), "no", "rest"),
        (2501, Returned(2), "", "rest"),
    ]);
}

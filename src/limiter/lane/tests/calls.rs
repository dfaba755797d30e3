//! Calls that arrive, wait, leave and are granted; grants that are written, returned or
//! invalidated.

use super::Step::*;
use super::*;

#[test]
fn a_lone_call_is_granted_at_once() {
    let mut harness = Harness::warm(5);
    harness.rows([
        (0, TryGrant(1), "grant 1", "idle"),
        (0, MaySend(1), "yes", "idle"),
        (3, Written(1, 2), "", "idle"),
        (40, Accepted(1), "", "idle"),
    ]);
    assert_eq!(
        (harness.lane.granted(), harness.lane.source().held()),
        (1, 0)
    );
}

#[test]
fn the_first_call_of_a_cold_lane_waits_for_a_token() {
    Harness::cold(5).rows([
        (0, TryGrant(1), "closed", "idle"),
        (0, Arrive(1, "a", HOLD), "", "token 1005"),
        (1004, Connected, "", "token 1005"),
        (1005, Check, "", "grant"),
        (1005, Connected, "grant 1", "idle"),
        (1005, Connected, "", "idle"),
    ]);
}

#[test]
fn count_calls_are_granted_together_and_the_next_waits_for_the_first_write() {
    Harness::warm(2).rows([
        (0, Arrive(1, "a", HOLD), "", "grant"),
        (0, Arrive(2, "a", HOLD), "", "grant"),
        (0, Arrive(3, "a", HOLD), "", "grant"),
        (0, Connected, "grant 1", "grant"),
        (0, Connected, "grant 2", "event"),
        (0, TryGrant(4), "closed", "event"),
        (0, Connected, "", "event"),
        (3, Written(2, 2), "", "token 1007"),
        (9, Written(1, 1), "", "token 1006"),
        (1006, Check, "", "grant"),
        (1006, Connected, "grant 3", "idle"),
    ]);
}

#[test]
fn a_tokens_window_runs_from_a_late_write() {
    Harness::warm(1).rows([
        (0, Arrive(1, "a", HOLD), "", "grant"),
        (0, Arrive(2, "a", HOLD), "", "grant"),
        (0, Connected, "grant 1", "event"),
        (0, MaySend(1), "yes", "event"),
        (999, Check, "", "event"),
        // Written at 1000 ms and reported 500 ms later.
        (1500, Written(1, 1000), "", "token 2005"),
        (1510, Accepted(1), "", "token 2005"),
        (2005, Check, "", "grant"),
    ]);
}

#[test]
fn the_token_of_a_returned_grant_goes_to_the_next_call() {
    let mut harness = Harness::warm(1);
    harness.rows([
        (0, Arrive(1, "a", HOLD), "", "grant"),
        (0, Arrive(2, "a", HOLD), "", "grant"),
        (0, Connected, "grant 1", "event"),
        (50, Returned(1), "", "grant"),
        (50, Connected, "grant 2", "idle"),
    ]);
    assert_eq!(
        (harness.lane.granted(), harness.lane.source().held()),
        (2, 1)
    );
}

#[test]
fn every_end_but_a_throttle_leaves_the_lane_open() {
    for end in [Accepted, Unknown, Unsent] {
        let mut harness = Harness::warm(2);
        harness.send_one(1, 0);
        harness.rows([
            (10, end(1), "", "idle"),
            (10, TryGrant(2), "grant 2", "idle"),
            (10, TryGrant(3), "closed", "idle"),
        ]);
    }
}

#[test]
fn a_caller_may_disconnect_at_any_stage() {
    Harness::warm(1).rows([
        (0, Arrive(1, "a", HOLD), "", "grant"),
        (0, Arrive(2, "a", HOLD), "", "grant"),
        (0, Arrive(3, "a", HOLD), "", "grant"),
        // While it is next. Leaving twice does nothing.
        (1, Leave(1), "", "grant"),
        (1, Leave(1), "", "grant"),
        (1, Connected, "grant 2", "event"),
        // While it waits behind a held token.
        (2, Leave(3), "", "idle"),
        // After its grant: it is not queued any more.
        (3, Leave(2), "", "idle"),
        (3, Returned(2), "", "idle"),
        (3, TryGrant(4), "grant 4", "idle"),
    ]);
}

#[test]
fn the_lane_waits_for_as_many_connections_as_it_can_use() {
    let mut harness = Harness::warm(2);
    harness.has_connection = false;
    harness.rows([
        (0, Arrive(1, "a", HOLD), "", "connect 1"),
        (0, Arrive(2, "a", HOLD), "", "connect 2"),
        (0, Arrive(3, "a", HOLD), "", "connect 2"),
        (5, Connected, "grant 1", "connect 1"),
        (5, Connected, "grant 2", "connect 1"),
    ]);
}

#[test]
fn a_call_whose_predicted_wait_exceeds_its_hold_is_refused_on_arrival() {
    Harness::cold(1).rows([
        (0, Arrive(1, "a", AWAY - 1), "refuse 1 WaitTooLong", "idle"),
        (0, Arrive(2, "a", AWAY), "", "token 1005"),
        (
            0,
            Arrive(3, "a", 2 * AWAY - 1),
            "refuse 3 WaitTooLong",
            "token 1005",
        ),
        (0, Arrive(4, "a", 2 * AWAY), "", "token 1005"),
        (0, Arrive(5, "a", 0), "expire 5", "token 1005"),
        // The first call of another client is served before the second one of this client.
        (0, Arrive(6, "b", 2 * AWAY), "", "token 1005"),
    ]);
}

#[test]
fn an_arrival_that_goes_before_others_refuses_those_that_become_late() {
    Harness::cold(1).rows([
        (0, Arrive(1, "a", HOLD), "", "token 1005"),
        (0, Arrive(2, "a", 2 * AWAY + 10), "", "token 1005"),
        (0, Arrive(3, "b", HOLD), "", "token 1005"),
        // Several arrivals are collected before the review.
        (19, Check, "", "token 1005"),
        (20, Check, "", "review"),
        (20, Review, "refuse 2 WaitTooLong", "token 1005"),
    ]);
}

#[test]
fn a_full_queue_evicts_from_the_client_with_the_most_calls() {
    let mut harness = Harness::cold(5);
    (
        harness.rules.bounds.max_waiting,
        harness.rules.bounds.max_waiting_per_client,
    ) = (3, 2);
    harness.rows([
        (0, Arrive(1, "a", HOLD), "", "token 1005"),
        (0, Arrive(2, "a", HOLD), "", "token 1005"),
        (0, Arrive(3, "a", HOLD), "refuse 3 QueueFull", "token 1005"),
        (0, Arrive(4, "b", HOLD), "", "token 1005"),
        (0, Arrive(5, "b", HOLD), "refuse 2 QueueFull", "token 1005"),
        (0, Arrive(6, "b", HOLD), "refuse 6 QueueFull", "token 1005"),
        (0, Arrive(7, "c", HOLD), "refuse 5 QueueFull", "token 1005"),
        (0, Arrive(8, "a", HOLD), "refuse 8 QueueFull", "token 1005"),
        // A returning call was admitted before. It causes a review.
        (0, Return(9, "a", HOLD), "", "review"),
        (0, Review, "", "token 1005"),
    ]);
    assert_eq!(harness.lane.queue().len(), 4);
}

#[test]
fn a_returning_call_keeps_its_position() {
    let mut harness = Harness::warm(1);
    harness.rows([
        (0, Arrive(1, "a", HOLD), "", "grant"),
        (0, Connected, "grant 1", "idle"),
        (0, Written(1, 0), "", "idle"),
        (0, Arrive(2, "a", HOLD), "", "token 1005"),
        (500, Return(1, "a", HOLD), "", "review"),
        (500, Review, "", "token 1005"),
        (1005, Connected, "grant 1", "event"),
    ]);
}

#[test]
fn no_call_is_sent_after_its_hold() {
    Harness::cold(1).rows([
        (0, Arrive(1, "a", 1100), "", "token 1005"),
        (0, Arrive(2, "a", 2500), "", "token 1005"),
        // The worker is late.
        (1101, Connected, "expire 1", "grant"),
        (1102, Connected, "grant 2", "idle"),
        (2500, MaySend(2), "yes", "idle"),
        (2501, MaySend(2), "no", "idle"),
        (2501, Returned(2), "", "idle"),
    ]);
}

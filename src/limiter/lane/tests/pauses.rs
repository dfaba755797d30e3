//! Throttle refusals, the pause that follows, its probe, and the rate after it; an operator's
//! pauses.

use super::Step::*;
use super::*;

/// A lane of this count whose first call is throttled 10 ms after its write.
fn refused(count: u32, hint: u64) -> Harness {
    let mut harness = Harness::warm(count);
    harness.send_one(1, 0);
    let pauses = format!("pauses {hint}");
    harness.row("refused", (10, Throttled(1, Some(hint)), &pauses, "idle"));
    harness
}

#[test]
fn a_throttle_is_followed_by_a_pause_one_probe_and_the_learned_rate() {
    let mut harness = refused(5, 2000);
    harness.rows([
        (20, Arrive(2, "a", HOLD), "", "pause 2010"),
        (20, Arrive(3, "a", HOLD), "", "pause 2010"),
        (20, TryGrant(4), "closed", "pause 2010"),
        (2009, Connected, "", "pause 2010"),
        (2010, Check, "", "grant"),
        (2010, Connected, "probe 2", "pause 3010"),
        (2010, MaySend(2), "yes", "pause 3010"),
        (2012, Written(2, 2012), "", "pause 3010"),
    ]);
    // The lane now sends less than its limit, evenly spaced from the probe's write on.
    harness.step(2030, Accepted(2));
    let rate = harness.lane.rate(harness.now);
    assert!(
        !rate.spacing.is_zero() && rate.spacing < ms(400),
        "{rate:?}"
    );
    let next = harness.at(2012) + rate.spacing;
    harness.row(
        "spaced",
        (2030, Check, "", &harness.next_text(Next::Token(next))),
    );
    let at = u64::try_from(harness.since_origin(next)).unwrap();
    harness.row("spaced", (at, Connected, "grant 3", "idle"));
}

#[test]
fn a_pause_invalidates_grants_but_not_its_own_probe() {
    let mut harness = Harness::warm(5);
    harness.send_one(1, 0);
    harness.rows([
        (1, TryGrant(2), "grant 2", "idle"),
        (2, TryGrant(3), "grant 3", "idle"),
        (10, MaySend(2), "yes", "idle"),
        (10, Throttled(1, Some(2000)), "pauses 2000", "idle"),
        (10, MaySend(2), "no", "idle"),
        (10, Returned(2), "", "idle"),
        // This one began before the pause.
        (11, Written(3, 11), "", "idle"),
        (2010, Arrive(4, "a", HOLD), "", "grant"),
        (2010, Connected, "probe 4", "idle"),
        (2010, MaySend(4), "yes", "idle"),
    ]);
}

#[test]
fn refusals_of_one_episode_are_one_pause() {
    let mut harness = Harness::warm(5);
    (1..=5).for_each(|call| harness.send_one(call, 0));
    harness.rows([
        (10, Throttled(1, None), "pauses 100", "idle"),
        (11, Throttled(2, None), "", "idle"),
        (12, Throttled(3, None), "", "idle"),
        (13, Accepted(4), "", "idle"),
        (14, Arrive(6, "a", HOLD), "", "pause 110"),
        // A longer hint extends the pause.
        (15, Throttled(5, Some(500)), "", "review"),
        (15, Review, "", "pause 515"),
    ]);
}

#[test]
fn a_probe_that_is_refused_doubles_the_back_off() {
    let mut harness = Harness::warm(5);
    harness.send_one(1, 0);
    harness.rows([
        (10, Throttled(1, None), "pauses 100", "idle"),
        // By then the rate also permits another attempt.
        (1000, TryGrant(2), "probe 2", "idle"),
        (1000, Written(2, 1000), "", "idle"),
        (1010, Throttled(2, None), "pauses 200", "idle"),
        (3000, TryGrant(3), "probe 3", "idle"),
        (3000, Written(3, 3000), "", "idle"),
        (3010, Throttled(3, None), "pauses 400", "idle"),
    ]);
}

#[test]
fn if_the_probe_is_not_sent_the_next_grant_is_the_probe() {
    for unsent in [false, true] {
        let mut harness = refused(5, 2000);
        harness.rows([
            (2010, Arrive(2, "a", HOLD), "", "grant"),
            (2010, Arrive(3, "a", HOLD), "", "grant"),
            (2010, Connected, "probe 2", "pause 3010"),
        ]);
        if unsent {
            harness.row("unsent", (2011, Written(2, 2011), "", "pause 3010"));
            harness.step(2300, Unsent(2));
        } else {
            harness.row("returned", (2300, Returned(2), "", "grant"));
        }
        harness.row("the next", (2300, Connected, "probe 3", "idle"));
    }
}

#[test]
fn the_lane_waits_one_second_for_a_probe_without_an_answer() {
    let mut harness = refused(5, 2000);
    harness.rows([
        (2010, Arrive(2, "a", HOLD), "", "grant"),
        (2010, Arrive(3, "a", HOLD), "", "grant"),
        (2010, Connected, "probe 2", "pause 3010"),
        (2010, Written(2, 2010), "", "pause 3010"),
        (3009, Connected, "", "pause 3010"),
        (3010, Connected, "grant 3", "idle"),
        (3500, Unknown(2), "", "idle"),
    ]);
}

#[test]
fn a_slow_probe_of_an_earlier_episode_does_not_end_the_wait_for_the_latest_one() {
    for end in [Accepted, Unknown, Unsent, Returned] {
        let mut harness = refused(5, 2000);
        harness.rows([
            (2010, Arrive(2, "a", HOLD), "", "grant"),
            (2010, Arrive(3, "a", HOLD), "", "grant"),
            (2010, Connected, "probe 2", "pause 3010"),
        ]);
        if !matches!(end(2), Returned(_)) {
            harness.row("the slow one", (2010, Written(2, 2010), "", "pause 3010"));
        } else {
            // It holds its token. At a spaced rate no other token is free, so the lane waits for
            // it.
            harness.row("the slow one", (3010, Check, "", "event"));
            continue;
        }
        harness.rows([
            (3400, Connected, "grant 3", "idle"),
            (3400, Written(3, 3400), "", "idle"),
            (3420, Throttled(3, Some(1000)), "pauses 1000", "idle"),
            (4420, Arrive(4, "a", HOLD), "", "grant"),
            (4420, Arrive(5, "a", HOLD), "", "grant"),
            (4420, Connected, "probe 4", "pause 5420"),
            (4430, Written(4, 4430), "", "pause 5420"),
            (4440, end(2), "", "pause 5420"),
        ]);
        // The end of the latest one does.
        harness.step(4450, Accepted(4));
        assert_eq!(harness.lane.pause.gate(harness.now), Gate::Open);
    }
}

#[test]
fn a_throttle_among_accepted_attempts_causes_a_brief_pause_and_no_probe() {
    let mut harness = Harness::warm(100);
    for call in 1..=20 {
        harness.send_one(call, 0);
    }
    for call in 1..=19 {
        harness.row("accepted", (10, Accepted(call), "", "idle"));
    }
    harness.rows([
        (10, Throttled(20, None), "", "idle"),
        (10, Arrive(21, "a", HOLD), "", "pause 35"),
        (35, Check, "", "grant"),
        (35, Connected, "grant 21", "idle"),
    ]);
    assert!(!harness.lane.pace.has_learned());
}

#[test]
fn a_hint_pauses_the_lane_also_among_accepted_attempts() {
    let mut harness = Harness::warm(100);
    for call in 1..=20 {
        harness.send_one(call, 0);
    }
    (1..=19).for_each(|call| harness.row("accepted", (10, Accepted(call), "", "idle")));
    harness.row(
        "refused",
        (10, Throttled(20, Some(300)), "pauses 300", "idle"),
    );
}

#[test]
fn a_pause_refuses_the_calls_that_become_late() {
    let mut harness = Harness::warm(5);
    harness.send_one(1, 0);
    (2..=5).for_each(|call| harness.send_one(call, 0));
    harness.rows([
        (1, Arrive(6, "a", HOLD), "", "token 1005"),
        (1, Arrive(7, "a", 1500), "", "token 1005"),
        (10, Throttled(1, Some(2000)), "pauses 2000", "review"),
        (10, Review, "refuse 7 WaitTooLong", "pause 2010"),
        (
            10,
            Arrive(8, "a", 1500),
            "refuse 8 WaitTooLong",
            "pause 2010",
        ),
    ]);
}

#[test]
fn an_operators_pause_ends_by_itself_or_by_a_command_and_needs_no_probe() {
    Harness::warm(5).rows([
        (0, TryGrant(1), "grant 1", "idle"),
        (0, Arrive(2, "a", HOLD), "", "grant"),
        (0, Arrive(3, "a", 3000), "", "grant"),
        (10, Pause(Some(5000)), "", "review"),
        (10, Review, "refuse 3 WaitTooLong", "pause 5010"),
        (10, MaySend(1), "no", "pause 5010"),
        (10, Connected, "", "pause 5010"),
        (5010, Check, "", "grant"),
        (5010, Pause(None), "", "review"),
        (5010, Review, "", "pause 65010"),
        (9000, Check, "", "pause 69000"),
        (9000, Resume, "", "grant"),
        (9000, MaySend(1), "yes", "grant"),
        (9000, Connected, "grant 2", "idle"),
    ]);
}

#[test]
fn a_flush_refuses_every_queued_call_and_the_lane_continues() {
    let mut harness = Harness::warm(1);
    harness.rows([
        (0, Flush, "", "idle"),
        (0, TryGrant(1), "grant 1", "idle"),
        (0, Arrive(2, "a", HOLD), "", "event"),
        (0, Arrive(3, "b", HOLD), "", "event"),
        (5, Flush, "refuse all 2 Flushed", "idle"),
        (5, Leave(2), "", "idle"),
        (6, Written(1, 6), "", "idle"),
        (7, Arrive(4, "a", HOLD), "", "token 1011"),
    ]);
}

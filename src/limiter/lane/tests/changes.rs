//! Another limit, another source, a drain: what was granted before counts, and a new source begins in silence.

use super::Do::*;
use super::*;
use crate::limiter::shared::members::VANISHED;
use crate::limiter::shared::protocol::AHEAD;

fn part(count: u32, since: Instant) -> Stands {
    Stands::Part {
        count: NonZeroU32::new(count).unwrap(),
        since,
    }
}

/// How long a part's tokens are away at first.
fn silence() -> u64 {
    u64::try_from((VANISHED + AHEAD).as_millis()).unwrap() + SLACK + AWAY
}

#[test]
fn a_changed_limit_begins_cold_and_revokes_grants_that_have_not_begun() {
    let mut world = World::warm(5);
    world.rows([
        (0, Pass(1), "grant 1", "rest"),
        (0, MaySend(1), "yes", "rest"),
        (100, Reload(Some((2, 500))), "", "rest"),
        (100, MaySend(1), "no", "rest"),
        (100, Returned(1), "", "rest"),
        (100, Arrive(2, "a", HOLD), "", "token 605"),
        (605, Connected, "grant 2", "rest"),
        (605, Pass(3), "grant 3", "rest"),
        (605, Pass(4), "closed", "rest"),
    ]);
    assert_eq!(world.lane.held, 2);
}

#[test]
fn a_reload_that_changes_no_limit_changes_nothing() {
    for same in [None, Some((5, 1000))] {
        World::warm(5).rows([
            (0, Pass(1), "grant 1", "rest"),
            (1, Reload(same), "", "rest"),
            (1, MaySend(1), "yes", "rest"),
            (1, Written(1, 1), "", "rest"),
            (1, Pass(2), "grant 2", "rest"),
        ]);
    }
}

#[test]
fn an_attempt_that_began_under_an_earlier_limit_holds_a_token_of_the_new_one_until_its_write() {
    let mut world = World::warm(5);
    world.rows([
        (0, Pass(1), "grant 1", "rest"),
        (0, Pass(2), "grant 2", "rest"),
        (100, Reload(Some((2, 1000))), "", "rest"),
        (100, Arrive(3, "a", HOLD), "", "event"),
        // Seconds late: the two could have met two new ones in one window.
        (3000, Look, "", "event"),
        (3000, Written(1, 3000), "", "token 4005"),
        (3100, Returned(2), "", "grant"),
        (3100, Connected, "grant 3", "rest"),
        (3100, Written(3, 3100), "", "rest"),
        (3100, Pass(4), "closed", "rest"),
    ]);
}

#[test]
fn a_part_of_the_quota_begins_when_no_other_replica_can_use_the_whole_of_it() {
    let mut world = World::warm(5);
    let since = world.at(100);
    world.rows([
        (0, Pass(1), "grant 1", "rest"),
        (0, Pass(2), "grant 2", "rest"),
        (50, Arrive(3, "a", HOLD), "", "grant"),
        (100, Source(part(2, since)), "", "review"),
        (100, Review, "", "event"),
        (100, MaySend(1), "no", "event"),
        (100, Returned(1), "", "token 2120"),
        (600, Written(2, 600), "", "token 2120"),
    ]);
    assert_eq!(silence(), 2020);
    world.rows([
        (2120, Connected, "grant 3", "rest"),
        (2120, Pass(4), "grant 4", "rest"),
        (2120, Pass(5), "closed", "rest"),
    ]);
}

#[test]
fn an_attempt_that_is_written_in_the_silence_or_after_it_costs_the_part_a_token() {
    let mut world = World::warm(5);
    let since = world.at(0);
    world.rows([
        (0, Pass(1), "grant 1", "rest"),
        (0, Source(part(2, since)), "", "rest"),
        (2020, Pass(2), "grant 2", "rest"),
        (2020, Pass(3), "closed", "rest"),
        (2021, Written(2, 2021), "", "rest"),
        (2100, Written(1, 2100), "", "rest"),
        (2101, Arrive(3, "a", HOLD), "", "token 3026"),
    ]);
}

#[test]
fn a_part_that_grows_or_shrinks_keeps_what_was_used() {
    let mut world = World::warm(5);
    let since = world.at(0);
    world.rows([
        (0, Source(part(2, since)), "", "rest"),
        (3000, Pass(1), "grant 1", "rest"),
        (3000, Written(1, 3000), "", "rest"),
        (3000, Pass(2), "grant 2", "rest"),
        (3000, Written(2, 3000), "", "rest"),
        (3001, Source(part(3, since)), "", "rest"),
        (3001, Pass(3), "grant 3", "rest"),
        (3001, MaySend(3), "yes", "rest"),
        (3001, Pass(4), "closed", "rest"),
        (3002, Source(part(1, since)), "", "rest"),
        (3002, Written(3, 3002), "", "rest"),
        (4006, Pass(5), "closed", "rest"),
        (4007, Pass(5), "grant 5", "rest"),
    ]);
}

#[test]
fn forecasts_of_a_part_are_of_its_own_tokens() {
    let mut world = World::warm(5);
    let since = world.at(0);
    world.row("part", (0, Source(part(1, since)), "", "rest"));
    let waits: Vec<_> = (0..3)
        .map(|ahead| world.lane.predicted_wait(ahead, world.now))
        .collect();
    assert_eq!(
        waits,
        [silence(), silence() + AWAY, silence() + 2 * AWAY].map(ms)
    );
    // Also while the rate is about to rise.
    world.rows([
        (3000, Pass(1), "grant 1", "rest"),
        (3000, Written(1, 3000), "", "rest"),
    ]);
    world.happens(3010, Throttled(1, Some(1000)));
    assert!(world.lane.pace.has_learned());
    let waits: Vec<_> = (0..3)
        .map(|ahead| world.lane.predicted_wait(ahead, world.now))
        .collect();
    assert!(
        waits[1] - waits[0] >= ms(AWAY) && waits[2] - waits[1] >= ms(AWAY),
        "{waits:?}"
    );
}

#[test]
fn without_a_part_every_call_is_refused() {
    let mut world = World::warm(5);
    let since = world.at(0);
    world.rows([
        (0, Pass(1), "grant 1", "rest"),
        (0, Arrive(2, "a", HOLD), "", "grant"),
        (0, Arrive(3, "a", HOLD), "", "grant"),
        (
            10,
            Source(Stands::Nothing { since: Some(since) }),
            "refuse all 2 StoreUnavailable",
            "rest",
        ),
        (10, MaySend(1), "no", "rest"),
        (10, Returned(1), "", "rest"),
        (10, Pass(4), "closed", "rest"),
        (
            10,
            Arrive(4, "a", HOLD),
            "refuse 4 StoreUnavailable",
            "rest",
        ),
        (10, Again(2, "a", HOLD), "refuse 2 StoreUnavailable", "rest"),
    ]);
    assert_eq!(world.lane.advice_now(world.now), shared::ADVICE);
}

#[test]
fn a_pause_and_its_probe_outlast_a_change_of_the_source() {
    let mut world = World::warm(5);
    world.sends(1, 0);
    let since = world.at(0);
    world.rows([
        (10, Throttled(1, Some(3000)), "pauses 3000", "rest"),
        (20, Source(part(2, since)), "", "rest"),
        (20, Arrive(2, "a", HOLD), "", "pause 3010"),
        (3010, Connected, "probe 2", "rest"),
        // The probe does not begin: its source has gone.
        (3020, Reload(Some((4, 1000))), "", "rest"),
        (3020, MaySend(2), "no", "rest"),
        (3020, Returned(2), "", "rest"),
        (5000, Arrive(3, "a", HOLD), "", "grant"),
        (5000, Connected, "probe 3", "rest"),
    ]);
}

#[test]
fn an_operators_pause_keeps_a_probe_that_has_not_begun() {
    let mut world = World::warm(5);
    world.sends(1, 0);
    world.rows([
        (10, Throttled(1, Some(1000)), "pauses 1000", "rest"),
        (2000, Pass(2), "probe 2", "rest"),
        (2000, MaySend(2), "yes", "rest"),
        (2001, Order(None), "", "rest"),
        (2001, MaySend(2), "no", "rest"),
        (2001, Returned(2), "", "rest"),
        (2002, Resume, "", "rest"),
        (2002, Pass(3), "probe 3", "rest"),
    ]);
}

#[test]
fn a_drain_refuses_what_does_not_fit_and_then_the_rest() {
    let mut world = World::cold(1);
    world.rows([
        (0, Arrive(1, "a", HOLD), "", "token 1005"),
        (0, Arrive(2, "a", HOLD), "", "token 1005"),
        (0, Arrive(3, "a", HOLD), "", "token 1005"),
        (10, Drain(2100), "", "review"),
        (10, Review, "refuse 3 Draining", "token 1005"),
        (10, Arrive(4, "a", HOLD), "refuse 4 Draining", "token 1005"),
        (10, Arrive(5, "a", 0), "expire 5", "token 1005"),
        (1005, Connected, "grant 1", "event"),
        // Its write is late.
        (2099, Look, "", "event"),
        (2100, Look, "", "review"),
        (2100, Review, "refuse 2 Draining", "rest"),
        (2100, Arrive(6, "a", HOLD), "refuse 6 Draining", "rest"),
        (2100, Again(1, "a", HOLD), "refuse 1 Draining", "rest"),
        (2100, Arrive(7, "a", 0), "refuse 7 Draining", "rest"),
    ]);
}

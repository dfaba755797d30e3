//! Changes of the limit and of the source, and a drain: earlier grants count, and a new source
//! begins with a silent window.

use super::Step::*;
use super::*;
use crate::limiter::shared::members::VANISHED;
use crate::limiter::shared::protocol::AHEAD;

fn part(count: u32, since: Instant) -> QuotaSource {
    QuotaSource::Part {
        count: NonZeroU32::new(count).unwrap(),
        since,
    }
}

/// The length of the silent window of a part.
fn silence() -> u64 {
    u64::try_from((VANISHED + AHEAD).as_millis()).unwrap() + SLACK + AWAY
}

#[test]
fn a_changed_limit_begins_cold_and_invalidates_grants_that_have_not_begun() {
    let mut harness = Harness::warm(5);
    harness.rows([
        (0, TryGrant(1), "grant 1", "idle"),
        (0, MaySend(1), "yes", "idle"),
        (100, Reload(Some((2, 500))), "", "idle"),
        (100, MaySend(1), "no", "idle"),
        (100, Returned(1), "", "idle"),
        (100, Arrive(2, "a", HOLD), "", "token 605"),
        (605, Connected, "grant 2", "idle"),
        (605, TryGrant(3), "grant 3", "idle"),
        (605, TryGrant(4), "closed", "idle"),
    ]);
    assert_eq!(harness.lane.held, 2);
}

#[test]
fn a_reload_that_changes_no_limit_changes_nothing() {
    for same in [None, Some((5, 1000))] {
        Harness::warm(5).rows([
            (0, TryGrant(1), "grant 1", "idle"),
            (1, Reload(same), "", "idle"),
            (1, MaySend(1), "yes", "idle"),
            (1, Written(1, 1), "", "idle"),
            (1, TryGrant(2), "grant 2", "idle"),
        ]);
    }
}

#[test]
fn an_attempt_that_began_under_an_earlier_limit_holds_a_token_of_the_new_one_until_its_write() {
    let mut harness = Harness::warm(5);
    harness.rows([
        (0, TryGrant(1), "grant 1", "idle"),
        (0, TryGrant(2), "grant 2", "idle"),
        (100, Reload(Some((2, 1000))), "", "idle"),
        (100, Arrive(3, "a", HOLD), "", "event"),
        // The two are written seconds late, and could share a window with two new ones.
        (3000, Check, "", "event"),
        (3000, Written(1, 3000), "", "token 4005"),
        (3100, Returned(2), "", "grant"),
        (3100, Connected, "grant 3", "idle"),
        (3100, Written(3, 3100), "", "idle"),
        (3100, TryGrant(4), "closed", "idle"),
    ]);
}

#[test]
fn a_part_begins_when_no_other_replica_can_use_the_whole_quota() {
    let mut harness = Harness::warm(5);
    let since = harness.at(100);
    harness.rows([
        (0, TryGrant(1), "grant 1", "idle"),
        (0, TryGrant(2), "grant 2", "idle"),
        (50, Arrive(3, "a", HOLD), "", "grant"),
        (100, Source(part(2, since)), "", "review"),
        (100, Review, "", "event"),
        (100, MaySend(1), "no", "event"),
        (100, Returned(1), "", "token 2120"),
        (600, Written(2, 600), "", "token 2120"),
    ]);
    assert_eq!(silence(), 2020);
    harness.rows([
        (2120, Connected, "grant 3", "idle"),
        (2120, TryGrant(4), "grant 4", "idle"),
        (2120, TryGrant(5), "closed", "idle"),
    ]);
}

#[test]
fn an_earlier_attempt_that_is_written_later_uses_a_token_of_the_part() {
    let mut harness = Harness::warm(5);
    let since = harness.at(0);
    harness.rows([
        (0, TryGrant(1), "grant 1", "idle"),
        (0, Source(part(2, since)), "", "idle"),
        (2020, TryGrant(2), "grant 2", "idle"),
        (2020, TryGrant(3), "closed", "idle"),
        (2021, Written(2, 2021), "", "idle"),
        (2100, Written(1, 2100), "", "idle"),
        (2101, Arrive(3, "a", HOLD), "", "token 3026"),
    ]);
}

#[test]
fn a_part_that_grows_or_shrinks_keeps_its_used_tokens() {
    let mut harness = Harness::warm(5);
    let since = harness.at(0);
    harness.rows([
        (0, Source(part(2, since)), "", "idle"),
        (3000, TryGrant(1), "grant 1", "idle"),
        (3000, Written(1, 3000), "", "idle"),
        (3000, TryGrant(2), "grant 2", "idle"),
        (3000, Written(2, 3000), "", "idle"),
        (3001, Source(part(3, since)), "", "idle"),
        (3001, TryGrant(3), "grant 3", "idle"),
        (3001, MaySend(3), "yes", "idle"),
        (3001, TryGrant(4), "closed", "idle"),
        (3002, Source(part(1, since)), "", "idle"),
        (3002, Written(3, 3002), "", "idle"),
        (4006, TryGrant(5), "closed", "idle"),
        (4007, TryGrant(5), "grant 5", "idle"),
    ]);
}

#[test]
fn a_part_that_grows_in_its_silent_window_stays_silent() {
    let mut harness = Harness::warm(5);
    let since = harness.at(0);
    harness.rows([
        (0, Source(part(1, since)), "", "idle"),
        (500, Source(part(2, since)), "", "idle"),
        (500, TryGrant(1), "closed", "idle"),
        (2019, TryGrant(1), "closed", "idle"),
        (2020, TryGrant(1), "grant 1", "idle"),
        (2020, TryGrant(2), "grant 2", "idle"),
        (2020, TryGrant(3), "closed", "idle"),
    ]);
}

#[test]
fn forecasts_of_a_part_use_its_own_tokens() {
    let mut harness = Harness::warm(5);
    let since = harness.at(0);
    harness.row("part", (0, Source(part(1, since)), "", "idle"));
    let waits: Vec<_> = (0..3)
        .map(|ahead| harness.lane.predicted_wait(ahead, harness.now))
        .collect();
    assert_eq!(
        waits,
        [silence(), silence() + AWAY, silence() + 2 * AWAY].map(ms)
    );
    // Also while the rate rises.
    harness.rows([
        (3000, TryGrant(1), "grant 1", "idle"),
        (3000, Written(1, 3000), "", "idle"),
    ]);
    harness.step(3010, Throttled(1, Some(1000)));
    assert!(harness.lane.pace.has_learned());
    let waits: Vec<_> = (0..3)
        .map(|ahead| harness.lane.predicted_wait(ahead, harness.now))
        .collect();
    assert!(
        waits[1] - waits[0] >= ms(AWAY) && waits[2] - waits[1] >= ms(AWAY),
        "{waits:?}"
    );
}

#[test]
fn without_a_part_every_call_is_refused() {
    let mut harness = Harness::warm(5);
    let since = harness.at(0);
    harness.rows([
        (0, TryGrant(1), "grant 1", "idle"),
        (0, Arrive(2, "a", HOLD), "", "grant"),
        (0, Arrive(3, "a", HOLD), "", "grant"),
        (
            10,
            Source(QuotaSource::Unavailable { since: Some(since) }),
            "refuse all 2 StoreUnavailable",
            "idle",
        ),
        (10, MaySend(1), "no", "idle"),
        (10, Returned(1), "", "idle"),
        (10, TryGrant(4), "closed", "idle"),
        (
            10,
            Arrive(4, "a", HOLD),
            "refuse 4 StoreUnavailable",
            "idle",
        ),
        (
            10,
            Return(2, "a", HOLD),
            "refuse 2 StoreUnavailable",
            "idle",
        ),
    ]);
    assert_eq!(harness.lane.advice_now(harness.now), shared::ADVICE);
}

#[test]
fn a_pause_and_its_probe_survive_a_change_of_the_source() {
    let mut harness = Harness::warm(5);
    harness.send_one(1, 0);
    let since = harness.at(0);
    harness.rows([
        (10, Throttled(1, Some(3000)), "pauses 3000", "idle"),
        (20, Source(part(2, since)), "", "idle"),
        (20, Arrive(2, "a", HOLD), "", "pause 3010"),
        (3010, Connected, "probe 2", "idle"),
        // The probe does not begin, because its source has changed.
        (3020, Reload(Some((4, 1000))), "", "idle"),
        (3020, MaySend(2), "no", "idle"),
        (3020, Returned(2), "", "idle"),
        (5000, Arrive(3, "a", HOLD), "", "grant"),
        (5000, Connected, "probe 3", "idle"),
    ]);
}

#[test]
fn an_operators_pause_stops_a_probe_that_has_not_begun() {
    let mut harness = Harness::warm(5);
    harness.send_one(1, 0);
    harness.rows([
        (10, Throttled(1, Some(1000)), "pauses 1000", "idle"),
        (2000, TryGrant(2), "probe 2", "idle"),
        (2000, MaySend(2), "yes", "idle"),
        (2001, Pause(None), "", "idle"),
        (2001, MaySend(2), "no", "idle"),
        (2001, Returned(2), "", "idle"),
        (2002, Resume, "", "idle"),
        (2002, TryGrant(3), "probe 3", "idle"),
    ]);
}

#[test]
fn a_drain_refuses_the_calls_that_do_not_fit_and_at_its_end_the_rest() {
    let mut harness = Harness::cold(1);
    harness.rows([
        (0, Arrive(1, "a", HOLD), "", "token 1005"),
        (0, Arrive(2, "a", HOLD), "", "token 1005"),
        (0, Arrive(3, "a", HOLD), "", "token 1005"),
        (10, Drain(2100), "", "review"),
        (10, Review, "refuse 3 Draining", "token 1005"),
        (10, Arrive(4, "a", HOLD), "refuse 4 Draining", "token 1005"),
        (10, Arrive(5, "a", 0), "expire 5", "token 1005"),
        (1005, Connected, "grant 1", "event"),
        // Its write is late.
        (2099, Check, "", "event"),
        (2100, Check, "", "review"),
        (2100, Review, "refuse 2 Draining", "idle"),
        (2100, Arrive(6, "a", HOLD), "refuse 6 Draining", "idle"),
        (2100, Return(1, "a", HOLD), "refuse 1 Draining", "idle"),
        (2100, Arrive(7, "a", 0), "refuse 7 Draining", "idle"),
    ]);
}

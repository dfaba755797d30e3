//! The store as the token source: requests, answers, and failed requests.

use super::Step::*;
use super::*;
use crate::limiter::shared::protocol::{AttemptEnd, Op};

/// When the first request for slots is sent.
const FROM: u64 = AWAY + SLACK;

/// A lane whose tokens come from the store since the origin.
fn shared() -> Harness {
    let mut harness = Harness::warm(5);
    let since = harness.origin;
    harness.row(
        "shared",
        (0, Source(QuotaSource::Store { since }), "", "idle"),
    );
    harness
}

/// The same, with slots of these dates for the queued calls from 1 on.
fn dealt(dates: &[u64]) -> Harness {
    let mut harness = shared();
    for call in 1..=dates.len() as u64 {
        harness.apply(Arrive(call, "a", HOLD));
    }
    harness.row(
        "asks",
        (2000, Check, &format!("take for {}", dates.len()), "event"),
    );
    harness.step(2000, Answer(0, view(2000, dates)));
    harness
}

fn probe(at: u64, date: u64) -> View {
    let mut view = view(at, &[date]);
    view.slots[0].probe = true;
    View { level: 1, ..view }
}

#[test]
fn a_new_store_is_first_asked_for_slots_after_a_window() {
    let mut harness = shared();
    harness.rows([
        (0, Arrive(1, "a", HOLD), "", "until 1020"),
        (1, Arrive(2, "b", HOLD), "", "until 1020"),
        (1019, Check, "", "until 1020"),
        (1020, Check, "take for 2", "event"),
        // One request at a time.
        (1021, Arrive(3, "b", HOLD), "", "event"),
    ]);
    assert_eq!(FROM, 1020);
    let request = &harness.requests[0].0;
    assert_eq!(
        (request.limit, request.rate),
        (limit(5, 1000), harness.lane.rate(harness.now))
    );
    assert_eq!(request.waiting.len(), 2);
    assert_eq!(
        (
            request.pending.slot_request.slack,
            request.pending.version,
            &request.pending.pace
        ),
        (ms(SLACK), 0, &None)
    );
}

#[test]
fn a_slot_is_granted_from_its_date_until_its_slack_is_over() {
    let mut harness = dealt(&[2000, 2000, 2100]);
    harness.rows([
        (2000, Check, "", "grant"),
        (2000, Connected, "grant 1", "grant"),
        (2000, Connected, "grant 2", "until 2100"),
        (2015, MaySend(1), "yes", "until 2100"),
        (2015, Written(1, 2015), "", "until 2100"),
        (2016, MaySend(2), "no", "until 2100"),
        // It is returned with the next request, which needs a slot for the queued call.
        (2016, Returned(2), "", "until 2100"),
        (2099, Connected, "", "until 2100"),
        (2100, Connected, "grant 3, take for 0 unused 1", "idle"),
    ]);
}

#[test]
fn a_slot_that_is_returned_in_time_serves_the_next_call() {
    let mut harness = dealt(&[2000, 2000]);
    harness.rows([
        (2000, Arrive(3, "a", HOLD), "", "grant"),
        (2000, Connected, "grant 1", "grant"),
        (2000, Connected, "grant 2", "until 2100"),
        (2005, Returned(1), "", "grant"),
        (2005, Connected, "grant 3", "idle"),
    ]);
}

#[test]
fn slots_that_no_call_needs_are_returned_immediately() {
    let mut harness = dealt(&[2000, 2100]);
    harness.rows([
        (2001, Leave(1), "", "grant"),
        (2001, Leave(2), "take for 0 unused 2", "idle"),
        (2002, Answer(1, view(2002, &[])), "", "idle"),
    ]);
}

#[test]
fn a_request_for_slots_that_no_call_needs_any_more_is_withdrawn() {
    let mut harness = shared();
    harness.rows([
        (2000, Arrive(1, "a", HOLD), "take for 1", "event"),
        // While a request is in progress no other one is sent.
        (2001, Leave(1), "", "idle"),
        (
            2002,
            Answer(
                0,
                View {
                    wanted: 1,
                    ..view(2002, &[])
                },
            ),
            "take for 0",
            "idle",
        ),
        (2003, Answer(1, view(2003, &[])), "", "idle"),
    ]);
}

#[test]
fn slots_that_arrive_after_their_call_has_left_are_returned() {
    let mut harness = shared();
    harness.rows([
        (2000, Arrive(1, "a", HOLD), "take for 1", "event"),
        (2001, Leave(1), "", "idle"),
        (
            2002,
            Answer(0, view(2002, &[2002])),
            "take for 0 unused 1",
            "idle",
        ),
    ]);
}

#[test]
fn a_failed_request_is_repeated_after_a_delay() {
    shared().rows([
        (2000, Arrive(1, "a", HOLD), "take for 1", "event"),
        (2010, NoAnswer(0), "", "until 2060"),
        (2060, Check, "take for 1", "event"),
        // The late answer to the first request does not change the time of the next one.
        (2061, Answer(1, view(2061, &[2061])), "", "grant"),
        (2061, Connected, "grant 1", "idle"),
    ]);
}

#[test]
fn an_answer_or_a_failure_of_an_earlier_sources_request_is_ignored() {
    for answered in [true, false] {
        let mut harness = shared();
        let since = harness.at(2010);
        let answer = if answered {
            Answer(0, view(2030, &[2030]))
        } else {
            NoAnswer(0)
        };
        harness.rows([
            (2000, Arrive(1, "a", HOLD), "take for 1", "event"),
            (
                2010,
                Source(QuotaSource::Unavailable { since: None }),
                "refuse all 1 StoreUnavailable",
                "idle",
            ),
            (2020, Source(QuotaSource::Store { since }), "", "idle"),
            (2020, Arrive(2, "a", HOLD), "", "until 3030"),
            // Neither ends the silent window.
            (2030, answer, "", "until 3030"),
            (3029, Check, "", "until 3030"),
            (3030, Check, "take for 1", "event"),
        ]);
    }
}

#[test]
fn after_a_late_write_nothing_is_granted_before_the_store_has_answered() {
    let mut harness = dealt(&[2000, 2000, 2000]);
    harness.rows([
        (2000, Connected, "grant 1", "grant"),
        (2000, Connected, "grant 2", "grant"),
        // Its write is 85 ms late. The third slot and the second grant have expired.
        (2001, MaySend(2), "yes", "grant"),
        (
            2100,
            Written(1, 2100),
            "take for 1 unused 1 late 1",
            "event",
        ),
    ]);
    let late = &harness.requests[1].0.pending.slot_request.late[0];
    // The uncertainty of the clock is added.
    assert!(
        (stored(2100)..stored(2100) + 100).contains(&late.used),
        "{}",
        late.used
    );
    harness.rows([
        (2100, MaySend(2), "no", "event"),
        (2101, Returned(2), "", "event"),
        (2102, Arrive(4, "a", HOLD), "", "event"),
        (2150, Connected, "", "event"),
        // After the failure it is reported again.
        (2160, NoAnswer(1), "take for 2 unused 1 late 1", "event"),
        (2170, Answer(2, view(2170, &[2170])), "", "grant"),
        (2170, Connected, "grant 3", "until 2270"),
    ]);
}

#[test]
fn an_attempt_of_an_earlier_source_is_reported_to_the_store() {
    let mut harness = Harness::warm(5);
    let since = harness.origin;
    harness.rows([
        (0, TryGrant(1), "grant 1", "idle"),
        (0, Source(QuotaSource::Store { since }), "", "idle"),
        (500, MaySend(1), "no", "idle"),
        (500, Written(1, 500), "take for 0 late 1", "idle"),
        (501, Answer(0, view(501, &[])), "", "idle"),
    ]);
}

#[test]
fn a_report_in_the_silent_window_requests_no_slots() {
    let mut harness = Harness::warm(5);
    let since = harness.origin;
    harness.rows([
        (0, TryGrant(1), "grant 1", "idle"),
        (0, Source(QuotaSource::Store { since }), "", "idle"),
        (100, Arrive(2, "a", HOLD), "", "until 1020"),
        (500, Written(1, 500), "take for 0 late 1", "event"),
        (501, Answer(0, view(501, &[])), "", "until 1020"),
        (700, Check, "", "until 1020"),
        (1020, Check, "take for 1", "event"),
    ]);
}

#[test]
fn the_answer_to_a_later_request_does_not_acknowledge_a_report() {
    let mut harness = dealt(&[2000, 2000]);
    harness.rows([
        (2000, Connected, "grant 1", "grant"),
        (2000, Connected, "grant 2", "idle"),
        (2001, Written(2, 2001), "", "idle"),
        (2100, Written(1, 2100), "take for 0 late 1", "idle"),
        (2101, Throttled(2, None), "throttled for 0", "idle"),
        (2110, Answer(2, view(2110, &[])), "", "idle"),
        // The report was lost and is sent again.
        (2120, NoAnswer(1), "take for 0 late 1", "idle"),
    ]);
}

#[test]
fn a_throttle_is_reported_with_its_pauses_and_the_answer_pauses_the_lane() {
    let mut harness = dealt(&[2000, 2100]);
    harness.rows([
        (2000, Connected, "grant 1", "until 2100"),
        (2000, Written(1, 2000), "", "until 2100"),
        // Slots at hand may not be used in a pause.
        (
            2010,
            Throttled(1, Some(3000)),
            "throttled for 1 unused 1",
            "event",
        ),
        (2099, Connected, "", "event"),
    ]);
    let Op::Throttled { at, pauses } = &harness.requests[1].0.op else {
        panic!("a refusal")
    };
    assert_eq!(
        (*at, pauses.unwrap().new, pauses.unwrap().same),
        (stored(2000), ms(3000), Some(ms(3000)))
    );
    assert!(
        harness.requests[1].0.pending.pace.is_some(),
        "it stores what was learned"
    );
    let paused = View {
        open: stored(5010),
        level: 1,
        new_episode: true,
        version: 1,
        ..view(2100, &[])
    };
    harness.rows([
        (2100, Answer(1, paused), "pauses 2910", "review"),
        (2100, Review, "", "pause 5010"),
    ]);
}

#[test]
fn a_throttle_that_could_not_be_reported_pauses_this_replica() {
    let mut harness = dealt(&[2000, 2000]);
    harness.rows([
        (2000, Connected, "grant 1", "grant"),
        (2000, Connected, "grant 2", "idle"),
        (2000, Written(1, 2000), "", "idle"),
        (2000, Written(2, 2000), "", "idle"),
        (2010, Throttled(1, Some(3000)), "throttled for 0", "idle"),
        (2020, NoAnswer(1), "pauses 3000", "idle"),
        (2030, Arrive(3, "a", HOLD), "", "pause 5020"),
        // The next answer contains no pause.
        (2040, Accepted(2), "", "pause 5020"),
    ]);
    harness.lane.send_request(Op::Take, None, harness.now);
    harness.row("asks", (2050, Check, "take for 1", "pause 5020"));
    harness.row(
        "answered",
        (2060, Answer(2, view(2060, &[])), "", "pause 5020"),
    );
}

#[test]
fn the_stores_probe_is_sent_and_its_end_is_reported() {
    for (end, how) in [
        (Accepted(1), AttemptEnd::Answered),
        (Unknown(1), AttemptEnd::Unknown),
        (Unsent(1), AttemptEnd::Unsent),
    ] {
        let mut harness = shared();
        harness.rows([
            (2000, Arrive(1, "a", HOLD), "take for 1", "event"),
            (2000, Answer(0, probe(2000, 2000)), "", "grant"),
            (2000, Connected, "probe 1", "idle"),
            (2001, MaySend(1), "yes", "idle"),
            (2001, Written(1, 2001), "", "idle"),
            (2020, end, "ended for 0", "idle"),
        ]);
        let Op::Ended {
            slot,
            how: reported,
        } = &harness.requests[1].0.op
        else {
            panic!("an end")
        };
        assert!(slot.probe);
        assert_eq!(format!("{reported:?}"), format!("{how:?}"));
    }
}

#[test]
fn an_end_is_reported_only_if_it_changes_anything() {
    let mut harness = dealt(&[2000, 2000]);
    harness.rows([
        (2000, Connected, "grant 1", "grant"),
        (2000, Connected, "grant 2", "idle"),
        (2001, Written(1, 2001), "", "idle"),
        (2001, Written(2, 2001), "", "idle"),
        (2010, Accepted(1), "", "idle"),
        (2010, Unknown(2), "", "idle"),
    ]);
}

#[test]
fn a_stores_probe_that_was_returned_serves_the_next_call_as_the_probe() {
    let mut harness = shared();
    harness.rows([
        (2000, Arrive(1, "a", HOLD), "take for 1", "event"),
        (2000, Arrive(2, "a", HOLD), "", "event"),
        (2000, Answer(0, probe(2000, 2000)), "", "grant"),
        (2000, Connected, "probe 1", "until 2100"),
        (2005, Returned(1), "", "grant"),
        (2005, Connected, "probe 2", "idle"),
        (2006, Written(2, 2006), "", "idle"),
        (2006, TryGrant(3), "closed", "idle"),
    ]);
}

#[test]
fn withheld_tokens_refuse_new_calls() {
    let mut harness = shared();
    harness.rows([
        (2000, Arrive(1, "a", HOLD), "take for 1", "event"),
        (
            2001,
            Answer(
                0,
                View {
                    usable: 0,
                    ..view(2001, &[])
                },
            ),
            "",
            "review",
        ),
        (2001, Review, "refuse 1 StoreUnavailable", "idle"),
        (
            2002,
            Arrive(2, "a", HOLD),
            "refuse 2 StoreUnavailable",
            "idle",
        ),
    ]);
    assert_eq!(harness.lane.advice_now(harness.now), shared::ADVICE);
}

#[test]
fn a_store_whose_slots_always_arrive_too_late_is_not_used() {
    let mut harness = shared();
    harness.row("asks", (2000, Arrive(1, "a", HOLD), "take for 1", "event"));
    harness.row("near", (2000, Answer(0, view(2000, &[])), "", "until 2100"));
    harness.row("asks", (2100, Check, "take for 1", "event"));
    let mut at = 2100;
    for number in 1..=5 {
        at += 400;
        let effects = if number == 5 {
            "too far, take for 1 unused 1"
        } else {
            "take for 1 unused 1"
        };
        harness.row(
            "late",
            (
                at,
                Answer(number, view(at - 400, &[at - 400])),
                effects,
                "event",
            ),
        );
    }
}

#[test]
fn a_forecast_uses_the_slots_at_hand_and_then_the_stores_tokens() {
    let mut harness = dealt(&[2000, 2100]);
    let waits: Vec<_> = (0..3)
        .map(|ahead| harness.lane.predicted_wait(ahead, harness.now).as_millis())
        .collect();
    // Three of the five are free.
    assert_eq!(waits, [0, 100, 0]);
    harness.lane.refresh(harness.now);
    let wait = harness.lane.predicted_wait(2 + 3, harness.now);
    assert_eq!(wait.as_millis(), u128::from(AWAY + SLACK));
}

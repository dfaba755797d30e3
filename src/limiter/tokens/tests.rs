//! Tokens in simulated time: each is back one window and gap after its own use, at any change of
//! rate.

use std::num::NonZeroU32;

use proptest::prelude::*;

use super::*;

const GAP: Duration = Duration::from_millis(5);
const AWAY: Duration = Duration::from_millis(1005);
const SECOND: Duration = Duration::from_secs(1);

fn limit(count: u32) -> Limit {
    Limit {
        count: NonZeroU32::new(count).unwrap(),
        window: SECOND,
    }
}

fn ms(ms: u64) -> Duration {
    Duration::from_millis(ms)
}

/// Tokens that are all free at the returned time.
fn warm(count: u32) -> (Tokens, Instant) {
    let now = Instant::now();
    (Tokens::new(limit(count), GAP, now - AWAY, now), now)
}

fn rate(tokens: u32, gap: u64) -> Rate {
    Rate {
        tokens,
        window: SECOND,
        gap: ms(gap),
        spacing: Duration::ZERO,
    }
}

/// Takes one token and uses it at `at`.
fn spend(tokens: &mut Tokens, at: Instant) -> bool {
    let taken = tokens.take(at);
    if taken {
        tokens.used(at);
    }
    taken
}

#[test]
fn after_idle_time_all_five_tokens_are_free() {
    let (mut tokens, now) = warm(5);
    assert_eq!((0..6).filter(|_| tokens.take(now)).count(), 5);
}

#[test]
fn at_the_start_all_tokens_count_as_just_used() {
    let now = Instant::now();
    let mut tokens = Tokens::new(limit(5), GAP, now, now);
    assert!(!tokens.take(now));
    assert_eq!(tokens.free(now + AWAY - ms(1)), 0);
    assert_eq!(tokens.free(now + AWAY), 5);
}

#[test]
fn each_token_is_back_one_window_and_gap_after_its_own_use() {
    let (mut tokens, start) = warm(5);
    for at in [0, 100, 250, 400, 900] {
        assert!(spend(&mut tokens, start + ms(at)));
    }
    assert!(!spend(&mut tokens, start + ms(950)));
    for at in [0, 100, 250, 400, 900] {
        let back_at = tokens.next_at(start + ms(950)).unwrap();
        assert_eq!(back_at, start + AWAY + ms(at));
        assert!(tokens.take(back_at));
    }
    assert_eq!(tokens.next_at(start), None);
    assert_eq!((tokens.free(start), tokens.held()), (0, 5));
}

#[test]
fn a_tokens_window_runs_from_its_use_and_not_from_its_grant() {
    let (mut tokens, start) = warm(1);
    assert!(tokens.take(start));
    tokens.used(start + SECOND);
    assert!(!tokens.take(start + SECOND + AWAY - ms(1)));
    assert_eq!(tokens.next_at(start + SECOND), Some(start + SECOND + AWAY));
    assert!(tokens.take(start + SECOND + AWAY));
}

#[test]
fn a_token_given_back_is_free_at_once() {
    let (mut tokens, now) = warm(5);
    assert!(tokens.take(now));
    tokens.give_back();
    assert!(tokens.is_at_rest(now));
}

#[test]
fn an_attempt_that_was_granted_before_holds_a_token_and_keeps_it_away() {
    let (mut tokens, now) = warm(2);
    tokens.reserve_for_earlier_grants(1);
    assert_eq!(tokens.free(now), 1);
    tokens.used(now);
    assert!(
        spend(&mut tokens, now)
            && !spend(&mut tokens, now + AWAY - ms(1))
            && spend(&mut tokens, now + AWAY)
    );
}

#[test]
fn the_forecast_is_what_happens() {
    let (mut tokens, start) = warm(5);
    assert!(spend(&mut tokens, start));
    let now = start + ms(300);
    let wait = |ahead, open| tokens.forecast(now, open, Vec::new()).at(ahead) - start;
    assert_eq!(wait(0, now), ms(300));
    assert_eq!(wait(3, now), ms(300));
    assert_eq!(wait(4, now), AWAY);
    assert_eq!(wait(5, now), ms(300) + AWAY);
    assert_eq!(wait(9, now), AWAY * 2);
    assert_eq!(wait(0, start + 9 * SECOND), 9 * SECOND);
    assert_eq!(wait(4, start + 9 * SECOND), 9 * SECOND);
}

/// Takes tokens as soon as possible. One more token is usable from each time in `more` on.
fn grants(tokens: &mut Tokens, start: Instant, number: usize, more: &[u64]) -> Vec<u128> {
    let mut more = more.iter().map(|at| start + ms(*at)).peekable();
    let mut grants = Vec::new();
    let mut now = start;
    while grants.len() < number {
        while more.next_if(|at| *at <= now).is_some() {
            tokens.set_rate(rate(u32::try_from(tokens.usable).unwrap() + 1, 5));
        }
        while spend(tokens, now) {
            grants.push((now - start).as_millis());
        }
        now += ms(1);
    }
    grants.truncate(number);
    grants
}

#[test]
fn the_forecast_includes_tokens_that_become_usable_later() {
    for (usable, used, more) in [
        (3, &[0, 100, 200][..], &[5000, 9000][..]),
        (1, &[0, 0, 0, 0, 0], &[1005, 1005, 1100, 20_000]),
        (4, &[], &[300]),
    ] {
        let (mut tokens, start) = warm(5);
        for at in used {
            assert!(spend(&mut tokens, start + ms(*at)));
        }
        tokens.set_rate(rate(usable, 5));
        let now = start + ms(used.last().copied().unwrap_or_default());
        let rises: Vec<_> = (1..)
            .zip(more)
            .map(|(index, at)| (now + ms(*at), rate(usable + index, 5)))
            .collect();
        let forecast = tokens.forecast(now, now, rises);
        let forecasts: Vec<_> = (0..60)
            .map(|ahead| (forecast.at(ahead) - now).as_millis())
            .collect();
        assert_eq!(
            forecasts,
            grants(&mut tokens, now, 60, more),
            "{usable} usable"
        );
    }
}

#[test]
fn a_rising_rate_of_many_tokens_is_forecast_by_its_mean() {
    let (mut tokens, start) = warm(1000);
    tokens.set_rate(rate(500, 5));
    let rises = vec![
        (start + 10 * SECOND, rate(750, 5)),
        (start + 20 * SECOND, rate(1000, 5)),
    ];
    let forecast = tokens.forecast(start, start, rises);
    let at: Vec<_> = (0..20_000)
        .map(|ahead| (forecast.at(ahead) - start).as_millis())
        .collect();
    assert!(
        at.is_sorted(),
        "a later call is never forecast before an earlier one"
    );
    assert_eq!(
        at[4999], 9045,
        "ten bursts of five hundred before the first rise"
    );
    let window = 1005.0;
    let within = |index: usize, expected: f64| {
        assert!(
            (at[index] as f64 - expected).abs() <= window,
            "{}",
            at[index]
        )
    };
    within(5000 + 7462, 20_000.0);
    within(5000 + 7462 + 5000, 25_025.0);
}

#[test]
fn a_lower_rate_takes_free_tokens_out_of_use_first_then_those_that_are_back_next() {
    let (mut tokens, start) = warm(5);
    for at in [0, 100, 200, 300] {
        assert!(spend(&mut tokens, start + ms(at)));
    }
    let now = start + ms(300);
    tokens.set_rate(rate(2, 5));
    assert_eq!(tokens.free(now), 0);
    let grants: Vec<_> = (0..4)
        .map(|ahead| (tokens.forecast(now, now, Vec::new()).at(ahead) - start).as_millis())
        .collect();
    assert_eq!(grants, [1205, 1305, 2210, 2310]);
    for expected in [1205, 1305] {
        let at = tokens.next_at(now).unwrap();
        assert_eq!((at - start).as_millis(), expected);
        assert!(tokens.take(at));
    }
    tokens.set_rate(rate(5, 5));
    assert_eq!(
        tokens.free(start + ms(1305)),
        3,
        "no token that was taken out of use is lost"
    );
}

#[test]
fn a_changed_gap_applies_to_earlier_uses() {
    let (mut tokens, start) = warm(5);
    for _ in 0..5 {
        assert!(spend(&mut tokens, start));
    }
    for gap in [40, 5, 20] {
        tokens.set_rate(rate(5, gap));
        assert_eq!(tokens.next_at(start), Some(start + SECOND + ms(gap)));
    }
}

#[test]
fn a_spaced_rate_uses_one_token_at_a_time() {
    let (mut tokens, start) = warm(5);
    tokens.set_rate(Rate {
        tokens: 3,
        window: ms(1200),
        gap: ms(5),
        spacing: ms(400),
    });
    let mut uses = Vec::new();
    for at in 0..2500 {
        if spend(&mut tokens, start + ms(at)) {
            uses.push(at);
            assert!(!tokens.take(start + ms(at)), "the next one has to wait");
        }
    }
    assert_eq!(uses, [0, 400, 800, 1205, 1605, 2005, 2410]);
    assert_eq!(tokens.next_at(start + ms(2410)), Some(start + ms(2810)));
}

proptest! {
    /// At any count, with tokens that are used long after their grant, returned, or used
    /// immediately.
    #[test]
    fn no_change_of_rate_lets_more_than_the_count_into_a_second(
        count in prop_oneof![Just(1_u32), Just(5), Just(50), Just(1000)],
        steps in proptest::collection::vec((0..300_u64, 0..41_u64, 1..101_u32, 0..400_u64, 0..12_u8), 1..60),
    ) {
        let (mut tokens, mut now) = warm(count);
        let mut uses = Vec::<Instant>::new();
        let mut held = Vec::<Instant>::new();
        for (after, gap, percent, late, kind) in steps {
            now += ms(after);
            tokens.set_rate(rate((count * percent / 100).max(1), gap));
            held.retain(|write_at| {
                let due = *write_at <= now;
                if due {
                    tokens.used(now);
                    uses.push(now);
                }
                !due
            });
            while tokens.take(now) {
                match kind {
                    0 => { tokens.give_back(); break; }
                    1..4 => held.push(now + ms(late)),
                    _ => { tokens.used(now); uses.push(now); }
                }
            }
            prop_assert!(tokens.held() <= count && tokens.used.len() <= count as usize);
        }
        uses.sort();
        for (first, last) in uses.iter().zip(uses.iter().skip(count as usize)) {
            prop_assert!(*last - *first >= SECOND);
        }
    }
}

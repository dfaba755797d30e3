//! The pace in simulated time: the rate of a lane behind jitter, at endpoints that accept less than
//! the limit, and beside outsiders. Every seed is fixed.

#![expect(
    clippy::print_stdout,
    reason = "prints the tables behind decision 0001"
)]

use std::num::NonZeroU32;
use std::ops::Range;

use super::simulation::{LEARN, Outsider, STEADY, Scenario, Window, run};
use super::*;

const SECOND: Duration = Duration::from_secs(1);

/// The worst and the mean figures over all seeds, in per cent.
#[derive(Clone, Copy, Debug)]
struct Figures {
    least_share: f64,
    share: f64,
    most_refused: f64,
    refused: f64,
    least_back: f64,
}

/// Runs the scenario with each seed. Returns the lane's share of the rate that is available between
/// these seconds, the share of refused attempts then, and the rate of the last 30 s as a share of
/// the limit.
fn figures(scenario: Scenario, seconds: Range<u64>, seeds: u64) -> Figures {
    let from = seconds.start;
    let to = seconds.end;
    let mut all = Figures {
        least_share: f64::MAX,
        share: 0.0,
        most_refused: 0.0,
        refused: 0.0,
        least_back: f64::MAX,
    };
    for seed in 0..seeds {
        let outcome = run(Scenario { seed, ..scenario });
        assert!(
            outcome.worst_second() <= scenario.limit as usize,
            "{scenario:?}"
        );
        let seconds = (to - from) as f64;
        let outsiders = match scenario.outsider {
            Outsider::Refusable => 0.4 * f64::from(scenario.limit) * seconds,
            _ => outcome.outsiders_between(from, to),
        };
        let (accepted, refused) = outcome.between(from, to);
        let share = 100.0 * accepted / (f64::from(scenario.takes) * seconds - outsiders);
        let refused = 100.0 * refused / (accepted + refused);
        let back = outcome.between(scenario.seconds - 30, scenario.seconds).0 / 30.0;
        all.share += share / seeds as f64;
        all.refused += refused / seeds as f64;
        all.least_share = all.least_share.min(share);
        all.most_refused = all.most_refused.max(refused);
        all.least_back = all.least_back.min(100.0 * back / f64::from(scenario.limit));
    }
    all
}

fn print(name: &str, figures: Figures) -> Figures {
    let Figures {
        least_share,
        share,
        most_refused,
        refused,
        least_back,
    } = figures;
    println!(
        "{name}: {share:.0} % ({least_share:.0}) of the available rate, {refused:.1} % ({most_refused:.1}) refused, at the end {least_back:.0} %"
    );
    figures
}

// === Jitter ===

#[test]
fn a_steady_path_gets_99_per_cent_of_the_rate_and_no_refusal() {
    for limit in [1, 5, 50, 200, 1000] {
        for window in [Window::Sliding, Window::Aligned] {
            let outcome = run(Scenario {
                limit,
                takes: limit,
                window,
                ..STEADY
            });
            let (accepted, refused) = outcome.between(0, 60);
            assert!(
                accepted >= 0.99 * 60.0 * f64::from(limit),
                "{accepted} of {limit}/s, {window:?}"
            );
            assert_eq!(refused, 0.0, "{limit}/s, {window:?}");
        }
    }
}

/// With one refusal in 60 calls there are 61 attempts, which take 12 s. So within 11.6 s none was
/// refused.
#[test]
fn behind_30_ms_of_jitter_60_calls_take_11_6_s_and_600_take_123_s() {
    for seed in 0..200 {
        let outcome = run(Scenario {
            jitter_ms: 30,
            calls: 600,
            seconds: 130,
            seed,
            ..STEADY
        });
        let [few, some, many] = [60, 150, 600].map(|calls| outcome.nth_accepted(calls));
        assert!(few.0 <= 11.6 && few.1 <= 1, "seed {seed}: 60 calls {few:?}");
        assert!(some.0 <= 29.0 / 0.96, "seed {seed}: 150 calls {some:?}");
        assert!(
            many.0 <= 123.0 && many.1 <= 6,
            "seed {seed}: 600 calls {many:?}"
        );
    }
}

#[test]
fn late_timers_do_not_slow_a_lane_behind_jitter() {
    for seed in 0..50 {
        let outcome = run(Scenario {
            jitter_ms: 30,
            late: 300,
            calls: 600,
            seconds: 130,
            seed,
            ..STEADY
        });
        let [few, many] = [60, 600].map(|calls| outcome.nth_accepted(calls));
        assert!(
            few.0 <= 11.6 && few.1 <= 1 && many.0 <= 123.0 && many.1 <= 6,
            "seed {seed}: {few:?}, {many:?}"
        );
    }
}

#[test]
fn an_hour_behind_jitter_has_at_most_half_a_per_cent_refused() {
    for (jitter_ms, limit) in [(10, 5), (30, 5), (30, 50)] {
        let figures = figures(
            Scenario {
                limit,
                takes: limit,
                jitter_ms,
                seconds: 3600,
                ..STEADY
            },
            0..3600,
            1,
        );
        print(&format!("{jitter_ms} ms, {limit}/s, an hour"), figures);
        assert!(
            figures.least_share >= 96.5 && figures.most_refused <= 0.5,
            "{jitter_ms} ms, {limit}/s: {figures:?}"
        );
    }
}

/// The answers prove that the spread is not on the way in only after the gap has become narrower
/// than the spread.
#[test]
fn a_server_that_answers_unevenly_costs_4_per_cent_at_first_and_1_per_cent_later() {
    for seed in 0..10 {
        let outcome = run(Scenario {
            server_ms: 100,
            seconds: 600,
            seed,
            ..STEADY
        });
        let rate = |from, to| outcome.between(from, to).0 / (to - from) as f64;
        assert_eq!(outcome.between(0, 600).1, 0.0);
        assert!(rate(0, 120) >= 0.96 * 5.0, "seed {seed}: {}", rate(0, 120));
        assert!(
            rate(300, 600) >= 0.985 * 5.0,
            "seed {seed}: {}",
            rate(300, 600)
        );
    }
}

#[test]
fn jitter_beyond_the_largest_gap_lowers_the_rate() {
    let figures = figures(
        Scenario {
            jitter_ms: 100,
            seconds: 300,
            ..STEADY
        },
        30..300,
        5,
    );
    print("100 ms", figures);
    assert!(
        figures.least_share >= 85.0 && figures.most_refused <= 6.0,
        "{figures:?}"
    );
}

// === Endpoints that accept less than the limit ===

fn sends_at_least(least_share: f64, most_refused: f64, scenario: Scenario) {
    let figures = figures(
        Scenario {
            seconds: 120,
            ..scenario
        },
        30..120,
        3,
    );
    let Scenario {
        limit,
        takes,
        window,
        jitter_ms,
        ..
    } = scenario;
    print(
        &format!("L={limit} R={takes} {window:?} jitter {jitter_ms}"),
        figures,
    );
    assert!(
        figures.least_share >= least_share && figures.most_refused <= most_refused,
        "{scenario:?}: {figures:?}"
    );
}

#[test]
fn an_endpoint_that_accepts_less_gets_85_per_cent_of_it_with_at_most_6_per_cent_refused() {
    for (limit, takes) in COUNTS
        .into_iter()
        .filter(|(limit, takes)| *limit > 2 && *limit <= 200 && takes * 2 >= limit - 1)
    {
        for window in [Window::Sliding, Window::Aligned] {
            for jitter_ms in [0, 30] {
                sends_at_least(
                    85.0,
                    6.0,
                    Scenario {
                        limit,
                        takes,
                        window,
                        jitter_ms,
                        ..STEADY
                    },
                );
            }
        }
    }
}

#[test]
fn an_endpoint_that_also_counts_refused_attempts_gets_as_much() {
    for (limit, takes) in [(5, 2), (5, 4), (50, 25)] {
        for window in [Window::Sliding, Window::Aligned] {
            sends_at_least(
                85.0,
                6.0,
                Scenario {
                    limit,
                    takes,
                    window,
                    counts_refused: true,
                    ..STEADY
                },
            );
        }
    }
}

#[test]
fn a_lane_of_a_thousand_per_second_sends_as_much() {
    for takes in [100, 500] {
        sends_at_least(
            85.0,
            6.0,
            Scenario {
                limit: 1000,
                takes,
                ..STEADY
            },
        );
    }
}

/// A smooth endpoint accepts one attempt per part of the window. The lane spaces them, if timers
/// are precise enough.
#[test]
fn a_smooth_endpoint_gets_as_much_up_to_100_per_second() {
    for (limit, takes) in [
        (5, 2),
        (5, 4),
        (5, 5),
        (10, 5),
        (50, 25),
        (50, 40),
        (200, 100),
    ] {
        sends_at_least(
            85.0,
            6.0,
            Scenario {
                limit,
                takes,
                window: Window::Smooth,
                ..STEADY
            },
        );
    }
}

#[test]
fn a_lane_adapts_to_a_fifth_of_its_limit() {
    for (limit, takes) in [(10, 2), (50, 10), (200, 20)] {
        sends_at_least(
            85.0,
            6.0,
            Scenario {
                limit,
                takes,
                ..STEADY
            },
        );
    }
}

#[test]
fn replicas_that_share_a_lane_learn_as_one_does() {
    for replicas in [2, 4] {
        for (limit, takes) in [(5, 3), (50, 25), (200, 100)] {
            for jitter_ms in [0, 30] {
                sends_at_least(
                    85.0,
                    6.0,
                    Scenario {
                        limit,
                        takes,
                        jitter_ms,
                        replicas,
                        ..STEADY
                    },
                );
            }
        }
        let figures = figures(
            Scenario {
                jitter_ms: 30,
                replicas,
                ..STEADY
            },
            0..60,
            5,
        );
        assert!(
            figures.least_share >= 95.0 && figures.most_refused <= 2.0,
            "{replicas}: {figures:?}"
        );
    }
}

// === Outsiders ===

#[test]
fn beside_an_outsider_the_lane_uses_the_rest_and_recovers_when_the_outsider_stops() {
    for limit in [5, 10, 50] {
        for outsider in [Outsider::Even, Outsider::OnOff(30)] {
            for (window, jitter_ms) in [
                (Window::Sliding, 0),
                (Window::Sliding, 30),
                (Window::Aligned, 0),
            ] {
                let figures = figures(beside(outsider, limit, window, jitter_ms), 30..150, 3);
                let name = format!("L={limit} {outsider:?} {window:?} jitter {jitter_ms}");
                print(&name, figures);
                // With few calls per second, a lane detects slowly that an outsider has paused.
                let share = if limit == 5 && outsider != Outsider::Even {
                    80.0
                } else {
                    85.0
                };
                assert!(
                    figures.least_share >= share && figures.most_refused <= 6.0,
                    "{name}: {figures:?}"
                );
                assert!(figures.least_back >= 95.0, "{name}: {figures:?}");
            }
        }
    }
}

#[test]
fn beside_an_even_2_per_second_a_lane_of_5_sends_2_7_to_3_2() {
    for (outsider, jitter_ms) in [
        (Outsider::Even, 0),
        (Outsider::Even, 30),
        (Outsider::Refusable, 30),
    ] {
        for seed in 0..20 {
            let outcome = run(Scenario {
                outsider,
                jitter_ms,
                outsider_stops_s: 120,
                seconds: 210,
                seed,
                ..STEADY
            });
            let (accepted, refused) = outcome.between(30, 120);
            let rate = accepted / 90.0;
            let share = 100.0 * refused / (accepted + refused);
            let after = outcome.between(160, 210).0 / 50.0;
            let which = format!("{outsider:?}, {jitter_ms} ms, seed {seed}");
            assert!((2.7..=3.2).contains(&rate), "{which}: {rate:.2}/s");
            assert!(share <= 6.0, "{which}: {share:.2} % refused");
            assert!(
                after >= 4.75,
                "{which}: {after:.2}/s after the outsider stopped"
            );
        }
    }
}

/// At 5 and 10 per second a Poisson outsider fills the quota so often that a sender that cannot see
/// it does not get 85 % of the rest.
#[test]
fn beside_a_poisson_outsider_the_lane_recovers_when_the_outsider_stops() {
    for (limit, share, refused) in [
        (5, 25.0, 15.0),
        (10, 30.0, 10.0),
        (50, 75.0, 6.0),
        (200, 85.0, 3.0),
    ] {
        let figures = figures(
            beside(Outsider::Poisson, limit, Window::Sliding, 0),
            30..150,
            3,
        );
        print(&format!("L={limit} Poisson"), figures);
        assert!(
            figures.least_share >= share && figures.most_refused <= refused,
            "{limit}/s: {figures:?}"
        );
        assert!(figures.least_back >= 95.0, "{limit}/s: {figures:?}");
    }
}

// === Bursts and outages ===

/// Two bursts arrive together after the machine or the path has stalled.
#[test]
fn one_late_burst_lowers_the_rate_for_a_few_seconds() {
    for limit in [5, 50] {
        for seed in 0..10 {
            let stall = (20_020_000, 21_000_000);
            let outcome = run(Scenario {
                limit,
                takes: limit,
                stall,
                seconds: 60,
                seed,
                ..STEADY
            });
            assert!(
                outcome.between(0, 60).1 > 0.0,
                "a part of the burst was refused"
            );
            let rate = outcome.between(30, 60).0 / 30.0;
            assert!(
                rate >= 0.98 * f64::from(limit),
                "seed {seed}: {rate} of {limit}/s from 10 s later on"
            );
        }
    }
}

#[test]
fn an_outage_causes_pauses_and_the_lane_recovers_soon_after_it() {
    for limit in [5, 200] {
        for seed in 0..5 {
            let outcome = run(Scenario {
                limit,
                takes: limit,
                outage_s: (20, 80),
                seconds: 150,
                seed,
                ..STEADY
            });
            let (_, refused) = outcome.between(22, 80);
            assert!(
                refused <= 25.0,
                "{limit}/s, seed {seed}: {refused} refused in 58 s"
            );
            let rate = outcome.between(120, 150).0 / 30.0;
            assert!(
                rate >= 0.95 * f64::from(limit),
                "{limit}/s, seed {seed}: {rate} from 40 s after its end"
            );
        }
    }
}

// === Congestion events ===

fn pace(count: u32) -> Pace {
    Pace::new(limit(count, SECOND), LEARN)
}

fn limit(count: u32, window: Duration) -> Limit {
    Limit {
        count: NonZeroU32::new(count).unwrap(),
        window,
    }
}

fn ms(ms: u64) -> Duration {
    Duration::from_millis(ms)
}

fn refused(pace: &mut Pace, written_at: Instant, now: Instant) -> bool {
    pace.throttled(
        &ThrottledAttempt {
            written_at,
            probe: false,
            own_share: 1.0,
        },
        now,
    )
}

/// Accepts `count` attempts 200 ms apart, each of which takes 20 ms, the last one written at
/// `until`.
fn accepted(pace: &mut Pace, count: u32, until: Instant) {
    for before in (0..count).rev() {
        let written_at = until - ms(200) * before;
        pace.accepted(written_at, written_at + ms(20));
    }
}

/// Returns (tokens, away in milliseconds, spacing in milliseconds).
fn rate(pace: &Pace, now: Instant) -> (u32, u128, u128) {
    let rate = pace.rate(now);
    (
        rate.tokens,
        rate.away().as_millis(),
        rate.spacing.as_millis(),
    )
}

/// A time that is late enough for every instant of a test to be representable.
fn start() -> Instant {
    Instant::now() + SECOND * 3600
}

#[test]
fn a_new_lane_sends_at_its_limit() {
    let pace = pace(5);
    assert_eq!(rate(&pace, start()), (5, 1005, 0));
    assert!(!pace.has_learned() && pace.is_at_rest(start()));
    assert_eq!(
        (
            pace.next_rise(start()),
            pace.upcoming_rates(start()).count(),
            pace.to_shared(start())
        ),
        (None, 0, None)
    );
}

#[test]
fn two_refused_batches_46_ms_apart_are_one_congestion_event() {
    let t = start();
    let mut one = pace(5);
    let mut two = pace(5);
    for pace in [&mut one, &mut two] {
        (0..5).for_each(|_| _ = refused(pace, t, t + ms(20)));
    }
    assert_eq!(
        rate(&one, t + ms(20)),
        (3, 1205, 400),
        "half of the rate is left"
    );
    (0..5).for_each(|_| _ = refused(&mut two, t + ms(46), t + ms(66)));
    assert_eq!(two.rate(t + ms(66)), one.rate(t + ms(20)));
    assert_eq!(
        rate(&two, t + ms(66) + 4 * SECOND),
        (5, 1005, 0),
        "it recovers within four windows"
    );
}

#[test]
fn a_single_refusal_among_accepted_attempts_is_isolated_and_no_congestion_event_but_a_second_one_is()
 {
    let t = start();
    let mut pace = pace(5);
    assert!(
        !refused(&mut pace, t - 100 * SECOND, t - 100 * SECOND + ms(20)),
        "no attempt was accepted before"
    );
    accepted(&mut pace, 20, t);
    assert!(refused(&mut pace, t, t + ms(20)));
    assert_eq!(rate(&pace, t + ms(20)), (5, 1005, 0));
    assert!(
        !refused(&mut pace, t + 2 * SECOND, t + 2 * SECOND + ms(20)),
        "two in thirty are not isolated"
    );
    assert_eq!(pace.rate(t + 2 * SECOND).tokens, 5);
    assert!(pace.rate(t + 2 * SECOND).window > SECOND);
    assert!(pace.has_learned() && !pace.is_at_rest(t + 2 * SECOND));
}

#[test]
fn a_refused_probe_teaches_nothing() {
    let t = start();
    let mut pace = pace(5);
    pace.throttled(
        &ThrottledAttempt {
            written_at: t,
            probe: true,
            own_share: 1.0,
        },
        t,
    );
    assert!(!pace.has_learned());
}

#[test]
fn the_more_are_refused_the_lower_the_rate_but_half_is_left() {
    let t = start();
    let after = |refusals| {
        let mut pace = pace(200);
        (0..refusals).for_each(|_| _ = refused(&mut pace, t, t + ms(20)));
        pace.rate(t + ms(20)).tokens
    };
    assert_eq!(
        [1, 2, 12, 13, 40, 100, 200].map(after),
        [188, 188, 188, 187, 160, 100, 100]
    );
}

#[test]
fn a_replica_that_sends_a_quarter_counts_each_of_its_refusals_as_four() {
    let t = start();
    let mut pace = pace(200);
    (0..10).for_each(|_| {
        _ = pace.throttled(
            &ThrottledAttempt {
                written_at: t,
                probe: false,
                own_share: 0.25,
            },
            t,
        )
    });
    assert_eq!(pace.rate(t).tokens, 160);
}

#[test]
fn a_pause_is_not_quiet_time() {
    let t = start();
    let mut pace = pace(5);
    (0..2).for_each(|_| _ = refused(&mut pace, t, t));
    pace.paused_until(t + 60 * SECOND);
    assert_eq!(pace.rate(t + 60 * SECOND).tokens, 3);
    assert_eq!(pace.rate(t + 64 * SECOND).tokens, 5);
}

#[test]
fn jitter_widens_the_gap_and_leaves_the_rate() {
    let t = start();
    let mut pace = pace(5);
    for (nth, answer_time) in [20, 32, 24, 29, 27]
        .into_iter()
        .cycle()
        .take(64)
        .enumerate()
    {
        let written_at = t + ms(200) * nth as u32;
        pace.accepted(written_at, written_at + ms(answer_time));
    }
    let now = t + 13 * SECOND;
    let before = pace.rate(now);
    assert!((ms(9)..ms(12)).contains(&before.gap), "{before:?}");
    assert!(refused(&mut pace, now, now + ms(20)));
    let after = pace.rate(now + ms(20));
    assert_eq!((after.tokens, after.window), (5, SECOND));
    assert!(after.gap > before.gap + ms(1), "{after:?}");
    assert!(!pace.is_at_rest(now) && pace.is_at_rest(now + 70 * SECOND));
}

#[test]
fn one_slow_answer_widens_the_gap_until_newer_answers_replace_it() {
    let t = start();
    let mut pace = pace(5);
    pace.accepted(t, t + ms(2000));
    accepted(&mut pace, 63, t + 20 * SECOND);
    assert!(pace.rate(t + 20 * SECOND).gap > ms(39));
    accepted(&mut pace, 1, t + 21 * SECOND);
    assert_eq!(pace.rate(t + 21 * SECOND).gap, ms(5));
}

#[test]
fn the_gap_stays_within_its_bounds() {
    let t = start();
    let spread = |learn, window: Duration| {
        let mut pace = Pace::new(limit(5, window), learn);
        (0..5).for_each(|nth| pace.accepted(t + ms(999) - ms(200 * nth), t + ms(1000)));
        pace.rate(t + ms(1000)).gap.as_secs_f64()
    };
    assert_eq!(spread(LEARN, SECOND), 0.04);
    assert_eq!(
        spread(
            Learn {
                gap: ms(60),
                max_gap: ms(60)
            },
            SECOND
        ),
        0.06
    );
    assert_eq!(spread(LEARN, ms(50)), 0.025, "at most half of the window");
}

#[test]
fn refusals_from_before_a_changed_limit_teach_nothing() {
    let t = start();
    let mut pace = pace(5);
    (0..2).for_each(|_| _ = refused(&mut pace, t, t + ms(20)));
    assert!(pace.has_learned());
    pace.set_rules(limit(6, SECOND), LEARN, t + ms(30));
    (0..2).for_each(|_| _ = refused(&mut pace, t + ms(29), t + ms(50)));
    assert!(!pace.has_learned());
    assert_eq!(rate(&pace, t + ms(50)), (6, 1005, 0));
    assert!(pace.is_at_rest(t + 2 * SECOND));
    (0..2).for_each(|_| _ = refused(&mut pace, t + ms(30), t + ms(60)));
    assert!(pace.has_learned());
}

#[test]
fn a_reload_of_the_same_limit_keeps_what_was_learned() {
    let t = start();
    let mut pace = pace(5);
    (0..2).for_each(|_| _ = refused(&mut pace, t, t));
    pace.set_rules(
        limit(5, SECOND),
        Learn {
            gap: ms(10),
            max_gap: ms(40),
        },
        t,
    );
    assert_eq!(rate(&pace, t), (3, 1010, 333));
}

#[test]
fn upcoming_rates_are_those_that_follow_and_end_at_the_limit() {
    let t = start();
    for count in [1, 5, 200, 10_000] {
        let mut pace = pace(count);
        for event in 0..6 {
            let at = t + event * SECOND;
            (0..2 * event).for_each(|_| _ = refused(&mut pace, at, at));
        }
        let now = t + 5 * SECOND;
        let ahead: Vec<_> = pace.upcoming_rates(now).collect();
        assert!(
            !ahead.is_empty() && ahead.len() <= 16,
            "{count}: {}",
            ahead.len()
        );
        assert_eq!(ahead.last().unwrap().1, self::pace(count).rate(now));
        let mut before = (now, pace.rate(now));
        for (at, rate) in ahead {
            assert!(
                at > before.0 && rate.per_second() > before.1.per_second(),
                "{count}: {rate:?} after {before:?}"
            );
            assert_eq!(pace.rate(at), rate);
            before = (at, rate);
        }
        let changes_at = pace.next_rise(now).unwrap();
        assert_eq!(pace.rate(changes_at - ms(1)), pace.rate(now));
        assert!(pace.rate(changes_at).per_second() > pace.rate(now).per_second());
    }
}

#[test]
fn replicas_share_a_rate_and_a_congestion_event() {
    let t = start();
    let mut one = pace(5);
    let mut other = pace(5);
    (0..2).for_each(|_| _ = refused(&mut one, t, t + ms(20)));
    other.adopt(&one.to_shared(t + ms(30)).unwrap(), t + ms(30));
    for after in [30, 1000, 3000, 10_000] {
        let now = t + ms(after);
        assert!(other.rate(now).per_second() - one.rate(now).per_second() < 1e-3);
    }
    // A refusal of this replica in the same window belongs to the same congestion event.
    refused(&mut other, t, t + ms(40));
    assert_eq!(
        other.rate(t + ms(40)).tokens,
        3,
        "{:?}",
        other.rate(t + ms(40))
    );
    let harder = other.to_shared(t + ms(50)).unwrap();
    one.adopt(&harder, t + ms(50));
    assert_eq!(one.rate(t + ms(50)), other.rate(t + ms(50)));
    let milder = SharedRate {
        lowest: 4_900_000,
        cut: 100_000,
        ..harder
    };
    one.adopt(&milder, t + ms(50));
    assert_eq!(
        one.rate(t + ms(50)),
        other.rate(t + ms(50)),
        "of two congestion events in one window the lower rate applies"
    );
    one.adopt(
        &SharedRate {
            known_at: 0,
            rises_from: 0,
            ..milder
        },
        t + 3 * SECOND,
    );
    assert_eq!(
        one.rate(t + 3 * SECOND).tokens,
        5,
        "of two congestion events in two windows the later one applies"
    );
}

#[test]
fn a_shared_rate_of_another_limit_is_not_adopted() {
    let t = start();
    let mut one = pace(200);
    let mut other = pace(5);
    (0..2).for_each(|_| _ = refused(&mut one, t, t));
    other.adopt(&one.to_shared(t).unwrap(), t);
    assert!(!other.has_learned());
}

#[test]
fn a_quiet_lane_is_small() {
    assert!(size_of::<Pace>() <= 112, "{}", size_of::<Pace>());
}

proptest::proptest! {
    /// In any history the rate stays within the limit, and its window and gap within their bounds.
    #[test]
    fn no_order_of_events_leads_out_of_the_bounds(
        count in proptest::sample::select(vec![1_u32, 2, 5, 200, 10_000]),
        window_ms in proptest::sample::select(vec![10_u64, 1000, 60_000]),
        events in proptest::collection::vec((0..8_u8, 0..3000_u64, 0..3000_u64), 1..200),
    ) {
        let window = ms(window_ms);
        let mut pace = Pace::new(limit(count, window), LEARN);
        let mut now = start();
        for (kind, after, took) in events {
            now += ms(after);
            let written_at = now - ms(took);
            match kind {
                0..=2 => pace.accepted(written_at, now),
                3..=5 => _ = refused(&mut pace, written_at, now),
                6 => pace.paused_until(now + ms(took)),
                _ => {
                    let shared = SharedRate {
                        lowest: took * 1000,
                        cut: after * 1000,
                        streak: u32::MAX,
                        rises_from: took as i64,
                        known_at: -(took as i64) * 1000,
                    };
                    pace.adopt(&shared, now);
                }
            }
            let rate = pace.rate(now);
            assert!((1..=count).contains(&rate.tokens) && rate.window >= window, "{rate:?}");
            assert!(rate.gap >= LEARN.gap && rate.gap <= LEARN.max_gap.min(window / 2).max(LEARN.gap), "{rate:?}");
            assert!(rate.spacing * rate.tokens <= rate.away() + ms(1), "{rate:?}");
            assert!(pace.upcoming_rates(now).count() <= 16);
            assert!(pace.next_rise(now).is_none_or(|at| at > now));
        }
    }
}

// === Tables ===

#[test]
#[ignore = "prints the table of jitter"]
fn table_of_jitter() {
    for (jitter_ms, server_ms) in [
        (0, 0),
        (10, 0),
        (30, 0),
        (100, 0),
        (0, 30),
        (0, 100),
        (30, 30),
        (30, 100),
    ] {
        for limit in [5, 50, 200] {
            for window in [Window::Sliding, Window::Aligned] {
                let calls = [12, 30, 120].map(|rounds| rounds * limit as usize);
                let mut worst = [(0.0_f64, 0); 3];
                let mut mean = [0.0; 3];
                for seed in 0..SEEDS {
                    let outcome = run(Scenario {
                        limit,
                        takes: limit,
                        window,
                        jitter_ms,
                        server_ms,
                        seconds: 180,
                        seed,
                        ..STEADY
                    });
                    for ((worst, mean), calls) in worst.iter_mut().zip(&mut mean).zip(calls) {
                        let (time, refused) = outcome.nth_accepted(calls);
                        *worst = (worst.0.max(time), worst.1.max(refused));
                        *mean += time / SEEDS as f64;
                    }
                }
                println!(
                    "jitter {jitter_ms}+{server_ms} L={limit} {window:?}: calls {calls:?} mean {mean:.2?} worst {worst:.2?}"
                );
            }
        }
    }
}

#[test]
#[ignore = "prints the table of endpoints that accept less, and of outsiders"]
fn table_of_rates() {
    for jitter_ms in [0, 30] {
        for (limit, takes) in COUNTS {
            for window in [Window::Sliding, Window::Aligned, Window::Smooth] {
                let scenario = Scenario {
                    limit,
                    takes,
                    window,
                    jitter_ms,
                    seconds: 120,
                    ..STEADY
                };
                print(
                    &format!("L={limit} R={takes} {window:?} jitter {jitter_ms}"),
                    figures(scenario, 30..120, SEEDS),
                );
            }
        }
        for limit in [5, 10, 50, 200] {
            for outsider in OUTSIDERS {
                for window in [Window::Sliding, Window::Aligned] {
                    let scenario = beside(outsider, limit, window, jitter_ms);
                    print(
                        &format!("L={limit} {outsider:?} {window:?} jitter {jitter_ms}"),
                        figures(scenario, 30..150, SEEDS),
                    );
                }
            }
        }
    }
}

/// The number of seeds of each row of a table.
const SEEDS: u64 = 20;

/// Limits, and the rates that the endpoint accepts.
const COUNTS: [(u32, u32); 17] = [
    (2, 1),
    (5, 1),
    (5, 2),
    (5, 3),
    (5, 4),
    (10, 2),
    (10, 5),
    (10, 8),
    (50, 10),
    (50, 25),
    (50, 40),
    (200, 20),
    (200, 100),
    (200, 160),
    (1000, 100),
    (1000, 500),
    (1000, 800),
];

const OUTSIDERS: [Outsider; 5] = [
    Outsider::Even,
    Outsider::Refusable,
    Outsider::Poisson,
    Outsider::OnOff(30),
    Outsider::OnOff(10),
];

/// A scenario with an outsider that stops after 150 s.
fn beside(outsider: Outsider, limit: u32, window: Window, jitter_ms: u64) -> Scenario {
    Scenario {
        limit,
        takes: limit,
        window,
        jitter_ms,
        outsider,
        outsider_stops_s: 150,
        seconds: 240,
        ..STEADY
    }
}

//! Forecasts come true: without later arrivals and refusals each call is granted when predicted.

use proptest::prelude::*;

use super::*;

/// Grants and writes whatever the lane allows until the queue is empty. Returns the time of each
/// grant.
fn serve(harness: &mut Harness) -> BTreeMap<u64, Instant> {
    let mut granted = BTreeMap::new();
    for _ in 0..100_000 {
        let cx = Context {
            now: harness.now,
            rules: &harness.rules,
            drain_by: None,
        };
        let (next, check_at) = harness.lane.next(true, cx);
        match next {
            Next::Idle => return granted,
            Next::Grant => {
                for effect in harness.lane.handle(Event::Connected, cx) {
                    let Effect::Grant { waiter, grant } = effect else {
                        panic!("a grant")
                    };
                    granted.insert(waiter, harness.now);
                    let written = Event::Written {
                        grant,
                        at: harness.now,
                    };
                    harness.lane.handle(written, cx);
                    // The probe ends immediately.
                    if grant.probe {
                        harness.lane.handle(
                            Event::Ended {
                                grant,
                                written_at: harness.now,
                                end: End::Unknown,
                            },
                            cx,
                        );
                    }
                }
            }
            Next::Review => drop(harness.lane.handle(Event::Review, cx)),
            Next::Pause(until) | Next::Token(until) | Next::Until(until) => {
                harness.now = check_at.map_or(until, |at| at.min(until)).max(harness.now);
            }
            Next::Connect(_) | Next::Event => panic!("no token is held, and a connection is ready"),
        }
    }
    panic!("the queue never ends");
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 96, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn a_steady_lanes_forecast_is_exact(
        count in prop_oneof![Just(1_u32), Just(5), Just(200)],
        part in proptest::option::of(1..6_u32),
        sent in 0..8_u64,
        calls in 1..200_u64,
        pause in 0..3000_u64,
    ) {
        let mut harness = Harness::warm(count);
        if let Some(part) = part {
            let count = NonZeroU32::new(part.min(count)).unwrap();
            let since = harness.now - ms(5000);
            harness.apply(Step::Source(QuotaSource::Part { count, since }));
        }
        for call in 0..sent {
            harness.now += ms(37);
            if let Some(grant) = harness.lane.try_grant(harness.at(HOLD), harness.now) {
                let cx = Context { now: harness.now, rules: &harness.rules, drain_by: None };
                harness.lane.handle(Event::Written { grant, at: harness.now }, cx);
            }
            prop_assert!(call < 8);
        }
        harness.apply(Step::Pause(Some(pause)));
        let mut forecasts = BTreeMap::new();
        for call in 0..calls {
            let ahead = harness.lane.queue().len();
            forecasts.insert(call, harness.now + harness.lane.predicted_wait(ahead, harness.now));
            harness.apply(Step::Arrive(call, "a", HOLD));
        }
        prop_assert_eq!(serve(&mut harness), forecasts);
    }

    /// The rate of the lane rises while the calls wait.
    #[test]
    fn a_rising_lanes_forecast_is_right_to_the_distance_of_two_tokens_or_to_a_window_of_many(
        count in prop_oneof![Just(5_u32), Just(30), Just(200)],
        refusals in 1..4_u64,
        idle in 0..8000_u64,
        calls in 1..300_u64,
    ) {
        let mut harness = Harness::warm(count);
        for call in 0..refusals {
            let at = harness.now + ms(2000);
            harness.now = at;
            let grant = harness.lane.try_grant(at + ms(1), at).unwrap();
            let cx = Context { now: at, rules: &harness.rules, drain_by: None };
            harness.lane.handle(Event::Written { grant, at }, cx);
            let end = End::Throttled { hint: Some(ms(500)), random: 0.5 };
            harness.lane.handle(Event::Ended { grant, written_at: at, end }, cx);
            prop_assert!(call < 4);
        }
        harness.now += ms(500 + idle);
        let mut forecasts = BTreeMap::new();
        for call in 0..calls {
            harness.apply(Step::Arrive(call, "a", HOLD));
            forecasts.insert(call, harness.lane.forecast(harness.now).unwrap().at(call as usize));
        }
        let rate = harness.lane.rate(harness.now);
        let distance = (rate.away() / rate.tokens).max(rate.spacing);
        // With many tokens the mean rate is used, which does not model bursts.
        let distance = if rate.tokens > 64 { rate.away() } else { distance };
        let granted = serve(&mut harness);
        for (call, forecasts) in forecasts {
            let off = granted[&call].max(forecasts) - granted[&call].min(forecasts);
            prop_assert!(off <= distance, "{call} is off by {off:?}, {rate:?}");
        }
    }
}

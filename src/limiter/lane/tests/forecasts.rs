//! Forecasts come true: without later arrivals and refusals each call is granted when predicted.

use proptest::prelude::*;

use super::*;

/// Grants and writes whatever the lane allows until the queue is empty. Returns the time of each
/// grant.
fn serve(world: &mut World) -> BTreeMap<u64, Instant> {
    let mut granted = BTreeMap::new();
    for _ in 0..100_000 {
        let cx = Context {
            now: world.now,
            rules: &world.rules,
            drain_by: None,
        };
        let (next, check_at) = world.lane.next(true, cx);
        match next {
            Next::Idle => return granted,
            Next::Grant => {
                for effect in world.lane.handle(Event::Connected, cx) {
                    let Effect::Grant { waiter, grant } = effect else {
                        panic!("a grant")
                    };
                    granted.insert(waiter, world.now);
                    let written = Event::Written {
                        grant,
                        at: world.now,
                    };
                    world.lane.handle(written, cx);
                    // The probe ends immediately.
                    if grant.probe {
                        world.lane.handle(
                            Event::Ended {
                                grant,
                                written_at: world.now,
                                end: End::Unknown,
                            },
                            cx,
                        );
                    }
                }
            }
            Next::Review => drop(world.lane.handle(Event::Review, cx)),
            Next::Pause(until) | Next::Token(until) | Next::Until(until) => {
                world.now = check_at.map_or(until, |at| at.min(until)).max(world.now);
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
        let mut world = World::warm(count);
        if let Some(part) = part {
            let count = NonZeroU32::new(part.min(count)).unwrap();
            let since = world.now - ms(5000);
            world.apply(Step::Source(QuotaSource::Part { count, since }));
        }
        for call in 0..sent {
            world.now += ms(37);
            if let Some(grant) = world.lane.try_grant(world.at(HOLD), world.now) {
                let cx = Context { now: world.now, rules: &world.rules, drain_by: None };
                world.lane.handle(Event::Written { grant, at: world.now }, cx);
            }
            prop_assert!(call < 8);
        }
        world.apply(Step::Pause(Some(pause)));
        let mut forecasts = BTreeMap::new();
        for call in 0..calls {
            let ahead = world.lane.queue().len();
            forecasts.insert(call, world.now + world.lane.predicted_wait(ahead, world.now));
            world.apply(Step::Arrive(call, "a", HOLD));
        }
        prop_assert_eq!(serve(&mut world), forecasts);
    }

    /// The rate of the lane rises while the calls wait.
    #[test]
    fn a_rising_lanes_forecast_is_right_to_the_distance_of_two_tokens_or_to_a_window_of_many(
        count in prop_oneof![Just(5_u32), Just(30), Just(200)],
        refusals in 1..4_u64,
        idle in 0..8000_u64,
        calls in 1..300_u64,
    ) {
        let mut world = World::warm(count);
        for call in 0..refusals {
            let at = world.now + ms(2000);
            world.now = at;
            let grant = world.lane.try_grant(at + ms(1), at).unwrap();
            let cx = Context { now: at, rules: &world.rules, drain_by: None };
            world.lane.handle(Event::Written { grant, at }, cx);
            let end = End::Throttled { hint: Some(ms(500)), random: 0.5 };
            world.lane.handle(Event::Ended { grant, written_at: at, end }, cx);
            prop_assert!(call < 4);
        }
        world.now += ms(500 + idle);
        let mut forecasts = BTreeMap::new();
        for call in 0..calls {
            world.apply(Step::Arrive(call, "a", HOLD));
            forecasts.insert(call, world.lane.forecast(world.now).unwrap().at(call as usize));
        }
        let rate = world.lane.rate(world.now);
        let distance = (rate.away() / rate.tokens).max(rate.spacing);
        // With many tokens the mean rate is used, which does not model bursts.
        let distance = if rate.tokens > 64 { rate.away() } else { distance };
        let granted = serve(&mut world);
        for (call, forecasts) in forecasts {
            let off = granted[&call].max(forecasts) - granted[&call].min(forecasts);
            prop_assert!(off <= distance, "{call} is off by {off:?}, {rate:?}");
        }
    }
}

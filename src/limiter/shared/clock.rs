//! Where does the store's clock stand against ours? Every answer carries the store's time, which was read between the
//! question's leaving and the answer's coming: that bounds the difference of the clocks. The bounds of the last minute's
//! answers hold together, so what is left unknown is at most the least round trip, wherever the store is.

use std::time::Duration;

use tokio::time::Instant;

/// How long a bound is remembered.
const REMEMBERED: Duration = Duration::from_secs(60);
/// Bounds are kept per part of that time: the best of each.
const PARTS: u32 = 6;
/// By how much two clocks may part, in millionths of the time: an NTP client slews a clock by less.
const DRIFT: u64 = 200;

/// What is known of the store's clock. The difference is ours minus the store's, in microseconds, ours being counted from
/// `origin`.
#[derive(Clone, Debug)]
pub(crate) struct Clock {
    origin: Instant,
    /// Oldest first.
    bounds: Vec<Bound>,
}

/// The best bounds of some seconds.
#[derive(Clone, Copy, Debug)]
struct Bound {
    since: Instant,
    /// When each was measured.
    least_at: Instant,
    least: i64,
    most_at: Instant,
    most: i64,
}

// === impl Clock ===

impl Clock {
    pub(crate) fn new(origin: Instant) -> Self {
        Self {
            origin,
            bounds: Vec::new(),
        }
    }

    /// The store's clock showed `store` between the two moments.
    pub(crate) fn observe(&mut self, sent: Instant, received: Instant, store: u64) {
        let store = i64::try_from(store).unwrap_or(i64::MAX);
        let (least, most) = (self.ours(sent) - store, self.ours(received) - store);
        let new = Bound {
            since: received,
            least_at: sent,
            least,
            most_at: received,
            most,
        };
        if self
            .difference(received)
            .is_some_and(|(low, high)| most < low || least > high)
        {
            // The store's clock was set, or another server has taken over: what was known is wrong.
            self.bounds.clear();
        }
        self.bounds
            .retain(|bound| bound.since + REMEMBERED > received);
        match self.bounds.last_mut() {
            Some(last) if received < last.since + REMEMBERED / PARTS => {
                let age = |at: Instant| drift(at, received);
                if least > last.least - age(last.least_at) {
                    (last.least, last.least_at) = (least, sent);
                }
                if most < last.most + age(last.most_at) {
                    (last.most, last.most_at) = (most, received);
                }
            }
            _ => self.bounds.push(new),
        }
    }

    /// The store's `at` is not after this moment.
    pub(crate) fn latest(&self, at: u64, now: Instant) -> Instant {
        let (_, most) = self.difference(now).unwrap_or_default();
        self.moment(at, most)
    }

    /// The store's `at` is not before this moment.
    pub(crate) fn earliest(&self, at: u64, now: Instant) -> Instant {
        let (least, _) = self.difference(now).unwrap_or_default();
        self.moment(at, least)
    }

    /// At our `moment` the store's clock showed no more than this.
    pub(crate) fn at_most(&self, moment: Instant, now: Instant) -> u64 {
        let (least, _) = self.difference(now).unwrap_or_default();
        u64::try_from(self.ours(moment) - least).unwrap_or(0)
    }

    /// How far apart the bounds are; none before the first answer.
    #[cfg(test)]
    pub(crate) fn uncertainty(&self, now: Instant) -> Option<Duration> {
        let (least, most) = self.difference(now)?;
        Some(Duration::from_micros(
            u64::try_from(most - least).unwrap_or(0),
        ))
    }

    /// The difference of the clocks is between these.
    fn difference(&self, now: Instant) -> Option<(i64, i64)> {
        let least = self
            .bounds
            .iter()
            .map(|bound| bound.least - drift(bound.least_at, now))
            .max()?;
        let most = self
            .bounds
            .iter()
            .map(|bound| bound.most + drift(bound.most_at, now))
            .min()?;
        Some((least, most))
    }

    fn ours(&self, moment: Instant) -> i64 {
        let micros = |span: Duration| i64::try_from(span.as_micros()).unwrap_or(i64::MAX);
        match moment.checked_duration_since(self.origin) {
            Some(since) => micros(since),
            None => -micros(self.origin - moment),
        }
    }

    fn moment(&self, at: u64, difference: i64) -> Instant {
        let ours = i64::try_from(at)
            .unwrap_or(i64::MAX)
            .saturating_add(difference);
        let span = Duration::from_micros(ours.unsigned_abs());
        // A moment before the machine's start is as good as its start.
        if ours < 0 {
            self.origin.checked_sub(span).unwrap_or(self.origin)
        } else {
            self.origin + span
        }
    }
}

/// By how much the clocks may have parted between the two moments.
fn drift(from: Instant, to: Instant) -> i64 {
    let micros = to.saturating_duration_since(from).as_micros() * u128::from(DRIFT) / 1_000_000;
    i64::try_from(micros).unwrap_or(i64::MAX / 4)
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    fn micros(span: Duration) -> u64 {
        u64::try_from(span.as_micros()).unwrap()
    }

    #[test]
    fn one_answer_bounds_the_stores_clock_by_its_round_trip() {
        let start = Instant::now();
        let mut clock = Clock::new(start);
        assert_eq!(clock.uncertainty(start), None);
        clock.observe(start, start + 20 * MS, 1_000_000);
        let now = start + 20 * MS;
        assert_eq!(clock.uncertainty(now), Some(20 * MS + 4 * MS / 1000));
        assert_eq!(clock.latest(1_000_000, now), now);
        assert_eq!(
            clock.earliest(1_500_000, now),
            start + 500 * MS - 4 * MS / 1000
        );
        assert_eq!(clock.at_most(start + 500 * MS, now), 1_500_004);
    }

    #[test]
    fn bounds_of_several_answers_hold_together() {
        let start = Instant::now();
        let mut clock = Clock::new(start);
        // One way takes 1 ms and the other 30 ms, then the other way round.
        clock.observe(start, start + 31 * MS, 1_001_000);
        clock.observe(start + 40 * MS, start + 71 * MS, 1_070_000);
        let now = start + 71 * MS;
        let unknown = clock.uncertainty(now).unwrap();
        assert!(unknown <= 2 * MS + MS / 10, "{unknown:?}");
        assert!(
            clock.earliest(1_070_000, now) <= start + 70 * MS
                && clock.latest(1_070_000, now) >= start + 70 * MS
        );
    }

    #[test]
    fn the_bounds_are_right_whatever_the_way_and_the_drift() {
        for seed in 0..200 {
            let mut random = fastrand::Rng::with_seed(seed);
            let start = Instant::now();
            let mut clock = Clock::new(start + MS * random.u32(0..2000));
            // Millionths by which the store's clock is faster.
            let drift = random.i64(-180..=180);
            let store = |at: Instant| {
                let ours = i64::try_from((at - start).as_micros()).unwrap();
                u64::try_from(1_700_000_000_000_000 + ours + ours * drift / 1_000_000).unwrap()
            };
            let mut now = start;
            for _ in 0..200 {
                now += MS * random.u32(0..2000);
                let (out, back) = (MS * random.u32(0..50), MS * random.u32(0..50));
                clock.observe(now, now + out + back, store(now + out));
                now += out + back;
                let moment = now + MS * random.u32(0..300);
                let at = store(moment);
                // For rounding, and for the drift until that moment.
                let (two, later) = (Duration::from_micros(2), (moment - now) / 5000);
                assert!(
                    clock.earliest(at, now) <= moment + two + later,
                    "seed {seed}"
                );
                assert!(clock.latest(at, now) + two + later >= moment, "seed {seed}");
                assert!(
                    clock.at_most(moment, now) + micros(two + later) >= at,
                    "seed {seed}"
                );
                let (unknown, took) = (clock.uncertainty(now).unwrap(), out + back);
                assert!(
                    unknown <= took + took / 2500 + two,
                    "seed {seed}: {unknown:?}"
                );
            }
        }
    }

    #[test]
    fn a_clock_that_was_set_is_known_by_the_next_answer() {
        let start = Instant::now();
        let mut clock = Clock::new(start);
        clock.observe(start, start + MS, 5_000_000);
        for (second, store) in [(1, 2_000_000), (2, 900_000_000), (3, 901_000_300)] {
            let now = start + 1000 * MS * second;
            clock.observe(now, now + MS, store);
            assert!(clock.uncertainty(now + MS).unwrap() <= MS + MS / 500);
            assert!(
                clock.earliest(store, now + MS) <= now + MS && clock.latest(store, now + MS) >= now
            );
        }
    }

    #[test]
    fn what_is_known_lasts_and_grows_uncertain() {
        let start = Instant::now();
        let mut clock = Clock::new(start);
        clock.observe(start, start + MS, 0);
        let unknown = |second| clock.uncertainty(start + 1000 * MS * second).unwrap();
        assert!(unknown(1) < 2 * MS && unknown(60) > 20 * MS && unknown(60) < 30 * MS);
        assert_eq!(micros(unknown(60) - unknown(59)), 400);
    }
}

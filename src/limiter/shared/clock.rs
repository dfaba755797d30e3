//! Bounds on the difference between the store's clock and ours.
//!
//! Every answer has the store's time, read after the request left and before the response arrived:
//! this bounds the difference. All bounds of the last minute hold at once, so the uncertainty is at
//! most the shortest round trip.

use std::time::Duration;

use tokio::time::Instant;

/// How long a bound is remembered.
const REMEMBERED: Duration = Duration::from_secs(60);
/// That time is divided into this many parts; the best bounds of each part are kept.
const PARTS: u32 = 6;
/// Maximum drift between two clocks in parts per million, more than an NTP client slews a clock.
const DRIFT: u64 = 200;

/// Bounds on the store's clock. The difference is our time, counted from `origin`, minus the
/// store's, in microseconds.
#[derive(Clone, Debug)]
pub(crate) struct Clock {
    origin: Instant,
    /// The oldest first.
    bounds: Vec<Bound>,
}

/// The best bounds of one part of the time.
#[derive(Clone, Copy, Debug)]
struct Bound {
    since: Instant,
    /// When `least` was measured.
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

    /// Records that the store's clock read `store` between the two moments.
    pub(crate) fn observe(&mut self, sent: Instant, received: Instant, store: u64) {
        let store = i64::try_from(store).unwrap_or(i64::MAX);
        let least = self.own_micros(sent) - store;
        let most = self.own_micros(received) - store;
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
            // The store's clock was set, or another server took over: the old bounds are wrong.
            self.bounds.clear();
        }
        self.bounds
            .retain(|bound| bound.since + REMEMBERED > received);
        match self.bounds.last_mut() {
            Some(last) if received < last.since + REMEMBERED / PARTS => {
                if least > last.least - drift(last.least_at, received) {
                    last.least = least;
                    last.least_at = sent;
                }
                if most < last.most + drift(last.most_at, received) {
                    last.most = most;
                    last.most_at = received;
                }
            }
            _ => self.bounds.push(new),
        }
    }

    /// Returns a moment that the store's `at` is not after.
    pub(crate) fn latest(&self, at: u64, now: Instant) -> Instant {
        let (_, most) = self.difference(now).unwrap_or_default();
        self.instant(at, most)
    }

    /// Returns a moment that the store's `at` is not before.
    pub(crate) fn earliest(&self, at: u64, now: Instant) -> Instant {
        let (least, _) = self.difference(now).unwrap_or_default();
        self.instant(at, least)
    }

    /// Returns an upper bound of the store's clock at our `instant`.
    pub(crate) fn at_most(&self, instant: Instant, now: Instant) -> u64 {
        let (least, _) = self.difference(now).unwrap_or_default();
        u64::try_from(self.own_micros(instant) - least).unwrap_or(0)
    }

    /// Returns the distance between the bounds; `None` before the first answer.
    #[cfg(test)]
    pub(crate) fn uncertainty(&self, now: Instant) -> Option<Duration> {
        let (least, most) = self.difference(now)?;
        Some(Duration::from_micros(
            u64::try_from(most - least).unwrap_or(0),
        ))
    }

    /// Returns the lower and upper bound of the difference.
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

    fn own_micros(&self, instant: Instant) -> i64 {
        match instant.checked_duration_since(self.origin) {
            Some(since) => signed_micros(since),
            None => -signed_micros(self.origin - instant),
        }
    }

    fn instant(&self, at: u64, difference: i64) -> Instant {
        let own_micros = i64::try_from(at)
            .unwrap_or(i64::MAX)
            .saturating_add(difference);
        let span = Duration::from_micros(own_micros.unsigned_abs());
        // An Instant cannot be before the machine's start.
        if own_micros < 0 {
            self.origin.checked_sub(span).unwrap_or(self.origin)
        } else {
            self.origin + span
        }
    }
}

fn signed_micros(span: Duration) -> i64 {
    i64::try_from(span.as_micros()).unwrap_or(i64::MAX)
}

/// Returns the maximum drift of the clocks between the two moments, in microseconds.
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
                let own_micros = i64::try_from((at - start).as_micros()).unwrap();
                u64::try_from(1_700_000_000_000_000 + own_micros + own_micros * drift / 1_000_000)
                    .unwrap()
            };
            let mut now = start;
            for _ in 0..200 {
                now += MS * random.u32(0..2000);
                let out = MS * random.u32(0..50);
                let back = MS * random.u32(0..50);
                clock.observe(now, now + out + back, store(now + out));
                now += out + back;
                let instant = now + MS * random.u32(0..300);
                let at = store(instant);
                // For rounding, and for the drift until that moment.
                let two = Duration::from_micros(2);
                let later = (instant - now) / 5000;
                assert!(
                    clock.earliest(at, now) <= instant + two + later,
                    "seed {seed}"
                );
                assert!(
                    clock.latest(at, now) + two + later >= instant,
                    "seed {seed}"
                );
                assert!(
                    clock.at_most(instant, now) + micros(two + later) >= at,
                    "seed {seed}"
                );
                let unknown = clock.uncertainty(now).unwrap();
                let took = out + back;
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

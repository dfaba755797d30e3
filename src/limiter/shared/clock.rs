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
        Self { origin, bounds: Vec::new() }
    }

    /// The store's clock showed `store` between the two moments.
    pub(crate) fn observe(&mut self, sent: Instant, received: Instant, store: u64) {
        let store = i64::try_from(store).unwrap_or(i64::MAX);
        let (least, most) = (self.ours(sent) - store, self.ours(received) - store);
        let new = Bound { since: received, least_at: sent, least, most_at: received, most };
        if self.difference(received).is_some_and(|(low, high)| most < low || least > high) {
            // The store's clock was set, or another server has taken over: what was known is wrong.
            self.bounds.clear();
        }
        self.bounds.retain(|bound| bound.since + REMEMBERED > received);
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
    pub(crate) fn uncertainty(&self, now: Instant) -> Option<Duration> {
        let (least, most) = self.difference(now)?;
        Some(Duration::from_micros(u64::try_from(most - least).unwrap_or(0)))
    }

    /// The difference of the clocks is between these.
    fn difference(&self, now: Instant) -> Option<(i64, i64)> {
        let least = self.bounds.iter().map(|bound| bound.least - drift(bound.least_at, now)).max()?;
        let most = self.bounds.iter().map(|bound| bound.most + drift(bound.most_at, now)).min()?;
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
        let ours = i64::try_from(at).unwrap_or(i64::MAX).saturating_add(difference);
        let span = Duration::from_micros(ours.unsigned_abs());
        // A moment before the machine's start is as good as its start.
        if ours < 0 { self.origin.checked_sub(span).unwrap_or(self.origin) } else { self.origin + span }
    }
}

/// By how much the clocks may have parted between the two moments.
fn drift(from: Instant, to: Instant) -> i64 {
    let micros = to.saturating_duration_since(from).as_micros() * u128::from(DRIFT) / 1_000_000;
    i64::try_from(micros).unwrap_or(i64::MAX / 4)
}

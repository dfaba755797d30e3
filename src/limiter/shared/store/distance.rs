//! How far away is the store? The least round trip of its latest pings: a busy moment lengthens one, and none is shorter
//! than the way.

use std::time::Duration;

use tokio::time::Instant;

/// From here on a store is far away: it costs a per cent of the rate at a limit by the second.
const FAR: Duration = Duration::from_millis(10);
/// How long a ping counts, at the least; twice as long at the most.
const COUNTS: Duration = Duration::from_secs(30);

/// The round trips over one connection.
#[derive(Debug, Default)]
pub(super) struct Distance {
    /// The least of this half minute, and when it began.
    now: Option<(Duration, Instant)>,
    /// The least of the one before.
    before: Option<Duration>,
    is_far: bool,
}

// === impl Distance ===

impl Distance {
    /// A ping was answered. True the first time that the store is seen to be far away.
    pub(super) fn observe(&mut self, round_trip: Duration, now: Instant) -> bool {
        match &mut self.now {
            Some((least, since)) if now < *since + COUNTS => *least = round_trip.min(*least),
            other => self.before = other.replace((round_trip, now)).map(|(least, _)| least),
        }
        self.least() > FAR && !std::mem::replace(&mut self.is_far, true)
    }

    pub(super) fn least(&self) -> Duration {
        [self.now.map(|(least, _)| least), self.before]
            .into_iter()
            .flatten()
            .min()
            .unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_least_of_the_last_minute_counts_and_far_is_said_once() {
        let (start, ms) = (Instant::now(), Duration::from_millis);
        let mut distance = Distance::default();
        assert_eq!(distance.least(), Duration::ZERO);
        let mut seen = Vec::new();
        for (at, round_trip) in [(0, 12), (1, 9), (2, 50), (31, 50), (62, 50), (93, 40)] {
            let said = distance.observe(ms(round_trip), start + Duration::from_secs(at));
            seen.push((distance.least().as_millis(), said));
        }
        assert_eq!(
            seen,
            [
                (12, true),
                (9, false),
                (9, false),
                (9, false),
                (50, false),
                (40, false)
            ]
        );
    }
}

//! The distance to the store: the shortest round trip of recent pings. Load lengthens a ping, but
//! none is shorter than the network's latency.

use std::time::Duration;

use tokio::time::Instant;

/// A longer distance costs more than 1 % of the rate of a limit with a window of one second.
const FAR: Duration = Duration::from_millis(10);
/// A ping counts for at least this time, and at most twice as long.
const COUNTS: Duration = Duration::from_secs(30);

/// The round trips over one connection.
#[derive(Debug, Default)]
pub(super) struct Distance {
    /// The shortest round trip of the current period, and when the period began.
    now: Option<(Duration, Instant)>,
    /// The shortest round trip of the previous period.
    before: Option<Duration>,
    is_far: bool,
}

// === impl Distance ===

impl Distance {
    /// Records a ping. Returns true the first time that the store is far away.
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
    fn the_shortest_recent_ping_counts_and_far_is_reported_once() {
        let start = Instant::now();
        let ms = Duration::from_millis;
        let mut distance = Distance::default();
        assert_eq!(distance.least(), Duration::ZERO);
        let mut seen = Vec::new();
        for (at, round_trip) in [(0, 12), (1, 9), (2, 50), (31, 50), (62, 50), (93, 40)] {
            let verdict = distance.observe(ms(round_trip), start + Duration::from_secs(at));
            seen.push((distance.least().as_millis(), verdict));
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

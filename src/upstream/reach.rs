//! Can CAMS be reached, when is it tried again, and how many connections may be opened at once? Only decides: the pool
//! dials and logs.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use super::Reach;
use crate::primitives::backoff;

/// Connections that are being opened at once. More would not be ready sooner: a handshake costs a core up to a
/// millisecond, and calls that wait use the connections that come back from the first.
const MAX_DIALS: usize = 64;

/// First step of the back-off between probes, and the most it comes to.
const PROBE_BASE: Duration = Duration::from_millis(100);
const PROBE_MAX: Duration = Duration::from_secs(2);

/// After this many connections in a row that closed before an answer the upstream counts as unreachable.
const CLOSED_EARLY: u32 = 3;

/// What the latest connections have shown.
pub(super) struct Reachability {
    down: Option<Down>,
    /// How many connections may be opened at once while it is up. After an outage they double with each that is opened,
    /// so that all who wait do not fall upon a server that has just come back.
    dials: usize,
    /// Connections that were opened and closed without an answer since the last answer.
    closed_early: u32,
}

/// The upstream cannot be reached.
struct Down {
    since: Instant,
    reason: Arc<str>,
    /// Probes that have failed.
    probes: u32,
    /// No probe before this.
    next: Instant,
}

// === impl Reachability ===

impl Default for Reachability {
    fn default() -> Self {
        Self {
            down: None,
            dials: MAX_DIALS,
            closed_early: 0,
        }
    }
}

impl Reachability {
    pub(super) fn reach(&self) -> Reach {
        match &self.down {
            None => Reach::Up,
            Some(down) => Reach::Down {
                since: down.since,
                reason: down.reason.clone(),
            },
        }
    }

    /// When the next attempt to connect may begin, unless at once.
    pub(super) fn next_probe(&self) -> Option<Instant> {
        self.down.as_ref().map(|down| down.next)
    }

    /// How many connections may be opened at once.
    pub(super) fn dials(&self) -> usize {
        if self.down.is_some() { 1 } else { self.dials }
    }

    /// A connection was opened. Returns since when none could be.
    pub(super) fn opened(&mut self) -> Option<Instant> {
        self.dials = (self.dials * 2).min(MAX_DIALS);
        self.down.take().map(|down| down.since)
    }

    /// CAMS has answered. Returns since when it could not be reached.
    pub(super) fn answered(&mut self) -> Option<Instant> {
        self.closed_early = 0;
        self.down.take().map(|down| down.since)
    }

    /// A connection could not be opened; `probing` if it was a probe. Returns whether that is news.
    pub(super) fn failed(&mut self, reason: Arc<str>, probing: bool, now: Instant) -> bool {
        self.dials = 1;
        if let Some(down) = &mut self.down {
            down.reason = reason;
            // Of dials that began side by side while it was up only the first counts.
            if probing {
                down.probes = down.probes.saturating_add(1);
                down.next = now + back_off(down.probes);
            }
            return false;
        }
        let probes = self.closed_early.saturating_sub(CLOSED_EARLY);
        self.down = Some(Down {
            since: now,
            reason,
            probes,
            next: now + back_off(probes),
        });
        true
    }

    /// A new connection closed before it had served a request. Without a limit it would be replaced as fast as a
    /// balancer without servers closes it. Returns whether the upstream becomes unreachable by it.
    pub(super) fn closed_early(&mut self, now: Instant) -> bool {
        self.closed_early = self.closed_early.saturating_add(1);
        let counts = self.closed_early >= CLOSED_EARLY;
        counts && self.failed("closed before its first answer".into(), false, now)
    }
}

/// Full jitter: processes that lost the same upstream do not come back in step.
fn back_off(probes: u32) -> Duration {
    backoff::doubled(PROBE_BASE, PROBE_MAX, probes).mul_f64(fastrand::f64())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_back_off_doubles_up_to_its_most() {
        for (probes, most) in [
            (0, 100),
            (1, 200),
            (3, 800),
            (4, 1600),
            (5, 2000),
            (40, 2000),
        ] {
            let most = Duration::from_millis(most);
            let longest = (0..1000).map(|_| back_off(probes)).max().unwrap();
            assert!(
                longest <= most && longest > most.mul_f64(0.9),
                "{probes}: {longest:?}"
            );
        }
    }

    #[test]
    fn after_an_outage_dials_double_with_each_that_succeeds() {
        let (mut reach, now) = (Reachability::default(), Instant::now());
        assert_eq!(reach.dials(), MAX_DIALS);
        assert!(reach.failed("down".into(), false, now));
        assert!(!reach.failed("down".into(), false, now));
        assert_eq!(reach.dials(), 1);
        let mut dials = Vec::new();
        for _ in 0..7 {
            reach.opened();
            dials.push(reach.dials());
        }
        assert_eq!(dials, [2, 4, 8, 16, 32, 64, 64]);
    }

    #[test]
    fn an_answer_alone_ends_an_outage_too() {
        let (mut reach, now) = (Reachability::default(), Instant::now());
        reach.failed("down".into(), false, now);
        assert_eq!(reach.answered(), Some(now));
        assert_eq!(
            (reach.answered(), reach.reach(), reach.dials()),
            (None, Reach::Up, 1)
        );
    }

    #[test]
    fn connections_that_close_without_an_answer_are_an_outage_from_the_third_on() {
        let (mut reach, now) = (Reachability::default(), Instant::now());
        for _ in 0..2 {
            reach.closed_early(now);
            reach.closed_early(now);
            assert_eq!(reach.reach(), Reach::Up);
            reach.answered();
        }
        reach.closed_early(now);
        reach.closed_early(now);
        let mut longest = Duration::ZERO;
        for _ in 0..1000 {
            reach.opened();
            assert!(reach.closed_early(now));
            longest = longest.max(reach.next_probe().unwrap() - now);
        }
        // The back-off grows although each one was opened.
        assert!(longest > PROBE_MAX.mul_f64(0.9));
    }
}

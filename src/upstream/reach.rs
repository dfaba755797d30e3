//! Decides whether CAMS counts as reachable, when it is probed, and how many connections may be
//! opened in parallel. The pool dials and logs.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use super::Reach;
use crate::primitives::backoff;

/// Maximum number of parallel dials. More would not be ready sooner: a handshake costs up to a
/// millisecond of a core, and waiting calls use the connections that the first ones return.
const MAX_DIALS: usize = 64;

/// First step and maximum of the back-off between probes.
const PROBE_BASE: Duration = Duration::from_millis(100);
const PROBE_MAX: Duration = Duration::from_secs(2);

/// Number of connections in a row that close before a response, after which the upstream counts as
/// unreachable.
const CLOSED_EARLY: u32 = 3;

/// The result of the latest connection attempts.
pub(super) struct Reachability {
    down: Option<Down>,
    /// Maximum number of parallel dials while the upstream is up. After an outage it doubles with
    /// each opened connection, so that waiting calls do not overload a server that has just
    /// recovered.
    dials: usize,
    /// Connections that closed without a response since the last response.
    closed_early: u32,
}

/// The upstream is unreachable.
struct Down {
    since: Instant,
    reason: Arc<str>,
    /// Number of failed probes.
    probes: u32,
    /// Time of the next probe.
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

    /// Earliest time of the next connection attempt; `None`: now.
    pub(super) fn next_probe(&self) -> Option<Instant> {
        self.down.as_ref().map(|down| down.next)
    }

    /// Maximum number of parallel dials.
    pub(super) fn dials(&self) -> usize {
        if self.down.is_some() { 1 } else { self.dials }
    }

    /// A connection was opened. Returns since when the upstream was down.
    pub(super) fn opened(&mut self) -> Option<Instant> {
        self.dials = (self.dials * 2).min(MAX_DIALS);
        self.down.take().map(|down| down.since)
    }

    /// CAMS has sent a response. Returns since when the upstream was down.
    pub(super) fn record_answer(&mut self) -> Option<Instant> {
        self.closed_early = 0;
        self.down.take().map(|down| down.since)
    }

    /// A connection attempt failed; `probing` if it was a probe. Returns whether the upstream has
    /// just become unreachable.
    pub(super) fn failed(&mut self, reason: Arc<str>, probing: bool, now: Instant) -> bool {
        self.dials = 1;
        if let Some(down) = &mut self.down {
            down.reason = reason;
            // Of dials that started in parallel while it was up, only the first counts.
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

    /// Does not probe again before this time.
    pub(super) fn hold_off(&mut self, until: Instant) {
        if let Some(down) = &mut self.down {
            down.next = down.next.max(until);
        }
    }

    /// A new connection closed before it had served a request. Without this limit it would be
    /// replaced as fast as a balancer without servers closes it. Returns whether the upstream has
    /// just become unreachable.
    pub(super) fn closed_early(&mut self, now: Instant) -> bool {
        self.closed_early = self.closed_early.saturating_add(1);
        let counts = self.closed_early >= CLOSED_EARLY;
        counts && self.failed("closed before its first answer".into(), false, now)
    }
}

/// Full jitter: processes that lost the same upstream do not return in step.
fn back_off(probes: u32) -> Duration {
    backoff::doubled(PROBE_BASE, PROBE_MAX, probes).mul_f64(fastrand::f64())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_back_off_doubles_up_to_its_maximum() {
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
    fn a_probe_can_be_put_off() {
        let mut reach = Reachability::default();
        let now = Instant::now();
        reach.hold_off(now + Duration::from_secs(30));
        assert_eq!(reach.next_probe(), None, "it is up");
        reach.failed("wrong credentials".into(), false, now);
        reach.hold_off(now + Duration::from_secs(30));
        assert_eq!(reach.next_probe(), Some(now + Duration::from_secs(30)));
    }

    #[test]
    fn after_an_outage_the_dial_limit_doubles_with_each_success() {
        let mut reach = Reachability::default();
        let now = Instant::now();
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
    fn a_response_alone_ends_an_outage() {
        let mut reach = Reachability::default();
        let now = Instant::now();
        reach.failed("down".into(), false, now);
        assert_eq!(reach.record_answer(), Some(now));
        assert_eq!(
            (reach.record_answer(), reach.reach(), reach.dials()),
            (None, Reach::Up, 1)
        );
    }

    #[test]
    fn the_third_connection_closed_without_a_response_starts_an_outage() {
        let mut reach = Reachability::default();
        let now = Instant::now();
        for _ in 0..2 {
            reach.closed_early(now);
            reach.closed_early(now);
            assert_eq!(reach.reach(), Reach::Up);
            reach.record_answer();
        }
        reach.closed_early(now);
        reach.closed_early(now);
        let mut longest = Duration::ZERO;
        for _ in 0..1000 {
            reach.opened();
            assert!(reach.closed_early(now));
            longest = longest.max(reach.next_probe().unwrap() - now);
        }
        // The back-off grows although each connection was opened.
        assert!(longest > PROBE_MAX.mul_f64(0.9));
    }
}

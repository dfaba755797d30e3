//! When to look for the flow of an unknown outcome.

use std::time::Duration;

use tokio::time::Instant;

use super::decision::Verdict;

/// The least time between the two sweeps that prove absence.
pub(crate) const BETWEEN_SWEEPS: Duration = Duration::from_secs(30);

/// The looks after the end of the last attempt.
const LOOKS: [Duration; 7] = [
    Duration::from_millis(300),
    Duration::from_secs(1),
    Duration::from_secs(3),
    Duration::from_secs(10),
    Duration::from_secs(30),
    Duration::from_secs(120),
    Duration::from_secs(600),
];

/// Time between sweeps that prove nothing: a later call may create a flow in the space, without
/// which no absence is proven.
const LATER_SWEEPS: Duration = Duration::from_secs(3600);

/// The waits after failed looks: the first, and the longest.
const FIRST_RETRY: Duration = Duration::from_secs(2);
const LAST_RETRY: Duration = Duration::from_secs(600);

/// The times of one unknown outcome.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Schedule {
    /// The end of the last attempt.
    pub(crate) ended: Instant,
    /// From then on no request of the order can be executed any more: the last possible stamp, plus
    /// `exactly_once.settle`.
    pub(crate) settled_at: Instant,
}

/// The next look of an outcome.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Look {
    pub(crate) at: Instant,
    pub(crate) kind: LookKind,
}

/// Which flows a look lists.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum LookKind {
    /// Those of the name, which is quick.
    Name,
    /// All flows of the space, which can prove absence.
    Sweep,
}

/// The looks so far for one unknown outcome.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Watch {
    /// The end of the last look that had an answer.
    last: Option<Instant>,
    /// The end of the last sweep that showed absence.
    absent_at: Option<Instant>,
    /// The end of the last failed look, and how many have failed since the last answer.
    failed: Option<(Instant, u32)>,
    /// Number of looks, failed ones included.
    looks: u32,
}

// === impl Schedule ===

impl Schedule {
    /// The next look after those of `watch`. It may be before `now`.
    pub(crate) fn next(&self, watch: &Watch, now: Instant) -> Look {
        let mut look = match watch.last {
            None => self.named(LOOKS[0]),
            Some(last) => self.after(last, watch.absent_at),
        };
        if let Some((at, count)) = watch.failed {
            look.at = look.at.max(at + retry_after(count));
        }
        // A look that is as late as a sweep is one.
        if look.at.max(now) >= self.settled_at {
            look.kind = LookKind::Sweep;
        }
        look
    }

    fn after(&self, last: Instant, absent_at: Option<Instant>) -> Look {
        let named = LOOKS.map(|after| self.named(after));
        let next = named
            .into_iter()
            .find(|look| look.at > last && look.at < self.settled_at);
        if let Some(next) = next {
            return next;
        }
        let at = match absent_at {
            _ if last < self.settled_at => self.settled_at,
            Some(absent_at) => absent_at + BETWEEN_SWEEPS,
            None => last + LATER_SWEEPS,
        };
        let kind = LookKind::Sweep;
        Look { at, kind }
    }

    fn named(&self, after: Duration) -> Look {
        let at = self.ended + after;
        let kind = LookKind::Name;
        Look { at, kind }
    }
}

fn retry_after(count: u32) -> Duration {
    let factor = 1u32.checked_shl(count.saturating_sub(1));
    let after = factor.and_then(|factor| FIRST_RETRY.checked_mul(factor));
    after.unwrap_or(LAST_RETRY).min(LAST_RETRY)
}

// === impl Watch ===

impl Watch {
    /// Notes a look that had an answer, and ended at `now`.
    pub(crate) fn looked(&mut self, verdict: &Verdict, now: Instant) {
        let shows_absence = matches!(
            verdict,
            Verdict::Missing {
                shows_absence: true
            }
        );
        self.last = Some(now);
        self.absent_at = shows_absence.then_some(now);
        self.failed = None;
        self.looks = self.looks.saturating_add(1);
    }

    /// Notes a look that had no answer.
    pub(crate) fn failed(&mut self, now: Instant) {
        let count = self.failed.map_or(0, |(_, count)| count);
        self.failed = Some((now, count.saturating_add(1)));
        self.looks = self.looks.saturating_add(1);
    }

    /// The end of the last sweep that showed absence.
    pub(crate) fn absent_at(&self) -> Option<Instant> {
        self.absent_at
    }

    /// Number of looks, failed ones included.
    pub(crate) fn looks(&self) -> u32 {
        self.looks
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MISSING: Verdict = Verdict::Missing {
        shows_absence: false,
    };
    const ABSENT: Verdict = Verdict::Missing {
        shows_absence: true,
    };

    fn seconds(seconds: f64) -> Duration {
        Duration::from_secs_f64(seconds)
    }

    /// Runs looks that take no time. Returns the second of each, and `n` or `s` for its kind.
    fn looks(schedule: Schedule, verdicts: impl Iterator<Item = Option<Verdict>>) -> Vec<String> {
        let mut watch = Watch::default();
        let mut now = schedule.ended;
        let mut seen = Vec::new();
        for verdict in verdicts {
            let look = schedule.next(&watch, now);
            now = now.max(look.at);
            let kind = match look.kind {
                LookKind::Name => 'n',
                LookKind::Sweep => 's',
            };
            let at = now.duration_since(schedule.ended).as_secs_f64();
            seen.push(format!("{at}{kind}"));
            match verdict {
                Some(verdict) => watch.looked(&verdict, now),
                None => watch.failed(now),
            }
        }
        assert_eq!(watch.looks() as usize, seen.len());
        seen
    }

    fn schedule(settled_after: f64) -> Schedule {
        let ended = Instant::now();
        Schedule {
            ended,
            settled_at: ended + seconds(settled_after),
        }
    }

    #[test]
    fn looks_become_rarer_and_end_with_two_sweeps() {
        let verdicts = std::iter::repeat_n(Some(MISSING), 7).chain([Some(ABSENT), None]);
        assert_eq!(
            looks(schedule(1860.0), verdicts),
            [
                "0.3n", "1n", "3n", "10n", "30n", "120n", "600n", "1860s", "1890s"
            ]
        );
    }

    #[test]
    fn a_sweep_that_proves_nothing_is_repeated_each_hour() {
        let verdicts = std::iter::repeat_n(Some(MISSING), 9);
        let seen = looks(schedule(1860.0), verdicts.chain([Some(ABSENT), None]));
        assert_eq!(seen[7..], ["1860s", "5460s", "9060s", "9090s"]);
    }

    #[test]
    fn a_flow_that_is_near_in_the_second_sweep_undoes_the_first() {
        let verdicts = std::iter::repeat_n(Some(MISSING), 7).chain([
            Some(ABSENT),
            Some(MISSING),
            Some(ABSENT),
            None,
        ]);
        let seen = looks(schedule(1860.0), verdicts);
        assert_eq!(seen[7..], ["1860s", "1890s", "5490s", "5520s"]);
    }

    #[test]
    fn a_failed_look_is_repeated_at_growing_distances() {
        let verdicts = std::iter::repeat_n(None, 5).chain([Some(MISSING), None]);
        assert_eq!(
            looks(schedule(1860.0), verdicts),
            ["0.3n", "2.3n", "6.3n", "14.3n", "30.3n", "62.3n", "120n"]
        );
        let verdicts = std::iter::repeat_n(None, 14);
        let seen = looks(schedule(1860.0), verdicts);
        assert_eq!(
            seen[8..],
            [
                "510.3n", "1022.3n", "1622.3n", "2222.3s", "2822.3s", "3422.3s"
            ]
        );
    }

    #[test]
    fn a_second_sweep_that_could_not_be_recorded_is_repeated_soon() {
        let verdicts = std::iter::repeat_n(Some(MISSING), 7);
        let verdicts = verdicts.chain([Some(ABSENT), None, None, None]);
        let seen = looks(schedule(1860.0), verdicts);
        assert_eq!(seen[7..], ["1860s", "1890s", "1892s", "1896s"]);
    }

    #[test]
    fn an_outcome_of_an_earlier_process_is_looked_for_at_once_and_then_by_its_age() {
        let schedule = schedule(1860.0);
        let mut watch = Watch::default();
        let started = schedule.ended + seconds(40.0);
        let first = schedule.next(&watch, started);
        assert!(first.at < started && first.kind == LookKind::Name);
        watch.looked(&MISSING, started);
        let next = schedule.next(&watch, started);
        assert_eq!(next.at, schedule.ended + seconds(120.0));
        // Long after everything: one sweep, and the other 30 s later.
        let started = schedule.ended + seconds(9000.0);
        let mut watch = Watch::default();
        let first = schedule.next(&watch, started);
        assert!(first.at < started && first.kind == LookKind::Sweep);
        watch.looked(&ABSENT, started);
        let next = schedule.next(&watch, started);
        assert_eq!(
            (next.at, next.kind),
            (started + BETWEEN_SWEEPS, LookKind::Sweep)
        );
    }
}

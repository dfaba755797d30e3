//! Applies an account's limit on an action. Alibaba does not publish the window's algorithm or
//! alignment, so all three plausible kinds are here, and refused calls may count or not. An
//! outsider that spends the same quota is simulated too: its calls fall between the received ones.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::time::Duration;

use tokio::time::Instant;

use crate::Hints;

/// How often one account may call an action.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Limit {
    /// Calls per window; 0 refuses every call.
    pub per_window: u32,
    /// The length of the window.
    pub window: Duration,
    /// How the window moves.
    pub kind: Kind,
    /// Whether refused calls count like accepted ones; then a client that retries continuously is
    /// never accepted.
    pub refused_count: bool,
    /// Interval at which an outsider spends one call of the same quota.
    pub outsider_every: Option<Duration>,
    /// Whether a refusal has `x-acs-retry-after`, the time until the next call would pass.
    pub hints: bool,
}

/// How the window of a [`Limit`] moves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// At most N in any stretch of one window.
    Sliding,
    /// At most N between two ticks of the server's clock; 2N may pass around a tick.
    Aligned,
    /// One per window divided by N: 5 a second means one each 200 ms.
    Smooth,
}

/// All limits and what was spent.
#[derive(Debug)]
pub(crate) struct Limits {
    origin: Instant,
    by_action: BTreeMap<String, (Limit, Instant)>,
    lanes: HashMap<(String, String), Lane>,
}

/// What one account spent of one action's limit.
#[derive(Debug)]
struct Lane {
    limit: Limit,
    origin: Instant,
    outsider_next: Instant,
    outsider_passed: u64,
    counted: VecDeque<Instant>,
}

// === impl Limit ===

impl Default for Limit {
    /// The documented limit of each action on flows, 5 a second, with the simplest reading of the rest.
    fn default() -> Self {
        Self {
            per_window: 5,
            window: Duration::from_secs(1),
            kind: Kind::Sliding,
            refused_count: false,
            outsider_every: None,
            hints: false,
        }
    }
}

// === impl Limits ===

impl Limits {
    pub(crate) fn new(limits: &BTreeMap<String, Limit>, origin: Instant) -> Self {
        let by_action = limits
            .iter()
            .map(|(action, limit)| (action.clone(), (limit.clone(), origin)))
            .collect();
        Self {
            origin,
            by_action,
            lanes: HashMap::new(),
        }
    }

    /// Replaces an action's limit from `now` on. Spent calls stay spent.
    pub(crate) fn set(&mut self, action: &str, limit: Limit, now: Instant) {
        for (_, lane) in self.lanes.iter_mut().filter(|((_, of), _)| of == action) {
            lane.outsider_spends(now);
            lane.limit = limit.clone();
            lane.outsider_next = now;
        }
        self.by_action.insert(action.to_owned(), (limit, now));
    }

    /// Counts a call at `now`, or returns the hints of its refusal.
    pub(crate) fn admit(&mut self, account: &str, action: &str, now: Instant) -> Result<(), Hints> {
        let Some((limit, since)) = self.by_action.get(action) else {
            return Ok(());
        };
        let lane = self
            .lanes
            .entry((account.to_owned(), action.to_owned()))
            .or_insert_with(|| Lane::new(limit.clone(), self.origin, *since));
        lane.outsider_spends(now);
        lane.take(now).map_err(|wait| {
            let millis = u64::try_from(wait.as_nanos().div_ceil(1_000_000)).unwrap_or(u64::MAX);
            Hints {
                acs_retry_after_ms: lane.limit.hints.then_some(millis),
                ..Hints::default()
            }
        })
    }

    /// The window of an action, if it has a limit.
    pub(crate) fn window(&self, action: &str) -> Option<Duration> {
        self.by_action.get(action).map(|(limit, _)| limit.window)
    }

    /// Number of outsiders' calls that passed by `now`.
    pub(crate) fn outsiders(&mut self, now: Instant) -> u64 {
        self.lanes
            .values_mut()
            .for_each(|lane| lane.outsider_spends(now));
        self.lanes.values().map(|lane| lane.outsider_passed).sum()
    }
}

// === impl Lane ===

impl Lane {
    fn new(limit: Limit, origin: Instant, since: Instant) -> Self {
        Self {
            limit,
            origin,
            outsider_next: since,
            outsider_passed: 0,
            counted: VecDeque::new(),
        }
    }

    /// Performs the outsider's calls that are due, each at its own time.
    fn outsider_spends(&mut self, now: Instant) {
        let Some(every) = self.limit.outsider_every.filter(|every| !every.is_zero()) else {
            return;
        };
        while self.outsider_next <= now {
            self.outsider_passed += u64::from(self.take(self.outsider_next).is_ok());
            self.outsider_next += every;
        }
    }

    fn take(&mut self, now: Instant) -> Result<(), Duration> {
        while self
            .counted
            .front()
            .is_some_and(|then| now.duration_since(*then) >= self.limit.window)
        {
            self.counted.pop_front();
        }
        let wait = self.wait(now);
        if wait.is_zero() || self.limit.refused_count {
            self.counted.push_back(now);
        }
        if wait.is_zero() { Ok(()) } else { Err(wait) }
    }

    /// Time until a call would pass without other calls.
    fn wait(&self, now: Instant) -> Duration {
        let Limit {
            per_window,
            window,
            kind,
            ..
        } = self.limit;
        let Some(most) = usize::try_from(per_window).ok().filter(|most| *most > 0) else {
            return window;
        };
        match kind {
            Kind::Sliding => {
                let blocking = self
                    .counted
                    .len()
                    .checked_sub(most)
                    .map(|index| self.counted[index]);
                blocking.map_or(Duration::ZERO, |then| (then + window).duration_since(now))
            }
            Kind::Aligned => {
                let nanos = window.as_nanos().max(1);
                let tick = |then: Instant| then.duration_since(self.origin).as_nanos() / nanos;
                let used = self
                    .counted
                    .iter()
                    .filter(|then| tick(**then) == tick(now))
                    .count();
                let ticks = u32::try_from(tick(now) + 1).unwrap_or(u32::MAX);
                if used < most {
                    Duration::ZERO
                } else {
                    (self.origin + window * ticks).duration_since(now)
                }
            }
            Kind::Smooth => {
                let next = self.counted.back().map(|last| *last + window / per_window);
                next.map_or(Duration::ZERO, |next| next.duration_since(now))
            }
        }
    }
}

#[cfg(test)]
mod tests;

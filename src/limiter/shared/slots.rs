//! What has the store dealt to this lane, here? Slots: each the right to send one attempt, from its date until a moment
//! later. Whoever would be later than that gives the slot back and takes another. Only decides; asking is the lane's
//! (`queue/ask.rs`).

use std::time::Duration;

use tokio::time::Instant;

use crate::limiter::forecast::nth;
use crate::limiter::shared::protocol::{Clock, Dated, View};
use crate::limiter::source::{NEVER, Wait};

/// The slots at hand, and what the store said last.
pub(crate) struct Slots {
    window: Duration,
    slack: Duration,
    /// By date.
    hand: Vec<Slot>,
    /// To be given back with the next question.
    unused: Vec<Dated>,
    /// Granted, and neither spent nor given back.
    held: u32,
    /// A question is under way.
    asking: bool,
    /// When to ask; not before the silent window is over.
    ask_at: Instant,
    seen: Seen,
}

/// One slot by our own clock.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Slot {
    pub(crate) dated: Dated,
    from: Instant,
    until: Instant,
}

/// The lane as the store has it, for forecasts.
struct Seen {
    /// When each usable token is back.
    turns: Vec<Instant>,
    away: Duration,
    /// This replica's part of the grants, from 0 to 1.
    part: f64,
    level: u32,
}

// === impl Slots ===

impl Slots {
    /// Nothing is asked for before `from`.
    pub(crate) fn new(window: Duration, (gap, slack): (Duration, Duration), count: u32, from: Instant) -> Self {
        let seen = Seen { turns: vec![from; count as usize], away: window + gap + slack, part: 1.0, level: 0 };
        Self { window, slack, hand: Vec::new(), unused: Vec::new(), held: 0, asking: false, ask_at: from, seen }
    }

    /// A question is about to be asked, for so many waiting calls: how many slots they still want, and what goes back.
    pub(crate) fn ask(&mut self, waiting: usize) -> (usize, Vec<Dated>) {
        self.asking = true;
        if waiting == 0 {
            // Nobody is there to use them.
            self.unused.extend(self.hand.drain(..).map(|slot| slot.dated));
        }
        (waiting.saturating_sub(self.hand.len()), std::mem::take(&mut self.unused))
    }

    /// The store has answered.
    pub(crate) fn answered(&mut self, view: &View, clock: &Clock, now: Instant) {
        self.asking = false;
        let slot = |dated: &Dated| Slot {
            dated: *dated,
            from: clock.latest(dated.at),
            until: clock.earliest(dated.at) + self.slack,
        };
        self.hand.extend(view.slots.iter().map(slot));
        self.hand.sort_by_key(|slot| slot.from);
        self.ask_at = now + Duration::from_micros(view.ask);
        let mut turns: Vec<Instant> = view.back.iter().map(|back| clock.latest(*back).max(now)).collect();
        turns.sort_unstable();
        // Those that may not be in use are the ones that come back first.
        turns.drain(..turns.len().saturating_sub(view.usable as usize));
        let away = self.window + Duration::from_micros(view.gap) + self.slack;
        self.seen = Seen { turns, away, part: view.part as f64 / 1e6, level: view.level };
    }

    /// The store did not answer: it is asked again at `again`.
    pub(crate) fn unanswered(&mut self, again: Instant) {
        self.asking = false;
        self.ask_at = again;
    }

    /// The lane pauses: nothing at hand may be used.
    pub(crate) fn void(&mut self) {
        self.unused.extend(self.hand.drain(..).map(|slot| slot.dated));
    }

    /// Puts aside what can no longer be used in time.
    pub(crate) fn drop_late(&mut self, now: Instant) {
        let late = self.hand.iter().take_while(|slot| slot.is_late(now)).count();
        if late > 0 {
            self.unused.extend(self.hand.drain(..late).map(|slot| slot.dated));
            self.ask_at = self.ask_at.min(now);
        }
    }

    pub(crate) fn take(&mut self, now: Instant) -> Option<Slot> {
        self.drop_late(now);
        let first = self.hand.first().filter(|slot| slot.from <= now).copied()?;
        self.hand.remove(0);
        self.held += 1;
        Some(first)
    }

    /// A granted slot was not used: another call may use it.
    pub(crate) fn give_back(&mut self, slot: Slot) {
        self.held = self.held.saturating_sub(1);
        self.hand.insert(0, slot);
        self.hand.sort_by_key(|slot| slot.from);
    }

    /// A granted slot is used now; or, if it is late, put aside.
    pub(crate) fn spend(&mut self, slot: Slot, now: Instant) -> bool {
        self.held = self.held.saturating_sub(1);
        let in_time = !slot.is_late(now);
        if !in_time {
            self.unused.push(slot.dated);
            self.ask_at = self.ask_at.min(now);
        }
        in_time
    }

    pub(crate) fn free(&self, now: Instant) -> u32 {
        let free = self.hand.iter().filter(|slot| slot.from <= now && !slot.is_late(now)).count();
        u32::try_from(free).unwrap_or(u32::MAX)
    }

    pub(crate) fn held(&self) -> u32 {
        self.held
    }

    /// Slots that lie here though nobody waits are to be given back.
    pub(crate) fn has_unused(&self) -> bool {
        !self.unused.is_empty() || !self.hand.is_empty()
    }

    /// The store remembers a trouble that an answer of CAMS ends.
    pub(crate) fn is_troubled(&self) -> bool {
        self.seen.level > 0
    }

    pub(crate) fn wait(&self, waiting: usize, now: Instant) -> Wait {
        let slot = self.hand.first().map(|slot| slot.from);
        if self.asking || self.hand.len() >= waiting {
            return slot.map_or(Wait::Change, Wait::Until);
        }
        if self.ask_at <= now {
            return Wait::Ask;
        }
        Wait::Until(slot.map_or(self.ask_at, |slot| slot.min(self.ask_at)))
    }

    pub(crate) fn forecast(&self, ahead: usize, open: Instant, more: &[Instant]) -> Instant {
        if let Some(slot) = self.hand.get(ahead) {
            return slot.from.max(open);
        }
        // Others take their part in between.
        let ahead = ((ahead - self.hand.len()) as f64 / self.seen.part.max(0.01)) as usize;
        let turns: Vec<Instant> = self.seen.turns.iter().map(|turn| (*turn).max(open)).collect();
        if turns.is_empty() { open + NEVER } else { nth(ahead, turns, self.seen.away, more) }
    }

    /// Whether all tokens are withheld for replicas that have vanished.
    pub(crate) fn are_withheld(&self) -> bool {
        self.seen.turns.is_empty()
    }

    /// Calls per second that this replica may expect.
    pub(crate) fn rate(&self) -> f64 {
        self.seen.turns.len() as f64 / self.seen.away.as_secs_f64() * self.seen.part
    }

    pub(crate) fn at_rest(&self) -> bool {
        self.held == 0 && !self.asking && !self.has_unused()
    }
}

// === impl Slot ===

impl Slot {
    fn is_late(&self, now: Instant) -> bool {
        self.until < now
    }
}

//! The slots that the store has dealt to a lane of this replica. A slot permits one attempt, from
//! its date until its slack has passed.
//!
//! A slot that cannot be used in time is given back. One that was used too late is reported, and no
//! other slot is used until the store has confirmed the report. No I/O; the time is an argument.

use std::collections::VecDeque;
use std::time::Duration;

use tokio::time::Instant;

use crate::config::Limit;
use crate::limiter::shared::clock::Clock;
use crate::limiter::shared::extra_slack::{ExtraSlack, SlotTiming};
use crate::limiter::shared::protocol::{Answer, DatedSlot, GIVEN_BACK, LateUse, View};
use crate::limiter::token_returns::TokenReturns;
use crate::limiter::wait::Wait;

/// Each shorter distance reduces a longer one by this fraction.
const NEARER: u32 = 8;
/// Longer than any request is in flight, in microseconds.
const UNDER_WAY: u64 = 10_000_000;

/// The slots of a lane, and the store's last view of it.
pub(crate) struct Slots {
    /// The configured slack: how late a slot may be used.
    slack: Duration,
    /// Upper bound of the time from a slot's date to the arrival of its answer; added to the slack.
    /// It is at least the uncertainty of the store's clock and at most a round trip.
    distance: Duration,
    extra_slack: ExtraSlack,
    clock: Clock,
    /// Usable slots, sorted by date.
    usable: VecDeque<Slot>,
    /// Slots to give back with the next request.
    unused: Vec<DatedSlot>,
    /// Slots used too late, to report with the next request.
    late: Vec<LateUse>,
    /// Late uses reported with the request of this number, which is not answered yet.
    reported: Option<(u64, Vec<LateUse>)>,
    /// Number of granted slots that are neither used nor given back.
    held: u32,
    /// The number of the latest request.
    number: u64,
    /// Whether the latest request is in flight.
    is_request_pending: bool,
    /// Whether the store will deal slots to this replica because of its last request.
    is_wanting: bool,
    /// When the silent window ends: before that no slots are requested, and only late uses
    /// reported.
    from: Instant,
    /// The earliest time of the next request.
    next_request_at: Instant,
    seen: LaneForecast,
    /// The store's time of `seen`.
    seen_at: u64,
}

/// The parameters with which a lane begins to use the store.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Start {
    pub(crate) limit: Limit,
    pub(crate) gap: Duration,
    /// The configured slack.
    pub(crate) slack: Duration,
    /// The usual round trip to the store.
    pub(crate) distance: Duration,
    /// No slots are requested before this.
    pub(crate) from: Instant,
}

/// The lane's part of a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct SlotRequest {
    /// Identifies the request to [`Slots::answered`].
    pub(crate) number: u64,
    /// Number of calls that need a slot.
    pub(crate) wanted: usize,
    pub(crate) unused: Vec<DatedSlot>,
    pub(crate) late: Vec<LateUse>,
    pub(crate) slack: Duration,
}

/// One slot with its times by our clock.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Slot {
    pub(crate) dated: DatedSlot,
    from: Instant,
    until: Instant,
}

/// The store's view of the lane, for forecasts.
struct LaneForecast {
    returns: TokenReturns,
    /// This replica's share of the grants, from 0 to 1.
    share: f64,
    level: u32,
}

// === impl Slots ===

impl Slots {
    pub(crate) fn new(start: &Start) -> Self {
        let Start {
            limit,
            gap,
            slack,
            distance,
            from,
        } = *start;
        let away = limit.window + gap + slack;
        let returns = TokenReturns {
            usable: limit.count.get(),
            used: 0,
            back: Vec::new(),
            free: from,
            away,
        };
        Self {
            slack,
            distance,
            extra_slack: ExtraSlack::default(),
            clock: Clock::new(from),
            usable: VecDeque::new(),
            unused: Vec::new(),
            late: Vec::new(),
            reported: None,
            held: 0,
            number: 0,
            is_request_pending: false,
            is_wanting: false,
            from,
            next_request_at: from,
            seen: LaneForecast {
                returns,
                share: 1.0,
                level: 0,
            },
            seen_at: 0,
        }
    }

    /// Returns the next request, for this many waiting calls.
    pub(crate) fn next_request(&mut self, waiting: usize, now: Instant) -> SlotRequest {
        self.number += 1;
        self.is_request_pending = true;
        self.drop_late(now);
        let waiting = if now < self.from { 0 } else { waiting };
        if waiting == 0 {
            // No call can use the slots.
            self.give_back_all();
        }
        let wanted = waiting.saturating_sub(self.usable.len());
        self.is_wanting = wanted > 0;
        let unused = first(&mut self.unused);
        let mut late = Vec::new();
        if self.reported.is_none() && !self.late.is_empty() {
            late = first(&mut self.late);
            self.reported = Some((self.number, late.clone()));
        }
        let slack = self.slack + self.distance + self.extra_slack.get();
        SlotRequest {
            number: self.number,
            wanted,
            unused,
            late,
            slack,
        }
    }

    /// Records the answer to the request of this number.
    pub(crate) fn answered(&mut self, number: u64, answer: &Answer, now: Instant) -> SlotTiming {
        let Answer {
            view,
            sent,
            received,
        } = answer;
        self.clock.observe(*sent, *received, view.now);
        let took = received.saturating_duration_since(self.clock.earliest(view.now, *received));
        self.distance = took.max(self.distance - self.distance / NEARER);
        let was_blocked = self.is_blocked();
        self.reported.take_if(|(reported, _)| *reported == number);
        if number == self.number {
            self.is_request_pending = false;
            self.is_wanting = view.wanted > 0;
            // The remaining unused slots can be dealt again as soon as the store has them.
            let is_due = view.stale || !self.unused.is_empty();
            self.next_request_at = if is_due {
                now
            } else {
                now + Duration::from_micros(view.next_request_after)
            };
        }
        // If a late use is still not confirmed, the store dealt the slots before it knew of the
        // use.
        let may_use = !(was_blocked && self.is_blocked());
        let timing = self.receive(&view.slots, may_use, now);
        if self.is_latest(view) {
            let returns = token_returns(view, &self.clock, now);
            self.seen = LaneForecast {
                returns,
                share: view.share as f64 / 1e6,
                level: view.level,
            };
            self.seen_at = view.now;
        }
        timing
    }

    /// Keeps the slots that can be used in time, if slots may be used, and gives back the others.
    fn receive(&mut self, slots: &[DatedSlot], may_use: bool, now: Instant) -> SlotTiming {
        let slots = slots.iter().map(|dated| Slot {
            dated: *dated,
            from: self.clock.latest(dated.at, now),
            until: self.clock.earliest(dated.at, now) + Duration::from_micros(dated.slack),
        });
        let (in_time, too_late): (Vec<_>, Vec<_>) =
            slots.partition(|slot| slot.until >= slot.from.max(now));
        let timing = self.extra_slack.judge(in_time.len(), too_late.len());
        if timing != SlotTiming::Fine {
            self.next_request_at = self.next_request_at.min(now);
        }
        self.unused.extend(too_late.iter().map(|slot| slot.dated));
        if may_use {
            self.usable.extend(in_time);
            self.usable.make_contiguous().sort_by_key(|slot| slot.from);
        } else {
            self.unused.extend(in_time.iter().map(|slot| slot.dated));
        }
        timing
    }

    /// Whether this is the latest view: concurrent requests can be answered in any order. A view
    /// that is much older comes from a clock that was set back, and is the latest.
    pub(crate) fn is_latest(&self, view: &View) -> bool {
        view.now >= self.seen_at || view.now + UNDER_WAY < self.seen_at
    }

    /// Records that the request was not answered; the next one follows at `again`.
    pub(crate) fn unanswered(&mut self, number: u64, again: Instant) {
        if let Some((_, late)) = self.reported.take_if(|(reported, _)| *reported == number) {
            // If the store did receive the report, the second one costs another token.
            self.late.extend(late);
        }
        if number == self.number {
            self.is_request_pending = false;
            self.next_request_at = again;
        }
    }

    /// Gives back all slots, for example because the lane is paused.
    pub(crate) fn give_back_all(&mut self) {
        self.unused
            .extend(self.usable.drain(..).map(|slot| slot.dated));
    }

    /// Gives back the slots that can no longer be used in time.
    pub(crate) fn drop_late(&mut self, now: Instant) {
        while self.usable.front().is_some_and(|slot| slot.until < now) {
            self.unused
                .extend(self.usable.pop_front().map(|slot| slot.dated));
            self.next_request_at = self.next_request_at.min(now);
            self.extra_slack.used_late();
        }
    }

    pub(crate) fn take(&mut self, now: Instant) -> Option<Slot> {
        self.drop_late(now);
        if self.is_blocked() {
            return None;
        }
        self.usable.front().filter(|slot| slot.from <= now)?;
        let slot = self.usable.pop_front()?;
        self.held += 1;
        Some(slot)
    }

    /// Whether a granted slot may be used now.
    pub(crate) fn is_usable(&self, slot: &Slot, now: Instant) -> bool {
        !self.is_blocked() && slot.from <= now && now <= slot.until()
    }

    /// Returns a granted slot that was not used: to another call or to the store.
    pub(crate) fn give_back(&mut self, slot: Slot, now: Instant) {
        self.held = self.held.saturating_sub(1);
        let is_late = slot.until < now;
        if is_late {
            self.extra_slack.used_late();
        }
        if self.is_blocked() || is_late {
            self.unused.push(slot.dated);
            self.next_request_at = self.next_request_at.min(now);
        } else {
            let place = self.usable.partition_point(|other| other.from < slot.from);
            self.usable.insert(place, slot);
        }
    }

    /// Records that a granted slot was used: its attempt's first byte left no later than `at`.
    /// False if that was too late: then no slot may be used, and a request is due now.
    pub(crate) fn written(&mut self, slot: Slot, at: Instant, now: Instant) -> bool {
        self.held = self.held.saturating_sub(1);
        let in_time = at <= slot.until;
        if !in_time {
            self.extra_slack.used_late();
            self.late.push(LateUse {
                slot: slot.dated,
                used: self.clock.at_most(at, now),
            });
            self.give_back_all();
            self.next_request_at = self.next_request_at.min(now);
        }
        in_time
    }

    /// Records an attempt, sent at `at`, that another source had granted. It is reported as a late
    /// use.
    pub(crate) fn written_besides(&mut self, at: Instant, now: Instant) {
        let unknown = DatedSlot {
            at: 0,
            back: 0,
            slack: 0,
            probe: false,
        };
        self.late.push(LateUse {
            slot: unknown,
            used: self.clock.at_most(at, now),
        });
        self.give_back_all();
        self.next_request_at = self.next_request_at.min(now);
    }

    /// Tokens that are not in use: free in the store when it answered last, or slots of this
    /// replica.
    pub(crate) fn unused(&self, now: Instant) -> u32 {
        self.seen
            .returns
            .free_at(now)
            .saturating_add(self.free(now))
    }

    pub(crate) fn free(&self, now: Instant) -> u32 {
        if self.is_blocked() {
            return 0;
        }
        let free = self
            .usable
            .iter()
            .take_while(|slot| slot.from <= now)
            .filter(|slot| now <= slot.until)
            .count();
        u32::try_from(free).unwrap_or(u32::MAX)
    }

    pub(crate) fn held(&self) -> u32 {
        self.held
    }

    /// Whether a request is due although no call waits: to give back slots, report late uses, or
    /// withdraw the last request.
    pub(crate) fn has_unused(&self) -> bool {
        let wants = self.is_wanting && !self.is_request_pending;
        wants || !self.unused.is_empty() || !self.usable.is_empty() || self.must_report()
    }

    /// Whether the store has a back-off level, which a response of CAMS resets.
    pub(crate) fn has_back_off(&self) -> bool {
        self.seen.level > 0
    }

    /// Returns the back-off level that the store last reported.
    pub(crate) fn level(&self) -> u32 {
        self.seen.level
    }

    /// Returns the bounds on the store's clock.
    pub(crate) fn clock(&self) -> &Clock {
        &self.clock
    }

    pub(crate) fn wait(&self, waiting: usize, now: Instant) -> Wait {
        if self.must_report() {
            return Wait::SendRequest;
        }
        let slot = self
            .usable
            .front()
            .map(|slot| slot.from)
            .filter(|_| !self.is_blocked());
        if self.is_request_pending || self.usable.len() >= waiting {
            return slot.map_or(Wait::Change, Wait::Until);
        }
        let next_request_at = self.next_request_at.max(self.from);
        if next_request_at <= now {
            return Wait::SendRequest;
        }
        Wait::Until(slot.map_or(next_request_at, |slot| slot.min(next_request_at)))
    }

    /// Returns when the slot with `ahead` others before it can be granted, if there is one.
    pub(crate) fn date_of(&self, ahead: usize) -> Option<Instant> {
        self.usable.get(ahead).map(|slot| slot.from)
    }

    /// Estimates how many grants of all replicas precede this replica's grant `ahead` + 1, without
    /// its own slots.
    pub(crate) fn ahead_of_all(&self, ahead: usize) -> usize {
        (ahead.saturating_sub(self.usable.len()) as f64 / self.seen.share.max(0.01)) as usize
    }

    /// Returns when the tokens return, for forecasts.
    pub(crate) fn returns(&self) -> &TokenReturns {
        &self.seen.returns
    }

    /// Whether all tokens are withheld for vanished replicas.
    pub(crate) fn are_withheld(&self) -> bool {
        self.seen.returns.usable == 0
    }

    /// Returns this replica's share of the grants, from 0 to 1.
    pub(crate) fn share(&self) -> f64 {
        self.seen.share
    }

    /// Returns the calls per second that this replica can expect.
    pub(crate) fn rate(&self) -> f64 {
        let TokenReturns { usable, away, .. } = &self.seen.returns;
        f64::from(*usable) / away.as_secs_f64() * self.seen.share
    }

    pub(crate) fn at_rest(&self) -> bool {
        self.held == 0 && !self.is_request_pending && !self.has_unused() && !self.is_blocked()
    }

    /// Whether a late use is not confirmed by the store yet.
    fn is_blocked(&self) -> bool {
        self.reported.is_some() || !self.late.is_empty()
    }

    fn must_report(&self) -> bool {
        self.reported.is_none() && !self.late.is_empty()
    }
}

// === impl Slot ===

impl Slot {
    /// Returns the latest time at which the slot may be used.
    pub(crate) fn until(&self) -> Instant {
        self.until
    }
}

/// Returns when the tokens return by our clock, at the earliest now.
fn token_returns(view: &View, clock: &Clock, now: Instant) -> TokenReturns {
    let mut back: Vec<Instant> = view
        .back
        .iter()
        .map(|back| clock.latest(*back, now).max(now))
        .collect();
    back.sort_unstable();
    let used = if back.is_empty() {
        0
    } else {
        view.used.min(view.usable)
    };
    TokenReturns {
        usable: view.usable,
        used,
        back,
        free: now,
        away: Duration::from_micros(view.away),
    }
}

/// Takes as many items as one request may carry.
fn first<T>(list: &mut Vec<T>) -> Vec<T> {
    list.drain(..list.len().min(GIVEN_BACK)).collect()
}

#[cfg(test)]
mod tests;

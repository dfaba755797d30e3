//! One lane as a state machine: the calls of one limited action of one account. Events and the time
//! go in, effects come out. It has no lock, no task and no clock; `handle.rs`, `worker.rs` and
//! `permit.rs` carry out its effects.
//!
//! Calls are granted in the order of the fair queue, while no pause is in force, a connection is
//! ready and a token is free. A grant holds its token until the first byte of the attempt was
//! written; the token's window runs from that write. A [`Source`] provides the tokens: this
//! process's memory or the store that replicas share. The lane handles both the same way.

mod admission;
mod attempts;
mod events;
mod review;
mod sources;

use std::collections::VecDeque;
use std::time::Duration;

use tokio::time::Instant;

use crate::config::{Learn, Limit};
use crate::limiter::fair::{FairQueue, QueueEntry};
use crate::limiter::lane::review::Review;
use crate::limiter::lane::sources::SharedPace;
use crate::limiter::pace::{Pace, Rate};
use crate::limiter::pause::{Gate, Pause};
use crate::limiter::shared::{self, QuotaSource};
use crate::limiter::source::{GrantedToken, Source, SourceForecast};
use crate::limiter::tokens::Tokens;
use crate::limiter::wait::Wait;

pub(crate) use self::events::{
    Context, Effect, End, Event, PendingRequest, StoreRequest, StoreTiming,
};

/// The state of one lane. `W` delivers the result to a queued call.
pub(crate) struct Lane<W> {
    limit: Limit,
    /// When the limit came into force. Every new source begins with all tokens used at that time.
    limit_since: Instant,
    queue: FairQueue<Waiting<W>>,
    source: Source,
    quota_source: QuotaSource,
    /// Counts source changes. A grant of an earlier epoch may not be sent.
    epoch: u64,
    pause: Pause,
    pace: Pace,
    review: Review,
    shared_pace: SharedPace,
    /// The number of the grant that is the probe of this process's latest pause. An earlier probe
    /// may still be in progress; its end does not affect the latest pause.
    probe: u64,
    /// When the last refused caller was advised to come back.
    last_advised: Instant,
    /// The forecast for the call that was admitted last.
    admitted: Option<Forecast>,
    granted: u64,
    /// `granted` when the activity was taken last.
    granted_before: u64,
    /// Attempts that CAMS throttled since the activity was taken last.
    throttled: u32,
    /// Grants, of any epoch, that were neither written nor returned.
    held: u32,
    effects: VecDeque<Effect<W>>,
}

/// A queued call.
pub(crate) struct Waiting<W> {
    pub(crate) waiter: W,
    /// No attempt is sent after this.
    pub(crate) send_by: Instant,
}

/// What was forecast for an admitted call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Forecast {
    /// Queued calls before it.
    pub(crate) ahead: u32,
    pub(crate) wait_ms: u32,
}

/// What a lane has done since this was asked last.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Activity {
    pub(crate) granted: u64,
    pub(crate) throttled: u32,
}

/// The permission to send one attempt.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Grant {
    /// Counts the lane's grants.
    number: u64,
    token: GrantedToken,
    epoch: u64,
    send_by: Instant,
    probe: bool,
}

/// What the worker does or waits for next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Next {
    /// Nothing: no call is queued.
    Idle,
    /// Nothing: a call can be granted now.
    Grant,
    /// Nothing: a piece of the review is due.
    Review,
    /// A connection. This many calls could use one.
    Connect(usize),
    /// The end of the pause. A connection is not needed before.
    Pause(Instant),
    /// A token, which becomes free then.
    Token(Instant),
    /// This time.
    Until(Instant),
    /// Another event.
    Event,
}

// === impl Lane ===

impl<W> Lane<W> {
    /// A lane whose tokens count as used at `since`.
    pub(crate) fn new(limit: Limit, learn: Learn, since: Instant, now: Instant) -> Self {
        Self {
            limit,
            limit_since: since,
            queue: FairQueue::new(),
            source: Source::Memory(Tokens::new(limit, learn.gap, since, now)),
            quota_source: QuotaSource::Local,
            epoch: 0,
            pause: Pause::default(),
            pace: Pace::new(limit, learn),
            review: Review::new(now),
            shared_pace: SharedPace::default(),
            probe: 0,
            last_advised: now,
            admitted: None,
            granted: 0,
            granted_before: 0,
            throttled: 0,
            held: 0,
            effects: VecDeque::new(),
        }
    }

    /// Handles an event. The caller carries out the effects after it has released the lane's lock.
    pub(crate) fn handle(&mut self, event: Event<W>, cx: Context<'_>) -> VecDeque<Effect<W>> {
        self.refresh(cx.now);
        match event {
            Event::Arrived {
                entry,
                send_by,
                returning,
                waiter,
            } => {
                self.arrived(entry, Waiting { waiter, send_by }, returning, cx);
            }
            Event::Cancelled(entry) => self.cancelled(&entry, cx.now),
            Event::Connected => self.connected(cx.now),
            Event::Written { grant, at } => self.written(grant, at, cx.now),
            Event::Returned(grant) => self.returned(grant, cx.now),
            Event::Ended {
                grant,
                written_at,
                end,
            } => self.ended(grant, written_at, end, cx),
            Event::StoreAnswered { request, answer } => {
                self.store_answered(&request, answer.as_deref(), cx)
            }
            Event::SourceChanged {
                quota_source,
                store,
            } => self.source_changed(quota_source, store, cx),
            Event::RulesChanged { limit } => self.rules_changed(limit, cx),
            Event::DrainBegan => self.review.request(cx.now),
            Event::Paused(time) => {
                self.pause.pause_by_operator(time, cx.now);
                self.review.request(cx.now);
            }
            Event::Resumed => self.pause.resume(),
            Event::Flushed => self.flush(cx),
            Event::Review => self.review_piece(cx),
        }
        self.take_effects()
    }

    /// Takes the effects that have accumulated.
    pub(crate) fn take_effects(&mut self) -> VecDeque<Effect<W>> {
        std::mem::take(&mut self.effects)
    }

    /// Whether a call that arrives now can be granted immediately, given a ready connection.
    /// Updates the rate and discards expired slots first.
    pub(crate) fn is_open(&mut self, now: Instant) -> bool {
        self.refresh(now);
        self.queue.len() == 0 && self.pause.gate(now) == Gate::Open && self.source.free(now) > 0
    }

    /// Whether a granted attempt may be written now. A grant becomes invalid with its source, when
    /// a pause begins, when its slot has expired, and at its call's send-by time.
    pub(crate) fn may_send(&self, grant: &Grant, now: Instant) -> bool {
        grant.epoch == self.epoch
            && now <= grant.send_by
            && self.pause_permits(grant, now)
            && self.source.is_usable(&grant.token, now)
    }

    /// Whether no pause has begun since the grant. The lane is closed while a probe is in progress;
    /// the probe itself passes.
    fn pause_permits(&self, grant: &Grant, now: Instant) -> bool {
        match self.pause.gate(now) {
            Gate::Open => true,
            // The store deals the probe after its pause, so only an operator's pause can stop it.
            Gate::Until(_) if grant.token.is_probe() => self.pause.operator_pause(now).is_none(),
            // This process's own probe, unless another pause has begun.
            Gate::Until(_) => grant.number == self.probe && self.pause.open_at(now) <= now,
        }
    }

    /// What the lane waits for, and when this must be called again in any case. May produce
    /// effects.
    pub(crate) fn next(&mut self, is_connected: bool, cx: Context<'_>) -> (Next, Option<Instant>) {
        self.refresh(cx.now);
        let next = self.prepare_next(is_connected, cx);
        let check_at = [self.review.due_at(), self.pace.next_rise(cx.now)]
            .into_iter()
            .flatten()
            .min();
        (next, check_at)
    }

    /// Ends the review or returns unused slots if no call is queued, and requests slots if due.
    fn prepare_next(&mut self, is_connected: bool, cx: Context<'_>) -> Next {
        let now = cx.now;
        if self.queue.len() == 0 {
            self.review.end();
            self.return_unused(now);
            return Next::Idle;
        }
        if cx.is_drained(now) {
            self.review.request(now);
            return if self.review.is_due(now) {
                Next::Review
            } else {
                Next::Event
            };
        }
        let is_review_due = self.review.is_due(now);
        if let Gate::Until(until) = self.pause.gate(now) {
            return if is_review_due {
                Next::Review
            } else {
                Next::Pause(until)
            };
        }
        let free = self.source.free(now);
        if !is_connected {
            return if is_review_due {
                Next::Review
            } else {
                Next::Connect(self.queue.len().min(free as usize).max(1))
            };
        }
        self.request_slots_if_due(now);
        if free > 0 {
            return Next::Grant;
        }
        if is_review_due {
            return Next::Review;
        }
        match self.source.wait(self.queue.len(), now) {
            Wait::Token(back_at) => Next::Token(back_at),
            Wait::Until(until) => Next::Until(until),
            Wait::SendRequest | Wait::Change => Next::Event,
        }
    }

    /// Grants the next call, if possible.
    fn connected(&mut self, now: Instant) {
        if self.pause.gate(now) != Gate::Open || self.source.free(now) == 0 {
            return;
        }
        let Some(Waiting { waiter, send_by }) = self.queue.pop() else {
            return;
        };
        self.review.served();
        if send_by <= now {
            let advice = Duration::from_secs(1);
            self.effects.push_back(Effect::Expire { waiter, advice });
            return;
        }
        if let Some(grant) = self.grant(send_by, now) {
            self.effects.push_back(Effect::Grant { waiter, grant });
        }
    }

    /// Grants a call without queueing it, if a token is free. The lane must be [`Lane::is_open`].
    pub(crate) fn grant(&mut self, send_by: Instant, now: Instant) -> Option<Grant> {
        let token = self.source.take(now)?;
        self.granted += 1;
        self.held += 1;
        let is_own_probe = self.pause.begin_attempt(now);
        if is_own_probe {
            self.probe = self.granted;
        }
        let probe = is_own_probe || token.is_probe();
        Some(Grant {
            number: self.granted,
            token,
            epoch: self.epoch,
            send_by,
            probe,
        })
    }

    fn cancelled(&mut self, entry: &QueueEntry, now: Instant) {
        if self.queue.remove(entry).is_some() {
            self.return_unused(now);
        }
    }

    /// Updates the rate, which rises with quiet time and without a timer, and discards expired
    /// slots.
    pub(crate) fn refresh(&mut self, now: Instant) {
        self.update_rate(now);
        self.source.drop_late(now);
    }

    fn update_rate(&mut self, now: Instant) {
        let rate = self.rate(now);
        self.source.set_rate(rate);
    }

    /// This process's current rate.
    pub(crate) fn rate(&self, now: Instant) -> Rate {
        self.limit_to_part(self.pace.rate(now))
    }

    /// Limits a rate to this replica's part while the store cannot be reached.
    fn limit_to_part(&self, rate: Rate) -> Rate {
        match self.quota_source {
            QuotaSource::Part { count, .. } => Rate {
                tokens: rate.tokens.min(count.get()),
                ..rate
            },
            QuotaSource::Local | QuotaSource::Store { .. } | QuotaSource::Unavailable { .. } => {
                rate
            }
        }
    }

    /// The forecast of the next grants; none while there are no tokens.
    fn forecast(&self, now: Instant) -> Option<SourceForecast<'_>> {
        let rises = self
            .pace
            .upcoming_rates(now)
            .map(|(at, rate)| (at, self.limit_to_part(rate)))
            .collect();
        self.source
            .forecast(now, self.pause.open_at(now), self.rate(now), rises)
    }

    /// Whether a new lane would equal this one.
    pub(crate) fn is_at_rest(&self, cx: Context<'_>) -> bool {
        self.queue.len() == 0
            && self.pause.is_at_rest(&cx.rules.retry, cx.now)
            && self.pace.is_at_rest(cx.now)
            && self.source.is_at_rest(cx.now)
    }
}

/// The predicted wait of a lane that was throttled lately is extended by one part in this many. In
/// simulations (`tests/prediction.rs`) most forecasts come true with it.
const THROTTLE_ALLOWANCE: u32 = 20;

impl<W> Lane<W> {
    /// The predicted wait of the call that has `ahead` others before it. A lane that was throttled
    /// lately will probably be throttled again during a long wait, so its prediction after the
    /// pause is extended by `1 / THROTTLE_ALLOWANCE`.
    pub(crate) fn predicted_wait(&self, ahead: usize, now: Instant) -> Duration {
        let open = self.pause.open_at(now);
        let granted_at = self
            .forecast(now)
            .map_or(open + shared::NEVER, |forecast| forecast.at(ahead));
        let allowance = if self.pace.is_at_rest(now) {
            Duration::ZERO
        } else {
            granted_at.saturating_duration_since(open) / THROTTLE_ALLOWANCE
        };
        (granted_at + allowance).saturating_duration_since(now)
    }

    /// The advised `Retry-After` of the call that has `ahead` others before it. While there are no
    /// tokens, the wait is not known and a fixed advice is given.
    pub(crate) fn advice(&self, ahead: usize, now: Instant) -> Duration {
        if self.source.is_withheld() {
            shared::ADVICE
        } else {
            self.predicted_wait(ahead, now)
        }
    }

    /// [`Lane::advice`] for a call that arrives now.
    pub(crate) fn advice_now(&self, now: Instant) -> Duration {
        self.advice(self.queue.len(), now)
    }

    /// Whether a review of the queue was requested.
    pub(crate) fn has_review(&self) -> bool {
        self.review.due_at().is_some()
    }

    /// Whether a piece of a review is due.
    pub(crate) fn is_reviewing(&self, now: Instant) -> bool {
        self.review.is_due(now)
    }

    pub(crate) fn limit(&self) -> Limit {
        self.limit
    }

    pub(crate) fn quota_source(&self) -> QuotaSource {
        self.quota_source
    }

    pub(crate) fn queue(&self) -> &FairQueue<Waiting<W>> {
        &self.queue
    }

    pub(crate) fn pause(&self) -> &Pause {
        &self.pause
    }

    pub(crate) fn source(&self) -> &Source {
        &self.source
    }

    /// The forecast for the call that was admitted since the last call of this.
    pub(crate) fn take_admitted(&mut self) -> Option<Forecast> {
        self.admitted.take()
    }

    /// What the lane has done since the last call of this.
    pub(crate) fn take_activity(&mut self) -> Activity {
        let before = std::mem::replace(&mut self.granted_before, self.granted);
        Activity {
            granted: self.granted - before,
            throttled: std::mem::take(&mut self.throttled),
        }
    }

    /// Number of grants so far.
    pub(crate) fn granted(&self) -> u64 {
        self.granted
    }
}

#[cfg(test)]
impl<W> Lane<W> {
    /// Grants an arriving call without queueing it, if [`Lane::is_open`].
    pub(crate) fn try_grant(&mut self, send_by: Instant, now: Instant) -> Option<Grant> {
        if !self.is_open(now) {
            return None;
        }
        self.grant(send_by, now)
    }

    /// Replaces the token source.
    pub(crate) fn set_source(&mut self, source: Source) {
        self.source = source;
    }

    /// Pauses the lane until `open`.
    pub(crate) fn pause_until(&mut self, open: Instant) {
        self.pause.adopt_store_pause(open);
    }
}

#[cfg(test)]
mod tests;

//! May a call that arrives wait? There must be room in the queue, and a turn that comes within its hold. A call that may
//! not wait gets its place, its predicted wait, and a moment of its own to come back.

use std::time::Duration;

use tokio::time::Instant;

use crate::error::{Kind, Refusal};
use crate::limiter::fair::{FairQueue, QueueEntry};
use crate::limiter::lane::{Context, Effect, Lane, Waiting};
use crate::limiter::refusals;

/// How long arrivals that go before others are gathered before the queue is reviewed.
const REVIEW_AFTER: Duration = Duration::from_millis(20);

/// The most that is added to an advice for the bunches in which tokens come back.
const LONGEST_BUNCH: Duration = Duration::from_secs(5);

// === impl Lane ===

impl<W> Lane<W> {
    /// A call arrives, for the first time, or again after a throttle refusal: then it was admitted before.
    pub(super) fn arrived(
        &mut self,
        entry: QueueEntry,
        waiting: Waiting<W>,
        returning: bool,
        cx: Context<'_>,
    ) {
        let Waiting { waiter, send_by } = waiting;
        if !cx.is_drained(cx.now) && !self.source.is_none() && send_by <= cx.now {
            let advice = self.advice_now(cx.now);
            return self.effects.push_back(Effect::Expire { waiter, advice });
        }
        if let Err(refusal) = self.admit(&entry, send_by, returning, cx) {
            return self.effects.push_back(Effect::Refuse { waiter, refusal });
        }
        self.queue.push(entry, Waiting { waiter, send_by });
        if returning {
            // It goes before others: their forecasts have changed.
            self.review.request(cx.now);
        }
    }

    fn admit(
        &mut self,
        entry: &QueueEntry,
        send_by: Instant,
        returning: bool,
        cx: Context<'_>,
    ) -> Result<(), Refusal> {
        let Context { now, rules, .. } = cx;
        if cx.is_drained(now) {
            return Err(refusals::draining());
        }
        if self.source.is_none() {
            return Err(refusals::no_part());
        }
        if returning {
            return Ok(());
        }
        let bounds = &rules.bounds;
        let ahead = self.queue.ahead_of_new(entry);
        let wait = self.predicted_wait(ahead, now);
        if cx.is_drained(now + wait) {
            return Err(refusals::draining());
        }
        if self.queue.of_client(&entry.client) >= bounds.max_waiting_per_client {
            return Err(self.full(
                "This client's part of the queue",
                bounds.max_waiting_per_client,
                cx,
            ));
        }
        if self.source.is_withheld() {
            return Err(refusals::withheld());
        }
        let hold = send_by.saturating_duration_since(now);
        if wait > hold {
            return Err(self.advised(refusals::too_long(wait, hold).queued(ahead, wait), cx));
        }
        if self.queue.len() >= bounds.max_waiting {
            // The newest call of the client with the most calls makes room.
            let refusal = self.full("The queue", bounds.max_waiting, cx);
            let Some(evicted) = self.queue.evict(&entry.client) else {
                return Err(refusal);
            };
            self.effects.push_back(Effect::Refuse {
                waiter: evicted.waiter,
                refusal,
            });
        }
        if ahead < self.queue.len() {
            self.review.request(now + REVIEW_AFTER);
        }
        Ok(())
    }

    fn full(&mut self, what: &str, bound: usize, cx: Context<'_>) -> Refusal {
        let wait = self.advice_now(cx.now);
        let refusal = Refusal::after(
            Kind::QueueFull,
            wait,
            format!("{what} of {bound} waiting calls is full."),
        );
        let ahead = self.queue.len();
        self.advised(refusal.queued(ahead, wait), cx)
    }

    /// Spreads the advice when to come back: each refused caller gets a moment of its own, at the rate at which the lane
    /// serves, so that they do not come back together only to be refused again.
    pub(super) fn advised(&mut self, refusal: Refusal, cx: Context<'_>) -> Refusal {
        let rate = self.rate(cx.now);
        let step = rate.away() / rate.tokens.max(1);
        // Tokens come back in bunches: a window later a caller surely fits. Nor need it wait for a second long one.
        let earliest =
            cx.now + refusal.retry_after.unwrap_or_default() + rate.away().min(LONGEST_BUNCH);
        let latest = earliest + cx.rules.retry.max_pause;
        self.advised = (self.advised + step).clamp(earliest, latest);
        Refusal {
            retry_after: Some(self.advised - cx.now),
            ..refusal
        }
    }

    /// An operator flushes the queue: every call that waits is refused, with a moment of its own to come back.
    pub(super) fn flush(&mut self, cx: Context<'_>) {
        let rate = self.rate(cx.now);
        let step = rate.away() / rate.tokens.max(1);
        let refusal = self.advised(refusals::flushed(self.advice(0, cx.now)), cx);
        let later = step * u32::try_from(self.queue.len().saturating_sub(1)).unwrap_or(u32::MAX);
        let most =
            self.advice(0, cx.now) + rate.away().min(LONGEST_BUNCH) + cx.rules.retry.max_pause;
        self.advised = (self.advised + later).min(cx.now + most);
        self.refuse_all(refusal, step, most, cx.now);
    }

    /// Refuses every call that waits.
    pub(super) fn refuse_all(
        &mut self,
        refusal: Refusal,
        step: Duration,
        most: Duration,
        now: Instant,
    ) {
        if self.queue.len() > 0 {
            let queue = std::mem::replace(&mut self.queue, FairQueue::new());
            self.effects.push_back(Effect::RefuseAll {
                queue,
                refusal,
                step,
                most,
            });
        }
        self.review.end();
        self.return_unused(now);
    }
}

//! Decides whether an arriving call is queued. The queue must have room, and the predicted wait
//! must fit into the call's hold. A refused call gets its position in the queue, its predicted
//! wait, and a `Retry-After` time of its own.

use std::time::Duration;

use tokio::time::Instant;

use crate::error::Refusal;
use crate::limiter::fair::{FairQueue, QueueEntry};
use crate::limiter::lane::{Context, Effect, Forecast, Lane, Waiting};
use crate::limiter::pace::Rate;
use crate::limiter::refusals;
use crate::primitives::text::whole_millis;

/// How long after an arrival that goes before others the queue is reviewed. Collects several such
/// arrivals.
const REVIEW_DELAY: Duration = Duration::from_millis(20);

/// The most that is added to an advice because tokens come back in bursts.
const MAX_TOKEN_BURST: Duration = Duration::from_secs(5);

// === impl Lane ===

impl<W> Lane<W> {
    /// A call arrives. `returning`: it was admitted before and comes back after a throttle refusal.
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
            // It may go before others, which changes their forecasts.
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
        if self.queue.client_len(&entry.client) >= bounds.max_waiting_per_client {
            return Err(self.queue_full(
                "This client's part of the queue",
                bounds.max_waiting_per_client,
                cx,
            ));
        }
        if self.source.is_withheld() {
            return Err(refusals::withheld());
        }
        let left = send_by.saturating_duration_since(now);
        if wait > left {
            let refusal = refusals::too_long(wait, left).queued(ahead, wait);
            return Err(self.with_own_advice(refusal, cx));
        }
        if self.queue.len() >= bounds.max_waiting {
            self.evict_for(entry, cx)?;
        }
        self.admitted = Some(Forecast {
            ahead: u32::try_from(ahead).unwrap_or(u32::MAX),
            wait_ms: whole_millis(wait),
        });
        if ahead < self.queue.len() {
            self.review.request(now + REVIEW_DELAY);
        }
        Ok(())
    }

    /// Evicts the newest call of the client with the most calls, if this entry then has a place in
    /// the full queue.
    fn evict_for(&mut self, entry: &QueueEntry, cx: Context<'_>) -> Result<(), Refusal> {
        let refusal = self.queue_full("The queue", cx.rules.bounds.max_waiting, cx);
        let Some(evicted) = self.queue.evict(&entry.client) else {
            return Err(refusal);
        };
        self.effects.push_back(Effect::Refuse {
            waiter: evicted.waiter,
            refusal,
        });
        Ok(())
    }

    fn queue_full(&mut self, what: &str, bound: usize, cx: Context<'_>) -> Refusal {
        let wait = self.advice_now(cx.now);
        let refusal = refusals::full(what, bound, wait);
        let ahead = self.queue.len();
        self.with_own_advice(refusal.queued(ahead, wait), cx)
    }

    /// Gives a refusal a `Retry-After` time of its own. The times are spread at the lane's rate, so
    /// that the refused callers do not all come back together and get refused again.
    pub(super) fn with_own_advice(&mut self, refusal: Refusal, cx: Context<'_>) -> Refusal {
        let rate = self.rate(cx.now);
        // Tokens come back in bursts: one window later a token is certainly free. A long window
        // need not pass twice.
        let burst = rate.away().min(MAX_TOKEN_BURST);
        let earliest = cx.now + refusal.retry_after.unwrap_or_default() + burst;
        let latest = earliest + cx.rules.retry.max_pause;
        self.last_advised = (self.last_advised + step(rate)).clamp(earliest, latest);
        Refusal {
            retry_after: Some(self.last_advised - cx.now),
            ..refusal
        }
    }

    /// Refuses every queued call, each with a `Retry-After` time of its own: an operator flushes
    /// the queue.
    pub(super) fn flush(&mut self, cx: Context<'_>) {
        let rate = self.rate(cx.now);
        let step = step(rate);
        let advice = self.advice(0, cx.now);
        let refusal = self.with_own_advice(refusals::flushed(advice), cx);
        let others = u32::try_from(self.queue.len().saturating_sub(1)).unwrap_or(u32::MAX);
        let most = advice + rate.away().min(MAX_TOKEN_BURST) + cx.rules.retry.max_pause;
        self.last_advised = (self.last_advised + step * others).min(cx.now + most);
        self.refuse_all(refusal, step, most, cx.now);
    }

    /// Refuses every queued call.
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

/// The mean time between two grants.
fn step(rate: Rate) -> Duration {
    rate.away() / rate.tokens.max(1)
}

//! Finds the queued calls that have become late. After a pause, a lower rate, or arrivals that go
//! before others, the review walks the queue in the order of service and refuses the calls whose
//! grant is forecast for after their send-by time. It works in bounded pieces, so that the lane's
//! lock and its thread are held only briefly. A new review waits for the one in progress, so one
//! throttle episode causes one review.

use std::time::Duration;

use tokio::time::Instant;

use crate::error::Refusal;
use crate::limiter::fair::{FairQueue, Walk};
use crate::limiter::lane::{Context, Effect, Lane, Waiting};
use crate::limiter::refusals;

/// The most calls that are visited in one piece.
const PIECE_LEN: usize = 128;
/// The least time between two reviews of a queue that takes more than one piece.
const MIN_REVIEW_INTERVAL: Duration = Duration::from_millis(50);

/// The schedule and the progress of the queue's review.
pub(super) struct Review {
    requested: Option<Instant>,
    not_before: Instant,
    /// The review in progress. Boxed because it is rare.
    walk: Option<Box<Walk>>,
}

// === impl Review ===

impl Review {
    pub(super) fn new(now: Instant) -> Self {
        Self {
            requested: None,
            not_before: now,
            walk: None,
        }
    }

    /// Requests a review at `at`.
    pub(super) fn request(&mut self, at: Instant) {
        let at = at.max(self.not_before);
        self.requested = Some(self.requested.map_or(at, |requested| requested.min(at)));
    }

    /// When the next piece is due, if a review was requested or is in progress.
    pub(super) fn due_at(&self) -> Option<Instant> {
        if self.walk.is_some() {
            Some(self.not_before)
        } else {
            self.requested
        }
    }

    pub(super) fn is_due(&self, now: Instant) -> bool {
        self.walk.is_some() || self.requested.is_some_and(|at| at <= now)
    }

    /// Notes that a call was served while a review may be in progress.
    pub(super) fn served(&mut self) {
        if let Some(walk) = &mut self.walk {
            walk.served();
        }
    }

    /// Ends the review: the queue is empty.
    pub(super) fn end(&mut self) {
        self.requested = None;
        self.walk = None;
    }
}

// === impl Lane ===

impl<W> Lane<W> {
    /// Reviews one piece of the queue.
    pub(super) fn review_piece(&mut self, cx: Context<'_>) {
        let now = cx.now;
        if !self.review.is_due(now) {
            return;
        }
        let mut walk = self.review.walk.take().unwrap_or_else(|| {
            self.review.requested = None;
            Box::new(self.queue.walk())
        });
        let is_long = self.queue.len() > PIECE_LEN;
        let late = self.take_late(&mut walk, cx);
        let wait = self.predicted_wait(self.queue.len(), now);
        for waiting in late {
            let refusal = self.refuse_late(waiting.send_by, wait, cx);
            self.effects.push_back(Effect::Refuse {
                waiter: waiting.waiter,
                refusal,
            });
        }
        if walk.is_over() {
            self.review.not_before = if is_long {
                now + MIN_REVIEW_INTERVAL
            } else {
                now
            };
            if let Some(requested) = &mut self.review.requested {
                *requested = (*requested).max(self.review.not_before);
            }
        } else {
            self.review.walk = Some(walk);
        }
        if self.queue.len() == 0 {
            self.return_unused(now);
        }
    }

    /// Removes the late calls of the next piece from the queue.
    fn take_late(&mut self, walk: &mut Walk, cx: Context<'_>) -> Vec<Waiting<W>> {
        // Moved out, because the forecast borrows the lane.
        let mut queue = std::mem::replace(&mut self.queue, FairQueue::new());
        let forecast = self.forecast(cx.now);
        let late = queue.advance_walk(walk, PIECE_LEN, |ahead, waiting| {
            let Some(forecast) = &forecast else {
                return false;
            };
            let granted_at = forecast.at(ahead).max(cx.now);
            granted_at <= waiting.send_by && !cx.is_drained(granted_at)
        });
        drop(forecast);
        self.queue = queue;
        late
    }

    fn refuse_late(&mut self, send_by: Instant, wait: Duration, cx: Context<'_>) -> Refusal {
        if self.source.is_none() {
            return refusals::no_part();
        }
        if cx.is_drained(cx.now + wait) {
            return refusals::draining();
        }
        if self.source.is_withheld() {
            return refusals::withheld();
        }
        let left = send_by.saturating_duration_since(cx.now);
        let refusal = refusals::too_long(wait, left).queued(self.queue.len(), wait);
        self.with_own_advice(refusal, cx)
    }
}

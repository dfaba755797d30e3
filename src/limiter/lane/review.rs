//! Which queued calls became late? When a pause, a slower rate or calls that go before others have changed the forecasts,
//! the queue is gone through in the order of service, and calls whose turn is forecast for after their send-by are refused.
//! It goes in bounded pieces, so that the lane's lock and its thread are held for a moment only, and a new review waits
//! for the one before it: one episode of refusals costs one.

use std::time::Duration;

use tokio::time::Instant;

use crate::limiter::fair::{FairQueue, Walk};
use crate::limiter::lane::{Context, Effect, Lane};
use crate::limiter::refusals;

/// Calls that one piece goes through.
const PIECE: usize = 128;
/// The least time between the end of a review and the next, of a queue that takes more than one piece.
const APART: Duration = Duration::from_millis(50);

/// When the queue is reviewed, and how far that has come.
pub(super) struct Review {
    requested: Option<Instant>,
    not_before: Instant,
    /// Boxed: rare.
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

    /// The queue is to be reviewed at `at`.
    pub(super) fn request(&mut self, at: Instant) {
        let at = at.max(self.not_before);
        self.requested = Some(self.requested.map_or(at, |requested| requested.min(at)));
    }

    /// When the next piece is due.
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

    /// A call was served.
    pub(super) fn served(&mut self) {
        if let Some(walk) = &mut self.walk {
            walk.served();
        }
    }

    /// No call waits.
    pub(super) fn end(&mut self) {
        (self.requested, self.walk) = (None, None);
    }
}

// === impl Lane ===

impl<W> Lane<W> {
    /// Goes through one piece of the queue.
    pub(super) fn review_piece(&mut self, cx: Context<'_>) {
        let now = cx.now;
        if !self.review.is_due(now) {
            return;
        }
        let mut walk = self.review.walk.take().unwrap_or_else(|| {
            self.review.requested = None;
            Box::new(self.queue.walk())
        });
        let is_long = self.queue.len() > PIECE;
        let mut queue = std::mem::replace(&mut self.queue, FairQueue::new());
        let forecast = self.forecast(now);
        let late = queue.walk_on(&mut walk, PIECE, |ahead, waiting| {
            let turn = forecast
                .as_ref()
                .map(|forecast| forecast.at(ahead).max(now));
            turn.is_some_and(|turn| turn <= waiting.send_by && !cx.is_drained(turn))
        });
        drop(forecast);
        self.queue = queue;
        let wait = self.predicted_wait(self.queue.len(), now);
        for waiting in late {
            let refusal = if self.source.is_none() {
                refusals::no_part()
            } else if cx.is_drained(now + wait) {
                refusals::draining()
            } else if self.source.is_withheld() {
                refusals::withheld()
            } else {
                let hold = waiting.send_by.saturating_duration_since(now);
                let ahead = self.queue.len();
                self.advised(refusals::too_long(wait, hold).queued(ahead, wait), cx)
            };
            self.effects.push_back(Effect::Refuse {
                waiter: waiting.waiter,
                refusal,
            });
        }
        if walk.is_over() {
            self.review.not_before = if is_long { now + APART } else { now };
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
}

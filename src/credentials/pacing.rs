//! Paces the requests to one service: how many are under way, how many begin in a second, and which
//! one is next.
//!
//! A process may have 100,000 accounts with a role each. STS allows 100 requests a second for all
//! users and roles of an account, and replicas and other applications share them. Requests begin
//! at most [`MAX_RATE`] times a second. A second in which the service throttles halves that rate, and it
//! rises again by one each second, so processes with the same quota come to share it. 100,000
//! sessions of an hour need 37 refreshes a second, which 50 covers; at a start it takes 33 minutes
//! until all have a session, and those that calls wait for are obtained first.
//!
//! A source whose last request failed may hang again. Such sources have their own queue, a bound of
//! their own, and at most every fourth request, so they never delay the others by more than that.

use std::collections::BTreeMap;
use std::future::Future;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt;
use parking_lot::Mutex;
use tokio::sync::oneshot;
use tokio::time::{Instant, sleep_until};

use super::error::FetchError;

/// The maximum of requests that begin in a second.
pub(super) const MAX_RATE: f64 = 50.0;

/// The rate is not halved below this.
const MIN_RATE: f64 = 1.0;

/// By how much the rate rises each second after it was halved.
const RECOVERY: f64 = 1.0;

/// STS counts requests by the second: all that follow in the same one are throttled, too.
const QUOTA_WINDOW: Duration = Duration::from_secs(1);

/// The maximum of concurrent requests that calls wait for. At [`MAX_RATE`] they are reached only if
/// requests take four seconds.
pub(super) const AWAITED_AT_ONCE: usize = 192;

/// The maximum of concurrent requests that no call waits for.
pub(super) const BACKGROUND_AT_ONCE: usize = 16;

/// The maximum of concurrent requests of sources whose last request failed.
pub(super) const FAILED_AT_ONCE: usize = 16;

/// One in this many requests is of a source whose last request failed, if one waits.
const SHARE_OF_FAILED: u64 = 4;

/// The requests to one service.
pub(super) struct Pacing(Mutex<Queues>);

/// The requests that wait, and those under way.
struct Queues {
    /// Of sources whose last request did not fail.
    healthy: Queue,
    /// Of sources whose last request failed.
    failed: Queue,
    /// Requests under way, by [`Class`].
    under_way: [usize; 3],
    /// Orders the waiting ones.
    arrivals: u64,
    /// The number of permits given.
    permits: u64,
    /// Whether a permit was given whose request has not begun yet. The next one is chosen then: who
    /// comes first may change until then.
    is_beginning: bool,
    /// When the next request may begin.
    next_at: Instant,
    rate: Rate,
}

/// Those that wait, awaited ones first.
type Queue = BTreeMap<Place, oneshot::Sender<RequestPermit>>;

/// A source that is to be asked.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Asked {
    /// To replace a session that was refused. Goes ahead: others may assume their roles with it.
    Forced,
    /// Its last request did not fail.
    Healthy,
    /// Its last request failed.
    Failed,
}

/// A place in a queue.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Place {
    rank: Rank,
    arrival: u64,
}

/// What comes first in a queue.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Rank {
    Forced,
    Awaited,
    Background,
}

/// What bounds a request under way.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Class {
    Awaited,
    Background,
    Failed,
}

/// The rate of requests.
struct Rate {
    /// As it was at `halved`.
    per_second: f64,
    halved: Option<Instant>,
}

/// One that waits, until it is dropped.
struct Ticket<'a> {
    pacing: &'a Pacing,
    has_failed: bool,
    place: Place,
}

/// The right to send one request.
pub(super) struct RequestPermit {
    pacing: Arc<Pacing>,
    class: Class,
    begins: Instant,
    has_begun: bool,
}

// === impl Pacing ===

impl Pacing {
    pub(super) fn new() -> Arc<Self> {
        let now = Instant::now();
        Arc::new(Self(Mutex::new(Queues {
            healthy: Queue::new(),
            failed: Queue::new(),
            under_way: [0; 3],
            arrivals: 0,
            permits: 0,
            is_beginning: false,
            next_at: now,
            rate: Rate {
                per_second: MAX_RATE,
                halved: None,
            },
        })))
    }

    /// Waits until a request may begin. `awaited` completes when a call waits for the request.
    pub(super) async fn permit(
        self: &Arc<Self>,
        asked: Asked,
        awaited: impl Future<Output = ()>,
    ) -> RequestPermit {
        let mut awaited = pin!(awaited.fuse());
        let is_awaited = awaited.as_mut().now_or_never().is_some();
        let rank = match asked {
            Asked::Forced => Rank::Forced,
            _ if is_awaited => Rank::Awaited,
            _ => Rank::Background,
        };
        let (sender, mut permit) = oneshot::channel();
        let mut ticket = self.enter(asked == Asked::Failed, rank, sender);
        self.give();
        let mut permit = tokio::select! {
            biased;
            permit = &mut permit => permit,
            () = &mut awaited => {
                ticket.move_ahead();
                self.give();
                permit.await
            }
        }
        .expect("a sender stays in its queue until it has sent");
        drop(ticket);
        sleep_until(permit.begins).await;
        permit.begin();
        permit
    }

    fn enter(
        &self,
        has_failed: bool,
        rank: Rank,
        sender: oneshot::Sender<RequestPermit>,
    ) -> Ticket<'_> {
        let mut queues = self.0.lock();
        queues.arrivals += 1;
        let place = Place {
            rank,
            arrival: queues.arrivals,
        };
        queues.queue(has_failed).insert(place, sender);
        Ticket {
            pacing: self,
            has_failed,
            place,
        }
    }

    /// Gives the next permit, if one may be given.
    fn give(self: &Arc<Self>) {
        let next = self.0.lock().next(Instant::now());
        if let Some((sender, class, begins)) = next {
            let permit = RequestPermit {
                pacing: self.clone(),
                class,
                begins,
                has_begun: false,
            };
            // One that no longer waits drops it, which gives the next.
            drop(sender.send(permit));
        }
    }

    /// The current rate.
    #[cfg(test)]
    pub(super) fn rate(&self) -> f64 {
        self.0.lock().rate.at(Instant::now())
    }
}

// === impl Queues ===

impl Queues {
    fn queue(&mut self, has_failed: bool) -> &mut Queue {
        if has_failed {
            &mut self.failed
        } else {
            &mut self.healthy
        }
    }

    /// Takes the next of those that wait: its class, and when its request may begin.
    fn next(&mut self, now: Instant) -> Option<(oneshot::Sender<RequestPermit>, Class, Instant)> {
        if self.is_beginning {
            return None;
        }
        let is_turn_of_failed = self.permits % SHARE_OF_FAILED == SHARE_OF_FAILED - 1;
        let (sender, class) = self
            .take(is_turn_of_failed)
            .or_else(|| self.take(!is_turn_of_failed))?;
        self.permits += 1;
        self.under_way[class as usize] += 1;
        self.is_beginning = true;
        let begins = self.next_at.max(now);
        self.next_at = begins + Duration::from_secs_f64(1.0 / self.rate.at(begins));
        Some((sender, class, begins))
    }

    /// Takes the first of a queue whose class has room.
    fn take(&mut self, has_failed: bool) -> Option<(oneshot::Sender<RequestPermit>, Class)> {
        // Background requests come last: if there is no room for the first, one that fits may only
        // be a background one.
        let awaited_full = self.under_way[Class::Awaited as usize] >= AWAITED_AT_ONCE;
        let queue = self.queue(has_failed);
        let background = Place {
            rank: Rank::Background,
            arrival: 0,
        };
        let first = if awaited_full && !has_failed {
            queue.range(background..).next()
        } else {
            queue.iter().next()
        };
        let place = *first?.0;
        let class = Class::of(has_failed, place);
        if self.under_way[class as usize] >= class.at_once() {
            return None;
        }
        let sender = self.queue(has_failed).remove(&place)?;
        Some((sender, class))
    }
}

// === impl Class ===

impl Class {
    fn of(has_failed: bool, place: Place) -> Self {
        match place.rank {
            _ if has_failed => Self::Failed,
            Rank::Background => Self::Background,
            Rank::Forced | Rank::Awaited => Self::Awaited,
        }
    }

    /// The maximum of concurrent requests.
    fn at_once(self) -> usize {
        match self {
            Self::Awaited => AWAITED_AT_ONCE,
            Self::Background => BACKGROUND_AT_ONCE,
            Self::Failed => FAILED_AT_ONCE,
        }
    }
}

// === impl Rate ===

impl Rate {
    fn at(&self, now: Instant) -> f64 {
        let Some(halved) = self.halved else {
            return self.per_second;
        };
        let since = now.saturating_duration_since(halved);
        (self.per_second + RECOVERY * since.as_secs_f64()).min(MAX_RATE)
    }

    /// Halves the rate, because a request that began at `begun` was throttled. One that began within
    /// [`QUOTA_WINDOW`] after the last time counts with those before it.
    fn halve(&mut self, begun: Instant, now: Instant) {
        if self
            .halved
            .is_none_or(|halved| begun >= halved + QUOTA_WINDOW)
        {
            self.per_second = (self.at(now) / 2.0).max(MIN_RATE);
            self.halved = Some(now);
        }
    }
}

// === impl Ticket ===

impl Ticket<'_> {
    /// Goes ahead of those that no call waits for.
    fn move_ahead(&mut self) {
        let mut queues = self.pacing.0.lock();
        let queue = queues.queue(self.has_failed);
        if let Some(sender) = queue.remove(&self.place) {
            self.place.rank = self.place.rank.min(Rank::Awaited);
            queue.insert(self.place, sender);
        }
    }
}

impl Drop for Ticket<'_> {
    fn drop(&mut self) {
        let mut queues = self.pacing.0.lock();
        queues.queue(self.has_failed).remove(&self.place);
    }
}

// === impl RequestPermit ===

impl RequestPermit {
    fn begin(&mut self) {
        self.has_begun = true;
        self.begins = Instant::now();
        self.pacing.0.lock().is_beginning = false;
        self.pacing.give();
    }

    /// The request has failed: if the service throttles it, those after it begin less often.
    pub(super) fn failed(&self, error: &FetchError) {
        if error.kind == super::error::FailureKind::Throttled {
            let mut queues = self.pacing.0.lock();
            queues.rate.halve(self.begins, Instant::now());
        }
    }
}

impl Drop for RequestPermit {
    fn drop(&mut self) {
        let mut queues = self.pacing.0.lock();
        queues.under_way[self.class as usize] -= 1;
        if !self.has_begun {
            queues.is_beginning = false;
        }
        drop(queues);
        self.pacing.give();
    }
}

#[cfg(test)]
mod tests;

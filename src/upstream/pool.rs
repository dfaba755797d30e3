//! Which connection does a call get? The idle one that was used last, of its own runtime if there is one, else a new
//! one: as many are opened side by side as calls could go, but only one at a time, ever more rarely, while the upstream
//! cannot be reached (`upstream/reach.rs`). How one is opened is the dialer's. None is used for more than some minutes.
//!
//! A waiter owns nothing. Connections are opened by tasks of the pool and laid on the idle stack; laying one there, and
//! the end of every dial whatever became of it, wakes one waiter, which takes what lies there or sees to it that enough
//! is being dialled. So a waiter can leave at any time, and a dial can even panic, without leaving anybody behind.

use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::runtime::{self, Handle};
use tokio::sync::Notify;
use tokio::time::{Instant, sleep_until, timeout};
use tracing::{info, warn};

use super::dial::Dialer;
use super::link::Link;
use super::reach::Reachability;
use super::{Connection, Reach};
use crate::config;

/// How long a connection may take after an answer until hyper is ready for the next request.
const SETTLE: Duration = Duration::from_secs(1);

/// Among so many, used last, a call looks for a connection of its own runtime: any other wakes another thread.
const NEAR: usize = 64;

/// The connections to one upstream.
pub(super) struct Pool {
    pub(super) dialer: Dialer,
    idle_timeout: Duration,
    answer_timeout: Duration,
    max_response: usize,
    /// Wakes one waiter: a connection lies ready, or a dial has ended.
    changed: Notify,
    /// Wakes the dials that wait for their time while the upstream is down.
    up: Notify,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    /// The longest idle first.
    idle: Vec<Link>,
    /// Whether a task watches the idle stack.
    reaping: bool,
    in_use: usize,
    /// How many connections all waiters together want.
    wanted: usize,
    /// Dials that have begun, the wait before a probe included.
    dialling: usize,
    reach: Reachability,
}

/// A waiter's part of `State::wanted`.
struct Wanting<'a> {
    pool: &'a Pool,
    count: usize,
}

/// A dial's part of `State::dialling`.
struct Dialling(Arc<Pool>);

// === impl Pool ===

impl Pool {
    pub(super) fn new(dialer: Dialer, config: &config::Upstream) -> Self {
        Self {
            dialer,
            idle_timeout: config.idle_timeout,
            answer_timeout: config.answer_timeout,
            max_response: config.max_response,
            changed: Notify::new(),
            up: Notify::new(),
            state: Mutex::default(),
        }
    }

    pub(super) fn idle_timeout(&self) -> Duration {
        self.idle_timeout
    }

    pub(super) fn answer_timeout(&self) -> Duration {
        self.answer_timeout
    }

    pub(super) fn max_response(&self) -> usize {
        self.max_response
    }

    #[cfg(test)]
    pub(super) fn idle(&self) -> usize {
        self.state.lock().idle.len()
    }

    #[cfg(test)]
    pub(super) fn in_use(&self) -> usize {
        self.state.lock().in_use
    }

    pub(super) fn reach(&self) -> Reach {
        self.state.lock().reach.reach()
    }

    /// The connection that was used last and still stands.
    pub(super) fn take(self: &Arc<Self>) -> Option<Connection> {
        let (here, now) = (Handle::current().id(), Instant::now());
        let mut state = self.state.lock();
        state.expire(self.idle_timeout, now);
        while let Some(link) = state.pop(here) {
            if link.is_ready(now) {
                state.in_use += 1;
                return Some(Connection {
                    pool: self.clone(),
                    link: Some(link),
                });
            }
            state.note_early_close(&link, now);
        }
        None
    }

    /// Waits for a connection while up to `wanted` are dialled.
    pub(super) async fn ready(self: &Arc<Self>, wanted: usize) -> Connection {
        if let Some(connection) = self.take() {
            return connection;
        }
        let _wanting = Wanting::new(self, wanted.max(1));
        loop {
            // Enrolled before the look, so that what comes after the look is noticed.
            let mut changed = std::pin::pin!(self.changed.notified());
            changed.as_mut().enable();
            if let Some(connection) = self.take() {
                return connection;
            }
            self.dial_more();
            changed.await;
        }
    }

    /// Takes back what was given out, unless it was closed or left half-read.
    pub(super) fn give_back(self: &Arc<Self>, link: Option<Link>) {
        self.state.lock().in_use -= 1;
        // Without a runtime the connection's task is gone, too.
        let (Some(mut link), Ok(runtime)) = (link, Handle::try_current()) else {
            return;
        };
        let now = Instant::now();
        if link.is_ready(now) {
            self.lay_down(link);
        } else if link.sender.is_closed() {
            self.closed(&link);
        } else if link.can_become_ready(now) {
            // The answer was there before hyper had come to the end of the exchange.
            let pool = self.clone();
            runtime.spawn(async move {
                if let Ok(Ok(())) = timeout(SETTLE, link.sender.ready()).await {
                    pool.lay_down(link);
                }
            });
        }
    }

    fn lay_down(self: &Arc<Self>, link: Link) {
        let mut state = self.state.lock();
        // One that was given out and not used is as old as before.
        let place = state.idle.partition_point(|idle| idle.since <= link.since);
        state.idle.insert(place, link);
        if !std::mem::replace(&mut state.reaping, true) {
            tokio::spawn(self.clone().reap());
        }
        drop(state);
        self.changed.notify_one();
    }

    /// Closes what lies idle too long, until nothing does.
    async fn reap(self: Arc<Self>) {
        loop {
            let oldest = {
                let mut state = self.state.lock();
                state.expire(self.idle_timeout, Instant::now());
                state.reaping = !state.idle.is_empty();
                state.idle.first().map(|idle| idle.since)
            };
            let Some(oldest) = oldest else { return };
            sleep_until(oldest + self.idle_timeout).await;
        }
    }

    /// Starts the dials that are missing for what is wanted.
    fn dial_more(self: &Arc<Self>) {
        let missing = {
            let mut state = self.state.lock();
            let wanted = state.wanted.saturating_sub(state.idle.len());
            let missing = wanted
                .min(state.reach.dials())
                .saturating_sub(state.dialling);
            state.dialling += missing;
            missing
        };
        for _ in 0..missing {
            tokio::spawn(dial(Dialling(self.clone())));
        }
    }

    /// CAMS has answered on this connection.
    pub(super) fn answered(&self, link: &mut Link) {
        link.answered();
        let was_down = self.state.lock().reach.answered();
        self.came_up(was_down);
    }

    /// This connection has closed between requests.
    pub(super) fn closed(&self, link: &Link) {
        self.state.lock().note_early_close(link, Instant::now());
    }

    fn came_up(&self, was_down: Option<Instant>) {
        if let Some(since) = was_down {
            self.up.notify_waiters();
            info!(after = ?since.elapsed(), "upstream can be reached again");
        }
    }
}

/// Opens one connection and lays it on the idle stack: at once while the upstream is up, else after the back-off and
/// only if somebody still waits.
async fn dial(dialling: Dialling) {
    let pool = &dialling.0;
    // Enrolled before the look, so that it cannot come up unnoticed.
    let up = pool.up.notified();
    let probe_due = pool.state.lock().reach.next_probe();
    if let Some(due) = probe_due {
        tokio::select! {
            () = sleep_until(due) => {}
            () = up => {}
        }
        if pool.state.lock().wanted == 0 {
            return;
        }
    }
    match pool.dialer.dial().await {
        Ok(dialled) => {
            let was_down = pool.state.lock().reach.opened();
            pool.came_up(was_down);
            // The dialer has given the connection a task beside this one.
            pool.lay_down(Link::new(dialled, Handle::current().id()));
        }
        Err(error) => {
            let mut state = pool.state.lock();
            if state.reach.failed(
                error.to_string().into(),
                probe_due.is_some(),
                Instant::now(),
            ) {
                state.warn_down();
            }
        }
    }
}

// === impl State ===

impl State {
    /// The one that was used last: of `here`, if one is near, else of any runtime.
    fn pop(&mut self, here: runtime::Id) -> Option<Link> {
        let near = self
            .idle
            .iter()
            .enumerate()
            .rev()
            .take(NEAR)
            .find(|(_, link)| link.home == here);
        let place = near.map_or(self.idle.len().checked_sub(1), |(place, _)| Some(place))?;
        Some(self.idle.remove(place))
    }

    fn note_early_close(&mut self, link: &Link, now: Instant) {
        if link.has_closed_early(now) && self.reach.closed_early(now) {
            self.warn_down();
        }
    }

    fn warn_down(&self) {
        if let Reach::Down { reason, .. } = self.reach.reach() {
            warn!(%reason, idle = self.idle.len(), in_use = self.in_use, "upstream cannot be reached");
        }
    }

    /// Drops what has lain idle for the time-out or longer.
    fn expire(&mut self, idle_timeout: Duration, now: Instant) {
        let expired = self
            .idle
            .partition_point(|idle| now.duration_since(idle.since) >= idle_timeout);
        self.idle.drain(..expired);
    }
}

// === impl Wanting ===

impl<'a> Wanting<'a> {
    fn new(pool: &'a Pool, count: usize) -> Self {
        pool.state.lock().wanted += count;
        Self { pool, count }
    }
}

impl Drop for Wanting<'_> {
    fn drop(&mut self) {
        self.pool.state.lock().wanted -= self.count;
    }
}

// === impl Dialling ===

impl Drop for Dialling {
    fn drop(&mut self) {
        self.0.state.lock().dialling -= 1;
        self.0.changed.notify_one();
    }
}

//! Which connection does a call get? The idle one that was used last, of its own runtime if there is one, else a new
//! one: as many are opened side by side as calls could go, and only one at a time, ever more rarely, while the upstream
//! cannot be reached. How one is opened is the dialer's.
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

use super::dial::{DialError, Dialer, Dialled};
use super::first_write::FirstWrite;
use super::{Connection, Reach, Sender};
use crate::config;

/// Connections that are being opened at once.
const MAX_DIALS: usize = 256;

/// First step of the back-off between probes, and the most it comes to.
const PROBE_BASE: Duration = Duration::from_millis(100);
const PROBE_MAX: Duration = Duration::from_secs(2);

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
    down: Option<Down>,
}

/// One connection that stands.
pub(super) struct Link {
    /// When it was opened or last used.
    pub(super) since: Instant,
    pub(super) sender: Sender,
    /// Reports the first write of each request.
    pub(super) first_write: Arc<FirstWrite>,
    /// Where its task runs.
    pub(super) home: runtime::Id,
}

/// The upstream cannot be reached.
struct Down {
    since: Instant,
    reason: Arc<str>,
    /// Probes that have failed.
    probes: u32,
    /// No probe before this.
    next: Instant,
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
        match &self.state.lock().down {
            None => Reach::Up,
            Some(down) => Reach::Down { since: down.since, reason: down.reason.clone() },
        }
    }

    /// The connection that was used last and still stands.
    pub(super) fn take(self: &Arc<Self>) -> Option<Connection> {
        let here = Handle::current().id();
        let mut state = self.state.lock();
        state.expire(self.idle_timeout);
        while let Some(link) = state.pop(here) {
            if link.is_ready() {
                state.in_use += 1;
                return Some(Connection { pool: self.clone(), link: Some(link) });
            }
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
        let (Some(mut link), Ok(runtime)) = (link, Handle::try_current()) else { return };
        if link.first_write.is_behind() {
            return;
        }
        if link.sender.is_ready() {
            self.lay_down(link);
        } else if !link.sender.is_closed() {
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
                state.expire(self.idle_timeout);
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
            let missing = match state.down {
                None => state.wanted.saturating_sub(state.idle.len()).min(MAX_DIALS).saturating_sub(state.dialling),
                Some(_) => usize::from(state.dialling == 0),
            };
            state.dialling += missing;
            missing
        };
        for _ in 0..missing {
            tokio::spawn(dial(Dialling(self.clone())));
        }
    }

    /// The upstream was dialled, or has answered.
    pub(super) fn came_up(&self) {
        if let Some(down) = self.state.lock().down.take() {
            info!(after = ?down.since.elapsed(), "upstream can be reached again");
        }
    }

    fn went_down(&self, error: &DialError, probing: bool) {
        let reason: Arc<str> = error.to_string().into();
        let now = Instant::now();
        let mut state = self.state.lock();
        match &mut state.down {
            None => {
                warn!(%reason, idle = state.idle.len(), in_use = state.in_use, "upstream cannot be reached");
                state.down = Some(Down { since: now, reason, probes: 0, next: now + back_off(0) });
            }
            Some(down) => {
                down.reason = reason;
                // Of dials that began side by side while it was up only the first counts.
                if probing {
                    down.probes = down.probes.saturating_add(1);
                    down.next = now + back_off(down.probes);
                }
            }
        }
    }
}

/// Opens one connection and lays it on the idle stack: at once while the upstream is up, else after the back-off and
/// only if somebody still waits.
async fn dial(dialling: Dialling) {
    let pool = &dialling.0;
    let probe_due = pool.state.lock().down.as_ref().map(|down| down.next);
    if let Some(due) = probe_due {
        sleep_until(due).await;
        if pool.state.lock().wanted == 0 {
            return;
        }
    }
    match pool.dialer.dial().await {
        Ok(Dialled { sender, first_write }) => {
            pool.came_up();
            // The dialer has given the connection a task beside this one.
            pool.lay_down(Link { since: Instant::now(), sender, first_write, home: Handle::current().id() });
        }
        Err(error) => pool.went_down(&error, probe_due.is_some()),
    }
}

/// Full jitter: processes that lost the same upstream do not come back in step.
fn back_off(probes: u32) -> Duration {
    let most = PROBE_BASE.saturating_mul(2_u32.saturating_pow(probes)).min(PROBE_MAX);
    most.mul_f64(fastrand::f64())
}

// === impl State ===

impl State {
    /// The one that was used last: of `here`, if one is near, else of any runtime.
    fn pop(&mut self, here: runtime::Id) -> Option<Link> {
        let near = self.idle.iter().enumerate().rev().take(NEAR).find(|(_, link)| link.home == here);
        let place = near.map_or(self.idle.len().checked_sub(1), |(place, _)| Some(place))?;
        Some(self.idle.remove(place))
    }

    /// Drops what has lain idle for the time-out or longer.
    fn expire(&mut self, idle_timeout: Duration) {
        let now = Instant::now();
        let expired = self.idle.partition_point(|idle| now.duration_since(idle.since) >= idle_timeout);
        self.idle.drain(..expired);
    }
}

// === impl Link ===

impl Link {
    /// Whether the next bytes on the connection are those of the next request.
    pub(super) fn is_ready(&self) -> bool {
        self.sender.is_ready() && !self.first_write.is_behind()
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_back_off_doubles_up_to_its_most() {
        for (probes, most) in [(0, 100), (1, 200), (3, 800), (4, 1600), (5, 2000), (40, 2000)] {
            let most = Duration::from_millis(most);
            let longest = (0..1000).map(|_| back_off(probes)).max().unwrap();
            assert!(longest <= most && longest > most.mul_f64(0.9), "{probes}: {longest:?}");
        }
    }
}

//! The connections to the upstream. A call gets the idle connection that was used last, preferably
//! one of its own runtime, or a new one. Connections are opened in parallel, one for each call that
//! could be sent; while the upstream is unreachable, one at a time with a growing back-off
//! (`upstream/reach.rs`). The dialer opens them. A connection is not reused after about five
//! minutes (`link.rs`).
//!
//! A waiter owns nothing. The pool's own tasks open connections and push them onto the idle stack.
//! Each push, and each end of a dial for any reason, wakes one waiter, which takes a connection or
//! starts the missing dials. So a waiter can be dropped, and a dial can panic, without another
//! waiter being stuck.

use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::runtime::{self, Handle};
use tokio::sync::Notify;
use tokio::time::{Instant, sleep_until, timeout};
use tracing::{info, warn};

use super::clock::UpstreamClock;
use super::dial::Dialer;
use super::failures::{Failure, FailureCounts};
use super::link::Link;
use super::reach::Reachability;
use super::{Connection, Reach};
use crate::config;

/// How long hyper may take after a response to become ready for the next request.
const SETTLE: Duration = Duration::from_secs(1);

/// How long a proxy is not asked again after it has refused the credentials: repeated failures can
/// lock an account of a directory. A reload with other credentials does not wait.
const AFTER_WRONG_CREDENTIALS: Duration = Duration::from_secs(30);

/// Number of recently used connections among which a call looks for one of its own runtime. A
/// connection of another runtime wakes another thread.
const NEAR: usize = 64;

/// The connections to one upstream.
pub(super) struct Pool {
    pub(super) dialer: Dialer,
    pub(super) settings: config::Upstream,
    /// The upstream's URL, its name in logs.
    pub(super) url: String,
    pub(super) failures: FailureCounts,
    pub(super) clock: Arc<UpstreamClock>,
    /// Wakes one waiter: a connection became idle, or a dial has ended.
    changed: Notify,
    /// Wakes the dials that wait for their back-off while the upstream is down.
    up: Notify,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    /// Ordered by idle time, the longest first.
    idle: Vec<Link>,
    /// Whether a task removes expired idle connections.
    reaping: bool,
    in_use: usize,
    /// Number of connections that all waiters together need.
    wanted: usize,
    /// Dials in progress, including the back-off before a probe.
    dialling: usize,
    reach: Reachability,
}

/// One waiter's part of `State::wanted`.
struct WantedGuard<'a> {
    pool: &'a Pool,
    count: usize,
}

/// One dial's part of `State::dialling`.
struct DialGuard(Arc<Pool>);

// === impl Pool ===

impl Pool {
    pub(super) fn new(dialer: Dialer, config: &config::Upstream) -> Self {
        let clock = UpstreamClock::new(&config.url(), config.correct_clock, Instant::now());
        Self {
            dialer,
            settings: config.clone(),
            url: config.url(),
            failures: FailureCounts::default(),
            clock: Arc::new(clock),
            changed: Notify::new(),
            up: Notify::new(),
            state: Mutex::default(),
        }
    }

    pub(super) fn idle_timeout(&self) -> Duration {
        self.settings.idle_timeout
    }

    pub(super) fn answer_timeout(&self) -> Duration {
        self.settings.answer_timeout
    }

    pub(super) fn max_response(&self) -> usize {
        self.settings.max_response
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

    /// Takes the most recently used connection that is still open.
    pub(super) fn take(self: &Arc<Self>) -> Option<Connection> {
        let here = Handle::current().id();
        let now = Instant::now();
        let mut state = self.state.lock();
        state.expire(self.settings.idle_timeout, now);
        while let Some(link) = state.pop(here) {
            if link.is_ready(now) {
                state.in_use += 1;
                return Some(Connection {
                    pool: self.clone(),
                    link: Some(link),
                });
            }
            self.note_early_close(&mut state, &link, now);
        }
        None
    }

    /// Waits for a connection while up to `wanted` are dialled.
    pub(super) async fn ready(self: &Arc<Self>, wanted: usize) -> Connection {
        if let Some(connection) = self.take() {
            return connection;
        }
        let _wanted = WantedGuard::new(self, wanted.max(1));
        loop {
            // Registered before `take`, so that a later change is not missed.
            let mut changed = std::pin::pin!(self.changed.notified());
            changed.as_mut().enable();
            if let Some(connection) = self.take() {
                return connection;
            }
            self.dial_more();
            changed.await;
        }
    }

    /// Takes a connection back, unless it was closed or left half-read.
    pub(super) fn give_back(self: &Arc<Self>, link: Option<Link>) {
        self.state.lock().in_use -= 1;
        // Without a runtime the connection's task has ended too.
        let (Some(mut link), Ok(runtime)) = (link, Handle::try_current()) else {
            return;
        };
        let now = Instant::now();
        if link.is_ready(now) {
            self.put_idle(link);
        } else if link.sender.is_closed() {
            self.closed(&link);
        } else if link.can_become_ready(now) {
            // The response was complete before hyper had finished the exchange.
            let pool = self.clone();
            runtime.spawn(async move {
                if let Ok(Ok(())) = timeout(SETTLE, link.sender.ready()).await {
                    pool.put_idle(link);
                }
            });
        }
    }

    fn put_idle(self: &Arc<Self>, link: Link) {
        let mut state = self.state.lock();
        // A connection that was handed out and not used keeps its age.
        let place = state.idle.partition_point(|idle| idle.since <= link.since);
        state.idle.insert(place, link);
        if !std::mem::replace(&mut state.reaping, true) {
            tokio::spawn(self.clone().reap());
        }
        drop(state);
        self.changed.notify_one();
    }

    /// Closes connections that are idle for too long, until none is idle.
    async fn reap(self: Arc<Self>) {
        loop {
            let oldest = {
                let mut state = self.state.lock();
                state.expire(self.settings.idle_timeout, Instant::now());
                state.reaping = !state.idle.is_empty();
                state.idle.first().map(|idle| idle.since)
            };
            let Some(oldest) = oldest else { return };
            sleep_until(oldest + self.settings.idle_timeout).await;
        }
    }

    /// Starts the dials that are missing for the wanted connections.
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
            tokio::spawn(dial(DialGuard(self.clone())));
        }
    }

    /// CAMS has sent a response on this connection.
    pub(super) fn record_answer(&self, link: &mut Link) {
        link.record_answer();
        let was_down = self.state.lock().reach.record_answer();
        self.log_recovery_and_wake(was_down);
    }

    /// This connection has closed between requests.
    pub(super) fn closed(&self, link: &Link) {
        self.note_early_close(&mut self.state.lock(), link, Instant::now());
    }

    fn note_early_close(&self, state: &mut State, link: &Link, now: Instant) {
        if !link.has_closed_early(now) {
            return;
        }
        self.failures.count(Failure::ClosedEarly);
        if state.reach.closed_early(now) {
            state.warn_down(&self.url);
        }
    }

    fn log_recovery_and_wake(&self, was_down: Option<Instant>) {
        if let Some(since) = was_down {
            self.up.notify_waiters();
            info!(upstream = self.url, after = ?since.elapsed(), "upstream can be reached again");
        }
    }
}

/// Opens one connection and pushes it onto the idle stack: immediately while the upstream is up,
/// else after the back-off and only if a waiter remains.
async fn dial(dialling: DialGuard) {
    let pool = &dialling.0;
    // Registered before the check, so that the upstream cannot come up unnoticed.
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
            pool.log_recovery_and_wake(was_down);
            // The dialer spawned the connection's task on this runtime.
            pool.put_idle(Link::new(dialled, Handle::current().id()));
        }
        Err(error) => {
            pool.failures.count(error.failure());
            let mut state = pool.state.lock();
            if state.reach.failed(
                error.to_string().into(),
                probe_due.is_some(),
                Instant::now(),
            ) {
                state.warn_down(&pool.url);
            }
            if error.failure() == Failure::ProxyAuthentication {
                state
                    .reach
                    .hold_off(Instant::now() + AFTER_WRONG_CREDENTIALS);
            }
        }
    }
}

// === impl State ===

impl State {
    /// Pops the most recently used connection: of runtime `here` if one is among the last `NEAR`,
    /// else of any.
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

    fn warn_down(&self, upstream: &str) {
        if let Reach::Down { reason, .. } = self.reach.reach() {
            warn!(upstream, %reason, idle = self.idle.len(), in_use = self.in_use, "upstream cannot be reached");
        }
    }

    /// Drops connections that were idle for the time-out or longer.
    fn expire(&mut self, idle_timeout: Duration, now: Instant) {
        let expired = self
            .idle
            .partition_point(|idle| now.duration_since(idle.since) >= idle_timeout);
        self.idle.drain(..expired);
    }
}

// === impl WantedGuard ===

impl<'a> WantedGuard<'a> {
    fn new(pool: &'a Pool, count: usize) -> Self {
        pool.state.lock().wanted += count;
        Self { pool, count }
    }
}

impl Drop for WantedGuard<'_> {
    fn drop(&mut self) {
        self.pool.state.lock().wanted -= self.count;
    }
}

// === impl DialGuard ===

impl Drop for DialGuard {
    fn drop(&mut self) {
        self.0.state.lock().dialling -= 1;
        self.0.changed.notify_one();
    }
}

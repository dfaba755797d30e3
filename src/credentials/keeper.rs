//! Keeps the session of one source: refreshes it in the background, lets calls wait for it, and
//! never has more than one request of the source under way.
//!
//! `keeper/state.rs` decides when the source is asked, `keeper/refresh.rs` is the task that asks,
//! `keeper/report.rs` says what is logged.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::SystemTime;

use arc_swap::{ArcSwap, ArcSwapOption};
use parking_lot::Mutex;
use tokio::sync::Notify;
use tokio::time::{Instant, timeout_at};
use tokio_util::task::AbortOnDropHandle;

use super::error::{FailureKind, FetchError};
use super::obtain::Obtain;
use super::service_limits::ServiceLimits;
use super::session::{REFUSAL_PAUSE, Session};
use crate::config::{Credentials, SessionSource};
use crate::primitives::secret::never_shown;
pub(super) use report::AccountNames;
use state::{Demand, State};

#[cfg(test)]
pub(super) mod fake;
mod refresh;
mod report;
mod state;
#[cfg(test)]
mod tests;

/// The keeper of one source. Dropping it ends its task, and a request under way.
pub(crate) struct Keeper {
    shared: Arc<Shared>,
    _task: AbortOnDropHandle<()>,
}

/// What the task and the callers of a keeper share.
struct Shared {
    source: Arc<SessionSource>,
    obtain: Box<dyn Obtain>,
    /// The keeper of the session that assumes the role, if it is a session.
    from: Option<Arc<Keeper>>,
    limits: Arc<ServiceLimits>,
    /// Whose calls need the session, for the log.
    accounts: ArcSwap<AccountNames>,
    /// The last session, which may have ended.
    session: ArcSwapOption<Session>,
    state: Mutex<State>,
    /// The number of calls, and of other keepers, that wait for a session.
    waiting: AtomicUsize,
    /// Wakes the task, when something waits or a refresh is demanded.
    wake: Notify,
    /// Wakes all that wait, after each request.
    changed: Notify,
}

/// Counts as one that waits, until it is dropped.
struct Waiting<'a>(&'a Shared);

/// What a keeper shows to operators.
#[derive(Clone, Debug)]
pub(crate) struct KeeperView {
    /// Whether there is a session to sign with.
    pub(crate) is_valid: bool,
    /// The end of the last session, if there was one. It may have passed.
    pub(crate) ends_at: Option<SystemTime>,
    /// When the session was obtained.
    pub(crate) obtained_at: Option<SystemTime>,
    /// The last failure since the last success, and its time.
    pub(crate) failure: Option<(Instant, FetchError)>,
    /// The number of sessions obtained.
    pub(crate) succeeded: u64,
    /// The number of failures by kind, in the order of [`FailureKind::ALL`].
    pub(crate) failed: [u64; FailureKind::ALL.len()],
}

never_shown!(Keeper);

// === impl Keeper ===

impl Keeper {
    /// Begins to obtain a session. Must be called inside a tokio runtime; that one keeps the
    /// session. `from` is the keeper of the session that assumes the role, if it is a session.
    pub(super) fn new(
        source: Arc<SessionSource>,
        obtain: Box<dyn Obtain>,
        from: Option<Arc<Self>>,
        limits: Arc<ServiceLimits>,
    ) -> Self {
        Self::start(Shared::new(source, obtain, from, limits))
    }

    /// The same for a source that replaces another one of the same role: the old session is used
    /// until there is a new one, and the back-off continues.
    pub(super) fn in_place_of(
        old: &Self,
        source: Arc<SessionSource>,
        obtain: Box<dyn Obtain>,
        from: Option<Arc<Self>>,
        limits: Arc<ServiceLimits>,
    ) -> Self {
        let mut shared = Shared::new(source, obtain, from, limits);
        // Under the lock, so that the session and the state are of the same request.
        let state = old.shared.state.lock();
        shared.session = ArcSwapOption::new(old.shared.session.load_full());
        shared.state = Mutex::new(state.of_changed_source());
        drop(state);
        Self::start(shared)
    }

    fn start(shared: Shared) -> Self {
        let shared = Arc::new(shared);
        let task = tokio::spawn(refresh::run(shared.clone()));
        Self {
            shared,
            _task: AbortOnDropHandle::new(task),
        }
    }

    /// The source.
    pub(crate) fn source(&self) -> &SessionSource {
        &self.shared.source
    }

    /// Sets the accounts that log lines name.
    pub(super) fn set_accounts(&self, accounts: AccountNames) {
        self.shared.accounts.store(Arc::new(accounts));
    }

    /// The credentials to sign with now. `None` before the first session and after the end of one
    /// that could not be refreshed.
    pub(crate) fn current(&self) -> Option<Arc<Credentials>> {
        self.shared.current()
    }

    /// Waits until there is a valid session, at most until `give_up`. Returns why there is none
    /// then: the last failure, or `None` if the source has not answered yet.
    pub(crate) async fn ready(&self, give_up: Instant) -> Result<(), Option<FetchError>> {
        if self.shared.is_usable() {
            return Ok(());
        }
        let _waiting = self.shared.wait();
        timeout_at(give_up, self.shared.until(Shared::is_usable))
            .await
            .map_err(|_| self.shared.failure().or_else(|| self.shared.refusal()))
    }

    /// CAMS has refused this session again. Calls wait for another one, which is
    /// requested if the last request for a refused session is 10 s ago.
    pub(crate) fn refused(&self, session: &Credentials) {
        self.shared.refuse(session);
        self.shared.wake.notify_one();
    }

    /// Obtains another session, because CAMS or STS has refused this one, which is not used for
    /// a while. All refused calls share one request. Waits until there is another session,
    /// at most until `give_up`, and returns whether a repetition makes sense.
    ///
    /// A refusal less than 10 s after the last such request causes no request: sessions are not what
    /// is wrong, or the new one is not known everywhere yet. Then the same session is tried again
    /// after its pause.
    pub(crate) async fn replace(&self, refused: &Credentials, give_up: Instant) -> bool {
        let shared = &self.shared;
        let awaits_other_than = shared.refuse(refused);
        let _waiting = shared.wait();
        let replaced = shared.until(|shared| {
            shared.is_usable() && awaits_other_than.as_ref().is_none_or(|old| !shared.is(old))
        });
        timeout_at(give_up, replaced).await.is_ok()
    }

    /// What operators see.
    pub(crate) fn view(&self) -> KeeperView {
        let session = self.shared.session.load();
        let state = self.shared.state.lock();
        KeeperView {
            is_valid: self.shared.is_valid(),
            ends_at: session.as_ref().map(|session| session.ends_at()),
            obtained_at: session.as_ref().map(|session| session.obtained_at),
            failure: state.failure().cloned(),
            succeeded: state.succeeded,
            failed: state.failed,
        }
    }
}

// === impl Shared ===

impl Shared {
    fn new(
        source: Arc<SessionSource>,
        obtain: Box<dyn Obtain>,
        from: Option<Arc<Keeper>>,
        limits: Arc<ServiceLimits>,
    ) -> Self {
        Self {
            source,
            obtain,
            from,
            limits,
            accounts: ArcSwap::default(),
            session: ArcSwapOption::empty(),
            state: Mutex::default(),
            waiting: AtomicUsize::new(0),
            wake: Notify::new(),
            changed: Notify::new(),
        }
    }

    fn current(&self) -> Option<Arc<Credentials>> {
        let session = self.session.load();
        let session = session.as_ref()?;
        session
            .is_usable(Instant::now(), self.obtain.clock())
            .then(|| session.credentials.clone())
    }

    fn is_usable(&self) -> bool {
        let session = self.session.load();
        session
            .as_ref()
            .is_some_and(|session| session.is_usable(Instant::now(), self.obtain.clock()))
    }

    /// Whether this is the session in force.
    fn is(&self, session: &Arc<Session>) -> bool {
        let now = self.session.load();
        now.as_ref().is_some_and(|now| Arc::ptr_eq(now, session))
    }

    fn is_valid(&self) -> bool {
        let session = self.session.load();
        session
            .as_ref()
            .is_some_and(|session| session.is_valid(Instant::now(), self.obtain.clock()))
    }

    /// Whether there is another valid session.
    fn has_other_than(&self, refused: &Credentials) -> bool {
        self.current()
            .is_some_and(|current| !current.is_same_session(refused))
    }

    /// The last failure since the last success.
    fn failure(&self) -> Option<FetchError> {
        let state = self.state.lock();
        state.failure().map(|(_, error)| error.clone())
    }

    /// Why there is no session if the source has not failed.
    fn refusal(&self) -> Option<FetchError> {
        let reason = "the session was refused before its end, and there is no other one yet";
        self.is_valid()
            .then(|| self.error(FailureKind::OldToken, reason))
    }

    /// Records that this session was refused. Returns the session if another one was
    /// requested in its place.
    fn refuse(&self, refused: &Credentials) -> Option<Arc<Session>> {
        // Under the lock, so that a session that arrives now is not missed.
        let mut state = self.state.lock();
        let session = self.session.load_full()?;
        let now = Instant::now();
        let is_in_force = session.is_valid(now, self.obtain.clock())
            && session.credentials.is_same_session(refused);
        if !is_in_force {
            return None;
        }
        let is_again = session.refused_until().is_some_and(|until| until <= now);
        if session.refuse(now) {
            state.reported.refused(self);
        }
        match state.demand(now) {
            Demand::Pending => Some(session),
            // By now it would be known everywhere: only another one helps.
            Demand::TooSoon if is_again => {
                session.refuse_until(state.demand_later(now) + REFUSAL_PAUSE);
                Some(session)
            }
            Demand::TooSoon => None,
        }
    }

    /// Counts as one that waits. The task looks again whether a request is due: after this host has
    /// slept it does not know yet that the session has ended.
    fn wait(&self) -> Waiting<'_> {
        self.waiting.fetch_add(1, Ordering::Relaxed);
        self.wake.notify_one();
        Waiting(self)
    }

    /// Waits until the condition holds, which only the end of a request and the end of a refused
    /// session's pause can change.
    async fn until(&self, holds: impl Fn(&Self) -> bool) {
        loop {
            // Before the condition: a notification between the two is not lost.
            let changed = self.changed.notified();
            if holds(self) {
                return;
            }
            let session = self.session.load_full();
            let pause = session
                .and_then(|session| session.refused_until())
                .filter(|until| *until > Instant::now());
            match pause {
                None => changed.await,
                Some(until) => drop(timeout_at(until, changed).await),
            }
        }
    }

    /// Completes when something waits. For the task only, which alone waits for `wake`.
    async fn is_awaited(&self) {
        while self.waiting.load(Ordering::Relaxed) == 0 {
            self.wake.notified().await;
        }
    }
}

// === impl Waiting ===

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.waiting.fetch_sub(1, Ordering::Relaxed);
    }
}

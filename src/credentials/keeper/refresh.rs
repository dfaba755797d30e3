//! The task of a keeper: waits until the source is to be asked, asks it, and publishes the result.

use std::future::pending;
use std::panic::AssertUnwindSafe;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt;
use tokio::time::{Instant, sleep, sleep_until, timeout};

use super::super::error::{FailureKind, FetchError};
use super::super::fetch::{self, TIMEOUT};
use super::super::session::{Obtained, Session};
use super::super::{http, oidc_token};
use super::Shared;
use super::state::Sent;
use crate::config::{Credentials, SessionSource};

/// How often the task looks at this host's clock, which continues while the host sleeps and the
/// monotonic clock does not. The shortest window of STS's sessions is as long.
const LOOK_AT_CLOCK: Duration = Duration::from_secs(300);

/// How often the stamp of a refused token's file is read.
const LOOK_AT_FILE: Duration = Duration::from_secs(1);

/// Refreshes the session until the keeper is dropped.
pub(super) async fn run(shared: Arc<Shared>) {
    loop {
        let step = AssertUnwindSafe(shared.step()).catch_unwind();
        let ended = tokio::select! {
            ended = step => ended,
            () = shared.report_ends() => continue,
        };
        // A panic costs one request. It is logged where it is raised.
        if ended.is_err() {
            shared.publish(Err(
                shared.error(FailureKind::Internal, "the request panicked")
            ));
        }
    }
}

// === impl Shared ===

impl Shared {
    /// Waits until the source is to be asked, and asks it.
    async fn step(&self) {
        self.until_due().await;
        let mut outcome = self.request().await;
        if let Err(error) = &outcome
            && error.kind == FailureKind::OldToken
            && self.replace_from().await
        {
            outcome = self.request().await;
        }
        self.publish(outcome);
    }

    async fn until_due(&self) {
        // One for the whole wait: a look at a file system that does not respond is not repeated.
        let mut changed = pin!(self.until_input_changed().fuse());
        loop {
            let now = Instant::now();
            let due = {
                let session = self.session.load();
                let session = session.as_deref();
                self.state.lock().due(session, now, self.obtain.clock())
            };
            if due <= now {
                return;
            }
            tokio::select! {
                () = sleep_until(due.min(now + LOOK_AT_CLOCK)) => {}
                () = self.wake.notified() => {}
                () = &mut changed => self.state.lock().input_changed(),
            }
        }
    }

    /// Completes when what the last request sent has changed, if that is why it failed.
    async fn until_input_changed(&self) {
        let (failure, sent) = {
            let state = self.state.lock();
            let failure = state.failure().map(|(_, error)| error.kind);
            (failure, state.sent.clone())
        };
        match (&*self.source, failure) {
            // Any refusal may be about the token.
            (
                SessionSource::Oidc(_),
                Some(FailureKind::OldToken | FailureKind::Refused | FailureKind::TokenFile),
            ) => {
                self.until_file_changed(&sent).await;
            }
            (_, Some(FailureKind::OldToken)) => self.until_from_changed(&sent).await,
            _ => pending().await,
        }
    }

    async fn until_file_changed(&self, sent: &Sent) {
        loop {
            sleep(LOOK_AT_FILE).await;
            if self.obtain.stamp().await != sent.stamp {
                return;
            }
        }
    }

    async fn until_from_changed(&self, sent: &Sent) {
        let (Some(from), Some(session)) = (&self.from, &sent.session) else {
            return pending().await;
        };
        let changed = from.shared.until(|from| from.has_other_than(session));
        changed.await;
    }

    /// Obtains another session to assume the role with, if it is a session that STS has refused.
    async fn replace_from(&self) -> bool {
        let refused = self.state.lock().sent.session.clone();
        match (&self.from, refused) {
            (Some(from), Some(refused)) => {
                let give_up = Instant::now() + 2 * TIMEOUT;
                from.replace(&refused, give_up).await
            }
            _ => false,
        }
    }

    /// Sends one request.
    async fn request(&self) -> Result<Obtained, FetchError> {
        let (permit, assuming) = loop {
            self.until_from_is_valid().await;
            let asked = self.state.lock().asked();
            let pacing = &self.limits.pacing;
            let permit = pacing.permit(asked, self.is_awaited()).await;
            match &self.from {
                None => break (permit, None),
                // It may have ended while the permit was waited for.
                Some(from) => match from.current() {
                    Some(assuming) => break (permit, Some(assuming)),
                    None => continue,
                },
            }
        };
        self.state.lock().begin(Instant::now());
        let outcome =
            fetch::limited(&self.source, |deadline| self.obtain_by(assuming, deadline)).await;
        outcome.inspect_err(|error| permit.failed(error))
    }

    /// `session` is the one that assumes the role, if it is a session.
    async fn obtain_by(
        &self,
        session: Option<Arc<Credentials>>,
        deadline: Instant,
    ) -> Result<Obtained, FetchError> {
        // Before the file is read: a change during the request is a change.
        let stamp = timeout(oidc_token::WITHIN, self.obtain.stamp()).await;
        let responds = stamp.is_ok();
        self.state.lock().sent = Sent {
            stamp: stamp.unwrap_or_default(),
            session: session.clone(),
        };
        if !responds {
            return Err(oidc_token::unresponsive());
        }
        let assuming = session.as_deref().or(self.source.loaded_from());
        let obtained = self.obtain.obtain(assuming, deadline).await?;
        if obtained.lifetime.is_zero() {
            return Err(self.error(FailureKind::BadAnswer, "the session has ended"));
        }
        Ok(obtained)
    }

    /// Waits for the session that assumes the role. Without a limit: nothing is sent meanwhile.
    async fn until_from_is_valid(&self) {
        let Some(from) = &self.from else { return };
        // A call that waits for this session waits for that one, too.
        let awaited = async {
            self.is_awaited().await;
            let _waiting = from.shared.wait();
            pending::<()>().await;
        };
        tokio::select! {
            biased;
            () = self.follow(&from.shared) => {}
            () = awaited => {}
        }
    }

    /// Waits for a valid session of `from`; passes its failures on.
    async fn follow(&self, from: &Self) {
        // It may have ended unnoticed while this host slept.
        from.wake.notify_one();
        loop {
            let changed = from.changed.notified();
            if from.is_usable() {
                return;
            }
            if let Some(failure) = from.failure() {
                let error = FetchError::of_broken_chain(&from.source, failure);
                let mut state = self.state.lock();
                state.reported.failure(self, &error, self.left());
                state.record(error, Instant::now());
                drop(state);
                self.changed.notify_waiters();
            }
            changed.await;
        }
    }

    /// Makes the result of a request the state of the keeper.
    fn publish(&self, outcome: Result<Obtained, FetchError>) {
        let now = Instant::now();
        let mut state = self.state.lock();
        match outcome {
            Ok(obtained) => {
                let session = Session::new(obtained, now, self.obtain.clock());
                state.succeed(&session, fastrand::f64());
                state.reported.success(self, session.lifetime());
                self.session.store(Some(Arc::new(session)));
            }
            Err(error) => {
                state.reported.failure(self, &error, self.left());
                state.fail(error, now, fastrand::f64());
            }
        }
        drop(state);
        self.changed.notify_waiters();
    }

    /// Logs the end of a session that could not be refreshed. Runs until it is dropped.
    async fn report_ends(&self) {
        loop {
            let mut changed = pin!(self.changed.notified());
            let ends = self.session.load().as_ref().map(|session| session.ends());
            if let Some(ends) = ends {
                tokio::select! {
                    () = sleep_until(ends) => self.report_end(),
                    () = &mut changed => continue,
                }
            }
            changed.await;
        }
    }

    fn report_end(&self) {
        let mut state = self.state.lock();
        let failure = state.failure().map(|(_, error)| error.clone());
        if let Some(error) = failure
            && !state.reported.is_ended()
            && !self.is_valid()
        {
            state.reported.ended(self, &error);
        }
    }

    /// The rest of the session, if it is valid.
    fn left(&self) -> Option<Duration> {
        let session = self.session.load();
        let session = session.as_ref()?;
        self.is_valid().then(|| session.ends() - Instant::now())
    }

    /// A failure that no service has caused.
    pub(super) fn error(&self, kind: FailureKind, reason: &str) -> FetchError {
        FetchError::new(kind, &http::place(&self.source), reason)
    }
}

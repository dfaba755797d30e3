//! When the source of a keeper is asked, and what its requests have returned. Takes the time as an
//! argument; has no task.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use tokio::time::Instant;

use super::super::error::{FailureKind, FetchError};
use super::super::pacing::Asked;
use super::super::schedule::{self, MIN_INTERVAL};
use super::super::session::Session;
use super::report::Reported;
use crate::config::{Credentials, Stamp};

/// The least time between two requests that refused calls demand. A second session that is refused
/// too shows that sessions are not what is wrong.
const FORCED_INTERVAL: Duration = Duration::from_secs(10);

/// The requests of one source.
#[derive(Default)]
pub(super) struct State {
    /// The begin of the last request.
    begun: Option<Instant>,
    is_under_way: bool,
    /// Failures since the last success.
    failures_in_a_row: u32,
    /// After a failure: when the source is asked again.
    retry_at: Option<Instant>,
    /// After a success: when the session is refreshed.
    refresh_at: Option<Instant>,
    /// Whether refused calls wait for a request that has not begun.
    is_forced: bool,
    forced_at: Option<Instant>,
    /// A forced request does not begin before this.
    not_before: Option<Instant>,
    /// Whether what the service has refused has been replaced since the last request.
    is_changed: bool,
    /// What the last request was made with.
    pub(super) sent: Sent,
    failure: Option<Box<(Instant, FetchError)>>,
    pub(super) succeeded: u64,
    /// By kind, in the order of [`FailureKind::ALL`].
    pub(super) failed: [u64; FailureKind::ALL.len()],
    pub(super) reported: Reported,
}

/// What a request was made with. When it changes, a refused request is repeated.
#[derive(Clone, Default)]
pub(super) struct Sent {
    /// The stamp of the token's file.
    pub(super) stamp: Option<Stamp>,
    /// The session that assumed the role, if it is one.
    pub(super) session: Option<Arc<Credentials>>,
}

/// The answer to a demand for another session.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Demand {
    /// A request will end, which may be under way already.
    Pending,
    /// The last forced request was less than [`FORCED_INTERVAL`] ago.
    TooSoon,
}

// === impl State ===

impl State {
    /// When the source is asked next. The past means now.
    pub(super) fn due(
        &self,
        session: Option<&Session>,
        now: Instant,
        clock: SystemTime,
    ) -> Instant {
        let earliest = self.begun.map_or(now, |begun| begun + MIN_INTERVAL);
        if self.is_changed {
            return earliest;
        }
        if self.is_forced {
            return self.not_before.map_or(earliest, |at| at.max(earliest));
        }
        if let Some(retry_at) = self.retry_at {
            return retry_at.max(earliest);
        }
        let valid = session.filter(|session| session.is_valid(now, clock));
        match (valid, self.refresh_at) {
            (Some(session), Some(at)) => {
                schedule::by_both_clocks(at, session, now, clock).max(earliest)
            }
            _ => earliest,
        }
    }

    /// The state of the source that replaces this one after a reload. It is asked at once, unless
    /// this one waits after a failure that the change of the source does not end.
    pub(super) fn of_changed_source(&self) -> Self {
        let failure = self.failure.as_ref().map(|failure| failure.1.kind);
        let may_be_mended = failure.is_some_and(FailureKind::is_permanent);
        Self {
            begun: self.begun,
            failures_in_a_row: self.failures_in_a_row,
            retry_at: self.retry_at.filter(|_| !may_be_mended),
            forced_at: self.forced_at,
            sent: self.sent.clone(),
            failure: self.failure.clone(),
            succeeded: self.succeeded,
            failed: self.failed,
            reported: self.reported,
            ..Self::default()
        }
    }

    /// A request begins.
    pub(super) fn begin(&mut self, now: Instant) {
        self.begun = Some(now);
        self.is_under_way = true;
        self.is_forced = false;
        self.not_before = None;
        self.is_changed = false;
    }

    /// The request has returned a session.
    pub(super) fn succeed(&mut self, session: &Session, random: f64) {
        self.end();
        self.failures_in_a_row = 0;
        self.retry_at = None;
        self.refresh_at = Some(schedule::refresh_at(session, random));
        self.failure = None;
        self.succeeded += 1;
    }

    /// The request has failed.
    pub(super) fn fail(&mut self, error: FetchError, now: Instant, random: f64) {
        self.end();
        self.failures_in_a_row = self.failures_in_a_row.saturating_add(1);
        let begun = self.begun.unwrap_or(now);
        let in_a_row = self.failures_in_a_row;
        self.retry_at = Some(schedule::retry_at(begun, now, error.kind, in_a_row, random));
        self.record(error, now);
    }

    /// Counts a failure and keeps it for operators. Changes no time: without a request there is
    /// nothing to back off from.
    pub(super) fn record(&mut self, error: FetchError, now: Instant) {
        self.failed[error.kind as usize] += 1;
        self.failure = Some(Box::new((now, error)));
    }

    /// What the service has refused has been replaced.
    pub(super) fn input_changed(&mut self) {
        self.is_changed = true;
    }

    /// Demands a request because the session was refused.
    pub(super) fn demand(&mut self, now: Instant) -> Demand {
        if self.is_forced || self.is_under_way {
            return Demand::Pending;
        }
        if self
            .forced_at
            .is_some_and(|forced_at| now < forced_at + FORCED_INTERVAL)
        {
            return Demand::TooSoon;
        }
        self.forced_at = Some(now);
        self.is_forced = true;
        Demand::Pending
    }

    /// Demands a request as soon as [`FORCED_INTERVAL`] has passed since the last forced one. Returns
    /// when.
    pub(super) fn demand_later(&mut self, now: Instant) -> Instant {
        let at = self.forced_at.map_or(now, |at| at + FORCED_INTERVAL);
        self.forced_at = Some(at);
        self.not_before = Some(at);
        self.is_forced = true;
        at
    }

    /// How the next request is to be queued.
    pub(super) fn asked(&self) -> Asked {
        match self.failures_in_a_row {
            0 if self.is_forced => Asked::Forced,
            0 => Asked::Healthy,
            _ => Asked::Failed,
        }
    }

    /// The last failure since the last success, and its time.
    pub(super) fn failure(&self) -> Option<&(Instant, FetchError)> {
        self.failure.as_deref()
    }

    fn end(&mut self) {
        self.is_under_way = false;
    }
}

//! What a keeper logs: the first session, each kind of failure once until the source works again,
//! and the recovery, not each try. All sources of a service share a bound: `left_out` is the number
//! of lines that exceeded it.

use std::fmt;
use std::time::Duration;

use tokio::time::Instant;

use super::super::error::{FailureKind, FetchError};
use super::super::http;
use super::Shared;
use crate::config::SessionSource;
use crate::primitives::id::AccountId;

/// What has been logged.
#[derive(Clone, Copy, Default)]
pub(super) struct Reported {
    /// A bit for each kind of failure since the last success.
    kinds: u16,
    /// Whether it was logged that there is no valid session.
    is_ended: bool,
    /// Whether there was a session before.
    has_succeeded: bool,
}

const _: () = assert!(FailureKind::ALL.len() <= u16::BITS as usize);

/// The accounts whose calls are signed with a session, or with one that it assumes a role for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(in crate::credentials) struct AccountNames {
    /// At most [`MAX_NAMED`].
    named: Vec<AccountId>,
    count: usize,
}

/// The maximum of accounts that a log line names.
const MAX_NAMED: usize = 3;

// === impl AccountNames ===

impl AccountNames {
    pub(in crate::credentials) fn add(&mut self, account: &AccountId) {
        if self.named.len() < MAX_NAMED {
            self.named.push(account.clone());
        }
        self.count += 1;
    }
}

impl fmt::Display for AccountNames {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, account) in self.named.iter().enumerate() {
            let separator = if index == 0 { "" } else { ", " };
            write!(f, "{separator}{account}")?;
        }
        match self.count - self.named.len() {
            0 => Ok(()),
            more => write!(f, " and {more} more"),
        }
    }
}

/// The fields of a source that all lines have: its kind, the role (`None` if the configuration does
/// not say it), the service and the accounts.
fn source_fields(shared: &Shared) -> (&'static str, Option<&str>, String, String) {
    let source: &SessionSource = &shared.source;
    let role = Some(source.role()).filter(|role| !role.is_empty());
    let accounts = shared.accounts.load().to_string();
    (source.name(), role, http::place(source), accounts)
}

// === impl Reported ===

impl Reported {
    /// Logs a failure. `left` is the rest of the valid session, if there is one.
    pub(super) fn failure(&mut self, shared: &Shared, error: &FetchError, left: Option<Duration>) {
        let (source, kind) = (shared.source.name(), error.kind.label());
        tracing::debug!(source, kind, %error, "no session obtained");
        let bit = 1 << error.kind as u16;
        let is_new = self.kinds & bit == 0;
        self.kinds |= bit;
        let Some(left) = left else {
            if is_new || !self.is_ended {
                self.ended(shared, error);
            }
            return;
        };
        if is_new && let Some(left_out) = shared.limits.failure_lines.line(Instant::now()) {
            let (source, role, place, accounts) = source_fields(shared);
            tracing::warn!(
                accounts, source, role, place, kind = error.kind.label(), %error,
                ends_in_seconds = left.as_secs(), left_out,
                "a session cannot be refreshed; it is used until its end"
            );
        }
    }

    /// Logs that there is no valid session, and why.
    pub(super) fn ended(&mut self, shared: &Shared, error: &FetchError) {
        self.is_ended = true;
        if let Some(left_out) = shared.limits.failure_lines.line(Instant::now()) {
            let (source, role, place, accounts) = source_fields(shared);
            tracing::error!(
                accounts, source, role, place, kind = error.kind.label(), %error, left_out,
                "no valid session: calls cannot be signed"
            );
        }
    }

    /// Logs that the session was refused before its end.
    pub(super) fn refused(&self, shared: &Shared) {
        if let Some(left_out) = shared.limits.failure_lines.line(Instant::now()) {
            let (source, role, place, accounts) = source_fields(shared);
            tracing::warn!(
                accounts,
                source,
                role,
                place,
                left_out,
                "a session was refused before its end; another one is requested"
            );
        }
    }

    /// Whether it was logged that there is no valid session.
    pub(super) fn is_ended(self) -> bool {
        self.is_ended
    }

    /// Logs a success: the first one, and each one after a failure.
    pub(super) fn success(&mut self, shared: &Shared, lifetime: Duration) {
        let before = std::mem::take(self);
        self.has_succeeded = true;
        let lifetime_seconds = lifetime.as_secs();
        let source = shared.source.name();
        tracing::debug!(source, lifetime_seconds, "session obtained");
        if before.has_succeeded && before.kinds == 0 {
            return;
        }
        let Some(left_out) = shared.limits.success_lines.line(Instant::now()) else {
            return;
        };
        let (source, role, place, accounts) = source_fields(shared);
        if before.has_succeeded {
            tracing::info!(
                accounts,
                source,
                role,
                place,
                lifetime_seconds,
                left_out,
                "a session is obtained again"
            );
        } else {
            tracing::info!(
                accounts,
                source,
                role,
                place,
                lifetime_seconds,
                left_out,
                "a session is obtained"
            );
        }
    }
}

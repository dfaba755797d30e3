//! What a keeper logs: each kind of failure once until the source works again, not each try.

use std::time::Duration;

use super::super::error::{Failure, FetchError};
use super::super::obtain;
use crate::config::SessionSource;

/// What has been logged since the last success.
#[derive(Clone, Copy, Default)]
pub(super) struct Reported {
    /// A bit for each kind.
    kinds: u8,
    /// Whether it was logged that there is no valid session.
    is_ended: bool,
}

const _: () = assert!(Failure::ALL.len() <= u8::BITS as usize);

// === impl Reported ===

impl Reported {
    /// Logs a failure. `left` is the rest of the valid session, if there is one.
    pub(super) fn failure(
        &mut self,
        source: &SessionSource,
        error: &FetchError,
        left: Option<Duration>,
    ) {
        let (name, role, kind) = (source.name(), obtain::role(source), error.kind.label());
        tracing::debug!(source = name, role, kind, %error, "no session obtained");
        let bit = 1 << error.kind as u8;
        let is_new = self.kinds & bit == 0;
        self.kinds |= bit;
        match left {
            None if is_new || !self.is_ended => self.ended(source, error),
            Some(left) if is_new => tracing::warn!(
                source = name, role, kind, %error, ends_in_seconds = left.as_secs(),
                "a session cannot be refreshed; it is used until its end"
            ),
            _ => {}
        }
    }

    /// Logs once that there is no valid session, and why.
    pub(super) fn ended(&mut self, source: &SessionSource, error: &FetchError) {
        self.is_ended = true;
        tracing::error!(
            source = source.name(), role = obtain::role(source), kind = error.kind.label(), %error,
            "no valid session: calls cannot be signed"
        );
    }

    /// Whether it was logged that there is no valid session.
    pub(super) fn is_ended(self) -> bool {
        self.is_ended
    }

    /// Logs a success.
    pub(super) fn success(&mut self, source: &SessionSource, lifetime: Duration) {
        let was_failing = std::mem::take(self).kinds != 0;
        let (name, role) = (source.name(), obtain::role(source));
        let (place, lifetime_seconds) = (obtain::place(source), lifetime.as_secs());
        if was_failing {
            tracing::info!(
                source = name,
                role,
                place,
                lifetime_seconds,
                "a session is obtained again"
            );
        } else {
            tracing::debug!(
                source = name,
                role,
                place,
                lifetime_seconds,
                "session obtained"
            );
        }
    }
}

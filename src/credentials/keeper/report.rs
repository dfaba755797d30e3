//! What a keeper logs: each kind of failure once until the source works again, not each try. All
//! sources of a service share a bound: `left_out` is the number of lines that exceeded it.

use std::time::Duration;

use tokio::time::Instant;

use super::super::error::{Failure, FetchError};
use super::super::http;

use super::Shared;

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
    pub(super) fn failure(&mut self, shared: &Shared, error: &FetchError, left: Option<Duration>) {
        let source = &*shared.source;
        let (name, role, kind) = (source.name(), source.role(), error.kind.label());
        tracing::debug!(source = name, role, kind, %error, "no session obtained");
        let bit = 1 << error.kind as u8;
        let is_new = self.kinds & bit == 0;
        self.kinds |= bit;
        let Some(left) = left else {
            if is_new || !self.is_ended {
                self.ended(shared, error);
            }
            return;
        };
        if is_new && let Some(left_out) = shared.flights.log_line(Instant::now()) {
            tracing::warn!(
                source = name, role, kind, %error, ends_in_seconds = left.as_secs(), left_out,
                "a session cannot be refreshed; it is used until its end"
            );
        }
    }

    /// Logs that there is no valid session, and why.
    pub(super) fn ended(&mut self, shared: &Shared, error: &FetchError) {
        self.is_ended = true;
        let source = &*shared.source;
        let (name, role, kind) = (source.name(), source.role(), error.kind.label());
        if let Some(left_out) = shared.flights.log_line(Instant::now()) {
            tracing::error!(
                source = name, role, kind, %error, left_out,
                "no valid session: calls cannot be signed"
            );
        }
    }

    /// Logs that the session was refused before its end.
    pub(super) fn refused(&self, shared: &Shared) {
        let source = &*shared.source;
        let (name, role, place) = (source.name(), source.role(), http::place(source));
        if let Some(left_out) = shared.flights.log_line(Instant::now()) {
            tracing::warn!(
                source = name,
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

    /// Logs a success.
    pub(super) fn success(&mut self, shared: &Shared, lifetime: Duration) {
        let was_failing = std::mem::take(self).kinds != 0;
        let source = &*shared.source;
        let (name, role) = (source.name(), source.role());
        let (place, lifetime_seconds) = (http::place(source), lifetime.as_secs());
        tracing::debug!(
            source = name,
            role,
            place,
            lifetime_seconds,
            "session obtained"
        );
        if was_failing && let Some(left_out) = shared.flights.log_line(Instant::now()) {
            tracing::info!(
                source = name,
                role,
                place,
                lifetime_seconds,
                left_out,
                "a session is obtained again"
            );
        }
    }
}

//! One session: credentials, and until when they may be used.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use tokio::time::Instant;

use crate::config::Credentials;

/// What a source returned.
pub(crate) struct Obtained {
    /// The credentials. `expires` is the service's own time.
    pub(crate) credentials: Credentials,
    /// How long they are valid from now on, by the service's clock if its answer has a date.
    pub(crate) lifetime: Duration,
}

/// Credentials with a certain end. It is replaced as a whole.
pub(crate) struct Session {
    /// The credentials to sign with.
    pub(crate) credentials: Arc<Credentials>,
    /// When it was obtained.
    pub(crate) obtained: Instant,
    /// Its end, of the monotonic clock.
    ends: Instant,
    /// Its end, of this host's clock, which continues while the host sleeps.
    ends_at: SystemTime,
}

// === impl Session ===

impl Session {
    /// `now` and `clock` are the time at which it was obtained.
    pub(crate) fn new(obtained: Obtained, now: Instant, clock: SystemTime) -> Self {
        let Obtained {
            credentials,
            lifetime,
        } = obtained;
        Self {
            credentials: Arc::new(credentials),
            obtained: now,
            ends: now + lifetime,
            ends_at: clock + lifetime,
        }
    }

    /// Whether it may still be used.
    pub(crate) fn is_valid(&self, now: Instant, clock: SystemTime) -> bool {
        now < self.ends && clock < self.ends_at
    }

    /// How long it was valid when it was obtained.
    pub(crate) fn lifetime(&self) -> Duration {
        self.ends - self.obtained
    }

    /// Its end, of the monotonic clock.
    pub(crate) fn ends(&self) -> Instant {
        self.ends
    }

    /// Its end, of this host's clock.
    pub(crate) fn ends_at(&self) -> SystemTime {
        self.ends_at
    }
}

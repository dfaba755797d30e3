//! One session: credentials, and until when they may be used.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use parking_lot::Mutex;
use tokio::time::Instant;

use crate::config::Credentials;
use crate::primitives::secret::never_shown;

/// The longest lifetime that is believed. STS's is 12 hours; a URI may return any, and times far
/// away cannot be added to a clock.
const MAX_LIFETIME: Duration = Duration::from_secs(30 * 24 * 3600);

/// How long a refused session is not used. Another one usually takes its place at once. If there is
/// none, it is tried again after this time: a new session may not be known everywhere yet.
pub(crate) const REFUSAL_PAUSE: Duration = Duration::from_secs(5);

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
    /// When it was obtained, by this host's clock.
    pub(crate) obtained_at: SystemTime,
    /// Its end, of the monotonic clock.
    ends: Instant,
    /// Its end, of this host's clock, which continues while the host sleeps.
    ends_at: SystemTime,
    /// CAMS has refused it; it is not used until then.
    refused_until: Mutex<Option<Instant>>,
}

never_shown!(Obtained, Session);

// === impl Session ===

impl Session {
    /// `now` and `clock` are the time at which it was obtained.
    pub(crate) fn new(obtained: Obtained, now: Instant, clock: SystemTime) -> Self {
        let lifetime = obtained.lifetime.min(MAX_LIFETIME);
        Self {
            credentials: Arc::new(obtained.credentials),
            obtained: now,
            obtained_at: clock,
            ends: now + lifetime,
            ends_at: clock + lifetime,
            refused_until: Mutex::new(None),
        }
    }

    /// Whether it has not ended.
    pub(crate) fn is_valid(&self, now: Instant, clock: SystemTime) -> bool {
        now < self.ends && clock < self.ends_at
    }

    /// Whether calls may be signed with it: it has not ended, and was not refused just now.
    pub(crate) fn is_usable(&self, now: Instant, clock: SystemTime) -> bool {
        self.is_valid(now, clock) && self.refused_until().is_none_or(|until| until <= now)
    }

    /// CAMS or STS has refused it. It is not used for [`REFUSAL_PAUSE`]. Returns whether this is the
    /// first refusal.
    pub(crate) fn refuse(&self, now: Instant) -> bool {
        let before = self.refused_until.lock().replace(now + REFUSAL_PAUSE);
        before.is_none()
    }

    /// It was refused again after its pause. It is not used until then.
    pub(crate) fn refuse_until(&self, until: Instant) {
        *self.refused_until.lock() = Some(until);
    }

    /// The end of the pause after a refusal.
    pub(crate) fn refused_until(&self) -> Option<Instant> {
        *self.refused_until.lock()
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

#[cfg(test)]
mod tests {
    use super::super::keeper::fake::obtained;
    use super::*;

    #[test]
    fn a_session_is_valid_until_either_clock_reaches_its_end() {
        let (now, clock) = (Instant::now(), SystemTime::UNIX_EPOCH);
        let session = Session::new(obtained("key", 600), now, clock);
        let valid = |seconds, clock_seconds| {
            let later = now + Duration::from_secs(seconds);
            session.is_valid(later, clock + Duration::from_secs(clock_seconds))
        };
        assert!(valid(0, 0) && valid(599, 599));
        assert!(!valid(600, 599) && !valid(599, 600) && !valid(600, 600));
        assert!(
            !valid(600, 0),
            "a clock that was set back extends no session"
        );
    }

    #[test]
    fn a_lifetime_without_bound_is_a_month() {
        let mut endless = obtained("key", 0);
        endless.lifetime = Duration::MAX;
        let session = Session::new(endless, Instant::now(), SystemTime::UNIX_EPOCH);
        assert_eq!(session.lifetime(), MAX_LIFETIME);
    }
}

//! Keeps the session of one source: refreshes it in the background, lets calls wait for it, and
//! never has more than one request of the source under way.

use std::sync::Arc;
use std::time::SystemTime;

use tokio::time::Instant;

use super::error::{Failure, FetchError};
use crate::config::{Credentials, SessionSource};
use crate::primitives::id::AccessKeyId;

/// The keeper of one source.
pub(crate) struct Keeper {
    source: SessionSource,
}

/// What a keeper shows to operators.
#[derive(Clone, Debug)]
pub(crate) struct KeeperView {
    /// The end of the session, if there is one.
    pub(crate) ends_at: Option<SystemTime>,
    /// When the session was obtained.
    pub(crate) obtained_at: Option<SystemTime>,
    /// The last failure since the last success, and its time.
    pub(crate) failure: Option<(Instant, FetchError)>,
    /// The number of sessions obtained.
    pub(crate) succeeded: u64,
    /// The number of failures by kind, in the order of [`Failure::ALL`].
    pub(crate) failed: [u64; Failure::ALL.len()],
}

// === impl Keeper ===

impl Keeper {
    /// The source.
    pub(crate) fn source(&self) -> &SessionSource {
        &self.source
    }

    /// The credentials to sign with now. `None` before the first session and after the end of one
    /// that could not be refreshed.
    pub(crate) fn current(&self) -> Option<Arc<Credentials>> {
        unimplemented!()
    }

    /// Waits until there is a valid session, at most until `give_up`. Returns why there is none
    /// then: the last failure, or `None` if the source has not answered yet.
    pub(crate) async fn ready(&self, give_up: Instant) -> Result<(), Option<FetchError>> {
        let _ = give_up;
        unimplemented!()
    }

    /// Obtains another session, because CAMS or STS has refused this one. Returns whether another
    /// one is there by `give_up`: at once if there is a newer one already; else after one request
    /// that all refused calls share. A refusal less than 10 s after the last such request causes no
    /// request.
    pub(crate) async fn replace(&self, refused: &AccessKeyId, give_up: Instant) -> bool {
        let _ = (refused, give_up);
        unimplemented!()
    }

    /// What operators see.
    pub(crate) fn view(&self) -> KeeperView {
        unimplemented!()
    }
}

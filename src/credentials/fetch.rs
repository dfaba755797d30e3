//! Obtains one session of a source.

use super::error::FetchError;
use super::session::Obtained;
use crate::config::{Credentials, SessionSource};
use crate::upstream::TlsRoots;

/// The connections' settings and what one source needs from one request to the next: the metadata
/// service's token, and the offset of STS's clock.
pub(crate) struct Fetcher {
    source: SessionSource,
}

// === impl Fetcher ===

impl Fetcher {
    /// Opens no connection.
    pub(crate) fn new(source: SessionSource, roots: Option<TlsRoots>) -> Self {
        let _ = roots;
        Self { source }
    }

    /// Obtains a session, within 10 s. `assuming` are the valid credentials that assume the role;
    /// only AssumeRole needs them.
    pub(crate) async fn fetch(
        &self,
        assuming: Option<&Credentials>,
    ) -> Result<Obtained, FetchError> {
        let _ = assuming;
        unimplemented!()
    }
}

//! Obtains one session of a source.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::{Instant, timeout_at};

use super::answer::Identity;
use super::error::{FailureKind, FetchError};
use super::http::{self, Roots};
use super::metadata::{Metadata, TokenCache};
use super::session::Obtained;
use super::sts::Sts;
use super::uri;
use crate::config::{Credentials, SessionSource, StsEndpoint};
use crate::upstream::clock::UpstreamClock;

/// Limit on everything of one fetch, with the waits for the file system.
pub(super) const TIMEOUT: Duration = Duration::from_secs(10);

/// The connections' settings and what one source needs from one request to the next: the metadata
/// service's token, and the offset of STS's clock.
pub(crate) struct Fetcher {
    source: Arc<SessionSource>,
    roots: Arc<Roots>,
    tokens: TokenCache,
    clock: UpstreamClock,
}

/// Asks STS who credentials belong to.
pub(crate) async fn caller_identity(
    endpoint: &StsEndpoint,
    roots: &Roots,
    credentials: &Credentials,
) -> Result<Identity, FetchError> {
    let sts = Sts {
        endpoint,
        roots,
        clock: &clock(&endpoint.to_string()),
        deadline: Instant::now() + TIMEOUT,
    };
    sts.caller_identity(credentials).await
}

/// Runs a fetch of the source and ends it at its deadline.
pub(super) async fn limited<F>(
    source: &SessionSource,
    fetch: impl FnOnce(Instant) -> F,
) -> Result<Obtained, FetchError>
where
    F: Future<Output = Result<Obtained, FetchError>>,
{
    let deadline = Instant::now() + TIMEOUT;
    timeout_at(deadline, fetch(deadline))
        .await
        .unwrap_or_else(|_elapsed| {
            let reason = format!("no complete answer within {} s", TIMEOUT.as_secs());
            let place = http::place(source);
            Err(FetchError::new(FailureKind::Unreachable, &place, reason))
        })
}

/// The clock of the service with this name.
fn clock(name: &str) -> UpstreamClock {
    UpstreamClock::new(name, true, Instant::now())
}

// === impl Fetcher ===

impl Fetcher {
    /// Opens no connection.
    pub(crate) fn new(source: Arc<SessionSource>, roots: Arc<Roots>) -> Self {
        let name = source
            .sts()
            .map_or_else(String::new, |sts| format!("https://{sts}"));
        Self {
            source,
            roots,
            tokens: TokenCache::default(),
            clock: clock(&name),
        }
    }

    /// The source.
    pub(super) fn source(&self) -> &SessionSource {
        &self.source
    }

    /// Obtains a session, within 10 s. `assuming` are the valid credentials that assume the role;
    /// only AssumeRole needs them.
    pub(crate) async fn fetch(
        &self,
        assuming: Option<&Credentials>,
    ) -> Result<Obtained, FetchError> {
        limited(&self.source, |deadline| self.fetch_by(assuming, deadline)).await
    }

    /// The same, by the deadline of [`limited`].
    pub(super) async fn fetch_by(
        &self,
        assuming: Option<&Credentials>,
        deadline: Instant,
    ) -> Result<Obtained, FetchError> {
        match &*self.source {
            SessionSource::Oidc(source) => {
                self.sts(&source.role.sts, deadline)
                    .assume_role_with_oidc(source)
                    .await
            }
            SessionSource::AssumeRole(source) => {
                let assuming = assuming.ok_or_else(|| {
                    let reason = "there are no valid credentials to assume the role with";
                    FetchError::new(FailureKind::NoSource, &http::place(&self.source), reason)
                })?;
                self.sts(&source.role.sts, deadline)
                    .assume_role(source, assuming)
                    .await
            }
            SessionSource::EcsRole(source) => {
                let metadata = Metadata {
                    source,
                    tokens: &self.tokens,
                    deadline,
                };
                metadata.fetch().await
            }
            SessionSource::Uri(source) => uri::fetch(source, &self.roots, deadline).await,
        }
    }

    fn sts<'a>(&'a self, endpoint: &'a StsEndpoint, deadline: Instant) -> Sts<'a> {
        Sts {
            endpoint,
            roots: &self.roots,
            clock: &self.clock,
            deadline,
        }
    }
}

#[cfg(test)]
mod tests;

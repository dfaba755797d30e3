//! What a keeper asks. Tests give it a source that follows a script.

use std::time::SystemTime;

use async_trait::async_trait;
use tokio::time::Instant;

use super::error::FetchError;
use super::fetch::Fetcher;
use super::oidc_token;
use super::session::Obtained;
use crate::config::{self, Credentials, SessionSource, Stamp};

/// A source that can be asked.
#[async_trait]
pub(super) trait Obtain: Send + Sync {
    /// Asks for a session, by the deadline. `assuming` are the credentials that assume the role, for
    /// AssumeRole.
    async fn obtain(
        &self,
        assuming: Option<&Credentials>,
        deadline: Instant,
    ) -> Result<Obtained, FetchError>;

    /// The stamp of the file that the source sends. `None`: the file is missing, or the source
    /// sends none. Waits as long as the file system does not respond.
    async fn stamp(&self) -> Option<Stamp>;

    /// This host's clock.
    fn clock(&self) -> SystemTime {
        SystemTime::now()
    }
}

#[async_trait]
impl Obtain for Fetcher {
    async fn obtain(
        &self,
        assuming: Option<&Credentials>,
        deadline: Instant,
    ) -> Result<Obtained, FetchError> {
        self.fetch_by(assuming, deadline).await
    }

    async fn stamp(&self) -> Option<Stamp> {
        let SessionSource::Oidc(oidc) = self.source() else {
            return None;
        };
        oidc_token::look(&oidc.token_file, config::stamp).await?
    }
}

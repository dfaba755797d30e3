//! What a keeper asks: its source, over connections that trust the roots in force.

use std::sync::Arc;
use std::time::SystemTime;

use arc_swap::ArcSwapOption;
use async_trait::async_trait;
use parking_lot::Mutex;

use super::error::FetchError;
use super::fetch::Fetcher;
use super::session::Obtained;
use crate::config::{self, Credentials, RoleSource, SessionSource, Stamp};
use crate::upstream::TlsRoots;

/// A source that can be asked. Tests use one that follows a script.
#[async_trait]
pub(super) trait Obtain: Send + Sync {
    /// Asks for a session. `assuming` are the credentials that assume the role, for AssumeRole.
    async fn obtain(&self, assuming: Option<&Credentials>) -> Result<Obtained, FetchError>;

    /// The stamp of the file that the source sends. `None`: the file is missing, or the source
    /// sends none.
    async fn stamp(&self) -> Option<Stamp>;

    /// This host's clock.
    fn clock(&self) -> SystemTime {
        SystemTime::now()
    }
}

/// The roots that all sources trust; `None` if no source uses TLS.
pub(super) type SharedRoots = Arc<ArcSwapOption<TlsRoots>>;

/// The source in production.
pub(super) struct Service {
    source: Arc<SessionSource>,
    roots: SharedRoots,
    /// Made at the first request, and again when other roots are in force.
    made: Mutex<Option<Made>>,
}

/// A fetcher, and the roots that it was made with.
struct Made {
    fetcher: Arc<Fetcher>,
    roots: Option<Arc<TlsRoots>>,
}

/// Whether the source is asked over TLS.
pub(super) fn uses_tls(source: &SessionSource) -> bool {
    match source {
        SessionSource::Oidc(_) | SessionSource::AssumeRole(_) => true,
        SessionSource::EcsRole(_) => false,
        SessionSource::Uri(uri) => uri.is_tls,
    }
}

/// The service as host and port. Never a path or a query.
pub(super) fn place(source: &SessionSource) -> String {
    match source {
        SessionSource::Oidc(oidc) => oidc.role.sts.to_string(),
        SessionSource::AssumeRole(assume) => assume.role.sts.to_string(),
        SessionSource::EcsRole(ecs) => ecs.address.to_string(),
        SessionSource::Uri(uri) => uri.to_string(),
    }
}

/// The role that the source is asked for; empty if the configuration does not say it.
pub(super) fn role(source: &SessionSource) -> &str {
    match source {
        SessionSource::Oidc(oidc) => &oidc.role.arn,
        SessionSource::AssumeRole(assume) => &assume.role.arn,
        SessionSource::EcsRole(ecs) => ecs.role.as_deref().unwrap_or_default(),
        SessionSource::Uri(_) => "",
    }
}

/// The credentials that assume the role, if they are read with the configuration.
pub(super) fn loaded_from(source: &SessionSource) -> Option<&Credentials> {
    match source {
        SessionSource::AssumeRole(assume) => match &*assume.from {
            RoleSource::Loaded(credentials, _) => Some(credentials),
            RoleSource::Session(_) => None,
        },
        _ => None,
    }
}

/// The source of the credentials that assume the role, if they are temporary.
pub(super) fn session_from(source: &SessionSource) -> Option<&SessionSource> {
    match source {
        SessionSource::AssumeRole(assume) => match &*assume.from {
            RoleSource::Session(from) => Some(from),
            RoleSource::Loaded(..) => None,
        },
        _ => None,
    }
}

// === impl Service ===

impl Service {
    pub(super) fn new(source: Arc<SessionSource>, roots: SharedRoots) -> Self {
        Self {
            source,
            roots,
            made: Mutex::new(None),
        }
    }

    /// The fetcher with the roots in force. One without TLS is never replaced: it keeps the
    /// metadata service's token.
    fn fetcher(&self) -> Arc<Fetcher> {
        let roots = uses_tls(&self.source)
            .then(|| self.roots.load_full())
            .flatten();
        let mut made = self.made.lock();
        if let Some(made) = &*made
            && made.roots.as_ref().map(Arc::as_ptr) == roots.as_ref().map(Arc::as_ptr)
        {
            return made.fetcher.clone();
        }
        let source = SessionSource::clone(&self.source);
        let fetcher = Arc::new(Fetcher::new(source, roots.as_deref().cloned()));
        *made = Some(Made {
            fetcher: fetcher.clone(),
            roots,
        });
        fetcher
    }
}

#[async_trait]
impl Obtain for Service {
    async fn obtain(&self, assuming: Option<&Credentials>) -> Result<Obtained, FetchError> {
        self.fetcher().fetch(assuming).await
    }

    async fn stamp(&self) -> Option<Stamp> {
        let SessionSource::Oidc(oidc) = &*self.source else {
            return None;
        };
        let path = oidc.token_file.clone();
        tokio::task::spawn_blocking(move || config::stamp(&path))
            .await
            .ok()?
    }
}

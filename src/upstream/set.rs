//! All upstreams of a configuration. A reload keeps those whose settings are the same; connections
//! of the others end with the calls that use them.

use std::net::SocketAddr;
use std::sync::Arc;

use super::{TlsRoots, Upstream, UpstreamError};
use crate::config::{Config, UpstreamIndex};

/// The upstreams by their index, at least one.
pub(crate) struct Upstreams {
    all: Vec<Arc<Upstream>>,
    /// Flowgate's own listeners, which are never dialled.
    own: Vec<SocketAddr>,
}

// === impl Upstreams ===

impl Upstreams {
    /// Sets up every upstream of the configuration; opens no connection. `roots` are those of the
    /// configuration.
    pub(crate) fn new(
        config: &Config,
        own: Vec<SocketAddr>,
        roots: Option<&TlsRoots>,
    ) -> Result<Self, UpstreamError> {
        Self::build(config, own, roots, &[])
    }

    /// The upstreams of the configuration that replaces this one. `roots` are trusted by all of
    /// their new connections.
    pub(crate) fn reloaded(
        &self,
        config: &Config,
        roots: Option<&TlsRoots>,
    ) -> Result<Self, UpstreamError> {
        Self::build(config, self.own.clone(), roots, &self.all)
    }

    fn build(
        config: &Config,
        own: Vec<SocketAddr>,
        roots: Option<&TlsRoots>,
        before: &[Arc<Upstream>],
    ) -> Result<Self, UpstreamError> {
        let mut all = Vec::new();
        for settings in config.upstreams() {
            let known = before.iter().find(|known| known.has_settings(settings));
            all.push(match known {
                Some(known) => known.clone(),
                None => Arc::new(Upstream::with_roots(settings, own.clone(), roots)?),
            });
        }
        Ok(Self { all, own })
    }

    /// Lets new connections of all upstreams trust these roots.
    pub(crate) fn set_tls_roots(&self, roots: &TlsRoots) {
        for upstream in &self.all {
            upstream.set_tls_roots(roots.clone());
        }
    }

    /// The upstream with this index of the same configuration.
    pub(crate) fn get(&self, index: UpstreamIndex) -> &Arc<Upstream> {
        &self.all[index.index()]
    }

    /// The upstream of `[upstream]`.
    pub(crate) fn default(&self) -> &Arc<Upstream> {
        self.get(UpstreamIndex::default())
    }

    /// All upstreams, in the order of their indices.
    pub(crate) fn all(&self) -> &[Arc<Upstream>] {
        &self.all
    }
}

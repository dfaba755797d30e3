//! The keepers of a configuration, one per source. A reload keeps those whose source is the same;
//! the others end with the calls that use them.

use std::sync::Arc;

use super::keeper::Keeper;
use crate::config::{Config, SessionSource};
use crate::upstream::TlsRoots;

/// The keepers by their source.
pub(crate) struct Keepers {}

// === impl Keepers ===

impl Keepers {
    /// Sets up a keeper for each source that a client's account uses, and for the sources that
    /// those need. Each begins to obtain its session. Must be called inside a tokio runtime.
    /// `roots` are those of the upstreams; they are loaded if a source needs them and there are
    /// none.
    pub(crate) fn new(config: &Config, roots: Option<&TlsRoots>) -> anyhow::Result<Self> {
        let _ = (config, roots);
        unimplemented!()
    }

    /// The keepers of the configuration that replaces this one.
    pub(crate) fn reloaded(
        &self,
        config: &Config,
        roots: Option<&TlsRoots>,
    ) -> anyhow::Result<Self> {
        let _ = (config, roots);
        unimplemented!()
    }

    /// The keeper of a source of the same configuration.
    pub(crate) fn get(&self, source: &SessionSource) -> Option<&Arc<Keeper>> {
        let _ = source;
        unimplemented!()
    }

    /// Lets new connections of all sources trust these roots.
    pub(crate) fn set_tls_roots(&self, roots: &TlsRoots) {
        let _ = roots;
        unimplemented!()
    }
}

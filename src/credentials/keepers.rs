//! The keepers of a configuration, one per source. A reload keeps those whose source is the same;
//! the others end with the calls that use them.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use super::fetch::Fetcher;
use super::http::{self, Roots};
use super::keeper::{AccountNames, Keeper};
use super::obtain::Obtain;
use super::service_limits::ServiceLimits;
use crate::config::{Config, SessionSource};
use crate::primitives::id::AccountId;
use crate::upstream::TlsRoots;
use same_role::ByRole;

mod same_role;

/// The keepers by their source.
pub(crate) struct Keepers {
    by_source: HashMap<Arc<SessionSource>, Arc<Keeper>>,
    /// The bounds of each service, by host and port.
    limits: HashMap<String, Arc<ServiceLimits>>,
    /// Replaced for all sources at once, also for those of calls that keep an older configuration.
    roots: Arc<Roots>,
}

/// What a reload replaces.
#[derive(Clone, Copy)]
struct Replaced<'a> {
    before: Option<&'a Keepers>,
    by_role: Option<&'a ByRole<'a>>,
}

/// What a keeper asks for this source.
type MakeObtain<'a> = &'a dyn Fn(&Arc<SessionSource>) -> Box<dyn Obtain>;

// === impl Keepers ===

impl Keepers {
    /// Sets up a keeper for each source that a client's account uses, and for the sources that
    /// those need. Each begins to obtain its session. Must be called inside a tokio runtime.
    /// `roots` are those of the upstreams; they are loaded if a source needs them and there are
    /// none.
    pub(crate) fn new(config: &Config, roots: Option<&TlsRoots>) -> anyhow::Result<Self> {
        let shared = Roots::new(None);
        Self::build_with_roots(config, roots, shared, None)
    }

    /// The keepers of the configuration that replaces this one.
    pub(crate) fn reloaded(
        &self,
        config: &Config,
        roots: Option<&TlsRoots>,
    ) -> anyhow::Result<Self> {
        Self::build_with_roots(config, roots, self.roots.clone(), Some(self))
    }

    fn build_with_roots(
        config: &Config,
        roots: Option<&TlsRoots>,
        shared: Arc<Roots>,
        before: Option<&Self>,
    ) -> anyhow::Result<Self> {
        let need_tls = used(config).any(|(_, source)| source.uses_tls());
        let loaded = match roots {
            Some(roots) => Some(roots.clone()),
            None if need_tls => Some(TlsRoots::load(config.upstream.ca_file.as_deref())?),
            None => None,
        };
        if let Some(loaded) = loaded {
            shared.set(loaded);
        }
        let make = |source: &Arc<SessionSource>| -> Box<dyn Obtain> {
            Box::new(Fetcher::new(source.clone(), shared.clone()))
        };
        Ok(Self::build(config, shared.clone(), before, &make))
    }

    fn build(
        config: &Config,
        roots: Arc<Roots>,
        before: Option<&Self>,
        make: MakeObtain<'_>,
    ) -> Self {
        let mut keepers = Self {
            by_source: HashMap::new(),
            limits: HashMap::new(),
            roots,
        };
        let by_role = before.map(|before| ByRole::of(before.by_source.values()));
        let replaced = Replaced {
            before,
            by_role: by_role.as_ref(),
        };
        let mut names: HashMap<&SessionSource, AccountNames> = HashMap::new();
        for (account, source) in used(config) {
            keepers.keep(source, replaced, make);
            for source in source.chain() {
                names.entry(source).or_default().add(account);
            }
        }
        for (source, names) in names {
            if let Some(keeper) = keepers.get(source) {
                keeper.set_accounts(names);
            }
        }
        keepers
    }

    /// The keeper of this source: one that there is, or a new one, which uses the session of the
    /// same role until it has its own. Recursive; the configuration limits the depth to five.
    fn keep(
        &mut self,
        source: &SessionSource,
        replaced: Replaced<'_>,
        make: MakeObtain<'_>,
    ) -> Arc<Keeper> {
        if let Some(keeper) = self.by_source.get(source) {
            return keeper.clone();
        }
        let from = source
            .session_from()
            .map(|from| self.keep(from, replaced, make));
        let before = replaced.before;
        let known = before.and_then(|before| before.by_source.get_key_value(source));
        let limits = self.limits(source, before);
        let (source, keeper) = match known {
            Some((source, keeper)) => (source.clone(), keeper.clone()),
            None => {
                let source = Arc::new(source.clone());
                let obtain = make(&source);
                let same_role = replaced.by_role.and_then(|by_role| by_role.get(&source));
                let keeper = match same_role {
                    Some(old) => Keeper::in_place_of(old, source.clone(), obtain, from, limits),
                    None => Keeper::new(source.clone(), obtain, from, limits),
                };
                (source, Arc::new(keeper))
            }
        };
        self.by_source.insert(source, keeper.clone());
        keeper
    }

    /// The bounds of the source's service, which survive a reload.
    fn limits(&mut self, source: &SessionSource, before: Option<&Self>) -> Arc<ServiceLimits> {
        let place = http::place(source);
        let known = before.and_then(|before| before.limits.get(&place));
        self.limits
            .entry(place)
            .or_insert_with(|| known.map_or_else(|| Arc::new(ServiceLimits::new()), Arc::clone))
            .clone()
    }

    /// The keeper of a source of the same configuration.
    pub(crate) fn get(&self, source: &SessionSource) -> Option<&Arc<Keeper>> {
        self.by_source.get(source)
    }

    /// Lets new connections of all sources trust these roots.
    pub(crate) fn set_tls_roots(&self, roots: &TlsRoots) {
        self.roots.set(roots.clone());
    }
}

/// The accounts that clients use and whose sessions are kept, with their sources.
fn used(config: &Config) -> impl Iterator<Item = (&AccountId, &SessionSource)> {
    let used: HashSet<_> = config
        .clients
        .iter()
        .map(|client| &client.account)
        .collect();
    config.accounts.iter().filter_map(move |account| {
        let source = account.credentials.as_ref()?.session()?;
        used.contains(&account.id).then_some((&account.id, source))
    })
}

#[cfg(test)]
pub(crate) mod scripted;
#[cfg(test)]
mod tests;

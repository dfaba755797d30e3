//! The keepers of a configuration, one per source. A reload keeps those whose source is the same;
//! the others end with the calls that use them.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use arc_swap::ArcSwapOption;

use super::flights::Flights;
use super::keeper::Keeper;
use super::obtain::{self, Obtain, Service, SharedRoots};
use crate::config::{Config, SessionSource};
use crate::primitives::id::AccountId;
use crate::upstream::TlsRoots;

/// The keepers by their source, and by the accounts that use them.
pub(crate) struct Keepers {
    by_source: HashMap<Arc<SessionSource>, Arc<Keeper>>,
    by_account: HashMap<AccountId, Arc<Keeper>>,
    /// The bounds of each service, by host and port.
    flights: HashMap<String, Arc<Flights>>,
    /// Replaced for all sources at once, also for those of calls that keep an older configuration.
    roots: SharedRoots,
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
        let shared = SharedRoots::new(ArcSwapOption::empty());
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
        shared: SharedRoots,
        before: Option<&Self>,
    ) -> anyhow::Result<Self> {
        let need_tls = used(config).any(|(_, source)| needs_tls(source));
        let loaded = match roots {
            Some(roots) => Some(roots.clone()),
            None if need_tls => Some(TlsRoots::load(config.upstream.ca_file.as_deref())?),
            None => None,
        };
        if let Some(loaded) = loaded {
            shared.store(Some(Arc::new(loaded)));
        }
        let make = |source: &Arc<SessionSource>| -> Box<dyn Obtain> {
            Box::new(Service::new(source.clone(), shared.clone()))
        };
        Ok(Self::build(config, shared.clone(), before, &make))
    }

    fn build(
        config: &Config,
        roots: SharedRoots,
        before: Option<&Self>,
        make: MakeObtain<'_>,
    ) -> Self {
        let mut keepers = Self {
            by_source: HashMap::new(),
            by_account: HashMap::new(),
            flights: HashMap::new(),
            roots,
        };
        for (account, source) in used(config) {
            let keeper = keepers.keep(source, before, make);
            keepers.by_account.insert(account.clone(), keeper);
        }
        keepers
    }

    /// The keeper of this source: one that there is, or a new one. Recursive; the configuration
    /// limits the depth to five.
    fn keep(
        &mut self,
        source: &SessionSource,
        before: Option<&Self>,
        make: MakeObtain<'_>,
    ) -> Arc<Keeper> {
        if let Some(keeper) = self.by_source.get(source) {
            return keeper.clone();
        }
        let from = obtain::session_from(source).map(|from| self.keep(from, before, make));
        let known = before.and_then(|before| before.by_source.get_key_value(source));
        let flights = self.flights(source, before);
        let (source, keeper) = match known {
            Some((source, keeper)) => (source.clone(), keeper.clone()),
            None => {
                let source = Arc::new(source.clone());
                let keeper = Keeper::new(source.clone(), make(&source), from, flights);
                (source, Arc::new(keeper))
            }
        };
        self.by_source.insert(source, keeper.clone());
        keeper
    }

    /// The bounds of the source's service, which survive a reload.
    fn flights(&mut self, source: &SessionSource, before: Option<&Self>) -> Arc<Flights> {
        let place = obtain::place(source);
        let known = before.and_then(|before| before.flights.get(&place));
        self.flights
            .entry(place)
            .or_insert_with(|| known.map_or_else(|| Arc::new(Flights::new()), Arc::clone))
            .clone()
    }

    /// The keeper of a source of the same configuration.
    pub(crate) fn get(&self, source: &SessionSource) -> Option<&Arc<Keeper>> {
        self.by_source.get(source)
    }

    /// The keeper of an account of the same configuration. `None`: its credentials are read with
    /// the configuration, or no client uses it.
    pub(crate) fn of_account(&self, account: &AccountId) -> Option<&Arc<Keeper>> {
        self.by_account.get(account)
    }

    /// Each account with a keeper, in no order.
    pub(crate) fn accounts(&self) -> impl Iterator<Item = (&AccountId, &Arc<Keeper>)> {
        self.by_account.iter()
    }

    /// The keepers of all sources, also of those that only assume other roles, in no order.
    pub(crate) fn all(&self) -> impl ExactSizeIterator<Item = &Arc<Keeper>> {
        self.by_source.values()
    }

    /// Lets new connections of all sources trust these roots.
    pub(crate) fn set_tls_roots(&self, roots: &TlsRoots) {
        self.roots.store(Some(Arc::new(roots.clone())));
    }
}

/// The accounts that clients use and whose credentials Flowgate obtains.
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

/// Whether the source or one that it needs is asked over TLS.
fn needs_tls(source: &SessionSource) -> bool {
    obtain::uses_tls(source) || obtain::session_from(source).is_some_and(needs_tls)
}

#[cfg(test)]
pub(crate) mod scripted;
#[cfg(test)]
mod tests;

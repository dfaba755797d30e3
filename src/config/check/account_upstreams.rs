//! Checks `accounts[].upstream`. Accounts with the same URL share an upstream; the URL of
//! `[upstream]` is that upstream.

use std::collections::HashMap;
use std::sync::Arc;

use super::upstream::{self, Base, Endpoint};
use crate::config::read::Field;
use crate::config::{AccountUpstream, Listen, Upstream, UpstreamIndex};

/// Maximum number of upstreams that accounts name: each has connections and metrics of its own.
const MOST: usize = 64;

/// The upstreams that the accounts read so far have named.
pub(super) struct AccountUpstreams<'a> {
    /// What an account's upstream inherits; `None` after a mistake in it.
    base: Option<Base>,
    listen: Option<&'a Listen>,
    found: Vec<Upstream>,
    by_url: HashMap<String, Option<AccountUpstream>>,
}

// === impl AccountUpstreams ===

impl<'a> AccountUpstreams<'a> {
    /// `base` is the checked `[upstream]`.
    pub(super) fn new(base: Option<Base>, listen: Option<&'a Listen>) -> Self {
        let default = base.as_ref().map(|base| (base.upstream.url(), None));
        Self {
            base,
            listen,
            found: Vec::new(),
            by_url: default.into_iter().collect(),
        }
    }

    /// Reads the key of one account. The outer `None` is a mistake.
    pub(super) fn read(&mut self, key: &Field<'_>) -> Option<Option<AccountUpstream>> {
        let endpoint = key.optional(|key| key.text(upstream::URL, upstream::endpoint))?;
        let Some(endpoint) = endpoint else {
            return Some(None);
        };
        // After a mistake in `[upstream]` nothing more can be checked.
        let Some(base) = &self.base else {
            return Some(None);
        };
        let upstream = of_account(&base.upstream, endpoint);
        let url = upstream.url();
        if let Some(known) = self.by_url.get(&url) {
            return Some(known.clone());
        }
        if self.found.len() == MOST {
            key.mistake(format!("expected at most {MOST} different upstreams"));
            return None;
        }
        base.check_endpoint(key, &upstream, self.listen)?;
        let named = Some(AccountUpstream {
            index: UpstreamIndex::of_account(self.found.len()),
            url: Arc::from(&*url),
        });
        self.found.push(upstream);
        self.by_url.insert(url, named.clone());
        Some(named)
    }

    /// The upstream of `[upstream]`, and those of the accounts in the order of their indices.
    pub(super) fn into_upstreams(self) -> (Option<Upstream>, Vec<Upstream>) {
        (self.base.map(|base| base.upstream), self.found)
    }
}

/// An account's upstream. Pinned addresses and the signed host belong to the URL of `[upstream]`.
fn of_account(base: &Upstream, endpoint: Endpoint) -> Upstream {
    Upstream {
        scheme: endpoint.scheme,
        dial_host: endpoint.host,
        dial_port: endpoint.port,
        host: endpoint.authority,
        connect_to: Vec::new(),
        ..base.clone()
    }
}

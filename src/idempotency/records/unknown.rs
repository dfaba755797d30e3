//! The records with an unknown outcome, by account, and which accounts have had changes.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use super::{Records, State, Table};
use crate::idempotency::fingerprint::RecordName;
use crate::idempotency::record::UnknownOutcome;
use crate::primitives::id::AccountId;

/// The names of the records with an unknown outcome.
#[derive(Default)]
pub(super) struct UnknownIndex {
    by_account: BTreeMap<AccountId, BTreeSet<RecordName>>,
    /// The accounts with changes that were not taken yet.
    changed: BTreeSet<AccountId>,
}

// === impl UnknownIndex ===

impl UnknownIndex {
    pub(super) fn add(&mut self, account: &AccountId, name: RecordName) {
        let names = self.by_account.entry(account.clone()).or_default();
        names.insert(name);
        self.changed.insert(account.clone());
    }

    pub(super) fn remove(&mut self, account: &AccountId, name: RecordName) {
        if let Some(names) = self.by_account.get_mut(account) {
            names.remove(&name);
            if names.is_empty() {
                self.by_account.remove(account);
            }
        }
        self.changed.insert(account.clone());
    }
}

// === impl Table ===

impl Table {
    fn unknown<'a>(
        &'a self,
        names: impl Iterator<Item = &'a RecordName>,
    ) -> Vec<(RecordName, Arc<UnknownOutcome>)> {
        let outcome = |name: &RecordName| match &self.records.get(name)?.state {
            State::Unknown(_, outcome) => Some((*name, outcome.clone())),
            _ => None,
        };
        let mut unknown: Vec<_> = names.filter_map(outcome).collect();
        unknown.sort_by_key(|(name, outcome)| (outcome.ended, *name));
        unknown
    }
}

// === impl Records ===

impl Records {
    /// The unknown outcomes, the oldest first.
    pub(crate) fn unknown(&self) -> Vec<(RecordName, Arc<UnknownOutcome>)> {
        let table = self.table.lock();
        table.unknown(table.unknown.by_account.values().flatten())
    }

    /// Whether the outcome of this call is still unknown.
    pub(crate) fn is_unknown(&self, name: RecordName, outcome: &UnknownOutcome) -> bool {
        let table = self.table.lock();
        let unknown = table.unknown(std::iter::once(&name));
        unknown
            .iter()
            .any(|(_, present)| present.is_of_call(outcome))
    }

    /// The unknown outcomes of an account, the oldest first.
    pub(crate) fn unknown_of(&self, account: &AccountId) -> Vec<(RecordName, Arc<UnknownOutcome>)> {
        let table = self.table.lock();
        table.unknown(table.unknown.by_account.get(account).into_iter().flatten())
    }

    /// Waits until an outcome has become unknown, or is no longer. Returns the accounts with
    /// changes since the last call; for one waiter.
    pub(crate) async fn unknown_changes(&self) -> BTreeSet<AccountId> {
        loop {
            let changed = std::mem::take(&mut self.table.lock().unknown.changed);
            if !changed.is_empty() {
                return changed;
            }
            self.unknown_changed.notified().await;
        }
    }
}

//! What the records know of flows, for the looks: those that were created in a space, and what
//! other orders of the same name do.

use std::collections::{HashMap, VecDeque};

use super::{Record, Records, State};
use crate::idempotency::fingerprint::RecordName;
use crate::idempotency::looks::Others;
use crate::idempotency::record::Order;
use crate::primitives::id::AccountId;

/// FlowIds that are kept of each space.
const KEPT: usize = 3;

/// Spaces of which FlowIds are kept: about 20 MB for each of the two lists. One more takes the place of any other.
const MAX_SPACES: usize = 100_000;

/// The latest flows that were created in each space.
#[derive(Default)]
pub(super) struct LatestFlows(HashMap<(AccountId, Box<str>), VecDeque<Box<str>>>);

// === impl LatestFlows ===

impl LatestFlows {
    pub(super) fn add(&mut self, order: &Order, flow_id: &str) {
        let space = (order.account.clone(), order.flow.space.clone());
        if self.0.len() >= MAX_SPACES && !self.0.contains_key(&space) {
            let any = self.0.keys().next().cloned();
            any.map(|any| self.0.remove(&any));
        }
        let ids = self.0.entry(space).or_default();
        if ids.iter().any(|id| **id == *flow_id) {
            return;
        }
        if ids.len() == KEPT {
            ids.pop_front();
        }
        ids.push_back(flow_id.into());
    }

    pub(super) fn has(&self, flow_id: &str) -> bool {
        self.0.values().flatten().any(|id| **id == *flow_id)
    }

    fn of(&self, account: &AccountId, space: &str) -> impl Iterator<Item = Box<str>> {
        let ids = self.0.get(&(account.clone(), space.into()));
        ids.into_iter().flatten().cloned()
    }
}

// === impl Records ===

impl Records {
    /// The latest FlowIds that this process and earlier ones have created in a space.
    pub(crate) fn made_here(&self, account: &AccountId, space: &str) -> Vec<Box<str>> {
        let table = self.table.lock();
        let made_before = table.made_before.of(account, space);
        made_before
            .chain(table.made_here.of(account, space))
            .collect()
    }

    /// What the records other than `name` say about the flow of its order. `candidate` is a FlowId
    /// that a look has found.
    pub(crate) fn others(
        &self,
        name: RecordName,
        order: &Order,
        candidate: Option<&str>,
    ) -> Others {
        let table = self.table.lock();
        let mut found = Others::default();
        for (other, record) in &table.records {
            if *other != name {
                record.add_to(&mut found, order, candidate);
            }
        }
        found
    }
}

// === impl Record ===

impl Record {
    fn add_to(&self, found: &mut Others, order: &Order, candidate: Option<&str>) {
        let is_same = |other: &Order| {
            other.account == order.account
                && other.flow.space == order.flow.space
                && other.flow.name == order.flow.name
        };
        match &self.state {
            State::Running(running) => {
                found.are_open |= running.is_open() && is_same(&running.order);
            }
            State::Unknown(running, _) => found.are_unknown |= is_same(&running.order),
            State::Done(done) => {
                found.have_flow |= candidate.is_some_and(|id| *id == *done.created.flow_id);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::idempotency::fingerprint::fingerprint;
    use crate::idempotency::record::{FlowDescription, OrderKind};
    use crate::primitives::id::ClientId;

    fn order(space: &str) -> Order {
        Order {
            account: AccountId::new("acme"),
            client: ClientId::new("team-a"),
            kind: OrderKind::Keyed,
            fingerprint: fingerprint("CreateFlow", [], None),
            request_id: "R".into(),
            flow: FlowDescription {
                name: "Welcome".into(),
                space: space.into(),
                categories: Vec::new(),
            },
        }
    }

    #[test]
    fn the_last_three_flows_of_each_space_are_kept() {
        let mut made = LatestFlows::default();
        for id in ["1", "2", "3", "3", "4"] {
            made.add(&order("a"), id);
        }
        made.add(&order(""), "5");
        let account = AccountId::new("acme");
        let ids = |space| made.of(&account, space).collect::<Vec<_>>().join(" ");
        assert_eq!((ids("a"), ids("")), ("2 3 4".into(), "5".into()));
        assert_eq!(made.of(&AccountId::new("other"), "a").next(), None);
    }
}

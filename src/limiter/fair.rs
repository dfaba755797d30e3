//! Whose turn is it? Clients of an account take turns by weight, tenants inside their client's turn one after the other,
//! and each tenant's calls go by first arrival: a call that comes back after a throttle refusal stands where it stood.
//! Only decides; it is told of arrivals and departures by the lane.
//!
//! # Why start-time fair queueing
//!
//! Every call costs one token, so what deficit round robin adds for costs of different size is of no use here, and it
//! serves a client of weight 4 four calls in a row. Start-time fair queueing spreads them: a client's calls bear tags
//! that lie 1/weight apart, the smallest tag goes next, and a client that comes back starts at the tag being served, or
//! where its last calls ended if that is later. So nobody saves up turns while away, nobody gets ahead by coming one
//! call at a time, and how many go before a call can be computed instead of simulated, which an honest forecast needs.
//! Tenant names are invented for free: a thousand of them share one client's tags and take nothing from the others.
//!
//! Joining, leaving and being served cost O(log n), n being the calls that wait or have gone a moment ago; making room
//! O(clients + log n); a forecast for a newcomer O(clients + tenants of its client); going through the line O(n log n).
//! A test counts comparisons to guard this, and `benches/queue.rs` measures it.

mod turns;

use std::cmp::Ordering;
use std::collections::{BTreeMap, BTreeSet, HashMap};

use tokio::time::Instant;

use crate::limiter::fair::turns::{STRIDE, Stride, Turns};
use crate::primitives::id::{ClientId, TenantId};

/// A place in the order of first arrivals; lower is earlier. Given once per call and kept through its retries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Place(pub(crate) u64);

/// Who stands in line, and since when.
#[derive(Clone, Debug)]
pub(crate) struct QueueEntry {
    pub(crate) place: Place,
    pub(crate) client: ClientId,
    /// The client's share among the account's clients.
    pub(crate) weight: u32,
    pub(crate) tenant: TenantId,
    pub(crate) arrived: Instant,
}

/// The waiting calls of one lane.
pub(crate) struct FairQueue<W> {
    clients: HashMap<ClientId, Client<W>>,
    turns: Turns<ClientId>,
    len: usize,
}

/// One client's calls.
struct Client<W> {
    weight: u32,
    stride: Stride,
    calls: BTreeMap<Place, (QueueEntry, W)>,
    /// The places of each tenant's calls.
    tenants: HashMap<TenantId, BTreeSet<Place>>,
    turns: Turns<TenantId>,
}

// === impl Place ===

impl Ord for Place {
    fn cmp(&self, other: &Self) -> Ordering {
        #[cfg(all(test, debug_assertions))]
        tests::compared();
        self.0.cmp(&other.0)
    }
}

impl PartialOrd for Place {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

// === impl FairQueue ===

impl<W> FairQueue<W> {
    pub(crate) fn new() -> Self {
        Self {
            clients: HashMap::new(),
            turns: Turns::new(),
            len: 0,
        }
    }

    /// One more waits. A place is in line at most once.
    pub(crate) fn push(&mut self, entry: QueueEntry, waiter: W) {
        let (name, tenant, place) = (entry.client.clone(), entry.tenant.clone(), entry.place);
        let client = self.clients.entry(name.clone()).or_insert_with(Client::new);
        client.stride = stride(&entry);
        client.weight = entry.weight;
        let places = client.tenants.entry(tenant.clone()).or_default();
        places.insert(place);
        client.turns.set(&tenant, first_of(places));
        let before = client.calls.insert(place, (entry, waiter));
        debug_assert!(before.is_none(), "a place is in line at most once");
        self.len += 1;
        self.turns.set(&name, client.first());
    }

    /// Takes out the call that is served next.
    pub(crate) fn pop(&mut self) -> Option<W> {
        let name = self.turns.first()?.0.clone();
        let client = self.clients.get_mut(&name).expect("who waits is a client");
        let (tenant, place) = client
            .turns
            .first()
            .expect("a client that waits has a tenant that waits");
        let tenant = tenant.clone();
        client.turns.serve(STRIDE);
        let stride = client.stride;
        self.turns.serve(stride);
        self.take(&name, &tenant, place)
    }

    /// Takes one out wherever it stands: it hung up, or its time is over.
    pub(crate) fn remove(&mut self, entry: &QueueEntry) -> Option<W> {
        self.take(&entry.client, &entry.tenant, entry.place)
    }

    /// Takes out the newest call of the client with the most calls, if that has more than `than` has.
    pub(crate) fn evict(&mut self, than: &ClientId) -> Option<W> {
        let (_, client) = self
            .clients
            .iter()
            .max_by_key(|(name, client)| (client.calls.len(), *name))?;
        if client.calls.len() <= self.of_client(than) {
            return None;
        }
        let (_, (newest, _)) = client.calls.last_key_value()?;
        let newest = newest.clone();
        self.remove(&newest)
    }

    /// Begins to go through the queue in the order of service, as it would be if no other call arrived. Costs
    /// O(clients + tenants).
    pub(crate) fn walk(&self) -> Walk {
        let clients = self
            .clients
            .iter()
            .map(|(name, client)| (name.clone(), ClientWalk::new(client)));
        Walk {
            turns: self.turns.clone(),
            clients: clients.collect(),
            ahead: 0,
            is_over: self.len == 0,
        }
    }

    /// Goes on with a walk for at most `steps` calls. `stays` is asked of each call with the number of calls that stay
    /// before it; those that do not stay are taken out and returned. The queue may change between two pieces: calls that
    /// left or were served are passed over, and calls that arrived at a later place are met in their turn.
    pub(crate) fn walk_on(
        &mut self,
        walk: &mut Walk,
        steps: usize,
        mut stays: impl FnMut(usize, &W) -> bool,
    ) -> Vec<W> {
        let mut leave = Vec::new();
        for _ in 0..steps {
            let Some(name) = walk.turns.first().map(|(name, _)| name.clone()) else {
                walk.is_over = true;
                break;
            };
            let known = self.clients.get(&name).zip(walk.clients.get_mut(&name));
            let Some((client, future)) = known else {
                walk.turns.set(&name, None);
                continue;
            };
            if let Some((tenant, place)) = future.next() {
                match client.calls.get(&place) {
                    Some((entry, waiter)) if !stays(walk.ahead, waiter) => {
                        leave.push(entry.clone())
                    }
                    Some(_) => {
                        walk.ahead += 1;
                        future.turns.serve(STRIDE);
                        walk.turns.serve(client.stride);
                    }
                    None => {}
                }
                future.pass(client, &tenant, place);
            }
            walk.turns
                .set(&name, future.next().map(|(_, place)| (place, 0)));
        }
        leave
            .iter()
            .filter_map(|entry| self.remove(entry))
            .collect()
    }

    /// How many wait.
    pub(crate) fn len(&self) -> usize {
        self.len
    }

    /// The clients that wait, with their weights and how many of their tenants wait.
    pub(crate) fn clients(&self) -> impl Iterator<Item = (&ClientId, u32, usize)> {
        let waiting = self
            .clients
            .iter()
            .filter(|(_, client)| !client.calls.is_empty());
        waiting.map(|(name, client)| (name, client.weight, client.tenants.len()))
    }

    /// How many of this client's calls wait.
    pub(crate) fn of_client(&self, client: &ClientId) -> usize {
        self.clients
            .get(client)
            .map_or(0, |client| client.calls.len())
    }

    /// How many would be served before a newcomer, if nobody came after it.
    pub(crate) fn ahead_of_new(&self, entry: &QueueEntry) -> usize {
        let own = self.clients.get(&entry.client);
        let in_client = own.map_or(0, |client| client.ahead_of_new(&entry.tenant));
        let tag = self
            .turns
            .tag(&entry.client)
            .after(in_client, stride(entry));
        in_client
            + self
                .turns
                .before(&entry.client, tag, |other| self.clients[other].stride)
    }

    /// When the one that has waited longest arrived.
    pub(crate) fn oldest(&self) -> Option<Instant> {
        let first = |client: &Client<W>| {
            client
                .calls
                .first_key_value()
                .map(|(_, (entry, _))| entry.arrived)
        };
        self.clients.values().filter_map(first).min()
    }

    /// All that wait, in no order.
    pub(crate) fn waiting(&self) -> impl Iterator<Item = &(QueueEntry, W)> {
        self.clients
            .values()
            .flat_map(|client| client.calls.values())
    }

    fn take(&mut self, name: &ClientId, tenant: &TenantId, place: Place) -> Option<W> {
        let client = self.clients.get_mut(name)?;
        let (_, waiter) = client.calls.remove(&place)?;
        let places = client
            .tenants
            .get_mut(tenant)
            .expect("the tenant of a call that waits");
        places.remove(&place);
        let rest = first_of(places);
        client.turns.set(tenant, rest);
        if rest.is_none() {
            client.tenants.remove(tenant);
        }
        let first = client.first();
        self.turns.set(name, first);
        self.len -= 1;
        if self.len == 0 {
            // Nobody waits, so nobody is ahead of anybody.
            *self = Self::new();
        } else if first.is_none() && !self.turns.is_ahead(name) {
            self.clients.remove(name);
        }
        Some(waiter)
    }
}

// === impl Client ===

impl<W> Client<W> {
    fn new() -> Self {
        Self {
            weight: 1,
            stride: STRIDE,
            calls: BTreeMap::new(),
            tenants: HashMap::new(),
            turns: Turns::new(),
        }
    }

    /// Where its next call stands, and how many wait.
    fn first(&self) -> Option<(Place, usize)> {
        self.turns
            .first()
            .map(|(_, place)| (place, self.calls.len()))
    }

    fn ahead_of_new(&self, tenant: &TenantId) -> usize {
        let own = self.tenants.get(tenant).map_or(0, BTreeSet::len);
        let tag = self.turns.tag(tenant).after(own, STRIDE);
        own + self.turns.before(tenant, tag, |_| STRIDE)
    }
}

/// The first of a tenant's calls, and how many there are.
fn first_of(places: &BTreeSet<Place>) -> Option<(Place, usize)> {
    Some((*places.first()?, places.len()))
}

/// How far apart the tags of such a call's client lie.
fn stride(entry: &QueueEntry) -> Stride {
    STRIDE / Stride::from(entry.weight.max(1))
}

/// How far a walk through the queue has come.
pub(crate) struct Walk {
    turns: Turns<ClientId>,
    clients: HashMap<ClientId, ClientWalk>,
    /// Calls that were passed and stay.
    ahead: usize,
    is_over: bool,
}

/// One client's part of a walk.
struct ClientWalk {
    turns: Turns<TenantId>,
}

// === impl Walk ===

impl Walk {
    /// Whether every call was passed.
    pub(crate) fn is_over(&self) -> bool {
        self.is_over
    }

    /// A call was served meanwhile: one call fewer is ahead of those that are still to come.
    pub(crate) fn served(&mut self) {
        self.ahead = self.ahead.saturating_sub(1);
    }
}

// === impl ClientWalk ===

impl ClientWalk {
    fn new<W>(client: &Client<W>) -> Self {
        Self {
            turns: client.turns.clone(),
        }
    }

    fn next(&self) -> Option<(TenantId, Place)> {
        self.turns
            .first()
            .map(|(tenant, place)| (tenant.clone(), place))
    }

    fn pass<W>(&mut self, client: &Client<W>, tenant: &TenantId, place: Place) {
        use std::ops::Bound::{Excluded, Unbounded};
        let after = (Excluded(place), Unbounded);
        let next = client
            .tenants
            .get(tenant)
            .and_then(|places| places.range(after).next().copied());
        self.turns.set(tenant, next.map(|place| (place, 0)));
    }
}

#[cfg(test)]
mod tests;

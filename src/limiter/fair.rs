//! Selects the call that is served next. Clients of an account take turns by weight, the tenants of
//! a client take turns within it, and the calls of a tenant are served by first arrival. A call
//! that comes back after a throttle refusal keeps its position. Only decides; the lane reports
//! arrivals and departures.
//!
//! # Why start-time fair queueing
//!
//! Every call costs one token, so there is no need for deficit round robin, which handles costs of
//! different size; and it serves a client of weight 4 four calls in a row. Start-time fair queueing
//! interleaves them: the calls of a client have tags that are 1/weight apart, and the smallest tag
//! is served next. A client that comes back starts at the tag being served, or where its last calls
//! ended if that is later. So a client cannot save up turns while it is away, and gains nothing by
//! sending one call at a time. The number of calls that are served before a given one can be
//! computed instead of simulated, which forecasts need. Clients can invent any number of tenant
//! names: all of them share the client's tags and take nothing from other clients.
//!
//! Pushing, removing and popping a call cost O(log n), where n is the number of calls that wait or
//! were removed a moment ago. Eviction costs O(clients + log n), the forecast for a new call
//! O(clients + tenants of its client), and a walk through the queue O(n log n). A test counts
//! comparisons to guard this, and `benches/queue.rs` measures it.

mod turns;

use std::cmp::Ordering;
use std::collections::{BTreeMap, BTreeSet, HashMap};

use tokio::time::Instant;

use crate::limiter::fair::turns::{STRIDE, Stride, TurnOrder};
use crate::primitives::id::{ClientId, TenantId};

/// The sequence number of a call in the order of first arrivals. Assigned once per call and kept
/// through its retries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Sequence(pub(crate) u64);

/// Identifies a queued call.
#[derive(Clone, Debug)]
pub(crate) struct QueueEntry {
    pub(crate) sequence: Sequence,
    pub(crate) client: ClientId,
    /// The client's weight among the account's clients.
    pub(crate) weight: u32,
    pub(crate) tenant: TenantId,
    pub(crate) arrived: Instant,
}

/// The queued calls of one lane.
pub(crate) struct FairQueue<W> {
    /// `None` while no call is queued. Boxed, because there may be many lanes, and most have no
    /// queue.
    clients: Option<Box<Clients<W>>>,
}

/// The clients of a queue that is not empty.
struct Clients<W> {
    by_name: HashMap<ClientId, Client<W>>,
    turns: TurnOrder<ClientId>,
    len: usize,
}

/// The queued calls of one client.
struct Client<W> {
    weight: u32,
    stride: Stride,
    calls: BTreeMap<Sequence, (QueueEntry, W)>,
    /// The sequence numbers of each tenant's calls.
    tenants: HashMap<TenantId, BTreeSet<Sequence>>,
    turns: TurnOrder<TenantId>,
}

// === impl Sequence ===

impl Ord for Sequence {
    fn cmp(&self, other: &Self) -> Ordering {
        #[cfg(all(test, debug_assertions))]
        tests::compared();
        self.0.cmp(&other.0)
    }
}

impl PartialOrd for Sequence {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

// === impl FairQueue ===

impl<W> FairQueue<W> {
    pub(crate) fn new() -> Self {
        Self { clients: None }
    }

    /// Adds a call. Its sequence number must not be in the queue.
    pub(crate) fn push(&mut self, entry: QueueEntry, waiter: W) {
        let clients = self.clients.get_or_insert_with(|| Box::new(Clients::new()));
        let name = entry.client.clone();
        let sequence = entry.sequence;
        let client = clients
            .by_name
            .entry(name.clone())
            .or_insert_with(Client::new);
        client.stride = stride(&entry);
        client.weight = entry.weight;
        let sequences = client.tenants.entry(entry.tenant.clone()).or_default();
        sequences.insert(sequence);
        client.turns.set(&entry.tenant, first_of(sequences));
        let before = client.calls.insert(sequence, (entry, waiter));
        debug_assert!(before.is_none(), "a call is queued at most once");
        clients.len += 1;
        clients.turns.set(&name, client.first());
    }

    /// Removes the call that is served next.
    pub(crate) fn pop(&mut self) -> Option<W> {
        let clients = self.clients.as_mut()?;
        let name = clients.turns.first()?.0.clone();
        let client = clients
            .by_name
            .get_mut(&name)
            .expect("a waiting client is known");
        let (tenant, sequence) = client
            .turns
            .first()
            .expect("a waiting client has a waiting tenant");
        let tenant = tenant.clone();
        client.turns.serve(STRIDE);
        let stride = client.stride;
        clients.turns.serve(stride);
        self.take(&name, &tenant, sequence)
    }

    /// Removes a call from any position, because its caller has disconnected or its hold is over.
    pub(crate) fn remove(&mut self, entry: &QueueEntry) -> Option<W> {
        self.take(&entry.client, &entry.tenant, entry.sequence)
    }

    /// Removes the newest call of the client with the most calls, if that client has more calls
    /// than `than`.
    pub(crate) fn evict(&mut self, than: &ClientId) -> Option<W> {
        let clients = self.clients.as_ref()?;
        let (_, client) = clients
            .by_name
            .iter()
            .max_by_key(|(name, client)| (client.calls.len(), *name))?;
        if client.calls.len() <= self.client_len(than) {
            return None;
        }
        let (_, (newest, _)) = client.calls.last_key_value()?;
        let newest = newest.clone();
        self.remove(&newest)
    }

    /// Begins a walk through the queue in the order of service, as it would be without further
    /// arrivals. Costs O(clients + tenants).
    pub(crate) fn walk(&self) -> Walk {
        let Some(clients) = &self.clients else {
            return Walk {
                turns: TurnOrder::new(),
                clients: HashMap::new(),
                ahead: 0,
                is_over: true,
            };
        };
        Walk {
            turns: clients.turns.clone(),
            clients: clients
                .by_name
                .iter()
                .map(|(name, client)| (name.clone(), ClientWalk::new(client)))
                .collect(),
            ahead: 0,
            is_over: false,
        }
    }

    /// Continues a walk for at most `steps` calls. `stays` is called for each call with the number
    /// of remaining calls before it; the calls for which it returns false are removed and returned.
    /// The queue may change between two pieces: calls that were removed or served are skipped, and
    /// calls that arrived further back are visited.
    pub(crate) fn advance_walk(
        &mut self,
        walk: &mut Walk,
        steps: usize,
        mut stays: impl FnMut(usize, &W) -> bool,
    ) -> Vec<W> {
        let mut removed = Vec::new();
        for _ in 0..steps {
            let Some(name) = walk.turns.first().map(|(name, _)| name.clone()) else {
                walk.is_over = true;
                break;
            };
            let known = self.client(&name).zip(walk.clients.get_mut(&name));
            let Some((client, client_walk)) = known else {
                walk.turns.set(&name, None);
                continue;
            };
            if let Some((tenant, sequence)) = client_walk.next() {
                match client.calls.get(&sequence) {
                    Some((entry, waiter)) if !stays(walk.ahead, waiter) => {
                        removed.push(entry.clone());
                    }
                    Some(_) => {
                        walk.ahead += 1;
                        client_walk.turns.serve(STRIDE);
                        walk.turns.serve(client.stride);
                    }
                    None => {}
                }
                client_walk.pass(client, &tenant, sequence);
            }
            let next = client_walk.next().map(|(_, sequence)| (sequence, 0));
            walk.turns.set(&name, next);
        }
        removed
            .iter()
            .filter_map(|entry| self.remove(entry))
            .collect()
    }

    /// The number of queued calls.
    pub(crate) fn len(&self) -> usize {
        self.clients.as_ref().map_or(0, |clients| clients.len)
    }

    /// The waiting clients, with their weights and the numbers of their waiting tenants.
    pub(crate) fn clients(&self) -> impl Iterator<Item = (&ClientId, u32, usize)> {
        self.clients
            .iter()
            .flat_map(|clients| &clients.by_name)
            .filter(|(_, client)| !client.calls.is_empty())
            .map(|(name, client)| (name, client.weight, client.tenants.len()))
    }

    /// The number of queued calls of this client.
    pub(crate) fn client_len(&self, client: &ClientId) -> usize {
        self.client(client).map_or(0, |client| client.calls.len())
    }

    /// How many calls would be served before a new one, if no other call arrived after it.
    pub(crate) fn ahead_of_new(&self, entry: &QueueEntry) -> usize {
        let Some(clients) = &self.clients else {
            return 0;
        };
        let ahead_in_client = clients
            .by_name
            .get(&entry.client)
            .map_or(0, |client| client.ahead_of_new(&entry.tenant));
        let tag = clients
            .turns
            .tag(&entry.client)
            .after(ahead_in_client, stride(entry));
        let ahead_of_client = clients
            .turns
            .before(&entry.client, tag, |other| clients.by_name[other].stride);
        ahead_in_client + ahead_of_client
    }

    /// When the call that has waited longest arrived.
    pub(crate) fn oldest(&self) -> Option<Instant> {
        self.clients
            .iter()
            .flat_map(|clients| clients.by_name.values())
            .filter_map(|client| client.calls.first_key_value())
            .map(|(_, (entry, _))| entry.arrived)
            .min()
    }

    /// All queued calls, in no particular order.
    pub(crate) fn waiting(&self) -> impl Iterator<Item = &(QueueEntry, W)> {
        self.clients
            .iter()
            .flat_map(|clients| clients.by_name.values())
            .flat_map(|client| client.calls.values())
    }

    fn client(&self, name: &ClientId) -> Option<&Client<W>> {
        self.clients.as_ref()?.by_name.get(name)
    }

    fn take(&mut self, name: &ClientId, tenant: &TenantId, sequence: Sequence) -> Option<W> {
        let clients = self.clients.as_mut()?;
        let client = clients.by_name.get_mut(name)?;
        let (_, waiter) = client.calls.remove(&sequence)?;
        let sequences = client
            .tenants
            .get_mut(tenant)
            .expect("a waiting call has a tenant");
        sequences.remove(&sequence);
        let rest = first_of(sequences);
        client.turns.set(tenant, rest);
        if rest.is_none() {
            client.tenants.remove(tenant);
        }
        let first = client.first();
        clients.turns.set(name, first);
        clients.len -= 1;
        if clients.len == 0 {
            // The queue is empty, so no client is ahead of another one.
            self.clients = None;
        } else if first.is_none() && !clients.turns.is_ahead(name) {
            clients.by_name.remove(name);
        }
        Some(waiter)
    }
}

// === impl Clients ===

impl<W> Clients<W> {
    fn new() -> Self {
        Self {
            by_name: HashMap::new(),
            turns: TurnOrder::new(),
            len: 0,
        }
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
            turns: TurnOrder::new(),
        }
    }

    /// The sequence number of the next call, and the number of calls.
    fn first(&self) -> Option<(Sequence, usize)> {
        self.turns
            .first()
            .map(|(_, sequence)| (sequence, self.calls.len()))
    }

    fn ahead_of_new(&self, tenant: &TenantId) -> usize {
        let own = self.tenants.get(tenant).map_or(0, BTreeSet::len);
        let tag = self.turns.tag(tenant).after(own, STRIDE);
        own + self.turns.before(tenant, tag, |_| STRIDE)
    }
}

/// The first of a tenant's calls, and the number of its calls.
fn first_of(sequences: &BTreeSet<Sequence>) -> Option<(Sequence, usize)> {
    Some((*sequences.first()?, sequences.len()))
}

/// The distance between the tags of the entry's client.
fn stride(entry: &QueueEntry) -> Stride {
    STRIDE / Stride::from(entry.weight.max(1))
}

/// The state of a walk through the queue.
pub(crate) struct Walk {
    turns: TurnOrder<ClientId>,
    clients: HashMap<ClientId, ClientWalk>,
    /// Calls that were visited and stay.
    ahead: usize,
    is_over: bool,
}

/// The state of a walk within one client.
struct ClientWalk {
    turns: TurnOrder<TenantId>,
}

// === impl Walk ===

impl Walk {
    /// Whether every call was visited.
    pub(crate) fn is_over(&self) -> bool {
        self.is_over
    }

    /// Notes that a call was served meanwhile: one call fewer is ahead of the rest.
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

    fn next(&self) -> Option<(TenantId, Sequence)> {
        self.turns
            .first()
            .map(|(tenant, sequence)| (tenant.clone(), sequence))
    }

    fn pass<W>(&mut self, client: &Client<W>, tenant: &TenantId, sequence: Sequence) {
        use std::ops::Bound::{Excluded, Unbounded};
        let after = (Excluded(sequence), Unbounded);
        let next = client
            .tenants
            .get(tenant)
            .and_then(|sequences| sequences.range(after).next().copied());
        self.turns.set(tenant, next.map(|sequence| (sequence, 0)));
    }
}

#[cfg(test)]
mod tests;

//! All records. A record is claimed before its call queues, marked open before its first byte may
//! leave, and ends as done, unknown or released. No key is evicted to make room: a key that does
//! not fit is refused.

use std::collections::HashMap;
use std::collections::hash_map::Entry as MapEntry;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use parking_lot::Mutex;
use tokio::time::Instant;

use super::fingerprint::{Fingerprint, RecordName};
use super::record::{Answer, Created, End, Ending, Progress, Running, UnknownOutcome, Waiter};
use crate::observe::journal::{KeyedAttempt, KeyedEnd, Outcome};
use crate::primitives::id::ClientId;

/// The records of this process.
pub(crate) struct Records {
    table: Mutex<Table>,
}

/// How many records are kept, and for how long.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Bounds {
    /// How long a finished key is remembered.
    pub(crate) keep: Duration,
    /// Maximum number of records.
    pub(crate) max: usize,
}

struct Table {
    bounds: Bounds,
    records: HashMap<RecordName, Record>,
    /// The number of records of each client.
    clients: HashMap<ClientId, usize>,
}

struct Record {
    client: ClientId,
    state: State,
}

enum State {
    Running(Arc<Running>),
    Done(Fingerprint, Arc<Created>, Instant),
    Unknown(Fingerprint, Arc<UnknownOutcome>, Instant),
}

/// What a call with a key finds.
pub(crate) enum Found {
    /// It is the first: the claim runs the call, the waiter waits for it.
    New(Claim, Waiter),
    /// A call of this key is under way.
    Running(Waiter),
    /// A call of this key has created a flow.
    Done(Arc<Created>),
    /// A call of this key may have created a flow.
    Unknown(Arc<UnknownOutcome>),
    /// Another order has this key.
    Mismatch,
    /// There is no room for another key.
    Full,
}

/// The right to run the call of a key. Dropped, it releases the key: nothing was sent.
pub(crate) struct Claim(Option<Owned>);

/// A call of which an attempt may leave. Dropped without an end, its outcome is unknown.
pub(crate) struct Marked(Option<Owned>);

struct Owned {
    records: Arc<Records>,
    name: RecordName,
    running: Arc<Running>,
}

/// Number of records that a sweep found to be too old.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Forgotten {
    pub(crate) done: usize,
    pub(crate) unknown: usize,
}

/// What was found in a journal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Restored {
    pub(crate) keys: usize,
    pub(crate) unknown: usize,
}

/// The state after an attempt that ended at `at`. `None`: CAMS certainly did not execute it.
fn restored(end: Option<KeyedEnd>, fingerprint: Fingerprint, at: Instant) -> Option<State> {
    let (reason, request_id) = match end {
        None => (
            Some("Flowgate ended before the answer came".to_owned()),
            None,
        ),
        Some(end) => match (end.outcome, end.flow_id) {
            (Outcome::Ok, Some(flow_id)) => {
                let created = Created {
                    flow_id: flow_id.into(),
                    request_id: end.request_id.map(Into::into),
                };
                return Some(State::Done(fingerprint, Arc::new(created), at));
            }
            (Outcome::Ok | Outcome::Unknown, _) => (end.reason, end.request_id),
            _ => return None,
        },
    };
    let reason = reason.unwrap_or_else(|| "no certain answer".to_owned());
    let unknown = UnknownOutcome {
        reason: reason.into(),
        request_id: request_id.map(Into::into),
    };
    Some(State::Unknown(fingerprint, Arc::new(unknown), at))
}

/// How long an unknown outcome is remembered, at least.
const KEEP_UNKNOWN: Duration = Duration::from_secs(7 * 24 * 3600);

// === impl Records ===

impl Records {
    pub(crate) fn new(bounds: Bounds) -> Arc<Self> {
        Arc::new(Self {
            table: Mutex::new(Table {
                bounds,
                records: HashMap::new(),
                clients: HashMap::new(),
            }),
        })
    }

    /// Looks up the key of a call, and claims it if it is free. The permission of the client must
    /// have been checked.
    pub(crate) fn find(
        self: &Arc<Self>,
        name: RecordName,
        client: &ClientId,
        fingerprint: Fingerprint,
    ) -> Found {
        let mut table = self.table.lock();
        if let Some(record) = table.records.get(&name) {
            return record.find(fingerprint);
        }
        if !table.has_room(client) {
            return Found::Full;
        }
        let running = Running::new(fingerprint);
        let waiter = Waiter::of(&running);
        table.insert(name, client.clone(), State::Running(running.clone()));
        let owned = Owned {
            records: self.clone(),
            name,
            running,
        };
        Found::New(Claim(Some(owned)), waiter)
    }

    /// Takes over the keys of an earlier process from its journal. An attempt without an end may
    /// have reached CAMS. `clock` is this host's clock at `now`.
    pub(crate) fn restore(
        &self,
        attempts: Vec<KeyedAttempt>,
        now: Instant,
        clock: SystemTime,
    ) -> Restored {
        let mut table = self.table.lock();
        for attempt in attempts {
            table.restore(attempt, now, clock);
        }
        let unknown = |record: &&Record| matches!(record.state, State::Unknown(..));
        Restored {
            keys: table.records.len(),
            unknown: table.records.values().filter(unknown).count(),
        }
    }

    /// Forgets the records that are too old.
    pub(crate) fn forget_old(&self, now: Instant) -> Forgotten {
        let mut table = self.table.lock();
        let keep = table.bounds.keep;
        let mut forgotten = Forgotten::default();
        let old: Vec<_> = table
            .records
            .iter()
            .filter(|(_, record)| record.is_old(keep, now))
            .map(|(name, _)| *name)
            .collect();
        for name in old {
            match table.remove(&name).map(|record| record.state) {
                Some(State::Done(..)) => forgotten.done += 1,
                Some(State::Unknown(..)) => forgotten.unknown += 1,
                _ => {}
            }
        }
        forgotten
    }

    /// Replaces the bounds. Records that do not fit are kept.
    pub(crate) fn set_bounds(&self, bounds: Bounds) {
        self.table.lock().bounds = bounds;
    }
}

// === impl Table ===

impl Table {
    /// One client may use half of the records.
    fn has_room(&self, client: &ClientId) -> bool {
        let own = self.clients.get(client).copied().unwrap_or_default();
        self.records.len() < self.bounds.max && own < self.bounds.max.div_ceil(2)
    }

    fn insert(&mut self, name: RecordName, client: ClientId, state: State) {
        *self.clients.entry(client.clone()).or_default() += 1;
        self.records.insert(name, Record { client, state });
    }

    /// Sets the state of a key after one of its attempts.
    fn restore(&mut self, attempt: KeyedAttempt, now: Instant, clock: SystemTime) {
        let name = RecordName::parse(&attempt.key.name);
        let fingerprint = Fingerprint::parse(&attempt.key.fingerprint);
        let (Some(name), Some(fingerprint)) = (name, fingerprint) else {
            return;
        };
        self.remove(&name);
        let age = attempt
            .time
            .and_then(|time| clock.duration_since(time).ok())
            .unwrap_or_default();
        let at = now.checked_sub(age).unwrap_or(now);
        let client = ClientId::new(attempt.client);
        if let Some(state) = restored(attempt.end, fingerprint, at) {
            self.insert(name, client, state);
        }
    }

    fn remove(&mut self, name: &RecordName) -> Option<Record> {
        let record = self.records.remove(name)?;
        if let MapEntry::Occupied(mut count) = self.clients.entry(record.client.clone()) {
            *count.get_mut() -= 1;
            if *count.get() == 0 {
                count.remove();
            }
        }
        Some(record)
    }
}

// === impl Record ===

impl Record {
    fn find(&self, fingerprint: Fingerprint) -> Found {
        if self.fingerprint() != fingerprint {
            return Found::Mismatch;
        }
        match &self.state {
            State::Running(running) => Found::Running(Waiter::of(running)),
            State::Done(_, created, _) => Found::Done(created.clone()),
            State::Unknown(_, unknown, _) => Found::Unknown(unknown.clone()),
        }
    }

    fn fingerprint(&self) -> Fingerprint {
        match &self.state {
            State::Running(running) => running.fingerprint,
            State::Done(fingerprint, ..) | State::Unknown(fingerprint, ..) => *fingerprint,
        }
    }

    fn is_old(&self, keep: Duration, now: Instant) -> bool {
        match self.state {
            State::Running(_) => false,
            State::Done(.., at) => now.duration_since(at) >= keep,
            State::Unknown(.., at) => now.duration_since(at) >= keep.max(KEEP_UNKNOWN),
        }
    }
}

// === impl Claim ===

impl Claim {
    /// Records that an attempt may leave from now on.
    pub(crate) fn mark(mut self) -> Marked {
        let owned = self.0.take();
        if let Some(owned) = &owned {
            owned.running.set(Progress::Open);
        }
        Marked(owned)
    }

    /// Waits until no caller waits for the call any more.
    pub(crate) async fn abandoned(&self) {
        match &self.0 {
            Some(owned) => owned.running.abandoned().await,
            None => std::future::pending().await,
        }
    }

    /// Frees the key, because the call was refused before anything was sent.
    pub(crate) fn release(mut self, answer: Answer) {
        if let Some(owned) = self.0.take() {
            owned.end(End::Released, Some(answer));
        }
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        if let Some(owned) = self.0.take() {
            owned.end(End::Released, None);
        }
    }
}

// === impl Marked ===

impl Marked {
    /// The call has ended.
    pub(crate) fn end(mut self, end: End, answer: Answer) {
        if let Some(owned) = self.0.take() {
            owned.end(end, Some(answer));
        }
    }
}

impl Drop for Marked {
    fn drop(&mut self) {
        if let Some(owned) = self.0.take() {
            let unknown = UnknownOutcome {
                reason: "the call was interrupted".into(),
                request_id: None,
            };
            owned.end(End::Unknown(Arc::new(unknown)), None);
        }
    }
}

// === impl Owned ===

impl Owned {
    /// The table first: a waiter that learns of the end must find the same there.
    fn end(self, end: End, answer: Option<Answer>) {
        let mut table = self.records.table.lock();
        let fingerprint = self.running.fingerprint;
        let now = Instant::now();
        let state = match &end {
            End::Done(created) => Some(State::Done(fingerprint, created.clone(), now)),
            End::Unknown(unknown) => Some(State::Unknown(fingerprint, unknown.clone(), now)),
            End::Released => None,
        };
        match state {
            None => drop(table.remove(&self.name)),
            Some(state) => {
                if let Some(record) = table.records.get_mut(&self.name) {
                    record.state = state;
                }
            }
        }
        drop(table);
        let ending = Ending { end, answer };
        self.running.set(Progress::Ended(Arc::new(ending)));
    }
}

#[cfg(test)]
mod tests;

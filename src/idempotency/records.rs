//! All records. A record is claimed before its call queues, marked open before its first byte may
//! leave, and ends as done, unknown or released. No key is evicted to make room: a key that does
//! not fit is refused.

use std::collections::HashMap;
use std::collections::hash_map::Entry as MapEntry;
use std::hash::BuildHasher;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use parking_lot::Mutex;
use tokio::sync::Notify;
use tokio::time::Instant;

use super::fingerprint::{Fingerprint, RecordName};
use super::record::{
    Answer, Attempts, Created, End, Ending, LostRecord, Order, OrderKind, Progress, Resolution,
    Running, Search, UnknownOutcome, Waiter,
};
use super::shared::{ClaimId, KeyClaim, Published, SharedEnd};
use crate::observe::journal::KeyedAttempt;

mod flows;
mod restore;
mod unknown;

pub(crate) use restore::Restored;
use unknown::UnknownIndex;

/// The records of this process.
pub(crate) struct Records {
    table: Mutex<Table>,
    /// Notified after a change of an unknown outcome.
    unknown_changed: Notify,
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
    /// The number of records of each client of each account.
    clients: HashMap<ClientHash, usize>,
    unknown: UnknownIndex,
    made_here: flows::LatestFlows,
    /// By earlier processes, as the journal says.
    made_before: flows::LatestFlows,
    count: Count,
}

/// The number of records in each state.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Count {
    pub(crate) running: usize,
    pub(crate) done: usize,
    pub(crate) unknown: usize,
}

struct Record {
    client: ClientHash,
    state: State,
}

/// A hash of a client and its account, by which its records are counted: a record has no room for
/// the names.
type ClientHash = u64;

enum State {
    Running(Arc<Running>),
    Done(Done),
    Unknown(Arc<Running>, Arc<UnknownOutcome>),
}

/// A call that has created a flow.
struct Done {
    fingerprint: Fingerprint,
    created: Arc<Created>,
    at: Instant,
    /// Whether its answer is only for the first repetition: no caller has got it yet.
    is_for_one: bool,
    is_protected: bool,
    /// False: what the store says of the key is not about this call.
    is_in_store: bool,
}

/// What a call with a record finds.
pub(crate) enum Found {
    /// It is the first: the claim runs the call, the waiter waits for it.
    New(Claim, Waiter),
    /// A call of this order is under way, or Flowgate looks for its flow.
    Running(Waiter),
    /// A call of this order has created a flow.
    Done(Arc<Created>),
    /// A call of this order may have created a flow.
    Unknown(Arc<UnknownOutcome>),
    /// Another order has this key.
    Mismatch,
    /// There is no room for another key.
    Full,
}

/// The right to run the call of a record. Dropped, it releases the record: nothing was sent.
pub(crate) struct Claim(Option<Owned>);

/// A call of which an attempt may leave. Dropped without an end, its outcome is unknown.
pub(crate) struct Marked {
    owned: Option<Owned>,
    /// No request of the call has a later time stamp than this.
    stamped_until: Instant,
    /// When the latest attempt was about to be sent; of another replica's, when at the latest.
    at: SystemTime,
}

struct Owned {
    records: Arc<Records>,
    name: RecordName,
    running: Arc<Running>,
}

/// How a call with a record has ended.
pub(crate) enum CallEnd {
    /// CAMS has created the flow.
    Created(Created),
    /// CAMS may have created the flow.
    Unknown(Loss),
    /// CAMS has certainly not created the flow.
    NotCreated,
}

/// Why the outcome of a call is unknown.
pub(crate) struct Loss {
    pub(crate) reason: Box<str>,
    /// CAMS's request id, if its answer has one.
    pub(crate) request_id: Option<Box<str>>,
    /// The journal's name of the attempt, if it is in a journal.
    pub(crate) attempt: Option<Box<str>>,
    /// The call, if another replica has run it.
    pub(crate) call: Option<Box<str>>,
    /// Whether Flowgate looks for the flow.
    pub(crate) is_sought: bool,
}

/// Why an unknown outcome was not ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum NotEnded {
    /// The outcome of the call is not unknown any more.
    NotUnknown,
    /// The flow is known as that of another call.
    FlowOfAnother,
}

/// Number of records that a sweep found to be too old, and the unknown outcomes among them.
#[derive(Debug, Default)]
pub(crate) struct Forgotten {
    pub(crate) done: usize,
    pub(crate) unknown: Vec<Arc<UnknownOutcome>>,
}

/// How long an unknown outcome is remembered, at least.
const KEEP_UNKNOWN: Duration = Duration::from_secs(7 * 24 * 3600);

/// How long the answer of a call without a key is kept for one repetition, if no caller has got it.
const KEEP_FOR_ONE: Duration = Duration::from_secs(15 * 60);

// === impl Records ===

impl Records {
    pub(crate) fn new(bounds: Bounds) -> Arc<Self> {
        Arc::new(Self {
            table: Mutex::new(Table {
                bounds,
                records: HashMap::new(),
                clients: HashMap::new(),
                unknown: UnknownIndex::default(),
                made_here: flows::LatestFlows::default(),
                made_before: flows::LatestFlows::default(),
                count: Count::default(),
            }),
            unknown_changed: Notify::new(),
        })
    }

    /// Looks up the record of an order, and claims it if it is free. The permission of the client
    /// must have been checked.
    pub(crate) fn find(self: &Arc<Self>, name: RecordName, order: &Arc<Order>) -> Found {
        let mut table = self.table.lock();
        if let Some(record) = table.records.get(&name) {
            let found = record.find(order.fingerprint);
            if record.is_for_one() && matches!(found, Found::Done(_)) {
                table.remove(&name);
            }
            return found;
        }
        // Orders without a key are bounded by the queue; they leave with their calls.
        if order.kind == OrderKind::Keyed && !table.has_room(order) {
            return Found::Full;
        }
        let running = Running::new(order.clone());
        let waiter = Waiter::of(&running);
        let state = State::Running(running.clone());
        table.insert(name, order, state);
        let owned = Owned {
            records: self.clone(),
            name,
            running,
        };
        Found::New(Claim(Some(owned)), waiter)
    }

    /// Takes over the records of an earlier process from its journal. `clock` is this host's clock
    /// at `now`; `is_sought` says of which orders the flow is looked for.
    pub(crate) fn restore(
        &self,
        attempts: Vec<KeyedAttempt>,
        now: Instant,
        clock: SystemTime,
        is_sought: impl Fn(&Order) -> bool,
    ) -> Restored {
        let restored = restore::restore(&mut self.table.lock(), attempts, now, clock, is_sought);
        self.unknown_changed.notify_one();
        restored
    }

    /// Takes over what another process, which has ended, has written beside this one. `attempts` are
    /// those in the journal that this process has not made; `has_made` says which it has. Returns what
    /// has changed.
    pub(crate) fn take_over(
        &self,
        attempts: Vec<KeyedAttempt>,
        now: Instant,
        clock: SystemTime,
        is_sought: impl Fn(&Order) -> bool,
        has_made: impl Fn(&str) -> bool,
    ) -> Restored {
        let restored = restore::take_over(self, attempts, now, clock, is_sought, has_made);
        self.unknown_changed.notify_one();
        restored
    }

    /// Whether a later process and the other replicas know the record, if there are any. A record that
    /// does not exist has nothing to be known.
    pub(crate) fn is_protected(&self, name: RecordName) -> bool {
        let table = self.table.lock();
        let record = table.records.get(&name);
        record.is_none_or(|record| match &record.state {
            State::Running(running) | State::Unknown(running, _) => running.is_protected(),
            State::Done(done) => done.is_protected,
        })
    }

    /// Whether what the store says of the key is about this record. It is not if the call was sent
    /// while the store could not record its key.
    pub(crate) fn is_in_store(&self, name: RecordName) -> bool {
        let table = self.table.lock();
        let record = table.records.get(&name);
        record.is_none_or(|record| record.state.is_in_store())
    }

    /// Whether this FlowId is known as that of a call. It reads all records, and the latest flows of each space.
    pub(crate) fn has_flow(&self, flow_id: &str) -> bool {
        self.table.lock().has_flow(flow_id)
    }

    /// Ends the unknown outcome that was `judged`, and answers the callers that wait for it. Returns what
    /// was unknown. One flow does not end two calls.
    ///
    /// # Errors
    /// The outcome stays as it is.
    pub(crate) fn resolve(
        &self,
        name: RecordName,
        judged: &UnknownOutcome,
        resolution: Resolution,
        now: Instant,
    ) -> Result<Arc<UnknownOutcome>, NotEnded> {
        self.end_unknown(name, judged, now, |outcome, table| {
            Ok(match resolution {
                Resolution::Created(created) | Resolution::SettledCreated(created) => {
                    if table.has_flow(&created.flow_id) {
                        return Err(NotEnded::FlowOfAnother);
                    }
                    End::Done(Arc::new(created))
                }
                // It was checked there.
                Resolution::CreatedElsewhere(created) => End::Done(Arc::new(created)),
                Resolution::Absent | Resolution::SettledNotCreated => End::Released,
                Resolution::Ambiguous(found) => outcome.with(Search::Ambiguous(found)),
            })
        })
    }

    /// Begins or ends the search for the flow of an unknown outcome.
    pub(crate) fn set_search(&self, name: RecordName, judged: &UnknownOutcome, search: Search) {
        drop(
            self.end_unknown(name, judged, Instant::now(), |outcome, _| {
                Ok(outcome.with(search))
            }),
        );
    }

    fn end_unknown(
        &self,
        name: RecordName,
        judged: &UnknownOutcome,
        now: Instant,
        end: impl FnOnce(&UnknownOutcome, &Table) -> Result<End, NotEnded>,
    ) -> Result<Arc<UnknownOutcome>, NotEnded> {
        let mut table = self.table.lock();
        let Some(Record {
            state: State::Unknown(running, outcome),
            ..
        }) = table.records.get(&name)
        else {
            return Err(NotEnded::NotUnknown);
        };
        if !outcome.is_of_call(judged) {
            return Err(NotEnded::NotUnknown);
        }
        let (running, outcome) = (running.clone(), outcome.clone());
        let end = end(&outcome, &table)?;
        table.end(name, &running, &end, now);
        drop(table);
        self.unknown_changed.notify_one();
        running.set(Progress::after(Ending {
            end,
            answer: None,
            is_resolved: true,
        }));
        Ok(outcome)
    }

    /// The finished and unknown keys, for the store that replicas share.
    pub(crate) fn shareable(&self, now: Instant) -> Vec<Published> {
        let table = self.table.lock();
        let keep = table.bounds.keep;
        let records = table.records.iter();
        let shareable = records.filter_map(|(name, record)| record.shareable(*name, keep, now));
        shareable.collect()
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
                Some(State::Done(_)) => forgotten.done += 1,
                Some(State::Unknown(_, outcome)) => forgotten.unknown.push(outcome),
                _ => {}
            }
        }
        drop(table);
        if !forgotten.unknown.is_empty() {
            self.unknown_changed.notify_one();
        }
        forgotten
    }

    /// The number of records in each state.
    pub(crate) fn count(&self) -> Count {
        self.table.lock().count
    }

    /// Replaces the bounds. Records that do not fit are kept.
    pub(crate) fn set_bounds(&self, bounds: Bounds) {
        self.table.lock().bounds = bounds;
    }
}

// === impl Table ===

impl Table {
    /// One client may use half of the records.
    fn has_room(&self, order: &Order) -> bool {
        let own = self.clients.get(&self.client(order)).copied();
        let own = own.unwrap_or_default();
        self.records.len() < self.bounds.max && own < self.bounds.max.div_ceil(2)
    }

    /// Whether a call that ends finds no room for its record. One that has it keeps it.
    fn has_no_room(&self, name: &RecordName) -> bool {
        let is_new = self.records.get(name).is_none_or(Record::is_running);
        is_new && self.records.len() > self.bounds.max
    }

    fn has_flow(&self, flow_id: &str) -> bool {
        let mut states = self.records.values().map(|record| &record.state);
        states.any(|state| matches!(state, State::Done(done) if *done.created.flow_id == *flow_id))
            || self.made_here.has(flow_id)
            || self.made_before.has(flow_id)
    }

    fn client(&self, order: &Order) -> ClientHash {
        let client = (&order.account, &order.client);
        self.clients.hasher().hash_one(client)
    }

    fn insert(&mut self, name: RecordName, order: &Order, state: State) {
        self.remove(&name);
        if let State::Unknown(running, _) = &state {
            self.unknown.add(&running.order.account, name);
        }
        *self.count.of(&state) += 1;
        let client = self.client(order);
        *self.clients.entry(client).or_default() += 1;
        self.records.insert(name, Record { client, state });
    }

    fn remove(&mut self, name: &RecordName) -> Option<Record> {
        let record = self.records.remove(name)?;
        *self.count.of(&record.state) -= 1;
        if let State::Unknown(running, _) = &record.state {
            self.unknown.remove(&running.order.account, *name);
        }
        if let MapEntry::Occupied(mut count) = self.clients.entry(record.client) {
            *count.get_mut() -= 1;
            if *count.get() == 0 {
                count.remove();
            }
        }
        Some(record)
    }

    /// Sets the state of a record after the end of its call. Returns whether there is still one.
    fn end(&mut self, name: RecordName, running: &Arc<Running>, end: &End, now: Instant) -> bool {
        let order = &running.order;
        if let End::Done(created) = end {
            self.made_here.add(order, &created.flow_id);
        }
        let state = match end {
            End::Done(created) => Done::of(running, created, now).map(State::Done),
            // Only keys are refused while there is no room.
            End::Unknown(_) if order.kind != OrderKind::Keyed && self.has_no_room(&name) => None,
            End::Unknown(outcome) => Some(State::Unknown(running.clone(), outcome.clone())),
            End::Released => None,
        };
        let is_kept = state.is_some();
        match (state, self.records.get_mut(&name)) {
            (Some(State::Done(done)), Some(record)) if record.is_running() => {
                *self.count.of(&record.state) -= 1;
                record.state = State::Done(done);
                *self.count.of(&record.state) += 1;
            }
            (Some(state), _) => self.insert(name, order, state),
            (None, _) => drop(self.remove(&name)),
        }
        is_kept
    }
}

// === impl Count ===

impl Count {
    fn of(&mut self, state: &State) -> &mut usize {
        match state {
            State::Running(_) => &mut self.running,
            State::Done(_) => &mut self.done,
            State::Unknown(..) => &mut self.unknown,
        }
    }
}

// === impl State ===

impl State {
    fn is_in_store(&self) -> bool {
        match self {
            Self::Running(running) | Self::Unknown(running, _) => running.is_in_store(),
            Self::Done(done) => done.is_in_store,
        }
    }

    /// The state of an unknown outcome whose call has ended.
    fn unknown(order: Arc<Order>, outcome: Arc<UnknownOutcome>, is_in_store: bool) -> Self {
        let running = Running::new(order);
        if !is_in_store {
            running.lose_protection(LostRecord::Store);
        }
        running.set(Progress::after(Ending {
            end: End::Unknown(outcome.clone()),
            answer: None,
            is_resolved: false,
        }));
        Self::Unknown(running, outcome)
    }
}

// === impl Done ===

impl Done {
    /// What is kept of a call that has created a flow, if anything: a call without a key is repeated
    /// only if no caller has got its answer.
    fn of(running: &Running, created: &Arc<Created>, at: Instant) -> Option<Self> {
        let is_for_one = match running.order.kind {
            OrderKind::Keyed => false,
            OrderKind::Equal if running.is_awaited() => return None,
            OrderKind::Equal => true,
            OrderKind::Single => return None,
        };
        Some(Self {
            fingerprint: running.order.fingerprint,
            created: created.clone(),
            at,
            is_for_one,
            is_protected: running.is_protected(),
            is_in_store: running.is_in_store(),
        })
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
            State::Done(done) => Found::Done(done.created.clone()),
            State::Unknown(running, outcome) if outcome.search == Search::Active => {
                Found::Running(Waiter::of(running))
            }
            State::Unknown(_, outcome) => Found::Unknown(outcome.clone()),
        }
    }

    fn fingerprint(&self) -> Fingerprint {
        match &self.state {
            State::Running(running) | State::Unknown(running, _) => running.order.fingerprint,
            State::Done(done) => done.fingerprint,
        }
    }

    fn is_running(&self) -> bool {
        matches!(self.state, State::Running(_))
    }

    /// What the store learns of the record if it is a key that has ended. Another replica may have sent a
    /// call of its own for a key that the store does not know.
    fn shareable(&self, name: RecordName, keep: Duration, now: Instant) -> Option<Published> {
        if !self.state.is_in_store() {
            return None;
        }
        let mut flow_name = None;
        // Whose it was does not matter any more when the flow is known.
        let mut call = "";
        let (end, signed_until, lifetime) = match &self.state {
            State::Done(done) if !done.is_for_one => {
                let passed = now.saturating_duration_since(done.at);
                let end = SharedEnd::Done((*done.created).clone());
                (end, done.at, keep.checked_sub(passed)?)
            }
            State::Unknown(running, outcome) if running.order.kind == OrderKind::Keyed => {
                let request_id = outcome.request_id.clone();
                let end = SharedEnd::Unknown { request_id };
                flow_name = running.order.flow_name_hash();
                call = &outcome.order.request_id;
                (end, outcome.stamped_until, KEEP_UNKNOWN)
            }
            _ => return None,
        };
        Some(Published {
            claim: KeyClaim {
                name,
                id: ClaimId::of_call(call),
                print: self.fingerprint(),
                flow_name,
            },
            end: Some(end),
            signed_until,
            // Redis refuses a lifetime of zero.
            lifetime: lifetime.max(Duration::from_secs(1)),
        })
    }

    fn is_for_one(&self) -> bool {
        matches!(&self.state, State::Done(done) if done.is_for_one)
    }

    fn is_old(&self, keep: Duration, now: Instant) -> bool {
        match &self.state {
            State::Running(_) => false,
            State::Done(done) => {
                let keep = if done.is_for_one { KEEP_FOR_ONE } else { keep };
                now.duration_since(done.at) >= keep
            }
            State::Unknown(_, outcome) => {
                now.duration_since(outcome.ended) >= keep.max(KEEP_UNKNOWN)
            }
        }
    }
}

// === impl Claim ===

impl Claim {
    /// Records that an attempt may leave from now on. No request of it is stamped later than
    /// `stamped_until`.
    pub(crate) fn mark(mut self, stamped_until: Instant) -> Marked {
        let owned = self.0.take();
        if let Some(owned) = &owned {
            owned.running.open();
        }
        Marked {
            owned,
            stamped_until,
            at: SystemTime::now(),
        }
    }

    /// Notes the attempts so far, for callers that leave.
    pub(crate) fn note_attempts(&self, attempts: Attempts) {
        if let Some(owned) = &self.0 {
            owned.running.note_attempts(attempts);
        }
    }

    /// Waits until no caller waits for the call any more.
    pub(crate) async fn abandoned(&self) {
        match &self.0 {
            Some(owned) => owned.running.abandoned().await,
            None => std::future::pending().await,
        }
    }

    /// The call is sent although its record is known here only.
    pub(crate) fn lose_protection(&self, lost: LostRecord) {
        if let Some(owned) = &self.0 {
            owned.running.lose_protection(lost);
        }
    }

    /// The key must be claimed: another replica may have the call.
    pub(crate) fn forget_attempts(&self) {
        if let Some(owned) = &self.0 {
            owned.running.forget_attempts();
        }
    }

    /// Another replica has sent an attempt of this call.
    pub(crate) fn follow(&self) {
        if let Some(owned) = &self.0 {
            owned.running.follow();
        }
    }

    /// Another replica has run the call, with this end. No request of it is stamped later than
    /// `stamped_until`.
    pub(crate) fn learn(self, end: CallEnd, stamped_until: Instant) {
        self.mark(stamped_until).learn(end, stamped_until);
    }

    /// Frees the record, because the call was refused before anything was sent.
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
    /// The call is sent although its record is known here only.
    pub(crate) fn lose_protection(&self, lost: LostRecord) {
        if let Some(owned) = &self.owned {
            owned.running.lose_protection(lost);
        }
    }

    /// Another attempt may leave from now on.
    pub(crate) fn again(mut self) -> Self {
        self.at = SystemTime::now();
        self
    }

    /// Waits until no caller waits for the call any more.
    pub(crate) async fn abandoned(&self) {
        match &self.owned {
            Some(owned) => owned.running.abandoned().await,
            None => std::future::pending().await,
        }
    }

    /// The call has ended.
    pub(crate) fn end(mut self, end: CallEnd, answer: Answer) {
        self.finish(end, Some(answer));
    }

    /// Notes the attempts so far, for callers that leave.
    pub(crate) fn note_attempts(&self, attempts: Attempts) {
        if let Some(owned) = &self.owned {
            owned.running.note_attempts(attempts);
        }
    }

    /// Whether a caller waits for the call.
    pub(crate) fn is_awaited(&self) -> bool {
        self.owned
            .as_ref()
            .is_some_and(|owned| owned.running.is_awaited())
    }

    /// The key must be claimed again: another replica may have the call.
    pub(crate) fn forget_attempts(&self) {
        if let Some(owned) = &self.owned {
            owned.running.forget_attempts();
        }
    }

    /// Another replica has sent an attempt of this call.
    pub(crate) fn follow(&self) {
        if let Some(owned) = &self.owned {
            owned.running.follow();
        }
    }

    /// Another replica has run the call, with this end. No request of it is stamped later than
    /// `stamped_until`.
    pub(crate) fn learn(mut self, end: CallEnd, stamped_until: Instant) {
        self.stamped_until = self.stamped_until.max(stamped_until);
        let passed = Instant::now().saturating_duration_since(stamped_until);
        self.at = SystemTime::now() - passed;
        self.finish(end, None);
    }

    fn finish(&mut self, end: CallEnd, answer: Option<Answer>) {
        let Some(owned) = self.owned.take() else {
            return;
        };
        let end = match end {
            CallEnd::Created(created) => End::Done(Arc::new(created)),
            CallEnd::NotCreated => End::Released,
            CallEnd::Unknown(loss) => {
                let order = owned.running.order.clone();
                End::Unknown(Arc::new(loss.outcome(order, self.at, self.stamped_until)))
            }
        };
        owned.end(end, answer);
    }
}

impl Drop for Marked {
    fn drop(&mut self) {
        let loss = Loss {
            reason: "the call was interrupted".into(),
            request_id: None,
            attempt: None,
            call: None,
            is_sought: false,
        };
        self.finish(CallEnd::Unknown(loss), None);
    }
}

// === impl Loss ===

impl Loss {
    fn outcome(self, order: Arc<Order>, at: SystemTime, stamped_until: Instant) -> UnknownOutcome {
        let order = match self.call {
            Some(request_id) => Arc::new(Order {
                request_id,
                ..(*order).clone()
            }),
            None => order,
        };
        UnknownOutcome {
            reason: self.reason,
            request_id: self.request_id,
            order,
            attempt: self.attempt,
            at,
            ended: Instant::now(),
            stamped_until,
            search: if self.is_sought {
                Search::Active
            } else {
                Search::None
            },
        }
    }
}

// === impl Owned ===

impl Owned {
    /// The table first: a waiter that learns of the end must find the same there.
    fn end(self, mut end: End, answer: Option<Answer>) {
        let mut table = self.records.table.lock();
        let is_kept = table.end(self.name, &self.running, &end, Instant::now());
        drop(table);
        // Without a record nothing looks for the flow.
        if let End::Unknown(outcome) = &end
            && !is_kept
        {
            end = outcome.with(Search::None);
        }
        if matches!(end, End::Unknown(_)) {
            self.records.unknown_changed.notify_one();
        }
        self.running.set(Progress::after(Ending {
            end,
            answer,
            is_resolved: false,
        }));
    }
}

#[cfg(test)]
mod tests;

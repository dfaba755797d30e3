//! The records that replicas share. The store is where replicas meet, not their only memory: each
//! keeps its own records and publishes them again when the store has lost them.
//!
//! A key is claimed before its call queues, marked open after each signature and before anything
//! of the attempt leaves, and settled at the end. `shared/protocol.rs` builds each operation and
//! reads its answer, `shared/member.rs` is what one replica knows of the store; this file runs
//! them. The scripts are in `shared/`.

mod member;
mod protocol;

use std::collections::HashMap;
use std::collections::hash_map::Entry as MapEntry;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use redis::{Script, Value};
use tokio::sync::{Notify, Semaphore};
use tokio::time::{Instant, timeout};

use super::fingerprint::RecordName;
use super::record::{Order, UnknownOutcome};
use crate::observe::metrics::Metrics;
use crate::store::{State, Store, Unavailable};

pub(crate) use member::{Member, Times};
pub(crate) use protocol::{
    Call, ClaimId, KeyClaim, LearnedBy, MarkAnswer, Op, Published, SettleAnswer, Settled,
    Settlement, SharedEnd, SharedRecord, SharedState, StateAnswer, TakeAnswer, Taken,
};

/// This replica's access to the records that replicas share.
pub(crate) struct SharedRecords {
    store: Arc<Store>,
    metrics: Arc<Metrics>,
    scripts: Scripts,
    member: Mutex<Member>,
    /// The connection over which this replica has greeted the store.
    greeted: Mutex<Option<Instant>>,
    /// One greeting at a time: other operations wait for it.
    greeting: Semaphore,
    /// One heartbeat at a time, so that their answers are read in order.
    beating: Semaphore,
    /// The keys of which an attempt of this replica may be under way.
    open: Mutex<HashMap<RecordName, Published>>,
    /// Ends that the store does not know yet, those of each key in their order.
    owed: Mutex<HashMap<RecordName, Vec<Settlement>>>,
    /// While records are published: the claims that were released meanwhile. What is published may bring
    /// them back.
    released: Mutex<Option<Vec<Settlement>>>,
    /// The flows that this replica may look for, and until when.
    leases: Mutex<HashMap<RecordName, Instant>>,
    /// Counts the beginnings and the ends of take-overs: odd during one.
    take_overs: AtomicU64,
    /// Notified when the store must be told of something before the next heartbeat.
    wake: Notify,
}

/// While records are taken over from another process. At its end they are published.
pub(crate) struct TakeOver<'a>(&'a SharedRecords);

struct Scripts {
    claim: Script,
    mark: Script,
    settle: Script,
    resolve: Script,
    take_flow: Script,
    publish: Script,
    beat: Script,
}

/// Interval of heartbeats.
pub(crate) const BEAT: Duration = Duration::from_secs(1);
/// How long one replica looks for the flow of an unknown record, before another one may.
const LOOK_LEASE: Duration = Duration::from_secs(30);
/// The semaphores live as long as their owner.
const NEVER_CLOSED: &str = "a semaphore that is never closed";
/// Number of records that one script publishes.
const CHUNK: usize = 100;

// === impl SharedRecords ===

impl SharedRecords {
    /// `replica` is this process's name among the replicas, new at every start.
    pub(crate) fn new(
        store: Arc<Store>,
        replica: &str,
        times: Times,
        metrics: Arc<Metrics>,
    ) -> Self {
        let member = Member::new(store.prefix(), replica, times);
        Self {
            store,
            metrics,
            scripts: Scripts::new(),
            member: Mutex::new(member),
            greeted: Mutex::default(),
            greeting: Semaphore::new(1),
            beating: Semaphore::new(1),
            open: Mutex::default(),
            owed: Mutex::default(),
            released: Mutex::default(),
            leases: Mutex::default(),
            take_overs: AtomicU64::new(0),
            wake: Notify::new(),
        }
    }

    /// Replaces the durations of a reloaded configuration.
    pub(crate) fn set_times(&self, times: Times) {
        self.member.lock().set_times(times);
    }

    /// Begins to take over records that the store may not know: until this replica has published them, a
    /// key that is missing in the store proves nothing.
    pub(crate) fn take_over(&self) -> TakeOver<'_> {
        let mut member = self.member.lock();
        self.take_overs.fetch_add(1, Ordering::SeqCst);
        member.unpublish();
        TakeOver(self)
    }

    /// Claims a key for `hold`, or returns the state of its record. To be repeated until the state
    /// is final or the hold is over.
    ///
    /// # Errors
    /// The store gives no answer: the claim may have been made.
    pub(crate) async fn claim(
        &self,
        claim: &KeyClaim,
        hold: Duration,
    ) -> Result<SharedState, Unavailable> {
        self.look_up(claim, Some(hold)).await
    }

    /// Returns the state of a key's record without a claim.
    ///
    /// # Errors
    /// The store gives no answer.
    pub(crate) async fn read(
        &self,
        name: RecordName,
        order: &Order,
    ) -> Result<SharedState, Unavailable> {
        let claim = KeyClaim::of(name, order, ClaimId::of_call(&order.request_id));
        self.look_up(&claim, None).await
    }

    async fn look_up(
        &self,
        claim: &KeyClaim,
        hold: Option<Duration>,
    ) -> Result<SharedState, Unavailable> {
        self.greet().await?;
        self.pay(claim.name).await?;
        let call = self.member.lock().claim(claim, hold);
        let answer = self.run(&call, StateAnswer::read).await?;
        self.heard(&answer.epoch);
        Ok(answer.state)
    }

    /// Marks the claim open, or extends the mark, because an attempt that is signed may leave and
    /// others may be signed within `remaining`. False: the claim is lost, and nothing may be sent
    /// before another one. After a mark `ended` must be called at the end.
    ///
    /// # Errors
    /// The store gives no answer, and nothing may be sent. The key is released as soon as the store
    /// answers again.
    pub(crate) async fn mark(
        &self,
        claim: &KeyClaim,
        remaining: Duration,
    ) -> Result<bool, Unavailable> {
        let signed_until = Instant::now() + remaining;
        let call = self.member.lock().mark(claim, remaining);
        let answer = self.run(&call, MarkAnswer::read).await;
        if let Ok(answer) = &answer {
            // Under the lock: a publication that begins later finds the record open.
            let member = self.member.lock();
            if member.is_marked(answer) {
                let open = Published {
                    claim: claim.clone(),
                    end: None,
                    signed_until,
                    lifetime: member::KEEP_OPEN,
                };
                self.open.lock().insert(claim.name, open);
                return Ok(true);
            }
        }
        let released = Settlement::released(claim, Instant::now());
        self.owe(&released);
        self.wake.notify_one();
        answer.map(|_lost| false)
    }

    /// No attempt of this claim is under way any more: it was released, or the record of this process says
    /// how its call has ended.
    pub(crate) fn ended(&self, claim: &KeyClaim) {
        let mut open = self.open.lock();
        if let MapEntry::Occupied(own) = open.entry(claim.name)
            && own.get().claim == *claim
        {
            own.remove();
        }
    }

    /// Records how the unknown outcome of a call was resolved: it holds if it is unknown in the store, too.
    ///
    /// # Errors
    /// The store gives no answer. It may have recorded it.
    pub(crate) async fn resolve(
        &self,
        name: RecordName,
        outcome: &UnknownOutcome,
        end: SharedEnd,
    ) -> Result<Settled, Unavailable> {
        let order = &outcome.order;
        let resolution = Settlement {
            claim: KeyClaim::of(name, order, ClaimId::of_call(&order.request_id)),
            end,
            signed_until: outcome.stamped_until,
        };
        self.greet().await?;
        self.pay(name).await?;
        self.tell(&resolution).await
    }

    /// Records the end of a call. If the store gives no answer it is recorded later.
    ///
    /// # Errors
    /// The store gives no answer.
    pub(crate) async fn settle(&self, settlement: Settlement) -> Result<Settled, Unavailable> {
        let earlier = self.owe(&settlement);
        self.tell_after(&earlier, &settlement).await
    }

    /// Notes what the store must be told of a key. Returns what it must be told before.
    fn owe(&self, settlement: &Settlement) -> Vec<Settlement> {
        if settlement.end == SharedEnd::Released {
            self.ended(&settlement.claim);
            if let Some(released) = &mut *self.released.lock() {
                released.push(settlement.clone());
            }
        }
        let mut owed = self.owed.lock();
        let of_key = owed.entry(settlement.claim.name).or_default();
        let earlier = of_key.clone();
        of_key.push(settlement.clone());
        earlier
    }

    async fn tell_after(
        &self,
        earlier: &[Settlement],
        settlement: &Settlement,
    ) -> Result<Settled, Unavailable> {
        for earlier in earlier {
            self.tell(earlier).await?;
        }
        self.tell(settlement).await
    }

    async fn tell(&self, settlement: &Settlement) -> Result<Settled, Unavailable> {
        let name = settlement.claim.name;
        let call = self.member.lock().settle(settlement, Instant::now());
        let answer = self.run(&call, SettleAnswer::read).await?;
        let is_current = self.heard(&answer.epoch);
        let is_told = match &answer.settled {
            // Otherwise the store may have lost it since.
            Settled::Yes => is_current,
            // It is told again when all replicas have published what they know.
            Settled::Kept(SharedState::Gated) => false,
            Settled::Kept(_) | Settled::FlowOfAnother => true,
        };
        if is_told {
            let mut owed = self.owed.lock();
            if let MapEntry::Occupied(mut of_key) = owed.entry(name) {
                of_key.get_mut().retain(|other| other != settlement);
                if of_key.get().is_empty() {
                    of_key.remove();
                }
            }
        }
        Ok(answer.settled)
    }

    /// Takes a flow for a call of this replica, so that no other call gets it.
    ///
    /// # Errors
    /// The store gives no answer: the flow may have been taken.
    pub(crate) async fn take_flow(
        &self,
        name: RecordName,
        order: &Order,
        flow_id: &str,
        by: LearnedBy,
    ) -> Result<Taken, Unavailable> {
        self.greet().await?;
        let call = self.member.lock().take_flow(name, order, flow_id, by);
        let answer = self.run(&call, TakeAnswer::read).await?;
        self.heard(&answer.epoch);
        Ok(answer.taken)
    }

    /// Returns whether this replica may look for the flow of an unknown record now. It may until its
    /// lease ends; then another replica may be first.
    ///
    /// # Errors
    /// The store gives no answer.
    pub(crate) async fn lease_look(&self, name: RecordName) -> Result<bool, Unavailable> {
        let now = Instant::now();
        {
            let mut leases = self.leases.lock();
            leases.retain(|_, until| now < *until);
            if leases.contains_key(&name) {
                return Ok(true);
            }
        }
        let key = self.member.lock().look_key(name);
        let is_new = self.store.set_new("look", &key, LOOK_LEASE).await?;
        if is_new {
            self.leases.lock().insert(name, now + LOOK_LEASE);
        }
        Ok(is_new)
    }

    /// Sends heartbeats, and publishes the calls under way and `records` in each new epoch, until
    /// the future is dropped.
    pub(crate) async fn keep(&self, records: impl Fn() -> Vec<Published> + Send) {
        loop {
            // A failure opens the circuit, which is logged where it happens.
            let kept = self.beat_and_publish(&records).await;
            self.metrics.keys_degraded(kept.is_err());
            drop(timeout(BEAT, self.wake.notified()).await);
        }
    }

    async fn beat_and_publish(
        &self,
        records: &(impl Fn() -> Vec<Published> + Send),
    ) -> Result<(), Unavailable> {
        self.greet().await?;
        self.beat(Op::Beat).await?;
        let take_overs = self.take_overs.load(Ordering::SeqCst);
        let unpublished = self.member.lock().unpublished();
        if let Some(epoch) = unpublished.filter(|_| take_overs.is_multiple_of(2)) {
            *self.released.lock() = Some(Vec::new());
            // The open ones first: one that ends meanwhile is in `records`, or was released.
            let mut known: Vec<_> = self.open.lock().values().cloned().collect();
            known.extend(records());
            let published = self.publish(&epoch, known, take_overs).await;
            let released = self.released.lock().take();
            for settlement in released.iter().flatten() {
                self.owe(settlement);
            }
            published?;
            self.beat(Op::Beat).await?;
        }
        let owed: Vec<_> = self.owed.lock().keys().copied().collect();
        for name in owed {
            self.pay(name).await?;
        }
        Ok(())
    }

    /// Publishes all records of this replica in this epoch. `take_overs` is the count when they were read.
    async fn publish(
        &self,
        epoch: &str,
        records: Vec<Published>,
        take_overs: u64,
    ) -> Result<(), Unavailable> {
        for chunk in records.chunks(CHUNK) {
            let call = self.member.lock().publish(chunk, Instant::now());
            let answered = self.run(&call, protocol::published_epoch).await?;
            if *answered != *epoch {
                self.wake.notify_one();
                return Ok(());
            }
        }
        let mut member = self.member.lock();
        if self.take_overs.load(Ordering::SeqCst) == take_overs {
            member.published(epoch);
        }
        Ok(())
    }

    /// Leaves the replicas. Nothing may be claimed afterwards.
    ///
    /// # Errors
    /// The store gives no answer.
    pub(crate) async fn leave(&self) -> Result<(), Unavailable> {
        self.beat(Op::Leave).await
    }

    /// Greets the store once over each connection, before anything is claimed: its server may have
    /// been replaced by one that has lost writes.
    async fn greet(&self) -> Result<(), Unavailable> {
        let State::Up { since } = self.store.state() else {
            return Err(Unavailable::Down);
        };
        if self.has_greeted(since) {
            return Ok(());
        }
        let _one = self.greeting.acquire().await.expect(NEVER_CLOSED);
        if !self.has_greeted(since) {
            self.beat(Op::Greet).await?;
            *self.greeted.lock() = Some(since);
            self.wake.notify_one();
        }
        Ok(())
    }

    fn has_greeted(&self, since: Instant) -> bool {
        *self.greeted.lock() == Some(since)
    }

    /// Notes the epoch of an answer. False: it is not the one that this replica knows, so a
    /// heartbeat and a publication are due.
    fn heard(&self, epoch: &str) -> bool {
        let is_current = self.member.lock().is_current(epoch);
        if !is_current {
            self.wake.notify_one();
        }
        is_current
    }

    async fn beat(&self, op: Op) -> Result<(), Unavailable> {
        let _one = self.beating.acquire().await.expect(NEVER_CLOSED);
        let server = self.store.server_ids();
        let call = self.member.lock().beat(op, &server, Instant::now());
        let answer = self.run(&call, protocol::BeatAnswer::read).await?;
        self.member.lock().heard_beat(answer, Instant::now());
        Ok(())
    }

    /// Tells the store what it does not know yet of this key.
    async fn pay(&self, name: RecordName) -> Result<(), Unavailable> {
        let owed = self.owed.lock().get(&name).cloned();
        for settlement in owed.iter().flatten() {
            self.tell(settlement).await?;
        }
        Ok(())
    }

    async fn run<T>(
        &self,
        call: &Call,
        read: impl FnOnce(Value) -> Option<T>,
    ) -> Result<T, Unavailable> {
        let keys: Vec<_> = call.keys.iter().map(String::as_str).collect();
        let script = self.scripts.of(call.op);
        let answer = self.store.run(call.op.label(), script, &keys, &call.args);
        read(answer.await?).ok_or_else(|| {
            self.store.mark_invalid_answer(call.op.label());
            Unavailable::InvalidAnswer
        })
    }
}

// === impl TakeOver ===

impl Drop for TakeOver<'_> {
    fn drop(&mut self) {
        self.0.take_overs.fetch_add(1, Ordering::SeqCst);
        self.0.wake.notify_one();
    }
}

// === impl Scripts ===

impl Scripts {
    fn new() -> Self {
        let script = |op: Op| Script::new(op.source());
        Self {
            claim: script(Op::Claim),
            mark: script(Op::Mark),
            settle: script(Op::Settle),
            resolve: script(Op::Resolve),
            take_flow: script(Op::TakeFlow),
            publish: script(Op::Publish),
            beat: script(Op::Beat),
        }
    }

    fn of(&self, op: Op) -> &Script {
        match op {
            Op::Claim => &self.claim,
            Op::Mark => &self.mark,
            Op::Settle => &self.settle,
            Op::Resolve => &self.resolve,
            Op::TakeFlow => &self.take_flow,
            Op::Publish => &self.publish,
            Op::Beat | Op::Greet | Op::Leave => &self.beat,
        }
    }
}

#[cfg(test)]
mod tests;

//! A search for a sequence of events after which CAMS executes two calls of one key. Replicas, the
//! store and CAMS are simulated, with the real scripts and the real decisions of a replica. Each
//! run is a random sequence of events with a seed of its own, which a failure reports.
//!
//! The runs leave out what docs/exactly-once.md names as holes: the store loses a record that no
//! other replica knows while its writer is dead, silent for longer than the lease, or silent while
//! all others have just started or were silent themselves.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::ops::Range;
use std::time::{Duration, SystemTime};

use fastrand::Rng;
use tokio::time::Instant;

use super::super::member::LEASE;
use super::super::protocol::{BeatAnswer, published_epoch};
use super::super::*;
use super::fake_redis::{Data, FakeRedis, Patch, Server};
use super::scripts::{TIMES, created, name, order};
use crate::idempotency::record::{Created, Resolution, Search};

/// What is left out of the protocol, to show that the search finds its absence.
#[derive(Clone, Copy, Default)]
struct Fault {
    patches: &'static [Patch],
    /// Nothing is published in a new epoch.
    publishes_nothing: bool,
    /// An attempt is signed when it is sent, not before its mark.
    signs_late: bool,
    /// A mark of an earlier epoch is in force.
    ignores_epoch: bool,
    /// A flow that was not found is absent at once.
    settles_at_once: bool,
}

/// The flow names of the keys.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Names {
    /// Each key has its own.
    Unique,
    /// All keys have the same one.
    Same,
}

/// Simulated replicas, store and CAMS.
struct World<'a> {
    rng: Rng,
    fault: Fault,
    names: Names,
    redis: &'a FakeRedis,
    start: Instant,
    /// The data that a failover restores.
    replicated: Data,
    /// Counts the servers: the run id.
    server: u64,
    replicas: Vec<Replica>,
    /// Number of calls so far.
    calls: u64,
    messages: Vec<Message>,
    /// The flows that CAMS has created, by key.
    flows: BTreeMap<usize, Vec<u64>>,
    /// CAMS refuses nothing any more.
    is_over: bool,
    log: String,
}

struct Replica {
    name: String,
    member: Member,
    is_alive: bool,
    is_frozen: bool,
    is_cut: bool,
    has_greeted: bool,
    /// When it has become a member.
    joined_ms: Option<u64>,
    last_beat_ms: u64,
    calls: BTreeMap<usize, Local>,
    owed: BTreeMap<usize, Vec<Settlement>>,
    /// The claims of calls that may claim their keys again.
    lost_claims: BTreeMap<usize, ClaimId>,
    journal: Option<BTreeMap<usize, Journaled>>,
}

/// How far a replica is with a key.
#[derive(Clone)]
enum Local {
    Claiming(KeyClaim, ClaimReply),
    Claimed(KeyClaim),
    Signed(KeyClaim, Signed),
    Marking(KeyClaim, Signed, MarkReply),
    /// Marked; the attempt is not sent yet.
    Open(KeyClaim, Signed),
    Sent(KeyClaim, Signed, usize),
    Done(KeyClaim, u64),
    Unknown(KeyClaim, u64),
}

/// When an attempt was signed, and until when others of its call may be.
#[derive(Clone, Copy)]
struct Signed {
    at_ms: u64,
    until_ms: u64,
    is_repeated: bool,
}

#[derive(Clone)]
struct ClaimReply(SharedState);

#[derive(Clone)]
struct MarkReply {
    epoch: Box<str>,
    is_open: bool,
}

/// What the journal has of a key.
#[derive(Clone)]
enum Journaled {
    /// The attempt of this call, and when.
    Sent(Box<str>, u64),
    Done(u64),
}

/// An attempt on its way to CAMS, and what CAMS has done.
struct Message {
    key: usize,
    signed_ms: u64,
    fate: Fate,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Fate {
    OnItsWay,
    Created(u64),
    Refused,
}

const FIRST_MS: u64 = 1_800_000_000_000;
/// CAMS refuses an attempt that was signed earlier than this.
const VALIDITY_MS: u64 = 15 * 60 * 1000;
const HOLD: Duration = Duration::from_secs(30);
const STEPS: usize = 90;
const RUNS: u64 = 600;

/// The first run after which a promise is broken.
fn search(fault: Fault, names: Names, seeds: Range<u64>) -> Result<(), String> {
    let redis = FakeRedis::new(fault.patches);
    for seed in seeds {
        let mut world = World::new(&redis, seed, fault, names);
        world
            .run()
            .map_err(|broken| format!("seed {seed}: {broken}\n{}", world.log))?;
    }
    Ok(())
}

/// The search begins with a seed shortly before the first one that finds something.
fn finds(fault: Fault, from: u64) {
    let broken = search(fault, Names::Unique, from..from + 50 * RUNS);
    let broken = broken.expect_err("the search finds nothing");
    assert!(broken.contains("two flows"), "{broken}");
}

/// The same, of keys that all have one flow name.
fn finds_wrong_flow(patches: &'static [Patch]) {
    let fault = Fault {
        patches,
        ..Fault::default()
    };
    let broken = search(fault, Names::Same, 0..50 * RUNS);
    let broken = broken.expect_err("the search finds nothing");
    assert!(broken.contains("the flow of another"), "{broken}");
}

#[test]
fn cams_executes_one_call_of_a_key_whatever_fails() {
    search(Fault::default(), Names::Unique, 0..RUNS).unwrap();
}

#[test]
fn no_key_gets_the_flow_of_another_one_of_the_same_name() {
    search(Fault::default(), Names::Same, 0..RUNS).unwrap();
}

#[test]
fn without_the_owner_of_a_flow_a_key_gets_the_flow_of_another() {
    finds_wrong_flow(&[(Op::TakeFlow, "if owner and owner ~= NAME", "if false")]);
}

#[test]
fn without_the_calls_of_a_name_a_key_gets_the_flow_of_another() {
    finds_wrong_flow(&[(Op::TakeFlow, "and others()", "and nil")]);
}

#[test]
fn without_the_owner_in_the_mark_a_key_has_two_flows() {
    finds(
        Fault {
            patches: &[(Op::Mark, "or record.owner ~= CLAIM ", "")],
            ..Fault::default()
        },
        0,
    );
}

#[test]
fn without_the_gate_a_key_has_two_flows() {
    finds(
        Fault {
            patches: &[(
                Op::Claim,
                "local function is_gated(id, since, published, lease, least_age)",
                "local function is_gated() do return false end",
            )],
            ..Fault::default()
        },
        100,
    );
}

#[test]
fn without_the_publication_a_key_has_two_flows() {
    finds(
        Fault {
            publishes_nothing: true,
            ..Fault::default()
        },
        0,
    );
}

#[test]
fn without_the_time_to_settle_a_key_has_two_flows() {
    finds(
        Fault {
            settles_at_once: true,
            ..Fault::default()
        },
        200,
    );
}

#[test]
fn without_the_signature_before_the_mark_a_key_has_two_flows() {
    finds(
        Fault {
            signs_late: true,
            ..Fault::default()
        },
        500,
    );
}

#[test]
fn without_the_epoch_of_the_mark_a_key_has_two_flows() {
    finds(
        Fault {
            ignores_epoch: true,
            ..Fault::default()
        },
        2400,
    );
}

// === impl World ===

impl<'a> World<'a> {
    fn new(redis: &'a FakeRedis, seed: u64, fault: Fault, names: Names) -> Self {
        let mut rng = Rng::with_seed(seed);
        *redis.server() = Server {
            now_ms: FIRST_MS,
            data: Data::default(),
        };
        let count = rng.usize(2..=3);
        let mut world = Self {
            fault,
            names,
            redis,
            start: Instant::now(),
            replicated: Data::default(),
            server: 1,
            replicas: Vec::new(),
            calls: 0,
            messages: Vec::new(),
            flows: BTreeMap::new(),
            is_over: false,
            log: String::new(),
            rng,
        };
        for number in 0..count {
            let has_journal = world.rng.bool();
            world
                .replicas
                .push(Replica::new(format!("r{number}"), has_journal));
        }
        world.pass(5000);
        world
    }

    fn order(&self, key: usize) -> Order {
        let mut order = order(key);
        if self.names == Names::Same {
            order.flow.name = "same".into();
        }
        order
    }

    fn claim_of(&self, key: usize, id: ClaimId) -> KeyClaim {
        KeyClaim::of(name(key), &self.order(key), id)
    }

    fn now_ms(&self) -> u64 {
        self.redis.server().now_ms
    }

    fn instant(&self, at_ms: u64) -> Instant {
        self.start + Duration::from_millis(at_ms - FIRST_MS)
    }

    fn now(&self) -> Instant {
        self.instant(self.now_ms())
    }

    fn note(&mut self, what: std::fmt::Arguments<'_>) {
        let at = self.now_ms() - FIRST_MS;
        writeln!(self.log, "{at:>9} {what}").unwrap();
    }

    fn run(&mut self) -> Result<(), String> {
        let keys = match self.names {
            Names::Unique => self.rng.usize(1..=2),
            Names::Same => 2,
        };
        for _ in 0..STEPS {
            self.step(keys);
            self.check()?;
        }
        self.end(keys)
    }

    fn step(&mut self, keys: usize) {
        let (r, key) = (
            self.rng.usize(..self.replicas.len()),
            self.rng.usize(..keys),
        );
        match self.rng.u32(..100) {
            0..50 => self.advance(r, key),
            50..62 => self.cams_answers(),
            62..68 => self.lose_answer(r, key),
            68..80 => self.time_passes(),
            80..85 => self.freeze_or_thaw(r),
            85..89 => self.cut_or_heal(r),
            89..91 => self.crash_or_restart(r),
            91 => self.overlap(r),
            92..94 => self.replicated = self.redis.server().data.clone(),
            94..97 => self.lose_data(true),
            97..99 => self.lose_data(false),
            _ => self.beat(r),
        }
    }

    fn check(&self) -> Result<(), String> {
        for replica in &self.replicas {
            for (key, call) in &replica.calls {
                let own = self.flows.get(key).into_iter().flatten();
                if let Local::Done(_, flow) = call
                    && own.clone().all(|own| own != flow)
                {
                    let name = &replica.name;
                    return Err(format!("{name}: key {key} has {flow}, the flow of another"));
                }
            }
        }
        match self.flows.iter().find(|(_, flows)| flows.len() > 1) {
            Some((key, flows)) => Err(format!("key {key} has two flows: {flows:?}")),
            None => Ok(()),
        }
    }

    /// Everything is repaired; whatever is on its way arrives; every replica learns of the one flow.
    fn end(&mut self, keys: usize) -> Result<(), String> {
        self.note(format_args!("end"));
        self.is_over = true;
        for r in 0..self.replicas.len() {
            self.replicas[r].is_frozen = false;
            self.replicas[r].is_cut = false;
            if !self.replicas[r].is_alive {
                self.restart(r);
            }
        }
        // Of several flows of one name none may be handed out.
        let rounds = if self.names == Names::Same { 20 } else { 60 };
        for round in 0..rounds {
            let unlearned = self.unlearned(keys);
            if unlearned.is_none() {
                return Ok(());
            }
            for r in 0..self.replicas.len() {
                for key in 0..keys {
                    self.advance(r, key);
                    self.cams_answers();
                    self.check()?;
                }
            }
            self.pass(if round % 10 == 9 { 11 * 60_000 } else { 1000 });
        }
        if self.names == Names::Same {
            return Ok(());
        }
        self.unlearned(keys).map_or(Ok(()), Err)
    }

    /// A replica that does not know the flow of a key.
    fn unlearned(&self, keys: usize) -> Option<String> {
        for key in 0..keys {
            let flow = self.flows.get(&key).map(|flows| flows[0]);
            for replica in &self.replicas {
                let known = match replica.calls.get(&key) {
                    Some(Local::Done(_, flow)) => Some(*flow),
                    _ => None,
                };
                if known.is_none() || known != flow {
                    let name = &replica.name;
                    return Some(format!(
                        "{name} knows {known:?} of key {key}, which has {flow:?}"
                    ));
                }
            }
        }
        None
    }

    /// Time passes; replicas send heartbeats once a second, and publish when it is due. In a long
    /// time nothing else happens, so there they send none.
    fn pass(&mut self, ms: u64) {
        let long_ms = ms.saturating_sub(3000);
        let mut left = ms - long_ms;
        self.redis.server().now_ms += long_ms;
        while left > 0 {
            let slice = left.min(1000);
            self.redis.server().now_ms += slice;
            left -= slice;
            let first = self.rng.usize(..self.replicas.len());
            for at in 0..self.replicas.len() {
                self.beat((first + at) % self.replicas.len());
            }
        }
    }

    fn time_passes(&mut self) {
        let choices = [
            10,
            500,
            1000,
            2000,
            5000,
            12_000,
            45_000,
            80_000,
            10 * 60_000,
            32 * 60_000,
        ];
        let ms = choices[self.rng.usize(..choices.len())];
        self.note(format_args!("{ms} ms pass"));
        self.pass(ms);
    }

    fn run_script(&self, call: &Call) -> Value {
        self.redis.run(call)
    }

    /// Whether the replica reaches the store. It greets it first over a new connection.
    fn reaches_store(&mut self, r: usize) -> bool {
        let replica = &self.replicas[r];
        if !replica.is_alive || replica.is_frozen || replica.is_cut {
            return false;
        }
        if !replica.has_greeted {
            self.heartbeat(r, Op::Greet);
            self.replicas[r].has_greeted = true;
        }
        true
    }

    fn heartbeat(&mut self, r: usize, op: Op) {
        let now = self.now();
        let server = self.server.to_string();
        let call = self.replicas[r].member.beat(op, &server, now);
        let answer = BeatAnswer::read(self.run_script(&call)).unwrap();
        self.replicas[r].member.heard_beat(answer, now);
        self.replicas[r].last_beat_ms = self.now_ms();
    }

    /// What `SharedRecords::keep` does once a second.
    fn beat(&mut self, r: usize) {
        if !self.reaches_store(r) {
            return;
        }
        self.heartbeat(r, Op::Beat);
        if let Some(epoch) = self.replicas[r].member.unpublished() {
            let records = if self.fault.publishes_nothing {
                Vec::new()
            } else {
                self.published(r)
            };
            let call = self.replicas[r].member.publish(&records, self.now());
            assert_eq!(published_epoch(self.run_script(&call)), Some(epoch.clone()));
            self.replicas[r].member.published(&epoch);
            self.heartbeat(r, Op::Beat);
            let now = self.now_ms();
            self.replicas[r].joined_ms.get_or_insert(now);
        }
        for key in self.replicas[r].owed.keys().copied().collect::<Vec<_>>() {
            self.pay(r, key);
        }
    }

    /// The records that a replica knows.
    fn published(&self, r: usize) -> Vec<Published> {
        let calls = self.replicas[r].calls.values();
        let record = |call: &Local| {
            let (claim, end, until_ms) = match call {
                Local::Open(claim, signed) | Local::Sent(claim, signed, _) => {
                    (claim, None, signed.until_ms)
                }
                // Between two attempts of a call that is open.
                Local::Signed(claim, signed) | Local::Marking(claim, signed, _)
                    if signed.is_repeated =>
                {
                    (claim, None, signed.until_ms)
                }
                Local::Done(claim, flow) => {
                    (claim, Some(SharedEnd::Done(created(*flow))), FIRST_MS)
                }
                Local::Unknown(claim, until_ms) => (
                    claim,
                    Some(SharedEnd::Unknown { request_id: None }),
                    *until_ms,
                ),
                _ => return None,
            };
            Some(Published {
                claim: claim.clone(),
                end,
                signed_until: self.instant(until_ms),
                lifetime: TIMES.keep,
            })
        };
        calls.filter_map(record).collect()
    }

    /// The next thing that a replica does of its own for a key. A key that is at rest gets a call.
    fn advance(&mut self, r: usize, key: usize) {
        let replica = &self.replicas[r];
        if !replica.is_alive || replica.is_frozen {
            return;
        }
        match replica.calls.get(&key).cloned() {
            None => self.claim(r, key),
            Some(Local::Claiming(claim, ClaimReply(state))) => {
                self.claim_answered(r, key, claim, state)
            }
            Some(Local::Claimed(claim)) => self.sign(r, key, claim, None),
            Some(Local::Signed(claim, signed)) => self.mark(r, key, claim, signed),
            Some(Local::Marking(claim, signed, reply)) => {
                self.mark_answered(r, key, claim, signed, reply)
            }
            Some(Local::Open(claim, signed)) => self.send(r, key, claim, signed),
            Some(Local::Sent(claim, signed, message)) => {
                self.answered(r, key, claim, signed, message)
            }
            Some(Local::Unknown(claim, until_ms)) => self.look(r, key, claim, until_ms),
            Some(Local::Done(..)) => {}
        }
    }

    fn set(&mut self, r: usize, key: usize, local: Local) {
        self.note(format_args!("r{r} key {key}: {}", local.label()));
        self.replicas[r].calls.insert(key, local);
    }

    fn forget(&mut self, r: usize, key: usize, why: &str) {
        self.note(format_args!("r{r} key {key}: {why}"));
        self.replicas[r].calls.remove(&key);
    }

    fn claim(&mut self, r: usize, key: usize) {
        if !self.reaches_store(r) || !self.pay(r, key) {
            return;
        }
        let id = self.replicas[r]
            .lost_claims
            .remove(&key)
            .unwrap_or_else(|| {
                self.calls += 1;
                ClaimId::of_call(&format!("call-{}", self.calls))
            });
        let claim = self.claim_of(key, id.next());
        let member = &self.replicas[r].member;
        let call = member.claim(&claim, Some(HOLD));
        let answer = StateAnswer::read(self.run_script(&call)).unwrap();
        self.set(r, key, Local::Claiming(claim, ClaimReply(answer.state)));
    }

    fn claim_answered(&mut self, r: usize, key: usize, claim: KeyClaim, state: SharedState) {
        let now = self.now_ms();
        match state {
            SharedState::Mine => self.set(r, key, Local::Claimed(claim)),
            SharedState::Done(Created { flow_id, .. }) => {
                self.set(r, key, Local::Done(claim, flow_id.parse().unwrap()));
            }
            SharedState::Unknown(record) => {
                let id = ClaimId::of_call(&record.calls[0]);
                let until_ms = now.saturating_add_signed(record.until_ms).max(FIRST_MS);
                self.set(r, key, Local::Unknown(KeyClaim { id, ..claim }, until_ms));
            }
            SharedState::Mismatch => panic!("all calls of a key are equal"),
            SharedState::Claimed(_)
            | SharedState::Open(_)
            | SharedState::Gated
            | SharedState::Absent => {
                self.forget(r, key, "waits");
            }
        }
    }

    fn sign(&mut self, r: usize, key: usize, claim: KeyClaim, earlier: Option<Signed>) {
        let now = self.now_ms();
        let hold = u64::try_from(HOLD.as_millis()).unwrap();
        let signed = Signed {
            at_ms: now,
            until_ms: earlier.map_or(now + hold, |earlier| earlier.until_ms.max(now)),
            is_repeated: earlier.is_some(),
        };
        self.set(r, key, Local::Signed(claim, signed));
    }

    fn mark(&mut self, r: usize, key: usize, claim: KeyClaim, signed: Signed) {
        if !self.reaches_store(r) {
            self.unmarked(r, key, &claim);
            return;
        }
        let now = self.now_ms();
        let remaining = Duration::from_millis(signed.until_ms.saturating_sub(now));
        let call = self.replicas[r].member.mark(&claim, remaining);
        let MarkAnswer { epoch, is_open } = MarkAnswer::read(self.run_script(&call)).unwrap();
        let until_ms = signed.until_ms.max(now);
        let signed = Signed { until_ms, ..signed };
        self.set(
            r,
            key,
            Local::Marking(claim, signed, MarkReply { epoch, is_open }),
        );
    }

    fn mark_answered(
        &mut self,
        r: usize,
        key: usize,
        claim: KeyClaim,
        signed: Signed,
        reply: MarkReply,
    ) {
        let MarkReply { epoch, is_open } = reply;
        let answer = MarkAnswer { epoch, is_open };
        let ignores = self.fault.ignores_epoch && answer.is_open;
        if ignores || self.replicas[r].member.is_marked(&answer) {
            self.set(r, key, Local::Open(claim, signed));
        } else {
            self.unmarked(r, key, &claim);
        }
    }

    /// Nothing is sent, and what was sent earlier was refused. The call may claim its key again.
    fn unmarked(&mut self, r: usize, key: usize, claim: &KeyClaim) {
        let released = Settlement::released(claim, self.now());
        self.replicas[r].owed.entry(key).or_default().push(released);
        if self.rng.bool() {
            self.replicas[r].lost_claims.insert(key, claim.id.clone());
        }
        self.forget(r, key, "not marked");
    }

    fn send(&mut self, r: usize, key: usize, claim: KeyClaim, signed: Signed) {
        let now = self.now_ms();
        if let Some(journal) = &mut self.replicas[r].journal {
            journal.insert(key, Journaled::Sent(claim.id.call.clone(), now));
        }
        let signed_ms = if self.fault.signs_late {
            now
        } else {
            signed.at_ms
        };
        let fate = Fate::OnItsWay;
        self.messages.push(Message {
            key,
            signed_ms,
            fate,
        });
        self.set(r, key, Local::Sent(claim, signed, self.messages.len() - 1));
    }

    fn answered(&mut self, r: usize, key: usize, claim: KeyClaim, signed: Signed, message: usize) {
        match self.messages[message].fate {
            Fate::OnItsWay => {}
            Fate::Created(flow) => self.done(r, key, claim, flow),
            // Throttled: it is sent again, or its caller has gone.
            Fate::Refused if self.rng.bool() => self.sign(r, key, claim, Some(signed)),
            Fate::Refused => {
                if let Some(journal) = &mut self.replicas[r].journal {
                    journal.remove(&key);
                }
                self.settle(r, key, &claim, SharedEnd::Released, self.now());
                self.forget(r, key, "refused");
            }
        }
    }

    fn done(&mut self, r: usize, key: usize, claim: KeyClaim, flow: u64) {
        self.settle(r, key, &claim, SharedEnd::Done(created(flow)), self.now());
        self.learned(r, key, claim, flow);
    }

    fn learned(&mut self, r: usize, key: usize, claim: KeyClaim, flow: u64) {
        if let Some(journal) = &mut self.replicas[r].journal {
            journal.insert(key, Journaled::Done(flow));
        }
        self.set(r, key, Local::Done(claim, flow));
    }

    fn settle(
        &mut self,
        r: usize,
        key: usize,
        claim: &KeyClaim,
        end: SharedEnd,
        signed_until: Instant,
    ) {
        let claim = claim.clone();
        let settlement = Settlement {
            claim,
            end,
            signed_until,
        };
        self.replicas[r]
            .owed
            .entry(key)
            .or_default()
            .push(settlement);
        if self.rng.u32(..4) > 0 {
            self.pay(r, key);
        }
    }

    /// Settles what the store does not know. False: it cannot be reached.
    fn pay(&mut self, r: usize, key: usize) -> bool {
        let owed = self.replicas[r].owed.remove(&key).unwrap_or_default();
        for (at, settlement) in owed.iter().enumerate() {
            if !self.reaches_store(r) {
                self.replicas[r].owed.insert(key, owed[at..].to_vec());
                return false;
            }
            let call = self.replicas[r].member.settle(settlement, self.now());
            let answer = SettleAnswer::read(self.run_script(&call)).unwrap();
            let is_heard = self.replicas[r].member.is_current(&answer.epoch);
            if !is_heard && answer.settled == Settled::Yes {
                let again = settlement.clone();
                self.replicas[r].owed.entry(key).or_default().push(again);
            }
        }
        true
    }

    /// Asks the store, then looks for the flow.
    fn look(&mut self, r: usize, key: usize, claim: KeyClaim, until_ms: u64) {
        if !self.reaches_store(r) || !self.pay(r, key) {
            return;
        }
        let call = self.replicas[r].member.claim(&claim, None);
        let state = StateAnswer::read(self.run_script(&call)).unwrap().state;
        match state.end_of(&self.unknown(key, &claim)) {
            Some(Resolution::CreatedElsewhere(Created { flow_id, .. })) => {
                self.set(r, key, Local::Done(claim, flow_id.parse().unwrap()));
                return;
            }
            // Another replica has resolved it, in the epoch in which this one has published it.
            Some(_) => {
                self.forget(r, key, "has ended");
                return;
            }
            None => {}
        }
        if let SharedState::Unknown(record) = state {
            let ends_ms = self.now_ms().saturating_add_signed(record.until_ms);
            let until_ms = until_ms.max(ends_ms);
            self.replicas[r]
                .calls
                .insert(key, Local::Unknown(claim.clone(), until_ms));
            self.look_at_cams(r, key, claim, until_ms);
        }
    }

    /// The unknown outcome of a call.
    fn unknown(&self, key: usize, claim: &KeyClaim) -> UnknownOutcome {
        let order = Order {
            request_id: claim.id.call.clone(),
            ..self.order(key)
        };
        UnknownOutcome {
            reason: "the test lost it".into(),
            request_id: None,
            order: Arc::new(order),
            attempt: None,
            at: SystemTime::UNIX_EPOCH,
            ended: self.start,
            stamped_until: self.start,
            search: Search::Active,
        }
    }

    fn look_at_cams(&mut self, r: usize, key: usize, claim: KeyClaim, until_ms: u64) {
        let order = self.order(key);
        let listed: Vec<_> = self
            .flows
            .iter()
            .filter(|(other, _)| self.order(**other).flow == order.flow)
            .flat_map(|(_, flows)| flows)
            .copied()
            .collect();
        if let [flow] = *listed {
            let member = &self.replicas[r].member;
            let call = member.take_flow(name(key), &order, &flow.to_string(), LearnedBy::Look);
            let taken = TakeAnswer::read(self.run_script(&call)).unwrap().taken;
            self.note(format_args!("r{r} key {key} finds {flow}: {taken:?}"));
            if taken == Taken::Mine
                && self.resolve(r, &claim, SharedEnd::Found(created(flow))) == Settled::Yes
            {
                self.learned(r, key, claim.clone(), flow);
            }
        }
        if !listed.is_empty() {
            return;
        }
        let settle_ms = u64::try_from(TIMES.settle.as_millis()).unwrap();
        if !self.fault.settles_at_once && self.now_ms() < until_ms + settle_ms {
            return;
        }
        let end = if self.fault.settles_at_once {
            SharedEnd::SettledNotCreated
        } else {
            SharedEnd::Absent
        };
        if self.resolve(r, &claim, end) == Settled::Yes {
            if let Some(journal) = &mut self.replicas[r].journal {
                journal.remove(&key);
            }
            self.forget(r, key, "absent");
        }
    }

    /// Ends the unknown outcome of the call of this claim.
    fn resolve(&self, r: usize, claim: &KeyClaim, end: SharedEnd) -> Settled {
        let now = self.now();
        let resolution = Settlement {
            claim: claim.clone(),
            end,
            signed_until: now,
        };
        let call = self.replicas[r].member.settle(&resolution, now);
        SettleAnswer::read(self.run_script(&call)).unwrap().settled
    }

    /// CAMS executes or refuses an attempt, unless its signature is too old.
    fn cams_answers(&mut self) {
        let waiting: Vec<_> = (0..self.messages.len())
            .filter(|message| self.messages[*message].fate == Fate::OnItsWay)
            .collect();
        if waiting.is_empty() {
            return;
        }
        let number = waiting[self.rng.usize(..waiting.len())];
        let now = self.now_ms();
        let Message { key, signed_ms, .. } = self.messages[number];
        let is_valid = now <= signed_ms + VALIDITY_MS;
        let fate = if is_valid && (self.is_over || self.rng.u32(..4) > 0) {
            let flow = 100 + number as u64;
            self.flows.entry(key).or_default().push(flow);
            Fate::Created(flow)
        } else {
            Fate::Refused
        };
        self.messages[number].fate = fate;
        self.note(format_args!("CAMS, key {key}: {}", fate.label()));
    }

    /// The answer that a replica waits for is lost.
    fn lose_answer(&mut self, r: usize, key: usize) {
        if !self.replicas[r].is_alive || self.replicas[r].is_frozen {
            return;
        }
        match self.replicas[r].calls.get(&key).cloned() {
            Some(Local::Claiming(claim, _) | Local::Marking(claim, ..)) => {
                self.unmarked(r, key, &claim)
            }
            Some(Local::Sent(claim, signed, _)) => {
                let end = SharedEnd::Unknown { request_id: None };
                self.settle(r, key, &claim, end, self.instant(signed.until_ms));
                self.set(r, key, Local::Unknown(claim, signed.until_ms));
            }
            _ => {}
        }
    }

    fn freeze_or_thaw(&mut self, r: usize) {
        let is_frozen = !self.replicas[r].is_frozen;
        if is_frozen && !self.may_fall_silent() {
            return;
        }
        self.replicas[r].is_frozen = is_frozen;
        self.note(format_args!("r{r} is frozen: {is_frozen}"));
    }

    fn cut_or_heal(&mut self, r: usize) {
        let is_cut = !self.replicas[r].is_cut;
        if is_cut && !self.may_fall_silent() {
            return;
        }
        let replica = &mut self.replicas[r];
        replica.is_cut = is_cut;
        replica.has_greeted &= !is_cut;
        self.note(format_args!("r{r} is cut off: {is_cut}"));
    }

    fn crash_or_restart(&mut self, r: usize) {
        if !self.replicas[r].is_alive {
            self.restart(r);
        } else if self.may_fall_silent() {
            self.note(format_args!("r{r} crashes"));
            self.replicas[r].is_alive = false;
        }
    }

    fn restart(&mut self, r: usize) {
        self.note(format_args!("r{r} restarts"));
        self.replicas[r] = self.successor(r);
    }

    /// A later process reads the journal of one that still runs.
    fn overlap(&mut self, r: usize) {
        if self.replicas.len() < 4 && self.replicas[r].is_alive {
            self.note(format_args!("a later process begins beside r{r}"));
            let successor = self.successor(r);
            self.replicas.push(successor);
        }
    }

    /// A process that knows what the journal of this one has.
    fn successor(&self, r: usize) -> Replica {
        let before = &self.replicas[r];
        let mut replica = Replica::new(format!("{}'", before.name), false);
        replica.journal = before.journal.clone();
        for (key, line) in before.journal.iter().flatten() {
            let local = match line {
                Journaled::Sent(call, at_ms) => {
                    Local::Unknown(self.claim_of(*key, ClaimId::of_call(call)), *at_ms)
                }
                Journaled::Done(flow) => {
                    Local::Done(self.claim_of(*key, ClaimId::of_call("")), *flow)
                }
            };
            replica.calls.insert(*key, local);
        }
        replica
    }

    /// A flush, or a failover to a server that lacks the last writes. Not if that loses what only a
    /// silent replica knows.
    fn lose_data(&mut self, is_flush: bool) {
        if !self.is_all_known() || !self.has_witness() {
            return;
        }
        let lost = if is_flush {
            Data::default()
        } else {
            self.replicated.clone()
        };
        self.redis.server().data = lost;
        if !is_flush {
            self.server += 1;
            for replica in &mut self.replicas {
                replica.has_greeted = false;
            }
        }
        self.note(format_args!(
            "{}",
            if is_flush { "flush" } else { "failover" }
        ));
        // Who is silent now keeps the gate closed only as long as its lease.
        let silent: Vec<_> = (0..self.replicas.len())
            .filter(|r| {
                self.replicas[*r].is_alive
                    && (self.replicas[*r].is_frozen || self.replicas[*r].is_cut)
            })
            .collect();
        for r in silent {
            if self.rng.bool() {
                self.pass_within_lease(r);
            }
            self.replicas[r].is_frozen = false;
            self.replicas[r].is_cut = false;
            self.note(format_args!("r{r} is back"));
        }
        self.beat_all_but_frozen();
    }

    /// Time in which others may act while a replica is silent, within its lease.
    fn pass_within_lease(&mut self, r: usize) {
        let lease_ms = u64::try_from(LEASE.as_millis()).unwrap();
        for _ in 0..4 {
            let silent_ms = self.now_ms() - self.replicas[r].last_beat_ms;
            if silent_ms + 2000 >= lease_ms {
                return;
            }
            self.pass(1000);
            let other = self.rng.usize(..self.replicas.len());
            for _ in 0..4 {
                self.advance(other, 0);
            }
            self.cams_answers();
        }
    }

    fn beat_all_but_frozen(&mut self) {
        if self.rng.bool() {
            let first = self.rng.usize(..self.replicas.len());
            self.beat(first);
        }
    }

    fn may_fall_silent(&self) -> bool {
        self.is_all_in_store()
    }

    /// Whether the store has a record of every key that CAMS has executed or may execute.
    fn is_all_in_store(&self) -> bool {
        self.keys_at_cams().all(|key| {
            let record = format!("flowgate:{{once}}:{}", name(key).hex());
            let value = self.redis.server().get(&record);
            value.is_some_and(|value| !value.starts_with('c'))
        })
    }

    /// Whether every key that CAMS has executed or may execute is known to a replica that lives,
    /// and was heard within the last seconds.
    fn is_all_known(&self) -> bool {
        let knows = |replica: &Replica, key: usize| {
            let is_heard = replica.last_beat_ms + 4000 > self.now_ms();
            let call = replica.calls.get(&key);
            self.is_member(replica) && is_heard && call.is_some_and(Local::is_known)
        };
        self.keys_at_cams()
            .all(|key| self.replicas.iter().any(|replica| knows(replica, key)))
    }

    /// Whether a replica knows of those that are silent, and can say so.
    fn has_witness(&self) -> bool {
        let is_silent = |replica: &Replica| replica.is_frozen || replica.is_cut;
        let mut silent = self.replicas.iter().filter(|replica| is_silent(replica));
        silent.all(|silent| {
            let knows = |other: &Replica| {
                let is_heard = other.last_beat_ms >= silent.last_beat_ms;
                !is_silent(other) && self.is_member(other) && is_heard
            };
            self.replicas.iter().any(knows)
        })
    }

    /// Whether a replica lives, and has been a member long enough for all to know of it.
    fn is_member(&self, replica: &Replica) -> bool {
        let joined = replica.joined_ms.map(|joined| joined + 3000);
        replica.is_alive && joined.is_some_and(|known| known <= self.now_ms())
    }

    /// The keys of which something was sent or may be sent, and not refused.
    fn keys_at_cams(&self) -> impl Iterator<Item = usize> {
        let sent = self
            .messages
            .iter()
            .filter(|message| message.fate != Fate::Refused);
        let calls = self.replicas.iter().flat_map(|replica| &replica.calls);
        let open = calls.filter(|(_, call)| call.is_known());
        sent.map(|message| message.key)
            .chain(open.map(|(key, _)| *key))
    }
}

// === impl Replica ===

impl Replica {
    fn new(name: String, has_journal: bool) -> Self {
        Self {
            member: Member::new("flowgate:", &name, TIMES),
            name,
            is_alive: true,
            is_frozen: false,
            is_cut: false,
            has_greeted: false,
            joined_ms: None,
            last_beat_ms: 0,
            calls: BTreeMap::new(),
            owed: BTreeMap::new(),
            lost_claims: BTreeMap::new(),
            journal: has_journal.then(BTreeMap::new),
        }
    }
}

// === impl Local ===

impl Local {
    /// Whether something of it may be at CAMS, now or soon.
    fn is_known(&self) -> bool {
        match self {
            Self::Open(..) | Self::Sent(..) | Self::Done(..) | Self::Unknown(..) => true,
            Self::Marking(_, _, reply) => reply.is_open,
            Self::Claiming(..) | Self::Claimed(_) | Self::Signed(..) => false,
        }
    }

    fn label(&self) -> String {
        match self {
            Self::Claiming(claim, reply) => {
                format!("claiming as {}: {:?}", claim.id, reply.0)
            }
            Self::Claimed(_) => "claimed".to_owned(),
            Self::Signed(..) => "signed".to_owned(),
            Self::Marking(_, _, reply) => format!("marking, open: {}", reply.is_open),
            Self::Open(..) => "open".to_owned(),
            Self::Sent(..) => "sent".to_owned(),
            Self::Done(_, flow) => format!("done: {flow}"),
            Self::Unknown(..) => "unknown".to_owned(),
        }
    }
}

// === impl Fate ===

impl Fate {
    fn label(self) -> String {
        match self {
            Self::OnItsWay => "waits".to_owned(),
            Self::Created(flow) => format!("creates {flow}"),
            Self::Refused => "refuses".to_owned(),
        }
    }
}

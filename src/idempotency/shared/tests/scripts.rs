//! Each script for itself, in simulated time.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime};

use tokio::time::Instant;

use super::super::member::{KEEP_OPEN, LEASE, LEAST_AGE};
use super::super::protocol::BeatAnswer;
use super::super::*;
use super::fake_redis::FakeRedis;
use crate::idempotency::fingerprint::Fingerprint;
use crate::idempotency::record::{Created, FlowDescription, Order, OrderKind, Resolution, Search};
use crate::primitives::id::{AccountId, ClientId};

const HOLD: Duration = Duration::from_secs(30);
pub(super) const TIMES: Times = Times {
    keep: Duration::from_secs(24 * 3600),
    answer_timeout: Duration::from_secs(10),
    settle: Duration::from_secs(31 * 60),
};

/// A server with two replicas, and its clock.
struct Harness {
    redis: FakeRedis,
    start: Instant,
    a: Member,
    b: Member,
}

/// The record name of the key with this number.
pub(super) fn name(number: usize) -> RecordName {
    RecordName::parse(&format!("{number:032x}")).unwrap()
}

/// The fingerprint of the order with this number.
pub(super) fn print(number: usize) -> Fingerprint {
    Fingerprint::parse(&format!("{number:016x}")).unwrap()
}

/// The order with this number.
pub(super) fn order(number: usize) -> Order {
    Order {
        account: AccountId::new("acme"),
        client: ClientId::new("team-a"),
        kind: OrderKind::Keyed,
        fingerprint: print(number),
        request_id: "R".into(),
        flow: FlowDescription {
            name: format!("flow-{number}").into(),
            space: "".into(),
            categories: vec!["SIGN_UP".to_owned()],
        },
    }
}

pub(super) fn created(flow: u64) -> Created {
    Created {
        flow_id: flow.to_string().into(),
        request_id: Some("01234567-89AB-CDEF-0123-456789ABCDEF".into()),
    }
}

/// The first claim of another call of the key.
fn claim() -> KeyClaim {
    claim_of(1)
}

/// The same of the key with this number.
pub(super) fn claim_of(number: usize) -> KeyClaim {
    static CALLS: AtomicU64 = AtomicU64::new(0);
    let call = format!("call-{}", CALLS.fetch_add(1, Ordering::Relaxed));
    let id = ClaimId::of_call(&call).next();
    KeyClaim::of(name(number), &order(number), id)
}

// === impl Harness ===

impl Harness {
    /// Both replicas are members of an epoch that is old enough.
    fn new() -> Self {
        let mut harness = Self {
            redis: FakeRedis::new(&[]),
            start: Instant::now(),
            a: Member::new("flowgate:", "a", TIMES),
            b: Member::new("flowgate:", "b", TIMES),
        };
        harness.redis.server().now_ms = 1_800_000_000_000;
        harness.join();
        harness.pass(LEAST_AGE);
        harness
    }

    /// Both replicas publish nothing in the present epoch, and are members of it.
    fn join(&mut self) {
        for _ in 0..2 {
            for name in ["a", "b"] {
                let epoch = self.beat(name, Op::Beat);
                self.member(name).published(&epoch);
            }
        }
    }

    fn member(&mut self, name: &str) -> &mut Member {
        if name == "a" {
            &mut self.a
        } else {
            &mut self.b
        }
    }

    fn now(&self) -> Instant {
        let passed = self.redis.server().now_ms - 1_800_000_000_000;
        self.start + Duration::from_millis(passed)
    }

    fn pass(&mut self, time: Duration) {
        self.redis.server().now_ms += u64::try_from(time.as_millis()).unwrap();
    }

    fn beat(&mut self, name: &str, op: Op) -> Box<str> {
        let now = self.now();
        let call = self.member(name).beat(op, "run", now);
        let answer = BeatAnswer::read(self.redis.run(&call)).unwrap();
        let epoch = answer.epoch.clone();
        self.member(name).heard_beat(answer, now);
        epoch
    }

    fn claim(&mut self, name: &str, claim: &KeyClaim) -> SharedState {
        let call = self.member(name).claim(claim, Some(HOLD));
        StateAnswer::read(self.redis.run(&call)).unwrap().state
    }

    fn mark(&mut self, name: &str, claim: &KeyClaim) -> bool {
        let call = self.member(name).mark(claim, HOLD);
        let answer = MarkAnswer::read(self.redis.run(&call)).unwrap();
        self.member(name).is_marked(&answer)
    }

    fn settle(&mut self, claim: &KeyClaim, end: SharedEnd) -> bool {
        self.settled(claim, end) == Settled::Yes
    }

    fn settled(&mut self, claim: &KeyClaim, end: SharedEnd) -> Settled {
        let settlement = Settlement {
            claim: claim.clone(),
            end,
            signed_until: self.now(),
        };
        let call = self.a.settle(&settlement, self.now());
        SettleAnswer::read(self.redis.run(&call)).unwrap().settled
    }

    /// Publishes an attempt that may be under way, or an unknown outcome.
    fn publish(&mut self, claim: &KeyClaim, end: Option<SharedEnd>) {
        let published = Published {
            claim: claim.clone(),
            end,
            signed_until: self.now(),
            lifetime: KEEP_OPEN,
        };
        let call = self.b.publish(&[published], self.now());
        self.redis.run(&call);
    }

    /// What the store has of a key that a call of it has claimed or sent.
    fn read(&mut self) -> SharedState {
        let call = self.a.claim(&claim(), None);
        StateAnswer::read(self.redis.run(&call)).unwrap().state
    }

    /// Whether the outcome of exactly these calls is unknown.
    fn is_unknown(&mut self, claims: &[&KeyClaim]) -> bool {
        let calls = claims.iter().map(|claim| &claim.id.call);
        matches!(self.read(), SharedState::Unknown(record) if record.calls.iter().eq(calls))
    }
}

#[test]
fn a_clock_of_the_server_that_is_set_back_stops_no_key_for_longer_than_a_new_epoch() {
    for (back, is_young) in [
        (1, false),
        (20, false),
        (900, false),
        (20, true),
        (900, true),
    ] {
        let mut harness = Harness::new();
        harness.pass(Duration::from_secs(1000));
        if is_young {
            // The epoch begins later than the time to which the clock is set back.
            harness.redis.server().data = Default::default();
            harness.join();
            harness.pass(LEAST_AGE);
        }
        harness.join();
        let known = claim();
        harness.claim("a", &known);
        harness.redis.server().now_ms -= back * 1000;
        harness.start += Duration::from_secs(back);
        // The other one has died.
        harness.beat("b", Op::Beat);
        if is_young {
            let early = claim_of(3);
            let state = harness.claim("b", &early);
            assert_eq!(state, SharedState::Gated, "{back} s");
        }
        harness.pass(LEAST_AGE);
        harness.beat("b", Op::Beat);
        assert!(harness.mark("a", &known), "{back} s: a claim stays");
        let other = claim_of(2);
        let state = harness.claim("b", &other);
        assert!(matches!(state, SharedState::Mine), "{back} s: {state:?}");
        // A member that has died is forgotten after its lease, not after the step.
        harness.pass(LEASE);
        harness.beat("b", Op::Beat);
        let members = harness.redis.server().fields("flowgate:{once}:members");
        assert_eq!(members, ["b"], "{back} s");
    }
}

#[test]
fn a_flow_belongs_to_one_key_of_all_replicas() {
    let mut harness = Harness::new();
    let a = claim();
    harness.claim("a", &a);
    harness.mark("a", &a);
    let take = |harness: &mut Harness, number, flow: &str, by| {
        // Other keys with the same flow name.
        let call = harness.b.take_flow(name(number), &order(1), flow, by);
        TakeAnswer::read(harness.redis.run(&call)).unwrap().taken
    };
    let look = LearnedBy::Look;
    assert_eq!(take(&mut harness, 2, "7", look), Taken::OtherOpen);
    assert_eq!(take(&mut harness, 1, "7", look), Taken::Mine);
    assert_eq!(take(&mut harness, 2, "7", look), Taken::Owned);
    harness.settle(&a, SharedEnd::Unknown { request_id: None });
    assert_eq!(take(&mut harness, 2, "8", look), Taken::OtherUnknown);
    assert_eq!(take(&mut harness, 2, "8", LearnedBy::Word), Taken::Mine);
    harness.settle(&a, SharedEnd::Done(created(7)));
    assert_eq!(take(&mut harness, 2, "8", look), Taken::Mine);
    assert_eq!(take(&mut harness, 2, "7", LearnedBy::Word), Taken::Owned);
    assert_eq!(take(&mut harness, 2, "9", LearnedBy::Answer), Taken::Mine);
    assert_eq!(take(&mut harness, 3, "9", look), Taken::Owned);
}

#[test]
fn the_flow_of_a_call_without_a_key_is_its_own_at_all_processes() {
    let mut harness = Harness::new();
    let of_call = |request_id: &str| Order {
        kind: OrderKind::Equal,
        request_id: request_id.into(),
        ..order(1)
    };
    let take = |harness: &mut Harness, request_id: &str, flow: &str, by| {
        let mut taken = Vec::new();
        for member in [&harness.a, &harness.b] {
            // Equal orders have one record name.
            let call = member.take_flow(name(1), &of_call(request_id), flow, by);
            taken.push(TakeAnswer::read(harness.redis.run(&call)).unwrap().taken);
        }
        assert_eq!(taken[0], taken[1]);
        taken.remove(0)
    };
    let [look, word] = [LearnedBy::Look, LearnedBy::Word];
    for (flow, learned) in [("7", look), ("8", LearnedBy::Answer)] {
        assert_eq!(take(&mut harness, "R-1", flow, learned), Taken::Mine);
        assert_eq!(take(&mut harness, "R-1", flow, look), Taken::Mine);
        assert_eq!(take(&mut harness, "R-1", flow, word), Taken::Mine);
        assert_eq!(take(&mut harness, "R-2", flow, look), Taken::Owned);
        assert_eq!(take(&mut harness, "R-2", flow, word), Taken::Owned);
    }
}

#[test]
fn calls_that_have_created_nothing_do_not_keep_a_flow_from_another() {
    let mut harness = Harness::new();
    for end in [SharedEnd::Released, SharedEnd::SettledNotCreated] {
        let a = claim();
        harness.claim("a", &a);
        harness.mark("a", &a);
        if end == SharedEnd::SettledNotCreated {
            harness.settle(&a, SharedEnd::Unknown { request_id: None });
        }
        assert!(harness.settle(&a, end));
        let call = harness
            .b
            .take_flow(name(2), &order(1), "7", LearnedBy::Look);
        let answer = TakeAnswer::read(harness.redis.run(&call)).unwrap();
        assert_eq!(answer.taken, Taken::Mine);
    }
}

#[test]
fn a_flow_is_not_taken_while_a_replica_may_know_its_owner() {
    let harness = Harness::new();
    harness.redis.server().data = Default::default();
    let call = harness
        .b
        .take_flow(name(2), &order(2), "7", LearnedBy::Look);
    let answer = TakeAnswer::read(harness.redis.run(&call)).unwrap();
    assert_eq!(answer.taken, Taken::Gated);
}

#[test]
fn a_key_is_claimed_marked_and_done_for_all_replicas() {
    let mut harness = Harness::new();
    let [a, b] = [claim(), claim()];
    assert_eq!(harness.claim("a", &a), SharedState::Mine);
    assert_eq!(harness.claim("a", &a), SharedState::Mine, "once more");
    assert!(matches!(harness.claim("b", &b), SharedState::Claimed(_)));
    assert!(!harness.mark("b", &b) && harness.mark("a", &a));
    assert!(matches!(harness.claim("b", &b), SharedState::Open(_)));
    assert!(harness.settle(&a, SharedEnd::Done(created(7))));
    assert_eq!(harness.claim("b", &b), SharedState::Done(created(7)));
    assert!(!harness.mark("a", &a), "it has ended");
    harness.pass(TIMES.keep - Duration::from_millis(1));
    assert_eq!(harness.claim("b", &b), SharedState::Done(created(7)));
    harness.pass(Duration::from_millis(1));
    assert_eq!(harness.claim("b", &b), SharedState::Mine);
}

#[test]
fn another_order_is_a_mismatch_in_every_state() {
    let mut harness = Harness::new();
    let a = claim();
    let other = KeyClaim {
        print: print(2),
        ..claim()
    };
    harness.claim("a", &a);
    assert_eq!(harness.claim("b", &other), SharedState::Mismatch);
    harness.mark("a", &a);
    assert_eq!(harness.claim("b", &other), SharedState::Mismatch);
    harness.settle(&a, SharedEnd::Done(created(7)));
    assert_eq!(harness.claim("b", &other), SharedState::Mismatch);
}

#[test]
fn a_claim_lapses_and_cannot_be_marked_then() {
    let mut harness = Harness::new();
    let [a, b] = [claim(), claim()];
    harness.claim("a", &a);
    harness.pass(HOLD + Duration::from_secs(10));
    assert!(!harness.mark("a", &a));
    harness.join();
    assert_eq!(harness.claim("b", &b), SharedState::Mine);
    assert!(!harness.mark("a", &a) && harness.mark("b", &b));
}

#[test]
fn only_its_owner_releases_a_claim() {
    let mut harness = Harness::new();
    let [a, b] = [claim(), claim()];
    harness.claim("a", &a);
    assert!(!harness.settle(&b, SharedEnd::Released));
    assert!(matches!(harness.claim("b", &b), SharedState::Claimed(_)));
    assert!(harness.settle(&a, SharedEnd::Released));
    assert_eq!(harness.claim("b", &b), SharedState::Mine);
}

#[test]
fn an_open_record_of_a_dead_owner_is_unknown_and_absent_only_after_it_has_settled() {
    let mut harness = Harness::new();
    let [a, b] = [claim(), claim()];
    harness.claim("a", &a);
    harness.mark("a", &a);
    harness.pass(HOLD + TIMES.answer_timeout + Duration::from_secs(30));
    assert!(matches!(harness.claim("b", &b), SharedState::Open(_)));
    harness.pass(Duration::from_millis(1));
    let SharedState::Unknown(record) = harness.claim("b", &b) else {
        panic!("it is unknown")
    };
    assert!(record.is_of(&a.id.call) && record.calls.len() == 1);
    assert_eq!(record.until_ms, -40_001);
    harness.pass(TIMES.settle - Duration::from_millis(40_002));
    assert!(!harness.settle(&a, SharedEnd::Absent));
    harness.pass(Duration::from_millis(1));
    assert!(!harness.settle(&b, SharedEnd::Absent), "another attempt");
    assert!(harness.settle(&a, SharedEnd::Absent));
    harness.join();
    assert_eq!(harness.claim("b", &b), SharedState::Mine);
}

#[test]
fn of_two_words_on_an_unknown_outcome_the_first_holds() {
    let word = || SharedEnd::SettledCreated(created(7));
    let unknown = |harness: &mut Harness| {
        let claim = claim();
        assert_eq!(harness.claim("a", &claim), SharedState::Mine);
        assert!(harness.mark("a", &claim));
        assert!(!harness.settle(&claim, word()), "it is under way");
        harness.settle(&claim, SharedEnd::Unknown { request_id: None });
        claim
    };
    let mut harness = Harness::new();
    let a = unknown(&mut harness);
    assert!(harness.settle(&a, word()));
    assert!(!harness.settle(&a, SharedEnd::SettledCreated(created(8))));
    assert!(!harness.settle(&a, SharedEnd::SettledNotCreated));
    let b = claim();
    assert_eq!(harness.claim("b", &b), SharedState::Done(created(7)));

    let mut harness = Harness::new();
    let a = unknown(&mut harness);
    assert!(harness.settle(&a, SharedEnd::SettledNotCreated));
    assert!(!harness.settle(&a, word()), "it has ended");
    let again = harness.settled(&a, SharedEnd::SettledNotCreated);
    assert_eq!(again, Settled::Kept(SharedState::Absent), "the same word");
    let b = claim();
    assert_eq!(harness.claim("b", &b), SharedState::Mine);
    assert!(!harness.settle(&a, word()), "another call is under way");
    assert!(harness.mark("b", &b));
    harness.settle(&b, SharedEnd::Unknown { request_id: None });
    assert!(!harness.settle(&a, word()), "another call is unknown");
    assert!(harness.settle(&b, word()));
}

#[test]
fn a_word_does_not_give_the_flow_of_another_call() {
    let mut harness = Harness::new();
    let a = claim();
    let other = claim_of(2);
    for (replica, claim) in [("a", &a), ("b", &other)] {
        harness.claim(replica, claim);
        harness.mark(replica, claim);
        harness.settle(claim, SharedEnd::Unknown { request_id: None });
    }
    let word = || SharedEnd::SettledCreated(created(7));
    assert!(harness.settle(&other, word()));
    assert_eq!(harness.settled(&a, word()), Settled::FlowOfAnother);
    let found = harness.claim("a", &a);
    assert!(matches!(found, SharedState::Unknown(_)), "{found:?}");
    assert!(harness.settle(&a, SharedEnd::SettledCreated(created(8))));
}

#[test]
fn the_stronger_state_wins_a_publication() {
    let mut harness = Harness::new();
    let a = claim();
    let publish = |harness: &mut Harness, end: Option<SharedEnd>| {
        let published = Published {
            claim: a.clone(),
            end,
            signed_until: harness.now(),
            lifetime: KEEP_OPEN,
        };
        let call = harness.a.publish(&[published], harness.now());
        harness.redis.run(&call);
        let key = format!("flowgate:{{once}}:{}", a.name.hex());
        harness.redis.server().get(&key).unwrap()[..1].to_owned()
    };
    let unknown = || Some(SharedEnd::Unknown { request_id: None });
    let done = || Some(SharedEnd::Done(created(7)));
    let mut states = String::new();
    for end in [None, unknown(), None, done(), unknown(), None] {
        states += &publish(&mut harness, end);
    }
    assert_eq!(states, "ouuddd");
    publish(&mut harness, Some(SharedEnd::Done(created(8))));
    assert_eq!(harness.read(), SharedState::Done(created(7)));
}

#[test]
fn a_publication_shortens_no_time_in_which_cams_may_execute_the_call() {
    for (signed_for, until) in [(Duration::ZERO, HOLD), (2 * HOLD, 2 * HOLD)] {
        let mut harness = Harness::new();
        let a = claim();
        harness.claim("a", &a);
        harness.mark("a", &a);
        let published = Published {
            claim: a.clone(),
            end: Some(SharedEnd::Unknown { request_id: None }),
            signed_until: harness.now() + signed_for,
            lifetime: KEEP_OPEN,
        };
        let call = harness.b.publish(&[published], harness.now());
        harness.redis.run(&call);
        let SharedState::Unknown(record) = harness.read() else {
            panic!("it is unknown")
        };
        let until_ms = Duration::from_millis(record.until_ms.unsigned_abs());
        assert!(
            until_ms.abs_diff(until) <= Duration::from_millis(1),
            "{until_ms:?}"
        );
    }
}

#[test]
fn a_publication_replaces_a_claim_of_which_nothing_was_sent() {
    let mut harness = Harness::new();
    let [a, b] = [claim(), claim()];
    harness.claim("a", &a);
    harness.publish(&b, None);
    assert!(!harness.mark("a", &a));
    assert!(harness.settle(&b, SharedEnd::Released));
    assert_eq!(harness.read(), SharedState::Absent);
}

#[test]
fn a_call_that_is_published_while_it_is_open_goes_on() {
    let mut harness = Harness::new();
    let a = claim();
    harness.claim("a", &a);
    harness.mark("a", &a);
    harness.publish(&a, None);
    assert!(harness.mark("a", &a));
    // CAMS has throttled it, and it has claimed its key again in the lost writes.
    let again = KeyClaim {
        id: a.id.next(),
        ..a.clone()
    };
    harness.publish(&again, None);
    // The end of the earlier claim comes late.
    assert!(!harness.settle(&a, SharedEnd::Released));
    assert!(matches!(harness.read(), SharedState::Open(_)));
    assert!(harness.settle(&again, SharedEnd::Released));
    assert_eq!(harness.read(), SharedState::Absent);
}

#[test]
fn a_finished_key_is_not_released_and_a_word_of_another_order_is_a_mismatch() {
    let mut harness = Harness::new();
    let a = claim();
    harness.claim("a", &a);
    harness.mark("a", &a);
    let stranger = KeyClaim {
        print: print(2),
        ..claim()
    };
    let word = harness.settled(&stranger, SharedEnd::SettledNotCreated);
    assert_eq!(word, Settled::Kept(SharedState::Mismatch));
    assert!(harness.settle(&a, SharedEnd::Done(created(7))));
    let released = harness.settled(&a, SharedEnd::Released);
    assert_eq!(released, Settled::Kept(SharedState::Done(created(7))));
}

/// Two calls of one key: a failover has lost the claim of the second, and has brought back that of the first.
fn two_calls(published: Option<SharedEnd>) -> (Harness, [KeyClaim; 2]) {
    let mut harness = Harness::new();
    let [a, b] = [claim(), claim()];
    harness.claim("a", &a);
    harness.mark("a", &a);
    harness.publish(&b, published);
    assert!(!harness.mark("a", &a) && !harness.mark("b", &b));
    assert!(harness.is_unknown(&[&a, &b]));
    (harness, [a, b])
}

#[test]
fn two_calls_of_one_key_are_unknown_together_until_both_have_ended() {
    let unknown = || SharedEnd::Unknown { request_id: None };
    for published in [None, Some(unknown())] {
        // A word is about one call; the key is free when both have created nothing.
        let (mut harness, [a, b]) = two_calls(published.clone());
        assert!(harness.settle(&a, SharedEnd::SettledNotCreated));
        assert!(harness.is_unknown(&[&b]));
        let again = harness.settled(&a, SharedEnd::SettledCreated(created(7)));
        assert!(matches!(again, Settled::Kept(SharedState::Unknown(_))));
        assert!(harness.settle(&b, SharedEnd::SettledNotCreated));
        assert_eq!(harness.read(), SharedState::Absent);
        // CAMS has refused one, and has created the flow of the other.
        let (mut harness, [a, b]) = two_calls(published);
        assert!(harness.settle(&a, SharedEnd::Released));
        assert!(harness.settle(&b, unknown()));
        assert!(harness.is_unknown(&[&b]));
        assert!(harness.settle(&b, SharedEnd::SettledCreated(created(7))));
        assert!(!harness.settle(&a, SharedEnd::Done(created(8))));
        assert_eq!(harness.read(), SharedState::Done(created(7)));
    }
    // What looks have found is about one call, too: the other may have another flow name.
    let (mut harness, [a, b]) = two_calls(None);
    harness.pass(HOLD + TIMES.settle);
    assert!(harness.settle(&a, SharedEnd::Absent));
    assert!(harness.is_unknown(&[&b]));
    assert!(harness.settle(&b, SharedEnd::Absent));
    assert_eq!(harness.read(), SharedState::Absent);
}

#[test]
fn a_call_that_another_process_knows_by_the_journal_is_one_call() {
    let mut harness = Harness::new();
    let a = claim();
    harness.claim("a", &a);
    harness.mark("a", &a);
    let journaled = KeyClaim {
        id: ClaimId::of_call(&a.id.call),
        ..a.clone()
    };
    let unknown = Some(SharedEnd::Unknown { request_id: None });
    harness.publish(&journaled, unknown);
    assert!(harness.is_unknown(&[&a]));
    // CAMS has refused it: it claims its key again.
    assert!(!harness.mark("a", &a));
    assert!(harness.settle(&a, SharedEnd::Released));
    let again = KeyClaim {
        id: a.id.next(),
        ..a.clone()
    };
    assert_eq!(harness.claim("a", &again), SharedState::Mine);
    assert!(harness.mark("a", &again));
    // The end of the earlier claim comes late.
    assert!(!harness.settle(&a, SharedEnd::Released));
    assert!(matches!(harness.read(), SharedState::Open(_)));
}

#[test]
fn calls_of_two_orders_under_one_key_end_each_for_itself() {
    let (mut harness, [a, b]) = {
        let mut harness = Harness::new();
        let [a, b] = [claim(), claim()];
        let b = KeyClaim {
            print: print(2),
            ..b
        };
        harness.claim("a", &a);
        harness.mark("a", &a);
        harness.publish(&b, Some(SharedEnd::Unknown { request_id: None }));
        (harness, [a, b])
    };
    // Each sees its own call, whatever the record's order is; another call of the second order does not.
    for (own, other) in [(&a, &b), (&b, &a)] {
        let call = harness.a.claim(own, None);
        let seen = StateAnswer::read(harness.redis.run(&call)).unwrap().state;
        assert!(
            matches!(&seen, SharedState::Unknown(record) if record.is_of(&other.id.call)),
            "{seen:?}"
        );
    }
    let stranger = KeyClaim {
        id: claim().id,
        ..b.clone()
    };
    assert_eq!(harness.claim("b", &stranger), SharedState::Mismatch);
    assert!(harness.settle(&b, SharedEnd::SettledNotCreated));
    assert!(harness.is_unknown(&[&a]));
    assert!(harness.settle(&a, SharedEnd::SettledNotCreated));
    assert_eq!(harness.read(), SharedState::Absent);
}

#[test]
fn an_unknown_outcome_joins_the_call_that_a_failover_has_brought_back() {
    let mut harness = Harness::new();
    let [a, b] = [claim(), claim()];
    harness.claim("b", &b);
    harness.mark("b", &b);
    assert!(harness.settle(&a, SharedEnd::Unknown { request_id: None }));
    assert!(harness.is_unknown(&[&b, &a]));
    // A claim that was brought back has sent nothing.
    let mut harness = Harness::new();
    harness.claim("b", &b);
    assert!(harness.settle(&a, SharedEnd::Unknown { request_id: None }));
    assert!(harness.is_unknown(&[&a]) && !harness.mark("b", &b));
}

#[test]
fn a_claim_that_a_failover_has_brought_back_is_lost() {
    let mut harness = Harness::new();
    let a = claim();
    harness.claim("a", &a);
    // Another server has the claim, and may have lost what came after it.
    let now = harness.now();
    let greeting = harness.a.beat(Op::Greet, "other", now);
    harness.redis.run(&greeting);
    assert!(!harness.mark("a", &a));
    assert!(matches!(harness.claim("a", &a), SharedState::Claimed(_)));
}

#[test]
fn a_resolution_waits_until_all_replicas_have_published() {
    let mut harness = Harness::new();
    let a = claim();
    harness.redis.server().data = Default::default();
    for _ in 0..2 {
        let epoch = harness.beat("a", Op::Beat);
        harness.a.published(&epoch);
    }
    // `b` may know the call, or to which call the flow belongs.
    let gated = Settled::Kept(SharedState::Gated);
    assert_eq!(harness.settled(&a, SharedEnd::SettledNotCreated), gated);
    harness.publish(&a, Some(SharedEnd::Unknown { request_id: None }));
    let word = SharedEnd::SettledCreated(created(7));
    assert_eq!(harness.settled(&a, word.clone()), gated);
    harness.join();
    harness.pass(LEAST_AGE);
    harness.join();
    assert!(harness.settle(&a, word));
}

#[test]
fn a_flow_that_cams_shows_is_recorded_although_the_key_was_free() {
    let mut harness = Harness::new();
    let a = claim();
    let word = harness.settled(&a, SharedEnd::SettledCreated(created(7)));
    assert_eq!(word, Settled::Kept(SharedState::Absent));
    assert!(harness.settle(&a, SharedEnd::Found(created(7))));
    assert_eq!(harness.read(), SharedState::Done(created(7)));
}

#[test]
fn to_a_replica_that_has_not_published_only_a_flow_is_certain() {
    let mut harness = Harness::new();
    let [a, b] = [claim(), claim()];
    let other = KeyClaim {
        print: print(2),
        ..claim()
    };
    harness.claim("a", &a);
    harness.mark("a", &a);
    harness.a.unpublish();
    assert_eq!(harness.read(), SharedState::Gated);
    let call = harness.a.claim(&other, None);
    let of_other = StateAnswer::read(harness.redis.run(&call)).unwrap().state;
    assert_eq!(of_other, SharedState::Gated, "it may be an earlier order");
    for end in [
        SharedEnd::Absent,
        SharedEnd::Found(created(7)),
        SharedEnd::SettledNotCreated,
        SharedEnd::SettledCreated(created(7)),
    ] {
        let kept = harness.settled(&b, end);
        assert_eq!(kept, Settled::Kept(SharedState::Gated));
    }
    assert!(harness.settle(&a, SharedEnd::Done(created(7))));
    assert_eq!(harness.read(), SharedState::Done(created(7)));
}

#[test]
fn after_a_flush_a_key_is_free_only_when_all_have_published() {
    let mut harness = Harness::new();
    let b = claim();
    harness.join();
    harness.redis.server().data = Default::default();
    assert_eq!(harness.claim("b", &b), SharedState::Gated);
    let epoch = harness.beat("b", Op::Beat);
    harness.b.published(&epoch);
    harness.beat("b", Op::Beat);
    harness.pass(LEAST_AGE);
    // The other replica is known from the time before, and has not published.
    assert_eq!(harness.claim("b", &b), SharedState::Gated);
    harness.beat("a", Op::Beat);
    assert_eq!(harness.claim("b", &b), SharedState::Gated);
    harness.a.published(&epoch);
    harness.beat("a", Op::Beat);
    assert_eq!(harness.claim("b", &b), SharedState::Mine);
}

#[test]
fn a_replica_that_is_cut_off_keeps_keys_from_being_claimed_until_its_lease_ends() {
    let mut harness = Harness::new();
    let b = claim();
    harness.join();
    harness.redis.server().data = Default::default();
    for _ in 0..2 {
        let epoch = harness.beat("b", Op::Beat);
        harness.b.published(&epoch);
    }
    harness.pass(LEASE - Duration::from_millis(1));
    assert_eq!(harness.claim("b", &b), SharedState::Gated);
    harness.pass(Duration::from_millis(1));
    assert_eq!(harness.claim("b", &b), SharedState::Mine);
}

#[test]
fn a_silent_replica_is_waited_for_also_if_a_failover_brings_an_old_list_back() {
    let mut harness = Harness::new();
    let b = claim();
    let replicated = harness.redis.server().data.clone();
    harness.pass(LEASE + LEASE);
    harness.join();
    harness.redis.server().data = replicated;
    let now = harness.now();
    let call = harness.b.beat(Op::Greet, "other", now);
    let answer = BeatAnswer::read(harness.redis.run(&call)).unwrap();
    let epoch = answer.epoch.clone();
    harness.b.heard_beat(answer, now);
    harness.b.published(&epoch);
    harness.pass(LEASE - Duration::from_millis(1));
    assert_eq!(harness.claim("b", &b), SharedState::Gated);
    harness.pass(Duration::from_millis(1));
    assert_eq!(harness.claim("b", &b), SharedState::Mine);
}

#[test]
fn another_server_is_a_new_epoch_for_the_first_that_greets_it() {
    let mut harness = Harness::new();
    let now = harness.now();
    let mut greet = |run: &str| {
        let call = harness.a.beat(Op::Greet, run, now);
        BeatAnswer::read(harness.redis.run(&call)).unwrap().epoch
    };
    let before = greet("run");
    assert_eq!(greet("run"), before);
    let after = greet("other");
    assert!(after != before && greet("other") == after);
    assert!(greet("") != greet(""), "it may be another one each time");
}

#[test]
fn a_mark_of_an_earlier_epoch_is_not_in_force() {
    let mut harness = Harness::new();
    let a = claim();
    harness.claim("a", &a);
    let call = harness.a.mark(&a, HOLD);
    let late = MarkAnswer::read(harness.redis.run(&call)).unwrap();
    harness.redis.server().data = Default::default();
    harness.beat("a", Op::Beat);
    assert!(late.is_open && !harness.a.is_marked(&late));
}

#[test]
fn the_store_ends_an_unknown_outcome_only_if_its_record_is_not_about_the_call() {
    let own = claim();
    let order = Arc::new(Order {
        request_id: own.id.call.clone(),
        ..order(1)
    });
    let outcome = UnknownOutcome {
        reason: "the test lost it".into(),
        request_id: None,
        order,
        attempt: None,
        at: SystemTime::UNIX_EPOCH,
        ended: Instant::now(),
        stamped_until: Instant::now(),
        search: Search::None,
    };
    let record = |calls: &[&str]| SharedRecord {
        calls: calls.iter().map(|call| (*call).into()).collect(),
        request_id: None,
        until_ms: 0,
    };
    let states = [
        SharedState::Claimed,
        SharedState::Open,
        SharedState::Unknown,
    ];
    for state in states {
        for (calls, end) in [
            (record(&[&own.id.call]), None),
            (record(&["other", &own.id.call]), None),
            (record(&["other"]), Some(Resolution::Absent)),
        ] {
            assert_eq!(state(calls).end_of(&outcome), end);
        }
    }
    for (state, end) in [
        (SharedState::Absent, Some(Resolution::Absent)),
        (SharedState::Mismatch, Some(Resolution::Absent)),
        (SharedState::Gated, None),
        (
            SharedState::Done(created(7)),
            Some(Resolution::CreatedElsewhere(created(7))),
        ),
    ] {
        assert_eq!(state.end_of(&outcome), end);
    }
}

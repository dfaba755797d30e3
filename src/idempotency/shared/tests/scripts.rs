//! Each script for itself, in simulated time.

use std::time::Duration;

use tokio::time::Instant;

use super::super::member::{KEEP_OPEN, LEASE, LEAST_AGE};
use super::super::protocol::BeatAnswer;
use super::super::*;
use super::fake_redis::FakeRedis;
use crate::idempotency::fingerprint::Fingerprint;
use crate::idempotency::record::{Created, FlowDescription, Order, OrderKind};
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

fn claim_of(member: &mut Member) -> KeyClaim {
    KeyClaim::of(name(1), &order(1), member.new_owner())
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
        ClaimAnswer::read(self.redis.run(&call)).unwrap().state
    }

    fn mark(&mut self, name: &str, claim: &KeyClaim) -> bool {
        let call = self.member(name).mark(claim, HOLD);
        let answer = MarkAnswer::read(self.redis.run(&call)).unwrap();
        self.member(name).is_marked(&answer)
    }

    fn settle(&mut self, claim: &KeyClaim, end: SharedEnd) -> bool {
        let settlement = Settlement {
            claim: claim.clone(),
            end,
            signed_until: self.now(),
        };
        let call = self.a.settle(&settlement, self.now());
        SettleAnswer::read(self.redis.run(&call))
            .unwrap()
            .is_settled
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
        let known = claim_of(&mut harness.a);
        harness.claim("a", &known);
        harness.redis.server().now_ms -= back * 1000;
        harness.start += Duration::from_secs(back);
        // The other one has died.
        harness.beat("b", Op::Beat);
        if is_young {
            let early = KeyClaim::of(name(3), &order(3), harness.b.new_owner());
            let state = harness.claim("b", &early);
            assert_eq!(state, SharedState::Gated, "{back} s");
        }
        harness.pass(LEAST_AGE);
        harness.beat("b", Op::Beat);
        assert!(harness.mark("a", &known), "{back} s: a claim stays");
        let other = KeyClaim::of(name(2), &order(2), harness.b.new_owner());
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
    let a = claim_of(&mut harness.a);
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
fn calls_that_have_created_nothing_do_not_keep_a_flow_from_another() {
    let mut harness = Harness::new();
    for end in [SharedEnd::Released, SharedEnd::NotCreated] {
        let a = claim_of(&mut harness.a);
        harness.claim("a", &a);
        harness.mark("a", &a);
        if end == SharedEnd::NotCreated {
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
    let [a, b] = [claim_of(&mut harness.a), claim_of(&mut harness.b)];
    assert_eq!(harness.claim("a", &a), SharedState::Mine);
    assert_eq!(harness.claim("a", &a), SharedState::Mine, "once more");
    assert_eq!(harness.claim("b", &b), SharedState::Claimed);
    assert!(!harness.mark("b", &b) && harness.mark("a", &a));
    assert_eq!(harness.claim("b", &b), SharedState::Open);
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
    let a = claim_of(&mut harness.a);
    let other = KeyClaim {
        print: print(2),
        ..claim_of(&mut harness.b)
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
    let [a, b] = [claim_of(&mut harness.a), claim_of(&mut harness.b)];
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
    let [a, b] = [claim_of(&mut harness.a), claim_of(&mut harness.b)];
    harness.claim("a", &a);
    assert!(!harness.settle(&b, SharedEnd::Released));
    assert_eq!(harness.claim("b", &b), SharedState::Claimed);
    assert!(harness.settle(&a, SharedEnd::Released));
    assert_eq!(harness.claim("b", &b), SharedState::Mine);
}

#[test]
fn an_open_record_of_a_dead_owner_is_unknown_and_absent_only_after_it_has_settled() {
    let mut harness = Harness::new();
    let [a, b] = [claim_of(&mut harness.a), claim_of(&mut harness.b)];
    harness.claim("a", &a);
    harness.mark("a", &a);
    harness.pass(HOLD + TIMES.answer_timeout + Duration::from_secs(30));
    assert_eq!(harness.claim("b", &b), SharedState::Open);
    harness.pass(Duration::from_millis(1));
    let SharedState::Unknown(record) = harness.claim("b", &b) else {
        panic!("it is unknown")
    };
    assert_eq!((&record.owner, record.until_ms), (&a.owner, -40_001));
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
        let claim = claim_of(&mut harness.a);
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
    assert!(!harness.settle(&a, SharedEnd::NotCreated));
    let b = claim_of(&mut harness.b);
    assert_eq!(harness.claim("b", &b), SharedState::Done(created(7)));

    let mut harness = Harness::new();
    let a = unknown(&mut harness);
    assert!(harness.settle(&a, SharedEnd::NotCreated));
    assert!(!harness.settle(&a, word()), "it has ended");
    assert!(harness.settle(&a, SharedEnd::NotCreated), "the same word");
    let b = claim_of(&mut harness.b);
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
    let a = claim_of(&mut harness.a);
    let other = KeyClaim::of(name(2), &order(2), harness.b.new_owner());
    for (replica, claim) in [("a", &a), ("b", &other)] {
        harness.claim(replica, claim);
        harness.mark(replica, claim);
        harness.settle(claim, SharedEnd::Unknown { request_id: None });
    }
    let word = || SharedEnd::SettledCreated(created(7));
    assert!(harness.settle(&other, word()));
    assert!(!harness.settle(&a, word()));
    let found = harness.claim("a", &a);
    assert!(matches!(found, SharedState::Unknown(_)), "{found:?}");
    assert!(harness.settle(&a, SharedEnd::SettledCreated(created(8))));
}

#[test]
fn the_stronger_state_wins_a_publication() {
    let mut harness = Harness::new();
    let a = claim_of(&mut harness.a);
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
}

#[test]
fn two_calls_in_flight_of_one_key_are_unknown_together() {
    let mut harness = Harness::new();
    let [a, b] = [claim_of(&mut harness.a), claim_of(&mut harness.b)];
    harness.claim("a", &a);
    harness.mark("a", &a);
    // A failover has lost the claim of `b`, and has brought back that of `a`.
    let published = Published {
        claim: b.clone(),
        end: None,
        signed_until: harness.now(),
        lifetime: KEEP_OPEN,
    };
    let call = harness.b.publish(&[published], harness.now());
    harness.redis.run(&call);
    assert!(!harness.mark("a", &a) && !harness.mark("b", &b));
    let SharedState::Unknown(record) = harness.claim("b", &b) else {
        panic!("it is unknown")
    };
    for claim in [&a, &b] {
        assert!(record.may_be_of(Some(&claim.owner)));
    }
}

#[test]
fn after_a_flush_a_key_is_free_only_when_all_have_published() {
    let mut harness = Harness::new();
    let b = claim_of(&mut harness.b);
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
    let b = claim_of(&mut harness.b);
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
    let b = claim_of(&mut harness.b);
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
    let a = claim_of(&mut harness.a);
    harness.claim("a", &a);
    let call = harness.a.mark(&a, HOLD);
    let late = MarkAnswer::read(harness.redis.run(&call)).unwrap();
    harness.redis.server().data = Default::default();
    harness.beat("a", Op::Beat);
    assert!(late.is_open && !harness.a.is_marked(&late));
}

//! The states of records, and what a journal restores.

use futures_util::FutureExt;
use tokio::time::advance;

use super::*;
use crate::idempotency::fingerprint::{fingerprint, record_name};
use crate::idempotency::key;
use crate::idempotency::record::FlowDescription;
use crate::observe::journal::{JournalOrder, KeyedEnd, KeyedResolution, Outcome, ResolvedAs};
use crate::observe::record::{CallNotes, CallStats};
use crate::primitives::id::{AccountId, ClientId};

const KEEP: Duration = Duration::from_secs(24 * 3600);

fn records(max: usize) -> Arc<Records> {
    Records::new(Bounds { keep: KEEP, max })
}

fn name(text: &str) -> RecordName {
    let key = key::read(&hyper::HeaderMap::new(), Some(text))
        .unwrap()
        .unwrap();
    record_name("acme", "team-a", &key)
}

fn print(flow: &str) -> Fingerprint {
    fingerprint("CreateFlow", [("FlowName", flow)], None)
}

fn order(client: &str, kind: OrderKind, flow: &str) -> Arc<Order> {
    Arc::new(Order {
        account: AccountId::new("acme"),
        client: ClientId::new(client),
        kind,
        fingerprint: print(flow),
        request_id: fastrand::u64(..).to_string().into(),
        flow: FlowDescription {
            name: flow.into(),
            ..FlowDescription::default()
        },
    })
}

fn find_as(records: &Arc<Records>, key: &str, kind: OrderKind) -> Found {
    records.find(name(key), &order("team-a", kind, "Welcome"))
}

fn find(records: &Arc<Records>, key: &str) -> Found {
    find_as(records, key, OrderKind::Keyed)
}

fn claim(records: &Arc<Records>, key: &str) -> (Claim, Waiter) {
    claim_as(records, key, OrderKind::Keyed)
}

fn claim_as(records: &Arc<Records>, key: &str, kind: OrderKind) -> (Claim, Waiter) {
    match find_as(records, key, kind) {
        Found::New(claim, waiter) => (claim, waiter),
        _ => panic!("the key is not free"),
    }
}

fn attach(records: &Arc<Records>, key: &str) -> Waiter {
    match find(records, key) {
        Found::Running(waiter) => waiter,
        _ => panic!("no call of the key is under way"),
    }
}

fn created(flow_id: &str) -> Created {
    Created {
        flow_id: flow_id.into(),
        request_id: Some("r-1".into()),
    }
}

fn answer() -> Answer {
    Answer {
        result: Ok(hyper::Response::default()),
        outcome: crate::error::Outcome::Ok,
        code: "OK".into(),
        attempts: 1,
        waited: Duration::ZERO,
        notes: CallNotes::default(),
        is_protected: true,
    }
}

fn done(marked: Marked, flow_id: &str) {
    marked.end(CallEnd::Created(created(flow_id)), answer());
}

/// Marks a claim whose requests are stamped now.
fn mark(claim: Claim) -> Marked {
    claim.mark(Instant::now())
}

/// Ends a call with an unknown outcome.
fn lose(marked: Marked, is_sought: bool) {
    let loss = Loss {
        reason: "lost".into(),
        request_id: None,
        attempt: Some("run-0".into()),
        call: None,
        is_sought,
    };
    marked.end(CallEnd::Unknown(loss), answer());
}

/// The number of finished and of unknown records that are too old.
fn forget_old(records: &Arc<Records>) -> (usize, usize) {
    let forgotten = records.forget_old(Instant::now());
    (forgotten.done, forgotten.unknown.len())
}

/// The number of records that are under way, done and unknown.
fn count(records: &Arc<Records>) -> [usize; 3] {
    let Count {
        running,
        done,
        unknown,
    } = records.count();
    [running, done, unknown]
}

fn is_free(records: &Arc<Records>, key: &str) -> bool {
    matches!(find(records, key), Found::New(..))
}

#[tokio::test]
async fn repeats_of_a_key_wait_for_the_one_call_and_then_find_its_flow() {
    let records = records(10);
    let (claim, mut first) = claim(&records, "k");
    let mut second = attach(&records, "k");
    assert!(first.end().now_or_never().is_none());
    let marked = mark(claim);
    assert!(matches!(second.progress(), Progress::Open));
    done(marked, "77");
    for waiter in [&mut first, &mut second] {
        let ending = waiter.end().await;
        assert_eq!(ending.end, End::Done(Arc::new(created("77"))));
        assert!(ending.answer.is_some());
    }
    assert!(matches!(find(&records, "k"), Found::Done(done) if *done == created("77")));
}

#[tokio::test]
async fn another_order_under_the_same_key_is_a_mismatch_in_every_state() {
    let records = records(10);
    let other = || records.find(name("k"), &order("team-a", OrderKind::Keyed, "Other"));
    let (claim, _waiter) = claim(&records, "k");
    assert!(matches!(other(), Found::Mismatch));
    let marked = mark(claim);
    assert!(matches!(other(), Found::Mismatch));
    done(marked, "77");
    assert!(matches!(other(), Found::Mismatch));
}

#[tokio::test]
async fn a_key_is_free_again_only_if_nothing_was_executed() {
    let records = records(10);
    let (first, _waiter) = claim(&records, "k");
    drop(first);
    let (second, _waiter) = claim(&records, "k");
    mark(second).end(CallEnd::NotCreated, answer());
    let (third, mut waiter) = claim(&records, "k");
    drop(mark(third));
    assert!(matches!(waiter.end().await.end, End::Unknown(_)));
    assert!(matches!(find(&records, "k"), Found::Unknown(_)));
}

#[tokio::test]
async fn a_claim_is_abandoned_when_its_last_waiter_leaves() {
    let records = records(10);
    let (claim, first) = claim(&records, "k");
    let second = attach(&records, "k");
    drop(first);
    assert!(claim.abandoned().now_or_never().is_none());
    let mut abandoned = Box::pin(claim.abandoned());
    assert!(futures_util::poll!(&mut abandoned).is_pending());
    drop(second);
    abandoned.await;
}

#[tokio::test]
async fn no_key_is_evicted_to_make_room_and_a_client_uses_half() {
    let records = records(4);
    for key in ["a", "b"] {
        let (claim, _waiter) = claim(&records, key);
        done(mark(claim), key);
    }
    assert!(matches!(find(&records, "c"), Found::Full));
    let team_b = order("team-b", OrderKind::Keyed, "Welcome");
    let other = |key: &str| records.find(name(key), &team_b);
    let kept: Vec<_> = ["d", "e"].map(other).into_iter().collect();
    assert!(kept.iter().all(|found| matches!(found, Found::New(..))));
    assert!(matches!(other("f"), Found::Full));
    assert!(matches!(find(&records, "a"), Found::Done(_)));
    drop(kept);
    assert!(matches!(other("f"), Found::New(..)));
}

#[tokio::test(start_paused = true)]
async fn a_finished_key_is_forgotten_after_its_time_and_an_unknown_one_after_seven_days() {
    let records = records(10);
    let (finished, _waiter) = claim(&records, "done");
    done(mark(finished), "77");
    let (unknown, _waiter) = claim(&records, "unknown");
    drop(mark(unknown));
    let (running, _waiter) = claim(&records, "running");
    advance(KEEP.checked_sub(Duration::from_secs(1)).unwrap()).await;
    assert_eq!(forget_old(&records), (0, 0));
    advance(Duration::from_secs(1)).await;
    assert_eq!(forget_old(&records), (1, 0));
    assert!(is_free(&records, "done"));
    advance(KEEP_UNKNOWN).await;
    assert_eq!(forget_old(&records), (0, 1));
    assert!(matches!(find(&records, "running"), Found::Running(_)));
    drop(running);
}

/// An attempt of a key in a journal, `age` seconds old.
fn attempt(
    key: &str,
    clock: SystemTime,
    age: u64,
    end: Option<(Outcome, Option<&str>)>,
) -> KeyedAttempt {
    KeyedAttempt {
        key: JournalOrder {
            name: name(key).hex(),
            fingerprint: print("Welcome").hex(),
            kind: OrderKind::Keyed,
            is_required: true,
            is_in_store: true,
            flow_name: "Welcome".to_owned(),
            space: "cams-1".to_owned(),
            categories: vec!["SIGN_UP".to_owned()],
        },
        attempt: format!("run-{key}"),
        request_id: format!("REQUEST-{key}"),
        account: "acme".to_owned(),
        client: "team-a".to_owned(),
        time: clock.checked_sub(Duration::from_secs(age)),
        end: end.map(|(outcome, flow_id)| KeyedEnd {
            time: clock.checked_sub(Duration::from_secs(age)),
            outcome,
            flow_id: flow_id.map(str::to_owned),
            request_id: Some("r-1".to_owned()),
            reason: None,
        }),
        resolution: None,
    }
}

#[tokio::test(start_paused = true)]
async fn a_journal_restores_what_its_last_attempt_of_each_key_has_done() {
    advance(KEEP * 2).await;
    let (now, clock) = (Instant::now(), SystemTime::now());
    let attempts = vec![
        attempt("done", clock, 60, Some((Outcome::Ok, Some("77")))),
        attempt("open", clock, 60, None),
        attempt("lost", clock, 60, Some((Outcome::Unknown, None))),
        attempt("no-id", clock, 60, Some((Outcome::Ok, None))),
        attempt("throttled", clock, 60, Some((Outcome::Throttled, None))),
        attempt("unsent", clock, 60, Some((Outcome::Unsent, None))),
        attempt("refused", clock, 60, Some((Outcome::UpstreamError, None))),
        attempt("retried", clock, 61, Some((Outcome::Throttled, None))),
        attempt("retried", clock, 60, Some((Outcome::Ok, Some("78")))),
        attempt("retried-open", clock, 61, Some((Outcome::Throttled, None))),
        attempt("retried-open", clock, 60, None),
        attempt("old", clock, 24 * 3600, Some((Outcome::Ok, Some("79")))),
    ];
    let records = records(100);
    let restored = records.restore(attempts, now, clock, |_| false);
    assert_eq!(
        restored,
        Restored {
            keys: 7,
            unknown: 4
        }
    );
    assert!(matches!(find(&records, "done"), Found::Done(done) if *done == created("77")));
    assert!(matches!(find(&records, "retried"), Found::Done(done) if *done == created("78")));
    for key in ["open", "lost", "no-id", "retried-open"] {
        assert!(matches!(find(&records, key), Found::Unknown(_)), "{key}");
    }
    assert_eq!(forget_old(&records), (1, 0));
    for key in ["throttled", "unsent", "refused", "old"] {
        assert!(is_free(&records, key), "{key}");
    }
}

#[tokio::test(start_paused = true)]
async fn what_the_store_did_not_know_stays_unprotected_over_a_restart() {
    let clock = SystemTime::now();
    let unprotected = |key, end| {
        let mut attempt = attempt(key, clock, 60, end);
        attempt.key.is_in_store = false;
        attempt
    };
    let attempts = || {
        vec![
            unprotected("done", Some((Outcome::Ok, Some("77")))),
            unprotected("open", None),
            attempt("late", clock, 61, Some((Outcome::Throttled, None))),
            unprotected("late", Some((Outcome::Ok, Some("78")))),
        ]
    };
    let restored = records(100);
    restored.restore(attempts(), Instant::now(), clock, |_| false);
    let taken_over = records(100);
    assert_eq!(take_over(&taken_over, attempts()), (3, 1));
    for records in [restored, taken_over] {
        for key in ["done", "open", "late"] {
            assert!(!records.is_protected(name(key)), "{key}");
            assert!(!records.is_in_store(name(key)), "{key}");
        }
        assert_eq!(records.shareable(Instant::now()).len(), 0);
        let resolution = Resolution::Created(created("79"));
        let (open, outcome) = records.unknown().remove(0);
        let _resolved = records.resolve(open, &outcome, resolution, Instant::now());
        assert!(!records.is_protected(name("open")));
    }
}

/// Takes over these attempts of another process.
fn take_over(records: &Records, attempts: Vec<KeyedAttempt>) -> (usize, usize) {
    let (now, clock) = (Instant::now(), SystemTime::now());
    let has_made = |attempt: &str| attempt == "run-0";
    let restored = records.take_over(attempts, now, clock, |_| true, has_made);
    (restored.keys, restored.unknown)
}

#[tokio::test(start_paused = true)]
async fn keys_that_another_process_has_written_meanwhile_are_taken_over() {
    let clock = SystemTime::now();
    let ok = Some((Outcome::Ok, Some("77")));
    let records = records(100);
    let attempts = vec![
        attempt("done", clock, 5, ok),
        attempt("lost", clock, 5, Some((Outcome::Unknown, None))),
        attempt("refused", clock, 5, Some((Outcome::UpstreamError, None))),
    ];
    assert_eq!(take_over(&records, attempts), (2, 1));
    assert!(matches!(find(&records, "done"), Found::Done(done) if *done == created("77")));
    assert!(matches!(find(&records, "lost"), Found::Running(_)));
    assert!(is_free(&records, "refused"));
    assert_eq!(count(&records), [0, 1, 1]);
}

#[tokio::test(start_paused = true)]
async fn what_was_under_way_at_another_process_ends_as_it_did_there() {
    let clock = SystemTime::now();
    let ok = Some((Outcome::Ok, Some("77")));
    let records = records(100);
    let keys = ["done", "refused", "retried", "killed"];
    let open = keys.map(|key| attempt(key, clock, 5, None));
    records.restore(open.into(), Instant::now(), clock, |_| true);
    assert_eq!(count(&records), [0, 0, 4]);
    let waiters = keys.map(|key| match find(&records, key) {
        Found::Running(waiter) => waiter,
        _ => panic!("its flow is looked for"),
    });
    let retry = KeyedAttempt {
        attempt: "run-retry".to_owned(),
        request_id: "REQUEST-retry".to_owned(),
        ..attempt("retried", clock, 4, ok)
    };
    let attempts = vec![
        attempt("done", clock, 5, ok),
        attempt("refused", clock, 5, Some((Outcome::UpstreamError, None))),
        attempt("retried", clock, 5, Some((Outcome::Throttled, None))),
        retry,
        attempt("killed", clock, 5, None),
    ];
    assert_eq!(take_over(&records, attempts), (3, 0));
    let ends = waiters.map(|mut waiter| waiter.end().now_or_never());
    let ends = ends.map(|ending| ending.map(|ending| ending.end.clone()));
    let done = Some(End::Done(Arc::new(created("77"))));
    assert_eq!(ends, [done.clone(), Some(End::Released), done, None]);
    for key in ["done", "retried"] {
        assert!(matches!(find(&records, key), Found::Done(done) if *done == created("77")));
    }
    assert!(is_free(&records, "refused"));
    assert!(matches!(find(&records, "killed"), Found::Running(_)));
    assert_eq!(count(&records), [0, 2, 1]);
}

#[tokio::test(start_paused = true)]
async fn a_flow_that_was_learned_late_is_remembered_as_long_as_another() {
    advance(KEEP * 4).await;
    let (now, clock) = (Instant::now(), SystemTime::now());
    let two_days = KEEP.as_secs() * 2;
    let late = |key, result, age| KeyedAttempt {
        resolution: Some(KeyedResolution {
            time: clock.checked_sub(Duration::from_secs(age)),
            result,
            flow_id: Some("77".to_owned()),
            found: None,
        }),
        ..attempt(key, clock, two_days, Some((Outcome::Unknown, None)))
    };
    let attempts = vec![
        late("settled", ResolvedAs::Settled, 60),
        late("found", ResolvedAs::Created, 60),
        late("old", ResolvedAs::Created, KEEP.as_secs()),
    ];
    let records = records(100);
    records.restore(attempts, now, clock, |_| false);
    assert_eq!(forget_old(&records), (1, 0));
    for key in ["settled", "found"] {
        assert!(matches!(find(&records, key), Found::Done(_)), "{key}");
    }
    advance(KEEP).await;
    assert_eq!(forget_old(&records), (2, 0));
}

#[tokio::test(start_paused = true)]
async fn an_attempt_that_the_journal_has_dropped_has_created_nothing() {
    let clock = SystemTime::now();
    let records = records(100);
    let keys = ["retried", "refused", "gone"];
    let open = keys.map(|key| attempt(key, clock, 5, None));
    records.restore(open.into(), Instant::now(), clock, |_| false);
    let retry = |key, end| KeyedAttempt {
        attempt: format!("run-retry-{key}"),
        request_id: format!("REQUEST-retry-{key}"),
        ..attempt(key, clock, 4, Some(end))
    };
    let attempts = vec![
        retry("retried", (Outcome::Ok, Some("77"))),
        retry("refused", (Outcome::UpstreamError, None)),
    ];
    assert_eq!(take_over(&records, attempts), (2, 0));
    assert!(matches!(find(&records, "retried"), Found::Done(done) if *done == created("77")));
    assert!(is_free(&records, "refused"));
    // Its lines may have been removed by hand.
    assert!(matches!(find(&records, "gone"), Found::Unknown(_)));
}

#[tokio::test(start_paused = true)]
async fn what_this_process_knows_itself_is_not_taken_over() {
    let clock = SystemTime::now();
    let ok = Some((Outcome::Ok, Some("78")));
    let refused = Some((Outcome::UpstreamError, None));
    let records = records(100);
    let (finished, _waiter) = claim(&records, "done");
    done(mark(finished), "77");
    let (lost, _waiter) = claim(&records, "lost");
    lose(mark(lost), false);
    let (running, _waiter) = claim(&records, "running");
    let attempts = [("done", ok), ("lost", refused), ("running", ok)];
    let attempts = attempts.map(|(key, end)| attempt(key, clock, 5, end));
    assert_eq!(take_over(&records, attempts.into()), (0, 0));
    assert!(matches!(find(&records, "done"), Found::Done(done) if *done == created("77")));
    assert!(matches!(find(&records, "lost"), Found::Unknown(_)));
    assert!(matches!(find(&records, "running"), Found::Running(_)));
    drop(running);
}

/// Attempts of two calls of one key by two processes: the first was sent 120 s ago, and has created flow 7
/// `after` seconds later, as another process had concluded the opposite.
fn after_a_late_answer(
    clock: SystemTime,
    after: u64,
    second: Option<(Outcome, Option<&str>)>,
) -> Vec<KeyedAttempt> {
    let ok = Some((Outcome::Ok, Some("7")));
    let first = KeyedAttempt {
        end: attempt("k", clock, 120 - after, ok).end,
        resolution: Some(KeyedResolution {
            time: Some(clock),
            result: ResolvedAs::Settled,
            flow_id: None,
            found: None,
        }),
        ..attempt("k", clock, 120, None)
    };
    let second = KeyedAttempt {
        attempt: "run-second".to_owned(),
        request_id: "REQUEST-second".to_owned(),
        ..attempt("k", clock, 60, second)
    };
    vec![first, second]
}

#[tokio::test(start_paused = true)]
async fn a_flow_of_a_key_is_not_forgotten_for_a_later_call_of_another_process() {
    advance(KEEP * 2).await;
    let (now, clock) = (Instant::now(), SystemTime::now());
    let has_flow = |records: &Arc<Records>, flow_id: &str| {
        assert!(matches!(find(records, "k"), Found::Done(done) if &*done.flow_id == flow_id));
    };
    for after in [0, 100] {
        for second in [
            None,
            Some((Outcome::Unknown, None)),
            Some((Outcome::UpstreamError, None)),
            Some((Outcome::Ok, Some("8"))),
        ] {
            // At a restart; and for a process that has sent the second call itself, and does not know its end.
            let restored = records(100);
            let attempts = after_a_late_answer(clock, after, second);
            restored.restore(attempts, now, clock, |_| false);
            let flow_id = second.and_then(|(_, flow_id)| flow_id);
            has_flow(&restored, flow_id.unwrap_or("7"));
            let beside = records(100);
            let (lost, _waiter) = claim(&beside, "k");
            lose(mark(lost), false);
            let mut attempts = after_a_late_answer(clock, after, second);
            attempts.truncate(1);
            assert_eq!(take_over(&beside, attempts), (1, 0));
            has_flow(&beside, "7");
        }
    }
    // A key that was forgotten is another order's.
    let expired = |key, end| vec![attempt(key, clock, KEEP.as_secs() + 90, end)];
    let mut attempts = expired("k", Some((Outcome::Ok, Some("7"))));
    let unknown = Some((Outcome::Unknown, None));
    attempts.extend(after_a_late_answer(clock, 0, unknown).pop());
    let forgotten = records(100);
    forgotten.restore(attempts, now, clock, |_| false);
    assert!(matches!(find(&forgotten, "k"), Found::Unknown(_)));
    // A flow that was created while the store was away does not replace the key's own.
    let mut attempts = after_a_late_answer(clock, 0, Some((Outcome::Ok, Some("8"))));
    attempts[1].key.is_in_store = false;
    let protected = records(100);
    protected.restore(attempts, now, clock, |_| false);
    has_flow(&protected, "7");
    // So is one with other parameters.
    let mut attempts = after_a_late_answer(clock, 0, None);
    attempts[0].key.fingerprint = print("Other").hex();
    let mismatched = records(100);
    mismatched.restore(attempts, now, clock, |_| false);
    assert!(matches!(find(&mismatched, "k"), Found::Unknown(_)));
}

#[tokio::test]
async fn an_unknown_outcome_has_the_name_of_the_call_that_was_sent() {
    let records = records(10);
    let (own, waiter) = claim(&records, "own");
    let own_id = waiter.first_request_id();
    lose(mark(own), false);
    // Another replica has sent it.
    let (learned, _waiter) = claim(&records, "learned");
    let loss = Loss {
        reason: "lost".into(),
        request_id: None,
        attempt: None,
        call: Some("ELSEWHERE".into()),
        is_sought: false,
    };
    learned.learn(CallEnd::Unknown(loss), Instant::now());
    let unknown = records.unknown();
    let names: Vec<_> = unknown
        .iter()
        .map(|(_, outcome)| &*outcome.order.request_id)
        .collect();
    assert_eq!(names, [&*own_id, "ELSEWHERE"]);
    let mut published: Vec<_> = records.shareable(Instant::now());
    published.sort_by_key(|record| record.claim.name != name("own"));
    let calls = published.iter().map(|record| &*record.claim.id.call);
    assert_eq!(calls.collect::<Vec<_>>(), [&*own_id, "ELSEWHERE"]);
}

#[tokio::test(start_paused = true)]
async fn a_call_of_another_replica_was_sent_before_its_last_time_stamp() {
    const AGO: Duration = Duration::from_secs(60);
    let loss = || {
        CallEnd::Unknown(Loss {
            reason: "lost".into(),
            request_id: None,
            attempt: None,
            call: Some("ELSEWHERE".into()),
            is_sought: false,
        })
    };
    advance(2 * AGO).await;
    let now = Instant::now();
    let marked_at = now - 2 * AGO;
    for (is_marked, stamped_until, kept) in [
        (false, now - AGO, now - AGO),
        (true, now - AGO, now - AGO),
        (true, now - 3 * AGO / 2, now - 3 * AGO / 2),
        (true, now + AGO, now + AGO),
        (true, now - 3 * AGO, marked_at),
    ] {
        let records = records(10);
        let (claim, _waiter) = claim(&records, "k");
        let before = SystemTime::now();
        if is_marked {
            claim.mark(marked_at).learn(loss(), stamped_until);
        } else {
            claim.learn(loss(), stamped_until);
        }
        let (_, outcome) = records.unknown().remove(0);
        assert_eq!(outcome.stamped_until, kept);
        let ago = now.saturating_duration_since(stamped_until);
        let sent = before - ago..=SystemTime::now() - ago;
        assert!(sent.contains(&outcome.at), "{:?}: {sent:?}", outcome.at);
    }
}

#[tokio::test]
async fn all_flows_of_a_journal_are_known_to_the_looks() {
    let clock = SystemTime::now();
    // Equal orders, of which the second is unknown.
    let equal = |end| {
        let mut attempt = attempt("equal", clock, 5, end);
        attempt.key.kind = OrderKind::Equal;
        attempt
    };
    let ok = Some((Outcome::Ok, Some("7")));
    let attempts = || vec![equal(ok), equal(None)];
    let made_here = |records: &Records| records.made_here(&AccountId::new("acme"), "cams-1");
    let restored = records(100);
    restored.restore(attempts(), Instant::now(), clock, |_| true);
    assert_eq!(made_here(&restored), [Box::<str>::from("7")]);
    assert_eq!(count(&restored), [0, 0, 1]);
    // At a take-over beside this process's own.
    let taken_over = records(100);
    let (_, outcome) = restored.unknown().remove(0);
    for id in ["own-1", "own-2", "own-3"] {
        let mut table = taken_over.table.lock();
        table.made_here.add(&outcome.order, id);
    }
    assert_eq!(take_over(&taken_over, attempts()), (1, 1));
    let ids = made_here(&taken_over).join(" ");
    assert_eq!(ids, "7 own-1 own-2 own-3");
    assert!(taken_over.has_flow("7"));
}

#[tokio::test(start_paused = true)]
async fn a_call_known_from_the_store_gets_only_the_name_of_its_attempt_from_the_journal() {
    let clock = SystemTime::now();
    let records = records(10);
    let (learned, _waiter) = claim(&records, "k");
    let in_journal = attempt("k", clock, 5, None);
    let mut of_another_call = attempt("k", clock, 5, None);
    of_another_call.request_id = "ANOTHER".into();
    let loss = Loss {
        reason: "lost".into(),
        request_id: None,
        attempt: None,
        call: Some(in_journal.request_id.as_str().into()),
        is_sought: false,
    };
    learned.learn(CallEnd::Unknown(loss), Instant::now());
    advance(Duration::from_secs(1)).await;
    let (_, learned) = records.unknown().remove(0);
    assert_eq!(take_over(&records, vec![of_another_call]), (0, 0));
    assert_eq!(records.unknown().remove(0).1, learned);
    let attempt = Some(in_journal.attempt.as_str().into());
    assert_eq!(take_over(&records, vec![in_journal]), (1, 1));
    let named = UnknownOutcome {
        attempt,
        ..(*learned).clone()
    };
    assert_eq!(*records.unknown().remove(0).1, named);
}

#[tokio::test(start_paused = true)]
async fn one_flow_does_not_end_two_calls() {
    let records = records(100);
    for key in ["a", "b"] {
        let (lost, _waiter) = claim(&records, key);
        lose(mark(lost), false);
    }
    let unknown = records.unknown();
    let mut ended = Vec::new();
    for ((name, outcome), resolution) in unknown.iter().zip([
        Resolution::SettledCreated(created("77")),
        Resolution::Created(created("77")),
    ]) {
        ended.push(
            records
                .resolve(*name, outcome, resolution, Instant::now())
                .err(),
        );
    }
    assert_eq!(ended, [None, Some(NotEnded::FlowOfAnother)]);
    assert_eq!(count(&records), [0, 1, 1]);
}

#[tokio::test(start_paused = true)]
async fn a_flow_of_another_process_without_a_key_is_not_kept_for_a_repetition() {
    let clock = SystemTime::now();
    let equal = |end| {
        let mut attempt = attempt("equal", clock, 5, end);
        attempt.key.kind = OrderKind::Equal;
        vec![attempt]
    };
    let records = records(100);
    records.restore(equal(None), Instant::now(), clock, |_| true);
    let ok = Some((Outcome::Ok, Some("77")));
    assert_eq!(take_over(&records, equal(ok)), (1, 0));
    assert_eq!(count(&records), [0, 0, 0]);
}

#[test]
fn a_line_with_another_form_of_key_is_skipped() {
    let records = records(100);
    let mut odd = attempt("k", SystemTime::now(), 0, None);
    odd.key.name = "not-hexadecimal".to_owned();
    let restored = records.restore(vec![odd], Instant::now(), SystemTime::now(), |_| false);
    assert_eq!(
        restored,
        Restored {
            keys: 0,
            unknown: 0
        }
    );
}

#[tokio::test]
async fn callers_wait_while_the_flow_of_an_unknown_outcome_is_looked_for() {
    let records = records(10);
    let (claim, mut first) = claim(&records, "k");
    lose(mark(claim), true);
    assert!(matches!(first.progress(), Progress::Sought(_)));
    assert!(first.end().now_or_never().is_none());
    let mut second = attach(&records, "k");
    let [(unknown, outcome)] = &records.unknown()[..] else {
        panic!("one outcome is unknown");
    };
    assert_eq!(outcome.attempt.as_deref(), Some("run-0"));
    let resolve = || {
        let resolution = Resolution::Created(created("77"));
        records.resolve(*unknown, outcome, resolution, Instant::now())
    };
    assert!(resolve().is_ok());
    for waiter in [&mut first, &mut second] {
        let ending = waiter.end().await;
        assert_eq!(ending.end, End::Done(Arc::new(created("77"))));
        assert!(ending.is_resolved);
    }
    assert!(matches!(find(&records, "k"), Found::Done(_)));
    assert!(resolve().is_err());
    assert_eq!(count(&records), [0, 1, 0]);
}

#[tokio::test]
async fn an_ambiguous_outcome_ends_by_an_operators_word() {
    let records = records(10);
    let (claim, mut first) = claim(&records, "k");
    lose(mark(claim), true);
    let resolve = |resolution| {
        let (unknown, outcome) = records.unknown().remove(0);
        records.resolve(unknown, &outcome, resolution, Instant::now())
    };
    assert!(resolve(Resolution::Ambiguous("two flows".into())).is_ok());
    assert!(matches!(&first.end().await.end, End::Unknown(_)));
    assert!(matches!(find(&records, "k"), Found::Unknown(unknown)
        if unknown.search == Search::Ambiguous("two flows".into())));
    assert!(resolve(Resolution::SettledNotCreated).is_ok());
    assert!(is_free(&records, "k"));
}

#[tokio::test]
async fn what_was_learned_of_a_call_does_not_end_the_next_one_of_its_key() {
    let records = records(10);
    let lost = |is_sought| {
        let (claim, _waiter) = claim(&records, "k");
        lose(mark(claim), is_sought);
        records.unknown().remove(0)
    };
    let (key, first) = lost(true);
    let resolve = |outcome: &UnknownOutcome| {
        let word = Resolution::SettledNotCreated;
        records.resolve(key, outcome, word, Instant::now())
    };
    assert!(resolve(&first).is_ok());
    let (_, second) = lost(false);
    assert!(resolve(&first).is_err());
    records.set_search(key, &first, Search::Active);
    assert!(matches!(find(&records, "k"), Found::Unknown(outcome) if outcome == second));
    assert!(!records.is_unknown(key, &first) && records.is_unknown(key, &second));
    // Another state of the search is of the same call.
    records.set_search(key, &second, Search::Active);
    assert!(resolve(&second).is_ok());
    assert!(is_free(&records, "k"));
}

#[tokio::test(start_paused = true)]
async fn the_answer_of_an_equal_call_is_kept_for_one_repetition_if_no_caller_got_it() {
    let records = records(10);
    let claim_equal = || claim_as(&records, "equal", OrderKind::Equal);
    let (claim, _waiter) = claim_equal();
    done(mark(claim), "77");
    let (claim, waiter) = claim_equal();
    drop(waiter);
    done(mark(claim), "78");
    let found = find_as(&records, "equal", OrderKind::Equal);
    assert!(matches!(found, Found::Done(done) if *done == created("78")));
    let (claim, waiter) = claim_equal();
    drop(waiter);
    done(mark(claim), "79");
    advance(KEEP_FOR_ONE).await;
    assert_eq!(forget_old(&records), (1, 0));
}

#[tokio::test]
async fn the_store_never_learns_of_a_call_that_was_sent_while_it_was_lost() {
    let records = records(10);
    let mut waiters = Vec::new();
    for (key, lost) in [
        ("done", LostRecord::Store),
        ("unknown", LostRecord::Store),
        ("not-in-journal", LostRecord::Journal),
    ] {
        let (claim, waiter) = claim(&records, key);
        waiters.push(waiter);
        claim.lose_protection(lost);
        match key {
            "unknown" => lose(mark(claim), false),
            _ => done(mark(claim), "77"),
        }
        assert!(!records.is_protected(name(key)), "{key}");
        assert_eq!(records.is_in_store(name(key)), lost == LostRecord::Journal);
    }
    let shareable = records.shareable(Instant::now());
    let names: Vec<_> = shareable.iter().map(|record| record.claim.name).collect();
    assert_eq!(names, [name("not-in-journal")]);
    // Nor when it is resolved.
    let resolution = Resolution::SettledCreated(created("78"));
    let (unknown, outcome) = records.unknown().remove(0);
    let _resolved = records.resolve(unknown, &outcome, resolution, Instant::now());
    assert!(!records.is_in_store(name("unknown")));
}

#[tokio::test]
async fn a_call_that_cannot_be_repeated_leaves_only_an_unknown_outcome() {
    let records = records(1);
    for key in ["a", "b"] {
        let (claim, _waiter) = claim_as(&records, key, OrderKind::Single);
        done(mark(claim), "77");
    }
    assert_eq!(count(&records), [0, 0, 0]);
    let (claim, _waiter) = claim_as(&records, "c", OrderKind::Single);
    lose(mark(claim), true);
    assert_eq!(count(&records), [0, 0, 1]);
}

#[tokio::test(start_paused = true)]
async fn a_journal_restores_how_unknown_outcomes_have_ended() {
    advance(KEEP * 2).await;
    let clock = SystemTime::now();
    let resolved = |key, result, flow_id: Option<&str>| KeyedAttempt {
        resolution: Some(KeyedResolution {
            time: Some(clock),
            result,
            flow_id: flow_id.map(str::to_owned),
            found: None,
        }),
        ..attempt(key, clock, 60, Some((Outcome::Unknown, None)))
    };
    let attempts = vec![
        resolved("created", ResolvedAs::Created, Some("77")),
        resolved("settled", ResolvedAs::Settled, Some("78")),
        resolved("absent", ResolvedAs::Absent, None),
        resolved("not-created", ResolvedAs::Settled, None),
        resolved("ambiguous", ResolvedAs::Ambiguous, None),
        // The answer came after another process had concluded that there is none.
        KeyedAttempt {
            end: attempt("late", clock, 60, Some((Outcome::Ok, Some("79")))).end,
            ..resolved("late", ResolvedAs::Absent, None)
        },
        attempt("sought", clock, 60, None),
    ];
    let records = records(100);
    records.restore(attempts, Instant::now(), clock, |order| {
        &*order.flow.name == "Welcome"
    });
    for (key, flow_id) in [("created", "77"), ("settled", "78"), ("late", "79")] {
        assert!(matches!(find(&records, key), Found::Done(done) if &*done.flow_id == flow_id));
    }
    for key in ["absent", "not-created"] {
        assert!(is_free(&records, key), "{key}");
    }
    assert!(matches!(find(&records, "ambiguous"), Found::Unknown(_)));
    assert!(matches!(find(&records, "sought"), Found::Running(_)));
}

#[tokio::test(start_paused = true)]
async fn counts_agree_with_the_states_of_the_records() {
    let records = records(1000);
    let scanned = || {
        let mut count = Count::default();
        for record in records.table.lock().records.values() {
            *count.of(&record.state) += 1;
        }
        count
    };
    for round in 0..300 {
        let key = format!("k-{}", round % 40);
        let unknown = records.unknown();
        match find(&records, &key) {
            Found::New(claim, _waiter) => match round % 5 {
                0 => drop(claim),
                1 => done(mark(claim), "77"),
                2 => drop(mark(claim)),
                _ => lose(mark(claim), round % 2 == 0),
            },
            _ => {
                if let Some((name, outcome)) = unknown.first() {
                    let resolution = match round % 3 {
                        0 => Resolution::SettledCreated(created("78")),
                        1 => Resolution::Absent,
                        _ => Resolution::Ambiguous("two flows".into()),
                    };
                    let now = Instant::now();
                    drop(records.resolve(*name, outcome, resolution, now));
                }
            }
        }
        assert_eq!(records.count(), scanned());
        assert_eq!(records.count().unknown, records.unknown().len());
    }
    assert!(records.has_flow("77") && records.has_flow("78") && !records.has_flow("79"));
    advance(Duration::from_secs(8 * 24 * 3600)).await;
    records.forget_old(Instant::now());
    assert_eq!(records.count(), Count::default());
    // The latest flows of a space are known for longer than the calls that have created them.
    assert!(records.has_flow("77"));
}

#[tokio::test(start_paused = true)]
async fn a_call_may_be_executed_while_an_attempt_of_any_replica_may_be_under_way() {
    let records = records(10);
    let attempts = |is_in_flight| Attempts {
        stats: CallStats {
            waited: Duration::ZERO,
            attempts: 1,
        },
        is_in_flight,
    };
    let (claim, waiter) = claim(&records, "k");
    let queued = |waiter: &Waiter| matches!(waiter.progress(), Progress::Claimed);
    assert!(queued(&waiter) && !waiter.may_be_executed(false));
    assert!(
        waiter.may_be_executed(true),
        "another replica may have claimed the key"
    );
    claim.follow();
    assert!(!queued(&waiter) && waiter.may_be_executed(true));
    // The other one has freed the key, and this one has claimed it.
    claim.note_attempts(attempts(false));
    assert!(queued(&waiter) && !waiter.may_be_executed(true));
    claim.note_attempts(attempts(true));
    let marked = claim.mark(Instant::now());
    assert!(!queued(&waiter) && waiter.may_be_executed(false));
    // CAMS has refused the attempt.
    marked.note_attempts(attempts(false));
    assert!(queued(&waiter) && !waiter.may_be_executed(true));
    // Another replica has taken the key meanwhile.
    marked.follow();
    assert!(!queued(&waiter) && waiter.may_be_executed(true));
    marked.end(CallEnd::NotCreated, answer());
    assert!(!waiter.may_be_executed(true));
    let (claim, waiter) = self::claim(&records, "k");
    claim
        .mark(Instant::now())
        .end(CallEnd::Created(created("1")), answer());
    assert!(waiter.may_be_executed(false), "it is executed");
}

//! The states of records, and what a journal restores.

use futures_util::FutureExt;
use tokio::time::advance;

use super::*;
use crate::idempotency::fingerprint::{fingerprint, record_name};
use crate::idempotency::key;
use crate::observe::journal::JournalKey;

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

fn find(records: &Arc<Records>, key: &str) -> Found {
    records.find(name(key), &ClientId::new("team-a"), print("Welcome"))
}

fn claim(records: &Arc<Records>, key: &str) -> (Claim, Waiter) {
    match find(records, key) {
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
    }
}

fn done(marked: Marked, flow_id: &str) {
    marked.end(End::Done(Arc::new(created(flow_id))), answer());
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
    let marked = claim.mark();
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
    let other = || records.find(name("k"), &ClientId::new("team-a"), print("Other"));
    let (claim, _waiter) = claim(&records, "k");
    assert!(matches!(other(), Found::Mismatch));
    let marked = claim.mark();
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
    second.mark().end(End::Released, answer());
    let (third, mut waiter) = claim(&records, "k");
    drop(third.mark());
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
        done(claim.mark(), key);
    }
    assert!(matches!(find(&records, "c"), Found::Full));
    let other = |key: &str| records.find(name(key), &ClientId::new("team-b"), print("Welcome"));
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
    done(finished.mark(), "77");
    let (unknown, _waiter) = claim(&records, "unknown");
    drop(unknown.mark());
    let (running, _waiter) = claim(&records, "running");
    advance(KEEP.checked_sub(Duration::from_secs(1)).unwrap()).await;
    assert_eq!(records.forget_old(Instant::now()), Forgotten::default());
    advance(Duration::from_secs(1)).await;
    assert_eq!(
        records.forget_old(Instant::now()),
        Forgotten {
            done: 1,
            unknown: 0
        }
    );
    assert!(is_free(&records, "done"));
    advance(KEEP_UNKNOWN).await;
    assert_eq!(
        records.forget_old(Instant::now()),
        Forgotten {
            done: 0,
            unknown: 1
        }
    );
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
        key: JournalKey {
            name: name(key).hex(),
            fingerprint: print("Welcome").hex(),
        },
        client: "team-a".to_owned(),
        time: clock.checked_sub(Duration::from_secs(age)),
        end: end.map(|(outcome, flow_id)| KeyedEnd {
            outcome,
            flow_id: flow_id.map(str::to_owned),
            request_id: Some("r-1".to_owned()),
            reason: None,
        }),
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
    let restored = records.restore(attempts, now, clock);
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
    assert_eq!(
        records.forget_old(now),
        Forgotten {
            done: 1,
            unknown: 0
        }
    );
    for key in ["throttled", "unsent", "refused", "old"] {
        assert!(is_free(&records, key), "{key}");
    }
}

#[test]
fn a_line_with_another_form_of_key_is_skipped() {
    let records = records(100);
    let mut odd = attempt("k", SystemTime::now(), 0, None);
    odd.key.name = "not-hexadecimal".to_owned();
    let restored = records.restore(vec![odd], Instant::now(), SystemTime::now());
    assert_eq!(
        restored,
        Restored {
            keys: 0,
            unknown: 0
        }
    );
}

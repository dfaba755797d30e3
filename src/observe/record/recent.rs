//! The calls that ended last, in memory, for operators. They contain no secret: keys that are not
//! configured appear as `unknown`, and texts of callers and CAMS are capped. Successful calls and
//! others are kept apart, so that many of one kind do not displace the other.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::Instant;

use super::OK;
use super::way::{Arrival, AttemptNote, Way};
use crate::error::Outcome;
use crate::observe::history::Ended;
use crate::operation::{OTHER_ACTION, Operation, UNKNOWN_ACCOUNT};
use crate::primitives::id::AccountId;
use crate::primitives::text::millis;

/// The calls that ended last.
#[derive(Default)]
pub(crate) struct Recent(Mutex<Calls>);

#[derive(Default)]
struct Calls {
    /// Newest first.
    successful: VecDeque<EndedCall>,
    /// Newest first.
    others: VecDeque<EndedCall>,
    /// All calls since the start.
    ended: Ended,
}

/// A call that has ended.
pub(super) struct EndedCall {
    pub(super) request_id: Arc<str>,
    /// That of the last attempt, or of the answer that it repeats.
    pub(super) cams_request_id: Option<Box<str>>,
    /// That of the call that it waited for, or whose outcome is unknown.
    pub(super) first_request_id: Option<Box<str>>,
    pub(super) at: Instant,
    /// `None` if it ended before it was classified.
    pub(super) operation: Option<Arc<Operation>>,
    /// The account of the claimed key, if the operation is not known.
    pub(super) account: Option<AccountId>,
    pub(super) flow_name: Option<Box<str>>,
    pub(super) outcome: Outcome,
    /// Whether CAMS may have executed the call itself, not only one that it repeats.
    pub(super) is_lost: bool,
    /// `None` if it is `OK`, as of most calls.
    pub(super) code: Option<Box<str>>,
    pub(super) status: u16,
    pub(super) attempts: u32,
    pub(super) waited: Duration,
    pub(super) took: Duration,
    /// Whether its last permit was used to send an attempt.
    pub(super) was_sent: bool,
    /// What the caller was told, if Flowgate answered it.
    pub(super) detail: Option<Box<str>>,
    pub(super) way: Option<Box<Way>>,
}

/// A call that has ended, as operators see it.
#[derive(Clone, Debug, Default, PartialEq, serde::Serialize)]
pub(crate) struct CallView {
    pub(crate) request_id: Box<str>,
    /// That of the last attempt, or of the answer that it repeats.
    pub(crate) cams_request_id: Option<Box<str>>,
    /// That of the call that it waited for, or whose outcome is unknown.
    pub(crate) first_request_id: Option<Box<str>>,
    pub(crate) age_seconds: u64,
    pub(crate) account: String,
    pub(crate) action: String,
    pub(crate) client: String,
    pub(crate) tenant: String,
    pub(crate) flow_name: Option<Box<str>>,
    pub(crate) outcome: &'static str,
    /// Its outcome is unknown, and it does not only repeat such a call.
    pub(crate) lost: bool,
    pub(crate) code: Box<str>,
    /// 0 if the caller had disconnected.
    pub(crate) status: u16,
    pub(crate) attempts: u32,
    pub(crate) waited_ms: u64,
    pub(crate) took_ms: u64,
}

/// A call that has ended, with its way.
#[derive(Clone, Debug, Default)]
pub(crate) struct CallDetails {
    pub(crate) view: CallView,
    /// How long it might be kept; `None` if it ended before it was classified.
    pub(crate) hold_ms: Option<u64>,
    /// How long after its arrival it might be sent.
    pub(crate) send_by_ms: Option<u64>,
    /// Calls per second of its lane; `None` if the action has no limit.
    pub(crate) limit_per_second: Option<f64>,
    /// How long it waited for a session.
    pub(crate) session_ms: u32,
    pub(crate) arrival: Option<Arrival>,
    pub(crate) attempts: Vec<AttemptNote>,
    pub(crate) detail: Option<Box<str>>,
}

/// Which calls are wanted; an empty filter accepts all.
#[derive(Debug, Default)]
pub(crate) struct Filter {
    pub(crate) account: Option<String>,
    pub(crate) client: Option<String>,
    /// The label of an outcome.
    pub(crate) outcome: Option<String>,
}

/// Number of calls of each kind that are kept.
const KEPT: usize = 1000;

// === impl Recent ===

impl Recent {
    pub(super) fn push(&self, call: EndedCall) {
        let mut guard = self.0.lock();
        let Calls {
            successful,
            others,
            ended,
        } = &mut *guard;
        ended[call.outcome as usize] += 1;
        let calls = match call.outcome {
            Outcome::Ok => successful,
            _ => others,
        };
        let oldest = if calls.len() == KEPT {
            calls.pop_back()
        } else {
            None
        };
        calls.push_front(call);
        drop(guard);
        // Freed after the lock is released.
        drop(oldest);
    }

    /// The number of calls that have ended since the start.
    pub(crate) fn ended(&self) -> Ended {
        self.0.lock().ended
    }

    /// The calls that the filter accepts, newest first, at most `max`.
    pub(crate) fn views(&self, filter: &Filter, max: usize) -> Vec<CallView> {
        let calls = self.0.lock();
        let of = |calls: &VecDeque<EndedCall>| {
            calls
                .iter()
                .filter(|call| filter.accepts(call))
                .take(max)
                .map(|call| (call.at, call.view()))
                .collect::<Vec<_>>()
        };
        let mut views = of(&calls.successful);
        views.extend(of(&calls.others));
        drop(calls);
        views.sort_by_key(|(at, _)| std::cmp::Reverse(*at));
        views.into_iter().take(max).map(|(_, view)| view).collect()
    }

    /// The newest call with this request id, of Flowgate or of CAMS.
    pub(crate) fn find(&self, request_id: &str) -> Option<CallDetails> {
        let calls = self.0.lock();
        let calls = || calls.others.iter().chain(&calls.successful);
        calls()
            .find(|call| call.request_id.eq_ignore_ascii_case(request_id))
            .or_else(|| calls().find(|call| call.attempts > 0 && call.is_answered_by(request_id)))
            // The call that was sent may be forgotten, and its repetitions have its answer.
            .or_else(|| calls().find(|call| call.is_answered_by(request_id)))
            .map(EndedCall::details)
    }
}

// === impl Filter ===

impl Filter {
    fn accepts(&self, call: &EndedCall) -> bool {
        let [account, _, client, _] = call.names();
        let is = |wanted: &Option<String>, name: &str| {
            wanted.as_ref().is_none_or(|wanted| wanted == name)
        };
        is(&self.account, account)
            && is(&self.client, client)
            && is(&self.outcome, call.outcome.label())
    }
}

// === impl EndedCall ===

impl EndedCall {
    /// Account, action, client and tenant.
    fn names(&self) -> [&str; 4] {
        let claimed_account = self
            .account
            .as_ref()
            .map_or(UNKNOWN_ACCOUNT, AccountId::as_str);
        match self.operation.as_deref() {
            Some(operation) => [
                operation.account_label(),
                operation.action_label(),
                operation.client.as_str(),
                operation.tenant.as_str(),
            ],
            None => [claimed_account, OTHER_ACTION, "", ""],
        }
    }

    fn code(&self) -> &str {
        self.code.as_deref().unwrap_or(OK)
    }

    fn failed_attempts(&self) -> &[AttemptNote] {
        self.way.as_ref().map_or(&[], |way| &way.attempts)
    }

    /// Whether an answer of CAMS to it, or to the call that it repeats, had this id.
    fn is_answered_by(&self, cams_request_id: &str) -> bool {
        let failed = self.failed_attempts().iter();
        failed
            .filter_map(|attempt| attempt.cams_request_id.as_deref())
            .chain(self.cams_request_id.as_deref())
            .any(|known| known.eq_ignore_ascii_case(cams_request_id))
    }

    fn view(&self) -> CallView {
        let [account, action, client, tenant] = self.names();
        CallView {
            request_id: self.request_id.as_ref().into(),
            cams_request_id: self.cams_request_id.clone(),
            first_request_id: self.first_request_id.clone(),
            age_seconds: self.at.elapsed().as_secs(),
            account: account.to_owned(),
            action: action.to_owned(),
            client: client.to_owned(),
            tenant: tenant.to_owned(),
            flow_name: self.flow_name.clone(),
            outcome: self.outcome.label(),
            lost: self.is_lost,
            code: self.code().into(),
            status: self.status,
            attempts: self.attempts,
            waited_ms: millis(self.waited),
            took_ms: millis(self.took),
        }
    }

    fn details(&self) -> CallDetails {
        let operation = self.operation.as_deref();
        let view = self.view();
        let mut attempts = self.failed_attempts().to_vec();
        // A successful attempt is the last one, and ends the call.
        if self.was_sent && self.code() == OK {
            attempts.push(AttemptNote {
                permitted_ms: u32::try_from(view.waited_ms).unwrap_or(u32::MAX),
                ended_ms: u32::try_from(view.took_ms).unwrap_or(u32::MAX),
                code: Some(OK.into()),
                cams_request_id: self.cams_request_id.clone(),
                back_off_ms: None,
            });
        }
        CallDetails {
            hold_ms: operation.map(|operation| millis(operation.hold)),
            send_by_ms: operation.map(|operation| millis(operation.wait)),
            limit_per_second: operation
                .and_then(|operation| operation.limit)
                .map(|limit| f64::from(limit.count.get()) / limit.window.as_secs_f64()),
            session_ms: self.way.as_ref().map_or(0, |way| way.session_ms),
            arrival: self.way.as_ref().and_then(|way| way.arrival),
            attempts,
            detail: self.detail.clone(),
            view,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn call(number: u32, outcome: Outcome) -> EndedCall {
        EndedCall {
            request_id: format!("ID-{number}").into(),
            cams_request_id: Some(format!("CAMS-{number}").into()),
            first_request_id: None,
            at: Instant::now(),
            operation: None,
            account: number.is_multiple_of(2).then(|| AccountId::new("acme")),
            flow_name: Some("<b>".into()),
            outcome,
            is_lost: false,
            code: None,
            status: 200,
            attempts: number,
            waited: Duration::ZERO,
            took: Duration::from_millis(7),
            was_sent: true,
            detail: None,
            way: None,
        }
    }

    #[tokio::test(start_paused = true)]
    async fn the_latest_1000_calls_of_each_kind_are_kept_and_shown_newest_first() {
        let recent = Recent::default();
        for number in 0..2500 {
            let outcome = if number < 1200 {
                Outcome::Refused
            } else {
                Outcome::Ok
            };
            recent.push(call(number, outcome));
            tokio::time::advance(Duration::from_secs(1)).await;
        }
        let views = recent.views(&Filter::default(), usize::MAX);
        let numbers: Vec<_> = views.iter().map(|call| call.attempts).collect();
        let expected: Vec<_> = (1500..2500).rev().chain((200..1200).rev()).collect();
        assert_eq!(numbers, expected);
        assert_eq!(views[0].age_seconds, 1);
        let CallView {
            account,
            action,
            flow_name,
            took_ms,
            ..
        } = &views[0];
        assert_eq!(
            (account.as_str(), action.as_str(), *took_ms),
            ("unknown", "other", 7)
        );
        assert_eq!(flow_name.as_deref(), Some("<b>"));
        let ended = recent.ended();
        assert_eq!(ended[Outcome::Ok as usize], 1300);
        assert_eq!(ended[Outcome::Refused as usize], 1200);
    }

    #[tokio::test(start_paused = true)]
    async fn calls_are_filtered_by_account_client_and_outcome() {
        let recent = Recent::default();
        for number in 0..10 {
            let outcome = [Outcome::Ok, Outcome::Unknown][usize::from(number >= 5)];
            recent.push(call(number, outcome));
        }
        let text = |text: &str| Some(text.to_owned());
        let shown = |filter: Filter| recent.views(&filter, 3).len();
        let count = |filter: Filter| recent.views(&filter, 100).len();
        let of_account = || Filter {
            account: text("acme"),
            ..Filter::default()
        };
        assert_eq!((shown(of_account()), count(of_account())), (3, 5));
        let unknown = Filter {
            outcome: text("outcome_unknown"),
            ..of_account()
        };
        assert_eq!(count(unknown), 2);
        let client = |client| Filter {
            client: text(client),
            ..Filter::default()
        };
        assert_eq!((count(client("")), count(client("team-a"))), (10, 0));
    }

    #[tokio::test(start_paused = true)]
    async fn a_call_is_found_by_the_request_id_of_flowgate_or_of_any_attempt() {
        let recent = Recent::default();
        let mut way = Way::default();
        way.failed(AttemptNote {
            code: Some("Throttling.User".into()),
            cams_request_id: Some("FIRST".into()),
            ..AttemptNote::default()
        });
        recent.push(EndedCall {
            way: Some(Box::new(way)),
            ..call(2, Outcome::Ok)
        });
        recent.push(call(3, Outcome::Refused));
        for id in ["ID-2", "id-2", "CAMS-2", "FIRST"] {
            let found = recent.find(id).unwrap();
            assert_eq!(&*found.view.request_id, "ID-2");
            let codes: Vec<_> = found
                .attempts
                .iter()
                .map(|attempt| attempt.code.as_deref())
                .collect();
            assert_eq!(codes, [Some("Throttling.User"), Some("OK")]);
        }
        assert!(recent.find("ID").is_none() && recent.find("").is_none());
    }
}

//! The calls that ended last, in memory, for the operators' page. They contain no secret: keys that
//! are not configured appear as `unknown`, and texts of callers and CAMS are capped.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::Instant;

use crate::error::Outcome;
use crate::operation::{OTHER_ACTION, Operation, UNKNOWN_ACCOUNT};
use crate::primitives::id::AccountId;
use crate::primitives::text::millis;

/// The calls that ended last.
#[derive(Default)]
pub(crate) struct Recent(Mutex<VecDeque<EndedCall>>);

/// A call that has ended.
pub(super) struct EndedCall {
    pub(super) at: Instant,
    /// `None` if it ended before it was classified.
    pub(super) operation: Option<Arc<Operation>>,
    /// The account of the claimed key, if the operation is not known.
    pub(super) account: Option<AccountId>,
    pub(super) flow_name: Option<Box<str>>,
    pub(super) outcome: Outcome,
    /// Whether CAMS may have executed the call itself, not only one that it repeats.
    pub(super) is_lost: bool,
    pub(super) code: Box<str>,
    pub(super) status: u16,
    pub(super) attempts: u32,
    pub(super) waited: Duration,
    pub(super) took: Duration,
}

/// A call that has ended, as operators see it.
#[derive(Debug, PartialEq, serde::Serialize)]
pub(crate) struct CallView {
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

/// Number of calls that are kept.
const KEPT: usize = 50;

// === impl Recent ===

impl Recent {
    pub(super) fn push(&self, ended: EndedCall) {
        let mut calls = self.0.lock();
        let oldest = if calls.len() == KEPT {
            calls.pop_back()
        } else {
            None
        };
        calls.push_front(ended);
        drop(calls);
        // Freed after the lock is released.
        drop(oldest);
    }

    /// The calls, newest first.
    pub(crate) fn views(&self) -> Vec<CallView> {
        self.0.lock().iter().map(EndedCall::view).collect()
    }
}

// === impl EndedCall ===

impl EndedCall {
    fn view(&self) -> CallView {
        let claimed_account = self
            .account
            .as_ref()
            .map_or(UNKNOWN_ACCOUNT, AccountId::as_str);
        let (account, action, client, tenant) = match self.operation.as_deref() {
            Some(operation) => (
                operation.account_label(),
                operation.action_label(),
                operation.client.as_str(),
                operation.tenant.as_str(),
            ),
            None => (claimed_account, OTHER_ACTION, "", ""),
        };
        CallView {
            age_seconds: self.at.elapsed().as_secs(),
            account: account.to_owned(),
            action: action.to_owned(),
            client: client.to_owned(),
            tenant: tenant.to_owned(),
            flow_name: self.flow_name.clone(),
            outcome: self.outcome.label(),
            lost: self.is_lost,
            code: self.code.clone(),
            status: self.status,
            attempts: self.attempts,
            waited_ms: millis(self.waited),
            took_ms: millis(self.took),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn the_latest_50_calls_are_kept_newest_first() {
        let recent = Recent::default();
        for attempts in 0..60 {
            recent.push(EndedCall {
                at: Instant::now(),
                operation: None,
                account: None,
                flow_name: Some("<b>".into()),
                outcome: Outcome::Ok,
                is_lost: false,
                code: "OK".into(),
                status: 200,
                attempts,
                waited: Duration::ZERO,
                took: Duration::from_millis(7),
            });
            tokio::time::advance(Duration::from_secs(1)).await;
        }
        let views = recent.views();
        let ends = views
            .iter()
            .map(|call| (call.attempts, call.age_seconds))
            .collect::<Vec<_>>();
        assert_eq!(
            ends,
            (1..=50)
                .map(|age| (60 - age, u64::from(age)))
                .collect::<Vec<_>>()
        );
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
    }
}

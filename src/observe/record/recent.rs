//! Which calls have ended lately? The last of them, in memory, for the operators' page. Nothing of them is a secret: what
//! the configuration does not name has no name here, either, and what callers and CAMS say is capped.

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
pub(crate) struct Recent(Mutex<VecDeque<Ended>>);

/// One of them.
pub(super) struct Ended {
    pub(super) at: Instant,
    /// None if it ended before it was known.
    pub(super) operation: Option<Arc<Operation>>,
    /// Whose key it named, then.
    pub(super) account: Option<AccountId>,
    pub(super) flow_name: Option<Box<str>>,
    pub(super) outcome: Outcome,
    pub(super) code: Box<str>,
    pub(super) status: u16,
    pub(super) attempts: u32,
    pub(super) waited: Duration,
    pub(super) took: Duration,
}

/// The same as operators see it.
#[derive(Debug, PartialEq, serde::Serialize)]
pub(crate) struct CallView {
    pub(crate) age_seconds: u64,
    pub(crate) account: String,
    pub(crate) action: String,
    pub(crate) client: String,
    pub(crate) tenant: String,
    pub(crate) flow_name: Option<Box<str>>,
    pub(crate) outcome: &'static str,
    pub(crate) code: Box<str>,
    /// 0: nobody was there to be answered.
    pub(crate) status: u16,
    pub(crate) attempts: u32,
    pub(crate) waited_ms: u64,
    pub(crate) took_ms: u64,
}

/// So many are kept.
const KEPT: usize = 50;

// === impl Recent ===

impl Recent {
    pub(super) fn push(&self, ended: Ended) {
        let mut calls = self.0.lock();
        let oldest = if calls.len() == KEPT {
            calls.pop_back()
        } else {
            None
        };
        calls.push_front(ended);
        drop(calls);
        // What it held is given back when nobody waits for the lock.
        drop(oldest);
    }

    /// The latest first.
    pub(crate) fn views(&self) -> Vec<CallView> {
        self.0.lock().iter().map(Ended::view).collect()
    }
}

// === impl Ended ===

impl Ended {
    fn view(&self) -> CallView {
        let operation = self.operation.as_deref();
        let account = self
            .account
            .as_ref()
            .map_or(UNKNOWN_ACCOUNT, AccountId::as_str);
        let text = |of: fn(&Operation) -> &str| operation.map_or("", of).to_owned();
        CallView {
            age_seconds: self.at.elapsed().as_secs(),
            account: operation
                .map_or(account, Operation::account_label)
                .to_owned(),
            action: operation
                .map_or(OTHER_ACTION, Operation::action_label)
                .to_owned(),
            client: text(|operation| operation.client.as_str()),
            tenant: text(|operation| operation.tenant.as_str()),
            flow_name: self.flow_name.clone(),
            outcome: self.outcome.label(),
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
    async fn the_latest_are_kept_the_latest_first() {
        let recent = Recent::default();
        for attempts in 0..60 {
            recent.push(Ended {
                at: Instant::now(),
                operation: None,
                account: None,
                flow_name: Some("<b>".into()),
                outcome: Outcome::Ok,
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

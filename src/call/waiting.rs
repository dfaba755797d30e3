//! Counts the calls that wait outside a lane: for a session of their account, or for the call of
//! their idempotency key. The bounds of `[queue]` apply to them for each account.

use std::collections::HashMap;
use std::time::Duration;

use parking_lot::Mutex;

use crate::config::Queue;
use crate::error::{Kind, Refusal};
use crate::operation::Operation;
use crate::primitives::id::{AccountId, ClientId};

/// When a call that does not fit among the waiting ones should be repeated.
const RETRY_AFTER: Duration = Duration::from_secs(1);

/// The calls that wait outside a lane, by account and client.
#[derive(Default)]
pub(crate) struct WaitingCalls(Mutex<HashMap<AccountId, OfAccount>>);

/// The waiting calls of one account.
#[derive(Default)]
struct OfAccount {
    all: usize,
    by_client: HashMap<ClientId, usize>,
}

/// One waiting call, counted until this is dropped.
#[must_use]
pub(super) struct WaitingCall<'a> {
    waits: &'a WaitingCalls,
    operation: &'a Operation,
}

// === impl WaitingCalls ===

impl WaitingCalls {
    /// Counts a call as waiting for `awaited`. Refuses it if its account or its client has too many.
    pub(super) fn enter<'a>(
        &'a self,
        operation: &'a Operation,
        queue: &Queue,
        awaited: &str,
    ) -> Result<WaitingCall<'a>, Refusal> {
        let mut accounts = self.0.lock();
        let account = accounts.entry(operation.account.clone()).or_default();
        let of_client = account.by_client.get(&operation.client).copied();
        if of_client.unwrap_or_default() >= queue.max_waiting_per_client {
            let bound = queue.max_waiting_per_client;
            return Err(full("This client's part of the queue", bound, awaited));
        }
        if account.all >= queue.max_waiting {
            return Err(full("The queue", queue.max_waiting, awaited));
        }
        account.all += 1;
        *account
            .by_client
            .entry(operation.client.clone())
            .or_default() += 1;
        Ok(WaitingCall {
            waits: self,
            operation,
        })
    }

    /// The number of waiting calls of an account.
    pub(crate) fn waiting(&self, account: &AccountId) -> usize {
        self.0.lock().get(account).map_or(0, |waiting| waiting.all)
    }

    fn leave(&self, operation: &Operation) {
        let mut accounts = self.0.lock();
        let Some(account) = accounts.get_mut(&operation.account) else {
            return;
        };
        account.all -= 1;
        if let Some(of_client) = account.by_client.get_mut(&operation.client) {
            *of_client -= 1;
            if *of_client == 0 {
                account.by_client.remove(&operation.client);
            }
        }
        if account.all == 0 {
            accounts.remove(&operation.account);
        }
    }
}

fn full(what: &str, bound: usize, awaited: &str) -> Refusal {
    let message = format!(
        "{what} of {bound} waiting calls is full: they wait for {awaited}. CAMS has done nothing."
    );
    Refusal::after(Kind::QueueFull, RETRY_AFTER, message)
}

// === impl WaitingCall ===

impl Drop for WaitingCall<'_> {
    fn drop(&mut self) {
        self.waits.leave(self.operation);
    }
}

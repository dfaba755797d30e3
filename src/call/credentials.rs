//! Waits until a call's account has a session. The wait is a part of the call's hold; calls of
//! accounts whose credentials are read with the configuration never wait here.

use std::collections::HashMap;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::Instant;

use super::identify::Sendable;
use super::services::CallServices;
use crate::config::{Queue, SessionSource};
use crate::credentials::error::FetchError;
use crate::credentials::http::place;
use crate::error::{Kind, Refusal};
use crate::operation::Operation;
use crate::primitives::id::{AccountId, ClientId};

/// When a call that does not fit among the waiting ones should be repeated.
const RETRY_AFTER: Duration = Duration::from_secs(1);

/// A call that waits for a session.
pub(super) struct SessionWait<'a> {
    pub(super) services: &'a CallServices,
    pub(super) call: &'a mut Sendable,
    pub(super) operation: &'a Operation,
    /// The generation of the configuration that the call was last checked with.
    pub(super) generation: &'a mut u64,
    /// Nothing is sent after this.
    pub(super) send_by: Instant,
}

/// The calls that wait for a session, by account and client. They are in no lane, so the bounds of
/// `[queue]` apply here to each account.
#[derive(Default)]
pub(crate) struct SessionWaits(Mutex<HashMap<AccountId, WaitingCalls>>);

/// The waiting calls of one account.
#[derive(Default)]
struct WaitingCalls {
    all: usize,
    by_client: HashMap<ClientId, usize>,
}

/// One waiting call, counted until this is dropped.
#[must_use]
struct WaitingCall<'a> {
    waits: &'a SessionWaits,
    operation: &'a Operation,
}

// === impl SessionWait ===

impl SessionWait<'_> {
    /// Waits until there is a session, at most until the send-by time. A drain ends it only
    /// with its grace. After a reload the call waits for the source that its account has then.
    pub(super) async fn run(self) -> Result<(), Refusal> {
        let Self {
            services,
            call,
            operation,
            generation,
            send_by,
        } = self;
        let config_snapshot = services.current_config.load_full();
        let queue = &config_snapshot.config.queue;
        let _waiting = services.session_waits.enter(operation, queue)?;
        drop(config_snapshot);
        loop {
            let config_snapshot = services.current_config.load_full();
            config_snapshot.recheck(call, &operation.account, generation)?;
            drop(config_snapshot);
            let Some(keeper) = call.missing_session().cloned() else {
                return Ok(());
            };
            tokio::select! {
                biased;
                () = services.current_config.replaced(*generation) => {}
                ready = keeper.ready(send_by) => {
                    return ready.map_err(|failure| no_session(keeper.source(), failure.as_ref()));
                }
            }
        }
    }
}

/// The refusal of a call whose account had no session by the end of its hold.
fn no_session(source: &SessionSource, failure: Option<&FetchError>) -> Refusal {
    // The cause first: readers of logs may cut the rest.
    let cause = match failure {
        Some(failure) => failure.to_string(),
        None => format!("{}: the source has not answered yet", place(source)),
    };
    let message = format!(
        "No session to sign with: {cause}. The source of this account's credentials ({}) returned \
         none within the call's hold. CAMS has done nothing. Report this to the operator of \
         Flowgate, or repeat the call later.",
        source.name()
    );
    Refusal::new(Kind::NoSession, message)
}

// === impl SessionWaits ===

impl SessionWaits {
    /// Counts a call as waiting. Refuses it if its account or its client has too many.
    fn enter<'a>(
        &'a self,
        operation: &'a Operation,
        queue: &Queue,
    ) -> Result<WaitingCall<'a>, Refusal> {
        let mut accounts = self.0.lock();
        let account = accounts.entry(operation.account.clone()).or_default();
        let of_client = account.by_client.get(&operation.client).copied();
        if of_client.unwrap_or_default() >= queue.max_waiting_per_client {
            let bound = queue.max_waiting_per_client;
            return Err(full("This client's part of the queue", bound));
        }
        if account.all >= queue.max_waiting {
            return Err(full("The queue", queue.max_waiting));
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

    /// The number of calls that wait for the session of an account.
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

fn full(what: &str, bound: usize) -> Refusal {
    let message = format!(
        "{what} of {bound} waiting calls is full: they wait for a session of the account. CAMS \
         has done nothing."
    );
    Refusal::after(Kind::QueueFull, RETRY_AFTER, message)
}

// === impl WaitingCall ===

impl Drop for WaitingCall<'_> {
    fn drop(&mut self) {
        self.waits.leave(self.operation);
    }
}

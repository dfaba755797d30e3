//! The task that keeps the connection: it connects, pings once a second, so that a dead or frozen
//! store is detected without traffic, and reconnects with exponential back-off. Each change of
//! state is logged once.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::{Instant, sleep};

use super::error::StoreError;
use super::health::Server;
use super::{Shared, State};

/// The first pause before reconnecting; doubled for each attempt.
const FIRST_PAUSE: Duration = Duration::from_millis(50);
const LONGEST_PAUSE: Duration = Duration::from_secs(1);
/// The first pause after a store that passed the health check and failed again soon; doubled each
/// time, because the health check does not detect its failure.
const FIRST_RELAPSE: Duration = Duration::from_millis(50);
const LONGEST_RELAPSE: Duration = Duration::from_secs(30);
/// A store that was up for this time has not failed again soon.
const STEADY: Duration = Duration::from_secs(10);

/// Interval of pings while the store is up.
const PING: Duration = Duration::from_secs(1);

/// What has been logged about the store, so that nothing is logged twice.
#[derive(Default)]
struct LoggedState {
    unreachable: bool,
    unfit: bool,
    /// INFO is not permitted.
    unseen: bool,
    /// Run ids of the last healthy server.
    runs: Option<String>,
}

/// Keeps the connection until the task is aborted.
pub(super) async fn keep(shared: Arc<Shared>) {
    let mut state = shared.state.subscribe();
    let mut logged = LoggedState::default();
    let mut relapse = FIRST_RELAPSE;
    loop {
        let mut pause = FIRST_PAUSE;
        let (connection, health) = loop {
            match shared.reach().await {
                Ok(reached) => break reached,
                Err(error) => {
                    logged.error(&error);
                    shared.attempted(error.forbids_start());
                }
            }
            sleep(pause).await;
            pause = (2 * pause).min(LONGEST_PAUSE);
        };
        let before = shared.restore(connection, &health);
        shared.attempted(None);
        logged.up(before, health.server);
        let up_since = Instant::now();
        ping_until_down(&shared, &mut state).await;
        relapse = if up_since.elapsed() < STEADY {
            (2 * relapse).min(LONGEST_RELAPSE)
        } else {
            FIRST_RELAPSE
        };
        sleep(relapse).await;
    }
}

/// Pings the store until the circuit opens.
async fn ping_until_down(shared: &Shared, state: &mut watch::Receiver<State>) {
    while let Ok(link) = shared.link() {
        let down = state.wait_for(|state| matches!(state, State::Down { .. }));
        tokio::select! {
            _ = down => return,
            () = sleep(PING) => {}
        }
        shared.ping(&link).await;
    }
}

// === impl LoggedState ===

impl LoggedState {
    /// Logs why the store cannot be used, once per outage.
    fn error(&mut self, error: &StoreError) {
        match error {
            StoreError::Unreachable(reason) => {
                if !std::mem::replace(&mut self.unreachable, true) {
                    tracing::warn!(reason, "the shared store cannot be reached; retrying");
                }
            }
            StoreError::Refused(reason)
            | StoreError::Evicts(reason)
            | StoreError::Forbids(reason)
            | StoreError::Unfit(reason) => {
                if !std::mem::replace(&mut self.unfit, true) {
                    tracing::error!(reason, "the shared store cannot be used; retrying");
                }
            }
            StoreError::TooFar(took) => {
                if !std::mem::replace(&mut self.unfit, true) {
                    let took_seconds = took.as_secs_f64();
                    tracing::error!(
                        took_seconds,
                        "the shared store answers too late to be used; retrying"
                    );
                }
            }
        }
    }

    fn up(&mut self, before: State, server: Option<Server>) {
        let down = if let State::Down { since } = before {
            Instant::now() - since
        } else {
            Duration::ZERO
        };
        let down_seconds = down.as_secs_f64();
        match &server {
            Some(Server { runs, version }) => {
                let restarted = self.runs.as_ref().is_some_and(|latest| latest != runs);
                tracing::info!(
                    run_id = runs,
                    version,
                    restarted,
                    down_seconds,
                    "the shared store is up"
                );
            }
            None => {
                tracing::info!(down_seconds, "the shared store is up");
                if !self.unseen {
                    tracing::warn!(
                        "INFO is not permitted; cannot check whether the shared store evicts keys"
                    );
                }
            }
        }
        let unseen = self.unseen || server.is_none();
        let runs = server.map(|server| server.runs).or(self.runs.take());
        *self = Self {
            unreachable: true,
            unfit: false,
            unseen,
            runs,
        };
    }
}

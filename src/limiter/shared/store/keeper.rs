//! Who keeps the connection? One task: it connects, pings once a second, also without traffic, so that a dead or frozen
//! store is noticed, and tries to reconnect with growing pauses. Each change of state is one line in the log.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::{Instant, sleep};

use super::health::Server;
use super::trouble::Trouble;
use super::{Shared, State};

/// The pause before the first attempt to reconnect, doubled for each one after it.
const FIRST_PAUSE: Duration = Duration::from_millis(50);
const LONGEST_PAUSE: Duration = Duration::from_secs(1);
/// The pause after a store that was found in order and failed again soon, doubled each time: its trouble is one that the
/// look at it does not find.
const FIRST_RELAPSE: Duration = Duration::from_millis(50);
const LONGEST_RELAPSE: Duration = Duration::from_secs(30);
/// One that was up for so long has not failed again soon.
const STEADY: Duration = Duration::from_secs(10);

/// How often a store that is up is asked whether it still is.
const PING: Duration = Duration::from_secs(1);

/// What has been said of the store, so that nothing is said twice.
#[derive(Default)]
struct Said {
    unreachable: bool,
    unfit: bool,
    /// The server does not say what it is.
    unseen: bool,
    /// The latest server that was in order.
    runs: Option<String>,
}

/// Keeps the connection until it is aborted.
pub(super) async fn keep(shared: Arc<Shared>) {
    let mut state = shared.state.subscribe();
    let mut said = Said::default();
    let mut relapse = FIRST_RELAPSE;
    loop {
        let mut pause = FIRST_PAUSE;
        let (connection, health) = loop {
            match shared.reach().await {
                Ok(reached) => break reached,
                Err(trouble) => said.trouble(&trouble),
            }
            sleep(pause).await;
            pause = (2 * pause).min(LONGEST_PAUSE);
        };
        let before = shared.restore(connection, &health);
        said.up(before, health.server);
        let up_since = Instant::now();
        watch_over(&shared, &mut state).await;
        relapse = if up_since.elapsed() < STEADY {
            (2 * relapse).min(LONGEST_RELAPSE)
        } else {
            FIRST_RELAPSE
        };
        sleep(relapse).await;
    }
}

/// Returns when the circuit has opened.
async fn watch_over(shared: &Shared, state: &mut watch::Receiver<State>) {
    while let Ok(link) = shared.link() {
        let down = state.wait_for(|state| matches!(state, State::Down { .. }));
        tokio::select! {
            _ = down => return,
            () = sleep(PING) => {}
        }
        shared.ping(&link).await;
    }
}

// === impl Said ===

impl Said {
    /// Once in an outage; that the store went down has been said when it did.
    fn trouble(&mut self, trouble: &Trouble) {
        match trouble {
            Trouble::Unreachable(reason) => {
                if !std::mem::replace(&mut self.unreachable, true) {
                    tracing::warn!(reason, "the shared store cannot be reached; trying on");
                }
            }
            Trouble::Refused(reason)
            | Trouble::Evicts(reason)
            | Trouble::Forbids(reason)
            | Trouble::Unfit(reason) => {
                if !std::mem::replace(&mut self.unfit, true) {
                    tracing::error!(reason, "the shared store cannot be used; trying on");
                }
            }
            Trouble::TooFar(took) => {
                if !std::mem::replace(&mut self.unfit, true) {
                    let took_seconds = took.as_secs_f64();
                    tracing::error!(
                        took_seconds,
                        "the shared store answers too late to be used; trying on"
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
                        "INFO is not permitted: whether the shared store evicts keys is not known"
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

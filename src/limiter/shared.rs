//! The quota that replicas share. Without a store this process deals its tokens; with a store, the
//! store does. While the store is down, each replica uses its part by rank, or nothing. This file
//! queries the store and reports the current source of tokens.
//!
//! When the store fails: `src/store.rs` opens the circuit; `Quota::source` returns the part or nothing;
//! each lane changes its source (`lane/sources.rs`); `store/keeper.rs` reconnects. docs/scaling.md
//! has the effects.

pub(crate) mod clock;
pub(crate) mod extra_slack;
pub(crate) mod members;
pub(crate) mod probe;
pub(crate) mod protocol;
pub(crate) mod slots;

use std::num::NonZeroU32;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, SystemTime};

use parking_lot::Mutex;
use redis::Script;
use tokio::time::Instant;

use crate::config::{self, Limit, OnStoreFailure};
use crate::limiter::shared::members::{Members, OwnConnection, UNKNOWN};
use crate::limiter::shared::probe::DealProbe;
use crate::limiter::shared::protocol::{Answer, DealRequest, Op, View};
use crate::observe::metrics::Metrics;
use crate::primitives::id::{AccountId, ActionName};
use crate::store::{OpenError, State, Store};

/// One replica's access to the shared quota.
pub(crate) struct Quota {
    store: Arc<Store>,
    slack: Duration,
    lease: Duration,
    on_failure: OnStoreFailure,
    replica: String,
    members: Mutex<Members>,
    take: Script,
    members_script: Script,
    metrics: Arc<Metrics>,
    has_left: AtomicBool,
}

/// The source of a lane's tokens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum QuotaSource {
    /// This process: no store is configured.
    Local,
    /// The store, which has been up since then.
    Store { since: Instant },
    /// This replica's part: the store has been down since then.
    Part { count: NonZeroU32, since: Instant },
    /// No tokens: the store is down and this replica has no part.
    Unavailable { since: Option<Instant> },
}

/// Interval of heartbeats, independent of round trips: even if the store is so far away that its
/// list is one interval old, no live replica appears to have vanished.
const HEARTBEAT_INTERVAL: Duration = Duration::from_millis(250);
/// Retry-After of a call that is refused because the store is down.
pub(crate) const ADVICE: Duration = Duration::from_secs(2);
/// The predicted wait of a lane without tokens: longer than any hold.
pub(crate) const NEVER: Duration = Duration::from_secs(24 * 3600);

// === impl Quota ===

impl Quota {
    /// Returns immediately: a task connects to the store.
    pub(crate) fn open(
        settings: &config::Store,
        on_failure: OnStoreFailure,
        metrics: Arc<Metrics>,
    ) -> Result<Arc<Self>, OpenError> {
        let probe = Box::new(DealProbe::new(settings));
        let store = Store::open(settings, probe, metrics.clone())?;
        let replica = format!("{:016x}", fastrand::u64(..));
        Ok(Arc::new(Self {
            members: Mutex::new(Members::new(replica.clone(), settings.lease)),
            take: Script::new(protocol::SOURCE),
            members_script: Script::new(members::SOURCE),
            slack: settings.slack,
            lease: settings.lease,
            on_failure,
            store,
            replica,
            metrics,
            has_left: AtomicBool::new(false),
        }))
    }

    /// Returns the store, for what else the replicas share.
    pub(crate) fn store(&self) -> &Arc<Store> {
        &self.store
    }

    /// Checks the store at the start. `Err`: it answers, but must not be used.
    pub(crate) async fn check(&self) -> Result<(), String> {
        self.store.check().await
    }

    /// Returns a receiver of the store's state changes.
    #[cfg(test)]
    pub(crate) fn changes(&self) -> tokio::sync::watch::Receiver<State> {
        self.store.changes()
    }

    /// Returns this process's name among the replicas, which is new at every start.
    pub(crate) fn replica(&self) -> &str {
        &self.replica
    }

    /// Returns the configured slack: how late a slot may be used.
    pub(crate) fn slack(&self) -> Duration {
        self.slack
    }

    /// Returns how late any replica may use a slot. The uncertainty of the store's clock is at most
    /// the timeout of an operation.
    pub(crate) fn longest_slack(&self) -> Duration {
        self.slack + self.store.timeout() + extra_slack::MOST_EXTRA
    }

    /// Returns the shortest recent round trip to the store.
    pub(crate) fn distance(&self) -> Duration {
        self.store.distance()
    }

    /// Marks the store as down, because its slots arrive too late to be used.
    pub(crate) fn mark_too_far(&self) {
        self.store.mark_too_far();
    }

    /// Returns the source of tokens of a lane with this limit.
    pub(crate) fn source(&self, limit: Limit) -> QuotaSource {
        match self.store.state() {
            State::Up { since } => QuotaSource::Store { since },
            State::NeverSeen => QuotaSource::Unavailable { since: None },
            State::Down { since } => {
                let part = match self.on_failure {
                    OnStoreFailure::Share => self.members.lock().part(limit.count, Instant::now()),
                    OnStoreFailure::Refuse => None,
                };
                part.map_or(QuotaSource::Unavailable { since: Some(since) }, |count| {
                    QuotaSource::Part { count, since }
                })
            }
        }
    }

    /// Returns how many tokens of this limit may be in use. The parts of vanished replicas are
    /// withheld, except with `on_store_failure = "refuse"`, where no replica uses a part.
    pub(crate) fn cap(&self, limit: Limit) -> u32 {
        let window = limit.window + self.slack;
        let withheld = match self.on_failure {
            OnStoreFailure::Share => {
                self.members
                    .lock()
                    .withheld(limit.count, window, Instant::now())
            }
            OnStoreFailure::Refuse => 0,
        };
        limit.count.get().saturating_sub(withheld)
    }

    /// Whether the store is up.
    pub(crate) fn is_up(&self) -> bool {
        matches!(self.store.state(), State::Up { .. })
    }

    /// Returns the number of replicas that the store last reported.
    pub(crate) fn replicas(&self) -> usize {
        self.members.lock().len()
    }

    /// Runs one operation on one lane. `None` if the store gives no valid answer.
    pub(crate) async fn take(
        &self,
        account: &AccountId,
        action: &ActionName,
        op: &Op,
        request: &DealRequest<'_>,
    ) -> Option<Answer> {
        // The hash tag in braces places both keys on the same server of a cluster.
        let prefix = self.store.prefix();
        let lane = format!("{prefix}lane:{{{account}}}:{action}");
        let ring = format!("{prefix}ring:{{{account}}}:{action}");
        let sent = Instant::now();
        let answer = self
            .store
            .run(op.name(), &self.take, &[&lane, &ring], &op.args(request))
            .await
            .ok()?;
        let received = Instant::now();
        let view = View::read(answer);
        if view.is_none() {
            self.store.mark_invalid_answer(op.name());
        }
        Some(Answer {
            view: view?,
            sent,
            received,
        })
    }

    /// Records a nonce, by its digest, for all replicas until `until`. True if it is new; `None` if
    /// the store does not answer.
    pub(crate) async fn take_nonce(
        &self,
        digest: &str,
        until: SystemTime,
        now: SystemTime,
    ) -> Option<bool> {
        let key = format!("{}nonce:{digest}", self.store.prefix());
        let expires = until
            .duration_since(now)
            .unwrap_or_default()
            .max(Duration::from_secs(1));
        self.store.set_new("nonce", &key, expires).await.ok()
    }

    /// Sends heartbeats until the store is dropped, and calls `changed` when the source of tokens
    /// changes.
    pub(crate) async fn keep(self: Arc<Self>, changed: impl Fn() + Send) {
        let mut changes = self.store.changes();
        let mut connection: Option<(Instant, OwnConnection)> = None;
        loop {
            let state = *changes.borrow_and_update();
            let next = Instant::now() + HEARTBEAT_INTERVAL;
            if let State::Up { since } = state {
                let own = match connection.take().filter(|(known, _)| *known == since) {
                    Some((_, own)) => own,
                    None => {
                        let number = self.store.own_connection().await;
                        OwnConnection {
                            connection: number.unwrap_or(UNKNOWN),
                            run: self.store.run_id(),
                        }
                    }
                };
                self.send_heartbeat(since, &own).await;
                self.store.close_previous_connection();
                connection = Some((since, own));
            }
            let is_down = matches!(state, State::Down { .. });
            let ends = self
                .members
                .lock()
                .part_ends()
                .filter(|ends| is_down && *ends > Instant::now());
            self.metrics
                .store_degraded(!matches!(state, State::Up { .. }));
            self.metrics.replicas(self.members.lock().len());
            let ended = async {
                match ends {
                    Some(ends) => tokio::time::sleep_until(ends).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                gone = changes.changed() => {
                    if gone.is_err() {
                        return;
                    }
                    changed();
                }
                () = ended => changed(),
                () = tokio::time::sleep_until(next) => {}
            }
        }
    }

    /// Leaves the replicas, so that the others get the whole quota. Nothing may be sent afterwards.
    pub(crate) async fn leave(&self) {
        self.has_left.store(true, Ordering::Relaxed);
        self.run_member_script("leave", &OwnConnection::unknown(), None)
            .await;
    }

    /// Sends a heartbeat. A silent replica whose connection the server has closed is dead; one that
    /// is only cut off from the store still has an open connection.
    async fn send_heartbeat(&self, since: Instant, own: &OwnConnection) {
        if self.has_left.load(Ordering::Relaxed) {
            return;
        }
        self.run_member_script("beat", own, None).await;
        let silent: Vec<(String, u64)> = self
            .members
            .lock()
            .vanished(since, &own.run, Instant::now())
            .collect();
        for (name, connection_id) in silent
            .into_iter()
            .filter(|(_, connection_id)| *connection_id != UNKNOWN)
        {
            if self.store.is_closed(connection_id).await == Some(true) {
                tracing::info!(
                    replica = name,
                    "a replica has died; its part of the quota is released"
                );
                self.run_member_script("bury", own, Some((&name, connection_id)))
                    .await;
                self.members.lock().left(&name);
            }
        }
    }

    async fn run_member_script(
        &self,
        op: &'static str,
        own: &OwnConnection,
        dead: Option<(&str, u64)>,
    ) {
        let args = members::args(op, &self.replica, own, self.lease, dead);
        let key = format!("{}replicas", self.store.prefix());
        let asked = Instant::now();
        let Ok(answer) = self
            .store
            .run(op, &self.members_script, &[&key], &args)
            .await
        else {
            return;
        };
        match members::read(answer) {
            Some(list) => self.members.lock().update(list, asked),
            None => self.store.mark_invalid_answer(op),
        }
    }
}

#[cfg(test)]
mod tests;

//! Who deals out the quota? Alone, this process; with others, the store; and while the store is away, each replica uses
//! the part that falls to it by rank, or nothing. This file asks the store, and says how things stand.

pub(crate) mod allowance;
pub(crate) mod clock;
pub(crate) mod members;
pub(crate) mod protocol;
pub(crate) mod slots;
pub(crate) mod store;
pub(crate) mod turns;

use std::num::NonZeroU32;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, SystemTime};

use parking_lot::Mutex;
use redis::Script;
use tokio::time::Instant;

use crate::config::{self, Limit, OnStoreFailure};
use crate::limiter::shared::members::{Members, Own, UNKNOWN};
use crate::limiter::shared::protocol::{Answer, Op, Question, View};
use crate::limiter::shared::store::{OpenError, State, Store};
use crate::observe::metrics::Metrics;
use crate::primitives::id::{AccountId, ActionName};

/// The shared quota, as one replica takes part in it.
pub(crate) struct Quota {
    store: Arc<Store>,
    slack: Duration,
    lease: Duration,
    on_failure: OnStoreFailure,
    replica: String,
    members: Mutex<Members>,
    take: Script,
    beat: Script,
    metrics: Arc<Metrics>,
    has_left: AtomicBool,
}

/// Which source deals the tokens of a lane.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum QuotaSource {
    /// This process alone: it has no store.
    Local,
    /// The store, since then.
    Store { since: Instant },
    /// This replica's part of the quota, since the store went down.
    Part { count: NonZeroU32, since: Instant },
    /// None: the store is down, since then if it was ever up, and this replica has no part.
    Unavailable { since: Option<Instant> },
}

/// How often a replica says that it is there, however long an answer takes: a store may be so far away that its list is as
/// old as one beat, and none that is there has vanished in it.
const BEAT: Duration = Duration::from_millis(250);
/// When a caller who was refused for want of the store had best come back.
pub(crate) const ADVICE: Duration = Duration::from_secs(2);
/// Longer than any hold.
pub(crate) const NEVER: Duration = Duration::from_secs(24 * 3600);

// === impl Quota ===

impl Quota {
    /// The store is connected to by a task of the runtime; nothing waits for it.
    pub(crate) fn open(
        settings: &config::Store,
        on_failure: OnStoreFailure,
        metrics: Arc<Metrics>,
    ) -> Result<Arc<Self>, OpenError> {
        let store = Store::open(settings, metrics.clone())?;
        let replica = format!("{:016x}", fastrand::u64(..));
        Ok(Arc::new(Self {
            members: Mutex::new(Members::new(replica.clone(), settings.lease)),
            take: Script::new(protocol::SOURCE),
            beat: Script::new(members::SOURCE),
            slack: settings.slack,
            lease: settings.lease,
            on_failure,
            store,
            replica,
            metrics,
            has_left: AtomicBool::new(false),
        }))
    }

    /// For the start: `Err` when the store answers and must not be used.
    pub(crate) async fn check(&self) -> Result<(), String> {
        self.store.check().await
    }

    /// A way to wait for the store to come and go.
    #[cfg(test)]
    pub(crate) fn changes(&self) -> tokio::sync::watch::Receiver<State> {
        self.store.changes()
    }

    /// This process's name among the replicas; another one after every start.
    pub(crate) fn replica(&self) -> &str {
        &self.replica
    }

    /// How late a slot may be used, as configured.
    pub(crate) fn slack(&self) -> Duration {
        self.slack
    }

    /// How late any replica may use a slot: what is unknown of the store's clock is at most what an answer may take.
    pub(crate) fn longest_slack(&self) -> Duration {
        self.slack + self.store.timeout() + allowance::MOST_EXTRA
    }

    /// What an answer of the store takes: the least round trip of the latest checks.
    pub(crate) fn distance(&self) -> Duration {
        self.store.distance()
    }

    /// The answers come too late for their slots to be used: the store counts as down until it is found in order.
    pub(crate) fn is_too_far(&self) {
        self.store.is_too_far();
    }

    /// Which source deals the tokens of a lane with this limit.
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

    /// How many tokens of such a limit may be in use: those that replicas which have vanished may use are withheld. Where
    /// all refuse without the store, nobody uses a part.
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

    /// Whether the store deals out the quota: it answers.
    pub(crate) fn is_up(&self) -> bool {
        matches!(self.store.state(), State::Up { .. })
    }

    /// How many replicas share it, as the store last said.
    pub(crate) fn replicas(&self) -> usize {
        self.members.lock().len()
    }

    /// One operation on one lane; none if the store does not answer as it should.
    pub(crate) async fn take(
        &self,
        account: &AccountId,
        action: &ActionName,
        op: &Op,
        question: &Question<'_>,
    ) -> Option<Answer> {
        // What is in braces decides on which of a cluster's servers the keys lie.
        let [lane, ring] = ["lane", "ring"]
            .map(|what| format!("{}{what}:{{{account}}}:{action}", self.store.prefix()));
        let sent = Instant::now();
        let answer = self
            .store
            .run(op.name(), &self.take, &[&lane, &ring], &op.args(question))
            .await
            .ok()?;
        let received = Instant::now();
        let view = View::read(answer);
        if view.is_none() {
            self.store.has_no_answer(op.name());
        }
        Some(Answer {
            view: view?,
            sent,
            received,
        })
    }

    /// Takes a nonce, by its digest, for all replicas until `until`; true when it was new, none if the store does not say.
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

    /// Says that this replica is there, for as long as anybody needs it, and calls `changed` when others must know.
    pub(crate) async fn keep(self: Arc<Self>, changed: impl Fn() + Send) {
        let mut changes = self.store.changes();
        let mut connection: Option<(Instant, Own)> = None;
        loop {
            let (state, next) = (*changes.borrow_and_update(), Instant::now() + BEAT);
            if let State::Up { since } = state {
                let own = match connection.take().filter(|(known, _)| *known == since) {
                    Some((_, own)) => own,
                    None => {
                        let number = self.store.own_connection().await;
                        Own {
                            connection: number.unwrap_or(UNKNOWN),
                            run: self.store.run_id(),
                        }
                    }
                };
                self.beat(since, &own).await;
                self.store.is_known_again();
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

    /// Leaves the others their whole quota: nothing is sent any more.
    pub(crate) async fn leave(&self) {
        self.has_left.store(true, Ordering::Relaxed);
        self.roll("leave", &Own::unknown(), None).await;
    }

    /// This replica is there. Of those that are silent, the ones whose connection the server has seen closed are dead: a
    /// replica that is cut off from the store has one that is open.
    async fn beat(&self, since: Instant, own: &Own) {
        if self.has_left.load(Ordering::Relaxed) {
            return;
        }
        self.roll("beat", own, None).await;
        let silent: Vec<(String, u64)> = self
            .members
            .lock()
            .vanished(since, &own.run, Instant::now())
            .collect();
        for (name, through) in silent
            .into_iter()
            .filter(|(_, through)| *through != UNKNOWN)
        {
            if self.store.is_closed(through).await == Some(true) {
                tracing::info!(
                    replica = name,
                    "a replica has died: its part of the quota is free"
                );
                self.roll("bury", own, Some((&name, through))).await;
                self.members.lock().left(&name);
            }
        }
    }

    async fn roll(&self, op: &'static str, own: &Own, buried: Option<(&str, u64)>) {
        let args = members::args(op, &self.replica, own, self.lease, buried);
        let key = format!("{}replicas", self.store.prefix());
        let asked = Instant::now();
        let Ok(answer) = self.store.run(op, &self.beat, &[&key], &args).await else {
            return;
        };
        match members::read(answer) {
            Some(list) => self.members.lock().heard(list, asked),
            None => self.store.has_no_answer(op),
        }
    }
}

#[cfg(test)]
mod tests;

//! The connection to the store that replicas share: their quota, their nonces and their idempotency
//! keys.
//!
//! A task keeps one connection (`store/keeper.rs`); operations never wait for a connection. The
//! first operation that times out or fails opens the circuit: from then on every operation fails
//! immediately, until the keeper has found the store healthy.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use parking_lot::Mutex;
use redis::{RedisError, RedisResult, Script, cmd};
use sha2::{Digest, Sha256};
use tokio::sync::{SetOnce, watch};
use tokio::time::{Instant, timeout};
use tokio_util::task::AbortOnDropHandle;

use crate::acs::v3::hex;
use crate::config;
use crate::observe::metrics::{Metrics, labels};
use crate::store::connect::Dial;
use crate::store::distance::Distance;

pub(crate) use connect::{Connection, OpenError};
pub(crate) use error::{StoreError, within};

mod connect;
mod distance;
mod error;
mod health;
mod keeper;

/// The store that replicas share.
pub(crate) struct Store {
    shared: Arc<Shared>,
    prefix: String,
    is_cluster: bool,
    _keeper: AbortOnDropHandle<()>,
}

/// The state of the store.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum State {
    /// It has not answered since the start of the process.
    NeverSeen,
    /// It answers.
    Up {
        /// When the current connection became usable.
        since: Instant,
    },
    /// It has answered before and no longer does.
    Down {
        /// When the failure was detected.
        since: Instant,
    },
}

/// Why an operation has no answer.
#[derive(Clone, Debug, thiserror::Error, PartialEq, Eq)]
pub(crate) enum Unavailable {
    /// The circuit is open; nothing was sent.
    #[error("the shared store is down")]
    Down,
    /// The operation timed out; it may have been executed.
    #[error("the shared store did not answer within {0:?}")]
    Late(Duration),
    /// The store returned an error, or the connection failed.
    #[error("the shared store: {0}")]
    Failed(String),
    /// The store's answers are too late for their slots to be used.
    #[error("the shared store answers too late for its slots to be used")]
    TooFar,
    /// The answer does not have the script's form.
    #[error("the shared store's answer is not the script's")]
    InvalidAnswer,
}

/// Checks whether a store that answers pings can be used, before each connection is used.
#[async_trait]
pub(crate) trait Probe: Send + Sync {
    /// The key that is written to check writes.
    fn key(&self) -> &str;

    /// Runs the scripts on each of the `masters`, over separate keys. `distance` is the round trip
    /// of a ping, `limit` the timeout of each operation.
    async fn check(
        &self,
        connection: &mut Connection,
        masters: usize,
        distance: Duration,
        limit: Duration,
    ) -> Result<(), StoreError>;
}

/// State shared by the keeper and the operations.
struct Shared {
    dial: Dial,
    probe: Box<dyn Probe>,
    timeout: Duration,
    metrics: Arc<Metrics>,
    /// Changed only while `link` is locked.
    state: watch::Sender<State>,
    /// `Some` exactly while the state is `Up`.
    link: Mutex<Option<Arc<Link>>>,
    /// The result of the first attempt to connect: the reason not to start, if there is one.
    first_attempt: SetOnce<Option<String>>,
    distance: Mutex<Distance>,
    /// The run id of the connected server; empty if unknown.
    run: Mutex<String>,
    /// The previous connection. It stays open while the store is down, because other replicas
    /// consider a replica with a closed connection dead, while this one still uses its part.
    retired: Mutex<Option<Arc<Link>>>,
}

/// A healthy connection. A failure closes only the connection on which it occurred.
struct Link {
    connection: Connection,
    masters: usize,
}

// === impl Store ===

impl Store {
    /// Returns immediately: a task connects, keeps the connection and reconnects.
    pub(crate) fn open(
        config: &config::Store,
        probe: Box<dyn Probe>,
        metrics: Arc<Metrics>,
    ) -> Result<Arc<Self>, OpenError> {
        Ok(Self::over(connect::dial(config)?, config, probe, metrics))
    }

    /// Like `open`, with another `dial`.
    fn over(
        dial: Dial,
        config: &config::Store,
        probe: Box<dyn Probe>,
        metrics: Arc<Metrics>,
    ) -> Arc<Self> {
        metrics.register_store();
        let shared = Arc::new(Shared {
            dial,
            probe,
            timeout: config.timeout,
            metrics,
            state: watch::Sender::new(State::NeverSeen),
            link: Mutex::default(),
            first_attempt: SetOnce::new(),
            distance: Mutex::default(),
            run: Mutex::default(),
            retired: Mutex::default(),
        });
        let keeper = AbortOnDropHandle::new(tokio::spawn(keeper::keep(shared.clone())));
        let is_cluster = config.topology == config::Topology::Cluster;
        Arc::new(Self {
            shared,
            prefix: config.prefix.clone(),
            is_cluster,
            _keeper: keeper,
        })
    }

    /// Returns the prefix of every key. Operations take names with the prefix.
    pub(crate) fn prefix(&self) -> &str {
        &self.prefix
    }

    /// Runs a script on keys of one hash slot. Loads the script if the server does not have it,
    /// after a flush or a failover. Fails immediately while the store is down.
    pub(crate) async fn run(
        &self,
        op: &'static str,
        script: &Script,
        keys: &[&str],
        args: &[Vec<u8>],
    ) -> Result<redis::Value, Unavailable> {
        let link = self.shared.link()?;
        let mut connection = link.connection.clone();
        let mut call = cmd("EVALSHA");
        call.arg(script.get_hash()).arg(keys.len()).arg(keys);
        for arg in args {
            call.arg(arg.as_slice());
        }
        let known = async {
            match call.query_async(&mut connection).await {
                Err(error) if error::is_unknown_script(&error) => Ok(None),
                answer => answer.map(Some),
            }
        };
        if let Some(answer) = self.shared.operation(op, &link, known).await? {
            return Ok(answer);
        }
        // Each round trip gets the whole timeout, because the store may be far away.
        let load = script.prepare_invoke();
        let mut connection = link.connection.clone();
        self.shared
            .operation("load", &link, load.load_async(&mut connection))
            .await?;
        self.shared
            .operation(op, &link, call.query_async(&mut connection))
            .await
    }

    /// Closes the previous connection, because the store knows this process by the current one.
    pub(crate) fn close_previous_connection(&self) {
        drop(self.shared.retired.lock().take());
    }

    /// Returns the server's run id, in which its connection ids are valid. Empty if unknown, and in
    /// a cluster, which has many servers.
    pub(crate) fn run_id(&self) -> String {
        if self.is_cluster {
            String::new()
        } else {
            self.shared.run.lock().clone()
        }
    }

    /// Returns a digest of the run ids of all masters: another one means that a master has been
    /// restarted or replaced, so that writes may be lost. Empty if unknown.
    pub(crate) fn server_ids(&self) -> String {
        let runs = self.shared.run.lock();
        if runs.is_empty() {
            return String::new();
        }
        hex(&Sha256::digest(runs.as_bytes())[..8])
    }

    /// `SET key value NX PX ms`: true if the key was new.
    pub(crate) async fn set_new(
        &self,
        op: &'static str,
        key: &str,
        expires: Duration,
    ) -> Result<bool, Unavailable> {
        let link = self.shared.link()?;
        let mut set = cmd("SET");
        let millis = u64::try_from(expires.as_millis())
            .unwrap_or(u64::MAX)
            .max(1);
        set.arg(key).arg(1).arg("NX").arg("PX").arg(millis);
        let mut connection = link.connection.clone();
        let answer: Option<String> = self
            .shared
            .operation(op, &link, set.query_async(&mut connection))
            .await?;
        Ok(answer.is_some())
    }

    /// Returns the server's id of this process's connection; `None` in a cluster, which has many.
    pub(crate) async fn own_connection(&self) -> Option<u64> {
        self.client(&["ID"]).await
    }

    /// Whether the server has closed this connection; `None` if unknown.
    pub(crate) async fn is_closed(&self, connection: u64) -> Option<bool> {
        let open: String = self
            .client(&["LIST", "ID", &connection.to_string()])
            .await?;
        Some(!open.starts_with("id="))
    }

    /// Runs `CLIENT`. `None` also if the user may not run it: then dead replicas are detected only
    /// by their silence.
    async fn client<T: redis::FromRedisValue>(&self, args: &[&str]) -> Option<T> {
        let link = self.alone()?;
        let mut connection = link.connection.clone();
        let mut command = cmd("CLIENT");
        command.arg(args);
        let answer = async {
            match command.query_async(&mut connection).await {
                Err(error) if matches!(StoreError::of(&error), StoreError::Forbids(_)) => Ok(None),
                answer => answer.map(Some),
            }
        };
        self.shared
            .operation("connections", &link, answer)
            .await
            .ok()
            .flatten()
    }

    fn alone(&self) -> Option<Arc<Link>> {
        if self.is_cluster {
            None
        } else {
            self.shared.link().ok()
        }
    }

    /// Returns the current state.
    pub(crate) fn state(&self) -> State {
        *self.shared.state.borrow()
    }

    /// Returns a receiver of state changes.
    pub(crate) fn changes(&self) -> watch::Receiver<State> {
        self.shared.state.subscribe()
    }

    /// Returns the timeout of one operation.
    pub(crate) fn timeout(&self) -> Duration {
        self.shared.timeout
    }

    /// Returns the shortest round trip of recent pings.
    pub(crate) fn distance(&self) -> Duration {
        self.shared.distance.lock().least()
    }

    /// Opens the circuit because the answers are too late.
    pub(crate) fn mark_too_far(&self) {
        self.give_up("take", &Unavailable::TooFar);
    }

    /// Opens the circuit because an answer does not have the script's form.
    pub(crate) fn mark_invalid_answer(&self, op: &'static str) {
        self.give_up(op, &Unavailable::InvalidAnswer);
    }

    fn give_up(&self, op: &'static str, reason: &Unavailable) {
        if let Ok(link) = self.shared.link() {
            self.shared.fail(&link, op, reason);
        }
    }

    /// Waits for the first attempt to connect. A store that was reached is up when this returns, so
    /// that the first call finds it. `Err`: it answers but must not be used, or does not permit a
    /// required command. A store that does not answer does not prevent the start.
    pub(crate) async fn check(&self) -> Result<(), String> {
        let reason = self.shared.first_attempt.wait().await;
        reason.clone().map_or(Ok(()), Err)
    }
}

// === impl Shared ===

impl Shared {
    fn link(&self) -> Result<Arc<Link>, Unavailable> {
        self.link.lock().clone().ok_or(Unavailable::Down)
    }

    /// Pings the store. A failure opens the circuit.
    async fn ping(&self, link: &Arc<Link>) {
        let mut connection = link.connection.clone();
        let sent = Instant::now();
        if self
            .operation("ping", link, connection.ping(link.masters))
            .await
            .is_ok()
        {
            self.record_round_trip(sent.elapsed());
        }
    }

    /// Records the round trip of a ping.
    fn record_round_trip(&self, round_trip: Duration) {
        let mut distance = self.distance.lock();
        let is_far = distance.observe(round_trip, Instant::now());
        let least = distance.least();
        self.metrics.store_distance(least);
        if is_far {
            tracing::warn!(
                distance_seconds = least.as_secs_f64(),
                "the shared store is far away; this reduces the rate"
            );
        }
    }

    /// Runs an operation with the timeout and counts it. A failure opens the circuit: no operation
    /// fails on a healthy store.
    async fn operation<T>(
        &self,
        op: &'static str,
        link: &Arc<Link>,
        operation: impl Future<Output = RedisResult<T>>,
    ) -> Result<T, Unavailable> {
        let began = Instant::now();
        debug_assert!(labels::is_store_operation(op), "{op} has no label");
        let answer = timeout(self.timeout, operation).await;
        let result = match answer {
            Ok(Ok(value)) => Ok(value),
            Ok(Err(error)) => Err(Unavailable::Failed(error::text(&error))),
            Err(_elapsed) => Err(Unavailable::Late(self.timeout)),
        };
        self.metrics
            .store_operation(op, began.elapsed(), result.is_err());
        result.inspect_err(|unavailable| self.fail(link, op, unavailable))
    }

    /// Opens the circuit, unless the failed connection has been replaced already.
    fn fail(&self, failed: &Arc<Link>, op: &'static str, reason: &Unavailable) {
        let mut link = self.link.lock();
        if !link.as_ref().is_some_and(|link| Arc::ptr_eq(link, failed)) {
            return;
        }
        *self.retired.lock() = link.take();
        let now = Instant::now();
        let before = self.state.send_replace(State::Down { since: now });
        self.metrics.store_up(false);
        let up = if let State::Up { since } = before {
            now - since
        } else {
            Duration::ZERO
        };
        tracing::warn!(op, %reason, up_seconds = up.as_secs_f64(), "the shared store is down");
    }

    /// Closes the circuit. Returns the previous state.
    fn restore(&self, connection: Connection, health: &health::Health) -> State {
        let mut link = self.link.lock();
        *link = Some(Arc::new(Link {
            connection,
            masters: health.masters,
        }));
        self.metrics.store_up(true);
        *self.distance.lock() = Distance::default();
        *self.run.lock() = health
            .server
            .as_ref()
            .map(|server| server.runs.clone())
            .unwrap_or_default();
        self.record_round_trip(health.round_trip);
        self.state.send_replace(State::Up {
            since: Instant::now(),
        })
    }

    /// Records the result of an attempt to connect; only the first counts.
    fn attempted(&self, reason_not_to_start: Option<String>) {
        self.first_attempt.set(reason_not_to_start).ok();
    }

    /// Opens a new connection and checks the store's health.
    async fn reach(&self) -> Result<(Connection, health::Health), StoreError> {
        let began = Instant::now();
        let reached = self.connect_and_check().await;
        self.metrics
            .store_operation("connect", began.elapsed(), reached.is_err());
        reached
    }

    async fn connect_and_check(&self) -> Result<(Connection, health::Health), StoreError> {
        let limit = connect::limit(self.timeout);
        let dialled = timeout(limit, (self.dial)()).await;
        let mut connection = dialled.map_err(|_elapsed| StoreError::late(limit))??;
        let health = health::check_health(&mut connection, &*self.probe, self.timeout).await?;
        Ok((connection, health))
    }
}

impl From<RedisError> for StoreError {
    fn from(error: RedisError) -> Self {
        Self::of(&error)
    }
}

#[cfg(test)]
mod tests;

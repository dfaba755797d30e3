//! How does Flowgate talk to the store that replicas share? Over one connection that a task of its own keeps
//! (`store/keeper.rs`); whoever asks the store never waits for a connection. The first operation that the store does not
//! answer in time, or answers as no healthy store would, opens the circuit: from then on every operation fails at once,
//! until the keeper has found the store in order. What is asked of the store is for its users.

use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use redis::{RedisError, RedisResult, Script, cmd};
use tokio::sync::watch;
use tokio::time::{Instant, timeout};
use tokio_util::task::AbortOnDropHandle;

use crate::config;
use crate::limiter::shared::store::connect::{Connection, Dial};
use crate::limiter::shared::store::distance::Distance;
use crate::limiter::shared::store::probe::Probe;
use crate::limiter::shared::store::trouble::Trouble;
use crate::observe::metrics::Metrics;

pub(crate) use connect::OpenError;

mod connect;
mod distance;
mod health;
mod keeper;
mod probe;
mod trouble;

/// The store that replicas share.
pub(crate) struct Store {
    shared: Arc<Shared>,
    prefix: String,
    is_cluster: bool,
    _keeper: AbortOnDropHandle<()>,
}

/// How the store is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum State {
    /// Since the start of the process nothing was answered.
    NeverSeen,
    /// It answers.
    Up {
        /// When this connection became usable; every reconnect is a new one.
        since: Instant,
    },
    /// It answered once, and does no more.
    Down {
        /// When that was noticed.
        since: Instant,
    },
}

/// Why the store gave no answer.
#[derive(Clone, Debug, thiserror::Error, PartialEq, Eq)]
pub(crate) enum Unavailable {
    /// Nothing was asked: the circuit is open.
    #[error("the shared store is down")]
    Down,
    /// Asked, and perhaps done.
    #[error("the shared store did not answer within {0:?}")]
    Late(Duration),
    /// It answered with an error, or the connection broke.
    #[error("the shared store: {0}")]
    Failed(String),
    /// It answers so late that what it deals cannot be used.
    #[error("the shared store answers too late for its slots to be used")]
    TooFar,
    /// It answered a script with something else than the script's answer.
    #[error("the shared store's answer is not the script's")]
    NoAnswer,
}

/// What the keeper and those who ask have in common.
struct Shared {
    dial: Dial,
    probe: Probe,
    timeout: Duration,
    metrics: Arc<Metrics>,
    /// Changed only while `link` is locked.
    state: watch::Sender<State>,
    /// There is one exactly while the state is `Up`.
    link: Mutex<Option<Arc<Link>>>,
    distance: Mutex<Distance>,
    /// Of the server that the link leads to; empty if it is not known.
    run: Mutex<String>,
    /// The connection that was in use before. It stays open while the store is down: other replicas take one whose connection
    /// is closed for dead, and this one goes on with its part.
    retired: Mutex<Option<Arc<Link>>>,
}

/// A connection that was found in order. Who sees it fail closes this one and no later one.
struct Link {
    connection: Connection,
    masters: usize,
}

// === impl Store ===

impl Store {
    /// Never waits for the server: a task of the runtime connects, keeps the connection, and reconnects.
    pub(crate) fn open(
        config: &config::Store,
        metrics: Arc<Metrics>,
    ) -> Result<Arc<Self>, OpenError> {
        Ok(Self::over(connect::dial(config)?, config, metrics))
    }

    /// As `open`, with whatever `dial` connects to.
    fn over(dial: Dial, config: &config::Store, metrics: Arc<Metrics>) -> Arc<Self> {
        metrics.has_store();
        let shared = Arc::new(Shared {
            dial,
            probe: Probe::new(config),
            timeout: config.timeout,
            metrics,
            state: watch::Sender::new(State::NeverSeen),
            link: Mutex::default(),
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

    /// What the name of every key begins with; the operations take whole names.
    pub(crate) fn prefix(&self) -> &str {
        &self.prefix
    }

    /// Runs a script on its keys, which are of one slot; a server that does not know it, after a flush or a failover, is given it first. At
    /// once `Err` while the store is down.
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
                Err(error) if trouble::is_unknown_script(&error) => Ok(None),
                answer => answer.map(Some),
            }
        };
        if let Some(answer) = self.shared.operation(op, &link, known).await? {
            return Ok(answer);
        }
        // Each round trip has the whole time: the store may be far away.
        let load = script.prepare_invoke();
        let mut connection = link.connection.clone();
        self.shared
            .operation("load", &link, load.load_async(&mut connection))
            .await?;
        self.shared
            .operation(op, &link, call.query_async(&mut connection))
            .await
    }

    /// The store knows this process by its present connection: the one before it may be closed.
    pub(crate) fn is_known_again(&self) {
        drop(self.shared.retired.lock().take());
    }

    /// The run of the server, if it tells it: the numbers of its connections are of this run. Empty in a cluster, where
    /// there are many.
    pub(crate) fn run_id(&self) -> String {
        if self.is_cluster {
            String::new()
        } else {
            self.shared.run.lock().clone()
        }
    }

    /// `SET key value NX PX ms`: true when it was new.
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

    /// The server's number of this process's connection; none in a cluster, where there are many.
    pub(crate) async fn own_connection(&self) -> Option<u64> {
        self.client(&["ID"]).await
    }

    /// Whether the server has seen this connection closed; none if it does not say.
    pub(crate) async fn is_closed(&self, connection: u64) -> Option<bool> {
        let open: String = self
            .client(&["LIST", "ID", &connection.to_string()])
            .await?;
        Some(!open.starts_with("id="))
    }

    /// None also if this user may not ask: dead replicas are found out by their silence then.
    async fn client<T: redis::FromRedisValue>(&self, args: &[&str]) -> Option<T> {
        let link = self.alone()?;
        let mut connection = link.connection.clone();
        let mut command = cmd("CLIENT");
        command.arg(args);
        let answer = async {
            match command.query_async(&mut connection).await {
                Err(error) if matches!(Trouble::of(&error), Trouble::Forbids(_)) => Ok(None),
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

    /// How it is now.
    pub(crate) fn state(&self) -> State {
        *self.shared.state.borrow()
    }

    /// A way to wait for changes.
    pub(crate) fn changes(&self) -> watch::Receiver<State> {
        self.shared.state.subscribe()
    }

    /// What one operation may take.
    pub(crate) fn timeout(&self) -> Duration {
        self.shared.timeout
    }

    /// What an answer takes: the least round trip of the last pings.
    pub(crate) fn distance(&self) -> Duration {
        self.shared.distance.lock().least()
    }

    /// The answers come too late to be of use: the circuit opens.
    pub(crate) fn is_too_far(&self) {
        self.give_up("take", &Unavailable::TooFar);
    }

    /// An answer was not the script's: the circuit opens.
    pub(crate) fn has_no_answer(&self, op: &'static str) {
        self.give_up(op, &Unavailable::NoAnswer);
    }

    fn give_up(&self, op: &'static str, reason: &Unavailable) {
        if let Ok(link) = self.shared.link() {
            self.shared.fail(&link, op, reason);
        }
    }

    /// For the start: `Err` when the store answers and must not be used, or does not permit what is needed. One that does not answer is no reason not to
    /// start.
    pub(crate) async fn check(&self) -> Result<(), String> {
        match self
            .shared
            .reach()
            .await
            .err()
            .and_then(Trouble::forbids_start)
        {
            Some(reason) => Err(reason),
            None => Ok(()),
        }
    }
}

// === impl Shared ===

impl Shared {
    fn link(&self) -> Result<Arc<Link>, Unavailable> {
        self.link.lock().clone().ok_or(Unavailable::Down)
    }

    /// Whether it still answers; if not, the circuit opens.
    async fn ping(&self, link: &Arc<Link>) {
        let mut connection = link.connection.clone();
        let sent = Instant::now();
        if self
            .operation("ping", link, connection.ping(link.masters))
            .await
            .is_ok()
        {
            self.has_answered(sent.elapsed());
        }
    }

    /// A ping was answered after this time.
    fn has_answered(&self, round_trip: Duration) {
        let mut distance = self.distance.lock();
        let is_far = distance.observe(round_trip, Instant::now());
        let least = distance.least();
        self.metrics.store_distance(least);
        if is_far {
            tracing::warn!(
                distance_seconds = least.as_secs_f64(),
                "the shared store is far away: it costs rate"
            );
        }
    }

    /// Waits for an operation for as long as it may take, counts it, and opens the circuit when it failed: no operation
    /// fails on a store in order.
    async fn operation<T>(
        &self,
        op: &'static str,
        link: &Arc<Link>,
        operation: impl Future<Output = RedisResult<T>>,
    ) -> Result<T, Unavailable> {
        let began = Instant::now();
        let answer = timeout(self.timeout, operation).await;
        let result = match answer {
            Ok(Ok(value)) => Ok(value),
            Ok(Err(error)) => Err(Unavailable::Failed(trouble::text(&error))),
            Err(_elapsed) => Err(Unavailable::Late(self.timeout)),
        };
        self.metrics
            .store_operation(op, began.elapsed(), result.is_err());
        result.inspect_err(|unavailable| self.fail(link, op, unavailable))
    }

    /// The circuit opens, unless this connection is not the one in use any more.
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

    /// The circuit closes. Returns how it was before.
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
        self.has_answered(health.round_trip);
        self.state.send_replace(State::Up {
            since: Instant::now(),
        })
    }

    /// Connects anew and looks whether the store is in order.
    async fn reach(&self) -> Result<(Connection, health::Health), Trouble> {
        let began = Instant::now();
        let reached = self.connect_and_look().await;
        self.metrics
            .store_operation("connect", began.elapsed(), reached.is_err());
        reached
    }

    async fn connect_and_look(&self) -> Result<(Connection, health::Health), Trouble> {
        let limit = connect::limit(self.timeout);
        let dialled = timeout(limit, (self.dial)()).await;
        let mut connection = dialled.map_err(|_elapsed| Trouble::late(limit))??;
        let health = health::look(&mut connection, &self.probe, self.timeout).await?;
        Ok((connection, health))
    }
}

impl From<RedisError> for Trouble {
    fn from(error: RedisError) -> Self {
        Self::of(&error)
    }
}

#[cfg(test)]
mod tests;

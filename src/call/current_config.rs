//! The current configuration and what is derived from it. A reload replaces all of it at once. A call
//! keeps the snapshot with which it was identified, and is checked again before an attempt if a
//! newer snapshot exists.

use std::sync::{Arc, OnceLock};
use std::time::Duration;

use arc_swap::{ArcSwap, Guard};
use parking_lot::Mutex;
use tokio::sync::watch;
use tokio::time::{Instant, timeout_at};

use crate::call::classify;
use crate::call::identify::{Directory, Sendable};
use crate::config::Config;
use crate::credentials::keeper::Keeper;
use crate::credentials::keepers::Keepers;
use crate::error::Refusal;
use crate::limiter::Routes;
use crate::observe::metrics::SessionSample;
use crate::primitives::id::AccountId;
use crate::upstream::{Upstream, Upstreams};

/// A configuration and the directory of callers built from it. It does not change; a reload makes
/// another one.
pub(crate) struct ConfigSnapshot {
    pub(crate) config: Config,
    pub(crate) directory: Directory,
    /// Its upstreams.
    pub(crate) upstreams: Upstreams,
    /// What keeps the sessions of its accounts.
    pub(crate) keepers: Keepers,
    /// The accounts with a session, which are few among thousands with fixed keys.
    session_accounts: Vec<SessionAccount>,
    /// Number of reloads before this one.
    pub(crate) generation: u64,
}

/// An account whose credentials Flowgate obtains itself.
pub(crate) struct SessionAccount {
    pub(crate) id: AccountId,
    pub(crate) keeper: Arc<Keeper>,
}

/// What a configuration connects to.
pub(crate) struct Endpoints {
    /// CAMS.
    pub(crate) upstreams: Upstreams,
    /// The sources of temporary credentials.
    pub(crate) keepers: Keepers,
}

/// The snapshot in force, the result of the last read, and the way to request a reload.
pub(crate) struct CurrentConfig {
    snapshot: ArcSwap<ConfigSnapshot>,
    /// Requests a reload; unset if the configuration is never read again.
    reload_handle: OnceLock<ReloadHandle>,
    reload_status: Mutex<ReloadStatus>,
    /// The generation in force, for those who wait for another one.
    generation: watch::Sender<u64>,
}

/// Requests that the files are read again. Requests made before a read share it.
pub(crate) struct ReloadHandle {
    /// The number of requests so far.
    pub(crate) requested: watch::Sender<u64>,
    /// The number of the last request that has been served.
    pub(crate) served: watch::Receiver<u64>,
}

/// Result of the last configuration read, for operators.
#[derive(Clone, Debug)]
pub(crate) struct ReloadStatus {
    /// Time of the read.
    pub(crate) at: Instant,
    /// Warnings about the configuration in force.
    pub(crate) warnings: Vec<String>,
    /// Why the configuration that was read is rejected: keys and lines, never a value.
    pub(crate) rejected: Option<String>,
}

/// Maximum number of warnings that are logged and shown.
const WARNINGS: usize = 100;

/// Upper limit on the wait for renewed credentials. A reload takes milliseconds, one second with
/// 100,000 accounts.
const MAX_RELOAD_WAIT: Duration = Duration::from_secs(5);

// === impl ConfigSnapshot ===

impl ConfigSnapshot {
    /// `config` contains the addresses that were actually bound.
    pub(crate) fn new(config: Config, endpoints: Endpoints) -> Self {
        let Endpoints { upstreams, keepers } = endpoints;
        Self {
            directory: Directory::new(&config, &keepers, None),
            session_accounts: session_accounts(&config, &keepers),
            config,
            upstreams,
            keepers,
            generation: 0,
        }
    }

    /// Returns the snapshot that replaces this one.
    pub(crate) fn next(&self, config: Config, endpoints: Endpoints) -> Self {
        let Endpoints { upstreams, keepers } = endpoints;
        Self {
            directory: Directory::new(&config, &keepers, Some(&self.directory)),
            session_accounts: session_accounts(&config, &keepers),
            config,
            upstreams,
            keepers,
            generation: self.generation + 1,
        }
    }

    /// The accounts whose sessions are kept.
    pub(crate) fn session_accounts(&self) -> &[SessionAccount] {
        &self.session_accounts
    }

    /// The source of each account's connections.
    pub(crate) fn routes(&self) -> Routes<Upstream> {
        let own = self.config.accounts.iter().filter_map(|account| {
            let upstream = account.upstream.as_ref()?;
            Some((
                account.id.clone(),
                self.upstreams.get(upstream.index).clone(),
            ))
        });
        Routes::new(self.upstreams.default().clone(), own.collect())
    }

    /// Checks a call again before it is sent. `since` is the generation under which it was
    /// identified or last checked: since then its client may have been removed or restricted, and
    /// its account may have new credentials.
    pub(crate) fn recheck(
        &self,
        call: &mut Sendable,
        account: &AccountId,
        since: &mut u64,
    ) -> Result<(), Refusal> {
        if std::mem::replace(since, self.generation) == self.generation {
            return Ok(());
        }
        match call {
            Sendable::Verified(call) => {
                self.directory.renew(call)?;
                classify::authorize(call)
            }
            Sendable::Relayed(call) => self.directory.check_relayed(call, account),
        }
    }
}

// === impl SessionAccount ===

impl SessionAccount {
    /// Its metrics. `waiting` is the number of calls that wait for the session.
    pub(crate) fn sample(&self, waiting: usize) -> SessionSample<'_> {
        let view = self.keeper.view();
        SessionSample {
            account: self.id.as_str(),
            ends_at: view.ends_at,
            obtained_at: view.obtained_at,
            waiting,
            is_failing: view.failure.is_some(),
            succeeded: view.succeeded,
            failed: view.failed,
        }
    }
}

/// The accounts whose sessions are kept. Those that no client uses have none.
fn session_accounts(config: &Config, keepers: &Keepers) -> Vec<SessionAccount> {
    let accounts = config.accounts.iter();
    accounts
        .filter_map(|account| {
            let source = account.credentials.as_ref()?.session()?;
            Some(SessionAccount {
                id: account.id.clone(),
                keeper: keepers.get(source)?.clone(),
            })
        })
        .collect()
}

// === impl CurrentConfig ===

impl CurrentConfig {
    /// `config` contains the addresses that were actually bound.
    pub(crate) fn new(config: Config, endpoints: Endpoints) -> Self {
        Self {
            snapshot: ArcSwap::from_pointee(ConfigSnapshot::new(config, endpoints)),
            generation: watch::Sender::new(0),
            reload_handle: OnceLock::new(),
            reload_status: Mutex::new(ReloadStatus::accepted(Vec::new())),
        }
    }

    /// Returns the snapshot in force, for short use: not across an await.
    pub(crate) fn load(&self) -> Guard<Arc<ConfigSnapshot>> {
        self.snapshot.load()
    }

    /// Returns the snapshot in force, for use across an await.
    pub(crate) fn load_full(&self) -> Arc<ConfigSnapshot> {
        self.snapshot.load_full()
    }

    /// Puts this snapshot in force.
    pub(crate) fn store(&self, snapshot: Arc<ConfigSnapshot>) {
        let generation = snapshot.generation;
        self.snapshot.store(snapshot);
        self.generation.send_replace(generation);
    }

    /// Waits until a configuration after `generation` is in force.
    pub(crate) async fn replaced(&self, generation: u64) {
        let mut current = self.generation.subscribe();
        // An error means that the sender is gone, which this value holds.
        drop(current.wait_for(|current| *current > generation).await);
    }

    /// Enables calls to request a reload. `warnings` are those of the start.
    pub(crate) fn set_reload_handle(&self, reload_handle: ReloadHandle, warnings: Vec<String>) {
        self.reload_status.lock().warnings = warnings;
        drop(self.reload_handle.set(reload_handle));
    }

    /// Records that a configuration was read and accepted.
    pub(crate) fn record_accepted(&self, warnings: Vec<String>) -> ReloadStatus {
        let status = ReloadStatus::accepted(warnings);
        *self.reload_status.lock() = status.clone();
        status
    }

    /// Records that a configuration was read and rejected.
    pub(crate) fn record_rejected(&self, mistakes: String) {
        self.reload_status.lock().reject(mistakes);
    }

    /// Returns the result of the last configuration read.
    pub(crate) fn reload_status(&self) -> ReloadStatus {
        self.reload_status.lock().clone()
    }

    /// Waits for renewed credentials after CAMS rejected those of `generation`. Returns whether a
    /// newer configuration is in force. Returns by `answer_by`, also when the file system does not
    /// respond.
    pub(crate) async fn wait_for_reload(&self, generation: u64, answer_by: Instant) -> bool {
        let Some(reload_handle) = self.reload_handle.get() else {
            return false;
        };
        // Many calls come here at the same time; one read serves all of them.
        if self.load().generation == generation {
            let give_up = answer_by.min(Instant::now() + MAX_RELOAD_WAIT);
            drop(timeout_at(give_up, reload_handle.reload()).await);
        }
        self.load().generation != generation
    }
}

// === impl ReloadHandle ===

impl ReloadHandle {
    /// Also returns the reloader's ends: the number of requests so far, and the number of the last
    /// request that has been served.
    pub(crate) fn channel() -> (Self, watch::Receiver<u64>, watch::Sender<u64>) {
        let (requested, requests) = watch::channel(0);
        let (serve, served) = watch::channel(0);
        (Self { requested, served }, requests, serve)
    }

    /// Requests a read and waits until all changes made to the files by now have been read. Waits
    /// without limit if the file system does not respond.
    pub(crate) async fn reload(&self) {
        let mut number = 0;
        self.requested.send_modify(|requested| {
            *requested += 1;
            number = *requested;
        });
        // An error means that the reloader ended, which happens only at the end of the process.
        drop(
            self.served
                .clone()
                .wait_for(|served| *served >= number)
                .await,
        );
    }
}

// === impl ReloadStatus ===

impl ReloadStatus {
    /// The configuration was accepted.
    pub(crate) fn accepted(mut warnings: Vec<String>) -> Self {
        let more = warnings.len().saturating_sub(WARNINGS);
        if more > 0 {
            warnings.truncate(WARNINGS);
            warnings.push(format!(
                "and {more} more: flowgate check prints all of them"
            ));
        }
        Self {
            at: Instant::now(),
            warnings,
            rejected: None,
        }
    }

    /// The configuration was rejected; the current one is kept.
    fn reject(&mut self, mistakes: String) {
        self.at = Instant::now();
        self.rejected = Some(mistakes);
    }
}

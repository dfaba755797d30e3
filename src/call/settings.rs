//! The current configuration and the directory derived from it, as one value that a reload replaces
//! as a whole. A call keeps the value it was identified with, and is checked again before it is
//! sent if a newer one exists.

use crate::call::classify;
use crate::call::identify::{Directory, Sendable};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use arc_swap::{ArcSwap, Guard};
use parking_lot::Mutex;
use tokio::sync::watch;
use tokio::time::{Instant, timeout_at};

use crate::config::Config;
use crate::error::Refusal;
use crate::primitives::id::AccountId;

/// A configuration that is in effect from one reload to the next.
pub(crate) struct ConfigSnapshot {
    pub(crate) config: Config,
    pub(crate) directory: Directory,
    /// Number of reloads before this one.
    pub(crate) generation: u64,
}

/// The settings in force, the result of the last read, and the way to request a reload.
pub(crate) struct CurrentConfig {
    settings: ArcSwap<ConfigSnapshot>,
    /// Requests a reload; unset if the configuration is never read again.
    reload: OnceLock<ReloadHandle>,
    /// Result of the last configuration read.
    reading: Mutex<ReloadStatus>,
}

/// Requests a check of the files. Requests made before a check share it.
pub(crate) struct ReloadHandle {
    pub(crate) asked: watch::Sender<u64>,
    pub(crate) answered: watch::Receiver<u64>,
}

/// Result of the last configuration read, for operators.
#[derive(Clone, Debug)]
pub(crate) struct ReloadStatus {
    /// Time of the read.
    pub(crate) at: Instant,
    /// Warnings about the configuration in force.
    pub(crate) warnings: Vec<String>,
    /// Why the read configuration was rejected: keys and lines, never a value.
    pub(crate) refused: Option<String>,
}

/// Maximum number of warnings that are logged and shown.
const WARNINGS: usize = 100;

/// Upper limit on the wait for renewed credentials. ReloadStatus takes milliseconds; one second with
/// 100,000 accounts.
const REREAD_WITHIN: Duration = Duration::from_secs(5);

// === impl ConfigSnapshot ===

impl ConfigSnapshot {
    /// `config` contains the addresses that were actually bound.
    pub(crate) fn new(config: Config) -> Self {
        Self {
            directory: Directory::new(&config, None),
            config,
            generation: 0,
        }
    }

    /// Returns the settings that replace these.
    pub(crate) fn then(&self, config: Config) -> Self {
        Self {
            directory: Directory::new(&config, Some(&self.directory)),
            config,
            generation: self.generation + 1,
        }
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
            Sendable::Relayed(_) => self.directory.check_relayed(account),
        }
    }
}

// === impl CurrentConfig ===

impl CurrentConfig {
    /// `config` contains the addresses that were actually bound.
    pub(crate) fn new(config: Config) -> Self {
        Self {
            settings: ArcSwap::from_pointee(ConfigSnapshot::new(config)),
            reload: OnceLock::new(),
            reading: Mutex::new(ReloadStatus::done(Vec::new())),
        }
    }

    /// For short use; not across an await.
    pub(crate) fn load(&self) -> Guard<Arc<ConfigSnapshot>> {
        self.settings.load()
    }

    /// For use across an await.
    pub(crate) fn load_full(&self) -> Arc<ConfigSnapshot> {
        self.settings.load_full()
    }

    /// Puts these settings in force.
    pub(crate) fn store(&self, settings: Arc<ConfigSnapshot>) {
        self.settings.store(settings);
    }

    /// From now on a call can request a reload. `warnings` are those of the start.
    pub(crate) fn can_be_reread(&self, reload: ReloadHandle, warnings: Vec<String>) {
        self.reading.lock().warnings = warnings;
        drop(self.reload.set(reload));
    }

    /// Records that a configuration was read and accepted.
    pub(crate) fn was_read(&self, warnings: Vec<String>) -> ReloadStatus {
        let reading = ReloadStatus::done(warnings);
        *self.reading.lock() = reading.clone();
        reading
    }

    /// Records that a configuration was read and rejected.
    pub(crate) fn was_refused(&self, mistakes: String) {
        self.reading.lock().refuse(mistakes);
    }

    /// Result of the last configuration read.
    pub(crate) fn reading(&self) -> ReloadStatus {
        self.reading.lock().clone()
    }

    /// Waits for renewed credentials after CAMS rejected those of `generation`. Returns whether a
    /// newer configuration is in force. Returns by `answer_by`, also when the file system does not
    /// respond.
    pub(crate) async fn reread(&self, generation: u64, answer_by: Instant) -> bool {
        let Some(reload) = self.reload.get() else {
            return false;
        };
        // Many calls come here at the same time; one read serves all of them.
        if self.load().generation == generation {
            let give_up = answer_by.min(Instant::now() + REREAD_WITHIN);
            drop(timeout_at(give_up, reload.changed()).await);
        }
        self.load().generation != generation
    }
}

// === impl ReloadHandle ===

impl ReloadHandle {
    /// Also returns the reloader's ends: the number of requests so far, and the number of the last
    /// request that has been served.
    pub(crate) fn channel() -> (Self, watch::Receiver<u64>, watch::Sender<u64>) {
        let (asked, requests) = watch::channel(0);
        let (answers, answered) = watch::channel(0);
        (Self { asked, answered }, requests, answers)
    }

    /// Waits until all changes made to the files by now have been read. Waits without limit if the
    /// file system does not respond.
    pub(crate) async fn changed(&self) {
        let mut number = 0;
        self.asked.send_modify(|asked| {
            *asked += 1;
            number = *asked;
        });
        // An error means that the reloader ended, which happens only at the end of the process.
        drop(
            self.answered
                .clone()
                .wait_for(|answered| *answered >= number)
                .await,
        );
    }
}

// === impl ReloadStatus ===

impl ReloadStatus {
    /// The configuration was accepted.
    pub(crate) fn done(mut warnings: Vec<String>) -> Self {
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
            refused: None,
        }
    }

    /// The configuration was rejected; the current one is kept.
    fn refuse(&mut self, mistakes: String) {
        self.at = Instant::now();
        self.refused = Some(mistakes);
    }
}

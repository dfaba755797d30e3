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
pub(crate) struct Settings {
    pub(crate) config: Config,
    pub(crate) directory: Directory,
    /// Number of reloads before this one.
    pub(crate) generation: u64,
}

/// The settings in force, how they were read, and how a call asks for what has changed.
pub(crate) struct CurrentSettings {
    settings: ArcSwap<Settings>,
    /// None where nobody reads the configuration again.
    reload: OnceLock<Ask>,
    /// How the configuration was read last.
    reading: Mutex<Reading>,
}

/// The way to ask for what has changed. All that ask before a look share it.
pub(crate) struct Ask {
    pub(crate) asked: watch::Sender<u64>,
    pub(crate) answered: watch::Receiver<u64>,
}

/// How the configuration was read last, for operators.
#[derive(Clone, Debug)]
pub(crate) struct Reading {
    /// When.
    pub(crate) at: Instant,
    /// What is right but strange in what holds.
    pub(crate) warnings: Vec<String>,
    /// Why what was read does not hold; keys and lines, never a value.
    pub(crate) refused: Option<String>,
}

/// How many warnings are logged and shown.
const WARNINGS: usize = 100;

/// How long a call waits for other credentials. They are read in milliseconds; a hundred thousand accounts in a second.
const REREAD_WITHIN: Duration = Duration::from_secs(5);

// === impl Settings ===

impl Settings {
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

// === impl CurrentSettings ===

impl CurrentSettings {
    /// `config` contains the addresses that were actually bound.
    pub(crate) fn new(config: Config) -> Self {
        Self {
            settings: ArcSwap::from_pointee(Settings::new(config)),
            reload: OnceLock::new(),
            reading: Mutex::new(Reading::done(Vec::new())),
        }
    }

    /// For a moment; not across an await.
    pub(crate) fn load(&self) -> Guard<Arc<Settings>> {
        self.settings.load()
    }

    /// To keep.
    pub(crate) fn load_full(&self) -> Arc<Settings> {
        self.settings.load_full()
    }

    /// These are in force from now on.
    pub(crate) fn store(&self, settings: Arc<Settings>) {
        self.settings.store(settings);
    }

    /// Calls may ask for what has changed; `warnings` are those of the start.
    pub(crate) fn can_be_reread(&self, reload: Ask, warnings: Vec<String>) {
        self.reading.lock().warnings = warnings;
        drop(self.reload.set(reload));
    }

    /// The configuration was read and is in force.
    pub(crate) fn was_read(&self, warnings: Vec<String>) -> Reading {
        let reading = Reading::done(warnings);
        *self.reading.lock() = reading.clone();
        reading
    }

    /// The configuration was read and cannot be used.
    pub(crate) fn was_refused(&self, mistakes: String) {
        self.reading.lock().refuse(mistakes);
    }

    /// How the configuration was read last.
    pub(crate) fn reading(&self) -> Reading {
        self.reading.lock().clone()
    }

    /// CAMS says that a call's credentials are no good any more. True when others could be read meanwhile, which a file
    /// system that hangs does not delay beyond `answer_by`.
    pub(crate) async fn reread(&self, generation: u64, answer_by: Instant) -> bool {
        let Some(changes) = self.reload.get() else {
            return false;
        };
        // Many calls come here at once, and the first has read for all.
        if self.load().generation == generation {
            let give_up = answer_by.min(Instant::now() + REREAD_WITHIN);
            drop(timeout_at(give_up, changes.changed()).await);
        }
        self.load().generation != generation
    }
}

// === impl Ask ===

impl Ask {
    /// With the ends that the reloader holds: how many have asked, and for how many of these it has looked.
    pub(crate) fn channel() -> (Self, watch::Receiver<u64>, watch::Sender<u64>) {
        let (asked, questions) = watch::channel(0);
        let (answers, answered) = watch::channel(0);
        (Self { asked, answered }, questions, answers)
    }

    /// Waits until what has changed in the files by now, if anything has, is read. As long as the files hang.
    pub(crate) async fn changed(&self) {
        let mut number = 0;
        self.asked.send_modify(|asked| {
            *asked += 1;
            number = *asked;
        });
        // The reloader ends with the process, and nothing waits for it then.
        drop(
            self.answered
                .clone()
                .wait_for(|answered| *answered >= number)
                .await,
        );
    }
}

// === impl Reading ===

impl Reading {
    /// What was read holds.
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

    /// What was read does not hold, and what held before still does.
    fn refuse(&mut self, mistakes: String) {
        self.at = Instant::now();
        self.refused = Some(mistakes);
    }
}

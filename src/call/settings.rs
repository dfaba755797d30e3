//! What holds now? The configuration and what identify knows by it, as one value that is exchanged whole. A call keeps
//! what it was identified with, and before it is sent looks whether something else holds meanwhile.

use crate::call::classify;
use crate::call::identify::{Directory, Sendable};
use crate::config::Config;
use crate::error::Refusal;
use crate::primitives::id::AccountId;

/// What holds from one reload to the next.
pub(crate) struct Settings {
    pub(crate) config: Config,
    pub(crate) directory: Directory,
    /// How often something else has held before.
    pub(crate) generation: u64,
}

// === impl Settings ===

impl Settings {
    /// `config` with the addresses that were in fact bound.
    pub(crate) fn new(config: Config) -> Self {
        Self {
            directory: Directory::new(&config, None),
            config,
            generation: 0,
        }
    }

    /// What holds after these.
    pub(crate) fn then(&self, config: Config) -> Self {
        Self {
            directory: Directory::new(&config, Some(&self.directory)),
            config,
            generation: self.generation + 1,
        }
    }

    /// Looks again, before it is sent, at a call of `account` that was identified under the settings of generation `since`:
    /// its client may have gone, or may do less, and its account may have other credentials.
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

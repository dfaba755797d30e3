//! Who deals out this lane's tokens now? With a store that comes and goes the answer changes; nothing that an earlier
//! source has granted is used after that, and every new one begins with a silent window.

use tokio::time::Instant;

use crate::config::Limit;
use crate::flow::queue::lane::{Lane, State};
use crate::flow::queue::{Connector, waiter};
use crate::flow::take_token::script::AHEAD;
use crate::flow::take_token::shared::Slots;
use crate::flow::take_token::{Tokens, memory};
use crate::quota::Stands;
use crate::quota::members::VANISHED;

// === impl Lane ===

impl<K: Connector> Lane<K> {
    /// Whoever deals out the tokens has changed: nothing of the earlier source is used any more.
    pub(super) fn follow(&self, state: &mut State<K>, stands: Stands) {
        if stands == state.stands {
            return;
        }
        let Some(quota) = &self.shared.quota else { return };
        let (limit, gap) = (self.limit, state.learned.pace(Instant::now()).gap);
        state.tokens = match stands {
            Stands::Alone => return,
            Stands::Together { since } => {
                let silent = limit.window + gap + quota.slack();
                Tokens::Shared(Slots::new(limit.window, (gap, quota.slack()), limit.count.get(), since + silent))
            }
            Stands::Part { count, since } => {
                // Until then the others may use the whole quota: what they were dealt before this replica had vanished.
                let part = Limit { count, ..limit };
                Tokens::Memory(memory::Tokens::new(part, gap, since + VANISHED + AHEAD + quota.slack()))
            }
            Stands::Nothing { .. } => Tokens::None,
        };
        state.stands = stands;
        state.epoch += 1;
        if let Stands::Nothing { .. } = stands {
            while let Some(queued) = state.line.pop() {
                drop(queued.reply.send(Err(waiter::no_part(quota.advice()))));
            }
        }
        self.changed.notify_one();
    }

    /// Looks again who deals out the tokens.
    pub(super) fn refresh(&self) {
        drop(self.lock());
        self.changed.notify_one();
    }
}

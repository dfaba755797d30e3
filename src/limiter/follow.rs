//! Who deals out this lane's tokens now? With a store that comes and goes the answer changes; nothing that an earlier
//! source has granted is used after that, and every new one begins with a silent window. A limit that has changed is a
//! new source, too.

use tokio::time::Instant;

use crate::config::Limit;
use crate::limiter::lane::{Lane, State};
use crate::limiter::shadow::Shadow;
use crate::limiter::shared::Stands;
use crate::limiter::shared::members::VANISHED;
use crate::limiter::shared::protocol::AHEAD;
use crate::limiter::shared::slots::{Slots, Start};
use crate::limiter::source::Tokens;
use crate::limiter::tokens;
use crate::limiter::{Connector, waiter};

// === impl Lane ===

impl<K: Connector> Lane<K> {
    /// Whoever deals out the tokens has changed: nothing of the earlier source is used any more.
    pub(super) fn follow(&self, state: &mut State<K>, stands: Stands) {
        if stands == state.stands {
            return;
        }
        let Some(quota) = &self.shared.quota else { return };
        let (limit, gap, slack) = (state.limit, state.learned.pace(Instant::now()).gap, quota.slack());
        // Whoever deals them out: what was sent before the limit began is not over any sooner.
        let begun = state.limit_since;
        state.tokens = match stands {
            Stands::Alone => return,
            Stands::Together { since } => {
                let from = since.max(begun) + limit.window + gap + slack;
                let start = Start { limit, gap, slack, distance: quota.distance(), from };
                Tokens::Shared(Box::new(Slots::new(&start)))
            }
            Stands::Part { count, since } => {
                // Until then the others may use the whole quota: what they were dealt before this replica had vanished.
                let part = Limit { count, ..limit };
                let since = (since + VANISHED + AHEAD + quota.longest_slack()).max(begun);
                Tokens::Memory(tokens::Tokens::new(part, gap, since))
            }
            Stands::Nothing { .. } => Tokens::None,
        };
        state.stands = stands;
        state.epoch += 1;
        (state.version, state.saving) = (0, false);
        if let Stands::Nothing { .. } = stands {
            while let Some(queued) = state.line.pop() {
                drop(queued.reply.send(Err(waiter::no_part())));
            }
        }
        self.changed.notify_one();
    }

    /// The rules have changed.
    pub(super) fn reload(&self) {
        let (rules, now) = (self.shared.rules.load_full(), Instant::now());
        let mut state = self.lock();
        // One that has gone holds on for those who wait.
        let limit = rules.limits.get(&self.action).copied().unwrap_or(state.limit);
        state.learned.keep_to(limit, rules.learn);
        if let Some(shadow) = &self.shadow {
            let mut shadow = shadow.lock();
            if !shadow.keeps_to(limit, rules.learn.gap, &rules.bounds) {
                *shadow = Shadow::new(limit, rules.learn.gap, &rules.bounds, now);
            }
        }
        state.keep_pace(now);
        if limit != state.limit {
            (state.limit, state.limit_since) = (limit, now);
            state.tokens = Tokens::Memory(tokens::Tokens::new(limit, state.learned.pace(now).gap, now));
            // Where others share the quota, `follow` asks who deals it out.
            state.stands = Stands::Alone;
            state.epoch += 1;
            (state.version, state.unsaved, state.saving) = (0, None, false);
        }
        drop(state);
        // Looks who deals out the tokens, and has the worker look again.
        self.tell_late(&mut self.lock(), now);
        self.changed.notify_one();
    }

    /// Looks again who deals out the tokens.
    pub(super) fn refresh(&self) {
        drop(self.lock());
        self.changed.notify_one();
    }
}

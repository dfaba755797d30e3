//! Where do this lane's tokens come from? With a store that comes and goes the answer changes; a grant of an earlier source
//! is of no use after that, and every new source begins with a silent window. A limit that has changed is a new source, too.
//!
//! The store is asked one question at a time for slots, and hears at once what became of an attempt where that changes
//! anything for other replicas. Each answer is the lane's whole state.

use std::time::Duration;

use tokio::time::Instant;

use crate::config::Limit;
use crate::limiter::lane::{Asked, Context, Effect, Lane, Question, StoreTerms};
use crate::limiter::pace::SharedRate;
use crate::limiter::pause::Refused;
use crate::limiter::refusals;
use crate::limiter::shared::allowance::Worth;
use crate::limiter::shared::members::VANISHED;
use crate::limiter::shared::protocol::{AHEAD, Answer, Op, Waiting as WaitingClient};
use crate::limiter::shared::slots::{Slots, Start};
use crate::limiter::shared::{ADVICE, Stands};
use crate::limiter::source::{Source, Wait};
use crate::limiter::tokens::Tokens;

/// How long after an unanswered question the store is asked again, if it is not known to be away by then.
const AGAIN: Duration = Duration::from_millis(50);

/// This many of the clients that wait are named to the store; an account seldom has more.
const NAMED: usize = 64;

/// What the store knows of this lane's pace.
#[derive(Default)]
pub(super) struct SharedPace {
    /// The version that this lane's rate comes from.
    version: u64,
    /// Something was learned that the store does not know.
    pub(super) is_unsaved: bool,
    /// What a question under way tells it of that.
    saving: Option<String>,
}

// === impl Lane ===

impl<W> Lane<W> {
    /// Another source deals out the tokens.
    pub(super) fn source_changed(&mut self, stands: Stands, store: StoreTerms, cx: Context<'_>) {
        if stands == self.stands {
            return;
        }
        if let (Stands::Part { since, .. }, Stands::Part { since: known, .. }) =
            (stands, self.stands)
            && since == known
        {
            // The same tokens, of which this replica has more or fewer: those that it has used are away.
            self.stands = stands;
            self.keep_rate(cx.now);
            return self.review.request(cx.now);
        }
        let (limit, gap, slack) = (self.limit, self.pace.rate(cx.now).gap, store.slack);
        // What was written before the limit began is not over any sooner, whichever source deals.
        let begun = self.limit_since;
        self.source = match stands {
            Stands::Alone => return,
            Stands::Together { since } => {
                let from = since.max(begun) + limit.window + gap + slack;
                Source::Shared(Box::new(Slots::new(&Start {
                    limit,
                    gap,
                    slack,
                    distance: store.distance,
                    from,
                })))
            }
            Stands::Part { count, since } => {
                // Until then the others may use the whole quota: what they were dealt before this replica had vanished.
                let since = (since + VANISHED + AHEAD + store.longest_slack).max(begun);
                self.memory(Limit { count, ..limit }, gap, since, cx.now)
            }
            Stands::Nothing { .. } => Source::None,
        };
        self.stands = stands;
        self.begin_epoch();
        if let Source::None = self.source {
            self.refuse_all(refusals::no_part(), Duration::ZERO, ADVICE, cx.now);
        }
        self.keep_rate(cx.now);
        self.review.request(cx.now);
    }

    /// The configuration was reloaded.
    pub(super) fn rules_changed(&mut self, limit: Option<Limit>, cx: Context<'_>) {
        // A limit that has gone holds on for the calls that wait.
        let limit = limit.unwrap_or(self.limit);
        self.pace.set_rules(limit, cx.rules.learn, cx.now);
        if limit != self.limit {
            (self.limit, self.limit_since) = (limit, cx.now);
            self.source = self.memory(limit, self.pace.rate(cx.now).gap, cx.now, cx.now);
            // Where replicas share the quota, the carrier says next which source deals it out.
            self.stands = Stands::Alone;
            self.begin_epoch();
        }
        self.keep_rate(cx.now);
        self.review.request(cx.now);
    }

    /// The tokens of this process, all used at `since`. What an earlier source has granted and may still be written holds
    /// tokens, too.
    fn memory(&self, limit: Limit, gap: Duration, since: Instant, now: Instant) -> Source {
        let mut tokens = Tokens::new(limit, gap, since, now);
        tokens.hold(self.held);
        Source::Memory(tokens)
    }

    fn begin_epoch(&mut self) {
        self.epoch += 1;
        self.shared_pace = SharedPace {
            is_unsaved: self.shared_pace.is_unsaved,
            ..SharedPace::default()
        };
    }

    /// Asks the store for slots, if the lane has to.
    pub(super) fn ask_if_due(&mut self, now: Instant) {
        if let Wait::Ask = self.source.wait(self.queue.len(), now) {
            self.ask(Op::Take, None, now);
        }
    }

    /// Slots that no call here can use are another replica's; a wish that no call has any more is taken back.
    pub(super) fn return_unused(&mut self, now: Instant) {
        if let Source::Shared(slots) = &self.source
            && self.queue.len() == 0
            && slots.has_unused()
        {
            self.ask(Op::Take, None, now);
        }
    }

    /// Every question also says what is wanted here, gives back what was not used, and tells what was learned.
    pub(super) fn ask(&mut self, op: Op, refused: Option<Refused>, now: Instant) {
        let rate = self.rate(now);
        let Source::Shared(slots) = &mut self.source else {
            return;
        };
        let shared = &mut self.shared_pace;
        let tells = shared.is_unsaved && shared.saving.is_none();
        let stored_now = slots.clock().at_most(now, now);
        let pace = tells.then(|| written(self.pace.share(now), self.limit, stored_now));
        if tells {
            (shared.is_unsaved, shared.saving) = (false, pace.clone());
        }
        let version = shared.version;
        let ask = slots.ask(self.queue.len(), now);
        let clients = self.queue.clients().take(NAMED);
        let waiting = clients
            .map(|(client, weight, tenants)| WaitingClient::new(client, weight, tenants))
            .collect();
        let asked = Asked {
            epoch: self.epoch,
            ask,
            version,
            pace,
            refused,
        };
        self.effects.push_back(Effect::Ask(Box::new(Question {
            op,
            limit: self.limit,
            rate,
            waiting,
            asked,
        })));
    }

    /// The store has answered a question, or has not.
    pub(super) fn answered(&mut self, asked: &Asked, answer: Option<&Answer>, cx: Context<'_>) {
        // The present source knows nothing of it.
        if asked.epoch != self.epoch {
            return;
        }
        match answer {
            Some(answer) => {
                self.told(asked, answer, cx.now);
                self.return_unused(cx.now);
            }
            // Asked again at once, a store that fails at once would be asked in a loop.
            None => self.not_told(asked, cx),
        }
    }

    fn told(&mut self, asked: &Asked, answer: &Answer, now: Instant) {
        let before = self.pause.open_at(now);
        let Source::Shared(slots) = &mut self.source else {
            return;
        };
        let rate = slots.rate();
        let worth = slots.answered(asked.ask.number, answer, now);
        let is_slower = slots.rate() < rate;
        let (open, stored_now) = (
            slots.clock().latest(answer.view.open, now),
            slots.clock().at_most(now, now),
        );
        // Answers may come in another order than the store gave them: the latest view holds.
        if slots.is_latest(&answer.view) {
            self.pause.told(open);
            self.adopt_pace(asked, answer, stored_now, now);
        } else if asked.pace.is_some() {
            self.shared_pace.saving = None;
        }
        // An isolated refusal is news to the store, too, and pauses nothing.
        let is_pause = asked
            .refused
            .is_some_and(|refused| !refused.isolated || refused.hint.is_some());
        if answer.view.new_episode && is_pause {
            self.pace.resumes_at(self.pause.open_at(now));
            self.pause_began(asked.refused.and_then(|refused| refused.hint), now);
        }
        if asked.refused.is_some() && self.shared_pace.is_unsaved {
            self.ask(Op::Take, None, now);
        }
        if is_slower || self.pause.open_at(now) > before {
            self.review.request(now);
        }
        if worth == Worth::TooFar {
            self.effects.push_back(Effect::StoreTooFar);
        }
        self.keep_rate(now);
    }

    /// What another replica has learned, and whether the store knows what this one has.
    fn adopt_pace(&mut self, asked: &Asked, answer: &Answer, stored_now: u64, now: Instant) {
        let view = &answer.view;
        let shared = &mut self.shared_pace;
        // The answer to another question may tell of it first.
        let is_ours = shared.saving.as_ref() == Some(&view.pace);
        let has_told = asked.pace.is_some();
        if has_told {
            shared.saving = None;
        }
        let is_saved = has_told && !view.stale;
        if view.version != shared.version && !is_saved && !is_ours {
            if let Some(theirs) = read(&view.pace, self.limit, stored_now) {
                self.pace.adopt(&theirs, now);
            }
            // What this replica has learned and the store refused, for it was of an earlier version.
            shared.is_unsaved |= has_told && self.pace.share(now).is_some();
        }
        shared.version = view.version;
    }

    fn not_told(&mut self, asked: &Asked, cx: Context<'_>) {
        if asked.pace.is_some() {
            (self.shared_pace.saving, self.shared_pace.is_unsaved) = (None, true);
        }
        if let Source::Shared(slots) = &mut self.source {
            slots.unanswered(asked.ask.number, cx.now + AGAIN);
        }
        if let Some(refused) = asked.refused {
            // The store does not know of it: at least this replica keeps still. Half of the back-off is its mean.
            self.throttled(&refused, 0.5, cx);
        }
    }
}

/// A pace as the store keeps it: of which limit, and times on the store's clock.
fn written(pace: Option<SharedRate>, limit: Limit, stored_now: u64) -> String {
    let Some(SharedRate {
        lowest,
        taken,
        streak,
        grows_from,
        known_at,
    }) = pace
    else {
        return String::new();
    };
    let stored = |from_now: i64| stored_now.saturating_add_signed(from_now);
    let (count, window) = (limit.count, limit.window.as_micros());
    format!(
        "{count}/{window}:{lowest}:{taken}:{streak}:{}:{}",
        stored(grows_from),
        stored(known_at)
    )
}

/// The pace that the store has kept; of another limit it says nothing.
fn read(text: &str, limit: Limit, stored_now: u64) -> Option<SharedRate> {
    let mut parts = text.split(':');
    if parts.next()? != format!("{}/{}", limit.count, limit.window.as_micros()) {
        return None;
    }
    let mut number = || parts.next()?.parse::<u64>().ok();
    let (lowest, taken, streak) = (number()?, number()?, u32::try_from(number()?).ok()?);
    let mut from_now = || Some(number()?.wrapping_sub(stored_now).cast_signed());
    Some(SharedRate {
        lowest,
        taken,
        streak,
        grows_from: from_now()?,
        known_at: from_now()?,
    })
}

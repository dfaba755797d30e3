//! The current source of a lane's tokens. It changes when the store comes or goes and when the
//! limit changes. A grant of an earlier source is invalid after that, and every new source begins
//! with a silent window.
//!
//! At most one request for slots is in progress at a time. Besides that, the end of an attempt is
//! reported to the store immediately if it matters to other replicas. Each answer contains the
//! lane's whole state.

use std::time::Duration;

use tokio::time::Instant;

use crate::config::Limit;
use crate::limiter::lane::{Context, Effect, Lane, PendingRequest, StoreRequest, StoreTiming};
use crate::limiter::pace::SharedRate;
use crate::limiter::pause::ThrottleRefusal;
use crate::limiter::refusals;
use crate::limiter::shared::extra_slack::SlotTiming;
use crate::limiter::shared::members::VANISHED;
use crate::limiter::shared::protocol::{AHEAD, Answer, Op, WaitingClient};
use crate::limiter::shared::slots::{Slots, Start};
use crate::limiter::shared::{ADVICE, QuotaSource};
use crate::limiter::source::Source;
use crate::limiter::tokens::Tokens;
use crate::limiter::wait::Wait;

/// How long after a failed request the next one is sent, unless the store is known to be down by
/// then.
const RETRY_AFTER: Duration = Duration::from_millis(50);

/// The most waiting clients that are listed in a request. An account rarely has more.
const MAX_CLIENTS: usize = 64;

/// The exchange of the learned pace with the store.
#[derive(Default)]
pub(super) struct SharedPace {
    /// The version of the stored pace that this lane has last seen.
    version: u64,
    /// This lane has learned something that is not in the store.
    pub(super) is_unsaved: bool,
    /// The pace that a request in progress stores.
    saving: Option<String>,
}

// === impl Lane ===

impl<W> Lane<W> {
    /// Changes the token source.
    pub(super) fn source_changed(
        &mut self,
        quota_source: QuotaSource,
        store: StoreTiming,
        cx: Context<'_>,
    ) {
        if quota_source == self.quota_source {
            return;
        }
        if let (QuotaSource::Part { since, .. }, QuotaSource::Part { since: known, .. }) =
            (quota_source, self.quota_source)
            && since == known
        {
            // The same part with more or fewer tokens. Its used tokens stay used.
            self.quota_source = quota_source;
            self.update_rate(cx.now);
            return self.review.request(cx.now);
        }
        let Some(source) = self.new_source(quota_source, store, cx.now) else {
            return;
        };
        self.source = source;
        self.quota_source = quota_source;
        self.begin_epoch();
        if let Source::None = self.source {
            self.refuse_all(refusals::no_part(), Duration::ZERO, ADVICE, cx.now);
        }
        self.update_rate(cx.now);
        self.review.request(cx.now);
    }

    /// Returns the token source of a lane whose quota is shared; `None` for a lane whose quota is
    /// not.
    fn new_source(
        &self,
        quota_source: QuotaSource,
        store: StoreTiming,
        now: Instant,
    ) -> Option<Source> {
        let limit = self.limit;
        let gap = self.pace.rate(now).gap;
        let slack = store.slack;
        // Attempts that were written before the limit began count in the windows of every source.
        let begun = self.limit_since;
        match quota_source {
            QuotaSource::Local => None,
            QuotaSource::Store { since } => {
                let from = since.max(begun) + limit.window + gap + slack;
                Some(Source::Shared(Box::new(Slots::new(&Start {
                    limit,
                    gap,
                    slack,
                    distance: store.distance,
                    from,
                }))))
            }
            QuotaSource::Part { since, .. } => {
                // Until then other replicas may use the whole quota: slots that were dealt before
                // this replica vanished.
                let since = (since + VANISHED + AHEAD + store.longest_slack).max(begun);
                // All tokens of the limit, since the part may grow. The rate limits it.
                Some(self.memory_source(limit, gap, since, now))
            }
            QuotaSource::Unavailable { .. } => Some(Source::None),
        }
    }

    /// Applies a reloaded configuration.
    pub(super) fn rules_changed(&mut self, limit: Option<Limit>, cx: Context<'_>) {
        // A removed limit stays in force for the queued calls.
        let limit = limit.unwrap_or(self.limit);
        self.pace.set_rules(limit, cx.rules.learn, cx.now);
        if limit != self.limit {
            self.limit = limit;
            self.limit_since = cx.now;
            self.source = self.memory_source(limit, self.pace.rate(cx.now).gap, cx.now, cx.now);
            // Where replicas share the quota, `LaneHandle::lock` sets the source next.
            self.quota_source = QuotaSource::Local;
            self.begin_epoch();
        }
        self.update_rate(cx.now);
        self.review.request(cx.now);
    }

    /// The tokens of this process, all used at `since`. Grants of earlier sources that may still be
    /// written hold tokens, too.
    fn memory_source(&self, limit: Limit, gap: Duration, since: Instant, now: Instant) -> Source {
        let mut tokens = Tokens::new(limit, gap, since, now);
        tokens.reserve_for_earlier_grants(self.held);
        Source::Memory(tokens)
    }

    fn begin_epoch(&mut self) {
        self.epoch += 1;
        self.shared_pace = SharedPace {
            is_unsaved: self.shared_pace.is_unsaved,
            ..SharedPace::default()
        };
    }

    /// Requests slots from the store, if the lane needs any now.
    pub(super) fn request_slots_if_due(&mut self, now: Instant) {
        if let Wait::SendRequest = self.source.wait(self.queue.len(), now) {
            self.send_request(Op::Take, None, now);
        }
    }

    /// Returns slots, and withdraws requests for slots, that no queued call needs, so that other
    /// replicas get them.
    pub(super) fn return_unused(&mut self, now: Instant) {
        if let Source::Shared(slots) = &self.source
            && self.queue.len() == 0
            && slots.has_unused()
        {
            self.send_request(Op::Take, None, now);
        }
    }

    /// Sends a request to the store. Every request also states how many slots are wanted, returns
    /// unused slots, and stores what was learned.
    pub(super) fn send_request(&mut self, op: Op, refusal: Option<ThrottleRefusal>, now: Instant) {
        let rate = self.rate(now);
        let Source::Shared(slots) = &mut self.source else {
            return;
        };
        let shared = &mut self.shared_pace;
        let mut pace = None;
        if shared.is_unsaved && shared.saving.is_none() {
            let stored_now = slots.clock().at_most(now, now);
            let text = format_pace(self.pace.to_shared(now), self.limit, stored_now);
            shared.is_unsaved = false;
            shared.saving = Some(text.clone());
            pace = Some(text);
        }
        let pending = PendingRequest {
            epoch: self.epoch,
            slot_request: slots.next_request(self.queue.len(), now),
            version: shared.version,
            pace,
            refusal,
        };
        let waiting = self
            .queue
            .clients()
            .take(MAX_CLIENTS)
            .map(|(client, weight, tenants)| WaitingClient::new(client, weight, tenants))
            .collect();
        self.effects
            .push_back(Effect::SendRequest(Box::new(StoreRequest {
                op,
                limit: self.limit,
                rate,
                waiting,
                pending,
            })));
    }

    /// Handles the answer to a request, or its failure.
    pub(super) fn store_answered(
        &mut self,
        pending: &PendingRequest,
        answer: Option<&Answer>,
        cx: Context<'_>,
    ) {
        // A request of an earlier source.
        if pending.epoch != self.epoch {
            return;
        }
        match answer {
            Some(answer) => {
                self.apply_answer(pending, answer, cx.now);
                self.return_unused(cx.now);
            }
            // Nothing is returned here: a store that fails immediately would get requests in a
            // loop.
            None => self.request_failed(pending, cx),
        }
    }

    fn apply_answer(&mut self, pending: &PendingRequest, answer: &Answer, now: Instant) {
        let open_before = self.pause.open_at(now);
        let Source::Shared(slots) = &mut self.source else {
            return;
        };
        let rate_before = slots.rate();
        let timing = slots.answered(pending.slot_request.number, answer, now);
        let is_slower = slots.rate() < rate_before;
        let open = slots.clock().latest(answer.view.open, now);
        let stored_now = slots.clock().at_most(now, now);
        // Answers may arrive out of order. The latest view counts.
        if slots.is_latest(&answer.view) {
            self.pause.adopt_store_pause(open);
            self.adopt_pace(pending, answer, stored_now, now);
        } else if pending.pace.is_some() {
            self.shared_pace.saving = None;
        }
        // An isolated refusal is also reported as a new episode, and pauses nothing.
        let is_pause = pending
            .refusal
            .is_some_and(|refusal| !refusal.isolated || refusal.hint.is_some());
        if answer.view.new_episode && is_pause {
            self.pace.paused_until(self.pause.open_at(now));
            self.pause_began(pending.refusal.and_then(|refusal| refusal.hint), now);
        }
        if pending.refusal.is_some() && self.shared_pace.is_unsaved {
            self.send_request(Op::Take, None, now);
        }
        if is_slower || self.pause.open_at(now) > open_before {
            self.review.request(now);
        }
        if timing == SlotTiming::TooFar {
            self.effects.push_back(Effect::StoreTooFar);
        }
        self.update_rate(now);
    }

    /// Adopts what another replica has learned, and notes whether the store has saved what this one
    /// has learned.
    fn adopt_pace(
        &mut self,
        pending: &PendingRequest,
        answer: &Answer,
        stored_now: u64,
        now: Instant,
    ) {
        let view = &answer.view;
        let shared = &mut self.shared_pace;
        // The answer to another request may arrive first and contain the pace that this lane is
        // saving.
        let is_ours = shared.saving.as_ref() == Some(&view.pace);
        let has_sent = pending.pace.is_some();
        if has_sent {
            shared.saving = None;
        }
        let is_saved = has_sent && !view.stale;
        if view.version != shared.version && !is_saved && !is_ours {
            if let Some(theirs) = parse_pace(&view.pace, self.limit, stored_now) {
                self.pace.adopt(&theirs, now);
            }
            // The store rejected what this replica has sent, because it was based on an earlier
            // version.
            shared.is_unsaved |= has_sent && self.pace.to_shared(now).is_some();
        }
        shared.version = view.version;
    }

    fn request_failed(&mut self, pending: &PendingRequest, cx: Context<'_>) {
        if pending.pace.is_some() {
            self.shared_pace.saving = None;
            self.shared_pace.is_unsaved = true;
        }
        if let Source::Shared(slots) = &mut self.source {
            slots.unanswered(pending.slot_request.number, cx.now + RETRY_AFTER);
        }
        if let Some(refusal) = pending.refusal {
            // The store has not recorded the refusal, so at least this replica pauses. 0.5 gives
            // the mean back-off.
            self.throttled(&refusal, 0.5, cx);
        }
    }
}

/// Formats a pace as the store keeps it: with its limit, and with times on the store's clock in
/// microseconds.
fn format_pace(pace: Option<SharedRate>, limit: Limit, stored_now: u64) -> String {
    let Some(pace) = pace else {
        return String::new();
    };
    format!(
        "{}/{}:{}:{}:{}:{}:{}",
        limit.count,
        limit.window.as_micros(),
        pace.lowest,
        pace.cut,
        pace.streak,
        stored_now.saturating_add_signed(pace.rises_from),
        stored_now.saturating_add_signed(pace.known_at),
    )
}

/// Parses a stored pace. Returns none if it is malformed or was learned for another limit.
fn parse_pace(text: &str, limit: Limit, stored_now: u64) -> Option<SharedRate> {
    let mut parts = text.split(':');
    if parts.next()? != format!("{}/{}", limit.count, limit.window.as_micros()) {
        return None;
    }
    let mut numbers = parts.map_while(|part| part.parse::<u64>().ok());
    let lowest = numbers.next()?;
    let cut = numbers.next()?;
    let streak = u32::try_from(numbers.next()?).ok()?;
    let rises_from = numbers.next()?;
    let known_at = numbers.next()?;
    Some(SharedRate {
        lowest,
        cut,
        streak,
        rises_from: rises_from.wrapping_sub(stored_now).cast_signed(),
        known_at: known_at.wrapping_sub(stored_now).cast_signed(),
    })
}

//! Steps after a grant: it is written or returned, and the end of its attempt updates the pause and
//! the rate, with every token source.

use std::time::Duration;

use tokio::time::Instant;

use crate::limiter::lane::{Context, Effect, End, Grant, Lane};
use crate::limiter::pace::ThrottledAttempt;
use crate::limiter::pause::{Episode, ThrottleRefusal};
use crate::limiter::shared::protocol::{AttemptEnd, Op, Pauses};
use crate::limiter::shared::slots::Slot;
use crate::limiter::source::{GrantedToken, Source};
use crate::primitives::backoff;

// === impl Lane ===

impl<W> Lane<W> {
    /// The first byte of a granted attempt was written, which starts its token's window.
    pub(super) fn written(&mut self, grant: Grant, at: Instant, now: Instant) {
        self.held = self.held.saturating_sub(1);
        let is_current = grant.epoch == self.epoch;
        match (grant.token, &mut self.source) {
            // Also for grants of earlier sources: the memory source holds a token for each of them.
            (_, Source::Memory(tokens)) => tokens.used(at),
            (GrantedToken::Slot(slot), Source::Shared(slots)) if is_current => {
                if !slots.written(slot, at, now) {
                    self.send_request(Op::Take, None, now);
                }
            }
            // A grant of an earlier source counts in the store's windows as well.
            (_, Source::Shared(slots)) => {
                slots.written_besides(at, now);
                self.send_request(Op::Take, None, now);
            }
            (_, Source::None) => {}
        }
    }

    /// A grant was not used, so its token is free again.
    pub(super) fn returned(&mut self, grant: Grant, now: Instant) {
        self.held = self.held.saturating_sub(1);
        self.probe_unsent(&grant);
        match (grant.token, &mut self.source) {
            (_, Source::Memory(tokens)) => tokens.give_back(),
            (GrantedToken::Slot(slot), Source::Shared(slots)) if grant.epoch == self.epoch => {
                slots.give_back(slot, now)
            }
            _ => {}
        }
        self.return_unused(now);
    }

    /// A written attempt has ended.
    pub(super) fn ended(&mut self, grant: Grant, written_at: Instant, end: End, cx: Context<'_>) {
        if let End::Throttled { hint, random } = end {
            return self.attempt_throttled(grant, written_at, hint, random, cx);
        }
        if let Some(slot) = self.current_slot(&grant) {
            if end == End::Accepted {
                self.pace.accepted(written_at, cx.now);
            }
            return self.report_end(slot, end, cx.now);
        }
        match end {
            End::Accepted => {
                self.pause.accepted(written_at);
                self.pace.accepted(written_at, cx.now);
                self.probe_ended(&grant);
            }
            End::Unsent => self.probe_unsent(&grant),
            End::Unknown | End::Throttled { .. } => self.probe_ended(&grant),
        }
    }

    fn attempt_throttled(
        &mut self,
        grant: Grant,
        written_at: Instant,
        hint: Option<Duration>,
        random: f64,
        cx: Context<'_>,
    ) {
        self.throttled = self.throttled.saturating_add(1);
        let attempt = ThrottledAttempt {
            written_at,
            probe: grant.probe,
            own_share: self.source.share(),
        };
        let shared_before = self.pace.to_shared(cx.now);
        let isolated = self.pace.throttled(&attempt, cx.now);
        self.shared_pace.is_unsaved |= self.pace.to_shared(cx.now) != shared_before;
        let refusal = ThrottleRefusal {
            written_at,
            hint,
            isolated,
        };
        match self.current_slot(&grant) {
            Some(slot) => self.report_throttled(slot, refusal, random, cx),
            None => self.throttled(&refusal, random, cx),
        }
    }

    /// The slot of a grant of the present source, if the store dealt it.
    fn current_slot(&self, grant: &Grant) -> Option<Slot> {
        match (&self.source, grant.token) {
            (Source::Shared(_), GrantedToken::Slot(slot)) if grant.epoch == self.epoch => {
                Some(slot)
            }
            _ => None,
        }
    }

    /// The probe was never sent, for example because its source has changed, so the pause stays in
    /// force.
    fn probe_unsent(&mut self, grant: &Grant) {
        if grant.number == self.probe {
            self.pause.probe_unsent();
        }
    }

    /// A probe that was not throttled opens the lane. So does a probe with an unknown end: a longer
    /// pause would not reveal it.
    fn probe_ended(&mut self, grant: &Grant) {
        if grant.number == self.probe {
            self.pause.probe_passed();
        }
    }

    /// An attempt was throttled, and this process manages the pause.
    pub(super) fn throttled(&mut self, refusal: &ThrottleRefusal, random: f64, cx: Context<'_>) {
        let Context { now, rules, .. } = cx;
        let episode = self.pause.throttled(refusal, &rules.retry, now, random);
        if episode == Episode::New {
            self.pause_began(refusal.hint, now);
        }
        self.pace.paused_until(self.pause.open_at(now));
        self.update_rate(now);
        self.review.request(now);
    }

    /// An attempt in a slot of the store was throttled. The report pauses the lane on all replicas.
    fn report_throttled(
        &mut self,
        slot: Slot,
        refusal: ThrottleRefusal,
        random: f64,
        cx: Context<'_>,
    ) {
        let Source::Shared(slots) = &mut self.source else {
            return;
        };
        let retry = &cx.rules.retry;
        let hint = refusal.hint.map(|hint| hint.min(retry.max_pause));
        let mut pauses = None;
        if !refusal.isolated || hint.is_some() {
            let level = slots.level() + 1;
            let new =
                hint.unwrap_or_else(|| backoff::full_jitter(retry.base, retry.max, level, random));
            pauses = Some(Pauses { new, same: hint });
            slots.give_back_all();
            // The stored pace rises from the end of the pause.
            self.pace.paused_until(cx.now + new);
        }
        let op = Op::Throttled {
            at: slot.dated.at,
            pauses,
        };
        self.send_request(op, Some(refusal), cx.now);
    }

    /// Reports another end to the store, if the attempt was the probe or if it ends a back-off.
    fn report_end(&mut self, slot: Slot, end: End, now: Instant) {
        let how = match end {
            End::Accepted => AttemptEnd::Answered,
            End::Unsent => AttemptEnd::Unsent,
            End::Unknown | End::Throttled { .. } => AttemptEnd::Unknown,
        };
        let Source::Shared(slots) = &self.source else {
            return;
        };
        if slot.dated.probe || (how == AttemptEnd::Answered && slots.has_back_off()) {
            let op = Op::Ended {
                slot: slot.dated,
                how,
            };
            self.send_request(op, None, now);
        }
    }

    pub(super) fn pause_began(&mut self, hint: Option<Duration>, now: Instant) {
        self.effects.push_back(Effect::PauseBegan {
            pause: self.pause.remaining(now),
            hint,
            rate: self.rate(now),
        });
    }
}

//! What becomes of a grant? It is written or returned, and the end of its attempt decides on the pause and the rate,
//! whichever source deals out the tokens.

use std::time::Duration;

use tokio::time::Instant;

use crate::config::Retry;
use crate::limiter::lane::{Context, Effect, End, Grant, Lane};
use crate::limiter::pace::RefusedAttempt;
use crate::limiter::pause::{Episode, Refused};
use crate::limiter::shared::protocol::{How, Op, Pauses};
use crate::limiter::shared::slots::Slot;
use crate::limiter::source::{Granted, Source};
use crate::primitives::backoff;

// === impl Lane ===

impl<W> Lane<W> {
    /// The first byte of a granted attempt was written: its token's clock starts.
    pub(super) fn written(&mut self, grant: Grant, at: Instant, now: Instant) {
        self.held = self.held.saturating_sub(1);
        let is_current = grant.epoch == self.epoch;
        match (grant.token, &mut self.source) {
            // Also what an earlier source has granted: a memory holds a token for that.
            (_, Source::Memory(tokens)) => tokens.used(at),
            (Granted::Slot(slot), Source::Shared(slots)) if is_current => {
                if !slots.written(slot, at, now) {
                    self.ask(Op::Take, None, now);
                }
            }
            // An earlier source granted it, and the present one counts it all the same.
            (_, Source::Shared(slots)) => {
                slots.written_besides(at, now);
                self.ask(Op::Take, None, now);
            }
            (_, Source::None) => {}
        }
    }

    /// A grant was not used: its token is free again.
    pub(super) fn returned(&mut self, grant: Grant, now: Instant) {
        self.held = self.held.saturating_sub(1);
        self.probe_unsent(&grant);
        match (grant.token, &mut self.source) {
            (_, Source::Memory(tokens)) => tokens.give_back(),
            (Granted::Slot(slot), Source::Shared(slots)) if grant.epoch == self.epoch => {
                slots.give_back(slot, now)
            }
            _ => {}
        }
        self.return_unused(now);
    }

    /// A written attempt has ended.
    pub(super) fn ended(&mut self, grant: Grant, written_at: Instant, end: End, cx: Context<'_>) {
        match (end, grant.token) {
            (End::Throttled { hint, random }, token) => {
                let attempt = RefusedAttempt {
                    written_at,
                    probe: grant.probe,
                    own_part: self.source.part(),
                };
                let before = self.pace.share(cx.now);
                let isolated = self.pace.refused(&attempt, cx.now);
                self.shared_pace.is_unsaved |= self.pace.share(cx.now) != before;
                let refused = Refused {
                    written_at,
                    hint,
                    isolated,
                };
                match token {
                    Granted::Slot(slot) if self.is_dealt_by_store(&grant) => {
                        self.tell_throttled(slot, refused, random, cx);
                    }
                    _ => self.throttled(&refused, random, cx),
                }
            }
            (end, Granted::Slot(slot)) if self.is_dealt_by_store(&grant) => {
                if end == End::Accepted {
                    self.pace.answered(written_at, cx.now);
                }
                self.tell_ended(slot, end, cx.now);
            }
            (End::Accepted, _) => {
                self.pause.answered(written_at);
                self.pace.answered(written_at, cx.now);
                self.probe_ended(&grant);
            }
            (End::Unknown, _) => self.probe_ended(&grant),
            (End::Unsent, _) => self.probe_unsent(&grant),
        }
    }

    fn is_dealt_by_store(&self, grant: &Grant) -> bool {
        grant.epoch == self.epoch && matches!(self.source, Source::Shared(_))
    }

    /// The probe was never sent, also where its source has gone: the pause stays.
    fn probe_unsent(&mut self, grant: &Grant) {
        if grant.number == self.probe {
            self.pause.probe_unsent();
        }
    }

    /// A probe that was not refused opens the lane. So does one whose end is not known: a longer pause would tell nothing.
    fn probe_ended(&mut self, grant: &Grant) {
        if grant.number == self.probe {
            self.pause.probe_passed();
        }
    }

    /// This process keeps the pause: an attempt was refused.
    pub(super) fn throttled(&mut self, refused: &Refused, random: f64, cx: Context<'_>) {
        let Context { now, rules, .. } = cx;
        let episode = self.pause.refused(refused, &rules.retry, now, random);
        if episode == Episode::New {
            self.pause_began(refused.hint, now);
        }
        self.pace.resumes_at(self.pause.open_at(now));
        self.keep_rate(now);
        self.review.request(now);
    }

    /// CAMS refused an attempt whose slot the store has dealt: the lane pauses on all replicas.
    fn tell_throttled(&mut self, slot: Slot, refused: Refused, random: f64, cx: Context<'_>) {
        let Source::Shared(slots) = &mut self.source else {
            return;
        };
        let retry = &cx.rules.retry;
        let hint = refused.hint.map(|hint| hint.min(retry.max_pause));
        let is_isolated = refused.isolated && hint.is_none();
        let pauses = (!is_isolated).then(|| Pauses {
            new: pause(retry, hint, slots.level() + 1, random),
            same: hint,
        });
        if let Some(pauses) = pauses {
            slots.void();
            // The pace that the store gets counts from the end of the pause.
            self.pace.resumes_at(cx.now + pauses.new);
        }
        self.ask(
            Op::Throttled {
                at: slot.dated.at,
                pauses,
            },
            Some(refused),
            cx.now,
        );
    }

    /// An attempt has another end, which the store must know of if it was the probe, or if a trouble is over.
    fn tell_ended(&mut self, slot: Slot, end: End, now: Instant) {
        let how = match end {
            End::Accepted => How::Answered,
            End::Unsent => How::Unsent,
            End::Unknown | End::Throttled { .. } => How::Unknown,
        };
        let Source::Shared(slots) = &self.source else {
            return;
        };
        if slot.dated.probe || (how == How::Answered && slots.is_troubled()) {
            self.ask(
                Op::Ended {
                    slot: slot.dated,
                    how,
                },
                None,
                now,
            );
        }
    }

    pub(super) fn pause_began(&mut self, hint: Option<Duration>, now: Instant) {
        let (pause, rate) = (self.pause.remaining(now), self.rate(now));
        self.effects
            .push_back(Effect::PauseBegan { pause, hint, rate });
    }
}

/// How long the lane pauses if a new episode begins.
fn pause(retry: &Retry, hint: Option<Duration>, level: u32, random: f64) -> Duration {
    hint.unwrap_or_else(|| backoff::full_jitter(retry.base, retry.max, level, random))
}

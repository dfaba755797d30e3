//! At what rate does CAMS really take this lane's attempts? Two things can lower it: jitter on the way, which lets
//! attempts arrive closer together than they were written, and an outsider who spends the same quota.
//!
//! Jitter is known before anything is refused: it cannot be larger than the spread of the answer times. The gap is a part
//! of that spread. Quiet time, and answers that come faster than the way in allows, make the part smaller; refusals make
//! it larger.
//!
//! An outsider is known by refusals that jitter does not explain. The lane then sends at a lower rate, evenly spaced, and
//! goes back to where it was refused within a time in which few attempts would be refused, then faster and faster.
//!
//! Only decides; time is an argument. `docs/decisions/0001-how-a-lane-learns.md` has the figures.

mod answer_times;
#[cfg(test)]
mod simulation;
mod slowdown;
#[cfg(test)]
mod tests;

use std::time::Duration;

use tokio::time::Instant;

use crate::config::{Learn, Limit};
use crate::limiter::pace::answer_times::AnswerTimes;
pub(crate) use crate::limiter::pace::slowdown::SharedRate;
use crate::limiter::pace::slowdown::Slowdown;

/// A new lane's gap, as a part of the spread of its answer times. Attempts that leave together are sorted by their
/// jitter on arrival, so the whole spread is more than a window needs.
const FIRST_PART: f64 = 0.75;
/// What a refusal adds to the part.
const WIDER: f64 = 0.1;
/// In quiet time the part shrinks to nothing, slowly at first: a tenth is gone after 95 s.
const NARROWED_AFTER: Duration = Duration::from_secs(300);
/// What is left of the part when answers prove that the spread is not on the way in.
const LEFT_BY_PROOF: f64 = 0.8;
/// After a refusal by jitter answers prove nothing for this time: the spread is on the way in, in part.
const NO_PROOF_FOR: Duration = Duration::from_secs(60);
/// From this part of what jitter explains on, a refusal has another cause.
const EXPLAINED: f64 = 0.85;
/// Accepted attempts that make up for one isolated refusal.
const PER_ISOLATED: f64 = 10.0;
/// A second isolated refusal within this number of windows is a lesson for the rate. One alone is not.
const SUSPICION: u32 = 10;
/// An attempt that was written within this part of a window after the first refusal met the same full window.
const SAME_LESSON: f64 = 0.9;
/// With less between two attempts timers are too coarse to space them.
const CLOSEST: Duration = Duration::from_millis(8);

/// What one lane has learned, and the rate that follows from it.
#[derive(Debug)]
pub(crate) struct Pace {
    limit: Limit,
    /// In microseconds, as all that a quiet lane keeps is small: lanes are many.
    gap: u32,
    max_gap: u32,
    answer_times: AnswerTimes,
    /// The gap as a part of the spread of answer times, at `part_since`.
    part: f32,
    part_since: Option<Instant>,
    /// How many accepted attempts have not yet made up for an isolated refusal.
    credit: f32,
    /// Accepted attempts whose answer came within a window of the first of them.
    answers: u32,
    answers_since: Option<Instant>,
    /// What refusals have taught.
    refusals: Option<Box<Refusals>>,
}

/// At most `tokens` attempts are written per `window` and `gap`, with `spacing` between two of them. That holds for what
/// is already written, too: a token is back when the present window and gap have passed since its write. The answers of the
/// first attempts tell the gap that these very tokens need.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Rate {
    /// How many tokens may be in use: at most the limit's count.
    pub(crate) tokens: u32,
    /// At least the limit's window.
    pub(crate) window: Duration,
    /// What is added to the window before a token comes back.
    pub(crate) gap: Duration,
    /// The least time between two writes of the lane. Zero unless it sends less than its limit.
    pub(crate) spacing: Duration,
}

/// A refused attempt, as its lane knows it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct RefusedAttempt {
    /// When the first byte of the request was written.
    pub(crate) written_at: Instant,
    /// A refused probe is no evidence about the rate: the lane sent nothing else.
    pub(crate) probe: bool,
    /// This process's part of the lane's attempts (0..=1): it sees the refusals of its own only.
    pub(crate) own_part: f64,
}

#[derive(Debug, Default)]
struct Refusals {
    slowdown: Option<Slowdown>,
    lesson: Option<Lesson>,
    /// The latest isolated refusal that jitter does not explain.
    suspected_at: Option<Instant>,
    /// The latest refusal that jitter explains.
    jitter_at: Option<Instant>,
    /// The limit has changed then: refusals of attempts that were written before say nothing of the new one.
    taught_from: Option<Instant>,
}

/// All refusals of attempts that met the same full window: one lesson.
#[derive(Clone, Copy, Debug)]
struct Lesson {
    known_at: Instant,
    /// Refusals that this process has seen, and as many as that means for the whole lane.
    seen: u32,
    refused: f64,
    /// Calls per window, and lessons in a row, before it.
    rate_before: f64,
    streak_before: u32,
    by_jitter: bool,
}

// === impl Pace ===

impl Pace {
    pub(crate) fn new(limit: Limit, bounds: Learn) -> Self {
        let (gap, max_gap) = micros(bounds, limit);
        Self {
            limit,
            gap,
            max_gap,
            answer_times: AnswerTimes::default(),
            part: FIRST_PART as f32,
            part_since: None,
            credit: 0.0,
            answers: 0,
            answers_since: None,
            refusals: None,
        }
    }

    /// The rules have changed. What was learned of another limit says nothing of this one.
    pub(crate) fn set_rules(&mut self, limit: Limit, bounds: Learn, now: Instant) {
        if limit == self.limit {
            (self.gap, self.max_gap) = micros(bounds, limit);
            return;
        }
        *self = Self::new(limit, bounds);
        self.refusals = Some(Box::new(Refusals {
            taught_from: Some(now),
            ..Refusals::default()
        }));
    }

    /// What holds at `now`.
    pub(crate) fn rate(&self, now: Instant) -> Rate {
        let gap = Duration::from_secs_f64(self.gap(now));
        let rate = self.calls_per_window(now);
        if rate >= self.count() {
            return Rate {
                tokens: self.limit.count.get(),
                window: self.limit.window,
                gap,
                spacing: Duration::ZERO,
            };
        }
        let tokens = rate.ceil().max(1.0);
        let spacing = self.limit.window.div_f64(rate);
        Rate {
            tokens: tokens as u32,
            window: self
                .limit
                .window
                .mul_f64(tokens / rate)
                .max(self.limit.window),
            gap,
            spacing: if spacing < CLOSEST {
                Duration::ZERO
            } else {
                spacing
            },
        }
    }

    /// When the rate allows more than at `now`, if no attempt is refused until then.
    pub(crate) fn changes_at(&self, now: Instant) -> Option<Instant> {
        self.slowdown()?.next_rise(self.limit, now)
    }

    /// The rates to come if no attempt is refused, in order: at most 16, the last of them the whole limit.
    pub(crate) fn ahead(&self, now: Instant) -> impl Iterator<Item = (Instant, Rate)> {
        let rises = self
            .slowdown()
            .into_iter()
            .flat_map(move |slowdown| slowdown.rises(self.limit, now));
        rises.map(|at| (at, self.rate(at)))
    }

    /// CAMS took an attempt.
    pub(crate) fn answered(&mut self, written_at: Instant, now: Instant) {
        self.sample(written_at, now);
        let most = PER_ISOLATED * (1.0 + self.count() / 10.0);
        self.credit = (self.credit + 1.0).min(most as f32);
        self.count_answer(now);
        self.forget_what_is_over(now);
    }

    /// An attempt was refused. Returns whether the refusal is isolated: it came amid accepted attempts.
    pub(crate) fn refused(&mut self, attempt: &RefusedAttempt, now: Instant) -> bool {
        self.sample(attempt.written_at, now);
        let isolated = f64::from(self.credit) >= PER_ISOLATED;
        self.credit = if isolated {
            self.credit - PER_ISOLATED as f32
        } else {
            0.0
        };
        let taught_from = self
            .refusals
            .as_ref()
            .and_then(|refusals| refusals.taught_from);
        if attempt.probe || taught_from.is_some_and(|from| attempt.written_at < from) {
            return isolated;
        }
        let lesson = self.lesson(attempt, now);
        self.widen_gap(&lesson, now);
        self.slow_down(&lesson, isolated, now);
        isolated
    }

    /// The lane is paused until `at`: a pause is not quiet time.
    pub(crate) fn resumes_at(&mut self, at: Instant) {
        if let Some(slowdown) = self
            .refusals
            .as_mut()
            .and_then(|refusals| refusals.slowdown.as_mut())
        {
            slowdown.grows_from(at);
        }
    }

    /// Whether the lane sends less than its limit.
    #[cfg(test)]
    pub(crate) fn has_learned(&self) -> bool {
        self.slowdown().is_some()
    }

    /// Whether a new lane would do as well as this one. It learns its gap from its first answers.
    pub(crate) fn is_forgotten(&self, now: Instant) -> bool {
        let Some(refusals) = &self.refusals else {
            return true;
        };
        let window = self.limit.window;
        let slow = refusals
            .slowdown
            .is_some_and(|slowdown| !slowdown.is_over(self.limit, now));
        let recent = |at: Option<Instant>, time: Duration| at.is_some_and(|at| now < at + time);
        let lesson_at = refusals.lesson.map(|lesson| lesson.known_at);
        !slow
            && !recent(refusals.jitter_at, NO_PROOF_FOR)
            && !recent(refusals.suspected_at, window * SUSPICION)
            && !recent(refusals.taught_from.max(lesson_at), window)
    }

    /// What replicas that share the quota have in common. The gap is each replica's own.
    pub(crate) fn share(&self, now: Instant) -> Option<SharedRate> {
        self.slowdown().map(|slowdown| slowdown.share(now))
    }

    /// Another replica has learned this. Of two lessons from the same window the harder one holds, else the later one.
    pub(crate) fn adopt(&mut self, shared: &SharedRate, now: Instant) {
        let Some(theirs) = Slowdown::shared(shared, self.limit, now) else {
            return;
        };
        let refusals = self.refusals.get_or_insert_default();
        if refusals
            .taught_from
            .is_some_and(|from| theirs.known_at() < from)
        {
            return;
        }
        if refusals
            .slowdown
            .is_none_or(|ours| theirs.supersedes(&ours, self.limit))
        {
            refusals.slowdown = Some(theirs);
            let rate_before = theirs.rate_before();
            let streak_before = theirs.streak().saturating_sub(1);
            // What this replica hears of the same window is no lesson of its own.
            let lesson = Lesson {
                known_at: theirs.known_at(),
                seen: 1,
                refused: rate_before - theirs.lowest(),
                rate_before,
                streak_before,
                by_jitter: false,
            };
            refusals.lesson = Some(lesson);
        }
    }

    /// The gap in seconds.
    fn gap(&self, now: Instant) -> f64 {
        (self.part(now) * self.spread()).max(f64::from(self.gap) / 1e6)
    }

    /// The part of the spread that the gap is.
    fn part(&self, now: Instant) -> f64 {
        let ceiling = (self.max_gap() / self.spread().max(1e-9)).min(1.0);
        let quiet = self.part_since.map_or(0.0, |since| {
            now.saturating_duration_since(since).as_secs_f64()
        });
        let narrowed = (quiet / NARROWED_AFTER.as_secs_f64()).powi(2);
        f64::from(self.part).min(ceiling) * (1.0 - narrowed).max(0.0)
    }

    /// The spread of answer times in seconds, of which no more counts than makes a new lane's gap the largest: one answer
    /// that took a second says nothing about jitter.
    fn spread(&self) -> f64 {
        self.answer_times.spread().min(self.max_gap() / FIRST_PART)
    }

    /// In seconds.
    fn max_gap(&self) -> f64 {
        f64::from(self.max_gap) / 1e6
    }

    fn set_part(&mut self, part: f64, now: Instant) {
        self.part = part as f32;
        self.part_since = Some(now);
    }

    fn sample(&mut self, written_at: Instant, now: Instant) {
        self.answer_times
            .add(now.saturating_duration_since(written_at));
        self.part_since.get_or_insert(now);
    }

    /// More answers than tokens came within one window. Had they been spread on the way in, one would have been refused.
    fn count_answer(&mut self, now: Instant) {
        match self.answers_since {
            Some(since) if now < since + self.limit.window => self.answers += 1,
            _ => (self.answers_since, self.answers) = (Some(now), 1),
        }
        if self.answers <= self.limit.count.get() {
            return;
        }
        self.answers_since = None;
        let jitter_at = self
            .refusals
            .as_ref()
            .and_then(|refusals| refusals.jitter_at);
        if jitter_at.is_none_or(|at| now >= at + NO_PROOF_FOR) {
            self.set_part(self.part(now) * LEFT_BY_PROOF, now);
        }
    }

    /// The lesson that this refusal belongs to, with it.
    fn lesson(&mut self, attempt: &RefusedAttempt, now: Instant) -> Lesson {
        let (gap, rate_before) = (self.gap(now), self.calls_per_window(now));
        let explained = self.spread().min(self.max_gap());
        let window = self.limit.window;
        let refusals = self.refusals.get_or_insert_default();
        let running = refusals
            .lesson
            .filter(|lesson| attempt.written_at <= lesson.known_at + window.mul_f64(SAME_LESSON));
        let mut lesson = running.unwrap_or(Lesson {
            known_at: now,
            seen: 0,
            refused: 0.0,
            rate_before,
            streak_before: refusals.slowdown.map_or(0, |slowdown| slowdown.streak()),
            by_jitter: gap < explained * EXPLAINED,
        });
        lesson.seen = lesson.seen.saturating_add(1);
        lesson.refused += 1.0 / attempt.own_part.clamp(0.01, 1.0);
        // Jitter alone does not refuse that many together.
        lesson.by_jitter &= lesson.refused <= 2.0 + lesson.rate_before / 20.0;
        refusals.lesson = Some(lesson);
        lesson
    }

    fn widen_gap(&mut self, lesson: &Lesson, now: Instant) {
        if lesson.by_jitter {
            self.set_part(self.part(now) + WIDER, now);
            self.refusals.get_or_insert_default().jitter_at = Some(now);
        }
    }

    fn slow_down(&mut self, lesson: &Lesson, isolated: bool, now: Instant) {
        if lesson.by_jitter {
            return;
        }
        let suspicion = self.limit.window * SUSPICION;
        let refusals = self.refusals.get_or_insert_default();
        if lesson.seen == 1 && isolated && refusals.slowdown.is_none() {
            let suspected_at = refusals.suspected_at.replace(now);
            if suspected_at.is_none_or(|at| now > at + suspicion) {
                return;
            }
        }
        let refused = if lesson.seen == 1 {
            0.0
        } else {
            lesson.refused
        };
        refusals.slowdown = Some(Slowdown::new(
            lesson.rate_before,
            refused,
            lesson.streak_before.saturating_add(1),
            (lesson.known_at, now),
        ));
    }

    fn forget_what_is_over(&mut self, now: Instant) {
        if self.refusals.is_some() && self.is_forgotten(now) {
            self.refusals = None;
        } else if let Some(refusals) = &mut self.refusals {
            refusals.slowdown = refusals
                .slowdown
                .filter(|slowdown| !slowdown.is_over(self.limit, now));
        }
    }

    fn slowdown(&self) -> Option<&Slowdown> {
        self.refusals.as_ref()?.slowdown.as_ref()
    }

    fn calls_per_window(&self, now: Instant) -> f64 {
        self.slowdown()
            .map_or(self.count(), |slowdown| slowdown.rate(self.limit, now))
    }

    fn count(&self) -> f64 {
        f64::from(self.limit.count.get())
    }
}

/// The least and the largest gap in microseconds; the largest is at most half of the window.
fn micros(bounds: Learn, limit: Limit) -> (u32, u32) {
    let micros = |time: Duration| u32::try_from(time.as_micros()).unwrap_or(u32::MAX);
    (
        micros(bounds.gap),
        micros(bounds.max_gap.min(limit.window / 2).max(bounds.gap)),
    )
}

// === impl Rate ===

impl Rate {
    /// After how long a token that is written now is back.
    pub(crate) fn away(&self) -> Duration {
        self.window + self.gap
    }

    /// Calls per second that fit, for operators.
    pub(crate) fn per_second(&self) -> f64 {
        f64::from(self.tokens) / self.away().as_secs_f64()
    }
}

//! One lane, the calls of one limited action of one account, as a state machine: events and the time go in, effects come
//! out. It has no lock, no task and no clock; `handle.rs`, `worker.rs` and `permit.rs` carry its effects out.
//!
//! A call is granted in the order of the fair queue, when the lane does not pause, a connection is ready and a token is
//! free. The grant holds its token until the first byte of the attempt was written; the token's clock runs from there.
//! Where the tokens come from is a [`Source`]: this process's memory or the store that replicas share. Both are asked the
//! same questions and told the same events.

mod admission;
mod attempts;
mod review;
mod sources;

use std::collections::VecDeque;
use std::time::Duration;

use tokio::time::Instant;

use crate::config::{Learn, Limit};
use crate::error::Refusal;
use crate::limiter::fair::{FairQueue, QueueEntry};
use crate::limiter::lane::review::Review;
use crate::limiter::lane::sources::SharedPace;
use crate::limiter::pace::{Pace, Rate};
use crate::limiter::pause::{Gate, Pause, Refused};
use crate::limiter::rules::Rules;
use crate::limiter::shared::protocol::{Answer, Op, Waiting as WaitingClient};
use crate::limiter::shared::slots::Ask;
use crate::limiter::shared::{self, Stands};
use crate::limiter::source::{Granted, Source, SourceForecast, Wait};
use crate::limiter::tokens::Tokens;

/// The state of one lane. `W` is the waiting end of a queued call.
pub(crate) struct Lane<W> {
    limit: Limit,
    /// Tokens count as used then, whichever source deals them out.
    limit_since: Instant,
    queue: FairQueue<Waiting<W>>,
    source: Source,
    stands: Stands,
    /// How often the source has changed: a grant of an earlier source is of no use.
    epoch: u64,
    pause: Pause,
    pace: Pace,
    review: Review,
    shared_pace: SharedPace,
    /// The number of the grant that is the latest probe of a pause that this process keeps. An earlier one may be under
    /// way, too: its end says nothing of the latest pause.
    probe: u64,
    /// The moment that was last advised to a refused caller.
    advised: Instant,
    granted: u64,
    /// Granted by the present source or an earlier one, and neither written nor returned.
    held: u32,
    effects: VecDeque<Effect<W>>,
}

/// A queued call.
pub(crate) struct Waiting<W> {
    pub(crate) waiter: W,
    /// The call is not sent after this.
    pub(crate) send_by: Instant,
}

/// What every event is handled with.
#[derive(Clone, Copy)]
pub(crate) struct Context<'a> {
    pub(crate) now: Instant,
    pub(crate) rules: &'a Rules,
    /// A drain has begun that ends then: no call is granted from then on.
    pub(crate) drain_by: Option<Instant>,
}

/// What happens to a lane.
pub(crate) enum Event<W> {
    /// A call arrives. `returning`: it was admitted before, and keeps its place.
    Arrived {
        entry: QueueEntry,
        send_by: Instant,
        returning: bool,
        waiter: W,
    },
    /// A queued caller has disconnected, or its hold is over.
    Left(QueueEntry),
    /// A connection is ready, for one call.
    Connected,
    /// The first byte of a granted attempt was written at `at`.
    Written { grant: Grant, at: Instant },
    /// A grant was not used.
    Returned(Grant),
    /// A written attempt has ended.
    Ended {
        grant: Grant,
        written_at: Instant,
        end: End,
    },
    /// The store has answered a question; none if it has not.
    Answered {
        question: Asked,
        answer: Option<Box<Answer>>,
    },
    /// Another source deals out the tokens.
    SourceChanged { stands: Stands, store: StoreTerms },
    /// The configuration was reloaded; none where it has no limit for the action any more.
    RulesChanged { limit: Option<Limit> },
    /// A drain has begun.
    DrainBegan,
    /// An operator pauses the lane for a time, or until it is resumed.
    Paused(Option<Duration>),
    /// An operator resumes the lane.
    Resumed,
    /// An operator flushes the queue.
    Flushed,
    /// A piece of the review of the queue is due.
    Review,
}

/// How a written attempt ended.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum End {
    /// CAMS answered, and not by throttling.
    Accepted,
    /// CAMS refused by throttling, with this hint. `random` in 0..1 draws the back-off.
    Throttled { hint: Option<Duration>, random: f64 },
    /// What became of it is not known.
    Unknown,
    /// Nothing of the request was sent after all.
    Unsent,
}

/// What a lane wants done.
pub(crate) enum Effect<W> {
    /// This call may be sent now, over the connection that was announced by `Event::Connected`.
    Grant { waiter: W, grant: Grant },
    /// This call is refused.
    Refuse { waiter: W, refusal: Refusal },
    /// This call's hold is over; `advice` is when to come back.
    Expire { waiter: W, advice: Duration },
    /// All calls that wait are refused, the first with this advice, each one a step later.
    RefuseAll {
        queue: FairQueue<Waiting<W>>,
        refusal: Refusal,
        step: Duration,
        most: Duration,
    },
    /// The store is to be asked.
    Ask(Box<Question>),
    /// The store's answers come too late for their slots to be used: it is of no use.
    StoreTooFar,
    /// The lane pauses: for the metrics and the log.
    PauseBegan {
        pause: Duration,
        hint: Option<Duration>,
        rate: Rate,
    },
}

/// The permission to send one attempt.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Grant {
    /// The lane's grants are counted.
    number: u64,
    token: Granted,
    epoch: u64,
    send_by: Instant,
    probe: bool,
}

/// A question to the store.
pub(crate) struct Question {
    pub(crate) op: Op,
    pub(crate) limit: Limit,
    /// The rate that this replica keeps.
    pub(crate) rate: Rate,
    pub(crate) waiting: Vec<WaitingClient>,
    pub(crate) asked: Asked,
}

/// What must be known when a question is answered.
#[derive(Clone, Debug)]
pub(crate) struct Asked {
    epoch: u64,
    pub(crate) ask: Ask,
    /// The version of the pace that the question came from.
    pub(crate) version: u64,
    /// The pace that it tells the store.
    pub(crate) pace: Option<String>,
    /// The refusal that it reports.
    refused: Option<Refused>,
}

/// What a lane must know of the store when it begins to use it, or to do without it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct StoreTerms {
    /// How late a slot may be used, as configured.
    pub(crate) slack: Duration,
    /// How late any replica may use a slot.
    pub(crate) longest_slack: Duration,
    /// What an answer of the store usually takes.
    pub(crate) distance: Duration,
}

/// What the lane waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Next {
    /// No call waits.
    Rest,
    /// A call can be granted: a connection is there, and a token is free.
    Grant,
    /// A piece of the review is due.
    Review,
    /// A connection; this many calls could use one.
    Connect(usize),
    /// The lane's pause ends then; a connection is of no use before.
    Pause(Instant),
    /// A token is back then.
    Token(Instant),
    /// Something is due then.
    Until(Instant),
    /// Another event.
    Event,
}

// === impl Lane ===

impl<W> Lane<W> {
    /// A lane whose tokens count as used at `since`.
    pub(crate) fn new(limit: Limit, learn: Learn, since: Instant, now: Instant) -> Self {
        Self {
            limit,
            limit_since: since,
            queue: FairQueue::new(),
            source: Source::Memory(Tokens::new(limit, learn.gap, since, now)),
            stands: Stands::Alone,
            epoch: 0,
            pause: Pause::default(),
            pace: Pace::new(limit, learn),
            review: Review::new(now),
            shared_pace: SharedPace::default(),
            probe: 0,
            advised: now,
            granted: 0,
            held: 0,
            effects: VecDeque::new(),
        }
    }

    /// Handles an event. The effects are to be carried out once the lane's lock is free.
    pub(crate) fn handle(&mut self, event: Event<W>, cx: Context<'_>) -> VecDeque<Effect<W>> {
        self.refresh(cx.now);
        match event {
            Event::Arrived {
                entry,
                send_by,
                returning,
                waiter,
            } => {
                self.arrived(entry, Waiting { waiter, send_by }, returning, cx);
            }
            Event::Left(entry) => self.left(&entry, cx.now),
            Event::Connected => self.connected(cx.now),
            Event::Written { grant, at } => self.written(grant, at, cx.now),
            Event::Returned(grant) => self.returned(grant, cx.now),
            Event::Ended {
                grant,
                written_at,
                end,
            } => self.ended(grant, written_at, end, cx),
            Event::Answered { question, answer } => self.answered(&question, answer.as_deref(), cx),
            Event::SourceChanged { stands, store } => self.source_changed(stands, store, cx),
            Event::RulesChanged { limit } => self.rules_changed(limit, cx),
            Event::DrainBegan => self.review.request(cx.now),
            Event::Paused(time) => {
                self.pause.order(time, cx.now);
                self.review.request(cx.now);
            }
            Event::Resumed => self.pause.resume(),
            Event::Flushed => self.flush(cx),
            Event::Review => self.review_piece(cx),
        }
        self.take_effects()
    }

    /// The effects of what was asked of the lane.
    pub(crate) fn take_effects(&mut self) -> VecDeque<Effect<W>> {
        std::mem::take(&mut self.effects)
    }

    /// Grants a call that arrives while no call waits, if nothing keeps it. Where it answers true to
    /// [`Lane::is_open`], this takes a token and no place in the queue.
    pub(crate) fn pass(&mut self, send_by: Instant, now: Instant) -> Option<Grant> {
        self.is_open(now)
            .then(|| self.grant(send_by, now))
            .flatten()
    }

    /// Whether a call that arrived now would be granted at once, if a connection is ready.
    pub(crate) fn is_open(&mut self, now: Instant) -> bool {
        self.refresh(now);
        self.queue.len() == 0 && self.pause.gate(now) == Gate::Open && self.source.free(now) > 0
    }

    /// Whether a granted attempt may be written now. A grant does not outlast its source, a pause that begins, its
    /// slot's moment, or its call's send-by.
    pub(crate) fn may_send(&mut self, grant: &Grant, now: Instant) -> bool {
        grant.epoch == self.epoch
            && now <= grant.send_by
            && self.lets_pass(grant, now)
            && self.source.is_usable(&grant.token, now)
    }

    /// Whether no pause has begun since. While a probe is under way the lane is closed, and the probe itself must pass.
    fn lets_pass(&self, grant: &Grant, now: Instant) -> bool {
        match self.pause.gate(now) {
            Gate::Open => true,
            // The store has dealt the probe after its pause; only an operator's pause keeps it.
            Gate::Until(_) if grant.token.is_probe() => self.pause.ordered(now).is_none(),
            // This process's own probe, unless another pause has begun.
            Gate::Until(_) => grant.number == self.probe && self.pause.open_at(now) <= now,
        }
    }

    /// What the lane waits for, and when it must look again in any case. It may have effects, too.
    pub(crate) fn next(&mut self, is_connected: bool, cx: Context<'_>) -> (Next, Option<Instant>) {
        self.refresh(cx.now);
        let next = self.decide(is_connected, cx);
        let look_at = [self.review.due_at(), self.pace.changes_at(cx.now)]
            .into_iter()
            .flatten()
            .min();
        (next, look_at)
    }

    fn decide(&mut self, is_connected: bool, cx: Context<'_>) -> Next {
        let now = cx.now;
        if self.queue.len() == 0 {
            self.review.end();
            self.return_unused(now);
            return Next::Rest;
        }
        if cx.is_drained(now) {
            self.review.request(now);
            return if self.review.is_due(now) {
                Next::Review
            } else {
                Next::Event
            };
        }
        let review = self.review.is_due(now).then_some(Next::Review);
        if let Gate::Until(until) = self.pause.gate(now) {
            return review.unwrap_or(Next::Pause(until));
        }
        let free = self.source.free(now);
        if !is_connected {
            return review
                .unwrap_or_else(|| Next::Connect(self.queue.len().min(free as usize).max(1)));
        }
        self.ask_if_due(now);
        if free > 0 {
            return Next::Grant;
        }
        let wait = self.source.wait(self.queue.len(), now);
        review.unwrap_or(match wait {
            Wait::Token(back_at) => Next::Token(back_at),
            Wait::Until(moment) => Next::Until(moment),
            Wait::Ask | Wait::Change => Next::Event,
        })
    }

    /// A connection is ready: the call that is next is granted, if it may be.
    fn connected(&mut self, now: Instant) {
        if self.pause.gate(now) != Gate::Open || self.source.free(now) == 0 {
            return;
        }
        let Some(Waiting { waiter, send_by }) = self.queue.pop() else {
            return;
        };
        self.review.served();
        if send_by <= now {
            let advice = Duration::from_secs(1);
            self.effects.push_back(Effect::Expire { waiter, advice });
            return;
        }
        if let Some(grant) = self.grant(send_by, now) {
            self.effects.push_back(Effect::Grant { waiter, grant });
        }
    }

    fn grant(&mut self, send_by: Instant, now: Instant) -> Option<Grant> {
        let token = self.source.take(now)?;
        self.granted += 1;
        self.held += 1;
        let is_own_probe = self.pause.granted(now);
        if is_own_probe {
            self.probe = self.granted;
        }
        let probe = is_own_probe || token.is_probe();
        Some(Grant {
            number: self.granted,
            token,
            epoch: self.epoch,
            send_by,
            probe,
        })
    }

    fn left(&mut self, entry: &QueueEntry, now: Instant) {
        if self.queue.remove(entry).is_some() {
            self.return_unused(now);
        }
    }

    /// The rate that holds now: quiet time gives it back without a timer.
    pub(crate) fn refresh(&mut self, now: Instant) {
        self.keep_rate(now);
        self.source.drop_late(now);
    }

    fn keep_rate(&mut self, now: Instant) {
        let rate = self.rate(now);
        self.source.keep(rate);
    }

    /// The rate that this lane keeps now.
    pub(crate) fn rate(&self, now: Instant) -> Rate {
        self.part_of(self.pace.rate(now))
    }

    /// While the store is away each replica has a part of the tokens.
    fn part_of(&self, rate: Rate) -> Rate {
        match self.stands {
            Stands::Part { count, .. } => Rate {
                tokens: rate.tokens.min(count.get()),
                ..rate
            },
            Stands::Alone | Stands::Together { .. } | Stands::Nothing { .. } => rate,
        }
    }

    /// The grants to come; none while there are no tokens.
    fn forecast(&self, now: Instant) -> Option<SourceForecast<'_>> {
        let rises = self
            .pace
            .ahead(now)
            .map(|(at, rate)| (at, self.part_of(rate)))
            .collect();
        self.source
            .forecast(now, self.pause.open_at(now), self.rate(now), rises)
    }

    /// Whether a lane that is made now would be the same.
    pub(crate) fn is_at_rest(&mut self, cx: Context<'_>) -> bool {
        let quiet =
            self.pause.is_forgotten(&cx.rules.retry, cx.now) && self.pace.is_forgotten(cx.now);
        quiet && self.queue.len() == 0 && self.source.at_rest(cx.now)
    }
}

/// A twentieth: in simulations (`tests/prediction.rs`) most forecasts of a lane that is refused now and then come true.
const FOR_REFUSALS: u32 = 20;

impl<W> Lane<W> {
    /// What the call that has `ahead` others before it will wait. A lane that was refused of late is likely to be refused
    /// again before a long wait is over: that is allowed for by a part of what is forecast after the pause.
    pub(crate) fn predicted_wait(&self, ahead: usize, now: Instant) -> Duration {
        let open = self.pause.open_at(now);
        let turn = self
            .forecast(now)
            .map_or(open + shared::NEVER, |forecast| forecast.at(ahead));
        let is_calm = self.pace.is_forgotten(now);
        let spare = if is_calm {
            Duration::ZERO
        } else {
            turn.saturating_duration_since(open) / FOR_REFUSALS
        };
        (turn + spare).saturating_duration_since(now)
    }

    /// When the call that has `ahead` others before it had best come back. While there are no tokens that is not known,
    /// and a day would be no advice.
    pub(crate) fn advice(&self, ahead: usize, now: Instant) -> Duration {
        if self.source.is_withheld() {
            shared::ADVICE
        } else {
            self.predicted_wait(ahead, now)
        }
    }

    /// The same for a call that arrives now.
    pub(crate) fn advice_now(&self, now: Instant) -> Duration {
        self.advice(self.queue.len(), now)
    }

    /// Whether a review of the queue was requested.
    pub(crate) fn has_review(&self) -> bool {
        self.review.due_at().is_some()
    }

    /// Whether a piece of a review is due.
    pub(crate) fn is_reviewing(&self, now: Instant) -> bool {
        self.review.is_due(now)
    }

    pub(crate) fn limit(&self) -> Limit {
        self.limit
    }

    pub(crate) fn stands(&self) -> Stands {
        self.stands
    }

    pub(crate) fn queue(&self) -> &FairQueue<Waiting<W>> {
        &self.queue
    }

    pub(crate) fn pause(&self) -> &Pause {
        &self.pause
    }

    pub(crate) fn source(&self) -> &Source {
        &self.source
    }

    /// Calls granted so far.
    pub(crate) fn granted(&self) -> u64 {
        self.granted
    }
}

// === impl Context ===

impl Context<'_> {
    /// Whether no call is granted any more at `then`.
    pub(crate) fn is_drained(&self, then: Instant) -> bool {
        self.drain_by.is_some_and(|by| by <= then)
    }
}

#[cfg(test)]
impl<W> Lane<W> {
    /// The lane's tokens come from here from now on.
    pub(crate) fn set_source(&mut self, source: Source) {
        self.source = source;
    }

    /// Nothing is sent before `open`.
    pub(crate) fn pause_until(&mut self, open: Instant) {
        self.pause.told(open);
    }
}

#[cfg(test)]
mod tests;

//! May a newcomer wait? There must be room, and a turn that comes within its hold. Whoever may not is told its place, its
//! predicted wait, and a moment of its own to come back.

use std::time::Duration;

use tokio::time::Instant;

use crate::error::{Kind, Refusal};
use crate::limiter::fair::Standing;
use crate::limiter::lane::{Lane, State, advice, forecast};
use crate::limiter::{Connector, waiter};

/// How long arrivals that go before others are gathered before the line is gone through.
const CHECK_AFTER: Duration = Duration::from_millis(20);

// === impl Lane ===

impl<K: Connector> Lane<K> {
    /// Whether a newcomer may wait: room in the lane and in its client's part, and a wait that its hold covers. Where the
    /// lane is full, the newest call of the client with the most calls makes room.
    pub(super) fn admit(
        &self,
        state: &mut State<K>,
        (standing, send_by): (&Standing, Instant),
        now: Instant,
    ) -> Result<(), Refusal> {
        let rules = self.shared.rules.load();
        let bounds = &rules.bounds;
        let ahead = state.line.ahead_of_new(standing);
        let wait = forecast(state, ahead, now);
        if self.shared.drained(now + wait) {
            return Err(waiter::draining());
        }
        if state.line.of_client(&standing.client) >= bounds.max_waiting_per_client {
            return Err(self.full(state, "This client's part of the queue", bounds.max_waiting_per_client, now));
        }
        if state.tokens.are_withheld() {
            return Err(waiter::withheld());
        }
        let hold = send_by - now;
        if wait > hold {
            return Err(self.advised(state, too_long(wait, hold).queued(ahead, wait), now));
        }
        if state.line.len() >= bounds.max_waiting {
            let refusal = self.full(state, "The queue", bounds.max_waiting, now);
            let Some(evicted) = state.line.evict(&standing.client) else { return Err(refusal) };
            // Whoever has just gone does not need it.
            drop(evicted.reply.send(Err(refusal)));
        }
        if ahead < state.line.len() {
            // It goes before others, whose turns come later now.
            state.check_at.get_or_insert(now + CHECK_AFTER);
            self.changed.notify_one();
        }
        Ok(())
    }

    fn full(&self, state: &mut State<K>, what: &str, bound: usize, now: Instant) -> Refusal {
        let wait = advice(state, state.line.len(), now);
        let refusal = Refusal::after(Kind::QueueFull, wait, format!("{what} of {bound} waiting calls is full."));
        let ahead = state.line.len();
        self.advised(state, refusal.queued(ahead, wait), now)
    }

    /// Spreads the advice when to come back: each refused caller gets a moment of its own, at the rate at which the lane
    /// serves, so that they do not come back together only to be refused again.
    pub(super) fn advised(&self, state: &mut State<K>, refusal: Refusal, now: Instant) -> Refusal {
        let pace = state.learned.pace(now);
        let window = state.limit.window + pace.gap;
        let step = window / pace.tokens.max(1);
        // Tokens come back in bunches: a window more, and whoever comes back then surely fits.
        let earliest = now + refusal.retry_after.unwrap_or_default() + window;
        let latest = earliest + self.shared.rules.load().retry.max_pause;
        let moment = (state.come_back + step).clamp(earliest, latest);
        state.come_back = moment;
        Refusal { retry_after: Some(moment - now), ..refusal }
    }
}

/// The call's turn would come after its hold.
pub(super) fn too_long(wait: Duration, hold: Duration) -> Refusal {
    let (wait_ms, hold_ms) = (wait.as_millis(), hold.as_millis());
    let message = format!(
        "The system is under flow control: the predicted wait of {wait_ms} ms exceeds the {hold_ms} ms that its hold leaves. CAMS has done nothing."
    );
    Refusal::after(Kind::WaitTooLong, wait.saturating_sub(hold), message)
}

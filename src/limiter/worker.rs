//! Who waits on behalf of a lane? One task, alive only while somebody is in line. It waits for the end of a pause, for
//! a ready connection, then for a token, and grants all three to whoever's turn it is at that moment: nobody reserves a
//! slot before it is free, so a late pause or hang-up leaves no stale reservation behind.

use std::sync::Arc;

use leaky_bucket::RateLimiter;
use tokio::time::{Instant, sleep_until};

use crate::error::Refusal;
use crate::limiter::Connector;
use crate::limiter::lane::{Lane, Queued, State};
use crate::limiter::pause::Gate;
use crate::limiter::permit::Turn;
use crate::limiter::source::{Tokens, Wait};
use crate::limiter::waiter;

/// What the worker does next.
enum Next<K: Connector> {
    /// Nobody waits: the worker has left.
    Rest,
    /// Wait for the pause to end, or the probe.
    Pause(Instant),
    /// Wait for something to change: all tokens are held.
    Change,
    /// Get a connection; so many calls could go now.
    Connect(usize),
    /// Wait for a token to drip.
    Token(Arc<RateLimiter>),
    /// Wait for the moment of a slot, or of the next question.
    Slot(Instant),
    /// Hand this over; the lane's lock is free again.
    Deliver(Queued<K>, Result<Turn<K>, Refusal>),
}

/// Serves the lane until nobody waits.
pub(super) async fn run<K: Connector>(lane: Arc<Lane<K>>) {
    let _watch = Watch(lane.clone());
    let mut connection = None;
    loop {
        let (next, look_at) = next(&lane, &mut connection);
        let change = change(&lane, look_at);
        match next {
            Next::Rest => return,
            Next::Deliver(queued, turn) => {
                // Who has just gone drops its turn, which gives the token and the connection back.
                drop(queued.reply.send(turn));
            }
            Next::Pause(until) | Next::Slot(until) => tokio::select! {
                () = sleep_until(until) => {}
                () = change => {}
            },
            Next::Change => change.await,
            Next::Connect(wanted) => tokio::select! {
                ready = lane.shared.connector.ready(wanted) => connection = Some(ready),
                () = change => {}
            },
            Next::Token(drip) => tokio::select! {
                () = drip.acquire_one() => {
                    if let Tokens::Memory(tokens) = &mut lane.lock().tokens {
                        tokens.dripped(&drip);
                        // Tokens that were used together are back together: no wait for each.
                        tokens.collect();
                    }
                }
                () = change => {}
            },
        }
    }
}

/// Something has changed, or will have by itself.
async fn change<K: Connector>(lane: &Lane<K>, look_at: Option<Instant>) {
    match look_at {
        None => lane.changed.notified().await,
        Some(at) => tokio::select! {
            () = sleep_until(at) => {}
            () = lane.changed.notified() => {}
        },
    }
}

/// What to do, and when to look again: whom newcomers have made late, or what quiet time has given back.
fn next<K: Connector>(lane: &Arc<Lane<K>>, connection: &mut Option<K::Connection>) -> (Next<K>, Option<Instant>) {
    let mut state = lane.lock();
    // Read under the lock, for which it may have waited, and again after going through a long line.
    let mut now = Instant::now();
    if state.check_at.is_some_and(|at| at <= now) {
        lane.tell_late(&mut state, now);
        now = Instant::now();
    }
    let next = decide(lane, &mut state, connection, now);
    let back_at = state.learned.returns(now).first().copied();
    (next, [state.check_at, back_at].into_iter().flatten().min())
}

fn decide<K: Connector>(
    lane: &Arc<Lane<K>>,
    state: &mut State<K>,
    connection: &mut Option<K::Connection>,
    now: Instant,
) -> Next<K> {
    if state.line.len() == 0 {
        state.check_at = None;
        state.worker = false;
        lane.return_unused(state);
        return Next::Rest;
    }
    if lane.shared.drained(now) {
        let queued = state.line.pop().expect("the line is not empty");
        return Next::Deliver(queued, Err(waiter::draining()));
    }
    match state.pause.gate(now) {
        Gate::Open => {}
        Gate::Until(until) => {
            // A connection that lies through a pause would be stale at its end.
            *connection = None;
            return Next::Pause(until);
        }
    }
    if !connection.as_ref().is_some_and(K::is_usable) {
        *connection = lane.shared.connector.try_ready();
    }
    if connection.is_none() {
        let wanted = state.line.len().min(state.tokens.free(now) as usize).max(1);
        return Next::Connect(wanted);
    }
    if let Tokens::Shared(slots) = &mut state.tokens {
        slots.drop_late(now);
    }
    if let Wait::Ask = state.tokens.wait(state.line.len(), now)
        && let Some(quota) = &lane.shared.quota
    {
        lane.ask(state, quota);
    }
    if state.tokens.free(now) == 0 {
        return match state.tokens.wait(state.line.len(), now) {
            Wait::Drip(drip) => Next::Token(drip),
            Wait::Until(moment) => Next::Slot(moment),
            Wait::Ask | Wait::Change => Next::Change,
        };
    }
    let queued = state.line.pop().expect("the line is not empty");
    if queued.send_by <= now {
        let wait = std::time::Duration::from_secs(1);
        return Next::Deliver(queued, Err(waiter::expired(lane.shared.connector.down(), wait)));
    }
    let connection = connection.take().expect("a usable connection was seen above");
    let turn = lane.grant(state, connection, now);
    Next::Deliver(queued, Ok(turn))
}

/// Notices when the worker dies of a panic, and puts another in its place: a panic costs one call, not the lane.
struct Watch<K: Connector>(Arc<Lane<K>>);

impl<K: Connector> Drop for Watch<K> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            tracing::error!("a lane's worker panicked and was replaced");
            tokio::spawn(run(self.0.clone()));
        }
    }
}

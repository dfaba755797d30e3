//! Who waits on behalf of a lane? One task, alive only while somebody is in line. It waits for the end of a pause, for
//! a ready connection, then for a token, and grants all three to whoever's turn it is at that moment: nobody reserves a
//! slot before it is free, so a late pause or hang-up leaves no stale reservation behind.

use std::sync::Arc;

use leaky_bucket::RateLimiter;
use tokio::time::Instant;

use crate::error::Refusal;
use crate::flow::queue::Connector;
use crate::flow::queue::lane::{Lane, Queued};
use crate::flow::queue::pause::Gate;
use crate::flow::queue::turn::Turn;
use crate::flow::queue::waiter;

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
    /// Hand this over; the lane's lock is free again.
    Deliver(Queued<K>, Result<Turn<K>, Refusal>),
}

/// Serves the lane until nobody waits.
pub(super) async fn run<K: Connector>(lane: Arc<Lane<K>>) {
    let _watch = Watch(lane.clone());
    let mut connection = None;
    loop {
        match next(&lane, &mut connection) {
            Next::Rest => return,
            Next::Deliver(queued, turn) => {
                // Who has just gone drops its turn, which gives the token and the connection back.
                drop(queued.reply.send(turn));
            }
            Next::Pause(until) => tokio::select! {
                () = tokio::time::sleep_until(until) => {}
                () = lane.changed.notified() => {}
            },
            Next::Change => lane.changed.notified().await,
            Next::Connect(wanted) => tokio::select! {
                ready = lane.shared.connector.ready(wanted) => connection = Some(ready),
                () = lane.changed.notified() => {}
            },
            Next::Token(drip) => tokio::select! {
                () = drip.acquire_one() => lane.state.lock().tokens.dripped(&drip),
                () = lane.changed.notified() => {}
            },
        }
    }
}

fn next<K: Connector>(lane: &Arc<Lane<K>>, connection: &mut Option<K::Connection>) -> Next<K> {
    let now = Instant::now();
    let mut state = lane.state.lock();
    if state.line.len() == 0 {
        state.worker = false;
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
        let wanted = state.line.len().min(state.tokens.free() as usize).max(1);
        return Next::Connect(wanted);
    }
    if state.tokens.free() == 0 {
        return state.tokens.next_drip().map_or(Next::Change, Next::Token);
    }
    let queued = state.line.pop().expect("the line is not empty");
    if queued.send_by <= now {
        let wait = std::time::Duration::from_secs(1);
        return Next::Deliver(queued, Err(waiter::expired(lane.shared.connector.down(), wait)));
    }
    let connection = connection.take().expect("a usable connection was seen above");
    let turn = lane.grant(&mut state, connection);
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

//! The task that waits on behalf of a lane. It runs only while calls are queued. It waits for the
//! end of a pause, for a ready connection and for a token, and then grants the call that is next at
//! that moment. No call reserves a token in advance, so a later pause or a disconnect leaves no
//! stale reservation behind.

use std::sync::Arc;
use std::time::Duration;

use leaky_bucket::RateLimiter;
use tokio::time::{Instant, sleep_until};

use crate::limiter::Connector;
use crate::limiter::handle::{LaneHandle, answer};
use crate::limiter::lane::{Effect, Event, Next};

/// leaky-bucket accepts no shorter interval, and tokio's timers have this resolution.
const MIN_INTERVAL: Duration = Duration::from_millis(1);

/// Serves the lane until its queue is empty.
pub(super) async fn run<K: Connector>(lane: Arc<LaneHandle<K>>) {
    let _replace = ReplaceOnPanic(lane.clone());
    let mut connection = None;
    loop {
        let (next, check_at) = step(&lane, &mut connection);
        let change = change(&lane, check_at);
        match next {
            Next::Idle => return,
            Next::Grant => {}
            // Other tasks get to run between two pieces.
            Next::Review => tokio::task::yield_now().await,
            Next::Pause(until) | Next::Until(until) => tokio::select! {
                () = sleep_until(until) => {}
                () = change => {}
            },
            Next::Event => change.await,
            Next::Connect(wanted) => {
                let connector = lane.connector();
                tokio::select! {
                    ready = connector.ready(wanted) => connection = Some(ready),
                    () = change => {}
                }
            }
            Next::Token(back_at) => tokio::select! {
                () = wait_for_token(back_at) => {}
                () = change => {}
            },
        }
    }
}

/// Does everything that can be done now. Returns what to wait for, and when to check again in any
/// case.
fn step<K: Connector>(
    lane: &Arc<LaneHandle<K>>,
    connection: &mut Option<K::Connection>,
) -> (Next, Option<Instant>) {
    let connector = lane.connector();
    let is_usable = connection
        .as_ref()
        .is_some_and(|connection| connector.is_usable(connection));
    if !is_usable {
        *connection = connector.try_ready();
    }
    let mut locked = lane.lock();
    let (next, check_at) = locked.next(connection.is_some());
    let mut effects = locked.state.lane.take_effects();
    match next {
        Next::Idle => locked.state.has_worker = false,
        Next::Grant => effects.append(&mut locked.handle(Event::Connected)),
        Next::Review => effects.append(&mut locked.handle(Event::Review)),
        // A connection that idles through the pause would be stale at its end.
        Next::Pause(_) => drop(connection.take()),
        Next::Connect(_) | Next::Token(_) | Next::Until(_) | Next::Event => {}
    }
    drop(locked);
    if let Some(Effect::Grant { .. }) = effects.back()
        && let Some(Effect::Grant { waiter, grant }) = effects.pop_back()
    {
        let connection = connection
            .take()
            .expect("a call is granted only when a connection is ready");
        // If the caller has disconnected, dropping the permit returns the token and the connection.
        answer(waiter, Ok(lane.permit(connection, grant)));
    }
    lane.carry_out(effects);
    (next, check_at)
}

/// Waits for another event, at most until `check_at`.
async fn change<K: Connector>(lane: &LaneHandle<K>, check_at: Option<Instant>) {
    match check_at {
        None => lane.changed.notified().await,
        Some(at) => tokio::select! {
            () = sleep_until(at) => {}
            () = lane.changed.notified() => {}
        },
    }
}

/// Waits until `back_at` with a leaky bucket that holds one token and refills then.
#[expect(
    clippy::disallowed_methods,
    reason = "this is the one place where limiters are made"
)]
async fn wait_for_token(back_at: Instant) {
    let time = back_at
        .saturating_duration_since(Instant::now())
        .max(MIN_INTERVAL);
    RateLimiter::builder()
        .max(1)
        .initial(0)
        .refill(1)
        .interval(time)
        .build()
        .acquire_one()
        .await;
}

/// Starts another worker if this one panics: a panic fails one call, not the lane.
struct ReplaceOnPanic<K: Connector>(Arc<LaneHandle<K>>);

impl<K: Connector> Drop for ReplaceOnPanic<K> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            tracing::error!("a lane's worker panicked and was replaced");
            tokio::spawn(run(self.0.clone()));
        }
    }
}

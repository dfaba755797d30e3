//! The task that waits on behalf of a lane, alive only while calls wait in it. It waits for the end of a pause, for a ready
//! connection, then for a token, and grants all three to the call that is next at that moment: no call reserves a slot
//! before it is free, so a late pause or a disconnect leaves no stale reservation behind.

use std::sync::Arc;
use std::time::Duration;

use leaky_bucket::RateLimiter;
use tokio::time::{Instant, sleep_until};

use crate::limiter::Connector;
use crate::limiter::handle::{LaneHandle, answer};
use crate::limiter::lane::{Effect, Event, Next};

/// leaky-bucket takes no shorter interval, and tokio's timers wake no sooner.
const SHORTEST: Duration = Duration::from_millis(1);

/// Serves the lane until no call waits.
pub(super) async fn run<K: Connector>(lane: Arc<LaneHandle<K>>) {
    let _replace = ReplaceOnPanic(lane.clone());
    let mut connection = None;
    loop {
        let (next, look_at) = step(&lane, &mut connection);
        let change = change(&lane, look_at);
        match next {
            Next::Rest => return,
            Next::Grant => {}
            // Other tasks run between two pieces.
            Next::Review => tokio::task::yield_now().await,
            Next::Pause(until) | Next::Until(until) => tokio::select! {
                () = sleep_until(until) => {}
                () = change => {}
            },
            Next::Event => change.await,
            Next::Connect(wanted) => tokio::select! {
                ready = lane.shared.connector.ready(wanted) => connection = Some(ready),
                () = change => {}
            },
            Next::Token(back_at) => tokio::select! {
                () = drip(back_at) => {}
                () = change => {}
            },
        }
    }
}

/// Does what is to be done now, and tells what to wait for.
fn step<K: Connector>(
    lane: &Arc<LaneHandle<K>>,
    connection: &mut Option<K::Connection>,
) -> (Next, Option<Instant>) {
    if !connection.as_ref().is_some_and(K::is_usable) {
        *connection = lane.shared.connector.try_ready();
    }
    let mut locked = lane.lock();
    let (next, look_at) = locked.next(connection.is_some());
    let mut effects = locked.state.lane.take_effects();
    match next {
        Next::Rest => locked.state.has_worker = false,
        Next::Grant => effects.append(&mut locked.handle(Event::Connected)),
        Next::Review => effects.append(&mut locked.handle(Event::Review)),
        // A connection that is idle through a pause would be stale at its end.
        Next::Pause(_) => drop(connection.take()),
        Next::Connect(_) | Next::Token(_) | Next::Until(_) | Next::Event => {}
    }
    drop(locked);
    if let Some(Effect::Grant { .. }) = effects.back()
        && let Some(Effect::Grant { waiter, grant }) = effects.pop_back()
    {
        let connection = connection
            .take()
            .expect("a call is granted to a connection that is there");
        // A caller that has just disconnected drops its permit, which gives the token and the connection back.
        answer(waiter, Ok(lane.permit(connection, grant)));
    }
    lane.carry_out(effects);
    (next, look_at)
}

/// Another event, or the moment at which the lane looks again.
async fn change<K: Connector>(lane: &LaneHandle<K>, look_at: Option<Instant>) {
    match look_at {
        None => lane.changed.notified().await,
        Some(at) => tokio::select! {
            () = sleep_until(at) => {}
            () = lane.changed.notified() => {}
        },
    }
}

/// The lane's clock: a limiter of one that drips when the next token is back.
#[expect(
    clippy::disallowed_methods,
    reason = "this is the one place where limiters are made"
)]
async fn drip(back_at: Instant) {
    let time = back_at
        .saturating_duration_since(Instant::now())
        .max(SHORTEST);
    RateLimiter::builder()
        .max(1)
        .initial(0)
        .refill(1)
        .interval(time)
        .build()
        .acquire_one()
        .await;
}

/// Puts another worker in the place of one that panics: a panic costs one call, not the lane.
struct ReplaceOnPanic<K: Connector>(Arc<LaneHandle<K>>);

impl<K: Connector> Drop for ReplaceOnPanic<K> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            tracing::error!("a lane's worker panicked and was replaced");
            tokio::spawn(run(self.0.clone()));
        }
    }
}

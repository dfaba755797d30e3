//! Who moves a connection's bytes? A task of its own, which wakes when the socket does. But a task waits until all that
//! are ready before it have had their turn, and a request must leave in the moment in which its token was used, or it
//! comes closer to the next ones than the rate allows. So whoever hands a request over drives the connection on the spot.

use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::sync::{Arc, Weak};
use std::task::{Context, Poll, Waker};

use parking_lot::Mutex;
use tracing::debug;

/// A connection that its task drives, and whoever has this. It ends with the task.
pub(super) struct Drive(Weak<Mutex<State>>);

struct State {
    /// None once it has ended, and while it is polled: one that panics is not polled again.
    connection: Option<Pin<Box<dyn Future<Output = hyper::Result<()>> + Send>>>,
    /// Whoever polls: what the connection waits for wakes the task.
    task: Waker,
}

// === impl Drive ===

impl Drive {
    /// Gives the connection its task, on the present runtime.
    pub(super) fn spawn(connection: impl Future<Output = hyper::Result<()>> + Send + 'static) -> Self {
        let state = Arc::new(Mutex::new(State { connection: Some(Box::pin(connection)), task: Waker::noop().clone() }));
        let drive = Self(Arc::downgrade(&state));
        tokio::spawn(poll_fn(move |cx| {
            let mut state = state.lock();
            state.task.clone_from(cx.waker());
            state.poll()
        }));
        drive
    }

    /// Writes now what was handed over, as far as the socket takes it.
    pub(super) fn on(&self) {
        let Some(state) = self.0.upgrade() else { return };
        let mut state = state.lock();
        if state.poll().is_ready() {
            state.task.wake_by_ref();
        }
    }
}

// === impl State ===

impl State {
    fn poll(&mut self) -> Poll<()> {
        let Some(mut connection) = self.connection.take() else { return Poll::Ready(()) };
        let polled = connection.as_mut().poll(&mut Context::from_waker(&self.task));
        match &polled {
            Poll::Pending => self.connection = Some(connection),
            Poll::Ready(Ok(())) => {}
            Poll::Ready(Err(error)) => debug!(%error, "upstream connection ended"),
        }
        polled.map(drop)
    }
}

//! The phases of a shutdown, which only move forward:
//!
//! 1. Serving.
//! 2. Leaving: readiness fails, connections are still accepted, every response has
//!    `Connection: close`.
//! 3. Draining: no new connections. Calls that fit into the grace finish at the permitted rate; the
//!    others are refused immediately.
//! 4. Closing: accepted connections that have sent no request are closed.
//! 5. Over: calls in flight get the answer that their outcome is unknown.

use std::future::{Future, poll_fn};
use std::task::Poll;
use std::time::Duration;

use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::watch;
use tokio::sync::watch::error::RecvError;
use tokio::time::Instant;

/// A phase of the shutdown.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Phase {
    /// Normal service.
    #[default]
    Serving,
    /// Readiness fails, so that load balancers stop sending calls.
    Leaving,
    /// No new connection is accepted.
    Draining,
    /// Accepted connections that have sent no request are closed.
    Closing,
    /// The grace has ended.
    Over,
}

/// The current phase, to read and to wait for.
#[derive(Clone)]
pub(crate) struct Phases {
    now: watch::Receiver<Phase>,
    set: watch::Sender<Phase>,
}

/// A stream of phase changes.
pub(crate) struct Changes(watch::Receiver<Phase>);

/// SIGTERM and SIGINT.
pub(crate) struct Signals {
    terminate: Signal,
    interrupt: Signal,
}

/// How long after a signal another one is taken as its copy.
const COPIES_WITHIN: Duration = Duration::from_secs(1);

// === impl Phases ===

impl Phases {
    pub(crate) fn new() -> Self {
        let (set, now) = watch::channel(Phase::default());
        Self { now, set }
    }

    pub(crate) fn now(&self) -> Phase {
        *self.now.borrow()
    }

    /// Ready when `phase` is reached. Never wakes its task: for futures that are polled anyway when
    /// a phase begins.
    pub(crate) fn now_in(&self, phase: Phase) -> impl Future<Output = ()> {
        poll_fn(move |_| {
            if self.now() >= phase {
                Poll::Ready(())
            } else {
                Poll::Pending
            }
        })
    }

    /// Returns the stream of phase changes.
    pub(crate) fn changes(&self) -> Changes {
        Changes(self.now.clone())
    }

    /// Moves forward to `phase`; does nothing if it has passed.
    pub(crate) fn enter(&self, phase: Phase) {
        self.set.send_if_modified(|now| {
            let forward = phase > *now;
            *now = phase.max(*now);
            forward
        });
    }

    /// Waits until `phase` is reached or passed.
    pub(crate) async fn reached(&mut self, phase: Phase) {
        // It cannot fail: this value holds the sender.
        drop(self.now.wait_for(|now| *now >= phase).await);
    }
}

// === impl Changes ===

impl Changes {
    /// Waits for the next phase. Fails only after all [`Phases`] are dropped.
    pub(crate) fn next(&mut self) -> impl Future<Output = Result<(), RecvError>> {
        self.0.changed()
    }
}

// === impl Signals ===

impl Signals {
    pub(crate) fn new() -> std::io::Result<Self> {
        Ok(Self {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
        })
    }

    /// Waits for either signal.
    pub(crate) async fn next(&mut self) {
        tokio::select! {
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => {}
        }
    }

    /// Waits for either signal, as a request to end at once. A signal that follows the first within
    /// a second is a copy: `timeout` sends one to the process and one to its group.
    pub(crate) async fn again(&mut self) {
        let is_request = Instant::now() + COPIES_WITHIN;
        loop {
            self.next().await;
            if Instant::now() >= is_request {
                return;
            }
        }
    }
}

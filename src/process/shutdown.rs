//! How does Flowgate stop? In phases that only go forward: serving; leaving (readiness is down, still accepting, every
//! answer says `Connection: close`); draining (no new connection, what fits into the grace finishes at the legal rate,
//! the rest is told at once); closing (nobody is waited for who has been let in and says nothing); over (what is in flight
//! is answered as unknown).

use std::future::{Future, poll_fn};
use std::task::Poll;

use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::watch;
use tokio::sync::watch::error::RecvError;

/// Where the process stands.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Phase {
    /// Normal service.
    #[default]
    Serving,
    /// Load balancers are told to go elsewhere.
    Leaving,
    /// Nothing new is accepted.
    Draining,
    /// Whoever was accepted and has said nothing so far is not waited for any more.
    Closing,
    /// The grace is over.
    Over,
}

/// The phase, for everybody to see and to wait for.
#[derive(Clone)]
pub(crate) struct Phases {
    now: watch::Receiver<Phase>,
    set: watch::Sender<Phase>,
}

/// The phases as they begin.
pub(crate) struct Changes(watch::Receiver<Phase>);

/// SIGTERM and SIGINT.
pub(crate) struct Signals {
    terminate: Signal,
    interrupt: Signal,
}

// === impl Phases ===

impl Phases {
    pub(crate) fn new() -> Self {
        let (set, now) = watch::channel(Phase::default());
        Self { now, set }
    }

    pub(crate) fn now(&self) -> Phase {
        *self.now.borrow()
    }

    /// Whether `phase` is reached, for those who are polled when one begins: ready then, and never wakes by itself.
    pub(crate) fn now_in(&self, phase: Phase) -> impl Future<Output = ()> {
        poll_fn(move |_| {
            if self.now() >= phase {
                Poll::Ready(())
            } else {
                Poll::Pending
            }
        })
    }

    /// For those who look at every phase.
    pub(crate) fn changes(&self) -> Changes {
        Changes(self.now.clone())
    }

    /// Goes forward to `phase`; never back.
    pub(crate) fn enter(&self, phase: Phase) {
        self.set.send_if_modified(|now| {
            let forward = phase > *now;
            *now = phase.max(*now);
            forward
        });
    }

    /// Waits until `phase` is reached or passed.
    pub(crate) async fn reached(&mut self, phase: Phase) {
        // The sender lives as long as this value does.
        drop(self.now.wait_for(|now| *now >= phase).await);
    }
}

// === impl Changes ===

impl Changes {
    /// Waits for the next phase. It does not fail as long as there are [`Phases`].
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

    /// Waits for either.
    pub(crate) async fn next(&mut self) {
        tokio::select! {
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => {}
        }
    }
}

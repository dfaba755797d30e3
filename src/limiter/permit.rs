//! Permissions as values. A [`SendPermit`] is the right to send one attempt; only the limiter makes
//! it, and sending consumes it. A [`Receipt`] represents the attempt until its end is known. Either
//! may be dropped at any time: the lane stays consistent.

use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::Instant;

use crate::limiter::Connector;
use crate::limiter::handle::LaneHandle;
use crate::limiter::lane::{End, Grant};

/// The permission to send one attempt now: a ready connection and, on a lane, a token. Dropping it
/// returns both.
pub(crate) struct SendPermit<K: Connector> {
    /// None after use.
    connection: Option<K::Connection>,
    lane: Option<(Arc<LaneHandle<K>>, Grant)>,
}

/// An attempt in progress. Must be settled with its end; if it is dropped unsettled, the end is
/// unknown.
pub(crate) struct Receipt<K: Connector> {
    attempt: Option<Arc<Attempt<K>>>,
}

/// An attempt of a lane. Its token is held until the first byte was written.
struct Attempt<K: Connector> {
    lane: Arc<LaneHandle<K>>,
    grant: Grant,
    progress: Mutex<Progress>,
}

#[derive(Clone, Copy)]
enum Progress {
    /// Nothing was written yet.
    Held,
    Written(Instant),
    Settled,
}

// === impl SendPermit ===

impl<K: Connector> SendPermit<K> {
    /// A permit without a token, for an action without a limit and for observe mode.
    pub(super) fn unlimited(connection: K::Connection) -> Self {
        Self {
            connection: Some(connection),
            lane: None,
        }
    }

    /// A permit of a lane, with a token.
    pub(super) fn limited(
        connection: K::Connection,
        lane: Arc<LaneHandle<K>>,
        grant: Grant,
    ) -> Self {
        Self {
            connection: Some(connection),
            lane: Some((lane, grant)),
        }
    }

    /// The connection to send on.
    pub(crate) fn connection(&self) -> &K::Connection {
        self.connection
            .as_ref()
            .expect("a permit that was not used has its connection")
    }

    /// Begins to send. Returns none, and the token and the connection, if the permit is not valid
    /// any more: the lane has been paused since the grant, the store's slot or the call's hold is
    /// over, or the token source has changed.
    pub(crate) fn begin(mut self) -> Option<(K::Connection, Receipt<K>)> {
        if let Some((lane, grant)) = &self.lane
            && !lane.may_send(grant)
        {
            return None;
        }
        let connection = self.connection.take().expect("a permit is used once");
        let attempt = self.lane.take().map(|(lane, grant)| {
            Arc::new(Attempt {
                lane,
                grant,
                progress: Mutex::new(Progress::Held),
            })
        });
        Some((connection, Receipt { attempt }))
    }

    /// Like `begin`, for callers that write nothing: the attempt counts as written now.
    #[cfg(any(test, feature = "testing"))]
    pub(crate) fn spend(self) -> Option<(K::Connection, Receipt<K>)> {
        let (connection, receipt) = self.begin()?;
        if let Some(attempt) = &receipt.attempt {
            attempt.written(Instant::now());
        }
        Some((connection, receipt))
    }
}

impl<K: Connector> Drop for SendPermit<K> {
    fn drop(&mut self) {
        if let Some((lane, grant)) = self.lane.take() {
            lane.returned(grant);
        }
    }
}

// === impl Receipt ===

impl<K: Connector> Receipt<K> {
    /// Returns a function to call with the time at which the first byte of the request was written.
    pub(crate) fn on_write(&self) -> Option<Box<dyn FnOnce(Instant) + Send>> {
        let attempt = self.attempt.clone()?;
        Some(Box::new(move |at| attempt.written(at)))
    }

    /// CAMS throttled the attempt.
    pub(crate) fn throttled(mut self, hint: Option<Duration>) {
        self.end(End::Throttled {
            hint,
            random: fastrand::f64(),
        });
    }

    /// CAMS answered, and did not throttle.
    pub(crate) fn answered(mut self) {
        self.end(End::Accepted);
    }

    /// Nothing of the request reached CAMS. If nothing was written at all, the token is returned.
    pub(crate) fn unsent(mut self) {
        self.end(End::Unsent);
    }

    fn end(&mut self, end: End) {
        if let Some(attempt) = self.attempt.take() {
            attempt.end(end);
        }
    }
}

impl<K: Connector> Drop for Receipt<K> {
    fn drop(&mut self) {
        self.end(End::Unknown);
    }
}

// === impl Attempt ===

impl<K: Connector> Attempt<K> {
    /// The first byte was written at `at`, which starts the token's window.
    fn written(&self, at: Instant) {
        {
            let mut progress = self.progress.lock();
            if !matches!(*progress, Progress::Held) {
                return;
            }
            *progress = Progress::Written(at);
        }
        self.lane.written(self.grant, at);
    }

    fn end(&self, end: End) {
        let progress = std::mem::replace(&mut *self.progress.lock(), Progress::Settled);
        match progress {
            Progress::Written(written_at) => {
                self.lane.ended(self.grant, written_at, end);
            }
            Progress::Held if end == End::Unsent => self.lane.returned(self.grant),
            Progress::Held => {
                // An attempt that has, or may have, an answer was written, even if the write was
                // not reported.
                let written_at = Instant::now();
                self.lane.written(self.grant, written_at);
                self.lane.ended(self.grant, written_at, end);
            }
            Progress::Settled => {}
        }
    }
}

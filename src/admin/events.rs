//! How does the page stay current? It follows a stream of server-sent events, a snapshot a second. A snapshot is made once
//! for all who look, and never so often that it costs more than a tenth of a core. The end of a drain ends the streams.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::stream;
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, StreamBody};
use hyper::body::Frame;
use parking_lot::Mutex;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{Instant, Interval, MissedTickBehavior, interval};

use crate::admin::snapshot::snapshot;
use crate::call::services::CallServices;
use crate::process::shutdown::{Phase, Phases};

/// What all streams have in common.
pub(super) struct Events {
    places: Arc<Semaphore>,
    latest: Mutex<Option<Latest>>,
}

/// The latest snapshot, as an event.
struct Latest {
    event: Bytes,
    until: Instant,
}

/// One who looks.
struct Follower {
    parts: Arc<CallServices>,
    events: Arc<Events>,
    seconds: Interval,
    phases: Phases,
    _place: OwnedSemaphorePermit,
}

/// So many may look at once.
const FOLLOWERS: usize = 16;
/// Why nobody else may.
pub(super) const FULL: &str =
    "16 pages follow already, and more may not: close one, or read /lanes.\n";
/// Between two snapshots for one follower.
const SECOND: Duration = Duration::from_secs(1);
/// How long a snapshot is good enough for the next one who asks.
const FRESH: Duration = Duration::from_millis(900);
/// So many times what it took to make is the least that it lasts.
const REST: u32 = 9;

// === impl Events ===

impl Default for Events {
    fn default() -> Self {
        Self {
            places: Arc::new(Semaphore::new(FOLLOWERS)),
            latest: Mutex::default(),
        }
    }
}

impl Events {
    /// A stream of events; none if too many look already.
    pub(super) fn follow(
        self: &Arc<Self>,
        parts: &Arc<CallServices>,
    ) -> Option<UnsyncBoxBody<Bytes, Infallible>> {
        let place = self.places.clone().try_acquire_owned().ok()?;
        let mut seconds = interval(SECOND);
        seconds.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let (parts, phases) = (parts.clone(), parts.phases.clone());
        let follower = Follower {
            parts,
            events: self.clone(),
            seconds,
            phases,
            _place: place,
        };
        let frames = stream::unfold(Some(follower), |follower| async {
            let mut follower = follower?;
            let is_last = follower.wait().await;
            let (events, parts) = (follower.events.clone(), follower.parts.clone());
            // A snapshot goes through all lanes: not on a thread that serves calls.
            let event = tokio::task::spawn_blocking(move || events.event(&parts, is_last))
                .await
                .ok()?;
            Some((Ok(Frame::data(event)), (!is_last).then_some(follower)))
        });
        Some(StreamBody::new(frames).boxed_unsync())
    }

    fn event(&self, parts: &CallServices, is_last: bool) -> Bytes {
        let mut latest = self.latest.lock();
        let now = Instant::now();
        match &*latest {
            Some(known) if known.until > now && !is_last => known.event.clone(),
            _ => {
                let event = Bytes::from(format!("data: {}\n\n", snapshot(parts)));
                let until = now + FRESH.max(now.elapsed() * REST);
                latest.insert(Latest { event, until }).event.clone()
            }
        }
    }
}

// === impl Follower ===

impl Follower {
    /// Until the next snapshot is due. True when it is the last.
    async fn wait(&mut self) -> bool {
        tokio::select! {
            biased;
            () = self.phases.reached(Phase::Over) => true,
            _ = self.seconds.tick() => false,
        }
    }
}

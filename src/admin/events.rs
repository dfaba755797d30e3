//! Server-sent events for the status page: one snapshot per second. A snapshot is built once for
//! all followers, and takes at most a tenth of one core. The streams end with the drain.

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

/// State shared by all streams.
pub(super) struct Events {
    places: Arc<Semaphore>,
    latest: Mutex<Option<LatestEvent>>,
}

/// The latest snapshot, as an event.
struct LatestEvent {
    event: Bytes,
    until: Instant,
}

/// One stream.
struct Subscriber {
    services: Arc<CallServices>,
    events: Arc<Events>,
    seconds: Interval,
    phases: Phases,
    _place: OwnedSemaphorePermit,
}

/// Maximum number of streams.
const MAX_SUBSCRIBERS: usize = 16;
/// The answer when `MAX_SUBSCRIBERS` is reached.
pub(super) const FULL: &str =
    "16 pages are connected, which is the limit: close one, or read /lanes.\n";
/// Interval between two snapshots of one stream.
const SECOND: Duration = Duration::from_secs(1);
/// Minimum time for which a snapshot is reused.
const FRESH: Duration = Duration::from_millis(900);
/// A snapshot is reused for at least this many times its build time.
const REST: u32 = 9;

// === impl Events ===

impl Default for Events {
    fn default() -> Self {
        Self {
            places: Arc::new(Semaphore::new(MAX_SUBSCRIBERS)),
            latest: Mutex::default(),
        }
    }
}

impl Events {
    /// Opens a stream; `None` if there are too many.
    pub(super) fn subscribe(
        self: &Arc<Self>,
        services: &Arc<CallServices>,
    ) -> Option<UnsyncBoxBody<Bytes, Infallible>> {
        let place = self.places.clone().try_acquire_owned().ok()?;
        let mut seconds = interval(SECOND);
        seconds.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let subscriber = Subscriber {
            services: services.clone(),
            events: self.clone(),
            seconds,
            phases: services.phases.clone(),
            _place: place,
        };
        let frames = stream::unfold(Some(subscriber), |subscriber| async {
            let mut subscriber = subscriber?;
            let is_last = subscriber.wait().await;
            let events = subscriber.events.clone();
            let services = subscriber.services.clone();
            // A snapshot visits all lanes, so not on a serving thread.
            let event = tokio::task::spawn_blocking(move || events.event(&services, is_last))
                .await
                .ok()?;
            Some((Ok(Frame::data(event)), (!is_last).then_some(subscriber)))
        });
        Some(StreamBody::new(frames).boxed_unsync())
    }

    fn event(&self, services: &CallServices, is_last: bool) -> Bytes {
        let mut latest = self.latest.lock();
        let now = Instant::now();
        match &*latest {
            Some(known) if known.until > now && !is_last => known.event.clone(),
            _ => {
                let event = Bytes::from(format!("data: {}\n\n", snapshot(services)));
                let until = now + FRESH.max(now.elapsed() * REST);
                latest.insert(LatestEvent { event, until }).event.clone()
            }
        }
    }
}

// === impl Subscriber ===

impl Subscriber {
    /// Waits until the next snapshot is due. Returns whether it is the last one.
    async fn wait(&mut self) -> bool {
        tokio::select! {
            biased;
            () = self.phases.reached(Phase::Over) => true,
            _ = self.seconds.tick() => false,
        }
    }
}

//! Resolves the upstream's name. All dials share one running lookup. When the resolver fails or is
//! slow, the last known addresses are used for a while (as RFC 8767 recommends to resolvers).

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::{BoxFuture, FutureExt, Shared};
use parking_lot::Mutex;
use tokio::net::lookup_host;
use tokio::time::{Instant, timeout_at};
use tracing::{info, warn};

/// How long addresses may be used while the resolver fails. Connections end after some minutes, so
/// this must cover an outage of DNS. An address that serves another host by then fails TLS.
const STALE: Duration = Duration::from_secs(30 * 60);

/// The addresses of one name.
pub(super) struct Resolver {
    inner: Arc<Inner>,
    /// How long a lookup may take before the last known addresses are used instead.
    lookup_timeout: Duration,
}

/// Looks the name up, without a time-out.
pub(super) type Lookup =
    Box<dyn Fn() -> BoxFuture<'static, io::Result<Vec<SocketAddr>>> + Send + Sync>;

type Addresses = Arc<[SocketAddr]>;

struct Inner {
    lookup: Lookup,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    running: Option<RunningLookup>,
    /// Result and time of the latest successful lookup.
    known: Option<(Addresses, Instant)>,
    /// The latest lookup failed or is late, and `known` was used instead.
    stale: bool,
}

/// A running lookup.
#[derive(Clone)]
struct RunningLookup {
    since: Instant,
    /// The error as text, because all waiters get a copy.
    result: Shared<BoxFuture<'static, Result<Addresses, (io::ErrorKind, String)>>>,
}

/// Ends the lookup's entry in the state, even if its task panics.
struct LookupGuard(Arc<Inner>);

// === impl Resolver ===

impl Resolver {
    pub(super) fn new(lookup: Lookup, lookup_timeout: Duration) -> Self {
        Self {
            inner: Arc::new(Inner {
                lookup,
                state: Mutex::default(),
            }),
            lookup_timeout,
        }
    }

    /// Uses the system's resolver.
    pub(super) fn of(host: &str, port: u16, lookup_timeout: Duration) -> Self {
        let host = host.to_owned();
        let lookup = move || {
            let host = host.clone();
            async move { Ok(lookup_host((host, port)).await?.collect()) }.boxed()
        };
        Self::new(Box::new(lookup), lookup_timeout)
    }

    /// The addresses of the name. Takes as long as the resolver, unless known addresses can be used
    /// instead.
    pub(super) async fn addresses(&self) -> io::Result<Addresses> {
        let (running, known) = {
            let mut state = self.inner.state.lock();
            let running = state
                .running
                .get_or_insert_with(|| RunningLookup::start(&self.inner))
                .clone();
            (running, state.known.clone())
        };
        let known = known.filter(|(_, at)| at.elapsed() < STALE);
        let Some((known, at)) = known else {
            return running
                .result
                .await
                .map_err(|(kind, text)| io::Error::new(kind, text));
        };
        let error = match timeout_at(running.since + self.lookup_timeout, running.result).await {
            Ok(Ok(addresses)) => return Ok(addresses),
            Ok(Err((_, text))) => text,
            Err(_elapsed) => format!("no answer within {:?}", self.lookup_timeout),
        };
        if !std::mem::replace(&mut self.inner.state.lock().stale, true) {
            warn!(error, age = ?at.elapsed(), "cannot resolve the upstream name; using the last known addresses");
        }
        Ok(known)
    }
}

// === impl RunningLookup ===

impl RunningLookup {
    /// Runs in its own task: a lookup cannot be cancelled, and a late result is still useful.
    fn start(inner: &Arc<Inner>) -> Self {
        let guard = LookupGuard(inner.clone());
        let task = tokio::spawn(async move {
            let found = (guard.0.lookup)().await;
            let found = found
                .map(Addresses::from)
                .map_err(|error| (error.kind(), error.to_string()));
            if let Ok(addresses) = &found {
                let mut state = guard.0.state.lock();
                state.known = Some((addresses.clone(), Instant::now()));
                if std::mem::take(&mut state.stale) {
                    info!("upstream name resolved again");
                }
            }
            found
        });
        let result = task
            .map(|found| {
                found.unwrap_or_else(|error| Err((io::ErrorKind::Other, error.to_string())))
            })
            .boxed()
            .shared();
        Self {
            since: Instant::now(),
            result,
        }
    }
}

// === impl LookupGuard ===

impl Drop for LookupGuard {
    fn drop(&mut self) {
        self.0.state.lock().running = None;
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use tokio::time::sleep;

    use super::*;

    const LOOKUP_TIMEOUT: Duration = Duration::from_millis(1500);

    fn address(last: u8) -> SocketAddr {
        SocketAddr::from(([192, 0, 2, last], 443))
    }

    /// Each lookup uses the next row's duration and address; the last row repeats.
    fn resolver(rows: &'static [(u64, Option<u8>)]) -> (Arc<Resolver>, Arc<AtomicUsize>) {
        let lookups = Arc::new(AtomicUsize::new(0));
        let count = lookups.clone();
        let lookup = move || {
            let number = count.fetch_add(1, Ordering::Relaxed);
            let (takes, found) = rows[number.min(rows.len() - 1)];
            async move {
                sleep(Duration::from_millis(takes)).await;
                found
                    .map(|last| vec![address(last)])
                    .ok_or_else(|| io::Error::other("no such name"))
            }
            .boxed()
        };
        (
            Arc::new(Resolver::new(Box::new(lookup), LOOKUP_TIMEOUT)),
            lookups,
        )
    }

    #[tokio::test(start_paused = true)]
    async fn simultaneous_dials_share_a_lookup_and_later_ones_start_another() {
        let (resolver, lookups) = resolver(&[(100, Some(1)), (100, Some(2))]);
        let all = (0..50).map(|_| resolver.addresses());
        for found in futures_util::future::join_all(all).await {
            assert_eq!(*found.unwrap(), [address(1)]);
        }
        assert_eq!(lookups.load(Ordering::Relaxed), 1);
        assert_eq!(*resolver.addresses().await.unwrap(), [address(2)]);
        assert_eq!(lookups.load(Ordering::Relaxed), 2);
    }

    #[tokio::test(start_paused = true)]
    async fn a_failure_without_known_addresses_is_returned_to_all_waiters_and_not_cached() {
        let (resolver, lookups) = resolver(&[(100, None), (100, Some(1))]);
        for found in futures_util::future::join_all((0..5).map(|_| resolver.addresses())).await {
            assert_eq!(found.unwrap_err().to_string(), "no such name");
        }
        assert_eq!(*resolver.addresses().await.unwrap(), [address(1)]);
        assert_eq!(lookups.load(Ordering::Relaxed), 2);
    }

    #[tokio::test(start_paused = true)]
    async fn known_addresses_are_used_for_half_an_hour_while_the_resolver_fails() {
        let (resolver, _) = resolver(&[(0, Some(1)), (0, None)]);
        assert_eq!(*resolver.addresses().await.unwrap(), [address(1)]);
        sleep(STALE - Duration::from_secs(1)).await;
        assert_eq!(*resolver.addresses().await.unwrap(), [address(1)]);
        sleep(Duration::from_secs(2)).await;
        assert_eq!(
            resolver.addresses().await.unwrap_err().to_string(),
            "no such name"
        );
    }

    #[tokio::test(start_paused = true)]
    async fn a_hanging_lookup_delays_one_dial_and_its_late_result_is_used() {
        let (resolver, lookups) = resolver(&[(0, Some(1)), (60_000, Some(2)), (0, Some(3))]);
        assert_eq!(*resolver.addresses().await.unwrap(), [address(1)]);
        let start = Instant::now();
        assert_eq!(*resolver.addresses().await.unwrap(), [address(1)]);
        assert_eq!(start.elapsed(), LOOKUP_TIMEOUT);
        // The same lookup, which is already late.
        assert_eq!(*resolver.addresses().await.unwrap(), [address(1)]);
        assert_eq!(
            (start.elapsed(), lookups.load(Ordering::Relaxed)),
            (LOOKUP_TIMEOUT, 2)
        );
        sleep(Duration::from_secs(60)).await;
        assert_eq!(
            *resolver.inner.state.lock().known.as_ref().unwrap().0,
            [address(2)]
        );
        assert_eq!(*resolver.addresses().await.unwrap(), [address(3)]);
    }

    #[tokio::test(start_paused = true)]
    async fn dropped_waiters_do_not_cancel_a_lookup() {
        let (resolver, lookups) = resolver(&[(5000, Some(1))]);
        let late = tokio::time::timeout(Duration::from_secs(1), resolver.addresses());
        assert!(late.await.is_err());
        assert_eq!(*resolver.addresses().await.unwrap(), [address(1)]);
        assert_eq!(lookups.load(Ordering::Relaxed), 1);
    }
}

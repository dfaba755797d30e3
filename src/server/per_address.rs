//! Counts of open connections, in total and for each source address. A connection's entry ends with
//! its socket. The connections of a balancer are shared by callers, so its calls are counted for
//! each source instead, while they are answered.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::Arc;

use hyper::header::HeaderMap;
use parking_lot::Mutex;
use prometheus::IntGauge;

use super::bounds::CurrentBounds;

/// Number of connections, or of a balancer's calls, for each address.
#[derive(Clone, Default)]
pub(crate) struct Sources(Arc<Mutex<HashMap<IpAddr, usize>>>);

/// One entry in the count of a source.
pub(crate) struct SourceSlot {
    source: IpAddr,
    sources: Sources,
}

/// Where the calls of a connection come from.
pub(crate) enum ConnectionSource {
    /// A Unix socket.
    Local,
    /// One address, whose entry this is.
    Caller(SourceSlot),
    /// A balancer, which states an address for each call.
    Balancer(Box<Balancer>),
}

/// The peer of a connection that many callers share.
pub(crate) struct Balancer {
    pub(super) address: IpAddr,
    pub(super) bounds: CurrentBounds,
    pub(super) sources: Sources,
    /// The entry of the call that is being answered; a connection has one at a time. Kept here
    /// because the future of a call is at the limit of its size (`call::tests`).
    pub(super) call: Mutex<Option<SourceSlot>>,
}

/// Where one call comes from.
pub(crate) struct CallSource {
    /// `None` for a Unix socket.
    pub(crate) address: Option<IpAddr>,
    /// Whether the source may have one more call.
    pub(crate) admission: Result<(), TooManyCalls>,
}

/// The source of a call has as many calls as it may have.
#[derive(Clone, Copy, Debug, thiserror::Error)]
#[error("too many calls at once from this address: listen.max_connections_per_source is reached")]
pub(crate) struct TooManyCalls;

/// Counts a connection until it is dropped with its socket.
pub(crate) struct OpenConnection {
    source: ConnectionSource,
    /// The metric of open connections; `None` for a connection over the limits.
    open: Option<IntGauge>,
}

// === impl Sources ===

impl Sources {
    /// Adds an entry of this source; fails if there are `max` already.
    pub(super) fn enter(&self, source: IpAddr, max: usize) -> Result<SourceSlot, ()> {
        let mut sources = self.0.lock();
        let count = sources.entry(source).or_default();
        if *count >= max {
            return Err(());
        }
        *count += 1;
        Ok(SourceSlot {
            source,
            sources: self.clone(),
        })
    }
}

// === impl SourceSlot ===

impl Drop for SourceSlot {
    fn drop(&mut self) {
        let mut sources = self.sources.0.lock();
        if let Some(count) = sources.get_mut(&self.source) {
            *count -= 1;
            if *count == 0 {
                sources.remove(&self.source);
            }
        }
    }
}

// === impl OpenConnection ===

impl OpenConnection {
    pub(crate) fn new(source: ConnectionSource, open: &IntGauge) -> Self {
        open.inc();
        Self {
            source,
            open: Some(open.clone()),
        }
    }

    /// A connection over the limits, which is in no count.
    pub(super) fn uncounted() -> Self {
        Self {
            source: ConnectionSource::Local,
            open: None,
        }
    }

    /// The peer's address; `None` for a Unix socket.
    pub(super) fn peer(&self) -> Option<IpAddr> {
        match &self.source {
            ConnectionSource::Local => None,
            ConnectionSource::Caller(slot) => Some(slot.source),
            ConnectionSource::Balancer(balancer) => Some(balancer.address),
        }
    }

    /// Where a call with these headers comes from. It counts for its source until the end of the
    /// call, or of the connection.
    pub(super) fn begin_call(&self, headers: &HeaderMap) -> CallSource {
        match &self.source {
            ConnectionSource::Balancer(balancer) => balancer.begin_call(headers),
            ConnectionSource::Local | ConnectionSource::Caller(_) => CallSource {
                address: self.peer(),
                admission: Ok(()),
            },
        }
    }

    /// The call is answered.
    pub(super) fn end_call(&self) {
        if let ConnectionSource::Balancer(balancer) = &self.source {
            balancer.call.lock().take();
        }
    }
}

// === impl Balancer ===

impl Balancer {
    /// Adds the call to those of its source. A reload may have changed the trusted networks
    /// since the connection was opened.
    #[cold]
    fn begin_call(&self, headers: &HeaderMap) -> CallSource {
        let bounds = self.bounds.load();
        let address = if bounds.balancers.is_forwarder(self.address) {
            bounds.balancers.caller(headers, self.address)
        } else {
            self.address
        };
        let entered = self.sources.enter(address, bounds.max_per_source);
        let admission = entered.as_ref().map(drop).map_err(|()| TooManyCalls);
        *self.call.lock() = entered.ok();
        CallSource {
            address: Some(address),
            admission,
        }
    }
}

impl Drop for OpenConnection {
    fn drop(&mut self) {
        if let Some(open) = &self.open {
            open.dec();
        }
    }
}

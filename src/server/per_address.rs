//! Counts of open connections, in total and for each source address. A connection's entry ends with
//! its socket.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::Arc;

use parking_lot::Mutex;
use prometheus::IntGauge;

/// Number of connections for each address.
#[derive(Clone, Default)]
pub(crate) struct Sources(Arc<Mutex<HashMap<IpAddr, usize>>>);

/// One connection's entry in the count of its source.
pub(crate) struct SourceSlot {
    source: IpAddr,
    sources: Sources,
}

/// Counts a connection until it is dropped with its socket.
pub(crate) struct OpenConnection {
    slot: Option<SourceSlot>,
    /// The metric of open connections.
    open: IntGauge,
}

// === impl Sources ===

impl Sources {
    /// Adds a connection of this source; fails if there are `max` already.
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
    /// `slot` is `None` for a Unix socket.
    pub(crate) fn new(slot: Option<SourceSlot>, open: &IntGauge) -> Self {
        open.inc();
        Self {
            slot,
            open: open.clone(),
        }
    }

    /// The caller's address; `None` for a Unix socket.
    pub(super) fn from(&self) -> Option<IpAddr> {
        self.slot.as_ref().map(|slot| slot.source)
    }
}

impl Drop for OpenConnection {
    fn drop(&mut self) {
        self.open.dec();
    }
}

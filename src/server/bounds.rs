//! Limits of connections, from the configuration. They apply to connections that are accepted from
//! now on.

use std::sync::Arc;

use arc_swap::ArcSwap;
use tokio::sync::Semaphore;

use super::balancers::Balancers;
use super::timeouts::{IoTimeouts, large_heads};
use crate::config::Listen;

/// File descriptors that are reserved: callers' connections do not use them.
const KEPT_DESCRIPTORS: usize = 128;
/// Limits of one connection.
pub(crate) struct Bounds {
    pub(super) max_connections: usize,
    pub(super) max_per_source: usize,
    pub(super) balancers: Balancers,
    pub(super) timeouts: Arc<IoTimeouts>,
    pub(super) max_header: usize,
}

/// The current limits, shared by all listeners.
pub(crate) type CurrentBounds = Arc<ArcSwap<Bounds>>;

impl From<&Listen> for Bounds {
    fn from(listen: &Listen) -> Self {
        Self {
            max_connections: listen.max_connections,
            max_per_source: listen.max_connections_per_source,
            balancers: Balancers::from(listen),
            timeouts: Arc::new(IoTimeouts {
                idle: listen.idle_timeout,
                head: listen.header_timeout,
                write: listen.body_timeout,
                large_heads: Arc::new(Semaphore::new(large_heads(listen.max_header))),
            }),
            max_header: listen.max_header,
        }
    }
}

/// Lowers `max_connections` to what the file descriptors allow. Each caller's connection may need a
/// second one to CAMS, and some descriptors are reserved for the admin port and for files.
pub(crate) fn fit_to_descriptors(listen: &mut Listen) {
    let descriptors = crate::process::hardening::raise_open_files().unwrap_or(1024);
    let descriptors = usize::try_from(descriptors).unwrap_or(usize::MAX);
    let affordable = (descriptors - KEPT_DESCRIPTORS.min(descriptors / 4)) / 2;
    if affordable < listen.max_connections {
        let set = listen.max_connections;
        tracing::warn!(
            set,
            affordable,
            descriptors,
            "listen.max_connections lowered: raise the open files limit"
        );
        listen.max_connections = affordable.max(1);
    }
}

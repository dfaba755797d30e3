//! The source of ready connections. A grant needs a ready connection besides a token; the lanes get
//! it through this trait only, so that tests need no endpoint.

use std::future::Future;

use crate::upstream::{Connection, Reach, Upstream};

/// Provides ready connections. The limiter first gets a connection and then takes a token.
pub(crate) trait Connector: Send + Sync + 'static {
    /// A connection that is ready to take a request. Dropping it gives it back.
    type Connection: Send + 'static;

    /// Returns a connection if one is ready now.
    fn try_ready(&self) -> Option<Self::Connection>;

    /// Waits for a connection without a timeout. `wanted` is the number of calls that could use one
    /// now. Cancel safe.
    fn ready(&self, wanted: usize) -> impl Future<Output = Self::Connection> + Send;

    /// Whether a connection that was ready still is, and is one of this connector's.
    fn is_usable(&self, connection: &Self::Connection) -> bool;

    /// Why no connection can be opened at present; none if connections can be opened.
    fn down(&self) -> Option<String>;
}

// === impl Upstream ===

impl Connector for Upstream {
    type Connection = Connection;

    fn try_ready(&self) -> Option<Connection> {
        Upstream::try_ready(self)
    }

    async fn ready(&self, wanted: usize) -> Connection {
        Upstream::ready(self, wanted).await
    }

    fn is_usable(&self, connection: &Connection) -> bool {
        self.owns(connection) && connection.is_usable()
    }

    fn down(&self) -> Option<String> {
        match self.reach() {
            Reach::Up => None,
            Reach::Down { reason, .. } => Some(reason.to_string()),
        }
    }
}

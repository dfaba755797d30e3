//! What does a turn need besides a token? A connection that is ready; where it comes from is not the queue's business.

use std::future::Future;

use crate::upstream::{Connection, Reach, Upstream};

/// Where a ready connection comes from. A turn is a token and a connection that is ready, in this order of getting
/// them: first the connection, then the token.
pub(crate) trait Connector: Send + Sync + 'static {
    /// A connection that is ready to take a request; given back by dropping it.
    type Connection: Send + 'static;

    /// One that is ready at this moment.
    fn try_ready(&self) -> Option<Self::Connection>;

    /// Waits for one, for ever if need be; `wanted` calls could go now. Dropping the future loses nothing.
    fn ready(&self, wanted: usize) -> impl Future<Output = Self::Connection> + Send;

    /// Whether a connection that was ready still is.
    fn is_usable(connection: &Self::Connection) -> bool;

    /// Why no connection can be had at present, if so.
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

    fn is_usable(connection: &Connection) -> bool {
        connection.is_usable()
    }

    fn down(&self) -> Option<String> {
        match self.reach() {
            Reach::Up => None,
            Reach::Down { reason, .. } => Some(reason.to_string()),
        }
    }
}

//! Where is the quota kept? In this process, or in a store that all replicas share: one server, a cluster, or the master
//! that sentinels name.

use std::path::PathBuf;
use std::time::Duration;

use crate::primitives::secret::Secret;

/// `[quota]`.
#[derive(Clone, Debug)]
pub struct Quota {
    /// None: each process has the quota for itself.
    pub store: Option<Store>,
    /// What happens while the store cannot be reached.
    pub on_store_failure: OnStoreFailure,
}

/// What happens while the store cannot be reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OnStoreFailure {
    /// The tokens are dealt out among the replicas that were seen last.
    Share,
    /// Calls are refused.
    Refuse,
}

/// The store that replicas share.
#[derive(Clone, Debug)]
pub struct Store {
    /// What the servers are to each other.
    pub topology: Topology,
    /// At least one; of `Single` exactly one.
    pub servers: Vec<Server>,
    /// Whether the connections are TLS.
    pub tls: bool,
    /// The number of the database; 0 in a cluster.
    pub database: u16,
    /// Only beside a password.
    pub username: Option<String>,
    /// Of the servers that hold keys.
    pub password: Option<Secret>,
    /// Of the sentinels.
    pub sentinel_password: Option<Secret>,
    /// The roots that are trusted instead of the public ones, PEM.
    pub ca_file: Option<PathBuf>,
    /// What every key begins with.
    pub prefix: String,
    /// What one operation may take.
    pub timeout: Duration,
    /// How long a replica that is cut off goes on with its part: more than two windows.
    pub lease: Duration,
    /// How late a dated slot may still be used.
    pub slack: Duration,
}

/// What the servers of a store are to each other.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Topology {
    /// One server.
    Single,
    /// Any nodes of one cluster.
    Cluster,
    /// Sentinels that watch the service of this name.
    Sentinel(String),
}

/// One server of a store.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Server {
    /// A name or an address, without brackets.
    pub host: String,
    /// Its port.
    pub port: u16,
}

#[cfg(test)]
impl Store {
    /// As the defaults are, with these servers on loopback.
    pub(crate) fn on(topology: Topology, ports: &[u16]) -> Self {
        let server = |port: &u16| Server {
            host: "127.0.0.1".to_owned(),
            port: *port,
        };
        Self {
            topology,
            servers: ports.iter().map(server).collect(),
            tls: false,
            database: 0,
            username: None,
            password: None,
            sentinel_password: None,
            ca_file: None,
            prefix: "flowgate:".to_owned(),
            timeout: Duration::from_millis(250),
            lease: Duration::from_secs(600),
            slack: Duration::from_millis(15),
        }
    }
}

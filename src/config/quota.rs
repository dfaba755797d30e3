//! Where quota state is stored: in this process, or in a Redis store that all replicas share (one
//! server, a cluster, or a master found through sentinels).

use std::path::PathBuf;
use std::time::Duration;

use serde::{Serialize, Serializer};

use crate::primitives::secret::Secret;

/// `[quota]`.
#[derive(Clone, Debug, Serialize)]
pub struct Quota {
    /// The shared store. `None`: each process uses the whole quota.
    #[serde(serialize_with = "serialize_store")]
    pub store: Option<Store>,
    /// What happens while the store is unreachable.
    pub on_store_failure: OnStoreFailure,
}

/// What happens while the store is unreachable.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum OnStoreFailure {
    /// Each replica uses its part of the tokens, divided among the replicas last seen.
    Share,
    /// Calls are refused.
    Refuse,
}

/// The store that replicas share.
#[derive(Clone, Debug, Serialize)]
pub struct Store {
    /// How the servers are related.
    pub topology: Topology,
    /// At least one server; exactly one with [`Topology::Single`].
    #[serde(skip)]
    pub servers: Vec<Server>,
    /// Whether the connections use TLS.
    #[serde(skip)]
    pub tls: bool,
    /// The database number; 0 in a cluster.
    #[serde(skip)]
    pub database: u16,
    /// Requires a password.
    pub username: Option<String>,
    /// Password of the servers that hold keys.
    #[serde(skip)]
    pub password: Option<Secret>,
    /// Password of the sentinels.
    #[serde(skip)]
    pub sentinel_password: Option<Secret>,
    /// PEM file with the roots that are trusted instead of the public ones.
    #[serde(serialize_with = "super::serializers::optional_path")]
    pub ca_file: Option<PathBuf>,
    /// Prefix of every key.
    pub prefix: String,
    /// Timeout of one operation.
    #[serde(serialize_with = "super::serializers::time")]
    pub timeout: Duration,
    /// How long a disconnected replica keeps using its part; more than two windows.
    #[serde(serialize_with = "super::serializers::time")]
    pub lease: Duration,
    /// How late a dated slot may still be used.
    #[serde(serialize_with = "super::serializers::time")]
    pub slack: Duration,
}

/// How the servers of a store are related.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Topology {
    /// One server.
    Single,
    /// Some nodes of one cluster.
    Cluster,
    /// Sentinels that monitor the service of this name.
    Sentinel(String),
}

/// One server of a store.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Server {
    /// A name or an address, without brackets.
    pub host: String,
    /// The port.
    pub port: u16,
}

/// Without a store the quota is kept in memory.
fn serialize_store<S: Serializer>(store: &Option<Store>, serializer: S) -> Result<S::Ok, S::Error> {
    match store {
        Some(store) => store.serialize(serializer),
        None => serializer.serialize_str("memory"),
    }
}

#[cfg(test)]
impl Store {
    /// The default settings, with servers on these loopback ports.
    pub(crate) fn on(topology: Topology, ports: &[u16]) -> Self {
        let servers = ports
            .iter()
            .map(|port| Server {
                host: "127.0.0.1".to_owned(),
                port: *port,
            })
            .collect();
        Self {
            topology,
            servers,
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

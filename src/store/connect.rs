//! Connects to one server, to a cluster through any of its nodes, or to the master that sentinels
//! report, which are queried again for each connection. All three give one multiplexed connection.

use std::collections::HashSet;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::BoxFuture;
use redis::aio::{ConnectionLike, MultiplexedConnection};
use redis::cluster::ClusterClient;
use redis::cluster_async::ClusterConnection;
use redis::cluster_routing::{MultipleNodeRoutingInfo, RoutingInfo, SingleNodeRoutingInfo};
use redis::io::tcp::TcpSettings;
use redis::sentinel::{SentinelClientBuilder, SentinelServerType};
use redis::{
    AsyncConnectionConfig, Client, Cmd, ConnectionAddr, ConnectionInfo, ErrorKind, InfoDict,
    IntoConnectionInfo, Pipeline, RedisConnectionInfo, RedisError, RedisFuture, RedisResult,
    ServerErrorKind, TlsCertificates, TlsMode, Value, cmd,
};
use tokio_rustls::rustls::pki_types::CertificateDer;
use tokio_rustls::rustls::pki_types::pem::PemObject;

use crate::config::{self, Topology};
use crate::primitives::secret::Secret;

/// Opens a connection; called for each new one.
pub(super) type Dial = Arc<dyn Fn() -> BoxFuture<'static, RedisResult<Connection>> + Send + Sync>;

/// A multiplexed connection: responses arrive in the order of the requests.
#[derive(Clone)]
pub(crate) enum Connection {
    /// One server, possibly the master that sentinels reported.
    One(MultiplexedConnection),
    /// The nodes of a cluster.
    Cluster(ClusterConnection),
}

/// A range of hash slots and its master.
struct SlotRange {
    first: u16,
    last: u16,
    /// The master's node id.
    master: String,
}

/// Why the store's settings are invalid.
#[derive(Debug, thiserror::Error)]
pub(crate) enum OpenError {
    /// The file of root certificates.
    #[error("quota.store_ca_file: {}: {reason}", path.display())]
    CaFile { path: PathBuf, reason: String },
    /// The redis crate refuses the settings.
    #[error("quota.store: {0}")]
    Client(#[from] RedisError),
}

/// Timeout of connecting in multiples of an operation's timeout: TCP, TLS and authentication take
/// one or two round trips each.
const ROUND_TRIPS: u32 = 4;

/// Time to find the master: the redis crate waits one second for a sentinel that does not answer.
const FINDING: Duration = Duration::from_secs(2);

/// Number of hash tags that are tried to find one for each master: enough for some hundred masters.
const MOST_TAGS: u32 = 4096;

/// Returns the timeout of connecting for an operation's `timeout`.
pub(super) fn limit(timeout: Duration) -> Duration {
    FINDING + ROUND_TRIPS * timeout
}

/// Returns the function that connects to this store. Does not connect yet.
pub(super) fn dial(config: &config::Store) -> Result<Dial, OpenError> {
    let certificates = config.ca_file.as_deref().map(certificates).transpose()?;
    match &config.topology {
        Topology::Single => one(config, certificates),
        Topology::Cluster => cluster(config, certificates),
        Topology::Sentinel(name) => sentinel(config, name.clone(), certificates),
    }
}

fn one(config: &config::Store, certificates: Option<TlsCertificates>) -> Result<Dial, OpenError> {
    let address = addresses(config)
        .next()
        .expect("a store has at least one server");
    let info = connection_info(config, address)?;
    let client = match certificates {
        Some(certificates) => Client::build_with_tls(info, certificates)?,
        None => Client::open(info)?,
    };
    let connection_config = connection_config(config);
    Ok(Arc::new(move || {
        let client = client.clone();
        let connection_config = connection_config.clone();
        Box::pin(async move {
            client
                .get_multiplexed_async_connection_with_config(&connection_config)
                .await
                .map(Connection::One)
        })
    }))
}

fn cluster(
    config: &config::Store,
    certificates: Option<TlsCertificates>,
) -> Result<Dial, OpenError> {
    let nodes: RedisResult<Vec<_>> = addresses(config)
        .map(|address| connection_info(config, address))
        .collect();
    let mut builder = ClusterClient::builder(nodes?)
        .connection_timeout(ROUND_TRIPS * config.timeout)
        .response_timeout(config.timeout)
        .tcp_settings(tcp());
    if let Some(certificates) = certificates {
        builder = builder.certs(certificates);
    }
    let client = builder.build()?;
    Ok(Arc::new(move || {
        let client = client.clone();
        Box::pin(async move { client.get_async_connection().await.map(Connection::Cluster) })
    }))
}

fn sentinel(
    config: &config::Store,
    name: String,
    certificates: Option<TlsCertificates>,
) -> Result<Dial, OpenError> {
    let connection_config = connection_config(config);
    let config = config.clone();
    let client = move || {
        let mut builder =
            SentinelClientBuilder::new(addresses(&config), &name, SentinelServerType::Master)?
                .set_client_to_redis_db(config.database.into())
                .set_client_to_redis_tcp_settings(tcp())
                .set_client_to_sentinel_tcp_settings(tcp());
        if let Some(username) = &config.username {
            builder = builder.set_client_to_redis_username(username);
        }
        if let Some(password) = &config.password {
            builder = builder.set_client_to_redis_password(password.expose());
        }
        if let Some(password) = &config.sentinel_password {
            builder = builder.set_client_to_sentinel_password(password.expose());
        }
        if config.tls {
            builder = builder.set_client_to_redis_tls_mode(TlsMode::Secure);
            builder = builder.set_client_to_sentinel_tls_mode(TlsMode::Secure);
        }
        if let Some(certificates) = &certificates {
            builder = builder.set_client_to_redis_certificates(certificates.clone());
            builder = builder.set_client_to_sentinel_certificates(certificates.clone());
        }
        builder.build()
    };
    client()?;
    Ok(Arc::new(move || {
        // A new client each time, because an old one first tries its old connections to sentinels.
        let client = client();
        let connection_config = connection_config.clone();
        Box::pin(async move {
            client?
                .get_async_connection_with_config(&connection_config)
                .await
                .map(Connection::One)
        })
    }))
}

fn addresses(config: &config::Store) -> impl Iterator<Item = ConnectionAddr> {
    config.servers.iter().map(|config::Server { host, port }| {
        let host = host.clone();
        let port = *port;
        if config.tls {
            ConnectionAddr::TcpTls {
                host,
                port,
                insecure: false,
                tls_params: None,
            }
        } else {
            ConnectionAddr::Tcp(host, port)
        }
    })
}

fn connection_info(config: &config::Store, address: ConnectionAddr) -> RedisResult<ConnectionInfo> {
    let mut redis = RedisConnectionInfo::default()
        .set_db(config.database.into())
        .set_lib_name(env!("CARGO_PKG_NAME"), env!("CARGO_PKG_VERSION"));
    if let Some(username) = &config.username {
        redis = redis.set_username(username);
    }
    if let Some(password) = config.password.as_ref().map(Secret::expose) {
        redis = redis.set_password(password);
    }
    Ok(address
        .into_connection_info()?
        .set_tcp_settings(tcp())
        .set_redis_settings(redis))
}

/// Disables Nagle's algorithm, which the redis crate leaves enabled.
fn tcp() -> TcpSettings {
    TcpSettings::default().set_nodelay(true)
}

/// Without a response timeout, because each operation has its own.
fn connection_config(config: &config::Store) -> AsyncConnectionConfig {
    AsyncConnectionConfig::new()
        .set_connection_timeout(Some(ROUND_TRIPS * config.timeout))
        .set_response_timeout(None)
}

fn certificates(path: &Path) -> Result<TlsCertificates, OpenError> {
    let refuse = |reason| OpenError::CaFile {
        path: path.to_owned(),
        reason,
    };
    let bytes = std::fs::read(path).map_err(|error: io::Error| refuse(error.to_string()))?;
    let parsed: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&bytes).collect();
    match parsed {
        Ok(roots) if roots.is_empty() => Err(refuse("holds no certificate in PEM".to_owned())),
        Ok(_) => Ok(TlsCertificates {
            client_tls: None,
            root_cert: Some(bytes),
        }),
        Err(error) => Err(refuse(error.to_string())),
    }
}

// === impl Connection ===

impl Connection {
    /// Returns the number of masters. In a cluster, a random node reports it and that all slots are
    /// served.
    pub(super) async fn masters(&mut self) -> RedisResult<usize> {
        let Self::Cluster(cluster) = self else {
            return Ok(1);
        };
        let any = RoutingInfo::SingleNode(SingleNodeRoutingInfo::Random);
        let mut info = cmd("CLUSTER");
        info.arg("INFO");
        let info: InfoDict = redis::from_redis_value(cluster.route_command(info, any).await?)?;
        match (
            info.get::<String>("cluster_state").as_deref(),
            info.get("cluster_size"),
        ) {
            (Some("ok"), Some(size)) => Ok(size),
            _ => Err((
                ServerErrorKind::ClusterDown.into(),
                "cluster_state is not ok",
            )
                .into()),
        }
    }

    /// Returns a hash tag for each master. Keys with the tag are on that master.
    pub(crate) async fn tags(&mut self) -> RedisResult<Vec<String>> {
        let Self::Cluster(cluster) = self else {
            return Ok(vec!["0".to_owned()]);
        };
        let any = RoutingInfo::SingleNode(SingleNodeRoutingInfo::Random);
        let mut tags = Vec::new();
        let mut slots = cmd("CLUSTER");
        slots.arg("SLOTS");
        let ranges: Vec<Vec<Value>> =
            redis::from_redis_value(cluster.route_command(slots, any.clone()).await?)?;
        let ranges: Vec<SlotRange> = ranges.into_iter().filter_map(SlotRange::read).collect();
        let mut masters: HashSet<&str> = ranges.iter().map(|range| range.master.as_str()).collect();
        for tag in (0..MOST_TAGS).map(|tag: u32| tag.to_string()) {
            if masters.is_empty() {
                break;
            }
            let mut slot = cmd("CLUSTER");
            slot.arg("KEYSLOT").arg(&tag);
            let slot: u16 =
                redis::from_redis_value(cluster.route_command(slot, any.clone()).await?)?;
            let range = ranges
                .iter()
                .find(|range| (range.first..=range.last).contains(&slot));
            if range.is_some_and(|range| masters.remove(range.master.as_str())) {
                tags.push(tag);
            }
        }
        Ok(tags)
    }

    /// Pings every master. Counts the answers, because the redis crate omits masters that it has
    /// lost.
    pub(super) async fn ping(&mut self, masters: usize) -> RedisResult<()> {
        let answered = match self {
            Self::One(connection) => cmd("PING")
                .query_async(connection)
                .await
                .map(|_pong: Value| 1)?,
            Self::Cluster(cluster) => {
                let all = RoutingInfo::MultiNode((MultipleNodeRoutingInfo::AllMasters, None));
                match cluster.route_command(cmd("PING"), all).await? {
                    Value::Map(answers) => answers.len(),
                    _ => 0,
                }
            }
        };
        if answered < masters {
            return Err((
                ErrorKind::ClusterConnectionNotFound,
                "not every master answers",
            )
                .into());
        }
        Ok(())
    }
}

impl SlotRange {
    /// Reads an entry of CLUSTER SLOTS: first slot, last slot, master, replicas. A node is its
    /// address, port and id, possibly followed by more.
    fn read(entry: Vec<Value>) -> Option<Self> {
        let mut entry = entry.into_iter();
        let first = redis::from_redis_value(entry.next()?).ok()?;
        let last = redis::from_redis_value(entry.next()?).ok()?;
        let master: Vec<Value> = redis::from_redis_value(entry.next()?).ok()?;
        let master = redis::from_redis_value(master.into_iter().nth(2)?).ok()?;
        Some(Self {
            first,
            last,
            master,
        })
    }
}

impl ConnectionLike for Connection {
    fn req_packed_command<'a>(&'a mut self, command: &'a Cmd) -> RedisFuture<'a, Value> {
        match self {
            Self::One(connection) => connection.req_packed_command(command),
            Self::Cluster(connection) => connection.req_packed_command(command),
        }
    }

    fn req_packed_commands<'a>(
        &'a mut self,
        pipeline: &'a Pipeline,
        offset: usize,
        count: usize,
    ) -> RedisFuture<'a, Vec<Value>> {
        match self {
            Self::One(connection) => connection.req_packed_commands(pipeline, offset, count),
            Self::Cluster(connection) => connection.req_packed_commands(pipeline, offset, count),
        }
    }

    fn get_db(&self) -> i64 {
        match self {
            Self::One(connection) => connection.get_db(),
            Self::Cluster(connection) => connection.get_db(),
        }
    }
}

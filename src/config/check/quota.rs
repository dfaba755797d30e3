//! Checks `[quota]`: in memory, or in a store. Keys that only a store uses are refused with
//! `memory`. Of two keys that contradict each other, one is reported with what it requires of the
//! other.

use std::collections::BTreeMap;
use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::time::Duration;

use super::upstream::{Authority, authority, ca_file};
use crate::config::file::{Item, Style};
use crate::config::read::{Field, MAX_TIME, Section};
use crate::config::secrets::secret;
use crate::config::{Limit, OnStoreFailure, Quota, Server, Store, Time, Topology};
use crate::primitives::id::ActionName;
use crate::primitives::secret::Secret;

/// The value of `store`.
enum Written {
    Memory,
    Addresses(Vec<Address>),
}

/// One entry of `store`.
struct Address {
    tls: bool,
    host: String,
    port: Option<u16>,
    database: u16,
}

/// Credentials and trusted roots.
struct Access {
    username: Option<String>,
    password: Option<Secret>,
    sentinel_password: Option<Secret>,
    ca_file: Option<PathBuf>,
}

/// Timeouts and tolerances.
struct Times {
    timeout: Duration,
    lease: Duration,
    slack: Duration,
}

type Limits = BTreeMap<ActionName, Limit>;

const PORT: u16 = 6379;
const SENTINEL_PORT: u16 = 26379;

const ADDRESS: &str =
    "\"memory\", or redis://host:port/db or rediss://host:port/db, or a list of such addresses";

/// Keys that apply only to a store.
const OF_A_STORE: [&str; 10] = [
    "store_cluster",
    "store_sentinel",
    "store_username",
    "store_password",
    "store_sentinel_password",
    "store_ca_file",
    "store_prefix",
    "store_timeout",
    "store_lease",
    "store_slack",
];

const TIMEOUT: RangeInclusive<Duration> = Duration::from_millis(10)..=Duration::from_secs(10);
const LEASE: RangeInclusive<Duration> = Duration::from_secs(1)..=MAX_TIME;
const SLACK: RangeInclusive<Duration> = Duration::from_millis(1)..=Duration::from_millis(500);

/// Checks the section. `None` after a mistake.
pub(super) fn check(mut section: Section<'_>, limits: Option<&Limits>) -> Option<Quota> {
    let words = [
        ("share", OnStoreFailure::Share),
        ("refuse", OnStoreFailure::Refuse),
    ];
    let on_store_failure = section.key("on_store_failure").choice(&words);
    let store = match written(section.key("store")) {
        Some(Written::Memory) => {
            for name in OF_A_STORE {
                let key = section.key(name);
                if key.is_given() {
                    key.mistake(
                        "has no effect with quota.store = \"memory\": expected the address of a \
                         store there",
                    );
                }
            }
            Some(None)
        }
        Some(Written::Addresses(addresses)) => store(&mut section, addresses, limits).map(Some),
        // The address has a mistake. The other keys are checked too.
        None => store(&mut section, Vec::new(), limits).map(Some),
    };
    section.done();
    Some(Quota {
        store: store?,
        on_store_failure: on_store_failure?,
    })
}

/// Reads one address or a list. In a variable, commas separate the list's entries.
fn written(key: Field<'_>) -> Option<Written> {
    if !key.is_given() || key.says("memory") {
        return Some(Written::Memory);
    }
    let is_list = match &key.item {
        Some(Item::List(_)) => true,
        Some(Item::Scalar {
            text,
            style: Style::Variable,
        }) => text.contains(','),
        _ => false,
    };
    if !is_list {
        return Some(Written::Addresses(vec![address(&key)?]));
    }
    let reader = key.reader;
    let place = key.place.clone();
    let addresses = key.list(address)?;
    let Some(first) = addresses.first() else {
        reader.mistake(&place, "expected at least one address");
        return None;
    };
    let agree = addresses
        .iter()
        .all(|other| other.tls == first.tls && other.database == first.database);
    if !agree {
        let expectation = "expected the same scheme and the same database in all addresses";
        reader.mistake(&place, expectation);
        return None;
    }
    Some(Written::Addresses(addresses))
}

fn address(entry: &Field<'_>) -> Option<Address> {
    if let Some(Item::Scalar { text, .. }) = &entry.item
        && has_user(text)
    {
        entry.mistake(
            "expected an address without user and password: set quota.store_username and \
             quota.store_password instead",
        );
        return None;
    }
    entry.text(ADDRESS, parse)
}

fn has_user(address: &str) -> bool {
    address
        .split_once("://")
        .is_some_and(|(_, rest)| rest.contains('@'))
}

fn parse(text: &str) -> Option<Address> {
    let (scheme, rest) = text.split_once("://")?;
    let tls = match scheme {
        "redis" => false,
        "rediss" => true,
        _ => return None,
    };
    let (server, database) = rest.split_once('/').unwrap_or((rest, ""));
    let Authority { host, port, .. } = authority(server)?;
    if !database.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    let database = if database.is_empty() {
        0
    } else {
        database.parse().ok()?
    };
    Some(Address {
        tls,
        host,
        port,
        database,
    })
}

/// Reads the store's other keys. Without addresses, their mistakes have been recorded already.
fn store(
    section: &mut Section<'_>,
    addresses: Vec<Address>,
    limits: Option<&Limits>,
) -> Option<Store> {
    let topology = topology(section, &addresses);
    let tls = addresses.first().map(|address| address.tls);
    let sentinels = topology
        .as_ref()
        .map(|topology| matches!(topology, Topology::Sentinel(_)));
    let access = access(section, tls, sentinels);
    let times = times(section, limits);
    let prefix = section.key("store_prefix").text(
        "1 to 64 printable characters without spaces and braces",
        prefix,
    );
    let default_port = if sentinels? { SENTINEL_PORT } else { PORT };
    let database = addresses.first()?.database;
    let servers = addresses
        .into_iter()
        .map(|address| Server {
            host: address.host,
            port: address.port.unwrap_or(default_port),
        })
        .collect();
    let access = access?;
    let times = times?;
    Some(Store {
        topology: topology?,
        servers,
        tls: tls?,
        database,
        username: access.username,
        password: access.password,
        sentinel_password: access.sentinel_password,
        ca_file: access.ca_file,
        prefix: prefix?,
        timeout: times.timeout,
        lease: times.lease,
        slack: times.slack,
    })
}

/// Braces are refused, because they would change the hash slot of a key in a cluster.
fn prefix(text: &str) -> Option<String> {
    let is_plain = text
        .bytes()
        .all(|b| b.is_ascii_graphic() && !matches!(b, b'{' | b'}'));
    (is_plain && (1..=64).contains(&text.len())).then(|| text.to_owned())
}

fn topology(section: &mut Section<'_>, addresses: &[Address]) -> Option<Topology> {
    let cluster_key = section.key("store_cluster");
    let cluster = cluster_key.optional(|key| key.flag());
    let sentinel = section.key("store_sentinel").optional(|key| {
        key.text(
            "the name of the service that the sentinels monitor",
            |text| {
                let is_name = !text.is_empty() && text.bytes().all(|b| b.is_ascii_graphic());
                is_name.then(|| text.to_owned())
            },
        )
    });
    let cluster = cluster?;
    let is_list = addresses.len() > 1;
    if let Some(name) = sentinel? {
        if cluster == Some(true) {
            cluster_key.mistake(
                "conflicts with quota.store_sentinel: expected false, or no quota.store_sentinel",
            );
            return None;
        }
        return Some(Topology::Sentinel(name));
    }
    if is_list && cluster == Some(false) {
        cluster_key.mistake(
            "expected true, or quota.store_sentinel to be set: quota.store lists several servers",
        );
        return None;
    }
    if !cluster.unwrap_or(is_list) {
        return Some(Topology::Single);
    }
    if addresses.iter().any(|address| address.database != 0) {
        cluster_key.mistake("expected database 0 in quota.store: a cluster has no other database");
        return None;
    }
    Some(Topology::Cluster)
}

/// Reads the keys for access. With `None` for `tls` or `sentinels`, which is a mistake elsewhere,
/// keys that depend on it are accepted.
fn access(section: &mut Section<'_>, tls: Option<bool>, sentinels: Option<bool>) -> Option<Access> {
    let user = section.key("store_username");
    let username = user.optional(|key| {
        key.text("a user name without control characters", |text| {
            let is_name = !text.is_empty() && !text.contains(char::is_control);
            is_name.then(|| text.to_owned())
        })
    });
    let password_key = section.key("store_password");
    if user.is_given() && !password_key.is_given() {
        user.mistake("expected quota.store_password to be set too");
    }
    let password = password_key.given(secret);
    let sentinel_key = section.key("store_sentinel_password");
    if sentinel_key.is_given() && sentinels == Some(false) {
        sentinel_key.mistake("expected quota.store_sentinel to be set too");
    }
    let sentinel_password = sentinel_key.given(secret);
    let file = section.key("store_ca_file");
    let ca_file = if file.is_given() && tls == Some(false) {
        file.mistake("has no effect without TLS: expected a rediss:// address in quota.store");
        None
    } else {
        ca_file(&file)
    };
    Some(Access {
        username: username?,
        password: password?,
        sentinel_password: sentinel_password?,
        ca_file: ca_file?,
    })
}

fn times(section: &mut Section<'_>, limits: Option<&Limits>) -> Option<Times> {
    let windows = limits
        .into_iter()
        .flat_map(|limits| limits.values())
        .map(|limit| limit.window);
    let timeout = section.key("store_timeout").time(&TIMEOUT);
    let lease_key = section.key("store_lease");
    let lease = lease_key.time(&LEASE);
    if let (Some(lease), Some(longest)) = (lease, windows.clone().max())
        && lease <= 2 * longest
    {
        lease_key.mistake(format!(
            "expected more than {}, twice the longest window of the limits",
            Time(2 * longest)
        ));
    }
    let slack_key = section.key("store_slack");
    let slack = slack_key.time(&SLACK);
    if let (Some(slack), Some(shortest)) = (slack, windows.min())
        && slack >= shortest
    {
        slack_key.mistake(format!(
            "expected less than {}, the shortest window of the limits",
            Time(shortest)
        ));
    }
    Some(Times {
        timeout: timeout?,
        lease: lease?,
        slack: slack?,
    })
}

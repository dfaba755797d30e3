//! `[quota]`: in memory, or in a store. What only a store needs is refused beside `memory`, and of two keys that
//! contradict each other one is told what it expects of the other.

use std::collections::BTreeMap;
use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::time::Duration;

use super::upstream::{authority, ca_file};
use crate::config::file::{Item, Style};
use crate::config::read::{Field, MAX_TIME, Section};
use crate::config::secrets::secret;
use crate::config::{Limit, OnStoreFailure, Quota, Server, Store, Topology};
use crate::primitives::id::ActionName;
use crate::primitives::secret::Secret;

/// What `store` says.
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

/// How to get in.
struct Access {
    username: Option<String>,
    password: Option<Secret>,
    sentinel_password: Option<Secret>,
    ca_file: Option<PathBuf>,
}

/// What may be late, and by how much.
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

/// Keys that say something only of a store.
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

/// The section, or `None` after a mistake.
pub(super) fn check(mut section: Section<'_>, limits: Option<&Limits>) -> Option<Quota> {
    let words = [
        ("share", OnStoreFailure::Share),
        ("refuse", OnStoreFailure::Refuse),
    ];
    let on_store_failure = section.key("on_store_failure").choice(&words);
    let store = match written(section.key("store")) {
        Some(Written::Memory) => {
            let given = OF_A_STORE
                .map(|name| section.key(name))
                .into_iter()
                .filter(Field::is_given);
            given.for_each(|key| {
                key.mistake("expected the address of a store in quota.store beside it")
            });
            Some(None)
        }
        Some(Written::Addresses(addresses)) => store(&mut section, addresses, limits).map(Some),
        // The other keys' mistakes are told, too.
        None => store(&mut section, Vec::new(), limits).map(Some),
    };
    section.done();
    Some(Quota {
        store: store?,
        on_store_failure: on_store_failure?,
    })
}

/// One address or a list; in a variable the list has commas.
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
    let (reader, place) = (key.reader, key.place.clone());
    let addresses = key.list(address)?;
    let alike = |address: &Address| (address.tls, address.database);
    let wrong = match addresses.as_slice() {
        [] => "expected at least one address",
        [first, rest @ ..] if rest.iter().any(|other| alike(other) != alike(first)) => {
            "expected the same scheme and the same database in all addresses"
        }
        _ => return Some(Written::Addresses(addresses)),
    };
    reader.mistake(&place, wrong);
    None
}

fn address(entry: &Field<'_>) -> Option<Address> {
    let with_user = |text: &str| {
        text.split_once("://")
            .is_some_and(|(_, rest)| rest.contains('@'))
    };
    if matches!(&entry.item, Some(Item::Scalar { text, .. }) if with_user(text)) {
        entry.mistake(
            "expected no user or password in the address: they belong in quota.store_username and quota.store_password",
        );
        return None;
    }
    entry.text(ADDRESS, parse)
}

fn parse(text: &str) -> Option<Address> {
    let (scheme, rest) = text.split_once("://")?;
    let tls = match scheme {
        "redis" => false,
        "rediss" => true,
        _ => return None,
    };
    let (server, database) = rest.split_once('/').unwrap_or((rest, ""));
    let (host, port, _) = authority(server)?;
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

/// What the addresses and the keys beside them come to; no addresses are wrong ones, whose mistakes have been told.
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
    let plain = |text: &str| {
        text.bytes()
            .all(|b| b.is_ascii_graphic() && !matches!(b, b'{' | b'}'))
    };
    let prefix =
        |text: &str| ((1..=64).contains(&text.len()) && plain(text)).then(|| text.to_owned());
    let prefix = section.key("store_prefix").text(
        "1 to 64 printable characters, neither spaces nor braces",
        prefix,
    );
    let default = if sentinels? { SENTINEL_PORT } else { PORT };
    let database = addresses.first()?.database;
    let server = |Address { host, port, .. }| Server {
        host,
        port: port.unwrap_or(default),
    };
    let Access {
        username,
        password,
        sentinel_password,
        ca_file,
    } = access?;
    let Times {
        timeout,
        lease,
        slack,
    } = times?;
    Some(Store {
        topology: topology?,
        servers: addresses.into_iter().map(server).collect(),
        tls: tls?,
        database,
        username,
        password,
        sentinel_password,
        ca_file,
        prefix: prefix?,
        timeout,
        lease,
        slack,
    })
}

fn topology(section: &mut Section<'_>, addresses: &[Address]) -> Option<Topology> {
    let cluster_key = section.key("store_cluster");
    let cluster = cluster_key.optional(|key| key.flag());
    let name = |text: &str| {
        (!text.is_empty() && text.bytes().all(|b| b.is_ascii_graphic())).then(|| text.to_owned())
    };
    let key = section.key("store_sentinel");
    let sentinel =
        key.optional(|key| key.text("the name of the service that the sentinels watch", name));
    let (cluster, sentinel, many) = (cluster?, sentinel?, addresses.len() > 1);
    match (sentinel, cluster) {
        (Some(_), Some(true)) => cluster_key.mistake("expected false beside quota.store_sentinel"),
        (None, Some(false)) if many => {
            cluster_key
                .mistake("expected true, or quota.store_sentinel, while quota.store is a list");
        }
        (Some(name), _) => return Some(Topology::Sentinel(name)),
        (None, cluster) if cluster.unwrap_or(many) => {
            if addresses
                .first()
                .is_none_or(|address| address.database == 0)
            {
                return Some(Topology::Cluster);
            }
            cluster_key.mistake("expected database 0 in quota.store: a cluster has no other");
        }
        (None, _) => return Some(Topology::Single),
    }
    None
}

/// `None` of the two asks nothing of the keys here.
fn access(section: &mut Section<'_>, tls: Option<bool>, sentinels: Option<bool>) -> Option<Access> {
    let user = section.key("store_username");
    let name = |text: &str| {
        (!text.is_empty() && !text.contains(char::is_control)).then(|| text.to_owned())
    };
    let username = user.optional(|key| key.text("a name", name));
    let place = section.key("store_password");
    if user.is_given() && !place.is_given() {
        user.mistake("expected quota.store_password beside it");
    }
    let password = if place.is_given() {
        secret(place).map(Some)
    } else {
        Some(None)
    };
    let place = section.key("store_sentinel_password");
    if place.is_given() && sentinels == Some(false) {
        place.mistake("expected quota.store_sentinel beside it");
    }
    let sentinel_password = if place.is_given() {
        secret(place).map(Some)
    } else {
        Some(None)
    };
    let file = section.key("store_ca_file");
    if file.is_given() && tls == Some(false) {
        file.mistake("expected a rediss:// address in quota.store beside it");
    }
    let ca_file = ca_file(&file);
    Some(Access {
        username: username?,
        password: password?,
        sentinel_password: sentinel_password?,
        ca_file: ca_file?,
    })
}

fn times(section: &mut Section<'_>, limits: Option<&Limits>) -> Option<Times> {
    let windows = || {
        limits
            .into_iter()
            .flat_map(|limits| limits.values())
            .map(|limit| limit.window)
    };
    let timeout = section.key("store_timeout").time(&TIMEOUT);
    let key = section.key("store_lease");
    let lease = key.time(&LEASE);
    if let (Some(lease), Some(longest)) = (lease, windows().max())
        && lease <= 2 * longest
    {
        key.mistake("expected more than two windows of every limit");
    }
    let key = section.key("store_slack");
    let slack = key.time(&SLACK);
    if let (Some(slack), Some(shortest)) = (slack, windows().min())
        && slack >= shortest
    {
        key.mistake("expected less than the shortest window of the limits");
    }
    Some(Times {
        timeout: timeout?,
        lease: lease?,
        slack: slack?,
    })
}

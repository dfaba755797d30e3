//! The effective configuration as JSON, for `/config` and `flowgate check --print`: every value
//! that takes effect, and no secret. A field is written by its derived `Serialize`. `Secret` has
//! none, so a secret cannot be shown by accident.

use std::hash::{DefaultHasher, Hash, Hasher};

use serde::Serialize;
use serde_json::Value;

use super::upstreams::bracketed;
use super::{Config, Server, Store};

/// The configuration as JSON, without secrets; access key ids of accounts are masked.
pub fn effective(config: &Config) -> Value {
    with_lists(config, json(&config.accounts), json(&config.clients))
}

/// Like [`effective`], with a hash in place of each list that may be long.
pub(crate) fn outline(config: &Config) -> Value {
    with_lists(config, hash(&config.accounts), hash(&config.clients))
}

fn with_lists(config: &Config, accounts: Value, clients: Value) -> Value {
    let mut value = json(config);
    value["accounts"] = accounts;
    value["clients"] = clients;
    value["upstream"]["url"] = config.upstream.url().into();
    if let Some(store) = &config.quota.store {
        let urls = store.servers.iter().map(|server| store_url(store, server));
        value["quota"]["store"]["servers"] = urls.collect();
    }
    value
}

fn hash<T: Serialize>(list: &[T]) -> Value {
    let mut hasher = DefaultHasher::new();
    for entry in list {
        json(entry).to_string().hash(&mut hasher);
    }
    hasher.finish().into()
}

fn json<T: Serialize>(value: &T) -> Value {
    serde_json::to_value(value).expect("names of fields are text, and no field fails")
}

fn store_url(store: &Store, server: &Server) -> String {
    let scheme = if store.tls { "rediss" } else { "redis" };
    let host = bracketed(&server.host);
    format!("{scheme}://{host}:{}/{}", server.port, store.database)
}

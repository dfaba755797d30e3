//! What holds, for `/config`: every value that takes effect, and no secret. Each part is taken apart field by field, so
//! that a new field is shown or left out by decision and never by accident.

use std::hash::{DefaultHasher, Hash, Hasher};
use std::time::{Duration, UNIX_EPOCH};

use serde_json::{Map, Value, json};

use super::units::{Size, Time};
use super::{
    Account, Actions, Client, Collector, Config, Credentials, Drain, Hold, Journal, Learn, Limit,
    Listen, Log, LogFormat, OnStoreFailure, Queue, Quota, Retry, Scheme, Server, Store, Telemetry,
    Tenant, Tls, Topology, UnknownKeys, Upstream,
};
use crate::acs;
use crate::primitives::id::AccessKeyId;

/// The configuration as JSON, without secrets; access key ids of accounts are masked.
pub fn effective(config: &Config) -> Value {
    let accounts = config.accounts.iter().map(account_json).collect();
    let clients = config.clients.iter().map(client_json).collect();
    with_lists(config, accounts, clients)
}

/// The same, with a number in the place of each list that may be long: it is another one when the list is.
pub(crate) fn outline(config: &Config) -> Value {
    let accounts = number(config.accounts.iter().map(account_json));
    let clients = number(config.clients.iter().map(client_json));
    with_lists(config, accounts, clients)
}

fn number(list: impl Iterator<Item = Value>) -> Value {
    let mut hasher = DefaultHasher::new();
    list.for_each(|entry| entry.to_string().hash(&mut hasher));
    json!(hasher.finish())
}

fn with_lists(config: &Config, accounts_json: Value, clients_json: Value) -> Value {
    let Config {
        mode,
        unknown_keys,
        listen,
        upstream,
        accounts: _,
        clients: _,
        limits,
        queue,
        learn,
        retry,
        quota,
        drain,
        log,
        journal,
        telemetry,
    } = config;
    let unknown_keys = match unknown_keys {
        UnknownKeys::Refuse => "refuse",
        UnknownKeys::Relay => "relay",
    };
    let limit = |(action, limit): (&crate::primitives::id::ActionName, &Limit)| {
        let Limit { count, window } = limit;
        (
            action.to_string(),
            json!({ "count": count, "window": time(*window) }),
        )
    };
    json!({
        "mode": mode.to_string(),
        "unknown_keys": unknown_keys,
        "listen": listen_json(listen),
        "upstream": upstream_json(upstream),
        "accounts": accounts_json,
        "clients": clients_json,
        "limits": limits.iter().map(limit).collect::<Map<_, _>>(),
        "queue": queue_json(queue),
        "learn": learn_json(*learn),
        "retry": retry_json(*retry),
        "quota": quota_json(quota),
        "drain": drain_json(*drain),
        "log": log_json(log),
        "journal": journal.as_ref().map(journal_json),
        "telemetry": telemetry_json(telemetry),
    })
}

fn time(time: Duration) -> String {
    Time(time).to_string()
}

fn size(bytes: usize) -> String {
    Size(bytes).to_string()
}

fn scheme_text(scheme: Scheme) -> &'static str {
    match scheme {
        Scheme::Http => "http",
        Scheme::Https => "https",
    }
}

fn listen_json(listen: &Listen) -> Value {
    let Listen {
        proxy,
        admin,
        admin_token,
        admin_actions,
        socket_mode,
        tls,
        names,
        max_connections,
        max_connections_per_source,
        header_timeout,
        body_timeout,
        idle_timeout,
        max_header,
        max_body,
        max_unverified,
    } = listen;
    json!({
        "proxy": proxy.to_string(),
        "admin": admin.to_string(),
        "admin_token": admin_token.is_some(),
        "admin_actions": admin_actions,
        "socket_mode": format!("{socket_mode:04o}"),
        "tls": tls.as_ref().map(tls_json),
        "names": names,
        "max_connections": max_connections,
        "max_connections_per_source": max_connections_per_source,
        "header_timeout": time(*header_timeout),
        "body_timeout": time(*body_timeout),
        "idle_timeout": time(*idle_timeout),
        "max_header": size(*max_header),
        "max_body": size(*max_body),
        "max_unverified": size(*max_unverified),
    })
}

fn tls_json(tls: &Tls) -> Value {
    let Tls {
        cert,
        key,
        client_ca,
        not_after,
        server: _,
    } = tls;
    json!({
        "cert": cert.display().to_string(),
        "key": key.display().to_string(),
        "client_ca": client_ca.as_ref().map(|path| path.display().to_string()),
        "not_after": not_after.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs()),
    })
}

fn upstream_json(upstream: &Upstream) -> Value {
    let Upstream {
        scheme,
        dial_host,
        dial_port,
        host,
        connect_to,
        ca_file,
        connect_timeout,
        answer_timeout,
        idle_timeout,
        max_response,
    } = upstream;
    let dial_host = if dial_host.contains(':') {
        format!("[{dial_host}]")
    } else {
        dial_host.clone()
    };
    json!({
        "url": format!("{}://{dial_host}:{dial_port}", scheme_text(*scheme)),
        "host": host,
        "connect_to": connect_to,
        "ca_file": ca_file.as_ref().map(|path| path.display().to_string()),
        "connect_timeout": time(*connect_timeout),
        "answer_timeout": time(*answer_timeout),
        "idle_timeout": time(*idle_timeout),
        "max_response": size(*max_response),
    })
}

fn account_json(account: &Account) -> Value {
    let Account {
        id,
        credentials,
        credentials_file,
        aliases,
    } = account;
    let key = credentials.as_ref().map(|credentials| {
        let Credentials {
            access_key_id,
            secret: _,
            security_token: _,
            expires: _,
        } = credentials;
        access_key_id
    });
    json!({
        "id": id.as_str(),
        "kind": if key.is_some() { "managed" } else { "relayed" },
        "access_key_id": key.map(AccessKeyId::masked),
        "credentials": credentials_file.as_ref().map(|path| path.display().to_string()),
        "expires": credentials.as_ref().and_then(|credentials| credentials.expires).map(acs::time::format),
        "aliases": aliases.iter().map(AccessKeyId::masked).collect::<Vec<_>>(),
    })
}

fn client_json(client: &Client) -> Value {
    let Client {
        id,
        secrets,
        disabled,
        account,
        actions,
        cust_space_ids,
        weight,
        hold,
    } = client;
    let actions = match actions {
        Actions::All => vec!["*"],
        Actions::Listed(actions) => actions.iter().map(|action| action.as_str()).collect(),
    };
    json!({
        "id": id.as_str(),
        "disabled": disabled,
        "secrets": secrets.len(),
        "account": account.as_str(),
        "actions": actions,
        "cust_space_ids": cust_space_ids,
        "weight": weight,
        "hold": hold.map(time),
    })
}

fn queue_json(queue: &Queue) -> Value {
    let Queue {
        tenant,
        max_waiting,
        max_waiting_per_client,
        max_bytes,
        hold,
        max_hold,
    } = queue;
    json!({
        "tenant": match tenant {
            Tenant::CustSpaceId => json!("cust-space-id"),
            Tenant::None => json!("none"),
            Tenant::Header(name) => json!({ "header": name.as_str() }),
        },
        "max_waiting": max_waiting,
        "max_waiting_per_client": max_waiting_per_client,
        "max_bytes": size(*max_bytes),
        "hold": match hold {
            Hold::Auto => "auto".to_owned(),
            Hold::Fixed(hold) => time(*hold),
        },
        "max_hold": time(*max_hold),
    })
}

fn learn_json(learn: Learn) -> Value {
    let Learn { gap, max_gap } = learn;
    json!({ "gap": time(gap), "max_gap": time(max_gap) })
}

fn retry_json(
    Retry {
        max_attempts,
        base,
        max,
        max_pause,
    }: Retry,
) -> Value {
    json!({
        "max_attempts": max_attempts,
        "base": time(base),
        "max": time(max),
        "max_pause": time(max_pause),
    })
}

fn quota_json(
    Quota {
        store,
        on_store_failure,
    }: &Quota,
) -> Value {
    json!({
        "store": store.as_ref().map_or_else(|| json!("memory"), store_json),
        "on_store_failure": match on_store_failure {
            OnStoreFailure::Share => "share",
            OnStoreFailure::Refuse => "refuse",
        },
    })
}

fn store_json(store: &Store) -> Value {
    let Store {
        topology,
        servers,
        tls,
        database,
        username,
        password: _,
        sentinel_password: _,
        ca_file,
        prefix,
        timeout,
        lease,
        slack,
    } = store;
    let scheme = if *tls { "rediss" } else { "redis" };
    let url = |Server { host, port }: &Server| {
        let host = if host.contains(':') {
            format!("[{host}]")
        } else {
            host.clone()
        };
        format!("{scheme}://{host}:{port}/{database}")
    };
    json!({
        "servers": servers.iter().map(url).collect::<Vec<_>>(),
        "topology": match topology {
            Topology::Single => json!("single"),
            Topology::Cluster => json!("cluster"),
            Topology::Sentinel(name) => json!({ "sentinel": name }),
        },
        "username": username,
        "ca_file": ca_file.as_ref().map(|path| path.display().to_string()),
        "prefix": prefix,
        "timeout": time(*timeout),
        "lease": time(*lease),
        "slack": time(*slack),
    })
}

fn drain_json(
    Drain {
        delay,
        grace,
        hand_over,
    }: Drain,
) -> Value {
    json!({ "delay": time(delay), "grace": time(grace), "hand_over": hand_over })
}

fn log_json(Log { format, level }: &Log) -> Value {
    let format = match format {
        LogFormat::Text => "text",
        LogFormat::Json => "json",
    };
    json!({ "format": format, "level": level.to_string() })
}

fn telemetry_json(
    Telemetry {
        otlp,
        sample_percent,
    }: &Telemetry,
) -> Value {
    let url = |Collector {
                   scheme, authority, ..
               }: &Collector| format!("{}://{authority}", scheme_text(*scheme));
    json!({ "otlp": otlp.as_ref().map(url), "sample_percent": sample_percent })
}

fn journal_json(
    Journal {
        path,
        max_size,
        keep,
    }: &Journal,
) -> Value {
    json!({ "path": path.display().to_string(), "max_size": size(*max_size), "keep": keep })
}

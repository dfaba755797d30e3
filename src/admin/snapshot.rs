//! The data of the status page at one moment, as JSON without secrets: lanes, recent calls, the
//! state of CAMS, of the store, of the journal and of the configuration, and upcoming expiries.

use std::collections::HashMap;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde_json::{Value, json};

use super::unknown;
use crate::call::current_config::{ConfigSnapshot, SessionAccount};
use crate::call::services::CallServices;
use crate::config;
use crate::credentials::keeper::KeeperView;
use crate::limiter::LaneView;
use crate::observe::record::Filter;
use crate::primitives::text::millis;
use crate::process::shutdown::Phase;
use crate::upstream::{Reach, Upstream, Upstreams};

/// Maximum number of lanes in a snapshot; those with the longest queues are kept.
const LANES: usize = 200;

/// Maximum number of unknown outcomes in a snapshot; the oldest are kept.
const UNKNOWN: usize = 50;

/// Maximum number of calls in a snapshot; those that ended last are kept.
const CALLS: usize = 50;

/// Builds a snapshot.
pub(super) fn snapshot(services: &CallServices) -> Value {
    let config_snapshot = services.current_config.load();
    let config = &config_snapshot.config;
    let mut lanes = services.limiter.lanes_by_label();
    let all_lanes = lanes.len();
    lanes.sort_by_key(|lane| std::cmp::Reverse(lane.queued));
    lanes.truncate(LANES);
    let reload_status = services.current_config.reload_status();
    let loaded = config.accounts.iter().filter_map(loaded_credentials);
    let sessions = config_snapshot.session_accounts().iter();
    let sessions = sessions.map(|account| session(services, account, &account.keeper.view()));
    json!({
        "at_ms": millis(since_1970(SystemTime::now())),
        "version": env!("CARGO_PKG_VERSION"),
        "instance": rustix::system::uname().nodename().to_string_lossy(),
        "uptime_seconds": services.limiter.started().elapsed().as_secs(),
        "phase": phase(services.phases.now()),
        "mode": config.mode.to_string(),
        "may_order": config.listen.admin_actions,
        "upstreams": upstreams(&config_snapshot.upstreams),
        "store": store(services),
        "journal": services.journal.as_ref().map(|journal| json!({
            "up": journal.is_up(),
            "shared": journal.is_shared(),
        })),
        "config": {
            "generation": config_snapshot.generation,
            "read_seconds_ago": reload_status.at.elapsed().as_secs(),
            "warnings": reload_status.warnings,
            "refused": reload_status.rejected,
        },
        "certificate_ends_seconds": config.listen.tls.as_ref().map(|tls| seconds_until(tls.not_after)),
        "credentials": loaded.chain(sessions).collect::<Vec<_>>(),
        "queued_bytes": services.limiter.bytes(),
        "all_lanes": all_lanes,
        "lanes": with_upstreams(&config_snapshot, lanes),
        "all_unknown": services.records.count().unknown,
        "unknown": unknown::views(services, UNKNOWN),
        "calls": services.telemetry.recent.views(&Filter::default(), CALLS),
    })
}

/// The store that replicas share, if there is one.
pub(super) fn store(services: &CallServices) -> Option<Value> {
    let quota = services.quota.as_ref()?;
    Some(json!({ "up": quota.is_up(), "replicas": quota.replicas() }))
}

/// The lanes, each with the URL of its account's upstream.
fn with_upstreams(config_snapshot: &ConfigSnapshot, lanes: Vec<LaneView>) -> Vec<Value> {
    let upstreams = &config_snapshot.upstreams;
    let accounts = config_snapshot.config.accounts.iter();
    let own: HashMap<_, _> = accounts
        .filter_map(|account| Some((account.id.as_str(), account.upstream.as_ref()?.index)))
        .collect();
    lanes
        .into_iter()
        .map(|lane| {
            let index = own.get(lane.account.as_str()).copied().unwrap_or_default();
            let mut value = json!(lane);
            value["upstream"] = upstreams.get(index).url().into();
            value
        })
        .collect()
}

/// When the credentials of an account expire that are read with the configuration.
fn loaded_credentials(account: &config::Account) -> Option<Value> {
    let ends = account.credentials.as_ref()?.loaded()?.expires?;
    Some(json!({ "account": account.id.as_str(), "seconds": seconds_until(ends) }))
}

/// The session of an account, and why there is no newer one.
fn session(services: &CallServices, account: &SessionAccount, view: &KeeperView) -> Value {
    let failure = view.failure.as_ref().map(|(at, error)| {
        json!({
            "kind": error.kind.label(),
            "seconds_ago": at.elapsed().as_secs(),
            "text": error.to_string(),
        })
    });
    json!({
        "account": account.id.as_str(),
        "source": account.keeper.source().name(),
        "seconds": view.ends_at.map(seconds_until),
        "waiting": services.session_waits.waiting(&account.id),
        "failure": failure,
    })
}

/// The accounts whose session is missing, has ended or could not be refreshed.
pub(super) fn sessions_in_trouble(
    services: &CallServices,
    config_snapshot: &ConfigSnapshot,
) -> Vec<Value> {
    let accounts = config_snapshot.session_accounts().iter();
    accounts
        .filter_map(|account| {
            let view = account.keeper.view();
            let is_in_trouble = view.failure.is_some() || !view.is_valid;
            is_in_trouble.then(|| session(services, account, &view))
        })
        .collect()
}

/// Every upstream.
pub(super) fn upstreams(upstreams: &Upstreams) -> Value {
    upstreams.all().iter().map(|it| upstream(it)).collect()
}

/// Whether an upstream can be reached, according to the latest connection attempts.
pub(super) fn upstream(upstream: &Upstream) -> Value {
    let (url, proxy) = (upstream.url(), upstream.proxy());
    match upstream.reach() {
        Reach::Up => json!({ "url": url, "proxy": proxy, "reachable": true }),
        Reach::Down { since, reason } => json!({
            "url": url,
            "proxy": proxy,
            "reachable": false,
            "down_seconds": since.elapsed().as_secs_f64(),
            "reason": &*reason,
        }),
    }
}

fn phase(phase: Phase) -> &'static str {
    match phase {
        Phase::Serving => "serving",
        Phase::Leaving => "leaving",
        Phase::Draining | Phase::Closing => "draining",
        Phase::Over => "over",
    }
}

/// Negative if `then` is in the past.
fn seconds_until(then: SystemTime) -> i64 {
    since_1970(then).as_secs().cast_signed() - since_1970(SystemTime::now()).as_secs().cast_signed()
}

fn since_1970(time: SystemTime) -> Duration {
    time.duration_since(UNIX_EPOCH).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::call::tests::sessions::{Gateway, failure, seconds, session};
    use crate::credentials::error::FailureKind;

    #[tokio::test(start_paused = true)]
    async fn the_session_of_an_account_is_shown_with_the_last_failure() {
        let gateway = Gateway::new(failure(FailureKind::Refused), &[]).await;
        tokio::time::sleep(seconds(5)).await;
        let shown = snapshot(&gateway.services);
        let text = "sts.aliyuncs.com: the service refuses, status 503, code ServiceUnavailable, \
                    request id STS-REQUEST-1";
        assert_eq!(
            shown["credentials"],
            json!([{
                "account": "acme",
                "source": "ecs_role",
                "seconds": null,
                "waiting": 0,
                "failure": { "kind": "refused", "seconds_ago": 5, "text": text },
            }])
        );
        let config_snapshot = gateway.services.current_config.load_full();
        let in_trouble = sessions_in_trouble(&gateway.services, &config_snapshot);
        assert_eq!(Value::Array(in_trouble), shown["credentials"]);
        gateway.script.set(session(seconds(3600), Duration::ZERO));
        tokio::time::sleep(seconds(70)).await;
        let in_trouble = sessions_in_trouble(&gateway.services, &config_snapshot);
        assert!(in_trouble.is_empty(), "{in_trouble:?}");
        let shown = snapshot(&gateway.services);
        let one = &shown["credentials"][0];
        assert_eq!(one["failure"], Value::Null);
        assert!(
            one["seconds"].as_i64().is_some_and(|left| left > 3500),
            "{one}"
        );
        assert!(!shown.to_string().contains("session-"), "{shown}");
    }
}

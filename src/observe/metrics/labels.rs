//! The values of each label. Most labels have a closed set of values, listed here; the others are
//! bounded by the configuration. With debug assertions a scrape panics on any other value, so every
//! test that scrapes checks this list.

use prometheus::proto::MetricFamily;

use super::keys::{KEY_STATES, UNKNOWN_STATES};
use crate::error::{Kind, Outcome};
use crate::upstream::Failure;

/// CAMS's codes with a label value of their own.
const CODES: [&str; 30] = [
    OK,
    "System.LimitControl",
    "Throttling",
    "Throttling.User",
    "Throttling.Api",
    "Throttling.System",
    "Product.Unsubscript",
    "Ram.PermissionDeny",
    "Unknown.ResourceOwnerId",
    "isv.BUSINESS_LIMIT_CONTROL",
    "SignatureDoesNotMatch",
    "SignatureNonceUsed",
    "IncompleteSignature",
    "InvalidAccessKeyId.NotFound",
    "InvalidAccessKeyId.Inactive",
    "InvalidSecurityToken.Expired",
    "InvalidSecurityToken.Malformed",
    "InvalidSecurityToken.MismatchWithAccessKey",
    "MissingSecurityToken",
    "SecurityTokenExpired",
    "InvalidTimeStamp.Expired",
    "InvalidTimeStamp.Format",
    "InvalidApi.NotFound",
    "InvalidAction.NotFound",
    "InvalidVersion",
    "InvalidProduct.NotFound",
    "Forbidden.RAM",
    "NoPermission",
    "ServiceUnavailable",
    "InternalError",
];
/// The code of a success.
pub(super) const OK: &str = "OK";
/// The label value of all other codes.
const OTHER: &str = "other";
/// The label value of an attempt whose result is unknown.
pub(crate) const UNKNOWN: &str = "unknown";

/// The results of failed signature checks.
const UNPROVEN: [Kind; 7] = [
    Kind::SignatureDoesNotMatch,
    Kind::IncompleteSignature,
    Kind::UnknownAccessKey,
    Kind::TimestampExpired,
    Kind::TimestampFormat,
    Kind::NonceUsed,
    Kind::SignedHostMismatch,
];
/// Errors of a connection, in the order of its life: accept, rejection, PROXY header, handshake,
/// request head, later.
const CONNECTION_ERRORS: [&str; 14] = [
    "accept",
    "too_many",
    "too_many_from_source",
    "untrusted_proxy",
    "proxy_header",
    "tls",
    "slow_handshake",
    "slow_head",
    "not_http",
    "large_head",
    "slow_reader",
    "idle",
    "incomplete",
    "broken",
];
const STORE_OPERATIONS: [&str; 19] = [
    "connect",
    "connections",
    "ping",
    "beat",
    "leave",
    "bury",
    "take",
    "throttled",
    "ended",
    "nonce",
    "claim",
    "mark",
    "settle",
    "resolve",
    "take_flow",
    "publish",
    "key_beat",
    "look",
    "load",
];

/// The result of a refresh that returned a session.
pub(super) const REFRESHED: &str = "ok";
/// The results of failed refreshes: the labels of [`crate::credentials::error::FailureKind`].
pub(crate) const FAILED_REFRESHES: [&str; 9] = [
    "unreachable",
    "throttled",
    "service_error",
    "refused",
    "old_token",
    "bad_answer",
    "token_file",
    "no_source",
    "internal",
];

/// The answers to calls with an idempotency key: the labels of [`crate::idempotency::KeyState`].
pub(crate) const KEYED_CALLS: [&str; 9] = [
    "first", "attached", "replayed", "resolved", "adopted", "pending", "unknown", "mismatch",
    "refused",
];

/// What a look has found, or why it has no answer.
const LOOKS: [&str; 6] = [
    "found",
    "missing",
    "ambiguous",
    "throttled",
    "refused",
    "failed",
];

/// How an unknown outcome has ended.
const RESOLUTIONS: [&str; 5] = ["created", "absent", "ambiguous", "settled", "forgotten"];

/// The label value of one of CAMS's codes.
pub(crate) fn code(code: &str) -> &'static str {
    CODES
        .into_iter()
        .find(|known| *known == code)
        .unwrap_or(OTHER)
}

/// The closed set of values of a metric's label; `None` if the configuration or CAMS decides.
pub(super) fn closed(metric: &str, label: &str) -> Option<Vec<&'static str>> {
    let values = match (label, metric) {
        ("outcome", _) => Outcome::ALL.map(Outcome::label).to_vec(),
        ("reason", "flowgate_upstream_connect_failures_total") => {
            Failure::ALL.map(Failure::label).to_vec()
        }
        ("reason", _) => Kind::ALL.map(Kind::label).to_vec(),
        ("code", _) => CODES.into_iter().chain([OTHER, UNKNOWN]).collect(),
        ("source", _) => vec!["body", "header"],
        ("event", _) => vec!["granted", "spent", "returned"],
        ("stage", _) => vec!["queued", "in_flight"],
        ("decision", _) => vec!["passed", "waited", "refused"],
        ("op", _) => STORE_OPERATIONS.to_vec(),
        ("action", "flowgate_operator_actions_total") => vec!["pause", "resume", "flush", "settle"],
        ("name", _) => vec!["listen"],
        ("state", "flowgate_keys") => KEY_STATES.to_vec(),
        ("state", _) => UNKNOWN_STATES.to_vec(),
        ("kind", "flowgate_rate_limit") => vec!["configured", "effective"],
        ("kind", _) => CONNECTION_ERRORS.to_vec(),
        ("result", "flowgate_config_reloads_total") => vec!["done", "refused"],
        ("result", "flowgate_credentials_refreshes_total") => {
            [REFRESHED].into_iter().chain(FAILED_REFRESHES).collect()
        }
        ("result", "flowgate_keyed_calls_total") => KEYED_CALLS.to_vec(),
        ("result", "flowgate_looks_total") => LOOKS.to_vec(),
        ("result", "flowgate_resolutions_total") => RESOLUTIONS.to_vec(),
        ("result", "flowgate_trace_exports_total") => vec!["done", "failed"],
        ("result", _) => ["ok", "unverified"]
            .into_iter()
            .chain(UNPROVEN.map(Kind::label))
            .collect(),
        _ => return None,
    };
    Some(values)
}

/// Whether the operation of the store is in the closed set of its label.
pub(crate) fn is_store_operation(op: &str) -> bool {
    STORE_OPERATIONS.contains(&op)
}

/// Label values that are not in their label's closed set.
pub(super) fn outside_closed_sets(families: &[MetricFamily]) -> Vec<String> {
    let mut outside_closed_sets = Vec::new();
    for family in families {
        let labels = family
            .get_metric()
            .iter()
            .flat_map(|metric| metric.get_label());
        for label in labels {
            let Some(values) = closed(family.name(), label.name()) else {
                continue;
            };
            if !values.contains(&label.value()) {
                outside_closed_sets.push(format!(
                    "{}{{{}={:?}}}",
                    family.name(),
                    label.name(),
                    label.value()
                ));
            }
        }
    }
    outside_closed_sets
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_are_a_closed_set() {
        assert_eq!(code("System.LimitControl"), "System.LimitControl");
        assert_eq!(code("OK"), "OK");
        assert_eq!(code("ok"), "other");
        assert_eq!(code("Invented\n"), "other");
        assert_eq!(code(""), "other");
    }
}

//! Which values has a label? Nearly all come from a closed set, named here; the others are bounded by the configuration.
//! In builds with debug assertions no page is rendered with another value, so every test that scrapes holds the code to
//! this list.

use prometheus::proto::MetricFamily;

use crate::error::{Kind, Outcome};

/// CAMS's codes that are told apart.
const CODES: [&str; 27] = [
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
/// The label of what CAMS has done.
pub(super) const OK: &str = "OK";
/// The label of CAMS's other codes.
const OTHER: &str = "other";
/// The label of what no certain answer says.
pub(crate) const UNKNOWN: &str = "unknown";

/// What is said of callers' signatures that do not hold.
const UNPROVEN: [Kind; 6] = [
    Kind::SignatureDoesNotMatch,
    Kind::IncompleteSignature,
    Kind::UnknownAccessKey,
    Kind::TimestampExpired,
    Kind::NonceUsed,
    Kind::SignedHostMismatch,
];
/// How a connection ends with an error: not accepted, turned away, at the handshake, at the head, later.
const CONNECTION_ERRORS: [&str; 11] = [
    "accept",
    "too_many",
    "too_many_from_source",
    "tls",
    "slow_handshake",
    "slow_head",
    "not_http",
    "slow_reader",
    "idle",
    "incomplete",
    "broken",
];
const STORE_OPERATIONS: [&str; 10] = [
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
];

/// The label of a code of CAMS's.
pub(crate) fn code(code: &str) -> &'static str {
    CODES
        .into_iter()
        .find(|known| *known == code)
        .unwrap_or(OTHER)
}

/// The values that a label of a metric may have; none where the configuration or CAMS decides.
pub(super) fn closed(metric: &str, label: &str) -> Option<Vec<&'static str>> {
    let values = match (label, metric) {
        ("outcome", _) => Outcome::ALL.map(Outcome::label).to_vec(),
        ("reason", _) => Kind::ALL.map(Kind::label).to_vec(),
        ("code", _) => CODES.into_iter().chain([OTHER, UNKNOWN]).collect(),
        ("source", _) => vec!["body", "header"],
        ("event", _) => vec!["granted", "spent", "returned"],
        ("stage", _) => vec!["queued", "in_flight"],
        ("decision", _) => vec!["passed", "waited", "refused"],
        ("op", _) => STORE_OPERATIONS.to_vec(),
        ("action", "flowgate_operator_actions_total") => vec!["pause", "resume", "flush"],
        ("name", _) => vec!["listen"],
        ("kind", "flowgate_rate_limit") => vec!["configured", "effective"],
        ("kind", _) => CONNECTION_ERRORS.to_vec(),
        ("result", "flowgate_config_reloads_total") => vec!["done", "refused"],
        ("result", "flowgate_trace_exports_total") => vec!["done", "failed"],
        ("result", _) => ["ok", "unverified"]
            .into_iter()
            .chain(UNPROVEN.map(Kind::label))
            .collect(),
        _ => return None,
    };
    Some(values)
}

/// Values on a page that are not of their label's closed set.
pub(super) fn strange(families: &[MetricFamily]) -> Vec<String> {
    let mut strange = Vec::new();
    for family in families {
        for label in family
            .get_metric()
            .iter()
            .flat_map(|metric| metric.get_label())
        {
            let is_strange = |values: Vec<&str>| !values.contains(&label.value());
            if closed(family.name(), label.name()).is_some_and(is_strange) {
                strange.push(format!(
                    "{}{{{}={:?}}}",
                    family.name(),
                    label.name(),
                    label.value()
                ));
            }
        }
    }
    strange
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

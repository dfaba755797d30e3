//! The names of parameters with a meaning of their own: those of signature version 1, and those
//! that state properties of another caller.

/// The parameters that belong to signature version 1 itself.
const COMMON: [&str; 12] = [
    "AccessKeyId",
    "Action",
    "BearerToken",
    "Format",
    "SecurityToken",
    "Signature",
    "SignatureMethod",
    "SignatureNonce",
    "SignatureType",
    "SignatureVersion",
    "Timestamp",
    "Version",
];
/// Parameters with which a gateway states properties of another caller.
const FOREIGN: [&str; 2] = ["SourceIp", "SecureTransport"];

pub(super) const TWO_SCHEMES: &str =
    "it has both a version 3 Authorization header and a parameter of signature version 1";
pub(super) const LIKE_ACS_HEADER: &str = "a parameter has the name of an x-acs header";

/// Whether a name is a parameter of signature version 1, in any case.
pub(super) fn is_common(name: &str) -> bool {
    COMMON
        .iter()
        .any(|common| common.eq_ignore_ascii_case(name))
}

/// Whether a name is a parameter of signature version 1 in another case, which another reader might
/// accept.
pub(super) fn is_misspelt_common(name: &str) -> bool {
    is_common(name) && !COMMON.contains(&name)
}

/// Whether a parameter has the name of a header of signature version 3.
pub(super) fn is_acs_header(name: &str) -> bool {
    name.get(..6)
        .is_some_and(|head| head.eq_ignore_ascii_case("x-acs-"))
}

/// Whether a parameter states a property of another caller.
pub(super) fn is_foreign(name: &str) -> bool {
    FOREIGN
        .iter()
        .any(|foreign| foreign.eq_ignore_ascii_case(name))
}

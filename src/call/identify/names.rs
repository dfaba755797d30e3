//! Which parameter names have a meaning of their own? Those of signature version 1, and those that speak for another
//! caller.

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
/// Parameters with which a gateway speaks for somebody else.
const FOREIGN: [&str; 2] = ["SourceIp", "SecureTransport"];

/// Why no parameter may have such a name.
pub(super) const LIKE_ACS_HEADER: &str = "a parameter is named like an x-acs header";

/// Whether a name is one of version 1's own, in any case.
pub(super) fn is_common(name: &str) -> bool {
    COMMON
        .iter()
        .any(|common| common.eq_ignore_ascii_case(name))
}

/// Whether a name is one of version 1's own in a case that Flowgate would not recognise and another reader might.
pub(super) fn is_misspelt_common(name: &str) -> bool {
    is_common(name) && !COMMON.contains(&name)
}

/// Whether a parameter is named like a header that only a version 3 call has.
pub(super) fn is_acs_header(name: &str) -> bool {
    name.get(..6)
        .is_some_and(|head| head.eq_ignore_ascii_case("x-acs-"))
}

/// Whether a name speaks for somebody else.
pub(super) fn is_foreign(name: &str) -> bool {
    FOREIGN
        .iter()
        .any(|foreign| foreign.eq_ignore_ascii_case(name))
}

//! Headers that belong to one connection and are not forwarded (RFC 9110, section 7.6.1).

use hyper::header::{CONNECTION, HeaderMap};

/// Whether a header, in lower case, is hop-by-hop by itself. RFC 9110 names the first five and
/// `Proxy-Connection`; `Trailer` (RFC 2616, section 13.5.1) describes a body that is not forwarded
/// as it was framed, and the other `Proxy-` headers are meant for the next proxy only (RFC 9110,
/// section 11.7).
pub(crate) fn is_hop_by_hop(name: &str) -> bool {
    const NAMES: [&str; 6] = [
        "connection",
        "keep-alive",
        "te",
        "transfer-encoding",
        "upgrade",
        "trailer",
    ];
    NAMES.contains(&name) || name.starts_with("proxy-")
}

/// The further headers that `Connection` declares hop-by-hop, in lower case.
pub(crate) fn connection_listed(headers: &HeaderMap) -> Vec<String> {
    let values = headers.get_all(CONNECTION).into_iter();
    let names = values.flat_map(|value| value.as_bytes().split(|byte| *byte == b','));
    names
        .map(|name| String::from_utf8_lossy(name.trim_ascii()).to_ascii_lowercase())
        .collect()
}

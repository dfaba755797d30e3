//! The format of the answer that a caller expects. A refusal may come before anything is verified
//! or even well-formed, so this reads leniently.

use hyper::header;
use hyper::http::request::Parts;
use percent_encoding::percent_decode;

/// Parameters that only a version 1 call has.
const OF_VERSION_1: [&str; 3] = ["AccessKeyId", "Signature", "Action"];

/// Whether the caller expects errors in XML: version 1 calls do, unless `Format` asks for something
/// else. `form` is the form, or empty before it is read.
pub(crate) fn wants_xml(parts: &Parts, form: &[u8]) -> bool {
    if parts.headers.contains_key(header::AUTHORIZATION) {
        return false;
    }
    let query = parts.uri.query().unwrap_or_default().as_bytes();
    let mut is_version_1 = false;
    for pair in pairs(query).chain(pairs(form)) {
        let equals = pair.iter().position(|byte| *byte == b'=');
        let (name, value) = pair.split_at(equals.unwrap_or(pair.len()));
        if is_parameter(name, "Format") {
            let value = value.get(1..).unwrap_or_default();
            return value.is_empty() || percent_decode(value).map(lower).eq(*b"xml");
        }
        is_version_1 |= OF_VERSION_1.iter().any(|known| is_parameter(name, known));
    }
    is_version_1
}

fn pairs(text: &[u8]) -> impl Iterator<Item = &[u8]> {
    text.split(|byte| *byte == b'&')
}

/// Whether an encoded name is that of this parameter.
fn is_parameter(name: &[u8], known: &str) -> bool {
    percent_decode(name).eq(known.bytes())
}

fn lower(byte: u8) -> u8 {
    byte.to_ascii_lowercase()
}

//! The meaning of a request, independent of its signature. A lenient parser that shares no code
//! with `acs` reads the caller's request and Flowgate's request to CAMS; both must agree.

use std::collections::BTreeMap;

use hyper::http::request::Parts;

/// The meaning of one request.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Reading {
    method: String,
    action: Vec<u8>,
    format: Option<Vec<u8>>,
    params: BTreeMap<Vec<u8>, Vec<u8>>,
    json: Vec<u8>,
}

/// Parameters of the signature, and those that state properties of another caller.
const DROPPED: [&str; 11] = [
    "AccessKeyId",
    "Action",
    "BearerToken",
    "Format",
    "SecureTransport",
    "SecurityToken",
    "SourceIp",
    "Timestamp",
    "Version",
    "SignatureNonce",
    "SignatureMethod",
];

/// Decodes `%XX` and `+`; other bytes are kept.
pub(super) fn plain(text: &[u8]) -> Vec<u8> {
    let mut decoded = Vec::new();
    let mut rest = text;
    while let [byte, more @ ..] = rest {
        rest = more;
        match (byte, more) {
            (b'+', _) => decoded.push(b' '),
            (b'%', [high, low, after @ ..]) if hex(*high, *low).is_some() => {
                decoded.extend(hex(*high, *low));
                rest = after;
            }
            (other, _) => decoded.push(*other),
        }
    }
    decoded
}

fn hex(high: u8, low: u8) -> Option<u8> {
    let digits = [high, low];
    u8::from_str_radix(std::str::from_utf8(&digits).ok()?, 16).ok()
}

/// The raw pairs of a query or form.
pub(super) fn pairs(text: &[u8]) -> impl Iterator<Item = (Vec<u8>, Vec<u8>)> {
    let pairs = text
        .split(|byte| *byte == b'&')
        .filter(|pair| !pair.is_empty());
    pairs.map(|pair| {
        let mut halves = pair.splitn(2, |byte| *byte == b'=').map(plain);
        (
            halves.next().unwrap_or_default(),
            halves.next().unwrap_or_default(),
        )
    })
}

/// Whether the head declares its body as a form.
pub(super) fn has_form(head: &Parts) -> bool {
    let kind = head
        .headers
        .get("content-type")
        .map(|value| value.as_bytes().to_ascii_lowercase());
    kind.is_some_and(|kind| kind.starts_with(b"application/x-www-form-urlencoded"))
}

fn is_dropped(name: &[u8]) -> bool {
    name.to_ascii_lowercase().starts_with(b"signature")
        || DROPPED
            .iter()
            .any(|dropped| name.eq_ignore_ascii_case(dropped.as_bytes()))
}

/// Parses a request.
pub(super) fn read(head: &Parts, body: &[u8]) -> Reading {
    let form = if has_form(head) { body } else { b"" };
    let query = head.uri.query().unwrap_or_default().as_bytes();
    let mut params: BTreeMap<_, _> = pairs(query).chain(pairs(form)).collect();
    let action = params.remove(b"Action".as_slice()).or_else(|| {
        let header = head.headers.get("x-acs-action")?;
        Some(header.as_bytes().to_vec())
    });
    let format = params.remove(b"Format".as_slice());
    params.retain(|name, _| !is_dropped(name));
    Reading {
        method: head.method.to_string(),
        action: action.unwrap_or_default(),
        format,
        params,
        json: if form.is_empty() {
            body.to_vec()
        } else {
            Vec::new()
        },
    }
}

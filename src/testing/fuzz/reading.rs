//! What does a request ask for, whatever signs it? Read by a few lenient lines that share nothing with `acs`, from what
//! a caller sent and from what Flowgate makes of it: the two must agree.

use std::collections::BTreeMap;

use hyper::http::request::Parts;

/// One request's meaning.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Reading {
    method: String,
    action: Vec<u8>,
    format: Option<Vec<u8>>,
    params: BTreeMap<Vec<u8>, Vec<u8>>,
    json: Vec<u8>,
}

/// Parameters that sign, or speak for somebody else.
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

/// `%XX` and `+`; bytes that are no escape stay as they are.
pub(super) fn plain(text: &[u8]) -> Vec<u8> {
    let hex = |bytes: &[u8]| u8::from_str_radix(std::str::from_utf8(bytes).ok()?, 16).ok();
    let mut decoded = Vec::new();
    let mut rest = text;
    while let [byte, more @ ..] = rest {
        rest = more;
        match (byte, more) {
            (b'+', _) => decoded.push(b' '),
            (b'%', [high, low, after @ ..]) if hex(&[*high, *low]).is_some() => {
                decoded.extend(hex(&[*high, *low]));
                rest = after;
            }
            (other, _) => decoded.push(*other),
        }
    }
    decoded
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

/// Whether the head says that its body is a form.
pub(super) fn has_form(head: &Parts) -> bool {
    let kind = head
        .headers
        .get("content-type")
        .map(|value| value.as_bytes().to_ascii_lowercase());
    kind.is_some_and(|kind| kind.starts_with(b"application/x-www-form-urlencoded"))
}

/// Reads a request.
pub(super) fn read(head: &Parts, body: &[u8]) -> Reading {
    let form = if has_form(head) { body } else { b"" };
    let query = head.uri.query().unwrap_or_default().as_bytes();
    let mut params: BTreeMap<_, _> = pairs(query).chain(pairs(form)).collect();
    let header = |name: &str| {
        head.headers
            .get(name)
            .map(|value| value.as_bytes().to_vec())
    };
    let action = params
        .remove(b"Action".as_slice())
        .or_else(|| header("x-acs-action"));
    let format = params.remove(b"Format".as_slice());
    params.retain(|name, _| {
        let is = |dropped: &str| name.eq_ignore_ascii_case(dropped.as_bytes());
        !DROPPED.iter().any(|dropped| is(dropped))
            && !name.to_ascii_lowercase().starts_with(b"signature")
    });
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

//! Calls that a test edits before they are signed, so that only the edited part can be the reason
//! of a refusal.

use super::*;
use crate::acs::v3::Signable;
use crate::acs::{encode, v1, v3};

/// A call before it is signed.
pub(super) struct Call {
    pub(super) method: &'static str,
    pub(super) query: String,
    pub(super) headers: Vec<(String, String)>,
    pub(super) body: String,
    pub(super) key: &'static str,
    pub(super) secret: &'static str,
    /// Headers that the signature leaves out.
    pub(super) unsigned: Vec<&'static str>,
}

impl Call {
    fn new() -> Self {
        Self {
            method: "POST",
            query: String::new(),
            headers: vec![],
            body: String::new(),
            key: KEY,
            secret: SECRET,
            unsigned: vec![],
        }
    }

    pub(super) fn set(&mut self, name: &str, value: &str) {
        self.headers.retain(|(other, _)| other != name);
        self.headers.push((name.into(), value.into()));
    }

    pub(super) fn unset(&mut self, name: &str) {
        self.headers.retain(|(other, _)| other != name);
    }

    pub(super) fn form(&mut self, body: &str) {
        self.body = body.into();
        self.set("content-type", "application/x-www-form-urlencoded");
    }

    pub(super) fn json(&mut self, body: &str) {
        self.body = body.into();
        self.set("content-type", "application/json; charset=utf-8");
    }

    fn into_capture(self, target: String) -> Capture {
        let headers = self
            .headers
            .into_iter()
            .map(|(name, value)| (name, value.into_bytes()))
            .collect();
        Capture {
            method: self.method.into(),
            target,
            headers,
            body: self.body.into_bytes(),
        }
    }
}

/// A version 3 call.
pub(super) fn v3(edit: impl FnOnce(&mut Call)) -> Capture {
    let mut call = Call::new();
    call.query = "FlowName=a&CustSpaceId=space-1".into();
    for (name, value) in [
        ("host", "127.0.0.1:8080"),
        ("x-acs-action", "CreateFlow"),
        ("x-acs-version", "2020-06-06"),
        ("x-acs-date", NOW),
        ("x-acs-signature-nonce", "nonce-1"),
    ] {
        call.set(name, value);
    }
    edit(&mut call);
    let hash = v3::hash(call.body.as_bytes());
    if !call
        .headers
        .iter()
        .any(|(name, _)| name == "x-acs-content-sha256")
    {
        call.set("x-acs-content-sha256", &hash);
    }
    let query = capture::pairs(&call.query);
    let mut headers: Vec<(&str, &[u8])> = call
        .headers
        .iter()
        .map(|(name, value)| (name.as_str(), value.as_bytes()))
        .collect();
    headers.retain(|(name, _)| !call.unsigned.contains(name));
    headers.sort_unstable();
    let signable = Signable {
        method: call.method,
        query: query
            .iter()
            .map(|(name, value)| (name.as_str(), value.as_str()))
            .collect(),
        headers,
        body_hash: &hash,
    };
    let authorization = signable.authorization(call.key, &Secret::new(call.secret));
    call.headers.push(("authorization".into(), authorization));
    let target = format!("/?{}", call.query);
    call.into_capture(target)
}

/// A version 1 call; `query` may replace or drop (by an empty text) its common parameters.
pub(super) fn v1(query: &[(&str, &str)], edit: impl FnOnce(&mut Call)) -> Capture {
    let mut call = Call::new();
    call.set("host", "127.0.0.1:8080");
    edit(&mut call);
    let mut params: Vec<(String, String)> = [
        ("Action", "CreateFlow"),
        ("Version", "2020-06-06"),
        ("Format", "JSON"),
        ("AccessKeyId", call.key),
        ("SignatureMethod", "HMAC-SHA1"),
        ("SignatureVersion", "1.0"),
        ("SignatureNonce", "nonce-1"),
        ("Timestamp", NOW),
        ("FlowName", "a"),
    ]
    .into_iter()
    .filter(|(name, _)| !query.iter().any(|(other, _)| other == name))
    .chain(query.iter().copied().filter(|(_, value)| !value.is_empty()))
    .map(|(name, value)| (name.to_owned(), value.to_owned()))
    .collect();
    let form = if call.headers.iter().any(|(_, value)| value.contains("form")) {
        capture::pairs(&call.body)
    } else {
        vec![]
    };
    let all = params
        .iter()
        .chain(&form)
        .map(|(name, value)| (name.as_str(), value.as_str()));
    let signature = v1::sign(
        &Secret::new(call.secret),
        &v1::string_to_sign(call.method, all),
    );
    params.push(("Signature".into(), signature));
    let query = encode::pairs(
        params
            .iter()
            .map(|(name, value)| (name.as_str(), value.as_str())),
    );
    call.into_capture(format!("/?{query}"))
}

//! A request as bytes, and an independent parser for it that shares no code with `acs`.

use std::collections::BTreeMap;

use http_body_util::{BodyExt, Full};
use hyper::header::{HeaderName, HeaderValue};

use super::*;

/// One request, the body de-chunked.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Capture {
    pub(super) method: String,
    pub(super) target: String,
    pub(super) headers: Vec<(String, Vec<u8>)>,
    pub(super) body: Vec<u8>,
}

/// The meaning of a request, independent of its signature.
#[derive(Debug, PartialEq)]
pub(super) struct Reading {
    method: String,
    action: String,
    version: String,
    format: Option<String>,
    pub(super) params: BTreeMap<String, String>,
    json: Option<String>,
}

/// The number of captures that [`signed`] returns.
pub(super) const SIGNED: usize = 71;

/// Every capture that is signed by an HMAC with SHA-1 or SHA-256.
pub(super) fn signed() -> Vec<(String, Capture)> {
    let is_signed = |vector: &&vectors::Vector| {
        matches!(
            vector.kind.as_str(),
            "ACS3-HMAC-SHA256" | "RPC-V1 HMAC-SHA1"
        )
    };
    let captures: Vec<_> = vectors::all()
        .iter()
        .filter(is_signed)
        .map(|v| (v.file.clone(), load(&v.file)))
        .collect();
    assert_eq!(captures.len(), SIGNED);
    captures
}

pub(super) fn load(file: &str) -> Capture {
    let path = format!("{}/tests/data/captures/{file}", env!("CARGO_MANIFEST_DIR"));
    let raw = std::fs::read(path).unwrap();
    let end = raw
        .windows(4)
        .position(|window| window == b"\r\n\r\n")
        .unwrap();
    let head = std::str::from_utf8(&raw[..end]).unwrap();
    let mut lines = head.split("\r\n");
    let mut first = lines.next().unwrap().split(' ');
    let method = first.next().unwrap().to_owned();
    let target = first.next().unwrap().to_owned();
    let headers = lines
        .map(|line| line.split_once(": ").unwrap())
        .map(|(name, value)| (name.to_owned(), value.as_bytes().to_vec()))
        .collect();
    let mut capture = Capture {
        method,
        target,
        headers,
        body: raw[end + 4..].to_vec(),
    };
    if capture.header("transfer-encoding").is_some() {
        capture.body = dechunk(&capture.body);
    }
    capture
}

fn dechunk(mut rest: &[u8]) -> Vec<u8> {
    let mut body = Vec::new();
    loop {
        let line = rest
            .windows(2)
            .position(|window| window == b"\r\n")
            .unwrap();
        let size = usize::from_str_radix(std::str::from_utf8(&rest[..line]).unwrap(), 16).unwrap();
        if size == 0 {
            return body;
        }
        body.extend_from_slice(&rest[line + 2..][..size]);
        rest = &rest[line + 2 + size + 2..];
    }
}

/// Decodes `%XX` and `+`; other bytes are kept.
pub(super) fn plain(text: &str) -> String {
    let bytes = text.replace('+', " ").into_bytes();
    let mut out = Vec::new();
    let mut at = 0;
    while at < bytes.len() {
        if bytes[at] == b'%' {
            out.push(
                u8::from_str_radix(std::str::from_utf8(&bytes[at + 1..at + 3]).unwrap(), 16)
                    .unwrap(),
            );
            at += 3;
        } else {
            out.push(bytes[at]);
            at += 1;
        }
    }
    String::from_utf8(out).unwrap()
}

pub(super) fn pairs(text: &str) -> Vec<(String, String)> {
    text.split('&')
        .filter(|pair| !pair.is_empty())
        .map(|pair| pair.split_once('=').unwrap())
        .map(|(name, value)| (plain(name), plain(value)))
        .collect()
}

impl Capture {
    pub(super) fn header(&self, name: &str) -> Option<&str> {
        let header = self
            .headers
            .iter()
            .find(|(other, _)| other.eq_ignore_ascii_case(name));
        header.map(|(_, value)| std::str::from_utf8(value).unwrap())
    }

    pub(super) fn set(&mut self, name: &str, value: &str) {
        self.headers
            .retain(|(other, _)| !other.eq_ignore_ascii_case(name));
        self.add(name, value);
    }

    pub(super) fn add(&mut self, name: &str, value: &str) {
        self.headers
            .push((name.to_owned(), value.as_bytes().to_vec()));
    }

    pub(super) fn query(&self) -> &str {
        self.target.split_once('?').map_or("", |(_, query)| query)
    }

    pub(super) fn is_v3(&self) -> bool {
        self.header("authorization").is_some()
    }

    pub(super) fn form(&self) -> &str {
        let is_form = self
            .header("content-type")
            .is_some_and(|value| value.contains("form"));
        if is_form {
            std::str::from_utf8(&self.body).unwrap()
        } else {
            ""
        }
    }

    /// Parses the request independently.
    pub(super) fn read(&self) -> Reading {
        let mut params: BTreeMap<String, String> = pairs(self.query())
            .into_iter()
            .chain(pairs(self.form()))
            .collect();
        let mut take = |name: &str, header: &str| match self.is_v3() {
            true => self.header(header).map(str::to_owned),
            false => params.remove(name),
        };
        let action = take("Action", "x-acs-action").unwrap();
        let version = take("Version", "x-acs-version").unwrap();
        let format = take("Format", "no-such-header");
        for name in ["Timestamp", "AccessKeyId", "SecurityToken"] {
            params.remove(name);
        }
        params.retain(|name, _| !name.starts_with("Signature"));
        let json = (!self.body.is_empty() && self.form().is_empty())
            .then(|| String::from_utf8(self.body.clone()).unwrap());
        Reading {
            method: self.method.clone(),
            action,
            version,
            format,
            params,
            json,
        }
    }
}

impl TryFrom<&Capture> for Request<()> {
    type Error = hyper::http::Error;

    fn try_from(capture: &Capture) -> Result<Self, Self::Error> {
        let mut builder = Request::builder()
            .method(capture.method.as_str())
            .uri(capture.target.as_str());
        for (name, value) in &capture.headers {
            builder = builder.header(HeaderName::try_from(name)?, HeaderValue::from_bytes(value)?);
        }
        builder.body(())
    }
}

impl From<Request<Full<Bytes>>> for Capture {
    fn from(request: Request<Full<Bytes>>) -> Self {
        let (parts, body) = request.into_parts();
        let body = futures_util::FutureExt::now_or_never(body.collect())
            .unwrap()
            .unwrap()
            .to_bytes();
        let headers = parts
            .headers
            .iter()
            .map(|(name, value)| (name.to_string(), value.as_bytes().to_vec()));
        Self {
            method: parts.method.to_string(),
            target: parts.uri.to_string(),
            headers: headers.collect(),
            body: body.to_vec(),
        }
    }
}

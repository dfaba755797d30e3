//! Arbitrary answers to requests for credentials: a session has all its fields and comes from one
//! complete JSON document; a failure repeats nothing of the answer but words.

use std::time::{Duration, SystemTime};

use hyper::StatusCode;
use hyper::header::{CONTENT_TYPE, DATE, HeaderMap, HeaderValue};
use serde_json::Value;

use crate::credentials::answer::{Form, read};
use crate::credentials::http::Answer;
use crate::upstream::UpstreamResponse;

const FORMS: [Form; 3] = [Form::Sts, Form::Metadata, Form::Uri];
const STATUSES: [u16; 8] = [200, 200, 204, 302, 400, 403, 429, 503];
const TYPES: [&str; 3] = ["application/json", "text/xml", "text/html"];

/// Longest text of a failure: its place and its reason are Flowgate's own.
const MAX_TEXT: usize = 600;

fn made(status: u16, kind: &'static str, body: &[u8]) -> Answer {
    let headers = HeaderMap::from_iter([
        (CONTENT_TYPE, HeaderValue::from_static(kind)),
        (
            DATE,
            HeaderValue::from_static("Sun, 29 Nov 2026 04:00:00 GMT"),
        ),
    ]);
    Answer {
        response: UpstreamResponse {
            status: StatusCode::from_u16(status).expect("the statuses are valid"),
            headers,
            body: body.to_vec().into(),
        },
        received: SystemTime::UNIX_EPOCH,
        took: Duration::from_millis(100),
        sent: Vec::new(),
    }
}

/// The first byte selects a status, the second a content type; the rest is the body.
pub fn session(input: &[u8]) {
    let [status, kind, body @ ..] = input else {
        return;
    };
    let status = STATUSES[usize::from(*status) % STATUSES.len()];
    let kind = TYPES[usize::from(*kind) % TYPES.len()];
    for form in FORMS {
        match read(form, "sts.test", &made(status, kind, body)) {
            Ok(obtained) => {
                assert_eq!(status, 200);
                let document: Value = serde_json::from_slice(body).expect("one document");
                let fields = if form == Form::Sts {
                    &document["Credentials"]
                } else {
                    &document
                };
                let credentials = &obtained.credentials;
                let key = credentials.access_key_id.as_str();
                let token = credentials.security_token.as_ref();
                let token = token.expect("a session has a token").expose();
                let is_field = |name: &str, found: &str| {
                    let written = fields[name].as_str().unwrap_or_default();
                    written.trim_end_matches(['\r', '\n']) == found
                };
                assert!(is_field("AccessKeyId", key));
                assert!(is_field("AccessKeySecret", credentials.secret.expose()));
                assert!(is_field("SecurityToken", token));
                assert!(!key.is_empty() && !token.is_empty());
                assert!(!credentials.secret.expose().is_empty());
                assert!(!obtained.lifetime.is_zero());
                let cut = body.trim_ascii_end();
                let cut = &cut[..cut.len() - 1];
                assert!(read(form, "sts.test", &made(status, kind, cut)).is_err());
            }
            Err(error) => {
                let text = error.to_string();
                let is_plain = text.bytes().all(|b| b.is_ascii_graphic() || b == b' ');
                assert!(is_plain && text.len() <= MAX_TEXT, "{text}");
            }
        }
    }
}

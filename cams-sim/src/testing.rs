//! Signed calls for the tests. They use `signature`, which is verified with captures of real SDK
//! traffic.

use std::collections::BTreeMap;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use hyper::Request;
use hyper::header::HeaderName;
use serde_json::Value;

use crate::{Answer, Settings, Sim, signature};

/// [`noon`] as a time stamp.
pub(crate) const NOON: &str = "2026-11-24T12:00:00Z";

/// The time of day at which the tests' calls are signed.
pub(crate) fn noon() -> SystemTime {
    UNIX_EPOCH + Duration::from_secs(1_795_521_600)
}

/// An endpoint at noon with the key `id` of the account `acme`.
pub(crate) fn settings() -> Settings {
    Settings {
        now: Some(noon()),
        ..Settings::default().with_key("id", "secret", "acme")
    }
}

/// A call to sign.
#[derive(Debug, Clone)]
pub(crate) struct Draft {
    pub(crate) key: (&'static str, &'static str),
    pub(crate) token: Option<&'static str>,
    pub(crate) action: &'static str,
    pub(crate) version: &'static str,
    pub(crate) time: String,
    pub(crate) nonce: String,
    pub(crate) parameters: Vec<(&'static str, String)>,
}

impl Draft {
    /// A CreateFlow of one flow.
    pub(crate) fn create(flow: &str, nonce: &str) -> Self {
        let parameters = vec![
            ("FlowName", flow.to_owned()),
            ("Categories", "[\"OTHER\"]".to_owned()),
        ];
        Self {
            parameters,
            ..Self::of("CreateFlow", nonce)
        }
    }

    /// A call without parameters.
    pub(crate) fn of(action: &'static str, nonce: &str) -> Self {
        let time = NOON.to_owned();
        let nonce = nonce.to_owned();
        Self {
            key: ("id", "secret"),
            token: None,
            action,
            version: "2020-06-06",
            time,
            nonce,
            parameters: Vec::new(),
        }
    }

    /// Signs with V3.
    pub(crate) fn v3(&self) -> Request<Bytes> {
        self.odd_v3(&[], |_| ())
    }

    /// Signs with V3, with more or other headers, and with a changed list of signed headers.
    pub(crate) fn odd_v3(
        &self,
        others: &[(&str, &str)],
        change: fn(&mut Vec<String>),
    ) -> Request<Bytes> {
        let query: BTreeMap<String, String> = self
            .parameters
            .iter()
            .map(|(name, value)| (name.to_string(), value.clone()))
            .collect();
        let mut request = Request::post(format!("/?{}", join(&query)))
            .body(Bytes::new())
            .unwrap();
        let mut headers = BTreeMap::from([
            ("host", "cams.test"),
            ("x-acs-action", self.action),
            (
                "x-acs-content-sha256",
                "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855",
            ),
            ("x-acs-date", &self.time),
            ("x-acs-signature-nonce", &self.nonce),
            ("x-acs-version", self.version),
        ]);
        headers.extend(self.token.map(|token| ("x-acs-security-token", token)));
        headers.extend(others.iter().copied());
        for (name, value) in &headers {
            request
                .headers_mut()
                .insert(HeaderName::try_from(*name).unwrap(), value.parse().unwrap());
        }
        let mut signed: Vec<String> = headers.keys().map(|name| name.to_string()).collect();
        change(&mut signed);
        let canonical =
            signature::v3_canonical_request("POST", &query, request.headers(), &signed, b"");
        let signature =
            signature::v3_signature(self.key.1, &signature::v3_string_to_sign(&canonical));
        let names = signed.join(";");
        let authorization = format!(
            "ACS3-HMAC-SHA256 Credential={},SignedHeaders={names},Signature={signature}",
            self.key.0
        );
        request
            .headers_mut()
            .insert("authorization", authorization.parse().unwrap());
        request
    }

    /// Signs with V1, all in the query. A parameter replaces a common one, or removes it if it is
    /// empty.
    pub(crate) fn v1(&self) -> Request<Bytes> {
        let common = [
            ("AccessKeyId", self.key.0),
            ("Action", self.action),
            ("Format", "JSON"),
            ("SignatureMethod", "HMAC-SHA1"),
            ("SignatureNonce", &self.nonce),
            ("SignatureVersion", "1.0"),
            ("Timestamp", &self.time),
            ("Version", self.version),
        ];
        let mut query: BTreeMap<String, String> = common
            .map(|(name, value)| (name.to_owned(), value.to_owned()))
            .into();
        query.extend(
            self.token
                .map(|token| ("SecurityToken".to_owned(), token.to_owned())),
        );
        query.extend(
            self.parameters
                .iter()
                .map(|(name, value)| (name.to_string(), value.clone())),
        );
        query.retain(|_, value| !value.is_empty());
        let signature =
            signature::v1_signature(self.key.1, &signature::v1_string_to_sign("POST", &query));
        query.insert("Signature".to_owned(), signature);
        Request::post(format!("/?{}", join(&query)))
            .header("host", "cams.test")
            .body(Bytes::new())
            .unwrap()
    }
}

/// Encoded pairs of a query or form.
pub(crate) fn join(pairs: &BTreeMap<String, String>) -> String {
    let pairs: Vec<String> = pairs
        .iter()
        .map(|(name, value)| format!("{name}={}", signature::encode(value)))
        .collect();
    pairs.join("&")
}

/// Status and JSON body of the response to a call.
pub(crate) async fn ask(sim: &Sim, request: Request<Bytes>) -> (u16, Value) {
    match sim.answer(request).await {
        Answer::Http(response) => (
            response.status().as_u16(),
            serde_json::from_slice(response.body()).unwrap(),
        ),
        other => panic!("no HTTP answer: {other:?}"),
    }
}

/// Status and `Code` of the response to a call.
pub(crate) async fn code(sim: &Sim, request: Request<Bytes>) -> (u16, String) {
    let (status, body) = ask(sim, request).await;
    (status, body["Code"].as_str().unwrap().to_owned())
}

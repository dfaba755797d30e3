//! Records every request for credentials: to STS, to the metadata service, to the credentials URI.
//! Names are kept in full and secrets as their length and the beginning of their SHA-256, so that a
//! test can see where a secret was and which it was, and a log of it gives nothing away.

use bytes::Bytes;
use hyper::Request;
use serde_json::{Value, json};
use tokio::time::Instant;

use crate::Verdict;
use crate::request::{Call, decode};
use crate::signature::sha256;

/// Parameters and headers whose values are secret, in lower case.
const SECRETS: [&str; 6] = [
    "oidctoken",
    "securitytoken",
    "samlassertion",
    "signature",
    "x-acs-security-token",
    "x-aliyun-ecs-metadata-token",
];

/// One request for credentials, or for the caller's identity.
#[derive(Debug, Clone)]
pub struct CredentialRequest {
    /// When the kernel received the bytes that were read first; without a socket, when it was complete.
    pub received: Instant,
    /// The action of STS, or `MetadataToken`, `MetadataRole`, `MetadataCredentials`,
    /// `CredentialsUri`; empty for anything else.
    pub action: String,
    /// The key that signed it; `None` if it is anonymous.
    pub access_key_id: Option<String>,
    /// Its method.
    pub method: String,
    /// Its path.
    pub path: String,
    /// The parameters of its query, in order.
    pub query: Vec<(String, String)>,
    /// The parameters of its form, in order.
    pub form: Vec<(String, String)>,
    /// Its headers in order, with names in lower case.
    pub headers: Vec<(String, String)>,
    /// The verdict. A metadata service refuses with a status, such as `404`.
    pub verdict: Verdict,
    /// The fault that affected it.
    pub fault: Option<&'static str>,
    /// The id of the session that was issued for it.
    pub issued: Option<String>,
}

/// How a secret is recorded: its length in bytes and the beginning of its SHA-256.
#[must_use]
pub fn fingerprint(secret: &str) -> String {
    let sum = sha256(secret.as_bytes());
    format!("<{} bytes, sha256 {}>", secret.len(), &sum[..12])
}

// === impl CredentialRequest ===

impl CredentialRequest {
    pub(crate) fn of(request: &Request<Bytes>, received: Instant) -> Self {
        let headers = request.headers().iter();
        let form = std::str::from_utf8(request.body()).unwrap_or_default();
        Self {
            received,
            action: String::new(),
            access_key_id: None,
            method: request.method().to_string(),
            path: request.uri().path().to_owned(),
            query: pairs(request.uri().query().unwrap_or_default()),
            form: pairs(form),
            headers: headers
                .map(|(name, value)| {
                    let value = String::from_utf8_lossy(value.as_bytes());
                    (name.to_string(), redact(name.as_str(), &value))
                })
                .collect(),
            verdict: Verdict::Lost,
            fault: None,
            issued: None,
        }
    }

    /// Adds what only the decoded call tells.
    pub(crate) fn describe(&mut self, call: &Call) {
        self.action.clone_from(&call.action);
        let key = &call.credential.access_key_id;
        self.access_key_id = Some(key.clone()).filter(|key| !key.is_empty());
    }

    /// The tokens that stood in the URL, where logs keep them; a signature there is no token.
    #[must_use]
    pub fn tokens_in_url(&self) -> Vec<&str> {
        let names = self.query.iter().map(|(name, _)| name.as_str());
        names
            .filter(|name| is_secret(name) && !name.eq_ignore_ascii_case("signature"))
            .collect()
    }

    /// A parameter of the form or else of the query, or else a header.
    #[must_use]
    pub fn value(&self, name: &str) -> Option<&str> {
        let all = self.form.iter().chain(&self.query).chain(&self.headers);
        all.into_iter()
            .find(|(other, _)| other == name)
            .map(|(_, value)| value.as_str())
    }

    /// As JSON, with milliseconds since `start`.
    pub(crate) fn to_json(&self, start: Instant) -> Value {
        let received = u64::try_from((self.received - start).as_millis()).unwrap_or(u64::MAX);
        json!({
            "received_ms": received, "action": self.action, "access_key_id": self.access_key_id, "method": self.method,
            "path": self.path, "query": self.query, "form": self.form, "headers": self.headers,
            "tokens_in_url": self.tokens_in_url(), "verdict": self.verdict.name(), "fault": self.fault, "issued": self.issued,
        })
    }
}

fn is_secret(name: &str) -> bool {
    SECRETS
        .iter()
        .any(|secret| name.eq_ignore_ascii_case(secret))
}

/// Decoded pairs; what cannot be decoded is recorded as a secret would be.
fn pairs(text: &str) -> Vec<(String, String)> {
    let pairs = text.split('&').filter(|pair| !pair.is_empty());
    pairs
        .map(|pair| {
            let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
            match (decode(name), decode(value)) {
                (Some(name), Some(value)) => {
                    let value = redact(&name, &value);
                    (name, value)
                }
                _ => (fingerprint(name), fingerprint(value)),
            }
        })
        .collect()
}

fn redact(name: &str, value: &str) -> String {
    if is_secret(name) {
        return fingerprint(value);
    }
    match value.split_once("Signature=") {
        Some((head, signature)) if name == "authorization" => {
            format!("{head}Signature={}", fingerprint(signature))
        }
        None if name == "authorization" => fingerprint(value),
        _ => value.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn secrets_are_fingerprints() {
        let request =
            Request::post("/?OIDCToken=a.b.c&securitytoken=t%2Bt&Signature=s&Action=X&bad=%zz")
                .header("authorization", "ACS3 Credential=id,Signature=abc")
                .header("x-acs-security-token", "token")
                .body(Bytes::from_static(b"OIDCToken=form-token&RoleArn=arn"))
                .unwrap();
        let record = CredentialRequest::of(&request, Instant::now());
        assert_eq!(record.tokens_in_url(), ["OIDCToken", "securitytoken"]);
        assert_eq!(record.value("OIDCToken"), Some(&*fingerprint("form-token")));
        assert_eq!(record.query[1].1, fingerprint("t+t"));
        assert_eq!(record.value("RoleArn"), Some("arn"));
        assert_eq!(
            record.value("authorization"),
            Some(&*format!(
                "ACS3 Credential=id,Signature={}",
                fingerprint("abc")
            ))
        );
        let printed = record.to_json(record.received).to_string();
        for secret in ["a.b.c", "t+t", "form-token", "=abc", "\"token\"", "zz"] {
            assert!(!printed.contains(secret), "{secret} in {printed}");
        }
        assert_eq!(fingerprint("abc"), "<3 bytes, sha256 ba7816bf8f01>");
    }
}

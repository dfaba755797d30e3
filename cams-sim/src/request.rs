//! Decodes target, headers and body of one request into a [`Call`]: its scheme, parameters and
//! credentials. Refuses what cannot be decoded and, in strict mode, what no correct client sends.
//! `auth` verifies the credentials.

use std::collections::BTreeMap;

use bytes::Bytes;
use hyper::header::{AUTHORIZATION, CONNECTION, CONTENT_TYPE, HOST};
use hyper::{HeaderMap, Request};

use crate::refusal::Refusal;

/// How a call is signed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scheme {
    /// RPC signature version 1.0, in parameters.
    V1,
    /// An `ACS3-…` Authorization header.
    V3,
    /// Not signed.
    Unsigned,
}

/// One decoded call.
#[derive(Debug)]
pub(crate) struct Call {
    pub(crate) scheme: Scheme,
    pub(crate) method: String,
    pub(crate) action: String,
    pub(crate) version: String,
    pub(crate) query: BTreeMap<String, String>,
    pub(crate) form: BTreeMap<String, String>,
    pub(crate) credential: Credential,
    pub(crate) timestamp: String,
    pub(crate) nonce: String,
    pub(crate) xml: bool,
}

/// The credentials of a call.
#[derive(Debug, Default)]
pub(crate) struct Credential {
    pub(crate) algorithm: String,
    pub(crate) access_key_id: String,
    pub(crate) signature: String,
    pub(crate) signed_headers: Vec<String>,
    pub(crate) security_token: Option<String>,
}

// === impl Call ===

impl Call {
    pub(crate) fn read(request: &Request<Bytes>, strict: bool) -> Result<Self, Refusal> {
        if strict {
            check_head(request)?;
        }
        let headers = request.headers();
        if request.uri().path() != "/" {
            return Err(Refusal::new("InvalidApi.NotFound"));
        }
        let query = decode_pairs(request.uri().query().unwrap_or_default(), strict)?;
        let is_form =
            header(headers, "content-type").starts_with("application/x-www-form-urlencoded");
        let body = if is_form {
            std::str::from_utf8(request.body()).map_err(|_| unreadable("the body"))?
        } else {
            ""
        };
        let form = decode_pairs(body, strict)?;
        if strict
            && let Some(name) = form
                .keys()
                .find(|name| query.keys().any(|other| other.eq_ignore_ascii_case(name)))
        {
            return Err(doubled(name));
        }
        let mut call = Self {
            scheme: Scheme::Unsigned,
            method: request.method().as_str().to_owned(),
            action: header(headers, "x-acs-action"),
            version: header(headers, "x-acs-version"),
            query,
            form,
            credential: Credential::default(),
            timestamp: String::new(),
            nonce: String::new(),
            xml: false,
        };
        if headers.contains_key(AUTHORIZATION) {
            call.read_v3(headers, strict, request.body())?;
        } else {
            call.read_v1(headers, strict, request.body(), is_form)?;
        }
        Ok(call)
    }

    /// A parameter of the form or else of the query.
    pub(crate) fn parameter(&self, name: &str) -> Option<&str> {
        self.form
            .get(name)
            .or_else(|| self.query.get(name))
            .map(String::as_str)
    }

    /// All parameters; the form takes precedence.
    pub(crate) fn parameters(&self) -> BTreeMap<String, String> {
        self.query
            .iter()
            .chain(&self.form)
            .map(|(name, value)| (name.clone(), value.clone()))
            .collect()
    }

    fn read_v3(&mut self, headers: &HeaderMap, strict: bool, body: &[u8]) -> Result<(), Refusal> {
        self.scheme = Scheme::V3;
        let authorization = header(headers, "authorization");
        let incomplete = || Refusal::new("IncompleteSignature");
        let (algorithm, rest) = authorization.split_once(' ').ok_or_else(incomplete)?;
        let fields: BTreeMap<&str, &str> = rest
            .split(',')
            .filter_map(|field| field.split_once('='))
            .collect();
        let field = |name| fields.get(name).copied().ok_or_else(incomplete);
        self.credential = Credential {
            algorithm: algorithm.to_owned(),
            access_key_id: field("Credential")?.to_owned(),
            signature: field("Signature")?.to_owned(),
            signed_headers: field("SignedHeaders")?
                .split(';')
                .map(str::to_owned)
                .collect(),
            security_token: headers
                .get("x-acs-security-token")
                .map(|_| header(headers, "x-acs-security-token")),
        };
        self.timestamp = header(headers, "x-acs-date");
        self.xml = header(headers, "accept").ends_with("/xml");
        self.nonce = header(headers, "x-acs-signature-nonce");
        if strict {
            self.check_v3_strictly(headers, body)?;
        }
        Ok(())
    }

    fn check_v3_strictly(&self, headers: &HeaderMap, body: &[u8]) -> Result<(), Refusal> {
        let common = [
            "Action",
            "Version",
            "AccessKeyId",
            "Signature",
            "SignatureNonce",
            "Timestamp",
            "SecurityToken",
        ];
        if let Some(name) = common
            .into_iter()
            .find(|name| self.parameter(name).is_some())
        {
            return Err(Refusal::strict(
                "TwoSchemes",
                format!("V1's {name} stands beside a V3 signature."),
            ));
        }
        let unsigned_type = headers.contains_key(CONTENT_TYPE)
            && !self
                .credential
                .signed_headers
                .iter()
                .any(|name| name == "content-type");
        if !body.is_empty() && unsigned_type {
            return Err(Refusal::strict(
                "UnsignedBody",
                "A body came whose content-type is not signed.".to_owned(),
            ));
        }
        Ok(())
    }

    fn read_v1(
        &mut self,
        headers: &HeaderMap,
        strict: bool,
        body: &[u8],
        is_form: bool,
    ) -> Result<(), Refusal> {
        let text = |name: &str| self.parameter(name).unwrap_or_default().to_owned();
        let credential = Credential {
            algorithm: text("SignatureMethod"),
            access_key_id: text("AccessKeyId"),
            signature: text("Signature"),
            signed_headers: Vec::new(),
            security_token: self.parameter("SecurityToken").map(str::to_owned),
        };
        let timestamp = text("Timestamp");
        let nonce = text("SignatureNonce");
        let format = self.parameter("Format");
        // Without Format the V1 response is XML. A call without an Action parameter is not V1.
        let xml = self.parameter("Action").is_some()
            && format.is_none_or(|format| format.eq_ignore_ascii_case("XML"));
        for (name, field) in [("Action", &self.action), ("Version", &self.version)] {
            let has_header = headers.contains_key(format!("x-acs-{}", name.to_ascii_lowercase()));
            let parameter = self.parameter(name);
            if strict && has_header && parameter.is_some_and(|value| value != field) {
                return Err(Refusal::strict(
                    "TwoActions",
                    format!("The parameter {name} and its x-acs header differ."),
                ));
            }
        }
        if strict && !body.is_empty() && !is_form {
            return Err(Refusal::strict(
                "UnsignedBody",
                "V1 signs no body but a form.".to_owned(),
            ));
        }
        let action = self.parameter("Action").map(str::to_owned);
        let version = self.parameter("Version").map(str::to_owned);
        self.action = action.unwrap_or_else(|| self.action.clone());
        self.version = version.unwrap_or_else(|| self.version.clone());
        self.scheme = if credential.access_key_id.is_empty() {
            Scheme::Unsigned
        } else {
            Scheme::V1
        };
        self.credential = credential;
        self.timestamp = timestamp;
        self.nonce = nonce;
        self.xml = xml;
        Ok(())
    }
}

/// A header's first value as text, or the empty string.
pub(crate) fn header(headers: &HeaderMap, name: &str) -> String {
    headers
        .get(name)
        .map(|value| String::from_utf8_lossy(value.as_bytes()).into_owned())
        .unwrap_or_default()
}

/// Refuses heads that no correct client or proxy sends to an endpoint.
pub(crate) fn check_head(request: &Request<Bytes>) -> Result<(), Refusal> {
    let headers = request.headers();
    let uri = request.uri();
    if uri.authority().is_some() {
        return Err(Refusal::strict(
            "AbsoluteForm",
            "The target names an authority, as if this were a proxy.".to_owned(),
        ));
    }
    if request.method() == hyper::Method::GET && !request.body().is_empty() {
        return Err(Refusal::strict(
            "BodyOfGet",
            "A GET came with a body.".to_owned(),
        ));
    }
    if !headers.contains_key(HOST) {
        return Err(Refusal::strict("NoHost", "There is no Host.".to_owned()));
    }
    for name in headers.keys() {
        let single = name == HOST
            || name == AUTHORIZATION
            || name == CONTENT_TYPE
            || name.as_str().starts_with("x-acs-");
        if single && headers.get_all(name).iter().count() > 1 {
            return Err(doubled(name.as_str()));
        }
        let hop = ["te", "trailer", "upgrade", "keep-alive", "expect"].contains(&name.as_str());
        if hop || name.as_str().starts_with("proxy-") || name.as_str().starts_with("x-flowgate-") {
            return Err(Refusal::strict(
                "HopHeader",
                format!("The header {name} is not meant for an endpoint."),
            ));
        }
    }
    let connection = header(headers, CONNECTION.as_str());
    if !["", "keep-alive", "close"].contains(&connection.to_ascii_lowercase().as_str()) {
        return Err(Refusal::strict(
            "HopHeader",
            format!("The header Connection says {connection}."),
        ));
    }
    Ok(())
}

fn decode_pairs(text: &str, strict: bool) -> Result<BTreeMap<String, String>, Refusal> {
    let mut pairs = BTreeMap::new();
    let mut seen = std::collections::HashSet::new();
    for pair in text.split('&').filter(|pair| !pair.is_empty()) {
        let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
        let name = decode(name).ok_or_else(|| unreadable(name))?;
        let value = decode(value).ok_or_else(|| unreadable(&name))?;
        if strict && !seen.insert(name.to_ascii_lowercase()) {
            return Err(doubled(&name));
        }
        pairs.insert(name, value);
    }
    Ok(pairs)
}

/// Decodes percent-encoding and `+`; `None` for a broken escape or text that is not UTF-8.
pub(crate) fn decode(text: &str) -> Option<String> {
    let mut bytes = text.bytes();
    let mut decoded = Vec::with_capacity(text.len());
    while let Some(byte) = bytes.next() {
        decoded.push(match byte {
            b'+' => b' ',
            b'%' => {
                let mut digit = || char::from(bytes.next()?).to_digit(16);
                u8::try_from(digit()? * 16 + digit()?).ok()?
            }
            other => other,
        });
    }
    String::from_utf8(decoded).ok()
}

fn doubled(name: &str) -> Refusal {
    Refusal::strict("Doubled", format!("{name} comes more than once."))
}

fn unreadable(what: &str) -> Refusal {
    Refusal::strict("Unreadable", format!("{what} cannot be decoded."))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn decodes_strictly() {
        assert_eq!(decode("a+b%2Bc~%E4%B8%AD;").as_deref(), Some("a b+c~中;"));
        for broken in ["%", "%4", "%zz", "%ff", "%+1"] {
            assert_eq!(decode(broken), None, "{broken}");
        }
    }

    #[test]
    fn without_strict_mode_the_last_of_a_duplicate_name_counts() {
        assert_eq!(
            decode_pairs("a=1&&a=2&b", false).unwrap(),
            BTreeMap::from([("a".into(), "2".into()), ("b".into(), String::new())])
        );
        assert_eq!(
            decode_pairs("a=1&A=2", true).unwrap_err().message,
            "A comes more than once."
        );
    }
}

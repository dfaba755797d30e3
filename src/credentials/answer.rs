//! Reads the answers of STS, of the metadata service and of a credentials URI. An answer is either a
//! whole session or a failure. Failures contain `Code` and `RequestId` of an answer, unless they
//! quote a secret, and nothing else of it.

use std::fmt;
use std::marker::PhantomData;
use std::time::{Duration, SystemTime};

use hyper::header::CONTENT_TYPE;
use serde::de::value::MapAccessDeserializer;
use serde::de::{MapAccess, Visitor};
use serde::{Deserialize, Deserializer};
use serde_json::Value;

use super::error::{FailureKind, FetchError};
use super::http::Answer;
use super::session::Obtained;
use crate::acs::{self, time};
use crate::config::{Credentials, access_key, one_line};
use crate::primitives::secret::Secret;
use crate::upstream::clock;

/// Largest `RequestId` in characters that a failure repeats.
const MAX_REQUEST_ID: usize = 64;

/// The names of a session's secrets, in JSON and in XML.
const SECRET_NAMES: [&str; 4] = [
    r#""AccessKeySecret""#,
    r#""SecurityToken""#,
    "<AccessKeySecret>",
    "<SecurityToken>",
];

/// Largest `Code` and `RequestId` in characters that a failure repeats.
const MAX_WORD: usize = 100;

/// How far a service's clock may be from this host's. The same bound as for the stamps of calls.
const MAX_CLOCK_ERROR: Duration = Duration::from_secs(24 * 3600);

/// `Code` of a session that is not from STS.
const SUCCESS: &str = "Success";

/// The kinds of failure by `Code`, which decides, not the status. Each code is also a prefix before
/// a dot. The first that fits counts.
const KINDS: &[(&str, FailureKind)] = &[
    (
        "AuthenticationFail.OIDCToken.Expired",
        FailureKind::OldToken,
    ),
    ("InvalidSecurityToken", FailureKind::OldToken),
    ("SecurityTokenExpired", FailureKind::OldToken),
    ("MissingSecurityToken", FailureKind::OldToken),
    ("InvalidAccessKeyId", FailureKind::OldToken),
    ("Forbidden.AccessKeyDisabled", FailureKind::OldToken),
    ("Throttling", FailureKind::Throttled),
    ("System.LimitControl", FailureKind::Throttled),
    (UNAVAILABLE_CODES[0], FailureKind::ServiceError),
    (UNAVAILABLE_CODES[1], FailureKind::ServiceError),
    ("InternalError", FailureKind::ServiceError),
    ("InternalFailure", FailureKind::ServiceError),
    // Not a refusal: another nonce is accepted.
    (NONCE_CODES[0], FailureKind::ServiceError),
    (NONCE_CODES[1], FailureKind::ServiceError),
    ("AuthenticationFail", FailureKind::Refused),
    ("EntityNotExist", FailureKind::Refused),
    ("Forbidden", FailureKind::Refused),
    ("IllegalTimestamp", FailureKind::Refused),
    ("InvalidParameter", FailureKind::Refused),
    ("InvalidTimeStamp", FailureKind::Refused),
    ("NoPermission", FailureKind::Refused),
    ("SignatureDoesNotMatch", FailureKind::Refused),
];

/// Codes of a service that cannot answer any request now.
const UNAVAILABLE_CODES: [&str; 2] = ["ServiceUnavailable", "ServiceUnavailableTemporary"];

/// STS's codes for a nonce that it has seen before.
const NONCE_CODES: [&str; 2] = ["SignatureNonceUsed", "InvalidSignatureNonce"];

/// STS's codes for a time stamp that is too far from its clock.
const CLOCK_CODES: &[&str] = &["InvalidTimeStamp", "IllegalTimestamp"];

/// Whose answer it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Form {
    /// AssumeRole and AssumeRoleWithOIDC.
    Sts,
    /// The metadata service. `Code` is required.
    Metadata,
    /// A credentials URI, in the form of the metadata service. `Code` may be missing.
    Uri,
}

/// Who the credentials belong to: GetCallerIdentity.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Identity {
    pub(crate) arn: String,
    pub(crate) account: String,
}

/// A session as it is written. Every field may be missing.
#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct SessionFields {
    code: Option<String>,
    access_key_id: Option<Secret>,
    access_key_secret: Option<Secret>,
    security_token: Option<Secret>,
    expiration: Option<Value>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct StsDocument {
    credentials: Option<Object<SessionFields>>,
}

/// A JSON object. serde also reads a struct from an array.
struct Object<T>(T);

/// The visitor for [`Object`].
struct Objects<T>(PhantomData<T>);

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct IdentityDocument {
    arn: Option<String>,
    account_id: Option<String>,
}

/// Reads a session. `place` names the service.
pub(crate) fn read(form: Form, place: &str, answer: &Answer) -> Result<Obtained, FetchError> {
    check_success(form, place, answer)?;
    let fields = if form == Form::Sts {
        document::<StsDocument>(answer).and_then(|document| {
            document
                .credentials
                .map(|Object(fields)| fields)
                .ok_or_else(|| "the answer has no Credentials".to_owned())
        })
    } else {
        document(answer)
    };
    let session = fields.and_then(|fields| match fields.code.as_deref() {
        None if form == Form::Metadata => Err("the answer has no Code".to_owned()),
        None | Some(SUCCESS) => fields.session(form, answer),
        Some(_) => Err("the answer is not a session".to_owned()),
    });
    session.map_err(|reason| bad(place, answer, reason))
}

/// Reads the answer of GetCallerIdentity.
pub(super) fn read_identity(place: &str, answer: &Answer) -> Result<Identity, FetchError> {
    check_success(Form::Sts, place, answer)?;
    let identity = document(answer).and_then(|document: IdentityDocument| {
        Ok(Identity {
            arn: printable("Arn", document.arn)?,
            account: printable("AccountId", document.account_id)?,
        })
    });
    identity.map_err(|reason| bad(place, answer, reason))
}

/// Whether STS refuses the request's time stamp.
pub(super) fn refuses_stamp(answer: &Answer) -> bool {
    let code = summary(answer).code;
    answer.response.status != 200 && is_one_of(CLOCK_CODES, code.as_deref())
}

/// The failure of an answer without a session.
pub(super) fn refusal(form: Form, place: &str, answer: &Answer) -> FetchError {
    let status = answer.response.status.as_u16();
    let code = summary(answer).code;
    let by_code = code.as_deref().and_then(kind_of_code);
    let kind = by_code.unwrap_or_else(|| kind_of_status(form, status, code.is_some()));
    let reason = reason(kind, status, code.as_deref());
    FetchError {
        kind,
        ..bad(place, answer, reason)
    }
}

/// What the service says with this answer.
fn reason(kind: FailureKind, status: u16, code: Option<&str>) -> &'static str {
    match kind {
        FailureKind::Throttled => "the service asks for fewer requests",
        FailureKind::ServiceError if is_one_of(&NONCE_CODES, code) => {
            "the service refuses the nonce of the request"
        }
        FailureKind::ServiceError if status == 503 || is_one_of(&UNAVAILABLE_CODES, code) => {
            "the service is unavailable"
        }
        FailureKind::ServiceError => "the service failed",
        FailureKind::OldToken => "the service refuses the credentials or the token of the request",
        FailureKind::Refused => "the service refuses the request",
        _ if (300..400).contains(&status) => "the service redirects, which is not followed",
        _ => "the answer is not a session",
    }
}

/// An answer that cannot be used.
pub(super) fn bad(place: &str, answer: &Answer, reason: impl Into<String>) -> FetchError {
    let summary = summary(answer);
    FetchError {
        status: Some(answer.response.status.as_u16()),
        code: summary
            .code
            .filter(|text| is_code(text) && !quotes_secret(answer, text)),
        request_id: summary
            .request_id
            .filter(|text| is_request_id(text) && !quotes_secret(answer, text)),
        ..FetchError::new(FailureKind::BadAnswer, place, reason)
    }
}

/// Whether the text has the form of Alibaba's codes: words with dots between them. Most secrets have
/// digits.
fn is_code(text: &str) -> bool {
    text.bytes()
        .all(|byte| byte.is_ascii_alphabetic() || byte == b'.')
}

/// Whether the text has the form of a request id, which is a UUID.
fn is_request_id(text: &str) -> bool {
    text.len() <= MAX_REQUEST_ID
        && text
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || byte == b'-')
}

/// Whether the text repeats a secret, or a part of one, of the request or of the answer.
fn quotes_secret(answer: &Answer, text: &str) -> bool {
    let body = String::from_utf8_lossy(&answer.response.body);
    let mut received = SECRET_NAMES
        .into_iter()
        .flat_map(|name| values_of(name, &body));
    answer.sent.iter().any(|secret| secret.is_quoted_by(text))
        || received.any(|secret| secret.is_quoted_by(text))
}

/// The values after a name, in JSON or XML that may be broken.
fn values_of(name: &'static str, body: &str) -> impl Iterator<Item = Secret> {
    let mut after_names = body.split(name);
    after_names.next();
    after_names.map(|after| {
        let value = after.trim_start_matches([':', '"', ' ', '\t', '\r', '\n']);
        let value = value.split(['"', '<']).next().unwrap_or_default();
        // JSON may escape the slash.
        Secret::new(value.replace('\\', ""))
    })
}

fn check_success(form: Form, place: &str, answer: &Answer) -> Result<(), FetchError> {
    let has_failed = match summary(answer).code {
        None => false,
        Some(code) => form == Form::Sts || code != SUCCESS,
    };
    if answer.response.status != 200 || has_failed {
        return Err(refusal(form, place, answer));
    }
    Ok(())
}

/// `Code` and `RequestId`, if they look like such. They may still quote a secret.
fn summary(answer: &Answer) -> acs::answer::Summary {
    let content_type = answer.response.headers.get(CONTENT_TYPE);
    let content_type = content_type.and_then(|value| value.to_str().ok());
    let summary = acs::answer::read(content_type, &answer.response.body).unwrap_or_default();
    acs::answer::Summary {
        code: summary.code.filter(|text| is_word(text)),
        request_id: summary.request_id.filter(|text| is_word(text)),
        ..summary
    }
}

fn is_word(text: &str) -> bool {
    (1..=MAX_WORD).contains(&text.len())
        && text
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'-'))
}

/// Whether the code is the family or one of its members: `Throttling`, `Throttling.User`.
fn is_of(family: &str, code: &str) -> bool {
    code.strip_prefix(family)
        .is_some_and(|rest| rest.is_empty() || rest.starts_with('.'))
}

fn is_one_of(families: &[&str], code: Option<&str>) -> bool {
    code.is_some_and(|code| families.iter().any(|family| is_of(family, code)))
}

fn kind_of_code(code: &str) -> Option<FailureKind> {
    let mut kinds = KINDS.iter();
    kinds
        .find(|(family, _)| is_of(family, code))
        .map(|(_, kind)| *kind)
}

fn kind_of_status(form: Form, status: u16, has_code: bool) -> FailureKind {
    match (form, status) {
        (_, 429) => FailureKind::Throttled,
        (_, 500..=599) => FailureKind::ServiceError,
        // STS writes a code with each refusal; without it something else has answered.
        (Form::Sts, 400..=499) if has_code => FailureKind::Refused,
        (Form::Metadata | Form::Uri, 401 | 403) => FailureKind::Refused,
        _ => FailureKind::BadAnswer,
    }
}

/// Parses the body. serde's errors may contain values of it and are not repeated.
fn document<T: for<'de> Deserialize<'de>>(answer: &Answer) -> Result<T, String> {
    let body = &answer.response.body;
    if !body.trim_ascii_start().starts_with(b"{") {
        return Err("the answer is not a JSON object".to_owned());
    }
    // In a field that is not used, serde does not check the encoding of bytes.
    let body = std::str::from_utf8(body).map_err(|_| "the answer is not UTF-8".to_owned())?;
    let document = serde_json::from_str(body);
    document.map(|Object(document)| document).map_err(|error| {
        if error.is_eof() {
            "the answer is JSON that ends too early"
        } else {
            "the answer is not JSON of the documented form"
        }
        .to_owned()
    })
}

/// A text for a terminal.
fn printable(name: &str, text: Option<String>) -> Result<String, String> {
    text.filter(|text| {
        (1..=256).contains(&text.len()) && text.bytes().all(|byte| byte.is_ascii_graphic())
    })
    .ok_or_else(|| format!("the answer has no usable {name}"))
}

fn one_line_of(name: &str, text: Option<Secret>) -> Result<Secret, String> {
    let text = text.ok_or_else(|| format!("the answer has no {name}"))?;
    one_line(text.expose()).map_err(|reason| format!("{name}: {reason}"))
}

/// How long a session with this end is valid. The service's clock counts if the answer has a date,
/// which has whole seconds and may be as old as the request. A date that is more than a day off is
/// no clock's, and a URI's is not the clock of those who issue the session.
fn remaining(form: Form, expires: SystemTime, answer: &Answer) -> Option<Duration> {
    let date = clock::date(&answer.response.headers)
        .filter(|date| form != Form::Uri && is_within_a_day(*date, answer.received));
    let now = match date {
        Some(date) => date.checked_add(Duration::from_secs(1) + answer.took)?,
        None => answer.received,
    };
    let remaining = expires.duration_since(now).ok()?;
    (!remaining.is_zero()).then_some(remaining)
}

fn is_within_a_day(date: SystemTime, clock: SystemTime) -> bool {
    let apart = date.duration_since(clock);
    apart.unwrap_or_else(|earlier| earlier.duration()) <= MAX_CLOCK_ERROR
}

// === impl Object ===

impl<'de, T: Deserialize<'de>> Deserialize<'de> for Object<T> {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        from.deserialize_map(Objects(PhantomData)).map(Self)
    }
}

impl<'de, T: Deserialize<'de>> Visitor<'de> for Objects<T> {
    type Value = T;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<T, A::Error> {
        T::deserialize(MapAccessDeserializer::new(map))
    }
}

// === impl SessionFields ===

impl SessionFields {
    fn session(self, form: Form, answer: &Answer) -> Result<Obtained, String> {
        let key = one_line_of("AccessKeyId", self.access_key_id)?;
        let access_key_id = access_key(key.expose())
            .ok_or_else(|| "AccessKeyId is not an access key id".to_owned())?;
        let secret = one_line_of("AccessKeySecret", self.access_key_secret)?;
        let security_token = one_line_of("SecurityToken", self.security_token)?;
        let expiration = self
            .expiration
            .ok_or_else(|| "the answer has no Expiration".to_owned())?;
        let expires = expiration
            .as_str()
            .and_then(time::parse_with_offset)
            .ok_or_else(|| "Expiration is not a time".to_owned())?;
        let lifetime = remaining(form, expires, answer)
            .ok_or_else(|| format!("the session ended at {}", time::format(expires)))?;
        Ok(Obtained {
            credentials: Credentials {
                access_key_id,
                secret,
                security_token: Some(security_token),
                expires: Some(expires),
            },
            lifetime,
        })
    }
}

#[cfg(test)]
mod tests;

//! What happened? One answer, or the lack of one, becomes a verdict: throttled exactly where CAMS says so in a complete
//! document or by its own header, never after a success or a failure that may have done something. Pure; what to do
//! about a verdict is the retry's.

use std::time::Duration;

use hyper::StatusCode;
use hyper::header::{
    CONTENT_ENCODING, CONTENT_TYPE, HeaderMap, HeaderName, HeaderValue, RETRY_AFTER,
};

use crate::acs::answer::{self, Summary};
use crate::error::Outcome;
use crate::upstream::{Answer, Lost};

/// The largest body that is judged by what it says; a throttle refusal is a few hundred bytes.
const MAX_JUDGED: usize = 64 * 1024;

/// Codes that CAMS gives for a signature, key, time or nonce that it does not take, each also as a prefix before a dot.
const CREDENTIAL_CODES: &[&str] = &[
    "SignatureDoesNotMatch",
    "SignatureNonceUsed",
    "IncompleteSignature",
    "InvalidAccessKeyId",
    "InvalidAccessKeySecret",
    "InvalidSecurityToken",
    "InvalidSignature",
    "InvalidSignatureMethod",
    "InvalidSignatureNonce",
    "InvalidSignatureVersion",
    "InvalidTimeStamp",
    "MissingAccessKeyId",
    "MissingSecurityToken",
    "MissingSignature",
    "MissingSignatureNonce",
    "MissingTimestamp",
    "SecurityTokenExpired",
];

/// The code of an answer whose own is not known.
const OTHER: &str = "other";

/// What happened to one attempt.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// CAMS did it.
    Ok {
        /// CAMS's name for the call.
        request_id: Option<String>,
        /// `OK`, also where the answer holds no code.
        code: String,
    },
    /// CAMS refused or failed; the answer is the caller's to read.
    UpstreamError {
        /// The code, or `other`.
        code: String,
        /// CAMS's name for the call.
        request_id: Option<String>,
    },
    /// CAMS did nothing because too many calls came.
    Throttled {
        /// The code, or `other`.
        code: String,
        /// What said so.
        source: ThrottleSource,
        /// How long CAMS wants to be left alone, unbounded.
        hint: Option<Duration>,
        /// CAMS's name for the call.
        request_id: Option<String>,
    },
    /// CAMS does not take the signature that Flowgate made; its answer names the key and stays inside.
    Credentials {
        /// The code.
        code: String,
        /// CAMS's name for the call.
        request_id: Option<String>,
    },
    /// Sent, and nobody can say whether CAMS did it.
    Unknown {
        /// Why, in a few words that hold nothing of the answer.
        reason: &'static str,
    },
}

/// What said that CAMS throttles.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum ThrottleSource {
    /// The code in the answer's body.
    Body,
    /// Only `x-acs-retry-after`.
    Header,
}

/// What the judge must know about the call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Context {
    /// Flowgate made the signature.
    pub(crate) managed: bool,
    /// The action has a limit, so that an answer nobody understands is not passed on as if it were CAMS's.
    pub(crate) limited: bool,
}

/// Judges an answer that came in whole.
pub(crate) fn judge(answer: &Answer, context: Context) -> Verdict {
    let status = answer.status;
    if let Some(reason) = garbage(answer) {
        return Verdict::Unknown { reason };
    }
    let read = || answer::read(text(&answer.headers, &CONTENT_TYPE), &answer.body);
    if answer.body.len() > MAX_JUDGED {
        // Too large to be a throttle refusal, but a refused signature is echoed in whatever length it had.
        let summary = if context.managed && !status.is_success() {
            read()
        } else {
            None
        };
        return refused_signature(context, status, summary.as_ref())
            .unwrap_or_else(|| by_status(status, None));
    }
    let summary = read();
    // A wrong signature is not mended by waiting, and the answer must stay inside whatever else it says.
    if let Some(verdict) = refused_signature(context, status, summary.as_ref()) {
        return verdict;
    }
    if let Some(source) = throttle(answer, summary.as_ref()) {
        let Summary {
            code, request_id, ..
        } = summary.unwrap_or_default();
        let code = code.unwrap_or_else(|| OTHER.to_owned());
        return Verdict::Throttled {
            code,
            source,
            hint: hint(&answer.headers),
            request_id,
        };
    }
    match summary {
        Some(Summary { code: None, .. }) if context.limited && !status.is_success() => {
            Verdict::Unknown {
                reason: "an error without a code",
            }
        }
        None if context.limited => Verdict::Unknown {
            reason: "an answer that is not in CAMS's shape",
        },
        summary => by_status(status, summary),
    }
}

/// Why an answer is nobody's: CAMS neither redirects nor switches protocols, compresses only when asked and always says
/// something when it did something.
fn garbage(answer: &Answer) -> Option<&'static str> {
    let encodings = answer.headers.get_all(CONTENT_ENCODING);
    if answer.status.is_informational() || answer.status.is_redirection() {
        Some("an interim answer or a redirect")
    } else if !(200..600).contains(&answer.status.as_u16()) {
        Some("a status that does not exist")
    } else if encodings.iter().any(|encoding| {
        !encoding
            .as_bytes()
            .trim_ascii()
            .eq_ignore_ascii_case(b"identity")
    }) {
        Some("an encoding that was not asked for")
    } else if answer.status.is_success() && answer.body.trim_ascii().is_empty() {
        Some("an empty success")
    } else {
        None
    }
}

/// Only a refusal says for sure that CAMS did nothing; what says so elsewhere stays inside, too.
fn refused_signature(
    context: Context,
    status: StatusCode,
    summary: Option<&Summary>,
) -> Option<Verdict> {
    let Summary {
        code: Some(code),
        request_id,
        has_data,
    } = summary?
    else {
        return None;
    };
    let family = code.split('.').next().unwrap_or_default();
    if !context.managed
        || !CREDENTIAL_CODES
            .iter()
            .any(|known| known.eq_ignore_ascii_case(family))
    {
        return None;
    }
    Some(
        if status.is_client_error() || status.is_success() && !has_data {
            Verdict::Credentials {
                code: code.clone(),
                request_id: request_id.clone(),
            }
        } else {
            Verdict::Unknown {
                reason: "a refusal of the signature in an answer that is none",
            }
        },
    )
}

/// Whether and where the answer says that CAMS did nothing because of too many calls.
fn throttle(answer: &Answer, summary: Option<&Summary>) -> Option<ThrottleSource> {
    let code = summary.and_then(|summary| summary.code.as_deref());
    let has_data = summary.is_some_and(|summary| summary.has_data);
    let by_body = code.is_some_and(is_throttle_code)
        && match answer.status {
            StatusCode::BAD_REQUEST | StatusCode::TOO_MANY_REQUESTS => true,
            StatusCode::OK => !has_data,
            _ => false,
        };
    if by_body {
        Some(ThrottleSource::Body)
    } else if answer.status.is_client_error() && acs_retry_after(&answer.headers).is_some() {
        Some(ThrottleSource::Header)
    } else {
        None
    }
}

fn is_throttle_code(code: &str) -> bool {
    code == "System.LimitControl" || code == "Throttling" || code.starts_with("Throttling.")
}

/// The verdict on an answer that is the caller's to read.
fn by_status(status: StatusCode, summary: Option<Summary>) -> Verdict {
    let Some(Summary {
        code, request_id, ..
    }) = summary
    else {
        let (request_id, code) = (None, OTHER.to_owned());
        return if status.is_success() {
            Verdict::Ok { request_id, code }
        } else {
            Verdict::UpstreamError { code, request_id }
        };
    };
    match code {
        // Not every action's success has a code.
        None if status.is_success() => Verdict::Ok {
            request_id,
            code: "OK".to_owned(),
        },
        None => Verdict::UpstreamError {
            code: OTHER.to_owned(),
            request_id,
        },
        Some(code) if status.is_success() && code == "OK" => Verdict::Ok { request_id, code },
        Some(code) => Verdict::UpstreamError { code, request_id },
    }
}

/// The first of the server's hints that is there: its own header, the standard one, the time left in its windows.
fn hint(headers: &HeaderMap) -> Option<Duration> {
    acs_retry_after(headers)
        .or_else(|| largest(headers, RETRY_AFTER.as_str(), positive).map(Duration::from_secs))
        .or_else(|| {
            let windows = ["x-ratelimit-user-api", "x-ratelimit-user"];
            windows
                .into_iter()
                .filter_map(|name| largest(headers, name, time_left))
                .max()
                .map(Duration::from_millis)
        })
}

fn acs_retry_after(headers: &HeaderMap) -> Option<Duration> {
    largest(headers, "x-acs-retry-after", positive).map(Duration::from_millis)
}

fn largest(headers: &HeaderMap, name: &str, parse: fn(&str) -> Option<u64>) -> Option<u64> {
    headers
        .get_all(name)
        .iter()
        .filter_map(|value| parse(value.to_str().ok()?))
        .max()
}

/// A whole number above zero; a date is none.
fn positive(text: &str) -> Option<u64> {
    let text = text.trim_matches([' ', '\t']);
    if !text.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    text.parse().ok().filter(|number| *number > 0)
}

/// The `TimeLeft` of `Limit:5,TimeLeft:1500`; pairs that are none are passed over.
fn time_left(text: &str) -> Option<u64> {
    let pairs = text.split(',').filter_map(|pair| pair.split_once(':'));
    pairs
        .filter(|(name, _)| name.trim_matches([' ', '\t']) == "TimeLeft")
        .filter_map(|(_, left)| positive(left))
        .max()
}

fn text<'a>(headers: &'a HeaderMap, name: &HeaderName) -> Option<&'a str> {
    headers.get(name).map(HeaderValue::to_str)?.ok()
}

// === impl Verdict ===

impl Verdict {
    /// How a call ends whose answer this is.
    pub(crate) fn outcome(&self) -> Outcome {
        match self {
            Self::Ok { .. } => Outcome::Ok,
            Self::Throttled { .. } => Outcome::Throttled,
            Self::UpstreamError { .. } | Self::Credentials { .. } => Outcome::UpstreamError,
            Self::Unknown { .. } => Outcome::Unknown,
        }
    }

    /// CAMS's code, or why there is none.
    pub(crate) fn code(&self) -> &str {
        match self {
            Self::Ok { code, .. }
            | Self::UpstreamError { code, .. }
            | Self::Throttled { code, .. }
            | Self::Credentials { code, .. } => code,
            Self::Unknown { reason } => reason,
        }
    }

    /// Whether CAMS does not know the account's key or token any more, which others may have replaced.
    pub(crate) fn is_old_session(&self) -> bool {
        let Self::Credentials { code, .. } = self else {
            return false;
        };
        let family = code.split('.').next().unwrap_or_default();
        ["InvalidAccessKeyId", "InvalidSecurityToken"]
            .iter()
            .any(|known| known.eq_ignore_ascii_case(family))
    }

    /// CAMS's name for the call.
    pub(crate) fn request_id(&self) -> Option<&str> {
        match self {
            Self::Ok { request_id, .. }
            | Self::UpstreamError { request_id, .. }
            | Self::Throttled { request_id, .. }
            | Self::Credentials { request_id, .. } => request_id.as_deref(),
            Self::Unknown { .. } => None,
        }
    }
}

impl From<Lost> for Verdict {
    fn from(lost: Lost) -> Self {
        let reason = match lost {
            Lost::Timeout => "no whole answer in time",
            Lost::Closed => "the connection broke before an answer",
            Lost::Cut => "the answer broke off",
            Lost::TooLarge => "the answer is over the limit",
            Lost::Malformed => "the answer is not HTTP",
        };
        Self::Unknown { reason }
    }
}

#[cfg(test)]
mod tests;

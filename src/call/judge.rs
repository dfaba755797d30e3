//! Turns an answer, or the lack of one, into a verdict. An attempt counts as throttled only if CAMS
//! states it in a complete document or in its own header, and never if CAMS may have executed the
//! call. This module does no I/O; `retry` decides what follows from a verdict.

use std::time::Duration;

use hyper::StatusCode;
use hyper::header::{
    CONTENT_ENCODING, CONTENT_TYPE, HeaderMap, HeaderName, HeaderValue, RETRY_AFTER,
};

use crate::acs::answer::{self, Summary};
use crate::error::Outcome;
use crate::upstream::{Lost, UpstreamResponse};

/// Largest body in bytes that is parsed. A throttled answer has a few hundred bytes.
const MAX_JUDGED: usize = 64 * 1024;

/// CAMS's codes for a rejected signature, key, timestamp or nonce. Each is also a prefix before a
/// dot.
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

/// The code of an answer without a code.
const OTHER: &str = "other";

/// The result of one attempt.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// CAMS executed the call.
    Ok {
        /// CAMS's request id.
        request_id: Option<String>,
        /// `OK`, also if the answer has no code.
        code: String,
    },
    /// CAMS rejected the call or failed; the answer is passed on to the caller.
    UpstreamError {
        /// The code, or `other`.
        code: String,
        /// CAMS's request id.
        request_id: Option<String>,
    },
    /// CAMS did not execute the call because of its rate limit.
    Throttled {
        /// The code, or `other`.
        code: String,
        /// Which part of the answer states it.
        source: ThrottleSource,
        /// How long CAMS asks to wait, as stated and not bounded.
        hint: Option<Duration>,
        /// CAMS's request id.
        request_id: Option<String>,
    },
    /// CAMS rejected the signature that Flowgate made. The answer contains the account's key and is
    /// not passed on.
    Credentials {
        /// The code.
        code: String,
        /// CAMS's request id.
        request_id: Option<String>,
    },
    /// The call was sent, and it is not known whether CAMS executed it.
    Unknown {
        /// The reason, in fixed words that contain nothing of the answer.
        reason: &'static str,
    },
}

/// The part of an answer that states that the call was throttled.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum ThrottleSource {
    /// The code in the answer's body.
    Body,
    /// Only `x-acs-retry-after`.
    Header,
}

/// Properties of the call that the verdict depends on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Context {
    /// Whether Flowgate made the signature.
    pub(crate) managed: bool,
    /// Whether the action has a limit. Then an answer that cannot be read is not passed on.
    pub(crate) limited: bool,
}

/// Judges a complete answer.
pub(crate) fn judge(answer: &UpstreamResponse, context: Context) -> Verdict {
    let status = answer.status;
    if let Some(reason) = not_from_cams(answer) {
        return Verdict::Unknown { reason };
    }
    if answer.body.len() > MAX_JUDGED {
        return judge_large(answer, context);
    }
    let summary = read(answer);
    // Checked first: waiting does not correct a rejected signature, and the answer must not be
    // passed on.
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
            reason: "an answer that is not in CAMS's format",
        },
        summary => by_status(status, summary),
    }
}

/// Judges an answer that is too large to be a throttled one. The answer to a rejected signature
/// echoes the request, so it may have any length.
fn judge_large(answer: &UpstreamResponse, context: Context) -> Verdict {
    let status = answer.status;
    let summary = if context.managed && !status.is_success() {
        read(answer)
    } else {
        None
    };
    refused_signature(context, status, summary.as_ref()).unwrap_or_else(|| by_status(status, None))
}

fn read(answer: &UpstreamResponse) -> Option<Summary> {
    answer::read(text(&answer.headers, &CONTENT_TYPE), &answer.body)
}

/// Why an answer cannot be from CAMS, which never redirects, switches protocols, compresses without
/// being asked, or sends a success without a body.
fn not_from_cams(answer: &UpstreamResponse) -> Option<&'static str> {
    let encodings = answer.headers.get_all(CONTENT_ENCODING);
    if answer.status.is_informational() || answer.status.is_redirection() {
        Some("an interim answer or a redirect")
    } else if !(200..600).contains(&answer.status.as_u16()) {
        Some("an invalid status code")
    } else if !encodings.iter().all(is_identity) {
        Some("a content encoding that was not requested")
    } else if answer.status.is_success() && answer.body.trim_ascii().is_empty() {
        Some("a success without a body")
    } else {
        None
    }
}

fn is_identity(encoding: &HeaderValue) -> bool {
    encoding
        .as_bytes()
        .trim_ascii()
        .eq_ignore_ascii_case(b"identity")
}

/// The verdict on an answer that rejects the signature. Only a refusal proves that CAMS did
/// nothing; such a code in another answer is not passed on either.
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
    if !context.managed || !is_in_family(code, CREDENTIAL_CODES) {
        return None;
    }
    let is_refusal = status.is_client_error() || status.is_success() && !has_data;
    if is_refusal {
        Some(Verdict::Credentials {
            code: code.clone(),
            request_id: request_id.clone(),
        })
    } else {
        Some(Verdict::Unknown {
            reason: "a rejected signature in an answer that is not a refusal",
        })
    }
}

/// Whether a code is one of these, or one of these followed by a dot and more; in any case.
fn is_in_family(code: &str, families: &[&str]) -> bool {
    let family = code.split('.').next().unwrap_or_default();
    families
        .iter()
        .any(|known| known.eq_ignore_ascii_case(family))
}

/// Whether the answer states that the call was throttled, and in which part.
fn throttle(answer: &UpstreamResponse, summary: Option<&Summary>) -> Option<ThrottleSource> {
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

/// The verdict on an answer that is passed on to the caller.
fn by_status(status: StatusCode, summary: Option<Summary>) -> Verdict {
    let Some(Summary {
        code, request_id, ..
    }) = summary
    else {
        let request_id = None;
        let code = OTHER.to_owned();
        return if status.is_success() {
            Verdict::Ok { request_id, code }
        } else {
            Verdict::UpstreamError { code, request_id }
        };
    };
    match code {
        // Some actions' successes have no code.
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

/// The server's first hint on when to retry, in this order: its own header, the standard header,
/// the time left in its rate-limit windows.
fn hint(headers: &HeaderMap) -> Option<Duration> {
    acs_retry_after(headers)
        .or_else(|| largest(headers, RETRY_AFTER.as_str(), positive).map(Duration::from_secs))
        .or_else(|| window_left(headers))
}

/// The longest time left in CAMS's rate-limit windows.
fn window_left(headers: &HeaderMap) -> Option<Duration> {
    ["x-ratelimit-user-api", "x-ratelimit-user"]
        .into_iter()
        .filter_map(|name| largest(headers, name, time_left))
        .max()
        .map(Duration::from_millis)
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

/// A whole number above zero. Dates are not supported.
fn positive(text: &str) -> Option<u64> {
    let text = text.trim_matches([' ', '\t']);
    if !text.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    text.parse().ok().filter(|number| *number > 0)
}

/// The `TimeLeft` of `Limit:5,TimeLeft:1500`; malformed pairs are ignored.
fn time_left(text: &str) -> Option<u64> {
    text.split(',')
        .filter_map(|pair| pair.split_once(':'))
        .filter(|(name, _)| name.trim_matches([' ', '\t']) == "TimeLeft")
        .filter_map(|(_, left)| positive(left))
        .max()
}

fn text<'a>(headers: &'a HeaderMap, name: &HeaderName) -> Option<&'a str> {
    headers.get(name).map(HeaderValue::to_str)?.ok()
}

// === impl Verdict ===

impl Verdict {
    /// The outcome of a call that ends with this verdict.
    pub(crate) fn outcome(&self) -> Outcome {
        match self {
            Self::Ok { .. } => Outcome::Ok,
            Self::Throttled { .. } => Outcome::Throttled,
            Self::UpstreamError { .. } | Self::Credentials { .. } => Outcome::UpstreamError,
            Self::Unknown { .. } => Outcome::Unknown,
        }
    }

    /// CAMS's code, or the reason of an unknown outcome.
    pub(crate) fn code(&self) -> &str {
        match self {
            Self::Ok { code, .. }
            | Self::UpstreamError { code, .. }
            | Self::Throttled { code, .. }
            | Self::Credentials { code, .. } => code,
            Self::Unknown { reason } => reason,
        }
    }

    /// Whether CAMS rejected the account's key or token, which may have been replaced in the
    /// meantime.
    pub(crate) fn is_old_session(&self) -> bool {
        let Self::Credentials { code, .. } = self else {
            return false;
        };
        is_in_family(code, &["InvalidAccessKeyId", "InvalidSecurityToken"])
    }

    /// CAMS's request id.
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
            Lost::Timeout => "no complete answer before the timeout",
            Lost::Closed => "the connection closed before an answer",
            Lost::Cut => "the answer was cut off",
            Lost::TooLarge => "the answer is larger than the limit",
            Lost::Malformed => "the answer is not HTTP",
        };
        Self::Unknown { reason }
    }
}

#[cfg(test)]
mod tests;

//! Turns an answer, or the lack of one, into a verdict. An attempt counts as throttled only if CAMS
//! states it in a complete document or in its own header, and never if CAMS may have executed the
//! call. This module does no I/O; `retry` decides what follows from a verdict.

use std::time::{Duration, SystemTime};

use hyper::StatusCode;
use hyper::header::{
    CONTENT_ENCODING, CONTENT_TYPE, HeaderMap, HeaderName, HeaderValue, RETRY_AFTER,
};

use crate::acs::actions::{self, Effect};
use crate::acs::answer::{self, Summary};
use crate::config::Credentials;
use crate::error::Outcome;
use crate::upstream::clock;
use crate::upstream::{Lost, UpstreamResponse};

/// Largest body in bytes that is parsed. A throttled answer has a few hundred bytes.
const MAX_JUDGED: usize = 64 * 1024;

/// CAMS's codes for a rejected signature. Each is also a prefix before a dot. `COPY_CODES`,
/// `CLOCK_CODES` and `SESSION_CODES` are other refusals of a signature.
const CREDENTIAL_CODES: &[&str] = &[
    "SignatureDoesNotMatch",
    "IncompleteSignature",
    "InvalidAccessKeySecret",
    "InvalidSignature",
    "InvalidSignatureMethod",
    "InvalidSignatureVersion",
    "InvalidTimeStamp",
    "MissingAccessKeyId",
    "MissingSecurityToken",
    "MissingSignature",
    "MissingSignatureNonce",
    "MissingTimestamp",
];

/// CAMS's codes for a time stamp that is too far from its clock. Some of Alibaba's gateways answer
/// `IllegalTimestamp` with a text about a missing one.
const CLOCK_CODES: &[&str] = &["InvalidTimeStamp.Expired", "IllegalTimestamp"];

/// CAMS's codes for a key or a token that may just have been replaced. `MissingSecurityToken` is none:
/// it says that a temporary key came without its token, which no other session changes.
const SESSION_CODES: &[&str] = &[
    "Forbidden.AccessKeyDisabled",
    "InvalidAccessKeyId",
    "InvalidSecurityToken",
    "SecurityTokenExpired",
];

/// CAMS's codes for a nonce that it has seen before. A nonce of Flowgate's own has 128 random bits
/// and is sent once, so such an answer proves that a copy of the request arrived before, and that
/// copy may have been executed. Codes for what exists already (`EntityAlreadyExists.*`, a duplicate
/// name) are no such proof: CAMS checks the nonce first, so they mean what another call has
/// created. Neither are those for a used idempotency token, which no action of CAMS has.
const COPY_CODES: &[&str] = &["SignatureNonceUsed", "InvalidSignatureNonce"];

/// CAMS's codes for a failure of its own, which prove nothing about the call, whatever the status.
const FAILURE_CODES: &[&str] = &[
    "InternalError",
    "InternalFailure",
    "ServiceUnavailable",
    "ServiceUnavailableTemporary",
];

/// Longest wait that `Retry-After` may state. Flowgate's own waits have a lower bound, which is
/// configured; this one is for what is passed on to a caller.
const MAX_RETRY_AFTER: Duration = Duration::from_secs(24 * 3600);

/// Reasons of unknown outcomes.
pub(crate) const COPY_ARRIVED: &str = "CAMS had already received a copy of the request";
const SERVER_FAILURE: &str = "CAMS reported a failure of its own";
const NOT_CAMS_FORMAT: &str = "an answer that is not in CAMS's format";

/// Maximum length of a request id that is shown.
const MAX_REQUEST_ID: usize = 64;

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
        /// How long CAMS asks to wait, not bounded by the configuration.
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
    /// CAMS rejected the time stamp that Flowgate made, and did nothing. The answer is not passed
    /// on.
    Clock {
        /// The code.
        code: String,
        /// CAMS's time minus this host's, in seconds, if the answer has a `Date`.
        offset: Option<i64>,
        /// CAMS's request id.
        request_id: Option<String>,
    },
    /// The call was sent, and it is not known whether CAMS executed it.
    Unknown {
        /// The reason, in fixed words that contain nothing of the answer.
        reason: &'static str,
        /// CAMS's request id, if the answer has one.
        request_id: Option<String>,
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
pub(crate) struct Context<'a> {
    /// Whether Flowgate made the signature.
    pub(crate) managed: bool,
    /// Whether the action has a limit. Then an answer that cannot be read is not passed on.
    pub(crate) limited: bool,
    /// The action.
    pub(crate) action: &'a str,
}

/// Judges a complete answer. `now` reads this host's clock, which few answers need.
pub(crate) fn judge(
    answer: &UpstreamResponse,
    context: Context<'_>,
    now: fn() -> SystemTime,
) -> Verdict {
    let status = answer.status;
    if let Some(reason) = not_from_cams(answer) {
        return Verdict::unknown(reason, None);
    }
    if answer.body.len() > MAX_JUDGED {
        return judge_large(answer, context, now);
    }
    let summary = read(answer);
    // Checked first: waiting does not correct a rejected signature, and the answer must not be
    // passed on.
    if let Some(verdict) = refused_signature(answer, context, summary.as_ref(), now) {
        return verdict;
    }
    if let Some(source) = throttle(answer, context, summary.as_ref()) {
        let Summary {
            code, request_id, ..
        } = summary.unwrap_or_default();
        let code = code.unwrap_or_else(|| OTHER.to_owned());
        return Verdict::Throttled {
            code,
            source,
            hint: hint(&answer.headers, now),
            request_id,
        };
    }
    if let Some(reason) = no_certain_answer(context, status, summary.as_ref()) {
        let request_id = summary.and_then(|summary| summary.request_id);
        return Verdict::unknown(reason, request_id);
    }
    by_status(status, summary)
}

/// Judges an answer that is too large to be a throttled one. It is read only where that matters: the
/// answer to a rejected signature echoes the request, so it may have any length, and what an action
/// has created must be known.
fn judge_large(
    answer: &UpstreamResponse,
    context: Context<'_>,
    now: fn() -> SystemTime,
) -> Verdict {
    let status = answer.status;
    let is_read = if status.is_success() {
        context.creates()
    } else {
        context.managed
    };
    let summary = is_read.then(|| read(answer)).flatten();
    if let Some(verdict) = refused_signature(answer, context, summary.as_ref(), now) {
        return verdict;
    }
    if is_failure(status) && context.creates() {
        return Verdict::unknown(SERVER_FAILURE, None);
    }
    if status.is_success() && context.creates() {
        return match no_certain_answer(context, status, summary.as_ref()) {
            Some(reason) => Verdict::unknown(reason, None),
            None => by_status(status, summary),
        };
    }
    by_status(status, None)
}

/// Why an answer that CAMS may have given does not state whether it executed the call.
fn no_certain_answer(
    context: Context<'_>,
    status: StatusCode,
    summary: Option<&Summary>,
) -> Option<&'static str> {
    let Some(summary) = summary else {
        return (context.limited || context.creates()).then_some(NOT_CAMS_FORMAT);
    };
    let code = summary.code.as_deref();
    let is_success = status.is_success();
    if is_success && matches!(code, None | Some("OK")) {
        let lacks_data = !summary.has_data && actions::answers_with_data(context.action);
        return lacks_data.then_some("a success without the data that it should have");
    }
    if code.is_none() && context.limited {
        return Some("an error without a code");
    }
    let has_failed = is_failure(status) || code.is_some_and(is_failure_code);
    (has_failed && context.creates()).then_some(SERVER_FAILURE)
}

fn read(answer: &UpstreamResponse) -> Option<Summary> {
    let summary = answer::read(text(&answer.headers, &CONTENT_TYPE), &answer.body)?;
    Some(Summary {
        // Shown to callers, logged and journalled.
        request_id: summary.request_id.filter(|id| is_request_id(id)),
        ..summary
    })
}

/// Whether the text has the form of CAMS's request ids, which are UUIDs. Other text may be a part of
/// the request that the answer quotes.
fn is_request_id(text: &str) -> bool {
    // Without an early end, so that the compiler checks many bytes at once.
    let has_other = text.bytes().fold(false, |has_other, byte| {
        has_other | !(byte.is_ascii_alphanumeric() | (byte == b'-'))
    });
    !has_other && (1..=MAX_REQUEST_ID).contains(&text.len())
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
    answer: &UpstreamResponse,
    context: Context<'_>,
    summary: Option<&Summary>,
    now: fn() -> SystemTime,
) -> Option<Verdict> {
    let Summary {
        code: Some(code),
        request_id,
        has_data,
    } = summary?
    else {
        return None;
    };
    // Most answers are `OK`, which is in none of the lists.
    if !context.managed || code == "OK" {
        return None;
    }
    if is_copy_code(code) {
        return Some(Verdict::unknown(COPY_ARRIVED, request_id.clone()));
    }
    let is_clock = is_in_family(code, CLOCK_CODES);
    let is_known =
        is_clock || is_in_family(code, CREDENTIAL_CODES) || is_in_family(code, SESSION_CODES);
    if !is_known {
        return None;
    }
    let status = answer.status;
    let is_refusal = status.is_client_error() || status.is_success() && !has_data;
    if is_refusal && is_clock {
        Some(Verdict::Clock {
            code: code.clone(),
            offset: clock::date(&answer.headers).map(|date| seconds_from(now(), date)),
            request_id: request_id.clone(),
        })
    } else if is_refusal {
        Some(Verdict::Credentials {
            code: code.clone(),
            request_id: request_id.clone(),
        })
    } else {
        Some(Verdict::unknown(
            "a rejected signature in an answer that is not a refusal",
            request_id.clone(),
        ))
    }
}

/// Whether a code states that CAMS has received a copy of the request before.
pub(crate) fn is_copy_code(code: &str) -> bool {
    is_in_family(code, COPY_CODES)
}

/// Whether a code is one of these, or one of these followed by a dot and more; in any case, and with
/// blanks around it.
fn is_in_family(code: &str, families: &[&str]) -> bool {
    let code = code.trim_ascii();
    let family = code.split('.').next().unwrap_or_default();
    families
        .iter()
        .any(|known| known.eq_ignore_ascii_case(family) || known.eq_ignore_ascii_case(code))
}

/// Whole seconds from the first time to the second; negative if the second is earlier.
fn seconds_from(first: SystemTime, second: SystemTime) -> i64 {
    let seconds = match second.duration_since(first) {
        Ok(later) => i128::from(later.as_secs()),
        Err(earlier) => -i128::from(earlier.duration().as_secs()),
    };
    i64::try_from(seconds).unwrap_or(i64::MAX)
}

/// Whether the answer states that the call was throttled, and in which part.
fn throttle(
    answer: &UpstreamResponse,
    context: Context<'_>,
    summary: Option<&Summary>,
) -> Option<ThrottleSource> {
    let code = summary.and_then(|summary| summary.code.as_deref());
    let has_data = summary.is_some_and(|summary| summary.has_data);
    let by_body = code.is_some_and(is_throttle_code)
        && match answer.status {
            StatusCode::BAD_REQUEST | StatusCode::TOO_MANY_REQUESTS => true,
            StatusCode::OK => !has_data,
            _ => false,
        };
    if by_body {
        return Some(ThrottleSource::Body);
    }
    let by_header = answer.status.is_client_error() && acs_retry_after(&answer.headers).is_some();
    // A failure may ask to come back, too, although the call may have been executed.
    let may_be_executed = is_failure(answer.status) || code.is_some_and(is_failure_code);
    let by_throttling = by_header && !(may_be_executed && context.creates());
    by_throttling.then_some(ThrottleSource::Header)
}

/// Whether the status does not exclude that CAMS has executed the call. 408 states that CAMS or a
/// gateway before it has stopped to wait.
fn is_failure(status: StatusCode) -> bool {
    status.is_server_error() || status == StatusCode::REQUEST_TIMEOUT
}

/// Whether CAMS, and not the call, is at fault. `isp` is the prefix of the platform's own errors.
fn is_failure_code(code: &str) -> bool {
    code.eq_ignore_ascii_case("isp.SYSTEM_ERROR") || is_in_family(code, FAILURE_CODES)
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
fn hint(headers: &HeaderMap, now: fn() -> SystemTime) -> Option<Duration> {
    acs_retry_after(headers)
        .or_else(|| retry_after(headers, now))
        .or_else(|| window_left(headers))
}

/// The longest `Retry-After`. A date is relative to the answer's own `Date`, because the clocks may
/// differ.
fn retry_after(headers: &HeaderMap, now: fn() -> SystemTime) -> Option<Duration> {
    headers
        .get_all(RETRY_AFTER)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .filter_map(|text| match httpdate::parse_http_date(text) {
            Ok(at) => {
                let answered = clock::date(headers).unwrap_or_else(now);
                at.duration_since(answered).ok()
            }
            Err(_) => whole_or_decimal_seconds(text),
        })
        .filter(|wait| !wait.is_zero())
        .max()
        .map(|longest| longest.min(MAX_RETRY_AFTER))
}

/// Seconds, rounded up if they have a fraction, which RFC 9110 does not allow. A number that is too
/// large is the longest wait.
fn whole_or_decimal_seconds(text: &str) -> Option<Duration> {
    let text = text.trim_matches([' ', '\t']);
    let (whole, fraction) = text.split_once('.').unwrap_or((text, "0"));
    if ![whole, fraction].into_iter().all(is_digits) {
        return None;
    }
    let up = u64::from(fraction.bytes().any(|digit| digit != b'0'));
    let seconds = whole.parse::<u64>().unwrap_or(u64::MAX);
    Some(Duration::from_secs(seconds.saturating_add(up)))
}

fn is_digits(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit())
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

/// A whole number above zero.
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

// === impl Context ===

impl Context<'_> {
    fn creates(self) -> bool {
        actions::effect(self.action) == Effect::Create
    }
}

// === impl Verdict ===

impl Verdict {
    fn unknown(reason: &'static str, request_id: Option<String>) -> Self {
        Self::Unknown { reason, request_id }
    }

    /// The same without a code and a request id that quote the credentials of the request: they are
    /// shown to callers, logged and journalled. Answers that execute a call are not searched.
    pub(crate) fn without_secrets_of(mut self, credentials: Option<&Credentials>) -> Self {
        let (code, request_id) = match &mut self {
            Self::Ok { .. } => return self,
            Self::UpstreamError { code, request_id }
            | Self::Throttled {
                code, request_id, ..
            }
            | Self::Credentials { code, request_id }
            | Self::Clock {
                code, request_id, ..
            } => (Some(code), request_id),
            Self::Unknown { request_id, .. } => (None, request_id),
        };
        let Some(credentials) = credentials else {
            return self;
        };
        if request_id
            .as_deref()
            .is_some_and(|id| credentials.are_quoted_by(id))
        {
            *request_id = None;
        }
        if let Some(code) = code
            && credentials.are_quoted_by(code)
        {
            OTHER.clone_into(code);
        }
        self
    }

    /// The outcome of a call that ends with this verdict.
    pub(crate) fn outcome(&self) -> Outcome {
        match self {
            Self::Ok { .. } => Outcome::Ok,
            Self::Throttled { .. } => Outcome::Throttled,
            Self::UpstreamError { .. } | Self::Credentials { .. } | Self::Clock { .. } => {
                Outcome::UpstreamError
            }
            Self::Unknown { .. } => Outcome::Unknown,
        }
    }

    /// CAMS's code, or the reason of an unknown outcome.
    pub(crate) fn code(&self) -> &str {
        match self {
            Self::Ok { code, .. }
            | Self::UpstreamError { code, .. }
            | Self::Throttled { code, .. }
            | Self::Credentials { code, .. }
            | Self::Clock { code, .. } => code,
            Self::Unknown { reason, .. } => reason,
        }
    }

    /// Whether CAMS rejected the account's key or token, which may have been replaced in the
    /// meantime.
    pub(crate) fn is_old_session(&self) -> bool {
        let Self::Credentials { code, .. } = self else {
            return false;
        };
        is_in_family(code, SESSION_CODES)
    }

    /// Whether CAMS computed another signature than Flowgate.
    pub(crate) fn is_wrong_secret(&self) -> bool {
        let Self::Credentials { code, .. } = self else {
            return false;
        };
        is_in_family(
            code,
            &[
                "SignatureDoesNotMatch",
                "InvalidAccessKeySecret",
                "InvalidSignature",
            ],
        )
    }

    /// CAMS's request id.
    pub(crate) fn request_id(&self) -> Option<&str> {
        match self {
            Self::Ok { request_id, .. }
            | Self::UpstreamError { request_id, .. }
            | Self::Throttled { request_id, .. }
            | Self::Credentials { request_id, .. }
            | Self::Clock { request_id, .. }
            | Self::Unknown { request_id, .. } => request_id.as_deref(),
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
        Self::unknown(reason, None)
    }
}

#[cfg(test)]
mod tests;

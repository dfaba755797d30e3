//! Refusals: the errors that Flowgate answers itself. Each cause has one kind, and one table maps a
//! kind to status, code, outcome and metric label. `call/reply.rs` writes the answer.

use std::time::Duration;

use hyper::StatusCode;

use crate::acs::actions;
use crate::primitives::id::{AccessKeyId, AccountId};
use crate::primitives::text::capped;

/// How a call ended, for `flowgate_requests_total{outcome}`. Every call has exactly one outcome.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Outcome {
    /// CAMS answered with success.
    Ok,
    /// CAMS answered with an error, which was passed on to the caller.
    UpstreamError,
    /// CAMS throttled the last attempt, or the only attempt of a relayed call.
    Throttled,
    /// Flowgate refused: the queue is full, the wait is too long, draining, no session to sign with,
    /// or not allowed.
    Refused,
    /// The call was sent, and it is not known whether CAMS executed it.
    Unknown,
    /// Nothing was sent: CAMS cannot be reached.
    Unreachable,
    /// The caller disconnected before it was answered.
    Cancelled,
    /// The request was malformed, ambiguous or wrongly signed.
    Invalid,
}

/// Why Flowgate refuses a call; one variant per cause.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Kind {
    /// The predicted wait exceeds the hold.
    WaitTooLong,
    /// The hold ended while the call was queued.
    HoldExpired,
    /// The lane, the client's part of the queue or the byte budget is full, or a balancer's caller
    /// has too many calls at once.
    QueueFull,
    /// An operator flushed the lane, or a reload moved the key to another account.
    Flushed,
    /// The idempotency key belongs to another order.
    IdempotentParameterMismatch,
    /// There is no room for another idempotency key.
    KeysFull,
    /// The idempotency key cannot be recorded.
    KeysUnavailable,
    /// Flowgate is shutting down, and the call cannot finish within the grace period.
    Draining,
    /// The store of the shared quota is down, and this replica has no part of the quota.
    StoreUnavailable,
    /// Nothing was sent: no connection to CAMS within the hold.
    UpstreamUnreachable,
    /// The call was sent, and no usable answer came.
    OutcomeUnknown,
    /// The call is signed for a host that it may not be signed for.
    SignedHostMismatch,
    /// The signature is wrong.
    SignatureDoesNotMatch,
    /// The signature is missing, malformed, of an unsupported kind, or does not cover all required
    /// parts.
    IncompleteSignature,
    /// The access key is not configured.
    UnknownAccessKey,
    /// The timestamp is more than 15 minutes off, or too old for this process to rule out a replay.
    TimestampExpired,
    /// The timestamp is not of the form that Alibaba documents.
    TimestampFormat,
    /// The nonce was used before.
    NonceUsed,
    /// CAMS rejected the signature that Flowgate made.
    AccountCredentials,
    /// Nothing was sent: the account had no valid session by the end of the hold.
    NoSession,
    /// The client is not permitted to make this call.
    Forbidden,
    /// The request is ambiguous or malformed.
    BadRequest,
    /// The body is over the limit.
    TooLarge,
    /// The body was not complete before the timeout.
    BodyTimeout,
    /// The method is CONNECT.
    Connect,
    /// There are too many connections, in total or from the caller's address.
    TooManyConnections,
    /// The target is an absolute URL of a host that is neither the upstream nor Flowgate.
    ForeignHost,
    /// A caught panic.
    Internal,
}

/// An error that Flowgate answers itself.
#[derive(Clone, Debug, thiserror::Error)]
#[error("{}: {message}", kind.code())]
pub(crate) struct Refusal {
    /// The cause, which decides status, code and outcome.
    pub(crate) kind: Kind,
    /// The message for the caller. It contains no secret, no signature and no key of another
    /// caller.
    pub(crate) message: String,
    /// When the caller should retry, if a retry makes sense. Never zero on the wire.
    pub(crate) retry_after: Option<Duration>,
    /// The forecast that led to the refusal.
    pub(crate) queued: Option<Queued>,
    /// What the refusal has to do with the call's idempotency key.
    pub(crate) key: Option<&'static str>,
    /// The claimed caller, for the log; never on the wire.
    pub(crate) claimed_identity: Option<ClaimedIdentity>,
}

/// The row of a kind in the table of errors.
struct ErrorRow {
    status: StatusCode,
    code: &'static str,
    outcome: Outcome,
    label: &'static str,
}

/// The forecast for a call, which a refusal reports to its caller.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Queued {
    /// Queued calls before it.
    pub(crate) ahead: usize,
    /// Predicted wait.
    pub(crate) wait: Duration,
}

/// The identity that a caller claims, verified or not.
#[derive(Clone, Debug)]
pub(crate) struct ClaimedIdentity {
    /// The access key id in the request.
    pub(crate) key: AccessKeyId,
    /// The account of the key, if the key is configured.
    pub(crate) account: Option<AccountId>,
}

// === impl Outcome ===

impl Outcome {
    /// All outcomes.
    pub(crate) const ALL: [Self; Self::Invalid as usize + 1] = {
        use Outcome::*;
        [
            Ok,
            UpstreamError,
            Throttled,
            Refused,
            Unknown,
            Unreachable,
            Cancelled,
            Invalid,
        ]
    };

    /// The metric label.
    pub(crate) fn label(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::UpstreamError => "upstream_error",
            Self::Throttled => "throttled",
            Self::Refused => "refused",
            Self::Unknown => "outcome_unknown",
            Self::Unreachable => "unreachable",
            Self::Cancelled => "cancelled",
            Self::Invalid => "invalid",
        }
    }
}

// === impl Kind ===

impl Kind {
    /// All kinds.
    pub(crate) const ALL: [Self; Self::Internal as usize + 1] = {
        use Kind::*;
        [
            WaitTooLong,
            HoldExpired,
            QueueFull,
            Flushed,
            IdempotentParameterMismatch,
            KeysFull,
            KeysUnavailable,
            Draining,
            StoreUnavailable,
            UpstreamUnreachable,
            OutcomeUnknown,
            SignedHostMismatch,
            SignatureDoesNotMatch,
            IncompleteSignature,
            UnknownAccessKey,
            TimestampExpired,
            TimestampFormat,
            NonceUsed,
            AccountCredentials,
            NoSession,
            Forbidden,
            BadRequest,
            TooLarge,
            BodyTimeout,
            Connect,
            TooManyConnections,
            ForeignHost,
            Internal,
        ]
    };

    /// `Code` of the answer.
    pub(crate) fn code(self) -> &'static str {
        self.row().code
    }

    /// HTTP status of the answer.
    pub(crate) fn status(self) -> StatusCode {
        self.row().status
    }

    /// The outcome of a call that ends with this refusal.
    pub(crate) fn outcome(self) -> Outcome {
        self.row().outcome
    }

    /// The metric label of `flowgate_refused_total{reason}`.
    pub(crate) fn label(self) -> &'static str {
        self.row().label
    }

    fn row(self) -> ErrorRow {
        use Outcome::{Invalid, Refused, Unknown, Unreachable, UpstreamError};
        let (status, code, outcome, label) = match self {
            Self::WaitTooLong => (400, "System.LimitControl", Refused, "wait_too_long"),
            Self::HoldExpired => (400, "System.LimitControl", Refused, "hold_expired"),
            Self::QueueFull => (400, "System.LimitControl", Refused, "queue_full"),
            Self::Flushed => (400, "System.LimitControl", Refused, "flushed"),
            Self::KeysUnavailable => (400, "System.LimitControl", Refused, "keys_unavailable"),
            Self::KeysFull => (400, "System.LimitControl", Refused, "keys_full"),
            Self::IdempotentParameterMismatch => {
                (400, "IdempotentParameterMismatch", Invalid, "key_mismatch")
            }
            Self::StoreUnavailable => (400, "System.LimitControl", Refused, "store_unavailable"),
            Self::Draining => (503, "Flowgate.Draining", Refused, "draining"),
            Self::UpstreamUnreachable => (
                503,
                "Flowgate.UpstreamUnreachable",
                Unreachable,
                "unreachable",
            ),
            Self::OutcomeUnknown => (409, "Flowgate.OutcomeUnknown", Unknown, "outcome_unknown"),
            Self::SignedHostMismatch => {
                (400, "Flowgate.SignedHostMismatch", Invalid, "signed_host")
            }
            Self::SignatureDoesNotMatch => (400, "SignatureDoesNotMatch", Invalid, "signature"),
            Self::IncompleteSignature => {
                (400, "IncompleteSignature", Invalid, "incomplete_signature")
            }
            Self::UnknownAccessKey => (404, "InvalidAccessKeyId.NotFound", Invalid, "unknown_key"),
            Self::TimestampExpired => (400, "InvalidTimeStamp.Expired", Invalid, "timestamp"),
            Self::TimestampFormat => (400, "InvalidTimeStamp.Format", Invalid, "timestamp_format"),
            Self::NonceUsed => (400, "SignatureNonceUsed", Invalid, "nonce"),
            Self::AccountCredentials => (
                403,
                "Flowgate.AccountCredentials",
                UpstreamError,
                "credentials",
            ),
            Self::NoSession => (403, "Flowgate.AccountCredentials", Refused, "no_session"),
            Self::Forbidden => (403, "Flowgate.Forbidden", Refused, "forbidden"),
            Self::BadRequest => (400, "Flowgate.BadRequest", Invalid, "bad_request"),
            Self::TooLarge => (413, "Flowgate.RequestTooLarge", Invalid, "too_large"),
            Self::BodyTimeout => (400, "Flowgate.BadRequest", Invalid, "body_timeout"),
            Self::Connect => (405, "Flowgate.NotAProxy", Invalid, "connect"),
            Self::TooManyConnections => (
                503,
                "Flowgate.TooManyConnections",
                Refused,
                "too_many_connections",
            ),
            Self::ForeignHost => (403, "Flowgate.NotAProxy", Invalid, "foreign_host"),
            Self::Internal => (500, "Flowgate.Internal", Refused, "internal"),
        };
        ErrorRow {
            status: StatusCode::from_u16(status).expect("the statuses above are valid"),
            code,
            outcome,
            label,
        }
    }
}

// === impl Refusal ===

impl Refusal {
    /// The refusal of a call that was sent and whose outcome is unknown. The advice depends on the
    /// action; `cams_request_id` is that of CAMS's answer, if there is one.
    pub(crate) fn unknown(reason: &str, action: &str, cams_request_id: Option<&str>) -> Self {
        Self::unknown_with(reason, actions::advice(action), cams_request_id)
    }

    /// The same with another advice.
    pub(crate) fn unknown_with(reason: &str, advice: &str, cams_request_id: Option<&str>) -> Self {
        let mut message = format!(
            "The call was sent to CAMS, but its outcome is unknown: {reason}. CAMS may have \
             executed it. {advice}"
        );
        if let Some(request_id) = cams_request_id {
            message.push_str(" CAMS's RequestId: ");
            message.push_str(capped(request_id));
            message.push('.');
        }
        Self::new(Kind::OutcomeUnknown, message)
    }

    /// A refusal without a retry time.
    pub(crate) fn new(kind: Kind, message: impl Into<String>) -> Self {
        Self {
            kind,
            message: message.into(),
            retry_after: None,
            queued: None,
            key: None,
            claimed_identity: None,
        }
    }

    /// A refusal with a retry time.
    pub(crate) fn after(kind: Kind, wait: Duration, message: impl Into<String>) -> Self {
        Self {
            retry_after: Some(wait),
            ..Self::new(kind, message)
        }
    }

    /// Adds the forecast.
    pub(crate) fn queued(self, ahead: usize, wait: Duration) -> Self {
        Self {
            queued: Some(Queued { ahead, wait }),
            ..self
        }
    }

    /// Adds what the refusal has to do with the call's idempotency key.
    pub(crate) fn with_key(self, state: &'static str) -> Self {
        Self {
            key: Some(state),
            ..self
        }
    }

    /// Adds the claimed caller.
    pub(crate) fn of(self, claimed_identity: ClaimedIdentity) -> Self {
        Self {
            claimed_identity: Some(claimed_identity),
            ..self
        }
    }
}

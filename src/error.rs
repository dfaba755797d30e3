//! What Flowgate itself answers when it does not pass a call on: one kind per cause, one place that maps a kind to
//! status, code, outcome and metric label. How the answer looks on the wire is `call/reply.rs`.

use std::time::Duration;

use hyper::StatusCode;

use crate::primitives::id::{AccessKeyId, AccountId};

/// How a call ended, for `flowgate_requests_total{outcome}`: every call has exactly one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Outcome {
    /// CAMS answered with success.
    Ok,
    /// CAMS answered with an error that is the caller's to read.
    UpstreamError,
    /// CAMS refused with a throttle code and the attempts are used up (or the account is relayed).
    Throttled,
    /// Flowgate refused: no room or no time in the queue, draining, not allowed.
    Refused,
    /// Sent, and nobody can say whether CAMS did it.
    Unknown,
    /// Nothing was sent because CAMS cannot be reached.
    Unreachable,
    /// The caller hung up before it was answered.
    Cancelled,
    /// The request was malformed, ambiguous or wrongly signed.
    Invalid,
}

/// Why Flowgate answers by itself (design section 6, one variant per row or cause).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Kind {
    /// The predicted wait exceeds the hold.
    WaitTooLong,
    /// The hold ran out while the call was queued.
    HoldExpired,
    /// The lane, the client's part of it or the budget for queued bytes is full.
    QueueFull,
    /// An operator has flushed the lane, or given the key to another account.
    Flushed,
    /// Flowgate is shutting down and the call does not fit into the grace.
    Draining,
    /// The store of the shared quota is away, and this replica has no part of the quota.
    StoreUnavailable,
    /// Nothing was sent: no connection to CAMS within the hold.
    UpstreamUnreachable,
    /// Sent, no certain answer.
    OutcomeUnknown,
    /// A relayed V3 call signed for Flowgate's own address.
    SignedHostMismatch,
    /// The signature is wrong.
    SignatureDoesNotMatch,
    /// The signature is missing, malformed, of an unsupported kind, or does not cover what it must.
    IncompleteSignature,
    /// No such access key here.
    UnknownAccessKey,
    /// The timestamp is more than 15 minutes off, or older than what this process can rule out as a replay.
    TimestampExpired,
    /// The nonce was seen before.
    NonceUsed,
    /// CAMS refused the signature that Flowgate made.
    AccountCredentials,
    /// The client may not do this.
    Forbidden,
    /// Ambiguous or malformed.
    BadRequest,
    /// The body is over the limit.
    TooLarge,
    /// The body did not arrive in time.
    BodyTimeout,
    /// CONNECT.
    Connect,
    /// Absolute form for a host that is not the upstream.
    ForeignHost,
    /// A caught panic.
    Internal,
}

/// One of Flowgate's own answers.
#[derive(Clone, Debug, thiserror::Error)]
#[error("{}: {message}", kind.code())]
pub(crate) struct Refusal {
    /// The cause; decides status, code and outcome.
    pub(crate) kind: Kind,
    /// What the caller reads. Holds no secret, no signature and no foreign key.
    pub(crate) message: String,
    /// When coming back makes sense, where it does (never zero on the wire).
    pub(crate) retry_after: Option<Duration>,
    /// Where the call would have stood and what it would have waited, if that is why.
    pub(crate) queued: Option<Queued>,
    /// Whom the log names; never on the wire.
    pub(crate) claimant: Option<Claimant>,
}

/// A forecast that a caller is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Queued {
    /// Calls before it.
    pub(crate) ahead: usize,
    /// Until its turn.
    pub(crate) wait: Duration,
}

/// Who a caller says that it is, proven or not.
#[derive(Clone, Debug)]
pub(crate) struct Claimant {
    /// The access key id that it names.
    pub(crate) key: AccessKeyId,
    /// Whose key that is, if the configuration names it.
    pub(crate) account: Option<AccountId>,
}

// === impl Outcome ===

impl Outcome {
    /// Each of them.
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
    /// Each of them.
    pub(crate) const ALL: [Self; Self::Internal as usize + 1] = {
        use Kind::*;
        [
            WaitTooLong,
            HoldExpired,
            QueueFull,
            Flushed,
            Draining,
            StoreUnavailable,
            UpstreamUnreachable,
            OutcomeUnknown,
            SignedHostMismatch,
            SignatureDoesNotMatch,
            IncompleteSignature,
            UnknownAccessKey,
            TimestampExpired,
            NonceUsed,
            AccountCredentials,
            Forbidden,
            BadRequest,
            TooLarge,
            BodyTimeout,
            Connect,
            ForeignHost,
            Internal,
        ]
    };

    /// `Code` of the answer.
    pub(crate) fn code(self) -> &'static str {
        self.facts().1
    }

    /// HTTP status of the answer.
    pub(crate) fn status(self) -> StatusCode {
        self.facts().0
    }

    /// How a call that ends with this answer is counted.
    pub(crate) fn outcome(self) -> Outcome {
        self.facts().2
    }

    /// The metric label of `flowgate_refused_total{reason}`.
    pub(crate) fn label(self) -> &'static str {
        self.facts().3
    }

    fn facts(self) -> (StatusCode, &'static str, Outcome, &'static str) {
        use Outcome::{Invalid, Refused, Unknown, Unreachable, UpstreamError};
        let status =
            |code: u16| StatusCode::from_u16(code).expect("the statuses below are all valid");
        match self {
            Self::WaitTooLong => (status(400), "System.LimitControl", Refused, "wait_too_long"),
            Self::HoldExpired => (status(400), "System.LimitControl", Refused, "hold_expired"),
            Self::QueueFull => (status(400), "System.LimitControl", Refused, "queue_full"),
            Self::Flushed => (status(400), "System.LimitControl", Refused, "flushed"),
            Self::StoreUnavailable => (
                status(400),
                "System.LimitControl",
                Refused,
                "store_unavailable",
            ),
            Self::Draining => (status(503), "Flowgate.Draining", Refused, "draining"),
            Self::UpstreamUnreachable => (
                status(503),
                "Flowgate.UpstreamUnreachable",
                Unreachable,
                "unreachable",
            ),
            Self::OutcomeUnknown => (
                status(409),
                "Flowgate.OutcomeUnknown",
                Unknown,
                "outcome_unknown",
            ),
            Self::SignedHostMismatch => (
                status(400),
                "Flowgate.SignedHostMismatch",
                Invalid,
                "signed_host",
            ),
            Self::SignatureDoesNotMatch => {
                (status(400), "SignatureDoesNotMatch", Invalid, "signature")
            }
            Self::IncompleteSignature => (
                status(400),
                "IncompleteSignature",
                Invalid,
                "incomplete_signature",
            ),
            Self::UnknownAccessKey => (
                status(404),
                "InvalidAccessKeyId.NotFound",
                Invalid,
                "unknown_key",
            ),
            Self::TimestampExpired => (
                status(400),
                "InvalidTimeStamp.Expired",
                Invalid,
                "timestamp",
            ),
            Self::NonceUsed => (status(400), "SignatureNonceUsed", Invalid, "nonce"),
            Self::AccountCredentials => (
                status(403),
                "Flowgate.AccountCredentials",
                UpstreamError,
                "credentials",
            ),
            Self::Forbidden => (status(403), "Flowgate.Forbidden", Refused, "forbidden"),
            Self::BadRequest => (status(400), "Flowgate.BadRequest", Invalid, "bad_request"),
            Self::TooLarge => (
                status(413),
                "Flowgate.RequestTooLarge",
                Invalid,
                "too_large",
            ),
            Self::BodyTimeout => (status(400), "Flowgate.BadRequest", Invalid, "body_timeout"),
            Self::Connect => (status(405), "Flowgate.NotAProxy", Invalid, "connect"),
            Self::ForeignHost => (status(403), "Flowgate.NotAProxy", Invalid, "foreign_host"),
            Self::Internal => (status(500), "Flowgate.Internal", Refused, "internal"),
        }
    }
}

// === impl Refusal ===

impl Refusal {
    /// Sent, and no certain answer.
    pub(crate) fn unknown(reason: &str) -> Self {
        let message = format!(
            "The call was sent to CAMS, but its outcome is unknown: {reason}. CAMS may have done it. \
         Look (for a flow: ListFlow) before you repeat it."
        );
        Self::new(Kind::OutcomeUnknown, message)
    }

    /// An answer without advice to come back.
    pub(crate) fn new(kind: Kind, message: impl Into<String>) -> Self {
        Self {
            kind,
            message: message.into(),
            retry_after: None,
            queued: None,
            claimant: None,
        }
    }

    /// An answer that says when to come back.
    pub(crate) fn after(kind: Kind, wait: Duration, message: impl Into<String>) -> Self {
        Self {
            retry_after: Some(wait),
            ..Self::new(kind, message)
        }
    }

    /// The same, with the forecast.
    pub(crate) fn queued(self, ahead: usize, wait: Duration) -> Self {
        Self {
            queued: Some(Queued { ahead, wait }),
            ..self
        }
    }

    /// The same, with whom the log names.
    pub(crate) fn of(self, claimant: Claimant) -> Self {
        Self {
            claimant: Some(claimant),
            ..self
        }
    }
}

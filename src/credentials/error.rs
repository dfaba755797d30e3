//! Why a source returned no session. The text names the service, its status, its code and its
//! request id; never an answer's body, a URL's path or query, a header, or the content of a file.

use std::fmt;

use crate::config::{self, SessionSource};

/// Why there is no session.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct FetchError {
    /// The kind, which decides when the source is asked again.
    pub(crate) kind: FailureKind,
    /// The source of the chain that failed, in words, if the failure is that of a session that
    /// assumes the role.
    pub(crate) broken_step: Option<Box<str>>,
    /// The service as `host` or `host:port`, or the file.
    pub(crate) place: String,
    /// What went wrong.
    pub(crate) reason: String,
    /// The status of the answer, if there was one.
    pub(crate) status: Option<u16>,
    /// `Code` of the answer.
    pub(crate) code: Option<String>,
    /// `RequestId` of the answer.
    pub(crate) request_id: Option<String>,
}

/// A kind of failure. The label of a metric, so the set is closed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum FailureKind {
    /// There was no complete answer.
    Unreachable,
    /// The service asks for fewer requests.
    Throttled,
    /// The service is unavailable or has failed: a 5xx status or an internal error.
    ServiceError,
    /// The service refuses until something is changed: a permission, a role, a policy.
    Refused,
    /// The service refuses the credentials that assume the role, or the OIDC token.
    OldToken,
    /// The answer is not the one of such a service, or its session has ended.
    BadAnswer,
    /// The OIDC token's file cannot be used; nothing was sent.
    TokenFile,
    /// There are no valid credentials to assume the role with; nothing was sent.
    NoSource,
    /// Flowgate itself failed: a caught panic.
    Internal,
}

// === impl FailureKind ===

impl FailureKind {
    /// All kinds.
    pub(crate) const ALL: [Self; 9] = [
        Self::Unreachable,
        Self::Throttled,
        Self::ServiceError,
        Self::Refused,
        Self::OldToken,
        Self::BadAnswer,
        Self::TokenFile,
        Self::NoSource,
        Self::Internal,
    ];

    /// The label in metrics.
    pub(crate) fn label(self) -> &'static str {
        match self {
            Self::Unreachable => "unreachable",
            Self::Throttled => "throttled",
            Self::ServiceError => "service_error",
            Self::Refused => "refused",
            Self::OldToken => "old_token",
            Self::BadAnswer => "bad_answer",
            Self::TokenFile => "token_file",
            Self::NoSource => "no_source",
            Self::Internal => "internal",
        }
    }

    /// Whether the same request would fail again: what it sends, or the settings, must change.
    pub(super) fn is_permanent(self) -> bool {
        matches!(self, Self::Refused | Self::OldToken)
    }
}

// === impl FetchError ===

impl FetchError {
    /// A failure without an answer.
    pub(super) fn new(kind: FailureKind, place: &str, reason: impl Into<String>) -> Self {
        Self {
            kind,
            broken_step: None,
            place: place.to_owned(),
            reason: reason.into(),
            status: None,
            code: None,
            request_id: None,
        }
    }

    /// The failure of a role whose assuming session has failed. It names the source at which the
    /// chain is broken.
    pub(super) fn of_broken_chain(from: &SessionSource, failure: Self) -> Self {
        let known = failure.broken_step.clone();
        Self {
            kind: FailureKind::NoSource,
            broken_step: known.or_else(|| Some(config::step_in_words(from).into())),
            ..failure
        }
    }
}

impl fmt::Display for FetchError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(step) = &self.broken_step {
            write!(f, "no session of {step}: ")?;
        }
        write!(f, "{}: {}", self.place, self.reason)?;
        if let Some(status) = self.status {
            write!(f, ", status {status}")?;
        }
        if let Some(code) = &self.code {
            write!(f, ", code {code}")?;
        }
        if let Some(request_id) = &self.request_id {
            write!(f, ", request id {request_id}")?;
        }
        Ok(())
    }
}

impl std::error::Error for FetchError {}

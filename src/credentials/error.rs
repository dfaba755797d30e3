//! Why a source returned no session. The text names the service, its status, its code and its
//! request id; never an answer's body, a URL's path or query, a header, or the content of a file.

use std::fmt;

/// Why there is no session.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct FetchError {
    /// The kind, which decides when the source is asked again.
    pub(crate) kind: Failure,
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
pub(crate) enum Failure {
    /// There was no complete answer.
    Unreachable,
    /// The service asks for fewer requests.
    Throttled,
    /// The service failed: a 5xx status or an internal error.
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
}

// === impl Failure ===

impl Failure {
    /// All kinds.
    pub(crate) const ALL: [Self; 8] = [
        Self::Unreachable,
        Self::Throttled,
        Self::ServiceError,
        Self::Refused,
        Self::OldToken,
        Self::BadAnswer,
        Self::TokenFile,
        Self::NoSource,
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
        }
    }

    /// Whether only a change of settings helps, so that the source is asked once a minute.
    pub(crate) fn is_permanent(self) -> bool {
        self == Self::Refused
    }
}

// === impl FetchError ===

impl FetchError {
    /// A failure without an answer.
    pub(super) fn new(kind: Failure, place: &str, reason: impl Into<String>) -> Self {
        Self {
            kind,
            place: place.to_owned(),
            reason: reason.into(),
            status: None,
            code: None,
            request_id: None,
        }
    }
}

impl fmt::Display for FetchError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
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

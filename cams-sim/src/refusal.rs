//! What does CAMS say when it refuses? Codes, statuses and messages as Alibaba's error pages give
//! them. Codes that begin with `CamsSim.` are the simulator's own. Most are strictness: the real gateway
//! might let such a call pass, but nothing well-made sends it. The others stand for codes that are not
//! documented.

use std::time::{Duration, SystemTime};

use crate::Verdict;

/// What a refusal tells about when to come back. Nothing of this is documented for CAMS; its SDKs
/// read the first and the third.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Hints {
    /// `x-acs-retry-after`, in milliseconds.
    pub acs_retry_after_ms: Option<u64>,
    /// `Retry-After`, in seconds.
    pub retry_after_s: Option<u64>,
    /// `Retry-After` as the date this many seconds ahead.
    pub retry_at_s: Option<u32>,
    /// `TimeLeft` of `x-ratelimit-user`, in milliseconds.
    pub time_left_ms: Option<u64>,
}

/// A refusal, from which a response is built.
#[derive(Debug, Clone)]
pub(crate) struct Refusal {
    pub(crate) status: u16,
    pub(crate) code: String,
    pub(crate) message: String,
    pub(crate) hints: Hints,
    /// Answered in XML although JSON was requested.
    pub(crate) xml: bool,
}

// === impl Hints ===

impl Hints {
    /// The headers of these hints.
    pub(crate) fn headers(self) -> impl Iterator<Item = (&'static str, String)> {
        let acs = self
            .acs_retry_after_ms
            .map(|millis| ("x-acs-retry-after", millis.to_string()));
        let plain = self
            .retry_after_s
            .map(|seconds| ("retry-after", seconds.to_string()));
        let at = self.retry_at_s.map(|seconds| {
            let time = SystemTime::now() + Duration::from_secs(seconds.into());
            ("retry-after", httpdate::fmt_http_date(time))
        });
        let left = self.time_left_ms.map(|millis| {
            (
                "x-ratelimit-user",
                format!("Limit:5,Remain:0,TimeLeft:{millis}"),
            )
        });
        [acs, plain, at, left].into_iter().flatten()
    }
}

// === impl Refusal ===

impl Refusal {
    /// A refusal with the status and message that Alibaba documents for the code.
    pub(crate) fn new(code: &str) -> Self {
        let (status, message) = documented(code);
        Self {
            status,
            code: code.to_owned(),
            message: message.to_owned(),
            hints: Hints::default(),
            xml: false,
        }
    }

    /// A required parameter is missing.
    pub(crate) fn missing(parameter: &str) -> Self {
        Self {
            message: format!("{parameter} is mandatory for this action."),
            ..Self::new(&format!("Missing{parameter}"))
        }
    }

    /// A refusal of the simulator's strict mode.
    pub(crate) fn strict(code: &str, message: String) -> Self {
        Self {
            message,
            ..Self::new(&format!("CamsSim.{code}"))
        }
    }

    /// A refusal whose code Alibaba does not document.
    pub(crate) fn undocumented(code: &str, message: String) -> Self {
        Self::strict(code, message)
    }

    pub(crate) fn with_message(self, message: String) -> Self {
        Self { message, ..self }
    }

    pub(crate) fn with_hints(self, hints: Hints) -> Self {
        Self { hints, ..self }
    }

    /// The verdict on a call that is refused so.
    pub(crate) fn verdict(&self) -> Verdict {
        if self.is_throttle() {
            Verdict::Throttled
        } else {
            Verdict::Rejected(self.code.clone())
        }
    }

    /// Whether this is flow control.
    fn is_throttle(&self) -> bool {
        self.code == "System.LimitControl"
            || self.code == "Throttling"
            || self.code.starts_with("Throttling.")
    }
}

fn documented(code: &str) -> (u16, &'static str) {
    match code {
        "System.LimitControl" => (400, "The system is under flow control."),
        "Throttling" => (400, "Request was denied due to request throttling."),
        "Throttling.User" => (400, "Request was denied due to user flow control."),
        "Throttling.Api" => (400, "Request was denied due to api flow control."),
        "Product.Unsubscript" => (400, "You have not subscribed to the specified product."),
        "Ram.PermissionDeny" => (400, "You are not authorized to perform the operation."),
        "Unknown.ResourceOwnerId" => (400, "The resource does not belong to the current user."),
        "SignatureNonceUsed" => (400, "Specified signature nonce was used already."),
        "InvalidTimeStamp.Expired" => (400, "Specified time stamp or date value is expired."),
        "InvalidTimeStamp.Format" => (
            400,
            "Specified time stamp or date value is not well formatted.",
        ),
        "SignatureDoesNotMatch" => (
            400,
            "Specified signature is not matched with our calculation.",
        ),
        "IncompleteSignature" => (
            400,
            "The request signature does not conform to Aliyun standards.",
        ),
        "InvalidSignatureMethod" => (400, "Specified signature method is not valid."),
        "InvalidAccessKeyId.NotFound" => (404, "Specified access key is not found."),
        "InvalidSecurityToken.MismatchWithAccessKey" => {
            (400, "Specified SecurityToken mismatch with the AccessKey.")
        }
        "InvalidSecurityToken.Malformed" => (400, "Specified SecurityToken is malformed."),
        "InvalidSecurityToken.Expired" => (400, "Specified SecurityToken is expired."),
        "InvalidAccessKeyId.Inactive" => (400, "Specified access key is disabled."),
        "InvalidParameter.RoleArn" => (400, "The parameter RoleArn is wrongly formed."),
        "InvalidParameter.OIDCProviderArn" => {
            (400, "The parameter OIDCProviderArn is wrongly formed.")
        }
        "InvalidParameter.OIDCToken" => (400, "The parameter OIDCToken is wrongly formed."),
        "InvalidParameter.RoleSessionName" => {
            (400, "The parameter RoleSessionName is wrongly formed.")
        }
        "InvalidParameter.ExternalId" => (400, "The parameter ExternalId is wrongly formed."),
        "InvalidParameter.PolicyGrammar" => {
            (400, "The parameter Policy has not passed grammar check.")
        }
        "InvalidParameter.PolicySize" => (400, "The size of the parameter Policy is out of range."),
        "InvalidParameter.DurationSeconds" => {
            (400, "The Min/Max value of DurationSeconds is 15min/1hr.")
        }
        "NoPermission" => (
            403,
            "You are not authorized to do this action. You should be authorized by RAM.",
        ),
        "Forbidden.RAM" => (
            403,
            "User not authorized to operate on the specified resource.",
        ),
        "EntityNotExist.Role" => (404, "The specified Role not exists."),
        "AuthenticationFail.NoPermission" => {
            (403, "This operation is forbidden by permission system.")
        }
        "AuthenticationFail.OIDCToken.Expired" => (400, "This JsonWebToken is expired."),
        "AuthenticationFail.OIDCToken.AudienceNotMatch" => {
            (400, "The audience in JsonWebToken does not match.")
        }
        "AuthenticationFail.OIDCToken.Invalid" => (400, "This JsonWebToken is invalid."),
        "SecurityTokenExpired" => (403, "The security token has expired."),
        "InvalidParameter.Format" => (400, "Specified parameter is not well formatted."),
        "InvalidVersion" => (400, "Specified parameter Version is not valid."),
        "InvalidApi.NotFound" => (
            404,
            "Specified api is not found,please check your url and method.",
        ),
        "InvalidProduct.NotFound" => (
            404,
            "Cannot find product according to your specified domain.",
        ),
        "UnsupportedHTTPMethod" => (400, "This http method is not supported."),
        "ServiceUnavailable" => (
            503,
            "The request has failed due to a temporary failure of the server.",
        ),
        "InternalError" => (
            500,
            "The request processing has failed due to some unknown error.",
        ),
        _ => (400, "The request was refused."),
    }
}

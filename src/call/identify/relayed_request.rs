//! The forwarded parts of a relayed call, byte for byte.

use bytes::Bytes;
use hyper::Method;
use hyper::header::{self, HeaderName, HeaderValue};
use hyper::http::uri::PathAndQuery;

use crate::acs::decode::Params;
use crate::acs::v3::Authorization;
use crate::primitives::id::AccessKeyId;

/// The forwarded parts of a relayed call.
pub(crate) struct RelayedRequest {
    pub(super) method: Method,
    pub(super) target: PathAndQuery,
    /// A header map would take three times the memory while the call is queued.
    pub(super) headers: Box<[(HeaderName, HeaderValue)]>,
    pub(super) body: Bytes,
}

// === impl RelayedRequest ===

impl RelayedRequest {
    /// Adds the body, which is read after the head.
    pub(super) fn with(self, body: Bytes) -> Self {
        Self { body, ..self }
    }

    /// The access key that signed it. It is parsed again rather than kept with every queued call:
    /// only a reload asks for it.
    pub(super) fn key(&self) -> Option<AccessKeyId> {
        let authorization = self
            .headers
            .iter()
            .find(|(name, _)| *name == header::AUTHORIZATION);
        if let Some((_, value)) = authorization {
            let signed = Authorization::parse(value.to_str().ok()?).ok()?;
            return Some(AccessKeyId::new(signed.credential));
        }
        let mut params = Params::from_query(self.target.query().unwrap_or_default()).ok()?;
        if params.get("AccessKeyId").is_none() {
            params.add_form(&self.body).ok()?;
        }
        params.get("AccessKeyId").map(AccessKeyId::new)
    }

    /// GET or POST.
    pub(crate) fn method(&self) -> &Method {
        &self.method
    }

    /// Path and query, byte for byte.
    pub(crate) fn target(&self) -> &PathAndQuery {
        &self.target
    }

    /// The forwarded headers. `sign` adds `Content-Length`, and `Host` and `Accept-Encoding` if
    /// they are missing.
    pub(crate) fn headers(&self) -> &[(HeaderName, HeaderValue)] {
        &self.headers
    }

    /// The body, byte for byte.
    pub(crate) fn body(&self) -> &Bytes {
        &self.body
    }
}

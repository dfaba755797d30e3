//! The forwarded parts of a relayed call, byte for byte.

use bytes::Bytes;
use hyper::Method;
use hyper::header::{HeaderName, HeaderValue};
use hyper::http::uri::PathAndQuery;

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

    /// GET or POST.
    pub(crate) fn method(&self) -> &Method {
        &self.method
    }

    /// Path and query, byte for byte.
    pub(crate) fn target(&self) -> &PathAndQuery {
        &self.target
    }

    /// The forwarded headers. `sign` adds `Host` and `Content-Length`, and `Accept-Encoding` if it
    /// is missing.
    pub(crate) fn headers(&self) -> &[(HeaderName, HeaderValue)] {
        &self.headers
    }

    /// The body, byte for byte.
    pub(crate) fn body(&self) -> &Bytes {
        &self.body
    }
}

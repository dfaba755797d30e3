//! A relayed call as it goes on: what waits of it, byte for byte.

use bytes::Bytes;
use hyper::Method;
use hyper::header::{HeaderName, HeaderValue};
use hyper::http::uri::PathAndQuery;

/// What of a relayed call goes on.
pub(crate) struct Passage {
    pub(super) method: Method,
    pub(super) target: PathAndQuery,
    /// A map of them would take three times the memory while the call waits.
    pub(super) headers: Box<[(HeaderName, HeaderValue)]>,
    pub(super) body: Bytes,
}

// === impl Passage ===

impl Passage {
    /// With the body, which comes last.
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

    /// The headers that go on; `Host` and `Content-Length` are sign's, and `Accept-Encoding` if it is not here.
    pub(crate) fn headers(&self) -> &[(HeaderName, HeaderValue)] {
        &self.headers
    }

    /// The body, byte for byte.
    pub(crate) fn body(&self) -> &Bytes {
        &self.body
    }
}

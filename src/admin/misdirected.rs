//! Calls of CAMS that an SDK sends to the admin port by mistake. They get an error in CAMS's form,
//! because SDKs cannot read another one.

use std::convert::Infallible;

use bytes::Bytes;
use http_body_util::BodyExt;
use http_body_util::combinators::UnsyncBoxBody;
use hyper::header::AUTHORIZATION;
use hyper::http::request::Parts;
use hyper::{Method, Response};

use crate::call::reply;
use crate::config::Bind;

/// The error for a request, if it is a call of CAMS. `proxy` is where it belongs.
pub(super) fn answer(
    head: &Parts,
    proxy: &Bind,
) -> Option<Response<UnsyncBoxBody<Bytes, Infallible>>> {
    is_call(head).then(|| reply::admin_port(head, proxy).map(BodyExt::boxed_unsync))
}

/// Whether the request has what only a signed call has. The admin port has no POST at `/`, where the
/// parameters may be in a form.
fn is_call(head: &Parts) -> bool {
    let query = head.uri.query().unwrap_or_default();
    let is_version_1 =
        query.contains("AccessKeyId=") || (head.method == Method::POST && head.uri.path() == "/");
    let is_version_3 = head
        .headers
        .get(AUTHORIZATION)
        .is_some_and(|value| value.as_bytes().starts_with(b"ACS3-"));
    is_version_1 || is_version_3
}

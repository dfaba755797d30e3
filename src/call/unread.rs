//! Refuses what is not read as a call: a head that hyper cannot read, and a connection over the
//! limits. Both are answered in the format of CAMS's errors and counted as calls.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::Full;
use hyper::Response;
use hyper::http::request;

use super::reply::{self, ErrorFormat};
use super::services::CallServices;
use crate::acs::error_body;
use crate::error::{Kind, Refusal};
use crate::observe::record::Record;
use crate::server::head_error::HeadError;

/// When a caller may try again.
const TRY_AGAIN_AFTER: Duration = Duration::from_secs(1);

/// Refuses a head that could not be read. `received` is the part of it that is left.
pub(crate) fn head(
    services: &Arc<CallServices>,
    error: HeadError,
    received: &[u8],
    from: Option<IpAddr>,
) -> Response<Full<Bytes>> {
    let message = error.to_string();
    let refusal = match error {
        HeadError::NoMemory => Refusal::after(Kind::QueueFull, TRY_AGAIN_AFTER, message),
        _ if error.is_too_large() => Refusal::new(Kind::TooLarge, message),
        _ => Refusal::new(Kind::BadRequest, message),
    };
    let mut record = Record::new(services.telemetry.clone(), from);
    let refusal = record.refused(refusal);
    let format = ErrorFormat::of_unread(received);
    reply::refuse(&refusal, &format, record.request_id())
}

/// Refuses a call because there are too many connections. It has no log line: the server logs such
/// refusals at most every few seconds.
pub(crate) fn connection(
    services: &Arc<CallServices>,
    head: &request::Parts,
) -> Response<Full<Bytes>> {
    let message = "Flowgate has too many connections, in total or from this address \
                   (listen.max_connections, listen.max_connections_per_source). CAMS has done \
                   nothing.";
    let refusal = Refusal::after(Kind::TooManyConnections, TRY_AGAIN_AFTER, message);
    let metrics = &services.metrics;
    metrics.refused("unknown", &refusal);
    metrics.ended("unknown", "other", refusal.kind.outcome());
    let format = ErrorFormat::of(head);
    reply::refuse(&refusal, &format, &error_body::request_id())
}

//! One request on one connection: the response, or whether the request was unsent or lost.
//! Deadlines and the reuse of the connection are the caller's.

use bytes::{Bytes, BytesMut};
use http_body_util::BodyExt;
use hyper::StatusCode;
use hyper::body::{Body, Incoming};

use super::{Lost, Request, Sender, Sent, UpstreamResponse};

/// Sends the request and reads the response, with a body of up to `max_response` bytes.
pub(super) async fn exchange(sender: &mut Sender, request: Request, max_response: usize) -> Sent {
    let response = match sender.try_send_request(request).await {
        Ok(response) => response,
        Err(mut failed) => {
            return match failed.take_message() {
                Some(_request) => Sent::Unsent,
                None => Sent::Lost(classify_head_error(failed.error())),
            };
        }
    };
    let (head, body) = response.into_parts();
    if head.status == StatusCode::SWITCHING_PROTOCOLS {
        return Sent::Lost(Lost::Malformed);
    }
    match read(body, max_response).await {
        Ok(body) => Sent::Answered(UpstreamResponse {
            status: head.status,
            headers: head.headers,
            body,
        }),
        Err(lost) => Sent::Lost(lost),
    }
}

/// Reads a body of up to `max` bytes. Most have one part, which is not copied.
async fn read(mut body: Incoming, max: usize) -> Result<Bytes, Lost> {
    let mut first = Bytes::new();
    let mut whole = BytesMut::new();
    while !body.is_end_stream()
        && let Some(frame) = body.frame().await
    {
        let Ok(part) = frame.map_err(|_broken| Lost::Cut)?.into_data() else {
            continue;
        };
        if first.len() + whole.len() + part.len() > max {
            return Err(Lost::TooLarge);
        }
        if first.is_empty() && whole.is_empty() {
            first = part;
        } else {
            whole.extend_from_slice(&std::mem::take(&mut first));
            whole.extend_from_slice(&part);
        }
    }
    Ok(if whole.is_empty() {
        first
    } else {
        whole.freeze()
    })
}

/// Classifies an error before the response's head was complete.
fn classify_head_error(error: &hyper::Error) -> Lost {
    if error.is_parse_too_large() {
        Lost::TooLarge
    } else if error.is_parse() {
        Lost::Malformed
    } else {
        Lost::Closed
    }
}

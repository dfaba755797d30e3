//! One request on one connection: the response, or whether the request was unsent or lost.
//! Deadlines and the reuse of the connection are the caller's.

use http_body_util::{BodyExt, LengthLimitError, Limited};
use hyper::StatusCode;

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
    match Limited::new(body, max_response).collect().await {
        Ok(body) => Sent::Answered(UpstreamResponse {
            status: head.status,
            headers: head.headers,
            body: body.to_bytes(),
        }),
        Err(error) if error.is::<LengthLimitError>() => Sent::Lost(Lost::TooLarge),
        Err(_broken) => Sent::Lost(Lost::Cut),
    }
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

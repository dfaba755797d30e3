//! A request body that tells its connection when it has been read to its end. If the answer is
//! ready before that, the connection must be closed, and not at once (`closing.rs`).

use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use hyper::body::{Body, Frame, Incoming, SizeHint};

use super::timeouts::RequestPhase;

/// The body of a caller's request.
pub(crate) struct ReceivedBody {
    body: Incoming,
    /// `None`: the request has no body, or its end has been read.
    unread: Option<RequestPhase>,
}

// === impl ReceivedBody ===

impl ReceivedBody {
    /// The body of the request that `request_phase` has just begun to answer.
    pub(super) fn new(body: Incoming, request_phase: &RequestPhase) -> Self {
        let unread = (!body.is_end_stream()).then(|| {
            request_phase.set_unread(true);
            request_phase.clone()
        });
        Self { body, unread }
    }
}

impl Body for ReceivedBody {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        let this = self.get_mut();
        let frame = Pin::new(&mut this.body).poll_frame(cx);
        let is_ended = match &frame {
            Poll::Ready(None) => true,
            Poll::Ready(Some(Ok(_))) => this.body.is_end_stream(),
            Poll::Ready(Some(Err(_))) | Poll::Pending => false,
        };
        if is_ended && let Some(request_phase) = this.unread.take() {
            request_phase.set_unread(false);
        }
        frame
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

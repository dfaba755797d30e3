//! Reads the request body. The body is read to its end before the call is queued, within a limit of
//! bytes and of time, so that a slow caller does not occupy a place in the queue.

use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http_body_util::BodyExt;
use hyper::body::Body;
use hyper::http::request;

use crate::error::{Kind, Refusal};
use crate::primitives::byte_budget::Reservation;
use crate::server::head_error::HeadError;

/// The limits of a body.
pub(crate) struct BodyBounds {
    /// Most bytes.
    pub(crate) max: usize,
    /// Longest time until its end.
    pub(crate) within: Duration,
    /// The byte budgets that are charged: the client's and the total, or that of callers that are
    /// not verified yet.
    pub(crate) reservations: Vec<Reservation>,
}

/// Reads the whole body.
///
/// Refuses a body that exceeds the bounds, is broken, or does not fit the byte budgets.
pub(crate) async fn read<B: Body<Data = Bytes> + Unpin>(
    body: B,
    bounds: BodyBounds,
) -> Result<Bytes, Refusal> {
    let within = bounds.within;
    match tokio::time::timeout(within, collect(body, bounds)).await {
        Ok(collected) => collected,
        Err(_elapsed) => Err(Refusal::new(
            Kind::BodyTimeout,
            format!(
                "The request body was not complete within {} ms. CAMS has done nothing.",
                within.as_millis()
            ),
        )),
    }
}

async fn collect<B: Body<Data = Bytes> + Unpin>(
    mut body: B,
    mut bounds: BodyBounds,
) -> Result<Bytes, Refusal> {
    let max = bounds.max;
    if body.size_hint().lower() > max as u64 {
        return Err(too_large(max));
    }
    let mut first = Bytes::new();
    let mut whole = BytesMut::new();
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(|_| {
            let message = "The request body ended early, or its chunked encoding is invalid.";
            Refusal::new(Kind::BadRequest, message)
        })?;
        let Ok(data) = frame.into_data() else {
            continue;
        };
        if first.len() + whole.len() + data.len() > max {
            return Err(too_large(max));
        }
        let is_reserved = bounds
            .reservations
            .iter_mut()
            .all(|reservation| reservation.grow(data.len()));
        if !is_reserved {
            let message = "Flowgate's memory for request bodies is full. CAMS has done nothing.";
            let retry_after = Duration::from_secs(1);
            return Err(Refusal::after(Kind::QueueFull, retry_after, message));
        }
        if first.is_empty() && whole.is_empty() {
            first = data;
        } else {
            whole.extend_from_slice(&std::mem::take(&mut first));
            whole.extend_from_slice(&data);
        }
    }
    Ok(if whole.is_empty() {
        first
    } else {
        whole.freeze()
    })
}

/// The size of a head in bytes. Refuses one that exceeds the limit; hyper's own limit is only
/// approximate.
pub(crate) fn check_head(head: &request::Parts, max: usize) -> Result<usize, Refusal> {
    let target = head
        .uri
        .path_and_query()
        .map_or(0, |target| target.as_str().len());
    let headers: usize = head
        .headers
        .iter()
        .map(|(name, value)| name.as_str().len() + value.len() + ": \r\n".len())
        .sum();
    if target + headers <= max {
        return Ok(target + headers);
    }
    Err(Refusal::new(
        Kind::TooLarge,
        HeadError::TooLarge(max).to_string(),
    ))
}

fn too_large(max: usize) -> Refusal {
    // Only GET has this limit.
    let message = if max == 0 {
        "A GET request must not have a body.".to_owned()
    } else {
        format!("The request body is larger than the limit of {max} bytes.")
    };
    Refusal::new(Kind::TooLarge, message)
}

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;
    use std::convert::Infallible;

    use http_body_util::{Full, StreamBody};
    use hyper::body::Frame;

    use super::*;
    use crate::primitives::byte_budget::ByteBudget;

    fn bounds(max: usize) -> BodyBounds {
        BodyBounds {
            max,
            within: Duration::from_secs(30),
            reservations: vec![ByteBudget::new(1000).take(0).unwrap()],
        }
    }

    fn chunks(chunks: &[&'static str]) -> impl Body<Data = Bytes, Error = Infallible> + Unpin {
        let mut chunks: VecDeque<_> = chunks.iter().copied().collect();
        StreamBody::new(futures_util::stream::poll_fn(move |_| {
            std::task::Poll::Ready(
                chunks
                    .pop_front()
                    .map(|chunk| Ok(Frame::data(Bytes::from_static(chunk.as_bytes())))),
            )
        }))
    }

    #[tokio::test]
    async fn a_body_in_several_frames_is_joined() {
        assert_eq!(
            read(chunks(&["ab", "", "c", "def"]), bounds(6))
                .await
                .unwrap(),
            "abcdef"
        );
        assert_eq!(
            read(Full::new(Bytes::from("abc")), bounds(3))
                .await
                .unwrap(),
            "abc"
        );
        assert_eq!(read(chunks(&[]), bounds(0)).await.unwrap(), "");
    }

    #[tokio::test]
    async fn a_body_over_the_limit_is_refused_with_or_without_a_declared_length() {
        for body in [
            read(chunks(&["ab", "cd"]), bounds(3)).await,
            read(Full::new(Bytes::from("abcd")), bounds(3)).await,
        ] {
            let refusal = body.unwrap_err();
            assert_eq!(
                (refusal.kind, refusal.message.as_str()),
                (
                    Kind::TooLarge,
                    "The request body is larger than the limit of 3 bytes."
                )
            );
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_stalled_body_times_out() {
        let stalled: StreamBody<futures_util::stream::Pending<Result<Frame<Bytes>, Infallible>>> =
            StreamBody::new(futures_util::stream::pending());
        let refusal = read(stalled, bounds(3)).await.unwrap_err();
        assert_eq!(
            (refusal.kind, refusal.message.as_str()),
            (
                Kind::BodyTimeout,
                "The request body was not complete within 30000 ms. CAMS has done nothing."
            )
        );
    }

    #[tokio::test]
    async fn every_byte_budget_is_charged_and_released() {
        let small = ByteBudget::new(4);
        let large = ByteBudget::new(100);
        for budgets in [vec![&small], vec![&large, &small], vec![&small, &large]] {
            let mut bounds = bounds(100);
            bounds.reservations = budgets
                .into_iter()
                .map(|budget| budget.take(0).unwrap())
                .collect();
            let refusal = read(chunks(&["ab", "cde"]), bounds).await.unwrap_err();
            assert_eq!(refusal.kind, Kind::QueueFull);
            assert_eq!((small.used(), large.used()), (0, 0));
        }
    }
}

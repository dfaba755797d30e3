//! Has the whole request come? The body is read to its end before the call may queue, within a bound of bytes and of
//! time, so that what waits is complete and a slow caller holds no place.

use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http_body_util::BodyExt;
use hyper::body::Body;
use hyper::http::request;

use crate::error::{Kind, Refusal};
use crate::primitives::byte_budget::Share;

/// What the body is allowed.
pub(crate) struct Allowance {
    /// Bytes.
    pub(crate) max: usize,
    /// Until its end.
    pub(crate) within: Duration,
    /// The rooms that the bytes come out of: the client's and everybody's, or that of callers who are not verified yet.
    pub(crate) shares: Vec<Share>,
}

/// Reads the whole body.
pub(crate) async fn read<B: Body<Data = Bytes> + Unpin>(
    body: B,
    allowance: Allowance,
) -> Result<Bytes, Refusal> {
    let within = allowance.within;
    match tokio::time::timeout(within, collect(body, allowance)).await {
        Ok(collected) => collected,
        Err(_elapsed) => Err(Refusal::new(
            Kind::BodyTimeout,
            format!("The body did not end within {} ms.", within.as_millis()),
        )),
    }
}

async fn collect<B: Body<Data = Bytes> + Unpin>(
    mut body: B,
    mut allowance: Allowance,
) -> Result<Bytes, Refusal> {
    let max = allowance.max;
    let too_large = || {
        Refusal::new(
            Kind::TooLarge,
            format!("The body is larger than the {max} bytes allowed here."),
        )
    };
    if body.size_hint().lower() > max as u64 {
        return Err(too_large());
    }
    let mut first = Bytes::new();
    let mut whole = BytesMut::new();
    while let Some(frame) = body.frame().await {
        // hyper's reasons (bad chunking, an early end) are of no use to a caller that wrote them.
        let frame = frame.map_err(|_| {
            Refusal::new(Kind::BadRequest, "The body is broken off or badly chunked.")
        })?;
        let Ok(data) = frame.into_data() else {
            continue;
        };
        if first.len() + whole.len() + data.len() > max {
            return Err(too_large());
        }
        if !allowance
            .shares
            .iter_mut()
            .all(|share| share.grow(data.len()))
        {
            let message = "Flowgate's memory for bodies that come in is full.";
            return Err(Refusal::after(
                Kind::QueueFull,
                Duration::from_secs(1),
                message,
            ));
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

/// hyper stops reading a head near the bound; this keeps it exactly.
pub(crate) fn check_head(head: &request::Parts, max: usize) -> Result<(), Refusal> {
    let target = head
        .uri
        .path_and_query()
        .map_or(0, |target| target.as_str().len());
    let headers = head
        .headers
        .iter()
        .map(|(name, value)| name.as_str().len() + value.len() + ": \r\n".len());
    if target + headers.sum::<usize>() <= max {
        return Ok(());
    }
    Err(Refusal::new(
        Kind::TooLarge,
        format!("The request's head is larger than the {max} bytes allowed here."),
    ))
}

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;
    use std::convert::Infallible;

    use http_body_util::{Full, StreamBody};
    use hyper::body::Frame;

    use super::*;
    use crate::primitives::byte_budget::Room;

    fn allowance(max: usize) -> Allowance {
        Allowance {
            max,
            within: Duration::from_secs(30),
            shares: vec![Room::new(1000).take(0).unwrap()],
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
    async fn joins_what_comes_in_pieces() {
        assert_eq!(
            read(chunks(&["ab", "", "c", "def"]), allowance(6))
                .await
                .unwrap(),
            "abcdef"
        );
        assert_eq!(
            read(Full::new(Bytes::from("abc")), allowance(3))
                .await
                .unwrap(),
            "abc"
        );
        assert_eq!(read(chunks(&[]), allowance(0)).await.unwrap(), "");
    }

    #[tokio::test]
    async fn one_byte_too_many_is_too_large_announced_or_not() {
        for body in [
            read(chunks(&["ab", "cd"]), allowance(3)).await,
            read(Full::new(Bytes::from("abcd")), allowance(3)).await,
        ] {
            let refusal = body.unwrap_err();
            assert_eq!(
                (refusal.kind, refusal.message.as_str()),
                (
                    Kind::TooLarge,
                    "The body is larger than the 3 bytes allowed here."
                )
            );
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_body_that_stalls_is_given_up() {
        let stalled: StreamBody<futures_util::stream::Pending<Result<Frame<Bytes>, Infallible>>> =
            StreamBody::new(futures_util::stream::pending());
        let refusal = read(stalled, allowance(3)).await.unwrap_err();
        assert_eq!(
            (refusal.kind, refusal.message.as_str()),
            (Kind::BodyTimeout, "The body did not end within 30000 ms.")
        );
    }

    #[tokio::test]
    async fn bytes_come_out_of_every_room() {
        let (small, large) = (Room::new(4), Room::new(100));
        for rooms in [vec![&small], vec![&large, &small], vec![&small, &large]] {
            let mut allowed = allowance(100);
            allowed.shares = rooms
                .into_iter()
                .map(|room| room.take(0).unwrap())
                .collect();
            let refusal = read(chunks(&["ab", "cde"]), allowed).await.unwrap_err();
            assert_eq!(refusal.kind, Kind::QueueFull);
            assert_eq!((small.used(), large.used()), (0, 0));
        }
    }
}

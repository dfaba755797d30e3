//! Closes a connection whose caller may still be sending. A socket that is closed with unread
//! bytes, or that receives bytes after it was closed, is reset, and a reset discards an answer that
//! the caller has not read yet. A caller that writes its whole request before it reads, as Python's
//! `http.client` does, would see a broken pipe in place of the refusal.

use std::time::Duration;

use bytes::{BufMut, Bytes, BytesMut};
use http_body_util::{BodyExt, Full};
use hyper::Response;
use hyper::header::{CONNECTION, CONTENT_LENGTH, HeaderValue};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::time::timeout;

/// How long bytes are read and discarded, in total.
const TOTAL: Duration = Duration::from_secs(30);
/// How long the caller may send nothing.
const SILENCE: Duration = Duration::from_secs(5);
/// Most bytes that are discarded: several times the largest body that a caller would send by
/// mistake.
const MAX_DISCARDED: usize = 16 << 20;
/// Size of the buffer.
const BUFFER: usize = 16 << 10;

/// Ends the sending side, then discards what the caller sends until it closes or a bound is
/// reached.
pub(super) async fn linger(mut io: impl AsyncRead + AsyncWrite + Unpin) {
    drop(timeout(TOTAL, discard(&mut io)).await);
}

async fn discard(io: &mut (impl AsyncRead + AsyncWrite + Unpin)) {
    if io.shutdown().await.is_err() {
        return;
    }
    let mut buffer = vec![0; BUFFER];
    let mut left = MAX_DISCARDED;
    while left > 0 {
        match timeout(SILENCE, io.read(&mut buffer)).await {
            Ok(Ok(read)) if read > 0 => left = left.saturating_sub(read),
            _ => return,
        }
    }
}

/// The response, with the announcement that its connection ends with it.
pub(super) fn announced<B>(mut response: Response<B>) -> Response<B> {
    let headers = response.headers_mut();
    headers.insert(CONNECTION, HeaderValue::from_static("close"));
    response
}

/// Writes an answer outside of hyper, as the last one of its connection.
pub(super) async fn write_last(
    io: &mut (impl AsyncWrite + Unpin),
    response: Response<Full<Bytes>>,
    within: Duration,
) {
    let bytes = to_bytes(response).await;
    let written = timeout(within, async {
        io.write_all(&bytes).await?;
        io.flush().await
    });
    // The caller may have closed.
    drop(written.await);
}

async fn to_bytes(response: Response<Full<Bytes>>) -> BytesMut {
    let (head, body) = response.into_parts();
    let body = match body.collect().await {
        Ok(body) => body.to_bytes(),
        Err(never) => match never {},
    };
    let mut bytes = BytesMut::new();
    bytes.put_slice(format!("HTTP/1.1 {}\r\n", head.status).as_bytes());
    for (name, value) in &head.headers {
        if *name != CONNECTION && *name != CONTENT_LENGTH {
            bytes.put_slice(name.as_str().as_bytes());
            bytes.put_slice(b": ");
            bytes.put_slice(value.as_bytes());
            bytes.put_slice(b"\r\n");
        }
    }
    let end = format!(
        "content-length: {}\r\nconnection: close\r\n\r\n",
        body.len()
    );
    bytes.put_slice(end.as_bytes());
    bytes.put_slice(&body);
    bytes
}

#[cfg(test)]
mod tests {
    use hyper::header::CONTENT_TYPE;
    use tokio::io::duplex;
    use tokio::time::Instant;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_connection_ends_after_silence_or_when_the_caller_closes() {
        for (is_closed, seconds) in [(true, 1), (false, 6)] {
            let (mut caller, io) = duplex(1 << 10);
            let began = Instant::now();
            let lingering = tokio::spawn(linger(io));
            tokio::time::sleep(Duration::from_secs(1)).await;
            caller.write_all(&[b'x'; 5000]).await.unwrap();
            assert_eq!(caller.read(&mut [0]).await.unwrap(), 0, "no more answers");
            let kept = (!is_closed).then_some(caller);
            lingering.await.unwrap();
            assert_eq!(began.elapsed().as_secs(), seconds);
            drop(kept);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_caller_that_never_stops_is_cut_off_by_time_and_by_size() {
        let (mut caller, io) = duplex(1 << 10);
        let began = Instant::now();
        let lingering = tokio::spawn(linger(io));
        let mut sent = 0;
        while caller.write_all(&[b'x'; 100]).await.is_ok() {
            sent += 100;
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
        lingering.await.unwrap();
        // 100 bytes each second, until the first write after `TOTAL` fails.
        let seconds = began.elapsed().as_secs();
        assert!((30..32).contains(&seconds), "{seconds}");
        assert!((3000..=3100).contains(&sent), "{sent}");

        let (mut caller, io) = duplex(1 << 20);
        let lingering = tokio::spawn(linger(io));
        let mut sent = 0;
        let part = vec![b'x'; 1 << 20];
        while caller.write_all(&part).await.is_ok() {
            sent += part.len();
        }
        lingering.await.unwrap();
        assert!(
            (MAX_DISCARDED..MAX_DISCARDED + (3 << 20)).contains(&sent),
            "{sent}"
        );
    }

    #[tokio::test]
    async fn an_answer_is_complete_and_announces_the_close() {
        let mut response = Response::new(Full::new(Bytes::from("{}")));
        *response.status_mut() = hyper::StatusCode::PAYLOAD_TOO_LARGE;
        response
            .headers_mut()
            .insert(CONTENT_TYPE, "application/json".parse().unwrap());
        let mut written = Vec::new();
        write_last(&mut written, response, Duration::from_secs(1)).await;
        assert_eq!(
            String::from_utf8(written).unwrap(),
            "HTTP/1.1 413 Payload Too Large\r\ncontent-type: application/json\r\n\
             content-length: 2\r\nconnection: close\r\n\r\n{}"
        );
    }
}

//! Opens a tunnel through an HTTP proxy with CONNECT (RFC 9110, section 9.3.6). Nothing of a call
//! is sent before the proxy has opened it.

use std::io;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::{BufMut, BytesMut};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use zeroize::Zeroizing;

use super::failures::Failure;
use crate::config;
use crate::primitives::secret::Secret;

/// Maximum size of the proxy's answer up to the end of its head, in bytes.
const MAX_ANSWER: usize = 16 * 1024;
/// Maximum number of headers in it.
const MAX_HEADERS: usize = 64;

/// The request for a tunnel to one target.
pub(super) struct Tunnel {
    /// Host and port of the upstream, whose name the proxy resolves.
    target: String,
    request: Zeroizing<Vec<u8>>,
    has_credentials: bool,
}

/// Why the proxy opens no tunnel.
#[derive(Debug, thiserror::Error)]
pub(super) enum TunnelError {
    /// Status 407 or 401 without credentials in the request.
    #[error("the proxy demands a user and a password ({0}): set upstream.proxy_credentials")]
    AuthenticationRequired(u16),
    /// Status 407 or 401 with credentials in the request.
    #[error("the proxy does not accept upstream.proxy_credentials ({0})")]
    AuthenticationRefused(u16),
    /// Status 407 with challenges, none of which is for Basic authentication.
    #[error("the proxy demands an authentication other than Basic (407), which is not supported")]
    AuthenticationUnsupported,
    /// Status 403.
    #[error("the proxy forbids a tunnel to {0} (403)")]
    Forbidden(String),
    /// Status 502, 503 or 504.
    #[error("the proxy cannot reach {0} ({1})")]
    BadGateway(String, u16),
    /// Any other status.
    #[error("the proxy opens no tunnel to {0} ({1})")]
    Status(String, u16),
    /// The answer is not HTTP.
    #[error("the proxy's answer is not HTTP")]
    NotHttp,
    /// The answer is longer than its bounds.
    #[error("the proxy's answer to CONNECT is longer than 16 KiB or has more than 64 headers")]
    TooLong,
    /// Bytes follow the answer, although the upstream does not speak first.
    #[error("the proxy sends data after its answer to CONNECT")]
    Surplus,
    /// The connection ended within the answer.
    #[error("the proxy closed the connection before it had answered")]
    Closed,
    /// Reading or writing failed.
    #[error("the connection to the proxy broke: {}", .0.kind())]
    Broken(#[from] io::Error),
}

/// The parts of an answer that count.
#[derive(Clone, Copy)]
struct Answer {
    status: u16,
    /// Length of the head, in bytes.
    length: usize,
    /// It has challenges, and none of them is for Basic authentication.
    excludes_basic: bool,
}

// === impl Tunnel ===

impl Tunnel {
    /// The tunnel to an upstream; `None` if no proxy is configured.
    pub(super) fn for_upstream(config: &config::Upstream) -> Option<Self> {
        config.proxy.as_ref()?;
        Some(Self::new(
            config.authority(),
            config.proxy_credentials.as_ref(),
        ))
    }

    fn new(target: String, credentials: Option<&Secret>) -> Self {
        // With room for all of it: a reallocation would leave a copy in freed memory.
        let room = 256 + 3 * target.len() + credentials.map_or(0, |it| 2 * it.expose().len());
        let mut request = Zeroizing::new(Vec::with_capacity(room));
        request.extend_from_slice(b"CONNECT ");
        request.extend_from_slice(target.as_bytes());
        request.extend_from_slice(b" HTTP/1.1\r\nHost: ");
        request.extend_from_slice(target.as_bytes());
        request.extend_from_slice(b"\r\nUser-Agent: flowgate/");
        request.extend_from_slice(crate::VERSION.as_bytes());
        if let Some(credentials) = credentials {
            let basic = Zeroizing::new(STANDARD.encode(credentials.expose()));
            request.extend_from_slice(b"\r\nProxy-Authorization: Basic ");
            request.extend_from_slice(basic.as_bytes());
        }
        request.extend_from_slice(b"\r\n\r\n");
        Self {
            target,
            request,
            has_credentials: credentials.is_some(),
        }
    }

    /// Asks for the tunnel on a new connection to the proxy, and waits until it is open.
    pub(super) async fn open<T>(&self, io: &mut T) -> Result<(), TunnelError>
    where
        T: AsyncRead + AsyncWrite + Unpin,
    {
        io.write_all(&self.request).await?;
        io.flush().await?;
        let answer = answer(io).await?;
        match answer.status {
            200..=299 => Ok(()),
            407 if answer.excludes_basic => Err(TunnelError::AuthenticationUnsupported),
            // tinyproxy answers 401 to wrong credentials.
            status @ (401 | 407) if self.has_credentials => {
                Err(TunnelError::AuthenticationRefused(status))
            }
            status @ (401 | 407) => Err(TunnelError::AuthenticationRequired(status)),
            403 => Err(TunnelError::Forbidden(self.target.clone())),
            status @ 502..=504 => Err(TunnelError::BadGateway(self.target.clone(), status)),
            status => Err(TunnelError::Status(self.target.clone(), status)),
        }
    }
}

// === impl TunnelError ===

impl TunnelError {
    pub(super) fn failure(&self) -> Failure {
        match self {
            Self::AuthenticationRequired(_)
            | Self::AuthenticationRefused(_)
            | Self::AuthenticationUnsupported => Failure::ProxyAuthentication,
            Self::Forbidden(_) => Failure::ProxyForbidden,
            Self::BadGateway(..) => Failure::ProxyBadGateway,
            Self::Status(..) => Failure::ProxyStatus,
            Self::NotHttp | Self::TooLong | Self::Surplus => Failure::ProxyAnswer,
            Self::Closed | Self::Broken(_) => Failure::ProxyClosed,
        }
    }
}

/// Reads the final answer up to the end of its head. Interim answers are skipped.
async fn answer(io: &mut (impl AsyncRead + Unpin)) -> Result<Answer, TunnelError> {
    let mut bytes = BytesMut::new();
    let mut room = MAX_ANSWER;
    loop {
        let read = io.read_buf(&mut (&mut bytes).limit(room)).await?;
        match read {
            0 if room == 0 => return Err(TunnelError::TooLong),
            0 => return Err(TunnelError::Closed),
            read => room -= read,
        }
        while let Some(answer) = parse(&bytes)? {
            let is_interim = (100..200).contains(&answer.status) && answer.status != 101;
            if !is_interim {
                return complete(answer, bytes.len());
            }
            drop(bytes.split_to(answer.length));
        }
    }
}

/// Checks that an opened tunnel carries nothing yet. The body of a refusal does not count.
fn complete(answer: Answer, read: usize) -> Result<Answer, TunnelError> {
    let is_open = (200..300).contains(&answer.status);
    if is_open && read > answer.length {
        return Err(TunnelError::Surplus);
    }
    Ok(answer)
}

/// Parses a head; `None` if it is not complete.
fn parse(bytes: &[u8]) -> Result<Option<Answer>, TunnelError> {
    let mut headers = [httparse::EMPTY_HEADER; MAX_HEADERS];
    let mut response = httparse::Response::new(&mut headers);
    let length = match response.parse(bytes) {
        Ok(httparse::Status::Complete(length)) => length,
        Ok(httparse::Status::Partial) => return Ok(None),
        Err(httparse::Error::TooManyHeaders) => return Err(TunnelError::TooLong),
        Err(_) => return Err(TunnelError::NotHttp),
    };
    Ok(response.code.map(|status| Answer {
        status,
        length,
        excludes_basic: excludes_basic(response.headers),
    }))
}

/// Whether there are challenges, and none of them is for Basic authentication. A header may have a
/// list of them.
fn excludes_basic(headers: &[httparse::Header<'_>]) -> bool {
    let mut challenges = headers
        .iter()
        .filter(|header| header.name.eq_ignore_ascii_case("proxy-authenticate"))
        .flat_map(|header| header.value.split(|byte| *byte == b','))
        .peekable();
    challenges.peek().is_some() && !challenges.any(is_basic)
}

fn is_basic(challenge: &[u8]) -> bool {
    let challenge = challenge.trim_ascii();
    let scheme = challenge.get(..5);
    scheme.is_some_and(|scheme| scheme.eq_ignore_ascii_case(b"basic"))
        && challenge.get(5).is_none_or(u8::is_ascii_whitespace)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::io::duplex;
    use tokio::time::timeout;

    use super::*;

    const TARGET: &str = "cams.ap-southeast-1.aliyuncs.com:443";

    fn tunnel(credentials: Option<&str>) -> Tunnel {
        let credentials = credentials.map(Secret::new);
        Tunnel::new(TARGET.to_owned(), credentials.as_ref())
    }

    /// Opens a tunnel through a proxy that answers with these bytes, in pieces of this size, and
    /// closes.
    async fn opened_in(tunnel: &Tunnel, answer: &[u8], piece: usize) -> Result<(), TunnelError> {
        let (mut ours, mut theirs) = duplex(1 << 20);
        let proxy = async {
            let mut request = vec![0; tunnel.request.len()];
            theirs.read_exact(&mut request).await.unwrap();
            for piece in answer.chunks(piece) {
                theirs.write_all(piece).await.unwrap();
                tokio::task::yield_now().await;
            }
            drop(theirs);
        };
        tokio::join!(tunnel.open(&mut ours), proxy).0
    }

    async fn reason(answer: &[u8]) -> Option<String> {
        let opened = opened_in(&tunnel(None), answer, answer.len().max(1)).await;
        opened.err().map(|error| error.to_string())
    }

    #[test]
    fn the_request_names_the_target_and_carries_basic_credentials() {
        let expected = format!(
            "CONNECT {TARGET} HTTP/1.1\r\nHost: {TARGET}\r\nUser-Agent: flowgate/{}\r\n",
            crate::VERSION
        );
        let request =
            |credentials| String::from_utf8(tunnel(credentials).request.to_vec()).unwrap();
        assert_eq!(request(None), format!("{expected}\r\n"));
        // RFC 7617, section 2.
        assert_eq!(
            request(Some("Aladdin:open sesame")),
            format!("{expected}Proxy-Authorization: Basic QWxhZGRpbjpvcGVuIHNlc2FtZQ==\r\n\r\n")
        );
    }

    #[tokio::test]
    async fn a_tunnel_is_open_after_a_2xx_in_any_pieces() {
        for answer in [
            &b"HTTP/1.1 200 Connection established\r\n\r\n"[..],
            b"HTTP/1.0 200 Connection established\r\nProxy-agent: tinyproxy/1.11.1\r\n\r\n",
            b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n",
            b"HTTP/1.1 299 \r\n\r\n",
            b"HTTP/1.1 200\n\n",
            b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Hints\r\nLink: x\r\n\r\nHTTP/1.1 200 OK\r\n\r\n",
        ] {
            for piece in [1, 7, answer.len()] {
                let opened = opened_in(&tunnel(None), answer, piece).await;
                assert!(opened.is_ok(), "{opened:?}: {}", answer.escape_ascii());
            }
        }
    }

    #[tokio::test]
    async fn every_other_answer_has_its_reason() {
        let not_http = "the proxy's answer is not HTTP";
        let closed = "the proxy closed the connection before it had answered";
        for (answer, expected) in [
            (
                &b"HTTP/1.1 403 Forbidden\r\nContent-Length: 2\r\n\r\nno"[..],
                "the proxy forbids a tunnel to cams.ap-southeast-1.aliyuncs.com:443 (403)",
            ),
            (
                b"HTTP/1.1 502 Bad Gateway\r\n\r\n",
                "the proxy cannot reach cams.ap-southeast-1.aliyuncs.com:443 (502)",
            ),
            (
                b"HTTP/1.1 503 Busy\r\n\r\n",
                "the proxy cannot reach cams.ap-southeast-1.aliyuncs.com:443 (503)",
            ),
            (
                b"HTTP/1.1 301 Moved\r\nLocation: http://x/\r\n\r\n",
                "the proxy opens no tunnel to cams.ap-southeast-1.aliyuncs.com:443 (301)",
            ),
            (
                b"HTTP/1.1 101 Switching Protocols\r\n\r\n",
                "the proxy opens no tunnel to cams.ap-southeast-1.aliyuncs.com:443 (101)",
            ),
            (b"SSH-2.0-OpenSSH_9.2\r\n", not_http),
            (b"<html>login</html>", not_http),
            (b"\x15\x03\x01\x00\x02\x02\x16", not_http),
            (b"HTTP/1.1 abc\r\n\r\n", not_http),
            (b"HTTP/2 200\r\n\r\n", not_http),
            (b"", closed),
            (b"HTTP/1.1 200 Connection", closed),
            (b"HTTP/1.1 100 Continue\r\n\r\n", closed),
            (
                b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi",
                "the proxy sends data after its answer to CONNECT",
            ),
        ] {
            assert_eq!(
                reason(answer).await.as_deref(),
                Some(expected),
                "{}",
                answer.escape_ascii()
            );
        }
    }

    #[tokio::test]
    async fn an_answer_of_more_than_its_bounds_is_not_read_to_its_end() {
        let long = [
            b"HTTP/1.1 200 OK\r\nX: ".as_slice(),
            &[b'x'; MAX_ANSWER],
            b"\r\n\r\n",
        ]
        .concat();
        let many = [
            b"HTTP/1.1 200 OK\r\n".as_slice(),
            &b"X: y\r\n".repeat(MAX_HEADERS + 1),
            b"\r\n",
        ]
        .concat();
        let interim = b"HTTP/1.1 100 Continue\r\n\r\n".repeat(1000);
        for answer in [long, many, interim] {
            let expected =
                "the proxy's answer to CONNECT is longer than 16 KiB or has more than 64 headers";
            assert_eq!(reason(&answer).await.as_deref(), Some(expected));
        }
    }

    #[tokio::test]
    async fn a_407_says_what_the_proxy_accepts() {
        let basic =
            b"HTTP/1.1 407 Auth\r\nProxy-Authenticate: Negotiate, basic realm=\"a\"\r\n\r\n";
        let other = b"HTTP/1.1 407 Auth\r\nProxy-Authenticate: NTLM\r\nProxy-Authenticate: Basics x\r\n\r\n";
        let tinyproxy = b"HTTP/1.0 401 Unauthorized\r\nServer: tinyproxy/1.11.1\r\n\r\n";
        for (credentials, answer, expected) in [
            (
                Some("user:hunter2"),
                &tinyproxy[..],
                "the proxy does not accept upstream.proxy_credentials (401)",
            ),
            (
                None,
                b"HTTP/1.1 407 Auth\r\n\r\n",
                "the proxy demands a user and a password (407): set upstream.proxy_credentials",
            ),
            (
                None,
                &basic[..],
                "the proxy demands a user and a password (407): set upstream.proxy_credentials",
            ),
            (
                Some("user:hunter2"),
                basic,
                "the proxy does not accept upstream.proxy_credentials (407)",
            ),
            (
                Some("user:hunter2"),
                other,
                "the proxy demands an authentication other than Basic (407), which is not supported",
            ),
        ] {
            let refused = opened_in(&tunnel(credentials), answer, answer.len()).await;
            assert_eq!(refused.unwrap_err().to_string(), expected);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn an_open_can_be_given_up_at_any_time() {
        let tunnel = tunnel(None);
        let (mut ours, mut theirs) = duplex(1 << 10);
        theirs.write_all(b"HTTP/1.1 200 OK\r\n").await.unwrap();
        let opened = timeout(Duration::from_secs(3), tunnel.open(&mut ours)).await;
        assert!(opened.is_err());
    }
}

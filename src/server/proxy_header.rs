//! The PROXY header, version 2, with which a balancer states the address of the caller before it
//! passes on the caller's bytes. The header is read exactly to its end, so that TLS or HTTP begins
//! with the next byte.

use std::io;
use std::net::IpAddr;

use proxy_header::{ParseConfig, Protocol, ProxyHeader};
use tokio::io::{AsyncRead, AsyncReadExt};

/// The first bytes of every header of version 2.
const SIGNATURE: &[u8; 12] = b"\r\n\r\n\0\r\nQUIT\n";
/// Signature, command, family and length.
const START: usize = 16;
/// Longest part after the start: addresses, and the type-length-value fields, which are skipped.
/// A client certificate's name is the largest field that balancers send.
const MAX_REST: usize = 4096;
/// Version 2, command LOCAL.
const LOCAL: u8 = 0x20;

/// Why a connection is closed before its first request.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ProxyHeaderError {
    /// The peer closed without sending a byte, as a port check does.
    #[error("closed without a byte")]
    Silent,
    /// The peer may not state addresses.
    #[error("the peer is not in listen.trusted_proxies")]
    Untrusted,
    /// The header did not end in time.
    #[error("the PROXY header did not end within listen.header_timeout")]
    Slow,
    /// The connection closed or broke in the header.
    #[error("the connection ended before the PROXY header did")]
    Incomplete,
    /// The text form of the header.
    #[error("the PROXY header has version 1, configure the balancer to send version 2")]
    Version1,
    /// TLS or HTTP begins with the first byte.
    #[error("there is no PROXY header, the connection begins with {0}")]
    Missing(&'static str),
    /// More than any balancer sends.
    #[error("the PROXY header is longer than {MAX_REST} bytes")]
    TooLong,
    /// The caller uses UDP.
    #[error("the PROXY header states a protocol other than TCP")]
    NotTcp,
    /// Not a header of version 2.
    #[error("the PROXY header is malformed")]
    Malformed,
}

/// Reads the header, and nothing after it. Returns the caller's address, or `None` if the balancer
/// states none: for its own health check, or for a caller without an IP address.
pub(crate) async fn read(
    stream: &mut (impl AsyncRead + Unpin),
) -> Result<Option<IpAddr>, ProxyHeaderError> {
    let mut start = [0; START];
    let mut filled = 0;
    while filled < START {
        match stream.read(&mut start[filled..]).await {
            Ok(0) | Err(_) if filled == 0 => return Err(ProxyHeaderError::Silent),
            Ok(0) | Err(_) => return Err(ProxyHeaderError::Incomplete),
            Ok(read) => filled += read,
        }
        check_start(&start[..filled])?;
    }
    let rest = usize::from(u16::from_be_bytes([start[14], start[15]]));
    if rest > MAX_REST {
        return Err(ProxyHeaderError::TooLong);
    }
    let mut header = start.to_vec();
    header.resize(START + rest, 0);
    stream
        .read_exact(&mut header[START..])
        .await
        .map_err(|_: io::Error| ProxyHeaderError::Incomplete)?;
    parse(&header)
}

/// Whether a header can begin with these bytes. At most as many bytes are needed as distinguish
/// version 1 from a method of HTTP.
fn check_start(start: &[u8]) -> Result<(), ProxyHeaderError> {
    const VERSION_1: &[u8] = b"PROXY ";
    const TLS: u8 = 0x16;
    let signature = &start[..start.len().min(SIGNATURE.len())];
    if SIGNATURE.starts_with(signature) || VERSION_1.starts_with(start) {
        return Ok(());
    }
    Err(match start {
        _ if start.starts_with(VERSION_1) => ProxyHeaderError::Version1,
        [TLS, ..] => ProxyHeaderError::Missing("TLS"),
        [b'A'..=b'Z', ..] => ProxyHeaderError::Missing("HTTP"),
        _ => ProxyHeaderError::Malformed,
    })
}

/// Parses a complete header. The addresses of a LOCAL header are not read, as the protocol asks.
fn parse(header: &[u8]) -> Result<Option<IpAddr>, ProxyHeaderError> {
    const ONLY_VERSION_2: ParseConfig = ParseConfig {
        include_tlvs: false,
        allow_v1: false,
        allow_v2: true,
    };
    if header.len() >= START && header.starts_with(SIGNATURE) && header[SIGNATURE.len()] == LOCAL {
        return Ok(None);
    }
    let (parsed, length) =
        ProxyHeader::parse(header, ONLY_VERSION_2).map_err(|_| ProxyHeaderError::Malformed)?;
    if length != header.len() {
        return Err(ProxyHeaderError::Malformed);
    }
    match parsed.proxied_address() {
        None => Ok(None),
        Some(address) if address.protocol == Protocol::Stream => {
            Ok(Some(address.source.ip().to_canonical()))
        }
        Some(_) => Err(ProxyHeaderError::NotTcp),
    }
}

// === impl ProxyHeaderError ===

impl ProxyHeaderError {
    /// The metric label; `None` if it is not an error.
    pub(super) fn kind(&self) -> Option<&'static str> {
        match self {
            Self::Silent => None,
            Self::Untrusted => Some("untrusted_proxy"),
            _ => Some("proxy_header"),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::io::AsyncWriteExt;
    use tokio::time::timeout;

    use super::*;

    const V4: [u8; 12] = [192, 0, 2, 7, 198, 51, 100, 1, 0x9c, 0x40, 0x1f, 0x90];

    /// A header with this command, family and rest.
    fn header(command: u8, family: u8, rest: &[u8]) -> Vec<u8> {
        let length = u16::try_from(rest.len()).unwrap().to_be_bytes();
        [SIGNATURE.as_slice(), &[command, family], &length, rest].concat()
    }

    fn v6(source: &str) -> Vec<u8> {
        let address = |text: &str| text.parse::<std::net::Ipv6Addr>().unwrap().octets();
        [
            address(source).as_slice(),
            &address("2001:db8::1"),
            &[0x9c, 0x40, 0x1f, 0x90],
        ]
        .concat()
    }

    /// What is read of these bytes, and how many bytes are left for the request.
    async fn reads(bytes: &[u8]) -> (Result<Option<IpAddr>, String>, usize) {
        let mut stream = bytes;
        let read = read(&mut stream).await;
        (read.map_err(|error| error.to_string()), stream.len())
    }

    #[tokio::test]
    async fn the_callers_address_is_read_and_nothing_after_the_header() {
        let with_fields = [V4.as_slice(), &[0x04, 0, 2, 0, 0, 0x20, 0, 1, 7]].concat();
        let address = |text: &str| Some(text.parse::<IpAddr>().unwrap());
        for (header, expected) in [
            (header(0x21, 0x11, &V4), address("192.0.2.7")),
            (header(0x21, 0x11, &with_fields), address("192.0.2.7")),
            (
                header(0x21, 0x21, &v6("2001:db8::9")),
                address("2001:db8::9"),
            ),
            (
                header(0x21, 0x21, &v6("::ffff:192.0.2.7")),
                address("192.0.2.7"),
            ),
            // Without an IP address.
            (header(0x21, 0x31, &[0; 216]), None),
            (header(0x21, 0x00, b""), None),
            (header(0x21, 0x00, &[0; 40]), None),
            // LOCAL: family and addresses mean nothing.
            (header(0x20, 0x00, b""), None),
            (header(0x20, 0x11, &V4), None),
            (header(0x20, 0xff, b"rest"), None),
        ] {
            let bytes = [header.as_slice(), b"POST /"].concat();
            assert_eq!(reads(&bytes).await, (Ok(expected), 6), "{header:?}");
        }
    }

    #[tokio::test]
    async fn each_invalid_header_is_refused_for_its_reason() {
        let malformed = "the PROXY header is malformed";
        let incomplete = "the connection ended before the PROXY header did";
        let not_tcp = "the PROXY header states a protocol other than TCP";
        let cases: [(&[u8], &str); 16] = [
            (b"", "closed without a byte"),
            (b"\r", incomplete),
            (&header(0x21, 0x11, &V4)[..27], incomplete),
            (
                b"PROXY TCP4 192.0.2.7 198.51.100.1 40000 8080\r\n",
                "the PROXY header has version 1, configure the balancer to send version 2",
            ),
            (
                b"POST / HTTP/1.1\r\n",
                "there is no PROXY header, the connection begins with HTTP",
            ),
            (
                b"PROXYING / HTTP/1.1",
                "there is no PROXY header, the connection begins with HTTP",
            ),
            (
                b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
                "there is no PROXY header, the connection begins with TLS",
            ),
            (b"\r\nGET / HTTP/1.1\r\n", malformed),
            (b"\0", malformed),
            (&header(0x11, 0x11, &V4), malformed),
            (&header(0x22, 0x11, &V4), malformed),
            (&header(0x21, 0x13, &V4), malformed),
            (&header(0x21, 0x11, &V4[..11]), malformed),
            (&header(0x21, 0x12, &V4), not_tcp),
            (&header(0x21, 0x22, &v6("::1")), not_tcp),
            (
                &header(0x21, 0x11, &[0; MAX_REST + 1]),
                "the PROXY header is longer than 4096 bytes",
            ),
        ];
        for (bytes, expected) in cases {
            assert_eq!(reads(bytes).await.0, Err(expected.to_owned()), "{bytes:?}");
        }
        let longest = [V4.as_slice(), &[0; MAX_REST - 12]].concat();
        assert!(reads(&header(0x21, 0x11, &longest)).await.0.is_ok());
    }

    #[tokio::test(start_paused = true)]
    async fn a_header_may_arrive_byte_by_byte_and_is_refused_at_the_first_wrong_byte() {
        let (mut balancer, mut flowgate) = tokio::io::duplex(1);
        let bytes = header(0x21, 0x11, &V4);
        let writing = tokio::spawn(async move {
            for byte in bytes {
                balancer.write_u8(byte).await.unwrap();
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
            balancer
        });
        let address = read(&mut flowgate).await.unwrap().unwrap();
        assert_eq!(address.to_string(), "192.0.2.7");
        let mut balancer = writing.await.unwrap();

        balancer.write_all(b"P").await.unwrap();
        let mut undecided = Box::pin(read(&mut flowgate));
        assert!(
            timeout(Duration::from_secs(1), &mut undecided)
                .await
                .is_err()
        );
        balancer.write_all(b"O").await.unwrap();
        let refused = undecided.await.unwrap_err();
        assert!(matches!(refused, ProxyHeaderError::Missing("HTTP")));
    }
}

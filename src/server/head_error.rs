//! Why a request head could not be read. hyper would answer with a bare status; instead the
//! connection's [`Handler`](super::Handler) answers in its own format.

use hyper::StatusCode;

/// The longest target that the `http` crate accepts, in bytes.
const MAX_TARGET: usize = u16::MAX as usize - 1;
/// The number of headers that hyper accepts.
const MAX_HEADERS: usize = 100;
/// The start of an HTTP/2 connection without TLS.
const HTTP_2: &[u8] = b"PRI * HTTP/2";
/// Type and major version of the first record of TLS.
const TLS: &[u8] = b"\x16\x03";

/// Why a request head could not be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum HeadError {
    /// It does not end within this number of bytes.
    #[error("The request's head is larger than the {0} bytes allowed here (listen.max_header).")]
    TooLarge(usize),
    /// Its target is longer than HTTP libraries accept.
    #[error("The request's target is longer than {MAX_TARGET} bytes.")]
    TargetTooLong,
    /// It has too many headers.
    #[error("The request has more than {MAX_HEADERS} headers.")]
    TooManyHeaders,
    /// It is large, and so are too many others at the same time.
    #[error("Flowgate's memory for large request heads is full. CAMS has done nothing.")]
    NoMemory,
    /// It is a TLS handshake.
    #[error("A TLS handshake arrived on a port without TLS: set the SDK's protocol to HTTP.")]
    Tls,
    /// It is the start of HTTP/2.
    #[error("HTTP/2 is not supported: use HTTP/1.1.")]
    Http2,
    /// Its target has a character that a URL cannot have.
    #[error("The request's target has a character that must be percent-encoded.")]
    TargetCharacter,
    /// It is HTTP, with a mistake.
    #[error("The request's head is not valid HTTP/1.1.")]
    Malformed,
    /// It is something else.
    #[error("What arrived is not HTTP.")]
    NotHttp,
}

// === impl HeadError ===

impl HeadError {
    /// Classifies a parse error of hyper, or the lack of memory for a large head. `received` is
    /// what hyper has not consumed: the whole head, or nothing if hyper could split it into lines.
    /// `max` is the limit of bytes.
    pub(super) fn new(error: &hyper::Error, received: &[u8], max: usize) -> Self {
        if error.is_parse_too_large() {
            return Self::too_large(received, max);
        }
        if !error.is_parse() {
            return Self::NoMemory;
        }
        let line = first_line(received);
        if received.starts_with(TLS) {
            Self::Tls
        } else if error.is_parse_version_h2() || received.starts_with(HTTP_2) {
            Self::Http2
        } else if has_http_version(line) && !target(received).iter().all(is_target_byte) {
            Self::TargetCharacter
        } else if received.is_empty() || has_http_version(line) {
            Self::Malformed
        } else {
            Self::NotHttp
        }
    }

    fn too_large(received: &[u8], max: usize) -> Self {
        if target(received).len() > MAX_TARGET {
            Self::TargetTooLong
        } else if received.len() >= max {
            Self::TooLarge(max)
        } else {
            Self::TooManyHeaders
        }
    }

    /// The status of the answer. `NoMemory` has that of a full queue.
    pub(crate) fn status(self) -> StatusCode {
        if self.is_too_large() {
            StatusCode::PAYLOAD_TOO_LARGE
        } else {
            StatusCode::BAD_REQUEST
        }
    }

    /// Whether it is HTTP within its rules, over a limit.
    pub(crate) fn is_too_large(self) -> bool {
        matches!(
            self,
            Self::TooLarge(_) | Self::TargetTooLong | Self::TooManyHeaders
        )
    }

    /// The label of `flowgate_connection_errors_total`.
    pub(super) fn kind(self) -> &'static str {
        if self.is_too_large() || self == Self::NoMemory {
            "large_head"
        } else {
            "not_http"
        }
    }
}

fn has_http_version(line: &[u8]) -> bool {
    line.windows(6).any(|part| part == b" HTTP/")
}

/// Whether a URL may have this byte, percent-encoded or not.
fn is_target_byte(byte: &u8) -> bool {
    byte.is_ascii_graphic() && !b"\"<>\\^`{|}".contains(byte)
}

fn first_line(head: &[u8]) -> &[u8] {
    head.split(|byte| *byte == b'\n').next().unwrap_or_default()
}

/// The target in the first line of a head, whole or cut off.
pub(crate) fn target(head: &[u8]) -> &[u8] {
    let mut words = first_line(head).split(|byte| *byte == b' ');
    words.nth(1).unwrap_or_default()
}

/// The value of a header in a head that may be cut off, if it is plain text.
pub(crate) fn header<'a>(head: &'a [u8], name: &str) -> Option<&'a str> {
    head.split(|byte| *byte == b'\n').skip(1).find_map(|line| {
        let line = std::str::from_utf8(line).ok()?;
        let (written, value) = line.split_once(':')?;
        written.eq_ignore_ascii_case(name).then(|| value.trim())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_oversize_head_is_named_by_the_limit_that_it_exceeds() {
        let long = format!("GET /?{} HTTP/1.1\r\nhost: x\r\n", "x".repeat(MAX_TARGET));
        for (head, error) in [
            (long.as_str(), HeadError::TargetTooLong),
            ("GET / HTTP/1.1\r\nx: yyyyyyyyyyyy", HeadError::TooLarge(30)),
            ("GET / HTTP/1.1\r\nx: y\r\n", HeadError::TooManyHeaders),
        ] {
            assert_eq!(HeadError::too_large(head.as_bytes(), 30), error, "{head}");
        }
    }

    #[test]
    fn target_and_headers_are_read_from_a_head_that_is_cut_off() {
        let head = b"POST /?Format=XML HTTP/1.1\r\nHost: cams:1 \r\nx-long: yyy";
        assert_eq!(target(head), b"/?Format=XML");
        assert_eq!(header(head, "host"), Some("cams:1"));
        assert_eq!(header(head, "authorization"), None);
        assert_eq!(target(b"\x16\x03\x01"), b"");
        assert_eq!(target(b"POST /?For"), b"/?For");
    }
}

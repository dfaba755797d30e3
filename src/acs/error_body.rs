//! Error bodies that stock SDKs read like those of CAMS: the five fields of Alibaba's gateways, as
//! JSON or XML, and `RetryAfter` for SDKs that do not expose response headers.

use std::sync::Arc;

use quick_xml::escape::escape;
use serde::Serialize;

/// The format of the body.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Format {
    /// Requested by most SDKs, and the only format of signature version 3.
    Json,
    /// Alibaba's default for signature version 1.
    Xml,
}

/// The fields of an error.
#[derive(Clone, Copy, Serialize)]
#[serde(rename_all = "PascalCase")]
pub(crate) struct ErrorBody<'a> {
    /// Identifies this response.
    pub(crate) request_id: &'a str,
    /// The endpoint that received the request.
    pub(crate) host_id: &'a str,
    /// The machine-readable error code.
    pub(crate) code: &'a str,
    /// The human-readable message.
    pub(crate) message: &'a str,
    /// URL of the error's documentation; may be empty.
    pub(crate) recommend: &'a str,
    /// When to retry, in milliseconds: Node's SDK exposes the whole body to its caller, but no
    /// header.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) retry_after: Option<u64>,
}

/// Generates a request id in CAMS's form: an upper-case UUID with 122 random bits.
pub(crate) fn request_id() -> String {
    with_request_id(str::to_owned)
}

/// Like [`request_id`], in one allocation.
pub(crate) fn shared_request_id() -> Arc<str> {
    with_request_id(|id| Arc::from(id))
}

fn with_request_id<T>(make: impl FnOnce(&str) -> T) -> T {
    // Not a secret, so a fast generator without system calls is sufficient.
    let mut bytes = fastrand::u128(..).to_ne_bytes();
    // Version 4, variant 1 (RFC 9562).
    bytes[6] = bytes[6] & 0x0f | 0x40;
    bytes[8] = bytes[8] & 0x3f | 0x80;
    let mut id = [b'-'; 36];
    let mut at = 0;
    for (number, byte) in bytes.iter().enumerate() {
        if matches!(number, 4 | 6 | 8 | 10) {
            at += 1;
        }
        id[at] = hex_digit(byte >> 4);
        id[at + 1] = hex_digit(*byte);
        at += 2;
    }
    make(std::str::from_utf8(&id).expect("digits are ASCII"))
}

/// Returns the upper-case hex digit of the lower four bits.
fn hex_digit(half: u8) -> u8 {
    b"0123456789ABCDEF"[usize::from(half & 0x0f)]
}

/// Replaces characters that XML does not allow even when escaped.
pub(super) fn legal(text: &str) -> String {
    text.chars()
        .map(|c| match c {
            '\t' | '\n' | '\r' | ' '..='\u{fffd}' | '\u{10000}'.. => c,
            _ => char::REPLACEMENT_CHARACTER,
        })
        .collect()
}

// === impl Format ===

impl Format {
    /// Returns the content type. Its exact form matters: tea SDKs parse the body as JSON for
    /// `application/xml` and for a space before `charset`.
    pub(crate) fn content_type(self) -> &'static str {
        match self {
            Self::Json => "application/json;charset=utf-8",
            Self::Xml => "text/xml;charset=utf-8",
        }
    }

    /// Serializes a body of strings. `xml` gives it as XML.
    pub(super) fn write(self, body: &impl Serialize, xml: impl FnOnce() -> String) -> String {
        match self {
            Self::Json => serde_json::to_string(body).expect("a struct of strings is always JSON"),
            Self::Xml => xml(),
        }
    }
}

// === impl ErrorBody ===

impl ErrorBody<'_> {
    /// Serializes the body.
    pub(crate) fn write(&self, format: Format) -> String {
        format.write(self, || self.xml())
    }

    fn xml(&self) -> String {
        let fields = [
            ("RequestId", self.request_id),
            ("HostId", self.host_id),
            ("Code", self.code),
            ("Message", self.message),
            ("Recommend", self.recommend),
        ];
        let elements =
            fields.map(|(name, text)| format!("<{name}>{}</{name}>", escape(legal(text))));
        let retry_after = self
            .retry_after
            .map(|millis| format!("<RetryAfter>{millis}</RetryAfter>"))
            .unwrap_or_default();
        format!(
            "<?xml version='1.0' encoding='UTF-8'?><Error>{}{retry_after}</Error>",
            elements.concat()
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BODY: ErrorBody<'_> = ErrorBody {
        request_id: "1",
        host_id: "h",
        code: "Flowgate.BadRequest",
        message: "a \"b\" <c> & 'd' é\u{1}\n",
        recommend: "",
        retry_after: None,
    };

    #[test]
    fn json_has_the_five_fields() {
        assert_eq!(
            BODY.write(Format::Json),
            r#"{"RequestId":"1","HostId":"h","Code":"Flowgate.BadRequest","Message":"a \"b\" <c> & 'd' é\u0001\n","Recommend":""}"#
        );
    }

    #[test]
    fn xml_is_escaped() {
        assert_eq!(
            BODY.write(Format::Xml),
            "<?xml version='1.0' encoding='UTF-8'?><Error><RequestId>1</RequestId><HostId>h</HostId>\
             <Code>Flowgate.BadRequest</Code><Message>a &quot;b&quot; &lt;c&gt; &amp; &apos;d&apos; é\u{fffd}\n</Message>\
             <Recommend></Recommend></Error>"
        );
    }

    #[test]
    fn either_says_when_to_come_back() {
        let body = ErrorBody {
            retry_after: Some(1500),
            ..BODY
        };
        assert!(
            body.write(Format::Json)
                .ends_with(r#""Recommend":"","RetryAfter":1500}"#)
        );
        assert!(
            body.write(Format::Xml)
                .ends_with("<Recommend></Recommend><RetryAfter>1500</RetryAfter></Error>")
        );
    }

    #[test]
    fn both_are_read_back_as_an_answer() {
        for format in [Format::Json, Format::Xml] {
            let summary = crate::acs::answer::read(
                Some(format.content_type()),
                BODY.write(format).as_bytes(),
            )
            .unwrap();
            assert_eq!(summary.code.as_deref(), Some("Flowgate.BadRequest"));
            assert_eq!(summary.request_id.as_deref(), Some("1"));
        }
    }

    #[test]
    fn request_ids_are_upper_case_version_4_uuids() {
        let id = request_id();
        let shape: String = id
            .chars()
            .map(|c| {
                if c.is_ascii_digit() || ('A'..='F').contains(&c) {
                    'x'
                } else {
                    c
                }
            })
            .collect();
        assert_eq!(shape, "xxxxxxxx-xxxx-xxxx-xxxx-xxxxxxxxxxxx");
        assert_eq!(&id[14..15], "4");
        assert!("89AB".contains(&id[19..20]));
        assert_ne!(id, request_id());
    }
}

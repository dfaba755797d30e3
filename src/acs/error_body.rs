//! How does an error look that a stock SDK reads as one of CAMS's? The five fields of Alibaba's gateways and, for
//! SDKs that show their callers no headers, when to come back; as JSON, or as XML for those who asked for it. Which error it is, and its HTTP status, is the caller's business.

use quick_xml::escape::escape;
use serde::Serialize;

/// How the body is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Format {
    /// What all SDKs ask for.
    Json,
    /// Signature version 1 with `Format=XML`.
    Xml,
}

/// An error's fields.
#[derive(Clone, Copy, Serialize)]
#[serde(rename_all = "PascalCase")]
pub(crate) struct ErrorBody<'a> {
    /// Names this one answer.
    pub(crate) request_id: &'a str,
    /// The endpoint that the caller spoke to.
    pub(crate) host_id: &'a str,
    /// What SDKs decide by.
    pub(crate) code: &'a str,
    /// What people read.
    pub(crate) message: &'a str,
    /// Where to read more; may be empty.
    pub(crate) recommend: &'a str,
    /// When to come back, in milliseconds: Node's SDK hands the whole body to its caller, but no header.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) retry_after: Option<u64>,
}

/// A new request id in CAMS's form: an upper-case UUID of 122 random bits.
pub(crate) fn request_id() -> String {
    // A name and no secret: not worth a system call.
    let mut bytes = fastrand::u128(..).to_ne_bytes();
    // Version 4, variant 1 (RFC 9562).
    bytes[6] = bytes[6] & 0x0f | 0x40;
    bytes[8] = bytes[8] & 0x3f | 0x80;
    let digit = |half: u8| char::from(b"0123456789ABCDEF"[usize::from(half & 0x0f)]);
    let mut id = String::with_capacity(36);
    for (at, byte) in bytes.iter().enumerate() {
        if matches!(at, 4 | 6 | 8 | 10) {
            id.push('-');
        }
        id.push(digit(byte >> 4));
        id.push(digit(*byte));
    }
    id
}

/// Characters that no XML document may hold, not even escaped, become the replacement character.
fn legal(text: &str) -> String {
    let is_legal = |c: char| matches!(c, '\t' | '\n' | '\r' | ' '..='\u{fffd}' | '\u{10000}'..);
    text.chars()
        .map(|c| {
            if is_legal(c) {
                c
            } else {
                char::REPLACEMENT_CHARACTER
            }
        })
        .collect()
}

// === impl Format ===

impl Format {
    /// The content type, to the letter: tea SDKs read `application/xml`, or a space before `charset`, as JSON.
    pub(crate) fn content_type(self) -> &'static str {
        match self {
            Self::Json => "application/json;charset=utf-8",
            Self::Xml => "text/xml;charset=utf-8",
        }
    }
}

// === impl ErrorBody ===

impl ErrorBody<'_> {
    /// The whole body.
    pub(crate) fn write(&self, format: Format) -> String {
        match format {
            Format::Json => {
                serde_json::to_string(self).expect("a struct of strings is always JSON")
            }
            Format::Xml => self.xml(),
        }
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

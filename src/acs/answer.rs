//! Reads `Code` and `RequestId` of a CAMS response. The whole JSON or XML document is parsed, not
//! scanned, so that text in a flow's name cannot be mistaken for the response's own `Code`.

use std::fmt;

use quick_xml::Reader;
use quick_xml::escape::resolve_xml_entity;
use quick_xml::events::{BytesRef, Event};
use serde::de::{self, IgnoredAny, Visitor};
use serde::{Deserialize, Deserializer};

/// The top-level fields of a response.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Summary {
    /// `Code`, with every escape resolved.
    pub(crate) code: Option<String>,
    /// `RequestId`.
    pub(crate) request_id: Option<String>,
    /// Whether `Data` is present and not null.
    pub(crate) has_data: bool,
}

/// The top level of a JSON document. A field that occurs twice, in either spelling, is an error.
#[derive(Deserialize)]
struct Document {
    #[serde(rename = "Code", alias = "code")]
    code: Option<Scalar>,
    #[serde(rename = "RequestId", alias = "requestId")]
    request_id: Option<Scalar>,
    #[serde(rename = "Data", alias = "data")]
    data: Option<IgnoredAny>,
}

/// A string, or a number in its JSON form.
pub(super) struct Scalar(pub(super) String);

/// The visitor for [`Scalar`].
struct Scalars;

/// The relevant children of the XML root.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Field {
    Code,
    RequestId,
}

/// The state of reading an XML document.
#[derive(Default)]
struct Page {
    depth: usize,
    closed: bool,
    field: Option<Field>,
    summary: Summary,
}

/// Reads a response's body. `None` if it is not one complete, unambiguous document in CAMS's form.
pub(crate) fn read(content_type: Option<&str>, body: &[u8]) -> Option<Summary> {
    let text = std::str::from_utf8(body).ok()?;
    let is_xml = match content_type {
        Some(value) => is_xml(value),
        None => text.trim_ascii_start().starts_with('<'),
    };
    if is_xml {
        read_xml(text)
    } else {
        read_json(text)
    }
}

fn is_xml(content_type: &str) -> bool {
    let essence = content_type
        .split(';')
        .next()
        .unwrap_or_default()
        .trim_ascii();
    essence.eq_ignore_ascii_case("text/xml") || essence.eq_ignore_ascii_case("application/xml")
}

fn read_json(text: &str) -> Option<Summary> {
    // serde also deserializes a struct from an array.
    if !text.trim_ascii_start().starts_with('{') {
        return None;
    }
    let document: Document = serde_json::from_str(text).ok()?;
    Some(Summary {
        code: document.code.map(|code| code.0),
        request_id: document.request_id.map(|id| id.0),
        has_data: document.data.is_some(),
    })
}

fn read_xml(text: &str) -> Option<Summary> {
    let mut reader = Reader::from_str(text);
    let mut page = Page::default();
    loop {
        match reader.read_event().ok()? {
            Event::Start(tag) => page.open(tag.name().0)?,
            Event::Empty(tag) => {
                page.open(tag.name().0)?;
                page.close();
            }
            Event::End(_) => page.close(),
            Event::Text(text) => page.text(&text.xml10_content())?,
            Event::CData(text) => page.text(&text.xml10_content())?,
            Event::GeneralRef(name) => page.text(&resolve(&name)?)?,
            Event::Decl(_) | Event::PI(_) | Event::Comment(_) => {}
            // A document type may define entities that change the meaning of the text.
            Event::DocType(_) => return None,
            Event::Eof => return page.closed.then_some(page.summary),
        }
    }
}

/// Resolves a predefined entity or a character reference.
fn resolve(name: &BytesRef<'_>) -> Option<String> {
    match name.resolve_char_ref().ok()? {
        Some(character) => Some(character.to_string()),
        None => resolve_xml_entity(name).map(str::to_owned),
    }
}

// === impl Scalar ===

impl<'de> Deserialize<'de> for Scalar {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        from.deserialize_any(Scalars)
    }
}

impl Visitor<'_> for Scalars {
    type Value = Scalar;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a text or a number")
    }

    fn visit_str<E>(self, text: &str) -> Result<Scalar, E> {
        Ok(Scalar(text.to_owned()))
    }

    fn visit_u64<E>(self, number: u64) -> Result<Scalar, E> {
        Ok(Scalar(number.to_string()))
    }

    fn visit_i64<E>(self, number: i64) -> Result<Scalar, E> {
        Ok(Scalar(number.to_string()))
    }

    fn visit_f64<E: de::Error>(self, number: f64) -> Result<Scalar, E> {
        let number =
            serde_json::Number::from_f64(number).ok_or_else(|| E::custom("not a number"))?;
        Ok(Scalar(number.to_string()))
    }
}

// === impl Page ===

impl Page {
    /// `None` for a second root, an unknown root, and a field that occurs twice or has elements.
    fn open(&mut self, name: &str) -> Option<()> {
        if self.field.is_some() || self.closed {
            return None;
        }
        match self.depth {
            0 if name != "Error" && !name.ends_with("Response") => return None,
            1 => self.enter(name)?,
            _ => {}
        }
        self.depth += 1;
        Some(())
    }

    fn enter(&mut self, name: &str) -> Option<()> {
        let (field, place) = match name {
            "Code" | "code" => (Field::Code, &mut self.summary.code),
            "RequestId" | "requestId" => (Field::RequestId, &mut self.summary.request_id),
            "Data" | "data" => {
                self.summary.has_data = true;
                return Some(());
            }
            _ => return Some(()),
        };
        self.field = Some(field);
        place.replace(String::new()).is_none().then_some(())
    }

    /// The reader has checked that the end tag matches.
    fn close(&mut self) {
        self.depth -= 1;
        self.field = None;
        self.closed = self.depth == 0;
    }

    /// `None` for text outside the root.
    fn text(&mut self, text: &str) -> Option<()> {
        match self.field {
            Some(Field::Code) => self.summary.code.get_or_insert_default().push_str(text),
            Some(Field::RequestId) => self
                .summary
                .request_id
                .get_or_insert_default()
                .push_str(text),
            None if self.depth == 0 && !text.trim_ascii().is_empty() => return None,
            None => {}
        }
        Some(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn summary(code: Option<&str>, request_id: Option<&str>, has_data: bool) -> Option<Summary> {
        Some(Summary {
            code: code.map(str::to_owned),
            request_id: request_id.map(str::to_owned),
            has_data,
        })
    }

    fn json(body: &str) -> Option<Summary> {
        read(Some("application/json;charset=utf-8"), body.as_bytes())
    }

    fn xml(body: &str) -> Option<Summary> {
        read(Some("text/xml;charset=utf-8"), body.as_bytes())
    }

    #[test]
    fn json_top_level_is_read() {
        let whole =
            r#"{"RequestId":"R","Message":"None","Data":{"FlowId":"1","Code":"x"},"Code":"OK"}"#;
        assert_eq!(json(whole), summary(Some("OK"), Some("R"), true));
        assert_eq!(
            json(r#" {"code":"OK","requestId":"R","data":null} "#),
            summary(Some("OK"), Some("R"), false)
        );
        assert_eq!(
            json(r#"{"Code":"System\u002eLimitControl"}"#),
            summary(Some("System.LimitControl"), None, false)
        );
        assert_eq!(
            json(r#"{"C\u006fde":"OK"}"#),
            summary(Some("OK"), None, false)
        );
        assert_eq!(
            json(r#"{"Code":503,"Data":""}"#),
            summary(Some("503"), None, true)
        );
        assert_eq!(json(r#"{"Code":null}"#), summary(None, None, false));
        assert_eq!(json("{}"), summary(None, None, false));
        assert_eq!(
            json(r#"{"X":[{"Code":"a"},{"Code":"b"}]}"#),
            summary(None, None, false)
        );
    }

    #[test]
    fn json_that_can_be_read_in_two_ways_or_is_not_whole_is_no_answer() {
        for body in [
            "",
            "null",
            r#"["OK","R",null]"#,
            r#""Code""#,
            r#"{"Code":"OK""#,
            r#"{"Code":"OK"}{"Code":"Throttling"}"#,
            r#"{"Code":"OK"} x"#,
            r#"{"Code":"OK","Code":"Throttling"}"#,
            r#"{"Code":"OK","code":"Throttling"}"#,
            r#"{"Code":"OK","C\u006fde":"Throttling"}"#,
            r#"{"Code":{"a":1}}"#,
            r#"{"Code":true}"#,
            r#"{"RequestId":"a","requestId":"b"}"#,
            "<Error><Code>OK</Code></Error>",
            "Service Unavailable",
        ] {
            assert_eq!(json(body), None, "{body}");
        }
        assert_eq!(read(None, b"{\"Code\":\"\xff\"}"), None);
    }

    #[test]
    fn a_value_never_becomes_a_name() {
        let echo = r#"{"Data":{"FlowName":"\",\"Code\":\"System.LimitControl"},"Code":"OK"}"#;
        assert_eq!(json(echo), summary(Some("OK"), None, true));
        let echo = "<R_Response><Data><FlowName>&lt;/FlowName&gt;&lt;Code&gt;Throttling&lt;/Code&gt;</FlowName></Data>\
                    <Code>OK</Code></R_Response>";
        assert_eq!(xml(echo), summary(Some("OK"), None, true));
    }

    #[test]
    fn xml_top_level_is_read() {
        let error = "<?xml version='1.0' encoding='UTF-8'?>\n<Error><RequestId>R</RequestId><HostId>h</HostId>\
                     <Code>System.LimitControl</Code><Message>a &amp; b</Message></Error>\n";
        assert_eq!(
            xml(error),
            summary(Some("System.LimitControl"), Some("R"), false)
        );
        let answer = "<CreateFlowResponse><Data><Code>x</Code></Data><Code>O&#75;</Code></CreateFlowResponse>";
        assert_eq!(xml(answer), summary(Some("OK"), None, true));
        assert_eq!(
            xml("<Error><Code><![CDATA[a<b]]></Code></Error>"),
            summary(Some("a<b"), None, false)
        );
        assert_eq!(
            xml("<Error><Code/></Error>"),
            summary(Some(""), None, false)
        );
        assert_eq!(xml("<Error/>"), summary(None, None, false));
        assert_eq!(
            read(None, b" <Error><Code>c</Code></Error>"),
            summary(Some("c"), None, false)
        );
        assert_eq!(
            read(Some("Application/XML"), b"<Error/>"),
            summary(None, None, false)
        );
    }

    #[test]
    fn xml_that_is_not_whole_or_not_plain_is_no_answer() {
        for body in [
            "",
            "text",
            "{}",
            "<html><Code>OK</Code></html>",
            "<Error><Code>OK</Code>",
            "<Error><Code>OK</Error>",
            "<Error><Code>OK</Code></Error></Error>",
            "<Error/><Error/>",
            "<Error/>text",
            "text<Error/>",
            "<Error><Code>OK</Code><Code>Throttling</Code></Error>",
            "<Error><Code>O<b/>K</Code></Error>",
            "<Error><Code>&e;</Code></Error>",
            "<!DOCTYPE Error [<!ENTITY e 'Throttling'>]><Error><Code>OK</Code></Error>",
        ] {
            assert_eq!(xml(body), None, "{body}");
        }
    }
}

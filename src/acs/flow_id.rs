//! Reads `Data.FlowId` of a response, JSON or XML, for the journal. No decision depends on it.

use quick_xml::Reader;
use quick_xml::events::Event;
use serde::Deserialize;

use super::answer::Scalar;

/// The relevant part of a response.
#[derive(Deserialize)]
struct Document {
    #[serde(rename = "Data", alias = "data")]
    data: Data,
}

#[derive(Deserialize)]
struct Data {
    #[serde(rename = "FlowId", alias = "flowId")]
    flow_id: Scalar,
}

/// Returns the flow's id, if there is one. A body that begins with `<` is read as XML, regardless
/// of its content type.
pub(crate) fn read(body: &[u8]) -> Option<String> {
    let text = std::str::from_utf8(body).ok()?;
    if text.trim_ascii_start().starts_with('<') {
        return read_xml(text);
    }
    serde_json::from_str(text)
        .ok()
        .map(|Document { data }| data.flow_id.0)
}

/// Returns the text of the first `FlowId` in a `Data` below the root. Ids have no escapes.
fn read_xml(text: &str) -> Option<String> {
    let mut reader = Reader::from_str(text);
    let mut path: Vec<Vec<u8>> = Vec::new();
    loop {
        match reader.read_event().ok()? {
            Event::Start(tag) => path.push(tag.name().0.as_bytes().to_vec()),
            Event::End(_) => drop(path.pop()),
            Event::Text(text) if matches!(path.as_slice(), [_, data, id] if data == b"Data" && id == b"FlowId") =>
            {
                return Some(text.xml10_content().into_owned());
            }
            Event::Eof => return None,
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_forms_name_the_flow() {
        let json = |body: &str| read(body.as_bytes());
        assert_eq!(
            json(r#"{"Code":"OK","Data":{"FlowName":"x","FlowId":"123"}}"#).as_deref(),
            Some("123")
        );
        assert_eq!(json(r#"{"data":{"flowId":123}}"#).as_deref(), Some("123"));
        for without in [
            r#"{"FlowId":"1"}"#,
            r#"{"Data":null}"#,
            r#"{"Data":{"Flow":{"FlowId":"1"}}}"#,
            "{",
            "",
        ] {
            assert_eq!(json(without), None, "{without}");
        }
        let xml = |body: &str| read(body.as_bytes());
        let page = |inner: &str| {
            format!(
                "\n<?xml version=\"1.0\"?><CreateFlowResponse><Code>OK</Code>{inner}</CreateFlowResponse>"
            )
        };
        assert_eq!(
            xml(&page(
                "<Data><FlowName>x</FlowName><FlowId>123</FlowId></Data>"
            ))
            .as_deref(),
            Some("123")
        );
        for without in [
            "<FlowId>1</FlowId>",
            "<Data/>",
            "<Data><A><FlowId>1</FlowId></A></Data>",
            "<Data>",
        ] {
            assert_eq!(xml(&page(without)), None, "{without}");
        }
    }
}

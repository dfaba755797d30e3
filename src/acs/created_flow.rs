//! The answer to a CreateFlow whose flow was created by an earlier call of the same order: in the
//! form of CAMS's own answer, made from the flow's id and the parameters of the order.

use quick_xml::escape::escape;
use serde::Serialize;

use super::error_body::{Format, legal};

/// The fields of the answer.
#[derive(Clone, Copy, Serialize)]
#[serde(rename_all = "PascalCase")]
pub(crate) struct CreatedFlow<'a> {
    /// CAMS's request id of the call that created the flow.
    pub(crate) request_id: &'a str,
    code: &'static str,
    message: &'static str,
    data: Data<'a>,
}

#[derive(Clone, Copy, Serialize)]
#[serde(rename_all = "PascalCase")]
struct Data<'a> {
    flow_id: &'a str,
    flow_name: &'a str,
    categories: &'a [String],
}

// === impl CreatedFlow ===

impl<'a> CreatedFlow<'a> {
    pub(crate) fn new(
        request_id: &'a str,
        flow_id: &'a str,
        flow_name: &'a str,
        categories: &'a [String],
    ) -> Self {
        Self {
            request_id,
            code: "OK",
            message: "None",
            data: Data {
                flow_id,
                flow_name,
                categories,
            },
        }
    }

    /// Serializes the answer.
    pub(crate) fn write(&self, format: Format) -> String {
        format.write(self, || self.xml())
    }

    fn xml(&self) -> String {
        let Data {
            flow_id,
            flow_name,
            categories,
        } = self.data;
        let categories: String = categories
            .iter()
            .map(|category| element("Categories", category))
            .collect();
        format!(
            "<?xml version='1.0' encoding='UTF-8'?><CreateFlowResponse>{}{}{}<Data>{}{}\
             <Categories>{categories}</Categories></Data></CreateFlowResponse>",
            element("RequestId", self.request_id),
            element("Code", self.code),
            element("Message", self.message),
            element("FlowId", flow_id),
            element("FlowName", flow_name),
        )
    }
}

fn element(name: &str, text: &str) -> String {
    format!("<{name}>{}</{name}>", escape(legal(text)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::acs::{answer, flow_id};

    #[test]
    fn both_forms_are_read_back_as_the_answer_of_cams() {
        let categories = ["SIGN_UP".to_owned(), "OTHER".to_owned()];
        let answer = CreatedFlow::new("90E6", "3339", "a <b> & \"c\"", &categories);
        for format in [Format::Json, Format::Xml] {
            let body = answer.write(format);
            let summary = answer::read(Some(format.content_type()), body.as_bytes()).unwrap();
            assert_eq!(summary.code.as_deref(), Some("OK"));
            assert_eq!(summary.request_id.as_deref(), Some("90E6"));
            assert_eq!(flow_id::read(body.as_bytes()).as_deref(), Some("3339"));
        }
        assert_eq!(
            answer.write(Format::Json),
            r#"{"RequestId":"90E6","Code":"OK","Message":"None","Data":{"FlowId":"3339","FlowName":"a <b> & \"c\"","Categories":["SIGN_UP","OTHER"]}}"#
        );
    }
}

//! Writes responses: successes and refusals as CAMS's JSON or XML, and the broken responses of
//! faults, down to bytes that are not HTTP.

use bytes::Bytes;
use hyper::{Response, StatusCode};
use serde_json::{Value, json};

use crate::fault::Fault;
use crate::refusal::Refusal;

/// The response to one call.
#[derive(Debug)]
pub enum Answer {
    /// An HTTP response.
    Http(Response<Bytes>),
    /// These bytes, possibly none, then the end of the connection.
    Raw(Bytes),
    /// The connection is reset.
    Reset,
}

/// The parameters of a response besides its content.
#[derive(Debug, Clone, Default)]
pub(crate) struct Form {
    pub(crate) xml: bool,
    /// The service's name in the address of the error's explanation.
    pub(crate) product: &'static str,
    pub(crate) action: String,
    pub(crate) host: String,
    pub(crate) request_id: String,
}

// === impl Form ===

impl Form {
    /// Builds a success.
    pub(crate) fn success(&self, mut body: Value) -> Response<Bytes> {
        body["RequestId"] = json!(self.request_id);
        let text = if self.xml {
            xml(&format!("{}Response", self.action), &body)
        } else {
            body.to_string()
        };
        respond(
            200,
            content_type(self.xml),
            text,
            &[("x-acs-request-id", self.request_id.clone())],
        )
    }

    /// Builds a refusal.
    pub(crate) fn refusal(&self, refusal: &Refusal) -> Response<Bytes> {
        let body = json!({
            "RequestId": self.request_id,
            "HostId": self.host,
            "Code": refusal.code,
            "Message": refusal.message,
            "Recommend": format!("https://api.alibabacloud.com/troubleshoot?q={}&product={}", refusal.code, self.product),
        });
        let as_xml = self.xml || refusal.xml;
        let text = if as_xml {
            xml("Error", &body)
        } else {
            body.to_string()
        };
        let mut headers: Vec<_> = refusal.hints.headers().collect();
        headers.push(("x-acs-request-id", self.request_id.clone()));
        respond(refusal.status, content_type(as_xml), text, &headers)
    }
}

/// Breaks a response as the fault demands.
pub(crate) fn spoil(fault: &Fault, answer: Response<Bytes>) -> Answer {
    match fault {
        Fault::CloseBefore | Fault::CloseAfter | Fault::Late(_) => Answer::Raw(Bytes::new()),
        Fault::Reset => Answer::Reset,
        Fault::Garbage => Answer::Raw(Bytes::from_static(
            b"\x16\x03\x01\x00 this is not HTTP\r\n\r\n",
        )),
        Fault::Html => Answer::Http(respond(
            200,
            "text/html",
            "<html><body>It works!</body></html>".to_owned(),
            &[],
        )),
        Fault::Empty => Answer::Http(respond(200, content_type(false), String::new(), &[])),
        Fault::Cut => Answer::Raw(cut(&answer)),
        Fault::Huge(size) => Answer::Http(pad(&answer, *size)),
        Fault::Redirect => Answer::Http(respond(
            302,
            "text/html",
            String::new(),
            &[("location", "http://127.0.0.1:9/".to_owned())],
        )),
        Fault::Half => Answer::Http(halve(&answer)),
        Fault::Body { text, status } => {
            Answer::Http(respond(*status, content_type(false), text.clone(), &[]))
        }
        Fault::Status(status) => {
            Answer::Http(respond(*status, "text/plain", format!("{status}\n"), &[]))
        }
        Fault::Unavailable(_)
        | Fault::Throttle(_)
        | Fault::Refuse { .. }
        | Fault::Expired
        | Fault::NoExpiration
        | Fault::Expiration(_)
        | Fault::Copied
        | Fault::Failed
        | Fault::NoData
        | Fault::Slow(_)
        | Fault::Held => Answer::Http(answer),
    }
}

/// An HTTP response with a JSON body that is not CAMS's.
pub(crate) fn json_answer(status: u16, body: &Value) -> Response<Bytes> {
    respond(status, content_type(false), body.to_string(), &[])
}

/// An HTTP response with a plain text.
pub(crate) fn plain_answer(status: u16, text: String) -> Response<Bytes> {
    respond(status, "text/plain", text, &[])
}

fn content_type(xml: bool) -> &'static str {
    if xml {
        "text/xml;charset=utf-8"
    } else {
        "application/json;charset=utf-8"
    }
}

fn respond(
    status: u16,
    content_type: &str,
    body: String,
    headers: &[(&'static str, String)],
) -> Response<Bytes> {
    let status = StatusCode::from_u16(status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    let mut response = Response::builder()
        .status(status)
        .header("content-type", content_type);
    for (name, value) in headers {
        response = response.header(*name, value);
    }
    response
        .body(Bytes::from(body))
        .expect("the headers are numbers, ids and constants")
}

/// The complete response as raw bytes, with a Content-Length that is a hundred bytes too large.
fn cut(answer: &Response<Bytes>) -> Bytes {
    let promised = answer.body().len() + 100;
    let mut bytes = format!(
        "HTTP/1.1 {}\r\ncontent-length: {promised}\r\n",
        answer.status()
    )
    .into_bytes();
    for (name, value) in answer.headers() {
        bytes.extend(
            [
                name.as_ref(),
                b": ".as_slice(),
                value.as_bytes(),
                b"\r\n".as_slice(),
            ]
            .concat(),
        );
    }
    bytes.extend([b"\r\n".as_slice(), answer.body()].concat());
    Bytes::from(bytes)
}

/// The same response with the first half of its body, and a Content-Length of that half.
fn halve(answer: &Response<Bytes>) -> Response<Bytes> {
    let mut half = answer.clone();
    let body = half.body_mut();
    body.truncate(body.len() / 2);
    half
}

/// Adds a member of this many bytes.
fn pad(answer: &Response<Bytes>, size: usize) -> Response<Bytes> {
    let mut body: Value = serde_json::from_slice(answer.body()).unwrap_or_else(|_| json!({}));
    body["Padding"] = json!("x".repeat(size));
    let id = answer
        .headers()
        .get("x-acs-request-id")
        .and_then(|id| id.to_str().ok())
        .unwrap_or_default();
    respond(
        answer.status().as_u16(),
        content_type(false),
        body.to_string(),
        &[("x-acs-request-id", id.to_owned())],
    )
}

/// A document with one root; a list becomes a repeated element.
fn xml(root: &str, body: &Value) -> String {
    format!(
        "<?xml version=\"1.0\" encoding=\"UTF-8\"?>{}",
        element(root, body)
    )
}

fn element(name: &str, value: &Value) -> String {
    let inner = match value {
        Value::Array(items) => return items.iter().map(|item| element(name, item)).collect(),
        Value::Object(members) => members
            .iter()
            .map(|(name, value)| element(name, value))
            .collect(),
        Value::String(text) => escape(text),
        other => other.to_string(),
    };
    format!("<{name}>{inner}</{name}>")
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;")
        .replace('<', "&lt;")
        .replace('>', "&gt;")
        .replace('"', "&quot;")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn xml_repeats_lists_and_escapes() {
        let body =
            json!({ "Code": "OK", "Data": { "Categories": ["A", "B"], "FlowName": "<&\">" } });
        assert_eq!(
            xml("CreateFlowResponse", &body),
            "<?xml version=\"1.0\" encoding=\"UTF-8\"?><CreateFlowResponse><Code>OK</Code><Data><Categories>A</Categories>\
             <Categories>B</Categories><FlowName>&lt;&amp;&quot;&gt;</FlowName></Data></CreateFlowResponse>"
        );
    }

    #[test]
    fn a_refusal_has_its_hints() {
        let hints = crate::Hints {
            acs_retry_after_ms: Some(1_500),
            retry_after_s: Some(2),
            retry_at_s: None,
            time_left_ms: Some(7),
        };
        let form = Form {
            host: "cams".into(),
            request_id: "ID".into(),
            ..Form::default()
        };
        let answer = form.refusal(&Refusal::new("System.LimitControl").with_hints(hints));
        let names = [
            "x-acs-retry-after",
            "retry-after",
            "x-ratelimit-user",
            "content-type",
        ];
        let values = names.map(|name| answer.headers()[name].to_str().unwrap());
        assert_eq!(
            values,
            [
                "1500",
                "2",
                "Limit:5,Remain:0,TimeLeft:7",
                "application/json;charset=utf-8"
            ]
        );
        assert_eq!(answer.status(), 400);
        let body: Value = serde_json::from_slice(answer.body()).unwrap();
        assert_eq!(
            (&body["Code"], &body["HostId"]),
            (&json!("System.LimitControl"), &json!("cams"))
        );
    }
}

//! The parameters and the answers of ListFlow and GetFlow, which show what a CreateFlow has done.
//! Answers are read strictly: one that can be read in two ways shows nothing.

use serde::Deserialize;

use super::answer::Scalar;
use super::json;

/// A flow in an answer of ListFlow.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct ListedFlow {
    pub(crate) id: Box<str>,
    pub(crate) name: Box<str>,
    /// Empty if the answer has none.
    pub(crate) categories: Vec<String>,
}

/// A flow in an answer of GetFlow.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct FlowDetail {
    pub(crate) id: Box<str>,
    /// `DRAFT`, `PUBLISHED` or `DEPRECATED`.
    pub(crate) status: Box<str>,
}

/// An answer is not a success in CAMS's form.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the answer is not a success in CAMS's form")]
pub(crate) struct FlowsError;

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Answer<D> {
    code: String,
    data: D,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Listed {
    flow_id: Scalar,
    flow_name: String,
    categories: Option<Vec<String>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Detail {
    flow_id: Scalar,
    status: String,
}

/// The parameters of a ListFlow. `name` is the filter, `index` begins with 1.
pub(crate) fn list_params(
    space: &str,
    name: Option<&str>,
    index: u32,
    size: u32,
) -> Vec<(String, String)> {
    let mut params = in_space(space);
    params.extend(name.map(|name| ("FlowName".to_owned(), name.to_owned())));
    let page = format!(r#"{{"Index":{index},"Size":{size}}}"#);
    params.push(("Page".to_owned(), page));
    params
}

/// The parameters of a GetFlow.
pub(crate) fn detail_params(space: &str, id: &str) -> Vec<(String, String)> {
    let mut params = in_space(space);
    params.push(("FlowId".to_owned(), id.to_owned()));
    params
}

/// Reads the answer of a ListFlow. An answer without `Data` has no flows.
///
/// # Errors
///
/// The body is not one JSON document with distinct keys, its code is not `OK`, or a flow in it has
/// no id or no name.
pub(crate) fn read_list(body: &[u8]) -> Result<Vec<ListedFlow>, FlowsError> {
    let listed: Option<Vec<Listed>> = read(body)?;
    listed
        .unwrap_or_default()
        .into_iter()
        .map(|flow| {
            Ok(ListedFlow {
                id: id(flow.flow_id)?,
                name: flow.flow_name.into(),
                categories: flow.categories.unwrap_or_default(),
            })
        })
        .collect()
}

/// Reads the answer of a GetFlow.
///
/// # Errors
///
/// The body is not one JSON document with distinct keys, its code is not `OK`, or it has no id or
/// no status.
pub(crate) fn read_detail(body: &[u8]) -> Result<FlowDetail, FlowsError> {
    let detail: Detail = read(body)?;
    Ok(FlowDetail {
        id: id(detail.flow_id)?,
        status: detail.status.into(),
    })
}

fn read<'a, D: Deserialize<'a>>(body: &'a [u8]) -> Result<D, FlowsError> {
    json::check(body).map_err(|_| FlowsError)?;
    // serde also deserializes a struct from an array.
    if !body.trim_ascii_start().starts_with(b"{") {
        return Err(FlowsError);
    }
    let answer: Answer<D> = serde_json::from_slice(body).map_err(|_| FlowsError)?;
    (answer.code == "OK")
        .then_some(answer.data)
        .ok_or(FlowsError)
}

fn id(id: Scalar) -> Result<Box<str>, FlowsError> {
    if id.0.is_empty() {
        return Err(FlowsError);
    }
    Ok(id.0.into())
}

/// The parameter of a sub-customer. Without one CAMS uses the account's own space.
fn in_space(space: &str) -> Vec<(String, String)> {
    let space = (!space.is_empty()).then(|| ("CustSpaceId".to_owned(), space.to_owned()));
    space.into_iter().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn flow(id: &str, name: &str, categories: &[&str]) -> ListedFlow {
        ListedFlow {
            id: id.into(),
            name: name.into(),
            categories: categories.iter().map(|text| (*text).to_owned()).collect(),
        }
    }

    #[test]
    fn flows_are_read_with_their_names_and_categories() {
        let body = r#"{"RequestId":"R","Message":"None","Code":"OK","AccessDeniedDetail":"None","Data":[
            {"FlowId":"1","FlowName":"a \u00e9","Categories":["SIGN_UP","OTHER"],"Status":"x"},
            {"Categories":null,"FlowName":"","FlowId":2}]}"#;
        assert_eq!(
            read_list(body.as_bytes()),
            Ok(vec![
                flow("1", "a \u{e9}", &["SIGN_UP", "OTHER"]),
                flow("2", "", &[])
            ])
        );
        for none in [
            r#"{"Code":"OK","Data":[]}"#,
            r#"{"Code":"OK","Data":null}"#,
            r#"{"Code":"OK"}"#,
        ] {
            assert_eq!(read_list(none.as_bytes()), Ok(Vec::new()), "{none}");
        }
    }

    #[test]
    fn an_answer_that_is_no_success_or_can_be_read_in_two_ways_shows_nothing() {
        for body in [
            "",
            "[]",
            r#"["OK",[]]"#,
            r#"{"Data":[]}"#,
            r#"{"Code":"System.LimitControl","Data":[]}"#,
            r#"{"Code":"OK","Data":{}}"#,
            r#"{"Code":"OK","Data":[],"Data":[]}"#,
            r#"{"Code":"OK","Data":[{"FlowId":"1"}]}"#,
            r#"{"Code":"OK","Data":[{"FlowName":"a"}]}"#,
            r#"{"Code":"OK","Data":[{"FlowId":"","FlowName":"a"}]}"#,
            r#"{"Code":"OK","Data":[{"FlowId":"1","FlowName":"a","Flow\u004eame":"b"}]}"#,
            r#"{"Code":"OK","Data":[{"FlowId":"1","FlowName":"a","Categories":"SIGN_UP"}]}"#,
            r#"{"Code":"OK","Data":[{"FlowId":"1","FlowName":"a"}]"#,
        ] {
            assert_eq!(read_list(body.as_bytes()), Err(FlowsError), "{body}");
        }
    }

    #[test]
    fn the_status_of_a_flow_is_read() {
        let body = r#"{"Code":"OK","Data":{"FlowId":"1","FlowName":"a","Status":"DRAFT","Categories":["X"]}}"#;
        let detail = FlowDetail {
            id: "1".into(),
            status: "DRAFT".into(),
        };
        assert_eq!(read_detail(body.as_bytes()), Ok(detail));
        for body in [
            r#"{"Code":"OK","Data":{"FlowId":"1"}}"#,
            r#"{"Code":"OK","Data":null}"#,
            r#"{"Code":"OK"}"#,
            r#"{"Code":"X","Data":{"FlowId":"1","Status":"DRAFT"}}"#,
            r#"{"Code":"OK","Data":{"FlowId":"1","Status":"DRAFT","Status":"PUBLISHED"}}"#,
        ] {
            assert_eq!(read_detail(body.as_bytes()), Err(FlowsError), "{body}");
        }
    }

    #[test]
    fn parameters_are_those_of_the_sdks() {
        let pairs = |params: Vec<(String, String)>| {
            let pairs = params
                .into_iter()
                .map(|(name, value)| format!("{name}={value}"));
            pairs.collect::<Vec<_>>().join(" ")
        };
        assert_eq!(
            pairs(list_params("cams-1", Some("a b"), 2, 100)),
            r#"CustSpaceId=cams-1 FlowName=a b Page={"Index":2,"Size":100}"#
        );
        assert_eq!(
            pairs(list_params("", None, 1, 20)),
            r#"Page={"Index":1,"Size":20}"#
        );
        assert_eq!(
            pairs(detail_params("cams-1", "7")),
            "CustSpaceId=cams-1 FlowId=7"
        );
        assert_eq!(pairs(detail_params("", "7")), "FlowId=7");
    }
}

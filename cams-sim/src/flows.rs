//! Performs the action. CreateFlow creates, as its API page says; ListFlow lists what was created;
//! every other action gets a plain success. Only documented rules are checked: a flow's name may be
//! used twice, which shows tests that a call was sent twice.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use crate::refusal::Refusal;
use crate::request::Call;

/// The id before the first flow's; ids look like the page's example.
const BEFORE_FIRST_ID: u64 = 3_339_938_380_000;

/// All created flows.
#[derive(Debug, Default)]
pub(crate) struct Flows {
    created: Vec<Flow>,
}

#[derive(Debug)]
struct Flow {
    account: String,
    space: Option<String>,
    name: String,
    categories: Vec<String>,
    id: u64,
}

// === impl Flows ===

impl Flows {
    /// Performs a call. Returns the response's members except RequestId.
    pub(crate) fn run(&mut self, account: &str, call: &Call) -> Result<Value, Refusal> {
        if call.version != "2020-06-06" {
            return Err(if call.version.is_empty() {
                Refusal::missing("Version")
            } else {
                Refusal::new("InvalidVersion")
            });
        }
        let other_case = ["CreateFlow", "ListFlow"]
            .iter()
            .any(|known| known.eq_ignore_ascii_case(&call.action));
        match call.action.as_str() {
            "" => Err(Refusal::missing("Action")),
            "CreateFlow" => self.create(account, call).map(|flow| answer(Some(flow))),
            "ListFlow" => self.list(account, call).map(|flows| answer(Some(flows))),
            _ if other_case || !call.action.bytes().all(|byte| byte.is_ascii_alphanumeric()) => {
                Err(Refusal::new("InvalidApi.NotFound"))
            }
            _ => Ok(answer(None)),
        }
    }

    /// Number of flows.
    pub(crate) fn count(&self) -> u64 {
        self.created.len() as u64
    }

    /// Names that an account created more than once.
    pub(crate) fn duplicates(&self) -> Vec<String> {
        let mut counts: BTreeMap<(&str, &str), usize> = BTreeMap::new();
        for flow in &self.created {
            *counts.entry((&flow.name, &flow.account)).or_default() += 1;
        }
        counts
            .into_iter()
            .filter(|(_, count)| *count > 1)
            .map(|((name, _), _)| name.to_owned())
            .collect()
    }

    fn create(&mut self, account: &str, call: &Call) -> Result<Value, Refusal> {
        let name = required(call, "FlowName")?.to_owned();
        let categories = serde_json::from_str::<Vec<String>>(required(call, "Categories")?)
            .map_err(|_| {
                Refusal::new("InvalidParameter.Format")
                    .with_message("Categories is not a list of texts.".to_owned())
            })?;
        if categories.is_empty() {
            return Err(Refusal::missing("Categories"));
        }
        let space = call.parameter("CustSpaceId").map(str::to_owned);
        let flow = Flow {
            account: account.to_owned(),
            space,
            name,
            categories,
            id: BEFORE_FIRST_ID + self.count() + 1,
        };
        let members = flow.tell();
        self.created.push(flow);
        Ok(members)
    }

    fn list(&self, account: &str, call: &Call) -> Result<Value, Refusal> {
        let page: Value =
            serde_json::from_str(call.parameter("Page").unwrap_or("{}")).map_err(|_| {
                Refusal::new("InvalidParameter.Format")
                    .with_message("Page is not an object.".to_owned())
            })?;
        let size = number(&page["Size"]).unwrap_or(usize::MAX);
        let skipped = number(&page["Index"])
            .unwrap_or(1)
            .saturating_sub(1)
            .saturating_mul(size);
        let space = non_empty(call, "CustSpaceId");
        let name = non_empty(call, "FlowName");
        let found = self.created.iter().filter(|flow| {
            flow.account == account
                && space.is_none_or(|space| flow.space.as_deref() == Some(space))
                && name.is_none_or(|name| flow.name == name)
        });
        Ok(found.skip(skipped).take(size).map(Flow::tell).collect())
    }
}

/// A parameter that is present and not empty.
fn non_empty<'a>(call: &'a Call, name: &str) -> Option<&'a str> {
    call.parameter(name).filter(|value| !value.is_empty())
}

fn required<'a>(call: &'a Call, name: &str) -> Result<&'a str, Refusal> {
    non_empty(call, name).ok_or_else(|| Refusal::missing(name))
}

fn number(value: &Value) -> Option<usize> {
    value
        .as_u64()
        .and_then(|number| usize::try_from(number).ok())
}

// === impl Flow ===

impl Flow {
    fn tell(&self) -> Value {
        json!({ "FlowId": self.id.to_string(), "FlowName": self.name, "Categories": self.categories })
    }
}

/// The members of a success, as on the API page.
fn answer(data: Option<Value>) -> Value {
    let mut body = json!({ "AccessDeniedDetail": "None", "Code": "OK", "Message": "None" });
    if let Some(data) = data {
        body["Data"] = data;
    }
    body
}

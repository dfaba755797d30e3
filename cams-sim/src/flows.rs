//! Performs the action. CreateFlow, ListFlow, GetFlow and DeleteFlow act on the flows of the account, in
//! the documented shapes; every other action gets a plain success. Only documented rules are checked: a
//! flow's name may be used twice, which shows tests that a call was sent twice. What is undocumented of
//! ListFlow, its delay, its largest page and its filter, is in [`FlowSettings`].

use std::collections::BTreeMap;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tokio::time::Instant;

use crate::FlowSettings;
use crate::refusal::Refusal;
use crate::request::Call;

/// The id before the first flow's; ids look like the page's example.
const BEFORE_FIRST_ID: u64 = 3_339_938_380_000;

/// The actions that act on flows. Action names are case-sensitive.
const ACTIONS: [&str; 4] = ["CreateFlow", "ListFlow", "GetFlow", "DeleteFlow"];

/// A flow that exists.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Flow {
    /// The account that owns it.
    pub account: String,
    /// Its `CustSpaceId`; `None` is the account's own space.
    pub space: Option<String>,
    /// Its `FlowName`.
    pub name: String,
    /// Its categories, in the order of the call.
    pub categories: Vec<String>,
    /// Its `FlowId`.
    pub id: String,
    /// Its status.
    pub status: Status,
    /// When it was created, by tokio's clock.
    pub created: Instant,
}

/// A flow that is created without a call, as by another program or in the console.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NewFlow {
    /// The account that owns it.
    pub account: String,
    /// Its `CustSpaceId`; `None` is the account's own space.
    #[serde(default)]
    pub space: Option<String>,
    /// Its `FlowName`.
    pub name: String,
    /// Its categories.
    #[serde(default)]
    pub categories: Vec<String>,
    /// Its status, by default DRAFT.
    #[serde(default)]
    pub status: Status,
}

/// The documented values of a flow's `Status`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "UPPERCASE")]
pub enum Status {
    /// `DRAFT`: only such a flow can be deleted.
    #[default]
    Draft,
    /// `PUBLISHED`.
    Published,
    /// `DEPRECATED`.
    Deprecated,
}

/// All flows, in the order of their creation. A late one is kept before its creation, but nothing shows
/// it until then.
#[derive(Debug)]
pub(crate) struct Flows {
    settings: FlowSettings,
    flows: Vec<Flow>,
    last_id: u64,
}

/// What a call acts with.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Caller<'a> {
    /// The account of the key.
    pub(crate) account: &'a str,
    /// The current time.
    pub(crate) now: Instant,
    /// Time from now to the creation of a flow.
    pub(crate) late: Duration,
}

// === impl Flows ===

impl Flows {
    pub(crate) fn new(settings: FlowSettings) -> Self {
        Self {
            settings,
            flows: Vec::new(),
            last_id: BEFORE_FIRST_ID,
        }
    }

    /// Forgets all flows. Their ids are not used again, as in CAMS.
    pub(crate) fn forget(&mut self) {
        self.flows.clear();
    }

    /// Performs a call. Returns the response's members except RequestId.
    pub(crate) fn run(&mut self, caller: Caller<'_>, call: &Call) -> Result<Value, Refusal> {
        if call.version != "2020-06-06" {
            return Err(if call.version.is_empty() {
                Refusal::missing("Version")
            } else {
                Refusal::new("InvalidVersion")
            });
        }
        let other_case = ACTIONS
            .iter()
            .any(|known| known.eq_ignore_ascii_case(&call.action));
        match call.action.as_str() {
            "" => Err(Refusal::missing("Action")),
            "CreateFlow" => self.run_create(caller, call).map(|flow| answer(Some(flow))),
            "ListFlow" => self.run_list(caller, call).map(|flows| answer(Some(flows))),
            "GetFlow" => self.run_get(caller, call).map(|flow| answer(Some(flow))),
            "DeleteFlow" => self.run_delete(caller, call).map(|()| answer(None)),
            _ if other_case || !call.action.bytes().all(|byte| byte.is_ascii_alphanumeric()) => {
                Err(Refusal::new("InvalidApi.NotFound"))
            }
            _ => Ok(answer(None)),
        }
    }

    /// The flows that exist at `now`.
    pub(crate) fn existing(&self, now: Instant) -> &[Flow] {
        let existing = self.flows.partition_point(|flow| flow.created <= now);
        &self.flows[..existing]
    }

    /// Names that an account created more than once.
    pub(crate) fn duplicates(&self, now: Instant) -> Vec<String> {
        let mut counts: BTreeMap<(&str, &str), usize> = BTreeMap::new();
        for flow in self.existing(now) {
            *counts.entry((&flow.name, &flow.account)).or_default() += 1;
        }
        counts
            .into_iter()
            .filter(|(_, count)| *count > 1)
            .map(|((name, _), _)| name.to_owned())
            .collect()
    }

    /// Creates a flow at `created`, which may be later than now.
    pub(crate) fn create(&mut self, new: NewFlow, created: Instant) -> &Flow {
        self.last_id += 1;
        let flow = Flow {
            account: new.account,
            space: new.space.filter(|space| !space.is_empty()),
            name: new.name,
            categories: new.categories,
            id: self.last_id.to_string(),
            status: new.status,
            created,
        };
        let place = self.flows.partition_point(|flow| flow.created <= created);
        self.flows.insert(place, flow);
        &self.flows[place]
    }

    /// Changes a flow; `None` if it does not exist at `now`.
    pub(crate) fn rename(&mut self, id: &str, name: &str, now: Instant) -> Option<()> {
        let place = self.place(id, now)?;
        name.clone_into(&mut self.flows[place].name);
        Some(())
    }

    /// Deletes a flow of any status; `None` if it does not exist at `now`.
    pub(crate) fn delete(&mut self, id: &str, now: Instant) -> Option<()> {
        let place = self.place(id, now)?;
        self.flows.remove(place);
        Some(())
    }

    fn place(&self, id: &str, now: Instant) -> Option<usize> {
        self.existing(now).iter().position(|flow| flow.id == id)
    }

    fn run_create(&mut self, caller: Caller<'_>, call: &Call) -> Result<Value, Refusal> {
        let name = required(call, "FlowName")?.to_owned();
        let categories = serde_json::from_str::<Vec<String>>(required(call, "Categories")?)
            .map_err(|_| {
                Refusal::new("InvalidParameter.Format")
                    .with_message("Categories is not a list of texts.".to_owned())
            })?;
        if categories.is_empty() {
            return Err(Refusal::missing("Categories"));
        }
        let new = NewFlow {
            account: caller.account.to_owned(),
            space: non_empty(call, "CustSpaceId").map(str::to_owned),
            name,
            categories,
            status: self.settings.status(),
        };
        Ok(self.create(new, caller.now + caller.late).members())
    }

    fn run_list(&self, caller: Caller<'_>, call: &Call) -> Result<Value, Refusal> {
        let (size, skipped) = self.page(call)?;
        let space = non_empty(call, "CustSpaceId");
        let name = non_empty(call, "FlowName");
        let found = self.flows.iter().filter(|flow| {
            flow.account == caller.account
                && flow.created + self.settings.list_lag <= caller.now
                && space.is_none_or(|space| flow.space.as_deref() == Some(space))
                && name.is_none_or(|name| self.settings.matches(&flow.name, name))
        });
        Ok(found.skip(skipped).take(size).map(Flow::members).collect())
    }

    /// The size of the page and the number of flows before it.
    fn page(&self, call: &Call) -> Result<(usize, usize), Refusal> {
        let malformed =
            |message: String| Refusal::new("InvalidParameter.Format").with_message(message);
        let page: Value = serde_json::from_str(call.parameter("Page").unwrap_or("{}"))
            .map_err(|_| malformed("Page is not an object.".to_owned()))?;
        let cap = self.settings.page_cap.unwrap_or(usize::MAX);
        let asked = number(&page["Size"]);
        if self.settings.page_cap_refuses && asked.is_some_and(|size| size > cap) {
            return Err(malformed(format!("Page.Size is at most {cap}.")));
        }
        let size = asked.unwrap_or(cap).min(cap);
        let before = number(&page["Index"]).unwrap_or(1).saturating_sub(1);
        Ok((size, before.saturating_mul(size)))
    }

    fn run_get(&self, caller: Caller<'_>, call: &Call) -> Result<Value, Refusal> {
        self.find(caller, call).map(Flow::details)
    }

    fn run_delete(&mut self, caller: Caller<'_>, call: &Call) -> Result<(), Refusal> {
        let flow = self.find(caller, call)?;
        if flow.status != Status::Draft {
            return Err(Refusal::undocumented(
                "NotDraft",
                format!("Flow {} is not a draft.", flow.id),
            ));
        }
        let id = flow.id.clone();
        self.flows.retain(|flow| flow.id != id);
        Ok(())
    }

    /// The flow that a call names.
    fn find(&self, caller: Caller<'_>, call: &Call) -> Result<&Flow, Refusal> {
        let id = required(call, "FlowId")?;
        let space = non_empty(call, "CustSpaceId");
        let mut existing = self.existing(caller.now).iter();
        existing
            .find(|flow| {
                flow.id == id
                    && flow.account == caller.account
                    && space.is_none_or(|space| flow.space.as_deref() == Some(space))
            })
            .ok_or_else(|| {
                Refusal::undocumented("NoSuchFlow", format!("Flow {id} does not exist."))
            })
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
    /// The members that CreateFlow and ListFlow show.
    fn members(&self) -> Value {
        json!({ "FlowId": self.id, "FlowName": self.name, "Categories": self.categories })
    }

    /// The members that GetFlow shows. Of those that need a flow's content, the documented examples.
    fn details(&self) -> Value {
        let mut members = self.members();
        members["Status"] = json!(self.status);
        members["JSONVersion"] = json!("2.1");
        members["DataApiVersion"] = json!("3.0");
        members
    }

    /// As JSON for the control endpoint, with milliseconds since `start`.
    pub(crate) fn to_json(&self, start: Instant) -> Value {
        let created = self.created.duration_since(start).as_millis();
        json!({
            "account": self.account,
            "space": self.space,
            "name": self.name,
            "categories": self.categories,
            "id": self.id,
            "status": self.status,
            "created_ms": u64::try_from(created).unwrap_or(u64::MAX),
        })
    }
}

// === impl FlowSettings ===

impl FlowSettings {
    fn status(&self) -> Status {
        if self.draft {
            Status::Draft
        } else {
            Status::Published
        }
    }

    /// Whether ListFlow's filter selects a flow of this name.
    fn matches(&self, name: &str, filter: &str) -> bool {
        if self.fuzzy {
            name.to_lowercase().contains(&filter.to_lowercase())
        } else {
            name == filter
        }
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

#[cfg(test)]
mod tests;

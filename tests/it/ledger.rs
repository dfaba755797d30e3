//! Orders with and without idempotency keys, and the ledger of what their callers were told: at the
//! end it must agree with the flows that the endpoint has created.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::time::Duration;

use cams_sim::{Report, Sim};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep};

use crate::caller::{Call, Reply, SECRET, try_exchange};

/// A flow that a caller wants. Its name is unique, and also its idempotency key, if it has one.
#[derive(Clone, Debug)]
pub(crate) struct Order {
    pub(crate) access_key: String,
    pub(crate) name: String,
    pub(crate) is_keyed: bool,
}

/// What one call was told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Told {
    /// The flow exists.
    Created { flow_id: String },
    /// The outcome is unknown.
    Unknown,
    /// The call of the key is under way; repeat it.
    Pending,
    /// The flow was not created.
    Refused { code: String },
    /// The connection closed without a response, or was never opened.
    Closed,
    /// The caller disconnected.
    Gone,
}

/// Percentages of the calls.
#[derive(Clone, Copy)]
pub(crate) struct Mix {
    /// Orders with a key.
    pub(crate) keyed: f64,
    /// Calls that repeat an order with a key: half of them the newest, which is likely under way.
    pub(crate) repeats: f64,
    /// Orders whose answer is lost, by the faults [`LOST`].
    pub(crate) lost: f64,
    /// Orders of which CAMS gets a request that it does not process, by the fault [`UNPROCESSED`].
    pub(crate) unprocessed: f64,
}

/// The orders of one account.
pub(crate) struct Orders {
    access_key: String,
    prefix: String,
    mix: Mix,
    made: u64,
    keyed: Vec<Order>,
}

/// All orders of a test and what was told of them.
#[derive(Default)]
pub(crate) struct Ledger(BTreeMap<String, Entry>);

#[derive(Debug)]
struct Entry {
    order: Order,
    /// In the order in which the calls were noted, which is not always that of their ends.
    told: Vec<Told>,
}

/// What an account's names allow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Names {
    /// An unknown outcome stays unknown.
    Any,
    /// Flowgate looks for the flow of an unknown outcome: one that exists is found.
    Unique,
}

/// The faults of lost answers, by a mark in the name of the flow. The calls are processed.
pub(crate) const LOST: [&str; 3] = [
    "named=/a,action=CreateFlow,close-after",
    "named=/c,action=CreateFlow,cut",
    "named=/r,action=CreateFlow,reset",
];
const LOST_MARKS: [&str; 3] = ["/a", "/c", "/r"];
/// The fault of a request that is not processed.
pub(crate) const UNPROCESSED: &str = "named=/b,action=CreateFlow,close-before";
const UNPROCESSED_MARK: &str = "/b";

/// The time in which every key gets a final answer, when no caller waits any more.
const FINAL: Duration = Duration::from_secs(120);

/// The ids of all flows, by name.
fn flow_ids(sim: &Sim) -> BTreeMap<String, Vec<String>> {
    let mut ids = BTreeMap::<_, Vec<_>>::new();
    for flow in sim.flows() {
        ids.entry(flow.name).or_default().push(flow.id);
    }
    ids
}

fn happens(percent: f64) -> bool {
    fastrand::f64() * 100.0 < percent
}

// === impl Names ===

impl Names {
    /// What the section of an account says of it.
    pub(crate) fn toml(self) -> &'static str {
        match self {
            Self::Any => "",
            Self::Unique => "flow_names = \"unique\"\n",
        }
    }
}

// === impl Order ===

impl Order {
    /// The call of the order, with this hold.
    pub(crate) fn call(&self, proxy: SocketAddr, hold: &str) -> Call {
        let query = [
            ("Categories", "[\"SIGN_UP\"]"),
            ("FlowName", self.name.as_str()),
        ];
        let change = |call: &mut Call| {
            call.push("x-flowgate-hold", hold);
            if self.is_keyed {
                call.push("idempotency-key", &self.name);
            }
        };
        Call::v3_with(
            &proxy.to_string(),
            &query,
            change,
            (&self.access_key, SECRET),
        )
    }

    /// Sends the call on a connection of its own.
    pub(crate) async fn send(&self, proxy: SocketAddr) -> Told {
        let mut call = self.call(proxy, "30s");
        call.push("connection", "close");
        try_exchange(proxy, &call.bytes())
            .await
            .map_or(Told::Closed, |reply| Told::by(&reply))
    }

    /// Repeats the call until it has a final answer. `exists`: an unknown outcome is not final.
    async fn settle(&self, proxy: SocketAddr, exists: bool) -> Told {
        let give_up = Instant::now() + FINAL;
        loop {
            let told = self.send(proxy).await;
            let is_final = match &told {
                Told::Created { .. } => true,
                Told::Unknown => !exists,
                _ => false,
            };
            if is_final {
                return told;
            }
            assert!(Instant::now() < give_up, "{self:?}: {told:?}");
            sleep(Duration::from_millis(100)).await;
        }
    }
}

// === impl Told ===

impl Told {
    /// Reads a response.
    pub(crate) fn by(reply: &Reply) -> Self {
        let state = reply.header("x-flowgate-idempotency");
        let body = reply.json();
        let code = body["Code"].as_str().unwrap_or_default().to_owned();
        if reply.status == 200 {
            let flow_id = body["Data"]["FlowId"].as_str();
            let flow_id =
                flow_id.unwrap_or_else(|| panic!("a success without a FlowId: {reply:?}"));
            return Self::Created {
                flow_id: flow_id.to_owned(),
            };
        }
        match code.as_str() {
            _ if state == Some("pending") => Self::Pending,
            "Flowgate.OutcomeUnknown" => Self::Unknown,
            _ => Self::Refused { code },
        }
    }

    /// Whether the flow may exist after this.
    fn allows_a_flow(&self) -> bool {
        !matches!(self, Self::Refused { .. })
    }
}

// === impl Orders ===

impl Orders {
    /// No orders yet. Their names begin with `prefix`, which must be unique.
    pub(crate) fn new(access_key: &str, prefix: &str, mix: Mix) -> Self {
        Self {
            access_key: access_key.to_owned(),
            prefix: prefix.to_owned(),
            mix,
            made: 0,
            keyed: Vec::new(),
        }
    }

    /// The order of the next call: a new one, or an earlier one again.
    pub(crate) fn next(&mut self) -> Order {
        if happens(self.mix.repeats)
            && let Some(newest) = self.keyed.last()
        {
            return if fastrand::bool() {
                newest.clone()
            } else {
                fastrand::choice(&self.keyed).unwrap_or(newest).clone()
            };
        }
        self.made += 1;
        let mark = if happens(self.mix.lost) {
            LOST_MARKS[fastrand::usize(..LOST_MARKS.len())]
        } else if happens(self.mix.unprocessed) {
            UNPROCESSED_MARK
        } else {
            ""
        };
        let order = Order {
            access_key: self.access_key.clone(),
            name: format!("{}-{}{mark}", self.prefix, self.made),
            is_keyed: happens(self.mix.keyed),
        };
        if order.is_keyed {
            self.keyed.push(order.clone());
        }
        order
    }
}

// === impl Ledger ===

impl Ledger {
    /// Notes what calls were told.
    pub(crate) fn note(&mut self, calls: impl IntoIterator<Item = (Order, Told)>) {
        for (order, told) in calls {
            let entry = self.0.entry(order.name.clone()).or_insert_with(|| Entry {
                order: order.clone(),
                told: Vec::new(),
            });
            entry.told.push(told);
            assert!(
                order.is_keyed || entry.told.len() == 1,
                "{order:?} has no key and is repeated"
            );
        }
    }

    /// Number of orders with a key.
    pub(crate) fn keys(&self) -> usize {
        self.0.values().filter(|entry| entry.order.is_keyed).count()
    }

    /// Number of calls that repeat a key.
    pub(crate) fn repeats(&self) -> usize {
        self.0.values().map(|entry| entry.told.len() - 1).sum()
    }

    /// Number of calls that were told this.
    pub(crate) fn count(&self, wanted: fn(&Told) -> bool) -> usize {
        let told = self.0.values().flat_map(|entry| &entry.told);
        told.filter(|told| wanted(told)).count()
    }

    /// Repeats every key until it has a final answer, which is noted last. Returns the number of
    /// keys.
    pub(crate) async fn settle(&mut self, proxy: SocketAddr, sim: &Sim, names: Names) -> usize {
        let flows = flow_ids(sim);
        let mut accounts = BTreeMap::<_, Vec<_>>::new();
        for entry in self.0.values().filter(|entry| entry.order.is_keyed) {
            let order = entry.order.clone();
            let exists = names == Names::Unique && flows.contains_key(&order.name);
            let orders = accounts.entry(order.access_key.clone()).or_default();
            orders.push((order, exists));
        }
        let mut callers = JoinSet::new();
        for orders in accounts.into_values() {
            callers.spawn(async move {
                let mut told = Vec::new();
                for (order, exists) in orders {
                    let last = order.settle(proxy, exists).await;
                    told.push((order, last));
                }
                told
            });
        }
        let last: Vec<_> = callers.join_all().await.into_iter().flatten().collect();
        let keys = last.len();
        self.note(last);
        keys
    }

    /// Checks that every flow of the endpoint belongs to one order whose callers know of it, that
    /// every FlowId is that of its order, and that no order has two flows. Call `settle` before.
    pub(crate) fn check(&self, sim: &Sim, names: Names) -> Report {
        let flows = flow_ids(sim);
        let none = Vec::new();
        let mut expected = BTreeSet::new();
        for (name, entry) in &self.0 {
            let ids = flows.get(name).unwrap_or(&none);
            entry.check(ids, names);
            expected.extend(entry.told.iter().any(Told::allows_a_flow).then_some(name));
        }
        let unexpected: Vec<_> = flows
            .keys()
            .filter(|name| !expected.contains(name))
            .map(|name| (name, self.0.get(name).map(|entry| &entry.told)))
            .collect();
        assert!(
            unexpected.is_empty(),
            "created, but reported otherwise to their callers: {unexpected:?}"
        );
        let ids: BTreeSet<_> = flows.values().flatten().collect();
        assert_eq!(ids.len(), flows.len(), "one flow for each name");
        let report = sim.report();
        // The faults' codes; any other code is a malformed call.
        let known = ["System.LimitControl", "ServiceUnavailable"];
        let codes = report.codes.keys();
        let unknown: Vec<_> = codes
            .filter(|code| !known.contains(&code.as_str()))
            .collect();
        assert!(unknown.is_empty(), "{unknown:?}");
        report
    }
}

// === impl Entry ===

impl Entry {
    /// Compares what was told with the ids of the order's flows.
    fn check(&self, ids: &[String], names: Names) {
        let Self { order, told } = self;
        assert!(ids.len() <= 1, "{order:?} has two flows: {ids:?} {told:?}");
        for told in told {
            if let Told::Created { flow_id } = told {
                assert_eq!(
                    ids,
                    [flow_id.as_str()],
                    "{order:?} was told of another flow: {self:?}",
                );
            }
        }
        if !order.is_keyed {
            return;
        }
        let last = told.last().expect("an entry has a call");
        let was = |wanted: fn(&Told) -> bool| told.iter().any(wanted);
        let is_created = |told: &Told| matches!(told, Told::Created { .. });
        assert!(
            is_created(last) || *last == Told::Unknown,
            "no final answer: {self:?}"
        );
        assert!(
            !was(is_created) || is_created(last),
            "a flow is forgotten: {self:?}"
        );
        match names {
            Names::Any => assert!(
                !was(|told| *told == Told::Unknown) || *last == Told::Unknown,
                "an unknown outcome is forgotten: {self:?}"
            ),
            Names::Unique => assert!(
                is_created(last) || ids.is_empty(),
                "the flow of an unknown outcome is not found: {self:?}"
            ),
        }
    }
}

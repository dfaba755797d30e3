//! Calls with an idempotency key, for the tests of keys: the calls, what their replies say, and an
//! endpoint that counts the flows.

use std::collections::BTreeMap;

use cams_sim::{Running, Settings, Sim, Verdict};
use tokio::task::JoinSet;

use crate::caller::{Call, KEY, Reply, SECRET};

/// An endpoint without limits and with faults.
pub(crate) async fn endpoint(faults: &[&str]) -> Running {
    let settings = Settings {
        limits: BTreeMap::new(),
        faults: faults.iter().map(|fault| fault.parse().unwrap()).collect(),
        ..Settings::default()
    };
    Sim::start(settings.with_key(KEY, SECRET, "acme"))
        .await
        .unwrap()
}

/// A CreateFlow with this key.
pub(crate) fn order(host: &str, key: &str, flow: &str) -> Call {
    let query = [("Categories", "[\"SIGN_UP\"]"), ("FlowName", flow)];
    let with_key = |call: &mut Call| call.push("idempotency-key", key);
    Call::v3_with(host, &query, with_key, (KEY, SECRET))
}

/// What the reply says of its key; empty if it is not protected.
pub(crate) fn state(reply: &Reply) -> &str {
    reply.header("x-flowgate-idempotency").unwrap_or_default()
}

#[track_caller]
pub(crate) fn is(reply: &Reply, status: u16, state: &str) {
    let seen = (reply.status, self::state(reply));
    assert_eq!(seen, (status, state), "{reply:?}");
}

pub(crate) fn flow_id(reply: &Reply) -> String {
    reply.json()["Data"]["FlowId"].as_str().unwrap().to_owned()
}

/// The number of flows that the endpoint has created, by name.
pub(crate) fn created(sim: &Running) -> BTreeMap<String, usize> {
    let mut flows = BTreeMap::new();
    for arrival in sim.arrivals() {
        if arrival.verdict == Verdict::Accepted {
            *flows.entry(arrival.flow_name.unwrap()).or_default() += 1;
        }
    }
    flows
}

pub(crate) fn created_twice(sim: &Running) -> Vec<(String, usize)> {
    let flows = created(sim).into_iter();
    flows.filter(|(_, count)| *count > 1).collect()
}

/// Adds the flow ids that callers have learned, by key. Panics if they have learned two flows of one
/// key.
pub(crate) async fn learn(
    answered: &mut BTreeMap<String, String>,
    callers: JoinSet<Vec<(String, String)>>,
) {
    for (name, id) in callers.join_all().await.into_iter().flatten() {
        let known = answered.entry(name.clone()).or_insert_with(|| id.clone());
        assert_eq!(*known, id, "{name} has two flows");
    }
}

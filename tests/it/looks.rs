//! Looks: a CreateFlow whose answer is lost is found by its name, for accounts whose flow names are
//! unique. Absence, which takes half an hour, is tested in simulated time.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::time::Duration;

use cams_sim::{FlowSettings, NewFlow, Settings, Sim, Status};

use crate::caller::{Call, KEY, Reply, SECRET, try_exchange};
use crate::harness::{self, GAP, Harness};
use crate::journal::written;
use crate::keyed_calls::{endpoint, flow_id, is};
use crate::process::Process;

const CATEGORIES: &str = "[\"SIGN_UP\"]";

/// A Flowgate whose account has unique flow names, and journals to `journal`.
async fn flowgate(flows: FlowSettings, faults: &[&str], journal: Option<&Path>) -> Harness {
    let settings = Settings {
        faults: faults.iter().map(|fault| fault.parse().unwrap()).collect(),
        flows,
        ..Settings::default()
    };
    let sim = Sim::start(settings.with_key(KEY, SECRET, "acme"))
        .await
        .unwrap();
    let journal = journal.map(|path| format!("[journal]\npath = \"{}\"\n", path.display()));
    let toml = format!(
        "[[accounts]]\nid = \"acme\"\naccess_key_id = \"{KEY}\"\naccess_key_secret = {{ env = \"MANAGED\" }}\n\
         flow_names = \"unique\"\n{GAP}[upstream]\nurl = \"{}\"\n{}",
        sim.url(),
        journal.unwrap_or_default()
    );
    Harness::configured(sim, &toml).await
}

/// Continues an account: its flow names are unique, and a process journals to `journal`.
fn with_journal(journal: &Path) -> String {
    format!(
        "flow_names = \"unique\"\n[journal]\npath = \"{}\"\n[limits]\npreset = \"none\"\n",
        journal.display()
    )
}

/// A CreateFlow of the flow `Welcome` with a key.
fn welcome(host: &str) -> Call {
    order(host, "order-1", "Welcome")
}

fn order(host: &str, key: &str, flow: &str) -> Call {
    let query = [("Categories", CATEGORIES), ("FlowName", flow)];
    let with_key = |call: &mut Call| {
        call.push("idempotency-key", key);
        call.push("x-flowgate-hold", "30s");
    };
    Call::v3_with(host, &query, with_key, (KEY, SECRET))
}

async fn send(harness: &Harness) -> Reply {
    welcome(&harness.host()).send(harness.proxy).await
}

fn draft(name: &str) -> NewFlow {
    NewFlow {
        account: "acme".into(),
        space: None,
        name: name.into(),
        categories: vec!["SIGN_UP".into()],
        status: Status::default(),
    }
}

/// The number of requests of each action that have arrived.
fn arrivals(harness: &Harness) -> BTreeMap<String, usize> {
    let mut actions = BTreeMap::new();
    for arrival in harness.sim.arrivals() {
        *actions.entry(arrival.action.unwrap()).or_default() += 1;
    }
    actions
}

#[tokio::test]
async fn a_lost_answer_is_found_within_the_hold() {
    let folder = tempfile::tempdir().unwrap();
    let journal = folder.path().join("journal");
    let faults = ["next=1,action=CreateFlow,close-after"];
    let harness = flowgate(FlowSettings::default(), &faults, Some(&journal)).await;
    let reply = send(&harness).await;
    is(&reply, 200, "resolved");
    assert_eq!(flow_id(&reply), harness.sim.flows()[0].id);
    is(&send(&harness).await, 200, "replayed");
    assert_eq!(harness.sim.flows().len(), 1);
    assert_eq!(arrivals(&harness)["CreateFlow"], 1);
    let metrics = harness.metrics().await;
    let found = "flowgate_looks_total{account=\"acme\",result=\"found\"}";
    assert!(metrics.get(found) >= 1.0);
    // The last one is written soon after the answer.
    written(&journal, 3).await;
    let text = std::fs::read_to_string(&journal).unwrap();
    let resolved = |line: &&str| line.contains("\"event\":\"resolved\"");
    let line = text.lines().find(resolved).unwrap();
    assert!(line.contains("\"result\":\"created\""), "{line}");
    assert!(
        !text.contains("ListFlow"),
        "looks are not journalled: {text}"
    );
}

#[tokio::test]
async fn a_flow_is_found_whatever_has_hidden_it_at_first() {
    for fault in [
        "next=1,action=CreateFlow,copied",
        "next=1,action=CreateFlow,late=2s",
        "next=1,action=CreateFlow,failed",
    ] {
        let harness = flowgate(FlowSettings::default(), &[fault], None).await;
        let reply = send(&harness).await;
        // CAMS's own failure is answered as soon as it is known.
        let reply = if reply.status == 409 {
            send(&harness).await
        } else {
            reply
        };
        assert_eq!(reply.status, 200, "{fault}: {reply:?}");
        assert_eq!(flow_id(&reply), harness.sim.flows()[0].id);
        assert_eq!(harness.sim.flows().len(), 1, "{fault}");
        assert_eq!(arrivals(&harness)["CreateFlow"], 1, "{fault}");
    }
}

#[tokio::test]
async fn the_flow_is_found_in_capped_pages_of_similar_names() {
    for page_cap_refuses in [false, true] {
        let flows = FlowSettings {
            page_cap: Some(20),
            page_cap_refuses,
            fuzzy: true,
            list_lag: Duration::from_secs(1),
            ..FlowSettings::default()
        };
        let faults = ["next=1,action=CreateFlow,close-after"];
        let harness = flowgate(flows, &faults, None).await;
        for number in 0..45 {
            harness.sim.create_flow(draft(&format!("welcome {number}")));
        }
        let reply = send(&harness).await;
        is(&reply, 200, "resolved");
        assert_eq!(flow_id(&reply), harness.sim.flows()[45].id);
    }
}

#[tokio::test]
async fn what_is_not_certainly_the_flow_is_never_handed_out() {
    let published = FlowSettings {
        draft: false,
        ..FlowSettings::default()
    };
    for (flows, others) in [(FlowSettings::default(), 1), (published, 0)] {
        let faults = ["next=1,action=CreateFlow,close-after"];
        let harness = flowgate(flows, &faults, None).await;
        for _ in 0..others {
            harness.sim.create_flow(draft("Welcome"));
        }
        for _ in 0..2 {
            let reply = send(&harness).await;
            is(&reply, 409, "unknown");
            assert_eq!(reply.header("retry-after"), None, "{reply:?}");
        }
        let metrics = harness.metrics().await;
        let ambiguous = "flowgate_resolutions_total{account=\"acme\",result=\"ambiguous\"}";
        assert_eq!(metrics.get(ambiguous).to_bits(), 1.0_f64.to_bits());
        assert_eq!(arrivals(&harness)["CreateFlow"], 1);
    }
}

#[tokio::test]
async fn a_late_call_without_a_key_is_not_told_to_repeat() {
    let faults = ["next=1,action=CreateFlow,slow=10s"];
    let harness = flowgate(FlowSettings::default(), &faults, None).await;
    let query = [("Categories", CATEGORIES), ("FlowName", "Welcome")];
    let with_hold = |call: &mut Call| call.push("x-flowgate-hold", "2s");
    let call = Call::v3_with(&harness.host(), &query, with_hold, (KEY, SECRET));
    let late = call.send(harness.proxy).await;
    is(&late, 409, "");
    assert_eq!(late.header("retry-after"), None, "{late:?}");
    let why = "CAMS has not answered within the hold";
    assert!(
        late.body.contains(why) && !late.body.contains("Repeat the call"),
        "{late:?}"
    );
}

#[tokio::test]
async fn a_call_of_a_killed_process_is_looked_for_by_the_next_one() {
    let sim = endpoint(&["next=1,action=CreateFlow,slow=60s"]).await;
    let folder = tempfile::tempdir().unwrap();
    let toml = with_journal(&folder.path().join("journal"));
    let start = || Process::start(&sim, &toml);
    let process = start().await;
    let proxy = process.proxy;
    let call = welcome(&proxy.to_string());
    let lost = tokio::spawn(async move { try_exchange(proxy, &call.bytes()).await });
    while sim.report().arrived < 1 {
        tokio::task::yield_now().await;
    }
    process.kill().await;
    assert!(lost.await.unwrap().is_none());
    let process = start().await;
    let reply = welcome(&process.proxy.to_string())
        .send(process.proxy)
        .await;
    assert_eq!(reply.status, 200, "{reply:?}");
    assert_eq!(flow_id(&reply), sim.flows()[0].id);
    assert_eq!(sim.flows().len(), 1);
    process.kill().await;
}

#[tokio::test]
async fn a_name_of_more_than_1024_bytes_is_not_looked_for_also_after_a_restart() {
    let sim = endpoint(&["always,action=CreateFlow,close-after"]).await;
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("journal");
    let toml = with_journal(&path);
    let long = [
        "a".repeat(1025),
        format!("b{}\u{1f600}", "a".repeat(1023)),
        format!("c{}\u{1f600}", "a".repeat(1024)),
    ];
    // Each process also looks for a flow of its own, the last one.
    for (last, lines) in [("first", 9), ("second", 12)] {
        let process = Process::start(&sim, &toml).await;
        for name in &long {
            let call = order(&process.proxy.to_string(), &name[..100], name);
            let reply = call.send(process.proxy).await;
            is(&reply, 409, "unknown");
            assert_eq!(reply.header("retry-after"), None);
        }
        let call = order(&process.proxy.to_string(), last, last);
        is(&call.send(process.proxy).await, 200, "resolved");
        let unknown = harness::get(process.admin, "/unknown").await.json();
        let states = unknown["unknown"].as_array().unwrap();
        assert_eq!(states.len(), long.len());
        assert!(states.iter().all(|one| one["state"] == "by_hand"));
        written(&path, lines).await;
        process.kill().await;
    }
    let names = |action: &str| -> Vec<String> {
        let all = sim.arrivals().into_iter();
        let of_action = all.filter(|arrival| arrival.action.as_deref() == Some(action));
        of_action.map(|one| one.flow_name.unwrap()).collect()
    };
    assert_eq!(names("CreateFlow").len(), long.len() + 2);
    let sought: BTreeSet<_> = names("ListFlow").into_iter().collect();
    assert_eq!(sought, ["first".into(), "second".into()].into());
}

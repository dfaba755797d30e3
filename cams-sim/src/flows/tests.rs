//! Tests of `flows`, through the whole endpoint.

use serde_json::json;

use super::*;
use crate::testing::{Draft, ask, code, settings};
use crate::{Answer, Settings, Sim};

fn sim(flows: FlowSettings, faults: &[&str]) -> Sim {
    Sim::new(Settings {
        flows,
        faults: faults.iter().map(|rule| rule.parse().unwrap()).collect(),
        ..settings()
    })
}

fn new_flow(name: &str) -> NewFlow {
    NewFlow {
        account: "acme".to_owned(),
        space: None,
        name: name.to_owned(),
        categories: vec!["SIGN_UP".to_owned()],
        status: Status::Draft,
    }
}

fn call(action: &'static str, parameters: &[(&'static str, &str)]) -> hyper::Request<bytes::Bytes> {
    let nonce = format!("{:x}", fastrand::u128(..));
    let parameters = parameters
        .iter()
        .map(|(name, value)| (*name, value.to_string()))
        .collect();
    let draft = Draft {
        parameters,
        ..Draft::of(action, &nonce)
    };
    draft.v3()
}

/// The names that ListFlow shows.
async fn names(sim: &Sim, parameters: &[(&'static str, &str)]) -> Vec<String> {
    let (_, body) = ask(sim, call("ListFlow", parameters)).await;
    let flows = body["Data"].as_array().unwrap();
    let names = flows
        .iter()
        .map(|flow| flow["FlowName"].as_str().unwrap().to_owned());
    names.collect()
}

async fn after(seconds: u64) {
    tokio::time::sleep(Duration::from_secs(seconds)).await;
}

#[tokio::test(start_paused = true)]
async fn a_late_flow_is_created_after_its_time() {
    let sim = sim(FlowSettings::default(), &["next=1,late=60s"]);
    let began = Instant::now();
    let answer = sim.answer(Draft::create("late", "n").v3()).await;
    assert!(matches!(answer, Answer::Raw(bytes) if bytes.is_empty()));
    assert_eq!(began.elapsed(), Duration::ZERO);
    assert_eq!(
        code(&sim, Draft::create("late", "n").v3()).await,
        (400, "SignatureNonceUsed".to_owned())
    );
    assert_eq!(sim.create_flow(new_flow("between")), "3339938380002");
    let missing = call("GetFlow", &[("FlowId", "3339938380001")]);
    assert_eq!(ask(&sim, missing).await.0, 400);
    after(59).await;
    assert_eq!(names(&sim, &[]).await, ["between"]);
    assert_eq!(sim.report().created, 1);
    after(1).await;
    assert_eq!(names(&sim, &[]).await, ["between", "late"]);
    assert_eq!(sim.flows()[1].created - began, Duration::from_secs(60));
    assert_eq!(sim.arrivals()[0].fault, Some("late"));
}

#[tokio::test(start_paused = true)]
async fn a_late_call_that_is_refused_creates_nothing() {
    let sim = sim(FlowSettings::default(), &["late=1s"]);
    let nameless = call("CreateFlow", &[("Categories", "[\"A\"]")]);
    assert!(matches!(sim.answer(nameless).await, Answer::Raw(_)));
    after(2).await;
    assert_eq!(sim.flows(), []);
}

#[tokio::test(start_paused = true)]
async fn a_copied_call_is_processed_once_and_answered_as_its_copy() {
    for check_signatures in [true, false] {
        let sim = Sim::new(Settings {
            check_signatures,
            faults: vec!["next=1,copied".parse().unwrap()],
            ..settings()
        });
        assert_eq!(
            code(&sim, Draft::create("a", "n").v3()).await,
            (400, "SignatureNonceUsed".to_owned())
        );
        let report = sim.report();
        assert_eq!((report.arrived, report.accepted, report.created), (1, 1, 1));
    }
}

#[tokio::test(start_paused = true)]
async fn a_list_may_lag_but_get_flow_does_not() {
    let sim = sim(
        FlowSettings {
            list_lag: Duration::from_secs(10),
            ..FlowSettings::default()
        },
        &[],
    );
    let id = sim.create_flow(new_flow("a"));
    after(9).await;
    assert!(names(&sim, &[("FlowName", "a")]).await.is_empty());
    assert_eq!(ask(&sim, call("GetFlow", &[("FlowId", &id)])).await.0, 200);
    after(1).await;
    assert_eq!(names(&sim, &[("FlowName", "a")]).await, ["a"]);
}

#[tokio::test(start_paused = true)]
async fn a_page_has_at_most_as_many_flows_as_its_cap() {
    let capped = FlowSettings {
        page_cap: Some(20),
        ..FlowSettings::default()
    };
    let sim = sim(capped, &[]);
    for number in 0..45 {
        sim.create_flow(new_flow(&number.to_string()));
    }
    let mut seen = Vec::new();
    for (page, count) in [
        ("{\"Size\":100,\"Index\":1}", 20),
        ("{\"Size\":100,\"Index\":2}", 20),
        ("{\"Size\":100,\"Index\":3}", 5),
        ("{\"Size\":100,\"Index\":4}", 0),
    ] {
        let found = names(&sim, &[("Page", page)]).await;
        assert_eq!(found.len(), count, "{page}");
        seen.extend(found);
    }
    let all: Vec<String> = (0..45).map(|number| number.to_string()).collect();
    assert_eq!(seen, all);
    after(1).await;
    assert_eq!(names(&sim, &[]).await.len(), 20);
    assert_eq!(names(&sim, &[("Page", "{\"Size\":7}")]).await.len(), 7);
}

#[tokio::test(start_paused = true)]
async fn a_size_above_the_cap_may_be_refused() {
    let sim = sim(
        FlowSettings {
            page_cap: Some(20),
            page_cap_refuses: true,
            ..FlowSettings::default()
        },
        &[],
    );
    let page = |size: u32| format!("{{\"Size\":{size},\"Index\":1}}");
    let (status, body) = ask(&sim, call("ListFlow", &[("Page", &page(21))])).await;
    assert_eq!(
        (status, &body["Message"]),
        (400, &json!("Page.Size is at most 20."))
    );
    assert!(names(&sim, &[("Page", &page(20))]).await.is_empty());
}

#[tokio::test(start_paused = true)]
async fn a_fuzzy_filter_selects_every_name_that_contains_it() {
    for (fuzzy, expected) in [
        (false, vec!["Welcome"]),
        (true, vec!["Welcome", "welcome ", "My Welcome 2"]),
    ] {
        let sim = sim(
            FlowSettings {
                fuzzy,
                ..FlowSettings::default()
            },
            &[],
        );
        for name in ["Welcome", "welcome ", "Other", "My Welcome 2"] {
            sim.create_flow(new_flow(name));
        }
        assert_eq!(names(&sim, &[("FlowName", "Welcome")]).await, expected);
    }
}

#[tokio::test(start_paused = true)]
async fn get_flow_shows_the_documented_members() {
    for (draft, status) in [(true, "DRAFT"), (false, "PUBLISHED")] {
        let sim = sim(
            FlowSettings {
                draft,
                ..FlowSettings::default()
            },
            &[],
        );
        ask(&sim, Draft::create("a", "n").v3()).await;
        let (_, body) = ask(&sim, call("GetFlow", &[("FlowId", "3339938380001")])).await;
        let expected = json!({
            "FlowId": "3339938380001",
            "FlowName": "a",
            "Categories": ["OTHER"],
            "Status": status,
            "JSONVersion": "2.1",
            "DataApiVersion": "3.0",
        });
        assert_eq!(body["Data"], expected);
    }
}

#[tokio::test(start_paused = true)]
async fn a_flow_is_found_in_its_account_and_space_only() {
    let sim = sim(FlowSettings::default(), &[]);
    let elsewhere = sim.create_flow(NewFlow {
        account: "other".to_owned(),
        ..new_flow("a")
    });
    let here = sim.create_flow(NewFlow {
        space: Some("s1".to_owned()),
        ..new_flow("a")
    });
    let unknown = (400, "CamsSim.NoSuchFlow".to_owned());
    let get = |id, space| call("GetFlow", &[("FlowId", id), ("CustSpaceId", space)]);
    assert_eq!(code(&sim, get(&elsewhere, "")).await, unknown);
    assert_eq!(code(&sim, get(&here, "s2")).await, unknown);
    assert_eq!(code(&sim, get(&here, "s1")).await.0, 200);
    assert_eq!(code(&sim, get(&here, "")).await.0, 200);
}

#[tokio::test(start_paused = true)]
async fn delete_flow_deletes_drafts_only() {
    let sim = sim(FlowSettings::default(), &[]);
    let draft = sim.create_flow(new_flow("a"));
    let published = sim.create_flow(NewFlow {
        status: Status::Published,
        ..new_flow("b")
    });
    let delete = |id| call("DeleteFlow", &[("FlowId", id)]);
    assert_eq!(
        code(&sim, delete(&published)).await,
        (400, "CamsSim.NotDraft".to_owned())
    );
    let (status, mut body) = ask(&sim, delete(&draft)).await;
    body["RequestId"].take();
    let expected =
        json!({ "AccessDeniedDetail": "None", "Code": "OK", "Message": "None", "RequestId": null });
    assert_eq!((status, body), (200, expected));
    assert_eq!(
        code(&sim, delete(&draft)).await,
        (400, "CamsSim.NoSuchFlow".to_owned())
    );
    let left: Vec<_> = sim.flows().into_iter().map(|flow| flow.id).collect();
    assert_eq!(left, [published]);
    assert_ne!(
        sim.create_flow(new_flow("c")),
        draft,
        "ids are not used twice"
    );
}

#[tokio::test(start_paused = true)]
async fn flows_change_without_a_call() {
    let sim = sim(FlowSettings::default(), &[]);
    after(3).await;
    let id = sim.create_flow(new_flow("a"));
    assert!(sim.rename_flow(&id, "b"));
    let flow = Flow {
        account: "acme".to_owned(),
        space: None,
        name: "b".to_owned(),
        categories: vec!["SIGN_UP".to_owned()],
        id: id.clone(),
        status: Status::Draft,
        created: Instant::now(),
    };
    assert_eq!(sim.flows(), [flow]);
    assert!(sim.delete_flow(&id));
    assert!(!sim.delete_flow(&id) && !sim.rename_flow(&id, "c"));
    assert_eq!((sim.report().arrived, sim.report().created), (0, 0));
}

#[tokio::test(start_paused = true)]
async fn the_actions_on_flows_are_limited_each_for_itself() {
    let sim = sim(FlowSettings::default(), &[]);
    let id = sim.create_flow(new_flow("a"));
    let parameters = [("FlowId", &*id)];
    for action in ["ListFlow", "GetFlow"] {
        for _ in 0..5 {
            assert_eq!(code(&sim, call(action, &parameters)).await.0, 200);
        }
        assert_eq!(
            code(&sim, call(action, &parameters)).await.1,
            "System.LimitControl"
        );
    }
    after(1).await;
    assert_eq!(code(&sim, call("ListFlow", &[])).await.0, 200);
}

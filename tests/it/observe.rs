//! Observe mode: calls are sent immediately and once, and the simulated decisions are counted.

use std::time::Duration;

use cams_sim::{Limit, Settings};
use tokio::task::JoinSet;

use crate::caller::{Call, Reply};
use crate::harness::Harness;

const OBSERVE: &str = "[queue]\nhold = \"30s\"\n[limits]\nCreateFlow = \"5/5s\"\n";
/// Of that limit. Twenty calls arrive within it also on a busy machine.
const WINDOW: Duration = Duration::from_secs(5);

/// In front of an endpoint that accepts this many calls per window.
async fn observing(per_window: u32) -> Harness {
    let settings = Settings::default().with_limit(Limit {
        per_window,
        window: WINDOW,
        ..Limit::default()
    });
    let sim =
        cams_sim::Sim::start(settings.with_key(crate::caller::KEY, crate::caller::SECRET, "acme"))
            .await
            .unwrap();
    let account = format!(
        "mode = \"observe\"\n[[accounts]]\nid = \"acme\"\naccess_key_id = \"{}\"\naccess_key_secret = {{ env = \"MANAGED\" }}",
        crate::caller::KEY
    );
    let toml = format!("{account}\n[upstream]\nurl = \"{}\"\n{OBSERVE}", sim.url());
    let harness = Harness::configured(sim, &toml).await;
    // Nothing is sent in the first window of a process, nor counted as sent.
    tokio::time::sleep(WINDOW + Duration::from_millis(100)).await;
    harness
}

async fn twenty(harness: &Harness) -> Vec<Reply> {
    let mut calls = JoinSet::new();
    for index in 0..20 {
        let call = Call::v3(&harness.host(), &format!("flow-{index}"));
        let proxy = harness.proxy;
        calls.spawn(async move { call.send(proxy).await });
    }
    calls.join_all().await
}

async fn decisions(harness: &Harness) -> [f64; 3] {
    let metrics = harness.metrics().await;
    ["passed", "waited", "refused"].map(|decision| {
        let labels = format!("{{account=\"acme\",action=\"CreateFlow\",decision=\"{decision}\"}}");
        metrics.get(&format!("flowgate_shadow_decisions_total{labels}"))
    })
}

#[tokio::test]
async fn in_observe_mode_calls_are_sent_immediately_and_simulated_waits_counted() {
    let harness = observing(1000).await;
    let replies = twenty(&harness).await;
    assert!(replies.iter().all(|reply| reply.status == 200));
    assert_eq!(harness.sim.report().worst_window, 20, "all within a window");
    assert_eq!(decisions(&harness).await, [5.0, 15.0, 0.0]);
    let page = harness.get("/lanes").await.json();
    assert_eq!(
        (page["mode"].as_str(), page["lanes"][0]["queued"].as_u64()),
        (Some("observe"), Some(0))
    );
    assert!(page["lanes"][0]["shadow"]["queued"].as_u64().unwrap() > 0);
    assert_eq!(harness.metrics().await.sum("flowgate_tokens_total"), 0.0);
}

#[tokio::test]
async fn in_observe_mode_refusals_are_returned_and_not_retried() {
    let harness = observing(5).await;
    let replies = twenty(&harness).await;
    let refused: Vec<_> = replies.iter().filter(|reply| reply.status != 200).collect();
    assert_eq!(refused.len(), 15);
    for reply in refused {
        assert_eq!(
            (reply.status, reply.code().as_str()),
            (400, "System.LimitControl")
        );
        assert_eq!(
            reply.header("x-flowgate-error"),
            None,
            "the answer is CAMS's"
        );
        assert!(
            reply
                .header("x-acs-retry-after")
                .unwrap()
                .parse::<u64>()
                .unwrap()
                >= 1000
        );
    }
    let report = harness.sim.report();
    assert_eq!(
        (report.arrived, report.created, report.refused),
        (20, 5, 15)
    );
    let metrics = harness.metrics().await;
    assert_eq!(metrics.outcome("acme", "CreateFlow", "ok"), 5.0);
    assert_eq!(metrics.outcome("acme", "CreateFlow", "throttled"), 15.0);
}

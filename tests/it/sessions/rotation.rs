//! Sessions that are replaced under load: before their end, or because they have been ended.

use std::collections::BTreeSet;
use std::time::Duration;

use cams_sim::{Verdict, fingerprint};
use tokio::time::{Instant, sleep};

use super::cloud::{Cloud, Load, OIDC, key_of, oidc_token, refreshes, refreshes_series, send};
use crate::harness::Metrics;

/// The lifetime of the sessions here.
const LIFETIME: Duration = Duration::from_secs(15);

/// How long the load lasts at least, in seconds. For a longer run by hand:
/// `SESSION_TEST_SECONDS=300 cargo test --test it sessions::rotation`.
const SECONDS: &str = "SESSION_TEST_SECONDS";

fn least_time() -> Duration {
    let seconds = std::env::var(SECONDS).ok();
    let seconds = seconds.map(|text| text.parse().expect("a number of seconds"));
    Duration::from_secs(seconds.unwrap_or(20))
}

#[tokio::test]
async fn a_sidecar_with_only_the_variables_of_the_webhook_serves_through_every_rotation() {
    let mut cloud = Cloud::start(Some(LIFETIME)).await;
    let process = cloud.sidecar().await;
    let load = Load::start(&process);
    let end = Instant::now() + least_time();
    // A new token after each request, so that each request must send another one. The last session
    // is used before the load ends.
    loop {
        let requests = cloud.requests(OIDC).len();
        if requests >= cloud.token.generation() {
            cloud.token.replace();
        }
        if requests >= 3 && Instant::now() >= end {
            break;
        }
        sleep(Duration::from_millis(20)).await;
    }
    let calls = load.end_without_failures().await;

    let requests = cloud.requests(OIDC);
    for (number, request) in requests.iter().enumerate() {
        let token = oidc_token(number + 1);
        assert_eq!(request.value("OIDCToken"), Some(&*fingerprint(&token)));
        assert_eq!(request.verdict, Verdict::Accepted);
        assert_eq!(
            (&*request.method, request.tokens_in_url()),
            ("POST", vec![])
        );
    }
    // One request per refresh: none comes before the time of the next refresh.
    for pair in requests.windows(2) {
        let gap = pair[1].received - pair[0].received;
        assert!(gap >= LIFETIME / 2, "{gap:?}");
    }
    // Each was answered with a session; one may be under way now.
    let series = refreshes_series("default", "ok");
    let all = |seen| seen == cloud.requests(OIDC).len() as f64;
    Metrics::until(process.admin, &series, all).await;
    assert_used(&cloud, calls, requests.len());
}

/// All calls were signed with sessions, and CAMS has refused none of them: not even for the end of
/// its session, which would have been repeated.
fn assert_used(cloud: &Cloud, calls: usize, sessions: usize) {
    let report = cloud.sim.report();
    assert_eq!(report.created as usize, calls);
    assert_eq!(report.codes.len(), 0, "{:?}", report.codes);
    let used = keys_used(cloud);
    let requests = cloud.requests(OIDC).into_iter();
    let issued: BTreeSet<_> = requests.filter_map(|request| request.issued).collect();
    assert!(used.is_subset(&issued), "{used:?} {issued:?}");
    assert!(used.len() + 1 >= sessions, "{used:?} {issued:?}");
}

#[tokio::test]
async fn sessions_that_alibaba_ends_early_are_replaced_by_one_request_and_no_call_fails() {
    let cloud = Cloud::start(None).await;
    let process = cloud.sidecar().await;
    let load = Load::start(&process);
    cloud.until_created(5).await;
    cloud.sim.end_sessions();
    cloud.until_created(15).await;
    let calls = load.end_without_failures().await;

    let report = cloud.sim.report();
    assert_eq!(report.created as usize, calls);
    assert!(report.duplicates.is_empty(), "{:?}", report.duplicates);
    let codes: Vec<_> = report.codes.keys().map(String::as_str).collect();
    assert_eq!(codes, ["InvalidSecurityToken.Expired"]);
    // The first, and the forced one.
    assert_eq!(cloud.requests(OIDC).len(), 2);
    let metrics = Metrics::of(process.admin).await;
    assert_eq!(refreshes(&metrics, "default", "ok"), 2.0);
    assert_eq!(keys_used(&cloud).len(), 2);
}

/// The keys of the sessions that calls were signed with.
fn keys_used(cloud: &Cloud) -> BTreeSet<String> {
    let arrivals = cloud.sim.arrivals();
    arrivals
        .iter()
        .map(|call| key_of(call).to_owned())
        .collect()
}

#[tokio::test]
async fn no_call_waits_for_a_refresh_while_the_old_session_is_valid() {
    let cloud = Cloud::start(Some(Duration::from_secs(12))).await;
    let process = cloud.sidecar().await;
    assert_eq!(send(&process, "first", "30s").await.status, 200);
    // The answer to the refresh is under way for longer than these calls may be kept.
    cloud.break_sts(&["next=1,slow=3s"]);
    let mut during = 0;
    while keys_used(&cloud).len() < 2 {
        let asked = cloud.requests(OIDC).len();
        let reply = send(&process, &format!("flow-{during}"), "1500ms").await;
        assert_eq!(reply.status, 200, "{reply:?}");
        during += usize::from(asked == 2);
        sleep(Duration::from_millis(300)).await;
    }
    assert!(during > 3, "{during} calls during the refresh");
    assert_eq!(cloud.requests(OIDC).len(), 2);
    assert!(cloud.sim.report().codes.is_empty());
}

//! Sessions that are replaced under load: before their end, or because they have been ended.

use std::collections::BTreeSet;
use std::time::Duration;

use cams_sim::{Verdict, fingerprint};
use tokio::time::{Instant, sleep};

use super::cloud::{Cloud, Load, OIDC, key_of, oidc_token, refreshes};
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
    let metrics = Metrics::of(process.admin).await;
    assert_eq!(
        refreshes(&metrics, "default", "ok"),
        cloud.requests(OIDC).len() as f64
    );
    assert_used(&cloud, calls, requests.len());
}

/// All calls were signed with sessions, and CAMS has refused none of them: not even for the end of
/// its session, which would have been repeated.
fn assert_used(cloud: &Cloud, calls: usize, sessions: usize) {
    let report = cloud.sim.report();
    assert_eq!(report.created as usize, calls);
    assert_eq!(report.codes.len(), 0, "{:?}", report.codes);
    let arrivals = cloud.sim.arrivals();
    let used: BTreeSet<_> = arrivals.iter().map(key_of).collect();
    let issued = cloud.requests(OIDC);
    let issued: BTreeSet<_> = issued
        .iter()
        .filter_map(|request| request.issued.as_deref())
        .collect();
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
    let arrivals = cloud.sim.arrivals();
    let used: BTreeSet<_> = arrivals.iter().map(key_of).collect();
    assert_eq!(used.len(), 2);
}

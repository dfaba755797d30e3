//! The admin port: its pages, and that they hold no secret.

use crate::caller::{self, Call, KEY, SECRET};
use crate::harness::Harness;

#[tokio::test]
async fn every_admin_page_has_its_status_and_content_type() {
    let harness = Harness::new("").await;
    for (path, status, content_type) in [
        ("/metrics", 200, "text/plain; version=0.0.4; charset=utf-8"),
        ("/livez", 200, "text/plain; charset=utf-8"),
        ("/readyz", 200, "text/plain; charset=utf-8"),
        ("/lanes", 200, "application/json"),
        ("/history", 200, "application/json"),
        ("/calls", 200, "application/json"),
        ("/calls?outcome=ok&limit=2", 200, "application/json"),
        ("/calls?outcome=good", 400, "text/plain; charset=utf-8"),
        ("/calls/A-1", 404, "text/plain; charset=utf-8"),
        ("/config", 200, "application/json"),
        ("/nothing", 404, "text/plain; charset=utf-8"),
    ] {
        let page = harness.get(path).await;
        assert_eq!(
            (page.status, page.header("content-type")),
            (status, Some(content_type)),
            "{path}"
        );
        assert_eq!(page.header("cache-control"), Some("no-store"));
    }
    let admin = harness.app.admin_address().unwrap();
    let post = format!("POST /lanes HTTP/1.1\r\nhost: {admin}\r\ncontent-length: 0\r\n\r\n");
    assert_eq!(
        caller::exchange(admin, post.as_bytes())
            .await
            .unwrap()
            .status,
        405
    );
}

#[tokio::test]
async fn the_proxy_port_has_no_admin_pages() {
    let harness = Harness::new("").await;
    let request = format!("GET /metrics HTTP/1.1\r\nhost: {}\r\n\r\n", harness.proxy);
    let reply = caller::exchange(harness.proxy, request.as_bytes())
        .await
        .unwrap();
    assert_eq!(
        (reply.status, reply.code().as_str()),
        (400, "Flowgate.BadRequest")
    );
}

#[tokio::test]
async fn a_call_at_the_admin_port_is_told_in_camss_form_where_the_proxy_port_is() {
    let harness = Harness::new("").await;
    let admin = harness.app.admin_address().unwrap();
    let host = admin.to_string();
    for call in [
        Call::v3(&host, "x"),
        Call::v1(&host, "x"),
        Call::v1(&host, "x").in_form(),
    ] {
        let reply = call.send(admin).await;
        assert_eq!(
            (reply.status, reply.code().as_str()),
            (400, "Flowgate.BadRequest"),
            "{reply:?}"
        );
        assert!(
            reply.body.contains(&format!(
                "admin port: set the SDK's endpoint to the proxy port, which listens on {}",
                harness.proxy
            )),
            "{}",
            reply.body
        );
    }
    assert_eq!(harness.sim.report().arrived, 0);
}

#[tokio::test]
async fn the_effective_configuration_holds_no_secret() {
    let harness = Harness::new("").await;
    let page = harness.get("/config").await;
    assert_eq!(page.json()["accounts"][0]["id"], "acme");
    assert!(
        !page.body.contains(SECRET) && !page.body.contains(KEY),
        "{}",
        page.body
    );
}

#[tokio::test]
async fn lanes_shows_queue_tokens_and_tenants() {
    // With the default gap.
    let harness = Harness::new("[learn]").await;
    harness.sim.set_faults(vec![
        "next=1,throttle,acs-retry-after=4000".parse().unwrap(),
    ]);
    let query = [
        ("Categories", "[\"SIGN_UP\"]"),
        ("FlowName", "x"),
        ("CustSpaceId", "cams-7"),
    ];
    let call = Call::v3_with(&harness.host(), &query, |_| {}, (KEY, SECRET));
    let proxy = harness.proxy;
    let calling = tokio::spawn(async move { call.send(proxy).await });
    harness
        .until(
            "flowgate_pause_remaining_seconds{account=\"acme\",action=\"CreateFlow\"}",
            1.0,
        )
        .await;
    harness
        .until(
            "flowgate_queued{account=\"acme\",action=\"CreateFlow\"}",
            1.0,
        )
        .await;
    let lane = harness.lane().await;
    assert_eq!(
        (lane["account"].as_str(), lane["action"].as_str()),
        (Some("acme"), Some("CreateFlow"))
    );
    assert_eq!(
        (
            lane["queued"].as_u64(),
            lane["tokens"].as_u64(),
            lane["tokens_held"].as_u64()
        ),
        (Some(1), Some(5), Some(0))
    );
    assert!(lane["predicted_wait_seconds"].as_f64().unwrap() > 1.0);
    assert_eq!(lane["tenants"][0]["tenant"], "cams-7");
    assert_eq!(lane["tenants"][0]["share"], 1.0);
    let metrics = harness.metrics().await;
    // One refusal has reduced the rate by 6 %; the gap is 5 ms.
    for (kind, expected) in [
        ("configured", 5.0),
        ("effective", 5.0 / (5.0 / 4.7 + 0.005)),
    ] {
        let rate = format!(
            "flowgate_rate_limit{{account=\"acme\",action=\"CreateFlow\",kind=\"{kind}\"}}"
        );
        assert!(
            (metrics.get(&rate) - expected).abs() < 0.001,
            "{kind}: {}",
            metrics.get(&rate)
        );
    }
    assert!(
        metrics.get("flowgate_predicted_wait_seconds{account=\"acme\",action=\"CreateFlow\"}")
            > 1.0
    );
    let used = metrics.get("flowgate_hold_used_ratio{account=\"acme\",action=\"CreateFlow\"}");
    assert!(used > 0.0 && used < 1.0, "{used}");
    assert_eq!(
        metrics.get("flowgate_pause_seconds_count{account=\"acme\",action=\"CreateFlow\"}"),
        1.0
    );
    assert_eq!(calling.await.unwrap().status, 200);
    let turns = "flowgate_client_turns_total{account=\"acme\",client=\"LTAI***-1\"}";
    assert_eq!(
        harness.metrics().await.get(turns),
        2.0,
        "one for each attempt"
    );
}

#[tokio::test]
async fn the_process_and_the_build_are_described() {
    let harness = Harness::new("").await;
    let metrics = harness.metrics().await;
    assert_eq!(metrics.sum("flowgate_build_info"), 1.0);
    assert!(metrics.get("process_resident_memory_bytes") > 0.0);
    assert!(metrics.get("process_open_fds") > 0.0);
}

#[tokio::test]
async fn tenants_can_be_identified_by_a_header() {
    let harness = Harness::new("[queue]\ntenant = { header = \"x-team\" }").await;
    harness.sim.set_faults(vec![
        "next=1,throttle,acs-retry-after=3000".parse().unwrap(),
    ]);
    let query = [
        ("Categories", "[\"SIGN_UP\"]"),
        ("FlowName", "x"),
        ("CustSpaceId", "cams-7"),
    ];
    let mut call = Call::v3_with(&harness.host(), &query, |_| {}, (KEY, SECRET));
    call.push("x-team", "blue");
    let proxy = harness.proxy;
    let calling = tokio::spawn(async move { call.send(proxy).await });
    harness
        .until(
            "flowgate_pause_remaining_seconds{account=\"acme\",action=\"CreateFlow\"}",
            1.0,
        )
        .await;
    harness
        .until(
            "flowgate_queued{account=\"acme\",action=\"CreateFlow\"}",
            1.0,
        )
        .await;
    assert_eq!(harness.lane().await["tenants"][0]["tenant"], "blue");
    assert_eq!(calling.await.unwrap().status, 200);
    assert!(
        harness
            .sim
            .arrivals()
            .iter()
            .all(|arrival| arrival.headers.iter().all(|(name, _)| name != "x-team"))
    );
}

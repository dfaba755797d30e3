//! An operator who acts on lanes.

use std::net::SocketAddr;

use serde_json::{Value, json};

use crate::caller::{self, Reply};
use crate::harness::Metrics;
use crate::process::Process;

/// Variables of a process that allow an operator to act.
pub(crate) const OPERATOR: [(&str, &str); 2] = [
    ("FLOWGATE_LISTEN__ADMIN_TOKEN__ENV", "TEAM"),
    ("FLOWGATE_LISTEN__ADMIN_ACTIONS", "true"),
];
pub(crate) const TOKEN: &str = "Bearer team-secret-1";

/// Sends a POST with these headers.
pub(crate) async fn post(
    admin: SocketAddr,
    path: &str,
    headers: &[(&str, &str)],
    body: &str,
) -> Reply {
    let mut request = format!("POST {path} HTTP/1.1\r\ncontent-length: {}\r\n", body.len());
    for (name, value) in headers {
        request.push_str(&format!("{name}: {value}\r\n"));
    }
    caller::exchange(admin, format!("{request}\r\n{body}").as_bytes())
        .await
        .unwrap()
}

/// Sends a valid operator action.
pub(crate) async fn command(admin: SocketAddr, command: &str, body: &Value) -> Reply {
    let host = admin.to_string();
    let headers = [
        ("host", &*host),
        ("authorization", TOKEN),
        ("content-type", "application/json"),
    ];
    post(
        admin,
        &format!("/lanes/{command}"),
        &headers,
        &body.to_string(),
    )
    .await
}

/// Pauses an account's CreateFlow for 30 seconds.
pub(crate) async fn pause(flowgate: &Process, account: &str) {
    act(flowgate, "pause", account, json!({ "seconds": 30 })).await;
}

pub(crate) async fn resume(flowgate: &Process, account: &str) {
    act(flowgate, "resume", account, json!({})).await;
}

/// Waits until the number of queued calls is as wished, and returns it.
pub(crate) async fn until_queued(
    flowgate: &Process,
    account: &str,
    wished: impl Fn(f64) -> bool,
) -> f64 {
    let queued = format!("flowgate_queued{{account=\"{account}\",action=\"CreateFlow\"}}");
    let metrics = Metrics::until(flowgate.admin, &queued, wished).await;
    metrics.get(&queued)
}

async fn act(flowgate: &Process, action: &str, account: &str, mut body: Value) {
    body["account"] = json!(account);
    body["action"] = json!("CreateFlow");
    let reply = command(flowgate.admin, action, &body).await;
    assert_eq!(reply.status, 200, "{reply:?}");
}

//! Tests of the metadata service and the credentials URI.

use tokio::time::advance;

use crate::testing::{Draft, NOON, code, settings};
use crate::{Answer, Settings, Sim, Verdict, fingerprint};

use super::*;

const LIST: &str = "/latest/meta-data/ram/security-credentials/";
const OWN: &str = "/latest/meta-data/ram/security-credentials/flowgate-role";

fn service(metadata: MetadataSettings) -> (Sim, Sim) {
    let sim = Sim::new(Settings {
        metadata,
        ..settings()
    });
    (sim.metadata(), sim)
}

/// Status and body of the answer to a request with these headers.
async fn ask(sim: &Sim, method: &str, path: &str, headers: &[(&str, &str)]) -> (u16, String) {
    let mut request = Request::builder()
        .method(method)
        .uri(path)
        .header("host", "100.100.100.200");
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    match sim.answer(request.body(Bytes::new()).unwrap()).await {
        Answer::Http(response) => {
            let status = response.status().as_u16();
            (
                status,
                String::from_utf8(response.into_body().to_vec()).unwrap(),
            )
        }
        other => panic!("no HTTP answer: {other:?}"),
    }
}

async fn token(sim: &Sim, seconds: &str) -> (u16, String) {
    let header = ("X-aliyun-ecs-metadata-token-ttl-seconds", seconds);
    ask(sim, "PUT", TOKEN_PATH, &[header]).await
}

#[tokio::test(start_paused = true)]
async fn version_2_asks_for_a_token_the_role_and_its_session() {
    let (service, sim) = service(MetadataSettings {
        tokens_required: true,
        ..MetadataSettings::default()
    });
    assert_eq!(ask(&service, "GET", LIST, &[]).await.0, 403);
    let (status, text) = token(&service, "60").await;
    assert_eq!(status, 200);
    let header = [("X-aliyun-ecs-metadata-token", &*text)];
    assert_eq!(
        ask(&service, "GET", LIST, &header).await,
        (200, "flowgate-role".into())
    );
    let (status, body) = ask(&service, "GET", OWN, &header).await;
    assert_eq!(status, 200);
    let session: Value = serde_json::from_str(&body).unwrap();
    assert_eq!(session["Code"], "Success");
    assert_eq!(
        (&session["LastUpdated"], &session["Expiration"]),
        (&json!(NOON), &json!("2026-11-24T18:00:00Z"))
    );

    let member = |name: &str| -> &'static str { session[name].as_str().unwrap().to_owned().leak() };
    let mut secrets = sim.issued_secrets();
    let mut expected = vec![
        text.clone(),
        member("AccessKeySecret").to_owned(),
        member("SecurityToken").to_owned(),
    ];
    secrets.sort();
    expected.sort();
    assert_eq!(secrets, expected);
    let call = Draft {
        key: (member("AccessKeyId"), member("AccessKeySecret")),
        token: Some(member("SecurityToken")),
        ..Draft::create("a", "n0")
    };
    assert_eq!(code(&sim, call.v3()).await, (200, "OK".into()));
    assert_eq!(sim.arrivals()[0].account.as_deref(), Some("123456789012"));

    advance(Duration::from_secs(60)).await;
    assert_eq!(ask(&service, "GET", OWN, &header).await.0, 401);
    assert_eq!(
        ask(
            &service,
            "GET",
            OWN,
            &[("X-aliyun-ecs-metadata-token", "x")]
        )
        .await
        .0,
        401
    );

    let records = sim.credential_requests();
    let actions: Vec<&str> = records.iter().map(|record| &*record.action).collect();
    let wanted = [
        "MetadataRole",
        "MetadataToken",
        "MetadataRole",
        "MetadataCredentials",
        "MetadataCredentials",
        "MetadataCredentials",
    ];
    assert_eq!(actions, wanted);
    assert_eq!(
        records[2].value("x-aliyun-ecs-metadata-token"),
        Some(&*fingerprint(&text))
    );
    assert_eq!(records[4].verdict, Verdict::Rejected("401".into()));
    assert_eq!(sim.report().credentials["MetadataCredentials"], 3);
}

#[tokio::test(start_paused = true)]
async fn version_1_needs_no_token_where_it_is_allowed() {
    let (service, _) = service(MetadataSettings {
        newline: true,
        ..MetadataSettings::default()
    });
    assert_eq!(
        ask(&service, "GET", LIST, &[]).await,
        (200, "flowgate-role\n".into())
    );
    assert_eq!(ask(&service, "GET", OWN, &[]).await.0, 200);
    let (_, text) = token(&service, "21600").await;
    assert!(text.ends_with("==\n"));
    let header = [("X-aliyun-ecs-metadata-token", text.trim_end())];
    assert_eq!(ask(&service, "GET", OWN, &header).await.0, 200);
}

#[tokio::test(start_paused = true)]
async fn what_is_wrong_is_refused() {
    let (with_role, sim) = service(MetadataSettings::default());
    for seconds in ["0", "21601", "x", ""] {
        assert_eq!(token(&with_role, seconds).await.0, 400, "{seconds}");
    }
    for (method, path, wanted) in [
        ("GET", TOKEN_PATH, 405),
        ("POST", LIST, 405),
        (
            "GET",
            "/latest/meta-data/ram/security-credentials/other",
            404,
        ),
        ("GET", "/latest/meta-data/ram/security-credentialsX", 404),
        ("GET", "/", 404),
        (
            "GET",
            "http://100.100.100.200/latest/meta-data/ram/security-credentials/",
            400,
        ),
    ] {
        assert_eq!(
            ask(&with_role, method, path, &[]).await.0,
            wanted,
            "{method} {path}"
        );
    }
    // The two services do not answer for each other.
    let Answer::Http(answer) = sim
        .answer(
            Request::get(OWN)
                .header("host", "h")
                .body(Bytes::new())
                .unwrap(),
        )
        .await
    else {
        panic!("no HTTP answer")
    };
    assert_eq!(answer.status(), 404);

    let (without, _) = service(MetadataSettings {
        role: None,
        ..MetadataSettings::default()
    });
    assert_eq!(ask(&without, "GET", LIST, &[]).await.0, 404);
    assert_eq!(ask(&without, "GET", OWN, &[]).await.0, 404);
}

#[tokio::test(start_paused = true)]
async fn the_uri_gives_a_session_whatever_its_query() {
    let (service, sim) = service(MetadataSettings::default());
    let (status, body) = ask(&service, "GET", "/credentials?x=a%20b", &[]).await;
    let session: Value = serde_json::from_str(&body).unwrap();
    assert_eq!((status, &session["Code"]), (200, &json!("Success")));
    let record = &sim.credential_requests()[0];
    assert_eq!(record.query, [("x".to_owned(), "a b".to_owned())]);
    assert_eq!(record.issued.as_deref(), session["AccessKeyId"].as_str());
}

#[tokio::test(start_paused = true)]
async fn faults_break_the_answer() {
    let (service, sim) = service(MetadataSettings::default());
    for (rule, path, status, wanted) in [
        (
            "action=MetadataCredentials,unavailable",
            OWN,
            503,
            "temporary failure",
        ),
        ("action=MetadataRole,status=404", LIST, 404, "404"),
        (
            "action=metadata,body=<html>captive</html>",
            LIST,
            200,
            "<html>captive</html>",
        ),
        ("action=metadata,failed", OWN, 200, "{\"Code\":\"Failed\"}"),
        (
            "action=metadata,expired",
            OWN,
            200,
            "\"Expiration\":\"2026-11-24T11:59:55Z\"",
        ),
        ("action=CredentialsUri,redirect", "/credentials", 302, ""),
        (
            "action=metadata,throttle,status=429",
            OWN,
            429,
            "flow control",
        ),
        ("always,unavailable", OWN, 200, "Success"),
    ] {
        sim.set_faults(vec![rule.parse().unwrap()]);
        let (seen, body) = ask(&service, "GET", path, &[]).await;
        assert_eq!(seen, status, "{rule}");
        assert!(body.contains(wanted), "{rule}: {body}");
    }
    sim.set_faults(vec!["action=metadata,no-expiration".parse().unwrap()]);
    let body = ask(&service, "GET", OWN, &[]).await.1;
    assert!(body.contains("SecurityToken") && !body.contains("Expiration"));
}

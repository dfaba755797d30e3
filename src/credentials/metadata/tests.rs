//! The requests to the metadata service, in order, and what is refused before it gets into a path.

use tokio::time::advance;

use super::*;
use crate::config::SessionSource;
use crate::credentials::error::FailureKind;
use crate::credentials::fetch::Fetcher;
use crate::credentials::scripted::{self, Scripted, in_an_hour, metadata_body, plain};

const PUT: &str = "PUT /latest/api/token";
const GET_ROLE: &str = "GET /latest/meta-data/ram/security-credentials/";
const GET_SESSION: &str = "GET /latest/meta-data/ram/security-credentials/flowgate-role";

fn session() -> String {
    plain(200, &metadata_body(&in_an_hour()))
}

fn token() -> String {
    plain(200, "tok==\n")
}

fn role_name() -> String {
    plain(200, "flowgate-role\n")
}

fn fetcher(server: &Scripted, allow_v1: bool) -> Fetcher {
    scripted::fetcher(server.ecs_role(allow_v1), None)
}

#[tokio::test]
async fn the_role_is_asked_with_a_token_that_the_next_refresh_reuses() {
    let server = Scripted::start([token(), role_name(), session(), role_name(), session()]).await;
    let fetcher = fetcher(&server, false);
    for _ in 0..2 {
        let obtained = fetcher.fetch(None).await.ok().unwrap();
        assert_eq!(obtained.credentials.access_key_id.as_str(), "STS.fake1");
    }
    assert_eq!(
        server.lines(),
        [PUT, GET_ROLE, GET_SESSION, GET_ROLE, GET_SESSION]
    );
    let requests = server.requests();
    let put = &requests[0];
    let ttl = "x-aliyun-ecs-metadata-token-ttl-seconds";
    assert_eq!(put.header(ttl), Some("21600"));
    assert_eq!(put.header("content-length"), Some("0"));
    for get in &requests[1..] {
        assert_eq!(get.header("x-aliyun-ecs-metadata-token"), Some("tok=="));
        assert_eq!(get.header("host"), Some(&*server.address.to_string()));
    }
}

#[tokio::test]
async fn a_configured_role_saves_a_request() {
    let server = Scripted::start([token(), session()]).await;
    let configured = |role: &str| {
        let source = EcsRole {
            role: Some(role.to_owned()),
            allow_v1: false,
            address: server.address,
        };
        scripted::fetcher(SessionSource::EcsRole(source), None)
    };
    configured("flowgate-role").fetch(None).await.ok().unwrap();
    assert_eq!(server.lines(), [PUT, GET_SESSION]);
    assert_eq!(server.requests().len(), 2);
}

#[tokio::test(start_paused = true)]
async fn a_token_is_kept_for_six_hours_less_a_margin() {
    let tokens = TokenCache::default();
    tokens.set(Some((Secret::new("tok=="), Instant::now())));
    advance(Duration::from_secs(20_700)).await;
    assert_eq!(tokens.get().unwrap().expose(), "tok==");
    advance(Duration::from_secs(600)).await;
    assert!(tokens.get().is_none());
}

#[tokio::test]
async fn without_a_token_version_1_is_used_only_if_it_is_allowed() {
    for status in [404, 403, 500] {
        let server = Scripted::start([plain(status, "no")]).await;
        let error = fetcher(&server, false).fetch(None).await.err().unwrap();
        assert_eq!(error.status, Some(status));
        assert_eq!(server.lines(), [PUT]);

        let server = Scripted::start([plain(status, "no"), role_name(), session()]).await;
        fetcher(&server, true).fetch(None).await.ok().unwrap();
        assert_eq!(server.lines(), [PUT, GET_ROLE, GET_SESSION]);
        let token = "x-aliyun-ecs-metadata-token";
        assert!(
            server
                .requests()
                .iter()
                .all(|it| it.header(token).is_none())
        );
    }
}

#[tokio::test]
async fn a_refused_token_is_replaced_once_and_no_request_goes_without_one() {
    for (status, allow_v1) in [(403, false), (401, false), (403, true)] {
        let refused = || plain(status, "no");
        let server = Scripted::start([token(), refused(), token(), refused(), session()]).await;
        let fetcher = fetcher(&server, allow_v1);
        let error = fetcher.fetch(None).await.err().unwrap();
        assert_eq!(
            (error.kind, error.status),
            (FailureKind::Refused, Some(status))
        );
        assert_eq!(server.lines(), [PUT, GET_ROLE, PUT, GET_ROLE]);
        let requests = server.requests();
        let mut gets = requests.iter().filter(|it| it.line == GET_ROLE);
        assert!(gets.all(|it| it.header("x-aliyun-ecs-metadata-token").is_some()));
    }
}

#[tokio::test]
async fn a_kept_token_that_the_service_has_forgotten_is_replaced() {
    let server = Scripted::start([
        token(),
        role_name(),
        session(),
        plain(401, "no"),
        plain(200, "new=="),
        role_name(),
        session(),
    ])
    .await;
    let fetcher = fetcher(&server, false);
    for _ in 0..2 {
        fetcher.fetch(None).await.ok().unwrap();
    }
    assert_eq!(server.lines()[3..], [GET_ROLE, PUT, GET_ROLE, GET_SESSION]);
    let sent = server.requests();
    let sent_token = |at: usize| sent[at].header("x-aliyun-ecs-metadata-token");
    assert_eq!(
        [sent_token(3), sent_token(5), sent_token(6)],
        [Some("tok=="), Some("new=="), Some("new==")]
    );
    // A second refusal in one fetch is an error, also of the other request.
    let refused = || plain(403, "no");
    let server = Scripted::start([token(), refused(), token(), role_name(), refused()]).await;
    let error = self::fetcher(&server, false)
        .fetch(None)
        .await
        .err()
        .unwrap();
    assert_eq!(error.kind, FailureKind::Refused);
    assert_eq!(server.lines(), [PUT, GET_ROLE, PUT, GET_ROLE, GET_SESSION]);
}

#[tokio::test]
async fn a_renewal_that_fails_does_not_lead_to_version_1() {
    let server = Scripted::start([token(), plain(403, "no"), plain(404, "no"), role_name()]).await;
    let error = fetcher(&server, true).fetch(None).await.err().unwrap();
    assert_eq!(error.status, Some(404));
    assert_eq!(server.lines(), [PUT, GET_ROLE, PUT]);
}

#[tokio::test]
async fn a_role_that_is_no_name_is_not_asked_for() {
    let large = "x".repeat(70 * 1024);
    for body in [
        "<html>captive</html>",
        "role-a\nrole-b",
        "role-a\nrole-b\n",
        "",
        "\n",
        "../x",
        "..",
        ".",
        "a/b",
        "a?b",
        "a b",
        "a%2fb",
        "r\u{f6}le",
        &"x".repeat(65),
        &large,
    ] {
        let server = Scripted::start([token(), plain(200, body), session()]).await;
        let error = fetcher(&server, false).fetch(None).await.err().unwrap();
        assert_eq!(error.kind, FailureKind::BadAnswer, "{body}");
        assert!(!error.to_string().contains("captive"), "{error}");
        assert_eq!(server.lines(), [PUT, GET_ROLE]);
    }
}

#[tokio::test]
async fn a_token_that_is_no_header_value_is_not_sent() {
    for body in ["", "\n", "a b", "a\nb", "<html>\n</html>", "\u{f6}"] {
        let server = Scripted::start([plain(200, body), role_name()]).await;
        let error = fetcher(&server, false).fetch(None).await.err().unwrap();
        assert_eq!(error.kind, FailureKind::BadAnswer, "{body}");
        assert_eq!(server.lines(), [PUT]);
    }
}

#[tokio::test]
async fn an_instance_without_the_role_says_so() {
    let absent = || plain(404, "no");
    let server = Scripted::start([token(), absent()]).await;
    let error = fetcher(&server, false).fetch(None).await.err().unwrap();
    assert_eq!(error.reason, "the instance has no role");
    let server = Scripted::start([token(), role_name(), absent()]).await;
    let error = fetcher(&server, false).fetch(None).await.err().unwrap();
    assert_eq!(error.reason, "the instance does not have the role");
    assert_eq!(error.status, Some(404));
}

#[tokio::test]
async fn a_failed_or_ended_session_of_the_instance_is_refused() {
    for body in [
        metadata_body(&in_an_hour()).replace("Success", "Failed"),
        metadata_body("2026-01-01T00:00:00Z"),
        "<html>captive</html>".to_owned(),
    ] {
        let server = Scripted::start([token(), role_name(), plain(200, &body)]).await;
        let error = fetcher(&server, false).fetch(None).await.err().unwrap();
        assert_eq!(error.kind, FailureKind::BadAnswer, "{body}");
        assert!(!error.kind.is_permanent());
    }
}

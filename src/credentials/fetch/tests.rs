//! Fetches over real sockets: the requests that arrive, and what failures say.

use std::io::{self, Write};
use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;
use std::sync::Arc;

use parking_lot::Mutex;
use socket2::{Domain, Socket, Type};
use tracing::Level;

use super::*;
use crate::credentials::scripted::{
    self, SESSION_SECRET, SESSION_TOKEN, Scripted, answer, in_an_hour, metadata_body, plain,
    sts_body,
};
use crate::primitives::secret::Secret;

/// What the requests of the tests contain and no error may show.
const OIDC_TOKEN: &str = "eyJhbGciOi.s3cr3t-claims.s1gn4ture";
const METADATA_TOKEN: &str = "m3tadata-t0ken==";
const OWN_TOKEN: &str = "own-session-t0ken";
const URI_KEY: &str = "k3y-of-the-uri";

fn session() -> String {
    plain(200, &sts_body(&in_an_hour()))
}

/// A token file as Kubernetes writes it: a symbolic link, which is replaced.
fn write_token(folder: &Path, token: &str) {
    let data = folder.join(format!("..data-{}", token.len()));
    std::fs::write(&data, format!("{token}\n")).unwrap();
    let new = folder.join("..new");
    std::os::unix::fs::symlink(&data, &new).unwrap();
    std::fs::rename(&new, folder.join("token")).unwrap();
}

#[tokio::test]
async fn an_oidc_token_goes_into_the_form_of_an_anonymous_post_without_its_line_end() {
    let folder = tempfile::tempdir().unwrap();
    write_token(folder.path(), "a.b.c");
    let server = Scripted::start_tls([session()]).await;
    let source = server.oidc(folder.path().join("token"));
    let fetcher = scripted::fetcher(source, server.roots.clone());
    let obtained = fetcher.fetch(None).await.ok().unwrap();
    assert_eq!(obtained.credentials.access_key_id.as_str(), "STS.fake1");
    assert_eq!(obtained.credentials.secret.expose(), SESSION_SECRET);
    let token = obtained.credentials.security_token.unwrap();
    assert_eq!(token.expose(), SESSION_TOKEN);
    let lifetime = obtained.lifetime.as_secs();
    assert!((3500..=3600).contains(&lifetime), "{lifetime}");

    let requests = server.requests();
    assert_eq!(requests.len(), 1);
    let request = &requests[0];
    assert_eq!(
        request.body,
        "RoleArn=acs%3Aram%3A%3A123456789012%3Arole%2Fflowgate&RoleSessionName=flowgate\
         &OIDCProviderArn=acs%3Aram%3A%3A123456789012%3Aoidc-provider%2Fack-rrsa-c1&OIDCToken=a.b.c"
    );
    let (line, stamp) = request.line.split_once("Timestamp=").unwrap();
    assert_eq!(line, "POST /?Action=AssumeRoleWithOIDC&Format=JSON&");
    assert!(stamp.ends_with("Z&Version=2015-04-01"), "{stamp}");
    assert_eq!(
        request.header("content-type"),
        Some("application/x-www-form-urlencoded")
    );
    assert_eq!(request.header("host"), Some(&*server.address.to_string()));
    assert_eq!(request.header("authorization"), None);
    let all = format!("{request:?}");
    for absent in ["AccessKeyId", "Signature", "x-acs-"] {
        assert!(!all.contains(absent), "{absent} in {all}");
    }
}

#[tokio::test]
async fn a_token_file_that_was_exchanged_is_sent_from_the_next_request_on() {
    let folder = tempfile::tempdir().unwrap();
    write_token(folder.path(), "old.old.old");
    let server = Scripted::start_tls([session(), session(), session()]).await;
    let source = server.oidc(folder.path().join("token"));
    let fetcher = scripted::fetcher(source, server.roots.clone());
    fetcher.fetch(None).await.ok().unwrap();
    write_token(folder.path(), "new.new.new.new");
    for _ in 0..2 {
        fetcher.fetch(None).await.ok().unwrap();
    }
    let requests = server.requests();
    let sent: Vec<&str> = requests
        .iter()
        .map(|it| it.body.rsplit_once("OIDCToken=").unwrap().1)
        .collect();
    assert_eq!(sent, ["old.old.old", "new.new.new.new", "new.new.new.new"]);
}

#[tokio::test]
async fn an_unusable_token_file_causes_no_request() {
    let folder = tempfile::tempdir().unwrap();
    let file = |name: &str, content: &str| {
        let path = folder.path().join(name);
        std::fs::write(&path, content).unwrap();
        path
    };
    let server = Scripted::start_tls([session()]).await;
    for path in [
        file("empty", ""),
        file("large", &"x".repeat(20_001)),
        folder.path().to_owned(),
        folder.path().join("missing"),
    ] {
        let fetcher = scripted::fetcher(server.oidc(&path), server.roots.clone());
        let error = fetcher.fetch(None).await.err().unwrap();
        assert_eq!(error.kind, FailureKind::TokenFile, "{error}");
        assert_eq!(error.place, "the token file");
    }
    assert!(server.requests().is_empty());
}

#[tokio::test]
async fn an_expired_oidc_token_is_told_apart_from_a_permanent_refusal() {
    let folder = tempfile::tempdir().unwrap();
    write_token(folder.path(), "a.b.c");
    for (code, kind) in [
        (
            "AuthenticationFail.OIDCToken.Expired",
            FailureKind::OldToken,
        ),
        ("AuthenticationFail.OIDCToken.Invalid", FailureKind::Refused),
    ] {
        let body = format!(r#"{{"Code":"{code}","RequestId":"R-1","Message":"a.b.c"}}"#);
        let server = Scripted::start_tls([plain(403, &body)]).await;
        let source = server.oidc(folder.path().join("token"));
        let fetcher = scripted::fetcher(source, server.roots.clone());
        let error = fetcher.fetch(None).await.err().unwrap();
        assert_eq!(error.kind, kind);
        assert!(!format!("{error} {error:?}").contains("a.b.c"));
    }
}

#[tokio::test]
async fn a_role_is_assumed_with_the_token_of_the_assuming_session() {
    let server = Scripted::start_tls([session(), session()]).await;
    let fetcher = scripted::fetcher(server.assume_role(), server.roots.clone());
    let first = fetcher.fetch(Some(&scripted::long_lived())).await;
    let first = first.ok().unwrap().credentials;
    fetcher.fetch(Some(&first)).await.ok().unwrap();
    let requests = server.requests();
    let target =
        "POST /?RoleArn=acs%3Aram%3A%3A123456789012%3Arole%2Fflowgate&RoleSessionName=flowgate";
    assert!(requests.iter().all(|it| it.line == target));
    let header = |at: usize, name| requests[at].header(name);
    assert_eq!(header(0, "x-acs-security-token"), None);
    assert!(header(0, "authorization").unwrap().starts_with(
        "ACS3-HMAC-SHA256 Credential=LTAI-test-key-id-1,SignedHeaders=host;x-acs-action;\
         x-acs-content-sha256;x-acs-date;x-acs-signature-nonce;x-acs-version,Signature="
    ));
    assert_eq!(header(1, "x-acs-security-token"), Some(SESSION_TOKEN));
    assert!(header(1, "authorization").unwrap().starts_with(
        "ACS3-HMAC-SHA256 Credential=STS.fake1,SignedHeaders=host;x-acs-accesskey-id;x-acs-action;\
         x-acs-content-sha256;x-acs-date;x-acs-security-token;x-acs-signature-nonce;x-acs-version,\
         Signature="
    ));
}

#[tokio::test]
async fn a_role_without_assuming_credentials_is_not_asked_for() {
    let server = Scripted::start_tls([session()]).await;
    let fetcher = scripted::fetcher(server.assume_role(), server.roots.clone());
    let error = fetcher.fetch(None).await.err().unwrap();
    assert_eq!(error.kind, FailureKind::NoSource);
    assert!(server.requests().is_empty());
}

#[tokio::test]
async fn a_uri_is_asked_as_it_is_written() {
    let body = metadata_body(&in_an_hour());
    let without_code = body.replace(r#","Code":"Success""#, "");
    let failed = body.replace("Success", "Fail");
    for (body, is_taken) in [(&body, true), (&without_code, true), (&failed, false)] {
        let server = Scripted::start([plain(200, body)]).await;
        let fetcher = scripted::fetcher(server.uri("/c?x=a%20b"), None);
        let fetched = fetcher.fetch(None).await;
        assert_eq!(fetched.is_ok(), is_taken);
        if let Err(error) = fetched {
            assert_eq!(error.kind, FailureKind::BadAnswer);
            assert_eq!(error.code.as_deref(), Some("Fail"));
        }
        let request = &server.requests()[0];
        assert_eq!(request.line, "GET /c?x=a%20b");
        let host = server.address.to_string();
        assert_eq!(request.header("host"), Some(&*host));
    }
}

#[tokio::test]
async fn redirects_are_not_followed() {
    let other = Scripted::start([plain(200, &metadata_body(&in_an_hour()))]).await;
    let location = format!("Location: http://{}/c\r\n", other.address);
    for status in [301, 302, 303, 307, 308] {
        let server = Scripted::start([answer(status, &location, "")]).await;
        let fetcher = scripted::fetcher(server.uri("/c"), None);
        let error = fetcher.fetch(None).await.err().unwrap();
        assert_eq!(error.kind, FailureKind::BadAnswer);
        assert_eq!(error.status, Some(status));
        assert_eq!(server.requests().len(), 1);

        let server = Scripted::start([answer(status, &location, "")]).await;
        let error = scripted::fetcher(server.ecs_role(false), None)
            .fetch(None)
            .await;
        assert_eq!(error.err().unwrap().status, Some(status));
        assert_eq!(server.requests().len(), 1);
    }
    // STS may redirect when it throttles; its code says so.
    let throttling = r#"{"Code":"Throttling","RequestId":"R-1"}"#;
    let server = Scripted::start_tls([
        answer(302, &location, throttling),
        answer(302, &location, ""),
    ])
    .await;
    let fetcher = scripted::fetcher(server.assume_role(), server.roots.clone());
    let error = fetcher.fetch(Some(&scripted::long_lived())).await;
    assert_eq!(error.err().unwrap().kind, FailureKind::Throttled);
    // Else it may be a captive portal.
    let error = fetcher.fetch(Some(&scripted::long_lived())).await;
    assert_eq!(error.err().unwrap().kind, FailureKind::BadAnswer);
    assert!(other.requests().is_empty());
}

#[tokio::test]
async fn a_uri_over_plaintext_leads_to_loopback_only_even_if_the_configuration_was_wrong() {
    let server = Scripted::start([]).await;
    for host in [
        "100.100.100.200",
        "::ffff:169.254.169.254",
        "0.0.0.0",
        "192.0.2.1",
    ] {
        let SessionSource::Uri(uri) = server.uri("/c") else {
            unreachable!()
        };
        let uri = crate::config::CredentialsUri {
            host: host.to_owned(),
            ..uri
        };
        let error = scripted::fetcher(SessionSource::Uri(uri), None)
            .fetch(None)
            .await;
        let error = error.err().unwrap();
        assert!(error.reason.ends_with("which is not permitted"), "{error}");
    }
    assert!(server.requests().is_empty());
}

#[tokio::test(start_paused = true)]
async fn a_fetch_ends_after_ten_seconds_and_a_uri_s_after_five() {
    let listener = tokio::net::TcpListener::bind(("127.0.0.1", 0))
        .await
        .unwrap();
    let server = Scripted::start([]).await;
    let mut silent = server.sts();
    silent.port = listener.local_addr().unwrap().port();
    let mut uri = crate::config::CredentialsUri {
        is_tls: false,
        host: silent.host.clone(),
        port: silent.port,
        target: "/c".parse().unwrap(),
    };
    let roots = Scripted::start_tls([]).await.roots;
    for (source, seconds) in [
        (SessionSource::Uri(uri.clone()), 5),
        (SessionSource::AssumeRole(scripted::assume_role(silent)), 10),
    ] {
        let start = Instant::now();
        let fetcher = scripted::fetcher(source, roots.clone());
        let error = fetcher
            .fetch(Some(&scripted::long_lived()))
            .await
            .err()
            .unwrap();
        assert_eq!(error.kind, FailureKind::Unreachable);
        assert_eq!(start.elapsed().as_secs(), seconds, "{error}");
    }
    uri.is_tls = true;
    let fetcher = scripted::fetcher(SessionSource::Uri(uri), roots);
    let start = Instant::now();
    assert!(fetcher.fetch(None).await.is_err());
    assert_eq!(start.elapsed().as_secs(), 5);
}

/// Everything that is traced.
#[derive(Clone, Default)]
struct Page(Arc<Mutex<Vec<u8>>>);

impl Write for Page {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// How a service fails.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fault {
    Refused,
    WrongName,
    Quotes,
    CutJson,
    CutBody,
}

const FAULTS: [Fault; 5] = [
    Fault::Refused,
    Fault::WrongName,
    Fault::Quotes,
    Fault::CutJson,
    Fault::CutBody,
];

/// The body of a refusal that repeats secrets, those of the request as well.
fn quoting_body() -> String {
    format!(
        r#"{{"Code":"NoPermission","RequestId":"6894B13B","Message":"{OIDC_TOKEN} {METADATA_TOKEN} {OWN_TOKEN} {URI_KEY}","AccessKeySecret":"{SESSION_SECRET}","SecurityToken":"{SESSION_TOKEN}"}}"#
    )
}

fn answers(fault: Fault, body: &str) -> Vec<String> {
    let half = &body[..body.len() / 2];
    match fault {
        Fault::Refused | Fault::WrongName => Vec::new(),
        Fault::Quotes => vec![plain(403, &quoting_body()), plain(403, &quoting_body())],
        Fault::CutJson => vec![plain(200, half)],
        Fault::CutBody => vec![format!(
            "HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{half}",
            body.len()
        )],
    }
}

/// A server with the fault, and what its error must contain besides the host.
async fn faulty(fault: Fault, is_tls: bool, before: &[String], body: &str) -> Scripted {
    let script = before.iter().cloned().chain(answers(fault, body));
    let script: Vec<String> = if fault == Fault::Quotes && !before.is_empty() {
        // A refused metadata token is replaced once.
        let token = before[0].clone();
        let refused = plain(403, &quoting_body());
        vec![token.clone(), refused.clone(), token, refused]
    } else {
        script.collect()
    };
    let name = if fault == Fault::WrongName {
        "other.test"
    } else {
        "127.0.0.1"
    };
    if is_tls {
        Scripted::start_tls_for(name, script).await
    } else {
        Scripted::start(script).await
    }
}

/// Fetches at trace level, and searches the error and everything that was traced.
async fn assert_silent(source: SessionSource, server: &Scripted, fault: Fault) {
    let page = Page::default();
    let writer = page.clone();
    let subscriber = tracing_subscriber::fmt()
        .with_max_level(Level::TRACE)
        .with_writer(move || writer.clone())
        .finish();
    let own = Credentials {
        security_token: Some(Secret::new(OWN_TOKEN)),
        ..scripted::long_lived()
    };
    let fetcher = scripted::fetcher(source, server.roots.clone());
    let traced = tracing::subscriber::set_default(subscriber);
    let error = fetcher.fetch(Some(&own)).await.err().unwrap();
    tracing::debug!(%error, debugged = ?error, "no session");
    drop(traced);
    let text = String::from_utf8(page.0.lock().clone()).unwrap();
    for secret in [
        OIDC_TOKEN,
        METADATA_TOKEN,
        OWN_TOKEN,
        URI_KEY,
        SESSION_SECRET,
        SESSION_TOKEN,
        "test-secret-1",
        "Signature=",
        "OIDCToken",
        &SESSION_SECRET[..12],
        &SESSION_TOKEN[..12],
    ] {
        assert!(!text.contains(secret), "{fault:?}: {secret} in {text}");
    }
    let shown = error.to_string();
    assert!(shown.starts_with(&server.address.to_string()), "{shown}");
    let expected: &[&str] = match fault {
        Fault::Refused => &["cannot connect: connection refused"],
        Fault::WrongName => &["TLS failed: invalid peer certificate"],
        Fault::Quotes => &["status 403", "code NoPermission", "request id 6894B13B"],
        Fault::CutJson => &["JSON that ends too early", "status 200"],
        Fault::CutBody => &["closed before the answer was complete"],
    };
    for part in expected {
        assert!(shown.contains(part), "{fault:?}: {shown}");
    }
    assert!(text.contains(&shown), "{text}");
}

/// A port that refuses connections while the socket lives.
fn refusing() -> (Socket, SocketAddr) {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
    socket
        .bind(&SocketAddr::from((Ipv4Addr::LOCALHOST, 0)).into())
        .unwrap();
    let address = socket.local_addr().unwrap().as_socket().unwrap();
    (socket, address)
}

#[tokio::test]
async fn failures_of_oidc_show_no_secret() {
    let refusing = refusing();
    let folder = tempfile::tempdir().unwrap();
    write_token(folder.path(), OIDC_TOKEN);
    for fault in FAULTS {
        let mut server = faulty(fault, true, &[], &sts_body(&in_an_hour())).await;
        if fault == Fault::Refused {
            server.address = refusing.1;
        }
        let source = server.oidc(folder.path().join("token"));
        assert_silent(source, &server, fault).await;
    }
}

#[tokio::test]
async fn failures_of_assume_role_show_no_secret() {
    let refusing = refusing();
    for fault in FAULTS {
        let mut server = faulty(fault, true, &[], &sts_body(&in_an_hour())).await;
        if fault == Fault::Refused {
            server.address = refusing.1;
        }
        assert_silent(server.assume_role(), &server, fault).await;
    }
}

#[tokio::test]
async fn failures_of_the_metadata_service_show_no_secret() {
    let refusing = refusing();
    let before = [plain(200, METADATA_TOKEN), plain(200, "flowgate-role")];
    for fault in FAULTS {
        if fault == Fault::WrongName {
            continue;
        }
        let mut server = faulty(fault, false, &before, &metadata_body(&in_an_hour())).await;
        if fault == Fault::Refused {
            server.address = refusing.1;
        }
        assert_silent(server.ecs_role(false), &server, fault).await;
    }
}

#[tokio::test]
async fn failures_of_a_uri_show_no_secret() {
    let refusing = refusing();
    for fault in FAULTS {
        for is_tls in [true, false] {
            if fault == Fault::WrongName && !is_tls {
                continue;
            }
            let mut server = faulty(fault, is_tls, &[], &metadata_body(&in_an_hour())).await;
            if fault == Fault::Refused {
                server.address = refusing.1;
            }
            let source = server.uri(&format!("/{URI_KEY}?key={URI_KEY}"));
            assert_silent(source, &server, fault).await;
        }
    }
}

#[tokio::test]
async fn replaced_roots_count_for_the_next_connection() {
    let server = Scripted::start_tls([session()]).await;
    let others = Scripted::start_tls([]).await.roots;
    let roots = Roots::new(others);
    let fetcher = Fetcher::new(Arc::new(server.assume_role()), roots.clone());
    let own = scripted::long_lived();
    let error = fetcher.fetch(Some(&own)).await.err().unwrap();
    assert!(error.reason.starts_with("TLS failed"), "{error}");
    roots.set(server.roots.clone().unwrap());
    fetcher.fetch(Some(&own)).await.ok().unwrap();
    assert_eq!(server.requests().len(), 1);
}

//! A server of the tests: it records requests and answers each with the next answer of its script,
//! on its own connection, over TCP or TLS.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use parking_lot::Mutex;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;
use tokio_util::task::AbortOnDropHandle;

use super::fetch::Fetcher;
use super::http::Roots;
use crate::acs::time;
use crate::config::{
    AccountCredentials, AssumeRole, Credentials, CredentialsUri, EcsRole, LoadedFrom, Oidc, Role,
    SessionSource, StsEndpoint,
};
use crate::primitives::id::AccessKeyId;
use crate::primitives::secret::Secret;
use crate::upstream::TlsRoots;
use crate::upstream::tests::dialling;

/// The role of the tests.
pub(super) const ROLE: &str = "acs:ram::123456789012:role/flowgate";

/// The secrets of a session of the tests.
pub(super) const SESSION_SECRET: &str = "fake-session-secret-1";
pub(super) const SESSION_TOKEN: &str = "CAIS-fake/token+1==";

/// A server with a script. Requests that arrive after its end get no answer.
pub(super) struct Scripted {
    pub(super) address: SocketAddr,
    /// The roots to trust its certificate with.
    pub(super) roots: Option<TlsRoots>,
    requests: Arc<Mutex<Vec<Received>>>,
    _serving: AbortOnDropHandle<()>,
}

/// Returns the answer to a request, or nothing to close the connection.
type Answers = Box<dyn FnMut(&Received) -> Option<String> + Send>;

/// A request as it was received.
#[derive(Clone, Debug)]
pub(super) struct Received {
    /// Method and target.
    pub(super) line: String,
    /// Names in lower case.
    pub(super) headers: Vec<(String, String)>,
    pub(super) body: String,
}

/// An answer with these headers, besides its length.
pub(super) fn answer(status: u16, headers: &str, body: &str) -> String {
    let length = body.len();
    format!("HTTP/1.1 {status} X\r\nContent-Length: {length}\r\n{headers}\r\n{body}")
}

/// The same without headers.
pub(super) fn plain(status: u16, body: &str) -> String {
    answer(status, "", body)
}

/// The body of STS for a session that ends then.
pub(super) fn sts_body(expiration: &str) -> String {
    format!(
        r#"{{"RequestId":"6894B13B-6D71-4EF5-88FA-F32781734A7F","AssumedRoleUser":{{"Arn":"a","AssumedRoleId":"b"}},"Credentials":{{"AccessKeyId":"STS.fake1","AccessKeySecret":"{SESSION_SECRET}","SecurityToken":"{SESSION_TOKEN}","Expiration":"{expiration}"}}}}"#
    )
}

/// The body of the metadata service for a session that ends then.
pub(super) fn metadata_body(expiration: &str) -> String {
    format!(
        r#"{{"AccessKeyId":"STS.fake1","AccessKeySecret":"{SESSION_SECRET}","Expiration":"{expiration}","SecurityToken":"{SESSION_TOKEN}","LastUpdated":"2026-11-29T04:00:00Z","Code":"Success"}}"#
    )
}

/// The time in an hour.
pub(super) fn in_an_hour() -> String {
    time::format(SystemTime::now() + Duration::from_secs(3600))
}

pub(super) fn long_lived() -> Credentials {
    Credentials {
        access_key_id: AccessKeyId::new("LTAI-test-key-id-1"),
        secret: Secret::new("test-secret-1"),
        security_token: None,
        expires: None,
    }
}

pub(super) fn role(sts: StsEndpoint) -> Role {
    Role {
        arn: ROLE.to_owned(),
        session_name: "flowgate".to_owned(),
        policy: None,
        duration: None,
        sts,
    }
}

pub(super) fn assume_role(sts: StsEndpoint) -> AssumeRole {
    AssumeRole {
        from: Box::new(AccountCredentials::Loaded(long_lived(), LoadedFrom::Keys)),
        external_id: None,
        role: role(sts),
    }
}

/// A fetcher of this source that trusts these roots.
pub(super) fn fetcher(source: SessionSource, roots: Option<TlsRoots>) -> Fetcher {
    Fetcher::new(Arc::new(source), Roots::new(roots))
}

// === impl Scripted ===

impl Scripted {
    /// Over TCP.
    pub(super) async fn start(answers: impl IntoIterator<Item = String>) -> Self {
        Self::with(None, in_order(answers)).await
    }

    /// Over TLS, with a certificate for its address.
    pub(super) async fn start_tls(answers: impl IntoIterator<Item = String>) -> Self {
        Self::start_tls_for("127.0.0.1", answers).await
    }

    /// Over TLS, with a certificate for the name.
    pub(super) async fn start_tls_for(
        name: &str,
        answers: impl IntoIterator<Item = String>,
    ) -> Self {
        Self::with_tls(name, in_order(answers)).await
    }

    /// Over TLS, with an answer by request.
    pub(super) async fn answering_tls(
        answers: impl FnMut(&Received) -> Option<String> + Send + 'static,
    ) -> Self {
        Self::with_tls("127.0.0.1", Box::new(answers)).await
    }

    async fn with_tls(name: &str, answers: Answers) -> Self {
        let (acceptor, ca_file) = dialling::tls(name);
        let mut server = Self::with(Some(acceptor), answers).await;
        server.roots = Some(TlsRoots::load(Some(ca_file.path())).unwrap());
        server
    }

    async fn with(tls: Option<TlsAcceptor>, mut answers: Answers) -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let address = listener.local_addr().unwrap();
        let requests = Arc::<Mutex<Vec<Received>>>::default();
        let seen = requests.clone();
        let serving = tokio::spawn(async move {
            loop {
                let (tcp, _) = listener.accept().await.unwrap();
                match &tls {
                    None => serve(tcp, &seen, &mut answers).await,
                    Some(acceptor) => {
                        if let Ok(stream) = acceptor.accept(tcp).await {
                            serve(stream, &seen, &mut answers).await;
                        }
                    }
                }
            }
        });
        Self {
            address,
            roots: None,
            requests,
            _serving: AbortOnDropHandle::new(serving),
        }
    }

    pub(super) fn requests(&self) -> Vec<Received> {
        self.requests.lock().clone()
    }

    /// Methods and targets.
    pub(super) fn lines(&self) -> Vec<String> {
        self.requests().into_iter().map(|it| it.line).collect()
    }

    pub(super) fn sts(&self) -> StsEndpoint {
        StsEndpoint {
            host: self.address.ip().to_string(),
            port: self.address.port(),
        }
    }

    pub(super) fn oidc(&self, token_file: impl Into<PathBuf>) -> SessionSource {
        SessionSource::Oidc(Oidc {
            provider_arn: "acs:ram::123456789012:oidc-provider/ack-rrsa-c1".to_owned(),
            token_file: token_file.into(),
            role: role(self.sts()),
        })
    }

    pub(super) fn assume_role(&self) -> SessionSource {
        SessionSource::AssumeRole(assume_role(self.sts()))
    }

    pub(super) fn ecs_role(&self, allow_v1: bool) -> SessionSource {
        SessionSource::EcsRole(EcsRole {
            role: None,
            allow_v1,
            address: self.address,
        })
    }

    pub(super) fn uri(&self, target: &str) -> SessionSource {
        SessionSource::Uri(CredentialsUri {
            is_tls: self.roots.is_some(),
            host: self.address.ip().to_string(),
            port: self.address.port(),
            target: target.parse().unwrap(),
        })
    }
}

/// One answer after the other, whatever is asked.
fn in_order(answers: impl IntoIterator<Item = String>) -> Answers {
    let mut answers = answers.into_iter().collect::<Vec<_>>().into_iter();
    Box::new(move |_| answers.next())
}

/// Reads one request and writes the next answer. The connection ends with it.
async fn serve(
    mut stream: impl AsyncRead + AsyncWrite + Unpin,
    requests: &Mutex<Vec<Received>>,
    answers: &mut Answers,
) {
    let Some(request) = read(&mut stream).await else {
        return;
    };
    let answer = answers(&request);
    requests.lock().push(request);
    if let Some(answer) = answer {
        // The client closes early if the answer is too large.
        drop(stream.write_all(answer.as_bytes()).await);
    }
    drop(stream.shutdown().await);
}

async fn read(stream: &mut (impl AsyncRead + Unpin)) -> Option<Received> {
    let mut bytes = Vec::new();
    let end = loop {
        if let Some(end) = bytes.windows(4).position(|four| four == b"\r\n\r\n") {
            break end;
        }
        if stream.read_buf(&mut bytes).await.ok()? == 0 {
            return None;
        }
    };
    let head = String::from_utf8(bytes[..end].to_vec()).unwrap();
    let mut lines = head.split("\r\n");
    let line = lines.next().unwrap().strip_suffix(" HTTP/1.1").unwrap();
    let mut received = Received {
        line: line.to_owned(),
        headers: lines
            .map(|line| line.split_once(": ").unwrap())
            .map(|(name, value)| (name.to_lowercase(), value.to_owned()))
            .collect(),
        body: String::new(),
    };
    let length = received.header("content-length").unwrap_or("0");
    let whole = end + 4 + length.parse::<usize>().unwrap();
    while bytes.len() < whole {
        if stream.read_buf(&mut bytes).await.ok()? == 0 {
            return None;
        }
    }
    received.body = String::from_utf8(bytes[end + 4..].to_vec()).unwrap();
    Some(received)
}

// === impl Received ===

impl Received {
    pub(super) fn header(&self, name: &str) -> Option<&str> {
        let mut headers = self.headers.iter();
        headers
            .find(|(other, _)| other == name)
            .map(|(_, value)| &**value)
    }
}

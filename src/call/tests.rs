//! Panics and memory of a call as a whole, and what the tests of calls share: a CAMS on loopback, and
//! the calls of a client.

mod looks;
pub(crate) mod sessions;

use std::pin::Pin;
use std::task::{Context as Waking, Poll};

use http_body_util::BodyExt;
use hyper::body::Frame;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use super::*;
use crate::acs::v3::{self, Signable};
use crate::acs::{encode, time};
use crate::app::state::AppState;
use crate::config::Config;
use crate::primitives::secret::Secret;
use crate::server::bounds::CurrentBounds;
use crate::server::per_address::{ConnectionSource, OpenConnection};
use crate::server::received_body::ReceivedBody;
use crate::server::socket::{Socket, SocketIo};
use crate::server::{ConnectionServer, Handler};

/// A body that panics when it is read.
struct PanickingBody;

impl Body for PanickingBody {
    type Data = Bytes;
    type Error = std::convert::Infallible;

    fn poll_frame(
        self: Pin<&mut Self>,
        _: &mut Waking<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        panic!("the body was read")
    }
}

/// A simulated CAMS.
trait Endpoint: Send + Sync + 'static {
    /// Answers a request without a body with a status and JSON. `None` closes the connection.
    fn answer(&self, head: &str) -> impl Future<Output = Option<(u16, String)>> + Send;
}

/// The open connection of one caller.
struct Connected {
    disconnect: Disconnect,
    _caller: TcpStream,
    socket_io: SocketIo,
}

/// Serves a simulated CAMS on a free port, and returns its URL.
async fn listen(endpoint: Arc<impl Endpoint>) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    tokio::spawn(async move {
        while let Ok((connection, _)) = listener.accept().await {
            tokio::spawn(serve(endpoint.clone(), connection));
        }
    });
    url
}

async fn serve(endpoint: Arc<impl Endpoint>, mut connection: TcpStream) {
    let mut read = Vec::new();
    loop {
        while !read.ends_with(b"\r\n\r\n") {
            if connection.read_buf(&mut read).await.unwrap_or(0) == 0 {
                return;
            }
        }
        let answer = endpoint.answer(std::str::from_utf8(&read).unwrap()).await;
        read.clear();
        let Some((status, body)) = answer else {
            return;
        };
        let length = body.len();
        let answer = format!(
            "HTTP/1.1 {status} x\r\ncontent-type: application/json\r\ncontent-length: {length}\r\n\r\n{body}"
        );
        connection.write_all(answer.as_bytes()).await.unwrap();
    }
}

/// The account `acme` with a client.
fn config(upstream: &str, settings: &[(&str, &str)]) -> Config {
    let env = [
        ("FLOWGATE_UPSTREAM__URL", upstream),
        ("FLOWGATE_ACCOUNTS__0__ID", "acme"),
        ("FLOWGATE_ACCOUNTS__0__ACCESS_KEY_ID", "LTAI-acme-1"),
        ("FLOWGATE_ACCOUNTS__0__ACCESS_KEY_SECRET__ENV", "SECRET"),
        ("FLOWGATE_CLIENTS__0__ACCESS_KEY_ID", "team-a"),
        ("FLOWGATE_CLIENTS__0__ACCESS_KEY_SECRET__ENV", "SECRET"),
        ("FLOWGATE_CLIENTS__0__ACCOUNT", "acme"),
        ("FLOWGATE_CLIENTS__0__ACTIONS", "*"),
        ("SECRET", "a-secret"),
    ];
    let env = env.iter().chain(settings);
    let env = env.map(|(name, value)| ((*name).into(), (*value).into()));
    crate::config::load(None, env).unwrap().config
}

/// A call of the client, signed by version 3.
fn signed(action: &str, hold: &str, params: &[(&str, &str)]) -> Box<Request<Full<Bytes>>> {
    let hash = v3::hash(b"");
    let date = time::format(SystemTime::now());
    let nonce = format!("nonce-{}", fastrand::u128(..));
    let headers = [
        ("host", "127.0.0.1:8080"),
        ("x-acs-action", action),
        ("x-acs-content-sha256", &hash),
        ("x-acs-date", &date),
        ("x-acs-signature-nonce", &nonce),
        ("x-acs-version", "2020-06-06"),
    ];
    let signable = Signable {
        method: "GET",
        query: params.to_vec(),
        headers: headers
            .iter()
            .map(|(name, value)| (*name, value.as_bytes()))
            .collect(),
        body_hash: &hash,
    };
    let authorization = signable.authorization("team-a", &Secret::new("a-secret"));
    let target = format!("/?{}", encode::pairs(params.iter().copied()));
    let mut request = Request::get(target).header("x-flowgate-hold", hold);
    for (name, value) in headers {
        request = request.header(name, value);
    }
    let request = request.header("authorization", authorization);
    Box::new(request.body(Full::default()).unwrap())
}

// === impl Connected ===

impl Connected {
    async fn to(services: &CallServices) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let caller = TcpStream::connect(address).await.unwrap();
        let socket = Socket::Tcp(listener.accept().await.unwrap().0);
        let open = &services.metrics.connections.open;
        let source = OpenConnection::new(ConnectionSource::Local, open);
        let (socket_io, disconnect) = SocketIo::new(socket, source);
        Self {
            disconnect,
            _caller: caller,
            socket_io,
        }
    }

    /// Makes a call over the connection, which stays open until the answer.
    async fn call(
        self,
        services: Arc<CallServices>,
        request: Box<Request<Full<Bytes>>>,
    ) -> Response<Full<Bytes>> {
        call(services, request, self.disconnect.clone())
            .await
            .unwrap()
    }
}

/// A Flowgate with an open connection of a caller.
struct Harness {
    services: Arc<CallServices>,
    bounds: CurrentBounds,
    connected: Connected,
}

impl Harness {
    async fn new() -> Self {
        let loaded =
            crate::config::load(None, [("FLOWGATE_LIMITS__PRESET".into(), "none".into())]).unwrap();
        let state = AppState::new(loaded.config).unwrap();
        let services = state.calls().clone();
        Self {
            connected: Connected::to(&services).await,
            services,
            bounds: state.bounds(),
        }
    }
}

#[tokio::test]
async fn a_panic_ends_only_its_own_call() {
    let Harness {
        services,
        bounds: _,
        connected,
    } = Harness::new().await;
    let timestamp = time::format(SystemTime::now()).replace(':', "%3A");
    let target = format!(
        "/?Action=CreateFlow&Version=2020-06-06&AccessKeyId=K&Signature=S&SignatureMethod=HMAC-SHA1\
         &SignatureVersion=1.0&SignatureNonce=n&Format=JSON&Timestamp={timestamp}"
    );
    let request = Request::post(target)
        .header("host", "127.0.0.1:8080")
        .header("content-type", "application/x-www-form-urlencoded")
        .header("content-length", "1")
        .body(PanickingBody)
        .unwrap();
    let disconnect = connected.disconnect.clone();
    let reply = call(services, Box::new(request), disconnect).await.unwrap();
    let status = reply.status();
    let body = reply.into_body().collect().await.unwrap().to_bytes();
    let body: serde_json::Value = serde_json::from_slice(&body).unwrap();
    assert_eq!(
        (status.as_u16(), body["Code"].as_str()),
        (500, Some("Flowgate.Internal")),
        "{body}"
    );
}

/// A handler of the same size as that of the proxy port.
#[derive(Clone)]
struct Service(Arc<CallServices>);

impl Handler for Service {
    type Body = Full<Bytes>;

    async fn answer(
        self,
        request: Box<Request<ReceivedBody>>,
        disconnect: Disconnect,
    ) -> Result<Response<Full<Bytes>>, CallerDisconnected> {
        call(self.0, request, disconnect).await
    }
}

/// Tens of thousands of calls may be queued. An allocator rounds each allocation up to a size
/// class, so one word more can cost 256 bytes per call; benches/side_by_side measures the total.
#[cfg(target_pointer_width = "64")]
#[tokio::test]
async fn a_queued_call_and_its_connection_fit_into_1_kib_each() {
    /// Bytes that tokio adds to the future of a task: header, scheduler, tracker, trailer.
    const TASK: usize = 112;
    /// Bytes that the connection adds to the future of a call to know the phase of the request.
    const ANSWER_GUARD: usize = 16;
    let Harness {
        services,
        bounds,
        connected,
    } = Harness::new().await;
    let Connected {
        disconnect,
        _caller,
        socket_io,
    } = connected;
    let call = call(
        services.clone(),
        Box::new(Request::new(Full::<Bytes>::default())),
        disconnect.clone(),
    );
    assert!(
        size_of_val(&call) + ANSWER_GUARD <= 1024,
        "the future of a call has {} bytes",
        size_of_val(&call)
    );
    let server = ConnectionServer::new(
        bounds,
        None,
        services.metrics.clone(),
        services.phases.clone(),
        Phase::Draining,
    );
    let connection = server.http(socket_io, disconnect, Service(services));
    assert!(
        size_of_val(&connection) + TASK <= 1024,
        "the future of a connection has {} bytes",
        size_of_val(&connection)
    );
}

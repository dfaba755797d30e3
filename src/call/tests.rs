//! Panics and memory of a call as a whole.

mod looks;
pub(crate) mod sessions;

use std::pin::Pin;
use std::task::{Context as Waking, Poll};

use http_body_util::BodyExt;
use hyper::body::Frame;
use tokio::net::{TcpListener, TcpStream};

use super::*;
use crate::acs::time;
use crate::app::state::AppState;
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

/// A Flowgate with an open connection of a caller.
struct Harness {
    services: Arc<CallServices>,
    bounds: CurrentBounds,
    _caller: TcpStream,
    socket_io: SocketIo,
    disconnect: Disconnect,
}

impl Harness {
    async fn new() -> Self {
        let loaded =
            crate::config::load(None, [("FLOWGATE_LIMITS__PRESET".into(), "none".into())]).unwrap();
        let state = AppState::new(loaded.config).unwrap();
        let services = state.calls().clone();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let caller = TcpStream::connect(listener.local_addr().unwrap())
            .await
            .unwrap();
        let socket = Socket::Tcp(listener.accept().await.unwrap().0);
        let (socket_io, disconnect) = SocketIo::new(
            socket,
            OpenConnection::new(ConnectionSource::Local, &services.metrics.connections.open),
        );
        Self {
            services,
            bounds: state.bounds(),
            _caller: caller,
            socket_io,
            disconnect,
        }
    }
}

#[tokio::test]
async fn a_panic_ends_only_its_own_call() {
    let Harness {
        services,
        bounds: _,
        disconnect,
        socket_io: _wire,
        _caller,
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
    let reply = call(services.clone(), Box::new(request), disconnect)
        .await
        .unwrap();
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
        disconnect,
        socket_io,
        _caller,
    } = Harness::new().await;
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

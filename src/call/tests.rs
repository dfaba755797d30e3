//! What a call's steps leave to the one who calls them: a panic costs one call.

use std::pin::Pin;
use std::task::{Context as Waking, Poll};

use http_body_util::BodyExt;
use hyper::body::{Frame, Incoming};
use tokio::net::{TcpListener, TcpStream};

use super::*;
use crate::acs::time;
use crate::app::state::AppState;
use crate::server::bounds::Present;
use crate::server::place::Held;
use crate::server::socket::{Socket, Wire};
use crate::server::{Answer, Terms};

/// A body that nobody should read.
struct Trap;

impl Body for Trap {
    type Data = Bytes;
    type Error = std::convert::Infallible;

    fn poll_frame(
        self: Pin<&mut Self>,
        _: &mut Waking<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        panic!("the trap")
    }
}

/// A Flowgate, and a caller's connection that is open.
struct Scene {
    parts: Arc<CallServices>,
    bounds: Present,
    _caller: TcpStream,
    wire: Wire,
    hangup: Hangup,
}

impl Scene {
    async fn new() -> Self {
        let loaded =
            crate::config::load(None, [("FLOWGATE_LIMITS__PRESET".into(), "none".into())]).unwrap();
        let state = AppState::new(loaded.config).unwrap();
        let parts = state.calls().clone();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let caller = TcpStream::connect(listener.local_addr().unwrap())
            .await
            .unwrap();
        let socket = Socket::Tcp(listener.accept().await.unwrap().0);
        let (wire, hangup) = Wire::new(socket, Held::new(None, &parts.metrics.connections.open));
        Self {
            parts,
            bounds: state.bounds(),
            _caller: caller,
            wire,
            hangup,
        }
    }
}

#[tokio::test]
async fn a_panic_costs_one_call() {
    let Scene {
        parts,
        bounds: _,
        hangup,
        wire: _wire,
        _caller,
    } = Scene::new().await;
    let timestamp = time::format(SystemTime::now()).replace(':', "%3A");
    let target = format!(
        "/?Action=CreateFlow&Version=2020-06-06&AccessKeyId=K&Signature=S&SignatureMethod=HMAC-SHA1\
         &SignatureVersion=1.0&SignatureNonce=n&Timestamp={timestamp}"
    );
    let request = Request::post(target)
        .header("host", "127.0.0.1:8080")
        .header("content-type", "application/x-www-form-urlencoded")
        .header("content-length", "1")
        .body(Trap)
        .unwrap();
    let reply = call(parts.clone(), Box::new(request), hangup)
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

/// As large as the proxy port's.
#[derive(Clone)]
struct Service(Arc<CallServices>);

impl Answer for Service {
    type Body = Full<Bytes>;

    async fn answer(
        self,
        request: Box<Request<Incoming>>,
        hangup: Hangup,
    ) -> Result<Response<Full<Bytes>>, Gone> {
        call(self.0, request, hangup).await
    }
}

/// Calls wait by the ten thousand. An allocator rounds what each holds up to a class of sizes, and one word more can cost a
/// quarter of a KiB; benches/side_by_side measures the whole.
#[cfg(target_pointer_width = "64")]
#[tokio::test]
async fn what_waits_fits_into_a_kib_each() {
    /// What tokio adds to a task's future: its header, the scheduler, a tracker, the trailer.
    const TASK: usize = 112;
    /// What says on the connection whose turn it is.
    const TURN: usize = 16;
    let Scene {
        parts,
        bounds,
        hangup,
        wire,
        _caller,
    } = Scene::new().await;
    let call = call(
        parts.clone(),
        Box::new(Request::new(Full::<Bytes>::default())),
        hangup.clone(),
    );
    assert!(
        size_of_val(&call) + TURN <= 1024,
        "a call's future has {} bytes",
        size_of_val(&call)
    );
    let phases = (parts.phases.clone(), Phase::Draining);
    let terms = Terms::new(bounds, None, parts.metrics.clone(), phases);
    let connection = terms.http(wire, hangup, Service(parts));
    assert!(
        size_of_val(&connection) + TASK <= 1024,
        "a connection's future has {} bytes",
        size_of_val(&connection)
    );
}

//! What a call's steps leave to the one who calls them: a panic costs one call.

use std::pin::Pin;
use std::task::{Context as Waking, Poll};

use http_body_util::BodyExt;
use hyper::body::Frame;
use tokio::net::{TcpListener, TcpStream};

use super::*;
use crate::acs::time;
use crate::flow::listen::socket::{Socket, Wire};

/// A body that nobody should read.
struct Trap;

impl Body for Trap {
    type Data = Bytes;
    type Error = std::convert::Infallible;

    fn poll_frame(self: Pin<&mut Self>, _: &mut Waking<'_>) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        panic!("the trap")
    }
}

#[tokio::test]
async fn a_panic_costs_one_call() {
    let loaded = crate::config::load(None, [("FLOWGATE_LIMITS__PRESET".into(), "none".into())]).unwrap();
    let parts = Arc::new(Parts::new(loaded.config).unwrap());
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let _caller = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
    let socket = Socket::Tcp(listener.accept().await.unwrap().0);
    let (_wire, hangup) = Wire::new(socket);

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
    let reply = call(&parts, Box::new(request), hangup).await.unwrap();
    let status = reply.status();
    let body = reply.into_body().collect().await.unwrap().to_bytes();
    let body: serde_json::Value = serde_json::from_slice(&body).unwrap();
    assert_eq!((status.as_u16(), body["Code"].as_str()), (500, Some("Flowgate.Internal")), "{body}");
}

//! The floor of any hyper proxy: hyper's server, a small pool of client connections, and nothing in
//! between. Or without the pool: the memory of a waiting call.

use std::cell::RefCell;
use std::net::SocketAddr;
use std::rc::Rc;

use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::client::conn::http1::{self as client, SendRequest};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use tokio::net::{TcpListener, TcpStream};
use tokio::task::LocalSet;

type Pool = Rc<RefCell<Vec<SendRequest<Incoming>>>>;

/// Serves until the process is killed. Without an upstream, every call waits for ever.
pub(crate) async fn serve(upstream: Option<SocketAddr>) {
    LocalSet::new().run_until(accept(upstream)).await;
}

async fn accept(upstream: Option<SocketAddr>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    crate::process::say(&listener.local_addr().unwrap().to_string());
    let pool = Pool::default();
    loop {
        let (stream, _) = listener.accept().await.unwrap();
        stream.set_nodelay(true).unwrap();
        let pool = pool.clone();
        let service = service_fn(move |request| forward(pool.clone(), upstream, request));
        tokio::task::spawn_local(async move {
            drop(
                http1::Builder::new()
                    .serve_connection(TokioIo::new(stream), service)
                    .await,
            );
        });
    }
}

async fn forward(
    pool: Pool,
    upstream: Option<SocketAddr>,
    request: Request<Incoming>,
) -> Result<Response<Full<Bytes>>, hyper::Error> {
    let Some(upstream) = upstream else {
        return std::future::pending().await;
    };
    let pooled = pool.borrow_mut().pop();
    let mut sender = match pooled {
        Some(sender) => sender,
        None => connect(upstream).await,
    };
    sender.ready().await?;
    let (head, body) = sender.send_request(request).await?.into_parts();
    let body = body.collect().await?.to_bytes();
    pool.borrow_mut().push(sender);
    Ok(Response::from_parts(head, Full::new(body)))
}

async fn connect(upstream: SocketAddr) -> SendRequest<Incoming> {
    let stream = TcpStream::connect(upstream).await.unwrap();
    stream.set_nodelay(true).unwrap();
    let (sender, connection) = client::handshake(TokioIo::new(stream)).await.unwrap();
    tokio::task::spawn_local(connection);
    sender
}

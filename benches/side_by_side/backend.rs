//! A minimal backend: the least code that answers CreateFlow on a kept connection, so that the
//! proxies dominate the measurement.

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

const BODY: &str = r#"{"AccessDeniedDetail":"None","RequestId":"90E63D28-E31D-1EB2-8939-A94866411B2O","Message":"OK","Data":{"FlowId":"664473839292","FlowName":"flow"},"Code":"OK","Success":true}"#;

/// Serves until the process is killed.
pub(crate) async fn serve() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    crate::process::say(&listener.local_addr().unwrap().to_string());
    let answer = format!(
        "HTTP/1.1 200 OK\r\ncontent-type: application/json;charset=utf-8\r\ncontent-length: {}\r\n\
         x-acs-request-id: 90E63D28-E31D-1EB2-8939-A94866411B2O\r\nx-acs-trace-id: 6a1f2b\r\n\r\n{BODY}",
        BODY.len()
    );
    let answer: &'static [u8] = Box::leak(answer.into_bytes().into_boxed_slice());
    loop {
        let (stream, _) = listener.accept().await.unwrap();
        stream.set_nodelay(true).unwrap();
        tokio::spawn(connection(stream, answer));
    }
}

/// Requests have no body and come one at a time.
async fn connection(mut stream: TcpStream, answer: &'static [u8]) {
    let mut seen = Vec::with_capacity(8192);
    while let Ok(1..) = stream.read_buf(&mut seen).await {
        if seen.ends_with(b"\r\n\r\n") {
            seen.clear();
            if stream.write_all(answer).await.is_err() {
                return;
            }
        }
    }
}

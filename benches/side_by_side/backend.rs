//! A minimal backend: the least code that answers CreateFlow on a kept connection, so that the
//! proxies dominate the measurement. Each answer has another FlowId.

use std::sync::atomic::{AtomicU64, Ordering};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

const FLOW_ID: &str = "664473839292";
const BODY: &str = r#"{"AccessDeniedDetail":"None","RequestId":"90E63D28-E31D-1EB2-8939-A94866411B2O","Message":"OK","Data":{"FlowId":"664473839292","FlowName":"flow"},"Code":"OK","Success":true}"#;

/// The number of answers.
static ANSWERS: AtomicU64 = AtomicU64::new(0);

/// Serves until the process is killed.
pub(crate) async fn serve() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    crate::process::say(&listener.local_addr().unwrap().to_string());
    let answer = format!(
        "HTTP/1.1 200 OK\r\ncontent-type: application/json;charset=utf-8\r\ncontent-length: {}\r\n\
         x-acs-request-id: 90E63D28-E31D-1EB2-8939-A94866411B2O\r\nx-acs-trace-id: 6a1f2b\r\n\r\n{BODY}",
        BODY.len()
    );
    let flow_id = answer.find(FLOW_ID).expect("the answer has a FlowId");
    let answer = Answer {
        bytes: answer.into_bytes(),
        flow_id,
    };
    loop {
        let (stream, _) = listener.accept().await.unwrap();
        stream.set_nodelay(true).unwrap();
        tokio::spawn(connection(stream, answer.clone()));
    }
}

/// A complete response.
#[derive(Clone)]
struct Answer {
    bytes: Vec<u8>,
    /// Where its FlowId begins.
    flow_id: usize,
}

/// Requests have no body and come one at a time.
async fn connection(mut stream: TcpStream, mut answer: Answer) {
    let mut seen = Vec::with_capacity(8192);
    while let Ok(1..) = stream.read_buf(&mut seen).await {
        if seen.ends_with(b"\r\n\r\n") {
            seen.clear();
            if stream.write_all(answer.next()).await.is_err() {
                return;
            }
        }
    }
}

// === impl Answer ===

impl Answer {
    fn next(&mut self) -> &[u8] {
        let mut number = ANSWERS.fetch_add(1, Ordering::Relaxed);
        let digits = &mut self.bytes[self.flow_id..][..FLOW_ID.len()];
        for digit in digits.iter_mut().rev() {
            *digit = b'0' + u8::try_from(number % 10).expect("one digit");
            number /= 10;
        }
        &self.bytes
    }
}

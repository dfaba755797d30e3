//! An HTTP proxy that opens tunnels, for tests. It records what it is asked for, can refuse, stall
//! or break, and demands credentials if it has some.

use std::net::SocketAddr;
use std::sync::Arc;

use parking_lot::Mutex;
use tokio::io::{AsyncReadExt, AsyncWriteExt, copy_bidirectional};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;

/// A proxy that ends with the test.
pub(crate) struct ConnectProxy {
    pub(crate) address: SocketAddr,
    behaviour: Arc<watch::Sender<Behaviour>>,
    heads: Arc<Mutex<Vec<String>>>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Behaviour {
    /// Opens every tunnel. Tunnels that are open break when the behaviour changes.
    Opens,
    /// Opens tunnels for requests with this `Proxy-Authorization`.
    Demands(&'static str),
    /// Answers every request with these bytes, and closes.
    Says(&'static [u8]),
    /// Never answers.
    Stalls,
}

const DENIED: &[u8] = b"HTTP/1.1 407 Proxy Authentication Required\r\nProxy-Authenticate: Basic realm=\"x\"\r\nContent-Length: 0\r\n\r\n";
const OPENED: &[u8] = b"HTTP/1.1 200 Connection established\r\n\r\n";

// === impl ConnectProxy ===

impl ConnectProxy {
    pub(crate) async fn start(behaviour: Behaviour) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        Self::on(listener, behaviour)
    }

    pub(crate) fn on(listener: TcpListener, behaviour: Behaviour) -> Self {
        let address = listener.local_addr().unwrap();
        let behaviour = Arc::new(watch::Sender::new(behaviour));
        let heads = Arc::<Mutex<Vec<String>>>::default();
        let (now, seen) = (behaviour.clone(), heads.clone());
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                tokio::spawn(serve(stream, now.subscribe(), seen.clone()));
            }
        });
        Self {
            address,
            behaviour,
            heads,
        }
    }

    pub(crate) fn behaves(&self, behaviour: Behaviour) {
        self.behaviour.send_replace(behaviour);
    }

    /// The heads of all requests so far.
    pub(crate) fn heads(&self) -> Vec<String> {
        self.heads.lock().clone()
    }
}

async fn serve(
    mut near: TcpStream,
    mut behaviour: watch::Receiver<Behaviour>,
    heads: Arc<Mutex<Vec<String>>>,
) {
    let Some(head) = head(&mut near).await else {
        return;
    };
    heads.lock().push(head.clone());
    let now = behaviour.borrow_and_update().clone();
    let is_allowed = match now {
        Behaviour::Opens => true,
        Behaviour::Demands(credentials) => {
            head.contains(&format!("\r\nProxy-Authorization: {credentials}\r\n"))
        }
        Behaviour::Says(answer) => {
            near.write_all(answer).await.ok();
            return;
        }
        Behaviour::Stalls => {
            while near.read_u8().await.is_ok() {}
            return;
        }
    };
    if !is_allowed {
        near.write_all(DENIED).await.ok();
        return;
    }
    let target = head.split(' ').nth(1).unwrap();
    let Ok(mut far) = TcpStream::connect(target).await else {
        near.write_all(b"HTTP/1.1 502 Bad Gateway\r\n\r\n")
            .await
            .ok();
        return;
    };
    near.write_all(OPENED).await.ok();
    tokio::select! {
        _ = copy_bidirectional(&mut near, &mut far) => {}
        _ = behaviour.changed() => {}
    }
}

/// Reads up to the end of the head; nothing is sent after it before the tunnel is open.
async fn head(stream: &mut TcpStream) -> Option<String> {
    let mut bytes = Vec::new();
    while !bytes.ends_with(b"\r\n\r\n") {
        let read = stream.read_buf(&mut bytes).await.ok()?;
        if read == 0 {
            return None;
        }
    }
    let text = String::from_utf8(bytes).unwrap();
    assert_eq!(text.matches("\r\n\r\n").count(), 1, "{text}");
    Some(text)
}

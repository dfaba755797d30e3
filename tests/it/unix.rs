//! The program on Unix sockets, with an independent HTTP client: the socket's mode, and its file
//! when one process follows another.

use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use bytes::Bytes;
use cams_sim::{Running, Settings, Sim};
use http_body_util::{BodyExt, Full};
use hyper::Request;
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use tokio::net::UnixStream;
use tokio::process::Command;

use crate::caller::{Call, KEY, SECRET};
use crate::process::Process;

/// Starts with a permissive umask.
async fn start(sim: &Running, socket: &Path, more: &str) -> Process {
    let folder = tempfile::tempdir().unwrap();
    let config = folder.path().join("flowgate.toml");
    let toml = format!(
        "log = {{ format = \"json\" }}\n[listen]\nproxy = \"unix:{}\"\nadmin = \"127.0.0.1:0\"\nnames = [\"localhost\"]\n{more}\n\
         [upstream]\nurl = \"{}\"\n[[accounts]]\nid = \"acme\"\naccess_key_id = \"{KEY}\"\naccess_key_secret = {{ env = \"MANAGED\" }}",
        socket.display(),
        sim.url()
    );
    std::fs::write(&config, toml).unwrap();
    let mut command = Command::new("sh");
    command
        .args([
            "-c",
            "umask 000; exec \"$0\" --config \"$1\"",
            env!("CARGO_BIN_EXE_flowgate"),
        ])
        .arg(&config);
    Process::launch(command, folder).await
}

/// The status of CreateFlow.
async fn create(socket: &Path, name: &str) -> u16 {
    let stream = UnixStream::connect(socket).await.unwrap();
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await.unwrap();
    tokio::spawn(connection);
    let call = Call::v3("localhost", name);
    let mut request = Request::post(call.target());
    for (name, value) in &call.headers {
        request = request.header(name, value);
    }
    let response = sender
        .send_request(request.body(Full::new(Bytes::from(call.body))).unwrap())
        .await
        .unwrap();
    let status = response.status().as_u16();
    let body = response.into_body().collect().await.unwrap().to_bytes();
    let body: serde_json::Value = serde_json::from_slice(&body).unwrap();
    assert_eq!(
        body["Data"]["FlowName"].as_str(),
        (status == 200).then_some(name),
        "{body}"
    );
    status
}

fn mode(path: &Path) -> u32 {
    std::fs::metadata(path).unwrap().permissions().mode() & 0o7777
}

#[tokio::test]
async fn a_unix_socket_serves_calls_and_is_removed_at_the_end() {
    let sim = Sim::start(Settings::default().with_key(KEY, SECRET, "acme"))
        .await
        .unwrap();
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("flowgate.sock");
    let process = start(&sim, &socket, "").await;
    assert_eq!((mode(&socket), create(&socket, "one").await), (0o660, 200));
    // A killed process leaves its socket; the next one replaces it.
    process.kill().await;
    assert!(socket.exists() && UnixStream::connect(&socket).await.is_err());
    let process = start(&sim, &socket, "socket_mode = \"600\"").await;
    assert_eq!((mode(&socket), create(&socket, "two").await), (0o600, 200));
    assert!(process.terminate().await.success());
    assert!(!socket.exists());
}

#[tokio::test]
async fn the_unix_socket_of_a_successor_is_kept() {
    let sim = Sim::start(Settings::default().with_key(KEY, SECRET, "acme"))
        .await
        .unwrap();
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("flowgate.sock");
    let old = start(&sim, &socket, "").await;
    std::fs::remove_file(&socket).unwrap();
    let successor = start(&sim, &socket, "").await;
    assert!(old.terminate().await.success());
    assert_eq!(create(&socket, "to the successor").await, 200);
    assert!(successor.terminate().await.success());
    assert!(!socket.exists());
}

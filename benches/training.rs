//! The load that a profile-guided build is trained with, by `scripts/release/pgo`. It starts a Flowgate
//! that was built with counters, and sends it the kinds of calls that users have: managed and
//! relayed, both signature versions, small and large heads, forms and JSON bodies, idempotency keys,
//! kept connections and new ones, with TLS and without. Flowgate writes its counters when it ends.

#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed training")]
#![expect(clippy::print_stdout, reason = "the result is a line per load")]

#[allow(dead_code, reason = "the tests' caller does more than send")]
#[path = "../tests/it/caller.rs"]
mod caller;

use std::fmt::Write;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use clap::Parser;
use rcgen::{CertificateParams, KeyPair};
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::task::JoinSet;
use tokio_rustls::TlsConnector;

use crate::caller::{Call, nonce, read_reply};

#[derive(Parser)]
struct Options {
    /// Passed by cargo.
    #[arg(long, hide = true)]
    bench: bool,
    /// The program to train.
    #[arg(long)]
    flowgate: PathBuf,
    /// Calls of each load.
    #[arg(long, default_value_t = 1_000)]
    calls: usize,
}

/// The calls of one kind.
struct Load {
    name: &'static str,
    /// The number of `Options::calls` that it has: its share of the training.
    weight: usize,
    /// Whether each call has a connection of its own.
    is_new: bool,
    call: fn(hosts: &Hosts, index: usize) -> Call,
}

/// What callers name as the host.
struct Hosts {
    /// Of a managed call: Flowgate.
    flowgate: String,
    /// Of a relayed call, whose signature is for the endpoint.
    upstream: String,
}

/// The process, which ends with this.
struct Trained(Child);

/// Enough accounts that few calls wait for a token.
const ACCOUNTS: usize = 3_000;
const CONNECTIONS: usize = 32;
const NAME: &str = "localhost";
const ANSWER: &str = r#"{"AccessDeniedDetail":"None","RequestId":"90E63D28-E31D-1EB2-8939-A94866411B2O","Message":"OK","Data":{"FlowId":"664473839292","FlowName":"flow"},"Code":"OK","Success":true}"#;
const THROTTLED: &str = r#"{"RequestId":"90E63D28-E31D-1EB2-8939-A94866411B2O","Code":"System.LimitControl","Message":"The request was denied due to system flow control."}"#;
/// The backend refuses one call in this number.
const THROTTLE_EVERY: usize = 500;

const LOADS: [Load; 10] = [
    Load {
        name: "managed, version 3, query",
        weight: 6,
        is_new: false,
        call: |hosts, index| v3(hosts, index, true, |_| {}),
    },
    Load {
        name: "managed, version 1, form",
        weight: 3,
        is_new: false,
        call: |hosts, index| v1(hosts, index, true),
    },
    Load {
        name: "relayed, version 3, query",
        weight: 6,
        is_new: false,
        call: |hosts, index| v3(hosts, index, false, |_| {}),
    },
    Load {
        name: "relayed, version 1, form",
        weight: 3,
        is_new: false,
        call: |hosts, index| v1(hosts, index, false),
    },
    Load {
        name: "managed, version 3, form",
        weight: 1,
        is_new: false,
        call: |hosts, index| {
            v3(hosts, index, true, |call| {
                call.push("content-type", "application/x-www-form-urlencoded");
                call.body = format!("FlowJSON={}", caller::encode(&flow(2_000))).into_bytes();
            })
        },
    },
    Load {
        name: "managed, version 3, JSON",
        weight: 1,
        is_new: false,
        call: |hosts, index| {
            v3(hosts, index, true, |call| {
                call.push("content-type", "application/json; charset=utf-8");
                call.body = format!("{{\"FlowJSON\":{}}}", flow(2_000)).into_bytes();
            })
        },
    },
    Load {
        name: "relayed, large query",
        weight: 1,
        is_new: false,
        call: |hosts, index| {
            v3(hosts, index, false, |call| {
                call.query.push(("FlowJSON".into(), flow(4_000)));
            })
        },
    },
    Load {
        name: "managed, many headers",
        weight: 1,
        is_new: false,
        call: |hosts, index| {
            let mut call = v3(hosts, index, true, |_| {});
            for number in 0..40 {
                call.push(&format!("x-trace-{number}"), &"0123456789abcdef".repeat(4));
            }
            call
        },
    },
    Load {
        name: "managed, idempotency keys",
        weight: 2,
        is_new: false,
        call: |hosts, index| {
            let mut call = v3(hosts, index, true, |_| {});
            call.push("idempotency-key", &nonce());
            call
        },
    },
    Load {
        name: "managed, new connections",
        weight: 1,
        is_new: true,
        call: |hosts, index| v3(hosts, index, true, |_| {}),
    },
];

fn main() {
    let options = Options::parse();
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    runtime.block_on(async {
        train(&options, false).await;
        train(&options, true).await;
    });
}

/// Trains one process.
async fn train(options: &Options, with_tls: bool) {
    let upstream = backend().await;
    let folder = tempfile::tempdir().unwrap();
    let tls = with_tls.then(|| tls(folder.path()));
    let (_process, to) = start(&options.flowgate, upstream, folder.path(), with_tls).await;
    // With TLS the connections are other code; the calls are the same.
    let calls = if with_tls {
        options.calls / 4
    } else {
        options.calls
    };
    let next = Arc::new(AtomicUsize::new(0));
    let hosts = Arc::new(Hosts {
        flowgate: to.to_string(),
        upstream: upstream.to_string(),
    });
    for load in &LOADS {
        let failed = Arc::new(AtomicUsize::new(0));
        let mut connections = JoinSet::new();
        for _ in 0..CONNECTIONS {
            let calls = calls * load.weight / CONNECTIONS;
            let (next, failed) = (next.clone(), failed.clone());
            let (hosts, tls) = (hosts.clone(), tls.clone());
            connections.spawn(async move {
                let mut left = calls;
                while left > 0 {
                    let now = if load.is_new { 1 } else { left };
                    let stream = tokio::net::TcpStream::connect(to).await.unwrap();
                    stream.set_nodelay(true).unwrap();
                    let stream: Box<dyn Stream> = match &tls {
                        None => Box::new(stream),
                        Some(tls) => {
                            let name = ServerName::try_from(NAME).unwrap();
                            Box::new(tls.connect(name, stream).await.unwrap())
                        }
                    };
                    connection(stream, load, now, &hosts, &next, &failed).await;
                    left -= now;
                }
            });
        }
        connections.join_all().await;
        let transport = if with_tls { "TLS" } else { "plain" };
        let (calls, failed) = (calls * load.weight, failed.load(Ordering::Relaxed));
        println!("{transport}, {}: {calls}, {failed} refused", load.name);
        // Those of relayed calls that the backend has throttled.
        assert!(failed <= calls / THROTTLE_EVERY * 2 + 2, "too many");
    }
}

trait Stream: AsyncRead + AsyncWrite + Unpin + Send {}

impl<T: AsyncRead + AsyncWrite + Unpin + Send> Stream for T {}

/// Sends calls over one connection.
async fn connection(
    mut stream: Box<dyn Stream>,
    load: &Load,
    calls: usize,
    hosts: &Hosts,
    next: &AtomicUsize,
    failed: &AtomicUsize,
) {
    for _ in 0..calls {
        let call = (load.call)(hosts, next.fetch_add(1, Ordering::Relaxed));
        stream.write_all(&call.bytes()).await.unwrap();
        let reply = read_reply(&mut stream).await.expect("an answer");
        if reply.status != 200 && failed.fetch_add(1, Ordering::Relaxed) == 0 {
            println!("{}: {} {}", load.name, reply.status, reply.body);
        }
    }
}

/// Managed keys are used in turn; a relayed one is used by a few calls.
fn key(index: usize, is_managed: bool) -> (String, String) {
    if is_managed {
        let account = index % ACCOUNTS;
        (format!("LTAI{account:08}"), format!("secret-{account:08}"))
    } else {
        (format!("LTAI-relayed-{}", index / 4), "a-secret".into())
    }
}

fn v3(hosts: &Hosts, index: usize, is_managed: bool, change: fn(&mut Call)) -> Call {
    let (key, secret) = key(index, is_managed);
    let query = [
        ("Categories", "[\"SIGN_UP\"]"),
        ("FlowName", "a flow of the training"),
    ];
    let change = |call: &mut Call| {
        call.push(
            "user-agent",
            "AlibabaCloud (Linux; x86_64) Python/3.11.2 Core/0.4.4 TeaDSL/2",
        );
        change(call);
    };
    Call::v3_with(hosts.of(is_managed), &query, change, (&key, &secret))
}

fn v1(hosts: &Hosts, index: usize, is_managed: bool) -> Call {
    let (key, secret) = key(index, is_managed);
    let form = [
        ("Categories", "[\"SIGN_UP\"]"),
        ("FlowName", "a flow of the training"),
    ];
    Call::v1_with(hosts.of(is_managed), &form, |_| {}, (&key, &secret))
}

/// A flow as JSON, about as long as asked for.
fn flow(length: usize) -> String {
    let screen = r#"{"id":"WELCOME","title":"Sign up","terminal":true,"data":{}}"#;
    let screens = vec![screen; length / screen.len()].join(",");
    format!(r#"{{"version":"6.0","screens":[{screens}]}}"#)
}

/// Answers every call, and refuses a few, until the program ends.
async fn backend() -> SocketAddr {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        let answers = Arc::new(AtomicUsize::new(1));
        loop {
            let (stream, _) = listener.accept().await.unwrap();
            stream.set_nodelay(true).unwrap();
            tokio::spawn(answer_all(stream, answers.clone()));
        }
    });
    address
}

async fn answer_all(mut stream: tokio::net::TcpStream, answers: Arc<AtomicUsize>) {
    let mut seen = Vec::with_capacity(64 * 1024);
    while let Ok(1..) = stream.read_buf(&mut seen).await {
        if !is_whole(&seen) {
            continue;
        }
        seen.clear();
        let count = answers.fetch_add(1, Ordering::Relaxed);
        let (status, body) = if count.is_multiple_of(THROTTLE_EVERY) {
            ("400 Bad Request", THROTTLED)
        } else {
            ("200 OK", ANSWER)
        };
        let answer = format!(
            "HTTP/1.1 {status}\r\ncontent-type: application/json;charset=utf-8\r\ncontent-length: {}\r\n\
             x-acs-request-id: 90E63D28-E31D-1EB2-8939-A94866411B2O\r\nx-acs-trace-id: 6a1f2b\r\n\r\n{body}",
            body.len()
        );
        if stream.write_all(answer.as_bytes()).await.is_err() {
            return;
        }
    }
}

/// Whether a request is complete. Flowgate sends its length, if it has a body.
fn is_whole(seen: &[u8]) -> bool {
    let Some(end) = seen.windows(4).position(|part| part == b"\r\n\r\n") else {
        return false;
    };
    let head = str::from_utf8(&seen[..end]).unwrap().to_ascii_lowercase();
    let length = head
        .lines()
        .find_map(|line| line.strip_prefix("content-length:"))
        .map_or(0, |length| length.trim().parse().unwrap());
    seen.len() >= end + 4 + length
}

/// Starts Flowgate and waits until it accepts.
async fn start(
    program: &Path,
    upstream: SocketAddr,
    folder: &Path,
    with_tls: bool,
) -> (Trained, SocketAddr) {
    let to = TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap();
    let tls = if with_tls {
        "tls = { cert = \"cert.pem\", key = \"key.pem\" }\n"
    } else {
        ""
    };
    let mut toml = format!(
        "unknown_keys = \"relay\"\nlog = {{ level = \"warn\" }}\n\
         [listen]\nproxy = \"{to}\"\nadmin = \"127.0.0.1:0\"\n{tls}\
         [upstream]\nurl = \"http://{upstream}\"\n\
         [queue]\nhold = \"1m\"\n"
    );
    for account in 0..ACCOUNTS {
        let (key, secret) = key(account, true);
        std::fs::write(folder.join(&key), secret).unwrap();
        write!(
            toml,
            "[[accounts]]\nid = \"a{account}\"\naccess_key_id = \"{key}\"\naccess_key_secret = {{ file = \"{key}\" }}\n"
        )
        .unwrap();
    }
    let path = folder.join("flowgate.toml");
    std::fs::write(&path, toml).unwrap();
    let process = Command::new(program)
        .arg("--config")
        .arg(path)
        .env("TOKIO_WORKER_THREADS", "1")
        .stdin(Stdio::null())
        .spawn()
        .unwrap();
    let mut trained = Trained(process);
    while TcpStream::connect(to).is_err() {
        assert!(
            trained.0.try_wait().unwrap().is_none(),
            "Flowgate has ended"
        );
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    (trained, to)
}

// === impl Hosts ===

impl Hosts {
    fn of(&self, is_managed: bool) -> &str {
        if is_managed {
            &self.flowgate
        } else {
            &self.upstream
        }
    }
}

// === impl Trained ===

impl Drop for Trained {
    /// Ends Flowgate as a service manager does, so that it writes its counters.
    fn drop(&mut self) {
        let pid = nix::unistd::Pid::from_raw(self.0.id().try_into().unwrap());
        nix::sys::signal::kill(pid, nix::sys::signal::SIGTERM).unwrap();
        assert!(self.0.wait().unwrap().success());
    }
}

/// Writes a certificate into the folder, and returns a client that trusts it.
fn tls(folder: &Path) -> TlsConnector {
    let key = KeyPair::generate().unwrap();
    let params = CertificateParams::new(vec![NAME.to_owned()]).unwrap();
    let certificate = params.self_signed(&key).unwrap();
    std::fs::write(folder.join("cert.pem"), certificate.pem()).unwrap();
    std::fs::write(folder.join("key.pem"), key.serialize_pem()).unwrap();
    let mut roots = RootCertStore::empty();
    roots
        .add(CertificateDer::from(certificate.der().to_vec()))
        .unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    TlsConnector::from(Arc::new(config))
}

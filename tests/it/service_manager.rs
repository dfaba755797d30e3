//! The program under a service manager, which the test simulates: its notifications, passed
//! sockets, and a restart on a passed socket that refuses no connection.

use std::net::{SocketAddr, TcpListener, UdpSocket};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixListener;
use std::process::Stdio;
use std::time::Duration;

use cams_sim::{Running, Settings, Sim};
use tokio::io::AsyncWriteExt;
use tokio::net::{TcpStream, UnixDatagram};
use tokio::process::Command;
use tokio::task::JoinSet;
use tokio::time::{Instant, timeout};

use crate::caller::{Call, KEY, Reply, SECRET, read_reply};
use crate::harness::get;
use crate::process::Process;

/// The watchdog time: after it the manager would restart the program.
const WATCHDOG: Duration = Duration::from_secs(4);

/// Starts the program once.
struct Unit {
    command: Command,
    folder: tempfile::TempDir,
}

// === impl Unit ===

impl Unit {
    /// `more` is TOML after these listeners.
    fn new(sim: &Running, proxy: &str, admin: &str, more: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let config = folder.path().join("flowgate.toml");
        let toml = format!(
            "log = {{ format = \"json\" }}\n[listen]\nproxy = \"{proxy}\"\nadmin = \"{admin}\"\n{more}\n[upstream]\nurl = \"{}\"\n\
             [[accounts]]\nid = \"acme\"\naccess_key_id = \"{KEY}\"\naccess_key_secret = {{ env = \"MANAGED\" }}",
            sim.url()
        );
        std::fs::write(&config, toml).unwrap();
        let mut command = Command::new("sh");
        // Passed descriptors begin at 3. The shell execs the program, so that LISTEN_PID is the
        // program's id.
        let script =
            "exec 3<&0 4<&1; LISTEN_PID=$$; export LISTEN_PID; exec \"$0\" --config \"$1\"";
        command
            .args(["-c", script, env!("CARGO_BIN_EXE_flowgate")])
            .arg(&config)
            .env("MANAGED", SECRET);
        Self { command, folder }
    }

    fn pass(mut self, first: impl Into<OwnedFd>, second: Option<OwnedFd>) -> Self {
        let count = 1 + usize::from(second.is_some());
        self.command
            .env("LISTEN_FDS", count.to_string())
            .stdin(Stdio::from(first.into()));
        self.command
            .stdout(second.map_or_else(Stdio::null, Stdio::from));
        self
    }

    fn env(mut self, name: &str, value: &str) -> Self {
        self.command.env(name, value);
        self
    }

    async fn start(self) -> Process {
        Process::launch(self.command, self.folder).await
    }

    /// The error message of a failed start.
    async fn fails(mut self) -> String {
        let ends = self.command.kill_on_drop(true).output();
        let output = timeout(Duration::from_secs(60), ends)
            .await
            .expect("it ends")
            .unwrap();
        assert_eq!(output.status.code(), Some(1));
        String::from_utf8(output.stderr).unwrap()
    }
}

async fn sim() -> Running {
    Sim::start(Settings::default().with_key(KEY, SECRET, "acme"))
        .await
        .unwrap()
}

fn tcp() -> (TcpListener, String) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap().to_string();
    (listener, address)
}

async fn notification(manager: &UnixDatagram) -> String {
    let mut message = [0; 1024];
    let read = timeout(Duration::from_secs(60), manager.recv(&mut message))
        .await
        .expect("it is notified")
        .unwrap();
    String::from_utf8(message[..read].to_vec()).unwrap()
}

async fn notification_besides_watchdog(manager: &UnixDatagram) -> String {
    loop {
        let message = notification(manager).await;
        if !message.starts_with("WATCHDOG=1") {
            return message;
        }
    }
}

#[tokio::test]
async fn the_service_manager_is_notified_of_start_watchdog_reload_and_stop() {
    let sim = sim().await;
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("notify");
    let manager = UnixDatagram::bind(&path).unwrap();
    let unit = Unit::new(&sim, "127.0.0.1:0", "127.0.0.1:0", "");
    let unit = unit
        .env("NOTIFY_SOCKET", path.to_str().unwrap())
        .env("WATCHDOG_USEC", &WATCHDOG.as_micros().to_string());
    let process = unit.start().await;
    assert_eq!(
        notification(&manager).await,
        "READY=1\nSTATUS=serving: accounts 1, lanes 0, waiting 0\n"
    );
    assert_eq!(get(process.admin, "/readyz").await.status, 200);
    assert_eq!(
        Call::v3(&process.proxy.to_string(), "x")
            .send(process.proxy)
            .await
            .status,
        200
    );
    // The first message may be old, so the next two are timed.
    notification(&manager).await;
    let start = Instant::now();
    let mut last = start;
    for _ in 0..2 {
        let message = notification(&manager).await;
        assert!(
            message.starts_with("WATCHDOG=1\nSTATUS=serving: accounts 1, lanes "),
            "{message}"
        );
        assert!(last.elapsed() < WATCHDOG, "it would have bitten");
        last = Instant::now();
    }
    assert!(
        start.elapsed() > WATCHDOG / 2,
        "twice in its time, not more often"
    );
    process.signal("-HUP").await;
    let message = notification_besides_watchdog(&manager).await;
    let since = message
        .strip_prefix("RELOADING=1\nMONOTONIC_USEC=")
        .expect("the reload begins");
    assert!(since.trim_end().parse::<u64>().is_ok(), "{message}");
    let message = notification_besides_watchdog(&manager).await;
    assert!(
        message.starts_with("READY=1\nSTATUS=serving: "),
        "{message}"
    );
    let ended = tokio::spawn(process.terminate());
    assert_eq!(
        notification_besides_watchdog(&manager).await,
        "STOPPING=1\nSTATUS=draining\n"
    );
    assert!(ended.await.unwrap().success());
}

#[tokio::test]
async fn passed_sockets_are_matched_by_name_or_order_and_stay_bound() {
    let sim = sim().await;
    let (proxy, proxy_address) = tcp();
    let (admin, admin_address) = tcp();
    for names in [Some("admin:proxy"), None] {
        let [one, other] = if names.is_some() {
            [&admin, &proxy]
        } else {
            [&proxy, &admin]
        };
        let one = one.try_clone().unwrap();
        let other = other.try_clone().unwrap();
        let mut unit =
            Unit::new(&sim, &proxy_address, &admin_address, "").pass(one, Some(other.into()));
        if let Some(names) = names {
            unit = unit.env("LISTEN_FDNAMES", names);
        }
        let process = unit.start().await;
        assert_eq!(
            (process.proxy.to_string(), process.admin.to_string()),
            (proxy_address.clone(), admin_address.clone())
        );
        assert_eq!(
            Call::v3(&proxy_address, "x")
                .send(process.proxy)
                .await
                .status,
            200
        );
        assert_eq!(get(process.admin, "/readyz").await.status, 200);
        assert!(process.terminate().await.success());
        assert!(
            TcpStream::connect(&proxy_address).await.is_ok(),
            "another process may serve it"
        );
    }

    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("flowgate.sock");
    let socket = UnixListener::bind(&path).unwrap();
    let unit = Unit::new(&sim, &format!("unix:{}", path.display()), "127.0.0.1:0", "");
    let process = unit
        .pass(socket, None)
        .env("LISTEN_FDNAMES", "proxy")
        .start()
        .await;
    assert!(tokio::net::UnixStream::connect(&path).await.is_ok());
    assert!(process.terminate().await.success());
    assert!(path.exists(), "the process that bound it removes it");
}

#[tokio::test]
async fn unsuitable_passed_sockets_stop_the_start() {
    let sim = sim().await;
    let (proxy, address) = tcp();
    let (_other, elsewhere) = tcp();
    let unit = |address: &str| Unit::new(&sim, address, "127.0.0.1:0", "");
    let datagrams = UdpSocket::bind("127.0.0.1:0").unwrap();
    for (unit, expected) in [
        (
            unit(&address).pass(datagrams, None),
            "the socket passed for proxy in LISTEN_FDS is not a TCP or Unix stream socket".to_owned(),
        ),
        (
            unit(&address).pass(proxy.try_clone().unwrap(), None).env("LISTEN_FDNAMES", "admin:proxy"),
            "cannot use the sockets of LISTEN_FDS: invalid LISTEN_FDNAMES".to_owned(),
        ),
        (
            unit(&address)
                .pass(proxy.try_clone().unwrap(), Some(proxy.try_clone().unwrap().into()))
                .env("LISTEN_FDNAMES", "proxy:web"),
            "expected at most two sockets in LISTEN_FDS, either unnamed (first proxy, then admin) or named proxy and admin (FileDescriptorName=), each once"
                .to_owned(),
        ),
        (
            unit(&elsewhere).pass(proxy.try_clone().unwrap(), None),
            format!(
                "cannot listen on {elsewhere} (listen.proxy): the passed socket is bound to {address}: the two addresses must be equal"
            ),
        ),
    ] {
        assert_eq!(unit.fails().await, format!("flowgate: {expected}\n"));
    }
}

/// Sends one call on a connection of its own.
async fn call(to: SocketAddr, name: String) -> std::io::Result<Option<Reply>> {
    let mut stream = TcpStream::connect(to).await?;
    stream
        .write_all(&Call::v3(&to.to_string(), &name).bytes())
        .await?;
    Ok(read_reply(&mut stream).await)
}

#[tokio::test]
async fn a_restart_on_a_passed_socket_refuses_no_connection() {
    let sim = sim().await;
    let (socket, address) = tcp();
    let proxy: SocketAddr = address.parse().unwrap();
    // The gap is long enough that a busy machine's delays bring no sixth call into a second.
    let more = "[queue]\nhold = \"2m\"\n[drain]\ngrace = \"2s\"\n[learn]\ngap = \"300ms\"\nmax_gap = \"300ms\"";
    let start = || {
        let unit = Unit::new(&sim, &address, "127.0.0.1:0", more);
        unit.pass(socket.try_clone().unwrap(), None)
            .env("LISTEN_FDNAMES", "proxy")
            .start()
    };
    let first = start().await;
    let mut calls = JoinSet::new();
    let mut names = (0..200).map(|index| format!("flow-{index}"));
    for name in names.by_ref().take(160) {
        calls.spawn(call(proxy, name));
    }
    crate::harness::Metrics::until(
        first.admin,
        "flowgate_queued{account=\"acme\",action=\"CreateFlow\"}",
        |queued| queued >= 120.0,
    )
    .await;
    let restart = async {
        assert!(first.terminate().await.success());
        start().await
    };
    // During the whole drain and the moment without a serving process.
    let arrivals = async {
        for name in names {
            calls.spawn(call(proxy, name));
            tokio::time::sleep(Duration::from_millis(60)).await;
        }
    };
    let (second, ()) = tokio::join!(restart, arrivals);
    let mut created = 0;
    let mut drained = 0;
    for reply in calls.join_all().await {
        let reply = reply
            .expect("no connection is refused or reset")
            .expect("every call is answered");
        match (reply.status, reply.code().as_str()) {
            (200, "OK") => created += 1,
            (503, "Flowgate.Draining") => drained += 1,
            other => panic!("{other:?}"),
        }
    }
    let report = sim.report();
    assert_eq!(
        (created + drained, report.created, report.worst_window),
        (200, created, 5)
    );
    assert!(
        created > 20 && drained > 50,
        "{created} created, {drained} refused"
    );
    assert_eq!((report.refused, report.duplicates.len()), (0, 0));
    assert!(second.terminate().await.success());
}

//! Runs the binary as a process, for tests and benchmarks: with a configuration on free ports,
//! observed by its log.

use std::net::SocketAddr;
use std::process::{ExitStatus, Stdio};
use std::sync::Arc;
use std::time::Duration;

use cams_sim::Running;
use parking_lot::Mutex;
use rustix::process::{Pid, Resource, Rlimit, Signal, kill_process, prlimit};
use serde_json::Value;
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::TcpStream;
use tokio::process::{Child, Command};
use tokio::time::Instant;

use crate::caller::{Call, SECRET};

/// The variables that name a proxy for HTTP clients.
pub(crate) const PROXY_VARIABLES: [&str; 6] = [
    "HTTP_PROXY",
    "http_proxy",
    "HTTPS_PROXY",
    "https_proxy",
    "ALL_PROXY",
    "all_proxy",
];

/// A running Flowgate. Dropping it kills the process.
pub(crate) struct Process {
    child: Child,
    /// Unspecified for a Unix socket.
    pub(crate) proxy: SocketAddr,
    pub(crate) admin: SocketAddr,
    /// Log lines so far.
    events: Arc<Mutex<Vec<Value>>>,
    /// The head of every configuration of this process.
    head: String,
    pub(crate) folder: tempfile::TempDir,
}

/// Maximum number of kept log lines: more than any test writes, and less than a soak writes.
const KEPT: usize = 50_000;

/// The account `acme` of the simulator's key.
pub(crate) const ACME: &str = "[[accounts]]\nid = \"acme\"\naccess_key_id = \"LTAI-managed-1\"\naccess_key_secret = { env = \"MANAGED\" }\n";

// === impl Process ===

impl Process {
    /// Starts with the account `acme` of the simulator's key. `more` is TOML.
    pub(crate) async fn start(sim: &Running, more: &str) -> Self {
        Self::with_threads(sim, more, 2).await
    }

    /// Starts with this many worker threads.
    pub(crate) async fn with_threads(sim: &Running, more: &str, threads: u32) -> Self {
        Self::with_env(sim, more, &[("TOKIO_WORKER_THREADS", &threads.to_string())]).await
    }

    /// Starts with these variables in addition.
    pub(crate) async fn with_env(sim: &Running, more: &str, env: &[(&str, &str)]) -> Self {
        Self::configured(
            sim,
            &format!("{ACME}{more}"),
            tempfile::tempdir().unwrap(),
            env,
        )
        .await
    }

    /// Starts with the accounts of `toml` only; its relative paths are in the folder.
    pub(crate) async fn configured(
        sim: &Running,
        toml: &str,
        folder: tempfile::TempDir,
        env: &[(&str, &str)],
    ) -> Self {
        Self::towards(&sim.url(), toml, folder, env).await
    }

    /// Dials `upstream`, whose section `toml` continues.
    pub(crate) async fn towards(
        upstream: &str,
        toml: &str,
        folder: tempfile::TempDir,
        env: &[(&str, &str)],
    ) -> Self {
        let head = format!(
            "log = {{ format = \"json\" }}\n[listen]\nproxy = \"127.0.0.1:0\"\nadmin = \"127.0.0.1:0\"\n[upstream]\nurl = \"{upstream}\"\n"
        );
        let config = folder.path().join("flowgate.toml");
        std::fs::write(&config, format!("{head}{toml}")).unwrap();
        let mut command = Command::new(env!("CARGO_BIN_EXE_flowgate"));
        command
            .arg("--config")
            .arg(&config)
            .envs(env.iter().copied());
        Self {
            head,
            ..Self::launch(command, folder).await
        }
    }

    /// Starts without a file, with these variables only.
    pub(crate) async fn from_env(env: &[(&str, &str)]) -> Self {
        let own = [
            ("LISTEN__PROXY", "127.0.0.1:0"),
            ("LISTEN__ADMIN", "127.0.0.1:0"),
            ("LOG__FORMAT", "json"),
        ];
        let mut command = Command::new(env!("CARGO_BIN_EXE_flowgate"));
        command
            .envs(own.map(|(name, value)| (format!("FLOWGATE_{name}"), value)))
            .envs(env.iter().copied());
        Self::launch(command, tempfile::tempdir().unwrap()).await
    }

    /// Runs a command that starts a Flowgate with a JSON log, and waits until it is ready.
    pub(crate) async fn launch(mut command: Command, folder: tempfile::TempDir) -> Self {
        command
            .env("MANAGED", SECRET)
            .env("TEAM", "team-secret-1")
            .stderr(Stdio::piped())
            .kill_on_drop(true);
        let mut child = command.spawn().unwrap();
        let mut lines = BufReader::new(child.stderr.take().unwrap()).lines();
        let events = Arc::<Mutex<Vec<Value>>>::default();
        let ready = loop {
            let line = lines
                .next_line()
                .await
                .unwrap()
                .expect("flowgate says that it is ready");
            let event: Value = serde_json::from_str(&line).unwrap();
            events.lock().push(event.clone());
            if event["message"] == "flowgate is ready" {
                break event;
            }
        };
        let seen = events.clone();
        tokio::spawn(async move {
            while let Ok(Some(line)) = lines.next_line().await {
                let event = serde_json::from_str(&line).unwrap();
                let mut seen = seen.lock();
                if seen.len() < KEPT {
                    seen.push(event);
                }
            }
        });
        let nowhere = SocketAddr::from(([0, 0, 0, 0], 0));
        let address = |name: &str| ready[name].as_str().unwrap().parse().unwrap_or(nowhere);
        Self {
            child,
            proxy: address("proxy"),
            admin: address("admin"),
            events,
            head: String::new(),
            folder,
        }
    }

    /// Waits until this message was logged this many times, and returns the events.
    pub(crate) async fn logged(&self, message: &str, times: usize) -> Vec<Value> {
        let give_up = Instant::now() + Duration::from_secs(30);
        loop {
            let is_it = |event: &&Value| event["message"] == message;
            let found: Vec<Value> = self.events.lock().iter().filter(is_it).cloned().collect();
            if found.len() >= times {
                return found;
            }
            assert!(
                Instant::now() < give_up,
                "{message}: {:?}",
                self.events.lock()
            );
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    /// Replaces the configuration file atomically, as editors and Kubernetes do.
    pub(crate) fn write(&self, toml: &str) {
        let new = self.folder.path().join("new.toml");
        let config = self.folder.path().join("flowgate.toml");
        std::fs::write(&new, format!("{}{toml}", self.head)).unwrap();
        std::fs::rename(new, config).unwrap();
    }

    /// Sends a signal such as `-HUP`.
    pub(crate) async fn signal(&self, signal: &str) {
        assert!(
            Command::new("kill")
                .args([signal, &self.id().to_string()])
                .status()
                .await
                .unwrap()
                .success()
        );
    }

    /// Limits the size of its files from now on, as a full disk does. `None` removes the limit.
    pub(crate) fn files_end_at(&self, bytes: Option<u64>) {
        let limit = Rlimit {
            current: bytes,
            maximum: None,
        };
        prlimit(Some(self.pid()), Resource::Fsize, limit).unwrap();
    }

    /// All log lines so far.
    pub(crate) fn log(&self) -> String {
        self.events
            .lock()
            .iter()
            .map(|event| format!("{event}\n"))
            .collect()
    }

    /// The process id.
    pub(crate) fn id(&self) -> u32 {
        self.child.id().expect("it runs")
    }

    /// The process id, for system calls.
    pub(crate) fn pid(&self) -> Pid {
        let id = i32::try_from(self.id()).unwrap();
        Pid::from_raw(id).unwrap()
    }

    /// Sends SIGTERM and returns the exit status.
    pub(crate) async fn terminate(mut self) -> ExitStatus {
        self.signal("-TERM").await;
        self.child.wait().await.unwrap()
    }

    /// Sends SIGKILL.
    pub(crate) async fn kill(mut self) {
        self.child.kill().await.unwrap();
    }

    /// Sends SIGABRT, as a crash would.
    pub(crate) async fn abort(mut self) -> std::process::ExitStatus {
        kill_process(self.pid(), Signal::ABORT).unwrap();
        self.child.wait().await.unwrap()
    }

    /// Sends a call without reading its response.
    pub(crate) async fn come(&self, name: &str) -> TcpStream {
        let mut stream = TcpStream::connect(self.proxy).await.unwrap();
        stream
            .write_all(&Call::v3(&self.proxy.to_string(), name).bytes())
            .await
            .unwrap();
        stream
    }
}

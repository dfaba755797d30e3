//! The program as a process of its own, for tests and benchmarks: started with a configuration on free ports, read by its
//! log, killed at will.

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

/// A running Flowgate; it is killed when this is dropped.
pub(crate) struct Process {
    child: Child,
    /// Unspecified when it is a Unix socket.
    pub(crate) proxy: SocketAddr,
    pub(crate) admin: SocketAddr,
    /// What it has logged so far.
    events: Arc<Mutex<Vec<Value>>>,
    /// What every configuration of it begins with.
    head: String,
    pub(crate) folder: tempfile::TempDir,
}

/// So many lines of a log are kept: more than any test has, and less than a soak writes.
const KEPT: usize = 50_000;

/// The account `acme` of the simulator's key.
pub(crate) const ACME: &str = "[[accounts]]\nid = \"acme\"\naccess_key_id = \"LTAI-managed-1\"\naccess_key_secret = { env = \"MANAGED\" }\n";

// === impl Process ===

impl Process {
    /// With the account `acme` of the simulator's key. `more` is TOML.
    pub(crate) async fn start(sim: &Running, more: &str) -> Self {
        Self::with_threads(sim, more, 2).await
    }

    /// On so many worker threads.
    pub(crate) async fn with_threads(sim: &Running, more: &str, threads: u32) -> Self {
        Self::with_env(sim, more, &[("TOKIO_WORKER_THREADS", &threads.to_string())]).await
    }

    /// With these variables, too.
    pub(crate) async fn with_env(sim: &Running, more: &str, env: &[(&str, &str)]) -> Self {
        Self::configured(
            sim,
            &format!("{ACME}{more}"),
            tempfile::tempdir().unwrap(),
            env,
        )
        .await
    }

    /// Without any account but those of `toml`, whose relative paths lead into the folder.
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

    /// Without a file: from these variables alone.
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

    /// A command that runs a Flowgate which logs JSON, until it says that it is ready.
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

    /// Waits until it has logged this message so many times, and returns those events.
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

    /// Puts another configuration in the place of the former, as editors and Kubernetes do: at once.
    pub(crate) fn write(&self, toml: &str) {
        let (new, config) = (
            self.folder.path().join("new.toml"),
            self.folder.path().join("flowgate.toml"),
        );
        std::fs::write(&new, format!("{}{toml}", self.head)).unwrap();
        std::fs::rename(new, config).unwrap();
    }

    /// Sends it a signal such as `-HUP`.
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

    /// No file of it may grow beyond this number of bytes from now on, as if the disk were full. None: no limit.
    pub(crate) fn files_end_at(&self, bytes: Option<u64>) {
        let limit = Rlimit {
            current: bytes,
            maximum: None,
        };
        prlimit(Some(self.pid()), Resource::Fsize, limit).unwrap();
    }

    /// All that it has logged so far.
    pub(crate) fn log(&self) -> String {
        self.events
            .lock()
            .iter()
            .map(|event| format!("{event}\n"))
            .collect()
    }

    /// Its number.
    pub(crate) fn id(&self) -> u32 {
        self.child.id().expect("it runs")
    }

    /// Its number, for system calls.
    pub(crate) fn pid(&self) -> Pid {
        let id = i32::try_from(self.id()).unwrap();
        Pid::from_raw(id).unwrap()
    }

    /// SIGTERM, and what it ended with.
    pub(crate) async fn terminate(mut self) -> ExitStatus {
        self.signal("-TERM").await;
        self.child.wait().await.unwrap()
    }

    /// SIGKILL.
    pub(crate) async fn kill(mut self) {
        self.child.kill().await.unwrap();
    }

    /// SIGABRT, as a crash would end it.
    pub(crate) async fn abort(mut self) -> std::process::ExitStatus {
        kill_process(self.pid(), Signal::ABORT).unwrap();
        self.child.wait().await.unwrap()
    }

    /// A call that is sent and whose answer nobody reads yet.
    pub(crate) async fn come(&self, name: &str) -> TcpStream {
        let mut stream = TcpStream::connect(self.proxy).await.unwrap();
        stream
            .write_all(&Call::v3(&self.proxy.to_string(), name).bytes())
            .await
            .unwrap();
        stream
    }
}

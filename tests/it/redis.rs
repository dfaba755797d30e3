//! Real Redis servers for tests, on free ports with folders of their own: single, with TLS, as a
//! cluster, or with sentinels. Each can be stopped, restarted, frozen and flushed, and is killed
//! when it is dropped.

#![allow(
    dead_code,
    reason = "two test binaries use this file, each a part of it"
)]

use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::{Child, Command};
use tokio::time::{Instant, sleep};

/// The service name of the sentinels.
pub(crate) const SERVICE: &str = "mymaster";

/// One server.
pub(crate) struct Redis {
    pub(crate) port: u16,
    /// Its options, besides port and folder.
    options: Vec<String>,
    kind: Kind,
    child: Option<Child>,
    folder: tempfile::TempDir,
}

/// The server's log line when it is ready, and the option of its port.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Plain,
    Tls,
    Cluster,
    Sentinel,
}

/// Three nodes, each with a third of the slots and no replica.
pub(crate) struct Cluster {
    pub(crate) nodes: Vec<Redis>,
}

/// A master, its replica, and three sentinels that fail over within about two seconds.
pub(crate) struct Watched {
    pub(crate) master: Redis,
    pub(crate) replica: Redis,
    pub(crate) sentinels: Vec<Redis>,
}

// === impl Redis ===

impl Redis {
    /// A server without authentication.
    pub(crate) async fn start() -> Self {
        Self::with(&[]).await
    }

    /// A server with these options, such as `["--requirepass", "secret"]`.
    pub(crate) async fn with(options: &[&str]) -> Self {
        Self::of(Kind::Plain, options).await
    }

    /// A server with TLS only, as `localhost`; `ca_file` is its authority.
    pub(crate) async fn with_tls() -> Self {
        Self::of(Kind::Tls, &[]).await
    }

    /// Starts on a free port. Another process may take the port before the server binds it, so this
    /// retries.
    async fn of(kind: Kind, options: &[&str]) -> Self {
        let options: Vec<String> = options.iter().map(|option| (*option).to_owned()).collect();
        for _ in 0..20 {
            let folder = tempfile::tempdir().unwrap();
            if kind == Kind::Tls {
                certify(folder.path());
            }
            if kind == Kind::Sentinel {
                std::fs::write(folder.path().join("sentinel.conf"), options.join("\n")).unwrap();
            }
            let mut redis = Self {
                port: free_port(),
                options: options.clone(),
                kind,
                child: None,
                folder,
            };
            if redis.launch().await {
                return redis;
            }
        }
        panic!("no redis-server could be started");
    }

    /// Waits until it is ready; false if it has ended.
    async fn launch(&mut self) -> bool {
        let port = self.port.to_string();
        let mut command = Command::new("redis-server");
        if self.kind == Kind::Sentinel {
            command.args(["sentinel.conf", "--sentinel"]);
        } else {
            command
                .args(["--save", "", "--appendonly", "no"])
                .args(&self.options);
        }
        match self.kind {
            Kind::Plain | Kind::Sentinel => command.args(["--port", &port]),
            Kind::Tls => command
                .args([
                    "--port",
                    "0",
                    "--tls-port",
                    &port,
                    "--tls-auth-clients",
                    "no",
                ])
                .args([
                    "--tls-cert-file",
                    "cert.pem",
                    "--tls-key-file",
                    "key.pem",
                    "--tls-ca-cert-file",
                    "ca.pem",
                ]),
            Kind::Cluster => command.args([
                "--port",
                &port,
                "--cluster-enabled",
                "yes",
                "--cluster-node-timeout",
                "1000",
            ]),
        };
        command
            .args(["--bind", "127.0.0.1", "--daemonize", "no"])
            .current_dir(self.folder.path());
        let mut child = command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .expect("redis-server is installed");
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let sign = if self.kind == Kind::Sentinel {
            "+monitor master"
        } else {
            "Ready to accept connections"
        };
        loop {
            match lines.next_line().await.unwrap() {
                Some(line) if line.contains(sign) => break,
                Some(_) => {}
                None => return false,
            }
        }
        tokio::spawn(async move { while let Ok(Some(_)) = lines.next_line().await {} });
        self.child = Some(child);
        true
    }

    pub(crate) fn url(&self) -> String {
        let (scheme, host) = if self.kind == Kind::Tls {
            ("rediss", "localhost")
        } else {
            ("redis", "127.0.0.1")
        };
        format!("{scheme}://{host}:{}", self.port)
    }

    pub(crate) fn ca_file(&self) -> PathBuf {
        self.folder.path().join("ca.pem")
    }

    /// Sends SIGKILL.
    pub(crate) async fn stop(&mut self) {
        self.child.take().expect("it runs").kill().await.unwrap();
    }

    /// Restarts on the same port with an empty database.
    pub(crate) async fn start_again(&mut self) {
        assert!(self.launch().await, "the port is in use");
    }

    /// Stops the process: the system still accepts connections and bytes, and nothing is answered.
    pub(crate) async fn freeze(&self) {
        self.signal("-STOP").await;
    }

    pub(crate) async fn thaw(&self) {
        self.signal("-CONT").await;
    }

    async fn signal(&self, signal: &str) {
        let id = self
            .child
            .as_ref()
            .and_then(Child::id)
            .expect("it runs")
            .to_string();
        assert!(
            Command::new("kill")
                .args([signal, &id])
                .status()
                .await
                .unwrap()
                .success()
        );
    }

    /// Deletes every key and every script.
    pub(crate) async fn flush(&self) {
        assert_eq!(self.ask(&["FLUSHALL"]).await.trim(), "OK");
        assert_eq!(self.ask(&["SCRIPT", "FLUSH"]).await.trim(), "OK");
    }

    /// Runs redis-cli and returns its output.
    pub(crate) async fn ask(&self, command: &[&str]) -> String {
        let output = Command::new("redis-cli")
            .args(["-p", &self.port.to_string()])
            .args(command)
            .output()
            .await;
        String::from_utf8(output.expect("redis-cli is installed").stdout).unwrap()
    }

    async fn until(&self, command: &[&str], said: &str) {
        let give_up = Instant::now() + Duration::from_secs(30);
        loop {
            let answer = self.ask(command).await;
            if answer.contains(said) {
                return;
            }
            assert!(Instant::now() < give_up, "{command:?} says {answer}");
            sleep(Duration::from_millis(50)).await;
        }
    }
}

// === impl Cluster ===

impl Cluster {
    pub(crate) async fn start() -> Self {
        let mut nodes = Vec::new();
        for _ in 0..3 {
            nodes.push(Redis::of(Kind::Cluster, &[]).await);
        }
        let addresses = nodes.iter().map(|node| format!("127.0.0.1:{}", node.port));
        let mut create = Command::new("redis-cli");
        create
            .args(["--cluster", "create"])
            .args(addresses)
            .arg("--cluster-yes");
        let output = create.output().await.unwrap();
        assert!(
            output.status.success(),
            "{}",
            String::from_utf8_lossy(&output.stdout)
        );
        for node in &nodes {
            node.until(&["CLUSTER", "INFO"], "cluster_state:ok").await;
        }
        Self { nodes }
    }

    /// The URLs as TOML.
    pub(crate) fn urls(&self) -> String {
        urls(&self.nodes)
    }
}

// === impl Watched ===

impl Watched {
    pub(crate) async fn start() -> Self {
        let master = Redis::start().await;
        let replica = Redis::with(&["--replicaof", "127.0.0.1", &master.port.to_string()]).await;
        replica
            .until(&["INFO", "replication"], "master_link_status:up")
            .await;
        let monitor = format!("sentinel monitor {SERVICE} 127.0.0.1 {} 2", master.port);
        let down = format!("sentinel down-after-milliseconds {SERVICE} 500");
        let failover = format!("sentinel failover-timeout {SERVICE} 2000");
        let mut sentinels = Vec::new();
        for _ in 0..3 {
            sentinels.push(Redis::of(Kind::Sentinel, &[&monitor, &down, &failover]).await);
        }
        for sentinel in &sentinels {
            sentinel
                .until(&["SENTINEL", "CKQUORUM", SERVICE], "OK 3 usable Sentinels")
                .await;
            sentinel
                .until(
                    &["SENTINEL", "REPLICAS", SERVICE],
                    &replica.port.to_string(),
                )
                .await;
        }
        Self {
            master,
            replica,
            sentinels,
        }
    }

    /// The sentinels' URLs as TOML.
    pub(crate) fn urls(&self) -> String {
        urls(&self.sentinels)
    }
}

fn urls(servers: &[Redis]) -> String {
    format!("{:?}", servers.iter().map(Redis::url).collect::<Vec<_>>())
}

/// A free port below 55536, because a cluster's node also uses the port 10000 above.
fn free_port() -> u16 {
    let free = || {
        TcpListener::bind(("127.0.0.1", 0))
            .unwrap()
            .local_addr()
            .unwrap()
            .port()
    };
    std::iter::repeat_with(free)
        .find(|port| *port < 55_000)
        .expect("the iterator never ends")
}

/// Writes an authority, and its certificate for `localhost`.
fn certify(folder: &Path) {
    let mut params = CertificateParams::new(Vec::new()).unwrap();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let key = KeyPair::generate().unwrap();
    std::fs::write(
        folder.join("ca.pem"),
        params.self_signed(&key).unwrap().pem(),
    )
    .unwrap();
    let leaf_key = KeyPair::generate().unwrap();
    let leaf = CertificateParams::new(vec!["localhost".to_owned()]).unwrap();
    let leaf = leaf
        .signed_by(&leaf_key, &Issuer::new(params, key))
        .unwrap();
    std::fs::write(folder.join("cert.pem"), leaf.pem()).unwrap();
    std::fs::write(folder.join("key.pem"), leaf_key.serialize_pem()).unwrap();
}

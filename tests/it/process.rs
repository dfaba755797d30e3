//! The program as a process of its own: what it holds of memory and descriptors, which no test can tell from within a
//! process that runs other tests.

use std::net::SocketAddr;
use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;

use cams_sim::{Running, Settings, Sim};
use parking_lot::Mutex;
use serde_json::Value;
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::TcpStream;
use tokio::process::{Child, Command};
use tokio::task::JoinSet;
use tokio::time::Instant;

use crate::caller::{Call, KEY, SECRET};
use crate::world::Metrics;

const QUEUED: &str = "flowgate_queued{account=\"acme\",action=\"CreateFlow\"}";

/// A running Flowgate; it is killed when this is dropped.
pub(crate) struct Process {
    child: Child,
    pub(crate) proxy: SocketAddr,
    pub(crate) admin: SocketAddr,
    /// What it has logged so far.
    events: Arc<Mutex<Vec<Value>>>,
    _folder: tempfile::TempDir,
}

// === impl Process ===

impl Process {
    /// With the account `acme` of the simulator's key. `more` is TOML.
    pub(crate) async fn start(sim: &Running, more: &str) -> Self {
        Self::with_threads(sim, more, 2).await
    }

    /// On so many worker threads.
    pub(crate) async fn with_threads(sim: &Running, more: &str, threads: u32) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let config = folder.path().join("flowgate.toml");
        let toml = format!(
            "log = {{ format = \"json\" }}\n[listen]\nproxy = \"127.0.0.1:0\"\nadmin = \"127.0.0.1:0\"\n[upstream]\nurl = \"{}\"\n[[accounts]]\nid = \
             \"acme\"\naccess_key_id = \"{KEY}\"\naccess_key_secret = {{ env = \"MANAGED\" }}\n{more}",
            sim.url()
        );
        std::fs::write(&config, toml).unwrap();
        let mut child = Command::new(env!("CARGO_BIN_EXE_flowgate"))
            .arg("--config")
            .arg(&config)
            .env("MANAGED", SECRET)
            .env("TEAM", "team-secret-1")
            .env("TOKIO_WORKER_THREADS", threads.to_string())
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(child.stderr.take().unwrap()).lines();
        let events = Arc::<Mutex<Vec<Value>>>::default();
        let ready = loop {
            let line = lines.next_line().await.unwrap().expect("flowgate says that it is ready");
            let event: Value = serde_json::from_str(&line).unwrap();
            events.lock().push(event.clone());
            if event["message"] == "flowgate is ready" {
                break event;
            }
        };
        let seen = events.clone();
        tokio::spawn(async move {
            while let Ok(Some(line)) = lines.next_line().await {
                seen.lock().push(serde_json::from_str(&line).unwrap());
            }
        });
        let address = |name: &str| ready[name].as_str().unwrap().parse().unwrap();
        Self { child, proxy: address("proxy"), admin: address("admin"), events, _folder: folder }
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
            assert!(Instant::now() < give_up, "{message}: {:?}", self.events.lock());
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    /// SIGKILL.
    pub(crate) async fn kill(mut self) {
        self.child.kill().await.unwrap();
    }

    /// A call that is sent and whose answer nobody reads yet.
    async fn come(&self, name: &str) -> TcpStream {
        let mut stream = TcpStream::connect(self.proxy).await.unwrap();
        stream.write_all(&Call::v3(&self.proxy.to_string(), name).bytes()).await.unwrap();
        stream
    }
}

/// A thousand calls come, a few of which stay; and the others go together.
async fn burst(flowgate: &Process, sim: &Running, round: usize) {
    assert!(rlimit::increase_nofile_limit(u64::MAX).unwrap() > 4000, "room for two thousand sockets");
    sim.set_faults(vec!["next=1,throttle,acs-retry-after=8000".parse().unwrap()]);
    let stays = flowgate.come(&format!("first-{round}")).await;
    let throttled = "flowgate_throttled_total{account=\"acme\",code=\"System.LimitControl\",source=\"body\"}";
    Metrics::until(flowgate.admin, throttled, |times| times >= round as f64).await;
    let mut go = Vec::new();
    for index in 0..1000 {
        go.push(flowgate.come(&format!("goes-{round}-{index}")).await);
    }
    let mut stay = JoinSet::new();
    for index in 0..10 {
        let (call, proxy) = (Call::v3(&flowgate.proxy.to_string(), &format!("stays-{round}-{index}")), flowgate.proxy);
        stay.spawn(async move { call.send(proxy).await.status });
    }
    Metrics::until(flowgate.admin, QUEUED, |queued| queued >= 1011.0).await;
    tokio::time::sleep(Duration::from_millis(100)).await;
    drop(go);
    assert_eq!(stay.join_all().await, [200; 10], "their tokens serve others");
    drop(stays);
    // The scrape's own is one.
    let metrics = Metrics::until(flowgate.admin, "flowgate_connections", |open| open == 1.0).await;
    assert_eq!((metrics.get(QUEUED), metrics.get("flowgate_queued_bytes")), (0.0, 0.0));
}

/// The metrics once every worker has had something to do since: the allocator gives back what a worker has freed when that
/// worker next allocates, and after a burst one of them may have no more work.
async fn settled(admin: SocketAddr) -> Metrics {
    let crowd: JoinSet<Metrics> = (0..64).map(|_| Metrics::of(admin)).collect();
    crowd.join_all().await;
    Metrics::of(admin).await
}

#[tokio::test]
async fn a_thousand_that_hang_up_together_leave_nothing_behind() {
    let sim = Sim::start(Settings::default().with_key(KEY, SECRET, "acme")).await.unwrap();
    let flowgate = Process::start(&sim, "[queue]\nhold = \"10m\"\nmax_hold = \"10m\"").await;
    // The first round is the level: buffers and threads that any such load has made once.
    burst(&flowgate, &sim, 1).await;
    let before = settled(flowgate.admin).await;
    burst(&flowgate, &sim, 2).await;
    let after = settled(flowgate.admin).await;
    let cancelled = "flowgate_cancelled_total{account=\"acme\",stage=\"queued\"}";
    assert_eq!(after.get(cancelled), 2000.0);
    let arrivals = sim.arrivals();
    let gone =
        arrivals.iter().filter(|arrival| arrival.flow_name.as_deref().is_some_and(|name| name.starts_with("goes")));
    assert_eq!((sim.report().created, gone.count()), (22, 0));
    let descriptors = |metrics: &Metrics| metrics.get("process_open_fds");
    assert!(descriptors(&after) <= descriptors(&before) + 2.0, "{} {}", descriptors(&before), descriptors(&after));
    let memory = |metrics: &Metrics| metrics.get("process_resident_memory_bytes");
    // A thousand calls that stayed would be as much again.
    assert!(memory(&after) <= 1.6 * memory(&before), "{} {}", memory(&before), memory(&after));
}

#[tokio::test]
async fn one_thread_serves_as_two_do() {
    let sim = Sim::start(Settings::default().with_key(KEY, SECRET, "acme")).await.unwrap();
    let flowgate = Process::with_threads(&sim, "", 1).await;
    let mut calls = JoinSet::new();
    for index in 0..12 {
        let (call, proxy) = (Call::v3(&flowgate.proxy.to_string(), &format!("one-{index}")), flowgate.proxy);
        calls.spawn(async move { call.send(proxy).await.status });
    }
    // While they wait their turn the thread has time for others. The other thread writes the log.
    assert_eq!(Metrics::of(flowgate.admin).await.get("process_threads"), 2.0);
    assert_eq!(calls.join_all().await, [200; 12]);
    assert_eq!((sim.report().created, sim.report().refused), (12, 0));
}

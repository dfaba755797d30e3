//! Dashboards and rules with real data: Prometheus scrapes Flowgates under load. Every panel's
//! query has a result, every recording rule a value, and no rule an error. It takes half a minute
//! and needs Debian's Prometheus, so `scripts/test` runs it in a step of its own.

use std::net::{SocketAddr, TcpListener};
use std::process::Stdio;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use cams_sim::{Running, Settings, Sim};
use rcgen::{CertificateParams, KeyPair};
use serde_json::Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::process::{Child, Command};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep};

use crate::caller::{Call, KEY, SECRET, encode, try_exchange};
use crate::harness::Metrics;
use crate::process::{ACME, Process};
use crate::redis::Redis;

const LOAD: Duration = Duration::from_secs(20);
/// Interval of scrapes and evaluations here, and the value of a dashboard's `$__rate_interval`:
/// four scrapes, as in Grafana.
const INTERVAL: &str = "1s";
const RATE_INTERVAL: &str = "4s";

const TEAM: (&str, &str) = ("team-a", "team-secret-1");
const TEAM_OF_ACME: &str = "[[clients]]\naccess_key_id = \"team-a\"\naccess_key_secret = { env = \"TEAM\" }\n\
                            account = \"acme\"\nactions = [\"*\"]\nweight = 2\n";

/// A running Prometheus. Dropping it kills the process.
struct Prometheus {
    address: SocketAddr,
    _child: Child,
    folder: tempfile::TempDir,
}

/// Two replicas with a shared quota, and a Flowgate that observes another account. The first
/// replica is called and has a journal; the second has a certificate and signs with temporary
/// credentials.
struct Fleet {
    sim: Running,
    first: Process,
    second: Process,
    observer: Process,
    _redis: Redis,
}

/// The result of a query.
struct Seen {
    series: usize,
    samples: usize,
    largest: f64,
}

// === impl Fleet ===

impl Fleet {
    async fn start() -> Self {
        let mut settings = Settings {
            latency: Duration::from_millis(300),
            ..Settings::default()
        };
        settings
            .keys
            .push("STS.1:secret-1:acme:token-1".parse().unwrap());
        let sim = Sim::start(settings.with_key(KEY, SECRET, "acme").with_key(
            "LTAI-other-1",
            SECRET,
            "other",
        ));
        let sim = sim.await.unwrap();
        let redis = Redis::start().await;
        let quota = format!("[quota]\nstore = \"{}\"\n", redis.url());
        let folder = tempfile::tempdir().unwrap();
        let journal = format!(
            "[journal]\npath = {:?}\n",
            folder.path().join("attempts.jsonl")
        );
        let first = Process::configured(
            &sim,
            &format!("{ACME}{TEAM_OF_ACME}{journal}{quota}"),
            folder,
            &[],
        )
        .await;
        let second = "[listen.tls]\ncert = \"cert.pem\"\nkey = \"key.pem\"\n[[accounts]]\nid = \"acme\"\ncredentials = { file = \"acme.json\" }\n";
        let second = Process::configured(&sim, &format!("{second}{quota}"), certified(), &[]).await;
        let other = ACME.replace("acme", "other").replace(KEY, "LTAI-other-1");
        let observe = [("FLOWGATE_MODE", "observe")];
        let observer =
            Process::configured(&sim, &other, tempfile::tempdir().unwrap(), &observe).await;
        Metrics::until(first.admin, "flowgate_replicas", |replicas| replicas == 2.0).await;
        Self {
            sim,
            first,
            second,
            observer,
            _redis: redis,
        }
    }

    fn call(&self, name: &str, key: (&str, &str), hold: &str) -> Call {
        let query = [("Categories", "[\"SIGN_UP\"]"), ("FlowName", name)];
        Call::v3_with(
            &self.first.proxy.to_string(),
            &query,
            |call| {
                call.push("x-flowgate-hold", hold);
                // The outcome of a doomed call stays unknown.
                if name.starts_with("doomed") {
                    call.push("idempotency-key", name);
                }
            },
            key,
        )
    }

    /// Both clients demand more than the quota during the load, with some failures.
    async fn load(&self) {
        let end = Instant::now() + LOAD;
        let ways = [(KEY, SECRET), TEAM]
            .into_iter()
            .cycle()
            .take(16)
            .enumerate();
        let callers = ways.map(|(number, key)| async move {
            while Instant::now() < end {
                let name = format!("flow-{number}-{}", fastrand::u32(..));
                self.call(&name, key, "10s").send(self.first.proxy).await;
            }
        });
        let troubles = async {
            while Instant::now() < end {
                self.trouble().await;
            }
        };
        futures_util::join!(futures_util::future::join_all(callers), troubles);
    }

    /// Causes each event that has a metric of its own, once.
    async fn trouble(&self) {
        let proxy = self.first.proxy;
        let observed = Call::v3_with(
            &self.observer.proxy.to_string(),
            &[("FlowName", "x")],
            |_| {},
            ("LTAI-other-1", SECRET),
        );
        observed.send(self.observer.proxy).await;
        // The fault for the first's next call must not affect the observer's.
        let throttle = "next=1,throttle,acs-retry-after=1500".parse().unwrap();
        self.sim
            .set_faults(vec![throttle, "named=doomed,close-after".parse().unwrap()]);
        let mut calls = JoinSet::new();
        for (name, key, hold) in [
            ("doomed", TEAM, "20s"),
            ("impatient", TEAM, "200ms"),
            ("stranger", (KEY, "not-the-secret"), "10s"),
        ] {
            let call = self.call(&format!("{name}-{}", fastrand::u32(..)), key, hold);
            calls.spawn(async move { try_exchange(proxy, &call.bytes()).await });
        }
        calls.spawn(async move { try_exchange(proxy, b"not HTTP at all\r\n\r\n").await });
        calls.detach_all();
        drop(self.first.come("leaves").await);
        sleep(Duration::from_secs(3)).await;
    }
}

/// A folder with a certificate and with session credentials of the simulated endpoint.
fn certified() -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    let key = KeyPair::generate().unwrap();
    let certificate = CertificateParams::new(vec!["localhost".to_owned()])
        .unwrap()
        .self_signed(&key)
        .unwrap();
    let session = "{\"AccessKeyId\": \"STS.1\", \"AccessKeySecret\": \"secret-1\", \"SecurityToken\": \"token-1\", \"Expiration\": \"2126-01-01T00:00:00Z\"}";
    for (name, text) in [
        ("cert.pem", &*certificate.pem()),
        ("key.pem", &key.serialize_pem()),
        ("acme.json", session),
    ] {
        std::fs::write(folder.path().join(name), text).unwrap();
    }
    folder
}

// === impl Prometheus ===

impl Prometheus {
    /// Uses the rules and intervals of deploy/prometheus/prometheus.yaml with other targets.
    async fn start(fleet: &Fleet) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let config = std::fs::read_to_string("deploy/prometheus/prometheus.yaml").unwrap();
        let (head, _) = config.split_once("scrape_configs:\n").unwrap();
        let target = |job: &str, targets: &[SocketAddr]| {
            format!(
                "  - job_name: {job}\n    static_configs: [{{ targets: {:?} }}]\n",
                targets.iter().map(ToString::to_string).collect::<Vec<_>>()
            )
        };
        let jobs = target("flowgate", &[fleet.first.admin, fleet.second.admin])
            + &target("observer", &[fleet.observer.admin]);
        let config = format!("{}scrape_configs:\n{jobs}", head.replace("15s", INTERVAL));
        std::fs::write(folder.path().join("prometheus.yaml"), config).unwrap();
        std::fs::copy(
            "deploy/prometheus/rules.yaml",
            folder.path().join("rules.yaml"),
        )
        .unwrap();
        let address = TcpListener::bind("127.0.0.1:0")
            .unwrap()
            .local_addr()
            .unwrap();
        let log = std::fs::File::create(folder.path().join("log")).unwrap();
        let child = Command::new("prometheus")
            .args(["--config.file=prometheus.yaml", "--storage.tsdb.path=data"])
            .arg(format!("--web.listen-address={address}"))
            .current_dir(folder.path())
            .stdin(Stdio::null())
            .stderr(log)
            .kill_on_drop(true)
            .spawn()
            .expect("prometheus is installed");
        let this = Self {
            address,
            _child: child,
            folder,
        };
        this.until_ready().await;
        this
    }

    async fn until_ready(&self) {
        let give_up = Instant::now() + Duration::from_secs(60);
        while self
            .get("/-/ready")
            .await
            .is_none_or(|(status, _)| status != 200)
        {
            let log = || std::fs::read_to_string(self.folder.path().join("log"));
            assert!(Instant::now() < give_up, "{}", log().unwrap());
            sleep(Duration::from_millis(50)).await;
        }
    }

    /// `None` while it does not listen.
    async fn get(&self, path: &str) -> Option<(u16, String)> {
        let mut stream = TcpStream::connect(self.address).await.ok()?;
        stream
            .write_all(format!("GET {path} HTTP/1.0\r\n\r\n").as_bytes())
            .await
            .ok()?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.ok()?;
        let (head, body) = answer.split_once("\r\n\r\n")?;
        Some((head.split(' ').nth(1)?.parse().ok()?, body.to_owned()))
    }

    async fn api(&self, path: &str) -> Value {
        let (status, body) = self.get(&format!("/api/v1/{path}")).await.unwrap();
        assert_eq!(status, 200, "{path}: {body}");
        serde_json::from_str::<Value>(&body).unwrap()["data"].clone()
    }

    /// The values of a query over the load, without NaN.
    async fn range(&self, query: &str, start: f64, end: f64) -> Seen {
        let data = self
            .api(&format!(
                "query_range?query={}&start={start}&end={end}&step=1",
                encode(query)
            ))
            .await;
        let series = data["result"].as_array().unwrap();
        let samples = series
            .iter()
            .flat_map(|series| series["values"].as_array().unwrap());
        let numbers = samples.map(|sample| sample[1].as_str().unwrap().parse::<f64>().unwrap());
        let numbers: Vec<_> = numbers.filter(|number| number.is_finite()).collect();
        let largest = numbers.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        Seen {
            series: series.len(),
            samples: numbers.len(),
            largest,
        }
    }
}

fn now() -> f64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap()
        .as_secs_f64()
}

/// Title and query of each target of each panel, with the dashboard's variables at "All".
fn queries() -> Vec<(String, String)> {
    let board = std::fs::read_to_string("deploy/grafana/flowgate.json").unwrap();
    let board: Value = serde_json::from_str(&board).unwrap();
    let mut queries = Vec::new();
    for panel in board["panels"].as_array().unwrap() {
        for target in panel["targets"].as_array().into_iter().flatten() {
            let query = target["expr"]
                .as_str()
                .unwrap()
                .replace("$__rate_interval", RATE_INTERVAL);
            let query = query.replace("$job", ".*").replace("$account", ".*");
            let query = query.replace("$instance", ".*");
            assert!(!query.contains('$'), "{query}");
            queries.push((panel["title"].as_str().unwrap().to_owned(), query));
        }
    }
    queries
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "scripts/test runs it in the step prometheus"]
async fn every_panel_shows_something_and_every_rule_works() {
    let fleet = Fleet::start().await;
    let prometheus = Prometheus::start(&fleet).await;
    let start = now();
    fleet.load().await;
    let load = (start, now());

    let mut empty = Vec::new();
    for (title, query) in queries() {
        let Seen {
            series,
            samples,
            largest,
        } = prometheus.range(&query, load.0, load.1).await;
        eprintln!(
            "panel   {title:32} {series:3} series {samples:4} samples, at most {largest:.3}   {query}"
        );
        if samples == 0 {
            empty.push(format!("{title}: {query}"));
        }
    }
    let groups = prometheus.api("rules").await;
    let rules: Vec<_> = groups["groups"]
        .as_array()
        .unwrap()
        .iter()
        .flat_map(|group| group["rules"].as_array().unwrap())
        .collect();
    assert!(rules.len() > 20);
    let mut firing = Vec::new();
    for rule in rules {
        let name = rule["name"].as_str().unwrap();
        assert_eq!(
            (rule["health"].as_str(), rule["lastError"].as_str()),
            (Some("ok"), None),
            "{rule}"
        );
        if rule["type"] == "recording" {
            let Seen {
                series,
                samples,
                largest,
            } = prometheus.range(name, load.0, load.1).await;
            eprintln!(
                "record  {name:50} {series:3} series {samples:4} samples, at most {largest:.3}"
            );
            if samples == 0 {
                empty.push(name.to_owned());
            }
        } else {
            eprintln!("alert   {name:32} {}", rule["state"]);
            firing.extend((rule["state"] == "firing").then_some(name));
        }
    }
    assert!(
        empty.is_empty(),
        "nothing to be seen of\n{}",
        empty.join("\n")
    );
    // Of the alerts without a waiting time, the one that the load triggers.
    assert_eq!(firing, ["OutcomeUnknown"]);
}

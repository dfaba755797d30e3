//! Flowgate in front of a simulated endpoint, both on free loopback ports, with access to their
//! pages.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::Duration;

use cams_sim::{Running, Settings, Sim};
use flowgate::{App, config};
use tokio::time::Instant;

use crate::caller::{self, KEY, SECRET};

/// Secrets by the name of their variable.
const SECRETS: [(&str, &str); 3] = [
    ("MANAGED", SECRET),
    ("TEAM", "team-secret-1"),
    ("WRONG", "not-the-secret"),
];

/// The gap between windows: long enough that a busy machine's delays bring no sixth call into a
/// second. The rate with the default gap is tested in simulated time, in `journey` and by the demo.
pub(crate) const GAP: &str = "[learn]\ngap = \"100ms\"\nmax_gap = \"100ms\"\n";

pub(crate) struct Harness {
    pub(crate) sim: Running,
    pub(crate) app: App,
    pub(crate) proxy: SocketAddr,
    pub(crate) admin: SocketAddr,
    _folder: tempfile::TempDir,
}

/// Metrics as Prometheus reads them: name and labels to value.
pub(crate) struct Metrics(BTreeMap<String, f64>);

// === impl Harness ===

impl Harness {
    /// The simulator knows the managed key, which the proxy has as account `acme`. `more` is TOML
    /// and continues `[upstream]`. The gap is `GAP` unless `more` has a `[learn]` section.
    pub(crate) async fn new(more: &str) -> Self {
        Self::with(Settings::default(), more).await
    }

    pub(crate) async fn with(settings: Settings, more: &str) -> Self {
        let sim = Sim::start(settings.with_key(KEY, SECRET, "acme"))
            .await
            .expect("the simulator starts");
        let upstream = sim.url();
        Self::in_front_of(sim, &upstream, more).await
    }

    /// Like `with`, but the proxy dials `upstream`.
    pub(crate) async fn in_front_of(sim: Running, upstream: &str, more: &str) -> Self {
        let gap = if more.contains("[learn]") { "" } else { GAP };
        let toml = format!(
            "[[accounts]]\nid = \"acme\"\naccess_key_id = \"{KEY}\"\naccess_key_secret = {{ env = \"MANAGED\" }}\n\
             {gap}[upstream]\nurl = \"{upstream}\"\n{more}"
        );
        Self::configured(sim, &toml).await
    }

    /// Starts the proxy with this configuration, on free ports.
    pub(crate) async fn configured(sim: Running, toml: &str) -> Self {
        let folder = tempfile::tempdir().expect("a folder for temporary files");
        let app = App::start(load(&folder, toml))
            .await
            .expect("flowgate starts");
        let proxy = app.proxy_address();
        let admin = app.admin_address();
        let nowhere = SocketAddr::from(([127, 0, 0, 1], 0));
        Self {
            sim,
            app,
            proxy: proxy.unwrap_or(nowhere),
            admin: admin.expect("a TCP port"),
            _folder: folder,
        }
    }

    /// The address as a Host header.
    pub(crate) fn host(&self) -> String {
        self.proxy.to_string()
    }

    pub(crate) async fn get(&self, path: &str) -> caller::Reply {
        get(self.admin, path).await
    }

    pub(crate) async fn metrics(&self) -> Metrics {
        Metrics::of(self.admin).await
    }

    /// Waits until a metric has at least this value, for events that have no other sign.
    pub(crate) async fn until(&self, series: &str, value: f64) {
        Metrics::until(self.admin, series, |seen| seen >= value).await;
    }

    /// The only lane on the admin page.
    pub(crate) async fn lane(&self) -> serde_json::Value {
        self.get("/lanes").await.json()["lanes"][0].clone()
    }
}

/// Parses TOML, with the tests' secrets as its environment. Both listeners use free ports unless
/// the text names them.
pub(crate) fn load(folder: &tempfile::TempDir, toml: &str) -> config::Config {
    let listen = "proxy = \"127.0.0.1:0\"\nadmin = \"127.0.0.1:0\"\n";
    let toml = match toml.split_once("[listen]\n") {
        Some((before, after)) if after.contains("proxy =") => {
            format!("{before}[listen]\nadmin = \"127.0.0.1:0\"\n{after}")
        }
        Some((before, after)) => format!("{before}[listen]\n{listen}{after}"),
        None => format!("{toml}\n[listen]\n{listen}"),
    };
    let path = folder.path().join("flowgate.toml");
    std::fs::write(&path, toml).expect("the temporary folder takes files");
    let env = SECRETS.map(|(name, secret)| (name.into(), secret.into()));
    match config::load(Some(&path), env) {
        Ok(loaded) => loaded.config,
        Err(mistakes) => panic!("{mistakes}"),
    }
}

pub(crate) async fn get(admin: SocketAddr, path: &str) -> caller::Reply {
    let request = format!("GET {path} HTTP/1.1\r\nhost: {admin}\r\nconnection: close\r\n\r\n");
    caller::exchange(admin, request.as_bytes())
        .await
        .expect("the admin port answers")
}

/// Checks that every call was served. Shows the first answer that says otherwise.
#[track_caller]
pub(crate) fn are_served(replies: &[caller::Reply]) {
    let statuses: Vec<_> = replies.iter().map(|reply| reply.status).collect();
    let other = replies.iter().find(|reply| reply.status != 200);
    assert!(other.is_none(), "{statuses:?}: {other:?}");
}

// === impl Metrics ===

impl Metrics {
    /// Reads the current metrics from the admin port.
    pub(crate) async fn of(admin: SocketAddr) -> Self {
        Self::parse(&get(admin, "/metrics").await.body)
    }

    /// Waits until a series has the wanted value, and returns all metrics.
    pub(crate) async fn until(
        admin: SocketAddr,
        series: &str,
        wished: impl Fn(f64) -> bool,
    ) -> Self {
        let give_up = Instant::now() + Duration::from_secs(60);
        loop {
            let metrics = Self::of(admin).await;
            if wished(metrics.get(series)) {
                return metrics;
            }
            assert!(
                Instant::now() < give_up,
                "{series} stays at {}",
                metrics.get(series)
            );
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    fn parse(text: &str) -> Self {
        let sample = |line: &str| {
            let (series, value) = line.rsplit_once(' ')?;
            Some((series.to_owned(), value.parse().ok()?))
        };
        Self(
            text.lines()
                .filter(|line| !line.starts_with('#'))
                .filter_map(sample)
                .collect(),
        )
    }

    /// The series' value, or 0 without one. `name{label="value",...}` with the labels in
    /// alphabetical order.
    pub(crate) fn get(&self, series: &str) -> f64 {
        self.0.get(series).copied().unwrap_or(0.0)
    }

    /// The sum of all series of this name.
    pub(crate) fn sum(&self, name: &str) -> f64 {
        let of = |series: &&String| series.split('{').next() == Some(name);
        self.0.keys().filter(of).map(|series| self.0[series]).sum()
    }

    pub(crate) fn outcome(&self, account: &str, action: &str, outcome: &str) -> f64 {
        let labels = format!("{{account=\"{account}\",action=\"{action}\",outcome=\"{outcome}\"}}");
        self.get(&format!("flowgate_requests_total{labels}"))
    }
}

//! The rate limiters under comparison. Each is started for one row, with an endpoint of its own. A
//! limiter in the caller delays calls before they are signed; nginx and Flowgate are processes.

use std::fmt;
use std::net::SocketAddr;
use std::process::Stdio;
use std::time::Duration;

use cams_sim::{Running, Settings, Sim};
use leaky_bucket::RateLimiter;
use socket2::SockRef;
use tempfile::TempDir;
use tokio::net::{TcpListener, TcpStream};
use tokio::process::{Child, Command};
use tokio::time::{Instant, sleep, timeout};

use crate::caller::SECRET;
use crate::case::Case;
use crate::crowd::key;
use crate::flowgate;
use crate::process::Process;

/// What calls pass through.
#[derive(Clone, Copy)]
pub(crate) enum Contender {
    /// No limiter.
    Straight,
    /// nginx with `limit_req` by access key.
    Nginx,
    /// The crate leaky-bucket, with one limiter per account, shared by its callers.
    Limiter,
    /// Flowgate's binary with managed accounts: it verifies and signs.
    Flowgate,
}

/// The environment of a row. Everything ends when it is dropped.
pub(crate) struct Stage {
    pub(crate) cams: Running,
    /// The address to connect to.
    pub(crate) to: SocketAddr,
    /// The host that callers sign.
    pub(crate) host: String,
    /// The callers' own limiters, one for each account, or none.
    pub(crate) limiters: Vec<RateLimiter>,
    /// The process between callers and endpoint.
    _process: Between,
}

/// Resources between callers and endpoint that end with the row.
enum Between {
    Nothing,
    Nginx { _child: Child, _folder: TempDir },
    Flowgate { _process: Process },
}

pub(crate) const ALL: [Contender; 4] = [
    Contender::Straight,
    Contender::Nginx,
    Contender::Limiter,
    Contender::Flowgate,
];

/// The response time of CAMS.
const LATENCY: Duration = Duration::from_millis(30);

/// After a start Flowgate holds every token for one window and gap, because another process may
/// just have spent it.
const PAUSE: Duration = Duration::from_millis(1100);

/// With jitter on the path each five calls are around a tick: the worst case for an aligned window.
const BEFORE_TICK: Duration = Duration::from_millis(20);

/// Maximum start time of a process.
const PATIENCE: Duration = Duration::from_secs(10);

// === impl Contender ===

impl Contender {
    /// Starts it in front of a fresh CAMS and returns just before a tick of CAMS's clock; `None` if
    /// it is not installed.
    pub(crate) async fn prepare(self, case: Case) -> Option<Stage> {
        // Strict mode is meant for Flowgate's requests; nginx and these callers send hop-by-hop
        // headers.
        let settings = Settings {
            latency: LATENCY,
            jitter: case.jitter,
            strict: false,
            ..Settings::default()
        };
        let mut settings = Settings {
            keep_requests: false,
            ..settings
        }
        .with_limit(case.limit());
        for account in 0..case.size.accounts {
            settings = settings.with_key(&key(account), SECRET, &key(account));
        }
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        // A large backlog: a caller that finds it full comes a second late.
        SockRef::from(&listener).listen(4096).unwrap();
        let cams = Sim::new(settings).listen(listener).unwrap();
        let opened = Instant::now();
        let to = cams.addr();
        let host = cams.addr().to_string();
        let mut stage = Stage {
            cams,
            to,
            host,
            limiters: Vec::new(),
            _process: Between::Nothing,
        };
        match self {
            Self::Straight | Self::Limiter => {}
            Self::Nginx => stage.put_nginx_between().await?,
            Self::Flowgate => stage.put_flowgate_between(case.size.accounts).await,
        }
        let phase = Duration::from_nanos(opened.elapsed().subsec_nanos().into());
        sleep(Duration::from_secs(2) - BEFORE_TICK - phase).await;
        // Its second begins with the crowd, which is its best case: otherwise the next five follow
        // immediately.
        if matches!(self, Self::Limiter) {
            stage.limiters = (0..case.size.accounts).map(|_| limiter(case)).collect();
        }
        Some(stage)
    }
}

impl fmt::Display for Contender {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Straight => "nothing",
            Self::Nginx => "nginx limit_req",
            Self::Limiter => "limiter in the caller",
            Self::Flowgate => "**Flowgate**",
        })
    }
}

/// As an application would configure it: full at the start, refilled each second.
#[allow(
    clippy::disallowed_methods,
    reason = "it is what Flowgate is compared with"
)]
fn limiter(case: Case) -> RateLimiter {
    let five = usize::try_from(case.limit().per_window).unwrap();
    RateLimiter::builder()
        .max(five)
        .initial(five)
        .refill(five)
        .interval(case.limit().window)
        .build()
}

// === impl Stage ===

impl Stage {
    async fn put_nginx_between(&mut self) -> Option<()> {
        let folder = tempfile::tempdir().unwrap();
        let to = TcpListener::bind("127.0.0.1:0")
            .await
            .unwrap()
            .local_addr()
            .unwrap();
        std::fs::write(folder.path().join("nginx.conf"), nginx_conf(to, &self.host)).unwrap();
        // On Debian it is in a directory that is only in root's path.
        let start = |program: &str| {
            let mut command = Command::new(program);
            command
                .arg("-p")
                .arg(folder.path())
                .args(["-c", "nginx.conf", "-e", "stderr"]);
            command.stderr(Stdio::null()).kill_on_drop(true).spawn()
        };
        let child = start("nginx").or_else(|_| start("/usr/sbin/nginx")).ok()?;
        let ready = async {
            while TcpStream::connect(to).await.is_err() {
                sleep(Duration::from_millis(10)).await;
            }
        };
        timeout(PATIENCE, ready).await.expect("nginx listens");
        // nginx forwards the signed host by default.
        (self.to, self._process) = (
            to,
            Between::Nginx {
                _child: child,
                _folder: folder,
            },
        );
        Some(())
    }

    async fn put_flowgate_between(&mut self, accounts: usize) {
        let process = flowgate::start(&self.cams.url(), accounts, "").await;
        (self.to, self.host) = (process.proxy, process.proxy.to_string());
        self._process = Between::Flowgate { _process: process };
        sleep(PAUSE).await;
    }
}

/// One process, paced by the access key of the V3 signature, with room for all calls.
fn nginx_conf(listen: SocketAddr, cams: &str) -> String {
    format!(
        "daemon off; master_process off; pid nginx.pid; worker_rlimit_nofile 8192;
         events {{ worker_connections 4096; }}
         http {{
             access_log off;
             client_body_temp_path body; proxy_temp_path proxy; fastcgi_temp_path fastcgi;
             uwsgi_temp_path uwsgi; scgi_temp_path scgi;
             map $http_authorization $access_key {{ \"~Credential=(?<id>[^,]+)\" $id; }}
             limit_req_zone $access_key zone=cams:10m rate=5r/s;
             server {{
                 listen {listen} backlog=4096;
                 location / {{
                     limit_req zone=cams burst=1000;
                     proxy_http_version 1.1;
                     proxy_pass http://{cams};
                 }}
             }}
         }}"
    )
}

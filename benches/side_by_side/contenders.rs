//! The proxies under comparison and their configurations. Each keeps connections on both sides,
//! logs no requests and has one worker, except Flowgate with two.

use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use crate::load;
use crate::process::Process;
use crate::{CONTENDER, OTHERS};

#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    Direct,
    Nginx,
    NginxLimit,
    NginxSigning,
    Haproxy,
    Envoy,
    EnvoySigning,
    Floor,
    Relayed,
    RelayedOnTwo,
    Managed,
}

/// Programs that are not this package's default.
#[derive(Clone, Copy)]
pub(crate) struct Programs<'a> {
    pub(crate) flowgate: &'a Path,
    pub(crate) envoy: Option<&'a Path>,
    /// nginx's module for JavaScript.
    pub(crate) njs: Option<&'a Path>,
}

/// Room and time for a waiting crowd.
const PATIENT: &str = "[queue]\nhold = \"10m\"\nmax_hold = \"10m\"\nmax_waiting = 20000\nmax_waiting_per_client = 20000\n";

/// A running contender.
pub(crate) struct Contender {
    pub(crate) process: Process,
    pub(crate) address: SocketAddr,
}

// === impl Kind ===

impl Kind {
    /// Those that the programs allow.
    pub(crate) fn all(programs: Programs<'_>) -> impl Iterator<Item = Self> {
        let all = [
            Self::Direct,
            Self::Nginx,
            Self::NginxLimit,
            Self::NginxSigning,
            Self::Haproxy,
            Self::Envoy,
            Self::EnvoySigning,
            Self::Floor,
            Self::Relayed,
            Self::Managed,
            Self::RelayedOnTwo,
        ];
        let (has_envoy, has_njs) = (programs.envoy.is_some(), programs.njs.is_some());
        all.into_iter().filter(move |kind| match kind {
            Self::Envoy | Self::EnvoySigning => has_envoy,
            Self::NginxSigning => has_njs,
            _ => true,
        })
    }

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Direct => "direct",
            Self::Nginx => "nginx proxy_pass",
            Self::NginxLimit => "nginx limit_req",
            Self::NginxSigning => "nginx njs, verifies and signs",
            Self::Haproxy => "HAProxy",
            Self::Envoy => "Envoy",
            Self::EnvoySigning => "Envoy, signs for AWS",
            Self::Floor => "floor (hyper)",
            Self::Relayed => "Flowgate relayed",
            Self::RelayedOnTwo => "Flowgate relayed, 2 workers",
            Self::Managed => "Flowgate managed",
        }
    }

    pub(crate) fn is_managed(self) -> bool {
        matches!(self, Self::Managed | Self::NginxSigning)
    }
}

/// Starts it and waits until it accepts.
pub(crate) fn start(
    kind: Kind,
    upstream: SocketAddr,
    folder: &Path,
    programs: Programs<'_>,
) -> Option<Contender> {
    let path = folder.join("configuration");
    let port = free_port();
    let write = |text: String| std::fs::write(&path, text).unwrap();
    let command = match kind {
        Kind::Direct => return None,
        Kind::Floor => {
            let mut process = Process::this(CONTENDER, &["floor".into(), upstream.to_string()]);
            let address = process.address();
            return Some(Contender { process, address });
        }
        Kind::Nginx | Kind::NginxLimit | Kind::NginxSigning => {
            if kind == Kind::NginxSigning {
                std::fs::write(folder.join("acs3.js"), include_str!("acs3.js")).unwrap();
            }
            write(nginx(kind, port, upstream, folder, programs.njs));
            command(
                "nginx",
                &["-p", text(folder), "-e", "stderr", "-c", text(&path)],
            )
        }
        Kind::Haproxy => {
            write(haproxy(port, upstream));
            command("haproxy", &["-db", "-f", text(&path)])
        }
        Kind::Envoy | Kind::EnvoySigning => {
            let path = folder.join("envoy.yaml");
            let signs = kind == Kind::EnvoySigning;
            std::fs::write(&path, envoy_yaml(port, upstream, signs)).unwrap();
            let mut command = command(
                text(programs.envoy?),
                &[
                    "--concurrency",
                    "1",
                    "-l",
                    "error",
                    "--disable-hot-restart",
                    "-c",
                    text(&path),
                ],
            );
            command.envs([
                ("AWS_ACCESS_KEY_ID", "bench-key"),
                ("AWS_SECRET_ACCESS_KEY", "bench-secret"),
            ]);
            command
        }
        Kind::Relayed | Kind::RelayedOnTwo | Kind::Managed => {
            flowgate(kind, port, upstream, folder, programs.flowgate)
        }
    };
    let both = format!("{CONTENDER},{OTHERS}");
    let process = Process::start(
        if kind == Kind::RelayedOnTwo {
            &both
        } else {
            CONTENDER
        },
        &command,
    );
    let address = SocketAddr::from(([127, 0, 0, 1], port));
    // Loading nine thousand accounts takes seconds.
    for _ in 0..120_000 {
        if TcpStream::connect(address).is_ok() {
            return Some(Contender { process, address });
        }
        std::thread::sleep(Duration::from_micros(500));
    }
    panic!("{} does not listen", kind.name());
}

/// Without a log line per call, like the others.
fn flowgate(kind: Kind, port: u16, upstream: SocketAddr, folder: &Path, program: &Path) -> Command {
    let mut toml = format!(
        "log = {{ level = \"warn\" }}\n{PATIENT}[listen]\nmax_connections = 20000\nmax_connections_per_source = 20000\nproxy = \"127.0.0.1:{port}\"\nadmin = \"127.0.0.1:0\"\n\
         [upstream]\nurl = \"http://{upstream}\"\n"
    );
    if kind.is_managed() {
        toml += &load::accounts(load::ACCOUNTS, folder);
    }
    let path = folder.join("flowgate.toml");
    std::fs::write(&path, toml).unwrap();
    let mut command = command(text(program), &["--config", text(&path)]);
    command.env(
        "TOKIO_WORKER_THREADS",
        if kind == Kind::RelayedOnTwo { "2" } else { "1" },
    );
    command
}

fn nginx(kind: Kind, port: u16, upstream: SocketAddr, folder: &Path, njs: Option<&Path>) -> String {
    let folder = text(folder);
    let (mut module, mut zone, mut limit) = (String::new(), String::new(), String::new());
    let mut host = upstream.to_string();
    if kind == Kind::NginxLimit {
        let key = r#"map $http_authorization $key { default $http_authorization; "~Credential=(?<id>[^,]+)" $id; }"#;
        zone = format!("{key}\n limit_req_zone $key zone=keys:64m rate=5r/s;");
        limit = "limit_req zone=keys burst=20000;".into();
    } else if let (Kind::NginxSigning, Some(njs)) = (kind, njs) {
        module = format!("load_module {};\n", text(njs));
        zone = format!(
            "js_path {folder}; js_import acs3 from acs3.js; js_set $signed acs3.authorization;\n\
             js_var $nonce; js_var $date;"
        );
        // The variable is evaluated once: what it refuses is empty.
        limit = "if ($signed = \"\") { return 403; } proxy_set_header Authorization $signed;\n\
                 proxy_set_header x-acs-signature-nonce $nonce; proxy_set_header x-acs-date $date;"
            .into();
        host = "$http_host".into();
    }
    let temps: String = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"]
        .map(|name| format!("{name}_temp_path {folder}/{name};\n"))
        .concat();
    format!(
        "{module}daemon off; worker_processes 1; worker_rlimit_nofile 65536; pid {folder}/pid; events {{ worker_connections 32768; }}\n\
         http {{ access_log off; keepalive_requests 100000000; {zone}\n{temps}\
         upstream backend {{ server {upstream}; keepalive 128; keepalive_requests 100000000; }}\n\
         server {{ listen 127.0.0.1:{port} backlog=4096; location / {{ {limit} proxy_pass http://backend;\n\
         proxy_http_version 1.1; proxy_set_header Connection \"\"; proxy_set_header Host {host}; }} }} }}\n"
    )
}

fn haproxy(port: u16, upstream: SocketAddr) -> String {
    format!(
        "global\n nbthread 1\n maxconn 4000\ndefaults\n mode http\n timeout connect 5s\n timeout client 60s\n timeout server 60s\n \
         http-reuse always\nfrontend front\n bind 127.0.0.1:{port}\n default_backend back\nbackend back\n server one {upstream}\n"
    )
}

fn envoy_yaml(port: u16, upstream: SocketAddr, signs: bool) -> String {
    let endpoint = upstream.port();
    let signing = if signs {
        r#"- name: envoy.filters.http.aws_request_signing
            typed_config:
              "@type": type.googleapis.com/envoy.extensions.filters.http.aws_request_signing.v3.AwsRequestSigning
              service_name: execute-api
              region: us-east-1
          "#
    } else {
        ""
    };
    format!(
        r#"static_resources:
  listeners:
  - address: {{ socket_address: {{ address: 127.0.0.1, port_value: {port} }} }}
    filter_chains:
    - filters:
      - name: envoy.filters.network.http_connection_manager
        typed_config:
          "@type": type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager
          stat_prefix: bench
          route_config: {{ virtual_hosts: [ {{ name: all, domains: ["*"], routes: [ {{ match: {{ prefix: "/" }}, route: {{ cluster: back }} }} ] }} ] }}
          http_filters:
          {signing}- name: envoy.filters.http.router
            typed_config: {{ "@type": type.googleapis.com/envoy.extensions.filters.http.router.v3.Router }}
  clusters:
  - name: back
    type: STATIC
    load_assignment:
      cluster_name: back
      endpoints: [ {{ lb_endpoints: [ {{ endpoint: {{ address: {{ socket_address: {{ address: 127.0.0.1, port_value: {endpoint} }} }} }} }} ] }} ]
"#
    )
}

fn command(program: &str, arguments: &[&str]) -> Command {
    let mut command = Command::new(program);
    command.args(arguments);
    command
}

fn text(path: &Path) -> &str {
    path.to_str().expect("the benchmark's paths are text")
}

/// A port that was free a moment ago: these contenders cannot report a port that they chose.
fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap()
        .port()
}

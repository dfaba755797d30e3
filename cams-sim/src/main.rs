//! The simulated CAMS endpoint as a program, for demos and for tests in other languages. It prints
//! its addresses at the start, and its records as JSON on SIGINT or SIGTERM.

use std::io::{self, Write};
use std::path::PathBuf;
use std::time::{Duration, SystemTime};

use cams_sim::{
    FlowSettings, Key, Kind, Limit, MetadataSettings, Role, Rule, Running, Settings, Sim,
    StsSettings, parse_duration, parse_skew,
};
use clap::{Parser, ValueEnum};
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};

/// A simulated CAMS endpoint, with STS and an instance's metadata service beside it. What Alibaba does
/// not document is an option here.
///
/// Calls of CAMS and STS come to the same address. While it runs, paths under /__ control it:
/// GET /__report, /__arrivals, /__credentials (without secrets) and /__flows; POST /__faults with a JSON
/// list of rules, /__skew with a JSON text such as "-20m", /__end-sessions, /__reset. Flows are changed
/// without a call by POST /__create-flow {"account","name","space","categories","status"},
/// /__rename-flow {"id","name"} and /__delete-flow {"id"}.
#[derive(Debug, Parser)]
struct Arguments {
    /// Address to listen on; port 0 takes a free port.
    #[arg(long, default_value = "127.0.0.1:0")]
    listen: String,
    /// An access key, as ID:SECRET[:ACCOUNT[:STS-TOKEN]]; may be repeated.
    #[arg(
        long = "key",
        value_name = "KEY",
        default_value = "test-key:test-secret:test-account"
    )]
    keys: Vec<Key>,
    /// How CreateFlow's window moves.
    #[arg(long, value_enum, default_value = "sliding")]
    kind: KindName,
    /// CreateFlow calls per window and account. ListFlow, GetFlow and DeleteFlow have the documented 5 a
    /// second.
    #[arg(long, default_value_t = 5)]
    limit: u32,
    /// Length of the window.
    #[arg(long, default_value = "1s", value_parser = parse_duration)]
    window: Duration,
    /// Count refused calls like accepted ones.
    #[arg(long)]
    refused_count: bool,
    /// Send x-acs-retry-after with refusals: the time until the next call would pass.
    #[arg(long)]
    hints: bool,
    /// Calls per second that an outsider spends.
    #[arg(long, value_name = "PER_SECOND", default_value_t = 0)]
    outsider: u32,
    /// Time from counting a call to its response.
    #[arg(long, default_value = "0ms", value_parser = parse_duration)]
    latency: Duration,
    /// Maximum random time from receiving a call to counting it.
    #[arg(long, default_value = "0ms", value_parser = parse_duration)]
    jitter: Duration,
    /// Seed of jitter, percentages and request ids.
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// The only Host that is served; any by default.
    #[arg(long)]
    host: Option<String>,
    /// Accept calls without checking key, time, signature and nonce.
    #[arg(long)]
    no_signatures: bool,
    /// Accept duplicate parameters, hop-by-hop headers and unsigned bodies.
    #[arg(long)]
    lenient: bool,
    /// Do not record targets, headers and bodies.
    #[arg(long)]
    forget_requests: bool,
    /// A fault such as "next=3,throttle" or "named=doomed,close-after"; may be repeated. One of STS
    /// or the metadata service names its action, or all: "action=sts,unavailable" or
    /// "next=1,action=MetadataCredentials,expired".
    #[arg(long = "fault", value_name = "RULE")]
    faults: Vec<Rule>,
    /// How far the clock is off, such as 20m or -20m: of dates, time stamps and sessions.
    #[arg(long, value_parser = parse_skew, allow_hyphen_values = true)]
    skew: Option<SystemTime>,
    #[command(flatten)]
    flows: Flows,
    #[command(flatten)]
    tls: Tls,
    #[command(flatten)]
    sts: Sts,
    #[command(flatten)]
    metadata: Metadata,
}

/// What is undocumented about flows.
#[derive(Debug, clap::Args)]
struct Flows {
    /// Time from a flow's creation until ListFlow shows it.
    #[arg(long, value_name = "TIME", default_value = "0ms", value_parser = parse_duration)]
    list_lag: Duration,
    /// Maximum number of flows on a page of ListFlow, whatever Size is asked for; no maximum by default.
    #[arg(long, value_name = "FLOWS", value_parser = clap::value_parser!(u32).range(1..))]
    page_cap: Option<u32>,
    /// Refuse a Size above the maximum.
    #[arg(long, requires = "page_cap")]
    page_cap_refuses: bool,
    /// ListFlow's FlowName selects all names that contain it, without regard to case.
    #[arg(long)]
    fuzzy: bool,
    /// Whether CreateFlow creates drafts; otherwise its flows are published.
    #[arg(long, default_value_t = true, action = clap::ArgAction::Set)]
    draft: bool,
}

/// The HTTPS listener.
#[derive(Debug, Clone, clap::Args)]
struct Tls {
    /// Address of a second listener, by HTTPS, because libraries call STS by HTTPS only.
    #[arg(long, value_name = "ADDRESS", requires_all = ["tls_cert", "tls_key"])]
    tls_listen: Option<String>,
    /// PEM file of the certificate chain.
    #[arg(long, value_name = "FILE")]
    tls_cert: Option<PathBuf>,
    /// PEM file of the certificate's key.
    #[arg(long, value_name = "FILE")]
    tls_key: Option<PathBuf>,
}

/// STS.
#[derive(Debug, clap::Args)]
struct Sts {
    /// The only Host that STS serves; any by default.
    #[arg(long)]
    sts_host: Option<String>,
    /// A role that exists, as ARN[,EXTERNAL-ID]; may be repeated. Without any, every well-formed ARN
    /// is a role. Its sessions spend the quota of the account in the ARN.
    #[arg(long = "role", value_name = "ROLE")]
    roles: Vec<Role>,
    /// Lifetime of every session, whatever was asked for.
    #[arg(long, value_name = "TIME", value_parser = parse_duration)]
    session_lifetime: Option<Duration>,
    /// An accepted OIDC token; may be repeated. Without any, every token is accepted whose claims are
    /// not wrong.
    #[arg(long = "oidc-token", value_name = "TOKEN")]
    oidc_tokens: Vec<String>,
    /// Calls per second, account and action of STS.
    #[arg(long, value_name = "PER_SECOND", default_value_t = 100)]
    sts_limit: u32,
}

/// The metadata service and the credentials URI.
#[derive(Debug, clap::Args)]
struct Metadata {
    /// Address of the metadata service and of the credentials URI, whose path is /credentials; not
    /// served by default.
    #[arg(long, value_name = "ADDRESS")]
    metadata_listen: Option<String>,
    /// The instance's role; empty for an instance without one.
    #[arg(long, value_name = "NAME", default_value = "flowgate-role")]
    metadata_role: String,
    /// The number of the role's account.
    #[arg(long, value_name = "NUMBER", default_value = "123456789012")]
    metadata_account: String,
    /// Serve only version 2, the one with tokens.
    #[arg(long)]
    metadata_tokens_required: bool,
    /// End the role's name and tokens with a newline.
    #[arg(long)]
    metadata_newline: bool,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum KindName {
    Sliding,
    Aligned,
    Smooth,
}

#[tokio::main]
async fn main() -> io::Result<()> {
    let arguments = Arguments::parse();
    let listener = TcpListener::bind(&arguments.listen).await?;
    let mut interrupted = signal(SignalKind::interrupt())?;
    let mut terminated = signal(SignalKind::terminate())?;
    let tls = arguments.tls.clone();
    let metadata = arguments.metadata.metadata_listen.clone();
    let running = Sim::new(arguments.settings()).listen(listener)?;
    writeln!(io::stdout(), "cams-sim listening on {}", running.url())?;
    let _others = listen_beside(&running, &tls, metadata.as_deref()).await?;
    tokio::select! {
        _ = interrupted.recv() => {}
        _ = terminated.recv() => {}
    }
    let report = running.stop().await.report();
    writeln!(io::stdout(), "{}", serde_json::to_string_pretty(&report)?)
}

/// Starts the listeners that were asked for beside the first, and prints their addresses.
async fn listen_beside(sim: &Sim, tls: &Tls, metadata: Option<&str>) -> io::Result<Vec<Running>> {
    let mut running = Vec::new();
    if let (Some(address), Some(cert), Some(key)) = (&tls.tls_listen, &tls.tls_cert, &tls.tls_key) {
        let listener = TcpListener::bind(address).await?;
        let (cert, key) = (std::fs::read(cert)?, std::fs::read(key)?);
        let https = sim.clone().listen_tls(listener, &cert, &key)?;
        writeln!(io::stdout(), "cams-sim listening on {}", https.url())?;
        running.push(https);
    }
    if let Some(address) = metadata {
        let listener = TcpListener::bind(address).await?;
        let service = sim.metadata().listen(listener)?;
        writeln!(io::stdout(), "cams-sim metadata on {}", service.url())?;
        running.push(service);
    }
    Ok(running)
}

// === impl Arguments ===

impl Arguments {
    fn settings(self) -> Settings {
        let kind = match self.kind {
            KindName::Sliding => Kind::Sliding,
            KindName::Aligned => Kind::Aligned,
            KindName::Smooth => Kind::Smooth,
        };
        let limit = Limit {
            per_window: self.limit,
            window: self.window,
            kind,
            refused_count: self.refused_count,
            outsider_every: Duration::from_secs(1).checked_div(self.outsider),
            hints: self.hints,
        };
        let settings = Settings {
            keys: self.keys,
            latency: self.latency,
            jitter: self.jitter,
            seed: self.seed,
            check_signatures: !self.no_signatures,
            strict: !self.lenient,
            host: self.host,
            faults: self.faults,
            keep_requests: !self.forget_requests,
            now: self.skew,
            sts: self.sts.settings(),
            metadata: self.metadata.settings(),
            flows: self.flows.settings(),
            ..Settings::default()
        };
        settings.with_limit(limit)
    }
}

// === impl Flows ===

impl Flows {
    fn settings(self) -> FlowSettings {
        FlowSettings {
            list_lag: self.list_lag,
            page_cap: self.page_cap.and_then(|cap| usize::try_from(cap).ok()),
            page_cap_refuses: self.page_cap_refuses,
            fuzzy: self.fuzzy,
            draft: self.draft,
        }
    }
}

// === impl Sts ===

impl Sts {
    fn settings(self) -> StsSettings {
        let usual = StsSettings::default();
        StsSettings {
            host: self.sts_host,
            roles: self.roles,
            lifetime: self.session_lifetime,
            oidc_tokens: self.oidc_tokens,
            limit: Limit {
                per_window: self.sts_limit,
                ..usual.limit
            },
            ..usual
        }
    }
}

// === impl Metadata ===

impl Metadata {
    fn settings(self) -> MetadataSettings {
        MetadataSettings {
            role: Some(self.metadata_role).filter(|role| !role.is_empty()),
            account: self.metadata_account,
            tokens_required: self.metadata_tokens_required,
            newline: self.metadata_newline,
        }
    }
}

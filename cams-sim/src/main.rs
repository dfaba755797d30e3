//! The simulated CAMS endpoint as a program, for demos and for tests in other languages. It prints its address first, and on SIGINT or SIGTERM what
//! it saw, as JSON.

use std::io::{self, Write};
use std::time::Duration;

use cams_sim::{Key, Kind, Limit, Rule, Settings, Sim, parse_duration};
use clap::{Parser, ValueEnum};
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};

/// The CAMS endpoint, simulated: what it does not document is an option here.
#[derive(Debug, Parser)]
struct Arguments {
    /// Where to listen; port 0 takes a free one.
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
    /// CreateFlow calls per window and account.
    #[arg(long, default_value_t = 5)]
    limit: u32,
    /// The window's length.
    #[arg(long, default_value = "1s", value_parser = parse_duration)]
    window: Duration,
    /// Refused calls count like accepted ones.
    #[arg(long)]
    refused_count: bool,
    /// Refusals say in x-acs-retry-after when the next call would pass.
    #[arg(long)]
    hints: bool,
    /// So many calls a second are spent by an outsider.
    #[arg(long, value_name = "PER_SECOND", default_value_t = 0)]
    outsider: u32,
    /// How long an answer takes after the call was counted.
    #[arg(long, default_value = "0ms", value_parser = parse_duration)]
    latency: Duration,
    /// A call takes up to this long until it is counted.
    #[arg(long, default_value = "0ms", value_parser = parse_duration)]
    jitter: Duration,
    /// Seed of jitter, chances and request ids.
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// The one Host that is served; any by default.
    #[arg(long)]
    host: Option<String>,
    /// Accept calls without looking at key, time, signature and nonce.
    #[arg(long)]
    no_signatures: bool,
    /// Let doubled parameters, hop headers and unsigned bodies pass.
    #[arg(long)]
    lenient: bool,
    /// Do not keep targets, headers and bodies of what arrives.
    #[arg(long)]
    forget_requests: bool,
    /// A fault, like "next=3,throttle" or "named=doomed,close-after"; may be repeated.
    #[arg(long = "fault", value_name = "RULE")]
    faults: Vec<Rule>,
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
    let (mut interrupted, mut terminated) = (
        signal(SignalKind::interrupt())?,
        signal(SignalKind::terminate())?,
    );
    let running = Sim::new(arguments.settings()).listen(listener)?;
    writeln!(io::stdout(), "cams-sim listening on {}", running.url())?;
    tokio::select! {
        _ = interrupted.recv() => {}
        _ = terminated.recv() => {}
    }
    let report = running.stop().await.report();
    writeln!(io::stdout(), "{}", serde_json::to_string_pretty(&report)?)
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
            ..Settings::default()
        };
        settings.with_limit(limit)
    }
}

//! The simulated CAMS endpoint as a program, for demos and for tests in other languages. It prints
//! its address at the start, and its records as JSON on SIGINT or SIGTERM.

use std::io::{self, Write};
use std::time::Duration;

use cams_sim::{Key, Kind, Limit, Rule, Settings, Sim, parse_duration};
use clap::{Parser, ValueEnum};
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};

/// A simulated CAMS endpoint. What CAMS does not document is an option here.
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
    /// CreateFlow calls per window and account.
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
    /// A fault such as "next=3,throttle" or "named=doomed,close-after"; may be repeated.
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
    let mut interrupted = signal(SignalKind::interrupt())?;
    let mut terminated = signal(SignalKind::terminate())?;
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

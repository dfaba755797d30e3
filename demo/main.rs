//! Demonstrates what Flowgate changes. One process runs a simulated CAMS, Flowgate and sixty
//! customers that all call CreateFlow at once: first directly at CAMS, which takes five calls a
//! second, then through Flowgate. A table compares both runs. The process fails unless every call
//! through Flowgate succeeded, once, within the rate.
//!
//! `cargo run --release --example demo`; with `-- --serve` CAMS and Flowgate keep running, to try
//! them with a real SDK.

#![expect(
    clippy::print_stdout,
    reason = "standard output is where the demo shows its result"
)]

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, ensure};
use cams_sim::{Report, Running, Settings, Sim};
use clap::Parser;
use flowgate::App;
use flowgate::config::{self, Config};
use http_body_util::Empty;
use hyper::Request;
use indicatif::{ProgressBar, ProgressStyle};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep};

use crate::customer::{Key, Scheme, create_flow, send};

mod customer;
mod serve;

/// Makes sixty CreateFlow calls at once, directly to a simulated CAMS and through Flowgate.
#[derive(Parser)]
struct Arguments {
    /// Keep CAMS and Flowgate running afterwards, and print how to call them from Python and Node.
    #[arg(long)]
    serve: bool,
}

/// The result of sixty calls.
struct Run {
    /// Number of answers by `Code`, or by error where there was no answer.
    answers: BTreeMap<String, usize>,
    /// Time from the first request to the last answer.
    took: Duration,
    /// The simulated CAMS's own statistics.
    report: Report,
}

/// Calls in each run.
const CALLS: usize = 60;

/// Calls that CAMS accepts per second.
const PER_SECOND: usize = 5;

/// The shortest time in which CAMS can accept all calls: the first five at once, then five a
/// second.
const OPTIMUM: Duration = Duration::from_secs(((CALLS - 1) / PER_SECOND) as u64);

/// How much longer Flowgate may take.
const ALLOWANCE: Duration = Duration::from_millis(500);

/// The application's key; Flowgate, as its sidecar, signs with the same one.
const KEY: Key = Key {
    id: "demo-key",
    secret: "demo-secret",
};

/// How long CAMS takes to answer.
const LATENCY: Duration = Duration::from_millis(30);

/// After this time both CAMS and Flowgate have their full quota: the first run's calls have left
/// CAMS's window, and Flowgate's tokens are free one window and gap after its start (a previous
/// process may have spent them).
const PAUSE: Duration = Duration::from_millis(1100);

/// Metrics that are printed at the end.
const SHOWN: [&str; 6] = [
    "flowgate_requests_total",
    "flowgate_attempts_total",
    "flowgate_throttled_total",
    "flowgate_tokens_total",
    "flowgate_queue_wait_seconds_sum",
    "flowgate_queue_wait_seconds_count",
];

#[tokio::main]
async fn main() -> ExitCode {
    match demo(&Arguments::parse()).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("\nFAILED: {error:#}");
            ExitCode::FAILURE
        }
    }
}

async fn demo(arguments: &Arguments) -> anyhow::Result<()> {
    let cams = Sim::start(
        Settings {
            latency: LATENCY,
            ..Settings::default()
        }
        .with_key(KEY.id, KEY.secret, "demo"),
    );
    let cams = cams.await.context("the simulated CAMS cannot listen")?;
    let config = configuration(&cams)?;
    let log = config.log.clone();
    let flowgate = App::start(config).await?;
    let proxy = flowgate
        .proxy_address()
        .context("Flowgate listens on no port")?;
    let admin = flowgate
        .admin_address()
        .context("Flowgate has no admin port")?;

    let direct = run("direct", cams.addr(), &cams).await;
    cams.reset();
    sleep(PAUSE).await;
    let through = run("Flowgate", proxy, &cams).await;
    print_table(&direct, &through);
    print_metrics(admin).await?;
    through.check()?;

    if arguments.serve {
        let _guard = flowgate::process::logging::init(&log)?;
        serve::print_snippets(proxy, admin, &cams.url());
        flowgate.run().await?;
    } else {
        flowgate.drain().await;
    }
    Ok(())
}

/// The configuration of a sidecar: the application's key in Alibaba's own variables, and the
/// simulated CAMS as endpoint. The hold is just below the 30 s time-out of the SDKs of `--serve`,
/// which Flowgate cannot see.
fn configuration(cams: &Running) -> anyhow::Result<Config> {
    let variables = [
        ("ALIBABA_CLOUD_ACCESS_KEY_ID", KEY.id.to_owned()),
        ("ALIBABA_CLOUD_ACCESS_KEY_SECRET", KEY.secret.to_owned()),
        ("FLOWGATE_UPSTREAM__URL", cams.url()),
        ("FLOWGATE_LISTEN__PROXY", "127.0.0.1:0".to_owned()),
        ("FLOWGATE_LISTEN__ADMIN", "127.0.0.1:0".to_owned()),
        ("FLOWGATE_QUEUE__HOLD", "29s".to_owned()),
    ];
    let loaded = config::load(
        None,
        variables.map(|(name, value)| (name.into(), value.into())),
    )?;
    Ok(loaded.config)
}

/// All customers call at once, every second one with the old signature.
async fn run(title: &'static str, endpoint: SocketAddr, cams: &Sim) -> Run {
    let style =
        ProgressStyle::with_template("{prefix:8}  [{bar:40}] {pos:>2}/{len}  {elapsed}  {msg}");
    let style = style
        .expect("the template is well-formed")
        .progress_chars("=> ");
    let bar = ProgressBar::new(CALLS as u64)
        .with_style(style)
        .with_prefix(title);
    let started = Instant::now();
    let mut calls: JoinSet<_> = (0..CALLS)
        .map(|number| async move {
            let scheme = if number % 2 == 0 {
                Scheme::V3
            } else {
                Scheme::V1
            };
            create_flow(endpoint, KEY, scheme, &format!("survey-{number:02}")).await
        })
        .collect();
    let mut answers = BTreeMap::new();
    while let Some(answer) = calls.join_next().await {
        let code = answer
            .map_err(anyhow::Error::from)
            .and_then(|code| code)
            .unwrap_or_else(|error| format!("{error:#}"));
        *answers.entry(code).or_default() += 1;
        bar.set_message(summary(&answers));
        bar.inc(1);
        // Without a terminal for the bar, print a line for every 15 calls.
        if bar.is_hidden() && bar.position().is_multiple_of(15) {
            let seconds = started.elapsed().as_secs_f64();
            eprintln!(
                "{title:8}  {:>2}/{CALLS}  {seconds:>4.1} s  {}",
                bar.position(),
                bar.message()
            );
        }
    }
    let took = started.elapsed();
    bar.abandon();
    Run {
        answers,
        took,
        report: cams.report(),
    }
}

/// `5 OK, 55 System.LimitControl`.
fn summary(answers: &BTreeMap<String, usize>) -> String {
    let parts: Vec<String> = answers
        .iter()
        .map(|(code, count)| format!("{count} {code}"))
        .collect();
    parts.join(", ")
}

fn print_table(direct: &Run, through: &Run) {
    println!(
        "\n{CALLS} CreateFlow calls at once, half signed with V3, half with V1; CAMS takes {PER_SECOND} a second.\n"
    );
    println!("{:<44}{:>10}{:>10}", "", "direct", "Flowgate");
    let seconds = format!(
        "seconds (the least possible for all: {:.1})",
        OPTIMUM.as_secs_f64()
    );
    let names = [
        "succeeded",
        "throttled by the endpoint",
        "most calls sent within one second",
        "executed twice",
        &seconds,
    ];
    let rows = names.iter().zip(direct.cells()).zip(through.cells());
    for ((name, direct), through) in rows {
        println!("{name:<44}{direct:>10}{through:>10}");
    }
}

async fn print_metrics(admin: SocketAddr) -> anyhow::Result<()> {
    let request = Request::get("/metrics")
        .header("host", admin.to_string())
        .body(Empty::new())?;
    let page = send(admin, request).await.context("no metrics")?;
    println!("\nFrom http://{admin}/metrics:\n");
    let page = String::from_utf8_lossy(&page);
    page.lines()
        .filter(|line| SHOWN.iter().any(|name| line.starts_with(name)))
        .for_each(|line| println!("{line}"));
    Ok(())
}

// === impl Run ===

impl Run {
    fn succeeded(&self) -> usize {
        self.answers.get("OK").copied().unwrap_or(0)
    }

    /// The run's column of the table.
    fn cells(&self) -> [String; 5] {
        [
            format!("{} of {CALLS}", self.succeeded()),
            self.report.refused.to_string(),
            self.report.worst_window.to_string(),
            self.report.duplicates.len().to_string(),
            format!("{:.2}", self.took.as_secs_f64()),
        ]
    }

    /// Checks the results. A late end is only reported: on a busy machine two bursts may reach CAMS
    /// closer together than they were sent, and then its refusal costs a second.
    fn check(&self) -> anyhow::Result<()> {
        let succeeded = self.succeeded();
        let duplicates = self.report.duplicates.len();
        let worst = self.report.worst_window;
        ensure!(
            succeeded == CALLS && worst <= PER_SECOND as u64 && duplicates == 0,
            "expected {CALLS} OK, at most {PER_SECOND} within one second and none executed twice; \
             got {}, {worst} and {duplicates}",
            summary(&self.answers),
        );
        if self.took > OPTIMUM + ALLOWANCE {
            let took = self.took.as_secs_f64();
            let expected = (OPTIMUM + ALLOWANCE).as_secs_f64();
            eprintln!(
                "\nslower than expected: {took:.2} s instead of at most {expected:.1} s; is this machine busy?"
            );
        }
        Ok(())
    }
}

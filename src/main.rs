//! The binary: arguments, configuration, logs, then a running [`App`] until a signal. Exit code 64 for arguments or a
//! configuration that cannot be used, 1 when the start fails; nothing else ends the process.

use std::num::NonZeroUsize;
use std::process::ExitCode;

use clap::Parser;
use flowgate::cli::{Cli, Command};
use flowgate::config::{self, Loaded};
use flowgate::systemd::Handed;
use flowgate::{App, telemetry};
use tokio::runtime::{Builder, Runtime};

/// Calls come and go by the million, and what one leaves behind must serve the next.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// The configuration cannot be used (EX_USAGE of sysexits.h).
const BAD_CONFIGURATION: u8 = 64;

fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(answer) => {
            // Help and version are answers, too.
            drop(answer.print());
            return if answer.use_stderr() { ExitCode::from(BAD_CONFIGURATION) } else { ExitCode::SUCCESS };
        }
    };
    let file = cli.config.as_deref().filter(|file| !file.as_os_str().is_empty());
    let loaded = match config::load(file, std::env::vars_os()) {
        Ok(loaded) => loaded,
        Err(mistakes) => {
            eprintln!("{mistakes}");
            return ExitCode::from(BAD_CONFIGURATION);
        }
    };
    match cli.command {
        Some(Command::Check) => {
            loaded.warnings.iter().for_each(|warning| eprintln!("warning: {warning}"));
            eprintln!("the configuration is valid");
            ExitCode::SUCCESS
        }
        None => match run(loaded) {
            Ok(()) => ExitCode::SUCCESS,
            Err(error) => {
                eprintln!("flowgate: {error:#}");
                ExitCode::FAILURE
            }
        },
    }
}

/// Tokio's runtime for one thread where only one is wanted, as in a container of one core: the same work
/// then takes less of the kernel's time. `TOKIO_WORKER_THREADS` is tokio's own setting.
fn runtime() -> std::io::Result<Runtime> {
    let asked = std::env::var("TOKIO_WORKER_THREADS").ok().and_then(|threads| threads.parse().ok());
    let threads = asked.or_else(|| std::thread::available_parallelism().ok());
    let mut builder = match threads {
        Some(NonZeroUsize::MIN) => Builder::new_current_thread(),
        _ => Builder::new_multi_thread(),
    };
    builder.enable_all().build()
}

fn run(Loaded { config, warnings }: Loaded) -> anyhow::Result<()> {
    let handed = Handed::take()?;
    let _lines = telemetry::init(&config.log)?;
    warnings.iter().for_each(|warning| tracing::warn!(warning, "configuration"));
    runtime()?.block_on(async { App::start_on(config, handed).await?.run().await })
}

//! The binary: arguments, configuration, logs, then a running [`App`] until a signal, or a command's answer. Exit code 64 for arguments or a
//! configuration that cannot be used, 1 when the start fails, a journal has open attempts or nobody is healthy; nothing
//! else ends the process.

use std::fmt::Display;
use std::io::{self, IsTerminal, Write};
use std::num::NonZeroUsize;
use std::path::Path;
use std::process::ExitCode;
use std::thread;

use clap::Parser;
use flowgate::cli::ask::{self, Admin};
use flowgate::cli::status::Status;
use flowgate::cli::{Cli, ClientCommand, Command, journal as print_journal, pages};
use flowgate::config::{Loaded, Source, effective};
use flowgate::observe::journal;
use flowgate::process::systemd::Handed;
use flowgate::process::{hardening, logging};
use flowgate::{App, new_client};
use tokio::runtime::{Builder, Runtime};
use tokio::sync::watch;
use zeroize::Zeroizing;

/// Calls come and go by the million, and what one leaves behind must serve the next.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// The configuration cannot be used (EX_USAGE of sysexits.h).
const BAD_CONFIGURATION: u8 = 64;

fn main() -> ExitCode {
    // Before there is a secret in memory.
    let sealed = hardening::no_core_dumps();
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(answer) => {
            // Help and version are answers, too.
            drop(answer.print());
            return if answer.use_stderr() {
                ExitCode::from(BAD_CONFIGURATION)
            } else {
                ExitCode::SUCCESS
            };
        }
    };
    let file = cli
        .config
        .as_deref()
        .filter(|file| !file.as_os_str().is_empty());
    let source = Source {
        file: file.map(Path::to_owned),
        environment: None,
    };
    match &cli.command {
        None => run(source, sealed),
        Some(Command::Check { print }) => check(&source, *print),
        Some(Command::Status(wanted)) => status(wanted, &source),
        Some(Command::Health { ready }) => health(&source, *ready),
        Some(Command::Journal {
            file,
            json,
            unknown,
        }) => journal(file, *json, *unknown),
        Some(Command::Client(ClientCommand::New {
            id,
            account,
            secret_file,
        })) => print(new_client(id, account, secret_file.as_deref())),
        Some(Command::Completions { shell }) => write(&pages::completions(*shell)),
        Some(Command::Man { folder }) => manual(folder.as_deref()),
    }
}

/// Runs until a signal.
fn run(source: Source, sealed: io::Result<()>) -> ExitCode {
    let loaded = match source.load() {
        Ok(loaded) => loaded,
        Err(mistakes) => return unusable(&mistakes),
    };
    match serve(source, loaded, sealed) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => failed(&format!("{error:#}")),
    }
}

fn serve(source: Source, loaded: Loaded, sealed: io::Result<()>) -> anyhow::Result<()> {
    let handed = Handed::take()?;
    let _lines = logging::init(&loaded.config.log)?;
    if let Err(error) = sealed {
        tracing::warn!(%error, "a crash of this process may leave a core dump, with secrets in it");
    }
    loaded
        .warnings
        .iter()
        .for_each(|warning| tracing::warn!(warning, "configuration"));
    let own = runtime()?;
    let others = (1..threads())
        .map(|_| runtime())
        .collect::<io::Result<Vec<_>>>()?;
    let all = others
        .iter()
        .chain([&own])
        .map(|runtime| runtime.handle().clone())
        .collect();
    thread::scope(|scope| {
        // Dropped with this closure, which ends the others.
        let (_end, ended) = watch::channel(());
        for other in others {
            let mut ended = ended.clone();
            thread::Builder::new().spawn_scoped(scope, move || {
                drop(other.block_on(ended.changed()));
                other.shutdown_background();
            })?;
        }
        let served = own.block_on(async {
            App::start_from(source, loaded, handed, all)
                .await?
                .run()
                .await
        });
        // Dropped, it would wait for a look-up or for a file that hangs. What must be written has been, within the drain:
        // the spans and the journal. The journal ends with the last task, the log after this.
        own.shutdown_background();
        served
    })
}

/// How many threads serve. `TOKIO_WORKER_THREADS` is tokio's own setting.
fn threads() -> usize {
    let asked = std::env::var("TOKIO_WORKER_THREADS")
        .ok()
        .and_then(|threads| threads.parse().ok());
    asked
        .or_else(|| thread::available_parallelism().ok())
        .map_or(1, NonZeroUsize::get)
}

/// Each thread has one of its own: one for many threads takes more of the kernel's time for the same work.
fn runtime() -> io::Result<Runtime> {
    Builder::new_current_thread().enable_all().build()
}

/// Says what is wrong, or that nothing is, and what would hold.
fn check(source: &Source, print: bool) -> ExitCode {
    let Loaded {
        config, warnings, ..
    } = match source.load() {
        Ok(loaded) => loaded,
        Err(mistakes) => return unusable(&mistakes),
    };
    warnings
        .iter()
        .for_each(|warning| eprintln!("warning: {warning}"));
    eprintln!("the configuration is valid");
    if print {
        write(format!("{:#}\n", effective(&config)).as_bytes())
    } else {
        ExitCode::SUCCESS
    }
}

/// Shows the lanes of whoever listens there, once or until nobody looks any more.
fn status(wanted: &Status, source: &Source) -> ExitCode {
    let admin = match wanted.admin(source) {
        Ok(admin) => admin,
        Err(mistake) => return unusable(&mistake),
    };
    let runtime = match runtime() {
        Ok(runtime) => runtime,
        Err(error) => return failed(&error),
    };
    if wanted.watch {
        let mut out = io::stdout();
        let is_terminal = out.is_terminal();
        drop(runtime.block_on(wanted.watch(&admin, &mut out, is_terminal)));
        return ExitCode::SUCCESS;
    }
    match runtime.block_on(wanted.look(&admin)) {
        Ok(text) => write(text.as_bytes()),
        Err(error) => failed(&error),
    }
}

/// Asks whoever listens where the configuration says.
fn health(source: &Source, ready: bool) -> ExitCode {
    let admin = match source.admin() {
        Ok(bind) => Admin { bind, token: None },
        Err(mistakes) => return unusable(&mistakes),
    };
    let path = if ready { "/readyz" } else { "/livez" };
    let mistake = match runtime().map(|runtime| runtime.block_on(ask::ask(&admin, path))) {
        Ok(Ok(said)) if said.status.is_success() => return write(said.body.as_bytes()),
        Ok(Ok(said)) => format!(
            "{}{path} says {}: {}",
            admin.bind,
            said.status.as_u16(),
            said.body.trim_end()
        ),
        Ok(Err(error)) => error.to_string(),
        Err(error) => error.to_string(),
    };
    failed(&mistake)
}

/// Prints a page, or writes all of them into a folder.
fn manual(folder: Option<&Path>) -> ExitCode {
    let Some(folder) = folder else {
        return pages::manual().map_or_else(|error| failed(&error), |page| write(&page));
    };
    match pages::write_manual(folder) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => failed(&format!("{}: {error}", folder.display())),
    }
}

/// Lists what a journal says is open.
fn journal(file: &Path, json: bool, unknown: bool) -> ExitCode {
    let reading = match journal::read(file, unknown) {
        Ok(reading) => reading,
        Err(error) => {
            eprintln!("flowgate: {}: {error}", file.display());
            return ExitCode::from(BAD_CONFIGURATION);
        }
    };
    if reading.damaged() > 0 {
        eprintln!(
            "warning: {} damaged lines were passed over",
            reading.damaged()
        );
    }
    let printed = write(
        if json {
            print_journal::as_json(&reading)
        } else {
            print_journal::as_table(&reading)
        }
        .as_bytes(),
    );
    if reading.is_settled() {
        printed
    } else {
        ExitCode::FAILURE
    }
}

/// Prints a text, or the mistake in its place.
fn print(text: Result<Zeroizing<String>, String>) -> ExitCode {
    match text {
        Ok(text) => write(text.as_bytes()),
        Err(mistake) => unusable(&format!("flowgate: {mistake}")),
    }
}

/// Whoever does not want to read it to its end has had what they wanted.
fn write(text: &[u8]) -> ExitCode {
    drop(io::stdout().write_all(text));
    ExitCode::SUCCESS
}

fn unusable(mistake: &dyn Display) -> ExitCode {
    eprintln!("{mistake}");
    ExitCode::from(BAD_CONFIGURATION)
}

fn failed(mistake: &dyn Display) -> ExitCode {
    eprintln!("flowgate: {mistake}");
    ExitCode::FAILURE
}

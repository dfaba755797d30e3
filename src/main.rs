//! The binary: parses the arguments and runs the [`App`] until a signal, or executes a command.
//!
//! Exit code 64: an invalid command line, configuration or journal file. Exit code 1: the start
//! failed, a journal has open attempts, or a running Flowgate does not answer or is not healthy.

use std::fmt::Display;
use std::io::{self, IsTerminal, Write};
use std::num::NonZeroUsize;
use std::path::Path;
use std::process::ExitCode;
use std::thread;

use flowgate::cli::ask::{self, Admin, AdminAddress};
use flowgate::cli::init::Init;
use flowgate::cli::status::Status;
use flowgate::cli::why::Why;
use flowgate::cli::{Cli, ClientCommand, Command, journal as print_journal, pages};
use flowgate::config::{Loaded, Mistakes, Source, account_lines, effective};
use flowgate::observe::journal;
use flowgate::process::systemd::InheritedSockets;
use flowgate::process::{hardening, logging};
use flowgate::{App, check_live, fits, new_client};
use tokio::runtime::{Builder, Runtime};
use tokio::sync::watch;
use zeroize::Zeroizing;

/// mimalloc reuses freed memory well under millions of short calls.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// The arguments or the configuration are invalid (EX_USAGE of sysexits.h).
const BAD_CONFIGURATION: u8 = 64;

fn main() -> ExitCode {
    // First, before any secret is in memory.
    let sealed = hardening::no_core_dumps();
    let cli = match Cli::of_process() {
        Ok(cli) => cli,
        Err(answer) => {
            // clap returns --help and --version as errors that go to standard output.
            drop(answer.print());
            return if answer.use_stderr() {
                ExitCode::from(BAD_CONFIGURATION)
            } else {
                ExitCode::SUCCESS
            };
        }
    };
    let source = Source {
        file: cli.config.clone(),
        environment: None,
    };
    match &cli.command {
        None => run(source, sealed),
        Some(Command::Init(init)) => initial(init),
        Some(Command::Check { print, live }) => check(&source, *print, *live),
        Some(Command::Status(wanted)) => status(wanted, &source),
        Some(Command::Why(wanted)) => why(wanted, &source),
        Some(Command::Health { ready, admin }) => health(&source, *ready, admin.clone()),
        Some(Command::Journal {
            file,
            json,
            unknown,
        }) => journal(file, *json, *unknown),
        Some(Command::Client(ClientCommand::New {
            id,
            account,
            secret_file,
        })) => client(&source, id, account, secret_file.as_deref()),
        Some(Command::Completions { shell }) => write(&pages::completions(*shell)),
        Some(Command::Man { folder }) => manual(folder.as_deref()),
    }
}

/// Runs until a signal.
fn run(source: Source, sealed: io::Result<()>) -> ExitCode {
    let loaded = match source.load() {
        Ok(loaded) => loaded,
        Err(mistakes) => return rejected(&mistakes),
    };
    match serve(source, loaded, sealed) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => failed(&format!("{error:#}")),
    }
}

fn serve(source: Source, loaded: Loaded, sealed: io::Result<()>) -> anyhow::Result<()> {
    let inherited = InheritedSockets::take()?;
    let _lines = logging::init(&loaded.config.log)?;
    if let Err(error) = sealed {
        tracing::warn!(%error, "cannot disable core dumps; a crash may write secrets to disk");
    }
    for warning in &loaded.warnings {
        tracing::warn!(warning, "configuration");
    }
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
        // Dropped at the end of this closure, which stops the other threads.
        let (_end, ended) = watch::channel(());
        for other in others {
            let mut ended = ended.clone();
            thread::Builder::new().spawn_scoped(scope, move || {
                drop(other.block_on(ended.changed()));
                other.shutdown_background();
            })?;
        }
        let served = own.block_on(async {
            App::start_from(source, loaded, inherited, all)
                .await?
                .run()
                .await
        });
        // Dropping the runtime would wait for a hanging name look-up or file. The drain has already
        // exported the spans and written the journal.
        own.shutdown_background();
        served
    })
}

/// Returns the number of threads that serve calls. `TOKIO_WORKER_THREADS` is tokio's own setting.
fn threads() -> usize {
    let configured = std::env::var("TOKIO_WORKER_THREADS")
        .ok()
        .and_then(|threads| threads.parse().ok());
    configured
        .or_else(|| thread::available_parallelism().ok())
        .map_or(1, NonZeroUsize::get)
}

/// Builds the runtime of one thread. One multi-threaded runtime would spend more kernel time on the
/// same work.
fn runtime() -> io::Result<Runtime> {
    Builder::new_current_thread().enable_all().build()
}

/// Writes a configuration, and prints what is left to do.
fn initial(init: &Init) -> ExitCode {
    match init.write() {
        Ok(written) => {
            eprintln!("{}", written.next);
            write(written.text.as_bytes())
        }
        Err(mistake) => unusable(&format!("flowgate: {mistake}")),
    }
}

/// Validates the configuration, and prints the sources of its accounts' credentials; with `print`,
/// all of it. With `live` it tries the credentials, and prints the sources with the result.
fn check(source: &Source, print: bool, live: bool) -> ExitCode {
    let Loaded {
        config, warnings, ..
    } = match source.load() {
        Ok(loaded) => loaded,
        Err(mistakes) => return rejected(&mistakes),
    };
    warn(&warnings);
    if source.file.is_some() {
        eprintln!("the configuration is valid");
    } else {
        eprintln!("the configuration (environment variables only) is valid");
    }
    if print {
        write(format!("{:#}\n", effective(&config)).as_bytes());
    } else if !live {
        let lines: String = account_lines(&config)
            .into_iter()
            .map(|line| line + "\n")
            .collect();
        write(lines.as_bytes());
    }
    if !live {
        return ExitCode::SUCCESS;
    }
    let runtime = match runtime() {
        Ok(runtime) => runtime,
        Err(error) => return failed(&error),
    };
    let checked = runtime.block_on(check_live(&config, |line| {
        write(format!("{line}\n").as_bytes());
    }));
    // Dropping the runtime would wait for a hanging name look-up or file.
    runtime.shutdown_background();
    match checked {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => failed(&format!("{error:#}")),
    }
}

/// Prints the lanes of a running Flowgate, once or repeatedly.
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
    match runtime.block_on(wanted.query(&admin)) {
        Ok(text) => write(text.as_bytes()),
        Err(error) => failed(&error),
    }
}

/// Prints the way of a call.
fn why(wanted: &Why, source: &Source) -> ExitCode {
    let admin = match wanted.admin(source) {
        Ok(admin) => admin,
        Err(mistake) => return unusable(&mistake),
    };
    match runtime().map(|runtime| runtime.block_on(wanted.query(&admin))) {
        Ok(Ok(text)) => write(text.as_bytes()),
        Ok(Err(error)) => failed(&error),
        Err(error) => failed(&error),
    }
}

/// Queries the health of a running Flowgate, by default at the configuration's admin listener.
fn health(source: &Source, ready: bool, admin: Option<AdminAddress>) -> ExitCode {
    let address = match admin.map_or_else(|| source.admin().map(AdminAddress::Bind), Ok) {
        Ok(address) => address,
        Err(mistakes) => return unusable(&mistakes),
    };
    let token = None;
    let admin = Admin { address, token };
    let path = if ready { "/readyz" } else { "/livez" };
    let mistake = match runtime().map(|runtime| runtime.block_on(ask::ask(&admin, path))) {
        Ok(Ok(response)) if response.status.is_success() => return write(response.body.as_bytes()),
        Ok(Ok(response)) => format!(
            "{}{path} returned {}: {}",
            admin.address,
            response.status.as_u16(),
            response.body.trim_end()
        ),
        Ok(Err(error)) => error.to_string(),
        Err(error) => error.to_string(),
    };
    failed(&mistake)
}

/// Generates a client's secret. If a configuration is named, the client must fit into it.
fn client(source: &Source, id: &str, account: &str, secret_file: Option<&Path>) -> ExitCode {
    if source.file.is_some() {
        match source.load() {
            Ok(loaded) => {
                if let Err(mistake) = fits(&loaded.config, id, account) {
                    return unusable(&format!("flowgate: {mistake}"));
                }
            }
            // A secret may be missing here that the running process has.
            Err(_) => eprintln!(
                "warning: the configuration has mistakes (flowgate check), so --id and --account \
                 are not compared with it"
            ),
        }
    }
    print(new_client(id, account, secret_file))
}

/// Prints the manual page, or writes all pages into a directory.
fn manual(folder: Option<&Path>) -> ExitCode {
    let Some(folder) = folder else {
        return pages::manual().map_or_else(|error| failed(&error), |page| write(&page));
    };
    match pages::write_manual(folder) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => failed(&format!("{}: {error}", folder.display())),
    }
}

/// Lists the open attempts of a journal.
fn journal(file: &Path, json: bool, unknown: bool) -> ExitCode {
    let content = match journal::read(file, unknown) {
        Ok(content) => content,
        Err(error) => {
            eprintln!("flowgate: {}: {error}", file.display());
            return ExitCode::from(BAD_CONFIGURATION);
        }
    };
    if content.damaged() > 0 {
        eprintln!("warning: {} damaged lines were skipped", content.damaged());
    }
    let text = if json {
        print_journal::as_json(&content)
    } else {
        print_journal::as_table(&content)
    };
    let printed = write(text.as_bytes());
    if content.is_settled() {
        printed
    } else {
        ExitCode::FAILURE
    }
}

/// Prints the text, or the mistake on standard error.
fn print(text: Result<Zeroizing<String>, String>) -> ExitCode {
    match text {
        Ok(text) => write(text.as_bytes()),
        Err(mistake) => unusable(&format!("flowgate: {mistake}")),
    }
}

/// Writes to standard output. Errors are ignored: a closed pipe means that the reader has enough.
fn write(text: &[u8]) -> ExitCode {
    drop(io::stdout().write_all(text));
    ExitCode::SUCCESS
}

fn warn(warnings: &[String]) {
    for warning in warnings {
        eprintln!("warning: {warning}");
    }
}

/// Prints the mistakes of a configuration, and the variables that may be their cause.
fn rejected(mistakes: &Mistakes) -> ExitCode {
    warn(mistakes.warnings());
    unusable(mistakes)
}

fn unusable(mistake: &dyn Display) -> ExitCode {
    eprintln!("{mistake}");
    ExitCode::from(BAD_CONFIGURATION)
}

fn failed(mistake: &dyn Display) -> ExitCode {
    eprintln!("flowgate: {mistake}");
    ExitCode::FAILURE
}

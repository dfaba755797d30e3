//! The command line: options, commands and their help texts. `main.rs` runs them and defines the
//! exit codes.

use std::ffi::OsString;
use std::path::PathBuf;

use clap::builder::{OsStringValueParser, TypedValueParser};
use clap::error::ErrorKind;
use clap::parser::ValueSource;
use clap::{CommandFactory, FromArgMatches, Parser, Subcommand};
use clap_complete::Shell;

use crate::cli::ask::AdminAddress;

pub mod ask;
pub mod init;
pub mod journal;
pub(crate) mod new_client;
pub mod pages;
pub(crate) mod reference;
pub mod status;
pub(crate) mod table;
pub mod why;

/// A client-side rate-limiting proxy for Alibaba Cloud's CAMS API.
#[derive(Clone, Debug, PartialEq, Eq, Parser)]
#[command(name = "flowgate", version = crate::VERSION, about, after_help = reference::after_help())]
pub struct Cli {
    /// The configuration file, or a directory of *.toml files. Without it, only environment
    /// variables are read.
    ///
    /// The commands init, journal, completions and man do not use it. An empty FLOWGATE_CONFIG counts as
    /// unset.
    #[arg(
        short,
        long,
        value_name = "PATH",
        env = "FLOWGATE_CONFIG",
        global = true
    )]
    #[arg(value_parser = OsStringValueParser::new().map(PathBuf::from))]
    pub config: Option<PathBuf>,
    /// What to do instead of running the proxy.
    #[command(subcommand)]
    pub command: Option<Command>,
}

/// What Flowgate does instead of running the proxy.
#[derive(Clone, Debug, PartialEq, Eq, Subcommand)]
pub enum Command {
    /// Write a commented configuration for a sidecar or a gateway.
    ///
    /// It names the variables or files of secrets and contains none. What is left to do is printed
    /// on standard error.
    #[command(subcommand)]
    Init(init::Init),
    /// Validate the configuration and print every error with its key and line.
    ///
    /// Without errors, print the source of each account's credentials.
    ///
    /// Values are never printed, because one of them may be a secret in the wrong place. Exit code
    /// 64 if there are errors, 1 if --live fails for an account.
    Check {
        /// Also print the resulting configuration as JSON, with all defaults and without secrets.
        #[arg(long)]
        print: bool,
        /// Also obtain the credentials of each account once and ask STS who they belong to
        /// (GetCallerIdentity).
        ///
        /// Prints the source, the end of the session and the identity, never a secret.
        #[arg(long, conflicts_with = "print")]
        live: bool,
    },
    /// Show the lanes of a running Flowgate and their queues.
    ///
    /// Exit code 1 if Flowgate does not answer.
    Status(status::Status),
    /// Show the way of a call that has ended, and why it waited.
    ///
    /// A running Flowgate keeps the 1000 successful and the 1000 other calls that ended last. Exit
    /// code 1 if the call is not among them, or Flowgate does not answer.
    Why(why::Why),
    /// Check whether a running Flowgate is alive (for container health checks).
    ///
    /// Exit code 1 if there is no positive answer
    /// within 2 s.
    Health {
        /// Check whether it is ready for calls instead. A draining Flowgate is alive but not ready.
        #[arg(long)]
        ready: bool,
        /// The admin address, ip:port, name:port or unix:/path [default: listen.admin of the configuration].
        #[arg(long, value_name = "ADDRESS")]
        admin: Option<AdminAddress>,
    },
    /// List attempts that were sent and have no recorded end, for example after a crash.
    ///
    /// Exit code 1 if there are any, 64 if the journal cannot be read. With --unknown, exit code 1
    /// if the outcome of any listed attempt is still unknown.
    Journal {
        /// The journal's file. Its older files (FILE.1, FILE.2, ...) are read too.
        file: PathBuf,
        /// Print one JSON object instead of a table.
        #[arg(long)]
        json: bool,
        /// Also list attempts that ended without a certain answer (result "unknown"), each with what
        /// Flowgate or an operator has learned of it since.
        #[arg(long)]
        unknown: bool,
    },
    /// Manage access keys that Flowgate issues to clients.
    #[command(subcommand)]
    Client(ClientCommand),
    /// Print a completion script for a shell.
    Completions {
        /// The shell for which the script is made.
        shell: Shell,
    },
    /// Print the manual page flowgate(1), or write the pages of all commands into a folder.
    Man {
        /// The folder, such as /usr/local/share/man/man1.
        folder: Option<PathBuf>,
    },
}

/// What can be done with clients' keys.
#[derive(Clone, Debug, PartialEq, Eq, Subcommand)]
pub enum ClientCommand {
    /// Generate a secret and print the configuration lines for a client.
    ///
    /// Flowgate stores nothing: the client exists once the lines are in the configuration.
    New {
        /// The client's access key id, which is also its name in logs.
        #[arg(long)]
        id: String,
        /// The id of the account whose quota the client uses. "default" is the account from
        /// Alibaba's own variables.
        #[arg(long, default_value = "default")]
        account: String,
        /// Write the secret into this new file instead of printing it.
        #[arg(long, value_name = "FILE")]
        secret_file: Option<PathBuf>,
    },
}

// === impl Cli ===

impl Cli {
    /// Parses the process's arguments. An empty variable is as unset; an empty argument is a
    /// mistake, because it is usually an unset shell variable.
    pub fn of_process() -> Result<Self, clap::Error> {
        Self::of(std::env::args_os())
    }

    fn of(
        arguments: impl IntoIterator<Item = impl Into<OsString> + Clone>,
    ) -> Result<Self, clap::Error> {
        let matches = Self::command().try_get_matches_from(arguments)?;
        let mut cli = Self::from_arg_matches(&matches)?;
        cli.config = cli.config.filter(|path| !path.as_os_str().is_empty());
        let is_argument = matches.value_source("config") == Some(ValueSource::CommandLine);
        if cli.config.is_none() && is_argument {
            let message = "--config: expected a path, found an empty one\n";
            return Err(Self::command().error(ErrorKind::InvalidValue, message));
        }
        Ok(cli)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(line: &str) -> Cli {
        Cli::try_parse_from(line.split(' ')).unwrap()
    }

    #[test]
    fn the_definition_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn the_config_option_is_accepted_before_and_after_the_command() {
        let file = Some(PathBuf::from("f.toml"));
        assert_eq!(
            parse("flowgate --config f.toml"),
            Cli {
                config: file.clone(),
                command: None
            }
        );
        let check = Cli {
            config: file,
            command: Some(Command::Check {
                print: false,
                live: false,
            }),
        };
        assert_eq!(parse("flowgate check --config f.toml"), check);
        assert_eq!(parse("flowgate --config f.toml check"), check);
        assert_eq!(parse("flowgate check -c f.toml"), check);
        assert_eq!(parse("flowgate -c f.toml check"), check);
        let live = Command::Check {
            print: false,
            live: true,
        };
        assert_eq!(parse("flowgate check --live").command, Some(live));
    }

    #[test]
    fn an_empty_config_argument_is_a_mistake() {
        for line in [
            ["flowgate", "--config", "", "check"],
            ["flowgate", "check", "--config", ""],
        ] {
            let error = Cli::of(line).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::InvalidValue);
        }
    }
}

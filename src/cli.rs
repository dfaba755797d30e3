//! What may stand on the command line? `flowgate --config PATH` runs, `flowgate check --config PATH` only validates; others
//! ask the Flowgate that runs, read a journal and make a client's keys. What follows from it, and the exit codes, are
//! `main.rs`.

use std::path::PathBuf;

use clap::{Parser, Subcommand};
use clap_complete::Shell;

pub mod ask;
pub mod journal;
pub(crate) mod new_client;
pub mod pages;
pub mod status;
pub(crate) mod table;

/// A client-side rate-limiting proxy for Alibaba Cloud's CAMS API.
#[derive(Clone, Debug, PartialEq, Eq, Parser)]
#[command(name = "flowgate", version = crate::VERSION, about)]
pub struct Cli {
    /// The configuration file, or a directory whose *.toml files are read in order of name; without it, only the environment
    /// counts.
    #[arg(long, value_name = "PATH", env = "FLOWGATE_CONFIG", global = true)]
    pub config: Option<PathBuf>,
    /// What to do instead of running.
    #[command(subcommand)]
    pub command: Option<Command>,
}

/// What Flowgate does instead of running.
#[derive(Clone, Debug, PartialEq, Eq, Subcommand)]
pub enum Command {
    /// Validates the configuration and prints every mistake with its key and line, never a value; exit code 64.
    Check {
        /// Prints the configuration that would hold as JSON: every key with its value or its default, and no secret.
        #[arg(long)]
        print: bool,
    },
    /// Shows who waits for what in the Flowgate that runs with this configuration; exit code 1 if it does not answer.
    Status(status::Status),
    /// Asks the Flowgate that runs with this configuration whether it is alive; exit code 1 if it does not say so in 2 s.
    Health {
        /// Asks whether it is ready: a Flowgate that drains is alive and not ready.
        #[arg(long)]
        ready: bool,
    },
    /// Lists the attempts of a journal that were sent and have no end; exit code 1 if there are any.
    Journal {
        /// The journal's file; its older files (FILE.1, FILE.2, ...) are read with it.
        file: PathBuf,
        /// Prints one object of JSON instead of a table.
        #[arg(long)]
        json: bool,
        /// Lists also what has ended without anybody knowing how (result "unknown").
        #[arg(long)]
        unknown: bool,
    },
    /// Keys that Flowgate itself hands out.
    #[command(subcommand)]
    Client(ClientCommand),
    /// Prints what a shell reads to complete this command line.
    Completions {
        /// The shell.
        shell: Shell,
    },
    /// Prints the manual page flowgate(1), or writes it and one of each command into a folder.
    Man {
        /// The folder, such as /usr/local/share/man/man1.
        folder: Option<PathBuf>,
    },
}

/// What can be done about clients.
#[derive(Clone, Debug, PartialEq, Eq, Subcommand)]
pub enum ClientCommand {
    /// Prints a fresh secret and the lines for the configuration.
    New {
        /// The client's access key id, which is also its name in logs.
        #[arg(long)]
        id: String,
        /// The id of the account whose quota it spends; `default` is the one of Alibaba's own variables.
        #[arg(long, default_value = "default")]
        account: String,
        /// Writes the secret into this new file instead of printing it.
        #[arg(long, value_name = "FILE")]
        secret_file: Option<PathBuf>,
    },
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    fn parse(line: &str) -> Cli {
        Cli::try_parse_from(line.split(' ')).unwrap()
    }

    #[test]
    fn the_definition_is_sound() {
        Cli::command().debug_assert();
    }

    #[test]
    fn the_file_may_stand_before_and_after_the_command() {
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
            command: Some(Command::Check { print: false }),
        };
        assert_eq!(parse("flowgate check --config f.toml"), check);
        assert_eq!(parse("flowgate --config f.toml check"), check);
    }
}

//! What the manual page and `docs/command-line.md` say besides the options: exit codes, variables,
//! files, signals and examples. Both are made from these tables, as is the end of `--help`.

use clap_mangen::roff::{Roff, bold, roman};

/// A name and its meaning, in which code is between back-ticks.
struct Entry {
    name: &'static str,
    meaning: &'static str,
}

const fn entry(name: &'static str, meaning: &'static str) -> Entry {
    Entry { name, meaning }
}

/// The section of the exit codes, which `--help` has too.
const EXIT_STATUS: &[Entry] = &[
    entry("0", "success"),
    entry("1", "a failed start or a negative result of a command"),
    entry(
        "64",
        "an invalid command line, configuration or journal file",
    ),
];

/// The sections in the order of man-pages(7).
const SECTIONS: [(&str, &[Entry]); 5] = [
    ("Exit status", EXIT_STATUS),
    (
        "Environment",
        &[
            entry(
                "FLOWGATE_CONFIG",
                "The path of the configuration, unless `--config` names one. Empty counts as unset.",
            ),
            entry(
                "FLOWGATE_<KEY>",
                "Sets one key of the configuration and precedes the file: the key's path in capitals, with two underscores between its parts. `FLOWGATE_LISTEN__PROXY` sets `listen.proxy`, `FLOWGATE_ACCOUNTS__0__ID` the `id` of the first account.",
            ),
            entry(
                "ALIBABA_CLOUD_ACCESS_KEY_ID, ALIBABA_CLOUD_ACCESS_KEY_SECRET, ALIBABA_CLOUD_SECURITY_TOKEN",
                "The access key of the account `default`, if the configuration has no `[[accounts]]`.",
            ),
            entry(
                "ALIBABA_CLOUD_*",
                "Other variables of Alibaba's SDKs name sources of credentials (docs/configuration.md). `flowgate check` prints the source of each account.",
            ),
            entry(
                "NAME",
                "A variable that the configuration names as the place of a secret: `{ env = \"NAME\" }`.",
            ),
            entry(
                "TOKIO_WORKER_THREADS",
                "The number of threads that serve calls. Default: the number of processors.",
            ),
            entry(
                "SSL_CERT_FILE, SSL_CERT_DIR",
                "The root certificates that are trusted instead of the system's.",
            ),
            entry(
                "OTEL_SERVICE_NAME, OTEL_RESOURCE_ATTRIBUTES, OTEL_EXPORTER_OTLP_HEADERS",
                "Details of exported traces, with `telemetry.otlp`.",
            ),
            entry(
                "LISTEN_FDS, LISTEN_PID, LISTEN_FDNAMES, NOTIFY_SOCKET, WATCHDOG_USEC",
                "Set by systemd: inherited sockets, notifications and the watchdog.",
            ),
            entry(
                "HTTP_PROXY, HTTPS_PROXY, ALL_PROXY, RUST_LOG",
                "Not read. Use the keys `upstream.proxy` and `log.level`.",
            ),
        ],
    ),
    (
        "Files",
        &[
            entry(
                "/etc/flowgate/flowgate.toml",
                "The configuration in the systemd units of deploy/systemd. Without `--config` and `FLOWGATE_CONFIG` no file is read.",
            ),
            entry(
                "/etc/flowgate/secrets",
                "The folder of secrets in these units: a file of one line for each secret.",
            ),
            entry(
                "/var/lib/flowgate",
                "The folder for a journal in these units, such as `journal = \"/var/lib/flowgate/attempts.jsonl\"`. Full files are renamed to `attempts.jsonl.1` and so on.",
            ),
            entry(
                "~/.aliyun/config.json",
                "The profiles of Alibaba's command line tool, if a profile is the source of credentials.",
            ),
        ],
    ),
    (
        "Signals",
        &[
            entry(
                "SIGTERM, SIGINT",
                "Drain and exit: readiness goes down, new calls are accepted for `drain.delay`, then queued and running calls may finish within `drain.grace`. Another signal, at least a second later, ends the process at once.",
            ),
            entry(
                "SIGHUP",
                "Read the configuration and all files that it names again. If there is a mistake in it, the current configuration stays in force.",
            ),
        ],
    ),
    (
        "Examples",
        &[
            entry(
                "flowgate init sidecar -o flowgate.toml",
                "Write a commented configuration for one application.",
            ),
            entry(
                "flowgate check -c flowgate.toml",
                "Print every mistake of a configuration.",
            ),
            entry(
                "flowgate check -c flowgate.toml --live",
                "Obtain the credentials of each account once, and say who they belong to.",
            ),
            entry("flowgate -c flowgate.toml", "Run the proxy."),
            entry(
                "flowgate status --watch --tenants",
                "Show the lanes and their queues of the Flowgate on this host, every second.",
            ),
            entry(
                "flowgate health --ready --admin 127.0.0.1:9900",
                "Exit with 0 if it is ready for calls.",
            ),
            entry(
                "flowgate client new --id team-a --account acme --secret-file team-a.secret",
                "Generate a secret for a client, and print the lines for the configuration.",
            ),
            entry(
                "flowgate journal --unknown /var/lib/flowgate/attempts.jsonl",
                "List the calls whose outcome is not known, after a crash.",
            ),
            entry(
                "flowgate completions bash > /etc/bash_completion.d/flowgate",
                "Install the completions for bash.",
            ),
        ],
    ),
];

/// The text below the list of commands and options.
pub(crate) fn after_help() -> String {
    let codes: String = EXIT_STATUS
        .iter()
        .map(|Entry { name, meaning }| format!("\n  {name:<2}  {meaning}"))
        .collect();
    format!(
        "Without a command, flowgate runs the proxy until SIGTERM or SIGINT.\n\nExit codes:{codes}"
    )
}

/// Adds the sections to a manual page.
pub(crate) fn sections(page: &mut Roff) {
    for (title, entries) in SECTIONS {
        page.control("SH", [&*title.to_uppercase()]);
        for Entry { name, meaning } in entries {
            page.control("TP", []);
            page.text([bold(*name)]);
            let spans = meaning.split('`').enumerate();
            page.text(
                spans
                    .map(|(index, text)| {
                        if index % 2 == 0 {
                            roman(text)
                        } else {
                            bold(text)
                        }
                    })
                    .collect::<Vec<_>>(),
            );
        }
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;
    use crate::cli::Cli;

    const MARKS: [&str; 2] = [
        "<!-- made from src/cli.rs and src/cli/reference.rs -->\n",
        "<!-- end of what is made -->\n",
    ];

    fn table(heads: &str, rows: impl Iterator<Item = (String, String)>) -> String {
        let rows: String = rows
            .map(|(name, meaning)| format!("| {name} | {meaning} |\n"))
            .collect();
        format!("\n| {heads} |\n|---|---|\n{rows}")
    }

    /// The commands with their subcommands, and what their help says first.
    fn commands(command: &clap::Command, name: &str) -> Vec<(String, String)> {
        command
            .get_subcommands()
            .filter(|command| command.get_name() != "help")
            .flat_map(|command| {
                let name = format!("{name} {}", command.get_name());
                let about = command.get_about().map(ToString::to_string);
                let mut rows = commands(command, &name);
                if rows.is_empty() {
                    rows.push((format!("`{name}`"), about.unwrap_or_default()));
                }
                rows
            })
            .collect()
    }

    fn page() -> String {
        let mut page = "\n## Commands\n".to_owned();
        let rows = commands(&Cli::command(), "flowgate").into_iter();
        page.push_str(&table("command | does", rows));
        for (title, entries) in SECTIONS {
            page.push_str(&format!("\n## {title}\n"));
            let rows = entries.iter().map(|Entry { name, meaning }| {
                let names: Vec<_> = name.split(", ").map(|name| format!("`{name}`")).collect();
                (names.join(", "), (*meaning).to_owned())
            });
            page.push_str(&table(" | ", rows));
        }
        page.push('\n');
        page
    }

    /// Run with `UPDATE_DOCS=1` to write the tables to the page.
    #[test]
    fn the_manual_is_current() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/command-line.md");
        let text = std::fs::read_to_string(path).unwrap();
        let (before, rest) = text.split_once(MARKS[0]).unwrap();
        let (made, after) = rest.split_once(MARKS[1]).unwrap();
        if std::env::var_os("UPDATE_DOCS").is_some() {
            std::fs::write(path, [before, MARKS[0], &page(), MARKS[1], after].concat()).unwrap();
            return;
        }
        assert_eq!(made, page());
    }

    #[test]
    fn names_and_meanings_fit_into_a_table() {
        for Entry { name, meaning } in SECTIONS.iter().flat_map(|(_, entries)| *entries) {
            assert!(!format!("{name}{meaning}").contains(['|', '\n']), "{name}");
            assert_eq!(meaning.matches('`').count() % 2, 0, "{name}");
        }
    }
}

//! Checks the commands of the documents: each `flowgate` command is parsed by the program's own
//! parser, and the files, packages, units, pages and variables that commands name exist. Names of
//! metrics: `src/observe/metrics/tests/named.rs`.

use std::path::Path;

use clap::Parser;
use clap::error::ErrorKind;
use flowgate::cli::Cli;
use flowgate::config;
use regex::Regex;

use crate::docs::{files, read};

/// Where a piece of code is.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Language {
    /// In a fenced block with this language.
    Fenced(String),
    /// In an indented block: a command, its output, or something else.
    Indented,
    /// Within a sentence, which may name a command without its arguments.
    Sentence,
}

/// A piece of code in a document.
struct Code {
    page: String,
    language: Language,
    text: String,
}

/// Folders of the repository that commands name.
const FOLDERS: [&str; 10] = [
    ".ci/",
    "benches/",
    "cams-sim/",
    "demo/",
    "deploy/",
    "docs/",
    "fuzz/",
    "scripts/",
    "src/",
    "tests/",
];

impl Language {
    /// Whether commands may be in it.
    fn is_shell(&self) -> bool {
        match self {
            Self::Fenced(name) => ["sh", "bash", "shell", "console"].contains(&&**name),
            Self::Indented | Self::Sentence => true,
        }
    }
}

fn pages() -> Vec<String> {
    let others = [
        "README.md",
        "CONTRIBUTING.md",
        "ARCHITECTURE.md",
        "CHANGELOG.md",
        "benches/README.md",
    ];
    let mut pages = files("docs", ".md");
    pages.extend(others.map(str::to_owned));
    pages
}

/// The fenced blocks, the indented blocks and the code within sentences of a page.
fn code(page: &str) -> Vec<Code> {
    let mut found = Vec::new();
    let mut open: Option<Code> = None;
    let code = |language, text: &str| Code {
        page: page.to_owned(),
        language,
        text: text.to_owned(),
    };
    for line in read(page).lines() {
        match (line.trim_start().strip_prefix("```"), &mut open) {
            (Some(_), Some(_)) => found.extend(open.take()),
            (Some(language), None) => open = Some(code(Language::Fenced(language.to_owned()), "")),
            (None, Some(block)) => block.text.push_str(&format!("{line}\n")),
            // Lines of an indented block that continue the one before.
            (None, None) if line.starts_with("    ") => match found.last_mut() {
                Some(last) if last.language == Language::Indented && last.text.ends_with('\\') => {
                    last.text.push_str(&format!("\n{line}"));
                }
                _ => found.push(code(Language::Indented, line.trim())),
            },
            (None, None) => {
                let spans = line.split('`').skip(1).step_by(2);
                found.extend(spans.map(|span| code(Language::Sentence, span)));
            }
        }
    }
    assert!(open.is_none(), "{page}: a block is not closed");
    found
}

fn all_code() -> Vec<Code> {
    pages().iter().flat_map(|page| code(page)).collect()
}

/// The simple commands of a script as words: pipelines and lists are divided, comments and
/// redirections left out. Text in quotes is one word.
fn simple_commands(script: &str) -> Vec<Vec<String>> {
    let script = script.replace("\\\n", " ");
    let token = Regex::new(r#"(?m)(?<end>&&|\|\|?|;|\n)|(?<to>\d?>&?\d?|<)|(?<comment>#.*$)|(?<word>(?:'[^']*'|"(?:\\.|[^"\\])*"|\\.|[^\s'"|;&<>\\]|&(?:[^&]|$))+)"#).unwrap();
    let mut commands = vec![Vec::new()];
    let mut is_target = false;
    for found in token.captures_iter(&script) {
        if found.name("end").is_some() {
            commands.push(Vec::new());
        } else if found.name("to").is_some() {
            is_target = !found[0].contains('&');
        } else if let Some(word) = found.name("word")
            && !std::mem::take(&mut is_target)
        {
            let word = word.as_str().replace(['\'', '"'], "");
            commands.last_mut().unwrap().push(word);
        }
    }
    commands.retain(|words| !words.is_empty());
    commands
}

/// The variables that a command sets, and the rest of it.
fn assignments(words: &[String]) -> (Vec<(&str, &str)>, &[String]) {
    let name = Regex::new("^[A-Za-z_][A-Za-z0-9_]*$").unwrap();
    let set: Vec<_> = words
        .iter()
        .map_while(|word| word.split_once('=').filter(|(left, _)| name.is_match(left)))
        .collect();
    let rest = &words[set.len()..];
    (set, rest)
}

/// The command after `sudo`, or what another program starts after `--`.
fn started(words: &[String]) -> Vec<&[String]> {
    let words = match words {
        [sudo, rest @ ..] if sudo == "sudo" => rest,
        words => words,
    };
    let inner = words.iter().position(|word| word == "--");
    let inner = inner.map(|position| &words[position + 1..]);
    [Some(words), inner].into_iter().flatten().collect()
}

fn program(words: &[String]) -> &str {
    words
        .first()
        .map_or("", |word| word.rsplit('/').next().unwrap())
}

/// Why the program does not accept the arguments. A sentence may leave out those that are required.
fn refusal(words: &[String], language: &Language) -> Option<String> {
    let error = Cli::try_parse_from(words).err()?;
    let is_accepted = match error.kind() {
        ErrorKind::MissingRequiredArgument
        | ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand => *language == Language::Sentence,
        _ => !error.use_stderr(),
    };
    (!is_accepted).then(|| error.to_string())
}

/// Whether a span of a sentence that begins like a command is a text of the log.
fn is_log_text(span: &str, sources: &[String]) -> bool {
    sources
        .iter()
        .any(|source| source.contains(&format!("\"{span}\"")))
}

#[test]
fn the_program_accepts_its_commands_in_the_documents() {
    let sources: Vec<_> = files("src", ".rs").iter().map(|path| read(path)).collect();
    let mut wrong = Vec::new();
    let mut count = 0;
    for Code {
        page,
        language,
        text,
    } in all_code()
    {
        let scripts = if language.is_shell() {
            vec![text]
        } else {
            // Comments in a configuration that say how to make it.
            let comments = text
                .lines()
                .filter_map(|line| line.split_once("# flowgate "));
            comments
                .map(|(_, command)| format!("flowgate {command}"))
                .collect()
        };
        for script in scripts {
            for words in simple_commands(&script) {
                let (_, words) = assignments(&words);
                for words in started(words) {
                    let is_one = words.len() > 1 && program(words) == "flowgate";
                    if !is_one || is_log_text(&script, &sources) {
                        continue;
                    }
                    count += 1;
                    wrong.extend(
                        refusal(words, &language).map(|why| format!("{page}: {words:?}: {why}")),
                    );
                }
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert!(count > 40, "{count}");
}

#[test]
fn commands_of_the_documents_name_what_exists() {
    let names = Names::of_repository();
    let mut wrong = Vec::new();
    let mut count = 0;
    for Code {
        page,
        language,
        text,
    } in all_code()
    {
        if !language.is_shell() {
            continue;
        }
        for words in simple_commands(&text) {
            let (_, words) = assignments(&words);
            for words in started(words) {
                count += 1;
                wrong.extend(
                    names
                        .missing(words)
                        .map(|what| format!("{page}: {words:?}: {what}")),
                );
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert!(count > 100, "{count}");
}

/// What commands can name.
struct Names {
    root: String,
    manifests: Vec<toml::Table>,
    steps: Vec<String>,
    simulator: String,
    admin: String,
}

impl Names {
    fn of_repository() -> Self {
        let manifests = [
            "Cargo.toml",
            "cams-sim/Cargo.toml",
            "demo/Cargo.toml",
            "fuzz/Cargo.toml",
        ];
        let test = read("scripts/test");
        let (_, steps) = test.split_once("\nsteps=(").unwrap();
        let (steps, _) = steps.split_once(')').unwrap();
        Self {
            root: env!("CARGO_MANIFEST_DIR").to_owned(),
            manifests: manifests.map(|path| read(path).parse().unwrap()).into(),
            steps: steps.split(' ').map(str::to_owned).collect(),
            simulator: read("cams-sim/src/main.rs"),
            admin: ["src/admin.rs", "src/admin/commands.rs"].map(read).concat(),
        }
    }

    /// What the command names and does not exist.
    fn missing(&self, words: &[String]) -> impl Iterator<Item = String> {
        let mut missing = Vec::new();
        for word in words {
            let path = word.split_once('=').map_or(&**word, |(_, value)| value);
            // Tests are named as file::test; Kubernetes has resources such as deploy/name.
            let path = path.split("::").next().unwrap().trim_start_matches("./");
            let is_resource = program(words) == "kubectl" && !path.contains('.');
            if !is_resource && !self.is_file(path) {
                missing.push(format!("there is no file {path}"));
            }
            if let Some(page) = word
                .strip_prefix("http://127.0.0.1:9900")
                .filter(|page| !page.is_empty())
            {
                let page = page.split('?').next().unwrap();
                if !self.admin.contains(&format!("\"{page}\"")) {
                    missing.push(format!("the admin port has no page {page}"));
                }
            }
            let built = word.split_once("target/release/").map(|(_, name)| name);
            if built.is_some_and(|name| !["flowgate", "cams-sim"].contains(&name)) {
                missing.push("the build makes no such program".to_owned());
            }
        }
        match program(words) {
            "cargo" => missing.extend(self.missing_in_cargo(words)),
            "cams-sim" => missing.extend(self.missing_in_simulator(words)),
            "test" if words[0] == "scripts/test" => {
                let steps = words[1..].iter().filter(|step| !step.starts_with('-'));
                let unknown =
                    steps.filter(|step| !self.steps.contains(step) && !step.ends_with("..."));
                missing.extend(unknown.map(|step| format!("there is no step {step}")));
            }
            "systemctl" | "journalctl" => {
                let units = words.iter().filter(|word| word.starts_with("flowgate"));
                let unit = |word: &String| match word.contains('.') {
                    true => format!("deploy/systemd/{word}"),
                    false => format!("deploy/systemd/{word}.service"),
                };
                let unknown = units.map(unit).filter(|path| !self.is_file(path));
                missing.extend(unknown.map(|path| format!("there is no unit {path}")));
            }
            _ => {}
        }
        missing.into_iter()
    }

    /// Whether the path is outside of the repository's folders, or exists there.
    fn is_file(&self, path: &str) -> bool {
        let is_ours = FOLDERS.iter().any(|folder| path.starts_with(folder));
        if !is_ours || path.contains("/.venv/") || path.contains("node_modules") {
            return true;
        }
        let Some((start, end)) = path.split_once('*') else {
            return Path::new(&self.root).join(path).exists();
        };
        let (folder, start) = start.rsplit_once('/').unwrap();
        files(folder, end).iter().any(|file| {
            file.strip_prefix(&format!("{folder}/"))
                .is_some_and(|name| name.starts_with(start))
        })
    }

    fn missing_in_cargo(&self, words: &[String]) -> Vec<String> {
        let has = |kind: &str, name: &str| match kind {
            "-p" => self
                .manifests
                .iter()
                .any(|it| it["package"]["name"].as_str() == Some(name)),
            "--features" => self.manifests[0]["features"].get(name).is_some(),
            kind => self.manifests.iter().any(|it| {
                let targets = it
                    .get(kind.trim_start_matches('-'))
                    .and_then(toml::Value::as_array);
                targets.is_some_and(|all| all.iter().any(|it| it["name"].as_str() == Some(name)))
            }),
        };
        let named = [
            "-p",
            "--bench",
            "--example",
            "--test",
            "--bin",
            "--features",
        ];
        words
            .windows(2)
            .filter(|pair| named.contains(&&*pair[0]) && !has(&pair[0], &pair[1]))
            .map(|pair| format!("there is no {} {}", pair[0], pair[1]))
            .collect()
    }

    fn missing_in_simulator(&self, words: &[String]) -> Vec<String> {
        let options = words.iter().filter_map(|word| word.strip_prefix("--"));
        options
            .filter(|option| {
                let field = format!("\n    {}: ", option.replace('-', "_"));
                let is_option = self.simulator.contains(&field)
                    || self.simulator.contains(&format!("long = \"{option}\""));
                !is_option && *option != "help"
            })
            .map(|option| format!("there is no option --{option}"))
            .collect()
    }
}

/// In sentences, too.
#[test]
fn the_variables_that_the_documents_name_are_keys_or_places_of_secrets() {
    let name = Regex::new(r"\bFLOWGATE_[A-Z0-9_]*[A-Z0-9]\b").unwrap();
    let secret = Regex::new("^FLOWGATE_(CLIENT|ACCOUNT)_[A-Z0-9_]+_SECRET$").unwrap();
    // Of a Kubernetes Service; of the build; shown as mistakes.
    let others = ["FLOWGATE_PORT", "FLOWGATE_COMMIT", "FLOWGATE_LISTEN_PROXY"];
    let mut count = 0;
    for page in pages() {
        for found in name.find_iter(&read(&page)) {
            let name = found.as_str();
            if secret.is_match(name) || others.contains(&name) {
                continue;
            }
            let warnings = match config::load(None, [(name.into(), "x".into())]) {
                Ok(loaded) => loaded.warnings,
                Err(mistakes) => mistakes.warnings().to_vec(),
            };
            let is_unknown = |warning: &String| warning.contains("unknown variable");
            assert!(!warnings.iter().any(is_unknown), "{page}: {warnings:?}");
            count += 1;
        }
    }
    assert!(count > 20, "{count}");
}

#[test]
fn the_keys_in_the_configurations_of_the_documents_exist() {
    let mut count = 0;
    for Code {
        page,
        language,
        text,
    } in all_code()
    {
        if language != Language::Fenced("toml".to_owned()) {
            continue;
        }
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("flowgate.toml");
        std::fs::write(&file, &text).unwrap();
        count += 1;
        // Files and variables with secrets are missing here.
        let Err(mistakes) = config::load(Some(&file), []) else {
            continue;
        };
        let is_wrong = |mistake: &&config::Mistake| {
            mistake.key().is_empty() || mistake.expectation().starts_with("unknown key")
        };
        let wrong: Vec<_> = mistakes.iter().filter(is_wrong).collect();
        assert!(wrong.is_empty(), "{page}: {wrong:?}\n{text}");
    }
    assert!(count > 8, "{count}");
}

#[test]
fn scripts_are_read_as_a_shell_reads_them() {
    let commands = simple_commands(
        "A=1 flowgate check -c 'a b.toml' 2>&1 | jq '.x | .y' > out # why; not\nsudo x && y \\\n  \"a;b\" $(z)",
    );
    let expected: [&[&str]; 4] = [
        &["A=1", "flowgate", "check", "-c", "a b.toml"],
        &["jq", ".x | .y"],
        &["sudo", "x"],
        &["y", "a;b", "$(z)"],
    ];
    assert_eq!(commands, expected);
    let (set, rest) = assignments(&commands[0]);
    assert_eq!((set, rest.len()), (vec![("A", "1")], 4));
    assert_eq!(started(&commands[2])[0], ["x"]);
}

#[test]
fn a_wrong_command_is_found() {
    let refusal = |command: &str, language| {
        let words: Vec<_> = command.split(' ').map(str::to_owned).collect();
        refusal(&words, &language).is_some()
    };
    let block = || Language::Fenced("sh".to_owned());
    assert!(refusal("flowgate chekc", Language::Sentence));
    assert!(refusal("flowgate check --prnt", Language::Indented));
    assert!(refusal("flowgate client new", block()));
    assert!(!refusal("flowgate client new", Language::Sentence));
    assert!(!refusal("flowgate check --help", block()));
}

#[test]
fn what_does_not_exist_is_found() {
    let names = Names::of_repository();
    for (command, missing) in [
        ("install deploy/systemd/*.service /etc", None),
        (
            "install deploy/systemd/*.servce /etc",
            Some("there is no file"),
        ),
        (
            "kubectl apply --filename=deploy/none.yaml",
            Some("there is no file"),
        ),
        ("cargo build -p flowgate", None),
        ("cargo build -p flowgat", Some("there is no -p")),
        ("cargo bench --bench stor", Some("there is no --bench")),
        (
            "cams-sim --listn 127.0.0.1:9000",
            Some("there is no option"),
        ),
        ("scripts/test tests", None),
        ("scripts/test test", Some("there is no step")),
        ("systemctl reload flowgate", None),
        ("systemctl reload flowgate-x", Some("there is no unit")),
        ("curl http://127.0.0.1:9900/lanes", None),
        (
            "curl http://127.0.0.1:9900/lane",
            Some("the admin port has no page"),
        ),
        (
            "target/release/flogate",
            Some("the build makes no such program"),
        ),
    ] {
        let words: Vec<_> = command.split(' ').map(str::to_owned).collect();
        let found: Vec<_> = names.missing(&words).collect();
        assert_eq!(
            found.len(),
            usize::from(missing.is_some()),
            "{command}: {found:?}"
        );
        assert!(
            missing.is_none_or(|missing| found[0].starts_with(missing)),
            "{command}: {found:?}"
        );
    }
}

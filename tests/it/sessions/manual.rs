//! The blocks and commands of docs/credentials.md, and of the manifest and the unit that it names.
//! tests/deploy renders its values of Helm.

use std::path::Path;
use std::process::{Command, Output};

use super::cloud::{Cloud, OIDC, borrowed};

/// The time of the manual's example.
const END: &str = "2026-11-29T18:53:52Z";
/// The request id of the manual's example.
const REQUEST_ID: &str = "6894B13B-6D71-4EF5-88FA-F32781734A7F";

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn page() -> String {
    std::fs::read_to_string(root().join("docs/credentials.md")).unwrap()
}

/// The content of the page's blocks in a language.
fn blocks(language: &str) -> Vec<String> {
    let page = page();
    let begin = format!("\n```{language}\n");
    let blocks = page.split(begin.as_str()).skip(1);
    blocks
        .map(|rest| rest.split("\n```\n").next().unwrap().to_owned())
        .collect()
}

fn flowgate(folder: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_flowgate"));
    command.current_dir(folder);
    command
}

fn text(output: &Output) -> String {
    String::from_utf8([output.stdout.clone(), output.stderr.clone()].concat()).unwrap()
}

#[tokio::test]
async fn the_configurations_of_the_manual_are_valid() {
    let cloud = Cloud::start(None).await;
    let variables = cloud.sidecar_variables(false);
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("by-user"), "users-secret-1").unwrap();
    let credentials = r#"{"AccessKeyId":"LTAI-written","AccessKeySecret":"written-secret-1"}"#;
    std::fs::write(folder.path().join("credentials.json"), credentials).unwrap();
    let blocks = blocks("toml");
    assert_eq!(blocks.len(), 2);
    for block in blocks {
        let config = folder.path().join("flowgate.toml");
        std::fs::write(&config, &block).unwrap();
        let output = flowgate(folder.path())
            .args(["check", "--config", "flowgate.toml"])
            .env("FLOWGATE_CLIENT_SHOP_WEB_SECRET", "client-secret-1")
            .envs(borrowed(&variables))
            .output()
            .unwrap();
        let text = text(&output);
        assert_eq!(output.status.code(), Some(0), "{text}\n{block}");
        assert!(text.contains("the configuration is valid"), "{text}");
    }
    // Nothing is asked without --live.
    assert!(cloud.sim.credential_requests().is_empty());
}

#[test]
fn the_policies_of_the_manual_are_json() {
    let policies = blocks("json");
    assert_eq!(policies.len(), 2);
    for policy in policies {
        let policy: serde_json::Value = serde_json::from_str(&policy).unwrap();
        assert_eq!(policy["Statement"][0]["Effect"], "Allow");
    }
}

#[test]
fn the_commands_of_the_manual_make_client_keys() {
    let folder = tempfile::tempdir().unwrap();
    let mut made = 0;
    for line in blocks("sh").iter().flat_map(|block| block.lines()) {
        let Some(arguments) = line.strip_prefix("flowgate client new ") else {
            continue;
        };
        let arguments = arguments.replace("/etc/flowgate/secrets/", "");
        let output = flowgate(folder.path())
            .args(["client", "new"])
            .args(arguments.split(' '))
            .output()
            .unwrap();
        assert_eq!(output.status.code(), Some(0), "{line}: {}", text(&output));
        let file = arguments.split(' ').next_back().unwrap();
        let secret = std::fs::read_to_string(folder.path().join(file)).unwrap();
        assert_eq!(secret.trim_end().len(), 30, "{line}");
        made += 1;
    }
    assert_eq!(made, 3);
}

/// The commands name files of the repository.
#[test]
fn the_files_of_the_manuals_commands_exist() {
    let blocks = blocks("sh").join("\n");
    let paths: Vec<_> = blocks
        .split_whitespace()
        .filter(|word| word.starts_with("deploy/") && word.contains('.') && !word.contains('*'))
        .collect();
    assert!(paths.len() >= 3, "{paths:?}");
    for path in paths {
        assert!(root().join(path).exists(), "{path}");
    }
}

/// The output with what differs between runs as it is in the manual.
fn as_in_manual(output: &Output, cloud: &Cloud) -> String {
    let output = String::from_utf8(output.stdout.clone()).unwrap();
    let sts = cloud.sts_address();
    let output = output.replace(&sts, "sts-vpc.ap-southeast-1.aliyuncs.com");
    let words = output.split_inclusive([' ', ',', ';', '\n']);
    let mut previous = "";
    words
        .map(|word| {
            let (text, end) = word.split_at(word.len() - 1);
            let is_time = text.len() == END.len() && text.starts_with("20") && text.ends_with('Z');
            let is_request_id = std::mem::replace(&mut previous, word) == "id ";
            match (is_time, is_request_id) {
                (true, _) => format!("{END}{end}"),
                (_, true) => format!("{REQUEST_ID}{end}"),
                _ => word.to_owned(),
            }
        })
        .collect()
}

/// What `check --live` prints, as in the manual. Run with `UPDATE_DOCS=1` to write it there.
#[tokio::test]
async fn the_manual_shows_what_check_live_prints() {
    let cloud = Cloud::start(None).await;
    let variables = cloud.sidecar_variables(false);
    let folder = tempfile::tempdir().unwrap();
    let toml = format!(
        "[[accounts]]\nid = \"acme\"\ncredentials = {{ oidc = {{}} }}\n\
         [sts]\nendpoint = \"{}\"\n",
        cloud.sts_address()
    );
    std::fs::write(folder.path().join("flowgate.toml"), toml).unwrap();
    let mut printed = Vec::new();
    for code in [0, 1] {
        let mut command = tokio::process::Command::from(flowgate(folder.path()));
        let output = command
            .args(["check", "--live", "--config", "flowgate.toml"])
            .env("ALIBABA_CLOUD_ROLE_SESSION_NAME", "flowgate-0")
            .envs(borrowed(&variables))
            .output()
            .await
            .unwrap();
        assert_eq!(output.status.code(), Some(code), "{}", text(&output));
        printed.push(as_in_manual(&output, &cloud));
        cloud.break_sts(&["refuse=AuthenticationFail.NoPermission,status=403"]);
    }
    assert_eq!(cloud.requests(OIDC).len(), 2);
    let shown: Vec<_> = blocks("text").iter().map(|it| format!("{it}\n")).collect();
    assert_eq!(shown.len(), printed.len());
    if std::env::var_os("UPDATE_DOCS").is_some() {
        let mut page = page();
        for (shown, printed) in shown.iter().zip(&printed) {
            let block = |text: &str| format!("```text\n{text}```\n");
            page = page.replacen(&block(shown), &block(printed), 1);
        }
        std::fs::write(root().join("docs/credentials.md"), page).unwrap();
    }
    let shown: Vec<_> = blocks("text").iter().map(|it| format!("{it}\n")).collect();
    assert_eq!(shown, printed, "run with UPDATE_DOCS=1");
}

/// The sources of Flowgate without tests, with the literals that span lines in one line.
fn sources(folder: &Path, text: &mut String) {
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_str().unwrap();
        if path.is_dir() && name != "tests" {
            sources(&path, text);
        } else if name.ends_with(".rs") && name != "tests.rs" {
            let source = std::fs::read_to_string(&path).unwrap();
            let code = source.split("#[cfg(test)]\nmod tests {").next().unwrap();
            let mut lines = code.split("\\\n");
            text.push_str(lines.next().unwrap());
            lines.for_each(|line| text.push_str(line.trim_start()));
        }
    }
}

/// Whether the sources have the literal of a code, of its family, or of a text.
fn is_known(sources: &str, text: &str) -> bool {
    let families = text.match_indices('.').map(|(at, _)| &text[..at]);
    let is_code = families
        .chain([text])
        .any(|code| sources.contains(&format!("\"{code}\"")));
    is_code || (text.contains(' ') && sources.contains(text))
}

/// An operator searches the tables for what a message says.
#[test]
fn the_texts_of_the_manuals_troubleshooting_are_those_of_the_messages() {
    let mut code = String::new();
    sources(&root().join("src"), &mut code);
    let page = page();
    let tables = page.split("If it fails\n").skip(1);
    let mut rows = [0, 0];
    for (count, table) in rows.iter_mut().zip(tables) {
        let begin = table.find("|---|---|\n").unwrap();
        let table = &table[begin..];
        for row in table
            .lines()
            .skip(1)
            .take_while(|line| line.starts_with("| "))
        {
            let cell = row[2..].split(" | ").next().unwrap();
            let texts: Vec<_> = cell.split('`').skip(1).step_by(2).collect();
            assert!(!texts.is_empty(), "{row}");
            for text in texts.iter().filter(|text| !text.starts_with("kubectl")) {
                assert!(is_known(&code, text), "no message says {text}: {row}");
            }
            *count += 1;
        }
    }
    assert!(rows[0] > 15 && rows[1] > 4, "{rows:?}");
    assert!(!is_known(&code, "the instance has lost its role"));
    assert!(!is_known(&code, "EntityExists.Role"));
}

//! The blocks and commands of docs/credentials.md, and of the manifest and the unit that it names.
//! tests/deploy renders its values of Helm.

use std::path::Path;
use std::process::{Command, Output};

use super::cloud::{Cloud, borrowed};

/// The content of the page's blocks in a language.
fn blocks(language: &str) -> Vec<String> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/credentials.md");
    let page = std::fs::read_to_string(path).unwrap();
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
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let blocks = blocks("sh").join("\n");
    let paths: Vec<_> = blocks
        .split_whitespace()
        .filter(|word| word.starts_with("deploy/") && word.contains('.') && !word.contains('*'))
        .collect();
    assert!(paths.len() >= 3, "{paths:?}");
    for path in paths {
        assert!(root.join(path).exists(), "{path}");
    }
}

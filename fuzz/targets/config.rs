//! A configuration file, and after a line `#environment` variables as `NAME=value`: no mistake and
//! no warning shows a value.

#![no_main]

use std::ffi::OsString;
use std::sync::LazyLock;

use libfuzzer_sys::fuzz_target;

/// A placeholder for a secret. A message may show it only as part of a name.
const SECRET: &str = "Hush9";

/// In memory: rewriting a file on disk would take longer than reading it.
static FOLDER: LazyLock<tempfile::TempDir> =
    LazyLock::new(|| tempfile::tempdir_in("/dev/shm").expect("Linux has files in memory"));

fuzz_target!(|input: &str| {
    let (file, environment) = input.split_once("#environment\n").unwrap_or((input, ""));
    let path = FOLDER.path().join("flowgate.toml");
    std::fs::write(&path, file).expect("the temporary folder takes files");
    let variables = environment.lines().filter_map(|line| line.split_once('='));
    let names_show =
        variables.clone().any(|(name, _)| name.contains(SECRET)) || has_telling_key(file);
    let variables = variables.filter(|(name, value)| !name.contains('\0') && !value.contains('\0'));
    let variables = variables.map(|(name, value)| (OsString::from(name), OsString::from(value)));
    let said = match flowgate::config::load(Some(&path), variables) {
        Ok(loaded) => loaded.warnings.join("\n"),
        Err(mistakes) => mistakes.to_string(),
    };
    assert!(
        names_show || !said.contains(SECRET),
        "a value is shown: {said}"
    );
    assert!(
        !said.contains(['\r', '\x1b', '\0']),
        "a name forges lines: {said:?}"
    );
});

/// Whether a key of the file contains the secret. A file that is not TOML shows nothing.
fn has_telling_key(file: &str) -> bool {
    fn has(value: &toml::Value) -> bool {
        match value {
            toml::Value::Table(table) => table
                .iter()
                .any(|(key, value)| key.contains(SECRET) || has(value)),
            toml::Value::Array(values) => values.iter().any(has),
            _ => false,
        }
    }
    file.parse::<toml::Table>()
        .is_ok_and(|table| has(&toml::Value::Table(table)))
}

//! Determines the commit: the variable `FLOWGATE_COMMIT`, for an image that is built without the
//! repository, else git's answer for the package's own folder, else "unknown", for a package from
//! the registry.

#![allow(
    clippy::print_stdout,
    reason = "this is how a build script speaks to cargo"
)]

use std::path::Path;
use std::process::Command;

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rerun-if-env-changed=FLOWGATE_COMMIT");
    let given = std::env::var("FLOWGATE_COMMIT")
        .ok()
        .filter(|commit| !commit.is_empty());
    let commit = given
        .or_else(committed)
        .unwrap_or_else(|| "unknown".to_owned());
    println!("cargo::rustc-env=BUILD_COMMIT={commit}");
}

/// The commit of the repository whose root is this folder. A repository in a parent folder is a
/// different one.
fn committed() -> Option<String> {
    if !Path::new(".git").exists() {
        return None;
    }
    // Changes with every commit and every checkout.
    println!(
        "cargo::rerun-if-changed={}",
        git(&["rev-parse", "--git-path", "logs/HEAD"])?
    );
    git(&["rev-parse", "--short=12", "HEAD"])
}

fn git(args: &[&str]) -> Option<String> {
    let said = Command::new("git")
        .args(args)
        .output()
        .ok()
        .filter(|said| said.status.success())?;
    String::from_utf8(said.stdout)
        .ok()
        .map(|text| text.trim().to_owned())
}

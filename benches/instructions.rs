//! Has a pure step of a call become dearer? Counts the instructions of each under callgrind, which
//! neither load nor clock of the machine changes, and compares them with those in
//! `instructions.toml`; `-- --update` rewrites that file. Each step runs in two processes of its
//! own, one of which repeats it more often: the difference is the step's alone.

#![expect(clippy::print_stdout, reason = "the table is what it is for")]

use std::collections::BTreeMap;
use std::env::consts::ARCH;
use std::process::{Command, ExitCode};

use anyhow::{Context, Result, bail, ensure};
use flowgate::testing::bench::{STEPS, Steps};
use serde::Deserialize;

const CAPTURE: &str = include_str!("../tests/data/captures/py5_a_v3_ak.http");
const FILE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/benches/instructions.toml");
const UPDATE: &str = "cargo bench --bench instructions -- --update";
/// Unrelated changes move a step by up to 3 %, because the compiler inlines differently.
const TOLERANCE: f64 = 0.05;
/// The steps that are counted. `identify` contains canonicalising and verifying; taking a token is
/// too short to count.
const COUNTED: [&str; 6] = ["identify", "classify", "key", "next", "sign", "judge"];
const TIMES: u64 = 2000;
/// An allocator that keeps all freed memory takes the same path every time, independent of the
/// order of maps.
const ALLOCATOR: &str = "glibc.malloc.tcache_count=10000:glibc.malloc.tcache_max=65536";

/// What the file keeps.
#[derive(Deserialize)]
struct Kept {
    /// Another one has other instructions.
    architecture: String,
    /// As a part of the count, up and down.
    tolerance: f64,
    /// Instructions of one pass of each step.
    instructions: BTreeMap<String, u64>,
}

fn main() -> Result<ExitCode> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    match args[..] {
        ["--step", name, times] => repeat(name, times.parse()?).map(|()| ExitCode::SUCCESS),
        _ if args.contains(&"--update") => update().map(|()| ExitCode::SUCCESS),
        _ => check(),
    }
}

/// What runs under callgrind.
fn repeat(name: &str, times: u64) -> Result<()> {
    let (_, step) = STEPS
        .into_iter()
        .find(|(known, _)| *known == name)
        .context("no such step")?;
    let mut steps = Steps::new(CAPTURE);
    (0..times).for_each(|_| step(&mut steps));
    Ok(())
}

fn check() -> Result<ExitCode> {
    let kept: Kept = toml::from_str(&std::fs::read_to_string(FILE).context(FILE)?)?;
    let recorded = &kept.architecture;
    ensure!(
        recorded == ARCH,
        "instructions.toml was recorded on {recorded} and says nothing of {ARCH}"
    );
    ensure!(
        kept.instructions
            .keys()
            .all(|name| COUNTED.contains(&name.as_str())),
        "instructions.toml: unknown step"
    );
    let mut failed = false;
    for name in COUNTED {
        let stored = *kept
            .instructions
            .get(name)
            .with_context(|| format!("{name} is missing: {UPDATE}"))?;
        let seen = count(name)?;
        let change = seen as f64 / stored as f64 - 1.0;
        let word = match change {
            _ if change > kept.tolerance => "DEARER",
            _ if change < -kept.tolerance => "CHEAPER",
            _ => "ok",
        };
        failed |= word != "ok";
        println!(
            "{word:<8}{name:<14}stored {stored:>7}  seen {seen:>7}  {:+6.1} %",
            change * 100.0
        );
    }
    println!(
        "tolerance: {} %; to keep what was seen: {UPDATE}",
        kept.tolerance * 100.0
    );
    Ok(if failed {
        ExitCode::FAILURE
    } else {
        ExitCode::SUCCESS
    })
}

fn update() -> Result<()> {
    let mut text = format!(
        "# Instructions that one pass of each pure step takes, as benches/instructions.rs counts them, and checks.\n\
         # Written by: {UPDATE}\n\
         architecture = \"{ARCH}\"\ntolerance = {TOLERANCE}\n\n[instructions]\n"
    );
    for name in COUNTED {
        text += &format!("{name} = {}\n", count(name)?);
    }
    print!("{text}");
    Ok(std::fs::write(FILE, text)?)
}

/// Instructions of one pass.
fn count(name: &str) -> Result<u64> {
    Ok((collected(name, 2 * TIMES)?.saturating_sub(collected(name, TIMES)?)) / TIMES)
}

/// All instructions of a process that repeats a step so often.
fn collected(name: &str, times: u64) -> Result<u64> {
    let output = Command::new("valgrind")
        .env("GLIBC_TUNABLES", ALLOCATOR)
        .args(["--tool=callgrind", "--callgrind-out-file=/dev/null"])
        .arg(std::env::current_exe()?)
        .args(["--step", name, &times.to_string()])
        .output()
        .context("valgrind is missing")?;
    let text = String::from_utf8_lossy(&output.stderr);
    if !output.status.success() {
        bail!("{name} failed under callgrind:\n{text}");
    }
    let line = text
        .lines()
        .find_map(|line| line.split_once("Collected : "))
        .context("callgrind tells no count")?;
    Ok(line.1.trim().parse()?)
}

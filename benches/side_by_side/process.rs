//! A process on one core: its start, its output, its CPU time and memory, its end.

use std::ffi::OsStr;
use std::io::{BufRead, BufReader, Write};
use std::net::SocketAddr;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::time::Duration;

pub(crate) struct Process {
    child: Child,
    output: Option<BufReader<ChildStdout>>,
    input: Option<ChildStdin>,
}

/// Linux's unit in `/proc/PID/stat`; in user space always this.
const TICKS_PER_SECOND: f64 = 100.0;

/// Sends a line to the parent.
pub(crate) fn say(line: &str) {
    let mut output = std::io::stdout();
    writeln!(output, "{line}")
        .and_then(|()| output.flush())
        .unwrap();
}

/// Resident memory of a process.
pub(crate) fn resident_mib(pid: u32) -> f64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("VmRSS:"))
        .unwrap();
    line.trim().trim_end_matches(" kB").parse::<f64>().unwrap() / 1024.0
}

// === impl Process ===

impl Process {
    /// Starts this program in another role.
    pub(crate) fn this(cores: &str, arguments: &[String]) -> Self {
        let program = std::env::current_exe().unwrap();
        Self::start(
            cores,
            Command::new(program)
                .args(arguments)
                .stdout(Stdio::piped())
                .stdin(Stdio::piped()),
        )
    }

    /// Starts a command.
    pub(crate) fn start(cores: &str, command: &Command) -> Self {
        let mut pinned = Command::new("taskset");
        pinned
            .args([OsStr::new("-c"), OsStr::new(cores), command.get_program()])
            .args(command.get_args());
        pinned.envs(
            command
                .get_envs()
                .filter_map(|(name, value)| Some((name, value?))),
        );
        pinned.stdout(Stdio::piped()).stdin(Stdio::piped());
        let mut child = pinned.spawn().unwrap();
        let output = child.stdout.take().map(BufReader::new);
        let input = child.stdin.take();
        Self {
            child,
            output,
            input,
        }
    }

    /// The next line of its output.
    pub(crate) fn line(&mut self) -> String {
        let mut line = String::new();
        self.output.as_mut().unwrap().read_line(&mut line).unwrap();
        line.trim().to_owned()
    }

    pub(crate) fn address(&mut self) -> SocketAddr {
        let line = self.line();
        line.parse()
            .unwrap_or_else(|_| panic!("no address: {line:?}"))
    }

    /// Tells it to begin.
    pub(crate) fn go(&mut self) {
        writeln!(self.input.as_mut().unwrap()).unwrap();
    }

    /// CPU seconds of it and its children, in user and system mode.
    pub(crate) fn cpu(&self) -> f64 {
        let of = |pid: u32| {
            let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
            let (_, fields) = stat.rsplit_once(") ").unwrap();
            fields
                .split(' ')
                .skip(11)
                .take(2)
                .map(|ticks| ticks.parse::<f64>().unwrap())
                .sum::<f64>()
        };
        self.all().into_iter().map(of).sum::<f64>() / TICKS_PER_SECOND
    }

    /// Resident memory of it and its children.
    pub(crate) fn rss_mib(&self) -> f64 {
        self.all().into_iter().map(resident_mib).sum()
    }

    fn all(&self) -> Vec<u32> {
        let pid = self.child.id();
        let children =
            std::fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap_or_default();
        let children = children.split_whitespace().map(|pid| pid.parse().unwrap());
        children.chain([pid]).collect()
    }

    /// Waits until it ends by itself.
    pub(crate) fn wait(&mut self) {
        assert!(self.child.wait().unwrap().success());
    }

    /// Ends it with SIGTERM.
    pub(crate) fn stop(&mut self) {
        let pid = self.child.id().to_string();
        drop(Command::new("kill").args(["-TERM", &pid]).status());
        for _ in 0..100 {
            if self.child.try_wait().unwrap().is_some() {
                return;
            }
            std::thread::sleep(Duration::from_millis(50));
        }
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if let Ok(None) = self.child.try_wait() {
            self.stop();
        }
    }
}

//! Start time and size of Flowgate's binary: from the start of the process to the first accepted
//! connection, many times.

use std::net::SocketAddr;

use tokio::time::Instant;

use crate::contenders::{self, Kind, Programs};
use crate::process::say;

const STARTS: usize = 11;

/// Prints the median and the size.
pub(crate) fn start(programs: Programs<'_>) {
    let upstream = SocketAddr::from(([127, 0, 0, 1], 9));
    let mut took: Vec<_> = (0..STARTS)
        .map(|_| {
            let folder = tempfile::tempdir().unwrap();
            let start = Instant::now();
            let mut contender =
                contenders::start(Kind::Relayed, upstream, folder.path(), programs).unwrap();
            let took = start.elapsed();
            contender.process.stop();
            took
        })
        .collect();
    took.sort_unstable();
    let size = std::fs::metadata(programs.flowgate).unwrap().len() as f64 / f64::from(1 << 20);
    let [least, median, most] = [0, STARTS / 2, STARTS - 1].map(|at| took[at].as_secs_f64() * 1e3);
    say("| start to ready, ms: median | least | most | binary MiB |\n|--:|--:|--:|--:|");
    say(&format!(
        "| {median:.1} | {least:.1} | {most:.1} | {size:.1} |"
    ));
}

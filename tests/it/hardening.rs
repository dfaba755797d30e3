//! What the running program keeps to itself: it is killed by a signal that dumps the memory of others, and leaves none.

use std::os::unix::process::ExitStatusExt;

use cams_sim::{Settings, Sim};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use crate::process::Process;
use crate::world::Metrics;

#[tokio::test]
async fn a_crash_leaves_no_core_dump_and_metrics_of_the_process_are_still_there() {
    // What the program inherits would allow one.
    let maximum = getrlimit(Resource::Core).maximum;
    let most = Rlimit {
        current: maximum,
        maximum,
    };
    setrlimit(Resource::Core, most).unwrap();
    let sim = Sim::start(Settings::default()).await.unwrap();
    let process = Process::start(&sim, "").await;
    let limits = std::fs::read_to_string(format!("/proc/{}/limits", process.id())).unwrap();
    let core = limits
        .lines()
        .find(|line| line.starts_with("Max core file size"))
        .unwrap();
    assert_eq!(
        core.split_whitespace().skip(4).take(2).collect::<Vec<_>>(),
        ["0", "0"],
        "{core}"
    );
    let metrics = Metrics::of(process.admin).await;
    assert!(
        metrics.get("process_open_fds") > 3.0 && metrics.get("process_resident_memory_bytes") > 1e6
    );
    let status = process.abort().await;
    assert_eq!((status.signal(), status.core_dumped()), (Some(6), false));
}

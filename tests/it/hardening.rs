//! The program disables core dumps: a signal that would write one leaves none.

use std::os::unix::process::ExitStatusExt;

use cams_sim::{Settings, Sim};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use crate::harness::Metrics;
use crate::process::Process;

#[tokio::test]
async fn a_crash_leaves_no_core_dump_and_process_metrics_work() {
    // The inherited limit would allow a core dump.
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

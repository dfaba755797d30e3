//! What does each pure step of a call cost, in time? The call is one that Alibaba's Python SDK made, of a managed account.
//! `benches/README.md` has the method and the figures.

use std::time::Duration;

use criterion::Criterion;
use flowgate::bench_support::{Attempts, STEPS, Steps};
use tokio::runtime::Builder;

const CAPTURE: &str = include_str!("../tests/data/captures/py5_a_v3_ak.http");

fn main() {
    let mut criterion = Criterion::default()
        .warm_up_time(Duration::from_millis(500))
        .measurement_time(Duration::from_secs(2))
        .without_plots()
        .configure_from_args();
    for (name, step) in STEPS {
        let mut steps = Steps::new(CAPTURE);
        criterion.bench_function(name, |bencher| bencher.iter(|| step(&mut steps)));
    }
    // Both lines of an attempt, into a real file that rotates.
    let folder = tempfile::tempdir().expect("a folder for temporary files");
    let attempts = Attempts::new(Steps::new(CAPTURE), &folder.path().join("journal"));
    let runtime = Builder::new_current_thread().enable_all().build().expect("a runtime");
    criterion.bench_function("journal", |bencher| bencher.iter(|| runtime.block_on(attempts.journal())));
    criterion.final_summary();
}

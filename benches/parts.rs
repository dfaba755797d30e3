//! Time of each pure step of a call. The call was made by Alibaba's Python SDK, for a managed
//! account. Method and figures: `benches/README.md`.

use std::time::Duration;

use criterion::Criterion;
use flowgate::testing::bench::{Attempts, STEPS, Steps};
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
    // In a real file that rotates: both lines of an attempt; the line that the attempt waits for,
    // alone and a hundred together; and that line written by the calling thread.
    let folder = tempfile::tempdir().expect("a folder for temporary files");
    let mut attempts = Attempts::new(Steps::new(CAPTURE), &folder.path().join("journal"));
    let runtime = Builder::new_current_thread()
        .enable_all()
        .build()
        .expect("a runtime");
    criterion.bench_function("journal", |bencher| {
        bencher.iter(|| runtime.block_on(attempts.journal()))
    });
    criterion.bench_function("journal_sent", |bencher| {
        bencher.iter(|| runtime.block_on(attempts.sent()))
    });
    criterion.bench_function("journal_sent_here", |bencher| {
        bencher.iter(|| attempts.sent_here())
    });
    criterion.bench_function("journal_sent_100", |bencher| {
        bencher.iter(|| runtime.block_on(attempts.sent_together(100)))
    });
    criterion.final_summary();
}

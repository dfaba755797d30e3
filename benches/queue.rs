//! Cost of the queue's operations, from ten to a hundred thousand waiting calls and from one to ten
//! thousand tenants. It compiles the queue's own files, because nothing of the crate is public for
//! it. Method and figures: `benches/README.md`.

#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed benchmark")]

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::hint::black_box;
use std::time::Duration;

use criterion::{BenchmarkId, Criterion};
use tokio::time::Instant;

use crate::limiter::fair::{FairQueue, QueueEntry, Sequence};
use crate::primitives::id::{ClientId, TenantId};
// The path by which the queue's files refer to it.
use flowgate::primitives;

#[allow(
    dead_code,
    unused_imports,
    reason = "the benchmark uses a part of it, and none of its tests"
)]
#[path = "../src/limiter"]
mod limiter {
    pub(crate) mod fair;
}

/// Numbers of waiting calls and of their tenants.
type Size = (usize, usize);

const SIZES: [Size; 11] = [
    (10, 1),
    (100, 1),
    (1_000, 1),
    (10_000, 1),
    (100_000, 1),
    (100, 100),
    (1_000, 100),
    (10_000, 100),
    (100_000, 100),
    (10_000, 10_000),
    (100_000, 10_000),
];

/// Number of operations that are timed together and then undone: the queue's length changes by at
/// most this.
const TOGETHER: u64 = 8;

/// Performs an operation this many times, and returns the time taken.
type Operation = fn(&mut Crowd, u64) -> Duration;

const OPERATIONS: [(&str, Operation); 6] = [
    ("push", Crowd::push),
    ("pop", Crowd::pop),
    ("remove", Crowd::remove),
    ("evict", Crowd::evict),
    ("ahead_of_new", Crowd::ahead_of_new),
    ("sift", Crowd::sift),
];

/// A queue and its entries; a call is identified by its index here.
struct Crowd {
    queue: FairQueue<usize>,
    entries: Vec<QueueEntry>,
    next: u64,
    random: fastrand::Rng,
}

// === impl Crowd ===

impl Crowd {
    fn new((waiters, tenants): Size) -> Self {
        let mut random = fastrand::Rng::with_seed(1);
        let client = ClientId::new("client");
        let tenants: Vec<_> = (0..tenants)
            .map(|tenant| TenantId::new(format!("tenant-{tenant}")))
            .collect();
        // The same number of each, in random order.
        let mut of: Vec<_> = (0..waiters)
            .map(|waiter| &tenants[waiter % tenants.len()])
            .collect();
        random.shuffle(&mut of);
        let entry = |tenant: &TenantId| QueueEntry {
            sequence: Sequence(0),
            client: client.clone(),
            weight: 1,
            tenant: tenant.clone(),
            arrived: Instant::now(),
        };
        let entries: Vec<_> = of.into_iter().map(entry).collect();
        let mut crowd = Self {
            queue: FairQueue::new(),
            entries,
            next: 0,
            random,
        };
        (0..waiters).for_each(|index| crowd.come(index));
        crowd
    }

    /// Joins the queue at its end.
    fn come(&mut self, index: usize) {
        self.next += 1;
        self.entries[index].sequence = Sequence(self.next);
        self.queue.push(self.entries[index].clone(), index);
    }

    /// Random calls, each at most once.
    fn some(&mut self) -> Vec<usize> {
        self.random
            .choose_multiple(0..self.entries.len(), TOGETHER as usize)
    }

    fn push(&mut self, times: u64) -> Duration {
        together(times, |count| {
            let mut new = Vec::with_capacity(count);
            for index in self.some().into_iter().take(count) {
                self.next += 1;
                new.push(QueueEntry {
                    sequence: Sequence(self.next),
                    ..self.entries[index].clone()
                });
            }
            let coming = new.clone();
            let took = timed(|| {
                coming
                    .into_iter()
                    .for_each(|entry| self.queue.push(entry, 0))
            });
            new.iter()
                .for_each(|entry| assert!(self.queue.remove(entry).is_some()));
            took
        })
    }

    fn pop(&mut self, times: u64) -> Duration {
        together(times, |count| {
            let mut gone = Vec::with_capacity(count);
            let took = timed(|| gone.extend((0..count).map_while(|_| self.queue.pop())));
            gone.into_iter().for_each(|index| self.come(index));
            took
        })
    }

    fn remove(&mut self, times: u64) -> Duration {
        together(times, |count| {
            let some: Vec<_> = self.some().into_iter().take(count).collect();
            let took = timed(|| {
                for index in &some {
                    black_box(self.queue.remove(&self.entries[*index])).unwrap();
                }
            });
            some.into_iter().for_each(|index| self.come(index));
            took
        })
    }

    fn evict(&mut self, times: u64) -> Duration {
        let other = ClientId::new("other");
        together(times, |count| {
            let mut gone = Vec::with_capacity(count);
            let took = timed(|| gone.extend((0..count).map_while(|_| self.queue.evict(&other))));
            gone.into_iter().for_each(|index| self.come(index));
            took
        })
    }

    fn ahead_of_new(&mut self, times: u64) -> Duration {
        let entry = self.entries[0].clone();
        timed(|| {
            for _ in 0..times {
                black_box(self.queue.ahead_of_new(black_box(&entry)));
            }
        })
    }

    /// A complete walk through the queue, in pieces like a review.
    fn sift(&mut self, times: u64) -> Duration {
        timed(|| {
            for _ in 0..times {
                let mut walk = self.queue.walk();
                while !walk.is_over() {
                    drop(black_box(self.queue.advance_walk(
                        &mut walk,
                        128,
                        |ahead, _| black_box(ahead) < usize::MAX,
                    )));
                }
            }
        })
    }
}

fn timed(what: impl FnOnce()) -> Duration {
    let start = Instant::now();
    what();
    start.elapsed()
}

/// The sum over groups of at most [`TOGETHER`].
fn together(mut times: u64, mut group: impl FnMut(usize) -> Duration) -> Duration {
    let mut took = Duration::ZERO;
    while times > 0 {
        let count = times.min(TOGETHER);
        took += group(count as usize);
        times -= count;
    }
    took
}

/// Nanoseconds per operation, for each sample of a benchmark.
type Samples = BTreeMap<(usize, usize), Vec<f64>>;

fn measure(criterion: &mut Criterion, samples: &RefCell<Samples>) {
    for (row, (name, operation)) in OPERATIONS.into_iter().enumerate() {
        let mut group = criterion.benchmark_group(name);
        for (column, size) in SIZES.into_iter().enumerate() {
            let id = BenchmarkId::from_parameter(format!("{} calls, {} tenants", size.0, size.1));
            group.bench_function(id, |bencher| {
                let mut crowd = Crowd::new(size);
                bencher.iter_custom(|times| {
                    let took = operation(&mut crowd, times);
                    let sample = took.as_nanos() as f64 / times as f64;
                    samples
                        .borrow_mut()
                        .entry((row, column))
                        .or_default()
                        .push(sample);
                    took
                });
            });
        }
        group.finish();
    }
}

/// The medians as a table for `benches/README.md`.
fn table(samples: Samples) -> String {
    let mut table = String::from("\n| calls | tenants |");
    OPERATIONS
        .iter()
        .for_each(|(name, _)| table.push_str(&format!(" {name} |")));
    table.push_str(&format!("\n|--:|--:|{}\n", "--:|".repeat(OPERATIONS.len())));
    let median = |cell| {
        let mut samples: Vec<f64> = samples.get(&cell)?.clone();
        samples.sort_by(f64::total_cmp);
        Some(samples[samples.len() / 2])
    };
    for (column, (calls, tenants)) in SIZES.into_iter().enumerate() {
        table.push_str(&format!("| {calls} | {tenants} |"));
        for row in 0..OPERATIONS.len() {
            let cell = median((row, column)).zip(median((row, 0)));
            let text = cell
                .map(|(nanos, first)| format!("{nanos:.0} ({:.1})", nanos / first))
                .unwrap_or_default();
            table.push_str(&format!(" {text} |"));
        }
        table.push('\n');
    }
    table
}

#[expect(
    clippy::print_stdout,
    reason = "the table is what the benchmark is for"
)]
fn main() {
    let mut criterion = Criterion::default()
        .sample_size(20)
        .warm_up_time(Duration::from_millis(200))
        .measurement_time(Duration::from_millis(600))
        .without_plots()
        .configure_from_args();
    let samples = RefCell::default();
    measure(&mut criterion, &samples);
    println!("{}", table(samples.into_inner()));
}

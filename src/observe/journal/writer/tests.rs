//! The order of lines, the attempts' waits and the bound of the queue, on disks that are slow,
//! full, broken or hang.

use std::collections::BTreeSet;
use std::sync::mpsc::SyncSender;

use futures_util::future::join_all;
use tokio::sync::mpsc::{UnboundedReceiver, unbounded_channel};

use super::*;
use crate::observe::metrics::{Metrics, Scrape};

/// A disk whose every n-th write waits until the test releases it.
struct Disk {
    written: Arc<Mutex<Vec<String>>>,
    writes: usize,
    every: usize,
    begun: tokio::sync::mpsc::UnboundedSender<()>,
    go_on: Receiver<Write>,
}

/// How a write ends.
#[derive(Clone, Copy)]
enum Write {
    Done,
    Failed,
    Panics,
}

/// A writer on such a disk, controlled by the test.
struct Bench {
    writer: Arc<Writer>,
    health: Arc<Health>,
    metrics: Arc<Metrics>,
    written: Arc<Mutex<Vec<String>>>,
    begun: UnboundedReceiver<()>,
    go_on: SyncSender<Write>,
}

fn line(text: &str) -> Bytes {
    format!("{text}\n").into()
}

/// As the journal writes it.
fn sent(attempt: &str) -> Bytes {
    let fields =
        r#""time":"T","request_id":"R","account":"acme","client":"c","action":"CreateFlow""#;
    line(&format!(
        r#"{{"event":"sent","attempt":"{attempt}",{fields}}}"#
    ))
}

// === impl Disk ===

impl Sink for Disk {
    fn append(&mut self, lines: &[Bytes]) -> WriteResult {
        self.writes += 1;
        if self.writes.is_multiple_of(self.every) {
            self.begun.send(()).unwrap();
            // A test that has ended waits for nothing.
            match self.go_on.recv().unwrap_or(Write::Done) {
                Write::Done => {}
                Write::Failed => {
                    let error = Some(io::ErrorKind::StorageFull.into());
                    return WriteResult {
                        lines: lines.len(),
                        lost: lines.len(),
                        error,
                    };
                }
                Write::Panics => panic!("the disk's driver is broken"),
            }
        }
        let text = lines
            .iter()
            .map(|line| String::from_utf8(line.to_vec()).unwrap())
            .collect();
        self.written.lock().push(text);
        WriteResult {
            lines: lines.len(),
            lost: 0,
            error: None,
        }
    }
}

// === impl Bench ===

impl Bench {
    /// Every n-th write waits.
    fn new(every: usize) -> Self {
        let written = Arc::<Mutex<Vec<_>>>::default();
        let metrics = Arc::new(Metrics::new());
        let (begins, begun) = unbounded_channel();
        let (go_on, goes_on) = mpsc::sync_channel(1);
        let disk = Disk {
            written: written.clone(),
            writes: 0,
            every,
            begun: begins,
            go_on: goes_on,
        };
        let health = Arc::new(Health::new(metrics.clone()));
        let writer = Arc::new(Writer::start(disk, health.clone()).unwrap());
        Self {
            writer,
            health,
            metrics,
            written,
            begun,
            go_on,
        }
    }

    /// Queues a line as an attempt does, which then waits.
    fn attempt(&self, bytes: Bytes) -> tokio::task::JoinHandle<bool> {
        let writer = self.writer.clone();
        tokio::spawn(async move { writer.write(&bytes).await })
    }

    /// Lets a line in alone, and waits until its write has begun and hangs.
    async fn hang(&mut self) -> tokio::task::JoinHandle<bool> {
        let attempt = self.attempt(line("hangs"));
        self.begun.recv().await.unwrap();
        attempt
    }

    /// Everything that was written so far.
    fn text(&self) -> String {
        self.written.lock().concat()
    }

    fn metrics(&self) -> String {
        self.metrics.render(&Scrape::default())
    }
}

#[tokio::test]
async fn a_slow_write_delays_the_attempts_that_wait_for_it_and_nothing_else() {
    let mut bench = Bench::new(9);
    let mut held = 0;
    for index in 0..90 {
        let attempt = bench.attempt(line(&format!("{index} sent")));
        // Each attempt's two lines are a write each, because the second is queued after the first
        // has been written.
        for is_sent in [true, false] {
            if (2 * index + usize::from(!is_sent) + 1).is_multiple_of(9) {
                bench.begun.recv().await.unwrap();
                held += 1;
                assert!(!is_sent || !attempt.is_finished());
                // The thread of the connections runs on.
                tokio::spawn(async {}).await.unwrap();
                bench.go_on.send(Write::Done).unwrap();
            }
            if is_sent {
                while !attempt.is_finished() {
                    tokio::task::yield_now().await;
                }
                bench.writer.push(line(&format!("{index} done")));
            }
        }
        attempt.await.unwrap();
        bench.writer.flushed().await;
    }
    let expected: String = (0..90)
        .map(|index| format!("{index} sent\n{index} done\n"))
        .collect();
    assert_eq!((held, bench.text()), (20, expected));
}

#[tokio::test]
async fn queued_lines_are_one_write() {
    let mut bench = Bench::new(1);
    let first = bench.hang().await;
    let lines: Vec<_> = (0..100).map(|index| line(&index.to_string())).collect();
    let mut attempts: Vec<_> = lines
        .iter()
        .map(|line| Box::pin(bench.writer.write(line)))
        .collect();
    for attempt in &mut attempts {
        assert!(futures_util::poll!(attempt).is_pending());
    }
    for _ in 0..2 {
        bench.go_on.send(Write::Done).unwrap();
    }
    join_all(attempts).await;
    first.await.unwrap();
    let expected: String = (0..100).map(|index| format!("{index}\n")).collect();
    assert_eq!(*bench.written.lock(), ["hangs\n".to_owned(), expected]);
}

#[tokio::test]
async fn a_write_has_a_bounded_size() {
    let mut bench = Bench::new(1000);
    bench.writer.push(line("first"));
    let long = line(&"x".repeat(1000));
    (0..500).for_each(|_| bench.writer.push(long.clone()));
    bench.writer.flushed().await;
    let longest = bench.written.lock().iter().map(String::len).max().unwrap();
    assert!(longest < MAX_BATCH + long.len(), "{longest}");
    assert_eq!(bench.text().len(), 6 + 500 * 1001);
    bench.begun.close();
}

#[tokio::test(start_paused = true)]
async fn while_the_disk_hangs_memory_is_bounded_and_attempts_wait() {
    let mut bench = Bench::new(1);
    let first = bench.hang().await;
    let long = line(&"x".repeat(10_000));
    let fit = (MAX_QUEUED - weight(&line("hangs")) as usize) / weight(&long) as usize;
    (0..fit + 100).for_each(|_| bench.writer.push(long.clone()));
    assert!(bench.writer.queue_space.available_permits() < weight(&long) as usize);
    let lost = |lines: usize| format!("flowgate_journal_errors_total {lines}\n");
    assert!(
        bench.metrics().contains(&lost(100)) && bench.metrics().contains("flowgate_journal_up 0\n")
    );
    let attempt = bench.attempt(sent("waits for room"));
    tokio::task::yield_now().await;
    assert!(!attempt.is_finished() && !first.is_finished() && !bench.health.is_up(Instant::now()));
    drop(bench.go_on);
    attempt.await.unwrap();
    first.await.unwrap();
    bench.writer.flushed().await;
    let text = bench.written.lock().concat();
    assert_eq!(text.lines().count(), 1 + fit + 1);
    assert_eq!(bench.writer.queue_space.available_permits(), MAX_QUEUED);
    assert!(bench.health.is_up(Instant::now()));
    let page = bench.metrics.render(&Scrape::default());
    assert!(page.contains(&lost(100)) && page.contains("flowgate_journal_up 1\n"));
}

#[tokio::test(start_paused = true)]
async fn a_write_that_hangs_is_an_outage() {
    let mut bench = Bench::new(1);
    let first = bench.hang().await;
    let is_up = |bench: &Bench| {
        (
            bench.health.is_up(Instant::now()),
            bench.metrics().contains("flowgate_journal_up 1\n"),
        )
    };
    tokio::time::advance(Duration::from_millis(4999)).await;
    let second = bench.attempt(line("second"));
    tokio::task::yield_now().await;
    assert_eq!(is_up(&bench), (true, true));
    tokio::time::advance(Duration::from_millis(1)).await;
    assert_eq!(is_up(&bench), (false, true));
    // Noticed by an attempt that gives up, as by a new line.
    second.abort();
    assert!(second.await.unwrap_err().is_cancelled());
    assert_eq!(is_up(&bench), (false, false));
    bench.go_on.send(Write::Done).unwrap();
    first.await.unwrap();
    bench.writer.push(line("third"));
    bench.begun.recv().await.unwrap();
    bench.go_on.send(Write::Done).unwrap();
    bench.writer.flushed().await;
    assert_eq!(is_up(&bench), (true, true));
    assert_eq!(
        bench.text(),
        "hangs\nthird\n",
        "what was given up is not written"
    );
}

#[tokio::test]
async fn an_abandoned_attempt_has_no_line_or_is_recorded_as_unsent() {
    let mut bench = Bench::new(1);
    let under_way = bench.attempt(sent("under-way"));
    bench.begun.recv().await.unwrap();
    let queued = bench.attempt(sent("queued"));
    tokio::task::yield_now().await;
    for attempt in [under_way, queued] {
        attempt.abort();
        assert!(attempt.await.unwrap_err().is_cancelled());
    }
    // The line, and the one that records it as not sent.
    for _ in 0..2 {
        bench.go_on.send(Write::Done).unwrap();
    }
    bench.writer.flushed().await;
    let text = bench.text();
    let lines: Vec<serde_json::Value> = text
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    let result = |line: &serde_json::Value| {
        ["event", "attempt", "result"].map(|key| line[key].as_str().unwrap_or_default().to_owned())
    };
    let result: Vec<_> = lines.iter().map(result).collect();
    assert_eq!(
        result,
        [["sent", "under-way", ""], ["done", "under-way", "unsent"]]
    );
}

#[tokio::test]
async fn an_attempt_abandoned_during_its_write_is_recorded_as_unsent() {
    let mut bench = Bench::new(1);
    let writer = bench.writer.clone();
    let bytes = sent("late");
    let mut attempt = Box::pin(writer.write(&bytes));
    assert!(futures_util::poll!(&mut attempt).is_pending());
    bench.begun.recv().await.unwrap();
    bench.go_on.send(Write::Done).unwrap();
    bench.writer.flushed().await;
    // It is woken, and dropped before it runs.
    drop(attempt);
    bench.begun.recv().await.unwrap();
    bench.go_on.send(Write::Done).unwrap();
    bench.writer.flushed().await;
    let text = bench.text();
    assert!(
        text.lines().count() == 2
            && text
                .lines()
                .last()
                .unwrap()
                .contains(r#""result":"unsent""#),
        "{text}"
    );
}

#[tokio::test]
async fn on_a_full_disk_attempts_continue() {
    let mut bench = Bench::new(1);
    let first = bench.hang().await;
    bench.go_on.send(Write::Failed).unwrap();
    first.await.unwrap();
    assert!(!bench.health.is_up(Instant::now()));
    assert!(
        bench
            .metrics()
            .contains("flowgate_journal_errors_total 1\n")
    );
    let second = bench.attempt(line("second"));
    bench.begun.recv().await.unwrap();
    bench.go_on.send(Write::Done).unwrap();
    second.await.unwrap();
    assert!(bench.health.is_up(Instant::now()));
    assert_eq!(bench.text(), "second\n");
}

#[tokio::test]
async fn the_ends_of_attempts_are_written_when_the_disk_has_room() {
    let mut bench = Bench::new(1);
    bench.writer.push(line("1 done"));
    bench.begun.recv().await.unwrap();
    bench.go_on.send(Write::Failed).unwrap();
    // The end of the first attempt is tried again, then the line of the second.
    let attempt = bench.attempt(line("2 sent"));
    for _ in 0..2 {
        bench.begun.recv().await.unwrap();
        bench.go_on.send(Write::Failed).unwrap();
    }
    assert!(!attempt.await.unwrap(), "it is sent without its line");
    assert_eq!(bench.text(), "");
    bench.writer.push(line("3 done"));
    for _ in 0..2 {
        bench.begun.recv().await.unwrap();
        bench.go_on.send(Write::Done).unwrap();
    }
    bench.writer.flushed().await;
    assert_eq!(bench.text(), "1 done\n3 done\n");
}

#[tokio::test]
async fn the_end_of_the_process_writes_the_ends_of_attempts() {
    let mut bench = Bench::new(1);
    bench.writer.push(line("1 done"));
    bench.begun.recv().await.unwrap();
    bench.go_on.send(Write::Failed).unwrap();
    let Bench {
        writer, written, ..
    } = bench;
    bench.go_on.send(Write::Done).unwrap();
    tokio::task::spawn_blocking(move || drop(writer))
        .await
        .unwrap();
    // On a busy machine the end has not waited for the disk.
    while written.lock().is_empty() {
        tokio::task::yield_now().await;
    }
    assert_eq!(written.lock().concat(), "1 done\n");
}

#[tokio::test]
async fn the_lines_that_are_owed_are_bounded() {
    let mut bench = Bench::new(1);
    let long = line(&"x".repeat(MAX_BATCH));
    let lines = MAX_OWED / MAX_BATCH;
    for index in 0..2 * lines {
        bench.writer.push(long.clone());
        // The lines that are owed, but for the first time, and this one.
        for _ in 0..if index == 0 { 1 } else { 2 } {
            bench.begun.recv().await.unwrap();
            bench.go_on.send(Write::Failed).unwrap();
        }
    }
    bench.writer.push(line("last"));
    for _ in 0..2 {
        bench.begun.recv().await.unwrap();
        bench.go_on.send(Write::Done).unwrap();
    }
    bench.writer.flushed().await;
    let written = bench.text();
    assert!(written.ends_with("\nlast\n") && written.len() <= MAX_OWED + 5);
    assert!(written.len() > MAX_OWED - 2 * MAX_BATCH);
}

#[tokio::test]
async fn when_the_thread_panics_attempts_continue_without_it() {
    let mut bench = Bench::new(1);
    let first = bench.hang().await;
    let waits = bench.attempt(line("waits"));
    let full = line(&"x".repeat(MAX_QUEUED));
    tokio::task::yield_now().await;
    let waits_for_room = bench.attempt(full);
    tokio::task::yield_now().await;
    bench.go_on.send(Write::Panics).unwrap();
    for attempt in [first, waits, waits_for_room] {
        attempt.await.unwrap();
    }
    bench.writer.write(&line("later")).await;
    bench.writer.push(line("later"));
    bench.writer.flushed().await;
    assert!(!bench.health.is_up(Instant::now()));
    let page = bench.metrics();
    assert!(
        page.contains("flowgate_journal_errors_total 5\n")
            && page.contains("flowgate_journal_up 0\n"),
        "{page}"
    );
}

#[tokio::test]
async fn dropping_the_writer_waits_for_queued_lines() {
    let mut bench = Bench::new(10_000);
    (0..1000).for_each(|index| bench.writer.push(line(&index.to_string())));
    let Bench {
        writer, written, ..
    } = bench;
    drop(writer);
    let text = written.lock().concat();
    assert_eq!(
        text.lines()
            .map(|line| line.parse::<u32>().unwrap())
            .collect::<Vec<_>>(),
        (0..1000).collect::<Vec<_>>()
    );
    bench.begun.close();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn attempts_of_several_threads_continue_in_order() {
    let bench = Bench::new(usize::MAX);
    let attempts = (0..16).map(|task| {
        let writer = bench.writer.clone();
        tokio::spawn(async move {
            for index in 0..200 {
                writer.write(&line(&format!("{task}-{index} sent"))).await;
                writer.push(line(&format!("{task}-{index} done")));
            }
        })
    });
    join_all(attempts).await;
    bench.writer.flushed().await;
    let text = bench.text();
    let lines: Vec<_> = text.lines().collect();
    assert_eq!(
        (lines.len(), lines.iter().collect::<BTreeSet<_>>().len()),
        (6400, 6400)
    );
    for task in 0..16 {
        let own = lines
            .iter()
            .filter(|line| line.starts_with(&format!("{task}-")));
        let expected = (0..200)
            .flat_map(|index| ["sent", "done"].map(|event| format!("{task}-{index} {event}")));
        assert!(own.copied().eq(expected));
    }
}

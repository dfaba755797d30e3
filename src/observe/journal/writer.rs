//! Who writes the journal's lines? One thread that owns the file, so that a slow disk never stops a thread that drives
//! connections. It takes all lines that have queued up, writes them in as few writes as the file's size allows, and then
//! lets the attempts that wait for their lines go on. The queue is bounded in bytes: while the disk hangs, attempts wait
//! for room in it, and lines for which nothing waits are lost and counted.

use std::sync::Arc;
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender};
use std::time::Duration;
use std::{io, thread};

use bytes::Bytes;
use parking_lot::Mutex;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, oneshot};
use tokio::time::Instant;

use super::health::Health;
use super::line::unsent;

/// Bytes of lines that may wait to be written: those of ten thousand attempts.
pub(super) const MAX_QUEUED: usize = 4 << 20;

/// Bytes of lines that are written at once. The attempts of the first line wait for the last one.
const MAX_BATCH: usize = 64 << 10;

/// How long the end of the process waits for a disk that hangs.
const END_WITHIN: Duration = Duration::from_secs(1);

/// What came of one write.
#[derive(Debug)]
pub(super) struct Appended {
    /// How many lines it was for, the lost ones among them.
    pub(super) lines: usize,
    /// How many of these are not in the file.
    pub(super) lost: usize,
    /// Why lines are lost; or why the next file could not be taken, and the lines are in the one that was to be replaced.
    pub(super) error: Option<io::Error>,
}

/// Where lines go.
pub(super) trait Sink: Send + 'static {
    /// Appends the first of these lines, or more.
    fn append(&mut self, lines: &[Bytes]) -> Appended;
}

/// The way to the thread that writes.
pub(super) struct Writer {
    messages: Sender<Message>,
    room: Arc<Semaphore>,
    health: Arc<Health>,
    /// Disconnected when the thread has ended.
    is_ended: Mutex<Receiver<()>>,
}

enum Message {
    Line(Line),
    /// Everything that was queued before is written.
    Flush(oneshot::Sender<()>),
    /// Nothing follows.
    End,
}

/// A line that waits to be written.
struct Line {
    bytes: Bytes,
    queued_at: Instant,
    /// The attempt that leaves when the line is written.
    attempt: Option<oneshot::Sender<()>>,
    _room: OwnedSemaphorePermit,
}

/// What is written at once.
#[derive(Default)]
struct Batch {
    lines: Vec<Line>,
    size: usize,
    flushes: Vec<oneshot::Sender<()>>,
}

/// What the thread works with.
struct Worker<S> {
    sink: S,
    health: Arc<Health>,
    room: Arc<Semaphore>,
    last_queued: Instant,
    _ended: Sender<()>,
}

/// An attempt's wait for its line.
///
/// Dropped earlier, the attempt does not leave: its line is not written, or is followed by one that says so.
struct Waiting<'a> {
    written: oneshot::Receiver<()>,
    abandoned: Option<(&'a Writer, &'a Bytes)>,
}

/// What a line takes of the queue's room.
fn weight(line: &Bytes) -> u32 {
    u32::try_from((line.len() + size_of::<Message>()).min(MAX_QUEUED)).unwrap_or(u32::MAX)
}

// === impl Writer ===

impl Writer {
    /// Starts the thread.
    pub(super) fn start(sink: impl Sink, health: Arc<Health>) -> io::Result<Self> {
        let room = Arc::new(Semaphore::new(MAX_QUEUED));
        let (messages, queue) = mpsc::channel();
        let (ended, is_ended) = mpsc::channel();
        let (worker_health, worker_room) = (health.clone(), room.clone());
        let mut worker = Worker {
            sink,
            health: worker_health,
            room: worker_room,
            last_queued: Instant::now(),
            _ended: ended,
        };
        thread::Builder::new()
            .name("journal".to_owned())
            .spawn(move || worker.run(&queue))?;
        Ok(Self {
            messages,
            room,
            health,
            is_ended: Mutex::new(is_ended),
        })
    }

    /// Writes a line that an attempt waits for. Ends when it is in the file, or is lost.
    ///
    /// Dropped earlier, the attempt must not leave.
    pub(super) async fn write(&self, line: &Bytes) {
        self.health.check(Instant::now());
        let room = self.room.clone().acquire_many_owned(weight(line)).await;
        let queued_at = Instant::now();
        let Ok(room) = room else {
            return self.is_gone(queued_at);
        };
        let (attempt, written) = oneshot::channel();
        if !self.queue(Line {
            bytes: line.clone(),
            queued_at,
            attempt: Some(attempt),
            _room: room,
        }) {
            return;
        }
        let mut waiting = Waiting {
            written,
            abandoned: Some((self, line)),
        };
        if (&mut waiting.written).await.is_err() {
            self.is_gone(queued_at);
        }
        waiting.abandoned = None;
    }

    /// Queues a line that nothing waits for. Lost if the queue is full.
    pub(super) fn push(&self, line: Bytes) {
        let queued_at = Instant::now();
        self.health.check(queued_at);
        match self.room.clone().try_acquire_many_owned(weight(&line)) {
            Ok(room) => {
                self.queue(Line {
                    bytes: line,
                    queued_at,
                    attempt: None,
                    _room: room,
                });
            }
            Err(_) if self.room.is_closed() => self.is_gone(queued_at),
            Err(_) => self
                .health
                .lost(1, &"too many lines wait to be written", queued_at),
        }
    }

    /// Waits until everything that is queued is written.
    pub(super) async fn flushed(&self) {
        let (done, is_done) = oneshot::channel();
        if self.messages.send(Message::Flush(done)).is_ok() {
            // Without a thread there is nothing to wait for.
            drop(is_done.await);
        }
    }

    /// Whether the thread took it.
    fn queue(&self, line: Line) -> bool {
        let queued_at = line.queued_at;
        let is_taken = self.messages.send(Message::Line(line)).is_ok();
        if !is_taken {
            self.is_gone(queued_at);
        }
        is_taken
    }

    /// A line is lost because no thread takes it.
    fn is_gone(&self, now: Instant) {
        self.health.lost(1, &"its thread has panicked", now);
    }
}

impl Drop for Writer {
    /// Has everything that is queued written, and waits for it for a short time.
    fn drop(&mut self) {
        let is_told = self.messages.send(Message::End).is_ok();
        let ended = self.is_ended.get_mut().recv_timeout(END_WITHIN);
        if is_told && ended == Err(RecvTimeoutError::Timeout) {
            tracing::error!("the journal's disk hangs; its last lines are lost");
        }
    }
}

// === impl Waiting ===

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        let Some((writer, line)) = self.abandoned else {
            return;
        };
        self.written.close();
        // Whatever is not written yet, the thread passes over.
        if self.written.try_recv().is_ok() {
            unsent(line)
                .into_iter()
                .for_each(|line| writer.push(line.into()));
        }
        writer.health.check(Instant::now());
    }
}

// === impl Worker ===

impl<S: Sink> Worker<S> {
    fn run(&mut self, queue: &Receiver<Message>) {
        let mut is_ending = false;
        while !is_ending {
            let Ok(first) = queue.recv() else { return };
            let mut batch = Batch::default();
            is_ending = batch.add(first);
            while !is_ending && batch.size < MAX_BATCH {
                let Ok(next) = queue.try_recv() else { break };
                is_ending = batch.add(next);
            }
            self.write(batch);
        }
    }

    fn write(&mut self, batch: Batch) {
        // What an attempt waits for no more, must not be written: it does not leave.
        let is_wanted = |line: &Line| {
            line.attempt
                .as_ref()
                .is_none_or(|attempt| !attempt.is_closed())
        };
        let lines: Vec<_> = batch.lines.into_iter().filter(is_wanted).collect();
        if let [first, .., last] | [first @ last] = &*lines {
            self.last_queued = last.queued_at;
            self.health.begin(first.queued_at);
            let bytes: Vec<_> = lines.iter().map(|line| line.bytes.clone()).collect();
            self.append(&bytes);
            let unsent: Vec<_> = lines
                .into_iter()
                .filter_map(Line::written)
                .map(Bytes::from)
                .collect();
            if !unsent.is_empty() {
                self.append(&unsent);
            }
        }
        for flushed in batch.flushes {
            // A drain that has waited too long is not there any more.
            let _gone = flushed.send(());
        }
    }

    /// Appends all of them, in as few writes as the file takes.
    fn append(&mut self, mut lines: &[Bytes]) {
        let (mut lost, mut error) = (0, None);
        while !lines.is_empty() {
            let appended = self.sink.append(lines);
            lines = &lines[appended.lines..];
            lost += appended.lost;
            error = appended.error.or(error);
        }
        match error {
            None => self.health.wrote(),
            Some(error) => self.health.failed(lost, &error, self.last_queued),
        }
    }
}

impl<S> Drop for Worker<S> {
    fn drop(&mut self) {
        // Nothing waits for room any more.
        self.room.close();
        if thread::panicking() {
            self.health.ended(self.last_queued);
        }
    }
}

// === impl Batch ===

impl Batch {
    /// Whether this was the last message.
    fn add(&mut self, message: Message) -> bool {
        match message {
            Message::Line(line) => {
                self.size += line.bytes.len();
                self.lines.push(line);
            }
            Message::Flush(done) => self.flushes.push(done),
            Message::End => return true,
        }
        false
    }
}

// === impl Line ===

impl Line {
    /// Lets its attempt go on. The line that says that nothing left, if the attempt has been given up meanwhile.
    fn written(self) -> Option<Vec<u8>> {
        let is_abandoned = self
            .attempt
            .is_some_and(|attempt| attempt.send(()).is_err());
        if is_abandoned {
            unsent(&self.bytes)
        } else {
            None
        }
    }
}

#[cfg(test)]
mod tests;

//! The writer thread of the journal. It owns the file, so that a slow disk never blocks a thread
//! that serves connections.
//!
//! It takes all queued lines, writes them in as few writes as the file's size allows, and then
//! releases the attempts that wait for their lines. The queue is bounded in bytes: while the disk
//! hangs, attempts wait for room in it, and lines that no attempt waits for are lost and counted.

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

/// Maximum size of queued lines in bytes: enough for ten thousand attempts.
pub(super) const MAX_QUEUED: usize = 4 << 20;

/// Maximum size of one batch in bytes. All attempts of a batch wait for its last line.
const MAX_BATCH: usize = 64 << 10;

/// Maximum size in bytes of the lines that are kept while the disk takes none: the ends of some five
/// thousand attempts.
const MAX_OWED: usize = 1 << 20;

/// How long the end of the process waits for a disk that hangs.
const END_WITHIN: Duration = Duration::from_secs(1);

/// The result of one write.
#[derive(Debug)]
pub(super) struct WriteResult {
    /// Number of lines that were handled, including lost ones.
    pub(super) lines: usize,
    /// Number of these lines that are not in the file: the last ones.
    pub(super) lost: usize,
    /// Why lines were lost; or, with none lost, why the rotation failed, so that the lines are in
    /// the full file.
    pub(super) error: Option<io::Error>,
}

/// The destination of lines.
pub(super) trait Sink: Send + 'static {
    /// Appends at least the first of these lines.
    fn append(&mut self, lines: &[Bytes]) -> WriteResult;
}

/// Handle of the writer thread.
pub(super) struct Writer {
    messages: Sender<Message>,
    queue_space: Arc<Semaphore>,
    health: Arc<Health>,
    /// Disconnected when the thread has ended.
    ended: Mutex<Receiver<()>>,
}

enum Message {
    Line(Line),
    /// Signals when everything queued earlier is written.
    Flush(oneshot::Sender<()>),
    /// The last message.
    End,
}

/// A line that waits to be written.
struct Line {
    bytes: Bytes,
    queued_at: Instant,
    /// Releases the attempt, and says whether the line is in the file.
    attempt: Option<oneshot::Sender<bool>>,
    _queue_space: OwnedSemaphorePermit,
}

/// The lines that are written together.
#[derive(Default)]
struct Batch {
    lines: Vec<Line>,
    size: usize,
    flushes: Vec<oneshot::Sender<()>>,
}

/// The state of the writer thread.
struct Worker<S> {
    sink: S,
    health: Arc<Health>,
    queue_space: Arc<Semaphore>,
    last_queued: Instant,
    /// Lines that nothing waits for and that could not be written, such as the ends of attempts. They
    /// are written before the next line.
    owed: Vec<Bytes>,
    owed_size: usize,
    _end: Sender<()>,
}

/// An attempt that waits for its line.
///
/// If it is dropped earlier, the attempt is not sent: its line is not written, or is followed by a
/// line that records that.
struct Waiting<'a> {
    written: oneshot::Receiver<bool>,
    abandoned: Option<(&'a Writer, &'a Bytes)>,
}

/// Returns the number of bytes that a line takes in the queue.
fn weight(line: &Bytes) -> u32 {
    u32::try_from((line.len() + size_of::<Message>()).min(MAX_QUEUED)).unwrap_or(u32::MAX)
}

// === impl Writer ===

impl Writer {
    /// Starts the thread.
    pub(super) fn start(sink: impl Sink, health: Arc<Health>) -> io::Result<Self> {
        let queue_space = Arc::new(Semaphore::new(MAX_QUEUED));
        let (messages, queue) = mpsc::channel();
        let (end, ended) = mpsc::channel();
        let mut worker = Worker {
            sink,
            health: health.clone(),
            queue_space: queue_space.clone(),
            last_queued: Instant::now(),
            owed: Vec::new(),
            owed_size: 0,
            _end: end,
        };
        thread::Builder::new()
            .name("journal".to_owned())
            .spawn(move || worker.run(&queue))?;
        Ok(Self {
            messages,
            queue_space,
            health,
            ended: Mutex::new(ended),
        })
    }

    /// Writes a line that an attempt waits for. Ends when it is in the file, or is lost; returns
    /// whether it is in the file.
    ///
    /// Dropped earlier, the attempt must not leave.
    pub(super) async fn write(&self, line: &Bytes) -> bool {
        self.health.check(Instant::now());
        let queue_space = self
            .queue_space
            .clone()
            .acquire_many_owned(weight(line))
            .await;
        let queued_at = Instant::now();
        let Ok(queue_space) = queue_space else {
            self.line_lost(queued_at);
            return false;
        };
        let (attempt, written) = oneshot::channel();
        if !self.queue(Line {
            bytes: line.clone(),
            queued_at,
            attempt: Some(attempt),
            _queue_space: queue_space,
        }) {
            return false;
        }
        let mut waiting = Waiting {
            written,
            abandoned: Some((self, line)),
        };
        let written = (&mut waiting.written).await;
        if written.is_err() {
            self.line_lost(queued_at);
        }
        waiting.abandoned = None;
        written.unwrap_or(false)
    }

    /// Queues a line that nothing waits for. Lost if the queue is full.
    pub(super) fn push(&self, line: Bytes) {
        let queued_at = Instant::now();
        self.health.check(queued_at);
        match self
            .queue_space
            .clone()
            .try_acquire_many_owned(weight(&line))
        {
            Ok(queue_space) => {
                self.queue(Line {
                    bytes: line,
                    queued_at,
                    attempt: None,
                    _queue_space: queue_space,
                });
            }
            Err(_) if self.queue_space.is_closed() => self.line_lost(queued_at),
            Err(_) => self
                .health
                .lost(1, &"too many lines wait to be written", queued_at),
        }
    }

    /// Waits until everything queued is written.
    pub(super) async fn flushed(&self) {
        let (done, is_done) = oneshot::channel();
        if self.messages.send(Message::Flush(done)).is_ok() {
            // An error means that the thread has ended: there is nothing to wait for.
            drop(is_done.await);
        }
    }

    /// Queues a line. Returns whether the thread is running.
    fn queue(&self, line: Line) -> bool {
        let queued_at = line.queued_at;
        let is_taken = self.messages.send(Message::Line(line)).is_ok();
        if !is_taken {
            self.line_lost(queued_at);
        }
        is_taken
    }

    /// Records a line that is lost because the thread has ended.
    fn line_lost(&self, now: Instant) {
        self.health.lost(1, &"its thread has panicked", now);
    }
}

impl Drop for Writer {
    /// Waits a bounded time until everything queued is written.
    fn drop(&mut self) {
        let is_told = self.messages.send(Message::End).is_ok();
        let ended = self.ended.get_mut().recv_timeout(END_WITHIN);
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
        // The thread skips the line if it is not written yet.
        if self.written.try_recv().is_ok()
            && let Some(line) = unsent(line)
        {
            writer.push(line.into());
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
        self.write_owed();
    }

    fn write(&mut self, batch: Batch) {
        let mut lines = batch.lines;
        lines.retain(Line::is_wanted);
        if let [first, .., last] | [first @ last] = &*lines {
            self.last_queued = last.queued_at;
            self.health.begin(first.queued_at);
            self.write_owed();
            let bytes: Vec<_> = lines.iter().map(|line| line.bytes.clone()).collect();
            let are_written = self.append(&bytes);
            let mut unsent = Vec::new();
            for (line, is_written) in lines.into_iter().zip(are_written) {
                if !is_written && line.attempt.is_none() {
                    self.owe(line.bytes.clone());
                }
                unsent.extend(line.handled(is_written).map(Bytes::from));
            }
            if !unsent.is_empty() {
                let are_written = self.append(&unsent);
                for (line, is_written) in unsent.into_iter().zip(are_written) {
                    if !is_written {
                        self.owe(line);
                    }
                }
            }
        }
        for flushed in batch.flushes {
            // An error means that the drain has stopped waiting.
            let _gone = flushed.send(());
        }
    }

    /// Keeps a line that could not be written, if there is room.
    fn owe(&mut self, line: Bytes) {
        if self.owed_size + line.len() <= MAX_OWED {
            self.owed_size += line.len();
            self.owed.push(line);
        }
    }

    /// Writes the lines that could not be written before, until one still cannot.
    fn write_owed(&mut self) {
        while !self.owed.is_empty() {
            let WriteResult { lines, lost, .. } = self.sink.append(&self.owed);
            let written: usize = self.owed.drain(..lines - lost).map(|line| line.len()).sum();
            self.owed_size -= written;
            if lost > 0 {
                return;
            }
        }
    }

    /// Appends all lines, in as few writes as possible. Returns of each whether it is in the file.
    fn append(&mut self, mut lines: &[Bytes]) -> Vec<bool> {
        let mut lost = 0;
        let mut error = None;
        let mut are_written = Vec::with_capacity(lines.len());
        while !lines.is_empty() {
            let appended = self.sink.append(lines);
            lines = &lines[appended.lines..];
            lost += appended.lost;
            // The lost lines of a write are its last ones.
            let written = appended.lines - appended.lost;
            are_written.extend((0..appended.lines).map(|number| number < written));
            error = appended.error.or(error);
        }
        match error {
            None => self.health.wrote(),
            Some(error) => self.health.failed(lost, &error, self.last_queued),
        }
        are_written
    }
}

impl<S> Drop for Worker<S> {
    fn drop(&mut self) {
        // Wakes all attempts that wait for room.
        self.queue_space.close();
        if thread::panicking() {
            self.health.ended(self.last_queued);
        }
    }
}

// === impl Batch ===

impl Batch {
    /// Adds a message. Returns whether it is the last one.
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
    /// Whether the line must be written. A line whose attempt has stopped waiting must not be,
    /// because that attempt is not sent.
    fn is_wanted(&self) -> bool {
        self.attempt
            .as_ref()
            .is_none_or(|attempt| !attempt.is_closed())
    }

    /// Releases the attempt. If it stopped waiting during the write, returns the line that records
    /// that it was not sent.
    fn handled(self, is_written: bool) -> Option<Vec<u8>> {
        let is_abandoned = self
            .attempt
            .is_some_and(|attempt| attempt.send(is_written).is_err());
        if is_abandoned {
            unsent(&self.bytes)
        } else {
            None
        }
    }
}

#[cfg(test)]
mod tests;

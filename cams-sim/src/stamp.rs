//! The time at which the kernel received bytes. A process that shares its cores may read them much
//! later; a rate that is measured by the times of reading is that of the reader.

use std::io;
use std::os::fd::AsFd;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use parking_lot::Mutex;
use tokio::io::{AsyncRead, AsyncWrite, Interest, ReadBuf};
use tokio::net::TcpStream;
use tokio::time::Instant;

/// When the request that a connection is reading began to arrive; `None` between requests, and
/// always for a stream that is not a socket.
#[derive(Clone, Debug, Default)]
pub(crate) struct Begin(Arc<Mutex<Option<Instant>>>);

/// A connection that notes when its requests begin to arrive.
#[derive(Debug)]
pub(crate) struct Stamped {
    stream: TcpStream,
    begin: Begin,
}

/// Asks the kernel to stamp what the connections of this listener receive, from their first byte. It
/// begins a moment later if no socket of the machine was stamped before.
///
/// # Errors
/// When the kernel refuses.
pub fn stamp(listener: &impl AsFd) -> io::Result<()> {
    system::stamp(listener)
}

/// Reads bytes that are available and returns their number, 0 at the end of the stream, and when
/// the kernel received the last of them: now, unless the kernel [stamps](stamp) the connection, which
/// only Linux does.
///
/// # Errors
/// When reading fails; `WouldBlock` when no bytes are available.
pub fn receive(stream: &TcpStream, buffer: &mut [u8]) -> io::Result<(usize, Instant)> {
    stream.try_io(Interest::READABLE, || system::receive(stream, buffer))
}

// === impl Begin ===

impl Begin {
    /// When the current request began to arrive.
    pub(crate) fn time(&self) -> Option<Instant> {
        *self.0.lock()
    }

    /// The current request is complete; the next byte begins another one.
    pub(crate) fn end(&self) {
        *self.0.lock() = None;
    }
}

// === impl Stamped ===

impl Stamped {
    pub(crate) fn new(stream: TcpStream, begin: Begin) -> Self {
        Self { stream, begin }
    }

    pub(crate) fn into_inner(self) -> TcpStream {
        self.stream
    }
}

impl AsyncRead for Stamped {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        loop {
            ready!(self.stream.poll_read_ready(cx))?;
            match receive(&self.stream, buffer.initialize_unfilled()) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Poll::Ready(Err(error)),
                Ok((length, at)) => {
                    buffer.advance(length);
                    self.begin.0.lock().get_or_insert(at);
                    return Poll::Ready(Ok(()));
                }
            }
        }
    }
}

impl AsyncWrite for Stamped {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

#[cfg(target_os = "linux")]
mod system {
    use std::io::{self, IoSliceMut};
    use std::os::fd::{AsFd, AsRawFd};
    use std::time::{Duration, SystemTime};

    use nix::sys::socket::{
        ControlMessageOwned, MsgFlags, recvmsg, setsockopt, sockopt::ReceiveTimestampns,
    };
    use nix::sys::time::TimeSpec;
    use tokio::net::TcpStream;
    use tokio::time::Instant;

    pub(super) fn stamp(listener: &impl AsFd) -> io::Result<()> {
        Ok(setsockopt(listener, ReceiveTimestampns, &true)?)
    }

    pub(super) fn receive(stream: &TcpStream, buffer: &mut [u8]) -> io::Result<(usize, Instant)> {
        let mut control = nix::cmsg_space!(TimeSpec);
        let mut parts = [IoSliceMut::new(buffer)];
        let socket = stream.as_raw_fd();
        let message = recvmsg::<()>(socket, &mut parts, Some(&mut control), MsgFlags::empty())?;
        let stamp = message.cmsgs()?.find_map(|control| match control {
            ControlMessageOwned::ScmTimestampns(at) => Some(Duration::from(at)),
            _ => None,
        });
        let received = stamp.and_then(instant_of);
        Ok((message.bytes, received.unwrap_or_else(Instant::now)))
    }

    /// The instant of a time since the epoch, if that has passed.
    fn instant_of(time: Duration) -> Option<Instant> {
        loop {
            let now = Instant::now();
            let ago = (SystemTime::UNIX_EPOCH + time).elapsed().ok()?;
            // Otherwise the thread was interrupted between the two clocks.
            if now.elapsed() < Duration::from_micros(100) {
                return now.checked_sub(ago);
            }
        }
    }
}

#[cfg(not(target_os = "linux"))]
mod system {
    use std::io;
    use std::os::fd::AsFd;

    use tokio::net::TcpStream;
    use tokio::time::Instant;

    pub(super) fn stamp(_: &impl AsFd) -> io::Result<()> {
        Ok(())
    }

    pub(super) fn receive(stream: &TcpStream, buffer: &mut [u8]) -> io::Result<(usize, Instant)> {
        Ok((stream.try_read(buffer)?, Instant::now()))
    }
}

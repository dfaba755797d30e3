//! Distributes connections over the runtimes in turn. A connection stays on its runtime from the
//! first byte to the last, so no work moves between threads. One acceptor hands them out: with one
//! listener for each runtime (`SO_REUSEPORT`) a second process could take callers unnoticed.

use std::io;

use tokio::net::{TcpStream, UnixStream};
use tokio::runtime::Handle;

use crate::server::socket::Socket;

/// The serving runtimes; if empty, the current one serves.
#[derive(Default)]
pub(crate) struct RuntimePool {
    runtimes: Vec<Handle>,
    /// Number of connections handed out.
    count: usize,
}

// === impl RuntimePool ===

impl RuntimePool {
    /// Distributes over these. A single runtime needs no distribution.
    pub(crate) fn over(runtimes: Vec<Handle>) -> Self {
        if runtimes.len() > 1 {
            Self { runtimes, count: 0 }
        } else {
            Self::default()
        }
    }

    /// Starts a connection on the next runtime: tasks spawned by `begin` run there, and its reactor
    /// wakes the socket.
    pub(crate) fn begin(&mut self, socket: Socket, begin: impl FnOnce(Socket)) -> io::Result<()> {
        self.count = self.count.wrapping_add(1);
        let Some(next) = self.count.checked_rem(self.runtimes.len()) else {
            begin(socket);
            return Ok(());
        };
        let _there = self.runtimes[next].enter();
        begin(match socket {
            Socket::Tcp(stream) => Socket::Tcp(TcpStream::from_std(stream.into_std()?)?),
            Socket::Unix(stream) => Socket::Unix(UnixStream::from_std(stream.into_std()?)?),
        });
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::os::unix::net;
    use std::sync::mpsc;
    use std::time::Duration;

    use tokio::io::AsyncReadExt;
    use tokio::net::UnixListener;
    use tokio::runtime::{Builder, Id, Runtime};

    use super::*;

    /// A runtime on one thread of its own.
    fn runtime() -> Runtime {
        Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .unwrap()
    }

    /// Accepts four connections with `acceptor`. Returns the runtime of each.
    fn served(mut runtime_pool: RuntimePool, acceptor: &Runtime) -> Vec<Id> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("socket");
        let listener = acceptor.block_on(async { UnixListener::bind(&path).unwrap() });
        let (report, reported) = mpsc::channel();
        let mut serve_one = || {
            let mut caller = net::UnixStream::connect(&path).unwrap();
            acceptor.block_on(async {
                let report = report.clone();
                let begin = |socket| {
                    tokio::spawn(async move {
                        let Socket::Unix(mut stream) = socket else {
                            panic!("it was a Unix socket")
                        };
                        // From here on the task must be woken.
                        assert!(stream.try_read(&mut [0]).is_err());
                        report.send(Handle::current().id()).unwrap();
                        stream.read_u8().await.unwrap();
                        report.send(Handle::current().id()).unwrap();
                    });
                };
                runtime_pool
                    .begin(Socket::Unix(listener.accept().await.unwrap().0), begin)
                    .unwrap();
            });
            let began = reported.recv_timeout(Duration::from_secs(20)).unwrap();
            caller.write_all(b"x").unwrap();
            let woken = reported.recv_timeout(Duration::from_secs(20)).unwrap();
            assert_eq!(woken, began);
            began
        };
        (0..4).map(|_| serve_one()).collect()
    }

    #[test]
    fn each_runtime_in_turn_serves_a_connection_to_its_end() {
        // It has no thread, so it wakes no task.
        let acceptor = Builder::new_current_thread().enable_all().build().unwrap();
        let others = [runtime(), runtime()];
        let [first, second] = others.each_ref().map(Runtime::handle);
        let runtime_pool = RuntimePool::over(vec![first.clone(), second.clone()]);
        assert_eq!(
            served(runtime_pool, &acceptor),
            [second, first, second, first].map(Handle::id)
        );
    }

    #[test]
    fn a_single_runtime_serves_all_connections() {
        let here = runtime();
        assert_eq!(
            served(RuntimePool::default(), &here),
            [here.handle().id(); 4]
        );
        assert_eq!(
            served(RuntimePool::over(vec![here.handle().clone()]), &here),
            [here.handle().id(); 4]
        );
    }
}

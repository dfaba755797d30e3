//! Which runtime serves a connection? Each in turn, from the connection's first byte to its last: no thread takes over
//! another's work. One acceptor hands them out, for with a listener each (`SO_REUSEPORT`) a second process could take
//! callers unseen.

use std::io;

use tokio::net::{TcpStream, UnixStream};
use tokio::runtime::Handle;

use crate::server::socket::Socket;

/// The runtimes that serve; without any, the present one does.
#[derive(Default)]
pub(crate) struct Spread {
    runtimes: Vec<Handle>,
    /// How many connections were handed out.
    count: usize,
}

// === impl Spread ===

impl Spread {
    /// Over these; one that is alone has nothing to hand out.
    pub(crate) fn over(runtimes: Vec<Handle>) -> Self {
        if runtimes.len() > 1 {
            Self { runtimes, count: 0 }
        } else {
            Self::default()
        }
    }

    /// Begins a connection on the runtime whose turn it is: what `begin` spawns runs there, and there the socket wakes it.
    pub(crate) fn begin(&mut self, socket: Socket, begin: impl FnOnce(Socket)) -> io::Result<()> {
        self.count = self.count.wrapping_add(1);
        let Some(turn) = self.count.checked_rem(self.runtimes.len()) else {
            begin(socket);
            return Ok(());
        };
        let _there = self.runtimes[turn].enter();
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

    /// Runs on a thread of its own.
    fn runtime() -> Runtime {
        Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .unwrap()
    }

    /// Where each of four connections is served that `acceptor` accepts.
    fn served(mut spread: Spread, acceptor: &Runtime) -> Vec<Id> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("socket");
        let listener = acceptor.block_on(async { UnixListener::bind(&path).unwrap() });
        let (tell, told) = mpsc::channel();
        let mut serve_one = || {
            let mut caller = net::UnixStream::connect(&path).unwrap();
            acceptor.block_on(async {
                let tell = tell.clone();
                let begin = |socket| {
                    tokio::spawn(async move {
                        let Socket::Unix(mut stream) = socket else {
                            panic!("it was a Unix socket")
                        };
                        // From here on it must be woken.
                        assert!(stream.try_read(&mut [0]).is_err());
                        tell.send(Handle::current().id()).unwrap();
                        stream.read_u8().await.unwrap();
                        tell.send(Handle::current().id()).unwrap();
                    });
                };
                spread
                    .begin(Socket::Unix(listener.accept().await.unwrap().0), begin)
                    .unwrap();
            });
            let wait = || told.recv_timeout(Duration::from_secs(20)).unwrap();
            let began = wait();
            caller.write_all(b"x").unwrap();
            assert_eq!(wait(), began);
            began
        };
        (0..4).map(|_| serve_one()).collect()
    }

    #[test]
    fn connections_are_served_and_woken_by_each_runtime_in_turn() {
        // Without a thread: it wakes nobody.
        let acceptor = Builder::new_current_thread().enable_all().build().unwrap();
        let others = [runtime(), runtime()];
        let [first, second] = others.each_ref().map(Runtime::handle);
        let spread = Spread::over(vec![first.clone(), second.clone()]);
        assert_eq!(
            served(spread, &acceptor),
            [second, first, second, first].map(Handle::id)
        );
    }

    #[test]
    fn the_present_runtime_serves_alone() {
        let here = runtime();
        assert_eq!(served(Spread::default(), &here), [here.handle().id(); 4]);
        assert_eq!(
            served(Spread::over(vec![here.handle().clone()]), &here),
            [here.handle().id(); 4]
        );
    }
}

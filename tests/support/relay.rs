//! A wire between the gateway and its upstream that is cut after so many bytes, in either direction.

use std::io::{self, Read as _, Write as _};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

/// Where the wire is cut.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum At {
    /// After so many bytes on their way to the upstream, which sees the end of the connection after them.
    Request(usize),
    /// After so many bytes of the answer; the upstream has the request whole.
    Answer(usize),
}

/// How the gateway sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Manner {
    /// The connection ends in order.
    Fin,
    /// It is reset.
    Reset,
}

/// The wire. Uncut it hides nothing and adds nothing.
pub(crate) struct Relay {
    address: SocketAddr,
    shared: Arc<Shared>,
}

struct Shared {
    upstream: SocketAddr,
    armed: Mutex<Option<(At, Manner)>>,
    /// Bytes since it was armed, to the upstream and back.
    passed: [AtomicUsize; 2],
    /// Connections to the upstream.
    connections: AtomicUsize,
    over: AtomicBool,
}

impl Relay {
    pub(crate) fn start(upstream: SocketAddr) -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a free port");
        let address = listener.local_addr().expect("a bound address");
        let shared = Arc::new(Shared {
            upstream,
            armed: Mutex::default(),
            passed: Default::default(),
            connections: AtomicUsize::new(0),
            over: AtomicBool::new(false),
        });
        let for_thread = shared.clone();
        thread::spawn(move || {
            for gateway in listener.incoming().flatten() {
                if for_thread.over.load(Ordering::SeqCst) {
                    return;
                }
                let shared = for_thread.clone();
                // An error is one side going away.
                thread::spawn(move || shared.carry(&gateway));
            }
        });
        Self { address, shared }
    }

    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }

    /// Whoever sends next is cut there; once.
    pub(crate) fn arm(&self, cut: Option<(At, Manner)>) {
        *self.shared.armed.lock().expect("no thread panicked") = cut;
        self.shared.passed.iter().for_each(|count| count.store(0, Ordering::SeqCst));
    }

    /// How many bytes went to the upstream, and came back, since [`Relay::arm`].
    pub(crate) fn passed(&self) -> (usize, usize) {
        let [there, back] = &self.shared.passed;
        (there.load(Ordering::SeqCst), back.load(Ordering::SeqCst))
    }

    /// How many connections it has made to the upstream.
    pub(crate) fn connections(&self) -> usize {
        self.shared.connections.load(Ordering::SeqCst)
    }

    /// Carries nothing more, and closes what is open.
    pub(crate) fn end(&self) {
        self.shared.over.store(true, Ordering::SeqCst);
        // Wakes the thread that accepts.
        let _woken = TcpStream::connect(self.address);
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        self.end();
    }
}

impl Shared {
    /// Carries one connection; requests on it come one after the other.
    fn carry(&self, mut gateway: &TcpStream) -> io::Result<()> {
        let mut upstream = TcpStream::connect(self.upstream)?;
        self.connections.fetch_add(1, Ordering::SeqCst);
        gateway.set_nodelay(true)?;
        upstream.set_nodelay(true)?;
        for side in [gateway, &upstream] {
            side.set_read_timeout(Some(Duration::from_millis(1)))?;
        }
        // What this connection has been armed with, and the bytes of its direction that may still pass.
        let mut cut: Option<(At, Manner)> = None;
        let mut buffer = [0; 64 * 1024];
        while !self.over.load(Ordering::SeqCst) {
            if let Some(read) = some(gateway.read(&mut buffer))? {
                if cut.is_none() {
                    cut = self.armed.lock().expect("no thread panicked").take();
                }
                let left = match &mut cut {
                    Some((At::Request(left), _)) => Some(left),
                    Some((At::Answer(_), _)) | None => None,
                };
                if self.pass(&buffer[..read], (&upstream, 0), left)? {
                    break;
                }
            }
            if let Some(read) = some(upstream.read(&mut buffer))? {
                let left = match &mut cut {
                    Some((At::Answer(left), _)) => Some(left),
                    Some((At::Request(_), _)) | None => None,
                };
                if self.pass(&buffer[..read], (gateway, 1), left)? {
                    break;
                }
            }
        }
        cut.map_or(Ok(()), |(_, manner)| end(gateway, manner))?;
        // Whatever was let through is the upstream's to read: closed with bytes unread, its connection would be reset.
        upstream.shutdown(Shutdown::Write)?;
        while some(upstream.read(&mut buffer)).is_ok() {}
        Ok(())
    }

    /// Lets pass what may, if not all; `true`: here is the cut.
    fn pass(&self, bytes: &[u8], (mut to, way): (&TcpStream, usize), left: Option<&mut usize>) -> io::Result<bool> {
        let passes = left.as_ref().map_or(bytes.len(), |left| bytes.len().min(**left));
        // Counted first: whoever has the bytes may ask.
        self.passed[way].fetch_add(passes, Ordering::SeqCst);
        to.write_all(&bytes[..passes])?;
        Ok(left.is_some_and(|left| {
            *left -= passes;
            *left == 0
        }))
    }
}

/// How much was read, if anything came in time; an error at the end.
fn some(read: io::Result<usize>) -> io::Result<Option<usize>> {
    match read {
        Ok(0) => Err(io::ErrorKind::UnexpectedEof.into()),
        Ok(read) => Ok(Some(read)),
        Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut) => Ok(None),
        Err(error) => Err(error),
    }
}

fn end(gateway: &TcpStream, manner: Manner) -> io::Result<()> {
    match manner {
        Manner::Fin => gateway.shutdown(Shutdown::Both),
        Manner::Reset => socket2::SockRef::from(gateway).set_linger(Some(Duration::ZERO)),
    }
}

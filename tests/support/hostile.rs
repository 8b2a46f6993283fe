//! A scripted HTTP/1.1 origin that does, byte for byte, what no decent server does. It runs on threads of its own, so
//! that nothing a test does to its runtime disturbs it.

#![allow(dead_code, reason = "several test binaries share it, and not each uses all of it")]

use std::collections::VecDeque;
use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, Weak};
use std::thread;
use std::time::Duration;

use rustls::{ServerConfig, ServerConnection, StreamOwned};

/// What the origin does next on a connection.
#[derive(Clone, Debug)]
pub(crate) enum Step {
    /// Reads a request whole and records it. The script ends if the peer goes away.
    Read,
    /// Reads a request's head only; nothing is recorded.
    ReadHead,
    /// Writes these bytes.
    Write(Vec<u8>),
    /// Writes these bytes again and again, until the peer goes away.
    Flood(Vec<u8>),
    /// Waits.
    Sleep(Duration),
    /// Waits until the gate is opened.
    Wait(Gate),
    /// Closes with RST (`SO_LINGER` 0).
    Reset,
    /// Closes in order (with TLS: after `close_notify`). The end of a script does so too.
    Close,
    /// Closes without `close_notify`.
    Cut,
    /// Does nothing until the origin is dropped; does not even notice that the peer goes away ([`Step::Read`] does).
    Hang,
}

impl Step {
    pub(crate) fn write(bytes: impl AsRef<[u8]>) -> Self {
        Self::Write(bytes.as_ref().to_vec())
    }
}

/// Holds a script until the test opens it.
#[derive(Clone, Debug, Default)]
pub(crate) struct Gate(Arc<AtomicBool>);

impl Gate {
    pub(crate) fn open(&self) {
        self.0.store(true, Ordering::SeqCst);
    }
}

/// What the origin does on one connection.
pub(crate) type Script = Vec<Step>;

/// The same steps so many times.
pub(crate) fn repeated(steps: &[Step], times: usize) -> Script {
    std::iter::repeat_n(steps, times).flatten().cloned().collect()
}

/// A request that came whole.
#[derive(Clone, Debug)]
pub(crate) struct Received {
    /// Which connection it came on, from 0.
    pub(crate) connection: usize,
    /// Its request line and header lines.
    pub(crate) head: String,
    /// Its body.
    pub(crate) body: Vec<u8>,
}

impl Received {
    /// The values of a header field, joined; the name in lower case.
    pub(crate) fn header(&self, name: &str) -> Option<String> {
        let lines = self.head.lines().skip(1).filter_map(|line| line.split_once(": "));
        let values: Vec<_> = lines.filter(|(n, _)| n.eq_ignore_ascii_case(name)).map(|(_, v)| v).collect();
        (!values.is_empty()).then(|| values.join(", "))
    }
}

/// The origin. Dropped, it closes every connection.
pub(crate) struct Origin {
    address: SocketAddr,
    shared: Arc<Shared>,
}

struct Shared {
    scripts: Mutex<VecDeque<Script>>,
    tls: Option<Arc<ServerConfig>>,
    received: Mutex<Vec<Received>>,
    sockets: Mutex<Vec<Weak<TcpStream>>>,
    accepted: AtomicUsize,
    open: AtomicUsize,
    peak: AtomicUsize,
    over: AtomicBool,
}

impl Origin {
    /// An origin whose connections play these scripts one after the other; the last script is for all further ones.
    pub(crate) fn start(scripts: Vec<Script>) -> Self {
        Self::start_with(scripts, None)
    }

    /// The same over TLS.
    pub(crate) fn start_tls(scripts: Vec<Script>, tls: Arc<ServerConfig>) -> Self {
        Self::start_with(scripts, Some(tls))
    }

    fn start_with(scripts: Vec<Script>, tls: Option<Arc<ServerConfig>>) -> Self {
        assert!(!scripts.is_empty(), "an origin needs a script");
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a free port");
        let address = listener.local_addr().expect("a bound address");
        let shared = Arc::new(Shared {
            scripts: Mutex::new(scripts.into()),
            tls,
            received: Mutex::default(),
            sockets: Mutex::default(),
            accepted: AtomicUsize::new(0),
            open: AtomicUsize::new(0),
            peak: AtomicUsize::new(0),
            over: AtomicBool::new(false),
        });
        let for_thread = shared.clone();
        thread::spawn(move || for_thread.accept(&listener));
        Self { address, shared }
    }

    /// Where it listens.
    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }

    /// The requests that came whole, in order.
    pub(crate) fn received(&self) -> Vec<Received> {
        self.shared.received.lock().expect("no thread panicked").clone()
    }

    /// How many connections it has accepted.
    pub(crate) fn connections(&self) -> usize {
        self.shared.accepted.load(Ordering::SeqCst)
    }

    /// How many are open.
    pub(crate) fn open(&self) -> usize {
        self.shared.open.load(Ordering::SeqCst)
    }

    /// How many were open at once at most.
    pub(crate) fn peak(&self) -> usize {
        self.shared.peak.load(Ordering::SeqCst)
    }
}

impl Drop for Origin {
    fn drop(&mut self) {
        self.shared.over.store(true, Ordering::SeqCst);
        for socket in self.shared.sockets.lock().expect("no thread panicked").iter().filter_map(Weak::upgrade) {
            // Gone already is as good.
            let _gone = socket.shutdown(Shutdown::Both);
        }
        // Wakes the thread that accepts.
        let _woken = TcpStream::connect(self.address);
    }
}

impl Shared {
    fn accept(self: Arc<Self>, listener: &TcpListener) {
        for stream in listener.incoming() {
            if self.over.load(Ordering::SeqCst) {
                return;
            }
            let Ok(stream) = stream else { continue };
            let stream = Arc::new(stream);
            self.sockets.lock().expect("no thread panicked").push(Arc::downgrade(&stream));
            // Open before it is counted: when all that came are counted and none is open, all have ended.
            let open = self.open.fetch_add(1, Ordering::SeqCst) + 1;
            let connection = self.accepted.fetch_add(1, Ordering::SeqCst);
            self.peak.fetch_max(open, Ordering::SeqCst);
            let script = self.next_script();
            let shared = self.clone();
            thread::spawn(move || {
                // An error is the peer going away: the script is over.
                let _peer_gone = shared.play(script, connection, stream);
                shared.open.fetch_sub(1, Ordering::SeqCst);
            });
        }
    }

    fn next_script(&self) -> Script {
        let mut scripts = self.scripts.lock().expect("no thread panicked");
        if scripts.len() > 1 { scripts.pop_front() } else { scripts.front().cloned() }.unwrap_or_default()
    }

    fn play(&self, script: Script, connection: usize, stream: Arc<TcpStream>) -> io::Result<()> {
        stream.set_nodelay(true)?;
        let mut wire = Wire::new(stream.clone(), self.tls.as_ref())?;
        let mut unread = Vec::new();
        for step in script {
            match step {
                Step::Read => {
                    let (head, body) = read_request(&mut wire, &mut unread)?;
                    self.received.lock().expect("no thread panicked").push(Received { connection, head, body });
                }
                Step::ReadHead => drop(read_head(&mut wire, &mut unread)?),
                Step::Write(bytes) => wire.put(&bytes)?,
                Step::Flood(bytes) => loop {
                    wire.put(&bytes)?;
                },
                Step::Sleep(time) => thread::sleep(time),
                Step::Reset => {
                    return socket2::SockRef::from(&*stream).set_linger(Some(Duration::ZERO));
                }
                Step::Close => break,
                Step::Cut => return stream.shutdown(Shutdown::Both),
                Step::Wait(gate) => self.wait_for(&gate.0),
                Step::Hang => self.wait_for(&self.over),
            }
        }
        wire.close()
    }

    fn wait_for(&self, word: &AtomicBool) {
        while !word.load(Ordering::SeqCst) && !self.over.load(Ordering::SeqCst) {
            thread::sleep(Duration::from_millis(2));
        }
    }
}

/// A plain or encrypted connection.
enum Wire {
    Plain(Socket),
    Tls(Box<StreamOwned<ServerConnection, Socket>>),
}

struct Socket(Arc<TcpStream>);

impl Read for Socket {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        (&*self.0).read(buffer)
    }
}

impl Write for Socket {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        (&*self.0).write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        (&*self.0).flush()
    }
}

impl Wire {
    fn new(stream: Arc<TcpStream>, tls: Option<&Arc<ServerConfig>>) -> io::Result<Self> {
        let Some(config) = tls else { return Ok(Self::Plain(Socket(stream))) };
        let connection = ServerConnection::new(config.clone()).map_err(io::Error::other)?;
        Ok(Self::Tls(Box::new(StreamOwned::new(connection, Socket(stream)))))
    }

    /// Some bytes more; an error at the end.
    fn more(&mut self, into: &mut Vec<u8>) -> io::Result<()> {
        let mut buffer = [0; 16 * 1024];
        let read = match self {
            Self::Plain(socket) => socket.read(&mut buffer)?,
            Self::Tls(stream) => stream.read(&mut buffer)?,
        };
        into.extend_from_slice(&buffer[..read]);
        if read == 0 { Err(io::ErrorKind::UnexpectedEof.into()) } else { Ok(()) }
    }

    fn put(&mut self, bytes: &[u8]) -> io::Result<()> {
        match self {
            Self::Plain(socket) => socket.write_all(bytes),
            Self::Tls(stream) => stream.write_all(bytes).and_then(|()| stream.flush()),
        }
    }

    fn close(&mut self) -> io::Result<()> {
        match self {
            Self::Plain(socket) => socket.0.shutdown(Shutdown::Both),
            Self::Tls(stream) => {
                stream.conn.send_close_notify();
                stream.flush()?;
                stream.sock.0.shutdown(Shutdown::Both)
            }
        }
    }
}

fn read_head(wire: &mut Wire, unread: &mut Vec<u8>) -> io::Result<String> {
    loop {
        if let Some(end) = unread.windows(4).position(|four| four == b"\r\n\r\n") {
            let head: Vec<u8> = unread.drain(..end + 4).collect();
            return String::from_utf8(head).map_err(io::Error::other);
        }
        wire.more(unread)?;
    }
}

fn read_request(wire: &mut Wire, unread: &mut Vec<u8>) -> io::Result<(String, Vec<u8>)> {
    let head = read_head(wire, unread)?;
    let lower = head.to_ascii_lowercase();
    let length = lower.lines().find_map(|line| line.strip_prefix("content-length: ")?.parse().ok()).unwrap_or(0);
    while unread.len() < length {
        wire.more(unread)?;
    }
    Ok((head, unread.drain(..length).collect()))
}

/// A certificate authority of its own, as PEM, and the TLS side of a server with a certificate of that authority for
/// these names (or addresses).
pub(crate) fn tls_identity(names: &[&str]) -> (String, Arc<ServerConfig>) {
    let authority_key = rcgen::KeyPair::generate().expect("a key");
    let mut authority = rcgen::CertificateParams::new(Vec::new()).expect("no names are good names");
    authority.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    let pem = authority.self_signed(&authority_key).expect("a certificate").pem();
    let issuer = rcgen::Issuer::new(authority, authority_key);

    let key = rcgen::KeyPair::generate().expect("a key");
    let names: Vec<_> = names.iter().map(|name| (*name).to_owned()).collect();
    let leaf = rcgen::CertificateParams::new(names).expect("good names").signed_by(&key, &issuer);
    let leaf = leaf.expect("a certificate").der().clone();
    let key = rustls::pki_types::PrivateKeyDer::try_from(key.serialize_der()).expect("a PKCS #8 key");

    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = ServerConfig::builder_with_provider(provider).with_safe_default_protocol_versions();
    let config = config.expect("versions").with_no_client_auth().with_single_cert(vec![leaf], key);
    (pem, Arc::new(config.expect("the key is the certificate's")))
}

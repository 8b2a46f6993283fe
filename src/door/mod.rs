//! Step 1, accept: sockets, TLS and the limits on connections. Both doors are built from this.
//!
//! hyper speaks HTTP. [`connections`] decides which connections may stay: it keeps the state of each, and a sweep a few times a second
//! closes those that are silent, slow, idle or old beyond their limit. This needs no timer per request.

mod accounts;
mod answer_frames;
mod authority;
mod client_certificate;
mod client_window;
mod connections;
mod continues;
mod field_blocks;
mod frame_reader;
mod handshake;
mod http;
mod lingering;
mod listen;
mod order;
mod request_frames;
mod request_line;
mod service;
mod stream_mark;
mod streams;
mod subject_names;
mod tls;
mod unread;
mod validity;
mod watched_stream;

use std::io::Error;
use std::net::{IpAddr, SocketAddr};
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use tokio_rustls::server::TlsStream;
use tokio_util::sync::CancellationToken;

use self::http::Socket;
use crate::clock::Clock;
use crate::config::{Limits, Listen, SocketAccess};
use crate::tasks::Tasks;
use answer_frames::AnswerFrames;
use client_certificate::CertifiedConnection;
use connections::{ConnectionState, Connections};
use continues::Continues;
use frame_reader::FrameReader;
use handshake::HandshakeFailures;
use lingering::{Linger, lingering};
use listen::{Listener, Stream};
use order::IdlePhase;
use streams::Streams;
use unread::{UnreadRequests, UnreadWriter};
use watched_stream::WatchedStream;

pub use authority::{BadAuthority, RequestAuthority};
pub use client_certificate::ClientCertificate;
pub use connections::BusyGuard;
pub use handshake::HandshakeFailure;
pub use http::{has_unknown_transfer_coding, is_head_too_large};
pub use lingering::IncomingBody;
pub use listen::PassedSocket;
pub(crate) use request_frames::RequestFrames;
pub use request_line::FRAGMENT;
pub use service::{ConnectionService, RequestBody};
pub use tls::{Certificate, CheckedCertificate, certificate_periods, revocation_list_ends};
pub use unread::{AnswerUnread, UnreadKind, Unreadable};

/// Time between two sweeps over the connections.
const SWEEP: Duration = Duration::from_millis(250);
/// Pause after a failed accept, for example when file descriptors have run out.
const ACCEPT_RETRY_PAUSE: Duration = Duration::from_millis(50);

/// The peer of a connection.
#[derive(Clone, Debug)]
pub struct PeerConnection {
    /// `None` for a Unix socket.
    pub address: Option<IpAddr>,
    /// The user id of the process at the other end of a Unix socket.
    pub uid: Option<u32>,
    /// Its verified certificate.
    pub certificate: Option<Arc<ClientCertificate>>,
    state: Arc<ConnectionState>,
    clock: Clock,
}

/// What a connection tells about its peer. A request keeps it.
#[derive(Clone, Debug, Default)]
pub struct PeerIdentity {
    /// `None` for a Unix socket.
    pub address: Option<IpAddr>,
    /// The user id of the process at the other end of a Unix socket.
    pub uid: Option<u32>,
    /// Its verified certificate.
    pub certificate: Option<Arc<ClientCertificate>>,
}

impl PeerConnection {
    /// Creates a peer without a socket.
    #[must_use]
    pub fn detached(address: Option<IpAddr>, certificate: Option<Arc<ClientCertificate>>, clock: &Clock) -> Self {
        let connections = Arc::new(Connections::new(1, clock.clone()));
        let state = Arc::new(ConnectionState::new(&connections, address));
        Self { address, uid: None, certificate, state, clock: clock.clone() }
    }

    /// What the connection tells about the peer.
    #[must_use]
    pub fn identity(&self) -> PeerIdentity {
        PeerIdentity { address: self.address, uid: self.uid, certificate: self.certificate.clone() }
    }

    /// Marks the connection busy until the guard is dropped. Kept with the answer's body, so that a slow reader counts as busy.
    #[must_use]
    pub fn busy(&self) -> BusyGuard {
        self.state.busy(&self.clock)
    }
}

/// What a door listens on.
#[derive(Debug, Default)]
pub struct DoorSockets<'l> {
    /// The addresses.
    pub listen: &'l [Listen],
    /// Who may connect to those that are Unix sockets.
    pub access: SocketAccess,
    /// Sockets that were passed to this process, which take the place of the addresses.
    pub passed: Vec<PassedSocket>,
}

/// A bound door that is not served yet.
pub struct Door {
    listeners: Vec<Listener>,
    certificate: Option<Certificate>,
    limits: Limits,
    clock: Clock,
    tasks: Tasks,
}

/// A door that is being served.
#[derive(Clone)]
pub struct OpenDoor {
    addresses: Vec<SocketAddr>,
    closing: CancellationToken,
    connections: Arc<Connections>,
    unread: Arc<UnreadRequests>,
    /// With TLS.
    certificate: Option<Certificate>,
    handshake_failures: Arc<HandshakeFailures>,
}

impl OpenDoor {
    /// The TCP addresses that it listens on, with port 0 resolved.
    #[must_use]
    pub fn addresses(&self) -> &[SocketAddr] {
        &self.addresses
    }

    /// Number of open connections.
    #[must_use]
    pub fn connections(&self) -> usize {
        self.connections.len()
    }

    /// Requests that never reached the service, by kind.
    pub fn unread_requests(&self) -> impl Iterator<Item = (UnreadKind, u64)> {
        self.unread.counts()
    }

    /// Number of failed TLS handshakes by reason.
    #[must_use]
    pub fn handshake_failures(&self) -> Vec<(HandshakeFailure, u64)> {
        self.certificate.iter().flat_map(|_| self.handshake_failures.counts()).collect()
    }

    /// When the certificate expires, if there is one and it ever does.
    #[must_use]
    pub fn certificate_end(&self) -> Option<Timestamp> {
        self.certificate.as_ref().and_then(Certificate::end)
    }

    /// Drops every connection immediately.
    pub fn drop_connections(&self) {
        self.connections.drop_all();
    }

    /// Accepts no more connections; those that are open finish their requests in progress.
    pub fn close(&self) {
        self.closing.cancel();
        self.connections.close();
    }
}

/// Why a door could not be bound now, by address. Changes nothing.
#[must_use]
pub fn check_sockets(sockets: &DoorSockets<'_>) -> Vec<Error> {
    let DoorSockets { listen, access, .. } = sockets;
    listen.iter().filter_map(|one| Listener::check(one, listen, access).err()).collect()
}

impl Door {
    /// Binds every address, unless sockets were passed to this process for the door: then those are used instead.
    ///
    /// # Errors
    /// If an address cannot be bound: says which and why.
    pub fn bind(
        sockets: DoorSockets<'_>,
        certificate: Option<CheckedCertificate>,
        limits: &Limits,
        clock: &Clock,
        tasks: &Tasks,
    ) -> Result<Self, Error> {
        let DoorSockets { listen, access, passed } = sockets;
        let certificate = certificate.map(Certificate::new);
        let listeners = match passed.is_empty() {
            true => listen.iter().map(|one| Listener::bind(one, listen, &access)).collect::<Result<_, _>>()?,
            false => passed.into_iter().map(Listener::passed).collect::<Result<_, _>>()?,
        };
        Ok(Self { listeners, certificate, limits: limits.clone(), clock: clock.clone(), tasks: tasks.clone() })
    }

    /// Its TLS certificate; `None` without TLS.
    #[must_use]
    pub fn certificate(&self) -> Option<&Certificate> {
        self.certificate.as_ref()
    }

    /// Serves each new connection with the service that `make_service` returns for it. `answer_unread` makes the answers to requests that
    /// cannot be read.
    pub fn open<M, S>(self, make_service: M, answer_unread: Box<AnswerUnread>) -> OpenDoor
    where
        M: Fn(PeerConnection) -> S + Send + Sync + 'static,
        S: ConnectionService<IncomingBody>,
    {
        let addresses = self.listeners.iter().filter_map(Listener::address).collect();
        let connections = Arc::new(Connections::new(self.limits.connections, self.clock.clone()));
        let unread = Arc::new(UnreadRequests::new(answer_unread));
        let handshake_failures = Arc::<HandshakeFailures>::default();
        let door = OpenDoor {
            addresses,
            closing: CancellationToken::new(),
            connections: connections.clone(),
            unread: unread.clone(),
            certificate: self.certificate.clone(),
            handshake_failures: handshake_failures.clone(),
        };
        let server = Arc::new(Server {
            make_service,
            certificate: self.certificate,
            limits: Arc::new(self.limits),
            clock: self.clock,
            connections,
            unread,
            closing: door.closing.clone(),
            handshake_failures,
            tasks: self.tasks.clone(),
        });
        for listener in self.listeners {
            self.tasks.spawn(server.clone().accept(listener));
        }
        // The sweep goes on after closing begins: a closing door also enforces the limits.
        self.tasks.spawn(async move { server.sweep().await });
        door
    }
}

/// Shared by all connections of a door.
struct Server<M> {
    make_service: M,
    certificate: Option<Certificate>,
    limits: Arc<Limits>,
    clock: Clock,
    connections: Arc<Connections>,
    unread: Arc<UnreadRequests>,
    closing: CancellationToken,
    handshake_failures: Arc<HandshakeFailures>,
    tasks: Tasks,
}

impl<M, S> Server<M>
where
    M: Fn(PeerConnection) -> S + Send + Sync + 'static,
    S: ConnectionService<IncomingBody>,
{
    async fn sweep(&self) {
        let emptied = async {
            self.closing.cancelled().await;
            self.connections.emptied().await;
        };
        let mut emptied = pin!(emptied);
        while tokio::time::timeout(SWEEP, &mut emptied).await.is_err() {
            self.connections.sweep(&self.limits, &self.unread);
            if let Some(certificate) = &self.certificate {
                certificate.drop_expired(self.clock.wall());
            }
        }
    }

    async fn accept(self: Arc<Self>, listener: Listener) {
        let mut is_logged = false;
        loop {
            let accepted = tokio::select! {
                accepted = listener.accept() => accepted,
                () = self.closing.cancelled() => return,
            };
            let (stream, address) = match accepted {
                Ok(accepted) => accepted,
                Err(error) => {
                    if !std::mem::replace(&mut is_logged, true) {
                        tracing::warn!(%error, "cannot accept connections; retrying");
                    }
                    tokio::time::sleep(ACCEPT_RETRY_PAUSE).await;
                    continue;
                }
            };
            is_logged = false;
            let state = tokio::select! {
                state = self.connections.take(address) => state,
                () = self.closing.cancelled() => return,
            };
            let server = self.clone();
            match stream {
                Stream::Tcp(socket) => drop(self.tasks.spawn(server.serve_connection(socket, state, (address, None)))),
                Stream::Unix(socket) => {
                    let uid = socket.peer_cred().ok().map(|process| process.uid());
                    drop(self.tasks.spawn(server.serve_connection(socket, state, (address, uid))));
                }
            }
        }
    }

    async fn serve_connection<T: Socket>(
        self: Arc<Self>,
        socket: T,
        slot: connections::ConnectionSlot,
        (address, uid): (Option<IpAddr>, Option<u32>),
    ) {
        let (state, clock) = (slot.state().clone(), self.clock.clone());
        let peer = PeerConnection { address, uid, certificate: None, state, clock };
        // What goes over a Unix socket stays on this machine, so it is never encrypted.
        match self.certificate.as_ref().filter(|_| peer.address.is_some()) {
            None => self.http1(socket, peer).await,
            Some(certificate) => {
                peer.state.enter(IdlePhase::Handshake, &self.clock);
                // Boxed, because a task is as large as its largest variant.
                Box::pin(self.serve_tls(certificate, socket, peer)).await;
            }
        }
    }

    async fn serve_tls<T: Socket>(&self, certificate: &Certificate, socket: T, mut peer: PeerConnection) {
        let Some((stream, _certified)) = self.tls_handshake(certificate, socket, &mut peer).await else { return };
        if stream.get_ref().1.alpn_protocol() == Some(b"h2") {
            Box::pin(self.http2(stream, peer)).await;
        } else {
            self.http1(stream, peer).await;
        }
    }

    /// Returns `None` if the handshake failed or took too long, or if the connection was dropped.
    async fn tls_handshake<T: Socket>(
        &self,
        certificate: &Certificate,
        socket: T,
        peer: &mut PeerConnection,
    ) -> Option<(Box<TlsStream<T>>, Option<CertifiedConnection>)> {
        let used = certificate.current();
        let handshake = Box::pin(self.clock.timeout(self.limits.handshake, used.acceptor().accept(socket)));
        let accepted = tokio::select! {
            accepted = handshake => accepted,
            () = peer.state.drop_ordered() => return None,
        };
        let accepted = match accepted {
            Some(accepted) => accepted.map_err(|error| HandshakeFailure::of(&error)),
            None => Err(HandshakeFailure::TimedOut),
        };
        let certified = accepted.and_then(|stream| {
            let shown =
                certificate.certify(stream.get_ref().1.peer_certificates(), &used, (&peer.state, self.clock.wall()))?;
            Ok((stream, shown))
        });
        let (stream, shown) = certified.map_err(|why| self.note_failed_handshake(why, peer.address)).ok()?;
        peer.state.enter(IdlePhase::Silent, &self.clock); // the wait for the first byte starts now
        let (shown, guard) = shown.unzip();
        peer.certificate = shown;
        Some((Box::new(stream), guard))
    }

    fn note_failed_handshake(&self, why: HandshakeFailure, peer: Option<IpAddr>) {
        self.handshake_failures.add(why);
        let (reason, peer) = (why.as_str(), peer.map_or_else(|| "unix".to_owned(), |address| address.to_string()));
        if why.is_ordinary() {
            tracing::debug!(reason, peer, "a TLS handshake failed");
        } else {
            tracing::warn!(reason, peer, "a TLS handshake failed");
        }
    }

    async fn http1<T: Socket>(&self, socket: T, peer: PeerConnection) {
        let state = peer.state.clone();
        let unread = UnreadWriter::new(self.unread.clone(), self.limits.clone());
        let stream = WatchedStream::http1(socket, state.clone(), self.clock.clone(), unread);
        let service = lingering((self.make_service)(peer), self.linger(&state), None);
        http::http1(stream, &state, &self.limits, &self.unread, service).await;
    }

    async fn http2<T: Socket>(&self, socket: T, peer: PeerConnection) {
        let state = peer.state.clone();
        let continues = Continues::new(&state);
        let answers = AnswerFrames::new(self.unread.clone(), continues.clone());
        let size = |bytes: u32| usize::try_from(bytes).unwrap_or(usize::MAX);
        let limits = &self.limits;
        let frames = RequestFrames::new(size(limits.h2_header_table_bytes), size(limits.h2_frame_bytes));
        let stream =
            WatchedStream::http2(socket, state.clone(), self.clock.clone(), (answers, FrameReader::new(frames)));
        let streams = Streams::new(&self.tasks, &state, &self.clock, self.limits.write_stall);
        let service = lingering((self.make_service)(peer), self.linger(&state), Some(continues));
        http::http2(stream, &state, &self.limits, &self.unread, streams, service).await;
    }

    fn linger(&self, state: &Arc<ConnectionState>) -> Linger {
        Linger {
            limits: self.limits.clone(),
            state: state.clone(),
            clock: self.clock.clone(),
            tasks: self.tasks.clone(),
        }
    }
}

//! Step 1, accept: sockets, TLS and the bounds on connections. Both doors are of this make.
//!
//! hyper speaks HTTP; who may stay is decided here, by [`connections`]: it keeps the state of every connection, and a sweep a few times a
//! second closes those that are silent, slow, idle or old beyond their limit. That takes no timer per request.

mod connections;
mod listen;
mod streams;
mod tls;
mod watched_stream;

use std::future::{Future, poll_fn};
use std::io::Error;
use std::net::{IpAddr, SocketAddr};
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use http::{Request, Response};
use http_body::Body;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_rustls::server::TlsStream;
use tokio_util::sync::CancellationToken;

use crate::clock::Clock;
use crate::config::{Limits, Listen};
use crate::tasks::Tasks;
use connections::{ConnectionOrder, ConnectionState, Connections};
use listen::{Listener, Stream};
use streams::{ProgressBody, Streams};
use watched_stream::{ConnectionEnds, WatchedStream};

pub use connections::BusyGuard;
pub use tls::{Certificate, CertificateNames, CheckedCertificate};

/// How often the connections are looked over.
const SWEEP: Duration = Duration::from_millis(250);
/// After a failed accept (out of file descriptors, say) the door rests so long.
const ACCEPT_REST: Duration = Duration::from_millis(50);
const H2_WINDOW_BYTES: u32 = 64 * 1024;
const H2_HEADER_LIST_BYTES: u32 = 16 * 1024;
const H2_PENDING_RESETS: usize = 20;
const H2_LOCAL_RESETS: usize = 64;
const H2_PING_EVERY: Duration = Duration::from_secs(20);
const H2_PING_WAIT: Duration = Duration::from_secs(10);

/// Who is at the other end of a connection.
#[derive(Clone, Debug)]
pub struct PeerConnection {
    /// Its address; `None` over a Unix socket.
    pub address: Option<IpAddr>,
    /// What its certificate calls it.
    pub names: CertificateNames,
    state: Arc<ConnectionState>,
    clock: Clock,
}

impl PeerConnection {
    /// Marks the connection busy until the guard is dropped: with the answer's body, so that a slow reader counts as busy.
    #[must_use]
    pub fn busy(&self) -> BusyGuard {
        self.state.busy(&self.clock)
    }
}

/// A bound door that nobody serves yet.
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
}

impl OpenDoor {
    /// The TCP addresses that it listens on, ports resolved.
    #[must_use]
    pub fn addresses(&self) -> &[SocketAddr] {
        &self.addresses
    }

    /// Connections now.
    #[must_use]
    pub fn connections(&self) -> usize {
        self.connections.len()
    }

    /// Drops every connection as it is.
    pub fn cut(&self) {
        self.connections.cut();
    }

    /// Takes no further connection and lets those that are there finish what they are at.
    pub fn close(&self) {
        self.closing.cancel();
        self.connections.close();
    }
}

impl Door {
    /// Binds every address. TLS, where configured, is read first.
    ///
    /// # Errors
    /// An address that cannot be bound: says which and why.
    pub fn bind(
        listen: &[Listen],
        certificate: Option<CheckedCertificate>,
        limits: &Limits,
        clock: &Clock,
        tasks: &Tasks,
    ) -> Result<Self, Error> {
        let certificate = certificate.map(Certificate::new);
        let listeners = listen.iter().map(|one| Listener::bind(one, listen)).collect::<Result<_, _>>()?;
        Ok(Self { listeners, certificate, limits: limits.clone(), clock: clock.clone(), tasks: tasks.clone() })
    }

    /// What it shows of itself; `None`: it speaks no TLS.
    #[must_use]
    pub fn certificate(&self) -> Option<&Certificate> {
        self.certificate.as_ref()
    }

    /// Serves every connection with `answer` from now on.
    pub fn open<S, F, B>(self, answer: S) -> OpenDoor
    where
        S: Fn(PeerConnection, Request<Incoming>) -> F + Clone + Send + Sync + 'static,
        F: Future<Output = Response<B>> + Send + 'static,
        B: Body<Error: Into<Box<dyn std::error::Error + Send + Sync>>, Data: Send> + Send + Unpin + 'static,
    {
        let addresses = self.listeners.iter().filter_map(Listener::address).collect();
        let connections = Arc::new(Connections::new(self.limits.connections, self.clock.clone()));
        let door = OpenDoor { addresses, closing: CancellationToken::new(), connections: connections.clone() };
        let server = Arc::new(Server {
            certificate: self.certificate,
            limits: self.limits,
            clock: self.clock,
            connections,
            closing: door.closing.clone(),
            tasks: self.tasks.clone(),
        });
        for listener in self.listeners {
            let (server, answer) = (server.clone(), answer.clone());
            self.tasks.spawn(async move { server.accept(listener, answer).await });
        }
        let sweeping = server.clone();
        // Not only until the end begins: a door that closes waits for nobody longer than the limits say.
        self.tasks.spawn(async move { sweeping.sweep().await });
        door
    }
}

/// What all connections of a door share.
struct Server {
    certificate: Option<Certificate>,
    limits: Limits,
    clock: Clock,
    connections: Arc<Connections>,
    closing: CancellationToken,
    tasks: Tasks,
}

impl Server {
    async fn sweep(&self) {
        let emptied = async {
            self.closing.cancelled().await;
            self.connections.emptied().await;
        };
        let mut emptied = pin!(emptied);
        while tokio::time::timeout(SWEEP, &mut emptied).await.is_err() {
            self.connections.sweep(&self.limits);
        }
    }

    async fn accept<S, F, B>(self: Arc<Self>, listener: Listener, answer: S)
    where
        S: Fn(PeerConnection, Request<Incoming>) -> F + Clone + Send + Sync + 'static,
        F: Future<Output = Response<B>> + Send + 'static,
        B: Body<Error: Into<Box<dyn std::error::Error + Send + Sync>>, Data: Send> + Send + Unpin + 'static,
    {
        let mut was_told = false;
        loop {
            let accepted = tokio::select! {
                accepted = listener.accept() => accepted,
                () = self.closing.cancelled() => return,
            };
            let (stream, address) = match accepted {
                Ok(accepted) => accepted,
                Err(error) => {
                    if !std::mem::replace(&mut was_told, true) {
                        tracing::warn!(%error, "cannot accept connections; it is tried again and again");
                    }
                    tokio::time::sleep(ACCEPT_REST).await;
                    continue;
                }
            };
            was_told = false;
            let state = tokio::select! {
                state = self.connections.take(address) => state,
                () = self.closing.cancelled() => return,
            };
            let (server, answer) = (self.clone(), answer.clone());
            match stream {
                Stream::Tcp(socket) => drop(self.tasks.spawn(server.connection(socket, state, address, answer))),
                Stream::Unix(socket) => drop(self.tasks.spawn(server.connection(socket, state, address, answer))),
            }
        }
    }

    async fn connection<T, S, F, B>(
        self: Arc<Self>,
        socket: T,
        state: connections::ConnectionSlot,
        address: Option<IpAddr>,
        answer: S,
    ) where
        T: AsyncRead + AsyncWrite + ConnectionEnds + Unpin + Send + 'static,
        S: Fn(PeerConnection, Request<Incoming>) -> F + Clone + Send + Sync + 'static,
        F: Future<Output = Response<B>> + Send + 'static,
        B: Body<Error: Into<Box<dyn std::error::Error + Send + Sync>>, Data: Send> + Send + Unpin + 'static,
    {
        let peer = PeerConnection { address, names: None, state: state.state().clone(), clock: self.clock.clone() };
        match &self.certificate {
            None => self.http1(WatchedStream::new(socket, peer.state.clone(), self.clock.clone()), peer, answer).await,
            // Boxed: a connection's task is as large as the largest that it may become.
            Some(certificate) => Box::pin(self.over_tls(certificate, socket, peer, answer)).await,
        }
    }

    async fn over_tls<T, S, F, B>(&self, certificate: &Certificate, socket: T, mut peer: PeerConnection, answer: S)
    where
        T: AsyncRead + AsyncWrite + ConnectionEnds + Unpin + Send + 'static,
        S: Fn(PeerConnection, Request<Incoming>) -> F + Clone + Send + Sync + 'static,
        F: Future<Output = Response<B>> + Send + 'static,
        B: Body<Error: Into<Box<dyn std::error::Error + Send + Sync>>, Data: Send> + Send + Unpin + 'static,
    {
        let Some(stream) = self.shake(certificate, socket, &peer).await else { return };
        peer.names = tls::names(stream.get_ref().1.peer_certificates());
        let h2 = stream.get_ref().1.alpn_protocol() == Some(b"h2");
        let stream = WatchedStream::new(stream, peer.state.clone(), self.clock.clone());
        if h2 {
            Box::pin(self.http2(stream.in_one_piece(), peer, answer)).await;
        } else {
            self.http1(stream, peer, answer).await;
        }
    }

    /// The handshake. `None`: none in time, or the connection is cut.
    async fn shake<T>(&self, certificate: &Certificate, socket: T, peer: &PeerConnection) -> Option<Box<TlsStream<T>>>
    where
        T: AsyncRead + AsyncWrite + Unpin,
    {
        let shaking = Box::pin(tokio::time::timeout(self.limits.handshake, certificate.acceptor().accept(socket)));
        let shaken = tokio::select! {
            shaken = shaking => shaken,
            () = peer.state.gone() => return None,
        };
        let stream = shaken.ok()?.ok()?;
        peer.state.shaken(&self.clock);
        Some(Box::new(stream))
    }

    async fn http1<T, S, F, B>(&self, stream: WatchedStream<T>, peer: PeerConnection, answer: S)
    where
        T: AsyncRead + AsyncWrite + ConnectionEnds + Unpin + Send + 'static,
        S: Fn(PeerConnection, Request<Incoming>) -> F,
        F: Future<Output = Response<B>>,
        B: Body<Error: Into<Box<dyn std::error::Error + Send + Sync>>> + 'static,
    {
        let state = peer.state.clone();
        let service = service_fn(|request| {
            let answer = answer(peer.clone(), request);
            async { Ok::<_, std::convert::Infallible>(answer.await) }
        });
        let connection = hyper::server::conn::http1::Builder::new()
            .max_buf_size(self.limits.head_bytes)
            .max_header_size(self.limits.head_bytes)
            .max_headers(self.limits.head_fields)
            .header_read_timeout(None)
            .half_close(true)
            .serve_connection(TokioIo::new(stream), service);
        drive(connection, &state, |connection| connection.graceful_shutdown(), || false).await;
    }

    async fn http2<T, S, F, B>(&self, stream: WatchedStream<T>, peer: PeerConnection, answer: S)
    where
        T: AsyncRead + AsyncWrite + ConnectionEnds + Unpin + Send + 'static,
        S: Fn(PeerConnection, Request<Incoming>) -> F,
        F: Future<Output = Response<B>> + Send + 'static,
        B: Body<Error: Into<Box<dyn std::error::Error + Send + Sync>>, Data: Send> + Send + Unpin + 'static,
    {
        let state = peer.state.clone();
        state.multiplexes();
        let streams = Streams::new(&self.tasks, &state, &self.clock, self.limits.write_stall);
        let service = service_fn(|request| {
            let answer = answer(peer.clone(), request);
            async { Ok::<_, std::convert::Infallible>(answer.await.map(ProgressBody::new)) }
        });
        let connection = hyper::server::conn::http2::Builder::new(streams.clone())
            .max_concurrent_streams(self.limits.h2_streams)
            .max_header_list_size(H2_HEADER_LIST_BYTES)
            .initial_stream_window_size(H2_WINDOW_BYTES)
            .initial_connection_window_size(H2_WINDOW_BYTES * 4)
            .max_pending_accept_reset_streams(H2_PENDING_RESETS)
            .max_local_error_reset_streams(H2_LOCAL_RESETS)
            .timer(TokioTimer::new())
            .keep_alive_interval(H2_PING_EVERY)
            .keep_alive_timeout(H2_PING_WAIT)
            .serve_connection(TokioIo::new(stream), service);
        drive(connection, &state, |connection| connection.graceful_shutdown(), || streams.run()).await;
    }
}

/// Drives a connection to its end, told to leave or dropped as its state says. `more`: does what a poll left to be done, if there
/// is something; then it is polled again.
async fn drive<C>(connection: C, state: &ConnectionState, leave: impl FnOnce(Pin<&mut C>), more: impl Fn() -> bool)
where
    C: Future<Output = Result<(), hyper::Error>>,
{
    let (mut connection, mut leave) = (pin!(connection), Some(leave));
    let ended = poll_fn(|cx| {
        match state.listen(cx) {
            ConnectionOrder::Stay => {}
            ConnectionOrder::Leave => leave.take().into_iter().for_each(|leave| leave(connection.as_mut())),
            ConnectionOrder::Gone => return Poll::Ready(Ok(())),
        }
        loop {
            let polled = connection.as_mut().poll(cx);
            if polled.is_ready() || !more() {
                return polled;
            }
        }
    });
    if let Err(error) = ended.await {
        tracing::debug!(%error, "a connection ended early");
    }
}

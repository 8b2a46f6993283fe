//! Sockets and HTTP: accepts connections, reads complete requests, and sends answers as faults demand.

use std::convert::Infallible;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http::{HeaderName, HeaderValue, Response};
use http_body::{Body, Frame, SizeHint};
use http_body_util::BodyExt as _;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::time::Sleep;

use super::answer::SandboxAnswer;
use super::control;
use super::exchange::{Delivery, ReceivedRequest, SandboxCore};
use super::wire::{Orders, Wire};

/// Maximum number of connections; further ones wait in the listener's queue.
const CONNECTIONS_MAX: usize = 1_024;
/// The longest body that Make accepts (it refused some of 2.1 MB).
const BODY_BYTES_MAX: usize = 2_100_000;
/// How much of a longer body is read before answering, so that the client gets to read the answer.
const DISCARD_BYTES_MAX: usize = 32 << 20;
/// Time to read a head, from when the connection is idle, and to read a body.
const READ_TIME_MAX: Duration = Duration::from_secs(60);
/// How long a hanging fault lasts.
const HANG_TIME_MAX: Duration = Duration::from_secs(600);
/// Pause after a failed accept, such as when out of file descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// Accepts connections until the sandbox stops.
pub(super) async fn listen(core: Arc<SandboxCore>, listener: TcpListener) {
    let permits = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    let mut number = 0;
    while let Ok(permit) = Arc::clone(&permits).acquire_owned().await {
        let Ok((stream, _)) = listener.accept().await else {
            tokio::time::sleep(ACCEPT_PAUSE).await;
            continue;
        };
        number += 1;
        let connection = serve(Arc::clone(&core), stream, number);
        core.tasks.spawn_until_stop(async move {
            connection.await;
            drop(permit);
        });
    }
}

async fn serve(core: Arc<SandboxCore>, stream: TcpStream, number: u64) {
    // Answers are small and written at once, so waiting for acknowledgements would only add latency. Optional.
    let _works_without = stream.set_nodelay(true);
    let orders = Orders::default();
    let wire = Wire::new(stream, orders.clone());
    let service = service_fn(move |request| respond(Arc::clone(&core), orders.clone(), number, request));
    let mut http = http1::Builder::new();
    http.timer(TokioTimer::new()).header_read_timeout(READ_TIME_MAX);
    // An error means that the client went away, or that a fault did its work.
    let _either_way_over = http.serve_connection(TokioIo::new(wire), service).await;
}

/// No answer: hyper closes the connection without a status line.
#[derive(Debug, thiserror::Error)]
#[error("no answer, because of a fault or an incomplete request")]
struct Silence;

async fn respond(
    core: Arc<SandboxCore>,
    orders: Orders,
    connection: u64,
    request: http::Request<Incoming>,
) -> Result<Response<Paced>, Silence> {
    let request = read(request, connection).await?;
    if control::is_control(&request.path) {
        return Ok(response(control::answer(&core, &request), usize::MAX, Duration::ZERO));
    }
    // In its own task: a client that goes away stops nothing that the sandbox has begun.
    let exchange = core.tasks.spawn(Arc::clone(&core).exchange(request));
    let (answer, delivery) = exchange.await.map_err(|_| Silence)?;
    match delivery {
        Delivery::Whole => Ok(response(answer, usize::MAX, Duration::ZERO)),
        Delivery::Drip(bytes, every) => Ok(response(answer, bytes, every)),
        Delivery::Cut(bytes) => {
            orders.cut_after(bytes.min(answer.body.len().saturating_sub(1)));
            Ok(response(answer, usize::MAX, Duration::ZERO))
        }
        Delivery::Close => Err(Silence),
        Delivery::Reset => {
            orders.reset();
            Err(Silence)
        }
        Delivery::Hang(mut released) => {
            // Ends by release, by timeout, or when the client leaves, which drops this future.
            let _over = tokio::time::timeout(HANG_TIME_MAX, released.changed()).await;
            Err(Silence)
        }
    }
}

async fn read(request: http::Request<Incoming>, connection: u64) -> Result<ReceivedRequest, Silence> {
    let (parts, body) = request.into_parts();
    let body = tokio::time::timeout(READ_TIME_MAX, read_body(body)).await.map_err(|_| Silence)??;
    Ok(ReceivedRequest {
        method: parts.method,
        path: parts.uri.path().to_owned(),
        query: parts.uri.query().unwrap_or_default().to_owned(),
        headers: parts.headers,
        body,
        connection,
    })
}

/// Reads the whole body; `None` if it is longer than Make accepts.
async fn read_body(mut body: Incoming) -> Result<Option<Bytes>, Silence> {
    let (mut whole, mut length) = (BytesMut::new(), 0_usize);
    while length <= DISCARD_BYTES_MAX {
        let Some(frame) = body.frame().await else { break };
        let Ok(data) = frame.map_err(|_| Silence)?.into_data() else { continue };
        length = length.saturating_add(data.len());
        if length <= BODY_BYTES_MAX {
            whole.extend_from_slice(&data);
        }
    }
    Ok((length <= BODY_BYTES_MAX).then(|| whole.freeze()))
}

fn response(answer: SandboxAnswer, piece: usize, every: Duration) -> Response<Paced> {
    let mut response = Response::new(Paced { rest: answer.body, piece, every, pause: None });
    *response.status_mut() = answer.status;
    for (name, value) in answer.headers {
        // Faults that arrive as JSON are checked; from Rust code, invalid headers are left out.
        if let (Ok(name), Ok(value)) = (HeaderName::try_from(name), HeaderValue::try_from(value)) {
            response.headers_mut().append(name, value);
        }
    }
    response
}

/// A body that is sent in pieces with a pause before each; normally one piece without a pause.
struct Paced {
    rest: Bytes,
    piece: usize,
    every: Duration,
    pause: Option<Pin<Box<Sleep>>>,
}

impl Body for Paced {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        if self.rest.is_empty() {
            return Poll::Ready(None);
        }
        if !self.every.is_zero() {
            let every = self.every;
            ready!(self.pause.get_or_insert_with(|| Box::pin(tokio::time::sleep(every))).as_mut().poll(cx));
            self.pause = None;
        }
        let length = self.piece.min(self.rest.len());
        let piece = self.rest.split_to(length);
        Poll::Ready(Some(Ok(Frame::data(piece))))
    }

    fn is_end_stream(&self) -> bool {
        self.rest.is_empty()
    }

    fn size_hint(&self) -> SizeHint {
        u64::try_from(self.rest.len()).map_or_else(|_| SizeHint::default(), SizeHint::with_exact)
    }
}

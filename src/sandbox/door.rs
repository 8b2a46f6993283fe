//! Sockets and HTTP: accepts connections, reads complete requests, and sends answers as faults demand.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use futures_util::stream;
use http::header::CONTENT_LENGTH;
use http::{HeaderName, HeaderValue, Response, StatusCode};
use http_body::Frame;
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt as _, Full, StreamBody};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;

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
) -> Result<Response<SandboxBody>, Silence> {
    let request = read(request, connection).await?;
    if control::is_control(&request.path) {
        return Ok(whole(control::answer(&core, &request)));
    }
    // In its own task: a client that goes away stops nothing that the sandbox has begun.
    let exchange = core.tasks.spawn(Arc::clone(&core).exchange(request));
    match exchange.await.map_err(|_| Silence)? {
        Delivery::Whole(answer) => Ok(whole(answer)),
        Delivery::Drip(answer, piece, every) => Ok(dripping(answer, piece, every)),
        Delivery::Cut(answer, bytes) => {
            orders.cut_after(bytes.min(answer.body.len().saturating_sub(1)));
            Ok(whole(answer))
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

type SandboxBody = UnsyncBoxBody<Bytes, Infallible>;

fn whole(answer: SandboxAnswer) -> Response<SandboxBody> {
    let SandboxAnswer { status, headers, body } = answer;
    response(status, headers, Full::new(body).boxed_unsync())
}

/// The answer in pieces, with a pause before each. Its length is announced as for any other.
fn dripping(answer: SandboxAnswer, piece: usize, every: Duration) -> Response<SandboxBody> {
    let SandboxAnswer { status, headers, body } = answer;
    let length = HeaderValue::from(body.len());
    let pieces = stream::unfold(body, move |mut rest| async move {
        if rest.is_empty() {
            return None;
        }
        tokio::time::sleep(every).await;
        let piece = rest.split_to(piece.min(rest.len()));
        Some((Ok(Frame::data(piece)), rest))
    });
    let mut response = response(status, headers, StreamBody::new(pieces).boxed_unsync());
    response.headers_mut().insert(CONTENT_LENGTH, length);
    response
}

fn response(status: StatusCode, headers: Vec<(String, String)>, body: SandboxBody) -> Response<SandboxBody> {
    let mut response = Response::new(body);
    *response.status_mut() = status;
    for (name, value) in headers {
        // Faults that arrive as JSON are checked; from Rust code, invalid headers are left out.
        if let (Ok(name), Ok(value)) = (HeaderName::try_from(name), HeaderValue::try_from(value)) {
            response.headers_mut().append(name, value);
        }
    }
    response
}

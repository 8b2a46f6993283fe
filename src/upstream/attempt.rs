//! Sends one attempt and classifies how it ended.

use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use bytes::Bytes;
use http::uri::PathAndQuery;
use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode, Uri, header};
use http_body_util::Full;
use hyper::body::{Body as _, Incoming};
use tokio::time::timeout;

use super::ending::{AttemptError, Ending, ProxyError, UpstreamAnswer};
use super::pool::{PooledConnection, SendOutcome};
use super::token::Token;
use super::{HeldToken, Outgoing, Upstream};
use crate::fair_semaphore::FairPermit;
use crate::process_log::STATE;
use crate::shares::HeldShare;

/// The User-Agent sent upstream. Never the caller's own, because an edge in front of Make refuses some of those.
const USER_AGENT: HeaderValue = HeaderValue::from_static(concat!("makegate/", env!("CARGO_PKG_VERSION")));
/// How many headers the gateway itself adds to a request.
const OWN_HEADERS: usize = 5;

/// How far an attempt has come, which decides what a timeout proves.
enum AttemptProgress {
    /// A connection is being opened.
    Connecting,
    /// The request may have been written.
    HandedOver,
    /// The response head has arrived.
    Head(StatusCode),
}

impl AttemptProgress {
    fn timed_out(self) -> Ending {
        match self {
            Self::Connecting => Ending::NotSent(AttemptError::new(
                ProxyError::ConnectionTimeout,
                "the attempt timed out while connecting",
            )),
            Self::HandedOver => {
                Ending::TimedOut(AttemptError::new(ProxyError::HttpResponseTimeout, "no answer in time"))
            }
            Self::Head(status) => {
                let why =
                    AttemptError::new(ProxyError::HttpResponseTimeout, "the response body was not complete in time");
                Ending::Cut { status, why }
            }
        }
    }
}

/// The right to use one of the connections, until dropped.
#[must_use = "dropping it passes the connection on to the next request"]
#[derive(Debug)]
pub struct ConnectionPermit(FairPermit);

/// A request that was sent, and the head of its response.
struct SentRequest {
    connection: PooledConnection,
    /// The token that it was sent with.
    held: Arc<HeldToken>,
    response: Response<Incoming>,
}

impl Upstream {
    /// Waits up to `patience` for the right to use a connection. Connections are shared fairly among callers, who each
    /// leave some for the others. `caller` is the caller to charge, whose retry budget grows by this attempt; `None`
    /// stands for the gateway itself. Returns `None` if no connection became free in time, or if this upstream is no
    /// longer in force.
    pub async fn acquire_connection(&self, caller: Option<&Arc<str>>, patience: Duration) -> Option<ConnectionPermit> {
        let turn = tokio::select! {
            turn = self.pool.turn(caller, patience) => turn?,
            () = self.retired.cancelled() => return None,
        };
        caller.into_iter().for_each(|caller| self.budget.attempted(caller));
        Some(ConnectionPermit(turn))
    }

    /// Makes one attempt. Never follows a redirect, and never resends what may already have been sent.
    ///
    /// `time` limits the whole attempt (connecting also has its own, shorter timeout). `fresh` demands a connection
    /// that was never idle, for `once` writes: the upstream may close an idle one just as the request goes out, which
    /// would put the write in doubt.
    ///
    /// Dropping the future closes the connection; a request already handed over may still take effect.
    pub async fn attempt(
        &self,
        connection: ConnectionPermit,
        outgoing: &Outgoing,
        time: Duration,
        fresh: bool,
    ) -> Ending {
        let mut progress = AttemptProgress::Connecting;
        let ending = {
            // Pinned here, because a future is copied into its time-out, and this one is large.
            let exchange = pin!(self.exchange(connection, outgoing, fresh, &mut progress));
            timeout(time, exchange).await
        };
        ending.unwrap_or_else(|_| progress.timed_out())
    }

    /// Checks that name resolution, TCP and TLS work: opens a connection and closes it without sending anything. `time`
    /// limits all of it.
    ///
    /// # Errors
    /// [`AttemptError`] if one of them fails, or if no connection became free.
    pub async fn check_connection(&self, time: Duration) -> Result<(), AttemptError> {
        let busy = || AttemptError::new(ProxyError::ConnectionLimitReached, "no connection became free in time");
        let _connection = self.acquire_connection(None, time).await.ok_or_else(busy)?;
        let late = |_| AttemptError::new(ProxyError::ConnectionTimeout, "timed out while connecting");
        timeout(time, self.connect()).await.map_err(late)?.map(drop)
    }

    async fn exchange(
        &self,
        ConnectionPermit(turn): ConnectionPermit,
        outgoing: &Outgoing,
        fresh: bool,
        progress: &mut AttemptProgress,
    ) -> Ending {
        let room = match self.memory.reserve(&outgoing.answers) {
            Ok(room) => room,
            Err(short) => return Ending::NoRoom { status: None, short },
        };
        let began = self.clock.now();
        match self.send(outgoing, fresh, progress).await {
            Ok(SentRequest { connection, held, response }) => {
                let delay = self.clock.now().duration_since(began);
                *progress = AttemptProgress::Head(response.status());
                self.note_token_status(&held, response.status());
                self.receive(response, delay, &held, room, connection, turn).await
            }
            Err(ending) => ending,
        }
    }

    /// Notices when the upstream starts to reject the token, and when it accepts it again.
    fn note_token_status(&self, sent: &HeldToken, status: StatusCode) {
        if sent.generation != self.token_generation() {
            return;
        }
        if status == StatusCode::UNAUTHORIZED || status.is_success() {
            sent.is_judged.store(true, Ordering::Relaxed);
        }
        let now = self.clock.now();
        if status == StatusCode::UNAUTHORIZED {
            if self.token_refused.begin(now) {
                tracing::error!(target: STATE, "the upstream refuses the gateway's token: replace it");
            }
        } else if status.is_success()
            && let Some(lasted) = self.token_refused.end(now)
        {
            tracing::info!(target: STATE, after_s = lasted.as_secs(), "the upstream accepts the gateway's token again");
        }
    }

    /// Builds the request as it goes upstream. Only here, and last, is the token added, replacing any header already
    /// there.
    fn request(&self, outgoing: &Outgoing, token: &Token) -> Result<Request<Full<Bytes>>, AttemptError> {
        let target = PathAndQuery::try_from(outgoing.target.as_str()).map_err(|_| {
            AttemptError::new(ProxyError::ProxyInternalError, "the rendered target is not a valid path")
        })?;
        let mut request = Request::new(Full::new(outgoing.body.clone()));
        *request.method_mut() = outgoing.method.clone();
        *request.uri_mut() = Uri::from(target);
        let mut headers = HeaderMap::with_capacity(outgoing.headers.len() + OWN_HEADERS);
        headers.extend(outgoing.headers.iter().map(|(name, value)| (name.clone(), value.clone())));
        headers.remove(header::TRANSFER_ENCODING);
        headers.remove(header::CONTENT_LENGTH);
        if !outgoing.body.is_empty() || [Method::POST, Method::PUT, Method::PATCH].contains(&outgoing.method) {
            headers.insert(header::CONTENT_LENGTH, HeaderValue::from(outgoing.body.len()));
        }
        headers.insert(header::HOST, self.host.clone());
        headers.insert(header::USER_AGENT, USER_AGENT);
        headers.insert(header::ACCEPT_ENCODING, HeaderValue::from_static("identity"));
        headers.insert(header::AUTHORIZATION, token.header());
        *request.headers_mut() = headers;
        Ok(request)
    }

    /// Sends the request on an idle connection if allowed, and on a new one if the idle one hands it back unsent. Only
    /// when there is a connection is the token added, and a last look taken at whether this upstream is still in force:
    /// either may change while a connection is opened.
    async fn send(
        &self,
        outgoing: &Outgoing,
        fresh: bool,
        progress: &mut AttemptProgress,
    ) -> Result<SentRequest, Ending> {
        let mut idle = if fresh { None } else { self.pool.reuse() };
        loop {
            let is_reused = idle.is_some();
            let mut connection = match idle.take() {
                Some(connection) => connection,
                None => self.connect().await.map_err(Ending::NotSent)?,
            };
            let held = self.token.load_full();
            let request = self.request(outgoing, &held.token).map_err(Ending::NotSent)?;
            if !self.is_in_force() {
                return Err(Ending::NotSent(replaced()));
            }
            *progress = AttemptProgress::HandedOver;
            match connection.send(request, &held).await {
                SendOutcome::Head(response) => return Ok(SentRequest { connection, held, response }),
                SendOutcome::Failed(error) => return Err(failed(&error)),
                SendOutcome::TooManyInterim => return Err(too_many_interim()),
                SendOutcome::Unsent if is_reused => *progress = AttemptProgress::Connecting,
                SendOutcome::Unsent => {
                    let text = "the upstream closed the connection before the request was sent";
                    return Err(Ending::NotSent(AttemptError::new(ProxyError::ConnectionTerminated, text)));
                }
            }
        }
    }

    /// Opens a connection, for as long as this upstream is in force.
    async fn connect(&self) -> Result<PooledConnection, AttemptError> {
        tokio::select! {
            connected = self.pool.connect() => connected,
            () = self.retired.cancelled() => Err(replaced()),
        }
    }

    /// Reads the whole response and searches it for the token; only then is the connection reused.
    async fn receive(
        &self,
        response: Response<Incoming>,
        delay: Duration,
        sent: &HeldToken,
        room: HeldShare,
        connection: PooledConnection,
        turn: FairPermit,
    ) -> Ending {
        let (head, body) = response.into_parts();
        if head.status.is_informational() {
            return Ending::Lost(AttemptError::new(
                ProxyError::HttpProtocolError,
                "the upstream switched protocols without being asked",
            ));
        }
        let two_lengths =
            head.headers.contains_key(header::TRANSFER_ENCODING) && head.headers.contains_key(header::CONTENT_LENGTH);
        let framed = body.is_end_stream()
            || body.size_hint().exact().is_some()
            || head.headers.contains_key(header::TRANSFER_ENCODING);
        let body = match self.memory.read(&head.headers, body, room).await {
            Ok(body) => body,
            Err(error) => return error.ending(head.status),
        };
        let mut searched = sent.generation;
        let mut is_leaked = sent.token.is_in(&head.headers, body.as_ref()).await;
        // The token may be replaced meanwhile, even during a search.
        loop {
            let now = self.token.load_full();
            if is_leaked || now.generation == searched {
                break;
            }
            searched = now.generation;
            is_leaked = now.token.is_in(&head.headers, body.as_ref()).await;
        }
        if is_leaked {
            return Ending::Leaked { status: head.status };
        }
        if !two_lengths {
            self.pool.keep(connection, turn);
        }
        Ending::Answered(UpstreamAnswer { status: head.status, headers: head.headers, body, delay, framed })
    }
}

/// Why an upstream sends nothing that is no longer in force.
fn replaced() -> AttemptError {
    AttemptError::new(ProxyError::DestinationUnavailable, "a reload put another upstream in its place")
}

fn too_many_interim() -> Ending {
    Ending::Lost(AttemptError::new(ProxyError::HttpProtocolError, "the upstream sent too many interim responses"))
}

/// Classifies the end of a connection after a request was handed over: it proves nothing about the effect.
fn failed(error: &hyper::Error) -> Ending {
    if error.is_parse_too_large() {
        let why = AttemptError::new(ProxyError::HttpResponseHeaderSectionSize, "the response head is too large");
        return Ending::Unusable { status: None, why };
    }
    if error.is_parse() {
        return Ending::Lost(AttemptError::new(ProxyError::HttpProtocolError, "the response is not valid HTTP/1.1"));
    }
    Ending::Lost(AttemptError::new(ProxyError::ConnectionTerminated, "the connection ended without an answer"))
}

//! The connection pool: bounded, one request at a time per connection, idle ones kept for a while.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::client::conn::http1::SendRequest;
use tokio::task::AbortHandle;
use tokio::time::{sleep, timeout};

use super::HeldToken;
use super::connect::Connector;
use super::ending::AttemptError;
use super::interim::Allowance;
use super::token_writer::TokenSlot;
use crate::clock::Clock;
use crate::fair_semaphore::{FairPermit, FairSemaphore};
use crate::process_log::{FaultState, STATE};
use crate::tasks::Tasks;

/// How long a connection may take to become ready again after a complete response; if it does not, the upstream had not
/// read the whole request.
const READY_WITHIN: Duration = Duration::from_secs(1);

/// An open connection. Dropping it closes it at once, even in the middle of a request.
pub(super) struct PooledConnection {
    sender: SendRequest<Full<Bytes>>,
    driver: AbortHandle,
    allowance: Arc<Allowance>,
    token: Arc<TokenSlot>,
}

/// The result of handing a request over.
pub(super) enum SendOutcome {
    /// The response head arrived.
    Head(Response<Incoming>),
    /// No byte was written.
    Unsent,
    /// The request may have been written.
    Failed(hyper::Error),
    /// The request was written, and the upstream sent too many interim responses.
    TooManyInterim,
}

impl PooledConnection {
    pub(super) fn new(
        sender: SendRequest<Full<Bytes>>,
        driver: AbortHandle,
        (allowance, token): (Arc<Allowance>, Arc<TokenSlot>),
    ) -> Self {
        Self { sender, driver, allowance, token }
    }

    /// Sends `request` with this token, and waits for the response head.
    pub(super) async fn send(&mut self, request: Request<Full<Bytes>>, held: &Arc<HeldToken>) -> SendOutcome {
        self.token.put(held.clone());
        match self.allowance.limit_until_head(self.sender.try_send_request(request)).await {
            None => SendOutcome::TooManyInterim,
            Some(Ok(response)) => SendOutcome::Head(response),
            Some(Err(mut error)) => match error.take_message() {
                Some(_request) => SendOutcome::Unsent,
                None => SendOutcome::Failed(error.into_error()),
            },
        }
    }
}

impl Drop for PooledConnection {
    fn drop(&mut self) {
        self.driver.abort();
    }
}

/// The name under which the gateway opens connections for itself; no caller can have it.
const OWN_CALLER: &str = "(makegate)";

/// All connections to the upstream. Turns and idle connections together never exceed the limit.
pub(super) struct Pool {
    connector: Connector,
    clock: Clock,
    idle_max: Duration,
    /// Turns to use a connection: fair among callers, who leave some for those who come back.
    turns: FairSemaphore,
    connections_max: usize,
    own_name: Arc<str>,
    idle: Mutex<IdleConnection>,
    /// Set while no connection can be opened.
    unreachable: FaultState,
    tasks: Tasks,
}

#[derive(Default)]
struct IdleConnection {
    /// Ordered by idle time, longest first.
    connections: Vec<(PooledConnection, Instant)>,
    /// Whether a task is running that closes connections idle for too long.
    is_sweeping: bool,
}

impl Pool {
    pub(super) fn new(connector: Connector, connections: usize, idle_max: Duration, clock: Clock) -> Self {
        let connections_max = connections.max(1);
        Self {
            connector,
            clock,
            idle_max,
            turns: FairSemaphore::new(connections_max),
            connections_max,
            own_name: OWN_CALLER.into(),
            idle: Mutex::default(),
            unreachable: FaultState::default(),
            tasks: Tasks::new(),
        }
    }

    /// Waits for the right to use a connection, for a caller or for the gateway itself. `None` if it did not come
    /// within `patience`. The number of a caller's waiting requests is bounded by its requests in progress.
    pub(super) async fn turn(&self, caller: Option<&Arc<str>>, patience: Duration) -> Option<FairPermit> {
        timeout(patience, self.turns.acquire(caller.unwrap_or(&self.own_name))).await.ok()
    }

    /// Whether more than half of the turns are free.
    pub(super) fn is_quiet(&self) -> bool {
        self.turns.free() * 2 > self.connections_max
    }

    /// Since when no connection could be opened.
    pub(super) fn unreachable_since(&self) -> Option<Instant> {
        self.unreachable.since()
    }

    /// The number of connections in use and of requests waiting for one.
    pub(super) fn load(&self) -> (usize, usize) {
        (self.connections_max.saturating_sub(self.turns.free()), self.turns.waiting())
    }

    /// Takes the open connection that has been idle the shortest, if there is one.
    pub(super) fn reuse(&self) -> Option<PooledConnection> {
        let mut idle = self.idle();
        idle.drop_unusable(self.clock.now(), self.idle_max);
        idle.connections.pop().map(|(connection, _)| connection)
    }

    /// Opens a new connection. The caller must hold a turn.
    pub(super) async fn connect(&self) -> Result<PooledConnection, AttemptError> {
        self.close_surplus_idle();
        // Boxed: it is rare, and its future is larger than the rest of an attempt.
        let dialled = Box::pin(self.connector.connect()).await;
        let now = self.clock.now();
        match &dialled {
            Ok(_) => {
                if let Some(lasted) = self.unreachable.end(now) {
                    tracing::info!(target: STATE, after_s = lasted.as_secs(), "the upstream is reachable again");
                }
            }
            Err(why) if why.is_local() => {}
            Err(why) => {
                if self.unreachable.begin(now) {
                    tracing::error!(target: STATE, %why, "the upstream is unreachable");
                }
            }
        }
        dialled
    }

    /// Keeps `connection`, whose response was read completely, for the next request.
    pub(super) fn keep(self: &Arc<Self>, connection: PooledConnection, turn: FairPermit) {
        if connection.sender.is_ready() {
            self.store(connection);
            return;
        }
        // The connection's task may not have noticed yet that the response ended.
        let pool = self.clone();
        let mut connection = connection;
        self.tasks.spawn(async move {
            if matches!(timeout(READY_WITHIN, connection.sender.ready()).await, Ok(Ok(()))) {
                pool.store(connection);
            }
            drop(turn);
        });
    }

    pub(super) fn store(self: &Arc<Self>, connection: PooledConnection) {
        let mut idle = self.idle();
        idle.connections.push((connection, self.clock.now()));
        if !std::mem::replace(&mut idle.is_sweeping, true) {
            self.tasks.spawn(sweep(Arc::downgrade(self), self.idle_max));
        }
    }

    /// Closes idle connections to make way for a new one.
    fn close_surplus_idle(&self) {
        let mut idle = self.idle();
        let surplus = idle.connections.len().saturating_sub(self.turns.free());
        idle.connections.drain(..surplus);
    }

    /// Whether all connections end within `limit`.
    #[cfg(test)]
    pub(super) async fn closed(&self, limit: Duration) -> bool {
        self.connector.closed(limit).await
    }

    #[cfg(test)]
    pub(super) fn idle_count(&self) -> usize {
        self.idle().connections.len()
    }

    fn idle(&self) -> MutexGuard<'_, IdleConnection> {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl IdleConnection {
    fn drop_unusable(&mut self, now: Instant, idle_max: Duration) {
        self.connections
            .retain(|(connection, since)| !connection.sender.is_closed() && now.duration_since(*since) < idle_max);
    }
}

/// Closes connections that were idle for too long, until none is idle.
async fn sweep(pool: Weak<Pool>, idle_max: Duration) {
    // At most a quarter of the time late, and never a busy loop.
    let pause = (idle_max / 4).max(Duration::from_millis(50));
    loop {
        sleep(pause).await;
        let Some(pool) = pool.upgrade() else { return };
        let mut idle = pool.idle();
        idle.drop_unusable(pool.clock.now(), idle_max);
        if idle.connections.is_empty() {
            idle.is_sweeping = false;
            return;
        }
    }
}

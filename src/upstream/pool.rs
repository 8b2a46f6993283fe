//! The connections: so many at once, used one request at a time, kept a while for the next.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::client::conn::http1::SendRequest;
use tokio::task::AbortHandle;
use tokio::time::{sleep, timeout};

use super::connect::Connector;
use super::ending::AttemptError;
use super::interim::Allowance;
use crate::clock::Clock;
use crate::fair_semaphore::{FairPermit, FairSemaphore};
use crate::process_log::{FaultState, STATE};
use crate::tasks::Tasks;

/// A connection whose answer came whole has so long to be ready again; one that is not had not read its request.
const READY_WITHIN: Duration = Duration::from_secs(1);

/// An open connection. Dropped, it is closed at once, whatever is under way on it.
pub(super) struct PooledConnection {
    sender: SendRequest<Full<Bytes>>,
    driver: AbortHandle,
    allowance: Arc<Allowance>,
}

/// What came of handing a request over.
pub(super) enum SendOutcome {
    /// The head of its answer.
    Head(Response<Incoming>),
    /// Not a byte of it was written: here it is again.
    Back(Request<Full<Bytes>>),
    /// It may have been written.
    Failed(hyper::Error),
    /// It was written, and interim answers came without end.
    Flooded,
}

impl PooledConnection {
    pub(super) fn new(sender: SendRequest<Full<Bytes>>, driver: AbortHandle, allowance: Arc<Allowance>) -> Self {
        Self { sender, driver, allowance }
    }

    /// Hands `request` over and waits for the head of its answer.
    pub(super) async fn send(&mut self, request: Request<Full<Bytes>>) -> SendOutcome {
        match self.allowance.head(self.sender.try_send_request(request)).await {
            None => SendOutcome::Flooded,
            Some(Ok(response)) => SendOutcome::Head(response),
            Some(Err(mut error)) => match error.take_message() {
                Some(request) => SendOutcome::Back(request),
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

/// In whose name the gateway connects on its own behalf: no caller can have it.
const MAKEGATE: &str = "(makegate)";

/// All connections to the upstream. Turns and idle connections together are never more than the bound.
pub(super) struct Pool {
    connector: Connector,
    clock: Clock,
    idle_max: Duration,
    /// The right to use a connection: fair among callers, who leave some to those who come back.
    turns: FairSemaphore,
    most: usize,
    own_name: Arc<str>,
    idle: Mutex<IdleConnection>,
    /// No connection can be opened.
    unreachable: FaultState,
    tasks: Tasks,
}

#[derive(Default)]
struct IdleConnection {
    /// Longest idle first.
    lines: Vec<(PooledConnection, Instant)>,
    /// Is a task under way that closes what has been idle too long?
    swept: bool,
}

impl Pool {
    pub(super) fn new(connector: Connector, connections: usize, idle_max: Duration, clock: Clock) -> Self {
        let most = connections.max(1);
        Self {
            connector,
            clock,
            idle_max,
            turns: FairSemaphore::new(most),
            most,
            own_name: MAKEGATE.into(),
            idle: Mutex::default(),
            unreachable: FaultState::default(),
            tasks: Tasks::new(),
        }
    }

    /// Waits for the right to use a connection, in a caller's name or in the gateway's own. `None`: it did not come within
    /// `patience`. How many of a caller's requests wait is bounded by how many are under way.
    pub(super) async fn turn(&self, caller: Option<&Arc<str>>, patience: Duration) -> Option<FairPermit> {
        timeout(patience, self.turns.acquire(caller.unwrap_or(&self.own_name))).await.ok()
    }

    /// Are more than half of the turns free?
    pub(super) fn is_quiet(&self) -> bool {
        self.turns.free() * 2 > self.most
    }

    /// Connections in use, and requests that wait for one.
    pub(super) fn load(&self) -> (usize, usize) {
        (self.most.saturating_sub(self.turns.free()), self.turns.waiting())
    }

    /// The connection that has been idle shortest, if there is one that is open.
    pub(super) fn reuse(&self) -> Option<PooledConnection> {
        let mut idle = self.idle();
        idle.drop_useless(self.clock.now(), self.idle_max);
        idle.lines.pop().map(|(connection, _)| connection)
    }

    /// A connection that was never idle. To be called with a turn.
    pub(super) async fn connect(&self) -> Result<PooledConnection, AttemptError> {
        self.make_way();
        // Rare, and larger than all the rest of an attempt.
        let dialled = Box::pin(self.connector.connect()).await;
        let now = self.clock.now();
        match &dialled {
            Ok(_) => {
                if let Some(lasted) = self.unreachable.ends(now) {
                    tracing::info!(target: STATE, after_s = lasted.as_secs(), "the upstream can be reached again");
                }
            }
            Err(why) if why.is_local() => {}
            Err(why) => {
                if self.unreachable.begins(now) {
                    tracing::error!(target: STATE, %why, "the upstream cannot be reached");
                }
            }
        }
        dialled
    }

    /// Keeps `connection`, whose answer was read whole, for the next request.
    pub(super) fn keep(self: &Arc<Self>, connection: PooledConnection, turn: FairPermit) {
        if connection.sender.is_ready() {
            self.store(connection);
            return;
        }
        // The connection's task is still about to notice that the answer has ended.
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
        idle.lines.push((connection, self.clock.now()));
        if !std::mem::replace(&mut idle.swept, true) {
            self.tasks.spawn(sweep(Arc::downgrade(self), self.idle_max));
        }
    }

    /// Closes idle connections for which a new one leaves no place.
    fn make_way(&self) {
        let mut idle = self.idle();
        let surplus = idle.lines.len().saturating_sub(self.turns.free());
        idle.lines.drain(..surplus);
    }

    /// Have all connections ended within `limit`?
    #[cfg(test)]
    pub(super) async fn closed(&self, limit: Duration) -> bool {
        self.connector.closed(limit).await
    }

    #[cfg(test)]
    pub(super) fn idle_count(&self) -> usize {
        self.idle().lines.len()
    }

    fn idle(&self) -> MutexGuard<'_, IdleConnection> {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl IdleConnection {
    fn drop_useless(&mut self, now: Instant, idle_max: Duration) {
        self.lines
            .retain(|(connection, since)| !connection.sender.is_closed() && now.duration_since(*since) < idle_max);
    }
}

/// Closes what has been idle too long, until nothing is idle.
async fn sweep(pool: Weak<Pool>, idle_max: Duration) {
    // A quarter late at most, and never a busy loop.
    let pause = (idle_max / 4).max(Duration::from_millis(50));
    loop {
        sleep(pause).await;
        let Some(pool) = pool.upgrade() else { return };
        let mut idle = pool.idle();
        idle.drop_useless(pool.clock.now(), idle_max);
        if idle.lines.is_empty() {
            idle.swept = false;
            return;
        }
    }
}

//! One connection to the engine, made anew whenever it ends.

use std::collections::HashMap;
use std::future::poll_fn;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures_util::future::BoxFuture;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::{RwLock, RwLockWriteGuard, watch};
use tokio_postgres::types::{ToSql, Type};
use tokio_postgres::{AsyncMessage, Client, Connection, Row, Socket, Statement as Prepared};
use tokio_util::sync::CancellationToken;

use super::{CHANNEL, EngineError, EngineShared, Line, Parameters, Statement};
use crate::hash;
use crate::tasks::Tasks;

/// Pause before the first attempt to connect again, and the longest; each is cut by a random part, so that replicas do not come together.
const RECONNECT: Duration = Duration::from_millis(100);
const RECONNECT_MAX: Duration = Duration::from_secs(2);
/// How long making a connection may take, TLS included.
const CONNECT_TIME_MAX: Duration = Duration::from_secs(3);

/// A connection that works, as far as is known.
#[derive(Debug)]
pub(super) struct LiveLine {
    /// Locked whole by a transaction, and shared by all else.
    client: RwLock<Client>,
    /// By SQL text, unless a pooler may give each statement another session.
    prepared: Mutex<HashMap<&'static str, Prepared>>,
    shared: Arc<EngineShared>,
    given_up: CancellationToken,
}

impl LiveLine {
    pub(super) async fn client(&self) -> RwLockWriteGuard<'_, Client> {
        self.client.write().await
    }

    /// Ends the connection; another one is made.
    pub(super) fn give_up(&self) {
        self.given_up.cancel();
    }

    pub(super) async fn query(
        &self,
        statement: &'static Statement,
        parameters: Parameters<'_>,
    ) -> Result<Vec<Row>, EngineError> {
        let client = self.client.read().await;
        let rows = match self.prepared(&client, statement).await? {
            Some(prepared) => client.query(&prepared, parameters).await,
            None => client.query_typed(statement.sql, &typed(statement, parameters)).await,
        };
        rows.map_err(|error| EngineError::of(&error))
    }

    pub(super) async fn execute(
        &self,
        statement: &'static Statement,
        parameters: Parameters<'_>,
    ) -> Result<u64, EngineError> {
        let client = self.client.read().await;
        let changed = match self.prepared(&client, statement).await? {
            Some(prepared) => client.execute(&prepared, parameters).await,
            None => client.execute_typed(statement.sql, &typed(statement, parameters)).await,
        };
        changed.map_err(|error| EngineError::of(&error))
    }

    pub(super) async fn batch(&self, sql: &str) -> Result<(), EngineError> {
        self.client.read().await.batch_execute(sql).await.map_err(|error| EngineError::of(&error))
    }

    /// The prepared statement; `None` while statements are not prepared.
    async fn prepared(&self, client: &Client, statement: &'static Statement) -> Result<Option<Prepared>, EngineError> {
        if !self.shared.hears.load(Ordering::Relaxed) {
            return Ok(None);
        }
        if let Some(prepared) = self.statements().get(statement.sql) {
            return Ok(Some(prepared.clone()));
        }
        let prepared = client.prepare_typed(statement.sql, statement.types).await;
        let prepared = prepared.map_err(|error| EngineError::of(&error))?;
        self.statements().insert(statement.sql, prepared.clone());
        Ok(Some(prepared))
    }

    fn statements(&self) -> std::sync::MutexGuard<'_, HashMap<&'static str, Prepared>> {
        self.prepared.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

pub(super) fn typed<'a>(
    statement: &'static Statement,
    parameters: Parameters<'a>,
) -> Vec<(&'a (dyn ToSql + Sync), Type)> {
    parameters.iter().copied().zip(statement.types.iter().cloned()).collect()
}

/// A line: its connection, if there is one now, or why there is none.
#[derive(Debug)]
pub(super) struct LineState {
    state: watch::Receiver<LineStatus>,
}

#[derive(Clone, Debug)]
enum LineStatus {
    /// No attempt has ended yet.
    Connecting,
    Live(Arc<LiveLine>),
    Down(String),
}

impl LineState {
    /// Begins to connect.
    pub(super) fn start(line: Line, shared: &Arc<EngineShared>, tasks: &Tasks) -> Self {
        let (sender, state) = watch::channel(LineStatus::Connecting);
        let keeper = LineKeeper { line, shared: shared.clone(), state: sender };
        tasks.spawn_until_stop(keeper.run());
        Self { state }
    }

    pub(super) fn live(&self) -> Option<Arc<LiveLine>> {
        match &*self.state.borrow() {
            LineStatus::Live(live) if !live.given_up.is_cancelled() => Some(live.clone()),
            LineStatus::Live(_) | LineStatus::Connecting | LineStatus::Down(_) => None,
        }
    }

    pub(super) fn trouble(&self) -> Option<String> {
        match &*self.state.borrow() {
            LineStatus::Down(why) => Some(why.clone()),
            LineStatus::Live(_) | LineStatus::Connecting => None,
        }
    }

    /// Waits until there is a connection; for ever after the end of the service.
    pub(super) async fn connected(&self) {
        let mut state = self.state.clone();
        if state.wait_for(|status| matches!(status, LineStatus::Live(_))).await.is_err() {
            std::future::pending::<()>().await;
        }
    }
}

/// Keeps one line connected.
struct LineKeeper {
    line: Line,
    shared: Arc<EngineShared>,
    state: watch::Sender<LineStatus>,
}

impl LineKeeper {
    async fn run(self) {
        let mut pause = RECONNECT;
        loop {
            let began = self.shared.clock.now();
            let why = match tokio::time::timeout(CONNECT_TIME_MAX, self.shared.target.connect_any()).await {
                Err(_) => "no connection within 3 s".to_owned(),
                Ok(Err(why)) => why,
                Ok(Ok((client, connection))) => self.keep(client, connection).await,
            };
            if self.line == Line::Quick {
                self.shared.hears.store(false, Ordering::Relaxed);
            }
            self.state.send_replace(LineStatus::Down(why));
            let lasted = self.shared.clock.now().saturating_duration_since(began);
            pause = if lasted > RECONNECT_MAX { RECONNECT } else { (pause * 2).min(RECONNECT_MAX) };
            tokio::time::sleep(cut_at_random(pause)).await;
        }
    }

    /// Uses a connection until it ends. Returns why it did.
    async fn keep(&self, client: Client, mut connection: BoxedConnection) -> String {
        self.shared.counters.connects.fetch_add(1, Ordering::Relaxed);
        let given_up = CancellationToken::new();
        let live = Arc::new(LiveLine {
            client: RwLock::new(client),
            prepared: Mutex::default(),
            shared: self.shared.clone(),
            given_up: given_up.clone(),
        });
        let listening = async {
            if self.line == Line::Quick {
                // Behind a pooler this is heard by nobody, and costs nothing.
                let listens = format!("listen {CHANNEL}");
                if tokio::time::timeout(CONNECT_TIME_MAX, live.batch(&listens)).await.is_err() {
                    return "the database accepted a connection, and answered nothing for 3 s".to_owned();
                }
            }
            self.state.send_replace(LineStatus::Live(live.clone()));
            std::future::pending().await
        };
        tokio::select! {
            why = self.drive(&mut connection) => why,
            () = given_up.cancelled() => "the database did not answer in time".to_owned(),
            why = listening => why,
        }
    }

    /// Moves the connection's messages until it ends.
    async fn drive(&self, connection: &mut BoxedConnection) -> String {
        loop {
            match connection.next_message().await {
                // Behind a pooler, others' announcements may arrive by chance, and on any line.
                Some(Ok(AsyncMessage::Notification(told)))
                    if self.line == Line::Quick && told.payload() == self.shared.hello =>
                {
                    self.shared.hears.store(true, Ordering::Relaxed);
                }
                Some(Ok(AsyncMessage::Notification(told))) if told.channel() == CHANNEL => {
                    // A full channel loses it; the next beat finds what it announced.
                    let _lost = self.shared.announced.try_send(told.payload().to_owned());
                }
                Some(Ok(_)) => {}
                Some(Err(error)) => return crate::http_client::cause(&error),
                None => return "the database closed the connection".to_owned(),
            }
        }
    }
}

/// A connection, whatever carries it.
pub(super) type BoxedConnection = Box<dyn Messages>;

/// A message; `None`: the connection has ended.
type NextMessage = Option<Result<AsyncMessage, tokio_postgres::Error>>;

pub(super) trait Messages: Send {
    fn next_message(&mut self) -> BoxFuture<'_, NextMessage>;
}

impl<T: AsyncRead + AsyncWrite + Unpin + Send> Messages for Connection<Socket, T> {
    fn next_message(&mut self) -> BoxFuture<'_, NextMessage> {
        Box::pin(poll_fn(|context| self.poll_message(context)))
    }
}

/// Between half of it and all of it, so that replicas that failed together do not come back together.
pub(in crate::replicas) fn cut_at_random(pause: Duration) -> Duration {
    let part = hash::random::<2>().map_or(u16::MAX, u16::from_le_bytes);
    pause / 2 + (pause / 2).mul_f64(f64::from(part) / f64::from(u16::MAX))
}

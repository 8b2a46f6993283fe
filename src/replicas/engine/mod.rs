//! The PostgreSQL database that the replicas share, as the rest of `replicas` sees it: statements that go over one of four connections.
//!
//! Nothing here waits longer than its line's time limit, and an error says whether the statement may have been carried out.

mod line;
mod session;
mod target;

use std::future::Future;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use futures_util::SinkExt as _;
use tokio::sync::mpsc;
use tokio_postgres::error::SqlState;
use tokio_postgres::types::{ToSql, Type};
use tokio_postgres::{Row, Transaction};

pub(super) use self::line::cut_at_random;
use self::line::{LineState, LiveLine};
use crate::clock::Clock;
use crate::counters::DurationHistogram;
use crate::hash;
use crate::tasks::Tasks;

pub use session::EngineSession;
pub use target::{EngineTarget, InvalidTarget};

/// The channel that fences are announced on.
pub(super) const CHANNEL: &str = "mg_fence";

/// Which of a replica's connections a statement goes over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Line {
    /// Statements on soft state, many under way at once; announcements arrive here.
    Quick,
    /// What must be on the engine's disk, one batch at a time.
    Durable,
    /// Short transactions that may wait for another replica's: they must hold up nothing else, and no large query them.
    Locks,
    /// Large queries and copies.
    Bulk,
}

impl Line {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Quick, Self::Durable, Self::Locks, Self::Bulk];

    /// Its word.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Quick => "quick",
            Self::Durable => "durable",
            Self::Locks => "locks",
            Self::Bulk => "bulk",
        }
    }

    /// How long a statement may take.
    #[must_use]
    pub const fn time_max(self) -> Duration {
        match self {
            Self::Quick | Self::Durable | Self::Locks => Duration::from_millis(900),
            Self::Bulk => Duration::from_secs(5),
        }
    }
}

/// A statement with the types of its parameters, prepared once per connection.
#[derive(Debug)]
pub struct Statement {
    sql: &'static str,
    types: &'static [Type],
}

impl Statement {
    /// A statement, for a `static`.
    #[must_use]
    pub const fn new(sql: &'static str, types: &'static [Type]) -> Self {
        Self { sql, types }
    }
}

/// The parameters of a statement.
pub type Parameters<'a> = &'a [&'a (dyn ToSql + Sync)];

/// Why a statement brought nothing.
#[derive(Debug, thiserror::Error)]
pub enum EngineError {
    /// It never left, so it was not carried out.
    #[error("the database cannot be reached")]
    Unreachable,
    /// Its answer did not come: it may have been carried out, or still be.
    #[error("the database did not answer: {0}")]
    Unclear(Box<str>),
    /// The engine refused it.
    #[error("the database refused a statement: {message} ({})", code.code())]
    Failed {
        /// PostgreSQL's code.
        code: SqlState,
        /// PostgreSQL's words.
        message: Box<str>,
    },
}

impl EngineError {
    /// Whether the engine refused the statement with this code.
    #[must_use]
    pub fn is(&self, wanted: &SqlState) -> bool {
        matches!(self, Self::Failed { code, .. } if code == wanted)
    }

    fn of(error: &tokio_postgres::Error) -> Self {
        match error.as_db_error() {
            // The engine is going down, or has no room: this connection is of no use, and the transaction is over.
            Some(told) => Self::Failed { code: told.code().clone(), message: told.message().into() },
            None => Self::Unclear(crate::http_client::cause(error).into()),
        }
    }
}

/// What a replica knows of its connections.
#[derive(Debug, Default)]
pub struct EngineCounters {
    /// How long statements took that were answered, by line in the order of [`Line::ALL`].
    durations: [DurationHistogram; 4],
    /// Statements that brought nothing.
    pub failures: AtomicU64,
    /// Connections made.
    pub connects: AtomicU64,
}

impl EngineCounters {
    /// How long the statements of this line took that were answered.
    #[must_use]
    pub const fn durations(&self, line: Line) -> &DurationHistogram {
        of_line(&self.durations, line)
    }
}

/// That of this line, out of what is in the order of [`Line::ALL`].
const fn of_line<T>([quick, durable, locks, bulk]: &[T; 4], line: Line) -> &T {
    match line {
        Line::Quick => quick,
        Line::Durable => durable,
        Line::Locks => locks,
        Line::Bulk => bulk,
    }
}

/// Whether a server that says this will carry nothing out.
fn is_end(code: &SqlState) -> bool {
    let ends = [
        SqlState::READ_ONLY_SQL_TRANSACTION,
        SqlState::ADMIN_SHUTDOWN,
        SqlState::CRASH_SHUTDOWN,
        SqlState::CANNOT_CONNECT_NOW,
    ];
    ends.contains(code)
}

/// The connections to the engine. They are made, and made anew, in the background.
#[derive(Debug)]
pub struct Engine {
    lines: [LineState; 4],
    shared: Arc<EngineShared>,
}

/// What the lines share.
#[derive(Debug)]
struct EngineShared {
    target: EngineTarget,
    clock: Clock,
    counters: EngineCounters,
    /// Announcements are heard, so each connection has a session of its own. Behind a pooler they are not.
    hears: AtomicBool,
    announced: mpsc::Sender<String>,
    /// What this engine announces to find out whether it hears.
    hello: String,
}

/// The first word of an announcement by which somebody finds out whether it hears.
pub(super) const HELLO: &str = "hello";
/// How long that waits for the line that announces it.
const HELLO_WAIT: Duration = Duration::from_millis(200);
/// Announcements that wait to be handled; further ones are dropped, and noticed by the next beat.
const ANNOUNCED_MAX: usize = 1_024;

impl Engine {
    /// Begins to connect. Announcements arrive at the receiver.
    pub(super) fn start(target: EngineTarget, clock: Clock, tasks: &Tasks) -> (Arc<Self>, mpsc::Receiver<String>) {
        let (announced, receiver) = mpsc::channel(ANNOUNCED_MAX);
        let shared = Arc::new(EngineShared {
            target,
            clock,
            counters: EngineCounters::default(),
            hears: AtomicBool::new(false),
            announced,
            hello: format!("{HELLO} {:016x}", hash::random().map_or(0, u64::from_le_bytes)),
        });
        let lines = Line::ALL.map(|line| LineState::start(line, &shared, tasks));
        (Arc::new(Self { lines, shared }), receiver)
    }

    fn line(&self, line: Line) -> Result<Arc<LiveLine>, EngineError> {
        of_line(&self.lines, line).live().ok_or(EngineError::Unreachable)
    }

    /// Carries out a statement and returns its rows.
    ///
    /// # Errors
    /// [`EngineError`].
    pub async fn query(
        &self,
        line: Line,
        statement: &'static Statement,
        parameters: Parameters<'_>,
    ) -> Result<Vec<Row>, EngineError> {
        let live = self.line(line)?;
        self.timed(&live, line, live.query(statement, parameters)).await
    }

    /// Carries out a statement and returns the number of rows that it changed.
    ///
    /// # Errors
    /// [`EngineError`].
    pub async fn execute(
        &self,
        line: Line,
        statement: &'static Statement,
        parameters: Parameters<'_>,
    ) -> Result<u64, EngineError> {
        let live = self.line(line)?;
        self.timed(&live, line, live.execute(statement, parameters)).await
    }

    /// Carries out several statements without parameters or results.
    ///
    /// # Errors
    /// [`EngineError`].
    pub async fn batch(&self, line: Line, sql: &str) -> Result<(), EngineError> {
        let live = self.line(line)?;
        self.timed(&live, line, live.batch(sql)).await
    }

    /// Does `work` in a transaction on a line that nothing else uses meanwhile ([`Line::Durable`], [`Line::Locks`] or [`Line::Bulk`]). What `work` returns without
    /// committing is rolled back.
    ///
    /// # Errors
    /// [`EngineError`]. After an error of the commit itself it is unclear whether the work was done.
    pub async fn transaction<T>(
        &self,
        line: Line,
        work: impl AsyncFnOnce(&EngineTransaction<'_>) -> Result<T, EngineError>,
    ) -> Result<T, EngineError> {
        let live = self.line(line)?;
        self.timed(&live, line, async {
            let mut client = live.client().await;
            let transaction = client.transaction().await.map_err(|error| EngineError::of(&error))?;
            let transaction = EngineTransaction { transaction };
            let done = work(&transaction).await?;
            transaction.transaction.commit().await.map_err(|error| EngineError::of(&error))?;
            Ok(done)
        })
        .await
    }

    /// Limits the time, counts, and gives up a connection that does not answer in time: whatever waits behind the statement would wait, too.
    async fn timed<T>(
        &self,
        live: &LiveLine,
        line: Line,
        work: impl Future<Output = Result<T, EngineError>>,
    ) -> Result<T, EngineError> {
        let (clock, counters) = (&self.shared.clock, &self.shared.counters);
        let began = clock.now();
        let done = match tokio::time::timeout(line.time_max(), pin!(work)).await {
            Ok(done) => done,
            Err(_) => {
                live.give_up();
                Err(EngineError::Unclear(format!("no answer within {} ms", line.time_max().as_millis()).into()))
            }
        };
        let took = clock.now().saturating_duration_since(began);
        match &done {
            // There is a pooler, which has given the statement another session, and an announcement was heard by chance.
            Err(EngineError::Failed { code, .. }) if *code == SqlState::INVALID_SQL_STATEMENT_NAME => {
                self.shared.hears.store(false, Ordering::Relaxed);
            }
            // A server that was demoted, or is going down, is not the engine any more.
            Err(EngineError::Failed { code, .. }) if is_end(code) => live.give_up(),
            Ok(_) | Err(EngineError::Failed { .. }) => {
                counters.durations(line).add(took);
            }
            Err(EngineError::Unreachable | EngineError::Unclear(_)) => {
                counters.failures.fetch_add(1, Ordering::Relaxed);
            }
        }
        done
    }

    /// Whether this line is connected.
    #[must_use]
    pub fn is_connected(&self, line: Line) -> bool {
        self.line(line).is_ok()
    }

    /// Waits until this line is connected.
    pub async fn connected(&self, line: Line) {
        of_line(&self.lines, line).connected().await;
    }

    /// Why this line cannot connect, if it cannot.
    #[must_use]
    pub fn trouble(&self, line: Line) -> Option<String> {
        of_line(&self.lines, line).trouble()
    }

    /// Whether announcements are heard. If not (behind a pooler), whoever waits for one asks instead.
    #[must_use]
    pub fn hears(&self) -> bool {
        self.shared.hears.load(Ordering::Relaxed)
    }

    /// Where the engine is, without what proves who makegate is.
    #[must_use]
    pub fn address(&self) -> &str {
        self.shared.target.address()
    }

    /// What was counted.
    #[must_use]
    pub fn counters(&self) -> &EngineCounters {
        &self.shared.counters
    }

    /// Announces to all replicas, once, that announcements can be heard.
    pub(super) async fn say_hello(&self) {
        static NOTIFY: Statement = Statement::new("select pg_notify('mg_fence', $1)", &[Type::TEXT]);
        let _not_yet = tokio::time::timeout(HELLO_WAIT, self.connected(Line::Durable)).await;
        let _unheard = self.query(Line::Durable, &NOTIFY, &[&self.shared.hello]).await;
    }
}

/// A transaction under way. Its statements are not prepared: a pooler keeps one session for it, but not the one of before.
pub struct EngineTransaction<'c> {
    transaction: Transaction<'c>,
}

impl EngineTransaction<'_> {
    /// Carries out a statement and returns its rows.
    ///
    /// # Errors
    /// [`EngineError`].
    pub async fn query(
        &self,
        statement: &'static Statement,
        parameters: Parameters<'_>,
    ) -> Result<Vec<Row>, EngineError> {
        let rows = self.transaction.query_typed(statement.sql, &line::typed(statement, parameters)).await;
        rows.map_err(|error| EngineError::of(&error))
    }

    /// Carries out a statement and returns the number of rows that it changed.
    ///
    /// # Errors
    /// [`EngineError`].
    pub async fn execute(&self, statement: &'static Statement, parameters: Parameters<'_>) -> Result<u64, EngineError> {
        let changed = self.transaction.execute_typed(statement.sql, &line::typed(statement, parameters)).await;
        changed.map_err(|error| EngineError::of(&error))
    }

    /// Carries out a statement that is put together for this once, and returns its rows.
    ///
    /// # Errors
    /// [`EngineError`].
    pub async fn query_once(
        &self,
        sql: &str,
        parameters: &[(&(dyn ToSql + Sync), Type)],
    ) -> Result<Vec<Row>, EngineError> {
        self.transaction.query_typed(sql, parameters).await.map_err(|error| EngineError::of(&error))
    }

    /// Carries out several statements without parameters or results.
    ///
    /// # Errors
    /// [`EngineError`].
    pub async fn batch(&self, sql: &str) -> Result<(), EngineError> {
        self.transaction.batch_execute(sql).await.map_err(|error| EngineError::of(&error))
    }

    /// Copies `rows`, in the form that `sql` names, into a table. Returns the number of rows.
    ///
    /// # Errors
    /// [`EngineError`].
    pub async fn copy_in(&self, sql: &str, rows: Bytes) -> Result<u64, EngineError> {
        let sink = self.transaction.copy_in(sql).await.map_err(|error| EngineError::of(&error))?;
        let mut sink = pin!(sink);
        sink.send(rows).await.map_err(|error| EngineError::of(&error))?;
        sink.finish().await.map_err(|error| EngineError::of(&error))
    }
}

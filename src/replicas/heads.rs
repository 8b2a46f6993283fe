//! The signed heads of all replicas' logs. Each replica's are here, and each replica writes the others' into its own log.

use std::sync::Arc;

use tokio_postgres::Row;
use tokio_postgres::types::Type;

use super::engine::{Engine, EngineError, Line, Statement};
use super::shipping::ShippedLog;

/// The longest note that is taken from the engine.
pub const NOTE_BYTES_MAX: usize = 1_024;

/// A replica's newest head.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SharedHead {
    /// Whose it is.
    pub replica: Arc<str>,
    /// The log's name.
    pub log: Arc<str>,
    /// How many records it covers.
    pub size: u64,
    /// The signed note.
    pub note: String,
}

impl SharedHead {
    fn of(row: &Row) -> Option<Self> {
        Some(Self {
            replica: row.try_get::<_, String>(0).ok()?.into(),
            log: row.try_get::<_, String>(1).ok()?.into(),
            size: row.try_get::<_, i64>(2).ok()?.cast_unsigned(),
            note: row.try_get(3).ok()?,
        })
    }
}

/// Shows a head to the others.
///
/// # Errors
/// [`EngineError`].
pub async fn put(engine: &Engine, of: &ShippedLog, size: u64, note: &str) -> Result<(), EngineError> {
    static PUT: Statement = Statement::new(
        "insert into mg.head (replica, log, size, note) values ($1, $2, $3, $4) on conflict (replica, log, size) do nothing",
        &[Type::TEXT, Type::TEXT, Type::INT8, Type::TEXT],
    );
    engine.execute(Line::Bulk, &PUT, &[&&*of.replica, &&*of.log, &size.cast_signed(), &note]).await.map(drop)
}

/// The newest head of each log of the other replicas.
///
/// # Errors
/// [`EngineError`].
pub async fn of_others(engine: &Engine, me: &str) -> Result<Vec<SharedHead>, EngineError> {
    static OTHERS: Statement = Statement::new(
        "select distinct on (replica, log) replica, log, size, note from mg.head
        where replica <> $1 and octet_length(note) <= $2 order by replica, log, size desc limit 1000",
        &[Type::TEXT, Type::INT4],
    );
    let rows = engine.query(Line::Bulk, &OTHERS, &[&me, &i32::try_from(NOTE_BYTES_MAX).unwrap_or(i32::MAX)]).await?;
    Ok(rows.iter().filter_map(SharedHead::of).collect())
}

/// The newest head of this replica's log; of several logs, that of the one that had one last.
///
/// # Errors
/// [`EngineError`].
pub async fn newest(engine: &Engine, replica: &str) -> Result<Option<SharedHead>, EngineError> {
    static NEWEST: Statement = Statement::new(
        "select replica, log, size, note from mg.head where replica = $1 order by time desc, size desc limit 1",
        &[Type::TEXT],
    );
    let rows = engine.query(Line::Bulk, &NEWEST, &[&replica]).await?;
    Ok(rows.first().and_then(SharedHead::of))
}

//! What commands do with the engine: prepare it, try it, look at it, and leave it.

pub mod folder;
pub mod leaving;
pub mod start;
pub mod status;
pub mod trial;

use std::time::Duration;

use tokio_postgres::error::SqlState;

use super::engine::{EngineError, EngineSession};
use super::schema::{self, SchemaAbout, VERSION};

/// Only one makes the schema at a time: the lock's number is `mg` and its purpose.
const LOCK: &str = "select pg_advisory_xact_lock(28007, 1)";

/// What `makegate replicas init` found and did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SchemaChange {
    /// There was none.
    Made,
    /// It had an older version.
    Upgraded(i32),
    /// It is as it should be.
    None,
}

/// Why the engine was not prepared.
#[derive(Debug, thiserror::Error)]
pub enum PrepareError {
    /// A newer makegate has prepared it.
    #[error("the database's schema has version {0}, and this makegate knows {VERSION}: use the newest makegate")]
    Newer(i32),
    /// Other replicas have another key.
    #[error("the other replicas use another key: copy the file that replicas.key_file names from one of them")]
    Key,
    /// The user must not.
    #[error("the database does not let this user: {0}; its owner can say: grant create on database NAME to USER")]
    Forbidden(Box<str>),
    /// It did not answer, or refused.
    #[error(transparent)]
    Engine(#[from] EngineError),
}

impl PrepareError {
    fn of(error: EngineError) -> Self {
        match &error {
            EngineError::Failed { code: SqlState::INSUFFICIENT_PRIVILEGE, message } => Self::Forbidden(message.clone()),
            EngineError::Failed { .. } | EngineError::Unreachable | EngineError::Unclear(_) => Self::Engine(error),
        }
    }
}

/// The schema that the engine has, if it has one.
///
/// # Errors
/// [`EngineError`].
pub async fn about(session: &EngineSession) -> Result<Option<SchemaAbout>, EngineError> {
    let exists = session.timed(session.query_one("select to_regclass('mg.about') is not null", &[])).await?;
    if !exists.get::<_, bool>(0) {
        return Ok(None);
    }
    let row = session.timed(session.query_opt(schema::ABOUT, &[])).await?;
    Ok(row.as_ref().map(SchemaAbout::of))
}

/// The longest lease of all replicas that have not left, at least this one: their beats come as seldom as that.
async fn longest_lease(session: &EngineSession, own: Duration) -> Result<Duration, EngineError> {
    let row = session.timed(session.query_one(schema::LONGEST_LEASE, &[])).await?;
    let longest_ms = row.get::<_, Option<i64>>(0).and_then(|ms| ms.try_into().ok()).unwrap_or(0);
    Ok(own.max(Duration::from_millis(longest_ms)))
}

/// Makes the schema, or brings it up to date, as often as anybody likes.
///
/// # Errors
/// [`PrepareError`]. Nothing has changed.
pub async fn prepare(session: &EngineSession, key: &[u8; 32]) -> Result<SchemaChange, PrepareError> {
    let before = match about(session).await.map_err(PrepareError::of)? {
        Some(known) if known.version > VERSION => return Err(PrepareError::Newer(known.version)),
        Some(known) if known.key_sha256 != schema::key_sha256(key) => return Err(PrepareError::Key),
        known => known.map(|known| known.version),
    };
    // Several statements sent as one are one transaction.
    let sql = format!("begin; {LOCK}; {}; commit", schema::SCHEMA);
    let made = session.timed(session.batch_execute(&sql)).await;
    if made.is_err() {
        let _over = session.timed(session.batch_execute("rollback")).await;
    }
    made.map_err(PrepareError::of)?;
    let note = "insert into mg.about (version, key_sha256, works_with) values ($1, $2, $3)
                on conflict (one) do update set version = greatest(mg.about.version, excluded.version),
                  works_with = greatest(mg.about.works_with, excluded.works_with)
                where mg.about.key_sha256 = excluded.key_sha256";
    let key_sha256 = schema::key_sha256(key);
    let noted = session.timed(session.execute(note, &[&VERSION, &key_sha256.as_slice(), &schema::WORKS_WITH])).await;
    // Another replica may have been faster, with another key.
    if noted.map_err(PrepareError::of)? == 0 {
        return Err(PrepareError::Key);
    }
    Ok(match before {
        None => SchemaChange::Made,
        Some(VERSION) => SchemaChange::None,
        Some(older) => SchemaChange::Upgraded(older),
    })
}

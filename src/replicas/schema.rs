//! The tables and functions in the engine, and whether they are those of this makegate.

use tokio_postgres::Row;
use tokio_postgres::types::Type;

use super::engine::{Engine, EngineError, Line, Statement};
use crate::hash;

/// Version of the schema.
pub const VERSION: i32 = 1;

/// The oldest version whose makegates can use this schema: changes add first, and what is no longer used goes one release later.
pub(super) const WORKS_WITH: i32 = 1;

/// What the engine says of its schema.
pub(super) const ABOUT: &str = "select version, works_with, key_sha256 from mg.about";

/// Makes the schema; what there is stays.
pub const SCHEMA: &str = include_str!("schema.sql");

/// Why a replica must not take part.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SchemaFault {
    /// There is no schema.
    #[error("the database has no schema for makegate: run `makegate replicas init`")]
    Missing,
    /// It is an older makegate's.
    #[error(
        "the database's schema has version {0}, and this makegate needs version {VERSION}: run `makegate replicas init` of this makegate"
    )]
    Old(i32),
    /// It is a newer makegate's, which this one is too old for.
    #[error(
        "the database's schema has version {0}, which makegates for version {VERSION} cannot use any more: start a newer makegate"
    )]
    New(i32),
    /// The replicas would not recognize each other's writes.
    #[error("replicas.key_file is not the key that the other replicas use: copy theirs")]
    Key,
}

/// The longest lease of all replicas that have not left, in milliseconds.
pub(super) const LONGEST_LEASE: &str = "select max(lease_ms) from mg.replica where left_at is null";

/// How many replicas there are beside the one with this name.
pub(super) const OTHERS: &str = "select count(*) from mg.replica where left_at is null and name <> $1";

/// Why another replica is too many, beside so many others, if it is: what is divided by `replicas.max` would be spent more than once.
pub(super) fn too_many(others: i64, max: u32) -> Option<String> {
    (others >= i64::from(max)).then(|| {
        format!("there are {others} other replicas, and replicas.max is {max}: make it larger at all of them, or have one leave (`makegate replicas leave`)")
    })
}

/// The hash of the replicas' key that the engine holds.
#[must_use]
pub fn key_sha256(key: &[u8; 32]) -> [u8; 32] {
    hash::sha256_parts(&[b"makegate replicas key", key])
}

/// Checks that the schema is this makegate's, and that its replicas have this key.
///
/// # Errors
/// The engine does not answer.
pub async fn check(engine: &Engine, line: Line, key: &[u8; 32]) -> Result<Result<(), SchemaFault>, EngineError> {
    static EXISTS: Statement = Statement::new("select to_regclass('mg.about') is not null", &[]);
    static ABOUT: Statement = Statement::new(self::ABOUT, &[] as &[Type]);
    let exists = engine.query(line, &EXISTS, &[]).await?;
    if !exists.first().is_some_and(|row| row.get::<_, bool>(0)) {
        return Ok(Err(SchemaFault::Missing));
    }
    let about = engine.query(line, &ABOUT, &[]).await?;
    let about = about.first().map(SchemaAbout::of);
    Ok(fault(about, Some(key)).map_or(Ok(()), Err))
}

/// What the engine says of its schema.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SchemaAbout {
    /// Its version.
    pub version: i32,
    /// The oldest version whose makegates can use it.
    pub works_with: i32,
    /// The hash of the key that all replicas share.
    pub key_sha256: Vec<u8>,
}

impl SchemaAbout {
    /// Reads a row of [`ABOUT`].
    pub(super) fn of(row: &Row) -> Self {
        Self { version: row.get(0), works_with: row.get(1), key_sha256: row.get(2) }
    }
}

/// Why a replica with this key must not take part where the schema is this one.
#[must_use]
pub fn fault(about: Option<SchemaAbout>, key: Option<&[u8; 32]>) -> Option<SchemaFault> {
    let Some(about) = about else { return Some(SchemaFault::Missing) };
    if about.version < VERSION {
        return Some(SchemaFault::Old(about.version));
    }
    if about.works_with > VERSION {
        return Some(SchemaFault::New(about.version));
    }
    key.is_some_and(|key| about.key_sha256 != key_sha256(key)).then_some(SchemaFault::Key)
}

//! The answers on disk: one row a key, durable when a change returns.

use std::fmt;
use std::fs::OpenOptions;
use std::io;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode};
use rusqlite::{Connection, OptionalExtension as _, params};

use super::{Answer, Ended, Keyed};
use crate::words::{Fingerprint, RequestId};

/// The version of the table.
const VERSION: i64 = 1;
/// What a row weighs beside its answer, in bytes.
const ROW_BYTES: u64 = 160;

const TABLE: &str = "
    CREATE TABLE answers (
        key BLOB PRIMARY KEY, write BLOB NOT NULL, request TEXT NOT NULL, time_ms INTEGER NOT NULL, done INTEGER NOT NULL,
        status INTEGER, headers BLOB, body BLOB, bytes INTEGER NOT NULL) WITHOUT ROWID;
    CREATE INDEX by_time ON answers (time_ms);
    CREATE TABLE totals (rows INTEGER NOT NULL, bytes INTEGER NOT NULL);
    INSERT INTO totals VALUES (0, 0);
    CREATE TRIGGER added AFTER INSERT ON answers BEGIN
        UPDATE totals SET rows = rows + 1, bytes = bytes + new.bytes; END;
    CREATE TRIGGER removed AFTER DELETE ON answers BEGIN
        UPDATE totals SET rows = rows - 1, bytes = bytes - old.bytes; END;
    PRAGMA user_version = 1;
";

/// Why the answers cannot be opened.
#[derive(Debug)]
pub struct StoreError {
    path: PathBuf,
    why: String,
}

impl fmt::Display for StoreError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { path, why } = self;
        write!(
            f,
            "cannot open the answers to idempotency keys in {}: {why}; if they are past help, move the file away: \
             writes that are sent again with a key from before are then done a second time",
            path.display()
        )
    }
}

impl std::error::Error for StoreError {}

/// How much is kept.
#[derive(Clone, Copy, Debug)]
pub(super) struct Bounds {
    pub(super) keys: u64,
    pub(super) age: Duration,
    pub(super) bytes: u64,
}

/// One key's row.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Row {
    pub(super) keyed: Keyed,
    pub(super) ended: Ended,
    time_ms: i64,
}

impl Row {
    pub(super) const fn of(keyed: Keyed, ended: Ended, time_ms: i64) -> Self {
        Self { keyed, ended, time_ms }
    }

    fn weight(&self) -> u64 {
        ROW_BYTES + self.ended.answer.as_ref().map_or(0, |answer| weight(answer) as u64)
    }
}

/// Bytes of an answer.
pub(super) fn weight(answer: &Answer) -> usize {
    let headers = answer.headers.iter().map(|(name, value)| name.as_str().len() + value.len()).sum::<usize>();
    headers + answer.body.len()
}

fn opened<T>(dir: &Path, what: impl FnOnce(&Path) -> Result<T, String>) -> Result<T, StoreError> {
    let path = dir.join("answers.sqlite");
    what(&path).map_err(|why| StoreError { path, why })
}

/// Who changes the rows.
#[derive(Debug)]
pub(super) struct Writer {
    connection: Connection,
    bounds: Bounds,
    rows: u64,
}

impl Writer {
    pub(super) fn open(dir: &Path, bounds: Bounds) -> Result<Self, StoreError> {
        opened(dir, |path| {
            let made = OpenOptions::new().write(true).create(true).truncate(false).mode(0o600).open(path);
            made.map_err(|error: io::Error| error.to_string())?;
            let connected = connect(path).map_err(|error| error.to_string())?;
            let connection = connected.ok_or_else(|| "a newer makegate wrote them".to_owned())?;
            let (rows, _bytes) = totals(&connection).map_err(|error| error.to_string())?;
            Ok(Self { connection, bounds, rows })
        })
    }

    #[cfg(test)]
    pub(super) fn execute_for_test(&self, sql: &str) {
        self.connection.execute_batch(sql).unwrap();
    }

    #[cfg(test)]
    pub(super) fn pragma_for_test(&self, name: &str) -> String {
        let value: rusqlite::types::Value = self.connection.pragma_query_value(None, name, |row| row.get(0)).unwrap();
        match value {
            rusqlite::types::Value::Integer(number) => number.to_string(),
            rusqlite::types::Value::Text(text) => text,
            rusqlite::types::Value::Null | rusqlite::types::Value::Real(_) | rusqlite::types::Value::Blob(_) => {
                String::new()
            }
        }
    }

    /// How many rows there are.
    pub(super) const fn rows(&self) -> u64 {
        self.rows
    }

    /// Adds rows and makes room for them: the oldest go.
    pub(super) fn add(&mut self, rows: &[Arc<Row>]) -> rusqlite::Result<()> {
        self.change(|connection| {
            rows.iter().try_for_each(|row| {
                delete(connection, &row.keyed.key)?; // too old to be told again
                insert(connection, row)
            })
        })
    }

    /// Adds a row unless the key has one.
    pub(super) fn add_missing(&mut self, row: &Row) -> rusqlite::Result<()> {
        self.change(|connection| insert(connection, row))
    }

    pub(super) fn remove(&mut self, key: &Fingerprint) -> rusqlite::Result<()> {
        self.change(|connection| delete(connection, key))
    }

    /// Forgets what is older than the age that is kept.
    pub(super) fn expire(&mut self, now_ms: i64) -> rusqlite::Result<()> {
        let oldest = oldest_ms(self.bounds.age, now_ms);
        let due = "SELECT EXISTS (SELECT 1 FROM answers WHERE time_ms < ?1)";
        if !self.connection.prepare_cached(due)?.query_row([oldest], |row| row.get::<_, bool>(0))? {
            return Ok(());
        }
        self.change(|connection| connection.execute("DELETE FROM answers WHERE time_ms < ?1", [oldest]).map(drop))
    }

    /// One transaction, after which there is no more than may be.
    fn change(&mut self, change: impl FnOnce(&Connection) -> rusqlite::Result<()>) -> rusqlite::Result<()> {
        let transaction = self.connection.transaction()?;
        change(&transaction)?;
        let (mut rows, mut bytes) = totals(&transaction)?;
        while rows > self.bounds.keys || (bytes > self.bounds.bytes && rows > 0) {
            let oldest = "DELETE FROM answers WHERE key IN (SELECT key FROM answers ORDER BY time_ms LIMIT max(1, ?1))";
            let surplus = rows.saturating_sub(self.bounds.keys);
            transaction.execute(oldest, [surplus.cast_signed()])?;
            (rows, bytes) = totals(&transaction)?;
        }
        transaction.commit()?;
        self.rows = rows;
        Ok(())
    }
}

/// Who looks keys up; never waits for a change.
#[derive(Debug)]
pub(super) struct Reader {
    connection: Connection,
    age: Duration,
}

impl Reader {
    pub(super) fn open(dir: &Path, age: Duration) -> Result<Self, StoreError> {
        let connection = opened(dir, |path| Connection::open(path).map_err(|error| error.to_string()))?;
        Ok(Self { connection, age })
    }

    /// The row of this key, unless it is too old.
    pub(super) fn find(&self, key: &Fingerprint, now_ms: i64) -> rusqlite::Result<Option<Row>> {
        let sql =
            "SELECT write, request, time_ms, done, status, headers, body FROM answers WHERE key = ?1 AND time_ms >= ?2";
        let oldest = oldest_ms(self.age, now_ms);
        let mut find = self.connection.prepare_cached(sql)?;
        find.query_row(params![key.as_bytes().as_slice(), oldest], |row| row_of(*key, row)).optional()
    }
}

/// The database, its table made where there is none; `None`: a newer version made it.
fn connect(path: &Path) -> rusqlite::Result<Option<Connection>> {
    let mut connection = Connection::open(path)?;
    connection.execute_batch("PRAGMA journal_mode = WAL; PRAGMA synchronous = FULL; PRAGMA auto_vacuum = NONE;")?;
    let version: i64 = connection.pragma_query_value(None, "user_version", |row| row.get(0))?;
    if version == 0 {
        let transaction = connection.transaction()?;
        transaction.execute_batch(TABLE)?;
        transaction.commit()?;
    }
    Ok((version <= VERSION).then_some(connection))
}

fn oldest_ms(age: Duration, now_ms: i64) -> i64 {
    now_ms.saturating_sub(i64::try_from(age.as_millis()).unwrap_or(i64::MAX))
}

fn totals(connection: &Connection) -> rusqlite::Result<(u64, u64)> {
    let unsigned = |row: &rusqlite::Row<'_>, at| row.get::<_, i64>(at).map(|n| u64::try_from(n).unwrap_or(0));
    connection
        .prepare_cached("SELECT rows, bytes FROM totals")?
        .query_row([], |row| Ok((unsigned(row, 0)?, unsigned(row, 1)?)))
}

fn delete(connection: &Connection, key: &Fingerprint) -> rusqlite::Result<()> {
    let sql = "DELETE FROM answers WHERE key = ?1";
    connection.prepare_cached(sql)?.execute([key.as_bytes().as_slice()]).map(drop)
}

/// Adds the row unless its key has one.
fn insert(connection: &Connection, row: &Row) -> rusqlite::Result<()> {
    let answer = row.ended.answer.as_ref();
    let values = params![
        row.keyed.key.as_bytes().as_slice(),
        row.keyed.write.as_bytes().as_slice(),
        row.keyed.request.as_str(),
        row.time_ms,
        row.ended.done,
        answer.map(|answer| answer.status.as_u16()),
        answer.map(|answer| head(&answer.headers)),
        answer.map(|answer| answer.body.as_ref()),
        row.weight().cast_signed(),
    ];
    let sql = "INSERT OR IGNORE INTO answers VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9)";
    connection.prepare_cached(sql)?.execute(values).map(drop)
}

fn row_of(key: Fingerprint, row: &rusqlite::Row<'_>) -> rusqlite::Result<Row> {
    let wrong = |at: usize, what: &str| {
        let kind = rusqlite::types::Type::Blob;
        rusqlite::Error::FromSqlConversionFailure(at, kind, format!("{what} of an answer is damaged").into())
    };
    let write: Vec<u8> = row.get(0)?;
    let write = write.try_into().map(Fingerprint::from_bytes).map_err(|_| wrong(0, "the write"))?;
    let request: String = row.get(1)?;
    let request = RequestId::parse(request.as_bytes()).ok_or_else(|| wrong(1, "the request"))?;
    let answer = match row.get::<_, Option<u16>>(4)? {
        None => None,
        Some(status) => Some(Answer {
            status: StatusCode::from_u16(status).map_err(|_| wrong(4, "the status"))?,
            headers: headers(&row.get::<_, Vec<u8>>(5)?).ok_or_else(|| wrong(5, "the head"))?,
            body: Bytes::from(row.get::<_, Vec<u8>>(6)?),
        }),
    };
    let ended = Ended { done: row.get(3)?, answer };
    Ok(Row { keyed: Keyed { key, write, request }, ended, time_ms: row.get(2)? })
}

/// Header fields as lines, `name: value`; a value holds no line break (RFC 9110 section 5.5).
fn head(headers: &HeaderMap) -> Vec<u8> {
    headers.iter().fold(Vec::new(), |mut lines, (name, value)| {
        lines.extend_from_slice(name.as_str().as_bytes());
        lines.extend_from_slice(b": ");
        lines.extend_from_slice(value.as_bytes());
        lines.push(b'\n');
        lines
    })
}

fn headers(lines: &[u8]) -> Option<HeaderMap> {
    let mut headers = HeaderMap::new();
    for line in lines.split(|byte| *byte == b'\n').filter(|line| !line.is_empty()) {
        let colon = line.windows(2).position(|pair| pair == b": ")?;
        let (name, value) = (line.get(..colon)?, line.get(colon + 2..)?);
        headers.append(HeaderName::from_bytes(name).ok()?, HeaderValue::from_bytes(value).ok()?);
    }
    Some(headers)
}

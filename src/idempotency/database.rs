//! The stored answers: one row per key, durable when a change returns. A single connection has the file exclusively,
//! so no part of it is mapped into memory that someone else could truncate.

#![expect(clippy::disallowed_methods, reason = "only the thread `answers` uses the store")]

use std::fs::{self, OpenOptions};
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use rusqlite::{Connection, ErrorCode, OptionalExtension as _, Transaction, params};

use super::database_rows::{insert, row_of, unchecked};
use super::key_table::{KeyRow, KeyRowMeta};
use super::{FirstAnswer, LogMark};
use crate::ids::{Fingerprint, RequestId};
use crate::private_files;

/// Version of the table layout.
const VERSION: i64 = 2;
/// How long to wait while another process has the file.
const BUSY: Duration = Duration::from_millis(250);
/// The caller of rows that name none.
const UNKNOWN: &str = "";

/// `sum` is a checksum over the whole row, so that no flipped bit goes unnoticed. `mark` holds the log position up to
/// which no key is missing, and the number of rows.
const TABLES: &str = "
    CREATE TABLE answers (
        key BLOB PRIMARY KEY, write BLOB NOT NULL, request TEXT NOT NULL, caller TEXT NOT NULL, time_ms INTEGER NOT NULL,
        done INTEGER NOT NULL, status INTEGER, headers BLOB, body BLOB, sum BLOB NOT NULL) WITHOUT ROWID;
    CREATE TABLE mark (one INTEGER PRIMARY KEY CHECK (one = 1), size INTEGER NOT NULL, root BLOB, rows INTEGER NOT NULL);
    INSERT INTO mark VALUES (1, 0, NULL, 0);
    PRAGMA user_version = 2;
";
const ROWS: &str = "SELECT key, write, request, caller, time_ms, done, status, headers, body, sum FROM answers";

/// Why the store cannot be used.
#[derive(Debug, thiserror::Error)]
pub(super) enum DatabaseError {
    /// A newer makegate wrote it. It is left alone.
    #[error("a newer makegate wrote it")]
    Newer,
    /// It is damaged. It is moved away and replaced.
    #[error("{0}")]
    Damaged(String),
    /// It cannot be used now. It is tried again later.
    #[error("{0}")]
    Transient(String),
}

impl From<rusqlite::Error> for DatabaseError {
    fn from(error: rusqlite::Error) -> Self {
        let why = error.to_string();
        let passes = error.sqlite_error().is_some_and(|failure| {
            const SHORT_READ: i32 = 522;
            let passing = matches!(
                failure.code,
                ErrorCode::SystemIoFailure
                    | ErrorCode::DiskFull
                    | ErrorCode::DatabaseBusy
                    | ErrorCode::DatabaseLocked
                    | ErrorCode::CannotOpen
                    | ErrorCode::OutOfMemory
                    | ErrorCode::OperationInterrupted
                    | ErrorCode::ReadOnly
            );
            passing && failure.extended_code != SHORT_READ
        });
        if passes { Self::Transient(why) } else { Self::Damaged(why) }
    }
}

impl From<io::Error> for DatabaseError {
    fn from(error: io::Error) -> Self {
        Self::Transient(error.to_string())
    }
}

fn damaged(why: &str) -> DatabaseError {
    DatabaseError::Damaged(why.to_owned())
}

pub(super) fn path(dir: &Path) -> PathBuf {
    dir.join("answers.sqlite")
}

fn beside(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    name.into()
}

/// Identity, length and modification time of a file, which tell whether someone else changed it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct FileVersion {
    identity: (u64, u64),
    length: u64,
    written: (i64, i64),
}

/// The same for the database file and the journal file that holds its newest changes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct DatabaseVersion([Option<FileVersion>; 2]);

impl DatabaseVersion {
    fn of(path: &Path) -> Self {
        Self([path.to_owned(), beside(path, "-wal")].map(|path| {
            let about = fs::symlink_metadata(path).ok()?;
            let (identity, written) = ((about.dev(), about.ino()), (about.mtime(), about.mtime_nsec()));
            Some(FileVersion { identity, length: about.len(), written })
        }))
    }

    fn is_same_files(&self, other: &Self) -> bool {
        let identity = |stamp: &Self| stamp.0.map(|look| look.map(|look| look.identity));
        identity(self) == identity(other)
    }
}

/// The file's content when it was opened.
#[derive(Debug, Default)]
pub(super) struct DatabaseContents {
    /// The file did not exist or was empty.
    pub(super) is_new: bool,
    pub(super) rows: Vec<KeyRowMeta>,
    pub(super) mark: Option<LogMark>,
}

/// The open database.
#[derive(Debug)]
pub(super) struct AnswerDatabase {
    path: PathBuf,
    connection: Connection,
    stamp: DatabaseVersion,
    rows: u64,
}

impl AnswerDatabase {
    /// Opens the file, creating it if it does not exist, and reads all of it.
    pub(super) fn open(path: &Path) -> Result<(Self, DatabaseContents), DatabaseError> {
        let is_new = check_path(path)?;
        private_files::open(OpenOptions::new().write(true).create(true), path).map_err(open_error)?;
        private_files::open_to_read(path).map_err(open_error)?;
        let mut connection = connect(path)?;
        let version: i64 = connection.pragma_query_value(None, "user_version", |row| row.get(0))?;
        let is_new = match version {
            0 => {
                let tables: i64 = connection.query_row("SELECT count(*) FROM sqlite_schema", [], |row| row.get(0))?;
                if tables > 0 {
                    return Err(damaged("it contains unknown tables"));
                }
                let transaction = connection.transaction()?;
                transaction.execute_batch(TABLES)?;
                transaction.commit()?;
                true
            }
            1 => {
                from_version_1(&mut connection)?;
                is_new
            }
            VERSION => is_new,
            _ if version > VERSION => return Err(DatabaseError::Newer),
            _ => return Err(damaged("it has no version")),
        };
        let contents = DatabaseContents { is_new, ..read(&connection)? };
        let rows = u64::try_from(contents.rows.len()).unwrap_or(u64::MAX);
        Ok((Self { path: path.to_owned(), stamp: DatabaseVersion::of(path), connection, rows }, contents))
    }

    /// Checks that the file is still the one that was opened, as it was left.
    pub(super) fn check_unchanged(&self) -> Result<(), DatabaseError> {
        let now = DatabaseVersion::of(&self.path);
        if now == self.stamp {
            return Ok(());
        }
        let same = now.is_same_files(&self.stamp);
        Err(damaged(if same { "another process wrote to it" } else { "it was deleted or replaced" }))
    }

    /// Inserts rows, replacing earlier ones of the same keys, deletes `gone` keys, and stores the mark if there is
    /// one.
    pub(super) fn change(
        &mut self,
        add: &[Arc<KeyRow>],
        remove: &[Fingerprint],
        mark: Option<LogMark>,
    ) -> Result<(), DatabaseError> {
        self.transact(mark, |transaction, mut rows| {
            for key in remove.iter().chain(add.iter().map(|row| &row.keyed.key)) {
                rows = rows.saturating_sub(delete(transaction, key)?);
            }
            for row in add {
                insert(transaction, row)?;
                rows += 1;
            }
            Ok(rows)
        })
    }

    /// Deletes rows older than this.
    pub(super) fn expire(&mut self, oldest_ms: i64) -> Result<(), DatabaseError> {
        self.transact(None, |transaction, rows| {
            let gone = transaction.execute("DELETE FROM answers WHERE time_ms < ?1", [oldest_ms])?;
            Ok(rows.saturating_sub(u64::try_from(gone).unwrap_or(0)))
        })
    }

    /// Makes one durable change. `change` returns the number of rows after it.
    fn transact(
        &mut self,
        mark: Option<LogMark>,
        change: impl FnOnce(&Transaction<'_>, u64) -> rusqlite::Result<u64>,
    ) -> Result<(), DatabaseError> {
        let rows = self.rows;
        let changed = self.connection.transaction().and_then(|transaction| {
            let rows = change(&transaction, rows)?;
            set_mark(&transaction, mark, rows)?;
            transaction.commit().map(|()| rows)
        });
        // A failed change may have been written in part.
        self.stamp = DatabaseVersion::of(&self.path);
        self.rows = changed?;
        Ok(())
    }

    /// The stored answer to this key, or `None` if only its end is known.
    pub(super) fn answer(&self, key: &Fingerprint, first: &RequestId) -> Result<Option<FirstAnswer>, DatabaseError> {
        let mut find = self.connection.prepare_cached(&format!("{ROWS} WHERE key = ?1"))?;
        let row = find.query_row(params![key.as_bytes().as_slice()], row_of).optional()?;
        let row = row.ok_or_else(|| damaged("a row is missing"))?;
        if row.keyed.request != *first { Err(damaged("a row is another one")) } else { Ok(row.ended.answer) }
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
}

/// Replaces a damaged file with a new one that has every row of `old` (or of the damaged file) that is still intact.
/// Keeps the damaged file under another name, which is returned if there was one.
pub(super) fn replace(path: &Path, old: Option<AnswerDatabase>, now_ms: i64) -> Result<Option<PathBuf>, DatabaseError> {
    let next = beside(path, ".new");
    for suffix in ["", "-wal", "-journal", "-shm"] {
        clear(&beside(&next, suffix))?;
    }
    let old = match old {
        Some(store) => Some(store.connection),
        None if check_path(path).is_ok_and(|is_new| !is_new) => connect(path).ok(),
        None => None,
    };
    let (mut store, _) = AnswerDatabase::open(&next)?;
    if let Some(old) = &old {
        store.copy(old)?;
    }
    // Closing the database removes its journal file.
    drop(old);
    store.connection.close().map_err(|(_, error)| DatabaseError::from(error))?;
    let aside = beside(path, &format!(".damaged-{now_ms}"));
    let kept = match fs::rename(path, &aside) {
        Ok(()) => Some(aside),
        Err(error) if error.kind() == io::ErrorKind::NotFound => None,
        Err(error) => return Err(error.into()),
    };
    for suffix in ["-wal", "-journal", "-shm"] {
        let beside_it = beside(path, suffix);
        if fs::symlink_metadata(&beside_it).is_ok_and(|about| about.is_dir()) {
            fs::rename(&beside_it, beside(&beside_it, &format!(".damaged-{now_ms}")))?;
        } else {
            clear(&beside_it)?;
        }
    }
    fs::rename(&next, path)?;
    Ok(kept)
}

fn clear(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        Ok(()) | Err(_) => Ok(()),
    }
}

impl AnswerDatabase {
    /// Copies every intact row, reading from both ends up to where the file is unreadable.
    fn copy(&mut self, old: &Connection) -> Result<(), DatabaseError> {
        for order in ["ASC", "DESC"] {
            let transaction = self.connection.transaction()?;
            let read = copy_rows(&transaction, old, order);
            transaction.commit()?;
            match read {
                Ok(()) => break,
                Err(DatabaseError::Transient(why)) => return Err(DatabaseError::Transient(why)),
                Err(DatabaseError::Newer | DatabaseError::Damaged(_)) => {}
            }
        }
        self.rows =
            self.connection.query_row("SELECT count(*) FROM answers", [], |row| row.get::<_, i64>(0))?.cast_unsigned();
        self.change(&[], &[], None)
    }
}

fn copy_rows(to: &Connection, old: &Connection, order: &str) -> Result<(), DatabaseError> {
    let mut all = old.prepare(&format!("{ROWS} ORDER BY key {order}"))?;
    let mut rows = all.query([])?;
    while let Some(row) = rows.next()? {
        if let Ok(row) = row_of(row) {
            insert(to, &row)?;
        }
    }
    Ok(())
}

/// Checks what is at the path; returns true if there is no file.
fn check_path(path: &Path) -> Result<bool, DatabaseError> {
    for suffix in ["-wal", "-journal"] {
        let about = fs::symlink_metadata(beside(path, suffix));
        if about.is_ok_and(|about| !about.is_file()) {
            return Err(DatabaseError::Damaged(format!("its {suffix} is not a regular file")));
        }
    }
    match fs::symlink_metadata(path) {
        Ok(about) if about.is_file() => Ok(about.len() == 0),
        Ok(about) => Err(damaged(if about.is_dir() { "it is a directory" } else { "it is not a regular file" })),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(true),
        Err(error) => Err(error.into()),
    }
}

fn open_error(error: io::Error) -> DatabaseError {
    if error.kind() == io::ErrorKind::PermissionDenied {
        return damaged("it cannot be read: permission denied");
    }
    error.into()
}

fn connect(path: &Path) -> rusqlite::Result<Connection> {
    let connection = Connection::open(path)?;
    connection.busy_timeout(BUSY)?;
    connection.execute_batch(
        "PRAGMA locking_mode = EXCLUSIVE; PRAGMA journal_mode = WAL; PRAGMA synchronous = FULL; PRAGMA auto_vacuum = NONE; \
         PRAGMA temp_store = MEMORY;",
    )?;
    Ok(connection)
}

/// Reads everything, so that damage is found at once.
fn read(connection: &Connection) -> Result<DatabaseContents, DatabaseError> {
    let sound: String = connection.query_row("PRAGMA quick_check(1)", [], |row| row.get(0))?;
    if sound != "ok" {
        return Err(DatabaseError::Damaged(sound));
    }
    let (size, root, count): (i64, Option<Vec<u8>>, i64) =
        connection
            .query_row("SELECT size, root, rows FROM mark", [], |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?)))?;
    let root = root.map(|root| root.try_into().map_err(|_| damaged("its mark is unreadable"))).transpose()?;
    let mark = root.map(|root| LogMark { size: size.cast_unsigned(), root });
    let mut all = connection.prepare(ROWS)?;
    let rows = all.query_map([], row_of)?.map(|row| row.map(|row| row.meta())).collect::<Result<Vec<_>, _>>()?;
    if i64::try_from(rows.len()) != Ok(count) {
        return Err(damaged("rows are missing"));
    }
    Ok(DatabaseContents { is_new: false, rows, mark })
}

/// Version 1 had no callers, checksums or mark.
fn from_version_1(connection: &mut Connection) -> Result<(), DatabaseError> {
    let transaction = connection.transaction()?;
    transaction.execute_batch(
        "ALTER TABLE answers RENAME TO old; DROP TRIGGER added; DROP TRIGGER removed; DROP INDEX by_time; DROP TABLE totals;",
    )?;
    transaction.execute_batch(TABLES)?;
    {
        let sql = format!("SELECT key, write, request, '{UNKNOWN}', time_ms, done, status, headers, body FROM old");
        let mut old = transaction.prepare(&sql)?;
        let mut rows = old.query([])?;
        while let Some(row) = rows.next()? {
            insert(&transaction, &unchecked(row)?)?;
        }
    }
    transaction.execute_batch("DROP TABLE old; UPDATE mark SET rows = (SELECT count(*) FROM answers)")?;
    Ok(transaction.commit()?)
}

fn set_mark(transaction: &Transaction<'_>, mark: Option<LogMark>, rows: u64) -> rusqlite::Result<()> {
    let rows = rows.cast_signed();
    match mark {
        Some(LogMark { size, root }) => transaction
            .prepare_cached("UPDATE mark SET size = ?1, root = ?2, rows = ?3")?
            .execute(params![size.cast_signed(), root.as_slice(), rows])
            .map(drop),
        None => transaction.prepare_cached("UPDATE mark SET rows = ?1")?.execute([rows]).map(drop),
    }
}

/// Returns the number of deleted rows.
fn delete(connection: &Connection, key: &Fingerprint) -> rusqlite::Result<u64> {
    let sql = "DELETE FROM answers WHERE key = ?1";
    let gone = connection.prepare_cached(sql)?.execute([key.as_bytes().as_slice()])?;
    Ok(u64::try_from(gone).unwrap_or(0))
}

//! The index: one row a record in `index.sqlite`, made from the segments by a thread of its own. It never holds the log
//! back, and whatever is wrong with it, it is deleted and made again.

use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::time::Duration;

use rusqlite::types::Value;
use rusqlite::{Connection, ErrorCode, OptionalExtension as _, Transaction, params};

use super::log::{Shared, Synced};
use super::seen::Seen;
use super::segment;
use super::tail::{Place, Tail};

/// How far the index may be behind: queries read what it lacks from the segments.
const TICK: Duration = Duration::from_millis(200);
/// Rows in one transaction.
const CHUNK: usize = 8192;
/// Rows that are deleted in one statement.
const DELETE_CHUNK: usize = 20_000;
/// The shortest and the longest wait after a second error in a row.
const BACKOFF: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(60));
/// At the end of the log, the index gets so long to catch up; the next start does the rest.
const CLOSE: Duration = Duration::from_secs(2);
/// The thread yields to whatever answers requests.
const NICE: i32 = 10;

/// The version of the tables.
pub(crate) const VERSION: i64 = 1;

const TABLES: &str = "
    PRAGMA journal_mode = WAL;
    CREATE TABLE names (id INTEGER PRIMARY KEY, name TEXT NOT NULL UNIQUE);
    CREATE TABLE records (
        seq INTEGER PRIMARY KEY, time INTEGER NOT NULL, kind INTEGER NOT NULL, caller INTEGER, operation INTEGER,
        organization INTEGER, status INTEGER, answer INTEGER, request BLOB,
        segment INTEGER NOT NULL, offset INTEGER NOT NULL, length INTEGER NOT NULL);
    CREATE INDEX by_caller ON records (caller) WHERE caller IS NOT NULL;
    CREATE INDEX by_request ON records (request) WHERE request IS NOT NULL;
    CREATE TABLE segments (segment INTEGER PRIMARY KEY, oldest INTEGER NOT NULL, newest INTEGER NOT NULL);
    CREATE TABLE position (one INTEGER PRIMARY KEY CHECK (one = 1), segment INTEGER, offset INTEGER, seq INTEGER);
    INSERT INTO position VALUES (1, 0, 0, 0);
    PRAGMA user_version = 1;
";

/// What can go wrong with the index.
#[derive(Debug)]
pub(crate) enum IndexError {
    /// With its database.
    Sql(rusqlite::Error),
    /// With the segments.
    Io(io::Error),
    /// It is not of this log.
    Foreign(&'static str),
}

impl fmt::Display for IndexError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Sql(error) => error.fmt(f),
            Self::Io(error) => error.fmt(f),
            Self::Foreign(why) => f.write_str(why),
        }
    }
}

impl From<rusqlite::Error> for IndexError {
    fn from(error: rusqlite::Error) -> Self {
        Self::Sql(error)
    }
}

impl From<io::Error> for IndexError {
    fn from(error: io::Error) -> Self {
        Self::Io(error)
    }
}

impl IndexError {
    /// Is the index as good as before, so that waiting is enough?
    fn passes(&self) -> bool {
        match self {
            Self::Sql(error) => matches!(
                error.sqlite_error_code(),
                Some(ErrorCode::DiskFull | ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked)
            ),
            Self::Io(_) => true,
            Self::Foreign(_) => false,
        }
    }
}

/// Where the index of a log's folder is.
pub(crate) fn path(dir: &Path) -> PathBuf {
    dir.join("index.sqlite")
}

/// How a request's id is stored: an id of the gateway's own as its 16 bytes, any other as text.
pub(crate) fn request_value(id: &str) -> Value {
    let uuid = uuid::Uuid::try_parse(id).ok().filter(|uuid| uuid.hyphenated().to_string() == id);
    uuid.map_or_else(|| Value::Text(id.to_owned()), |uuid| Value::Blob(uuid.as_bytes().to_vec()))
}

/// The index thread: follows the log to its end.
pub(super) fn follow(shared: &Shared) {
    #[cfg(target_os = "linux")]
    if let Err(error) = rustix::process::setpriority_process(None, NICE) {
        tracing::debug!(%error, "the audit index keeps its priority");
    }
    let mut backoff = Duration::ZERO;
    while let Err(error) = Index::open(&shared.dir).and_then(|mut index| index.run(shared, &mut backoff)) {
        tracing::warn!(%error, "the audit index fails; it is made again from the log");
        if !error.passes() {
            remove(&shared.dir);
        }
        if !backoff.is_zero() && waits_in_vain(shared, backoff) {
            break;
        }
        backoff = (backoff * 2).clamp(BACKOFF.0, BACKOFF.1);
    }
}

fn has_ended(shared: &Shared) -> bool {
    *shared.ended.borrow() > 0
}

/// Waits; `true`: the log ended meanwhile.
fn waits_in_vain(shared: &Shared, wait: Duration) -> bool {
    let ticks = wait.div_duration_f64(TICK).ceil();
    let mut waited = 0.0;
    while waited < ticks && !has_ended(shared) {
        std::thread::sleep(TICK);
        waited += 1.0;
    }
    has_ended(shared)
}

fn remove(dir: &Path) {
    for suffix in ["", "-wal", "-shm"] {
        let mut name = path(dir).into_os_string();
        name.push(suffix);
        let _it_may_not_be_there = fs::remove_file(name);
    }
}

struct Index {
    connection: Connection,
    names: HashMap<String, i64>,
    tail: Tail,
    seq: u64,
}

impl Index {
    /// The index as it is, or an empty one.
    fn open(dir: &Path) -> Result<Self, IndexError> {
        let path = path(dir);
        OpenOptions::new().write(true).create(true).truncate(false).mode(0o600).open(&path)?;
        let connection = Connection::open(&path)?;
        connection.busy_timeout(Duration::from_secs(5))?;
        let version: i64 = connection.pragma_query_value(None, "user_version", |row| row.get(0))?;
        match version {
            0 => connection.execute_batch(TABLES)?,
            VERSION => {}
            _ => return Err(IndexError::Foreign("another version made it")),
        }
        connection.execute_batch("PRAGMA synchronous = NORMAL; PRAGMA wal_autocheckpoint = 4000;")?;
        let (segment, offset, seq) = position(&connection)?;
        if seq > 0 && !is_of_this_log(&connection, dir, seq)? {
            return Err(IndexError::Foreign("it does not fit the segments"));
        }
        Ok(Self { connection, names: HashMap::new(), tail: Tail::at(dir, segment, offset), seq })
    }

    /// Follows the log until it has ended.
    fn run(&mut self, shared: &Shared, backoff: &mut Duration) -> Result<(), IndexError> {
        let mut oldest = 0;
        loop {
            let ended = has_ended(shared);
            let synced = *shared.synced.borrow();
            if synced.segment > 0 && self.seq > synced.seq {
                return Err(IndexError::Foreign("it is ahead of the log"));
            }
            let until = ended.then(|| shared.clock.now() + CLOSE);
            while self.catch_up(synced)? && until.is_none_or(|until| shared.clock.now() < until) {}
            if ended {
                return Ok(self.connection.execute_batch("PRAGMA wal_checkpoint(TRUNCATE)")?);
            }
            self.forget_deleted(&shared.dir, &mut oldest)?;
            *backoff = Duration::ZERO;
            std::thread::sleep(TICK);
        }
    }

    /// Takes in one chunk; `true`: there is more.
    fn catch_up(&mut self, synced: Synced) -> Result<bool, IndexError> {
        let transaction = self.connection.transaction()?;
        let (mut line, mut count) = (Vec::new(), 0);
        let mut times = BTreeMap::new();
        while count < CHUNK {
            let Some(place) = self.tail.next(&mut line, Some((synced.segment, synced.length)))? else { break };
            if let Some(seen) = Seen::parse(&line) {
                insert(&transaction, &mut self.names, &seen, place)?;
                self.seq = seen.seq;
                let time = seen.time.as_microsecond();
                let (oldest, newest) = times.entry(place.segment).or_insert((time, time));
                (*oldest, *newest) = (time.min(*oldest), time.max(*newest));
            }
            count += 1;
        }
        insert_times(&transaction, &times)?;
        if count > 0 {
            let (segment, offset) = self.tail.position();
            let position = params![segment.cast_signed(), offset.cast_signed(), self.seq.cast_signed()];
            transaction.execute("UPDATE position SET segment = ?1, offset = ?2, seq = ?3", position)?;
        }
        transaction.commit()?;
        Ok(count == CHUNK)
    }

    /// Deletes the rows of segments that retention has taken.
    fn forget_deleted(&mut self, dir: &Path, oldest: &mut u64) -> Result<(), IndexError> {
        let first = segment::list(dir)?.first().copied().unwrap_or(0);
        if first == *oldest {
            return Ok(());
        }
        *oldest = first;
        let sql = format!(
            "DELETE FROM records WHERE seq IN (SELECT seq FROM records WHERE seq < ?1 ORDER BY seq LIMIT {DELETE_CHUNK})"
        );
        while self.connection.execute(&sql, [first.cast_signed()])? == DELETE_CHUNK {}
        self.connection.execute("DELETE FROM segments WHERE segment < ?1", [first.cast_signed()])?;
        Ok(())
    }
}

/// How far an index is: segment, offset, and the newest record.
pub(crate) fn position(connection: &Connection) -> rusqlite::Result<(u64, u64, u64)> {
    connection.query_row("SELECT segment, offset, seq FROM position", [], |row| {
        let number = |at| row.get::<_, i64>(at).map(i64::cast_unsigned);
        Ok((number(0)?, number(1)?, number(2)?))
    })
}

/// Is the newest record of the index where the index says?
fn is_of_this_log(connection: &Connection, dir: &Path, seq: u64) -> Result<bool, IndexError> {
    let sql = "SELECT segment, offset, length FROM records WHERE seq = ?1";
    let place = connection.query_row(sql, [seq.cast_signed()], place_of).optional()?;
    let Some(place) = place else { return Ok(false) };
    Ok(read_line(dir, place)?.is_some_and(|line| Seen::parse(&line).is_some_and(|seen| seen.seq == seq)))
}

/// A row's `segment, offset, length`.
pub(crate) fn place_of(row: &rusqlite::Row<'_>) -> rusqlite::Result<Place> {
    let number = |name| row.get::<_, i64>(name).map(i64::cast_unsigned);
    Ok(Place { segment: number("segment")?, offset: number("offset")?, length: number("length")? })
}

/// The line at this place; `None`: it is not there (any more).
pub(crate) fn read_line(dir: &Path, place: Place) -> io::Result<Option<Vec<u8>>> {
    let file = match File::open(segment::path(dir, place.segment)) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error),
    };
    let size = file.metadata()?.len();
    if place.offset.saturating_add(place.length) > size {
        return Ok(None);
    }
    let mut line = vec![0; usize::try_from(place.length).unwrap_or(0)];
    file.read_exact_at(&mut line, place.offset)?;
    Ok(Some(line))
}

fn insert(
    transaction: &Transaction<'_>,
    names: &mut HashMap<String, i64>,
    seen: &Seen<'_>,
    place: Place,
) -> rusqlite::Result<()> {
    let mut name = |text: Option<&str>| text.map(|text| name_id(transaction, names, text)).transpose();
    let row = params![
        seen.seq.cast_signed(),
        seen.time.as_microsecond(),
        name(Some(&seen.kind))?,
        name(seen.caller.as_deref())?,
        name(seen.operation.as_deref())?,
        seen.organization.map(u64::cast_signed),
        seen.status,
        name(seen.answer.as_deref())?,
        seen.request.as_deref().map(request_value),
        place.segment.cast_signed(),
        place.offset.cast_signed(),
        place.length.cast_signed(),
    ];
    let sql = "INSERT OR REPLACE INTO records VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12)";
    transaction.prepare_cached(sql)?.execute(row).map(drop)
}

/// Between which times a segment's records are.
fn insert_times(transaction: &Transaction<'_>, times: &BTreeMap<u64, (i64, i64)>) -> rusqlite::Result<()> {
    let sql = "INSERT INTO segments VALUES (?1, ?2, ?3) ON CONFLICT (segment) DO UPDATE
        SET oldest = min(oldest, excluded.oldest), newest = max(newest, excluded.newest)";
    for (segment, (oldest, newest)) in times {
        transaction.prepare_cached(sql)?.execute(params![segment.cast_signed(), oldest, newest])?;
    }
    Ok(())
}

fn name_id(transaction: &Transaction<'_>, names: &mut HashMap<String, i64>, text: &str) -> rusqlite::Result<i64> {
    if let Some(id) = names.get(text) {
        return Ok(*id);
    }
    transaction.prepare_cached("INSERT OR IGNORE INTO names (name) VALUES (?1)")?.execute([text])?;
    let id = transaction.prepare_cached("SELECT id FROM names WHERE name = ?1")?.query_row([text], |row| row.get(0))?;
    names.insert(text.to_owned(), id);
    Ok(id)
}

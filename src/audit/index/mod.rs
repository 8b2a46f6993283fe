//! The index in `index.sqlite`: one row per block of records, and the blocks that contain each term. A separate
//! thread builds it from the records that the log's writer hands over, and reads those that it missed from the
//! segments. It never delays the log, and if anything is wrong with it, it is deleted and rebuilt.
//!
//! It uses SQLite's rollback journal. A write-ahead log would be faster, but its shared memory is a mapped file, and
//! a process that reads mapped memory after the file was truncated is killed by SIGBUS. Each commit syncs twice, so
//! commits are rare.
//!
//! A row per record would cost several times as much as the record itself. A query finds blocks by term and time,
//! reads them, and applies the filter to their records, so an extra term does no harm.
//!
//! Beside the blocks it keeps the quota [`ledger`].

#![expect(clippy::disallowed_methods, reason = "only the thread `audit-index` runs this")]

pub(super) mod block;
pub(super) mod ledger;
pub(super) mod position;
pub(super) mod terms;
#[cfg(test)]
mod tests;

use std::collections::VecDeque;
use std::fs::{self, OpenOptions};
use std::hash::{BuildHasher as _, RandomState};
use std::io;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::sync::PoisonError;
use std::thread;
use std::time::{Duration, Instant};

use rusqlite::{Connection, ErrorCode, Transaction};

use self::block::BlockBuilder;
use self::ledger::LedgerCounts;
use self::position::IndexPosition;
use crate::audit::log::shared::LogShared;
use crate::audit::log::unindexed::DurableRecord;
use crate::audit::record::Record;
use crate::audit::segment::forward_reader::{ForwardReader, LinePosition};
use crate::audit::segment::{self, disk};
use crate::private_files;

/// How far the index may lag. Queries read the newest records from the segments.
const TICK: Duration = Duration::from_millis(200);
/// Records per block: how many a query reads at once, and roughly how many it reads that no block covers yet.
const BLOCK: usize = 256;
/// Maximum number of blocks stored in one transaction.
const BLOCKS_MAX: usize = 32;
/// Maximum time between two transactions when fewer blocks are waiting.
const STORE: Duration = Duration::from_secs(2);
/// Lines to read between checks whether the log has ended.
const CHUNK: usize = BLOCKS_MAX * BLOCK;
/// How long the index waits for its readers' locks.
const BUSY: Duration = Duration::from_secs(5);
/// Shortest and longest wait after repeated errors.
const BACKOFF: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(60));
/// How long the index may take to catch up when the log ends. The next start does the rest.
const CLOSE: Duration = Duration::from_secs(2);
/// Niceness of the thread, so that it yields to threads that serve requests.
const NICE: i32 = 10;

/// Version of the table layout.
pub(crate) const VERSION: i64 = 7;

/// `blocks`: for each block, the number of its first record, where its lines are, the times they span (in
/// microseconds), and their terms, sorted. `has`: blocks by term, grouped by [`part`]. `position`: the newest
/// line of the blocks.
///
/// `has` may name blocks that are gone (retention, void numbers) or no longer contain the term; `blocks` is
/// authoritative.
const TABLES: &str = "
    CREATE TABLE blocks (
        first INTEGER PRIMARY KEY, last INTEGER NOT NULL, segment INTEGER NOT NULL, offset INTEGER NOT NULL,
        length INTEGER NOT NULL, oldest INTEGER NOT NULL, newest INTEGER NOT NULL, terms BLOB NOT NULL);
    CREATE TABLE has (part INTEGER, term INTEGER, block INTEGER, PRIMARY KEY (part, term, block)) WITHOUT ROWID;
    CREATE TABLE segments (segment INTEGER PRIMARY KEY, oldest INTEGER NOT NULL, newest INTEGER NOT NULL);
    CREATE TABLE position (
        one INTEGER PRIMARY KEY CHECK (one = 1), segment INTEGER, offset INTEGER, length INTEGER, seq INTEGER, hash BLOB);
    INSERT INTO position VALUES (1, 0, 0, 0, 0, x'');
    PRAGMA user_version = 7;
    COMMIT;
";

/// Records per part, as a power of two.
const PART_BITS: u32 = 16;

/// The part of `has` for a block that begins with this record. With many callers, each term is at a different place
/// in the table; within one part these places are few enough to be written, and deleted, together.
pub(crate) const fn part(first: i64) -> i64 {
    first >> PART_BITS
}

#[derive(Debug, thiserror::Error)]
pub(crate) enum IndexError {
    #[error(transparent)]
    Sql(#[from] rusqlite::Error),
    #[error(transparent)]
    Io(#[from] io::Error),
    /// It belongs to another log.
    #[error("{0}")]
    Foreign(&'static str),
}

impl IndexError {
    /// Whether the index itself is intact, so that retrying later is enough.
    fn is_transient(&self) -> bool {
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

pub(crate) fn path(dir: &Path) -> PathBuf {
    dir.join("index.sqlite")
}

/// The index thread's body: follows the log until it ends.
pub(super) fn follow(shared: &LogShared) {
    #[cfg(target_os = "linux")]
    if let Err(error) = rustix::process::setpriority_process(None, NICE) {
        tracing::debug!(%error, "cannot lower the audit index thread's priority");
    }
    let _first = shared.index.set(thread::current());
    let mut backoff = Duration::ZERO;
    while let Err(error) =
        IndexWriter::open(&shared.dir, shared.clock.now()).and_then(|mut index| index.run(shared, &mut backoff))
    {
        tracing::warn!(%error, "the audit index failed; it will be rebuilt from the log");
        if !error.is_transient() {
            remove(&shared.dir);
        }
        if !backoff.is_zero() && ended_while_waiting(shared, backoff) {
            break;
        }
        backoff = (backoff * 2).clamp(BACKOFF.0, BACKOFF.1);
    }
}

fn has_ended(shared: &LogShared) -> bool {
    *shared.ended.borrow() > 0
}

/// Waits; returns true if the log ended meanwhile.
fn ended_while_waiting(shared: &LogShared, wait: Duration) -> bool {
    let ticks = wait.div_duration_f64(TICK).ceil();
    let mut waited = 0.0;
    while waited < ticks && !has_ended(shared) {
        thread::park_timeout(TICK);
        waited += 1.0;
    }
    has_ended(shared)
}

fn remove(dir: &Path) {
    for suffix in ["", "-journal", "-wal", "-shm"] {
        let mut name = path(dir).into_os_string();
        name.push(suffix);
        if let Err(error) = private_files::remove(Path::new(&name)) {
            tracing::warn!(%error, "cannot remove a file of the audit index");
        }
    }
}

/// Where the SQLite header has the application's id, which is random here and tells one index from another.
const ID_AT: u64 = 68;

fn id_of(path: &Path) -> io::Result<[u8; 4]> {
    let mut id = [0; 4];
    private_files::open_to_read(path)?.read_exact_at(&mut id, ID_AT)?;
    Ok(id)
}

/// Whether SQLite may open this file. It may not if it would follow a symlink or map memory: older versions' indexes
/// use a write-ahead log.
pub(crate) fn is_safe(path: &Path) -> io::Result<bool> {
    /// Offset of the file format version in the SQLite header, and its value for a write-ahead log.
    const VERSION_AT: u64 = 18;
    const WAL: u8 = 2;
    if !fs::symlink_metadata(path)?.is_file() {
        return Ok(false);
    }
    let mut version = [0];
    let read = private_files::open_to_read(path)?.read_at(&mut version, VERSION_AT)?;
    Ok(read == 0 || version != [WAL])
}

struct IndexWriter {
    path: PathBuf,
    /// Identity of the open file, and the id in it.
    identity: ((u64, u64), [u8; 4]),
    connection: Connection,
    tail: ForwardReader,
    /// The current, incomplete block.
    growing: Option<BlockBuilder>,
    /// Complete blocks that are not stored yet, oldest first.
    whole: Vec<BlockBuilder>,
    /// When blocks were last stored.
    stored: Instant,
    segment: u64,
    /// The newest record in any block, stored or not.
    seq: u64,
    /// What was stored of how far the blocks reach.
    position: IndexPosition,
    /// The segments that existed when deleted ones were last forgotten; empty since blocks were stored. Blocks of a
    /// segment may be stored after its deletion, and the newest one is only forgotten when the index knows the next.
    existing: Vec<u64>,
}

impl IndexWriter {
    /// Opens the existing index or creates an empty one.
    fn open(dir: &Path, now: Instant) -> Result<Self, IndexError> {
        let path = path(dir);
        match private_files::open(OpenOptions::new().write(true).create_new(true), &path) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error.into()),
            Ok(_) | Err(_) => {}
        }
        if !is_safe(&path)? {
            return Err(IndexError::Foreign("it is not a regular file, or an earlier makegate made it"));
        }
        let connection = Connection::open(&path)?;
        connection.busy_timeout(BUSY)?;
        connection.execute_batch(
            "PRAGMA journal_mode = TRUNCATE; PRAGMA synchronous = NORMAL; PRAGMA temp_store = MEMORY;",
        )?;
        let version: i64 = connection.pragma_query_value(None, "user_version", |row| row.get(0))?;
        match version {
            0 => {
                let id = RandomState::new().hash_one(now).cast_signed() >> 32;
                connection
                    .execute_batch(&format!("BEGIN; PRAGMA application_id = {id}; {} {TABLES}", ledger::TABLE))?;
            }
            VERSION => {}
            _ => return Err(IndexError::Foreign("another version made it")),
        }
        let position = IndexPosition::read(&connection)?;
        if !position.is_of_log(dir)? || !reaches(&connection, position.seq)? {
            return Err(IndexError::Foreign("it does not match the segments"));
        }
        let (segment, offset) = position.next();
        let tail = ForwardReader::at(dir, segment, offset);
        let identity = (disk::identity(&fs::symlink_metadata(&path)?), id_of(&path)?);
        Ok(Self {
            path,
            identity,
            connection,
            tail,
            growing: None,
            whole: Vec::new(),
            stored: now,
            segment,
            seq: position.seq,
            position,
            existing: Vec::new(),
        })
    }

    /// Follows the log until it ends.
    fn run(&mut self, shared: &LogShared, backoff: &mut Duration) -> Result<(), IndexError> {
        loop {
            let ended = has_ended(shared);
            let synced = *shared.synced.borrow();
            if synced.segment > 0 && self.seq > synced.seq {
                return Err(IndexError::Foreign("it is ahead of the log"));
            }
            let until = ended.then(|| shared.clock.now() + CLOSE);
            let handed_over = shared.unindexed.lock().unwrap_or_else(PoisonError::into_inner).take();
            let end = handed_over.front().map_or((synced.segment, synced.length), |(place, _)| place.start());
            let now = || shared.clock.now();
            while self.catch_up(end, now())? && until.is_none_or(|until| shared.clock.now() < until) {}
            self.add_handed_over(handed_over, now())?;
            if ended {
                self.end_block();
                return self.store(now());
            }
            self.check_file()?;
            self.forget_deleted(&shared.dir)?;
            shared.disk_usage.refresh(&shared.dir, shared.clock.now());
            *backoff = Duration::ZERO;
            thread::park_timeout(TICK);
        }
    }

    /// Checks that the open file is still the one at its path, because readers open the index by path, and that no
    /// other index was written over it, which SQLite might not notice.
    fn check_file(&self) -> Result<(), IndexError> {
        let (identity, id) = self.identity;
        let is_same = fs::symlink_metadata(&self.path).is_ok_and(|about| disk::identity(&about) == identity)
            && id_of(&self.path).is_ok_and(|now| now == id);
        if is_same { Ok(()) } else { Err(IndexError::Foreign("it was deleted or replaced")) }
    }

    /// Reads some lines; returns true if there are more before `end`, a segment and an offset in it.
    fn catch_up(&mut self, end: (u64, u64), now: Instant) -> Result<bool, IndexError> {
        let (mut line, mut count) = (Vec::new(), 0);
        while count < CHUNK {
            let Some(place) = self.tail.next(&mut line, Some(end))? else { break };
            count += 1;
            if let Some(record) = Record::parse(&line) {
                self.add(&record, Some(&line), place, now)?;
            }
        }
        self.store_if_due(now)?;
        Ok(count == CHUNK)
    }

    /// Adds what the writer handed over, as far as it follows what is indexed; the rest will be read.
    fn add_handed_over(&mut self, records: VecDeque<DurableRecord>, now: Instant) -> Result<(), IndexError> {
        for (place, record) in records {
            if self.tail.position() < place.start() {
                self.catch_up(place.start(), now)?; // a new segment's first line
            }
            if self.tail.skip(place) {
                self.add(&record, None, place, now)?;
            }
        }
        self.store_if_due(now)
    }

    /// Adds a record; `line`, if it was read.
    fn add(
        &mut self,
        record: &Record<'_>,
        line: Option<&[u8]>,
        place: LinePosition,
        now: Instant,
    ) -> Result<(), IndexError> {
        if place.segment != self.segment {
            self.begin_segment(place.segment, now)?;
        }
        let growing = self.growing.get_or_insert_with(|| BlockBuilder::new(record, place));
        growing.add(record, line, place);
        if growing.records == BLOCK {
            self.end_block();
        }
        Ok(())
    }

    fn store_if_due(&mut self, now: Instant) -> Result<(), IndexError> {
        if self.whole.len() >= BLOCKS_MAX || now.duration_since(self.stored) >= STORE {
            self.store(now)?;
        }
        Ok(())
    }

    fn end_block(&mut self) {
        if let Some(block) = self.growing.take() {
            self.seq = block.last;
            self.whole.push(block);
        }
    }

    /// Starts a segment, which makes records with its numbers in earlier segments void.
    fn begin_segment(&mut self, segment: u64, now: Instant) -> Result<(), IndexError> {
        self.end_block();
        self.segment = segment;
        if self.seq >= segment {
            self.store(now)?;
            let dir = self.path.parent().unwrap_or(Path::new(""));
            let transaction = self.connection.transaction()?;
            ledger::take_back(&transaction, dir, segment)?;
            make_void(&transaction, segment)?;
            transaction.commit()?;
            self.seq = segment.saturating_sub(1);
        }
        Ok(())
    }

    /// Stores the complete blocks. Terms are sorted in table order: otherwise, with many callers, each insertion
    /// would touch a different page.
    fn store(&mut self, now: Instant) -> Result<(), IndexError> {
        self.stored = now;
        let Some(newest) = self.whole.last() else { return Ok(()) };
        self.check_file()?;
        let dir = self.path.parent().unwrap_or(Path::new(""));
        let position = IndexPosition::of(dir, newest.newest_line, newest.last)?;
        let (transaction, mut has) = (self.connection.transaction()?, Vec::new());
        if IndexPosition::read(&transaction)? != self.position {
            return Err(IndexError::Foreign("something else wrote to it"));
        }
        position.store(&transaction)?;
        let mut counts = LedgerCounts::default();
        for block in &self.whole {
            block.store(&transaction, &mut has)?;
            block.ledger.iter().for_each(|(key, sums)| *counts.entry(key.clone()).or_default() += *sums);
        }
        ledger::store(&transaction, &counts, self.seq)?;
        has.sort_unstable();
        {
            let mut insert = transaction.prepare_cached("INSERT OR IGNORE INTO has VALUES (?1, ?2, ?3)")?;
            has.into_iter().try_for_each(|(term, block)| insert.execute([part(block), term, block]).map(drop))?;
        }
        transaction.commit()?;
        self.position = position;
        self.whole.clear();
        self.existing.clear();
        Ok(())
    }

    /// Forgets the segments that retention has deleted. These are not always the oldest, because a segment with an
    /// open write is kept.
    fn forget_deleted(&mut self, dir: &Path) -> Result<(), IndexError> {
        let now = segment::list(dir)?;
        if now == self.existing {
            return Ok(());
        }
        let known: Vec<i64> = {
            let mut known = self.connection.prepare_cached("SELECT segment FROM segments ORDER BY segment")?;
            known.query_map((), |row| row.get(0))?.collect::<Result<_, _>>()?
        };
        let is_gone = |segment: i64| now.binary_search(&segment.cast_unsigned()).is_err();
        if known.iter().any(|segment| is_gone(*segment)) {
            let transaction = self.connection.transaction()?;
            for pair in known.windows(2) {
                if let [segment, next] = *pair
                    && is_gone(segment)
                {
                    forget(&transaction, segment, next)?;
                }
            }
            transaction.commit()?;
        }
        self.existing = now;
        Ok(())
    }
}

/// Deletes the blocks of one segment, and the parts of `has` that have no blocks left.
fn forget(transaction: &Transaction<'_>, segment: i64, next: i64) -> rusqlite::Result<()> {
    transaction.prepare_cached("DELETE FROM blocks WHERE first >= ?1 AND first < ?2")?.execute([segment, next])?;
    transaction.prepare_cached("DELETE FROM segments WHERE segment = ?1")?.execute([segment])?;
    for gone in part(segment)..=part(next - 1) {
        let sql = "DELETE FROM has WHERE part = ?1
            AND NOT EXISTS (SELECT 1 FROM blocks WHERE first >= ?2 AND first < ?3)";
        transaction.prepare_cached(sql)?.execute([gone, gone << PART_BITS, (gone + 1) << PART_BITS])?;
    }
    Ok(())
}

/// Voids everything indexed under this number or a higher one.
fn make_void(transaction: &Transaction<'_>, segment: u64) -> rusqlite::Result<()> {
    transaction.execute("DELETE FROM blocks WHERE first >= ?1", [segment.cast_signed()])?;
    let sql = "UPDATE blocks SET last = ?1 - 1 WHERE first = (SELECT max(first) FROM blocks) AND last >= ?1";
    transaction.execute(sql, [segment.cast_signed()]).map(drop)
}

/// Whether the blocks end with this record.
fn reaches(connection: &Connection, seq: u64) -> rusqlite::Result<bool> {
    let sql = "SELECT coalesce((SELECT last FROM blocks ORDER BY first DESC LIMIT 1), 0)";
    connection.query_row(sql, (), |row| row.get::<_, i64>(0)).map(|last| last.cast_unsigned() == seq)
}

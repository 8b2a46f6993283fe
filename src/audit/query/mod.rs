//! Reads the log, with or without a running gateway: pages of records, newest first, or all of them, oldest first.
//!
//! The index tells which blocks of the segments to read. What it lacks, or everything if there is no index, is read
//! backward.

#![expect(clippy::disallowed_methods, reason = "by `disk::wait`, and by commands")]

pub(super) mod all_replicas;
pub(super) mod filter;
pub(super) mod follow;
pub(super) mod ledger;
mod other_filter;

use std::collections::BTreeSet;
use std::io;
use std::ops::RangeInclusive;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use jiff::Timestamp;
use memchr::memmem::Finder;
use rusqlite::{Connection, OpenFlags};
use serde_json::value::RawValue;

use self::filter::Filter;
use crate::audit::index::position::IndexPosition;
use crate::audit::index::terms::{self, Term};
use crate::audit::index::{self, block::IndexBlock};
use crate::audit::log::AuditLog;
use crate::audit::record::Record;
use crate::audit::segment::forward_reader::ForwardReader;
use crate::audit::segment::reverse_reader::ReverseReader;
use crate::audit::segment::{self, disk};
use crate::clock::Clock;
use crate::fair_semaphore::FairPermit;

/// Maximum duration of a query of the running gateway.
const QUERY_MAX: Duration = Duration::from_secs(5);
/// The query checks the clock between two reads. If a single read exceeds the maximum by more than this, the disk
/// hangs.
const DISK_MAX: Duration = Duration::from_secs(1);
/// How long to wait for the index while it is being written. After that the segments are read without it.
const BUSY: Duration = Duration::from_millis(500);
/// SQLite steps between checks of the clock.
const STEPS: i32 = 10_000;

/// A page of records, newest first.
#[derive(Clone, Debug, Default)]
pub struct RecordPage {
    /// The records' lines, as stored.
    pub records: Vec<Box<RawValue>>,
    /// The `after` of the next page, if there is one.
    pub next: Option<u64>,
}

/// Why a query failed.
#[derive(Debug, thiserror::Error)]
pub enum QueryError {
    /// It took too long.
    #[error("the query took longer than 5 s: narrow it with since and until, caller, or request")]
    TooLong,
    /// Too many other queries are running.
    #[error("too many queries are running: try again later")]
    Busy,
    /// The disk does not answer.
    #[error("the log's disk is not responding: try again later")]
    DiskSlow,
    /// The index lacks too much of the log.
    #[error("the log's index is being built and lacks too many records: try again in a minute")]
    Indexing,
    /// The segments cannot be read.
    #[error("cannot read the log: {0}")]
    Io(io::Error),
    /// The database that the replicas share does not answer, or refuses the query.
    #[error("the replicas' records cannot be read: {0}")]
    Database(Box<str>),
}

impl From<io::Error> for QueryError {
    fn from(error: io::Error) -> Self {
        if error.kind() == io::ErrorKind::TimedOut { Self::DiskSlow } else { Self::Io(error) }
    }
}

impl AuditLog {
    /// Queries one page for `asker`: an operator's name, or empty for the gateway itself. The page includes everything
    /// recorded before an [`AuditLog::flush`].
    ///
    /// # Errors
    /// [`QueryError`].
    pub async fn query(&self, asker: &Arc<str>, filter: Filter) -> Result<RecordPage, QueryError> {
        self.query_as(asker, filter, |page| page).await
    }

    /// Like [`AuditLog::query`], but returns what `show` makes of the page. `show` runs where the query runs, away
    /// from the threads that serve callers, because a page may have thousands of records.
    ///
    /// # Errors
    /// [`QueryError`].
    pub async fn query_as<T: Send + 'static>(
        &self,
        asker: &Arc<str>,
        filter: Filter,
        show: impl FnOnce(RecordPage) -> T + Send + 'static,
    ) -> Result<T, QueryError> {
        self.read_files(asker, move |dir, deadline| page(dir, &filter, Some(deadline)).map(show)).await
    }

    /// Reads the log's folder on a thread of its own, once it is this asker's turn to do so.
    async fn read_files<T: Send + 'static>(
        &self,
        asker: &Arc<str>,
        read: impl FnOnce(&Path, &QueryDeadline) -> Result<T, QueryError> + Send + 'static,
    ) -> Result<T, QueryError> {
        let turn = self.query_turn(asker).await?;
        let (dir, clock) = (self.dir().to_owned(), self.shared.clock.clone());
        let end = clock.now() + QUERY_MAX;
        let found = disk::run_blocking(QUERY_MAX + DISK_MAX, move || {
            let _turn = turn;
            read(&dir, &QueryDeadline { clock, end })
        });
        found.await?
    }

    /// Waits for one of a few permits to read the files. Those who ask share them fairly.
    ///
    /// # Errors
    /// [`QueryError::Busy`] if none was available in time.
    pub(super) async fn query_turn(&self, asker: &Arc<str>) -> Result<FairPermit, QueryError> {
        tokio::time::timeout(QUERY_MAX, self.queries.acquire(asker)).await.map_err(|_| QueryError::Busy)
    }
}

/// Queries one page from a log's folder, whether or not a gateway is running, without a time limit.
///
/// # Errors
/// [`QueryError::Io`].
pub fn query_files(dir: &Path, filter: &Filter) -> Result<RecordPage, QueryError> {
    page(dir, filter, None)
}

/// When a query must end.
#[derive(Clone)]
struct QueryDeadline {
    clock: Clock,
    end: Instant,
}

impl QueryDeadline {
    fn is_over(&self) -> bool {
        self.clock.now() >= self.end
    }
}

fn page(dir: &Path, filter: &Filter, deadline: Option<&QueryDeadline>) -> Result<RecordPage, QueryError> {
    let mut search = PageSearch {
        dir,
        filter,
        deadline,
        below: filter.below(),
        wanted: filter.limit + 1,
        needle: filter.needle(),
        lines: Vec::new(),
    };
    let index = IndexReader::open(dir, deadline);
    search.scan(index.as_ref().map_or(0, |index| index.seq).max(filter.floor()))?;
    if let Some(index) = index.filter(|_| !search.is_done()) {
        match search.blocks(&index) {
            Ok(()) => {}
            Err(IndexFails::Log(error)) => return Err(error),
            Err(IndexFails::Index) if deadline.is_some_and(QueryDeadline::is_over) => return Err(QueryError::TooLong),
            Err(IndexFails::Index) => search.scan(filter.floor())?,
        }
    }
    Ok(page_of(search.lines, filter.limit))
}

/// A page under construction.
struct PageSearch<'q> {
    dir: &'q Path,
    filter: &'q Filter,
    deadline: Option<&'q QueryDeadline>,
    /// Only records below this number are still to be read.
    below: u64,
    wanted: usize,
    /// Text that every matching line contains; it rules out most lines of a block before they are parsed.
    needle: Option<Finder<'static>>,
    lines: Vec<Vec<u8>>,
}

enum IndexFails {
    /// The index cannot be read, but the segments can be read without it.
    Index,
    /// The log itself cannot be read, or time is up.
    Log(QueryError),
}

impl From<rusqlite::Error> for IndexFails {
    fn from(_: rusqlite::Error) -> Self {
        Self::Index
    }
}

impl PageSearch<'_> {
    const fn is_done(&self) -> bool {
        self.lines.len() >= self.wanted
    }

    fn check_deadline(&self) -> Result<(), QueryError> {
        if self.deadline.is_some_and(QueryDeadline::is_over) { Err(QueryError::TooLong) } else { Ok(()) }
    }

    /// Reads backward through everything above `floor`.
    fn scan(&mut self, floor: u64) -> Result<(), QueryError> {
        if self.below.saturating_sub(1) <= floor {
            return Ok(());
        }
        let mut backwards = ReverseReader::below(self.dir, self.below)?;
        while !self.is_done() {
            self.check_deadline()?;
            let Some(line) = backwards.newest()? else { break };
            let Some(seen) = Record::parse(&line) else { continue };
            if seen.seq <= floor {
                break;
            }
            if self.filter.matches(&seen, &line) {
                self.lines.push(line);
            }
        }
        self.below = self.below.min(floor + 1);
        Ok(())
    }

    /// Reads the blocks that the index finds.
    fn blocks(&mut self, index: &IndexReader) -> Result<(), IndexFails> {
        let wanted = terms::wanted(self.filter);
        let (from, to) = index.range(self.filter)?;
        let range = (from, clamp(self.below).min(to));
        if let Some(request) = &self.filter.request {
            let (term, times) = terms::of_request(request);
            let mut blocks = Vec::new();
            let mut keep = |block| {
                blocks.push(block);
                Ok(true)
            };
            index.find(Some(term), range, None, &mut keep)?;
            if let Some(times) = times {
                index.find(None, range, Some(times), &mut keep)?;
            }
            blocks.sort_unstable_by_key(|block: &IndexBlock| std::cmp::Reverse(block.first));
            return blocks.iter().try_for_each(|block| self.block(block, &wanted).map(drop));
        }
        let since = self.filter.since.map_or(i64::MIN, Timestamp::as_microsecond);
        let until = self.filter.until.map_or(i64::MAX, |until| until.as_microsecond().saturating_sub(1));
        index.find(wanted.first().copied(), range, Some(since..=until), &mut |block| self.block(&block, &wanted))
    }

    /// Reads a block, newest record first; returns true if more may be wanted.
    fn block(&mut self, block: &IndexBlock, wanted: &[Term]) -> Result<bool, IndexFails> {
        self.check_deadline().map_err(IndexFails::Log)?;
        if block.last <= self.filter.floor() {
            return Ok(false);
        }
        if self.is_done() || !wanted.iter().all(|term| block.has(*term)) {
            return Ok(!self.is_done());
        }
        // Missing blocks have been deleted by retention.
        let lines = block.read(self.dir).map_err(|error| IndexFails::Log(error.into()))?.unwrap_or_default();
        let may_match = |line: &&[u8]| self.needle.as_ref().is_none_or(|needle| needle.find(line).is_some());
        for line in lines.rsplit(|byte| *byte == b'\n').filter(may_match) {
            let seen = Record::parse(line).filter(|seen| seen.seq <= block.last && seen.seq < self.below);
            let Some(seen) = seen else { continue };
            self.below = seen.seq;
            if self.filter.matches(&seen, line) {
                self.lines.push(line.to_vec());
            }
            if self.is_done() {
                return Ok(false);
            }
        }
        self.below = self.below.min(block.first);
        Ok(true)
    }
}

fn page_of(lines: Vec<Vec<u8>>, limit: usize) -> RecordPage {
    let more = lines.len() > limit;
    let shown = lines.get(..limit).unwrap_or(&lines);
    let last = shown.last().and_then(|line| Record::parse(line).map(|seen| seen.seq));
    let raw = |line: &Vec<u8>| RawValue::from_string(String::from_utf8_lossy(line).into_owned()).ok();
    RecordPage { records: shown.iter().filter_map(raw).collect(), next: last.filter(|_| more) }
}

/// A reader of the index.
struct IndexReader {
    connection: Connection,
    seq: u64,
}

impl IndexReader {
    /// Returns `None` if there is no usable index.
    fn open(dir: &Path, deadline: Option<&QueryDeadline>) -> Option<Self> {
        let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX;
        let path = index::path(dir);
        index::is_safe(&path).ok().filter(|is_safe| *is_safe)?;
        let mut connection = Connection::open_with_flags(path, flags).ok()?;
        connection.busy_timeout(BUSY).ok()?;
        // Not in files: a confined process makes none outside of its folder.
        connection.pragma_update(None, "temp_store", "MEMORY").ok()?;
        let version: i64 = connection.pragma_query_value(None, "user_version", |row| row.get(0)).ok()?;
        if let Some(deadline) = deadline.cloned() {
            connection.progress_handler(STEPS, Some(move || deadline.is_over())).ok()?;
        }
        if version != index::VERSION {
            return None;
        }
        let position = IndexPosition::read(&connection).ok()?;
        // The index of another log may have been put in its place, and no gateway need be running that would notice.
        position.is_of_log(dir).ok().filter(|is_of_log| *is_of_log)?;
        let seq = position.seq;
        let newest = ReverseReader::below(dir, u64::MAX).ok()?.newest().ok()??;
        Record::parse(&newest).filter(|newest| newest.seq >= seq).map(|_| Self { connection, seq })
    }

    /// Passes the blocks in this range that have the term, or records between these times (in microseconds), to
    /// `take`, newest first, until it returns false.
    fn find(
        &self,
        term: Option<Term>,
        range: (i64, i64),
        times: Option<RangeInclusive<i64>>,
        take: &mut dyn FnMut(IndexBlock) -> Result<bool, IndexFails>,
    ) -> Result<(), IndexFails> {
        let (rows, number, parts) = match term {
            Some(_) => ("has JOIN blocks ON first = block WHERE part = ?1 AND term = ?2", "block", self.parts(range)?),
            None => ("blocks WHERE ?1 = 0 AND ?2 IS NULL", "first", 0..=0),
        };
        let sql = format!(
            "SELECT first, last, segment, offset, length, terms FROM {rows}
            AND {number} >= ?3 AND {number} < ?4 AND newest >= ?5 AND oldest <= ?6 ORDER BY {number} DESC"
        );
        let mut statement = self.connection.prepare(&sql)?;
        let (since, until) = times.map_or((i64::MIN, i64::MAX), RangeInclusive::into_inner);
        for part in parts.rev() {
            let mut rows = statement.query((part, term, range.0, range.1, since, until))?;
            while let Some(row) = rows.next()? {
                if !take(IndexBlock::of(row)?)? {
                    return Ok(());
                }
            }
        }
        Ok(())
    }

    /// The parts of `has` that can hold blocks of this range.
    fn parts(&self, (from, below): (i64, i64)) -> rusqlite::Result<RangeInclusive<i64>> {
        let sql = "SELECT (SELECT min(first) FROM blocks), (SELECT max(first) FROM blocks)";
        let edges = self.connection.query_row(sql, (), |row| Ok(row.get(0).ok().zip(row.get(1).ok())))?;
        let (first, last): (i64, i64) = edges.unwrap_or((i64::MAX, 0));
        Ok(index::part(first.max(from))..=index::part(last.min(below)))
    }

    /// The range of records that can have matching times. Times are not ordered (clocks are set, and a record carries
    /// its request's time), but each segment's oldest and newest times are known.
    fn range(&self, filter: &Filter) -> rusqlite::Result<(i64, i64)> {
        let from = "SELECT min(segment) FROM segments WHERE newest >= ?1";
        let to = "SELECT min(segment) FROM segments WHERE segment > coalesce(
            (SELECT max(segment) FROM segments WHERE oldest < ?1), -1)";
        let edge = |sql, time: Option<Timestamp>| match time {
            Some(time) => self.connection.query_row(sql, [time.as_microsecond()], |row| row.get::<_, Option<i64>>(0)),
            None => Ok(None),
        };
        let nothing = if filter.since.is_some() { i64::MAX } else { 0 };
        Ok((edge(from, filter.since)?.unwrap_or(nothing), edge(to, filter.until)?.unwrap_or(i64::MAX)))
    }

    /// The completely indexed segments that have no record of the requested times.
    fn outside(&self, filter: &Filter) -> rusqlite::Result<BTreeSet<u64>> {
        let reading = IndexPosition::read(&self.connection)?.line.segment;
        let since = filter.since.map_or(i64::MIN, Timestamp::as_microsecond);
        let until = filter.until.map_or(i64::MAX, Timestamp::as_microsecond);
        let sql = "SELECT segment FROM segments WHERE segment < ?1 AND (newest < ?2 OR oldest >= ?3)";
        let mut statement = self.connection.prepare(sql)?;
        let rows = statement.query_map([reading.cast_signed(), since, until], |row| row.get::<_, i64>(0))?;
        rows.map(|row| row.map(i64::cast_unsigned)).collect()
    }
}

fn clamp(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}

/// Passes every matching record in the folder to `sink`, oldest first, ignoring limit and cursor.
///
/// # Errors
/// The first error from the segments or the sink, which ends the export.
pub fn export(dir: &Path, filter: &Filter, sink: &mut dyn FnMut(&str) -> io::Result<()>) -> io::Result<()> {
    let outside = IndexReader::open(dir, None).and_then(|index| index.outside(filter).ok()).unwrap_or_default();
    let mut tail = ForwardReader::at(dir, 0, 0);
    let (mut line, mut segment, mut void_from) = (Vec::new(), 0, 0);
    while let Some(place) = tail.next(&mut line, None)? {
        if place.segment != segment {
            segment = place.segment;
            void_from = segment::after(dir, segment)?.unwrap_or(u64::MAX);
            if outside.contains(&segment) {
                tail = ForwardReader::at(dir, void_from, 0);
                continue;
            }
        }
        let seen = Record::parse(&line).filter(|seen| seen.seq < void_from);
        if seen.is_some_and(|seen| filter.matches(&seen, &line)) {
            sink(&String::from_utf8_lossy(&line))?;
        }
    }
    Ok(())
}

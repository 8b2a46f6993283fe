//! Reading the log: pages of records, newest first, and all of them, oldest first. Beside a running gateway or without one.
//!
//! The index answers for what it has; the records that it lacks, or all when there is no index, are read from the segments.

use std::collections::BTreeSet;
use std::fmt;
use std::io;
use std::path::Path;
use std::time::{Duration, Instant};

use jiff::Timestamp;
use rusqlite::types::Value;
use rusqlite::{Connection, OpenFlags, params_from_iter};
use serde_json::value::RawValue;

use super::backwards::Backwards;
use super::filter::Filter;
use super::index;
use super::log::Log;
use super::record::{Answer, Kind};
use super::seen::Seen;
use super::segment;
use super::tail::{Place, Tail};
use crate::clock::Clock;
use crate::words::RequestId;

/// A query of the running gateway ends after this.
const QUERY_MAX: Duration = Duration::from_secs(5);
/// Steps of `SQLite` between two looks at the clock.
const STEPS: i32 = 10_000;

/// Some records, newest first.
#[derive(Clone, Debug, Default)]
pub struct Page {
    /// Their lines, as they are stored.
    pub records: Vec<Box<RawValue>>,
    /// The `after` of the next page, if there is one.
    pub next: Option<u64>,
}

/// Why a query has no answer.
#[derive(Debug)]
pub enum QueryError {
    /// It took too long.
    TooLong,
    /// Too many others are running.
    Busy,
    /// The segments cannot be read.
    Io(io::Error),
}

impl fmt::Display for QueryError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::TooLong => {
                f.write_str("the query took longer than 5 s: narrow it by since and until, by caller, or by request")
            }
            Self::Busy => f.write_str("other queries are running: try again when they are done"),
            Self::Io(error) => write!(f, "the log cannot be read: {error}"),
        }
    }
}

impl std::error::Error for QueryError {}

impl From<io::Error> for QueryError {
    fn from(error: io::Error) -> Self {
        Self::Io(error)
    }
}

impl Log {
    /// One page of what the filter wants. What was recorded before [`Log::flush`] is in it.
    ///
    /// # Errors
    /// [`QueryError`].
    pub async fn query(&self, filter: Filter) -> Result<Page, QueryError> {
        let turn = tokio::time::timeout(QUERY_MAX, self.queries.acquire()).await;
        let Ok(Ok(_turn)) = turn else { return Err(QueryError::Busy) };
        let (dir, clock) = (self.dir().to_owned(), self.shared.clock.clone());
        let end = clock.now() + QUERY_MAX;
        let work = tokio::task::spawn_blocking(move || page(&dir, &filter, Some(&Deadline { clock, end })));
        work.await.unwrap_or_else(|error| Err(QueryError::Io(io::Error::other(error))))
    }
}

/// The same from a log's folder, of a gateway that may be running or not, for as long as it takes.
///
/// # Errors
/// [`QueryError::Io`].
pub fn query_files(dir: &Path, filter: &Filter) -> Result<Page, QueryError> {
    page(dir, filter, None)
}

/// When a query is to end.
#[derive(Clone)]
struct Deadline {
    clock: Clock,
    end: Instant,
}

impl Deadline {
    fn is_over(&self) -> bool {
        self.clock.now() >= self.end
    }
}

fn page(dir: &Path, filter: &Filter, deadline: Option<&Deadline>) -> Result<Page, QueryError> {
    let wanted = filter.limit + 1;
    let mut index = Index::open(dir, deadline);
    let mut lines = Vec::new();
    let mut below = filter.after.unwrap_or(u64::MAX);
    let indexed = index.as_ref().map_or(0, |index| index.seq);
    scan(dir, filter, &mut below, indexed, (&mut lines, wanted), deadline)?;
    if lines.len() < wanted && indexed > 0 {
        let found = index.take().and_then(|index| index.find(filter, below, wanted - lines.len()).ok());
        match found {
            Some(places) => read_lines(dir, &places, &mut lines)?,
            None if deadline.is_some_and(Deadline::is_over) => return Err(QueryError::TooLong),
            None => scan(dir, filter, &mut below, 0, (&mut lines, wanted), deadline)?,
        }
    }
    Ok(page_of(lines, filter.limit))
}

/// Collects from the segments what is below `below` and above `floor`. What is left then is below `below`.
fn scan(
    dir: &Path,
    filter: &Filter,
    below: &mut u64,
    floor: u64,
    (lines, wanted): (&mut Vec<Vec<u8>>, usize),
    deadline: Option<&Deadline>,
) -> Result<(), QueryError> {
    if below.saturating_sub(1) <= floor {
        return Ok(());
    }
    let mut backwards = Backwards::below(dir, *below)?;
    while lines.len() < wanted {
        if deadline.is_some_and(Deadline::is_over) {
            return Err(QueryError::TooLong);
        }
        let Some(line) = backwards.newest()? else { break };
        let Some(seen) = Seen::parse(&line) else { continue };
        if seen.seq <= floor {
            break;
        }
        if filter.matches(&seen) {
            lines.push(line);
        }
    }
    *below = (*below).min(floor + 1);
    Ok(())
}

fn read_lines(dir: &Path, places: &[Place], lines: &mut Vec<Vec<u8>>) -> io::Result<()> {
    for place in places {
        // What is not there any more has been taken by retention.
        lines.extend(index::read_line(dir, *place)?);
    }
    Ok(())
}

fn page_of(lines: Vec<Vec<u8>>, limit: usize) -> Page {
    let more = lines.len() > limit;
    let shown = lines.get(..limit).unwrap_or(&lines);
    let last = shown.last().and_then(|line| Seen::parse(line).map(|seen| seen.seq));
    let raw = |line: &Vec<u8>| RawValue::from_string(String::from_utf8_lossy(line).into_owned()).ok();
    Page { records: shown.iter().filter_map(raw).collect(), next: last.filter(|_| more) }
}

/// The index, for reading.
struct Index {
    connection: Connection,
    seq: u64,
}

impl Index {
    /// `None`: there is no index that can be used.
    fn open(dir: &Path, deadline: Option<&Deadline>) -> Option<Self> {
        let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX;
        let mut connection = Connection::open_with_flags(index::path(dir), flags).ok()?;
        let version: i64 = connection.pragma_query_value(None, "user_version", |row| row.get(0)).ok()?;
        if let Some(deadline) = deadline.cloned() {
            connection.progress_handler(STEPS, Some(move || deadline.is_over())).ok()?;
        }
        let (_, _, seq) = index::position(&connection).ok().filter(|_| version == index::VERSION)?;
        let newest = Backwards::below(dir, u64::MAX).ok()?.newest().ok()??;
        Seen::parse(&newest).filter(|newest| newest.seq >= seq).map(|_| Self { connection, seq })
    }

    /// Where the wanted records below this number are, newest first.
    fn find(&self, filter: &Filter, below: u64, limit: usize) -> rusqlite::Result<Vec<Place>> {
        let (from, to) = self.range(filter)?;
        let mut wanted = Wanted { sql: String::new(), values: Vec::new() };
        wanted.and("seq < ?", clamp(below).min(to));
        wanted.and("seq >= ?", from);
        wanted.names(filter);
        wanted.rest(filter);
        wanted.values.push(Value::Integer(i64::try_from(limit).unwrap_or(i64::MAX)));
        let sql = format!("SELECT segment, offset, length FROM records WHERE {} ORDER BY seq DESC LIMIT ?", wanted.sql);
        let mut statement = self.connection.prepare(&sql)?;
        statement.query_map(params_from_iter(wanted.values), index::place_of)?.collect()
    }

    /// Between which records those of the wanted times are. Times are in no order (clocks are set, and a record is as
    /// old as its request), but each segment's oldest and newest are known.
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

    /// The segments that have no record of the wanted times, of those that it knows whole.
    fn outside(&self, filter: &Filter) -> rusqlite::Result<BTreeSet<u64>> {
        let (reading, _, _) = index::position(&self.connection)?;
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

/// A condition that grows.
struct Wanted {
    sql: String,
    values: Vec<Value>,
}

impl Wanted {
    fn and(&mut self, condition: &str, value: impl Into<Value>) {
        if !self.sql.is_empty() {
            self.sql.push_str(" AND ");
        }
        self.sql.push_str(condition);
        self.values.push(value.into());
    }

    fn names(&mut self, filter: &Filter) {
        let named = [
            ("caller", filter.caller.as_deref()),
            ("operation", filter.operation.as_deref()),
            ("answer", filter.answer.map(Answer::as_str)),
            ("kind", filter.kind.map(Kind::as_str)),
        ];
        for (column, name) in named {
            if let Some(name) = name {
                self.and(&format!("{column} = (SELECT id FROM names WHERE name = ?)"), name.to_owned());
            }
        }
    }

    fn rest(&mut self, filter: &Filter) {
        if let Some(organization) = filter.organization {
            self.and("organization = ?", organization.cast_signed());
        }
        if let Some((from, to)) = filter.status.map(super::StatusFilter::range) {
            self.and("status >= ?", i64::from(from));
            self.and("status <= ?", i64::from(to));
        }
        if let Some(request) = filter.request.as_ref().map(RequestId::as_str) {
            self.and("request = ?", index::request_value(request));
        }
        if let Some(since) = filter.since {
            self.and("time >= ?", since.as_microsecond());
        }
        if let Some(until) = filter.until {
            self.and("time < ?", until.as_microsecond());
        }
    }
}

/// Hands every record of the folder that the filter wants to `sink`, oldest first; its limit and cursor do not count.
///
/// # Errors
/// Those of the segments, and those of the sink, which end it.
pub fn export(dir: &Path, filter: &Filter, sink: &mut dyn FnMut(&str) -> io::Result<()>) -> io::Result<()> {
    let outside = Index::open(dir, None).and_then(|index| index.outside(filter).ok()).unwrap_or_default();
    let mut tail = Tail::at(dir, 0, 0);
    let (mut line, mut segment, mut void_from) = (Vec::new(), 0, u64::MAX);
    while let Some(place) = tail.next(&mut line, None)? {
        if place.segment != segment {
            segment = place.segment;
            void_from = segment::after(dir, segment)?.unwrap_or(u64::MAX);
            if outside.contains(&segment) {
                tail = Tail::at(dir, void_from, 0);
                continue;
            }
        }
        let seen = Seen::parse(&line).filter(|seen| seen.seq < void_from);
        if seen.is_some_and(|seen| filter.matches(&seen)) {
            sink(&String::from_utf8_lossy(&line))?;
        }
    }
    Ok(())
}

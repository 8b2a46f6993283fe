//! Reads the records of all replicas from the table that they share. SQL narrows by the columns; the same filter as for the log's own files
//! decides on each line, so both mean the same.

use std::sync::Arc;

use jiff::{SignedDuration, Timestamp};
use serde::Serialize;
use serde_json::value::RawValue;
use tokio_postgres::error::SqlState;

use super::filter::{BadFilter, Filter, write};
use super::ledger::{LedgerPage, LedgerQuery};
use super::{QUERY_MAX, QueryError};
use crate::audit::log::AuditLog;
use crate::audit::record::{Kind, Record};
use crate::audit::segment::disk;
use crate::config::is_replica_name;
use crate::replicas::engine::EngineError;
use crate::replicas::records::{FoundRecord, RecordConditions, RecordPlace};
use crate::replicas::{Replicas, shipping};
use crate::vocabulary::Answer;

/// The first span of time that is searched for records of any caller; each further one is so many times as long.
const SPAN: SignedDuration = SignedDuration::from_secs(2);
const SPAN_GROWS: i32 = 4;
/// How many records are fetched at once at least, where columns say less than the filter.
const CHUNK_MIN: usize = 500;
const CHUNK_MAX: usize = 10_001;
/// Records are of this time at the earliest: PostgreSQL stores none that are much older.
const OLDEST: Timestamp = Timestamp::constant(-62_135_596_800, 0);

/// What is asked of all replicas' records.
#[derive(Clone, Debug)]
pub struct ReplicasQuery {
    /// The conditions. Its own cursor counts for nothing.
    pub filter: Filter,
    /// Only records of this replica.
    pub replica: Option<Arc<str>>,
    /// Only records that come after this one: the previous page's `next`.
    pub after: Option<RecordPlace>,
}

/// A page of records of all replicas, newest first.
#[derive(Clone, Debug, Default)]
pub struct ReplicasPage {
    /// The records, each with its replica as the last member.
    pub records: Vec<Box<RawValue>>,
    /// The `after` of the next page, if there is one.
    pub next: Option<String>,
    /// How far each replica is behind.
    pub behind: Vec<ReplicaBehind>,
}

/// How far a replica is behind with its records.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct ReplicaBehind {
    /// Its name.
    pub replica: Arc<str>,
    /// How many records it had not shipped when it last shipped some.
    pub records: u64,
    /// When that was.
    pub reported: Timestamp,
}

impl From<EngineError> for QueryError {
    fn from(error: EngineError) -> Self {
        if error.is(&SqlState::QUERY_CANCELED) { Self::TooLong } else { Self::Database(error.to_string().into()) }
    }
}

/// Parses a replica's name, as a parameter has it.
///
/// # Errors
/// It cannot be one.
pub fn replica_named(text: &str) -> Result<Arc<str>, BadFilter> {
    let message = || write(text, "a replica's name such as makegate-0");
    let bad = || BadFilter { name: "replica".to_owned(), message: message() };
    is_replica_name(text).then(|| text.into()).ok_or_else(bad)
}

impl AuditLog {
    /// Queries one page of all replicas' records for `asker`, as [`AuditLog::query_as`] does of this log's.
    ///
    /// # Errors
    /// [`QueryError`]; [`QueryError::Database`] if the database does not answer.
    pub async fn query_replicas<T: Send + 'static>(
        &self,
        replicas: &Replicas,
        asker: &Arc<str>,
        query: ReplicasQuery,
        show: impl FnOnce(ReplicasPage) -> T + Send + 'static,
    ) -> Result<T, QueryError> {
        let _turn = self.query_turn(asker).await?;
        let clock = &self.shared.clock;
        let (now, end) = (clock.wall(), clock.now() + QUERY_MAX);
        let left = || end.saturating_duration_since(clock.now());
        let behind = behind(replicas).await?;
        let limit = query.filter.limit;
        let mut search = ReplicasSearch::new(Arc::new(query), now);
        while let Some((times, chunk)) = search.next() {
            let left = left();
            if left.is_zero() {
                return Err(QueryError::TooLong);
            }
            let conditions = &search.conditions;
            let found = conditions.search(replicas.engine(), times, search.before.as_ref(), chunk, left).await?;
            let (query, is_last) = (search.query.clone(), found.len() < chunk);
            search.before = found.last().map(|last| last.place.clone()).or(search.before);
            let matching = disk::run_blocking(left, move || matching(&query.filter, found)).await?;
            search.add(matching, is_last);
        }
        let found = search.found;
        let shown = move || {
            let next =
                found.get(limit.saturating_sub(1)).filter(|_| found.len() > limit).map(|last| last.place.to_cursor());
            let records =
                found.iter().take(limit).filter_map(|one| with_replica(&one.line, &one.place.replica)).collect();
            show(ReplicasPage { records, next, behind })
        };
        Ok(disk::run_blocking(QUERY_MAX, shown).await?)
    }

    /// What the ledger of all replicas says to `asker`, or that of one of them.
    ///
    /// # Errors
    /// [`QueryError`]; [`QueryError::Database`] if the database does not answer.
    pub async fn ledger_of_replicas<T: Send + 'static>(
        &self,
        replicas: &Replicas,
        asker: &Arc<str>,
        (query, replica): (LedgerQuery, Option<Arc<str>>),
        show: impl FnOnce(LedgerPage, Vec<ReplicaBehind>) -> T + Send + 'static,
    ) -> Result<T, QueryError> {
        let _turn = self.query_turn(asker).await?;
        let behind = behind(replicas).await?;
        let rows = query.search(replica).rows(replicas.engine(), super::ledger::SHARED_ROWS_MAX, QUERY_MAX).await?;
        Ok(disk::run_blocking(QUERY_MAX, move || show(super::ledger::page_of_rows(&query, rows), behind)).await?)
    }
}

async fn behind(replicas: &Replicas) -> Result<Vec<ReplicaBehind>, QueryError> {
    let lags = shipping::lags(replicas.engine()).await?;
    let behind = |lag: shipping::ReplicaLag| ReplicaBehind {
        replica: lag.replica,
        records: lag.records,
        reported: lag.reported,
    };
    Ok(lags.into_iter().map(behind).collect())
}

/// A page under construction: spans of time that grow, the newest first, until enough is found.
struct ReplicasSearch {
    query: Arc<ReplicasQuery>,
    conditions: RecordConditions,
    /// The times that are still to be searched, both included.
    times: Option<(Timestamp, Timestamp)>,
    /// The oldest time of the span that is searched now, and its length.
    from: Timestamp,
    span: SignedDuration,
    before: Option<RecordPlace>,
    found: Vec<FoundRecord>,
    /// The columns say all that the filter asks for.
    is_exact: bool,
}

impl ReplicasSearch {
    fn new(query: Arc<ReplicasQuery>, now: Timestamp) -> Self {
        let (conditions, is_exact) = conditions(&query);
        let (oldest, newest) = times(&query.filter);
        // Indexes find the newest records of a caller or a request, however long ago they were. All others only their time finds.
        let has_index = conditions.caller.is_some() || conditions.request.is_some();
        let span = if has_index { SignedDuration::MAX } else { SPAN };
        let newest = query.after.as_ref().map_or(newest, |after| newest.min(after.time));
        let from = earlier(newest.min(now), span).max(oldest);
        let before = query.after.clone();
        let times = (oldest <= newest).then_some((oldest, newest));
        Self { query, conditions, times, from, span, before, found: Vec::new(), is_exact }
    }

    /// What to search next, and how many records to fetch.
    fn next(&self) -> Option<((Timestamp, Timestamp), usize)> {
        let wanted = self.query.filter.limit + 1;
        let (_, newest) = self.times.filter(|_| self.found.len() < wanted)?;
        let missing = wanted - self.found.len();
        let chunk = if self.is_exact { missing } else { missing.max(CHUNK_MIN) };
        Some(((self.from, newest), chunk.min(CHUNK_MAX)))
    }

    /// Takes what a search found; `is_last`: there was no more in the span.
    fn add(&mut self, matching: Vec<FoundRecord>, is_last: bool) {
        self.found.extend(matching);
        let Some((oldest, _)) = self.times.filter(|_| is_last) else { return };
        let before = earlier(self.from, SignedDuration::from_micros(1));
        self.span = self.span.checked_mul(SPAN_GROWS).unwrap_or(SignedDuration::MAX);
        self.times = (oldest <= before && before < self.from).then_some((oldest, before));
        self.from = earlier(before, self.span).max(oldest);
    }
}

fn earlier(time: Timestamp, by: SignedDuration) -> Timestamp {
    time.checked_sub(by).unwrap_or(OLDEST).max(OLDEST)
}

/// The times that records can have, in whole microseconds as columns have them, both included.
fn times(filter: &Filter) -> (Timestamp, Timestamp) {
    let whole = |time: Timestamp| Timestamp::from_microsecond(time.as_microsecond()).unwrap_or(time).max(OLDEST);
    (filter.since.map_or(OLDEST, whole), filter.until.map_or(Timestamp::MAX, whole))
}

/// What narrows the search, and whether that is all that the filter asks for.
fn conditions(query: &ReplicasQuery) -> (RecordConditions, bool) {
    let filter = &query.filter;
    let conditions = RecordConditions {
        replica: query.replica.clone(),
        caller: filter.caller.clone(),
        organization: filter.organization,
        operation: filter.operation.clone(),
        kind: filter.kind.map(Kind::as_str),
        status: filter.status.map(super::filter::StatusFilter::range),
        answer: filter.answer.map(Answer::as_str),
        request: filter.request.as_ref().map(|request| request.as_str().into()),
        seq: filter.seq,
        text: filter.needle_text(),
    };
    let asked_besides = Filter {
        caller: None,
        organization: None,
        operation: None,
        kind: None,
        status: None,
        answer: None,
        request: None,
        seq: None,
        since: None,
        until: None,
        after: None,
        limit: Filter::default().limit,
        ..filter.clone()
    };
    (conditions, asked_besides == Filter::default())
}

fn matching(filter: &Filter, found: Vec<FoundRecord>) -> Vec<FoundRecord> {
    let matches = |one: &FoundRecord| {
        let line = one.line.as_bytes();
        Record::parse(line).is_some_and(|record| filter.matches(&record, line))
    };
    found.into_iter().filter(matches).collect()
}

/// The record with its replica as the last member. What comes before that is as it is in the log.
#[must_use]
pub fn with_replica(line: &str, replica: &str) -> Option<Box<RawValue>> {
    let members = line.trim_end().strip_suffix('}')?;
    let comma = if members.ends_with('{') { "" } else { "," };
    RawValue::from_string(format!("{members}{comma}\"replica\":{}}}", serde_json::to_string(replica).ok()?)).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn query(pairs: &[(&str, &str)]) -> ReplicasQuery {
        let filter = Filter::parse(pairs.iter().copied(), now()).unwrap();
        ReplicasQuery { filter, replica: None, after: None }
    }

    fn now() -> Timestamp {
        "2026-07-01T12:00:00Z".parse().unwrap()
    }

    #[test]
    fn spans_grow_and_leave_no_time_out() {
        let mut search = ReplicasSearch::new(Arc::new(query(&[("since", "30d")])), now());
        let (mut spans, mut newest) = (0, Timestamp::MAX);
        while let Some(((from, to), _)) = search.next() {
            assert_eq!(to, newest);
            newest = earlier(from, SignedDuration::from_micros(1));
            spans += 1;
            search.add(Vec::new(), true);
        }
        assert_eq!(newest, "2026-06-01T11:59:59.999999Z".parse().unwrap());
        assert!((8..=16).contains(&spans), "{spans}");
        let search = ReplicasSearch::new(Arc::new(query(&[("caller", "a")])), now());
        assert_eq!(search.next(), Some(((OLDEST, Timestamp::MAX), 101)), "an index finds all of a caller's");
    }

    #[test]
    fn a_span_is_searched_again_until_it_has_no_more() {
        let mut search = ReplicasSearch::new(Arc::new(query(&[("outcome", "done"), ("limit", "1000")])), now());
        let first = search.next();
        search.add(Vec::new(), false);
        assert_eq!((search.next(), search.is_exact), (first, false));
        let none = query(&[("since", "1h"), ("until", "2h")]);
        assert_eq!(ReplicasSearch::new(Arc::new(none), now()).next(), None, "no time is both");
    }

    #[test]
    fn columns_say_all_of_some_filters() {
        let is_exact = |pairs| conditions(&query(pairs)).1;
        assert!(is_exact(&[]) && is_exact(&[("status", "4xx"), ("since", "1h"), ("limit", "7"), ("caller", "a")]));
        assert!(!is_exact(&[("outcome", "done")]) && !is_exact(&[("path", "/a")]) && !is_exact(&[("intent", "7")]));
    }

    #[test]
    fn a_record_is_followed_by_its_replica() {
        let line = with_replica("{\"seq\":7,\"kind\":\"event\"}", "makegate-0").unwrap();
        assert_eq!(line.get(), "{\"seq\":7,\"kind\":\"event\",\"replica\":\"makegate-0\"}");
        assert!(with_replica("no record", "makegate-0").is_none());
    }
}

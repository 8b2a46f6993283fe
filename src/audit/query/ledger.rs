//! Reads the quota ledger: from the index, and what that lacks from the newest records.

use std::collections::{BTreeMap, HashMap};
use std::io;
use std::path::Path;
use std::sync::Arc;

use jiff::Timestamp;
use rusqlite::Row;
use serde::{Serialize, Serializer};

use super::filter::{BadFilter, name_of, number, set_each, time, word, write};
use super::{IndexReader, QueryDeadline, QueryError};
use crate::audit::index::ledger::{
    ACCOUNT, HOURS_KEPT, LedgerCounts, LedgerKey, LedgerSums, OTHERS, begin_of, count, hour_of,
};
use crate::audit::index::position::IndexPosition;
use crate::audit::log::AuditLog;
use crate::audit::record::Record;
use crate::audit::segment::reverse_reader::ReverseReader;
use crate::replicas::shipping::LedgerGain;
use crate::replicas::{LedgerGroup, LedgerSearch};
use crate::vocabulary::word_enum;

/// Maximum number of records that the index may lack.
const UNINDEXED_MAX: usize = 50_000;
/// Maximum number of rows of one page. An hour always fits.
const ROWS_MAX: usize = 10_000;
/// Maximum number of rows that are read of the ledger of all replicas.
pub(super) const SHARED_ROWS_MAX: usize = 50_000;
/// How many hours there are without a `since`.
const HOURS_DEFAULT: i64 = 24;
/// How many spenders a row of an hour names.
const SPENDERS_MAX: usize = 3;

word_enum! {
    /// What the rows of a ledger may be by.
    LedgerColumn {
        /// The hour, in UTC.
        Hour = "hour",
        /// The caller.
        Caller = "caller",
        /// The operation.
        Operation = "operation",
        /// The organization.
        Organization = "organization",
    }
}

/// An organization in the ledger.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LedgerOrganization {
    /// Its id.
    Id(u64),
    /// None is in the path: the account's own quota.
    Account,
    /// Several: their hour has too many.
    Others,
}

impl LedgerOrganization {
    fn of(number: i64) -> Self {
        match number {
            ACCOUNT => Self::Account,
            number => u64::try_from(number).map_or(Self::Others, Self::Id),
        }
    }

    const fn number(self) -> i64 {
        match self {
            Self::Id(id) => id.cast_signed(),
            Self::Account => ACCOUNT,
            Self::Others => OTHERS,
        }
    }

    fn parse(text: &str) -> Result<Self, String> {
        match text {
            "account" => Ok(Self::Account),
            "other" => Ok(Self::Others),
            _ => number(text, "an organization's id such as 11, or account").map(Self::Id),
        }
    }
}

impl Serialize for LedgerOrganization {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Id(id) => serializer.serialize_u64(*id),
            Self::Account => serializer.serialize_str("account"),
            Self::Others => serializer.serialize_str("other"),
        }
    }
}

/// What is asked of the ledger.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LedgerQuery {
    caller: Option<Arc<str>>,
    operation: Option<Arc<str>>,
    organization: Option<LedgerOrganization>,
    /// First hour, and the first that is not asked for.
    hours: (i64, i64),
    /// What there are rows by; the order does not matter.
    pub by: Vec<LedgerColumn>,
}

impl LedgerQuery {
    /// Parses decoded names and values: `caller`, `operation`, `organization`, `since`, `until`, `by`. Whole hours
    /// count, of the last 30 days; without `since`, of the last 24 hours. `by`: without the parameter.
    ///
    /// # Errors
    /// The first parameter that is unknown, repeated or invalid.
    pub fn parse<'p>(
        pairs: impl IntoIterator<Item = (&'p str, &'p str)>,
        by: &[LedgerColumn],
        now: Timestamp,
    ) -> Result<Self, BadFilter> {
        let newest = hour_of(now) + 1;
        let mut query =
            Self { caller: None, operation: None, organization: None, hours: (i64::MIN, newest), by: by.to_vec() };
        set_each(pairs, |name, value| query.set(name, value, now))?;
        let (since, until) = query.hours;
        let since = if since == i64::MIN { until - HOURS_DEFAULT } else { since };
        query.hours = (since.max(newest - HOURS_KEPT), until.min(newest));
        Ok(query)
    }

    fn set(&mut self, name: &str, value: &str, now: Timestamp) -> Result<(), String> {
        match name {
            "caller" => self.caller = Some(name_of(value, "a caller's name")?),
            "operation" => self.operation = Some(name_of(value, "an operation such as organizations.get")?),
            "organization" => self.organization = Some(LedgerOrganization::parse(value)?),
            "since" => self.hours.0 = hour_of(time(value, now)?),
            "until" => {
                let until = time(value, now)?;
                self.hours.1 = hour_of(until) + i64::from(begin_of(hour_of(until)) < until);
            }
            "by" => {
                let column = |one: &str| word(one, LedgerColumn::parse(one), LedgerColumn::ALL, LedgerColumn::as_str);
                let columns: Vec<_> = value.split(',').map(column).collect::<Result<_, _>>()?;
                let is_twice = |at: usize| columns.iter().skip(at + 1).any(|other| columns.get(at) == Some(other));
                if (0..columns.len()).any(is_twice) {
                    return Err(write(value, "each of hour, caller, operation and organization once at most"));
                }
                self.by = columns;
            }
            _ => {
                return Err(
                    "no such parameter; there are caller, operation, organization, since, until and by".to_owned()
                );
            }
        }
        Ok(())
    }

    fn is_by(&self, column: LedgerColumn) -> bool {
        self.by.contains(&column)
    }

    fn wants(&self, key: &LedgerKey) -> bool {
        self.caller.as_deref().is_none_or(|wanted| *wanted == *key.caller)
            && self.operation.as_deref().is_none_or(|wanted| *wanted == *key.operation)
            && self.organization.is_none_or(|wanted| wanted.number() == key.organization)
    }

    /// What tells the row that this key belongs to.
    fn group(&self, key: LedgerKey) -> LedgerKey {
        LedgerKey {
            hour: if self.is_by(LedgerColumn::Hour) { key.hour } else { 0 },
            caller: if self.is_by(LedgerColumn::Caller) { key.caller } else { "".into() },
            operation: if self.is_by(LedgerColumn::Operation) { key.operation } else { "".into() },
            organization: if self.is_by(LedgerColumn::Organization) { key.organization } else { OTHERS },
        }
    }

    /// What to ask of the ledger of all replicas.
    pub(super) fn search(&self, replica: Option<Arc<str>>) -> LedgerSearch {
        let hour = self.is_by(LedgerColumn::Hour);
        LedgerSearch {
            hours: self.hours,
            replica,
            caller: self.caller.clone(),
            operation: self.operation.clone(),
            organization: self.organization.map(LedgerOrganization::number),
            group: LedgerGroup {
                hour,
                // Rows of hours alone name who spent most.
                caller: self.is_by(LedgerColumn::Caller) || self.by == [LedgerColumn::Hour],
                operation: self.is_by(LedgerColumn::Operation),
                organization: self.is_by(LedgerColumn::Organization),
            },
        }
    }

    fn row(&self, key: LedgerKey, sums: LedgerSums, spenders: Vec<LedgerSpender>) -> LedgerRow {
        LedgerRow {
            hour: self.is_by(LedgerColumn::Hour).then(|| begin_of(key.hour)),
            caller: self.is_by(LedgerColumn::Caller).then_some(key.caller),
            operation: self.is_by(LedgerColumn::Operation).then_some(key.operation),
            organization: self.is_by(LedgerColumn::Organization).then(|| LedgerOrganization::of(key.organization)),
            sums,
            spenders,
        }
    }
}

/// A row of the ledger. What the rows are not by is `None`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct LedgerRow {
    /// When the hour begins.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub hour: Option<Timestamp>,
    /// The caller's name; empty: callers that share a row, because their hour has too many.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub caller: Option<Box<str>>,
    /// The operation's id; empty: not classified, or of callers that share a row.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub operation: Option<Box<str>>,
    /// The organization.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub organization: Option<LedgerOrganization>,
    /// What it comes to.
    #[serde(flatten)]
    pub sums: LedgerSums,
    /// Of an hour as a whole: who spent most in it.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub spenders: Vec<LedgerSpender>,
}

/// A caller that spent much in an hour.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct LedgerSpender {
    /// Its name.
    pub caller: Box<str>,
    /// What it spent.
    pub spent: i64,
}

/// What the ledger says.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct LedgerPage {
    /// When the first hour begins.
    pub since: Timestamp,
    /// When the last hour ends.
    pub until: Timestamp,
    /// What there are rows by.
    pub by: Vec<LedgerColumn>,
    /// The newest hour first; in an hour, who spent most.
    pub rows: Vec<LedgerRow>,
    /// What all rows of this page come to.
    pub total: LedgerSums,
    /// The `until` of the next page, if there is one.
    pub next: Option<Timestamp>,
}

impl AuditLog {
    /// What the ledger says to `asker`, as in [`AuditLog::query`], including everything recorded before an [`AuditLog::flush`]; `show` runs where the query
    /// runs.
    ///
    /// # Errors
    /// [`QueryError`].
    pub async fn ledger<T: Send + 'static>(
        &self,
        asker: &Arc<str>,
        query: LedgerQuery,
        show: impl FnOnce(LedgerPage) -> T + Send + 'static,
    ) -> Result<T, QueryError> {
        self.read_files(asker, move |dir, deadline| page(dir, &query, deadline).map(show)).await
    }
}

fn page(dir: &Path, query: &LedgerQuery, deadline: &QueryDeadline) -> Result<LedgerPage, QueryError> {
    let failed = |error| match deadline.is_over() {
        true => QueryError::TooLong,
        false => QueryError::Io(io::Error::other(error)),
    };
    let index = IndexReader::open(dir, Some(deadline));
    let seq = match &index {
        // From here on the index stays as it is, so that no record is both in it and among those that it lacks.
        Some(index) => {
            index.connection.execute_batch("BEGIN").map_err(failed)?;
            IndexPosition::read(&index.connection).map_err(failed)?.seq
        }
        None => 0,
    };
    let mut pages =
        PageBuilder { query, rows: Vec::new(), groups: LedgerCounts::default(), total: LedgerSums::default() };
    let mut lacking = unindexed(dir, seq, deadline)?;
    let (since, until) = query.hours;
    let mut next = None;
    let mut hours = (since..until).rev();
    for hour in hours.by_ref() {
        let mut counts: Vec<_> = match &index {
            Some(index) => index.hour(hour).map_err(failed)?,
            None => Vec::new(),
        };
        counts.extend(lacking.remove(&hour).into_iter().flatten());
        if !pages.add(counts) {
            next = Some(begin_of(hour + 1));
            break;
        }
        if deadline.is_over() {
            return Err(QueryError::TooLong);
        }
    }
    Ok(pages.end(next))
}

/// The page of what [`LedgerQuery::search`] finds.
pub(super) fn page_of_rows(query: &LedgerQuery, mut rows: Vec<LedgerGain>) -> LedgerPage {
    // What is narrowed in the database need not be narrowed again, and what tells no rows apart is not there.
    let plain = LedgerQuery { caller: None, operation: None, organization: None, ..query.clone() };
    let mut pages =
        PageBuilder { query: &plain, rows: Vec::new(), groups: LedgerCounts::default(), total: LedgerSums::default() };
    let (mut next, is_by_hour) = (None, query.is_by(LedgerColumn::Hour));
    if rows.len() >= SHARED_ROWS_MAX && is_by_hour {
        // The oldest hour may not be whole.
        let oldest = rows.last().map_or(0, |row| row.hour);
        if rows.first().is_some_and(|row| row.hour > oldest) {
            rows.retain(|row| row.hour > oldest);
            next = Some(begin_of(oldest + 1));
        }
    }
    for hour in rows.chunk_by(|one, other| one.hour == other.hour) {
        if !pages.add(hour.iter().cloned().map(counts_of).collect()) {
            next = hour.first().map(|row| begin_of(row.hour + 1));
            break;
        }
    }
    let page = pages.end(next);
    LedgerPage { by: query.by.clone(), ..page }
}

fn counts_of(gain: LedgerGain) -> (LedgerKey, LedgerSums) {
    let LedgerGain { hour, caller, operation, organization, sums } = gain;
    let [requests, spent, saved, waited_us, refused, out_of_quota] = sums;
    let sums = LedgerSums { requests, spent, saved, waited_us, refused, out_of_quota };
    (LedgerKey { hour, caller, operation, organization }, sums)
}

/// What the records that the index lacks add, by hour.
fn unindexed(
    dir: &Path,
    floor: u64,
    deadline: &QueryDeadline,
) -> Result<HashMap<i64, Vec<(LedgerKey, LedgerSums)>>, QueryError> {
    let (mut counts, mut seen) = (LedgerCounts::default(), 0);
    let mut backwards = ReverseReader::below(dir, u64::MAX)?;
    while let Some(line) = backwards.newest()? {
        let Some(record) = Record::parse(&line).filter(|record| record.seq > floor) else { break };
        seen += 1;
        if seen > UNINDEXED_MAX || deadline.is_over() {
            return Err(QueryError::Indexing);
        }
        count(&mut counts, &record, Some(&line));
    }
    let mut by_hour = HashMap::<i64, Vec<_>>::new();
    counts.into_iter().for_each(|(key, sums)| by_hour.entry(key.hour).or_default().push((key, sums)));
    Ok(by_hour)
}

impl IndexReader {
    /// The ledger's rows of one hour.
    fn hour(&self, hour: i64) -> rusqlite::Result<Vec<(LedgerKey, LedgerSums)>> {
        let sql = "SELECT caller, operation, organization, requests, spent, saved, waited_us, refused, out_of_quota
            FROM ledger WHERE hour = ?1";
        let row = |row: &Row<'_>| {
            let text = |at| row.get::<_, String>(at).map(String::into_boxed_str);
            let key = LedgerKey { hour, caller: text(0)?, operation: text(1)?, organization: row.get(2)? };
            let sums = LedgerSums {
                requests: row.get(3)?,
                spent: row.get(4)?,
                saved: row.get(5)?,
                waited_us: row.get(6)?,
                refused: row.get(7)?,
                out_of_quota: row.get(8)?,
            };
            Ok((key, sums))
        };
        self.connection.prepare_cached(sql)?.query_map([hour], row)?.collect()
    }
}

/// A page under construction.
struct PageBuilder<'q> {
    query: &'q LedgerQuery,
    rows: Vec<LedgerRow>,
    /// Rows that are not by hour.
    groups: LedgerCounts,
    total: LedgerSums,
}

impl PageBuilder<'_> {
    /// Adds an hour. Returns false, and adds nothing, if the page has no room for it.
    fn add(&mut self, counts: Vec<(LedgerKey, LedgerSums)>) -> bool {
        let mut groups = LedgerCounts::default();
        let (mut spenders, mut total) = (BTreeMap::<Box<str>, i64>::new(), LedgerSums::default());
        for (key, sums) in counts.into_iter().filter(|(key, _)| self.query.wants(key)) {
            total += sums;
            if self.query.by == [LedgerColumn::Hour] && sums.spent > 0 {
                *spenders.entry(key.caller.clone()).or_default() += sums.spent;
            }
            *groups.entry(self.query.group(key)).or_default() += sums;
        }
        if !self.query.is_by(LedgerColumn::Hour) {
            self.total += total;
            groups.into_iter().for_each(|(key, sums)| self.add_group(key, sums));
            return true;
        }
        if !self.rows.is_empty() && self.rows.len() + groups.len() > ROWS_MAX {
            return false;
        }
        self.total += total;
        let mut rows = ranked(self.query, groups);
        if let [row] = &mut *rows {
            row.spenders = most(spenders);
        }
        self.rows.append(&mut rows);
        true
    }

    /// Adds to a row that is not by hour. Past the bound of rows, those that come new share one.
    fn add_group(&mut self, key: LedgerKey, sums: LedgerSums) {
        let is_full = self.groups.len() >= ROWS_MAX && !self.groups.contains_key(&key);
        let others = || LedgerKey { hour: 0, caller: "".into(), operation: "".into(), organization: OTHERS };
        *self.groups.entry(if is_full { others() } else { key }).or_default() += sums;
    }

    fn end(mut self, next: Option<Timestamp>) -> LedgerPage {
        self.rows.append(&mut ranked(self.query, self.groups));
        let (since, until) = self.query.hours;
        LedgerPage {
            since: next.unwrap_or(begin_of(since)),
            until: begin_of(until.max(since)),
            by: self.query.by.clone(),
            rows: self.rows,
            total: self.total,
            next,
        }
    }
}

/// The rows of these groups, those that spent most first.
fn ranked(query: &LedgerQuery, groups: LedgerCounts) -> Vec<LedgerRow> {
    let mut groups: Vec<_> = groups.into_iter().collect();
    groups.sort_unstable_by(|(key, sums), (other, others)| {
        let by_sums = (others.spent, others.requests).cmp(&(sums.spent, sums.requests));
        by_sums.then_with(|| key.cmp(other))
    });
    groups.into_iter().map(|(key, sums)| query.row(key, sums, Vec::new())).collect()
}

fn most(spenders: BTreeMap<Box<str>, i64>) -> Vec<LedgerSpender> {
    let mut most: Vec<_> = spenders.into_iter().map(|(caller, spent)| LedgerSpender { caller, spent }).collect();
    most.sort_by_key(|one| std::cmp::Reverse(one.spent));
    most.truncate(SPENDERS_MAX);
    most
}

//! The quota ledger: what each caller asked of each operation and organization in each hour, and what that cost of
//! Make's quota. It is counted from the records as they are indexed, and stored with their blocks, so it is as exact as
//! the index: what it lacks is what no block has yet.
//!
//! It stays when retention deletes the records. If the index is rebuilt, it reaches back as far as the log does.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::ops::{AddAssign, Neg};
use std::path::Path;

use jiff::Timestamp;
use rusqlite::{Transaction, params};
use serde::{Deserialize, Serialize};

use super::block::IndexBlock;
use crate::audit::record::{Kind, Record};
use crate::hash::FastHash;
use crate::vocabulary::{Answer, Outcome};

/// `ledger`: sums by hour (since 1970), caller, operation and organization. `ledger_hours`: the newest record that added to
/// an hour, or one shortly after it.
pub(super) const TABLE: &str = "
    CREATE TABLE ledger (
        hour INTEGER, caller TEXT, operation TEXT, organization INTEGER, requests INTEGER NOT NULL, spent INTEGER NOT NULL,
        saved INTEGER NOT NULL, waited_us INTEGER NOT NULL, refused INTEGER NOT NULL, out_of_quota INTEGER NOT NULL,
        PRIMARY KEY (hour, caller, operation, organization)) WITHOUT ROWID;
    CREATE TABLE ledger_hours (hour INTEGER PRIMARY KEY, seq INTEGER NOT NULL);
";

/// How many hours the ledger shows: 30 days.
pub(crate) const HOURS_KEPT: i64 = 30 * 24;
/// How many hours that have rows it stores besides: a clock may be wrong for so long without pushing out what it shows.
const HOURS_SPARE: i64 = 24;
/// Rows that one hour has by caller, operation and organization. Past these, organizations that come new share rows.
const EXACT_ROWS_MAX: i64 = 1_000;
/// Rows that one hour has in all but for one. Past these, callers that come new share that one.
const ROWS_MAX: i64 = 2_000;
const SECONDS: i64 = 3_600;

/// No organization is in the path.
pub(crate) const ACCOUNT: i64 = -1;
/// Organizations that share a row.
pub(crate) const OTHERS: i64 = -2;

/// The refusals for want of quota.
const NO_QUOTA: [&str; 2] = ["MG171", "MG172"];
/// The refusal of a request whose last attempt never reached Make. Records without `spent` that have it are of a version
/// that did not write `spent`: it took the attempts before that one for unsent, too.
const UNREACHABLE: &str = "MG201";

/// What is counted apart. No caller: those that share a row, because their hour has too many.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct LedgerKey {
    /// Hours since 1970.
    pub(crate) hour: i64,
    pub(crate) caller: Box<str>,
    /// Empty, if no request of theirs was classified.
    pub(crate) operation: Box<str>,
    /// Its id, [`ACCOUNT`] or [`OTHERS`].
    pub(crate) organization: i64,
}

/// What was asked and what it cost.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct LedgerSums {
    /// Requests.
    pub requests: i64,
    /// Attempts that took a slot of quota.
    pub spent: i64,
    /// Answers from memory, or from another request's fetch, that would have taken one.
    pub saved: i64,
    /// Time spent waiting for quota, in microseconds.
    pub waited_us: i64,
    /// Requests that were refused, for whatever reason.
    pub refused: i64,
    /// Of these, those that were refused for want of quota.
    pub out_of_quota: i64,
}

impl AddAssign for LedgerSums {
    fn add_assign(&mut self, other: Self) {
        self.requests += other.requests;
        self.spent += other.spent;
        self.saved += other.saved;
        self.waited_us = self.waited_us.saturating_add(other.waited_us);
        self.refused += other.refused;
        self.out_of_quota += other.out_of_quota;
    }
}

impl Neg for LedgerSums {
    type Output = Self;

    fn neg(self) -> Self {
        Self {
            requests: -self.requests,
            spent: -self.spent,
            saved: -self.saved,
            waited_us: -self.waited_us,
            refused: -self.refused,
            out_of_quota: -self.out_of_quota,
        }
    }
}

/// Sums of several records.
pub(crate) type LedgerCounts = HashMap<LedgerKey, LedgerSums, FastHash>;

/// Which hour this is, counted from 1970.
pub(crate) fn hour_of(time: Timestamp) -> i64 {
    time.as_second().div_euclid(SECONDS)
}

/// When this hour begins.
pub(crate) fn begin_of(hour: i64) -> Timestamp {
    Timestamp::from_second(hour.saturating_mul(SECONDS)).unwrap_or(Timestamp::UNIX_EPOCH)
}

/// Adds what this record says; `line`, if it was read. Who is not identified spends nothing and is not counted.
pub(crate) fn count(counts: &mut LedgerCounts, record: &Record<'_>, line: Option<&[u8]>) {
    let Some(caller) = record.caller.as_deref() else { return };
    let sums = match record.kind {
        Some(Kind::Request | Kind::Outcome) => sums_of(record),
        Some(Kind::Refusals) => counted_refusals(record, line),
        Some(Kind::Intent | Kind::Settlement | Kind::Event) | None => return,
    };
    let organization = record.organization.map_or(ACCOUNT, |id| i64::try_from(id).unwrap_or(OTHERS));
    let operation = record.operation.as_deref().unwrap_or_default().into();
    let key = LedgerKey { hour: hour_of(record.time), caller: caller.into(), operation, organization };
    *counts.entry(key).or_default() += sums;
}

fn sums_of(record: &Record<'_>) -> LedgerSums {
    let attempts = record.attempts.map_or(0, i64::from);
    let refusal = record.refusal.as_deref();
    let spent = match record.spent {
        Some(spent) => i64::from(spent),
        None if record.outcome == Some(Outcome::NotSent) || refusal == Some(UNREACHABLE) => 0,
        None => attempts,
    };
    let is_from_memory = matches!(record.answer, Some(Answer::Hit | Answer::Stale | Answer::Miss));
    LedgerSums {
        requests: 1,
        spent,
        saved: i64::from(is_from_memory && attempts == 0),
        waited_us: record.quota_wait_us.map_or(0, |wait| i64::try_from(wait).unwrap_or(i64::MAX)),
        refused: i64::from(record.answer == Some(Answer::Refused)),
        out_of_quota: i64::from(refusal.is_some_and(|code| NO_QUOTA.contains(&code))),
    }
}

/// What a record of `kind: "refusals"` counts.
#[derive(Default, Deserialize)]
struct RefusalsLine {
    count: i64,
    #[serde(default)]
    codes: BTreeMap<String, i64>,
}

fn counted_refusals(record: &Record<'_>, line: Option<&[u8]>) -> LedgerSums {
    let number = |count: u64| i64::try_from(count).unwrap_or(i64::MAX);
    let (count, codes) = match (&record.counted, line) {
        (Some(counted), _) => {
            let codes = counted.codes.iter().map(|(code, count)| (code.to_string(), number(*count)));
            (number(counted.count), codes.collect())
        }
        (None, Some(line)) => {
            let RefusalsLine { count, codes } = serde_json::from_slice(line).unwrap_or_default();
            (count, codes)
        }
        (None, None) => (0, BTreeMap::new()),
    };
    let out_of_quota = NO_QUOTA.iter().filter_map(|code| codes.get(*code)).sum();
    LedgerSums { requests: count, refused: count, out_of_quota, ..LedgerSums::default() }
}

/// Adds these counts of the records up to this number, and forgets the hours that nothing was added to for longest. No
/// clock decides that: one that is wrong for a while and then right again would make it forget everything.
pub(super) fn store(transaction: &Transaction<'_>, counts: &LedgerCounts, seq: u64) -> rusqlite::Result<()> {
    let mut rows = HashMap::new();
    counts.iter().try_for_each(|(key, sums)| add(transaction, key, sums, &mut rows))?;
    let sql = "INSERT INTO ledger_hours VALUES (?1, ?2) ON CONFLICT (hour) DO UPDATE SET seq = excluded.seq";
    let mut touch = transaction.prepare_cached(sql)?;
    let hours: BTreeSet<i64> = counts.keys().map(|key| key.hour).collect();
    hours.iter().try_for_each(|hour| touch.execute([*hour, seq.cast_signed()]).map(drop))?;
    let sql = "DELETE FROM ledger_hours WHERE hour IN
        (SELECT hour FROM ledger_hours ORDER BY seq DESC, hour DESC LIMIT -1 OFFSET ?1)";
    if transaction.prepare_cached(sql)?.execute([HOURS_KEPT + HOURS_SPARE])? > 0 {
        let sql = "DELETE FROM ledger WHERE hour NOT IN (SELECT hour FROM ledger_hours)";
        transaction.prepare_cached(sql)?.execute(())?;
    }
    Ok(())
}

/// Adds to the row of this key, or to one that it shares if its hour has too many. `rows`: how many each hour has.
fn add(
    transaction: &Transaction<'_>,
    key: &LedgerKey,
    sums: &LedgerSums,
    rows: &mut HashMap<i64, i64>,
) -> rusqlite::Result<()> {
    let shared = LedgerKey { organization: OTHERS, ..key.clone() };
    let last = LedgerKey { caller: "".into(), operation: "".into(), ..shared.clone() };
    for (key, rows_max) in [(key, EXACT_ROWS_MAX), (&shared, ROWS_MAX), (&last, i64::MAX)] {
        let LedgerSums { requests, spent, saved, waited_us, refused, out_of_quota } = *sums;
        let LedgerKey { hour, caller, operation, organization } = key;
        let row =
            params![hour, caller, operation, organization, requests, spent, saved, waited_us, refused, out_of_quota];
        let sql = "UPDATE ledger SET requests = requests + ?5, spent = spent + ?6, saved = saved + ?7,
            waited_us = waited_us + ?8, refused = refused + ?9, out_of_quota = out_of_quota + ?10
            WHERE hour = ?1 AND caller = ?2 AND operation = ?3 AND organization = ?4";
        if transaction.prepare_cached(sql)?.execute(row)? > 0 {
            return Ok(());
        }
        let has = match rows.get(hour) {
            Some(has) => *has,
            None => transaction
                .prepare_cached("SELECT count(*) FROM ledger WHERE hour = ?1")?
                .query_row([hour], |row| row.get(0))?,
        };
        rows.insert(*hour, has);
        if has < rows_max {
            let sql = "INSERT INTO ledger VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10)";
            transaction.prepare_cached(sql)?.execute(row)?;
            rows.insert(*hour, has + 1);
            return Ok(());
        }
    }
    Ok(())
}

/// Takes back what the records from this number on have added: their numbers were given to others.
pub(super) fn take_back(transaction: &Transaction<'_>, dir: &Path, from: u64) -> Result<(), super::IndexError> {
    let sql = "SELECT first, last, segment, offset, length, terms FROM blocks WHERE last >= ?1";
    let mut blocks = transaction.prepare(sql)?;
    let blocks: Vec<IndexBlock> = blocks.query_map([from.cast_signed()], IndexBlock::of)?.collect::<Result<_, _>>()?;
    let mut counts = LedgerCounts::default();
    for block in blocks {
        let lines = block.read(dir)?.unwrap_or_default();
        for line in lines.split(|byte| *byte == b'\n') {
            let record = Record::parse(line).filter(|record| (from..=block.last).contains(&record.seq));
            if let Some(record) = record {
                count(&mut counts, &record, Some(line));
            }
        }
    }
    let (mut has, mut rows) = (transaction.prepare("SELECT 1 FROM ledger_hours WHERE hour = ?1")?, HashMap::new());
    for (key, sums) in counts {
        // What is forgotten is not there to be taken from.
        if has.exists([key.hour])? {
            add(transaction, &key, &-sums, &mut rows)?;
        }
    }
    Ok(())
}

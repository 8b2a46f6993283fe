//! Puts the records of each replica's log into one table, each exactly once, and keeps that table's partitions, one a day.
//!
//! A transaction copies records and moves the log's row in `mg.shipped` from the number that it had before. Whoever does not know whether
//! that was carried out reads the row; a second attempt finds another number there, however late the first one ends.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use jiff::Timestamp;
use tokio_postgres::types::{ToSql, Type};

use super::copy_rows::{COPY, CopyRows, begin_of_day, column_text};
use super::engine::{Engine, EngineError, EngineTransaction, Line, Statement};

/// How many days ahead a partition is made.
const DAYS_AHEAD: i64 = 2;
/// Whoever makes or drops partitions holds this lock.
const PARTITIONS_LOCK: i64 = 0x6d67_7265_636f_7264;
/// How many hours the ledger of all replicas goes back: a day more than it shows.
const LEDGER_HOURS: i64 = 31 * 24;
/// How much longer than the records the rows stay that say how far a log was shipped.
const SHIPPED_SPARE: Duration = Duration::from_secs(48 * 3600);
/// The most replicas that are named as being behind.
const LAGS_MAX: i64 = 1_000;

/// The one log that is shipped: of which replica, and the name in its heads. A replica whose folder was lost has another log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ShippedLog {
    /// The replica's name.
    pub replica: Arc<str>,
    /// The log's name.
    pub log: Arc<str>,
}

/// How far a log was shipped.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ShippedPosition {
    /// The newest record that was shipped, or was not to be.
    pub seq: u64,
    /// How many records its newest head covers that the engine has.
    pub head: u64,
}

/// What one transaction ships.
#[derive(Clone, Debug)]
pub struct Shipment {
    /// The log's position before, and after.
    pub moves: (u64, u64),
    /// The newest record of the log.
    pub newest: u64,
    /// The records.
    pub records: CopyRows,
    /// What the ledger of all replicas gains.
    pub ledger: Vec<LedgerGain>,
}

/// What an hour of the ledger gains.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LedgerGain {
    /// Hours since 1970.
    pub hour: i64,
    /// The caller's name.
    pub caller: Box<str>,
    /// The operation's id.
    pub operation: Box<str>,
    /// The organization's number, as the ledger has it.
    pub organization: i64,
    /// Requests, spent, saved, waited, refused, out of quota.
    pub sums: [i64; 6],
}

/// How far a replica is behind.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ReplicaLag {
    /// Its name.
    pub replica: Arc<str>,
    /// How many records it had not shipped when it last shipped some.
    pub records: u64,
    /// When that was.
    pub reported: Timestamp,
}

impl ShippedLog {
    /// Where shipping goes on. A log that was never shipped begins with its first record.
    ///
    /// # Errors
    /// [`EngineError`].
    pub async fn position(&self, engine: &Engine) -> Result<ShippedPosition, EngineError> {
        static JOIN: Statement = Statement::new(
            "insert into mg.shipped (replica, log, seq, newest) values ($1, $2, 0, 0) on conflict (replica, log) do nothing",
            &[Type::TEXT, Type::TEXT],
        );
        static READ: Statement = Statement::new(
            "select seq, coalesce((select max(size) from mg.head where replica = $1 and log = $2), 0)
            from mg.shipped where replica = $1 and log = $2",
            &[Type::TEXT, Type::TEXT],
        );
        engine.execute(Line::Bulk, &JOIN, &[&&*self.replica, &&*self.log]).await?;
        let rows = engine.query(Line::Bulk, &READ, &[&&*self.replica, &&*self.log]).await?;
        let number = |at| rows.first().and_then(|row| row.try_get::<_, i64>(at).ok()).unwrap_or(0).cast_unsigned();
        Ok(ShippedPosition { seq: number(0), head: number(1) })
    }

    /// Ships these records, unless the log's position is another. Returns whether it was done.
    ///
    /// # Errors
    /// [`EngineError`]; if it is unclear whether it was done, [`ShippedLog::position`] tells.
    pub async fn ship(&self, engine: &Engine, shipment: &Shipment) -> Result<bool, EngineError> {
        static MOVE: Statement = Statement::new(
            "update mg.shipped set seq = $4, newest = $5, reported = clock_timestamp()
            where replica = $1 and log = $2 and seq = $3",
            &[Type::TEXT, Type::TEXT, Type::INT8, Type::INT8, Type::INT8],
        );
        let (old, new) = shipment.moves;
        let [old, new, newest] = [old, new, shipment.newest].map(u64::cast_signed);
        let (replica, log) = (&*self.replica, &*self.log);
        let done = engine.transaction(Line::Bulk, async |transaction| {
            if transaction.execute(&MOVE, &[&replica, &log, &old, &new, &newest]).await? == 0 {
                return Ok(false);
            }
            if shipment.records.count() > 0 {
                transaction.copy_in(COPY, shipment.records.finished()).await?;
            }
            if !shipment.ledger.is_empty() {
                add_to_ledger(transaction, replica, &shipment.ledger).await?;
            }
            Ok(true)
        });
        done.await
    }

    /// Lets shipping go on from an earlier record: the log has others with the numbers after it than were shipped.
    ///
    /// # Errors
    /// [`EngineError`].
    pub async fn rewind(&self, engine: &Engine, from: u64, to: u64) -> Result<(), EngineError> {
        static REWIND: Statement = Statement::new(
            "update mg.shipped set seq = $4 where replica = $1 and log = $2 and seq = $3",
            &[Type::TEXT, Type::TEXT, Type::INT8, Type::INT8],
        );
        let [from, to] = [from, to].map(u64::cast_signed);
        engine.execute(Line::Bulk, &REWIND, &[&&*self.replica, &&*self.log, &from, &to]).await.map(drop)
    }
}

/// Rows are locked in one order, so that no two replicas wait for each other.
async fn add_to_ledger(
    transaction: &EngineTransaction<'_>,
    replica: &str,
    gains: &[LedgerGain],
) -> Result<(), EngineError> {
    static ADD: Statement = Statement::new(
        "insert into mg.ledger as l
        select $1, hour, caller, operation, organization, sum(a)::bigint, sum(b)::bigint, sum(c)::bigint, sum(d)::bigint,
            sum(e)::bigint, sum(f)::bigint from unnest($2::bigint[], $3::text[], $4::text[], $5::bigint[], $6::bigint[], $7::bigint[], $8::bigint[],
            $9::bigint[], $10::bigint[], $11::bigint[]) as gain(hour, caller, operation, organization, a, b, c, d, e, f)
        group by hour, caller, operation, organization order by hour, caller, operation, organization
        on conflict (hour, replica, caller, operation, organization) do update set
            requests = l.requests + excluded.requests, spent = l.spent + excluded.spent, saved = l.saved + excluded.saved,
            waited_us = l.waited_us + excluded.waited_us, refused = l.refused + excluded.refused,
            out_of_quota = l.out_of_quota + excluded.out_of_quota",
        &[
            Type::TEXT,
            Type::INT8_ARRAY,
            Type::TEXT_ARRAY,
            Type::TEXT_ARRAY,
            Type::INT8_ARRAY,
            Type::INT8_ARRAY,
            Type::INT8_ARRAY,
            Type::INT8_ARRAY,
            Type::INT8_ARRAY,
            Type::INT8_ARRAY,
            Type::INT8_ARRAY,
        ],
    );
    let hours: Vec<i64> = gains.iter().map(|gain| gain.hour).collect();
    let callers: Vec<_> = gains.iter().map(|gain| column_text(&gain.caller).into_owned()).collect();
    let operations: Vec<_> = gains.iter().map(|gain| column_text(&gain.operation).into_owned()).collect();
    let organizations: Vec<i64> = gains.iter().map(|gain| gain.organization).collect();
    let sum = |of: fn(&[i64; 6]) -> i64| gains.iter().map(|gain| of(&gain.sums)).collect::<Vec<i64>>();
    let [requests, spent, saved, waited, refused, out] = [
        sum(|[requests, ..]| *requests),
        sum(|[_, spent, ..]| *spent),
        sum(|[_, _, saved, ..]| *saved),
        sum(|[_, _, _, waited, ..]| *waited),
        sum(|[.., refused, _]| *refused),
        sum(|[.., out]| *out),
    ];
    let sums: [&(dyn ToSql + Sync); 6] = [&requests, &spent, &saved, &waited, &refused, &out];
    let keys: [&(dyn ToSql + Sync); 5] = [&replica, &hours, &callers, &operations, &organizations];
    let parameters: Vec<_> = keys.into_iter().chain(sums).collect();
    transaction.execute(&ADD, &parameters).await.map(drop)
}

/// The days that the table has partitions for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RecordDays {
    /// Each of them, counted from 1970.
    pub known: BTreeSet<i64>,
    /// The oldest day whose records are kept, and the newest that records can be of.
    pub span: (i64, i64),
}

impl RecordDays {
    /// Whether records of this day belong in the table.
    #[must_use]
    pub const fn has_room(&self, day: i64) -> bool {
        let (first, last) = self.span;
        first <= day && day <= last
    }

    /// Makes the partitions that are missing: of today, the days to come, and those `wanted` that are kept. Drops those that are too old.
    /// Any replica does so; what two do at once is done once.
    ///
    /// # Errors
    /// [`EngineError`].
    pub async fn refresh(engine: &Engine, keep: Duration, wanted: &BTreeSet<i64>) -> Result<Self, EngineError> {
        let mut days = Self::read(engine, keep).await?;
        let missing = days.missing(wanted);
        if !missing.is_empty() {
            let sql: String = missing.iter().map(|day| making(*day)).collect();
            alter(engine, &sql).await?;
            days = Self::read(engine, keep).await?;
        }
        let old: Vec<i64> = days.known.iter().copied().filter(|day| *day < days.span.0).collect();
        for day in old {
            // A reader may be in the way for a moment; the next refresh drops it then.
            if let Err(error) = alter(engine, &format!("drop table if exists {};", name_of(day))).await {
                tracing::debug!(%error, "cannot drop a partition of old records yet");
                break;
            }
            days.known.remove(&day);
        }
        Ok(days)
    }

    fn missing(&self, wanted: &BTreeSet<i64>) -> Vec<i64> {
        let (_, last) = self.span;
        let ahead = last - DAYS_AHEAD..=last;
        let all: BTreeSet<i64> = wanted.iter().copied().filter(|day| self.has_room(*day)).chain(ahead).collect();
        all.difference(&self.known).copied().collect()
    }

    async fn read(engine: &Engine, keep: Duration) -> Result<Self, EngineError> {
        static LIST: Statement = Statement::new(
            "select floor(extract(epoch from clock_timestamp()))::bigint, c.relname::text
            from (select 1) one left join (pg_inherits i join pg_class c on c.oid = i.inhrelid)
            on i.inhparent = 'mg.record'::regclass",
            &[],
        );
        let rows = engine.query(Line::Bulk, &LIST, &[]).await?;
        let now = rows.first().and_then(|row| row.try_get::<_, i64>(0).ok()).unwrap_or(0);
        let names = rows.iter().filter_map(|row| row.try_get::<_, Option<String>>(1).ok()?);
        let keep = i64::try_from(keep.as_secs()).unwrap_or(i64::MAX);
        let day = |seconds: i64| seconds.div_euclid(begin_of_day(1));
        Ok(Self {
            known: names.filter_map(|name| day_named(&name)).collect(),
            span: (day(now.saturating_sub(keep)), day(now) + DAYS_AHEAD),
        })
    }
}

/// A partition is made beside the table and then attached, which stops no reader and no other copy.
fn making(day: i64) -> String {
    let name = name_of(day);
    let [from, to] = [day, day + 1].map(begin_of_day);
    format!(
        "create table if not exists {name} (like mg.record including defaults);
        do $$ begin
            if not exists (select from pg_inherits where inhrelid = '{name}'::regclass) then
                alter table mg.record attach partition {name} for values from (to_timestamp({from})) to (to_timestamp({to}));
            end if;
        end $$;"
    )
}

async fn alter(engine: &Engine, sql: &str) -> Result<(), EngineError> {
    let lock = format!("set local lock_timeout = '1s'; select pg_advisory_xact_lock({PARTITIONS_LOCK}); {sql}");
    let altered = engine.transaction(Line::Bulk, async |transaction| transaction.batch(&lock).await);
    altered.await
}

fn name_of(day: i64) -> String {
    let begin = Timestamp::from_second(begin_of_day(day)).unwrap_or(Timestamp::UNIX_EPOCH);
    format!("mg.record_{}", begin.strftime("%Y%m%d"))
}

/// The day of the partition with this name, without its schema.
fn day_named(name: &str) -> Option<i64> {
    let digits = name.strip_prefix("record_")?;
    let date = jiff::civil::Date::strptime("%Y%m%d", digits).ok()?;
    let begin = jiff::tz::TimeZone::UTC.to_timestamp(date.at(0, 0, 0, 0)).ok()?;
    Some(super::copy_rows::day_of(begin))
}

/// Forgets what is older than the records are kept: hours of the ledger, heads except each log's newest, positions of logs that are gone.
///
/// # Errors
/// [`EngineError`].
pub async fn forget_old(engine: &Engine, keep: Duration) -> Result<(), EngineError> {
    static LEDGER: Statement = Statement::new(
        "delete from mg.ledger where hour < floor(extract(epoch from clock_timestamp()) / 3600)::bigint - $1",
        &[Type::INT8],
    );
    static HEADS: Statement = Statement::new(
        "delete from mg.head h where h.time < clock_timestamp() - make_interval(secs => $1)
        and exists (select from mg.head newer where newer.replica = h.replica and newer.log = h.log and newer.size > h.size)",
        &[Type::FLOAT8],
    );
    static SHIPPED: Statement = Statement::new(
        "delete from mg.shipped where reported < clock_timestamp() - make_interval(secs => $1)",
        &[Type::FLOAT8],
    );
    engine.execute(Line::Bulk, &LEDGER, &[&LEDGER_HOURS]).await?;
    engine.execute(Line::Bulk, &HEADS, &[&keep.as_secs_f64()]).await?;
    engine.execute(Line::Bulk, &SHIPPED, &[&(keep + SHIPPED_SPARE).as_secs_f64()]).await.map(drop)
}

/// How far each replica is behind, by name.
///
/// # Errors
/// [`EngineError`].
pub async fn lags(engine: &Engine) -> Result<Vec<ReplicaLag>, EngineError> {
    static LAGS: Statement = Statement::new(
        "select replica, sum(greatest(newest - seq, 0))::bigint, max(reported) from mg.shipped
        group by replica order by replica limit $1",
        &[Type::INT8],
    );
    let rows = engine.query(Line::Bulk, &LAGS, &[&LAGS_MAX]).await?;
    let lag = |row: &tokio_postgres::Row| {
        Some(ReplicaLag {
            replica: row.try_get::<_, String>(0).ok()?.into(),
            records: row.try_get::<_, i64>(1).ok()?.cast_unsigned(),
            reported: Timestamp::try_from(row.try_get::<_, SystemTime>(2).ok()?).ok()?,
        })
    };
    Ok(rows.iter().filter_map(lag).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_partition_is_named_after_its_day() {
        for day in [0, 20_787, -1] {
            let name = name_of(day);
            assert_eq!(day_named(name.strip_prefix("mg.").unwrap()), Some(day), "{name}");
        }
        assert_eq!(name_of(20_787), "mg.record_20261130");
        assert_eq!(day_named("record_caller"), None);
    }

    #[test]
    fn partitions_are_made_ahead_and_for_days_that_are_kept() {
        let days = RecordDays { known: BTreeSet::from([100, 101]), span: (70, 102) };
        assert_eq!(days.missing(&BTreeSet::from([69, 70, 100, 103])), [70, 102]);
        assert!(days.has_room(70) && days.has_room(102) && !days.has_room(69) && !days.has_room(103));
    }
}

//! Reads the records of all replicas, newest first. Conditions only narrow: whoever asked decides on each line.

use std::cmp::Ordering;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use jiff::Timestamp;
use tokio_postgres::Row;
use tokio_postgres::types::{ToSql, Type};

use super::copy_rows::column_text;
use super::engine::{Engine, EngineError, Line};

/// A record's place among those of all replicas: by time, then by replica, then by number.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RecordPlace {
    /// When it happened.
    pub time: Timestamp,
    /// Whose log it is in.
    pub replica: Arc<str>,
    /// Its number there.
    pub seq: u64,
}

impl RecordPlace {
    /// The place as the cursor of a page: text that needs no escapes anywhere.
    #[must_use]
    pub fn to_cursor(&self) -> String {
        format!("{}.{}.{}", self.time.as_microsecond(), self.seq, self.replica)
    }

    /// Reads what [`RecordPlace::to_cursor`] wrote.
    #[must_use]
    pub fn parse(cursor: &str) -> Option<Self> {
        let mut parts = cursor.splitn(3, '.');
        let (time, seq, replica) = (parts.next()?, parts.next()?, parts.next()?);
        let time = Timestamp::from_microsecond(time.parse().ok()?).ok()?;
        (!replica.is_empty()).then_some(())?;
        Some(Self { time, replica: replica.into(), seq: seq.parse().ok()? })
    }
}

impl PartialOrd for RecordPlace {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for RecordPlace {
    fn cmp(&self, other: &Self) -> Ordering {
        let key = |place: &Self| (place.time.as_microsecond(), place.replica.clone(), place.seq);
        key(self).cmp(&key(other))
    }
}

/// A record of some replica.
#[derive(Clone, Debug)]
pub struct FoundRecord {
    /// Where it is.
    pub place: RecordPlace,
    /// All of it, as it is in its log.
    pub line: String,
}

/// What narrows a search. What is `None` narrows nothing.
#[derive(Clone, Debug, Default)]
pub struct RecordConditions {
    /// The replica's name.
    pub replica: Option<Arc<str>>,
    /// The caller's name.
    pub caller: Option<Arc<str>>,
    /// The organization's id.
    pub organization: Option<u64>,
    /// The operation's id.
    pub operation: Option<Arc<str>>,
    /// The kind.
    pub kind: Option<&'static str>,
    /// The lowest and the highest status.
    pub status: Option<(u16, u16)>,
    /// Where the answer came from.
    pub answer: Option<&'static str>,
    /// The request's id.
    pub request: Option<Box<str>>,
    /// The number.
    pub seq: Option<u64>,
    /// A text that the line contains.
    pub text: Option<Box<str>>,
}

/// SQL with its parameters.
struct Sql {
    text: String,
    parameters: Vec<(Box<dyn ToSql + Sync + Send>, Type)>,
}

impl Sql {
    /// Adds a condition, in which `?` stands for the parameter.
    fn and(&mut self, condition: &str, parameter: impl ToSql + Sync + Send + 'static, kind: Type) {
        self.parameters.push((Box::new(parameter), kind));
        self.text.push_str(" and ");
        self.text.push_str(&condition.replace('?', &format!("${}", self.parameters.len())));
    }
}

impl RecordConditions {
    fn sql(&self) -> Sql {
        let mut sql = Sql {
            text: "select time, replica, seq, line from mg.record where true".to_owned(),
            parameters: Vec::new(),
        };
        let text = |text: &str| column_text(text).into_owned();
        if let Some(replica) = &self.replica {
            sql.and("replica = ?", text(replica), Type::TEXT);
        }
        if let Some(caller) = &self.caller {
            sql.and("caller = ?", text(caller), Type::TEXT);
        }
        if let Some(organization) = self.organization {
            sql.and("organization = ?", organization.cast_signed(), Type::INT8);
        }
        if let Some(operation) = &self.operation {
            sql.and("operation = ?", text(operation), Type::TEXT);
        }
        if let Some(kind) = self.kind {
            sql.and("kind = ?", kind, Type::TEXT);
        }
        if let Some((low, high)) = self.status {
            sql.and("status >= ?", low.cast_signed(), Type::INT2);
            sql.and("status <= ?", high.cast_signed(), Type::INT2);
        }
        if let Some(answer) = self.answer {
            sql.and("answer = ?", answer, Type::TEXT);
        }
        if let Some(request) = &self.request {
            sql.and("request = ?", text(request), Type::TEXT);
        }
        if let Some(seq) = self.seq {
            sql.and("seq = ?", seq.cast_signed(), Type::INT8);
        }
        if let Some(wanted) = &self.text {
            sql.and("strpos(line, ?) > 0", wanted.to_string(), Type::TEXT);
        }
        sql
    }

    /// The newest records of these times, both included, that are older than `before`; at most `limit`.
    ///
    /// # Errors
    /// [`EngineError`]; one with PostgreSQL's code for a cancelled statement, if it takes longer than `time_max`.
    pub async fn search(
        &self,
        engine: &Engine,
        times: (Timestamp, Timestamp),
        before: Option<&RecordPlace>,
        limit: usize,
        time_max: Duration,
    ) -> Result<Vec<FoundRecord>, EngineError> {
        let mut sql = self.sql();
        sql.and("time >= ?", system_time(times.0), Type::TIMESTAMPTZ);
        sql.and("time <= ?", system_time(times.1), Type::TIMESTAMPTZ);
        if let Some(place) = before {
            // The first condition says nothing new, but the engine finds partitions by it.
            sql.and("time <= ?", system_time(place.time), Type::TIMESTAMPTZ);
            let at = sql.parameters.len();
            sql.parameters.push((Box::new(place.replica.to_string()), Type::TEXT));
            sql.parameters.push((Box::new(place.seq.cast_signed()), Type::INT8));
            let (replica, seq) = (at + 1, at + 2);
            sql.text.push_str(&format!(
                " and (time, replica collate \"C\", seq) < (${at}, ${replica} collate \"C\", ${seq})"
            ));
        }
        let limit = i64::try_from(limit).unwrap_or(i64::MAX);
        sql.text.push_str(&format!(" order by time desc, replica collate \"C\" desc, seq desc limit {limit}"));
        let rows = read(engine, &sql.text, &sql.parameters, time_max).await?;
        Ok(rows.iter().filter_map(FoundRecord::of).collect())
    }
}

fn system_time(time: Timestamp) -> SystemTime {
    SystemTime::try_from(time).unwrap_or(SystemTime::UNIX_EPOCH)
}

impl FoundRecord {
    fn of(row: &Row) -> Option<Self> {
        let time = Timestamp::try_from(row.try_get::<_, SystemTime>(0).ok()?).ok()?;
        let (replica, seq) = (row.try_get::<_, String>(1).ok()?, row.try_get::<_, i64>(2).ok()?);
        let place = RecordPlace { time, replica: replica.into(), seq: seq.cast_unsigned() };
        Some(Self { place, line: row.try_get(3).ok()? })
    }
}

/// Reads in a transaction of its own that the engine ends in time, whoever still waits for it. Not prepared: how much a condition narrows
/// depends on its value.
pub(super) async fn read(
    engine: &Engine,
    sql: &str,
    parameters: &[(Box<dyn ToSql + Sync + Send>, Type)],
    time_max: Duration,
) -> Result<Vec<Row>, EngineError> {
    let limit = format!("set transaction read only; set local statement_timeout = {}", time_max.as_millis().max(1));
    let rows = engine.transaction(Line::Bulk, async |transaction| {
        transaction.batch(&limit).await?;
        let parameters: Vec<(&(dyn ToSql + Sync), Type)> =
            parameters.iter().map(|(value, kind)| (&**value as &(dyn ToSql + Sync), kind.clone())).collect();
        transaction.query_once(sql, &parameters).await
    });
    rows.await
}

#[cfg(test)]
mod tests {
    use super::*;

    fn place(time: &str, replica: &str, seq: u64) -> RecordPlace {
        RecordPlace { time: time.parse().unwrap(), replica: replica.into(), seq }
    }

    #[test]
    fn a_cursor_reads_back_what_it_wrote() {
        for one in
            [place("2026-07-01T12:00:00.000001Z", "makegate-0.a.b", 17), place("1969-07-01T12:00:00Z", "m", u64::MAX)]
        {
            assert_eq!(RecordPlace::parse(&one.to_cursor()), Some(one.clone()));
        }
        for bad in ["", "17", "1.2", "1.2.", "x.2.m", "1.x.m", "9999999999999999999.1.m"] {
            assert_eq!(RecordPlace::parse(bad), None, "{bad}");
        }
    }

    #[test]
    fn places_are_ordered_by_time_replica_and_number() {
        let (early, late) = ("2026-07-01T12:00:00Z", "2026-07-01T12:00:00.000001Z");
        let mut all = [place(late, "a", 1), place(early, "b", 1), place(early, "a", 2), place(early, "a", 1)];
        all.sort();
        assert_eq!(all, [place(early, "a", 1), place(early, "a", 2), place(early, "b", 1), place(late, "a", 1)]);
    }

    #[test]
    fn conditions_are_numbered_as_their_parameters() {
        let conditions = RecordConditions {
            caller: Some("billing".into()),
            status: Some((400, 499)),
            seq: Some(7),
            ..RecordConditions::default()
        };
        let sql = conditions.sql();
        assert!(
            sql.text.ends_with("where true and caller = $1 and status >= $2 and status <= $3 and seq = $4"),
            "{}",
            sql.text
        );
        assert_eq!(sql.parameters.len(), 4);
    }
}

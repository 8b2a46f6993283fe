//! Reads the ledger of all replicas.

use std::sync::Arc;
use std::time::Duration;

use tokio_postgres::Row;
use tokio_postgres::types::{ToSql, Type};

use super::copy_rows::column_text;
use super::engine::{Engine, EngineError};
use super::records::read;
use super::shipping::LedgerGain;

/// What is asked of the ledger.
#[derive(Clone, Debug)]
pub struct LedgerSearch {
    /// The first hour since 1970, and the first that is not asked for.
    pub hours: (i64, i64),
    /// The replica's name.
    pub replica: Option<Arc<str>>,
    /// The caller's name.
    pub caller: Option<Arc<str>>,
    /// The operation's id.
    pub operation: Option<Arc<str>>,
    /// The organization's number.
    pub organization: Option<i64>,
    /// What tells rows apart.
    pub group: LedgerGroup,
}

/// What tells rows of the ledger apart.
#[derive(Clone, Copy, Debug)]
pub struct LedgerGroup {
    /// The hour.
    pub hour: bool,
    /// The caller.
    pub caller: bool,
    /// The operation.
    pub operation: bool,
    /// The organization.
    pub organization: bool,
}

impl LedgerSearch {
    /// Sums, the newest hour first; at most `limit`. What does not tell rows apart is 0 or empty.
    ///
    /// # Errors
    /// [`EngineError`].
    pub async fn rows(
        &self,
        engine: &Engine,
        limit: usize,
        time_max: Duration,
    ) -> Result<Vec<LedgerGain>, EngineError> {
        let LedgerGroup { hour, caller, operation, organization } = self.group;
        let column = |is_there: bool, name: &'static str, none: &'static str| if is_there { name } else { none };
        let mut sql = format!(
            "select {}, {}, {}, {}, sum(requests)::bigint, sum(spent)::bigint, sum(saved)::bigint, sum(waited_us)::bigint,
            sum(refused)::bigint, sum(out_of_quota)::bigint from mg.ledger where hour >= $1 and hour < $2",
            column(hour, "hour", "0::bigint"),
            column(caller, "caller", "''::text"),
            column(operation, "operation", "''::text"),
            column(organization, "organization", "0::bigint"),
        );
        let mut parameters: Vec<(Box<dyn ToSql + Sync + Send>, Type)> =
            vec![(Box::new(self.hours.0), Type::INT8), (Box::new(self.hours.1), Type::INT8)];
        let texts = [("replica", &self.replica), ("caller", &self.caller), ("operation", &self.operation)];
        for (name, wanted) in texts.into_iter().filter_map(|(name, wanted)| Some((name, wanted.as_deref()?))) {
            parameters.push((Box::new(column_text(wanted).into_owned()), Type::TEXT));
            sql.push_str(&format!(" and {name} = ${}", parameters.len()));
        }
        if let Some(organization) = self.organization {
            parameters.push((Box::new(organization), Type::INT8));
            sql.push_str(&format!(" and organization = ${}", parameters.len()));
        }
        sql.push_str(&format!(" group by 1, 2, 3, 4 order by 1 desc limit {limit}"));
        Ok(read(engine, &sql, &parameters, time_max).await?.iter().filter_map(gain).collect())
    }
}

fn gain(row: &Row) -> Option<LedgerGain> {
    let text = |at| row.try_get::<_, String>(at).map(String::into_boxed_str).ok();
    let number = |at: usize| row.try_get::<_, i64>(at).unwrap_or(0);
    Some(LedgerGain {
        hour: number(0),
        caller: text(1)?,
        operation: text(2)?,
        organization: number(3),
        sums: std::array::from_fn(|at| number(at + 4)),
    })
}

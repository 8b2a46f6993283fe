//! Tries an engine as `makegate check --online` does: what would stop a replica, and what would make it slow or unsafe.

use std::time::Duration;

use jiff::Timestamp;
use tokio_postgres::Row;

use crate::config::ReplicasConfig;
use crate::replicas::engine::{EngineError, EngineSession, Line};
use crate::replicas::schema;

/// The oldest PostgreSQL that will do, as `server_version_num` says it.
const OLDEST: i32 = 140_000;
/// How many announcements are tried, and how long each may take.
const ANNOUNCEMENTS: u32 = 3;
const HEARD_WITHIN: Duration = Duration::from_millis(500);
/// From here on the difference of the clocks is told: times in records come from this machine, those in the database from the other.
const CLOCKS_APART_MAX_MS: i64 = 2_000;
/// The tables that a replica writes to.
const TABLES: [&str; 14] = [
    "about", "replica", "write", "record", "shipped", "head", "ledger", "epoch", "member", "fence_head", "fence",
    "rate", "bucket", "turn",
];

/// What is wrong with an engine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TrialFinding {
    /// Whether a replica could not take part.
    pub is_fatal: bool,
    /// What is wrong.
    pub what: String,
    /// What to do.
    pub help: String,
}

impl TrialFinding {
    fn fatal(what: impl Into<String>, help: impl Into<String>) -> Self {
        Self { is_fatal: true, what: what.into(), help: help.into() }
    }

    fn warning(what: impl Into<String>, help: impl Into<String>) -> Self {
        Self { is_fatal: false, what: what.into(), help: help.into() }
    }
}

/// Whether this is an engine on which the protocols hold at all: a PostgreSQL that is new enough and can be written to.
///
/// # Errors
/// [`EngineError`].
pub async fn check_kind(session: &EngineSession) -> Result<Option<TrialFinding>, EngineError> {
    let sql = "select version(), current_setting('server_version_num')::int, pg_is_in_recovery()";
    let row = match session.timed(session.query_one(sql, &[])).await {
        Ok(row) => row,
        // Another engine may lack one of the functions.
        Err(EngineError::Failed { message, .. }) => return Ok(Some(not_postgresql(&message))),
        Err(error) => return Err(error),
    };
    let (version, number, is_standby): (String, i32, bool) = (row.get(0), row.get(1), row.get(2));
    let others = ["Cockroach", "YB", "Yugabyte", "Redshift", "Materialize", "CrateDB"];
    if let Some(other) = others.iter().find(|name| version.contains(*name)) {
        return Ok(Some(not_postgresql(&format!("it is {other}: {version}"))));
    }
    if number < OLDEST {
        return Ok(Some(TrialFinding::fatal(
            format!("the database is PostgreSQL {}.{}, which is too old", number / 10_000, number % 10_000),
            "use PostgreSQL 14 or newer",
        )));
    }
    Ok(is_standby.then(|| {
        TrialFinding::fatal(
            "the database is a standby, which cannot be written to",
            "name the primary in the URL, or all hosts",
        )
    }))
}

fn not_postgresql(why: &str) -> TrialFinding {
    let what = format!("the database is not PostgreSQL ({why})");
    TrialFinding::fatal(what, "use PostgreSQL 14 or newer: others speak its language and do not keep its promises")
}

/// Everything that is wrong with an engine for this replica, asked over two connections of its own.
///
/// # Errors
/// [`EngineError`].
pub async fn try_engine(
    [session, other]: [&EngineSession; 2],
    config: &ReplicasConfig,
    key: Option<&[u8; 32]>,
    now: Timestamp,
) -> Result<Vec<TrialFinding>, EngineError> {
    if let Some(kind) = check_kind(session).await? {
        return Ok(vec![kind]);
    }
    let mut findings = Vec::new();
    findings.extend(schema_fault(session, key).await?);
    findings.extend(settings(session, config, now).await?);
    if findings.iter().all(|finding| !finding.is_fatal) {
        findings.extend(rights(session).await?);
    }
    if !hears(session, other).await? {
        let help = "give the connection a session of its own (session pooling, or PostgreSQL's own port): behind a pooler that does not, \
                    fences are asked for instead of heard, and statements are not prepared";
        findings.push(TrialFinding::warning("announcements (LISTEN) are not heard", help));
    }
    Ok(findings)
}

async fn schema_fault(session: &EngineSession, key: Option<&[u8; 32]>) -> Result<Option<TrialFinding>, EngineError> {
    Ok(schema::fault(super::about(session).await?, key).map(|fault| {
        let told = fault.to_string();
        let (what, help) = told.split_once(": ").unwrap_or((&told, ""));
        TrialFinding::fatal(what, help)
    }))
}

async fn settings(
    session: &EngineSession,
    config: &ReplicasConfig,
    now: Timestamp,
) -> Result<Vec<TrialFinding>, EngineError> {
    let sql =
        "select current_setting('synchronous_commit'), current_setting('fsync'), current_setting('full_page_writes'),
                      current_setting('max_connections')::int, (extract(epoch from clock_timestamp()) * 1000)::int8,
                      current_setting('default_transaction_isolation'), current_setting('statement_timeout')";
    let row: Row = session.timed(session.query_one(sql, &[])).await?;
    let mut findings = Vec::new();
    for (column, name) in [(0, "synchronous_commit"), (1, "fsync"), (2, "full_page_writes")] {
        if row.get::<_, &str>(column) == "off" {
            let help = match column {
                0 => "alter role USER in database NAME set synchronous_commit = on",
                _ => "switch it on in postgresql.conf",
            };
            let what = format!("{name} is off: a crash of the database forgets writes that it has acknowledged");
            findings.push(TrialFinding::fatal(what, help));
        }
    }
    let most = row.get::<_, i32>(3);
    let needed = usize::try_from(config.max).unwrap_or(usize::MAX).saturating_mul(Line::ALL.len());
    if usize::try_from(most).is_ok_and(|most| most < needed) {
        let what = format!("max_connections is {most}, and {} replicas make {needed} connections", config.max);
        let help = "raise it, or write the number of replicas that there can be in replicas.max";
        findings.push(TrialFinding::warning(what, help));
    }
    let apart = row.get::<_, i64>(4) - now.as_millisecond();
    if apart.abs() > CLOCKS_APART_MAX_MS {
        let what = format!("the clocks of this machine and of the database are {:.1} s apart", millis(apart.abs()));
        findings.push(TrialFinding::warning(what, "let both follow a time server (chrony, systemd-timesyncd)"));
    }
    if row.get::<_, &str>(5) != "read committed" {
        let help = "alter role USER in database NAME set default_transaction_isolation = 'read committed'";
        findings.push(TrialFinding::fatal("default_transaction_isolation is not `read committed`", help));
    }
    if row.get::<_, &str>(6) != "0" {
        let help = "alter role USER in database NAME set statement_timeout = 0: makegate limits the time of each statement itself";
        findings.push(TrialFinding::warning("statement_timeout is set", help));
    }
    Ok(findings)
}

fn millis(ms: i64) -> f64 {
    Duration::from_millis(ms.unsigned_abs()).as_secs_f64()
}

/// Whether this user may do what a replica does. Days of records are partitions, which only the table's owner makes and drops.
async fn rights(session: &EngineSession) -> Result<Option<TrialFinding>, EngineError> {
    let sql = "select array(select t from unnest($1::text[]) as t
                 where not coalesce(has_table_privilege(format('mg.%I', t), 'select, insert, update, delete'), false)),
               coalesce((select pg_has_role(c.relowner, 'usage') from pg_class c where c.oid = to_regclass('mg.record')), false),
               current_user::text";
    let tables: Vec<&str> = TABLES.to_vec();
    let row = session.timed(session.query_one(sql, &[&tables])).await?;
    let (denied, owns, user): (Vec<String>, bool, String) = (row.get(0), row.get(1), row.get(2));
    let help = "run `makegate replicas init` with the same user that the replicas use";
    if !denied.is_empty() {
        let what = format!("the user {user} must not change mg.{}", denied.join(", mg."));
        return Ok(Some(TrialFinding::fatal(what, help)));
    }
    Ok((!owns).then(|| {
        TrialFinding::fatal(format!("the user {user} does not own mg.record, whose parts replicas make and drop"), help)
    }))
}

/// Whether one session hears what another one announces. A pooler may well tell it one announcement, when it is just asking something.
async fn hears(session: &EngineSession, other: &EngineSession) -> Result<bool, EngineError> {
    for _ in 0..ANNOUNCEMENTS {
        let before = session.heard();
        other.timed(other.batch_execute("select pg_notify('mg_fence', 'hello')")).await?;
        let heard = async {
            while session.heard() == before {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        if tokio::time::timeout(HEARD_WITHIN, heard).await.is_err() {
            return Ok(false);
        }
    }
    Ok(true)
}

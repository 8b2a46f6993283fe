//! `makegate replicas status`: who takes part, and how the database is.

use std::time::Duration;

use clap::{Args, ValueEnum};
use serde_json::{Value, json};

use super::SharedEngine;
use crate::cli::ConfigFile;
use crate::cli::failure::CommandFailure;
use crate::cli::output::{self, Format};
use crate::cli::process::{self, ColorChoice};
use crate::replicas::schema;
use crate::replicas::setup::status::{self, EngineStatus, ReplicaStatus};
use crate::tasks::Tasks;

const COLUMNS: [&str; 8] =
    ["name", "state", "version", "config_sha256", "joined", "fences_behind", "open_writes", "shipped"];

/// Shows the replicas and the database that they share.
///
/// Asks the database, so it works beside running replicas and without any. A replica is live while it beats, gone once it has stopped or the
/// others have given it up, and left after `makegate replicas leave`; it is silent if the database calls it live, but no beat came while the
/// command looked. (Operators see more of a running replica at /replicas.)
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  makegate replicas status --config makegate.toml
  makegate replicas status --config makegate.toml -o json | jq '.replicas[].state'")]
pub(in crate::cli) struct StatusCommand {
    #[command(flatten)]
    config: ConfigFile,
    /// Output format: table, or json (one object).
    #[arg(short = 'o', long, value_enum, default_value = "table", hide_possible_values = true)]
    format: StatusFormat,
}

/// The form of the status.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum StatusFormat {
    /// For people.
    Table,
    /// For programs.
    Json,
}

impl StatusCommand {
    pub(super) fn run(&self, color: ColorChoice) -> Result<(), CommandFailure> {
        let shared = SharedEngine::read(&self.config, color)?;
        let tasks = Tasks::new();
        let (replicas, engine) = process::block_on(look(&shared, &tasks))?;
        match self.format {
            StatusFormat::Json => Ok(output::json(&object(&shared, &replicas, &engine).to_string())?),
            StatusFormat::Table => table(&shared, &replicas, &engine),
        }
    }
}

async fn look(shared: &SharedEngine, tasks: &Tasks) -> Result<(Vec<ReplicaStatus>, EngineStatus), CommandFailure> {
    let session = shared.connect(tasks).await?;
    if let Some(fault) =
        schema::fault(crate::replicas::setup::about(&session).await.map_err(CommandFailure::failed)?, None)
    {
        return Err(CommandFailure::usage(fault));
    }
    let failed = CommandFailure::failed;
    let mut replicas = status::replicas(&session).await.map_err(failed)?;
    if replicas.iter().any(|replica| replica.state == "live") {
        tokio::time::sleep(two_beats(shared.section.lease)).await;
        let before = std::mem::replace(&mut replicas, status::replicas(&session).await.map_err(failed)?);
        for replica in replicas.iter_mut().filter(|replica| replica.state == "live") {
            let is_silent = before.iter().any(|seen| seen.name == replica.name && seen.beats == replica.beats);
            if is_silent {
                replica.state = "silent".to_owned();
            }
        }
    }
    Ok((replicas, status::engine(&session).await.map_err(failed)?))
}

/// Replicas beat five times per lease.
fn two_beats(lease: Duration) -> Duration {
    lease * 2 / 5
}

fn object(shared: &SharedEngine, replicas: &[ReplicaStatus], engine: &EngineStatus) -> Value {
    let replicas: Vec<_> = replicas.iter().map(replica_object).collect();
    json!({
        "replicas": replicas,
        "epoch": engine.epoch.as_ref().map(|id| json!({"id": id, "age_ms": engine.epoch_age.map(|age| age.as_millis())})),
        "engine": {
            "address": shared.target.address(),
            "version": engine.version,
            "time": engine.time,
            "schema": engine.schema,
            "dead_rows": engine.dead_rows,
            "bytes": engine.bytes,
            "record_bytes": engine.record_bytes,
        },
    })
}

fn replica_object(replica: &ReplicaStatus) -> Value {
    json!({
        "name": replica.name,
        "state": replica.state,
        "version": replica.version,
        "config_sha256": replica.config_sha256,
        "joined": replica.joined,
        "fences_behind": replica.fences_behind,
        "open_writes": replica.open_writes,
        "shipped": replica.shipped,
    })
}

fn table(shared: &SharedEngine, replicas: &[ReplicaStatus], engine: &EngineStatus) -> Result<(), CommandFailure> {
    let cell = |value: &Value| match value {
        Value::String(text) => text.clone(),
        Value::Null => String::new(),
        Value::Bool(_) | Value::Number(_) | Value::Array(_) | Value::Object(_) => value.to_string(),
    };
    let shown = |row: &Value, name: &str| {
        let text = row.get(name).map(cell).unwrap_or_default();
        // As much of the hash as tells two configurations apart.
        if name == "config_sha256" { text.chars().take(12).collect() } else { text }
    };
    let cells: Vec<_> = replicas.iter().map(replica_object).map(|row| COLUMNS.map(|name| shown(&row, name))).collect();
    let rows: Vec<_> = cells.iter().map(|row| row.each_ref().map(String::as_str)).collect();
    output::rows(Format::Table, COLUMNS, &rows)?;
    let age = engine.epoch_age.map(|age| format!(", {} s old", age.as_secs())).unwrap_or_default();
    let epoch = engine.epoch.as_deref().unwrap_or("none: no replica has joined since the database lost its soft state");
    output::line(&format!("\nepoch: {epoch}{age}"))?;
    let time = engine.time.map(|time| time.to_string()).unwrap_or_default();
    let (address, version, schema) = (shared.target.address(), &engine.version, engine.schema);
    output::line(&format!("database: {address}, PostgreSQL {version}, schema {schema}, its time {time}"))?;
    let (mib, records) = (mebibytes(engine.bytes), mebibytes(engine.record_bytes));
    Ok(output::line(&format!("tables: {mib} MiB, of which records {records} MiB; dead rows: {}", engine.dead_rows))?)
}

const fn mebibytes(bytes: i64) -> i64 {
    (bytes + (1 << 19)) >> 20
}

//! `makegate doubts`: lists and settles writes whose effect on Make is unknown.

use std::io::{self, Write as _};
use std::path::Path;

use clap::{Args, Subcommand};
use jiff::Timestamp;
use serde::Deserialize;
use serde_json::{Map, Value, json};

use super::client::OperatorClient;
use super::failure::CommandFailure;
use super::output::{self, Format};
use super::process::{self, ColorChoice};
use super::source::{DataSource, SourceOptions};
use crate::audit::{self, Doubt};
use crate::ids::RequestId;
use crate::operator::json_cell;

/// Table columns; the last two are unknown for writes read from files.
const COLUMNS: [&str; 8] = ["request", "time", "caller", "operation", "organization", "path", "looks", "why"];
/// The same where there are several replicas.
const COLUMNS_OF_SEVERAL: [&str; 9] =
    ["request", "time", "replica", "caller", "operation", "organization", "path", "looks", "why"];

/// Lists and settles writes in doubt.
///
/// A write is in doubt while nobody knows whether Make carried it out: it was sent, and then the connection broke or
/// time ran out. Equal writes of the same caller are held until it is settled. makegate settles some doubts itself, by
/// checking what became of the write.
#[derive(Debug, Subcommand)]
#[command(after_help = "\
Examples:
  makegate doubts list --config makegate.toml
  makegate doubts settle 01jc-4711 --as not-done --config makegate.toml")]
pub(super) enum DoubtsCommand {
    List(ListCommand),
    Settle(SettleCommand),
}

/// Lists the writes in doubt, oldest first.
///
/// With --config, asks the running makegate if its operator door responds, and otherwise reads the log's files. stderr
/// says which.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  makegate doubts list --config makegate.toml
  makegate doubts list --url http://127.0.0.1:8081 -o json | jq -r .request")]
pub(super) struct ListCommand {
    #[command(flatten)]
    source_options: SourceOptions,
    /// table, json (one object per line) or csv.
    #[arg(short = 'o', long, value_enum, default_value = "table", hide_possible_values = true)]
    format: Format,
}

/// Settles a write in doubt, or all of a caller, once you have checked in Make what became of them.
///
/// The running makegate records the settlement and stops holding equal writes. With --config, the operator door and key
/// come from the configuration.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  makegate doubts settle 01jc-4711 --as done --note 'the invoice is there' --config makegate.toml
  makegate doubts settle 01jc-4711 --as not-done --url http://127.0.0.1:8081
  makegate doubts settle --all-of billing --before 2026-07-01T12:00:00Z --as not-done --config makegate.toml")]
pub(super) struct SettleCommand {
    /// The write's request id, as `makegate doubts list` shows it.
    #[arg(required_unless_present = "all_of", conflicts_with = "all_of")]
    request: Option<String>,
    /// Settles all writes in doubt of this caller.
    #[arg(long, value_name = "CALLER")]
    all_of: Option<String>,
    /// Only those of this operation, such as variables.create.
    #[arg(long, value_name = "ID", requires = "all_of", conflicts_with = "request")]
    operation: Option<String>,
    /// Only those from before this time, such as 2026-07-01T12:00:00Z.
    #[arg(long, value_name = "TIME", requires = "all_of", conflicts_with = "request")]
    before: Option<Timestamp>,
    /// What became of it: done or not-done.
    #[arg(long = "as", value_name = "WHAT", value_parser = ["done", "not-done"], hide_possible_values = true)]
    what: String,
    /// How you know; goes into the record.
    #[arg(long, value_name = "TEXT", default_value = "", hide_default_value = true)]
    note: String,
    #[command(flatten)]
    source_options: SourceOptions,
}

impl DoubtsCommand {
    pub(super) fn run(&self, color: ColorChoice) -> Result<(), CommandFailure> {
        match self {
            Self::List(list) => list.run(color),
            Self::Settle(settle) => settle.run(color),
        }
    }
}

/// A page of `/doubts.json`.
#[derive(Deserialize)]
struct DoubtsAnswer {
    doubts: Vec<Map<String, Value>>,
}

/// The answer to settling all writes in doubt of a caller.
#[derive(Deserialize)]
struct SettledAll {
    settled: u64,
    left: u64,
}

impl ListCommand {
    fn run(&self, color: ColorChoice) -> Result<(), CommandFailure> {
        let doubts = match self.source_options.source(color)? {
            DataSource::Running(client) => process::block_on(running(&client))?,
            DataSource::Files(read) => match process::block_on(self.source_options.door(&read.config))? {
                Some(client) => {
                    writeln!(io::stderr(), "From the makegate running at {}:", client.url())?;
                    process::block_on(running(&client))?
                }
                None => files(&read.config.audit.dir)?,
            },
        };
        self.print(&doubts)
    }

    fn print(&self, doubts: &[Map<String, Value>]) -> Result<(), CommandFailure> {
        if doubts.is_empty() {
            writeln!(io::stderr(), "No write is in doubt.")?;
        }
        if self.format == Format::Json {
            return Ok(doubts.iter().try_for_each(|doubt| output::json(&Value::Object(doubt.clone()).to_string()))?);
        }
        if doubts.iter().any(|doubt| doubt.contains_key("replica")) {
            self.print_rows(COLUMNS_OF_SEVERAL, doubts)
        } else {
            self.print_rows(COLUMNS, doubts)
        }
    }

    fn print_rows<const N: usize>(
        &self,
        columns: [&str; N],
        doubts: &[Map<String, Value>],
    ) -> Result<(), CommandFailure> {
        let cells: Vec<_> = doubts.iter().map(|doubt| columns.map(|name| json_cell(doubt.get(name)))).collect();
        let rows: Vec<_> = cells.iter().map(|row| row.each_ref().map(String::as_str)).collect();
        Ok(output::rows(self.format, columns, &rows)?)
    }
}

async fn running(client: &OperatorClient) -> Result<Vec<Map<String, Value>>, CommandFailure> {
    let text = client.text("/doubts.json").await?;
    let page = serde_json::from_str::<DoubtsAnswer>(&text);
    page.map(|page| page.doubts)
        .map_err(|error| client.failed(&format!("the response is not a list of doubts: {error}")))
}

fn files(dir: &Path) -> Result<Vec<Map<String, Value>>, CommandFailure> {
    let help = "is that the folder in audit.dir, and can you read it?";
    let doubts = audit::doubts_in(dir).map_err(|error| CommandFailure::failed(format!("{error}; {help}")))?;
    let told = "No running makegate responds; from the log's files, all writes without a known outcome";
    writeln!(io::stderr(), "{told} ({}):", dir.display())?;
    let members = |doubt: Doubt| {
        let members = json!({
            "intent": doubt.intent,
            "request": doubt.request.as_str(),
            "time": doubt.time,
            "caller": doubt.caller,
            "operation": doubt.operation,
            "organization": doubt.organization,
            "path": doubt.path,
        });
        members.as_object().cloned().unwrap_or_default()
    };
    Ok(doubts.into_iter().map(members).collect())
}

impl SettleCommand {
    fn run(&self, color: ColorChoice) -> Result<(), CommandFailure> {
        let request = self.request.as_ref().map(|request| {
            RequestId::parse(request.as_bytes()).ok_or_else(|| {
                CommandFailure::usage(
                    "REQUEST is not a valid request id; `makegate doubts list` shows the ids of writes in doubt",
                )
            })
        });
        let request = request.transpose()?;
        let client = match self.source_options.source(color)? {
            DataSource::Running(client) => client,
            DataSource::Files(read) => process::block_on(self.source_options.door(&read.config))?.ok_or_else(|| {
                let help = "only a running makegate can settle: start it, or give its address with --url";
                CommandFailure::failed(format!("no makegate responds at operator.listen; {help}"))
            })?,
        };
        let Some(request) = request else { return self.settle_all(&client) };
        let body = json!({"as": self.what, "note": self.note}).to_string();
        process::block_on(client.post(&format!("/doubts/{request}"), body))?;
        Ok(output::line(&format!("{request} is settled as {}", self.what))?)
    }

    fn settle_all(&self, client: &OperatorClient) -> Result<(), CommandFailure> {
        let Self { all_of, operation, before, what, note, .. } = self;
        let body = json!({"caller": all_of, "operation": operation, "before": before, "as": what, "note": note});
        let text = process::block_on(client.post("/doubts", body.to_string()))?;
        let SettledAll { settled, left } = serde_json::from_str(&text)
            .map_err(|error| client.failed(&format!("the response does not say what was settled: {error}")))?;
        output::line(&format!("{settled} writes are settled as {what}"))?;
        if left > 0 {
            return Err(
                client.failed(&format!("{left} writes are still in doubt, because the log could not record it"))
            );
        }
        Ok(())
    }
}

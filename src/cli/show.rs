//! `makegate audit show`: what became of one request.

use clap::{Args, ValueEnum};
use serde_json::{Map, Value};

use super::failure::CommandFailure;
use super::filter_options::FilterPairs;
use super::output;
use super::process::{self, ColorChoice};
use super::record_printer::{RecordFormat, RecordPrinter};
use super::record_source::{REPLICA, own_replica, page_of};
use super::record_story;
use super::record_table::TableView;
use super::source::{DataSource, SourceOptions};
use crate::audit::COLUMNS;
use crate::ids::RequestId;
use crate::operator::json_cell;

/// Tells what became of one request: who asked for what, what went to Make, how it ended, and who settled it.
///
/// REQUEST is the X-Request-Id of the answer; SEQ, the number of one of its records, will do, too. `-o table` shows all
/// fields of its records, oldest first.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  makegate audit show 0197c9a0-6b1e-7cc3-98c4-dc0c0c07398f --config makegate.toml
  makegate audit show 4711 --url http://127.0.0.1:8081 -o json")]
pub(super) struct ShowCommand {
    /// The request's id, or the number of a record.
    #[arg(value_name = "REQUEST|SEQ")]
    wanted: String,
    #[command(flatten)]
    source_options: SourceOptions,
    /// Only records of this replica, from --url; left out: of all replicas, or for a number of the one that is asked.
    #[arg(long, value_name = "NAME")]
    replica: Option<String>,
    /// text (its story), table (a field a line), json (one object per line) or csv.
    #[arg(short = 'o', long, value_enum, default_value = "text", hide_possible_values = true)]
    format: StoryFormat,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum StoryFormat {
    /// Sentences.
    Text,
    /// A field a line.
    Table,
    /// One JSON object per line.
    Json,
    /// Comma-separated values with a header (RFC 4180).
    Csv,
}

impl ShowCommand {
    pub(super) fn run(&self, color: ColorChoice) -> Result<(), CommandFailure> {
        if RequestId::parse(self.wanted.as_bytes()).is_none() {
            return Err(CommandFailure::usage("give a request id, or the number of a record"));
        }
        let source = self.source_options.source(color)?;
        let records = self.find(&source)?;
        if records.is_empty() {
            return Err(CommandFailure::failed(format!("no record has the request id or the number {}", self.wanted)));
        }
        let format = match self.format {
            StoryFormat::Text => {
                let records: Vec<_> = records.iter().map(|record| members(record)).collect();
                return Ok(output::styled(&record_story::told(&records, &TableView::stdout(color, false)))?);
            }
            StoryFormat::Table => {
                let whole: Vec<_> = records.iter().map(|record| fields(record)).collect();
                return Ok(output::line(&whole.join("\n\n"))?);
            }
            StoryFormat::Json => RecordFormat::Json,
            StoryFormat::Csv => RecordFormat::Csv,
        };
        let mut printer = RecordPrinter::in_bulk(format, color, None)?;
        records.iter().try_for_each(|record| printer.print(record))?;
        Ok(printer.end()?)
    }

    /// The records, oldest first. An id may consist of digits, so it is looked for first.
    fn find(&self, source: &DataSource) -> Result<Vec<String>, CommandFailure> {
        let by_request = request(source, &self.wanted, self.replica.as_deref())?;
        if !by_request.is_empty() || !self.wanted.bytes().all(|byte| byte.is_ascii_digit()) {
            return Ok(by_request);
        }
        // Each log has its own numbers.
        let own = match source {
            DataSource::Running(client) if self.replica.is_none() => process::block_on(own_replica(client))?,
            DataSource::Running(_) | DataSource::Files(_) => None,
        };
        let by_number = find(source, "seq", &self.wanted, self.replica.as_deref().or(own.as_deref()))?;
        let record = by_number.first().map(|record| members(record)).unwrap_or_default();
        match record.get("request").and_then(Value::as_str) {
            Some(id) => request(source, id, self.replica.as_deref()),
            None => Ok(by_number),
        }
    }
}

fn request(source: &DataSource, id: &str, replica: Option<&str>) -> Result<Vec<String>, CommandFailure> {
    find(source, "request", id, replica)
}

fn find(
    source: &DataSource,
    name: &'static str,
    value: &str,
    replica: Option<&str>,
) -> Result<Vec<String>, CommandFailure> {
    let pairs: FilterPairs<'_> = [(name, value)].into_iter().chain(replica.map(|name| (REPLICA, name))).collect();
    let page = page_of(source, &pairs)?;
    page.tell_note()?;
    Ok(page.records.iter().rev().map(|record| record.get().to_owned()).collect())
}

fn members(record: &str) -> Map<String, Value> {
    serde_json::from_str(record).unwrap_or_default()
}

/// Every field that the record has, a line each.
fn fields(record: &str) -> String {
    let members = members(record);
    let width = COLUMNS.iter().map(|name| name.len()).max().unwrap_or(0);
    let line = |name: &&str| Some(format!("{name:width$}  {}", json_cell(Some(members.get(*name)?))));
    COLUMNS.iter().filter_map(line).collect::<Vec<_>>().join("\n")
}

//! `makegate audit`: reads the log of a running gateway, or from its files.

use std::io::{self, Write as _};
use std::path::PathBuf;

use clap::{Args, Subcommand};

use super::failure::CommandFailure;
use super::filter_options::{FieldOptions, TimeRange};
use super::follow::FollowCommand;
use super::process::{self, ColorChoice};
use super::record_printer::{RecordFormat, RecordPrinter};
use super::record_source::{self, ExportedPart, page_of};
use super::show::ShowCommand;
use super::source::{DataSource, SourceOptions};
use super::verify::{HeadCommand, VerifyCommand};

/// Reads and verifies the audit log.
///
/// The log says who did what, when and with what outcome. Records come from the log's files (--config) or from a
/// running makegate (--url). A table shows the most important fields; json (one object per line) and csv show all.
#[derive(Debug, Subcommand)]
#[command(after_help = "\
Examples:
  makegate audit query --config makegate.toml --since 1h --status 4xx
  makegate audit show 0197c9a0-6b1e-7cc3-98c4-dc0c0c07398f --config makegate.toml
  makegate audit follow --url http://127.0.0.1:8081 --caller dashboard
  makegate audit export --config makegate.toml --since 30d -o csv --output june.csv
  makegate audit verify audit/ --head 2026-06-30.head")]
pub(super) enum AuditCommand {
    Query(QueryCommand),
    Show(ShowCommand),
    Follow(FollowCommand),
    Export(ExportCommand),
    Verify(VerifyCommand),
    Head(HeadCommand),
}

/// Shows records, newest first.
///
/// If there are more, the last line on stderr says how to get the next ones. The table has the columns that fit the
/// terminal, or COLUMNS, or else 80; on a terminal it has colors, and times are told as how long ago they were.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  makegate audit query --config makegate.toml --kind outcome --since 7d
  makegate audit query --url http://127.0.0.1:8081 --request job-4711 -o json
  makegate audit query --config makegate.toml --organization 11 --limit 20 -o csv")]
pub(super) struct QueryCommand {
    #[command(flatten)]
    source_options: SourceOptions,
    #[command(flatten)]
    wanted: FieldOptions,
    #[command(flatten)]
    span: TimeRange,
    /// Only records of this replica, from --url; left out: of all replicas, if there are several.
    #[arg(long, value_name = "NAME")]
    replica: Option<String>,
    /// Maximum number of records (1 to 10000).
    #[arg(long, value_name = "N", default_value = "100")]
    limit: String,
    /// Only records before the one with this number, or what the page before said.
    #[arg(long, value_name = "SEQ")]
    after: Option<String>,
    /// table (as many columns as fit), wide (all columns), json (one object per line) or csv.
    #[arg(short = 'o', long, value_enum, default_value = "table", hide_possible_values = true)]
    format: RecordFormat,
}

/// Writes all records, oldest first.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  makegate audit export --config makegate.toml > all.jsonl
  makegate audit export --url http://127.0.0.1:8081 --caller dashboard --limit 5000
  makegate audit export --config makegate.toml --since 30d -o csv --output june.csv")]
pub(super) struct ExportCommand {
    #[command(flatten)]
    source_options: SourceOptions,
    #[command(flatten)]
    wanted: FieldOptions,
    #[command(flatten)]
    span: TimeRange,
    /// Only records of this replica, from --url; left out: of all replicas, if there are several.
    #[arg(long, value_name = "NAME")]
    replica: Option<String>,
    #[command(flatten)]
    part: ExportedPart,
    /// json (one object per line), csv, table (as many columns as fit) or wide (all columns).
    #[arg(short = 'o', long, value_enum, default_value = "json", hide_possible_values = true)]
    format: RecordFormat,
    /// Write to this file instead of stdout. Until all is written, a file of this name stays as it was.
    #[arg(long, value_name = "FILE")]
    output: Option<PathBuf>,
}

impl AuditCommand {
    pub(super) fn run(&self, color: ColorChoice) -> Result<(), CommandFailure> {
        match self {
            Self::Query(query) => query.run(color),
            Self::Show(show) => show.run(color),
            Self::Follow(follow) => follow.run(color),
            Self::Export(export) => export.run(color),
            Self::Verify(verify) => verify.run(),
            Self::Head(head) => head.run(color),
        }
    }
}

impl QueryCommand {
    fn run(&self, color: ColorChoice) -> Result<(), CommandFailure> {
        let mut pairs = self.wanted.pairs();
        pairs.extend(self.span.pairs());
        pairs.push(("limit", &self.limit));
        pairs.extend(self.after.as_deref().map(|after| ("after", after)));
        pairs.extend(self.replica.as_deref().map(|name| (record_source::REPLICA, name)));
        record_source::check_filters(&pairs)?;
        let source = self.source_options.source(color)?;
        let page = page_of(&source, &pairs)?;
        page.tell_note()?;
        if page.records.is_empty() && self.after.is_none() {
            record_source::check_caller(&source, &pairs)?;
        }
        RecordPrinter::page(self.format, color, &page.records)?;
        if let Some(next) = page.next {
            writeln!(io::stderr(), "There are more records: --after {next}")?;
        }
        Ok(())
    }
}

impl ExportCommand {
    fn run(&self, color: ColorChoice) -> Result<(), CommandFailure> {
        let mut pairs = self.wanted.pairs();
        pairs.extend(self.span.pairs());
        pairs.extend(self.replica.as_deref().map(|name| (record_source::REPLICA, name)));
        let filter = record_source::check_filters(&pairs)?;
        let source = self.source_options.source(color)?;
        let mut records = RecordPrinter::in_bulk(self.format, color, self.output.as_deref())?;
        let sink = &mut |line: &str| records.print(line);
        match source {
            DataSource::Files(read) => {
                record_source::require_running(&pairs)?;
                record_source::of_files(&read.config.audit.dir, &filter, self.part, sink)?;
            }
            DataSource::Running(client) => process::block_on(async {
                let end = record_source::before_newest(&client, &pairs, true).await?;
                record_source::of_running(&client, &pairs, self.part, end, sink).await
            })?,
        }
        Ok(records.end()?)
    }
}

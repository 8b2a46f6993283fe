//! `makegate audit`: reads the log of a running gateway, or from its files.

#![expect(clippy::disallowed_methods, reason = "a command may block on its files")]

use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Duration;

use clap::{Args, Subcommand};
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use serde::Deserialize;
use serde_json::value::RawValue;

use super::client::OperatorClient;
use super::failure::CommandFailure;
use super::filter_options::{FieldOptions, FilterPairs, TimeRange, filter};
use super::output::Format;
use super::process::{self, ColorChoice};
use super::record_printer::RecordPrinter;
use super::show::ShowCommand;
use super::source::{DataSource, SourceOptions};
use super::verify::{HeadCommand, VerifyCommand};
use crate::audit::{self, FileFollower, Filter};
use crate::config;

/// How often to look for new records in the files.
const LOOK_AGAIN: Duration = Duration::from_millis(200);
/// Records per request to a running gateway.
const PAGE: u64 = 1000;

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
/// If there are more, the last line on stderr says how to get the next ones.
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
    /// Maximum number of records (1 to 10000).
    #[arg(long, value_name = "N", default_value = "100")]
    limit: String,
    /// Only records before the one with this number.
    #[arg(long, value_name = "SEQ")]
    after: Option<String>,
    /// table, json (one object per line) or csv.
    #[arg(short = 'o', long, value_enum, default_value = "table", hide_possible_values = true)]
    format: Format,
}

/// Shows new records as they come, until interrupted.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  makegate audit follow --url http://127.0.0.1:8081
  makegate audit follow --config makegate.toml --answer refused -o json | jq .refusal")]
pub(super) struct FollowCommand {
    #[command(flatten)]
    source_options: SourceOptions,
    #[command(flatten)]
    wanted: FieldOptions,
    /// table, json (one object per line) or csv.
    #[arg(short = 'o', long, value_enum, default_value = "table", hide_possible_values = true)]
    format: Format,
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
    #[command(flatten)]
    part: ExportedPart,
    /// json (one object per line), csv or table.
    #[arg(short = 'o', long, value_enum, default_value = "json", hide_possible_values = true)]
    format: Format,
    /// Write to this file instead of stdout.
    #[arg(long, value_name = "FILE")]
    output: Option<PathBuf>,
}

/// Which of the matching records to export.
#[derive(Clone, Copy, Debug, Args)]
struct ExportedPart {
    /// Only the newest N records.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    limit: Option<u64>,
    /// Only records before the one with this number.
    #[arg(long, value_name = "SEQ")]
    after: Option<u64>,
}

/// The number of a record.
#[derive(Deserialize)]
struct Numbered {
    seq: u64,
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
        filter(&pairs)?;
        let source = self.source_options.source(color)?;
        let page = page_of(&source, &pairs)?;
        if page.records.is_empty() && self.after.is_none() {
            check_caller(&source, &pairs)?;
        }
        let mut records = RecordPrinter::in_bulk(self.format, None)?;
        page.records.iter().try_for_each(|record| records.print(record.get()))?;
        records.end()?;
        if let Some(next) = page.next {
            writeln!(io::stderr(), "There are more records: --after {next}")?;
        }
        Ok(())
    }
}

impl FollowCommand {
    fn run(&self, color: ColorChoice) -> Result<(), CommandFailure> {
        let pairs = self.wanted.pairs();
        let filter = filter(&pairs)?;
        match self.source_options.source(color)? {
            DataSource::Files(read) => {
                let dir = &read.config.audit.dir;
                let mut follow = FileFollower::open(dir, filter).map_err(|error| unreadable(dir, &error))?;
                let mut records = RecordPrinter::on_stdout(self.format)?;
                loop {
                    match follow.poll().map_err(|error| unreadable(dir, &error))? {
                        Some(line) => records.print(&line)?,
                        None => thread::sleep(LOOK_AGAIN),
                    }
                }
            }
            DataSource::Running(client) => {
                let mut records = RecordPrinter::on_stdout(self.format)?;
                let target = target("/audit/follow", &pairs);
                process::block_on(client.lines(&target, &mut |line| records.print(line)))
            }
        }
    }
}

impl ExportCommand {
    fn run(&self, color: ColorChoice) -> Result<(), CommandFailure> {
        let mut pairs = self.wanted.pairs();
        pairs.extend(self.span.pairs());
        let filter = filter(&pairs)?;
        let source = self.source_options.source(color)?;
        let mut records = RecordPrinter::in_bulk(self.format, self.output.as_deref())?;
        match source {
            DataSource::Files(read) => export_files(&read.config.audit.dir, &filter, self.part, &mut records)?,
            DataSource::Running(client) => process::block_on(export_running(&client, &pairs, self.part, &mut records))?,
        }
        Ok(records.end()?)
    }
}

fn export_files(
    dir: &Path,
    filter: &Filter,
    part: ExportedPart,
    records: &mut RecordPrinter,
) -> Result<(), CommandFailure> {
    let is_before = |line: &str| {
        let seq = serde_json::from_str(line).map_or(0, |Numbered { seq }| seq);
        part.after.is_none_or(|after| seq < after)
    };
    let mut matching = 0_u64;
    if part.limit.is_some() {
        let counted = audit::export(dir, filter, &mut |line| {
            matching += u64::from(is_before(line));
            Ok(())
        });
        counted.map_err(|error| unreadable(dir, &error))?;
    }
    let mut older = part.limit.map_or(0, |limit| matching.saturating_sub(limit));
    let mut unwritten = None;
    let exported = audit::export(dir, filter, &mut |line| {
        if !is_before(line) {
            return Ok(());
        }
        if older > 0 {
            older -= 1;
            return Ok(());
        }
        records.print(line).map_err(|error| {
            let kind = error.kind();
            unwritten = Some(error);
            kind.into()
        })
    });
    match (exported, unwritten) {
        (Ok(()), _) => Ok(()),
        (Err(_), Some(error)) => Err(error.into()),
        (Err(error), None) => Err(unreadable(dir, &error)),
    }
}

/// A running gateway serves pages, newest first. One pass learns where each page begins; a second one prints them in
/// reverse.
async fn export_running(
    client: &OperatorClient,
    pairs: &FilterPairs<'_>,
    part: ExportedPart,
    records: &mut RecordPrinter,
) -> Result<(), CommandFailure> {
    let at = async |(cursor, size): (u64, u64)| {
        let (limit, after) = (size.to_string(), cursor.to_string());
        let mut pairs = pairs.clone();
        pairs.extend([("limit", limit.as_str()), ("after", after.as_str())]);
        page(client, &pairs).await
    };
    let end = newest(client, pairs).await?.saturating_add(1);
    let mut left = part.limit.unwrap_or(u64::MAX);
    let mut next = Some(part.after.map_or(end, |after| after.min(end)));
    let mut pages = Vec::new();
    while let Some(cursor) = next.filter(|_| left > 0) {
        let size = left.min(PAGE);
        left -= size;
        pages.push((cursor, size));
        next = at((cursor, size)).await?.next;
    }
    for one in pages.into_iter().rev() {
        at(one).await?.records.iter().rev().try_for_each(|record| records.print(record.get()))?;
    }
    Ok(())
}

/// The number of the newest matching record. Also says that this is an export, which the gateway records; the export leaves out records that arrive later.
async fn newest(client: &OperatorClient, pairs: &FilterPairs<'_>) -> Result<u64, CommandFailure> {
    let mut pairs = pairs.clone();
    pairs.extend([("limit", "1"), ("export", "true")]);
    let newest = page(client, &pairs).await?.records.into_iter().next();
    let Some(newest) = newest else { return Ok(0) };
    serde_json::from_str(newest.get()).map(|Numbered { seq }| seq).map_err(|_| client.failed("a record has no seq"))
}

/// What `/callers.json` says of names.
#[derive(Deserialize)]
struct KnownCallers {
    callers: Vec<KnownCaller>,
}

#[derive(Deserialize)]
struct KnownCaller {
    name: String,
}

/// No record was found: that may be because the caller's name is mistaken. Callers that were once configured have records.
fn check_caller(source: &DataSource, pairs: &FilterPairs<'_>) -> Result<(), CommandFailure> {
    let Some((_, given)) = pairs.iter().find(|(name, _)| *name == "caller") else { return Ok(()) };
    let names: Vec<String> = match source {
        DataSource::Files(read) => read.config.callers.iter().map(|caller| caller.name.to_string()).collect(),
        DataSource::Running(client) => {
            let text = process::block_on(client.text("/callers.json"))?;
            let known: KnownCallers =
                serde_json::from_str(&text).map_err(|_| client.failed("the response names no callers"))?;
            known.callers.into_iter().map(|caller| caller.name).collect()
        }
    };
    if names.iter().any(|name| name == given) {
        return Ok(());
    }
    let why = config::unknown_caller(given, names.iter().map(|name| &**name));
    Err(CommandFailure::usage(format!("--caller: no record is of this caller, and {why}")))
}

/// A page of `/audit.json`.
#[derive(Deserialize)]
pub(super) struct AuditPage {
    pub(super) records: Vec<Box<RawValue>>,
    next: Option<u64>,
}

/// A page of records, newest first, from wherever they are.
pub(super) fn page_of(source: &DataSource, pairs: &FilterPairs<'_>) -> Result<AuditPage, CommandFailure> {
    match source {
        DataSource::Files(read) => {
            let dir = &read.config.audit.dir;
            let page = audit::query_files(dir, &filter(pairs)?).map_err(|error| unreadable(dir, &error))?;
            Ok(AuditPage { records: page.records, next: page.next })
        }
        DataSource::Running(client) => process::block_on(page(client, pairs)),
    }
}

async fn page(client: &OperatorClient, pairs: &FilterPairs<'_>) -> Result<AuditPage, CommandFailure> {
    let text = client.text(&target("/audit.json", pairs)).await?;
    serde_json::from_str(&text)
        .map_err(|error| client.failed(&format!("the response is not a page of records: {error}")))
}

fn target(path: &str, pairs: &FilterPairs<'_>) -> String {
    let encoded = pairs.iter().map(|(name, value)| format!("{name}={}", utf8_percent_encode(value, NON_ALPHANUMERIC)));
    format!("{path}?{}", encoded.collect::<Vec<_>>().join("&"))
}

fn unreadable(dir: &Path, error: &dyn std::fmt::Display) -> CommandFailure {
    CommandFailure::failed(format!("{}: {error}; is that the folder in audit.dir, and can you read it?", dir.display()))
}

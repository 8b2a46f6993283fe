//! Records of a running gateway, or from a log's files.

use std::io;
use std::path::Path;

use clap::Args;
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use serde::Deserialize;
use serde_json::value::RawValue;

use super::client::OperatorClient;
use super::failure::CommandFailure;
use super::filter_options::{FilterPairs, filter};
use super::process;
use super::source::DataSource;
use crate::audit::{self, Filter};
use crate::config;

/// Records per request to a running gateway.
const PAGE: u64 = 1000;

/// Takes one record, given as its line in the log.
pub(super) type RecordSink<'a> = &'a mut dyn FnMut(&str) -> io::Result<()>;

/// Which of the matching records to export.
#[derive(Clone, Copy, Debug, Default, Args)]
pub(super) struct ExportedPart {
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

/// Passes on the matching records of a log's files, oldest first.
pub(super) fn of_files(
    dir: &Path,
    filter: &Filter,
    part: ExportedPart,
    sink: RecordSink<'_>,
) -> Result<(), CommandFailure> {
    let is_before = |line: &str| {
        let seq = number(line).unwrap_or(0);
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
        sink(line).map_err(|error| {
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

/// Passes on the matching records of a running gateway that are older than `end`, oldest first. It serves pages, newest first: one pass
/// learns where each page begins, and a second one passes them on in reverse.
pub(super) async fn of_running(
    client: &OperatorClient,
    pairs: &FilterPairs<'_>,
    part: ExportedPart,
    end: u64,
    sink: RecordSink<'_>,
) -> Result<(), CommandFailure> {
    let at = async |(cursor, size): (u64, u64)| {
        let (limit, after) = (size.to_string(), cursor.to_string());
        let mut pairs = pairs.clone();
        pairs.extend([("limit", limit.as_str()), ("after", after.as_str())]);
        page(client, &pairs).await
    };
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
        at(one).await?.records.iter().rev().try_for_each(|record| sink(record.get()))?;
    }
    Ok(())
}

/// The number of the newest matching record; 0: there is none. For an export, which the gateway records.
pub(super) async fn newest(
    client: &OperatorClient,
    pairs: &FilterPairs<'_>,
    is_export: bool,
) -> Result<u64, CommandFailure> {
    let mut pairs = pairs.clone();
    pairs.push(("limit", "1"));
    pairs.extend(is_export.then_some(("export", "true")));
    let newest = page(client, &pairs).await?.records.into_iter().next();
    let Some(newest) = newest else { return Ok(0) };
    number(newest.get()).ok_or_else(|| client.failed("a record has no seq"))
}

/// The number of a record, given as its line in the log.
pub(super) fn number(line: &str) -> Option<u64> {
    serde_json::from_str(line).map(|Numbered { seq }| seq).ok()
}

/// A page of `/audit.json`.
#[derive(Deserialize)]
pub(super) struct AuditPage {
    pub(super) records: Vec<Box<RawValue>>,
    pub(super) next: Option<u64>,
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

pub(super) fn target(path: &str, pairs: &FilterPairs<'_>) -> String {
    let encoded = pairs.iter().map(|(name, value)| format!("{name}={}", utf8_percent_encode(value, NON_ALPHANUMERIC)));
    format!("{path}?{}", encoded.collect::<Vec<_>>().join("&"))
}

pub(super) fn unreadable(dir: &Path, error: &dyn std::fmt::Display) -> CommandFailure {
    CommandFailure::failed(format!("{}: {error}; is that the folder in audit.dir, and can you read it?", dir.display()))
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
pub(super) fn check_caller(source: &DataSource, pairs: &FilterPairs<'_>) -> Result<(), CommandFailure> {
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

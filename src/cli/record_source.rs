//! Records of a running gateway, or from a log's files.

use std::fmt;
use std::io::{self, Write as _};
use std::path::Path;

use clap::Args;
use jiff::Timestamp;
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
use crate::ids::escape_invisible;
use crate::replicas::records::RecordPlace;

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
    pub(super) after: Option<u64>,
}

/// The number of a record, and whose it is if there are several replicas.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
struct Numbered {
    seq: u64,
    replica: Option<String>,
    time: Timestamp,
}

/// Where a page begins, as the page before it says.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(untagged)]
pub(super) enum NextCursor {
    Number(u64),
    Place(String),
}

impl fmt::Display for NextCursor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Number(number) => number.fmt(f),
            Self::Place(place) => place.fmt(f),
        }
    }
}

/// A page that an export has seen: where it begins, its size, and its oldest record.
struct SeenPage {
    cursor: String,
    size: u64,
    last: Option<Numbered>,
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

/// Passes on the matching records of a running gateway that come before `end`, oldest first. It serves pages, newest first: one pass
/// learns where each page begins, and a second one passes them on in reverse.
pub(super) async fn of_running(
    client: &OperatorClient,
    pairs: &FilterPairs<'_>,
    part: ExportedPart,
    end: NextCursor,
    sink: RecordSink<'_>,
) -> Result<(), CommandFailure> {
    let at = async |cursor: &str, size: u64| {
        let limit = size.to_string();
        let mut pairs = pairs.clone();
        pairs.extend([("limit", limit.as_str()), ("after", cursor)]);
        page(client, &pairs).await
    };
    let mut left = part.limit.unwrap_or(u64::MAX);
    let mut next = Some(match (end, part.after) {
        (NextCursor::Number(end), Some(after)) => NextCursor::Number(after.min(end)),
        (end, _) => end,
    });
    let mut pages = Vec::new();
    while let Some(cursor) = next.filter(|_| left > 0) {
        let (cursor, size) = (cursor.to_string(), left.min(PAGE));
        left -= size;
        let page = at(&cursor, size).await?;
        let last = page.records.last().and_then(|record| numbered(record.get()));
        next = page.next;
        pages.push(SeenPage { cursor, size, last });
    }
    for SeenPage { cursor, size, last } in pages.into_iter().rev() {
        let mut page = at(&cursor, size).await?;
        let mut records = std::mem::take(&mut page.records);
        // Other replicas ship records late: then the page goes on further than it did.
        while last.is_some()
            && !records.iter().any(|record| numbered(record.get()) == last)
            && let Some(next) = page.next.take()
        {
            page = at(&next.to_string(), PAGE).await?;
            records.append(&mut page.records);
        }
        let end = records.iter().position(|record| numbered(record.get()) == last).map_or(records.len(), |at| at + 1);
        records.iter().take(end).rev().try_for_each(|record| sink(record.get()))?;
    }
    Ok(())
}

/// The cursor with which the pages begin at the newest matching record, and leave out what is recorded from now on. For an export, which
/// the gateway records.
pub(super) async fn before_newest(
    client: &OperatorClient,
    pairs: &FilterPairs<'_>,
    is_export: bool,
) -> Result<NextCursor, CommandFailure> {
    let mut pairs = pairs.clone();
    pairs.push(("limit", "1"));
    pairs.extend(is_export.then_some(("export", "true")));
    let page = page(client, &pairs).await?;
    page.tell_note()?;
    let Some(newest) = page.records.first() else { return Ok(NextCursor::Number(1)) };
    let newest = numbered(newest.get()).ok_or_else(|| client.failed("a record has no seq"))?;
    let seq = newest.seq.saturating_add(1);
    match newest.replica.filter(|_| page.behind.is_some()) {
        Some(replica) => {
            let place = RecordPlace { time: newest.time, replica: replica.into(), seq };
            Ok(NextCursor::Place(place.to_cursor()))
        }
        None => Ok(NextCursor::Number(seq)),
    }
}

/// The name of the replica that this is, if it is one of several.
pub(super) async fn own_replica(client: &OperatorClient) -> Result<Option<String>, CommandFailure> {
    #[derive(Deserialize)]
    struct OwnHead {
        replica: Option<String>,
    }
    let text = client.text("/audit/head.json").await?;
    let head: OwnHead = serde_json::from_str(&text).map_err(|_| client.failed("the response is not a signed head"))?;
    Ok(head.replica)
}

fn numbered(line: &str) -> Option<Numbered> {
    serde_json::from_str(line).ok()
}

/// The number of a record, given as its line in the log.
pub(super) fn number(line: &str) -> Option<u64> {
    #[derive(Deserialize)]
    struct OwnNumber {
        seq: u64,
    }
    serde_json::from_str(line).map(|OwnNumber { seq }| seq).ok()
}

/// A page of `/audit.json`.
#[derive(Deserialize)]
pub(super) struct AuditPage {
    pub(super) records: Vec<Box<RawValue>>,
    pub(super) next: Option<NextCursor>,
    /// How far each replica is behind, if all were asked.
    behind: Option<Vec<BehindReplica>>,
    /// Why records may be missing.
    note: Option<String>,
}

#[derive(Deserialize)]
struct BehindReplica {
    replica: String,
    records: u64,
}

impl AuditPage {
    /// Tells on stderr why records may be missing.
    pub(super) fn tell_note(&self) -> io::Result<()> {
        if let Some(note) = &self.note {
            writeln!(io::stderr(), "{}", escape_invisible(note))?;
        }
        for BehindReplica { replica, records } in self.behind.iter().flatten().filter(|one| one.records > 0) {
            writeln!(io::stderr(), "{} is behind by {records} records", escape_invisible(replica))?;
        }
        Ok(())
    }
}

/// The parameter that names a replica.
pub(super) const REPLICA: &str = "replica";

/// Files are those of one replica.
pub(super) fn require_running(pairs: &FilterPairs<'_>) -> Result<(), CommandFailure> {
    if pairs.iter().any(|(name, _)| *name == REPLICA) {
        return Err(CommandFailure::usage(
            "--replica: files are of one replica alone; ask a running makegate with --url",
        ));
    }
    Ok(())
}

/// Checks the filters before anything is asked. What only a running makegate knows is left to it.
pub(super) fn check_filters(pairs: &FilterPairs<'_>) -> Result<Filter, CommandFailure> {
    let is_ours = |(name, value): &(&str, &str)| match *name {
        REPLICA => true,
        "after" => RecordPlace::parse(value).is_some(),
        _ => false,
    };
    filter(&pairs.iter().copied().filter(|pair| !is_ours(pair)).collect())
}

/// A page of records, newest first, from wherever they are.
pub(super) fn page_of(source: &DataSource, pairs: &FilterPairs<'_>) -> Result<AuditPage, CommandFailure> {
    match source {
        DataSource::Files(read) => {
            require_running(pairs)?;
            let dir = &read.config.audit.dir;
            let page = audit::query_files(dir, &filter(pairs)?).map_err(|error| unreadable(dir, &error))?;
            Ok(AuditPage { records: page.records, next: page.next.map(NextCursor::Number), behind: None, note: None })
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

//! Which sealed segments go: those whose last record is older than the retention, and the oldest of more bytes than may be
//! kept; never one that holds an open write.
//! Events say which records go, and are on disk before they do: what is missing without one was taken. They stand right after a
//! segment's opening and tell all that ever went, so that those before may go too.

use std::fs::{self, File};
use std::io;
use std::path::Path;
use std::time::{Duration, Instant};

use jiff::Timestamp;
use serde::Deserialize;
use serde_json::Map;

use super::backwards::Backwards;
use super::line;
use super::open::OpenWrites;
use super::proof::leaves;
use super::record::Record;
use super::recover::Lines;
use super::seen::Seen;
use super::segment;
use crate::config;

/// How often it is looked.
const SWEEP: Duration = Duration::from_secs(3600);
/// A segment is sealed at this age at the latest...
const AGE_MAX: Duration = Duration::from_secs(24 * 3600);
/// ...or at this part of the retention, so that records go soon after their time.
const AGE_SHARE: u32 = 8;
/// The event that says which records went.
const RETENTION: &str = "retention";

/// The first and the last of records that follow each other.
pub(super) type Range = (u64, u64);

#[derive(Debug)]
pub(super) struct Retention {
    keep: Duration,
    keep_bytes: u64,
    swept: Option<Instant>,
    /// All that went; `None`: not read yet.
    gone: Option<Vec<Range>>,
    doomed: Vec<u64>,
}

impl Retention {
    pub(super) const fn new(settings: &config::Audit) -> Self {
        let (keep, keep_bytes) = (settings.retention, settings.retention_bytes);
        Self { keep, keep_bytes, swept: None, gone: None, doomed: Vec::new() }
    }

    /// Has a segment been written to for so long that it is to be sealed?
    pub(super) fn is_aged(&self, begun: Timestamp, now: Timestamp) -> bool {
        age(begun, now) >= AGE_MAX.min(self.keep / AGE_SHARE)
    }

    /// Once an hour; whenever a segment is sealed it is swept all the same.
    pub(super) fn is_due(&self, now: Instant) -> bool {
        self.swept.is_none_or(|swept| now.duration_since(swept) >= SWEEP)
    }

    /// Finds what is old. If there is something, the events that say what is gone then, one for records that follow each
    /// other: they are to stand first in a new segment. When they are on disk, [`Retention::delete`] may follow.
    pub(super) fn sweep(&mut self, dir: &Path, open: &OpenWrites, (now, wall): (Instant, Timestamp)) -> Vec<Record> {
        self.swept = Some(now);
        self.find(dir, open, wall).unwrap_or_else(|error| {
            tracing::warn!(%error, "old segments of the audit log could not be sought");
            Vec::new()
        })
    }

    fn find(&mut self, dir: &Path, open: &OpenWrites, wall: Timestamp) -> io::Result<Vec<Record>> {
        let old = self.old(dir, open, wall)?;
        if old.is_empty() {
            return Ok(Vec::new());
        }
        let gone = match self.gone.take() {
            Some(gone) => gone,
            None => told(dir)?,
        };
        self.doomed = old.iter().map(|(first, _)| *first).collect();
        let gone = merged(gone.into_iter().chain(old).collect());
        let events = gone.iter().map(|range| event(wall, *range)).collect();
        self.gone = Some(gone);
        Ok(events)
    }

    /// Deletes what was found.
    pub(super) fn delete(&mut self, dir: &Path) {
        for first in self.doomed.drain(..) {
            let gone = fs::remove_file(segment::path(dir, first));
            if let Err(error) = gone.and_then(|()| fs::remove_file(leaves::path(dir, first))) {
                tracing::warn!(%error, first, "an old segment of the audit log could not be deleted");
            }
        }
    }

    /// From the oldest on, up to the first that may stay, and never the newest.
    fn old(&self, dir: &Path, open: &OpenWrites, wall: Timestamp) -> io::Result<Vec<Range>> {
        let segments = segment::list(dir)?;
        let open: Vec<u64> = open.list().into_iter().map(|write| write.doubt.intent).collect();
        // One that has gone meanwhile has no size.
        let size = |first: u64| fs::metadata(segment::path(dir, first)).map_or(0, |about| about.len());
        let mut bytes: u64 = segments.iter().map(|first| size(*first)).sum();
        let mut old = Vec::new();
        for pair in segments.windows(2) {
            let [first, next] = *pair else { break };
            let last_time =
                Backwards::below(dir, next)?.newest()?.and_then(|line| Seen::parse(&line).map(|seen| seen.time));
            let is_young = last_time.is_none_or(|time| age(time, wall) < self.keep);
            if is_young && bytes <= self.keep_bytes {
                break;
            }
            if !open.iter().any(|seq| (first..next).contains(seq)) {
                bytes = bytes.saturating_sub(size(first));
                old.push((first, next - 1));
            }
        }
        Ok(old)
    }
}

/// All that is gone, by the newest segment that begins with such events.
fn told(dir: &Path) -> io::Result<Vec<Range>> {
    for first in segment::list(dir)?.into_iter().rev() {
        let mut lines = Lines::new(File::open(segment::path(dir, first))?);
        lines.next()?; // the opening
        let mut ranges = Vec::new();
        while lines.next()?.is_some() {
            let Some(range) = Seen::parse(lines.text()).and_then(|seen| gone(&seen)) else { break };
            ranges.push(range);
        }
        if !ranges.is_empty() {
            return Ok(ranges);
        }
    }
    Ok(Vec::new())
}

/// Ranges that overlap or follow each other are one.
fn merged(mut ranges: Vec<Range>) -> Vec<Range> {
    ranges.sort_unstable();
    let mut merged: Vec<Range> = Vec::new();
    for (first, last) in ranges {
        match merged.last_mut() {
            Some((_, end)) if first <= *end + 1 => *end = last.max(*end),
            Some(_) | None => merged.push((first, last)),
        }
    }
    merged
}

/// The records that this one says to be gone; `None`: it is no such event.
pub(super) fn gone(seen: &Seen<'_>) -> Option<Range> {
    #[derive(Deserialize)]
    struct Gone {
        first: u64,
        last: u64,
    }
    let fields = seen.fields.filter(|_| seen.event.as_deref() == Some(RETENTION))?;
    let Gone { first, last } = serde_json::from_str(fields.get()).ok()?;
    Some((first, last))
}

fn event(wall: Timestamp, (first, last): Range) -> Record {
    let detail = format!("past the retention, deleted: the records {first} to {last}");
    let fields = line::object(&Map::from_iter([("first".into(), first.into()), ("last".into(), last.into())]));
    Record { fields: Some(fields), ..Record::event(wall, RETENTION, detail) }
}

fn age(then: Timestamp, now: Timestamp) -> Duration {
    Duration::try_from(now.duration_since(then)).unwrap_or_default()
}

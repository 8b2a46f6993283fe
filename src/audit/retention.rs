//! Which sealed segments go: those whose last record is older than the retention, never one that holds an open write.
//! An event says which records go, and is on disk before they do: what is missing without one was taken.

use std::fs;
use std::io;
use std::path::Path;
use std::time::{Duration, Instant};

use jiff::Timestamp;
use serde_json::Map;

use super::backwards::Backwards;
use super::line;
use super::open::OpenWrites;
use super::proof::leaves;
use super::record::Record;
use super::seen::Seen;
use super::segment;

/// How often it is looked.
const SWEEP: Duration = Duration::from_secs(3600);
/// A segment is sealed at this age at the latest...
const AGE_MAX: Duration = Duration::from_secs(24 * 3600);
/// ...or at this part of the retention, so that records go soon after their time.
const AGE_SHARE: u32 = 8;

#[derive(Debug)]
pub(super) struct Retention {
    keep: Duration,
    swept: Option<Instant>,
    active: Option<u64>,
    doomed: Vec<u64>,
}

impl Retention {
    pub(super) fn new(keep: Duration) -> Self {
        Self { keep, swept: None, active: None, doomed: Vec::new() }
    }

    /// Has a segment been written to for so long that it is to be sealed?
    pub(super) fn is_aged(&self, begun: Timestamp, now: Timestamp) -> bool {
        age(begun, now) >= AGE_MAX.min(self.keep / AGE_SHARE)
    }

    /// Once an hour, and when a new segment has been begun.
    pub(super) fn is_due(&mut self, active: Option<u64>, now: Instant) -> bool {
        let due = self.active != active || self.swept.is_none_or(|swept| now.duration_since(swept) >= SWEEP);
        if due {
            (self.swept, self.active) = (Some(now), active);
        }
        due
    }

    /// Finds what is old. The events that say so, one for records that follow each other; when they are on disk,
    /// [`Retention::delete`] may follow.
    pub(super) fn sweep(&mut self, dir: &Path, open: &OpenWrites, wall: Timestamp) -> Vec<Record> {
        let old = self.old(dir, open, wall).unwrap_or_else(|error| {
            tracing::warn!(%error, "old segments of the audit log could not be sought");
            Vec::new()
        });
        self.doomed = old.iter().map(|(first, _)| *first).collect();
        let mut ranges: Vec<(u64, u64)> = Vec::new();
        for (first, last) in old {
            match ranges.last_mut() {
                Some((_, end)) if *end + 1 == first => *end = last,
                Some(_) | None => ranges.push((first, last)),
            }
        }
        ranges.into_iter().map(|(first, last)| event(wall, first, last)).collect()
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

    /// From the oldest on, up to the first that is young enough, and never the newest.
    fn old(&self, dir: &Path, open: &OpenWrites, wall: Timestamp) -> io::Result<Vec<(u64, u64)>> {
        let segments = segment::list(dir)?;
        let open: Vec<u64> = open.list().into_iter().map(|write| write.seq).collect();
        let mut old = Vec::new();
        for pair in segments.windows(2) {
            let [first, next] = *pair else { break };
            let last_time =
                Backwards::below(dir, next)?.newest()?.and_then(|line| Seen::parse(&line).map(|seen| seen.time));
            if last_time.is_none_or(|time| age(time, wall) < self.keep) {
                break;
            }
            if !open.iter().any(|seq| (first..next).contains(seq)) {
                old.push((first, next - 1));
            }
        }
        Ok(old)
    }
}

fn event(wall: Timestamp, first: u64, last: u64) -> Record {
    let detail = format!("past the retention, deleted: the records {first} to {last}");
    let fields = line::object(&Map::from_iter([("first".into(), first.into()), ("last".into(), last.into())]));
    Record { fields: Some(fields), ..Record::event(wall, "retention", detail) }
}

fn age(then: Timestamp, now: Timestamp) -> Duration {
    Duration::try_from(now.duration_since(then)).unwrap_or_default()
}

//! Which sealed segments go: those whose last record is older than the retention, never one that holds an open write.

use std::fs;
use std::io;
use std::path::Path;
use std::time::{Duration, Instant};

use jiff::Timestamp;

use super::backwards::Backwards;
use super::open::OpenWrites;
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
}

impl Retention {
    pub(super) fn new(keep: Duration) -> Self {
        Self { keep, swept: None, active: None }
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

    /// Deletes what is old. The event that says so, if anything was.
    pub(super) fn sweep(&self, dir: &Path, open: &OpenWrites, wall: Timestamp) -> Option<Record> {
        let gone = match self.delete(dir, open, wall) {
            Ok(gone) => gone,
            Err(error) => {
                tracing::warn!(%error, "old segments of the audit log could not be deleted");
                return None;
            }
        };
        let (first, last) = (gone.first()?.0, gone.last()?.1);
        let detail =
            format!("past the retention, deleted: {} segments between the records {first} and {last}", gone.len());
        Some(Record::event(wall, "retention", detail))
    }

    /// Deletes from the oldest on, up to the first that is young enough, and never the newest.
    fn delete(&self, dir: &Path, open: &OpenWrites, wall: Timestamp) -> io::Result<Vec<(u64, u64)>> {
        let segments = segment::list(dir)?;
        let open: Vec<u64> = open.list().into_iter().map(|write| write.seq).collect();
        let mut gone = Vec::new();
        for pair in segments.windows(2) {
            let [first, next] = *pair else { break };
            let last_time =
                Backwards::below(dir, next)?.newest()?.and_then(|line| Seen::parse(&line).map(|seen| seen.time));
            if last_time.is_none_or(|time| age(time, wall) < self.keep) {
                break;
            }
            if !open.iter().any(|seq| (first..next).contains(seq)) {
                fs::remove_file(segment::path(dir, first))?;
                gone.push((first, next - 1));
            }
        }
        Ok(gone)
    }
}

fn age(then: Timestamp, now: Timestamp) -> Duration {
    Duration::try_from(now.duration_since(then)).unwrap_or_default()
}

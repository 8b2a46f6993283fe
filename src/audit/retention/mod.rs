//! Decides which sealed segments are deleted: those whose newest record is older than the retention, and the oldest
//! ones when the log exceeds its size limit, but never one that holds an open write. Refusals that anybody can cause
//! without limit do not count toward that size. They have their own share, and once it is used up they are only
//! counted.
//!
//! Events announce deleted records and are on disk before the deletion, so records missing without such an event were
//! removed by someone else. The events directly follow a segment's opening and list everything ever deleted, so
//! segments with earlier such events may be deleted too. An expired segment stays for a while after it was announced:
//! a copy of the log begun before the announcement still has the records, and one begun later has the event.

#![expect(clippy::disallowed_methods, reason = "at startup, and by the thread `audit-writer`")]

pub(super) mod state;
mod trusted_time;

use std::borrow::Cow;
use std::fs;
use std::io;
use std::path::Path;
use std::time::{Duration, Instant};

use jiff::Timestamp;
use serde::Deserialize;
use serde_json::Map;

use self::state::{RetentionState, refusals_share};
use self::trusted_time::TrustedTime;
use crate::audit::open_writes::OpenWrites;
use crate::audit::proof::leaves;
use crate::audit::record::{Record, line};
use crate::audit::recover::readable_opening;
use crate::audit::segment;
use crate::audit::segment::line_reader::LineReader;
use crate::audit::segment::reverse_reader::ReverseReader;
use crate::audit::ship::mark::{ShippedMark, UnshippedRecords};
use crate::config;
use crate::private_files;

/// Time between sweeps.
const SWEEP: Duration = Duration::from_secs(3600);
/// Maximum age at which a segment is sealed.
const SEAL_AGE_MAX: Duration = Duration::from_secs(24 * 3600);
/// Fraction of the retention after which a segment is sealed if that is earlier, so that records are deleted soon
/// after they expire.
const SEAL_AGE_DIVISOR: u32 = 8;
/// How long an expired segment stays after its deletion is announced. If there is no room for it, it is deleted at
/// once.
const DELETION_DELAY: Duration = Duration::from_secs(600);
/// The event that announces deleted records.
const RETENTION: &str = "retention";

/// First and last sequence number of a range of records.
pub(super) type SeqRange = (u64, u64);

/// A segment to be deleted.
#[derive(Debug)]
struct ExpiredSegment {
    records: SeqRange,
    refusal_bytes: u64,
    stays: Duration,
}

/// A segment whose deletion was announced.
#[derive(Debug)]
struct AnnouncedDeletion {
    first: u64,
    at: Instant,
}

#[derive(Debug)]
pub(super) struct Retention {
    keep: Duration,
    keep_bytes: u64,
    kept: RetentionState,
    trusted_time: TrustedTime,
    swept: Option<Instant>,
    /// All records ever deleted. `None` if not read yet.
    deleted: Option<Vec<SeqRange>>,
    announced: Vec<AnnouncedDeletion>,
}

impl Retention {
    pub(super) fn new(settings: &config::AuditConfig, kept: RetentionState, now: (Instant, Timestamp)) -> Self {
        let (keep, keep_bytes) = (settings.retention, settings.retention_bytes);
        let trusted_time = TrustedTime::new(kept.believed, now);
        Self { keep, keep_bytes, kept, trusted_time, swept: None, deleted: None, announced: Vec::new() }
    }

    /// Must be called often: only by observing the clock over time can its steps be detected.
    pub(super) fn observe(&mut self, now: (Instant, Timestamp)) {
        self.trusted_time.observe(now);
    }

    /// What a segment's opening stores for retention.
    pub(super) fn kept(&self) -> RetentionState {
        RetentionState { believed: Some(self.trusted_time.believed()), ..self.kept }
    }

    pub(super) const fn wrote_refusals(&mut self, bytes: u64) {
        self.kept.refusal_bytes += bytes;
    }

    /// How many more bytes of refusals the log may take.
    pub(super) const fn refusals_left(&self) -> u64 {
        refusals_share(self.keep_bytes).saturating_sub(self.kept.refusals_in_log())
    }

    /// Whether a segment has been written for so long that it must be sealed. A segment that begins in the future
    /// shows that the clock was wrong, and is sealed too.
    pub(super) fn is_aged(&self, begun: Timestamp, now: Timestamp) -> bool {
        now.duration_since(begun).unsigned_abs() >= SEAL_AGE_MAX.min(self.keep / SEAL_AGE_DIVISOR)
    }

    /// True once an hour. A sweep also happens whenever a segment is sealed.
    pub(super) fn is_due(&self, now: Instant) -> bool {
        self.swept.is_none_or(|swept| now.duration_since(swept) >= SWEEP)
    }

    /// Finds expired segments. Returns the events that announce the deletions, one per contiguous range; they must be
    /// the first records of a new segment. Once they are on disk, [`Retention::delete`] may be called.
    pub(super) fn sweep(
        &mut self,
        dir: &Path,
        (open, shipped): (&OpenWrites, &ShippedMark),
        now: (Instant, Timestamp),
    ) -> Vec<Record<'static>> {
        self.observe(now);
        self.swept = Some(now.0);
        self.find(dir, (open, shipped), now.0).unwrap_or_else(|error| {
            tracing::warn!(%error, "cannot look for expired segments of the audit log");
            Vec::new()
        })
    }

    fn find(
        &mut self,
        dir: &Path,
        (open, shipped): (&OpenWrites, &ShippedMark),
        now: Instant,
    ) -> io::Result<Vec<Record<'static>>> {
        let old = self.expired_segments(dir, (open, shipped.unshipped()), now)?;
        old.iter().filter(|old| old.stays.is_zero()).for_each(|old| shipped.note_deletion(old.records));
        if old.is_empty() {
            return Ok(Vec::new());
        }
        let gone = match self.deleted.take() {
            Some(gone) => gone,
            None => announced_deletions(dir)?,
        };
        self.announced.extend(old.iter().map(|old| AnnouncedDeletion { first: old.records.0, at: now + old.stays }));
        for ExpiredSegment { records, refusal_bytes, .. } in &old {
            // A segment that was announced but still exists was already counted.
            if !gone.iter().any(|range| (range.0..=range.1).contains(&records.0)) {
                self.kept.refusal_bytes_gone += refusal_bytes;
            }
        }
        let gone = merged(gone.into_iter().chain(old.into_iter().map(|old| old.records)).collect());
        let events = gone.iter().map(|range| event(self.trusted_time.wall(), *range)).collect();
        self.deleted = Some(gone);
        Ok(events)
    }

    /// Deletes announced segments whose waiting time is over.
    pub(super) fn delete(&mut self, dir: &Path, now: Instant) {
        for AnnouncedDeletion { first, .. } in self.announced.extract_if(.., |announced| announced.at <= now) {
            let gone = fs::remove_file(segment::path(dir, first));
            if let Err(error) = gone.and_then(|()| fs::remove_file(leaves::path(dir, first))) {
                tracing::warn!(%error, first, "cannot delete an expired segment of the audit log");
            }
        }
    }

    /// Expired segments, from the oldest up to the first that may stay, and never the newest.
    ///
    /// One that was not shipped yet stays while the table of all replicas would still take its records, unless the log
    /// exceeds its size limit: a disk that is full would stop all writes.
    fn expired_segments(
        &mut self,
        dir: &Path,
        (open, unshipped): (&OpenWrites, Option<UnshippedRecords>),
        now: Instant,
    ) -> io::Result<Vec<ExpiredSegment>> {
        let segments = segment::list(dir)?;
        let open: Vec<u64> = open.list().map(|write| write.doubt.intent).collect();
        // A segment deleted meanwhile has no size.
        let size = |first: u64| fs::metadata(segment::path(dir, first)).map_or(0, |about| about.len());
        let all: u64 = segments.iter().map(|first| size(*first)).sum();
        let mut bytes = all.saturating_sub(self.kept.refusals_in_log());
        let keep_bytes = self.keep_bytes - refusals_share(self.keep_bytes);
        let mut old = Vec::new();
        let mut times = SegmentTimes { dir, segments: &segments, now: self.trusted_time.wall(), after: None };
        for pair in segments.windows(2) {
            let [first, next] = *pair else { break };
            if open.iter().any(|seq| (first..next).contains(seq)) {
                continue;
            }
            if let Some(announced) = self.announced.iter_mut().find(|announced| announced.first == first) {
                if bytes > keep_bytes {
                    announced.at = now;
                }
                bytes = bytes.saturating_sub(size(first));
                continue;
            }
            let newest = times.newest(first, next)?;
            let waits = unshipped.filter(|unshipped| next - 1 > unshipped.after);
            let keep = waits.map_or(self.keep, |unshipped| self.keep.max(unshipped.keep));
            let is_old = newest.time.is_some_and(|time| self.trusted_time.may_delete(time, keep));
            if !is_old && bytes <= keep_bytes {
                break;
            }
            let stays = if bytes > keep_bytes { Duration::ZERO } else { DELETION_DELAY };
            let refusal_bytes = refusal_bytes(dir, (first, next), newest.seq)?;
            bytes = bytes.saturating_sub(size(first).saturating_sub(refusal_bytes));
            old.push(ExpiredSegment { records: (first, next - 1), refusal_bytes, stays });
        }
        Ok(old)
    }
}

/// A segment's newest record, as far as it can be read.
struct NewestRecord {
    seq: Option<u64>,
    /// No record in the segment is newer than this.
    time: Option<Timestamp>,
}

/// Determines when segments were written. The log's times come from a clock that may have been wrong. A time that is
/// in the future or unreadable is replaced by that of the next credible opening; a time far in the past is raised to
/// the time trusted when its segment began.
struct SegmentTimes<'d> {
    dir: &'d Path,
    segments: &'d [u64],
    now: Timestamp,
    /// The last result of [`Self::opened_after`].
    after: Option<(u64, Option<Timestamp>)>,
}

impl SegmentTimes<'_> {
    fn newest(&mut self, first: u64, next: u64) -> io::Result<NewestRecord> {
        let line = ReverseReader::below(self.dir, next)?.newest()?;
        let seen = line.as_deref().and_then(Record::parse).filter(|seen| seen.seq >= first);
        let (seq, recorded) = (seen.as_ref().map(|seen| seen.seq), seen.map(|seen| seen.time));
        let believable = match recorded.filter(|time| *time <= self.now) {
            Some(time) => Some(time),
            None => self.opened_after(first),
        };
        let begun = readable_opening(self.dir, first).and_then(|opening| opening.kept.believed);
        Ok(NewestRecord { seq, time: believable.map(|time| begun.map_or(time, |begun| time.max(begun))) })
    }

    /// When the first later segment began whose opening is readable and not in the future.
    fn opened_after(&mut self, first: u64) -> Option<Timestamp> {
        if let Some((_, time)) = self.after.filter(|(found, _)| *found > first) {
            return time;
        }
        let later = self.segments.iter().copied().filter(|segment| *segment > first);
        let mut found = later.filter_map(|segment| Some((segment, readable_opening(self.dir, segment)?.time)));
        let found = found.find(|(_, time)| *time <= self.now);
        self.after = Some(found.map_or((u64::MAX, None), |(segment, time)| (segment, Some(time))));
        found.map(|(_, time)| time)
    }
}

/// Bytes of refusals in the segment before `next`. The two openings tell, unless a segment between them is gone.
fn refusal_bytes(dir: &Path, (first, next): SeqRange, newest: Option<u64>) -> io::Result<u64> {
    let Some(before) = readable_opening(dir, first) else { return Ok(0) };
    if newest == Some(next - 1)
        && let Some(after) = readable_opening(dir, next)
    {
        return Ok(after.kept.refusal_bytes.saturating_sub(before.kept.refusal_bytes));
    }
    let (mut lines, mut bytes) = (LineReader::new(private_files::open_to_read(&segment::path(dir, first))?), 0);
    while lines.next()?.is_some() {
        if Record::parse(lines.text()).is_some_and(|seen| seen.is_refusal()) {
            bytes += u64::try_from(lines.text().len() + 1).unwrap_or(0);
        }
    }
    Ok(bytes)
}

/// All announced deletions, from the newest segment that begins with such events.
fn announced_deletions(dir: &Path) -> io::Result<Vec<SeqRange>> {
    for first in segment::list(dir)?.into_iter().rev() {
        let mut lines = LineReader::new(private_files::open_to_read(&segment::path(dir, first))?);
        lines.next()?; // the opening
        let mut ranges = Vec::new();
        while lines.next()?.is_some() {
            let Some(range) = Record::parse(lines.text()).and_then(|seen| announced_range(&seen)) else { break };
            ranges.push(range);
        }
        if !ranges.is_empty() {
            return Ok(ranges);
        }
    }
    Ok(Vec::new())
}

/// Merges ranges that overlap or adjoin.
fn merged(mut ranges: Vec<SeqRange>) -> Vec<SeqRange> {
    ranges.sort_unstable();
    let mut merged: Vec<SeqRange> = Vec::new();
    for (first, last) in ranges {
        match merged.last_mut() {
            Some((_, end)) if first <= *end + 1 => *end = last.max(*end),
            Some(_) | None => merged.push((first, last)),
        }
    }
    merged
}

/// The records that this event announces as deleted. Returns `None` if it is not such an event.
pub(super) fn announced_range(seen: &Record<'_>) -> Option<SeqRange> {
    #[derive(Deserialize)]
    struct Gone {
        first: u64,
        last: u64,
    }
    let fields = seen.fields.as_deref().filter(|_| seen.event.as_deref() == Some(RETENTION))?;
    let Gone { first, last } = serde_json::from_str(fields.get()).ok()?;
    Some((first, last))
}

fn event(wall: Timestamp, (first, last): SeqRange) -> Record<'static> {
    let detail = format!("past the retention, deleted: the records {first} to {last}");
    let fields = line::object(&Map::from_iter([("first".into(), first.into()), ("last".into(), last.into())]));
    Record { fields: Some(Cow::Owned(fields)), ..Record::event(wall, RETENTION, detail) }
}

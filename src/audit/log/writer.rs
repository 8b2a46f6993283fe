//! The only thread that writes the log. A batch is whatever arrived during the last fdatasync; only writes wait for
//! it.
//!
//! A failed batch is acknowledged to nobody. Its segment is truncated to what was acknowledged and never synced
//! again, and the batch is rendered again, with the same numbers, into a new segment.

#![expect(clippy::disallowed_methods, reason = "only the thread `audit-writer` runs this")]

use std::collections::VecDeque;
use std::fs::{self, File};
use std::io;
use std::sync::atomic::Ordering;
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use super::active_segment::{ActiveSegment, begin_segment};
use super::buffer::{CannotRecord, PendingRecord, WriterStage};
use super::events::not_sent;
use super::outage::Outage;
use super::shared::{LogShared, outcome_charge};
use super::space_reserve::SpaceReserve;
use crate::audit::open_writes::OpenWrites;
use crate::audit::proof::{closing_head, leaves};
use crate::audit::record::{Kind, Record, line};
use crate::audit::recover::{Recovered, ResumePoint, STOP};
use crate::audit::retention::Retention;
use crate::audit::segment::disk::{self, Disk};
use crate::audit::segment::forward_reader::LinePosition;
use crate::audit::segment::tree::{self, Hash, Tree};
use crate::audit::segment::{self, SegmentOpening};
use crate::config;
use crate::private_files;
use crate::process_log::STATE;

/// When idle, how often to check whether a head or a retention sweep is due.
const IDLE: Duration = Duration::from_millis(250);
/// How often a failed disk is tried again.
const RETRY: Duration = Duration::from_secs(1);
/// Maximum number of records in a batch.
const BATCH_MAX: usize = 4096;

/// The changes to make once a batch is on disk.
struct StoredBatch {
    tree: Tree,
    length: u64,
    refusal_bytes: u64,
    /// Where each record's line begins in the rendered text, and where the last one ends.
    lines: Vec<u64>,
}

#[derive(Debug)]
pub(crate) struct LogWriter {
    pub(crate) shared: Arc<LogShared>,
    pub(crate) disk: Arc<dyn Disk>,
    segment_bytes: u64,
    tree: Tree,
    pub(crate) open: OpenWrites,
    pub(crate) active: Option<ActiveSegment>,
    pub(crate) pending: VecDeque<PendingRecord>,
    rendered: Vec<u8>,
    /// The leaf hashes of the rendered records.
    leaves: Vec<Hash>,
    /// Whether a segment was sealed since the last head.
    sealed: bool,
    pub(crate) outage: Option<Outage>,
    pub(crate) reserve: SpaceReserve,
    retention: Retention,
    /// Number of records taken from the buffer, plus one for the start's own records.
    taken: u64,
}

impl LogWriter {
    pub(crate) fn new(
        shared: Arc<LogShared>,
        disk: Arc<dyn Disk>,
        settings: &config::AuditConfig,
        start: ResumePoint,
        (recovered, events): (&Recovered, Vec<Record<'static>>),
    ) -> Self {
        let now = shared.clock.now();
        if let (Some(last), []) = (start.last, &*recovered.quarantined)
            && let Err(error) = leaves::mend(&shared.dir, last, &start.leaves, recovered.clean)
        {
            tracing::warn!(%error, "cannot write the leaf hashes of the audit log's last segment");
        }
        let retention = Retention::new(settings, start.kept, (now, shared.clock.wall()));
        shared.refusals_left.store(retention.refusals_left(), Ordering::Relaxed);
        let mut writer = Self {
            disk,
            segment_bytes: settings.segment_bytes,
            tree: start.tree,
            open: start.open,
            active: None,
            pending: events.into_iter().map(PendingRecord::own).collect(),
            rendered: Vec::new(),
            leaves: Vec::new(),
            sealed: false,
            outage: None,
            reserve: SpaceReserve::new(&shared.dir, settings.segment_bytes),
            retention,
            taken: 1,
            shared,
        };
        writer.resume(start.resume);
        writer
    }

    /// Continues the last segment after a clean stop. If it cannot be opened, a new one does as well.
    fn resume(&mut self, resume: Option<(u64, SegmentOpening)>) {
        let Some((first, opening)) = resume else { return };
        let path = segment::path(&self.shared.dir, first);
        let opened = private_files::open(File::options().append(true), &path)
            .and_then(|file| file.metadata().map(|about| (file, about)));
        if let Ok((file, about)) = opened {
            let identity = disk::identity(&about);
            let leaves = leaves::resume(&self.shared.dir, first).ok();
            let (length, begun) = (about.len(), opening.time);
            let opening = byte_count(&opening.render());
            self.active = Some(ActiveSegment { first, path, file, identity, length, opening, begun, leaves });
        }
    }

    /// Writes until [`WriterStage`] says to end.
    pub(crate) fn run(mut self) {
        self.reserve.restore(&*self.disk);
        self.write_pending();
        self.notify_flushed();
        self.after_write(true);
        let mut taken = Vec::new();
        loop {
            let patient = self.outage.as_ref().is_some_and(|outage| !outage.is_disk_full);
            let longest = if self.outage.is_some() { RETRY } else { IDLE };
            let stage = self.shared.buffer.take_batch(&mut taken, longest, patient);
            self.taken += u64::try_from(taken.len()).unwrap_or(0);
            self.pending.extend(taken.drain(..));
            self.retention.observe((self.shared.clock.now(), self.shared.clock.wall()));
            if self.retention.is_due(self.shared.clock.now()) {
                self.sweep();
            }
            if self.pending.is_empty() {
                self.check_active(); // a batch checks this itself
            }
            self.write_pending();
            self.notify_flushed();
            self.after_write(false);
            match stage {
                WriterStage::Running => {}
                WriterStage::Closing | WriterStage::Abandoned | WriterStage::Ended => break,
            }
        }
        self.end(taken);
    }

    /// The last round: nothing more is accepted, and everyone still waiting is answered.
    fn end(mut self, mut last: Vec<PendingRecord>) {
        let closing = self.shared.buffer.stage() == WriterStage::Closing;
        self.shared.buffer.seal(&mut last);
        self.pending.extend(last);
        if closing {
            let stop = Record::event(self.shared.clock.wall(), STOP, "the gateway stops; everything has been recorded");
            self.pending.push_back(PendingRecord::own(stop));
        }
        self.write_pending();
        self.after_write(true);
        self.shared.heads.flush();
        if !self.pending.is_empty() {
            tracing::error!(
                records = self.pending.len(),
                "records are lost: the audit log's disk failed during shutdown"
            );
        } else if closing
            && let Err(error) = closing_head::close(&self.shared.dir, &self.shared.heads.closing(&self.tree))
        {
            tracing::warn!(%error, "cannot store the audit log's closing head");
        }
        self.pending.iter().for_each(|entry| self.shared.give_back(entry));
        self.shared.ended.send_modify(|threads| *threads += 1);
        self.wake_index();
    }

    fn wake_index(&self) {
        if let Some(index) = self.shared.index.get() {
            index.unpark();
        }
    }

    /// Writes what is pending, if the disk works.
    fn write_pending(&mut self) {
        if self.outage.is_some() && !self.retry_disk() {
            return;
        }
        while !self.pending.is_empty() {
            if let Err(first) = self.write_batch() {
                // One bad file is not a bad disk, so try once more in a new segment.
                let again = if self.reserve.free_for(&first) { Err(first) } else { self.write_batch() };
                if let Err(error) = again {
                    return self.fail(&error);
                }
            }
        }
    }

    /// When everything is on disk, deletes expired segments and signs a head if one is due.
    fn after_write(&mut self, head_is_due: bool) {
        if self.pending.is_empty() && self.outage.is_none() {
            self.retention.delete(&self.shared.dir, self.shared.clock.now());
            let due = head_is_due || std::mem::take(&mut self.sealed);
            self.shared.heads.store_if_due(&self.tree, self.shared.clock.now(), due);
        }
    }

    /// Everything that came through the buffer is on disk or was refused.
    fn notify_flushed(&self) {
        if self.pending.is_empty() {
            self.shared.synced.send_modify(|synced| synced.dealt_with = self.taken);
        }
    }

    /// Writes one batch of the pending records. On failure they become pending again.
    pub(crate) fn write_batch(&mut self) -> io::Result<()> {
        self.check_active();
        self.seal_if_full();
        let mut batch = self.next_batch();
        if batch.is_empty() {
            return Ok(());
        }
        match self.store(&mut batch) {
            Ok(stored) => {
                self.acknowledge(batch, stored);
                Ok(())
            }
            Err(error) => {
                self.shared.failures.fetch_add(1, Ordering::Relaxed);
                tracing::warn!(%error, "cannot write the audit log");
                batch.into_iter().rev().for_each(|entry| self.pending.push_front(entry));
                self.abandon_active();
                Err(error)
            }
        }
    }

    /// The next batch. While only the freed reserve is left, it consists of outcomes only.
    fn next_batch(&mut self) -> Vec<PendingRecord> {
        let is_disk_full = self.outage.as_ref().is_some_and(|outage| outage.is_disk_full);
        if !is_disk_full {
            let count = self.pending.len().min(BATCH_MAX);
            return self.pending.drain(..count).collect();
        }
        let all = std::mem::take(&mut self.pending);
        let (outcomes, others): (Vec<_>, Vec<_>) =
            all.into_iter().partition(|entry| entry.record.kind == Some(Kind::Outcome));
        self.pending = others.into();
        outcomes
    }

    /// Renders the batch, writes it and makes it durable.
    fn store(&mut self, batch: &mut [PendingRecord]) -> io::Result<StoredBatch> {
        let mut tree = self.tree.clone();
        self.rendered.clear();
        self.leaves.clear();
        if self.active.is_none() {
            self.render_opening(&mut tree);
        }
        let opening = byte_count(&self.rendered);
        let (mut refusal_bytes, mut lines) = (0, Vec::with_capacity(batch.len() + 1));
        lines.push(opening);
        for entry in batch {
            let start = self.rendered.len();
            entry.record.seq = tree.size() + 1;
            line::render(&entry.record, self.shared.record_bytes, &mut self.rendered);
            self.end_line(start, &mut tree);
            if entry.record.is_refusal() {
                refusal_bytes += u64::try_from(self.rendered.len() - start).unwrap_or(0);
            }
            lines.push(byte_count(&self.rendered));
        }
        let is_new = self.active.is_none();
        let active = match &mut self.active {
            Some(active) => active,
            none => none.insert(begin_segment(&self.shared, &*self.disk, (self.tree.size() + 1, opening))?),
        };
        self.disk.write(&active.file, &self.rendered)?;
        self.disk.sync(&active.file)?;
        if is_new {
            disk::sync_folder(&self.shared.dir)?;
        }
        let length = byte_count(&self.rendered);
        Ok(StoredBatch { tree, length, refusal_bytes, lines })
    }

    fn render_opening(&mut self, tree: &mut Tree) {
        let opening = SegmentOpening {
            tree: tree.clone(),
            open: self.open.clone(),
            time: self.shared.clock.wall(),
            kept: self.retention.kept(),
            fingerprint_key: Some(self.shared.key.name.clone()),
        };
        self.rendered.extend_from_slice(&opening.render());
        self.end_line(0, tree);
    }

    /// Ends a line: what was rendered from `start` on.
    fn end_line(&mut self, start: usize, tree: &mut Tree) {
        let leaf = tree::leaf(self.rendered.get(start..).unwrap_or_default());
        tree.push(leaf);
        self.leaves.push(leaf);
        self.rendered.push(b'\n');
    }

    /// The batch is on disk, so everyone may know.
    fn acknowledge(&mut self, batch: Vec<PendingRecord>, stored: StoredBatch) {
        let records = stored.tree.size() - self.tree.size();
        self.shared.records.fetch_add(records, Ordering::Relaxed);
        self.shared.bytes.fetch_add(stored.length, Ordering::Relaxed);
        self.shared.syncs.fetch_add(1, Ordering::Relaxed);
        self.tree = stored.tree;
        self.retention.wrote_refusals(stored.refusal_bytes);
        self.shared.refusals_left.store(self.retention.refusals_left(), Ordering::Relaxed);
        let (mut segment, mut before) = (0, 0);
        if let Some(active) = &mut self.active {
            (segment, before) = (active.first, active.length);
            active.length += stored.length;
            active.add_leaves(&self.leaves);
        }
        let mut durable = Vec::with_capacity(batch.len());
        for (entry, line) in batch.into_iter().zip(stored.lines.windows(2)) {
            self.open.apply(&entry.record);
            let &[start, end] = line else { continue };
            let place = LinePosition { segment, offset: before + start, length: end - start - 1 };
            durable.push((place, self.answer(entry)));
        }
        self.shared.stuck.store(false, Ordering::SeqCst);
        self.publish();
        // Last: the index may not be ahead of what is published.
        if self.shared.unindexed.lock().unwrap_or_else(PoisonError::into_inner).add(durable) {
            self.wake_index();
        }
    }

    /// Answers whoever waits for this record. An intent whose caller gave up was never sent, and gets that outcome.
    fn answer(&mut self, mut entry: PendingRecord) -> Box<Record<'static>> {
        self.shared.buffer.release(entry.charge);
        if entry.record.kind != Some(Kind::Intent) {
            // Its write has ended on disk: whoever learns that may use the id again.
            entry.name = None;
        }
        if matches!(entry.record.kind, Some(Kind::Intent | Kind::Settlement)) || entry.record.adopted.is_some() {
            self.shared.doubts.apply(&entry.record, entry.doubt_room.take());
        }
        let was_received = entry.ack.is_some_and(|ack| ack.send(Ok(entry.record.seq)).is_ok());
        if entry.record.kind == Some(Kind::Intent) && !was_received {
            let record = Box::new(not_sent(Record::clone(&entry.record), self.shared.clock.wall()));
            self.shared.doubts.end(&record);
            let charge = outcome_charge(self.shared.record_bytes);
            let name = entry.name;
            self.pending.push_back(PendingRecord { record, charge, _share: None, ack: None, name, doubt_room: None });
        }
        entry.record
    }

    /// Publishes what is durable to the index and followers.
    fn publish(&self) {
        let Some(active) = &self.active else { return };
        self.shared.durable.lock().unwrap_or_else(PoisonError::into_inner).clone_from(&self.tree);
        self.shared.synced.send_modify(|synced| {
            synced.segment = active.first;
            synced.length = active.length;
            synced.seq = self.tree.size();
        });
        if self.shared.lines.receiver_count() > 0 {
            for line in self.rendered.split(|b| *b == b'\n').filter(|line| !line.is_empty()) {
                let _nobody_follows = self.shared.lines.send(String::from_utf8_lossy(line).into());
            }
        }
    }

    /// Refuses those who wait and may be refused. Outcomes and lazy records stay.
    pub(crate) fn refuse_waiting(&mut self) {
        let mut kept = VecDeque::new();
        for mut entry in std::mem::take(&mut self.pending) {
            let refused = entry.record.kind != Some(Kind::Outcome)
                && entry.ack.take().is_some_and(|ack| ack.send(Err(CannotRecord::Failed)).is_ok());
            if refused {
                self.shared.give_back(&entry);
            } else {
                kept.push_back(entry);
            }
        }
        self.pending = kept;
        self.shared.stuck.store(false, Ordering::SeqCst);
    }

    /// Checks that the open file is still the one at its path and as long as it was left, because someone may have
    /// deleted, replaced or truncated it. What it held is lost, but writing continues in a segment that begins with
    /// everything that is open.
    fn check_active(&mut self) {
        let Some(active) = &self.active else { return };
        let what = match fs::symlink_metadata(&active.path) {
            Ok(about) if disk::identity(&about) != active.identity => "replaced",
            Ok(about) if about.len() < active.length => "cut",
            Ok(_) => return,
            Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => "deleted",
            Err(_) => return, // the disk is failing, which is reported elsewhere
        };
        let (first, last) = (active.first, self.tree.size());
        let detail = format!("the segment with the records {first} to {last} was {what} while it was being written");
        tracing::error!(target: STATE, first, last, "{detail}; the log continues in a new one; run `makegate audit verify` to see what was lost");
        self.shared.has_lost.store(true, Ordering::Relaxed);
        self.active = None;
        self.pending.push_front(PendingRecord::own(Record::event(self.shared.clock.wall(), "segment-lost", detail)));
    }

    /// Seals the active segment when it is full, or so old that retention could otherwise not delete its records in
    /// time. At least as much follows its opening: however many writes are open, listing them again and again never
    /// takes more room than the records do.
    fn seal_if_full(&mut self) {
        let now = self.shared.clock.wall();
        let full = |active: &ActiveSegment| {
            active.length >= self.segment_bytes.max(active.opening.saturating_mul(2))
                || self.retention.is_aged(active.begun, now)
        };
        if self.active.as_ref().is_some_and(full) {
            (self.active, self.sealed) = (None, true);
            self.sweep();
        }
    }

    /// Makes sure that the active segment is not synced again, and truncates it to what was acknowledged, if
    /// possible.
    fn abandon_active(&mut self) {
        let Some(active) = self.active.take() else { return };
        let truncated =
            if active.length == 0 { fs::remove_file(&active.path) } else { active.file.set_len(active.length) };
        if let Err(error) = truncated {
            tracing::warn!(%error, segment = %active.path.display(), "cannot truncate a segment; its tail is void");
        }
    }

    /// Deletes old segments, and restores the reserve if it was missing.
    fn sweep(&mut self) {
        if self.outage.is_some() {
            return;
        }
        self.reserve.restore(&*self.disk);
        let now = (self.shared.clock.now(), self.shared.clock.wall());
        let events = self.retention.sweep(&self.shared.dir, (&self.open, &self.shared.shipped), now);
        if !events.is_empty() {
            // They must be the first records of a new segment.
            (self.active, self.sealed) = (None, true);
            events.into_iter().rev().for_each(|event| self.pending.push_front(PendingRecord::own(event)));
        }
    }
}

fn byte_count(bytes: &[u8]) -> u64 {
    u64::try_from(bytes.len()).unwrap_or(u64::MAX)
}

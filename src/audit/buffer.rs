//! What stands between requests and the disk: a bounded buffer that the writer swaps out.
//!
//! Filling it costs a push under a lock. The first record wakes the writer, which then gathers some more; those that somebody
//! waits for make it come at once, and so does a buffer that fills up faster than that.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::oneshot;

use super::log::CannotRecord;
use super::record::Record;
use super::request_ids::HeldRequestId;
use crate::config;
use crate::shares::HeldShare;

/// The writer comes before its time for so many records, however large the buffer is.
const MANY: usize = 512;
/// How long records that nobody waits for are gathered: short, so that requests on the writer's core do not wait for a large batch.
const GATHER: Duration = Duration::from_millis(25);

/// Refusals of whoever is not known, or too fast, have this part of the buffer.
const REFUSALS_PART: usize = 8;

/// What a record occupies: it is given back when the record is on disk.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct BufferCharge {
    pub(crate) records: usize,
    pub(crate) bytes: usize,
    /// It is a refusal's, which may have only a part of the buffer.
    pub(crate) refusal: bool,
}

/// What is occupied.
#[derive(Debug, Default)]
struct BufferUsage {
    records: AtomicUsize,
    bytes: AtomicUsize,
}

impl BufferUsage {
    fn take_anyway(&self, charge: BufferCharge) -> (usize, usize) {
        let records = self.records.fetch_add(charge.records, Ordering::Relaxed) + charge.records;
        (records, self.bytes.fetch_add(charge.bytes, Ordering::Relaxed) + charge.bytes)
    }

    fn release(&self, charge: BufferCharge) {
        self.records.fetch_sub(charge.records, Ordering::Relaxed);
        self.bytes.fetch_sub(charge.bytes, Ordering::Relaxed);
    }
}

/// Tells who waits for a record its sequence number, or why it has none.
pub(crate) type Ack = oneshot::Sender<Result<u64, CannotRecord>>;

/// A record in the buffer, boxed by who made it: it is large, and moved often.
#[derive(Debug)]
pub(crate) struct PendingRecord {
    pub(crate) record: Box<Record>,
    pub(crate) charge: BufferCharge,
    /// The same against the share of its caller, if it has one.
    pub(crate) _share: Option<HeldShare>,
    pub(crate) ack: Option<Ack>,
    /// A write's id is not free before its record is on disk, or refused.
    pub(crate) name: Option<HeldRequestId>,
}

impl PendingRecord {
    /// A record of the log's own, which no request has taken room for.
    pub(crate) fn own(record: Record) -> Self {
        Self { record: Box::new(record), charge: BufferCharge::default(), _share: None, ack: None, name: None }
    }
}

/// What the writer is to do when it has emptied the buffer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum WriterStage {
    /// Come again.
    #[default]
    Running,
    /// Say that this is a clean stop, and end.
    Closing,
    /// End: nobody holds the log any more.
    Abandoned,
    /// It has ended: nothing is taken any more.
    Ended,
}

#[derive(Debug, Default)]
struct RecordQueue {
    entries: Vec<PendingRecord>,
    bytes: usize,
    pushed: u64,
    urgent: bool,
    stage: WriterStage,
}

/// The buffer.
#[derive(Debug)]
pub(crate) struct RecordBuffer {
    records_max: usize,
    bytes_max: usize,
    held: BufferUsage,
    refusals: BufferUsage,
    queue: Mutex<RecordQueue>,
    wake: Condvar,
}

impl RecordBuffer {
    pub(crate) fn new(settings: &config::AuditConfig) -> Self {
        Self {
            records_max: settings.buffer_records,
            bytes_max: settings.buffer_bytes,
            held: BufferUsage::default(),
            refusals: BufferUsage::default(),
            queue: Mutex::default(),
            wake: Condvar::new(),
        }
    }

    fn queue(&self) -> MutexGuard<'_, RecordQueue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes room, if there is so much.
    pub(crate) fn take(&self, charge: BufferCharge) -> bool {
        let (records, bytes) = self.held.take_anyway(charge);
        let fits = records <= self.records_max && bytes <= self.bytes_max;
        if !fits {
            self.held.release(charge);
        }
        fits
    }

    /// What this counts for against a caller's share, of [`config::AuditConfig::buffer_bytes`]: its bytes, or a record's part of
    /// them where that is more.
    pub(crate) fn share_of(&self, charge: BufferCharge) -> u64 {
        u64::try_from(charge.bytes.max(self.bytes_max / self.records_max.max(1))).unwrap_or(u64::MAX)
    }

    /// Is there no room left?
    pub(crate) fn is_full(&self) -> bool {
        let (records, bytes) = (self.held.records.load(Ordering::Relaxed), self.held.bytes.load(Ordering::Relaxed));
        records >= self.records_max || bytes >= self.bytes_max
    }

    /// Takes room that was promised: an outcome is never turned away.
    pub(crate) fn take_anyway(&self, charge: BufferCharge) {
        self.held.take_anyway(charge);
    }

    /// Makes of room that was taken a refusal's, if refusals have not got their part of the buffer yet.
    pub(crate) fn is_refusals(&self, charge: BufferCharge) -> bool {
        let (records, bytes) = self.refusals.take_anyway(charge);
        let fits = records <= (self.records_max / REFUSALS_PART).max(1) && bytes <= self.bytes_max / REFUSALS_PART;
        if !fits {
            self.refusals.release(charge);
        }
        fits
    }

    /// Gives room back.
    pub(crate) fn release(&self, charge: BufferCharge) {
        self.held.release(charge);
        if charge.refusal {
            self.refusals.release(charge);
        }
    }

    /// Records that room is held for.
    pub(crate) fn held(&self) -> usize {
        self.held.records.load(Ordering::Relaxed)
    }

    /// What refusals weigh that are not on disk yet: more than their lines will.
    pub(crate) fn refusal_bytes(&self) -> u64 {
        u64::try_from(self.refusals.bytes.load(Ordering::Relaxed)).unwrap_or(u64::MAX)
    }

    /// Puts a record in; `urgent`: somebody waits for it. Given back: the writer has ended.
    #[must_use]
    pub(crate) fn push(&self, entry: PendingRecord, urgent: bool) -> Option<PendingRecord> {
        let weight = entry.charge.bytes;
        let mut queue = self.queue();
        if queue.stage == WriterStage::Ended {
            return Some(entry);
        }
        let (was_empty, was_filling) = (queue.entries.is_empty(), self.is_filling(&queue));
        queue.entries.push(entry);
        queue.bytes += weight;
        queue.pushed += 1;
        queue.urgent |= urgent;
        if urgent || was_empty || (!was_filling && self.is_filling(&queue)) {
            self.wake.notify_one();
        }
        None
    }

    /// Is so much waiting that the writer should come before its time?
    fn is_filling(&self, queue: &RecordQueue) -> bool {
        queue.entries.len() >= (self.records_max / 4).clamp(1, MANY) || queue.bytes >= self.bytes_max / 4
    }

    /// Makes the writer come now; how many records have ever been put in.
    pub(crate) fn hurry(&self) -> u64 {
        let mut queue = self.queue();
        queue.urgent = true;
        self.wake.notify_one();
        queue.pushed
    }

    /// Tells the writer to end. A stop that was asked for is not undone.
    pub(crate) fn end(&self, stage: WriterStage) {
        let mut queue = self.queue();
        if queue.stage == WriterStage::Running || stage == WriterStage::Ended {
            queue.stage = stage;
        }
        self.wake.notify_one();
    }

    /// Takes nothing any more; the writer's last look. What is there is for the writer to settle.
    pub(crate) fn seal(&self, into: &mut Vec<PendingRecord>) {
        let mut queue = self.queue();
        queue.stage = WriterStage::Ended;
        into.append(&mut queue.entries);
    }

    pub(crate) fn stage(&self) -> WriterStage {
        self.queue().stage
    }

    /// The writer's turn: waits for a first record, at most `longest`, and gathers; then swaps everything into `into` (which is
    /// empty). `patient`: nothing ends the wait, only an end.
    pub(crate) fn swap(&self, into: &mut Vec<PendingRecord>, longest: Duration, patient: bool) -> WriterStage {
        let wait = |queue, longest, goes_on: &dyn Fn(&RecordQueue) -> bool| {
            let waited = self.wake.wait_timeout_while(queue, longest, |queue: &mut RecordQueue| {
                queue.stage == WriterStage::Running && (patient || (!queue.urgent && goes_on(queue)))
            });
            waited.unwrap_or_else(PoisonError::into_inner).0
        };
        let mut queue = wait(self.queue(), longest, &|queue| queue.entries.is_empty());
        if !patient && !queue.entries.is_empty() {
            queue = wait(queue, GATHER, &|queue| !self.is_filling(queue));
        }
        std::mem::swap(&mut queue.entries, into);
        queue.bytes = 0;
        queue.urgent = false;
        queue.stage
    }
}

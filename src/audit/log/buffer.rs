//! The bounded buffer between requests and the disk, which the writer swaps out.
//!
//! Adding a record costs a push under a lock. The first record wakes the writer, which then gathers more for a
//! moment. It comes at once for records that someone waits for, or if the buffer fills up sooner.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::oneshot;

use crate::audit::open_writes::request_ids::HeldRequestId;
use crate::audit::record::Record;
use crate::config;
use crate::shares::{HeldShare, Shortage};

/// Why a record could not be made durable.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CannotRecord {
    /// The buffer is full, or too many writes are waiting. Nothing is recorded.
    #[error("the audit log has no room for another write")]
    Full,
    /// Writes in doubt have used up the caller's share of the room for them. Nothing is recorded.
    #[error("too many writes are in doubt")]
    Doubts(Shortage),
    /// The disk is failing. Nothing is recorded.
    #[error("the audit log cannot be written right now")]
    Failed,
    /// The disk is slow. The record is kept and written when possible, and an intent is followed by the outcome
    /// `not-sent`. The write must not go upstream, and nothing else may be recorded for it.
    #[error("the audit log's disk is too slow")]
    Slow,
}

impl CannotRecord {
    /// Whether the log itself will record this write as not sent.
    #[must_use]
    pub const fn is_recorded(self) -> bool {
        matches!(self, Self::Slow)
    }
}

/// With this many records the writer comes early, however large the buffer is.
const EARLY_BATCH_RECORDS: usize = 512;
/// How long records that nobody waits for are gathered. It is short, so that requests on the writer's core do not
/// wait for a large batch.
const GATHER: Duration = Duration::from_millis(25);

/// Divisor that gives the part of the buffer for refusals of unidentified and rate-limited callers.
const REFUSALS_DIVISOR: usize = 8;

/// What a record occupies until it is on disk.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct BufferCharge {
    pub(crate) records: usize,
    pub(crate) bytes: usize,
    /// Whether this is a refusal, which may only use a part of the buffer.
    pub(crate) refusal: bool,
}

#[derive(Debug, Default)]
struct BufferUsage {
    records: AtomicUsize,
    bytes: AtomicUsize,
}

impl BufferUsage {
    fn force_take(&self, charge: BufferCharge) -> (usize, usize) {
        let records = self.records.fetch_add(charge.records, Ordering::Relaxed) + charge.records;
        (records, self.bytes.fetch_add(charge.bytes, Ordering::Relaxed) + charge.bytes)
    }

    fn release(&self, charge: BufferCharge) {
        self.records.fetch_sub(charge.records, Ordering::Relaxed);
        self.bytes.fetch_sub(charge.bytes, Ordering::Relaxed);
    }
}

/// Tells whoever waits for a record its sequence number, or why it has none.
pub(crate) type Ack = oneshot::Sender<Result<u64, CannotRecord>>;

/// A record in the buffer. Its maker boxes it because it is large and moves often.
#[derive(Debug)]
pub(crate) struct PendingRecord {
    pub(crate) record: Box<Record<'static>>,
    pub(crate) charge: BufferCharge,
    /// The charge against its caller's share, if it has one.
    pub(crate) _share: Option<HeldShare>,
    pub(crate) ack: Option<Ack>,
    /// Keeps a write's id taken until its record is on disk or refused.
    pub(crate) name: Option<HeldRequestId>,
    /// An intent's room as an open write.
    pub(crate) doubt_room: Option<HeldShare>,
}

impl PendingRecord {
    /// A record of the log itself, for which no request has reserved room.
    pub(crate) fn own(record: Record<'static>) -> Self {
        Self {
            record: Box::new(record),
            charge: BufferCharge::default(),
            _share: None,
            ack: None,
            name: None,
            doubt_room: None,
        }
    }
}

/// What the writer does after emptying the buffer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum WriterStage {
    /// Continue.
    #[default]
    Running,
    /// Record a clean stop, then end.
    Closing,
    /// End, because nobody holds the log any more.
    Abandoned,
    /// The writer has ended and nothing more is accepted.
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

    /// Takes room, if available.
    pub(crate) fn take(&self, charge: BufferCharge) -> bool {
        let (records, bytes) = self.held.force_take(charge);
        let fits = records <= self.records_max && bytes <= self.bytes_max;
        if !fits {
            self.held.release(charge);
        }
        fits
    }

    /// What this charge counts for against a caller's share of [`config::AuditConfig::buffer_bytes`]: its bytes, or a
    /// record's part of them if that is more.
    pub(crate) fn share_of(&self, charge: BufferCharge) -> u64 {
        u64::try_from(charge.bytes.max(self.bytes_max / self.records_max.max(1))).unwrap_or(u64::MAX)
    }

    pub(crate) fn is_full(&self) -> bool {
        let (records, bytes) = (self.held.records.load(Ordering::Relaxed), self.held.bytes.load(Ordering::Relaxed));
        records >= self.records_max || bytes >= self.bytes_max
    }

    /// Takes room that was promised: an outcome is never turned away.
    pub(crate) fn force_take(&self, charge: BufferCharge) {
        self.held.force_take(charge);
    }

    /// Converts taken room to a refusal's, unless refusals have used up their part of the buffer.
    pub(crate) fn convert_to_refusal(&self, charge: BufferCharge) -> bool {
        let (records, bytes) = self.refusals.force_take(charge);
        let fits =
            records <= (self.records_max / REFUSALS_DIVISOR).max(1) && bytes <= self.bytes_max / REFUSALS_DIVISOR;
        if !fits {
            self.refusals.release(charge);
        }
        fits
    }

    pub(crate) fn release(&self, charge: BufferCharge) {
        self.held.release(charge);
        if charge.refusal {
            self.refusals.release(charge);
        }
    }

    /// Number of records that room is held for.
    pub(crate) fn held(&self) -> usize {
        self.held.records.load(Ordering::Relaxed)
    }

    /// Size in the buffer of refusals that are not on disk yet, which is more than their lines will have.
    pub(crate) fn refusal_bytes(&self) -> u64 {
        u64::try_from(self.refusals.bytes.load(Ordering::Relaxed)).unwrap_or(u64::MAX)
    }

    /// Adds a record; `urgent` means that someone waits for it. Returns it if the writer has ended.
    #[must_use]
    pub(crate) fn push(&self, entry: PendingRecord, urgent: bool) -> Option<PendingRecord> {
        let weight = entry.charge.bytes;
        let mut queue = self.queue();
        if queue.stage == WriterStage::Ended {
            return Some(entry);
        }
        let (was_empty, was_filling) = (queue.entries.is_empty(), self.is_batch_ready(&queue));
        queue.entries.push(entry);
        queue.bytes += weight;
        queue.pushed += 1;
        queue.urgent |= urgent;
        if urgent || was_empty || (!was_filling && self.is_batch_ready(&queue)) {
            self.wake.notify_one();
        }
        None
    }

    /// Whether enough is waiting for the writer to come early.
    fn is_batch_ready(&self, queue: &RecordQueue) -> bool {
        queue.entries.len() >= (self.records_max / 4).clamp(1, EARLY_BATCH_RECORDS) || queue.bytes >= self.bytes_max / 4
    }

    /// Makes the writer come now. Returns the number of records ever added.
    pub(crate) fn wake_writer(&self) -> u64 {
        let mut queue = self.queue();
        queue.urgent = true;
        self.wake.notify_one();
        queue.pushed
    }

    /// Tells the writer to end. Does not override a stop that was already requested.
    pub(crate) fn request_stage(&self, stage: WriterStage) {
        let mut queue = self.queue();
        if queue.stage == WriterStage::Running || stage == WriterStage::Ended {
            queue.stage = stage;
        }
        self.wake.notify_one();
    }

    /// Stops accepting records and hands over what is left for the writer to settle.
    pub(crate) fn seal(&self, into: &mut Vec<PendingRecord>) {
        let mut queue = self.queue();
        queue.stage = WriterStage::Ended;
        into.append(&mut queue.entries);
    }

    pub(crate) fn stage(&self) -> WriterStage {
        self.queue().stage
    }

    /// The writer's turn: waits up to `longest` for a first record, gathers more, and swaps everything into `into`
    /// (which must be empty). With `patient`, only the end of the log cuts the wait short.
    pub(crate) fn take_batch(&self, into: &mut Vec<PendingRecord>, longest: Duration, patient: bool) -> WriterStage {
        let wait = |queue, longest, goes_on: &dyn Fn(&RecordQueue) -> bool| {
            let waited = self.wake.wait_timeout_while(queue, longest, |queue: &mut RecordQueue| {
                queue.stage == WriterStage::Running && (patient || (!queue.urgent && goes_on(queue)))
            });
            waited.unwrap_or_else(PoisonError::into_inner).0
        };
        let mut queue = wait(self.queue(), longest, &|queue| queue.entries.is_empty());
        if !patient && !queue.entries.is_empty() {
            queue = wait(queue, GATHER, &|queue| !self.is_batch_ready(queue));
        }
        std::mem::swap(&mut queue.entries, into);
        queue.bytes = 0;
        queue.urgent = false;
        queue.stage
    }
}

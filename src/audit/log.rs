//! The log as requests see it: room is reserved when a request arrives, records are filled in lazily, and only writes
//! wait.

use std::fmt;
use std::fs::File;
use std::future::Future;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, OnceLock};
use std::thread::Thread;
use std::time::Duration;

use tokio::sync::{Semaphore, broadcast, oneshot, watch};

use super::buffer::{BufferCharge, PendingRecord, RecordBuffer, WriterStage};
use super::disk::{self, Disk, MachineDisk, OpenError};
use super::doubts::{DOUBTS_MAX, Doubts};
use super::events::start_events;
use super::fingerprints::{self, FingerprintKey};
use super::proof::closing_head;
use super::proof::heads::Heads;
use super::record::{Kind, Record};
use super::record_room::RecordRoom;
use super::recover::{self, Recovered};
use super::request_ids::RequestIds;
use super::tree::Tree;
use super::writer::LogWriter;
use super::{index, record_line};
use crate::clock::Clock;
use crate::config;
use crate::ids::Fingerprint;

/// Maximum number of intents and settlements waiting for the disk.
const WAITING_MAX: usize = 512;
/// How many lines a follower may lag behind.
const FOLLOW_LAG: usize = 1024;
/// Maximum number of concurrent queries.
pub(crate) const QUERIES_MAX: usize = 2;

/// Why a record could not be made durable.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CannotRecord {
    /// The buffer is full, too many writes are waiting, or too many are in doubt. Nothing is recorded.
    Full,
    /// The disk is failing. Nothing is recorded.
    Failed,
    /// The disk is slow. The record is kept and written when possible, and an intent is followed by the outcome
    /// `not-sent`. The write must not go upstream, and nothing else may be recorded for it.
    Slow,
}

impl CannotRecord {
    /// Whether the log itself will record this write as not sent.
    #[must_use]
    pub const fn is_recorded(self) -> bool {
        matches!(self, Self::Slow)
    }
}

impl fmt::Display for CannotRecord {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Full => "the audit log has no room for another write",
            Self::Failed => "the audit log cannot be written right now",
            Self::Slow => "the audit log's disk is too slow",
        })
    }
}

impl std::error::Error for CannotRecord {}

/// How far the log is durable. Readers of a running log may look no further.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct DurablePosition {
    /// The segment being written.
    pub(crate) segment: u64,
    /// The length of its durable part, in bytes.
    pub(crate) length: u64,
    /// The newest durable record.
    pub(crate) seq: u64,
    /// One more than the number of buffered records dealt with; 0 until the log's own start records are.
    pub(crate) dealt_with: u64,
}

/// Counters for metrics.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LogCounts {
    /// Records written to disk since the start.
    pub records: u64,
    /// Size of these records, in bytes.
    pub bytes: u64,
    /// Number of fdatasync calls.
    pub syncs: u64,
    /// Failed writes and fdatasync calls.
    pub failures: u64,
    /// Requests turned away because the log had no room or no disk.
    pub refused: u64,
    /// Number of writes in doubt.
    pub doubts: u64,
}

/// State shared by the log's handle and its threads.
#[derive(Debug)]
pub(crate) struct LogShared {
    pub(crate) clock: Clock,
    pub(crate) dir: PathBuf,
    pub(crate) record_bytes: usize,
    disk_wait: Duration,
    pub(crate) buffer: RecordBuffer,
    pub(crate) doubts: Doubts,
    /// The tree over all durable records.
    pub(crate) durable: Mutex<Tree>,
    pub(crate) heads: Heads,
    pub(crate) key: FingerprintKey,
    /// The disk is failing, so no write is accepted.
    pub(crate) failed: AtomicBool,
    /// A caller gave up waiting for a batch that is still being written, so no write is accepted.
    pub(crate) stuck: AtomicBool,
    /// A segment was damaged while it was being written.
    pub(crate) has_lost: AtomicBool,
    /// How many more bytes of refusals the log may take.
    pub(crate) refusals_left: AtomicU64,
    pub(crate) synced: watch::Sender<DurablePosition>,
    pub(crate) lines: broadcast::Sender<Arc<str>>,
    pub(crate) ended: watch::Sender<u8>,
    /// The index thread, woken when the writer has ended.
    pub(crate) index: OnceLock<Thread>,
    /// Number of threads that have released the folder.
    pub(crate) left: watch::Sender<u8>,
    pub(crate) records: AtomicU64,
    pub(crate) bytes: AtomicU64,
    pub(crate) syncs: AtomicU64,
    pub(crate) failures: AtomicU64,
    pub(crate) refused: AtomicU64,
    waiting: AtomicUsize,
}

impl LogShared {
    fn new(settings: &config::AuditConfig, clock: Clock, durable: Tree, heads: Heads, key: FingerprintKey) -> Self {
        Self {
            clock,
            dir: settings.dir.clone(),
            record_bytes: settings.record_bytes,
            disk_wait: settings.disk_wait,
            buffer: RecordBuffer::new(settings),
            doubts: Doubts::default(),
            durable: Mutex::new(durable),
            heads,
            key,
            failed: AtomicBool::new(false),
            stuck: AtomicBool::new(false),
            has_lost: AtomicBool::new(false),
            refusals_left: AtomicU64::new(u64::MAX),
            synced: watch::Sender::default(),
            lines: broadcast::Sender::new(FOLLOW_LAG),
            ended: watch::Sender::default(),
            index: OnceLock::new(),
            left: watch::Sender::default(),
            records: AtomicU64::new(0),
            bytes: AtomicU64::new(0),
            syncs: AtomicU64::new(0),
            failures: AtomicU64::new(0),
            refused: AtomicU64::new(0),
            waiting: AtomicUsize::new(0),
        }
    }

    fn writable(&self) -> bool {
        !self.failed.load(Ordering::Relaxed) && !self.stuck.load(Ordering::Relaxed)
    }

    fn refuse(&self, why: CannotRecord) -> CannotRecord {
        self.refused.fetch_add(1, Ordering::Relaxed);
        why
    }

    /// Takes room for a record about to be queued. An intent also takes room for its outcome, so the outcome of a
    /// write under way can always be buffered.
    fn charge(&self, record: &Record) -> Result<BufferCharge, CannotRecord> {
        let own = BufferCharge { records: 1, bytes: record.weight(), refusal: false };
        let taken = match record.kind {
            Kind::Outcome => {
                if !self.doubts.end(record) {
                    self.buffer.take_anyway(outcome_charge(self.record_bytes));
                }
                return Ok(outcome_charge(self.record_bytes));
            }
            Kind::Intent => {
                let outcome = outcome_charge(self.record_bytes);
                let (records, bytes) = (own.records + outcome.records, own.bytes + outcome.bytes);
                let both = BufferCharge { records, bytes, refusal: false };
                self.doubts.count() < DOUBTS_MAX && self.buffer.take(both)
            }
            Kind::Request | Kind::Settlement | Kind::Event | Kind::Refusals => self.buffer.take(own),
        };
        if taken { Ok(own) } else { Err(CannotRecord::Full) }
    }

    /// Queues a record whose caller waits for it.
    fn enqueue(&self, mut record: Record) -> Result<oneshot::Receiver<Result<u64, CannotRecord>>, CannotRecord> {
        if record.kind != Kind::Outcome && !self.writable() {
            return Err(CannotRecord::Failed);
        }
        bound(&mut record, self.record_bytes);
        let name = record.request.map(|id| self.doubts.names().hold(id));
        let charge = self.charge(&record)?;
        let (ack, acked) = oneshot::channel();
        match self
            .buffer
            .push(PendingRecord { record: Box::new(record), charge, _share: None, ack: Some(ack), name }, true)
        {
            None => Ok(acked),
            Some(entry) => {
                self.give_back(&entry);
                Err(CannotRecord::Failed)
            }
        }
    }

    /// Releases the room of an entry that will never be written.
    pub(crate) fn give_back(&self, entry: &PendingRecord) {
        self.buffer.release(entry.charge);
        if entry.record.kind == Kind::Intent {
            self.buffer.release(outcome_charge(self.record_bytes));
        }
    }

    async fn acknowledged(
        &self,
        mut acked: oneshot::Receiver<Result<u64, CannotRecord>>,
        wait: Duration,
    ) -> Result<u64, CannotRecord> {
        match tokio::time::timeout(wait, &mut acked).await {
            Ok(answer) => answer.unwrap_or(Err(CannotRecord::Failed)),
            Err(_too_long) => {
                // Set `stuck` first, because any acknowledgment from now on clears it. Then close the channel: the
                // answer is there by now or never will be, so the writer knows whether it was received.
                self.stuck.store(true, Ordering::SeqCst);
                acked.close();
                let Ok(answer) = acked.try_recv() else { return Err(CannotRecord::Slow) };
                self.stuck.store(false, Ordering::SeqCst);
                answer
            }
        }
    }
}

/// The room that an intent reserves for its outcome.
pub(crate) const fn outcome_charge(record_bytes: usize) -> BufferCharge {
    BufferCharge { records: 1, bytes: record_bytes, refusal: false }
}

/// Truncates overlong text from callers before it takes up memory.
pub(super) fn bound(record: &mut Record, record_bytes: usize) {
    if record.text_bytes() > record_bytes {
        record_line::fit(record, record_bytes);
    }
}

/// Counts one waiting write until dropped.
struct WaitingWriter(Arc<LogShared>);

impl WaitingWriter {
    fn enter(shared: &Arc<LogShared>) -> Option<Self> {
        let before = shared.waiting.fetch_add(1, Ordering::Relaxed);
        let entered = Self(shared.clone());
        (before < WAITING_MAX).then_some(entered)
    }
}

impl Drop for WaitingWriter {
    fn drop(&mut self) {
        self.0.waiting.fetch_sub(1, Ordering::Relaxed);
    }
}

/// The log: journal of writes and audit trail of requests in one.
pub struct AuditLog {
    pub(crate) shared: Arc<LogShared>,
    pub(crate) queries: Arc<Semaphore>,
}

impl AuditLog {
    /// Opens the log in this folder, recovers what an earlier run left, and starts the writer and the index.
    ///
    /// # Errors
    /// [`OpenError`] says why the folder cannot be used and what to do.
    pub fn open(settings: &config::AuditConfig, clock: Clock) -> Result<(Arc<Self>, Recovered), OpenError> {
        Self::open_on(settings, clock, Arc::new(MachineDisk))
    }

    /// Like [`AuditLog::open`], on the given disk.
    ///
    /// # Errors
    /// As [`AuditLog::open`].
    pub fn open_on(
        settings: &config::AuditConfig,
        clock: Clock,
        disk: Arc<dyn Disk>,
    ) -> Result<(Arc<Self>, Recovered), OpenError> {
        let dir = &settings.dir;
        let lock: Arc<File> = disk::occupy(dir)?.into();
        let (mut start, recovered) = recover::recover(dir)?;
        let (key, told) = fingerprints::open(dir, &clock, &mut start, &recovered)?;
        let (heads, opened) = Heads::open(dir, settings.head, &start)?;
        let shared = Arc::new(LogShared::new(settings, clock, start.tree.clone(), heads, key.clone()));
        recovered.doubts.iter().for_each(|doubt| shared.doubts.add(doubt.clone()));
        shared.synced.send_modify(|synced| synced.seq = start.tree.size());
        let mut events = start_events(&shared, &recovered, &opened);
        events.extend(told);
        closing_head::open(dir).map_err(disk::while_doing("cannot open the log that was closed in", dir))?;
        let writer = LogWriter::new(shared.clone(), disk, settings, start, (&recovered, events));
        spawn("audit-writer", dir, {
            let (lock, shared) = (lock.clone(), shared.clone());
            move || {
                writer.run();
                drop(lock);
                shared.left.send_modify(|threads| *threads += 1);
            }
        })?;
        spawn("audit-index", dir, {
            let shared = shared.clone();
            move || {
                index::follow(&shared);
                drop(lock);
                shared.left.send_modify(|threads| *threads += 1);
            }
        })?;
        let log = Arc::new(Self { shared, queries: Arc::new(Semaphore::new(QUERIES_MAX)) });
        fingerprints::guard(&log, key)?;
        Ok((log, recovered))
    }

    /// Reserves room for one record when a request arrives. Returns `None` if the buffer is full; the request must
    /// then be refused.
    #[must_use]
    pub fn reserve(self: &Arc<Self>) -> Option<RecordRoom> {
        let charge = outcome_charge(self.shared.record_bytes);
        if self.shared.buffer.take(charge) {
            return Some(RecordRoom::of(self.clone(), charge));
        }
        self.shared.refuse(CannotRecord::Full);
        None
    }

    /// Records durably and returns the sequence number. The record is queued by the call itself, before the first
    /// poll. Outcomes and settlements must name their intent's sequence number.
    ///
    /// An intent or a settlement waits at most [`config::AuditConfig::disk_wait`], and is refused at once while the
    /// disk is failing. Dropping an intent's future leaves a write that is recorded as not sent. An outcome waits as
    /// long as it takes, and dropping its future changes nothing: it is written when the disk is back. A write in
    /// doubt is listed in [`AuditLog::doubts`] as soon as this is called.
    ///
    /// # Errors
    /// [`CannotRecord`].
    pub fn commit(&self, record: Record) -> impl Future<Output = Result<u64, CannotRecord>> + Send + 'static + use<> {
        let shared = self.shared.clone();
        let patient = record.kind == Kind::Outcome;
        let waiting = if patient { None } else { WaitingWriter::enter(&shared) };
        let full = waiting.is_none() && !patient;
        let queued = if full { Err(CannotRecord::Full) } else { shared.enqueue(record) };
        async move {
            let _waiting = waiting;
            let acked = queued.map_err(|why| shared.refuse(why))?;
            if patient {
                return acked.await.unwrap_or(Err(CannotRecord::Failed));
            }
            shared.acknowledged(acked, shared.disk_wait).await.map_err(|why| shared.refuse(why))
        }
    }

    /// Whether writes are currently accepted.
    #[must_use]
    pub fn writable(&self) -> bool {
        self.shared.writable()
    }

    /// Whether a segment was damaged since the start while it was being written.
    #[must_use]
    pub fn has_lost(&self) -> bool {
        self.shared.has_lost.load(Ordering::Relaxed)
    }

    /// Whether refusals of unidentified or rate-limited callers may still have a record each. They may while those in
    /// the log and on their way to it stay within their share of its bytes, so that they never push out other
    /// records.
    #[must_use]
    pub fn refusals_fit(&self) -> bool {
        self.shared.buffer.refusal_bytes() < self.shared.refusals_left.load(Ordering::Relaxed)
    }

    /// Whether there is room for another record.
    #[must_use]
    pub fn has_room(&self) -> bool {
        !self.shared.buffer.is_full()
    }

    /// Number of records that are not on disk yet or that have reserved room.
    #[must_use]
    pub fn backlog(&self) -> usize {
        self.shared.buffer.held()
    }

    /// Counters since the start.
    #[must_use]
    pub fn counts(&self) -> LogCounts {
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        LogCounts {
            records: read(&self.shared.records),
            bytes: read(&self.shared.bytes),
            syncs: read(&self.shared.syncs),
            failures: read(&self.shared.failures),
            refused: read(&self.shared.refused),
            doubts: u64::try_from(self.shared.doubts.count()).unwrap_or(u64::MAX),
        }
    }

    /// The request ids in use.
    #[must_use]
    pub fn names(&self) -> &Arc<RequestIds> {
        self.shared.doubts.names()
    }

    /// The writes in doubt.
    #[must_use]
    pub fn doubts(&self) -> &Doubts {
        &self.shared.doubts
    }

    /// The keyed hash that identifies equal writes by caller, operation, canonical target and body.
    #[must_use]
    pub fn fingerprint(&self, parts: &[&[u8]]) -> Fingerprint {
        Fingerprint::of(&self.shared.key.bytes, parts)
    }

    /// The log's folder.
    #[must_use]
    pub fn dir(&self) -> &Path {
        &self.shared.dir
    }

    /// Waits until everything recorded so far is on disk and visible to queries, but at most twice `disk_wait`.
    pub async fn flush(&self) {
        let pushed = self.shared.buffer.hurry();
        let mut synced = self.shared.synced.subscribe();
        let _in_vain =
            tokio::time::timeout(2 * self.shared.disk_wait, synced.wait_for(|synced| synced.dealt_with > pushed)).await;
    }

    /// Shuts down cleanly: waits, however long it takes, until everything including the event `stop` is on disk and
    /// indexed. Nothing can be recorded afterwards.
    pub async fn close(&self) {
        self.shared.buffer.end(WriterStage::Closing);
        let mut left = self.shared.left.subscribe();
        // This cannot fail while `self` holds the sender.
        let _left = left.wait_for(|threads| *threads >= 2).await;
    }
}

impl fmt::Debug for AuditLog {
    /// Hides the fingerprint key.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Log").field("shared", &self.shared).finish_non_exhaustive()
    }
}

impl Drop for AuditLog {
    fn drop(&mut self) {
        self.shared.buffer.end(WriterStage::Abandoned);
    }
}

fn spawn(name: &str, dir: &Path, work: impl FnOnce() + Send + 'static) -> Result<(), OpenError> {
    let thread = std::thread::Builder::new().name(name.to_owned()).spawn(work);
    thread.map(drop).map_err(disk::while_doing("cannot start a thread for", dir))
}

//! The log as requests hold it: room taken when one arrives, records filled in lazily, writes waited for.

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

/// Intents and settlements that wait for the disk at once.
const WAITING_MAX: usize = 512;
/// Lines that a follower may lag behind.
const FOLLOW_LAG: usize = 1024;
/// Queries at once.
pub(crate) const QUERIES_MAX: usize = 2;

/// Why a record cannot be made durable.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CannotRecord {
    /// The buffer is full, too many wait, or too many writes are in doubt. Nothing is recorded of it.
    Full,
    /// The disk fails. Nothing is recorded of it.
    Failed,
    /// The disk is slow. The record is kept and written when it can be, an intent with the outcome `not-sent` after it:
    /// the write must not go upstream, and nothing else is to be recorded of it.
    Slow,
}

impl CannotRecord {
    /// Does the log record this write by itself all the same, as not sent?
    #[must_use]
    pub const fn is_recorded(self) -> bool {
        matches!(self, Self::Slow)
    }
}

impl fmt::Display for CannotRecord {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Full => "the audit log has no room for a further write",
            Self::Failed => "the audit log cannot be written at the moment",
            Self::Slow => "the audit log's disk takes too long",
        })
    }
}

impl std::error::Error for CannotRecord {}

/// How far the log is durable: all that readers of the running log may look at.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct DurablePosition {
    /// The segment that is written to.
    pub(crate) segment: u64,
    /// Its durable length.
    pub(crate) length: u64,
    /// The newest durable record.
    pub(crate) seq: u64,
    /// One more than how many buffered records have been dealt with; 0 until the start's own are.
    pub(crate) dealt_with: u64,
}

/// What the log counts, for metrics.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LogCounts {
    /// Records on disk since the start.
    pub records: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Calls of fdatasync.
    pub syncs: u64,
    /// Writes to disk and calls of fdatasync that failed.
    pub failures: u64,
    /// Requests that got no record because the log had no room or no disk.
    pub refused: u64,
    /// Writes in doubt.
    pub doubts: u64,
}

/// What the log's handle and its threads share.
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
    /// The disk fails: no write is accepted.
    pub(crate) failed: AtomicBool,
    /// Somebody waited in vain for a batch that is still under way: no write is accepted.
    pub(crate) stuck: AtomicBool,
    /// A segment was damaged while it was written to.
    pub(crate) has_lost: AtomicBool,
    /// What the refusals that are on disk leave of their share of the log's bytes.
    pub(crate) refusals_left: AtomicU64,
    pub(crate) synced: watch::Sender<DurablePosition>,
    pub(crate) lines: broadcast::Sender<Arc<str>>,
    pub(crate) ended: watch::Sender<u8>,
    /// The index's thread, which is woken when the writer has ended.
    pub(crate) index: OnceLock<Thread>,
    /// Threads that have let go of the folder.
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

    /// Room for a record that is about to be queued. An intent takes room for its outcome too; that an outcome of a write
    /// under way can be buffered is certain.
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

    /// Queues a record that somebody waits for.
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

    /// An entry that will never be written: its room is free again.
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
                // Stuck first: whoever answers from here on clears it. Then closed: an answer has come by now or never
                // will, so that the writer knows whether it was heard.
                self.stuck.store(true, Ordering::SeqCst);
                acked.close();
                let Ok(answer) = acked.try_recv() else { return Err(CannotRecord::Slow) };
                self.stuck.store(false, Ordering::SeqCst);
                answer
            }
        }
    }
}

/// The room that an intent keeps for its outcome.
pub(crate) const fn outcome_charge(record_bytes: usize) -> BufferCharge {
    BufferCharge { records: 1, bytes: record_bytes, refusal: false }
}

/// Cuts what a caller made too long before it takes memory.
pub(super) fn bound(record: &mut Record, record_bytes: usize) {
    if record.text_bytes() > record_bytes {
        record_line::fit(record, record_bytes);
    }
}

/// One of few that wait; counts itself out when dropped.
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

/// The log: journal of writes and audit of requests at once.
pub struct AuditLog {
    pub(crate) shared: Arc<LogShared>,
    pub(crate) queries: Arc<Semaphore>,
}

impl AuditLog {
    /// Opens the log of this folder, finds what an earlier run left, and starts the writer and the index.
    ///
    /// # Errors
    /// [`OpenError`]: the folder cannot be used; its words say what to do.
    pub fn open(settings: &config::AuditConfig, clock: Clock) -> Result<(Arc<Self>, Recovered), OpenError> {
        Self::open_on(settings, clock, Arc::new(MachineDisk))
    }

    /// The same on a disk of one's own.
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

    /// Room for one record, taken when a request arrives. `None`: the buffer is full, the request must be refused.
    #[must_use]
    pub fn reserve(self: &Arc<Self>) -> Option<RecordRoom> {
        let charge = outcome_charge(self.shared.record_bytes);
        if self.shared.buffer.take(charge) {
            return Some(RecordRoom::of(self.clone(), charge));
        }
        self.shared.refuse(CannotRecord::Full);
        None
    }

    /// Records durably; the record's sequence number. The record is queued by the call itself, before the first poll.
    /// An outcome and a settlement name their intent's number.
    ///
    /// An intent (or a settlement) waits at most [`config::AuditConfig::disk_wait`] and is refused at once while the disk fails; dropping the
    /// future of an intent leaves a write that is recorded as not sent. An outcome waits as long as it takes; dropping
    /// its future changes nothing, it is written when the disk is back. A write in doubt is in [`AuditLog::doubts`] from the
    /// call on.
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

    /// Would a write be accepted now?
    #[must_use]
    pub fn writable(&self) -> bool {
        self.shared.writable()
    }

    /// Did somebody damage a segment since the start, while it was written to?
    #[must_use]
    pub fn has_lost(&self) -> bool {
        self.shared.has_lost.load(Ordering::Relaxed)
    }

    /// May refusals of whoever is not known, or too fast, have a record each? Only while those in the log, and those on their
    /// way there, are less than their share of its bytes: they must not push others out.
    #[must_use]
    pub fn refusals_fit(&self) -> bool {
        self.shared.buffer.refusal_bytes() < self.shared.refusals_left.load(Ordering::Relaxed)
    }

    /// Is there room for a further record?
    #[must_use]
    pub fn has_room(&self) -> bool {
        !self.shared.buffer.is_full()
    }

    /// Records that are not on disk yet, or that room is kept for.
    #[must_use]
    pub fn backlog(&self) -> usize {
        self.shared.buffer.held()
    }

    /// What it has done since the start.
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

    /// The request ids that are taken.
    #[must_use]
    pub fn names(&self) -> &Arc<RequestIds> {
        self.shared.doubts.names()
    }

    /// The writes in doubt.
    #[must_use]
    pub fn doubts(&self) -> &Doubts {
        &self.shared.doubts
    }

    /// What makes two writes equal: caller, operation, canonical target, body.
    #[must_use]
    pub fn fingerprint(&self, parts: &[&[u8]]) -> Fingerprint {
        Fingerprint::of(&self.shared.key.bytes, parts)
    }

    /// The log's folder.
    #[must_use]
    pub fn dir(&self) -> &Path {
        &self.shared.dir
    }

    /// Waits until everything recorded so far is on disk, where queries see it; at most twice `disk_wait`.
    pub async fn flush(&self) {
        let pushed = self.shared.buffer.hurry();
        let mut synced = self.shared.synced.subscribe();
        let _in_vain =
            tokio::time::timeout(2 * self.shared.disk_wait, synced.wait_for(|synced| synced.dealt_with > pushed)).await;
    }

    /// The clean end: everything is on disk, the event `stop` too, and in the index, however long that takes. Nothing is
    /// recorded any more.
    pub async fn close(&self) {
        self.shared.buffer.end(WriterStage::Closing);
        let mut left = self.shared.left.subscribe();
        // An error would be that nobody can tell any more.
        let _left = left.wait_for(|threads| *threads >= 2).await;
    }
}

impl fmt::Debug for AuditLog {
    /// Without the fingerprints' key.
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

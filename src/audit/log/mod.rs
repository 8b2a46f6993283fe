//! The log as requests see it: room is reserved when a request arrives, records are filled in lazily, and only writes
//! wait.

mod active_segment;
pub(super) mod buffer;
pub(super) mod disk_usage;
pub(super) mod events;
mod outage;
pub(super) mod record_room;
pub(super) mod shared;
mod space_reserve;
pub(super) mod unindexed;
pub(super) mod writer;

use std::fmt;
use std::fs::File;
use std::future::Future;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use self::buffer::{CannotRecord, WriterStage};
use self::events::start_events;
use self::shared::{LogOutage, LogShared};
use self::writer::LogWriter;
use crate::audit::fingerprints::{self, key_guard};
use crate::audit::index;
use crate::audit::open_writes::doubts::Doubts;
use crate::audit::open_writes::request_ids::RequestIds;
use crate::audit::proof::closing_head;
use crate::audit::proof::heads::Heads;
use crate::audit::record::{Kind, Record};
use crate::audit::recover::{self, Recovered};
use crate::audit::segment::disk::{self, Disk, MachineDisk, OpenError};
use crate::audit::ship::mark::ShippedMark;
use crate::clock::Clock;
use crate::config;
use crate::fair_semaphore::FairSemaphore;
use crate::ids::Fingerprint;

/// Maximum number of intents and settlements waiting for the disk.
const WAITING_MAX: usize = 512;
/// Maximum number of concurrent queries. Whoever asks alone has all but one at a time; the last is for another.
const QUERIES_MAX: usize = 3;

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

/// What the log of one of several replicas shares with theirs.
#[derive(Clone, Copy)]
pub struct LogSharing {
    /// The key of fingerprints.
    pub key: [u8; 32],
    /// How long the table keeps the records that are shipped to it.
    pub keep: Duration,
}

/// The log: journal of writes and audit trail of requests in one.
pub struct AuditLog {
    pub(crate) shared: Arc<LogShared>,
    pub(crate) queries: FairSemaphore,
}

impl AuditLog {
    /// Opens the log in this folder, recovers what an earlier run left, and starts the writer and the index.
    ///
    /// # Errors
    /// [`OpenError`] says why the folder cannot be used and what to do.
    pub fn open(settings: &config::AuditConfig, clock: Clock) -> Result<(Arc<Self>, Recovered), OpenError> {
        Self::open_on(settings, clock, Arc::new(MachineDisk))
    }

    /// Like [`AuditLog::open`], for one of several replicas.
    ///
    /// # Errors
    /// As [`AuditLog::open`]; or the log was written with another key.
    pub fn open_shared(
        settings: &config::AuditConfig,
        clock: Clock,
        shared: Option<LogSharing>,
    ) -> Result<(Arc<Self>, Recovered), OpenError> {
        Self::open_with(settings, clock, Arc::new(MachineDisk), shared)
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
        Self::open_with(settings, clock, disk, None)
    }

    fn open_with(
        settings: &config::AuditConfig,
        clock: Clock,
        disk: Arc<dyn Disk>,
        replica: Option<LogSharing>,
    ) -> Result<(Arc<Self>, Recovered), OpenError> {
        let dir = &settings.dir;
        let lock: Arc<File> = disk::lock_folder(dir)?.into();
        let (mut start, recovered) = recover::recover(dir)?;
        let (key, event) = fingerprints::open(dir, &clock, &mut start, &recovered, replica.map(|replica| replica.key))?;
        let (heads, opened) = Heads::open(dir, settings.head, &start)?;
        let shipped = ShippedMark::new(replica.map(|replica| replica.keep));
        let shared = Arc::new(LogShared::new(settings, clock, start.tree.clone(), heads, key.clone(), shipped));
        shared.disk_usage.refresh(dir, shared.clock.now()); // no scrape finds it missing, however long the index takes
        recovered.doubts.iter().for_each(|doubt| shared.doubts.add(doubt.clone()));
        shared.synced.send_modify(|synced| synced.seq = start.tree.size());
        let mut events = start_events(&shared, &recovered, &opened);
        events.extend(event);
        closing_head::open(dir).map_err(disk::with_context("cannot open the log that was closed in", dir))?;
        let writer = LogWriter::new(shared.clone(), disk, settings, start, (&recovered, events));
        spawn("audit-writer", dir, {
            let (lock, shared) = (lock.clone(), shared.clone());
            move || {
                writer.run();
                drop(lock);
                shared.released.send_modify(|threads| *threads += 1);
            }
        })?;
        spawn("audit-index", dir, {
            let shared = shared.clone();
            move || {
                index::follow(&shared);
                drop(lock);
                shared.released.send_modify(|threads| *threads += 1);
            }
        })?;
        let log = Arc::new(Self { shared, queries: FairSemaphore::new(QUERIES_MAX) });
        key_guard::guard(&log, key)?;
        Ok((log, recovered))
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
    pub fn commit(
        &self,
        record: Record<'static>,
    ) -> impl Future<Output = Result<u64, CannotRecord>> + Send + 'static + use<> {
        let shared = self.shared.clone();
        let patient = record.kind == Some(Kind::Outcome);
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
    pub fn request_ids(&self) -> &Arc<RequestIds> {
        self.shared.doubts.request_ids()
    }

    /// The writes in doubt.
    #[must_use]
    pub fn doubts(&self) -> &Doubts {
        &self.shared.doubts
    }

    /// The outage of the log's disk, if there is one.
    #[must_use]
    pub fn outage(&self) -> Option<LogOutage> {
        self.shared.outage.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// How much of the disk the log's folder takes, as measured lately.
    #[must_use]
    pub fn disk_usage(&self) -> Option<disk_usage::DiskUsage> {
        self.shared.disk_usage.get()
    }

    /// Time since the newest head was submitted to its file, or since the start if none was.
    #[must_use]
    pub fn head_age(&self) -> Duration {
        let now = self.shared.clock.now();
        self.shared.heads.age(now).unwrap_or_else(|| now.saturating_duration_since(self.shared.opened))
    }

    /// The keyed hash that identifies equal writes by caller, operation, canonical target and body.
    #[must_use]
    pub fn fingerprint(&self, parts: &[&[u8]]) -> Fingerprint {
        Fingerprint::of(&self.shared.key.hmac, parts)
    }

    /// The log's folder.
    #[must_use]
    pub fn dir(&self) -> &Path {
        &self.shared.dir
    }

    /// Waits until everything recorded so far is on disk and visible to queries, but at most twice `disk_wait`.
    pub async fn flush(&self) {
        let pushed = self.shared.buffer.wake_writer();
        let mut synced = self.shared.synced.subscribe();
        let _in_vain =
            tokio::time::timeout(2 * self.shared.disk_wait, synced.wait_for(|synced| synced.dealt_with > pushed)).await;
    }

    /// Shuts down cleanly: waits, however long it takes, until everything including the event `stop` is on disk and
    /// indexed. Nothing can be recorded afterwards.
    pub async fn close(&self) {
        self.shared.buffer.request_stage(WriterStage::Closing);
        let mut left = self.shared.released.subscribe();
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
        self.shared.buffer.request_stage(WriterStage::Abandoned);
    }
}

pub(super) fn spawn(name: &str, dir: &Path, work: impl FnOnce() + Send + 'static) -> Result<(), OpenError> {
    let thread = std::thread::Builder::new().name(name.to_owned()).spawn(work);
    thread.map(drop).map_err(disk::with_context("cannot start a thread for", dir))
}

//! The state that the log's handle shares with its threads, and how a record gets into the buffer.

use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::thread::Thread;
use std::time::{Duration, Instant};

use tokio::sync::{broadcast, oneshot, watch};

use super::buffer::{BufferCharge, CannotRecord, PendingRecord, RecordBuffer};
use super::disk_usage::MeasuredUsage;
use super::unindexed::UnindexedRecords;
use crate::audit::fingerprints::FingerprintKey;
use crate::audit::open_writes::doubts::Doubts;
use crate::audit::proof::heads::Heads;
use crate::audit::record::{Kind, Record, line};
use crate::audit::segment::tree::Tree;
use crate::audit::ship::mark::ShippedMark;
use crate::clock::Clock;
use crate::config;
use crate::shares::HeldShare;

/// How many lines a follower may lag behind.
const FOLLOW_LAG: usize = 1024;
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

/// State shared by the log's handle and its threads.
#[derive(Debug)]
pub(crate) struct LogShared {
    pub(crate) clock: Clock,
    pub(crate) opened: Instant,
    /// Number of records when the log was opened.
    pub(crate) opened_size: u64,
    pub(crate) dir: PathBuf,
    pub(crate) record_bytes: usize,
    pub(crate) disk_wait: Duration,
    pub(crate) buffer: RecordBuffer,
    pub(crate) doubts: Doubts,
    /// The tree over all durable records.
    pub(crate) durable: Mutex<Tree>,
    pub(crate) heads: Heads,
    pub(crate) disk_usage: MeasuredUsage,
    pub(crate) shipped: ShippedMark,
    /// Set while `failed` is.
    pub(crate) outage: Mutex<Option<LogOutage>>,
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
    /// The index thread, woken when the writer has ended or much is unindexed.
    pub(crate) index: OnceLock<Thread>,
    pub(crate) unindexed: Mutex<UnindexedRecords>,
    /// Number of threads that have released the folder.
    pub(crate) released: watch::Sender<u8>,
    pub(crate) records: AtomicU64,
    pub(crate) bytes: AtomicU64,
    pub(crate) syncs: AtomicU64,
    pub(crate) failures: AtomicU64,
    pub(crate) refused: AtomicU64,
    pub(crate) waiting: AtomicUsize,
}

/// What operators are told about an outage of the disk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LogOutage {
    /// When it began.
    pub since: Instant,
    /// The disk's own words.
    pub cause: String,
    /// Is the disk full?
    pub is_disk_full: bool,
}

impl LogShared {
    pub(crate) fn new(
        settings: &config::AuditConfig,
        clock: Clock,
        durable: Tree,
        heads: Heads,
        key: FingerprintKey,
        shipped: ShippedMark,
    ) -> Self {
        Self {
            opened: clock.now(),
            opened_size: durable.size(),
            clock,
            dir: settings.dir.clone(),
            record_bytes: settings.record_bytes,
            disk_wait: settings.disk_wait,
            buffer: RecordBuffer::new(settings),
            doubts: Doubts::default(),
            durable: Mutex::new(durable),
            heads,
            disk_usage: MeasuredUsage::default(),
            shipped,
            outage: Mutex::default(),
            key,
            failed: AtomicBool::new(false),
            stuck: AtomicBool::new(false),
            has_lost: AtomicBool::new(false),
            refusals_left: AtomicU64::new(u64::MAX),
            synced: watch::Sender::default(),
            lines: broadcast::Sender::new(FOLLOW_LAG),
            ended: watch::Sender::default(),
            index: OnceLock::new(),
            unindexed: Mutex::default(),
            released: watch::Sender::default(),
            records: AtomicU64::new(0),
            bytes: AtomicU64::new(0),
            syncs: AtomicU64::new(0),
            failures: AtomicU64::new(0),
            refused: AtomicU64::new(0),
            waiting: AtomicUsize::new(0),
        }
    }

    pub(crate) fn set_outage(&self, outage: Option<LogOutage>) {
        *self.outage.lock().unwrap_or_else(PoisonError::into_inner) = outage;
    }

    pub(crate) fn writable(&self) -> bool {
        !self.failed.load(Ordering::Relaxed) && !self.stuck.load(Ordering::Relaxed)
    }

    pub(crate) fn refuse(&self, why: CannotRecord) -> CannotRecord {
        self.refused.fetch_add(1, Ordering::Relaxed);
        why
    }

    /// Takes room for a record about to be queued. An intent also takes room for its outcome, so the outcome of a
    /// write under way can always be buffered.
    fn charge(&self, record: &Record<'_>) -> Result<BufferCharge, CannotRecord> {
        let own = BufferCharge { records: 1, bytes: record.weight(), refusal: false };
        let taken = match record.kind {
            Some(Kind::Outcome) => {
                if !self.doubts.is_under_way(record.intent) {
                    self.buffer.force_take(outcome_charge(self.record_bytes));
                }
                return Ok(outcome_charge(self.record_bytes));
            }
            Some(Kind::Intent) => {
                let outcome = outcome_charge(self.record_bytes);
                let (records, bytes) = (own.records + outcome.records, own.bytes + outcome.bytes);
                let both = BufferCharge { records, bytes, refusal: false };
                self.buffer.take(both)
            }
            Some(Kind::Request | Kind::Settlement | Kind::Event | Kind::Refusals) | None => self.buffer.take(own),
        };
        if taken { Ok(own) } else { Err(CannotRecord::Full) }
    }

    /// Queues a record whose caller waits for it.
    pub(crate) fn enqueue(
        &self,
        mut record: Record<'static>,
    ) -> Result<oneshot::Receiver<Result<u64, CannotRecord>>, CannotRecord> {
        if record.kind != Some(Kind::Outcome) && !self.writable() {
            return Err(CannotRecord::Failed);
        }
        truncate_texts(&mut record, self.record_bytes);
        let doubt_room = self.doubt_room(&record)?;
        let name = record.request.map(|id| self.doubts.request_ids().hold(id));
        let charge = self.charge(&record)?;
        // What ends its write, without the texts.
        let (intent, request, outcome) = (record.intent, record.request, record.outcome);
        let ending = (record.kind == Some(Kind::Outcome)).then(|| Record {
            intent,
            request,
            outcome,
            ..Record::new(Kind::Outcome, record.time)
        });
        let (ack, acked) = oneshot::channel();
        let record = Box::new(record);
        let pending = PendingRecord { record, charge, _share: None, ack: Some(ack), name, doubt_room };
        let refused = self.buffer.push(pending, true);
        // Only now: whoever sees the doubt may settle it, and the settlement has to come behind the outcome.
        if let Some(ending) = ending {
            let _was_under_way = self.doubts.end(&ending);
        }
        match refused {
            None => Ok(acked),
            Some(entry) => {
                self.give_back(&entry);
                Err(CannotRecord::Failed)
            }
        }
    }

    /// An intent takes room as an open write, which it may remain if it ends in doubt.
    fn doubt_room(&self, record: &Record<'_>) -> Result<Option<HeldShare>, CannotRecord> {
        if record.kind != Some(Kind::Intent) {
            return Ok(None);
        }
        let caller = record.caller.as_deref().unwrap_or_default();
        self.doubts.room().take(caller).map(Some).map_err(CannotRecord::Doubts)
    }

    /// Releases the room of an entry that will never be written.
    pub(crate) fn give_back(&self, entry: &PendingRecord) {
        self.buffer.release(entry.charge);
        if entry.record.kind == Some(Kind::Intent) {
            self.buffer.release(outcome_charge(self.record_bytes));
        }
    }

    pub(crate) async fn acknowledged(
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
pub(crate) fn truncate_texts(record: &mut Record<'_>, record_bytes: usize) {
    if record.text_bytes() > record_bytes {
        line::truncate_to_fit(record, record_bytes);
    }
}

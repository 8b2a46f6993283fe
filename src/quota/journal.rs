//! The slots on disk, so that a restart forgets none: `quota.slots`, a text file with one line per send and per end.
//!
//! A separate thread owns the file. Requests hand it their lines and never touch the disk. An attempt waits briefly
//! until its line is written; if the disk takes longer, nobody waits for it until it has caught up. The end of an
//! attempt is written with the next line. Everything is synced every second. So a killed process loses no slot unless
//! its disk was hanging (an attempt whose end was not written counts as ended at the next start), and a machine that
//! dies loses what was written since the last sync. How much that was cannot be known: if the file is from another
//! boot of the machine (or another machine) and was not closed properly, every bucket counts as full until a hold
//! after the start. The same is noted after lines could not be written.
//!
//! Times are wall times. A time that seems to be in the future (the clock was set back) counts as now. How far the clock
//! was set forward shows in the time since the machine's start, which the first line tells, too; only if the machine
//! was started anew, after a proper close, does such a clock make makegate forget slots too early.

mod file;
#[cfg(test)]
mod tests;

use std::io;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::Notify;

use self::file::{FILE, SlotsFile};
use super::journal_state::{JournalLine, JournalState};
use crate::clock::Clock;

/// How many bytes of lines may accumulate while none of them is urgent.
const LAZY_BYTES_MAX: usize = 4096;
/// Maximum bytes of lines that the thread has not taken yet. Further lines are lost, which is noted when the disk is
/// back.
const PENDING_BYTES_MAX: usize = 1 << 20;
/// How long an attempt waits for its line.
const WRITE_WAIT_MAX: Duration = Duration::from_millis(250);
/// In tests, which run on busy machines, it waits as long as it takes.
const WRITE_WAIT: Duration = if cfg!(test) { Duration::MAX } else { WRITE_WAIT_MAX };
/// How often written lines are synced.
const SYNC: Duration = Duration::from_secs(1);

/// Submits lines. When it is dropped the thread ends, and what it has not written is lost, as if the process were
/// killed.
#[derive(Debug)]
pub(super) struct SlotJournal {
    queue: Arc<JournalQueue>,
}

/// State shared by requests and the thread. No lock is held while waiting for the disk.
#[derive(Debug)]
struct JournalQueue {
    pending: Mutex<PendingLines>,
    has_work: Condvar,
    /// Number of submitted bytes that have been dealt with.
    written: AtomicU64,
    /// Number of requested syncs that are done.
    synced: AtomicU64,
    has_ended: AtomicBool,
    /// One of these three has changed. A `watch` would do the same, for ten times the instructions.
    progress: Notify,
    /// The disk is behind, so no attempt waits for its line.
    is_late: AtomicBool,
    failures: AtomicU64,
}

#[derive(Debug, Default)]
struct PendingLines {
    lines: Vec<u8>,
    /// Total number of bytes ever submitted.
    end: u64,
    /// Some of the lines are urgent.
    is_urgent: bool,
    /// Lines were dropped.
    is_torn: bool,
    /// Number of syncs requested.
    syncs: u64,
    stage: JournalStage,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum JournalStage {
    #[default]
    Running,
    /// Write and sync everything, then end.
    Closing,
    /// End at once.
    Abandoned,
}

/// The total number of bytes submitted including a given line, which its attempt waits for.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct JournalPosition(u64);

impl SlotJournal {
    /// Opens the journal in `dir`, or creates it, starts its thread, and returns what it remembers.
    ///
    /// # Errors
    /// The folder cannot be read or written, or the thread cannot be started.
    pub(super) fn open(dir: &Path, has_run: bool, clock: Clock) -> io::Result<(Self, JournalState)> {
        let (file, journal_state) = SlotsFile::open(dir, has_run, clock.clone())?;
        Ok((Self::start(file, clock)?, journal_state))
    }

    fn start(file: SlotsFile, clock: Clock) -> io::Result<Self> {
        let queue = Arc::new(JournalQueue {
            pending: Mutex::default(),
            has_work: Condvar::new(),
            written: 0.into(),
            synced: 0.into(),
            has_ended: false.into(),
            progress: Notify::new(),
            is_late: false.into(),
            failures: 0.into(),
        });
        let thread = JournalThread { queue: queue.clone(), file, clock };
        std::thread::Builder::new().name("quota-journal".to_owned()).spawn(move || thread.run())?;
        Ok(Self { queue })
    }

    pub(super) fn add(&self, line: &JournalLine<'_>) -> JournalPosition {
        let mut pending = self.queue.pending();
        let before = pending.lines.len();
        if before >= PENDING_BYTES_MAX {
            pending.is_torn = true;
            return JournalPosition::default();
        }
        line.append_to(&mut pending.lines);
        pending.end += (pending.lines.len() - before) as u64;
        if !pending.is_urgent && (!line.can_wait() || pending.lines.len() > LAZY_BYTES_MAX) {
            pending.is_urgent = true;
            self.queue.has_work.notify_one();
        }
        JournalPosition(pending.end)
    }

    /// Waits until everything up to this position is written, unless the disk takes too long.
    pub(super) async fn wait_written(&self, place: JournalPosition) {
        let queue = &self.queue;
        if queue.written.load(Ordering::Acquire) >= place.0 || queue.is_late.load(Ordering::Relaxed) {
            return;
        }
        let written = queue.wait_until(|queue| queue.written.load(Ordering::Acquire) >= place.0);
        if tokio::time::timeout(WRITE_WAIT, written).await.is_err() && !queue.is_late.swap(true, Ordering::Relaxed) {
            queue.failures.fetch_add(1, Ordering::Relaxed);
            tracing::warn!(
                "the disk is slow: {FILE} is behind, and if makegate is killed now, it forgets what it sent"
            );
        }
    }

    /// Closes the journal properly; nothing may be sent afterwards. Returns false if that is not on disk within this
    /// time.
    pub(super) async fn close(&self, now_ms: i64, within: Duration) -> bool {
        self.add(&JournalLine::Shut(now_ms));
        self.queue.change(|pending| pending.stage = JournalStage::Closing);
        let ended = self.queue.wait_until(|queue| queue.has_ended.load(Ordering::Acquire));
        tokio::time::timeout(within, ended).await.is_ok()
    }

    /// Number of times something could not be written at all or in time.
    pub(super) fn failures(&self) -> u64 {
        self.queue.failures.load(Ordering::Relaxed)
    }

    /// Syncs now and returns when done.
    #[cfg(test)]
    async fn sync(&self) {
        let wanted = {
            let mut pending = self.queue.pending();
            pending.syncs += 1;
            pending.syncs
        };
        self.queue.has_work.notify_one();
        self.queue.wait_until(|queue| queue.synced.load(Ordering::Acquire) >= wanted).await;
    }
}

impl Drop for SlotJournal {
    fn drop(&mut self) {
        self.queue.change(|pending| {
            if pending.stage == JournalStage::Running {
                pending.stage = JournalStage::Abandoned;
            }
        });
    }
}

impl JournalQueue {
    fn pending(&self) -> MutexGuard<'_, PendingLines> {
        self.pending.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn wait_until(&self, is_so: impl Fn(&Self) -> bool) {
        loop {
            // It hears of all that changes from here on.
            let progress = self.progress.notified();
            if is_so(self) {
                return;
            }
            progress.await;
        }
    }

    fn change(&self, change: impl FnOnce(&mut PendingLines)) {
        change(&mut self.pending());
        self.has_work.notify_one();
    }
}

struct JournalThread {
    queue: Arc<JournalQueue>,
    file: SlotsFile,
    clock: Clock,
}

impl JournalThread {
    fn run(mut self) {
        let (mut synced_at, mut syncs) = (self.clock.now(), 0);
        loop {
            let (taken, is_idle) = self.take(syncs);
            if taken.stage == JournalStage::Abandoned {
                break;
            }
            if taken.is_torn {
                self.file.mark_torn();
            }
            let appended = self.file.append(taken.lines);
            self.report_failure("written", appended);
            self.queue.written.store(taken.end, Ordering::Release);
            self.queue.progress.notify_waiters();
            let is_due = is_idle || taken.syncs > syncs || self.clock.now() >= synced_at + SYNC;
            if is_due || taken.stage == JournalStage::Closing {
                let done = self.file.sync();
                self.report_failure("synced", done);
                (synced_at, syncs) = (self.clock.now(), taken.syncs);
                self.queue.synced.store(syncs, Ordering::Release);
                self.queue.progress.notify_waiters();
            }
            if taken.stage == JournalStage::Closing {
                break;
            }
            self.catch_up();
        }
        self.queue.written.store(u64::MAX, Ordering::Release);
        self.queue.has_ended.store(true, Ordering::Release);
        self.queue.progress.notify_waiters();
    }

    /// Takes the submitted lines once one of them is urgent, or after a second, in which case it returns true.
    fn take(&self, syncs: u64) -> (PendingLines, bool) {
        let is_idle = |pending: &mut PendingLines| {
            !pending.is_urgent && pending.stage == JournalStage::Running && pending.syncs == syncs
        };
        let waited = self.queue.has_work.wait_timeout_while(self.queue.pending(), SYNC, is_idle);
        let (mut pending, waited) = waited.unwrap_or_else(PoisonError::into_inner);
        let lines = std::mem::take(&mut pending.lines);
        let (is_urgent, is_torn) = (std::mem::take(&mut pending.is_urgent), std::mem::take(&mut pending.is_torn));
        let PendingLines { end, syncs, stage, .. } = *pending;
        (PendingLines { lines, end, is_urgent, is_torn, syncs, stage }, waited.timed_out())
    }

    fn report_failure(&self, what: &str, done: io::Result<()>) {
        if let Err(error) = done {
            self.queue.failures.fetch_add(1, Ordering::Relaxed);
            tracing::warn!(%error, "{FILE}, the journal of quota slots, cannot be {what}: a restart may doubt what was sent");
        }
    }

    /// Everything submitted is written, so attempts wait for their lines again.
    fn catch_up(&self) {
        if self.queue.is_late.load(Ordering::Relaxed) && !self.queue.pending().is_urgent {
            self.queue.is_late.store(false, Ordering::Relaxed);
            tracing::info!("the disk has caught up: {FILE} holds every slot again");
        }
    }
}

//! The only thread that uses `answers.sqlite`: it stores, reads, checks that nobody else changed the file, and mends
//! it.

#![expect(clippy::disallowed_methods, reason = "only the thread `answers` runs this")]

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, SyncSender, sync_channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::oneshot;

use super::database::{self, AnswerDatabase, DatabaseContents, DatabaseError};
use super::key_table::{KeyRow, KeyTable, StoreBounds};
use super::key_time::KeyTime;
use super::{FirstAnswer, KeyLog, LogMark, StoreUnavailable, WriteEnd};
use crate::clock::Clock;
use crate::ids::{Fingerprint, RequestId};

/// How often the file is checked.
const CHECK_INTERVAL: Duration = Duration::from_secs(1);
/// How often old keys are forgotten.
const EXPIRE: Duration = Duration::from_secs(30);
/// Maximum age of the mark while the log grows, which bounds how much of the log is read again after a crash.
const MARK_AGE_MAX: Duration = Duration::from_secs(60);
/// Longest wait before the file is tried again.
const RETRY_MAX: Duration = Duration::from_secs(30);
/// How often startup tries the file before it goes on without it, and how long it waits in between.
const TRIES: u32 = 10;
const OPEN_RETRY_PAUSE: Duration = Duration::from_millis(100);
/// Maximum number of waiting jobs.
const JOBS_MAX: usize = 4096;

/// Jobs for the thread.
#[derive(Debug)]
pub(super) enum StoreJob {
    /// Store everything that is waiting for the disk.
    Flush { reply: oneshot::Sender<Result<(), StoreUnavailable>> },
    /// Read an answer.
    Read { key: Fingerprint, first: RequestId, reply: oneshot::Sender<Result<Option<FirstAnswer>, StoreUnavailable>> },
    /// Delete a key.
    Remove { key: Fingerprint, reply: oneshot::Sender<Result<(), StoreUnavailable>> },
    /// Do the recurring work now.
    #[cfg(test)]
    Maintain { reply: oneshot::Sender<()> },
    /// Make every change fail, or stop doing so.
    #[cfg(test)]
    QueryOnly { on: bool, reply: oneshot::Sender<()> },
    /// Finish; this is the last job.
    Close { reply: oneshot::Sender<()> },
}

/// State shared by requests and the thread.
#[derive(Debug)]
pub(super) struct StoreShared {
    pub(super) clock: Clock,
    pub(super) time: KeyTime,
    pub(super) bounds: StoreBounds,
    keys: Mutex<KeyTable>,
    /// All keys are known and ends can be stored, so writes with keys may go on.
    pub(super) ready: AtomicBool,
    /// Number of known keys.
    pub(super) kept: AtomicU64,
}

impl StoreShared {
    fn new(bounds: StoreBounds, clock: Clock) -> Self {
        let keys = Mutex::new(KeyTable::new(bounds));
        let time = KeyTime::new(clock.clone());
        Self { clock, time, bounds, keys, ready: false.into(), kept: 0.into() }
    }

    pub(super) fn keys(&self) -> MutexGuard<'_, KeyTable> {
        self.keys.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Submits jobs. The thread ends when the last handle is dropped.
#[derive(Debug)]
pub(super) struct StoreHandle {
    pub(super) shared: Arc<StoreShared>,
    jobs: SyncSender<StoreJob>,
    /// How long anyone waits for the disk: a write whose answer is to be kept (it stays in memory until it is), one
    /// whose stored answer is read, and a settlement.
    disk_wait: Duration,
}

impl StoreHandle {
    pub(super) fn new(bounds: StoreBounds, disk_wait: Duration, clock: Clock) -> (Arc<Self>, Receiver<StoreJob>) {
        let (jobs, receiver) = sync_channel(JOBS_MAX);
        (Arc::new(Self { shared: Arc::new(StoreShared::new(bounds, clock)), jobs, disk_wait }), receiver)
    }

    pub(super) fn send(&self, job: StoreJob) -> Result<(), StoreUnavailable> {
        self.jobs.try_send(job).map_err(|_| StoreUnavailable)
    }

    pub(super) async fn ask<T>(&self, job: StoreJob, answer: oneshot::Receiver<T>) -> Result<T, StoreUnavailable> {
        self.send(job)?;
        match tokio::time::timeout(self.disk_wait, answer).await {
            Ok(Ok(answer)) => Ok(answer),
            Ok(Err(_)) => Err(StoreUnavailable),
            Err(_) => {
                // Spare the next request the same wait.
                self.shared.ready.store(false, Ordering::SeqCst);
                Err(StoreUnavailable)
            }
        }
    }

    /// Returns when everything that was waiting for the disk is on it.
    pub(super) async fn flush(&self) -> Result<(), StoreUnavailable> {
        let (reply, flushed) = oneshot::channel();
        self.ask(StoreJob::Flush { reply }, flushed).await.flatten()
    }
}

#[derive(Debug)]
pub(super) struct StoreThread {
    shared: Arc<StoreShared>,
    log: Arc<dyn KeyLog>,
    path: PathBuf,
    store: Option<AnswerDatabase>,
    /// All keys are in memory, so the file's content no longer matters.
    is_complete: bool,
    /// What is wrong with the file until it is mended, so that it is logged only once.
    trouble: Option<String>,
    retry: Duration,
    retry_at: Option<Instant>,
    expired: Option<Instant>,
    marked: (Instant, u64),
}

impl StoreThread {
    pub(super) fn new(shared: Arc<StoreShared>, log: Arc<dyn KeyLog>, path: PathBuf) -> Self {
        let now = shared.clock.now();
        Self {
            shared,
            log,
            path,
            store: None,
            is_complete: false,
            trouble: None,
            retry: CHECK_INTERVAL,
            retry_at: None,
            expired: None,
            marked: (now, 0),
        }
    }

    /// Works until the last job. `opened` receives the result of the first attempt.
    pub(super) fn run(mut self, jobs: &Receiver<StoreJob>, opened: &Sender<Result<(), DatabaseError>>) {
        for _ in 0..TRIES {
            match self.open() {
                Err(DatabaseError::Newer) => {
                    let _nobody_waits = opened.send(Err(DatabaseError::Newer));
                    return;
                }
                // The previous process may be just releasing the file.
                Err(DatabaseError::Transient(_)) => std::thread::sleep(OPEN_RETRY_PAUSE),
                Err(DatabaseError::Damaged(_)) | Ok(()) => break,
            }
        }
        let _nobody_waits = opened.send(Ok(()));
        loop {
            match jobs.recv_timeout(CHECK_INTERVAL) {
                Ok(StoreJob::Flush { reply }) => {
                    let _nobody_waits = reply.send(self.store_waiting(false));
                }
                Ok(StoreJob::Read { key, first, reply }) => {
                    let _nobody_waits = reply.send(self.read(&key, &first));
                }
                Ok(StoreJob::Remove { key, reply }) => {
                    let _nobody_waits = reply.send(self.remove(key));
                }
                #[cfg(test)]
                Ok(StoreJob::Maintain { reply }) => {
                    (self.retry_at, self.expired) = (None, None);
                    self.maintain();
                    let _nobody_waits = reply.send(());
                }
                #[cfg(test)]
                Ok(StoreJob::QueryOnly { on, reply }) => {
                    let sql = format!("PRAGMA query_only = {}", u8::from(on));
                    self.store.iter().for_each(|store| store.execute_for_test(&sql));
                    let _nobody_waits = reply.send(());
                }
                Ok(StoreJob::Close { reply }) => {
                    let _reported = self.store_waiting(true);
                    self.store = None;
                    let _nobody_waits = reply.send(());
                    return;
                }
                Err(RecvTimeoutError::Timeout) => self.maintain(),
                Err(RecvTimeoutError::Disconnected) => return,
            }
        }
    }

    fn maintain(&mut self) {
        let now = self.shared.clock.now();
        let _reported = self.store_waiting(now.duration_since(self.marked.0) >= MARK_AGE_MAX);
        if self.expired.is_none_or(|expired| now.duration_since(expired) >= EXPIRE) {
            self.expired = Some(now);
            let now_ms = self.shared.time.now_ms();
            let gone = self.shared.keys().expire(now_ms);
            let oldest = self.shared.bounds.oldest_ms(now_ms);
            if gone > 0 {
                let _reported = self.with_database(|store| store.expire(oldest));
            }
        }
        self.count();
    }

    fn count(&self) {
        let kept = self.shared.keys().kept();
        self.shared.kept.store(u64::try_from(kept).unwrap_or(u64::MAX), Ordering::Relaxed);
    }

    /// Stores everything that is waiting for the disk in one transaction. With `mark_is_due` it stores a new mark
    /// even if nothing is waiting.
    fn store_waiting(&mut self, mark_is_due: bool) -> Result<(), StoreUnavailable> {
        // Take the mark before the rows: whatever the log has by now is on disk or waiting here.
        let mark = self.log.mark();
        let mark_is_due = mark_is_due && mark.size != self.marked.1;
        let mut rows: Vec<Arc<KeyRow>> = Vec::new();
        let shared = self.shared.clone();
        let stored = self.with_database(|store| {
            rows = shared.keys().waiting();
            if rows.is_empty() && !mark_is_due { Ok(()) } else { store.change(&rows, &[], Some(mark)) }
        });
        if stored.is_ok() {
            if mark_is_due || !rows.is_empty() {
                self.marked = (self.shared.clock.now(), mark.size);
                self.shared.keys().mark_stored(&rows);
            }
            self.shared.ready.store(true, Ordering::SeqCst);
        }
        self.count();
        stored
    }

    fn read(&mut self, key: &Fingerprint, first: &RequestId) -> Result<Option<FirstAnswer>, StoreUnavailable> {
        let (mut answer, mut was_rebuilt) = (None, false);
        let read = self.with_database(|store| match store.answer(key, first) {
            Ok(found) => {
                answer = found;
                Ok(())
            }
            Err(DatabaseError::Damaged(_)) if was_rebuilt => Ok(()), // the damaged answer is lost
            Err(trouble) => {
                was_rebuilt = true;
                Err(trouble)
            }
        });
        read.map(|()| answer)
    }

    fn remove(&mut self, key: Fingerprint) -> Result<(), StoreUnavailable> {
        self.with_database(|store| store.change(&[], &[key], None))
    }

    /// Runs `work` on the file if nobody changed it. Otherwise, or if the work finds damage, mends the file first and
    /// repeats the work on what is left.
    fn with_database(
        &mut self,
        mut work: impl FnMut(&mut AnswerDatabase) -> Result<(), DatabaseError>,
    ) -> Result<(), StoreUnavailable> {
        for last in [false, true] {
            let Some(store) = &mut self.store else {
                if last || self.retry_at.is_some_and(|at| self.shared.clock.now() < at) || self.open().is_err() {
                    break;
                }
                continue;
            };
            match store.check_unchanged().and_then(|()| work(store)) {
                Ok(()) => return Ok(()),
                Err(DatabaseError::Damaged(why)) if !last => {
                    if self.rebuild(&why).is_err() {
                        break;
                    }
                }
                Err(trouble) => {
                    self.fail(&trouble);
                    break;
                }
            }
        }
        self.shared.ready.store(false, Ordering::SeqCst);
        Err(StoreUnavailable)
    }

    /// Logs a failure once until it is over.
    fn fail(&mut self, trouble: &DatabaseError) {
        self.shared.ready.store(false, Ordering::SeqCst);
        self.retry_at = Some(self.shared.clock.now() + self.retry);
        self.retry = (self.retry * 2).min(RETRY_MAX);
        let why = trouble.to_string();
        if self.trouble.as_ref() != Some(&why) {
            tracing::error!(
                %why, file = %self.path.display(),
                "the stored answers to Idempotency-Keys cannot be used; refusing writes with a key until they can be"
            );
            self.trouble = Some(why);
        }
    }

    /// Opens the file and mends it if necessary. Afterwards all keys that the log knows are known.
    fn open(&mut self) -> Result<(), DatabaseError> {
        let opened = match AnswerDatabase::open(&self.path) {
            Err(DatabaseError::Damaged(why)) => return self.rebuild(&why),
            Ok((store, contents)) => {
                self.take_over(store, &contents).map(|restored| self.report_restored(&contents, restored))
            }
            Err(trouble) => Err(trouble),
        };
        self.finish_open(opened)
    }

    fn finish_open(&mut self, opened: Result<(), DatabaseError>) -> Result<(), DatabaseError> {
        match &opened {
            Ok(()) => {
                if self.trouble.take().is_some() {
                    tracing::info!("the stored answers to Idempotency-Keys can be used again");
                }
                (self.retry, self.retry_at) = (CHECK_INTERVAL, None);
                self.shared.ready.store(true, Ordering::SeqCst);
            }
            Err(trouble) => self.fail(trouble),
        }
        self.count();
        opened
    }

    /// Builds a new file from what is left of the damaged one and from the log.
    fn rebuild(&mut self, why: &str) -> Result<(), DatabaseError> {
        tracing::error!(%why, file = %self.path.display(), "the stored answers to Idempotency-Keys are damaged; rebuilding them");
        let now_ms = self.shared.clock.wall_ms();
        let rebuilt = database::replace(&self.path, self.store.take(), now_ms).and_then(|kept| {
            let (store, contents) = AnswerDatabase::open(&self.path)?;
            self.take_over(store, &contents)?;
            Ok((kept, contents.rows.len()))
        });
        let rebuilt = rebuilt.map(|(kept, rows)| {
            let keys = self.shared.keys().kept();
            let whole =
                if rows == keys { "all of them".to_owned() } else { format!("{rows} of them from the damaged file") };
            let kept = kept.map(|kept| {
                delete_older(&kept);
                format!("; the damaged file was kept as {}", kept.file_name().unwrap_or_default().display())
            });
            let detail = format!(
                "answers.sqlite was damaged ({why}) and rebuilt: {keys} keys are known, {whole}{}",
                kept.unwrap_or_default()
            );
            tracing::warn!("{detail}");
            self.log.record_event("answers-mended", &detail);
        });
        self.finish_open(rebuilt)
    }

    /// Takes over the opened file and adds what it lacks. Returns the number of keys added.
    fn take_over(&mut self, mut store: AnswerDatabase, contents: &DatabaseContents) -> Result<usize, DatabaseError> {
        let mark = self.log.mark();
        let mut foreign = Vec::new();
        let mut restored = 0;
        if self.is_complete {
            foreign = self.shared.keys().compare_with_file(&contents.rows);
        } else {
            self.shared.time.begin(contents.rows.iter().map(|meta| meta.time_ms).max());
            contents.rows.iter().for_each(|meta| self.shared.keys().put_kept(meta));
            restored = self.add_ends_from_log(contents.mark, &mut foreign)?;
        }
        let rows = self.shared.keys().waiting();
        store.change(&rows, &foreign, Some(mark))?;
        self.shared.keys().mark_stored(&rows);
        self.marked = (self.shared.clock.now(), mark.size);
        (self.store, self.is_complete) = (Some(store), true);
        Ok(restored)
    }

    /// Adds the keys that the log knows and the file does not.
    fn add_ends_from_log(&self, mark: Option<LogMark>, freed: &mut Vec<Fingerprint>) -> Result<usize, DatabaseError> {
        let oldest = self.shared.bounds.oldest_ms(self.shared.time.now_ms());
        let mut restored = 0;
        let read = self.log.for_each_end(mark, oldest, &mut |logged| {
            let mut keys = self.shared.keys();
            if logged.done {
                let row = KeyRow {
                    keyed: logged.keyed,
                    ended: WriteEnd { done: true, answer: None },
                    time_ms: logged.time_ms,
                };
                restored += usize::from(keys.add_end(row));
            } else if keys.forget_not_done(&logged.keyed.key, &logged.keyed.request) {
                freed.push(logged.keyed.key);
            }
        });
        let is_of_this_log = read.map_err(|why| DatabaseError::Transient(format!("cannot read the log: {why}")))?;
        if mark.is_some() && !is_of_this_log {
            tracing::warn!("answers.sqlite does not match this log: all keys were looked up in the log");
        }
        Ok(restored)
    }

    fn report_restored(&self, contents: &DatabaseContents, restored: usize) {
        if restored == 0 {
            return;
        }
        let was = if contents.is_new { "was missing or empty" } else { "lacked keys" };
        let detail = format!("answers.sqlite {was}: {restored} keys were restored from the log, without their answers");
        tracing::warn!("{detail}");
        self.log.record_event("answers-mended", &detail);
    }
}

/// Deletes all kept damaged files except the newest.
fn delete_older(newest: &Path) {
    let Some((dir, name)) = newest.parent().zip(newest.file_name().and_then(|name| name.to_str())) else { return };
    let prefix = name.trim_end_matches(|digit: char| digit.is_ascii_digit());
    let Ok(entries) = fs::read_dir(dir) else { return };
    for entry in entries.flatten() {
        let is_older = entry.file_name().to_str().is_some_and(|other| other != name && other.starts_with(prefix));
        if is_older && entry.file_type().is_ok_and(|kind| kind.is_file()) {
            let _it_may_be_gone = fs::remove_file(entry.path());
        }
    }
}

//! First answers by idempotency key: what a write sent again with the same key is told
//! (draft-ietf-httpapi-idempotency-key-header).
//!
//! A key is claimed before its write is forwarded, and whoever uses it meanwhile is told that the write is running.
//! The answer is on disk before the write's outcome is, so no crash leaves a write done and its key unknown. All keys
//! are in memory; the answers are in `answers.sqlite`, readable only by its owner and maintained by a separate
//! thread. The log is the source of truth about keys: whatever that file lacks, even all of it, is restored from the
//! log, and only the answers are lost. Writes in doubt are the log's concern. Only keyed hashes of keys and requests
//! get here.

mod database;
mod database_rows;
mod key_table;
mod key_time;
mod store_thread;
#[cfg(test)]
mod tests;

use std::fmt;
use std::io;
use std::path::PathBuf;
use std::sync::atomic::Ordering;
use std::sync::{Arc, mpsc};
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, StatusCode};
use tokio::sync::oneshot;

use crate::clock::Clock;
use crate::config::{AuditConfig, Limits};
use crate::ids::{Fingerprint, RequestId};

use key_table::{KeptAnswer, KeyLookup, KeyRow, StoreBounds};
use store_thread::{StoreHandle, StoreJob, StoreThread};

/// How long a start waits until all keys are known. After that, writes with keys are refused until they are.
const START_WAIT: Duration = Duration::from_secs(10);
/// Maximum number of attempts to claim a key that turns out to be free.
const CLAIMS_MAX: usize = 3;

/// A write with an idempotency key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeyedWrite {
    /// The keyed hash of the caller and its key.
    pub key: Fingerprint,
    /// The keyed hash of the whole write.
    pub write: Fingerprint,
    /// The request id.
    pub request: RequestId,
    /// The caller's name.
    pub caller: Arc<str>,
}

/// An answer as it was given to the caller.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FirstAnswer {
    /// The status.
    pub status: StatusCode,
    /// The headers that are passed on.
    pub headers: HeaderMap,
    /// The body.
    pub body: Bytes,
}

impl FirstAnswer {
    /// The header fields as `name: value` lines.
    #[must_use]
    pub fn head(&self) -> Vec<u8> {
        database_rows::head(&self.headers)
    }

    /// The answer of this status, these header fields and this body; `None` if they cannot be those of an answer.
    #[must_use]
    pub fn of_parts(status: u16, head: &[u8], body: Bytes) -> Option<Self> {
        Some(Self { status: StatusCode::from_u16(status).ok()?, headers: database_rows::headers(head)?, body })
    }
}

/// A key whose write has ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EndedKey {
    /// The write.
    pub keyed: KeyedWrite,
    /// Whether it took effect.
    pub done: bool,
    /// When it ended, in milliseconds of wall time.
    pub time_ms: i64,
}

/// How a write with a key ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WriteEnd {
    /// Whether it took effect. If not, the upstream rejected it.
    pub done: bool,
    /// Its answer. `None` if it was lost, or larger than `limits.idempotency_answer_bytes`.
    pub answer: Option<FirstAnswer>,
}

/// The result of claiming a key.
#[derive(Debug)]
pub enum KeyStatus {
    /// The key is new. Its write may go on, and no other write with this key.
    New(KeyClaim),
    /// The key was used before.
    Before(EarlierUse),
}

/// What is known of a key that was used before.
#[derive(Debug, PartialEq, Eq)]
pub enum EarlierUse {
    /// A write with this key is under way.
    Running {
        /// That write's request.
        first: RequestId,
    },
    /// The key was used for a different request.
    Other {
        /// The first request.
        first: RequestId,
    },
    /// The write has ended.
    Ended {
        /// That write's request.
        first: RequestId,
        /// How it ended.
        ended: WriteEnd,
    },
}

/// Why a write with this key may not go on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ClaimRefused {
    /// The caller's keys use up the room that it may have.
    NoRoom,
    /// The stored answers cannot be read or written, so a key can be neither looked up nor kept.
    Unavailable,
}

/// The stored answers cannot be read or written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct StoreUnavailable;

/// A position in a log: its size, and the root hash over that many records.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LogMark {
    /// Number of records.
    pub size: u64,
    /// The root over these records.
    pub root: [u8; 32],
}

/// How a keyed write ended, according to the log.
#[derive(Clone, Debug)]
pub struct LoggedEnd {
    /// The write.
    pub keyed: KeyedWrite,
    /// Whether it took effect. If not, it was in doubt and later found not to have taken effect.
    pub done: bool,
    /// When it ended, in milliseconds of wall time.
    pub time_ms: i64,
}

/// What the store needs from the log. All of it may block.
pub trait KeyLog: Send + Sync + fmt::Debug {
    /// The position up to which the log is on disk.
    fn mark(&self) -> LogMark;

    /// Passes the ends of keyed writes after `after` to `each`, or all since `oldest_ms` if this log was never at
    /// that position. Returns whether it was.
    ///
    /// # Errors
    /// The log cannot be read.
    fn for_each_end(&self, after: Option<LogMark>, oldest_ms: i64, each: &mut dyn FnMut(LoggedEnd))
    -> io::Result<bool>;

    /// Records an event about the stored answers.
    fn record_event(&self, event: &'static str, detail: &str);
}

/// Why the store cannot be opened.
#[derive(Debug, thiserror::Error)]
#[error(
    "cannot open the stored answers to Idempotency-Keys in {path}: {why}; use that version, or move the file away: the keys are then \
     restored from the log, without their answers"
)]
pub struct StoreError {
    path: PathBuf,
    why: database::DatabaseError,
}

/// The stored answers and the claimed keys.
#[derive(Debug)]
pub struct IdempotencyStore {
    handle: Arc<StoreHandle>,
}

impl IdempotencyStore {
    /// Opens the answers that an earlier run stored in the log's folder, and adds keys that only the log knows. Waits
    /// for the disk.
    ///
    /// # Errors
    /// [`StoreError`] says what to do.
    pub fn open(
        settings: &AuditConfig,
        limits: &Limits,
        clock: Clock,
        log: Arc<dyn KeyLog>,
    ) -> Result<Self, StoreError> {
        let bounds = StoreBounds {
            keys: limits.idempotency_keys,
            age: limits.idempotency_age,
            bytes: limits.idempotency_bytes,
            answer_bytes: u64::try_from(limits.idempotency_answer_bytes).unwrap_or(u64::MAX),
        };
        let path = database::path(&settings.dir);
        let (handle, jobs) = StoreHandle::new(bounds, settings.disk_wait, clock);
        let (opened, first_try) = mpsc::channel();
        let thread = StoreThread::new(handle.shared.clone(), log, path.clone());
        let spawned = std::thread::Builder::new().name("answers".to_owned()).spawn(move || thread.run(&jobs, &opened));
        spawned.map_err(|error| StoreError { path: path.clone(), why: error.into() })?;
        match first_try.recv_timeout(START_WAIT) {
            Ok(Err(why)) => return Err(StoreError { path, why }),
            Ok(Ok(())) => {}
            Err(_) => tracing::error!(
                "loading the stored answers to Idempotency-Keys takes long: writes with a key are refused until it is done"
            ),
        }
        Ok(Self { handle })
    }

    /// Claims the key, or returns what is known of it. `callers` is the number of callers that share the room.
    ///
    /// # Errors
    /// [`ClaimRefused`].
    pub async fn claim(&self, keyed: KeyedWrite, callers: usize) -> Result<KeyStatus, ClaimRefused> {
        let shared = &self.handle.shared;
        for _ in 0..CLAIMS_MAX {
            if !shared.ready.load(Ordering::SeqCst) {
                break;
            }
            let found = shared.keys().claim(&keyed, callers, shared.time.now_ms());
            match found {
                KeyLookup::New => {
                    return Ok(KeyStatus::New(KeyClaim { handle: self.handle.clone(), keyed, ended: false }));
                }
                KeyLookup::Known(known) => return Ok(KeyStatus::Before(known)),
                KeyLookup::NoRoom => return Err(ClaimRefused::NoRoom),
                KeyLookup::OnDisk { first, done } => {
                    let (reply, answer) = oneshot::channel();
                    let answer = self.handle.ask(StoreJob::Read { key: keyed.key, first, reply }, answer).await;
                    let answer = answer.flatten().map_err(|StoreUnavailable| ClaimRefused::Unavailable)?;
                    if done || answer.is_some() {
                        return Ok(KeyStatus::Before(EarlierUse::Ended { first, ended: WriteEnd { done, answer } }));
                    }
                    // A rejected write whose answer is lost leaves its key free.
                }
            }
        }
        Err(ClaimRefused::Unavailable)
    }

    /// Records that the write in doubt with this key took effect, according to an operator, a look or the replica that sent it, which may
    /// know its answer. The key is known when this returns, and on disk then or at the latest with the settlement in the log.
    pub async fn settle_done(&self, keyed: KeyedWrite, answer: Option<FirstAnswer>) {
        let ended = WriteEnd { done: true, answer };
        self.handle.shared.keys().add_end(KeyRow { keyed, ended, time_ms: self.handle.shared.time.now_ms() });
        if self.handle.flush().await.is_err() {
            tracing::error!("a settled Idempotency-Key is not in answers.sqlite yet; until then the log knows it");
        }
    }

    /// The keys of all writes that have ended. `None` until all keys are known.
    #[must_use]
    pub fn ended(&self) -> Option<Vec<EndedKey>> {
        let shared = &self.handle.shared;
        shared.ready.load(Ordering::SeqCst).then(|| shared.keys().ended())
    }

    /// The answer that is kept for this key, if this request's write has used it.
    pub async fn answer(&self, key: Fingerprint, first: RequestId) -> Option<FirstAnswer> {
        let kept = self.handle.shared.keys().ended_answer(&key, &first)?;
        match kept {
            KeptAnswer::InMemory(answer) => answer,
            KeptAnswer::OnDisk => {
                let (reply, answer) = oneshot::channel();
                self.handle.ask(StoreJob::Read { key, first, reply }, answer).await.flatten().ok().flatten()
            }
        }
    }

    /// Keeps how a write of another replica ended, unless something newer is known of its key. Returns whether it is kept. Call
    /// [`IdempotencyStore::close`] to have it on disk.
    #[must_use]
    pub fn add_end(&self, keyed: KeyedWrite, ended: WriteEnd) -> bool {
        let time_ms = self.handle.shared.time.now_ms();
        self.handle.shared.keys().add_end(KeyRow { keyed, ended, time_ms })
    }

    /// Frees the key, because its write did not take effect.
    pub async fn settle_not_done(&self, key: Fingerprint, request: RequestId) {
        if self.handle.shared.keys().forget_not_done(&key, &request) {
            let (reply, removed) = oneshot::channel();
            if self.handle.ask(StoreJob::Remove { key, reply }, removed).await.flatten().is_err() {
                tracing::error!(
                    "an Idempotency-Key could not be freed on disk: after a restart it may count as used, although its write did not take effect"
                );
            }
        }
    }

    /// Does the thread's once-a-second work now.
    #[cfg(test)]
    async fn maintain(&self) {
        let (reply, done) = oneshot::channel();
        self.handle.ask(StoreJob::Maintain { reply }, done).await.unwrap();
    }

    /// Shuts down: waits, however long it takes, until everything is on disk. Nothing is kept afterwards.
    pub async fn close(&self) {
        let (reply, closed) = oneshot::channel();
        // If the job cannot be submitted, the thread has fallen behind.
        if self.handle.send(StoreJob::Close { reply }).is_err() || closed.await.is_err() {
            tracing::error!("the store of answers to Idempotency-Keys did not finish in time");
        }
    }

    /// Number of known keys.
    #[must_use]
    pub fn kept(&self) -> u64 {
        self.handle.shared.kept.load(Ordering::Relaxed)
    }
}

/// The right to a key. Dropping it frees the key, because its write left nothing behind or is in doubt.
#[derive(Debug)]
#[must_use]
pub struct KeyClaim {
    handle: Arc<StoreHandle>,
    keyed: KeyedWrite,
    ended: bool,
}

impl KeyClaim {
    /// The keyed hash of the key.
    #[must_use]
    pub const fn key(&self) -> Fingerprint {
        self.keyed.key
    }

    /// What is kept of a write that ended like this: no answer that is too large. `None`: nothing was done and nothing is left, so the
    /// write may be sent again.
    #[must_use]
    pub fn kept(&self, mut ended: WriteEnd) -> Option<WriteEnd> {
        let most = usize::try_from(self.handle.shared.bounds.answer_bytes()).unwrap_or(usize::MAX);
        ended.answer = ended.answer.filter(|answer| database_rows::weight(answer) <= most);
        (ended.done || ended.answer.is_some()).then_some(ended)
    }

    /// Keeps how the write ended. When this returns it is on disk, or, while the disk is failing, in memory until the
    /// disk is back; meanwhile no further write with a key may go on.
    pub async fn end(mut self, ended: WriteEnd) {
        let shared = self.handle.shared.clone();
        let Some(ended) = self.kept(ended) else { return };
        self.ended = true;
        let row = KeyRow { keyed: self.keyed.clone(), ended, time_ms: shared.time.now_ms() };
        shared.keys().end(Arc::new(row));
        if self.handle.flush().await.is_err() {
            shared.ready.store(false, Ordering::SeqCst);
        }
    }
}

impl Drop for KeyClaim {
    fn drop(&mut self) {
        if !self.ended {
            self.handle.shared.keys().release_claim(&self.keyed);
        }
    }
}

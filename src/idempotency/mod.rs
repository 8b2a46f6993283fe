//! First answers, by idempotency key: what a write that is sent again with its key is told (draft-ietf-httpapi-idempotency-key-header).
//!
//! A key is claimed before its write is forwarded; whoever comes with it meanwhile is told that it is running. The answer is on
//! disk before the write's outcome is, so that no crash leaves a write done and its key unknown. All keys are in memory; the answers
//! lie in `answers.sqlite`, readable by its owner alone, and a thread of its own keeps them there. The log is the truth about keys: what
//! that file lacks, or all if it is lost, is found in the log again, and only answers are lost. What is in doubt is the log's to know.
//! Only keyed hashes of keys and requests come here.

mod database;
mod database_rows;
mod key_table;
mod store_thread;
#[cfg(test)]
mod tests;

use std::fmt;
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

use key_table::{KeyLookup, KeyRow, StoreBounds};
use store_thread::{StoreHandle, StoreJob, StoreThread};

/// The longest that a start waits until all keys are known; after that, writes with keys are refused until they are.
const START_WAIT: Duration = Duration::from_secs(10);
/// Tries to claim a key that turns out to be free.
const CLAIMS_MAX: usize = 3;

/// A write with an idempotency key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeyedWrite {
    /// The keyed hash of the caller and its key.
    pub key: Fingerprint,
    /// The keyed hash of the whole write.
    pub write: Fingerprint,
    /// The request's id.
    pub request: RequestId,
    /// Whose it is.
    pub caller: Arc<str>,
}

/// An answer as it was given.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FirstAnswer {
    /// Its status.
    pub status: StatusCode,
    /// Its headers, as far as they go on.
    pub headers: HeaderMap,
    /// Its body.
    pub body: Bytes,
}

/// How a write with a key ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WriteEnd {
    /// Did it take effect? Else the upstream rejected it.
    pub done: bool,
    /// Its answer; `None`: it was lost, or larger than `limits.idempotency_answer_bytes`.
    pub answer: Option<FirstAnswer>,
}

/// What is known of a key.
#[derive(Debug)]
pub enum KeyStatus {
    /// Nothing: the write may go on, and nobody else with this key.
    New(KeyClaim),
    /// Its write came before.
    Before(EarlierUse),
}

/// What is known of a key that came before.
#[derive(Debug, PartialEq, Eq)]
pub enum EarlierUse {
    /// A write with it is under way.
    Running {
        /// Its request.
        first: RequestId,
    },
    /// It was given with another request.
    Other {
        /// That one.
        first: RequestId,
    },
    /// Its write has ended.
    Ended {
        /// That write's request.
        first: RequestId,
        /// How.
        ended: WriteEnd,
    },
}

/// Why no write with this key may go on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ClaimRefused {
    /// The caller's keys take the room that it may have, and none is free that others leave.
    NoRoom,
    /// The answers cannot be read or written, so that nothing can be said of a key, or nothing kept.
    Unavailable,
}

/// The answers cannot be read or written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct StoreUnavailable;

/// How far a log is: its size, and the root hash over so many records.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LogMark {
    /// Records.
    pub size: u64,
    /// The root over them.
    pub root: [u8; 32],
}

/// How a keyed write ended, as the log tells it.
#[derive(Clone, Debug)]
pub struct LoggedEnd {
    /// The write.
    pub keyed: KeyedWrite,
    /// It took effect; else somebody found out that it did not, after it was in doubt.
    pub done: bool,
    /// When, in milliseconds of wall time.
    pub time_ms: i64,
}

/// What the answers need of the log. All of it may block.
pub trait KeyLog: Send + Sync + fmt::Debug {
    /// How far it is on disk.
    fn mark(&self) -> LogMark;

    /// Hands over how the keyed writes ended after `after`, or after `oldest_ms` if this log was never at that mark. `true`: it was.
    ///
    /// # Errors
    /// It cannot be read, in words.
    fn ends(&self, after: Option<LogMark>, oldest_ms: i64, each: &mut dyn FnMut(LoggedEnd)) -> Result<bool, String>;

    /// Records something about the answers.
    fn tell(&self, event: &'static str, detail: &str);
}

/// Why the answers cannot be opened.
#[derive(Debug)]
pub struct StoreError {
    path: PathBuf,
    why: String,
}

impl fmt::Display for StoreError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { path, why } = self;
        write!(
            f,
            "cannot open the answers to idempotency keys in {}: {why}; use that version, or move the file away: the keys are then \
             known from the log, without their answers",
            path.display()
        )
    }
}

impl std::error::Error for StoreError {}

/// The answers that are kept, and the keys that are claimed.
#[derive(Debug)]
pub struct IdempotencyStore {
    handle: Arc<StoreHandle>,
}

impl IdempotencyStore {
    /// The answers that an earlier run kept in the log's folder, and the keys that the log knows besides. It waits for the disk.
    ///
    /// # Errors
    /// [`StoreError`]: its words say what to do.
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
        spawned.map_err(|error| StoreError { path: path.clone(), why: error.to_string() })?;
        match first_try.recv_timeout(START_WAIT) {
            Ok(Err(why)) => return Err(StoreError { path, why }),
            Ok(Ok(())) => {}
            Err(_) => tracing::error!(
                "the answers to idempotency keys take long to be read: writes with a key are refused until they are"
            ),
        }
        Ok(Self { handle })
    }

    /// Claims the key, or says what is known of it. `callers`: how many share the room.
    ///
    /// # Errors
    /// [`ClaimRefused`].
    pub async fn claim(&self, keyed: KeyedWrite, callers: usize) -> Result<KeyStatus, ClaimRefused> {
        let shared = &self.handle.shared;
        for _ in 0..CLAIMS_MAX {
            if !shared.ready.load(Ordering::SeqCst) {
                break;
            }
            let found = shared.keys().claim(&keyed, callers, shared.clock.wall_ms());
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
                    // What was rejected, and whose answer is lost, is free.
                }
            }
        }
        Err(ClaimRefused::Unavailable)
    }

    /// An operator, or a look, says that the write in doubt with this key took effect. When this returns, it is known; on disk it is
    /// then too, or at the latest by the settlement in the log.
    pub async fn settle_done(&self, keyed: KeyedWrite) {
        let row =
            KeyRow { keyed, ended: WriteEnd { done: true, answer: None }, time_ms: self.handle.shared.clock.wall_ms() };
        self.handle.shared.keys().fill_in(row);
        if self.handle.flush().await.is_err() {
            tracing::error!(
                "an idempotency key that was settled is not in answers.sqlite yet: it is known from the log"
            );
        }
    }

    /// The write with this key did not take effect: the key is free again.
    pub async fn settle_not_done(&self, key: Fingerprint, request: RequestId) {
        if self.handle.shared.keys().release(&key, &request) {
            let (reply, removed) = oneshot::channel();
            if self.handle.ask(StoreJob::Remove { key, reply }, removed).await.flatten().is_err() {
                tracing::error!(
                    "an idempotency key may be taken again after a restart, though its write did not take effect"
                );
            }
        }
    }

    /// What the thread does every second by itself, now.
    #[cfg(test)]
    async fn maintain(&self) {
        let (reply, done) = oneshot::channel();
        self.handle.ask(StoreJob::Look { reply }, done).await.unwrap();
    }

    /// The end: everything is on disk, however long that takes, and nothing is kept any more.
    pub async fn close(&self) {
        let (reply, closed) = oneshot::channel();
        // Where nothing can be handed in, the thread has not kept up with what was.
        if self.handle.send(StoreJob::Close { reply }).is_err() || closed.await.is_err() {
            tracing::error!("the answers to idempotency keys did not come to their end in time");
        }
    }

    /// Keys that are known.
    #[must_use]
    pub fn kept(&self) -> u64 {
        self.handle.shared.kept.load(Ordering::Relaxed)
    }
}

/// The right to a key. Dropped, the key is free again: its write left nothing behind, or is in doubt.
#[derive(Debug)]
#[must_use]
pub struct KeyClaim {
    handle: Arc<StoreHandle>,
    keyed: KeyedWrite,
    ended: bool,
}

impl KeyClaim {
    /// The key's keyed hash.
    #[must_use]
    pub const fn key(&self) -> Fingerprint {
        self.keyed.key
    }

    /// Keeps how the write ended. When this returns it is on disk; or, while the disk fails, in memory until it is back,
    /// and no further write with a key goes on.
    pub async fn end(mut self, mut ended: WriteEnd) {
        let shared = self.handle.shared.clone();
        let most = usize::try_from(shared.bounds.answer_bytes()).unwrap_or(usize::MAX);
        ended.answer = ended.answer.filter(|answer| database_rows::weight(answer) <= most);
        if !ended.done && ended.answer.is_none() {
            return; // nothing was done: it may be asked once more
        }
        self.ended = true;
        let row = KeyRow { keyed: self.keyed.clone(), ended, time_ms: shared.clock.wall_ms() };
        shared.keys().end(Arc::new(row));
        if self.handle.flush().await.is_err() {
            shared.ready.store(false, Ordering::SeqCst);
        }
    }
}

impl Drop for KeyClaim {
    fn drop(&mut self) {
        if !self.ended {
            self.handle.shared.keys().free(&self.keyed);
        }
    }
}

//! First answers, by idempotency key: what a write that is sent again with its key is told (draft-ietf-httpapi-idempotency-key-header).
//!
//! A key is claimed before its write is forwarded; whoever comes with it meanwhile is told that it is running. The answer is on
//! disk before the write's outcome is, so that no crash leaves a write done and its key unknown. What is in doubt is the log's
//! to know. Only keyed hashes of keys and requests come here; the answers lie in `answers.sqlite`, readable by its owner alone.

mod store;
#[cfg(test)]
mod tests;

use std::collections::HashMap;
use std::fmt;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, StatusCode};

use crate::clock::Clock;
use crate::config::Limits;
use crate::words::{Fingerprint, RequestId};

pub use store::StoreError;
use store::{Reader, Row, Writer};

/// The longest that a write's caller waits for its answer to be on disk; it is kept in memory until then.
const KEEP_WAIT: Duration = Duration::from_secs(1);

/// A write with an idempotency key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Keyed {
    /// The keyed hash of the caller and its key.
    pub key: Fingerprint,
    /// The keyed hash of the whole write.
    pub write: Fingerprint,
    /// The request's id.
    pub request: RequestId,
}

/// An answer as it was given.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    /// Its status.
    pub status: StatusCode,
    /// Its headers, as far as they go on.
    pub headers: HeaderMap,
    /// Its body.
    pub body: Bytes,
}

/// How a write with a key ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ended {
    /// Did it take effect? Else the upstream rejected it.
    pub done: bool,
    /// Its answer; `None`: it was lost, or larger than `limits.idempotency_answer_bytes`.
    pub answer: Option<Answer>,
}

/// What is known of a key.
#[derive(Debug)]
pub enum Known {
    /// Nothing: the write may go on, and nobody else with this key.
    New(Claim),
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
        ended: Ended,
    },
}

/// Why nothing can be said of a key: the answers cannot be read, or some wait for the disk. No write with a key may go on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Unavailable;

impl fmt::Display for Unavailable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the answers to idempotency keys cannot be read or written")
    }
}

impl std::error::Error for Unavailable {}

/// The answers that are kept, and the keys that are claimed.
#[derive(Debug)]
pub struct Answers {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    clock: Clock,
    answer_bytes_max: usize,
    claimed: Mutex<HashMap<Fingerprint, Claimed>>,
    reader: Mutex<Reader>,
    writer: Mutex<Writer>,
    /// Who may look up, and who may store: the others wait without a thread each.
    looking: tokio::sync::Mutex<()>,
    storing: tokio::sync::Mutex<()>,
    /// Answers wait for a disk that fails.
    behind: AtomicBool,
    /// Answers on disk.
    kept: AtomicU64,
}

/// A key that is not, or not only, on disk.
#[derive(Clone, Debug)]
struct Claimed {
    by: Keyed,
    /// The answer, once there is one.
    row: Option<Arc<Row>>,
}

impl Answers {
    /// The answers that an earlier run kept in this folder.
    ///
    /// # Errors
    /// [`StoreError`]: its words say what to do.
    pub fn open(dir: &Path, limits: &Limits, clock: Clock) -> Result<Self, StoreError> {
        let bounds = store::Bounds {
            keys: limits.idempotency_keys,
            age: limits.idempotency_age,
            bytes: limits.idempotency_bytes,
        };
        let writer = Writer::open(dir, bounds)?;
        let shared = Shared {
            clock,
            answer_bytes_max: limits.idempotency_answer_bytes,
            claimed: Mutex::default(),
            reader: Mutex::new(Reader::open(dir, bounds.age)?),
            kept: AtomicU64::new(writer.rows()),
            writer: Mutex::new(writer),
            looking: tokio::sync::Mutex::default(),
            storing: tokio::sync::Mutex::default(),
            behind: AtomicBool::new(false),
        };
        Ok(Self { shared: Arc::new(shared) })
    }

    /// Claims the key, or says what is known of it.
    ///
    /// # Errors
    /// [`Unavailable`].
    pub async fn claim(&self, keyed: Keyed) -> Result<Known, Unavailable> {
        if self.shared.behind.load(Ordering::Relaxed) {
            return Err(Unavailable);
        }
        let shared = self.shared.clone();
        let _turn = self.shared.looking.lock().await;
        tokio::task::spawn_blocking(move || shared.claim(keyed)).await.unwrap_or(Err(Unavailable))
    }

    /// An operator, or a look, says that the write in doubt with this key took effect. When this returns, it is on disk.
    ///
    /// # Errors
    /// [`Unavailable`]: nothing is stored.
    pub async fn settle_done(&self, keyed: Keyed) -> Result<(), Unavailable> {
        let shared = self.shared.clone();
        let stored = tokio::task::spawn_blocking(move || {
            let row = Row::of(keyed, Ended { done: true, answer: None }, shared.clock.wall_ms());
            shared.write(|writer| writer.add_missing(&row))
        });
        stored.await.unwrap_or(Err(Unavailable))
    }

    /// The write with this key did not take effect: the key is free again.
    pub async fn settle_not_done(&self, key: Fingerprint) {
        let shared = self.shared.clone();
        let forgotten = tokio::task::spawn_blocking(move || shared.write(|writer| writer.remove(&key)));
        if forgotten.await.is_ok_and(|forgotten| forgotten.is_err()) {
            tracing::error!("an idempotency key stays taken, though its write did not take effect");
        }
    }

    /// The recurring work: stores what could not be stored, forgets what is too old. It waits for the disk.
    pub fn maintain(&self) {
        self.shared.flush();
        let now = self.shared.clock.wall_ms();
        let _told = self.shared.write(|writer| writer.expire(now));
    }

    /// Answers that are kept.
    #[must_use]
    pub fn kept(&self) -> u64 {
        self.shared.kept.load(Ordering::Relaxed)
    }
}

impl Shared {
    fn claimed(&self) -> MutexGuard<'_, HashMap<Fingerprint, Claimed>> {
        self.claimed.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Does this answer wait for the disk?
    fn holds(&self, row: &Arc<Row>) -> bool {
        let claimed = self.claimed();
        let waiting = claimed.get(&row.keyed.key).and_then(|claimed| claimed.row.as_ref());
        waiting.is_some_and(|waiting| Arc::ptr_eq(waiting, row))
    }

    fn write<T>(&self, change: impl FnOnce(&mut Writer) -> rusqlite::Result<T>) -> Result<T, Unavailable> {
        let mut writer = self.writer.lock().unwrap_or_else(PoisonError::into_inner);
        let changed = change(&mut writer);
        self.kept.store(writer.rows(), Ordering::Relaxed);
        changed.map_err(|error| {
            tracing::error!(%error, "the answers to idempotency keys cannot be written");
            Unavailable
        })
    }

    /// Claimed first, looked up then: of two with a new key only one goes on.
    fn claim(self: &Arc<Self>, keyed: Keyed) -> Result<Known, Unavailable> {
        let earlier = {
            let mut claimed = self.claimed();
            let earlier = claimed.get(&keyed.key).cloned();
            if earlier.is_none() {
                claimed.insert(keyed.key, Claimed { by: keyed, row: None });
            }
            earlier
        };
        let claim = earlier.is_none().then(|| Claim { answers: self.clone(), keyed, ended: false });
        let row = match earlier.as_ref().and_then(|claimed| claimed.row.clone()) {
            Some(row) => Some(row),
            None => self.look_up(&keyed.key)?.map(Arc::new),
        };
        Ok(match (row, earlier, claim) {
            (Some(row), _, _) if row.keyed.write != keyed.write => Known::Other { first: row.keyed.request },
            (Some(row), _, _) => Known::Ended { first: row.keyed.request, ended: row.ended.clone() },
            (None, Some(earlier), _) if earlier.by.write != keyed.write => Known::Other { first: earlier.by.request },
            (None, Some(earlier), _) => Known::Running { first: earlier.by.request },
            (None, None, Some(claim)) => Known::New(claim),
            (None, None, None) => return Err(Unavailable),
        })
    }

    fn look_up(&self, key: &Fingerprint) -> Result<Option<Row>, Unavailable> {
        let reader = self.reader.lock().unwrap_or_else(PoisonError::into_inner);
        reader.find(key, self.clock.wall_ms()).map_err(|error| {
            tracing::error!(%error, "the answers to idempotency keys cannot be read");
            Unavailable
        })
    }

    /// Stores every answer that waits for the disk, in one transaction: what others added meanwhile too.
    fn flush(&self) {
        let mut rows = Vec::new();
        let stored = self.write(|writer| {
            rows = self.claimed().values().filter_map(|claimed| claimed.row.clone()).collect();
            if rows.is_empty() { Ok(()) } else { writer.add(&rows) }
        });
        if stored.is_ok() {
            let mut claimed = self.claimed();
            rows.iter().for_each(|row| drop(claimed.remove(&row.keyed.key)));
        }
        self.behind.store(stored.is_err(), Ordering::Relaxed);
    }
}

/// The right to a key. Dropped, the key is free again: its write left nothing behind, or is in doubt.
#[derive(Debug)]
#[must_use]
pub struct Claim {
    answers: Arc<Shared>,
    keyed: Keyed,
    ended: bool,
}

impl Claim {
    /// The key's keyed hash.
    #[must_use]
    pub const fn key(&self) -> Fingerprint {
        self.keyed.key
    }

    /// Keeps how the write ended. When this returns it is on disk; or, while the disk fails, in memory until it is back,
    /// and no further write with a key goes on.
    pub async fn end(mut self, mut ended: Ended) {
        let shared = self.answers.clone();
        ended.answer = ended.answer.filter(|answer| store::weight(answer) <= shared.answer_bytes_max);
        if !ended.done && ended.answer.is_none() {
            return; // nothing was done: it may be asked once more
        }
        self.ended = true;
        let row = Arc::new(Row::of(self.keyed, ended, shared.clock.wall_ms()));
        if let Some(claimed) = shared.claimed().get_mut(&self.keyed.key) {
            claimed.row = Some(row.clone());
        }
        let flushed = async {
            let _turn = shared.storing.lock().await;
            // Whoever had the turn before has stored this one too, unless the disk failed.
            if shared.holds(&row) {
                let shared = shared.clone();
                let _told = tokio::task::spawn_blocking(move || shared.flush()).await;
            }
        };
        if tokio::time::timeout(KEEP_WAIT, flushed).await.is_err() {
            self.answers.behind.store(true, Ordering::Relaxed);
        }
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        if !self.ended {
            self.answers.claimed().remove(&self.keyed.key);
        }
    }
}

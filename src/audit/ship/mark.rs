//! How far the log was shipped: what retention, pages and metrics ask.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use crate::audit::retention::SeqRange;

/// How far the log was shipped to the table of all replicas' records.
#[derive(Debug, Default)]
pub(crate) struct ShippedMark {
    /// How long that table keeps records; `None`: nobody ships this log.
    keep: Option<Duration>,
    /// The newest record that was shipped, or was not to be; 0 until the engine has told.
    seq: AtomicU64,
    is_known: AtomicBool,
    /// What was deleted before the engine has told.
    early: Mutex<Vec<SeqRange>>,
    rows: AtomicU64,
    skipped: AtomicU64,
    deleted: AtomicU64,
    trouble: Mutex<Option<ShipTrouble>>,
}

/// Why records are not shipped now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ShipTrouble {
    /// Since when.
    pub since: Instant,
    /// In words.
    pub cause: Box<str>,
}

/// What became of the log's records, since the start.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ShipState {
    /// How many records are still to be shipped.
    pub behind: u64,
    /// Number of records copied.
    pub shipped: u64,
    /// Number of records that are older than the table keeps, or of days that are still to come.
    pub skipped: u64,
    /// Number of records that retention deleted before they were shipped.
    pub deleted: u64,
    /// Why nothing is shipped now, if it is not.
    pub trouble: Option<ShipTrouble>,
}

/// What retention has to know: the newest record that was shipped, and how long the table keeps records.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct UnshippedRecords {
    pub(crate) after: u64,
    pub(crate) keep: Duration,
}

impl ShippedMark {
    pub(crate) fn new(keep: Option<Duration>) -> Self {
        Self { keep, ..Self::default() }
    }

    pub(crate) fn unshipped(&self) -> Option<UnshippedRecords> {
        Some(UnshippedRecords { after: self.seq.load(Ordering::Relaxed), keep: self.keep? })
    }

    pub(crate) fn moved(&self, seq: u64) {
        self.seq.store(seq, Ordering::Relaxed);
        if !self.is_known.swap(true, Ordering::Relaxed) {
            let early = std::mem::take(&mut *self.early.lock().unwrap_or_else(PoisonError::into_inner));
            early.into_iter().for_each(|range| self.note_deletion(range));
        }
    }

    pub(super) fn shipped(&self, rows: u64, skipped: u64) {
        self.rows.fetch_add(rows, Ordering::Relaxed);
        self.skipped.fetch_add(skipped, Ordering::Relaxed);
    }

    /// Retention deletes these records, because the log has grown too large, whether they were shipped or not.
    pub(crate) fn note_deletion(&self, (first, last): SeqRange) {
        let Some(UnshippedRecords { after, .. }) = self.unshipped() else { return };
        if !self.is_known.load(Ordering::Relaxed) {
            self.early.lock().unwrap_or_else(PoisonError::into_inner).push((first, last));
        } else if last > after {
            let first = first.max(after + 1);
            tracing::error!(
                first,
                last,
                "records are deleted that were not shipped yet: the log has grown to audit.retention_bytes"
            );
            self.deleted.fetch_add(last - first + 1, Ordering::Relaxed);
        }
    }

    /// Takes note of what is in the way, or that nothing is. Returns whether that is news.
    pub(super) fn set_trouble(&self, cause: Option<&str>, now: Instant) -> bool {
        let mut trouble = self.trouble.lock().unwrap_or_else(PoisonError::into_inner);
        let was = trouble.as_ref().map(|trouble| &*trouble.cause);
        let is_news = was.is_some() != cause.is_some();
        let since = trouble.as_ref().map_or(now, |trouble| trouble.since);
        *trouble = cause.map(|cause| ShipTrouble { since, cause: cause.into() });
        is_news
    }

    /// `newest`: the newest record on disk. `None`: nobody ships this log.
    pub(crate) fn state(&self, newest: u64) -> Option<ShipState> {
        self.keep?;
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        Some(ShipState {
            behind: newest.saturating_sub(read(&self.seq)),
            shipped: read(&self.rows),
            skipped: read(&self.skipped),
            deleted: read(&self.deleted),
            trouble: self.trouble.lock().unwrap_or_else(PoisonError::into_inner).clone(),
        })
    }
}

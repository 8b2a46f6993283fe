//! What all buckets of a quota share.

use std::sync::atomic::AtomicUsize;
use std::time::Instant;

use super::journal::{JournalPosition, SlotJournal};
use super::journal_state::JournalLine;
use super::window::Moment;
use crate::clock::Clock;

/// What all buckets share.
#[derive(Debug)]
pub(super) struct QuotaShared {
    pub(super) clock: Clock,
    /// Moment 0.
    pub(super) opened: Instant,
    pub(super) journal: Option<SlotJournal>,
    /// Number of accounts in all buckets.
    pub(super) accounts: AtomicUsize,
}

impl QuotaShared {
    pub(super) fn now(&self) -> Moment {
        self.moment(self.clock.now())
    }

    /// Converts a time to milliseconds since the quota was opened.
    pub(super) fn moment(&self, time: Instant) -> Moment {
        u64::try_from(time.saturating_duration_since(self.opened).as_millis()).unwrap_or(Moment::MAX)
    }

    /// The time since the machine's start, in milliseconds.
    pub(super) fn boot(&self) -> u64 {
        u64::try_from(self.clock.boot().as_millis()).unwrap_or(u64::MAX)
    }

    pub(super) fn add_line<'a>(&self, line: impl FnOnce(i64) -> JournalLine<'a>) -> JournalPosition {
        self.journal.as_ref().map(|journal| journal.add(&line(self.clock.wall_ms()))).unwrap_or_default()
    }
}

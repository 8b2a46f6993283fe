//! What a caller is told about its quota: where it stands, what it waits for, and how long.

use std::fmt;
use std::time::Duration;

use super::UNLEARNED_PER_MINUTE;
use super::window::HOLD_MS;

/// A caller's standing at a bucket, and when it can send.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct QuotaOutlook {
    /// What it waits for, if it has to wait.
    pub waits_for: WaitsFor,
    /// Time after which it can expect to send.
    pub after: Duration,
    /// The bucket's attempts per minute.
    pub limit: u32,
    /// Number of free slots.
    pub free: u32,
    /// Number of the caller's slots in the window.
    pub spent: u32,
    /// The caller's share: the limit divided by the number of callers active in the window.
    pub share: u32,
    /// Number of the caller's waiting requests.
    pub waiting: usize,
}

/// What a request waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WaitsFor {
    /// A free slot; all are taken.
    Spent,
    /// Its turn: slots are free, but kept for requests ahead of it and for callers that have had less or may come.
    Kept,
    /// The bucket, which is closed or still reopening after the upstream's own 429, or after a start that does not
    /// know what was sent before it.
    Closed,
}

impl QuotaOutlook {
    /// When nothing is known about the bucket.
    pub const UNKNOWN: Self = Self {
        waits_for: WaitsFor::Spent,
        after: Duration::from_millis(HOLD_MS),
        limit: UNLEARNED_PER_MINUTE,
        free: 0,
        spent: 0,
        share: UNLEARNED_PER_MINUTE,
        waiting: 0,
    };
}

/// The caller's standing as a sentence without its end, to which the caller of this adds when more slots come.
impl fmt::Display for QuotaOutlook {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { waits_for, limit, free, spent, share, waiting, .. } = self;
        match waits_for {
            WaitsFor::Closed => {
                f.write_str("Nothing is sent for a while, because Make itself answered 429 for this quota, ")?;
                f.write_str(
                    "or because makegate does not know yet what it, or another replica, has sent in the last minute",
                )
            }
            WaitsFor::Spent => {
                write!(f, "Make's quota of {limit}/min is used up; this caller has had {spent} (its share: {share})")
            }
            WaitsFor::Kept => {
                write!(f, "Of Make's quota of {limit}/min, this caller has had {spent} (its share: {share}). ")?;
                write!(f, "The {free} still free are kept for other callers")?;
                if *waiting > 0 {
                    write!(f, " and this one's waiting requests ({waiting})")?;
                }
                f.write_str(" and handed out at an even pace")
            }
        }
    }
}

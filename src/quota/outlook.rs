//! What a caller is told of its quota: where it stands, what it waits for, and how long.

use std::fmt;
use std::time::Duration;

use super::UNLEARNED_PER_MINUTE;
use super::window::HOLD_MS;

/// Where a caller stands at a bucket, and when it can send.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct QuotaOutlook {
    /// What it waits for, if it has to wait.
    pub lack: WaitsFor,
    /// In what time it can expect to send.
    pub after: Duration,
    /// Attempts a minute of the bucket.
    pub limit: u32,
    /// Slots that are free.
    pub free: u32,
    /// The caller's slots in the window.
    pub spent: u32,
    /// The caller's share: the limit divided by the callers active in the window.
    pub share: u32,
    /// The caller's requests that wait.
    pub waiting: usize,
}

/// What a request waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WaitsFor {
    /// A slot: all are taken.
    Spent,
    /// Its turn: slots are free, but kept for requests before it and for callers that have had less or may come.
    Kept,
    /// The bucket: after the upstream's own 429, or a start that does not know what was sent before it, it is closed, or being
    /// reopened gently.
    Closed,
}

impl QuotaOutlook {
    /// Where nothing is known of the bucket.
    pub const UNKNOWN: Self = Self {
        lack: WaitsFor::Spent,
        after: Duration::from_millis(HOLD_MS),
        limit: UNLEARNED_PER_MINUTE,
        free: 0,
        spent: 0,
        share: UNLEARNED_PER_MINUTE,
        waiting: 0,
    };
}

/// Where the caller stands, as a sentence that lacks its end: when more comes.
impl fmt::Display for QuotaOutlook {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { lack, limit, free, spent, share, waiting, .. } = self;
        match lack {
            WaitsFor::Closed => {
                f.write_str("Nothing is sent for a while, because Make itself answered 429 for this quota, ")?;
                f.write_str("or because what was sent before the start is not known")
            }
            WaitsFor::Spent => {
                write!(f, "Make's quota of {limit}/min is all taken; this caller has had {spent} (its share: {share})")
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

//! What retention must know after a restart; each segment's opening stores it.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

/// Divisor of `retention_bytes` that gives the part reserved for refusals of unidentified and rate-limited callers.
/// Other records use the rest, however many there are.
const REFUSALS_DIVISOR: u64 = 8;

/// The part of `retention_bytes` that refusals may use.
pub(crate) const fn refusals_share(retention_bytes: u64) -> u64 {
    retention_bytes / REFUSALS_DIVISOR
}

/// What an opening stores for retention; segments from older versions lack it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct RetentionState {
    /// Bytes of refusals ever written.
    #[serde(default)]
    pub(crate) refusal_bytes: u64,
    /// Bytes of refusals that retention has deleted.
    #[serde(default)]
    pub(crate) refusal_bytes_gone: u64,
    /// The trusted time.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) believed: Option<Timestamp>,
}

impl RetentionState {
    /// Bytes of refusals still in the log.
    pub(crate) const fn refusals_in_log(&self) -> u64 {
        self.refusal_bytes.saturating_sub(self.refusal_bytes_gone)
    }
}

//! What retention must know over a restart: each segment's opening says it.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

/// The part of `retention_bytes` that refusals of whoever is not known, or too fast, have for themselves. The rest is for all
/// other records, however many of those there are.
const REFUSALS_PART: u64 = 8;

/// The share of `retention_bytes` that is the refusals'.
pub(super) const fn refusals_share(retention_bytes: u64) -> u64 {
    retention_bytes / REFUSALS_PART
}

/// What an opening says for retention; a segment of an earlier makegate says nothing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct RetentionState {
    /// Bytes of refusals that were ever written.
    #[serde(default)]
    pub(crate) refusal_bytes: u64,
    /// Those of them that retention has taken.
    #[serde(default)]
    pub(crate) refusal_bytes_gone: u64,
    /// Which time it was as far as the clock was believed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) believed: Option<Timestamp>,
}

impl RetentionState {
    /// Bytes of refusals that are in the log.
    pub(super) const fn refusals_in_log(&self) -> u64 {
        self.refusal_bytes.saturating_sub(self.refusal_bytes_gone)
    }
}

//! Tells operators about keys that expire soon.

use jiff::{SignedDuration, Timestamp};

use super::admit::policy::Policy;
use crate::config::KeyConfig;
use crate::ids::KeyId;
use crate::process_log::STATE;

/// A key is reported for this long before it expires.
const WARNING: SignedDuration = SignedDuration::from_hours(14 * 24);
/// Keys that a line names; the others are counted.
const NAMED_MAX: usize = 10;

/// How near the end of a key, or of a certificate, is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KeyExpiry {
    /// It expires within 14 days.
    Soon,
    /// It has expired.
    Past,
}

impl KeyExpiry {
    /// Of this key. `None` if its end is far, or if it has none.
    #[must_use]
    pub fn of(key: &KeyConfig, now: Timestamp) -> Option<Self> {
        Self::at(key.expires.as_ref()?.at, now)
    }

    /// Of what ends then. `None` if that is far.
    #[must_use]
    pub fn at(end: Timestamp, now: Timestamp) -> Option<Self> {
        match end.duration_since(now) {
            left if !left.is_positive() => Some(Self::Past),
            left if left <= WARNING => Some(Self::Soon),
            _ => None,
        }
    }

    /// In words.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Soon => "expires soon",
            Self::Past => "expired",
        }
    }
}

/// Tells the process log, in one line, which keys expire soon or have expired.
pub fn log_key_expiry(policy: &Policy, now: Timestamp) {
    let of_caller = |caller: &crate::config::CallerConfig| -> Vec<String> {
        let ending = caller.keys.iter().filter_map(|key| Some((key, KeyExpiry::of(key, now)?, key.expires.as_ref()?)));
        ending
            .map(|(key, ends, at)| {
                format!("{} {} {} ({})", caller.name, KeyId::of(&key.hash), ends.as_str(), at.written)
            })
            .collect()
    };
    let ending: Vec<String> = policy.callers.iter().flat_map(|caller| of_caller(&caller.config)).collect();
    if ending.is_empty() {
        return;
    }
    let (count, keys) = (ending.len(), ending.get(..NAMED_MAX).unwrap_or(&ending).join(", "));
    tracing::warn!(target: STATE, count, keys, "callers' keys expire soon or have expired: replace them");
}

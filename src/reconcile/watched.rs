//! State of a watched doubt: what the upstream had answered when it arose, and when the next look is due.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use crate::config::CacheConfig;
use crate::gateway::Gateway;

/// Pause after the first look.
const SECOND_LOOK: Duration = Duration::from_secs(30);
/// Pauses after the look at the end of the doubt window; the last one repeats.
const PAUSES: [Duration; 3] = [Duration::from_mins(5), Duration::from_mins(15), Duration::from_hours(1)];
/// When to give up looking.
const LOOKED_MAX: Duration = Duration::from_hours(24);

/// Why a doubt is still open.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DoubtReason {
    /// The catalogue names no read that can prove it, or its body cannot be recognized.
    Unprovable,
    /// `upstream.look = false`.
    Off,
    /// Too early: Make may lag behind.
    Early,
    /// The upstream has answered nothing since.
    Unanswered,
    /// No spare quota.
    NoQuota,
    /// The log cannot be written, so a result could not be recorded.
    NoLog,
    /// The last look proved nothing.
    Unproved,
    /// The last look failed.
    Failed,
    /// No look proved anything.
    GivenUp,
    /// Another replica has adopted it.
    Elsewhere,
}

impl DoubtReason {
    /// All reasons.
    pub const ALL: [Self; 10] = [
        Self::Unprovable,
        Self::Off,
        Self::Early,
        Self::Unanswered,
        Self::NoQuota,
        Self::NoLog,
        Self::Unproved,
        Self::Failed,
        Self::GivenUp,
        Self::Elsewhere,
    ];

    /// Text for operators.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Unprovable => "a look cannot prove it",
            Self::Off => "looking is off (upstream.look)",
            Self::Early => "waits for the first look: Make may lag behind",
            Self::Unanswered => "waits until Make answers again",
            Self::NoQuota => "waits for spare quota",
            Self::NoLog => "waits until the log can be written",
            Self::Unproved => "the last look proved nothing",
            Self::Failed => "the last look had no good answer",
            Self::GivenUp => "a day of looks proved nothing",
            Self::Elsewhere => "another replica looks after it",
        }
    }
}

/// What the upstream had answered at some point in time.
#[derive(Clone, Copy, Debug)]
struct UpstreamHistory {
    answers: u64,
    /// Attempts made for callers.
    attempts: u64,
}

impl UpstreamHistory {
    fn now(gateway: &Gateway) -> Self {
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let attempts: u64 = gateway.metrics.attempts().map(|(_, count)| count).sum();
        Self {
            answers: read(&gateway.metrics.answers),
            attempts: attempts.saturating_sub(read(&gateway.metrics.looks)),
        }
    }
}

#[derive(Clone, Copy, Debug)]
pub(super) struct WatchedDoubt {
    since: Instant,
    before: UpstreamHistory,
    pub(super) looks: u32,
    /// When the next look is due.
    due: Instant,
    pub(super) why: DoubtReason,
}

impl WatchedDoubt {
    /// From then on, the write can no longer take effect unseen.
    fn window_end(&self, cache: &CacheConfig) -> Instant {
        self.since + cache.doubt + cache.settle
    }

    /// Starts to watch a doubt.
    pub(super) fn begin(gateway: &Gateway, cache: &CacheConfig) -> Self {
        let since = gateway.clock.now();
        let before = UpstreamHistory::now(gateway);
        Self { since, before, looks: 0, due: since + cache.settle, why: DoubtReason::Early }
    }

    /// Is it time for a look that may prove something? Returns true if the write can no longer take effect.
    ///
    /// # Errors
    /// Why there is no look now.
    pub(super) fn may_look(&self, gateway: &Gateway, cache: &CacheConfig) -> Result<bool, DoubtReason> {
        let now = gateway.clock.now();
        if now >= self.since + LOOKED_MAX {
            return Err(DoubtReason::GivenUp);
        }
        if now < self.due {
            return Err(if self.looks == 0 { DoubtReason::Early } else { self.why });
        }
        if !gateway.log.writable() {
            return Err(DoubtReason::NoLog);
        }
        let too_late = now >= self.window_end(cache);
        // Has the upstream answered anyone since? If nobody asked until the end of the doubt window, the look itself is the question.
        let history = UpstreamHistory::now(gateway);
        let answers_again =
            history.answers > self.before.answers || (too_late && history.attempts == self.before.attempts);
        if answers_again { Ok(too_late) } else { Err(DoubtReason::Unanswered) }
    }

    /// Notes a look and schedules the next one.
    pub(super) fn note_look(&mut self, now: Instant, cache: &CacheConfig, why: DoubtReason) {
        self.looks += 1;
        self.why = why;
        self.due = match self.looks {
            1 => now + SECOND_LOOK,
            2 => self.window_end(cache).max(now + SECOND_LOOK),
            later => {
                let place = usize::try_from(later - 3).unwrap_or(usize::MAX).min(PAUSES.len() - 1);
                now + PAUSES.get(place).copied().unwrap_or(LOOKED_MAX)
            }
        };
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::clock::Clock;
    use crate::config;

    #[test]
    fn looks_come_early_then_at_the_end_of_the_doubt_window_then_ever_more_rarely() {
        let read =
            config::parse("operator.key_env = \"K\"\nupstream.token_env = \"T\"\n", Path::new("m.toml")).unwrap();
        let (cache, since) = (read.config.cache, Clock::system().now());
        let before = UpstreamHistory { answers: 0, attempts: 0 };
        let mut watched = WatchedDoubt { since, before, looks: 0, due: since + cache.settle, why: DoubtReason::Early };
        let mut seconds = Vec::new();
        for _ in 0..8 {
            seconds.push((watched.due - since).as_secs());
            watched.note_look(watched.due, &cache, DoubtReason::Unproved);
        }
        assert_eq!(seconds, [10, 40, 130, 430, 1_330, 4_930, 8_530, 12_130]);
    }
}

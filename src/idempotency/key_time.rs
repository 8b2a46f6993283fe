//! The time that keys age by. A wall clock can be wrong for a moment, and a key forgotten in that moment would let its
//! write be carried out twice. So keys age by the monotonic clock, from a start that no clock puts ahead: the newest
//! time that the store itself recorded. Time during which makegate does not run ages no key.

use std::sync::OnceLock;
use std::time::Instant;

use crate::clock::Clock;

#[derive(Debug)]
pub(super) struct KeyTime {
    clock: Clock,
    /// A moment, and its key time in milliseconds.
    begun: OnceLock<(Instant, i64)>,
}

impl KeyTime {
    pub(super) const fn new(clock: Clock) -> Self {
        Self { clock, begun: OnceLock::new() }
    }

    /// Continues from the newest time in the store, or from wall time if that is earlier or nothing is stored.
    pub(super) fn begin(&self, newest_ms: Option<i64>) {
        let wall = self.clock.wall_ms();
        self.begun.get_or_init(|| (self.clock.now(), newest_ms.map_or(wall, |newest| newest.min(wall))));
    }

    /// In milliseconds; wall time until it has begun.
    pub(super) fn now_ms(&self) -> i64 {
        self.begun.get().map_or_else(
            || self.clock.wall_ms(),
            |(at, ms)| {
                let passed = self.clock.now().saturating_duration_since(*at);
                ms.saturating_add(i64::try_from(passed.as_millis()).unwrap_or(i64::MAX))
            },
        )
    }
}

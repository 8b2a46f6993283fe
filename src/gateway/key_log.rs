//! Gives the idempotency store access to the audit log.

use std::fmt;
use std::io;
use std::sync::Arc;

use jiff::Timestamp;

use crate::audit::{AuditLog, Record};
use crate::clock::Clock;
use crate::idempotency::{KeyLog, KeyedWrite, LogMark, LoggedEnd};

/// Adapts [`AuditLog`] to [`KeyLog`].
pub struct KeyLogAdapter {
    log: Arc<AuditLog>,
    clock: Clock,
}

impl KeyLogAdapter {
    /// Wraps `log`.
    #[must_use]
    pub const fn new(log: Arc<AuditLog>, clock: Clock) -> Self {
        Self { log, clock }
    }
}

impl fmt::Debug for KeyLogAdapter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LogOfKeys").finish_non_exhaustive()
    }
}

impl KeyLog for KeyLogAdapter {
    fn mark(&self) -> LogMark {
        let (size, root) = self.log.mark();
        LogMark { size, root }
    }

    fn for_each_end(
        &self,
        after: Option<LogMark>,
        oldest_ms: i64,
        each: &mut dyn FnMut(LoggedEnd),
    ) -> io::Result<bool> {
        let oldest = Timestamp::from_millisecond(oldest_ms).unwrap_or(Timestamp::MIN);
        let mark = after.map(|mark| (mark.size, mark.root));
        self.log.key_ends(mark, oldest, &mut |end| {
            let keyed = KeyedWrite { key: end.key, write: end.write, request: end.request, caller: end.caller };
            each(LoggedEnd { keyed, done: end.done, time_ms: end.time.as_millisecond() });
        })
    }

    fn record_event(&self, event: &'static str, detail: &str) {
        if let Some(room) = self.log.reserve() {
            room.fill(Record::event(self.clock.wall(), event, detail));
        }
    }
}

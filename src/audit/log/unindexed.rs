//! Records that are on disk but not yet in the index. The writer hands them over as they are, because to read each of
//! them again from its segment costs more than to write it.

use std::collections::VecDeque;
use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::audit::record::Record;
use crate::audit::segment::forward_reader::LinePosition;

/// Maximum memory of the records that wait, in bytes. The index reads what exceeds it from the segments.
const BYTES_MAX: usize = 4 << 20;

/// A durable record and where its line is.
pub(crate) type DurableRecord = (LinePosition, Box<Record<'static>>);

#[derive(Debug, Default)]
pub(crate) struct UnindexedRecords {
    queue: Mutex<RecordQueue>,
}

#[derive(Debug, Default)]
struct RecordQueue {
    records: VecDeque<DurableRecord>,
    bytes: usize,
}

impl UnindexedRecords {
    /// Adds records in the order of their lines. Returns true if the index should take them soon. If they do not fit,
    /// the earlier ones are forgotten, because the index is far behind.
    pub(crate) fn add(&self, records: impl IntoIterator<Item = DurableRecord>) -> bool {
        let mut queue = self.lock();
        for (place, record) in records {
            let bytes = record.weight();
            if queue.bytes + bytes > BYTES_MAX {
                *queue = RecordQueue::default();
            }
            queue.bytes += bytes;
            queue.records.push_back((place, record));
        }
        queue.bytes > BYTES_MAX / 2
    }

    /// Takes all that wait, oldest first.
    pub(crate) fn take(&self) -> VecDeque<DurableRecord> {
        std::mem::take(&mut *self.lock()).records
    }

    fn lock(&self) -> MutexGuard<'_, RecordQueue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::audit::Kind;

    #[test]
    fn what_waits_for_the_index_is_bounded_and_the_newest_is_kept() {
        let unindexed = UnindexedRecords::default();
        let record = Box::new(Record::new(Kind::Request, jiff::Timestamp::UNIX_EPOCH));
        let fit = BYTES_MAX / record.weight();
        let line = |n: usize| LinePosition { segment: 1, offset: n as u64, length: 0 };
        let add = |from: usize, to: usize| unindexed.add((from..to).map(|n| (line(n), record.clone())));
        assert!(!add(0, 10));
        assert!(add(10, fit), "the index should come");
        assert_eq!(unindexed.take().len(), fit);
        add(0, fit);
        add(fit, fit + 3);
        let kept: Vec<_> = unindexed.take().into_iter().map(|(place, _)| place).collect();
        assert_eq!(kept, [line(fit), line(fit + 1), line(fit + 2)]);
        assert!(!add(0, 1), "what was taken no longer counts");
    }
}

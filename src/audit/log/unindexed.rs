//! Records that are on disk but not yet in the index. The writer hands them over as they are, because to read each of
//! them again from its segment costs more than to write it.

use std::collections::VecDeque;

use crate::audit::record::Record;
use crate::audit::segment::forward_reader::LinePosition;

/// Maximum memory of the records that wait, in bytes. The index reads what exceeds it from the segments.
const BYTES_MAX: usize = 4 << 20;

/// A durable record and where its line is.
pub(crate) type DurableRecord = (LinePosition, Box<Record<'static>>);

#[derive(Debug, Default)]
pub(crate) struct UnindexedRecords {
    records: VecDeque<DurableRecord>,
    bytes: usize,
}

impl UnindexedRecords {
    /// Adds records in the order of their lines. Returns true if the index should take them soon. If they do not fit,
    /// the earlier ones are forgotten, because the index is far behind.
    pub(crate) fn add(&mut self, records: impl IntoIterator<Item = DurableRecord>) -> bool {
        for (place, record) in records {
            let bytes = record.weight();
            if self.bytes + bytes > BYTES_MAX {
                *self = Self::default();
            }
            self.bytes += bytes;
            self.records.push_back((place, record));
        }
        self.bytes > BYTES_MAX / 2
    }

    /// Takes all that wait, oldest first.
    pub(crate) fn take(&mut self) -> VecDeque<DurableRecord> {
        std::mem::take(self).records
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::audit::Kind;

    #[test]
    fn what_waits_for_the_index_is_bounded_and_the_newest_is_kept() {
        let mut unindexed = UnindexedRecords::default();
        let record = Box::new(Record::new(Kind::Request, jiff::Timestamp::UNIX_EPOCH));
        let fit = BYTES_MAX / record.weight();
        let line = |n: usize| LinePosition { segment: 1, offset: n as u64, length: 0 };
        let lines = |from: usize, to: usize| (from..to).map(|n| (line(n), record.clone()));
        assert!(!unindexed.add(lines(0, 10)));
        assert!(unindexed.add(lines(10, fit)), "the index should come");
        assert_eq!(unindexed.take().len(), fit);
        unindexed.add(lines(0, fit));
        unindexed.add(lines(fit, fit + 3));
        let kept: Vec<_> = unindexed.take().into_iter().map(|(place, _)| place).collect();
        assert_eq!(kept, [line(fit), line(fit + 1), line(fit + 2)]);
        assert!(!unindexed.add(lines(0, 1)), "what was taken no longer counts");
    }
}

//! Reads the durable lines that are still to be shipped, in order, as the index reads them.

use std::io;
use std::path::Path;

use serde::Deserialize;

use super::hour_rows::HourRows;
use crate::audit::index::ledger::{LedgerCounts, count};
use crate::audit::log::shared::DurablePosition;
use crate::audit::record::{Kind, Record};
use crate::audit::segment;
use crate::audit::segment::forward_reader::ForwardReader;
use crate::config::ShippedRecords;
use crate::replicas::shipping::{LedgerGain, RecordDays};
use crate::replicas::{CopyRows, SharedRecord, day_of};
use crate::vocabulary::Answer;

/// The most records, and about the most bytes, that one transaction ships.
pub(super) const BATCH_RECORDS: u64 = 5_000;
const BATCH_BYTES: usize = 4 << 20;
/// The most lines that one round reads: most may not be wanted.
const BATCH_LINES: u64 = 50_000;

/// Where reading goes on.
#[derive(Debug)]
pub(super) struct UnshippedReader {
    tail: ForwardReader,
    /// The newest record that was read.
    pub(super) last: u64,
    /// The segment of the line that was read last, and from which number on its records are void.
    segment: u64,
    void_from: u64,
    /// The segment that was being written then.
    newest_segment: u64,
    hours: HourRows,
}

/// What one transaction is to ship.
#[derive(Debug)]
pub(super) struct UnshippedBatch {
    pub(super) records: CopyRows,
    pub(super) ledger: Vec<LedgerGain>,
    /// The newest record that was read.
    pub(super) last: u64,
    /// Records that the table has no room for, because of their day.
    pub(super) skipped: u64,
}

impl UnshippedReader {
    /// Begins after this record.
    pub(super) fn after(dir: &Path, seq: u64) -> io::Result<Self> {
        let segments = segment::list(dir)?;
        let first = segments.iter().rev().find(|first| **first <= seq + 1).copied().unwrap_or(0);
        let tail = ForwardReader::at(dir, first, 0);
        Ok(Self { tail, last: seq, segment: 0, void_from: u64::MAX, newest_segment: 0, hours: HourRows::default() })
    }

    /// Reads on up to `end`.
    pub(super) fn read(
        &mut self,
        dir: &Path,
        end: DurablePosition,
        wanted: ShippedRecords,
        (replica, days): (&str, &RecordDays),
    ) -> io::Result<UnshippedBatch> {
        let (mut line, mut lines, mut counts) = (Vec::new(), 0, LedgerCounts::default());
        let mut batch =
            UnshippedBatch { records: CopyRows::new(replica), ledger: Vec::new(), last: self.last, skipped: 0 };
        while lines < BATCH_LINES && batch.records.count() < BATCH_RECORDS && batch.records.size() < BATCH_BYTES {
            let Some(place) = self.tail.next(&mut line, Some((end.segment, end.length)))? else { break };
            lines += 1;
            if (place.segment, end.segment) != (self.segment, self.newest_segment) {
                (self.segment, self.newest_segment) = (place.segment, end.segment);
                // In the segment being written nothing is void up to its durable length.
                let is_sealed = place.segment < end.segment;
                self.void_from =
                    is_sealed.then(|| segment::after(dir, place.segment)).transpose()?.flatten().unwrap_or(u64::MAX);
            }
            let Ok(text) = std::str::from_utf8(&line) else { continue };
            let record = Record::parse(&line).filter(|record| self.last < record.seq && record.seq < self.void_from);
            let Some(record) = record else { continue };
            (self.last, batch.last) = (record.seq, record.seq);
            count(&mut counts, &record, Some(&line));
            if is_wanted(&record, wanted) {
                match days.has_room(day_of(record.time)) {
                    true => batch.records.add(&shared_record(&record, text, &kind_of(&record, &line))),
                    false => batch.skipped += 1,
                }
            }
        }
        batch.ledger = self.hours.gains(counts);
        Ok(batch)
    }
}

fn is_wanted(record: &Record<'_>, wanted: ShippedRecords) -> bool {
    match wanted {
        ShippedRecords::All => true,
        ShippedRecords::NoHits => record.answer != Some(Answer::Hit),
        ShippedRecords::Writes => !matches!(record.kind, Some(Kind::Request | Kind::Refusals)),
        ShippedRecords::None => false,
    }
}

/// The kind's word; a newer makegate may have written another than are known here.
fn kind_of(record: &Record<'_>, line: &[u8]) -> String {
    #[derive(Deserialize)]
    struct OwnKind {
        kind: String,
    }
    match record.kind {
        Some(kind) => kind.as_str().to_owned(),
        None => serde_json::from_slice(line).map_or_else(|_| String::new(), |OwnKind { kind }| kind),
    }
}

fn shared_record<'r>(record: &'r Record<'r>, line: &'r str, kind: &'r str) -> SharedRecord<'r> {
    SharedRecord {
        seq: record.seq,
        time: record.time,
        kind,
        caller: record.caller.as_deref(),
        organization: record.organization,
        operation: record.operation.as_deref(),
        status: record.status,
        answer: record.answer.map(Answer::as_str),
        request: record.request.as_ref().map(crate::ids::RequestId::as_str),
        line,
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    const DAYS: RecordDays = RecordDays { known: std::collections::BTreeSet::new(), span: (0, i64::MAX) };

    fn line(seq: u64, event: &str) -> String {
        format!("{{\"seq\":{seq},\"time\":\"2026-07-01T12:00:00Z\",\"kind\":\"event\",\"event\":\"{event}\"}}\n")
    }

    fn write(dir: &Path, first: u64, lines: &[String]) -> DurablePosition {
        let text = lines.concat();
        fs::write(segment::path(dir, first), &text).unwrap();
        DurablePosition { segment: first, length: text.len() as u64, ..DurablePosition::default() }
    }

    fn read(reader: &mut UnshippedReader, dir: &Path, end: DurablePosition) -> (u64, u64) {
        let batch = reader.read(dir, end, ShippedRecords::All, ("m-0", &DAYS)).unwrap();
        (batch.records.count(), batch.last)
    }

    #[test]
    fn reading_ends_where_the_log_is_durable_and_leaves_void_records_out() {
        let dir = tempfile::tempdir().unwrap();
        let first: Vec<String> = (1..=5).map(|seq| line(seq, "first")).collect();
        let three = write(dir.path(), 1, &first[..3]);
        write(dir.path(), 1, &first);
        let mut reader = UnshippedReader::after(dir.path(), 0).unwrap();
        assert_eq!(read(&mut reader, dir.path(), three), (3, 3));
        assert_eq!(read(&mut reader, dir.path(), three), (0, 3), "4 and 5 are not durable");
        // They were written again, in a new segment, because the disk failed.
        let end = write(dir.path(), 4, &[line(4, "again"), "damaged\n".to_owned(), line(6, "again")]);
        let batch = reader.read(dir.path(), end, ShippedRecords::All, ("m-0", &DAYS)).unwrap();
        assert_eq!((batch.records.count(), batch.last), (2, 6));
        let mut anew = UnshippedReader::after(dir.path(), 2).unwrap();
        assert_eq!(read(&mut anew, dir.path(), end), (3, 6), "3, and 4 and 6 of the new segment");
        assert_eq!(read(&mut UnshippedReader::after(dir.path(), 6).unwrap(), dir.path(), end), (0, 6));
        fs::remove_file(segment::path(dir.path(), 1)).unwrap();
        assert_eq!(
            read(&mut UnshippedReader::after(dir.path(), 1).unwrap(), dir.path(), end),
            (2, 6),
            "the rest is deleted"
        );
    }

    #[test]
    fn batches_are_bounded_and_days_without_room_are_counted() {
        let dir = tempfile::tempdir().unwrap();
        let lines: Vec<String> = (1..=BATCH_RECORDS + 10).map(|seq| line(seq, "many")).collect();
        let end = write(dir.path(), 1, &lines);
        let mut reader = UnshippedReader::after(dir.path(), 0).unwrap();
        assert_eq!(read(&mut reader, dir.path(), end), (BATCH_RECORDS, BATCH_RECORDS));
        let none = RecordDays { span: (1, 0), ..DAYS };
        let batch = reader.read(dir.path(), end, ShippedRecords::All, ("m-0", &none)).unwrap();
        assert_eq!((batch.records.count(), batch.skipped, batch.last), (0, 10, BATCH_RECORDS + 10));
    }

    #[test]
    fn a_kind_of_another_version_is_shipped_as_it_is() {
        let text = r#"{"seq":7,"time":"2026-07-01T12:00:00Z","kind":"dream"}"#;
        let record = Record::parse(text.as_bytes()).unwrap();
        assert_eq!(kind_of(&record, text.as_bytes()), "dream");
        assert!(is_wanted(&record, ShippedRecords::Writes), "what nobody knows here may be important");
    }
}

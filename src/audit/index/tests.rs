//! The index, built step by step.

use std::fs;
use std::path::Path;

use jiff::Timestamp;
use tempfile::TempDir;

use super::*;
use crate::audit::record::{CountedRefusals, Kind};
use crate::audit::segment::SegmentOpening;
use crate::audit::segment::tree::{Tree, leaf};
use crate::audit::tests::{open, record, settings};
use crate::clock::Clock;
use crate::config;

/// Makes a segment of these records, the first of which is its opening, and indexes it completely.
fn index_segment(index: &mut IndexWriter, dir: &Path, first: u64, records: u64) {
    let mut tree = Tree::default();
    (1..first).for_each(|seq| tree.push(leaf(&seq.to_be_bytes())));
    let time = "2026-07-01T12:00:00Z".parse().unwrap();
    let opening =
        SegmentOpening { tree, open: Default::default(), time, kept: Default::default(), fingerprint_key: None };
    let mut text = String::from_utf8(opening.render()).unwrap() + "\n";
    for seq in first + 1..first + records {
        text += &format!("{{\"seq\":{seq},\"time\":\"{time:.6}\",\"kind\":\"request\"}}\n");
    }
    fs::write(segment::path(dir, first), &text).unwrap();
    assert!(!index.catch_up((first, text.len() as u64), now(index)).unwrap(), "everything is read");
    index.end_block();
    index.store(now(index)).unwrap();
}

fn now(index: &IndexWriter) -> Instant {
    index.stored
}

/// The segments that have blocks.
fn indexed(index: &IndexWriter) -> Vec<u64> {
    let mut blocks = index.connection.prepare("SELECT DISTINCT segment FROM blocks ORDER BY segment").unwrap();
    let segments = blocks.query_map((), |row| row.get::<_, i64>(0)).unwrap();
    segments.map(|segment| segment.unwrap().cast_unsigned()).collect()
}

#[test]
fn a_segment_that_was_deleted_while_it_was_the_newest_indexed_one_is_forgotten_later() {
    let dir = TempDir::new().unwrap();
    let mut index = IndexWriter::open(dir.path(), Clock::system().now()).unwrap();
    index_segment(&mut index, dir.path(), 1, 3);
    index_segment(&mut index, dir.path(), 4, 3);
    fs::remove_file(segment::path(dir.path(), 4)).unwrap();
    // The third segment already exists, as it does when retention deletes the second, but the index lags.
    fs::write(segment::path(dir.path(), 7), "").unwrap();
    index.forget_deleted(dir.path()).unwrap();
    assert_eq!(indexed(&index), [1, 4], "nothing shows yet where the second one ends");
    index_segment(&mut index, dir.path(), 7, 3);
    index.forget_deleted(dir.path()).unwrap();
    assert_eq!(indexed(&index), [1, 7]);
}

#[test]
fn a_record_that_was_read_already_is_not_indexed_again_when_it_is_handed_over() {
    let dir = TempDir::new().unwrap();
    let mut index = IndexWriter::open(dir.path(), Clock::system().now()).unwrap();
    index_segment(&mut index, dir.path(), 1, 3);
    let handed_over = |place| VecDeque::from([(place, Box::new(record(Kind::Request, "r")))]);
    let (segment, offset) = index.tail.position();
    let next = LinePosition { segment, offset, length: 9 };
    let now = now(&index);
    index.add_handed_over(handed_over(LinePosition { offset: offset - 10, ..next }), now).unwrap();
    assert!(index.growing.is_none());
    index.add_handed_over(handed_over(next), now).unwrap();
    assert_eq!(index.growing.as_ref().map(|block| block.records), Some(1));
    assert_eq!(index.tail.position(), (segment, offset + 10));
}

const LEDGER: &str = "ledger ORDER BY hour, caller, operation, organization";

/// Everything that queries read.
fn contents(dir: &Path) -> Vec<String> {
    let connection = Connection::open(path(dir)).unwrap();
    let rows = |sql: &str| -> Vec<String> {
        let mut rows = connection.prepare(sql).unwrap();
        let columns = rows.column_count();
        let row = |row: &rusqlite::Row<'_>| {
            (0..columns).map(|at| row.get::<_, rusqlite::types::Value>(at).map(|value| format!("{value:?} "))).collect()
        };
        rows.query_map((), row).unwrap().collect::<Result<_, _>>().unwrap()
    };
    ["blocks ORDER BY first", "has ORDER BY part, term, block", "segments ORDER BY segment", "position", LEDGER]
        .iter()
        .flat_map(|table| rows(&format!("SELECT * FROM {table}")))
        .collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn records_that_the_writer_hands_over_are_indexed_as_if_they_were_read() {
    let dir = TempDir::new().unwrap();
    let settings = config::AuditConfig {
        segment_bytes: 200_000,
        buffer_records: 40_000,
        buffer_bytes: 64 << 20,
        ..settings(&dir)
    };
    let (log, _) = open(&settings, &Clock::system()).await;
    let wall = Clock::system().wall();
    let counted = |count| {
        let codes = vec![("MG131".into(), count / 2), ("MG171".into(), count - count / 2)];
        Box::new(CountedRefusals { count, codes, first: wall, last: wall })
    };
    for n in 0..30_000_u64 {
        // The path makes some lines long, and one of the bursts exceeds what waits for the index.
        let path = format!("/{}", "long/".repeat(usize::try_from(n % 100).unwrap()));
        let record = Record {
            time: wall - Duration::from_secs(n),
            organization: Some(n % 700),
            path: Some(path.into()),
            attempts: Some(u32::try_from(n % 3).unwrap()),
            counted: (n % 500 == 0).then(|| counted(n)),
            ..record(if n % 500 == 0 { Kind::Refusals } else { Kind::Request }, "r")
        };
        log.reserve().unwrap().fill(record);
        if n % 1000 == 0 && n > 15_000 {
            log.flush().await;
        }
    }
    log.close().await;
    drop(log);
    let handed_over = contents(&settings.dir);
    remove(&settings.dir);
    let mut index = IndexWriter::open(&settings.dir, Clock::system().now()).unwrap();
    let now = now(&index);
    while index.catch_up((u64::MAX, 0), now).unwrap() {}
    index.end_block();
    index.store(now).unwrap();
    let read = contents(&settings.dir);
    assert!(segment::list(&settings.dir).unwrap().len() > 10 && read.len() > 1000, "{}", read.len());
    assert_eq!(handed_over, read);
    // 29_999 seconds are 8 to 10 hours.
    let ledger = Connection::open(path(&settings.dir)).unwrap();
    let sums = "SELECT count(DISTINCT hour), sum(spent), sum(refused), sum(out_of_quota) FROM ledger";
    let sums: (i64, i64, i64, i64) =
        ledger.query_row(sums, (), |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?, row.get(3)?))).unwrap();
    let all = || 0..30_000_i64;
    let refused = all().filter(|n| n % 500 == 0);
    assert!((9..=10).contains(&sums.0), "{sums:?}");
    assert_eq!(sums.1, all().filter(|n| n % 500 > 0).map(|n| n % 3).sum::<i64>());
    assert_eq!((sums.2, sums.3), (refused.clone().sum(), refused.map(|n| n - n / 2).sum()));
}

/// Ten thousand organizations in one hour: the sums stay exact, the rows are bounded, and what is too old is forgotten.
#[test]
fn the_ledger_is_bounded_and_loses_no_sum() {
    let dir = TempDir::new().unwrap();
    let mut index = IndexWriter::open(dir.path(), Clock::system().now()).unwrap();
    let wall: Timestamp = "2026-07-01T12:30:00Z".parse().unwrap();
    let mut counts = LedgerCounts::default();
    let mut add = |hours: i64, caller: String, organization| {
        let time = wall - jiff::SignedDuration::from_hours(hours);
        let caller = Some(caller.into());
        let record = Record { time, caller, organization, attempts: Some(1), ..record(Kind::Request, "r") };
        ledger::count(&mut counts, &record, None);
    };
    (0..10_000).for_each(|n| add(0, "flood".to_owned(), Some(n)));
    (0..10_000).for_each(|n| add(1, format!("caller-{n}"), Some(u64::MAX)));
    let transaction = index.connection.transaction().unwrap();
    ledger::store(&transaction, &counts, 20_000).unwrap();
    ledger::store(&transaction, &counts, 40_000).unwrap();
    let row = |sql: &str| {
        transaction
            .query_row(sql, (), |row| Ok((row.get::<_, i64>(0).unwrap(), row.get::<_, i64>(1).unwrap())))
            .unwrap()
    };
    let of = |caller: &str| {
        row(&format!("SELECT count(*), coalesce(sum(spent), 0) FROM ledger WHERE caller GLOB '{caller}'"))
    };
    assert_eq!(of("flood"), (1001, 20_000), "a row for each of 1,000 organizations, and one for all others");
    assert_eq!(of("caller-*").0, 2000);
    assert_eq!(row("SELECT count(*), coalesce(sum(spent), 0) FROM ledger"), (3002, 40_000));
}

/// Two thousand hours, of which one comes again at the end: those that were added to last stay, whatever their time is.
#[test]
fn the_ledger_forgets_the_hours_that_nothing_was_added_to_for_longest() {
    let dir = TempDir::new().unwrap();
    let mut index = IndexWriter::open(dir.path(), Clock::system().now()).unwrap();
    let transaction = index.connection.transaction().unwrap();
    let hours = (0..2_000).chain([7_777_777, -5]).chain([100]);
    for (seq, hour) in (1..).zip(hours) {
        let time = ledger::begin_of(hour);
        let record = Record { time, attempts: Some(1), ..record(Kind::Request, "r") };
        let mut counts = LedgerCounts::default();
        ledger::count(&mut counts, &record, None);
        ledger::store(&transaction, &counts, seq).unwrap();
    }
    for table in ["ledger", "ledger_hours"] {
        let sql = format!("SELECT hour FROM {table} ORDER BY hour");
        let mut hours = transaction.prepare(&sql).unwrap();
        let hours: Vec<i64> = hours.query_map((), |row| row.get(0)).unwrap().map(Result::unwrap).collect();
        let last = 2_000;
        assert_eq!(hours, [-5, 100].into_iter().chain(last - 741..last).chain([7_777_777]).collect::<Vec<_>>());
    }
}

/// A segment whose first number is below the newest one makes records void. They are in no query, nor in the ledger.
#[test]
fn what_void_records_added_is_taken_back() {
    let dir = TempDir::new().unwrap();
    let mut index = IndexWriter::open(dir.path(), Clock::system().now()).unwrap();
    let spent = |index: &IndexWriter| -> i64 {
        index.connection.query_row("SELECT coalesce(sum(spent), 0) FROM ledger", (), |row| row.get(0)).unwrap()
    };
    let segment = |index: &mut IndexWriter, first: u64, numbers: std::ops::RangeInclusive<u64>| {
        let time = Clock::system().wall();
        let line = |seq| {
            format!("{{\"seq\":{seq},\"time\":\"{time:.6}\",\"kind\":\"request\",\"caller\":\"a\",\"attempts\":1}}\n")
        };
        let text: String = numbers.map(line).collect();
        fs::write(segment::path(dir.path(), first), &text).unwrap();
        let now = now(index);
        while index.catch_up((first, text.len() as u64), now).unwrap() {}
        index.end_block();
        index.store(now).unwrap();
    };
    segment(&mut index, 1, 1..=600);
    assert_eq!(spent(&index), 600);
    segment(&mut index, 301, 301..=310);
    assert_eq!(spent(&index), 310);
}

//! The index, built step by step.

use std::fs;
use std::path::Path;

use tempfile::TempDir;

use super::*;
use crate::audit::record::Kind;
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
    assert!(!index.catch_up((first, text.len() as u64), index.stored).unwrap(), "everything is read");
    index.end_block();
    index.store(index.stored).unwrap();
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
    index.add_handed_over(handed_over(LinePosition { offset: offset - 10, ..next }), index.stored).unwrap();
    assert!(index.growing.is_none());
    index.add_handed_over(handed_over(next), index.stored).unwrap();
    assert_eq!(index.growing.as_ref().map(|block| block.records), Some(1));
    assert_eq!(index.tail.position(), (segment, offset + 10));
}

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
    ["blocks ORDER BY first", "has ORDER BY part, term, block", "segments ORDER BY segment", "position"]
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
    for n in 0..30_000_u64 {
        // The path makes some lines long, and one of the bursts exceeds what waits for the index.
        let path = format!("/{}", "long/".repeat(usize::try_from(n % 100).unwrap()));
        let record = Record { organization: Some(n % 700), path: Some(path.into()), ..record(Kind::Request, "r") };
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
    while index.catch_up((u64::MAX, 0), index.stored).unwrap() {}
    index.end_block();
    index.store(index.stored).unwrap();
    let read = contents(&settings.dir);
    assert!(segment::list(&settings.dir).unwrap().len() > 10 && read.len() > 1000, "{}", read.len());
    assert_eq!(handed_over, read);
}

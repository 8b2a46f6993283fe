//! The index, built step by step.

use std::fs;
use std::path::Path;

use tempfile::TempDir;

use super::*;
use crate::audit::segment::SegmentOpening;
use crate::audit::segment::tree::{Tree, leaf};

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
    let synced = DurablePosition { segment: first, length: text.len() as u64, ..DurablePosition::default() };
    assert!(!index.catch_up(synced, index.stored).unwrap(), "everything is read");
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
    let mut index = IndexWriter::open(dir.path(), crate::clock::Clock::system().now()).unwrap();
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

//! Damaged files, and what startup does with them.

use std::fs;
use std::path::PathBuf;

use tempfile::TempDir;

use super::*;
use crate::audit::recover::{read_opening, recover};
use crate::clock::Clock;
use crate::config;
use crate::vocabulary::Outcome;

/// A log with one segment and an open write, ended uncleanly; the last record is an intent.
async fn some_log(dir: &TempDir) -> (config::AuditConfig, PathBuf) {
    let settings = settings(dir);
    let (log, _) = open(&settings, &Clock::system()).await;
    for request in ["w1", "w2", "w3"] {
        let intent = log.commit(record(Kind::Intent, request)).await.unwrap();
        log.commit(outcome(request, intent, Outcome::Done)).await.unwrap();
    }
    log.commit(record(Kind::Intent, "last")).await.unwrap();
    drop(log);
    let path = segment::path(&settings.dir, 1);
    // The writer has ended once the folder can be locked.
    while segment::disk::lock_folder(&settings.dir).is_err() {
        tokio::time::sleep(std::time::Duration::from_millis(5)).await;
    }
    (settings, path)
}

/// Copies the files to another folder.
fn copy(settings: &config::AuditConfig, bytes: &[u8]) -> (TempDir, PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    let path = segment::path(dir.path(), 1);
    fs::write(&path, bytes).unwrap();
    assert!(settings.dir.exists());
    (dir, path)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tail_torn_at_any_byte_is_cut_and_the_rest_kept() {
    let dir = tempfile::tempdir().unwrap();
    let (settings, path) = some_log(&dir).await;
    let whole = fs::read(&path).unwrap();
    let last = whole[..whole.len() - 1].iter().rposition(|b| *b == b'\n').unwrap() + 1;
    let records = whole.iter().filter(|b| **b == b'\n').count() as u64;
    for torn in last + 1..whole.len() {
        let (dir, path) = copy(&settings, &whole[..torn]);
        let (start, recovered) = recover(dir.path()).unwrap();
        assert_eq!((start.tree.size(), recovered.cut_bytes), (records - 1, (torn - last) as u64), "torn at {torn}");
        assert_eq!((recovered.doubts.len(), recovered.clean), (0, false));
        assert_eq!(fs::read(path).unwrap(), &whole[..last]);
    }
    let (dir, _) = copy(&settings, &whole);
    let (start, recovered) = recover(dir.path()).unwrap();
    assert_eq!((start.tree.size(), recovered.cut_bytes), (records, 0));
    assert_eq!(recovered.doubts.iter().map(|doubt| doubt.request).collect::<Vec<_>>(), [id("last")]);
}

#[tokio::test(flavor = "multi_thread")]
async fn zeros_and_garbage_at_the_end_are_cut() {
    let dir = tempfile::tempdir().unwrap();
    let (settings, path) = some_log(&dir).await;
    let whole = fs::read(&path).unwrap();
    for garbage in [&[0_u8; 5000][..], b"{\"seq\":1}\n", b"\n\n\n", b"garbage\nmore garbage\n", b"\xff\xfe"] {
        let (dir, path) = copy(&settings, &[&whole, garbage].concat());
        let (_, recovered) = recover(dir.path()).unwrap();
        assert_eq!(recovered.cut_bytes, garbage.len() as u64);
        assert_eq!((recovered.doubts.len(), fs::read(path).unwrap() == whole), (1, true));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn damage_in_the_middle_is_kept_and_the_log_continues_after_the_last_record() {
    let dir = tempfile::tempdir().unwrap();
    let (settings, path) = some_log(&dir).await;
    let whole = fs::read(&path).unwrap();
    let records = whole.iter().filter(|b| **b == b'\n').count() as u64;
    // The fifth record is the outcome of w1, so without it the outcome is unknown.
    let mut damaged = whole.clone();
    let fourth = whole.iter().enumerate().filter(|(_, b)| **b == b'\n').nth(3).unwrap().0;
    damaged[fourth + 1..fourth + 20].fill(b'X');
    fs::write(&path, &damaged).unwrap();

    let (log, recovered) = open(&settings, &Clock::system()).await;
    assert_eq!((recovered.quarantined.as_slice(), recovered.missing), ([path.clone()].as_slice(), 1));
    assert_eq!(recovered.doubts.iter().map(|doubt| doubt.request).collect::<Vec<_>>(), [id("w1"), id("last")]);
    log.close().await;
    assert_eq!(fs::read(&path).unwrap(), damaged);
    assert_eq!(segment::list(&settings.dir).unwrap(), [1, records + 1]);
    let opening = read_opening(&settings.dir, records + 1).unwrap().unwrap();
    assert_eq!(opening.tree.size(), records);
    let text = fs::read_to_string(segment::path(&settings.dir, records + 1)).unwrap();
    assert!(text.contains("\"event\":\"quarantined\""), "{text}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_missing_record_in_the_middle_is_noticed() {
    let dir = tempfile::tempdir().unwrap();
    let (settings, path) = some_log(&dir).await;
    let text = fs::read_to_string(&path).unwrap();
    let without: String =
        text.split_inclusive('\n').enumerate().filter(|(at, _)| *at != 3).map(|(_, line)| line).collect();
    let (dir, _) = copy(&settings, without.as_bytes());
    let (_, recovered) = recover(dir.path()).unwrap();
    assert_eq!((recovered.quarantined.len(), recovered.missing, recovered.cut_bytes), (1, 1, 0));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_damaged_first_record_leaves_the_rest_readable() {
    let dir = tempfile::tempdir().unwrap();
    let (settings, path) = some_log(&dir).await;
    let mut damaged = fs::read(&path).unwrap();
    damaged[3] = b'!';
    fs::write(&path, &damaged).unwrap();
    let (log, recovered) = open(&settings, &Clock::system()).await;
    assert_eq!((recovered.missing, recovered.quarantined.len(), recovered.doubts.len()), (1, 1, 1));
    log.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_segment_that_never_got_a_record_is_put_aside() {
    let dir = tempfile::tempdir().unwrap();
    let (settings, path) = some_log(&dir).await;
    let next = fs::read(&path).unwrap().iter().filter(|b| **b == b'\n').count() as u64 + 1;
    fs::write(segment::path(&settings.dir, next), "{\"seq\":9,\"ti").unwrap();
    let (log, recovered) = open(&settings, &Clock::system()).await;
    assert_eq!((recovered.cut_bytes, recovered.doubts.len(), recovered.quarantined.len()), (12, 1, 0));
    log.close().await;
    assert_gapless(&lines(&settings));
    assert!(segment::path(&settings.dir, next).with_extension("jsonl.torn").exists());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_later_segment_voids_the_tail_before_it() {
    let dir = tempfile::tempdir().unwrap();
    let (settings, path) = some_log(&dir).await;
    let whole = fs::read(&path).unwrap();
    let (start, _) = recover(&settings.dir).unwrap();
    let (void, next) = (record(Kind::Intent, "void"), start.tree.size() + 1);
    let mut tail = Vec::new();
    record::line::render(&Record { seq: next, ..void }, 8192, &mut tail);
    tail.push(b'\n');
    let opening = segment::SegmentOpening {
        tree: start.tree,
        open: start.open,
        time: void.time,
        kept: start.kept,
        fingerprint_key: start.fingerprint_key,
    };
    fs::write(&path, [whole, tail].concat()).unwrap();
    fs::write(segment::path(&settings.dir, next), [opening.render().as_slice(), b"\n"].concat()).unwrap();
    let (log, recovered) = open(&settings, &Clock::system()).await;
    assert_eq!(recovered.doubts.iter().map(|doubt| doubt.request).collect::<Vec<_>>(), [id("last")]);
    assert_eq!((recovered.quarantined.len(), recovered.records), (0, next));
    log.close().await;
    let mut exported = Vec::new();
    let all = Filter { limit: LIMIT_MAX, ..Filter::default() };
    let by_index = query_files(&settings.dir, &all).unwrap().records.len();
    export(&settings.dir, &all, &mut |line| {
        exported.push(serde_json::from_str(line).unwrap());
        Ok(())
    })
    .unwrap();
    assert_gapless(&exported);
    assert_eq!(by_index, exported.len());
    // It stays void, whatever becomes of the record that took its number.
    let path = segment::path(&settings.dir, next);
    fs::write(&path, fs::read_to_string(&path).unwrap().replacen('{', "!", 1)).unwrap();
    fs::remove_file(index::path(&settings.dir)).unwrap();
    assert_eq!(query_files(&settings.dir, &all).unwrap().records.len(), by_index - 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_void_intent_is_not_in_doubt_even_if_the_later_segment_begins_damaged() {
    let dir = tempfile::tempdir().unwrap();
    let (settings, path) = some_log(&dir).await;
    let next = recover(&settings.dir).unwrap().0.tree.size() + 1;
    let line = |kind, request, seq| {
        let mut line = Vec::new();
        record::line::render(&Record { seq, ..record(kind, request) }, 8192, &mut line);
        [line.as_slice(), b"\n"].concat()
    };
    let whole = fs::read(&path).unwrap();
    fs::write(&path, [whole, line(Kind::Intent, "void", next)].concat()).unwrap();
    let later = [b"damaged\n".to_vec(), line(Kind::Request, "r1", next + 1)].concat();
    fs::write(segment::path(&settings.dir, next), later).unwrap();
    let (start, recovered) = recover(&settings.dir).unwrap();
    assert_eq!(recovered.doubts.iter().map(|doubt| doubt.request).collect::<Vec<_>>(), [id("last")]);
    assert_eq!((recovered.missing, start.tree.size()), (1, next + 1));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_newer_log_is_refused_with_an_explanation() {
    let dir = tempfile::tempdir().unwrap();
    let (settings, path) = some_log(&dir).await;
    let text = fs::read_to_string(&path).unwrap().replacen("\"format\":1", "\"format\":2", 1);
    fs::write(&path, text).unwrap();
    let words = AuditLog::open(&settings, Clock::system()).unwrap_err().to_string();
    assert!(words.contains("written by a newer makegate (log format 2; this version reads up to 1)"), "{words}");
}

/// The event stands for the intent: a restart finds the doubt with everything, and so does a segment's opening.
#[tokio::test(flavor = "multi_thread")]
async fn an_adopted_write_is_in_doubt_until_it_is_settled_also_after_restarts() {
    let dir = tempfile::tempdir().unwrap();
    let settings = settings(&dir);
    let clock = Clock::system();
    let (log, _) = open(&settings, &clock).await;
    let [id_of_all, equal, key] = [&b"id"[..], b"pay", b"key"].map(|part| log.fingerprint(&[part]));
    let time: Timestamp = "2026-06-30T12:00:00.5Z".parse().unwrap();
    let marks = FieldHashes::new([("name".into(), equal)]);
    let adopted = AdoptedWrite { id: id_of_all, replica: "makegate-1".into(), time };
    let event = Record {
        event: Some(ADOPTED.into()),
        fingerprint: Some(equal),
        idempotency: Some(key),
        marks: marks.clone(),
        adopted: Some(Box::new(adopted.clone())),
        ..record(Kind::Event, "theirs")
    };
    let intent = log.commit(event).await.unwrap();
    let check = |log: &AuditLog| {
        let doubts = log.doubts();
        assert_eq!(doubts.find_equal("billing", equal), Some(id("theirs")));
        assert_eq!(
            (doubts.find_by_key(key), doubts.find_by_request(&id("theirs"))),
            (Some(id("theirs")), Some(intent))
        );
        assert!(log.request_ids().take(id("theirs")).is_none(), "its request id is taken");
        let [doubt] = &doubts.list()[..] else { panic!("{:?}", doubts.list()) };
        assert_eq!((doubt.time, &doubt.marks, doubt.adopted.as_deref()), (time, &marks, Some(&adopted)));
        assert_eq!(log.doubt_id(doubt), id_of_all);
    };
    check(&log);
    log.close().await;
    let (log, recovered) = open(&settings, &clock).await;
    assert_eq!((recovered.doubts.len(), recovered.new_doubts.len()), (1, 0), "it was in doubt before the stop");
    check(&log);
    log.close().await;
    // From a segment that begins with it.
    let (start, _) = recover(&settings.dir).unwrap();
    let opening = segment::SegmentOpening {
        tree: start.tree.clone(),
        open: start.open.clone(),
        time,
        kept: start.kept,
        fingerprint_key: start.fingerprint_key.clone(),
    };
    let read = segment::SegmentOpening::parse(&opening.render(), start.tree.size() + 1).unwrap();
    assert_eq!(read.open, start.open);
    let (log, _) = open(&settings, &clock).await;
    let settlement =
        Record { intent: Some(intent), outcome: Some(Outcome::Done), ..record(Kind::Settlement, "theirs") };
    log.commit(settlement).await.unwrap();
    assert_eq!((log.doubts().count(), log.doubts().find_by_key(key)), (0, None));
    assert!(log.request_ids().take(id("theirs")).is_some());
    log.close().await;
    let lines = lines(&settings);
    assert_eq!(count(&lines, "event", "adopted"), 1);
    let mut ends = Vec::new();
    let (log, _) = open(&settings, &clock).await;
    log.key_ends(None, Timestamp::UNIX_EPOCH, &mut |end| ends.push((end.key, end.done))).unwrap();
    assert_eq!(ends, [(key, true)], "its key is used up here as well");
    log.close().await;
}

//! Writing the log, and reading it back.

use super::*;

#[tokio::test(flavor = "multi_thread")]
async fn many_writers_get_numbers_without_gaps_and_in_the_files_order() {
    let dir = tempfile::tempdir().unwrap();
    let settings = settings(&dir);
    let (log, recovered) = open(&settings, &Clock::system()).await;
    assert_eq!(recovered, Recovered { clean: true, ..Recovered::default() });
    let writers = (0..16).map(|writer| {
        let log = log.clone();
        async move {
            for n in 0..50 {
                let request = format!("w{writer}-{n}");
                let intent = log.commit(record(Kind::Intent, &request)).await.unwrap();
                log.reserve().unwrap().fill(record(Kind::Request, &format!("r{writer}-{n}")));
                assert!(log.commit(outcome(&request, intent, Outcome::Done)).await.unwrap() > intent);
            }
        }
    });
    futures_util::future::join_all(writers).await;
    log.close().await;
    assert_eq!(log.backlog(), 0);
    let lines = lines(&settings);
    assert_gapless(&lines);
    let kinds = ["intent", "outcome", "request"].map(|kind| count(&lines, "kind", kind));
    assert_eq!(kinds, [800, 800, 800]);
    assert_eq!(lines.last().unwrap()["event"], "stop");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_buffer_turns_requests_away_and_room_comes_back() {
    let dir = tempfile::tempdir().unwrap();
    let settings = config::AuditConfig { buffer_records: 4, ..settings(&dir) };
    let (log, _) = open(&settings, &Clock::system()).await;
    let rooms: Vec<_> = (0..4).map(|_| log.reserve().unwrap()).collect();
    assert!(log.reserve().is_none());
    assert_eq!(log.commit(record(Kind::Intent, "w1")).await, Err(CannotRecord::Full));
    assert_eq!(log.counts().refused, 2);
    drop(rooms);
    let intent = log.commit(record(Kind::Intent, "w2")).await.unwrap();
    assert_eq!(log.backlog(), 1, "room is reserved for the outcome");
    let rooms: Vec<_> = (0..3).map(|_| log.reserve().unwrap()).collect();
    assert!(log.reserve().is_none());
    log.commit(outcome("w2", intent, Outcome::Done)).await.unwrap();
    assert_eq!(log.backlog(), rooms.len());
}

#[tokio::test(flavor = "multi_thread")]
async fn lazy_records_reach_the_disk_without_anybody_waiting() {
    let dir = tempfile::tempdir().unwrap();
    let settings = settings(&dir);
    let (log, _) = open(&settings, &Clock::system()).await;
    log.reserve().unwrap().fill(record(Kind::Request, "r1"));
    let mut synced = log.shared.synced.subscribe();
    synced.wait_for(|synced| synced.seq >= 4).await.unwrap();
    assert_eq!(count(&lines(&settings), "request", "r1"), 1);
    log.reserve().unwrap().fill(record(Kind::Request, "r2"));
    log.flush().await;
    assert_eq!(count(&lines(&settings), "request", "r2"), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_intent_whose_caller_gave_up_is_recorded_as_not_sent() {
    let dir = tempfile::tempdir().unwrap();
    let settings = settings(&dir);
    let (log, _) = open(&settings, &Clock::system()).await;
    drop(log.commit(record(Kind::Intent, "w1")));
    log.flush().await;
    log.close().await;
    let lines = lines(&settings);
    assert_eq!(count(&lines, "kind", "intent"), 1);
    assert_eq!(count(&lines, "outcome", "not-sent"), 1);
    assert_eq!(log.backlog(), 0);
    assert_eq!(log.request_ids().count(), 0, "its id is free again");
}

#[tokio::test(flavor = "multi_thread")]
async fn open_writes_of_an_earlier_run_are_in_doubt_until_they_are_settled() {
    let dir = tempfile::tempdir().unwrap();
    let settings = settings(&dir);
    let clock = Clock::system();
    let (log, _) = open(&settings, &clock).await;
    let fingerprint = log.fingerprint(&[b"billing", b"pay"]);
    let mut intents = Vec::new();
    for request in ["done", "doubt", "under-way"] {
        let intent = Record { fingerprint: Some(fingerprint), ..record(Kind::Intent, request) };
        intents.push(log.commit(intent).await.unwrap());
    }
    log.commit(outcome("done", intents[0], Outcome::Done)).await.unwrap();
    log.commit(outcome("doubt", intents[1], Outcome::InDoubt)).await.unwrap();
    assert_eq!(log.doubts().find_equal("billing", fingerprint), Some(id("doubt")));
    drop(log);

    let (log, recovered) = open(&settings, &clock).await;
    assert!(!recovered.clean);
    assert_eq!(recovered.doubts.len(), 2);
    assert_eq!(recovered.new_doubts.iter().map(|doubt| doubt.request).collect::<Vec<_>>(), [id("under-way")]);
    assert_eq!(log.fingerprint(&[b"billing", b"pay"]), fingerprint, "the key survives a restart");
    assert!(log.doubts().find_equal("billing", fingerprint).is_some());
    for request in ["doubt", "under-way"] {
        assert!(log.request_ids().take(id(request)).is_none(), "a write in doubt keeps its id, even after a restart");
    }
    let settled =
        Record { intent: Some(intents[1]), outcome: Some(Outcome::Done), ..record(Kind::Settlement, "doubt") };
    log.commit(settled).await.unwrap();
    assert!(!log.doubts().contains(intents[1]) && log.request_ids().take(id("doubt")).is_some());
    log.close().await;
    drop(log);

    let (log, recovered) = open(&settings, &clock).await;
    assert!(recovered.clean);
    assert_eq!(recovered.new_doubts, [], "already known");
    let doubts: Vec<_> = log.doubts().list().into_iter().map(|doubt| (doubt.request, doubt.fingerprint)).collect();
    assert_eq!(doubts, [(id("under-way"), Some(fingerprint))]);
    let lines = lines(&settings);
    assert_gapless(&lines);
    assert_eq!(count(&lines, "event", "recovered"), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn segments_are_sealed_and_each_begins_with_the_tree_before_it() {
    let dir = tempfile::tempdir().unwrap();
    let settings = config::AuditConfig { segment_bytes: 2000, ..settings(&dir) };
    let (log, _) = open(&settings, &Clock::system()).await;
    log.commit(record(Kind::Intent, "open")).await.unwrap();
    for n in 0..40 {
        log.commit(record(Kind::Event, &format!("e{n}"))).await.unwrap();
    }
    log.close().await;
    let segments = segment::list(&settings.dir).unwrap();
    assert!(segments.len() > 3, "{segments:?}");
    let mut tree = Tree::default();
    for first in segments {
        let text = std::fs::read_to_string(segment::path(&settings.dir, first)).unwrap();
        for (at, line) in text.lines().enumerate() {
            if at == 0 {
                let opening = segment::SegmentOpening::parse(line.as_bytes(), first).unwrap();
                assert_eq!(opening.tree, tree);
                assert_eq!(opening.open.list().count(), usize::from(first > 1), "the open write is listed");
            }
            tree.push(leaf(line.as_bytes()));
        }
    }
    assert_gapless(&lines(&settings));
}

#[tokio::test(flavor = "multi_thread")]
async fn retention_deletes_old_segments_but_none_with_an_open_write() {
    let dir = tempfile::tempdir().unwrap();
    let day = Duration::from_secs(24 * 3600);
    let settings = config::AuditConfig { segment_bytes: 1000, retention: 30 * day, ..settings(&dir) };
    let clock = Clock::movable();
    let (log, _) = open(&settings, &clock).await;
    let now = |kind, request: &str| Record { time: clock.wall(), ..record(kind, request) };
    for n in 0..10 {
        log.commit(now(Kind::Event, &format!("old{n}"))).await.unwrap();
    }
    log.commit(now(Kind::Intent, "open")).await.unwrap();
    clock.advance(31 * day);
    for n in 0..10 {
        log.commit(now(Kind::Event, &format!("new{n}"))).await.unwrap();
    }
    log.flush().await;
    // Expired segments stay for a while after being announced; then all of them are deleted.
    let is_done = || {
        let left = lines(&settings);
        let told = left.iter().find(|line| line["event"] == "retention").map(|line| line["fields"]["last"].as_u64());
        told.is_some_and(|last| last.map(|last| last + 1) == left[0]["seq"].as_u64())
    };
    tokio::time::timeout(Duration::from_secs(20), async {
        while !is_done() {
            clock.advance(Duration::from_secs(60));
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    })
    .await
    .unwrap();
    let left = lines(&settings);
    let told: Vec<_> = left.iter().filter(|line| line["event"] == "retention").map(|line| &line["fields"]).collect();
    let gone = left.first().unwrap()["seq"].as_u64().unwrap() - 1;
    assert_eq!((told[0]["first"].as_u64(), told[0]["last"].as_u64()), (Some(1), Some(gone)));
    let left = ["old0", "old3", "open", "new0"].map(|request| count(&left, "request", request));
    assert_eq!(left, [0, 0, 1, 1]);
    drop(log);
    let (_, recovered) = open(&settings, &clock).await;
    assert_eq!(recovered.doubts.len(), 1);
    assert_eq!(recovered.quarantined, Vec::<std::path::PathBuf>::new());
}

/// Retention by size, whatever the records' age. A write in doubt keeps its segment, and the log stays provable
/// throughout.
#[tokio::test(flavor = "multi_thread")]
async fn retention_deletes_the_oldest_segments_of_a_log_that_is_too_large() {
    let dir = tempfile::tempdir().unwrap();
    let settings = config::AuditConfig { segment_bytes: 2000, retention_bytes: 10_000, ..settings(&dir) };
    let (log, _) = open(&settings, &Clock::system()).await;
    let size = || {
        let segments = segment::list(&settings.dir).unwrap();
        segments.iter().map(|first| std::fs::metadata(segment::path(&settings.dir, *first)).unwrap().len()).sum::<u64>()
    };
    for n in 0..30 {
        log.commit(record(Kind::Event, &format!("old{n}"))).await.unwrap();
    }
    log.commit(record(Kind::Intent, "open")).await.unwrap();
    for n in 0..100 {
        log.commit(record(Kind::Event, &format!("new{n}"))).await.unwrap();
    }
    log.close().await;
    drop(log);
    let (log, _) = open(&settings, &Clock::system()).await;
    for n in 100..200 {
        log.commit(record(Kind::Event, &format!("new{n}"))).await.unwrap();
    }
    log.close().await;
    // The limit, plus a segment that the next sweep deletes, plus the one that the open write keeps.
    assert!((8000..10_000 + 3 * 2500).contains(&size()), "{} bytes", size());
    let left = lines(&settings);
    let counts = ["old0", "open", "new50", "new199"].map(|request| count(&left, "request", request));
    assert_eq!(counts, [0, 1, 0, 1]);
}

//! Proofs over many small segments, on real files.

use std::fs;
use std::sync::Arc;
use std::time::Duration;

use super::verify::{AuditorInput, verify};
use super::*;
use crate::audit::record::{Kind, Record};
use crate::audit::segment;
use crate::audit::tests::{open, record, settings};
use crate::clock::Clock;
use crate::config;
use crate::vocabulary::Outcome;

fn small(dir: &tempfile::TempDir) -> config::AuditConfig {
    config::AuditConfig { segment_bytes: 1000, ..settings(dir) }
}

async fn fill(log: &Arc<AuditLog>, clock: &Clock, records: usize) {
    for n in 0..records {
        let event = Record { time: clock.wall(), ..record(Kind::Event, &format!("e{n}")) };
        log.commit(event).await.unwrap();
    }
}

/// Returns the records that can be proven. A proof that does not lead to the signed root is an error, so having one
/// is enough.
async fn provable(log: &AuditLog) -> Vec<u64> {
    let mut proven = Vec::new();
    for seq in 1..=log.head().await.size {
        match log.prove(&"".into(), seq).await {
            Ok(_) => proven.push(seq),
            Err(ProofError::NoRecord { .. }) => {}
            Err(error) => panic!("{seq}: {error}"),
        }
    }
    proven
}

#[tokio::test(flavor = "multi_thread")]
async fn every_record_is_provable_with_and_without_stored_leaf_hashes() {
    let dir = tempfile::tempdir().unwrap();
    let settings = small(&dir);
    let (log, _) = open(&settings, &Clock::system()).await;
    fill(&log, &Clock::system(), 50).await;
    let size = log.head().await.size;
    assert_eq!(provable(&log).await, (1..=size).collect::<Vec<_>>());
    let segments = segment::list(&settings.dir).unwrap();
    assert!(segments.len() > 5, "{segments:?}");
    for first in segments {
        fs::remove_file(leaves::path(&settings.dir, first)).unwrap();
    }
    assert_eq!(provable(&log).await, (1..=size).collect::<Vec<_>>());
}

#[tokio::test(flavor = "multi_thread")]
async fn what_retention_keeps_stays_provable() {
    let dir = tempfile::tempdir().unwrap();
    let settings = config::AuditConfig { retention: Duration::from_secs(30 * 24 * 3600), ..small(&dir) };
    let clock = Clock::movable();
    let (log, _) = open(&settings, &clock).await;
    fill(&log, &clock, 23).await;
    let early = log.head().await;
    clock.advance(Duration::from_secs(31 * 24 * 3600));
    fill(&log, &clock, 30).await;
    tokio::time::timeout(Duration::from_secs(20), async {
        while segment::list(&settings.dir).unwrap().first() == Some(&1) {
            clock.advance(Duration::from_secs(60)); // expired segments stay for a while
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    })
    .await
    .unwrap();
    clock.advance(Duration::from_secs(601));
    let first = || segment::list(&settings.dir).unwrap()[0];
    let (mut seen, mut before) = (first(), 0);
    for _ in 0..60 {
        if seen > 10 && seen == before {
            break;
        }
        tokio::time::sleep(Duration::from_secs(1)).await;
        (seen, before) = (first(), seen);
    }
    let first = seen;
    assert!(first > 10, "{first}");
    log.flush().await;
    let size = log.head().await.size;
    assert_eq!(provable(&log).await, (first..=size).collect::<Vec<_>>());
    assert!(log.prove_consistency(&"".into(), early.size).await.is_ok() || early.size < first - 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_altered_record_has_no_proof() {
    let dir = tempfile::tempdir().unwrap();
    let settings = small(&dir);
    let (log, _) = open(&settings, &Clock::system()).await;
    fill(&log, &Clock::system(), 9).await;
    let path = segment::path(&settings.dir, 1);
    let altered = fs::read_to_string(&path).unwrap().replacen("\"e1\"", "\"e7\"", 1);
    // Replace the file at once: the index reads it too, and if it saw half of it, it would not know the record.
    fs::write(dir.path().join("altered"), altered).unwrap();
    fs::rename(dir.path().join("altered"), &path).unwrap();
    let seq = (1..9).find(|seq| fs::read_to_string(&path).unwrap().lines().nth(*seq).unwrap().contains("\"e7\""));
    assert!(matches!(log.prove(&"".into(), seq.unwrap() as u64 + 1).await, Err(ProofError::Altered)));
}

#[tokio::test(flavor = "multi_thread")]
async fn leaf_hashes_are_completed_after_a_crash() {
    let dir = tempfile::tempdir().unwrap();
    let settings = settings(&dir);
    let (log, _) = open(&settings, &Clock::system()).await;
    fill(&log, &Clock::system(), 9).await;
    drop(log);
    let path = leaves::path(&settings.dir, 1);
    // The folder can be locked once the writer has ended.
    while crate::audit::segment::disk::lock_folder(&settings.dir).is_err() {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let whole = fs::read(&path).unwrap();
    fs::write(&path, &whole[..100]).unwrap();
    let (log, _) = open(&settings, &Clock::system()).await;
    log.close().await;
    assert_eq!(fs::read(&path).unwrap(), whole);
}

/// Intents against outcomes: records that no gateway would write are reported.
#[tokio::test(flavor = "multi_thread")]
async fn a_write_whose_records_do_not_match_is_reported() {
    let dir = tempfile::tempdir().unwrap();
    let settings = settings(&dir);
    let (log, _) = open(&settings, &Clock::system()).await;
    let mut wrong = Vec::new();
    let [w1, again, w2] = [4, 5, 6];
    for (kind, request, intent, outcome, fits) in [
        (Kind::Intent, "w1", None, None, true),
        (Kind::Intent, "w1", None, None, true),
        (Kind::Intent, "w2", None, None, true),
        (Kind::Outcome, "ghost", None, Some(Outcome::Done), false),
        (Kind::Outcome, "ghost", Some(99), Some(Outcome::Done), false),
        (Kind::Outcome, "ghost", Some(w1), Some(Outcome::InDoubt), false),
        (Kind::Outcome, "w1", Some(w1), Some(Outcome::Done), false),
        (Kind::Settlement, "w1", Some(again), Some(Outcome::Done), false),
        (Kind::Outcome, "w1", Some(again), Some(Outcome::Done), false),
        (Kind::Outcome, "w2", Some(w2), Some(Outcome::InDoubt), true),
        (Kind::Outcome, "w2", Some(w2), Some(Outcome::Done), false),
        (Kind::Settlement, "w2", Some(w2), Some(Outcome::Done), false),
    ] {
        let seq = log.commit(Record { intent, outcome, ..record(kind, request) }).await.unwrap();
        wrong.extend((!fits).then_some(seq));
    }
    log.close().await;
    let report = verify(&settings.dir, &AuditorInput::default(), &mut |_, _| {}).unwrap();
    let told: Vec<_> = report.problems.iter().map(|problem| (&*problem.what, problem.seq.unwrap())).collect();
    assert_eq!(told, wrong.iter().map(|seq| ("write", *seq)).collect::<Vec<_>>(), "{report:#?}");
}

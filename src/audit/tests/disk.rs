//! The log on a disk that fails, fills up, hangs or loses power.

use std::collections::HashMap;
use std::fs::{self, File};
use std::io::{self, Write as _};
use std::path::Path;
use std::sync::{Arc, Condvar, Mutex};
use std::time::Duration;

use fastrand::Rng;

use super::*;
use crate::audit::recover::recover;
use crate::clock::Clock;
use crate::vocabulary::Outcome;

/// A disk that fails on demand and knows what would survive a power loss.
#[derive(Debug, Default)]
struct Faulty {
    state: Mutex<State>,
    released: Condvar,
}

#[derive(Debug, Default)]
struct State {
    failing_syncs: u32,
    failing: Option<i32>,
    /// Refuses space for the reserve.
    has_no_reserve: bool,
    hangs: bool,
    /// By inode: durable bytes, and all bytes.
    files: HashMap<u64, (u64, u64)>,
}

pub(super) const EIO: i32 = 5;
const ENOSPC: i32 = 28;

impl Faulty {
    fn set(&self, change: impl FnOnce(&mut State)) {
        change(&mut self.state.lock().unwrap());
        self.released.notify_all();
    }

    /// Copies what would be left of the segments if the power failed now: everything durable, and a part of the rest.
    fn lose_power(&self, from: &Path, to: &Path, random: &mut Rng) {
        let state = self.state.lock().unwrap();
        for first in segment::list(from).unwrap() {
            let path = segment::path(from, first);
            let bytes = fs::read(&path).unwrap();
            let durable = state.files.get(&inode(&File::open(&path).unwrap())).copied().unwrap_or_default().0;
            let kept = durable + random.u64(..=bytes.len() as u64 - durable);
            if kept > 0 || random.bool() {
                fs::write(segment::path(to, first), &bytes[..usize::try_from(kept).unwrap()]).unwrap();
            }
        }
    }
}

pub(super) fn inode(file: &File) -> u64 {
    segment::disk::identity(&file.metadata().unwrap()).1
}

impl Disk for Faulty {
    fn create(&self, path: &Path) -> io::Result<File> {
        let file = MachineDisk.create(path)?;
        // Inodes are reused.
        self.set(|state| assert!(state.files.insert(inode(&file), (0, 0)).is_none_or(|(durable, all)| durable <= all)));
        Ok(file)
    }

    fn allocate(&self, file: &File, bytes: u64) -> io::Result<()> {
        if self.state.lock().unwrap().has_no_reserve {
            return Err(io::Error::from_raw_os_error(ENOSPC));
        }
        MachineDisk.allocate(file, bytes)
    }

    fn write(&self, mut file: &File, bytes: &[u8]) -> io::Result<()> {
        let mut state = self.state.lock().unwrap();
        if let Some(error) = state.failing {
            file.write_all(&bytes[..bytes.len() / 2])?;
            return Err(io::Error::from_raw_os_error(error));
        }
        file.write_all(bytes)?;
        state.files.entry(inode(file)).or_default().1 += bytes.len() as u64;
        Ok(())
    }

    fn sync(&self, file: &File) -> io::Result<()> {
        let mut state = self.state.lock().unwrap();
        while state.hangs {
            state = self.released.wait(state).unwrap();
        }
        if state.failing_syncs > 0 {
            state.failing_syncs -= 1;
            return Err(io::Error::from_raw_os_error(EIO));
        }
        let lengths = state.files.entry(inode(file)).or_default();
        lengths.0 = lengths.1;
        Ok(())
    }
}

pub(super) async fn until(what: &str, mut holds: impl FnMut() -> bool) {
    for _ in 0..2000 {
        if holds() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("never: {what}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_failed_sync_moves_the_batch_into_a_new_segment_unnoticed() {
    let dir = tempfile::tempdir().unwrap();
    let (settings, disk) = (settings(&dir), Arc::new(Faulty::default()));
    let (log, _) = open_on(&settings, &Clock::system(), disk.clone()).await;
    let intent = log.commit(record(Kind::Intent, "w1")).await.unwrap();
    disk.set(|state| state.failing_syncs = 1);
    let seq = log.commit(outcome("w1", intent, Outcome::Done)).await.unwrap();
    assert_eq!(log.counts().failures, 1);
    assert!(log.writable());
    log.close().await;
    let segments = segment::list(&settings.dir).unwrap();
    assert_eq!(segments, [1, seq - 1], "the batch, after a new segment's first record");
    let lines = lines(&settings);
    assert_gapless(&lines);
    assert_eq!(count(&lines, "kind", "outcome"), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn while_the_disk_fails_writes_are_refused_and_nothing_is_lost() {
    let dir = tempfile::tempdir().unwrap();
    let (settings, disk) = (settings(&dir), Arc::new(Faulty::default()));
    let (log, _) = open_on(&settings, &Clock::system(), disk.clone()).await;
    let under_way = log.commit(record(Kind::Intent, "under-way")).await.unwrap();
    let other = log.commit(record(Kind::Intent, "other")).await.unwrap();
    disk.set(|state| state.failing = Some(EIO));
    assert_eq!(log.commit(record(Kind::Intent, "w2")).await, Err(CannotRecord::Failed));
    assert!(!log.writable());
    assert_eq!(log.commit(record(Kind::Intent, "w3")).await, Err(CannotRecord::Failed));
    log.reserve().unwrap().fill(record(Kind::Request, "read"));
    drop(log.commit(outcome("under-way", under_way, Outcome::InDoubt)));
    assert!(log.doubts().contains(under_way), "listed before it is on disk");
    let ended = log.commit(outcome("other", other, Outcome::Done));
    let waiting = tokio::time::timeout(Duration::from_millis(50), ended).await;
    assert!(waiting.is_err(), "an outcome waits for the disk");
    assert!(log.request_ids().take(id("other")).is_none(), "its id stays taken meanwhile");
    disk.set(|state| state.failing = None);
    until("writable again", || log.writable()).await;
    assert!(log.request_ids().take(id("w2")).is_some(), "a refused write holds no id");
    let intent = log.commit(record(Kind::Intent, "w4")).await.unwrap();
    log.commit(outcome("w4", intent, Outcome::Done)).await.unwrap();
    log.close().await;
    assert_eq!(log.backlog(), 0);
    let lines = lines(&settings);
    assert_gapless(&lines);
    let counts = ["under-way", "w2", "w3", "read", "other", "w4"].map(|request| count(&lines, "request", request));
    assert_eq!(counts, [2, 0, 0, 1, 2, 2]);
    let outage = lines.iter().find(|line| line["event"] == "outage").unwrap();
    assert!(outage["detail"].as_str().unwrap().ends_with("requests refused: 2"), "{outage}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_disk_that_hangs_refuses_writes_within_a_second() {
    let dir = tempfile::tempdir().unwrap();
    let settings = crate::config::AuditConfig { disk_wait: Duration::from_millis(900), ..settings(&dir) };
    let disk = Arc::new(Faulty::default());
    let (log, _) = open_on(&settings, &Clock::system(), disk.clone()).await;
    log.flush().await;
    disk.set(|state| state.hangs = true);
    let why = log.commit(record(Kind::Intent, "w1")).await.unwrap_err();
    assert_eq!((why, why.is_recorded(), log.writable()), (CannotRecord::Slow, true, false));
    assert_eq!(log.commit(record(Kind::Intent, "w2")).await, Err(CannotRecord::Failed));
    disk.set(|state| state.hangs = false);
    until("writable again", || log.writable()).await;
    log.close().await;
    let lines = lines(&settings);
    assert_gapless(&lines);
    assert_eq!((count(&lines, "request", "w1"), count(&lines, "request", "w2")), (2, 0));
    assert_eq!(count(&lines, "outcome", "not-sent"), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_disk_still_takes_outcomes_into_the_reserve() {
    let dir = tempfile::tempdir().unwrap();
    let (settings, disk) = (settings(&dir), Arc::new(Faulty::default()));
    let reserve = settings.dir.join("reserve");
    let (log, _) = open_on(&settings, &Clock::system(), disk.clone()).await;
    let intent = log.commit(record(Kind::Intent, "under-way")).await.unwrap();
    assert_eq!(fs::metadata(&reserve).unwrap().len(), settings.segment_bytes);
    disk.set(|state| state.failing = Some(ENOSPC));
    assert_eq!(log.commit(record(Kind::Intent, "w2")).await, Err(CannotRecord::Failed));
    until("the reserve freed", || !reserve.exists()).await;
    // The freed space is available again, but not enough for a new reserve.
    disk.set(|state| (state.failing, state.has_no_reserve) = (None, true));
    log.reserve().unwrap().fill(record(Kind::Request, "read"));
    log.commit(outcome("under-way", intent, Outcome::Done)).await.unwrap();
    assert!(!log.writable(), "the freed space is only for outcomes");
    assert_eq!(count(&lines(&settings), "request", "read"), 0);
    disk.set(|state| state.has_no_reserve = false);
    until("writable again", || log.writable()).await;
    assert_eq!(fs::metadata(&reserve).unwrap().len(), settings.segment_bytes);
    log.close().await;
    let lines = lines(&settings);
    assert_gapless(&lines);
    assert_eq!((count(&lines, "request", "under-way"), count(&lines, "request", "read")), (2, 1));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_deleted_segment_is_noticed_and_a_new_one_is_begun() {
    let dir = tempfile::tempdir().unwrap();
    let (settings, clock) = (settings(&dir), Clock::movable());
    let (log, _) = open_on(&settings, &clock, Arc::new(MachineDisk)).await;
    let intent = log.commit(record(Kind::Intent, "w1")).await.unwrap();
    fs::remove_file(segment::path(&settings.dir, 1)).unwrap();
    clock.advance(Duration::from_secs(2));
    let seq = log.commit(outcome("w1", intent, Outcome::Done)).await.unwrap();
    log.close().await;
    let lines = lines_of(&settings);
    assert_eq!(lines.first().unwrap()["seq"].as_u64(), Some(seq - 2), "segment, segment-lost, outcome");
    let report = verify(&settings.dir, &AuditorInput::default(), &mut |_, _| {}).unwrap();
    assert_eq!(report.problems.first().map(|problem| &*problem.what), Some("missing"), "{report:#?}");
    assert_eq!(count(&lines, "event", "segment-lost"), 1);
    let (_, recovered) = recover(&settings.dir).unwrap();
    assert_eq!((recovered.doubts.len(), recovered.clean), (0, true));
}

/// Promise 5, the disk's part: everything acknowledged before a power loss is still there after it, and each intent
/// is settled or in doubt.
#[tokio::test(flavor = "multi_thread")]
async fn a_power_loss_loses_nothing_that_was_acknowledged() {
    for seed in 0..40_u64 {
        let mut random = Rng::with_seed(seed);
        let dir = tempfile::tempdir().unwrap();
        let settings = config(&dir);
        let disk = Arc::new(Faulty::default());
        let (log, _) = open_on(&settings, &Clock::system(), disk.clone()).await;
        let acknowledged = Arc::new(Mutex::new(Vec::new()));
        let writers: Vec<_> = (0..4).map(|writer| write_on(log.clone(), writer, acknowledged.clone())).collect();
        let crash = async {
            tokio::time::sleep(Duration::from_millis(5 + random.u64(..20))).await;
            disk.set(|state| state.failing_syncs = random.u32(..2));
            tokio::time::sleep(Duration::from_millis(random.u64(..10))).await;
            let before = acknowledged.lock().unwrap().clone();
            let after = tempfile::tempdir().unwrap();
            disk.lose_power(&settings.dir, after.path(), &mut random);
            (before, after)
        };
        let ((before, after), _) = tokio::join!(crash, futures_util::future::join_all(writers));
        let assert_untouched_if_begun = || {
            if !segment::list(after.path()).unwrap().is_empty() {
                assert_untouched(after.path());
            }
        };
        assert_untouched_if_begun();
        let (start, recovered) = recover(after.path()).unwrap();
        assert_untouched_if_begun();
        assert_eq!((recovered.quarantined.len(), recovered.missing), (0, 0), "seed {seed}");
        let last = before.iter().map(|(seq, _, _)| *seq).max().unwrap_or(0);
        assert!(start.tree.size() >= last, "seed {seed}");
        for (_, request, ended) in &before {
            let ended = *ended || before.iter().any(|(_, other, ended)| other == request && *ended);
            let in_doubt = recovered.doubts.iter().any(|doubt| doubt.request.as_str() == request);
            assert!(!(ended && in_doubt), "seed {seed}: {request} has an outcome");
            assert!(ended || in_doubt || is_settled(after.path(), request), "seed {seed}: {request} was forgotten");
        }
    }
}

fn config(dir: &tempfile::TempDir) -> crate::config::AuditConfig {
    crate::config::AuditConfig { segment_bytes: 4000, ..settings(dir) }
}

/// Commits writes one after the other, each with its outcome, and notes what was acknowledged: sequence number,
/// request, and whether it is the outcome.
async fn write_on(log: Arc<AuditLog>, writer: usize, acknowledged: Arc<Mutex<Vec<(u64, String, bool)>>>) {
    for n in 0..30 {
        let request = format!("w{writer}-{n}");
        let Ok(seq) = log.commit(record(Kind::Intent, &request)).await else { continue };
        acknowledged.lock().unwrap().push((seq, request.clone(), false));
        tokio::time::sleep(Duration::from_micros(300)).await;
        if let Ok(seq) = log.commit(outcome(&request, seq, Outcome::Done)).await {
            acknowledged.lock().unwrap().push((seq, request, true));
        }
    }
}

/// The outcome reached the disk, but the power failed before the writer learned that.
fn is_settled(dir: &Path, request: &str) -> bool {
    let texts =
        segment::list(dir).unwrap().into_iter().map(|first| fs::read_to_string(segment::path(dir, first)).unwrap());
    texts
        .into_iter()
        .any(|text| text.lines().any(|line| line.contains(request) && line.contains("\"kind\":\"outcome\"")))
}

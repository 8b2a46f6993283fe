//! Promise 5, the disk's part, point by point: every disk operation of the log is recorded, and the machine is
//! stopped before and after each of them, with every state that a disk may leave unsynced data in.
//!
//! One state is left out: later blocks of an unsynced tail surviving while earlier ones do not. No file system that
//! orders data before sizes does that, and the log would rather keep such a tail and report it than cut what may have
//! been acknowledged.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use super::*;
use crate::audit::tests::disk::{EIO, inode, until};
use crate::clock::Clock;
use crate::config;
use crate::vocabulary::Outcome;

/// Records every operation, and fails syncs on demand.
#[derive(Debug)]
struct Recorder {
    dir: PathBuf,
    state: Mutex<Trace>,
}

#[derive(Debug, Default)]
struct Trace {
    failing_syncs: u32,
    /// Every file that ever had a segment's name, newest last.
    files: BTreeMap<u64, Vec<Written>>,
    /// A segment file's first sequence number and its index among the files of that name.
    places: HashMap<u64, (u64, usize)>,
    acknowledged: Vec<Acknowledged>,
    points: Vec<Point>,
}

/// What was written to a file, and how much of it is durable.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
struct Written {
    bytes: Vec<u8>,
    durable: usize,
    /// A sync failed, so nobody knows what is durable any more.
    is_unknown: bool,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Acknowledged {
    seq: u64,
    request: String,
    is_intent: bool,
}

/// The moment before or after an operation.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Point {
    segments: BTreeMap<u64, Vec<Written>>,
    others: BTreeMap<String, Vec<u8>>,
    acknowledged: usize,
}

impl Recorder {
    fn new(dir: &Path) -> Arc<Self> {
        Arc::new(Self { dir: dir.to_owned(), state: Mutex::default() })
    }

    fn fail_syncs(&self, count: u32) {
        self.state.lock().unwrap().failing_syncs = count;
    }

    fn acknowledged(&self, seq: u64, request: &str, is_intent: bool) {
        self.state.lock().unwrap().acknowledged.push(Acknowledged { seq, request: request.to_owned(), is_intent });
    }

    /// The sequence number of this write's intent.
    fn intent_of(&self, request: &str) -> u64 {
        let trace = self.state.lock().unwrap();
        trace.acknowledged.iter().find(|one| one.is_intent && one.request == request).unwrap().seq
    }

    /// Performs an operation on the file, recording a point before and after it.
    fn between<T>(&self, operation: impl FnOnce(&mut Trace) -> io::Result<T>) -> io::Result<T> {
        let mut trace = self.state.lock().unwrap();
        trace.note(&self.dir);
        let result = operation(&mut trace);
        trace.note(&self.dir);
        result
    }
}

impl Trace {
    fn note(&mut self, dir: &Path) {
        let mut others = BTreeMap::new();
        for entry in fs::read_dir(dir).unwrap() {
            let name = entry.unwrap().file_name().into_string().unwrap();
            let is_other = ["jsonl", "lock", "reserve"].iter().all(|end| !name.ends_with(end));
            // A draft of another thread may have got its name since the folder was listed.
            if is_other
                && !name.starts_with("index")
                && let Ok(bytes) = fs::read(dir.join(&name))
            {
                others.insert(name, bytes);
            }
        }
        let point = Point { segments: self.files.clone(), others, acknowledged: self.acknowledged.len() };
        if self.points.last() != Some(&point) {
            self.points.push(point);
        }
    }

    fn file(&mut self, file: &File) -> &mut Written {
        let (first, at) = self.places[&inode(file)];
        &mut self.files.get_mut(&first).unwrap()[at]
    }
}

impl Disk for Recorder {
    fn create(&self, path: &Path) -> io::Result<File> {
        self.between(|trace| {
            let file = MachineDisk.create(path)?;
            let first: u64 = path.file_stem().unwrap().to_str().unwrap().parse().unwrap();
            let files = trace.files.entry(first).or_default();
            files.push(Written::default());
            trace.places.insert(inode(&file), (first, files.len() - 1));
            Ok(file)
        })
    }

    fn write(&self, file: &File, bytes: &[u8]) -> io::Result<()> {
        self.between(|trace| {
            trace.file(file).bytes.extend_from_slice(bytes);
            MachineDisk.write(file, bytes)
        })
    }

    fn sync(&self, file: &File) -> io::Result<()> {
        self.between(|trace| {
            assert!(!trace.file(file).is_unknown, "a file was synced again after a failed sync");
            if trace.failing_syncs > 0 {
                trace.failing_syncs -= 1;
                trace.file(file).is_unknown = true;
                return Err(io::Error::from_raw_os_error(EIO));
            }
            let written = trace.file(file);
            written.durable = written.bytes.len();
            Ok(())
        })
    }
}

impl Written {
    /// Everything that may be left of the file after a power loss: what is durable, then part of the rest, or zeros
    /// in its place.
    fn left(&self) -> BTreeSet<Vec<u8>> {
        let (durable, all) = (self.durable, self.bytes.len());
        let tail = &self.bytes[durable..];
        let first_line = durable + tail.iter().position(|b| *b == b'\n').map_or(0, |at| at + 1);
        let mut lengths = BTreeSet::from([durable, all, durable.midpoint(all), first_line]);
        lengths
            .extend([durable + 1, all.saturating_sub(1)].into_iter().filter(|length| (durable..=all).contains(length)));
        let mut left: BTreeSet<Vec<u8>> = lengths.iter().map(|length| self.bytes[..*length].to_vec()).collect();
        for kept in [durable, durable.midpoint(all)] {
            let mut holed = self.bytes[..kept].to_vec();
            holed.resize(all, 0);
            left.insert(holed);
        }
        left
    }
}

impl Point {
    /// All states that the segments may be in: each file that is not fully durable in all its variants, next to the
    /// others unchanged.
    fn states(&self) -> Vec<BTreeMap<u64, Vec<u8>>> {
        let newest: BTreeMap<u64, Vec<u8>> = self
            .segments
            .iter()
            .filter_map(|(first, files)| Some((*first, files.last()?)))
            .filter(|(_, file)| file.durable > 0)
            .map(|(first, file)| (first, file.bytes[..file.durable].to_vec()))
            .collect();
        let mut states = vec![newest.clone()];
        for (first, files) in &self.segments {
            let current = files.last().unwrap();
            let candidates = if current.durable > 0 { std::slice::from_ref(current) } else { files.as_slice() };
            for left in candidates.iter().flat_map(Written::left).collect::<BTreeSet<_>>() {
                let mut state = newest.clone();
                state.insert(*first, left);
                states.push(state);
            }
        }
        states.sort();
        states.dedup();
        states
    }

    /// Creates the folder for this state. Leaf hashes are never synced, so any of them may be cut or missing.
    fn lay_out(&self, state: &BTreeMap<u64, Vec<u8>>, turn: usize, dir: &Path) {
        fs::create_dir(dir).unwrap();
        for (first, bytes) in state {
            fs::write(segment::path(dir, *first), bytes).unwrap();
        }
        for (name, bytes) in &self.others {
            let kept = match (name.ends_with(".leaves"), turn % 4) {
                (false, _) | (true, 0) => bytes.as_slice(),
                (true, 1) => &bytes[..bytes.len() / 2],
                (true, 2) => &[],
                (true, _) => continue,
            };
            fs::write(dir.join(name), kept).unwrap();
        }
    }
}

/// Takes a log through what happens in its life: concurrent writes, doubts and their settlement, a key rotation, full
/// segments, failed syncs, a stop and a start.
async fn live(settings: &config::AuditConfig, disk: &Arc<Recorder>) {
    let intent = async |log: &AuditLog, request: &str| {
        let seq = log.commit(record(Kind::Intent, request)).await.unwrap();
        disk.acknowledged(seq, request, true);
    };
    let end = async |log: &AuditLog, request: &str, how: Outcome| {
        let seq = log.commit(outcome(request, disk.intent_of(request), how)).await.unwrap();
        disk.acknowledged(seq, request, how == Outcome::InDoubt);
    };
    let settle = async |log: &AuditLog, request: &str| {
        let settled =
            Record { kind: Some(Kind::Settlement), ..outcome(request, disk.intent_of(request), Outcome::Done) };
        disk.acknowledged(log.commit(settled).await.unwrap(), request, false);
    };
    let (log, _) = open_on(settings, &Clock::system(), disk.clone()).await;
    tokio::join!(intent(&log, "w1"), intent(&log, "w2"), intent(&log, "w3"));
    end(&log, "w1", Outcome::Done).await;
    log.reserve().unwrap().fill(record(Kind::Request, "r1"));
    tokio::join!(end(&log, "w2", Outcome::InDoubt), intent(&log, "w4"));
    log.rotate_head_key().await.unwrap();
    settle(&log, "w2").await;
    disk.fail_syncs(1);
    end(&log, "w3", Outcome::Rejected).await;
    until("writable again", || log.writable()).await;
    intent(&log, "w5").await;
    disk.fail_syncs(2);
    log.commit(record(Kind::Intent, "refused")).await.unwrap_err();
    end(&log, "w4", Outcome::Done).await;
    until("writable again", || log.writable()).await;
    for n in 0..4 {
        let request = format!("x{n}");
        intent(&log, &request).await;
        end(&log, &request, Outcome::Done).await;
    }
    log.close().await;
    drop(log);
    let (log, recovered) = open_on(settings, &Clock::system(), disk.clone()).await;
    assert!(recovered.clean, "{recovered:?}");
    intent(&log, "y1").await;
    settle(&log, "w5").await;
    end(&log, "y1", Outcome::Done).await;
    log.flush().await;
}

/// The records of an untouched log, without what follows the last valid one in each segment (void or torn lines).
fn records(dir: &Path) -> Vec<serde_json::Value> {
    assert_untouched(dir);
    let segments = segment::list(dir).unwrap();
    let mut records = Vec::new();
    for (at, first) in segments.iter().enumerate() {
        let bytes = fs::read(segment::path(dir, *first)).unwrap();
        let end = segments.get(at + 1).copied().unwrap_or(u64::MAX);
        let parsed = bytes.split(|b| *b == b'\n').map_while(|line| serde_json::from_slice(line).ok());
        records.extend(parsed.filter(|line: &serde_json::Value| line["seq"].as_u64().unwrap() < end));
    }
    records
}

/// Opens what is left, continues it, and checks that nothing was lost.
async fn check(settings: &config::AuditConfig, acknowledged: &[Acknowledged]) {
    if !segment::list(&settings.dir).unwrap().is_empty() {
        assert_untouched(&settings.dir);
    }
    let (log, recovered) = open(settings, &Clock::system()).await;
    assert_eq!((recovered.quarantined.len(), recovered.missing), (0, 0), "{recovered:?}");
    let last = acknowledged.iter().map(|one| one.seq).max().unwrap_or(0);
    assert!(recovered.records >= last, "record {last} was acknowledged: {recovered:?}");
    let seq = log.commit(record(Kind::Intent, "after")).await.unwrap();
    assert!(seq > last);
    log.commit(outcome("after", seq, Outcome::Done)).await.unwrap();
    log.close().await;
    let lines = records(&settings.dir);
    assert_gapless(&lines);
    for one in acknowledged {
        let line = &lines[usize::try_from(one.seq - 1).unwrap()];
        assert_eq!(line["request"], one.request.as_str(), "the acknowledged record is in its place");
        let in_doubt = recovered.doubts.iter().any(|doubt| doubt.request.as_str() == one.request);
        let is_ended = |line: &serde_json::Value| {
            line["request"] == one.request.as_str() && line["outcome"].as_str().is_some_and(|how| how != "in-doubt")
        };
        assert_ne!(in_doubt, lines.iter().any(is_ended), "{} is settled or in doubt", one.request);
        assert!(one.is_intent || !in_doubt, "{} has its outcome", one.request);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_crash_at_any_point_loses_nothing_that_was_acknowledged_and_forgets_no_write() {
    let dir = tempfile::tempdir().unwrap();
    let settings = config::AuditConfig { segment_bytes: 2500, ..settings(&dir) };
    fs::create_dir(&settings.dir).unwrap();
    let disk = Recorder::new(&settings.dir);
    live(&settings, &disk).await;
    let trace = std::mem::take(&mut *disk.state.lock().unwrap());
    let files: Vec<_> = trace.files.iter().map(|(first, files)| (first, files.len())).collect();
    assert!(
        files.len() > 3 && files.iter().any(|(_, count)| *count > 1),
        "segments were sealed, and one was begun twice: {files:?}"
    );
    let mut states = 0;
    for (at, point) in trace.points.iter().enumerate() {
        for (turn, state) in point.states().iter().enumerate() {
            // Uses memory where possible, because there are many folders.
            let after = tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir()).unwrap();
            let settings = config::AuditConfig { dir: after.path().join("audit"), ..settings.clone() };
            point.lay_out(state, at + turn, &settings.dir);
            let _place = Place(format!("point {at} of {}, state {turn}", trace.points.len()));
            check(&settings, &trace.acknowledged[..point.acknowledged]).await;
            states += 1;
        }
    }
    println!("{} points, {states} states", trace.points.len());
}

/// Prints where the test was when it failed.
struct Place(String);

impl Drop for Place {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("at {}", self.0);
        }
    }
}

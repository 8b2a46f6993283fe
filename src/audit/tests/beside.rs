//! Promise 7 during writing: the writer's steps are filmed, and the log is then verified, in place and as copies,
//! while these steps are replayed.
//!
//! The film has the folder's content before and after each disk operation. Between two pictures files change one
//! after the other, and appended data arrives in parts. One test runs a verifier on a folder that advances by some of
//! these steps before each read. The other copies the folder: it lists the files at one moment and takes each as it
//! is at some later moment. No log may be reported as tampered with.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use fastrand::Rng;

use super::*;
use crate::audit::record::Record;
use crate::audit::retention::announced_range;
use crate::audit::segment::disk::ABOUT_TO_READ;
use crate::clock::Clock;
use crate::config;
use crate::vocabulary::Outcome;

/// A folder's files and their content.
type Folder = BTreeMap<String, Vec<u8>>;

/// A disk that takes a picture of the folder before and after each operation.
#[derive(Debug)]
struct Camera {
    dir: PathBuf,
    pictures: Mutex<Vec<Folder>>,
}

impl Camera {
    fn picture(&self) {
        let mut picture = Folder::new();
        for entry in fs::read_dir(&self.dir).unwrap() {
            let name = entry.unwrap().file_name().into_string().unwrap();
            let is_of_the_log = name.ends_with("jsonl")
                || name.ends_with("leaves")
                || ["keys", "head", "head.pub", "closed"].contains(&&*name);
            // A file that disappears here was deleted or replaced by the writer, which waits for this picture.
            if let Some(bytes) = fs::read(self.dir.join(&name)).ok().filter(|_| is_of_the_log) {
                picture.insert(name, bytes);
            }
        }
        self.pictures.lock().unwrap().push(picture);
    }

    fn around<T>(&self, operation: impl FnOnce() -> T) -> T {
        self.picture();
        let done = operation();
        self.picture();
        done
    }
}

impl Disk for Camera {
    fn create(&self, path: &Path) -> io::Result<File> {
        self.around(|| MachineDisk.create(path))
    }

    fn write(&self, file: &File, bytes: &[u8]) -> io::Result<()> {
        self.around(|| MachineDisk.write(file, bytes))
    }

    fn sync(&self, file: &File) -> io::Result<()> {
        self.around(|| MachineDisk.sync(file))
    }
}

/// From this step on a file has these bytes, or is gone.
type Step = (String, Option<Vec<u8>>);

/// The steps from one picture to the next, in the writer's order; what is appended to a segment comes in parts.
fn steps(before: &Folder, after: &Folder, random: &mut Rng) -> Vec<Step> {
    let rank = |name: &str, is_gone: bool| match name {
        "keys" => 4,
        "head" => 5,
        "head.pub" => 6,
        "closed" => 7,
        _ if is_gone => 2 + u8::from(name.ends_with("leaves")),
        _ => u8::from(name.ends_with("leaves")),
    };
    let names: BTreeSet<&String> = before.keys().chain(after.keys()).collect();
    let mut changed: Vec<_> = names.into_iter().filter(|name| before.get(*name) != after.get(*name)).collect();
    changed.sort_by_key(|name| rank(name, !after.contains_key(*name)));
    let mut steps = Vec::new();
    for name in changed {
        let (old, new) = (before.get(name).map_or(&[][..], Vec::as_slice), after.get(name));
        if let Some(new) = new.filter(|new| name.ends_with("jsonl") && new.starts_with(old)) {
            let mut cuts: BTreeSet<usize> =
                (0..3).map(|_| old.len() + random.usize(..=new.len() - old.len())).collect();
            // The end of a line, once without its newline and once with it.
            let newline = old.len() + new[old.len()..].iter().position(|byte| *byte == b'\n').unwrap_or(0);
            cuts.extend([newline, newline + 1].into_iter().filter(|cut| (old.len()..new.len()).contains(cut)));
            steps.extend(cuts.into_iter().map(|cut| (name.clone(), Some(new[..cut].to_vec()))));
        }
        steps.push((name.clone(), new.cloned()));
    }
    steps
}

/// Every state of the folder, and the steps from each to the next.
struct Film {
    states: Vec<Folder>,
    steps: Vec<Step>,
}

impl Film {
    /// Films concurrent writes, doubts, segments that fill up and are deleted by retention, two key rotations, a stop
    /// and a start.
    async fn take() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let settings = config::AuditConfig { segment_bytes: 2000, retention_bytes: 14_000, ..settings(&dir) };
        fs::create_dir(&settings.dir).unwrap();
        let camera = Arc::new(Camera { dir: settings.dir.clone(), pictures: Mutex::default() });
        for run in 0..2 {
            let (log, _) = open_on(&settings, &Clock::system(), camera.clone()).await;
            for n in 0..14 {
                let request = format!("w{run}-{n}");
                let other = log.commit(record(Kind::Event, "beside"));
                let intent = log.commit(record(Kind::Intent, &request)).await.unwrap();
                other.await.unwrap();
                let how = if n % 5 == 0 { Outcome::InDoubt } else { Outcome::Done };
                log.commit(outcome(&request, intent, how)).await.unwrap();
                if n % 5 == 0 {
                    let settled = Record { kind: Some(Kind::Settlement), ..outcome(&request, intent, Outcome::Done) };
                    log.commit(settled).await.unwrap();
                }
                if run == 1 && [4, 9].contains(&n) {
                    log.rotate_head_key().await.unwrap();
                }
            }
            log.close().await;
            camera.picture();
        }
        let mut random = Rng::with_seed(0x5eed_0013);
        let pictures = std::mem::take(&mut *camera.pictures.lock().unwrap());
        let (mut states, mut all) = (vec![Folder::new()], Vec::new());
        for picture in pictures {
            let last = states.last().unwrap().clone();
            for step in steps(&last, &picture, &mut random) {
                let mut next = states.last().unwrap().clone();
                match &step {
                    (name, Some(bytes)) => drop(next.insert(name.clone(), bytes.clone())),
                    (name, None) => drop(next.remove(name)),
                }
                states.push(next);
                all.push(step);
            }
        }
        let gone = all.iter().filter(|(name, bytes)| name.ends_with("jsonl") && bytes.is_none()).count();
        let sealed =
            states.iter().flat_map(Folder::keys).filter(|name| name.ends_with("jsonl")).collect::<BTreeSet<_>>();
        println!("{} states, {} segments, {gone} deleted", states.len(), sealed.len());
        assert!(gone > 3 && sealed.len() > 10);
        Self { states, steps: all }
    }

    /// The index of the first state with a record in it.
    fn begin(&self) -> usize {
        self.states
            .iter()
            .position(|state| state.iter().any(|(name, bytes)| name.ends_with("jsonl") && bytes.contains(&b'\n')))
            .unwrap()
    }
}

fn lay_out(folder: &Folder) -> tempfile::TempDir {
    // Uses memory where possible, because there are thousands of folders.
    let dir = tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir()).unwrap();
    folder.iter().for_each(|(name, bytes)| fs::write(dir.path().join(name), bytes).unwrap());
    dir
}

fn assert_untouched_in(dir: &Path, place: &str) {
    let report = verify(dir, &AuditorInput::default(), &mut |_, _| {}).unwrap();
    if !report.problems.is_empty() {
        println!(
            "{place}: {:?}",
            fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().file_name()).collect::<Vec<_>>()
        );
    }
    assert!(report.problems.is_empty(), "{place}: {report:#?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_verifier_beside_a_writer_accuses_nobody() {
    let film = Film::take().await;
    let mut random = Rng::with_seed(0x5eed_0007);
    let mut runs = 0;
    for from in film.begin()..film.states.len() {
        for round in 0..6 {
            let dir = lay_out(&film.states[from]);
            let steps: Vec<Step> = film.steps[from..].to_vec();
            // All steps at once before one of the reads, or a few before each. Half the rounds do it while keys and
            // heads are read, which comes first.
            let (burst, at) = (1 + random.usize(..40), random.usize(..[60, 8][round % 2]));
            let mut own = random.clone();
            let (path, mut done, mut reads) = (dir.path().to_owned(), 0, 0);
            ABOUT_TO_READ.set(Some(Box::new(move || {
                let count = match round {
                    0..4 => {
                        if reads == at {
                            burst
                        } else {
                            0
                        }
                    }
                    4 => own.usize(..2),
                    _ => own.usize(..9).saturating_sub(6),
                };
                reads += 1;
                for (name, bytes) in steps.iter().skip(done).take(count) {
                    match bytes {
                        Some(bytes) => {
                            // Keep the same file while it grows.
                            let path = path.join(name);
                            if name.ends_with("jsonl") || name.ends_with("leaves") {
                                fs::write(path, bytes).unwrap();
                            } else {
                                fs::write(path.with_extension("draft"), bytes).unwrap();
                                fs::rename(path.with_extension("draft"), path).unwrap();
                            }
                        }
                        None => fs::remove_file(path.join(name)).unwrap(),
                    }
                }
                done += count;
            })));
            assert_untouched_in(dir.path(), &format!("from state {from}, round {round}, {burst} steps at read {at}"));
            ABOUT_TO_READ.set(None);
            runs += 1;
        }
    }
    println!("{runs} runs");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_copy_made_during_writing_accuses_nobody() {
    let film = Film::take().await;
    let mut random = Rng::with_seed(0x5eed_0008);
    let (mut runs, mut slow, mut rotated) = (0, 0, 0);
    for listed in film.begin()..film.states.len() {
        for round in 0..12 {
            let longest = (film.states.len() - listed).min([3, 30, 150][round % 3]);
            let mut names: Vec<&String> = film.states[listed].keys().collect();
            match round / 3 {
                0 => {}
                1 => names.reverse(),
                _ => names.sort_by_key(|_| random.usize(..1000)),
            }
            // The files are copied one after the other.
            let mut times: Vec<usize> = names.iter().map(|_| listed + random.usize(..longest)).collect();
            times.sort_unstable();
            let last = times.last().map_or(listed, |last| *last);
            rotated += usize::from(film.states[listed].get("keys") != film.states[last].get("keys"));
            let mut copy = Folder::new();
            let mut is_slow = false;
            for (name, time) in names.iter().zip(times) {
                match film.states[time].get(*name) {
                    Some(bytes) => drop(copy.insert((*name).clone(), bytes.clone())),
                    // Deleted before it was copied: either the deletion was announced before the copy began, or
                    // copying took too long.
                    None => is_slow |= name.ends_with("jsonl") && !is_told(&film.states[listed], name),
                }
            }
            if is_slow {
                slow += 1;
                continue;
            }
            let dir = lay_out(&copy);
            assert_untouched_in(dir.path(), &format!("listed at {listed}, round {round}"));
            runs += 1;
        }
    }
    println!(
        "{runs} copies; {slow} took longer than a segment stays after its deletion is announced; {rotated} overlapped a key rotation"
    );
    assert!(slow * 5 < runs && rotated > 50);
}

/// Whether the folder's records announce that retention deletes this segment.
fn is_told(folder: &Folder, name: &str) -> bool {
    let first: u64 = name.split('.').next().unwrap().parse().unwrap();
    let lines =
        folder.iter().filter(|(name, _)| name.ends_with("jsonl")).flat_map(|(_, bytes)| bytes.split(|b| *b == b'\n'));
    let mut deleted = lines.filter_map(Record::parse).filter_map(|seen| announced_range(&seen));
    deleted.any(|(begin, end)| (begin..=end).contains(&first))
}

//! The slots on disk, so that a restart forgets none: `quota.slots`, a line of text for each send and each end.
//!
//! What is sent is written before it is, what ends with the next line, and all is synced every second: a killed process loses no
//! slot (one whose end it did not write counts as ended at the start after), and a machine that dies loses what was written
//! since the last sync. How much that was cannot be known: if the file is from another boot of the machine (or
//! from another machine) and was not closed properly, every bucket counts as full until a hold after the start. The same is
//! noted after lines could not be written.
//!
//! Times are wall times, the only ones that outlive a process. What seems to lie in the future (the clock was set back)
//! counts as now. A clock that is set forward while the gateway is down makes it forget slots too early.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::{FileExt as _, MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard};

use super::remembered::{Line, Remembered};
use crate::clock::Clock;

const FILE: &str = "quota.slots";
const FILE_NEXT: &str = "quota.slots.next";
/// The file is written anew when it has grown by this, and to twice what is live.
const GROWTH_BYTES: u64 = 1 << 20;
/// Lines that can wait do so until they are this long together.
const PENDING_BYTES_MAX: usize = 4096;

/// The open file.
#[derive(Debug)]
pub(super) struct Journal {
    dir: PathBuf,
    clock: Clock,
    boot: String,
    file: RwLock<File>,
    /// Lines that can wait for the next one that cannot.
    pending: Mutex<Vec<u8>>,
    bytes: AtomicU64,
    /// What `bytes` was when the file was last written anew.
    bytes_live: AtomicU64,
    /// Lines are missing since the file was last written anew.
    torn: AtomicBool,
    failures: AtomicU64,
}

impl Journal {
    /// Opens the journal in `dir`, makes one if there is none, and says what it remembers.
    ///
    /// # Errors
    /// The folder cannot be read or written.
    pub(super) fn open(dir: &Path, clock: Clock) -> io::Result<(Self, Remembered)> {
        let boot = fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default().trim().to_owned();
        let now = clock.wall_ms();
        let mut remembered = match fs::read(dir.join(FILE)) {
            Ok(bytes) => Remembered::read(&bytes, &boot, now),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Remembered::default(),
            Err(error) => return Err(error),
        };
        remembered.end_all(now);
        let text = remembered.text(&boot, now);
        let file = write_next(dir, &text)?;
        file.sync_data()?;
        put_in_place(dir)?;
        sync_dir(dir)?;
        let bytes = u64::try_from(text.len()).unwrap_or(u64::MAX);
        let journal = Self {
            dir: dir.to_owned(),
            clock,
            boot,
            file: RwLock::new(file),
            pending: Mutex::default(),
            bytes: bytes.into(),
            bytes_live: bytes.into(),
            torn: false.into(),
            failures: 0.into(),
        };
        Ok((journal, remembered))
    }

    /// Adds a line, at once; what ends an attempt goes with the next line or [`Journal::sync`]: without it the attempt counts for
    /// longer. A failure is logged and counted, nothing else: the quota goes on without its journal.
    pub(super) fn add(&self, line: &Line<'_>) {
        let mut pending = self.pending();
        line.append_to(&mut pending);
        if !line.can_wait() || pending.len() > PENDING_BYTES_MAX {
            self.write(&mut pending);
        }
    }

    fn pending(&self) -> MutexGuard<'_, Vec<u8>> {
        self.pending.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Writes what is pending; it is not tried again.
    fn write(&self, pending: &mut Vec<u8>) {
        if pending.is_empty() {
            return;
        }
        if self.torn.load(Ordering::Relaxed) {
            // The line before may lack its end.
            pending.insert(0, b'\n');
        }
        match (&*self.file()).write(pending) {
            Ok(written) if written == pending.len() => {
                self.bytes.fetch_add(u64::try_from(written).unwrap_or(0), Ordering::Relaxed);
            }
            Ok(_) => self.failed("write", &io::ErrorKind::WriteZero.into()),
            Err(error) => self.failed("write", &error),
        }
        pending.clear();
    }

    /// Brings all lines to the disk, and writes the file anew if it has grown, is damaged, or was taken away. Blocks.
    pub(super) fn sync(&self) {
        self.write(&mut self.pending());
        if let Err(error) = self.file().sync_data() {
            self.failed("sync", &error);
        }
        let (bytes, live) = (self.bytes.load(Ordering::Relaxed), self.bytes_live.load(Ordering::Relaxed));
        let torn = self.torn.load(Ordering::Relaxed);
        if !torn && bytes < live + live.max(GROWTH_BYTES) && self.is_in_place() {
            return;
        }
        if let Err(error) = self.write_anew(torn) {
            self.torn.fetch_or(torn, Ordering::Relaxed);
            self.bytes_live.store(bytes, Ordering::Relaxed);
            self.failed("rewrite", &error);
        }
    }

    /// Closes it properly: nothing is sent after this.
    pub(super) fn shut(&self) {
        self.add(&Line::Shut(self.clock.wall_ms()));
        if let Err(error) = self.file().sync_data() {
            self.failed("sync", &error);
        }
    }

    /// How often something could not be written.
    pub(super) fn failures(&self) -> u64 {
        self.failures.load(Ordering::Relaxed)
    }

    /// Writes a short file that says the same, while lines are still added to the old one; what was added meanwhile is copied.
    fn write_anew(&self, torn: bool) -> io::Result<()> {
        let now = self.clock.wall_ms();
        let mut old = read_from(&self.file(), 0)?;
        old.truncate(old.iter().rposition(|byte| *byte == b'\n').map_or(0, |end| end + 1));
        let mut remembered = Remembered::read(&old, &self.boot, now);
        if torn {
            self.torn.store(false, Ordering::Relaxed);
            remembered.doubt(now);
        }
        let text = remembered.text(&self.boot, now);
        let next = write_next(&self.dir, &text)?;
        next.sync_data()?;
        {
            let mut file = self.file.write().unwrap_or_else(PoisonError::into_inner);
            let added = read_from(&file, u64::try_from(old.len()).unwrap_or(u64::MAX))?;
            (&next).write_all(&added)?;
            put_in_place(&self.dir)?;
            *file = next;
            self.bytes.store(u64::try_from(text.len() + added.len()).unwrap_or(u64::MAX), Ordering::Relaxed);
        }
        self.bytes_live.store(u64::try_from(text.len()).unwrap_or(u64::MAX), Ordering::Relaxed);
        self.file().sync_data()?;
        sync_dir(&self.dir)
    }

    fn is_in_place(&self) -> bool {
        let place = fs::metadata(self.dir.join(FILE)).map(|place| (place.dev(), place.ino()));
        let file = self.file().metadata().map(|file| (file.dev(), file.ino()));
        matches!((place, file), (Ok(place), Ok(file)) if place == file)
    }

    fn failed(&self, what: &str, error: &io::Error) {
        self.failures.fetch_add(1, Ordering::Relaxed);
        if !self.torn.swap(true, Ordering::Relaxed) {
            tracing::warn!(%error, file = %self.dir.join(FILE).display(), "cannot {what} the journal of quota slots; a restart may forget some");
        }
    }

    fn file(&self) -> RwLockReadGuard<'_, File> {
        self.file.read().unwrap_or_else(PoisonError::into_inner)
    }
}

fn write_next(dir: &Path, text: &[u8]) -> io::Result<File> {
    let path = dir.join(FILE_NEXT);
    match fs::remove_file(&path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        Ok(()) | Err(_) => {}
    }
    let mut file = OpenOptions::new().read(true).append(true).create_new(true).mode(0o600).open(path)?;
    file.write_all(text)?;
    Ok(file)
}

fn put_in_place(dir: &Path) -> io::Result<()> {
    fs::rename(dir.join(FILE_NEXT), dir.join(FILE))
}

fn sync_dir(dir: &Path) -> io::Result<()> {
    File::open(dir)?.sync_all()
}

fn read_from(file: &File, offset: u64) -> io::Result<Vec<u8>> {
    let bytes = file.metadata()?.len().saturating_sub(offset);
    let mut all = vec![0; usize::try_from(bytes).unwrap_or(usize::MAX)];
    file.read_exact_at(&mut all, offset)?;
    Ok(all)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::time::Duration;

    use futures_util::FutureExt as _;
    use tempfile::TempDir;

    use super::*;
    use crate::config::QuotaSetting;
    use crate::quota::{BucketId, Quota, Refused, Settings, Slot};

    const ORG: BucketId = BucketId::Organization(11);

    struct World {
        dir: TempDir,
        clock: Clock,
    }

    impl World {
        fn new() -> Self {
            Self { dir: tempfile::tempdir().unwrap(), clock: Clock::movable() }
        }

        fn open(&self) -> Quota {
            let settings = Settings { setting: QuotaSetting::Auto, queue_per_caller: 3 };
            Quota::open(settings, Some(self.dir.path()), self.clock.clone()).unwrap()
        }

        fn try_take(&self, quota: &Quota, bucket: BucketId) -> Result<Slot, Refused> {
            let caller: Arc<str> = "the caller".into();
            let turn = quota.turn(bucket, &caller, 1, self.clock.now()).now_or_never();
            turn.expect("waits")
        }

        fn take(&self, quota: &Quota) -> Slot {
            self.try_take(quota, ORG).unwrap()
        }

        fn text(&self) -> String {
            fs::read_to_string(self.dir.path().join(FILE)).unwrap()
        }

        fn write(&self, text: &str) {
            fs::write(self.dir.path().join(FILE), text).unwrap();
        }

        fn advance(&self, seconds: u64) {
            self.clock.advance(Duration::from_secs(seconds));
        }
    }

    fn used(quota: &Quota) -> u32 {
        quota.view(ORG).used
    }

    #[test]
    fn a_spare_slot_is_left_behind_as_any() {
        let world = World::new();
        let quota = world.open();
        std::mem::forget(quota.spare(ORG).unwrap());
        quota.spare(ORG).unwrap().unsent();
        quota.sync();
        drop(quota);
        let quota = world.open();
        let view = quota.view(ORG);
        assert_eq!((view.used, view.callers.len(), view.callers[0].spent), (1, 1, 1));
        world.advance(62);
        assert!(quota.view(ORG).callers.is_empty());
    }

    #[test]
    fn a_killed_process_leaves_every_slot_behind() {
        let world = World::new();
        let quota = world.open();
        drop(world.take(&quota));
        world.take(&quota).unsent();
        world.advance(20);
        drop(world.take(&quota));
        std::mem::forget(world.take(&quota));
        quota.learn(11, 5);
        drop(quota);
        world.advance(20);
        let quota = world.open();
        assert_eq!((used(&quota), quota.view(ORG).limit), (3, 5));
        assert_eq!(quota.view(ORG).callers[0].spent, 3);
        world.advance(22);
        assert_eq!(used(&quota), 2, "the first was sent 62 s ago");
        drop(quota);
        let quota = world.open();
        assert_eq!(used(&quota), 2);
        world.advance(20);
        assert_eq!(used(&quota), 1, "what was under way counts as ended at the start after");
        world.advance(20);
        assert_eq!(used(&quota), 0);
    }

    #[test]
    fn after_an_unclean_stop_of_the_machine_every_bucket_is_full_for_a_hold() {
        let world = World::new();
        drop(world.take(&world.open()));
        let boot = fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap();
        world.write(&world.text().replace(boot.trim(), "another-boot"));
        for quota in [world.open(), world.open()] {
            for bucket in [ORG, BucketId::Account] {
                let Refused::TooLong { retry_after, .. } = world.try_take(&quota, bucket).unwrap_err() else {
                    panic!()
                };
                assert!(retry_after > Duration::from_secs(60) && retry_after <= Duration::from_secs(61));
            }
        }
        world.advance(61);
        let quota = world.open();
        world.take(&quota);
    }

    #[test]
    fn after_a_clean_stop_another_boot_doubts_nothing() {
        let world = World::new();
        let quota = world.open();
        drop(world.take(&quota));
        quota.shut();
        let boot = fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap();
        world.write(&world.text().replace(boot.trim(), "another-boot"));
        let quota = world.open();
        assert_eq!(used(&quota), 1);
        world.take(&quota);
    }

    #[test]
    fn torn_and_garbled_lines_are_skipped() {
        let world = World::new();
        let quota = world.open();
        drop(world.take(&quota));
        drop(quota);
        let text = world.text();
        world.write(&format!("{text}S\nE 1 2\nH x 11 1 a\nL 5 11 0\nZ 1\n\0\0\0\nS 12"));
        assert_eq!(used(&world.open()), 1);
    }

    #[test]
    fn a_clock_that_was_set_back_makes_no_slot_immortal() {
        let world = World::new();
        drop(world.open());
        let later = world.clock.wall_ms() + 3_600_000;
        world.write(&format!("{}E {later} 11 2 a\nC {later} 11\n", world.text()));
        assert_eq!(used(&world.open()), 2);
        world.advance(62);
        let quota = world.open();
        assert_eq!(used(&quota), 0);
        assert!(quota.view(ORG).closed_for.unwrap() <= Duration::from_secs(600));
    }

    #[test]
    fn a_file_that_has_grown_is_written_anew_and_says_the_same() {
        let world = World::new();
        let quota = world.open();
        quota.learn(11, 1_000_000);
        for _ in 0..30_000 {
            drop(world.take(&quota));
        }
        let under_way = world.take(&quota);
        assert!(world.text().len() > 3 << 19);
        quota.sync();
        assert!(world.text().len() < 1 << 18, "{}", world.text().len());
        drop(world.take(&quota));
        let before = used(&quota);
        drop(under_way);
        drop(quota);
        let quota = world.open();
        assert_eq!((used(&quota), quota.view(ORG).limit), (before, 1_000_000));
    }

    #[test]
    fn a_file_that_was_taken_away_is_written_anew() {
        let world = World::new();
        let quota = world.open();
        drop(world.take(&quota));
        fs::remove_file(world.dir.path().join(FILE)).unwrap();
        quota.sync();
        drop(world.take(&quota));
        drop(quota);
        assert_eq!(used(&world.open()), 2);
    }

    #[test]
    fn without_its_journal_the_quota_goes_on_and_a_restart_doubts() {
        let world = World::new();
        let quota = world.open();
        let journal = quota.shared.journal.as_ref().unwrap();
        *journal.file.write().unwrap() = File::open(world.dir.path().join(FILE)).unwrap();
        drop(world.take(&quota));
        assert_eq!((used(&quota), quota.journal_failures()), (1, 1));
        quota.sync();
        drop(world.take(&quota));
        assert_eq!(quota.journal_failures(), 2, "written again");
        drop(quota);
        let refused = world.try_take(&world.open(), ORG).unwrap_err();
        let Refused::TooLong { retry_after, .. } = refused else { panic!("{refused:?}") };
        assert!(retry_after <= Duration::from_secs(61));
    }
}

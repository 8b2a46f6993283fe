//! What a restart remembers, tested with the real journal thread.

use std::fs;
use std::sync::Arc;
use std::time::Duration;

use tempfile::TempDir;

use super::*;
use crate::quota::{BucketId, Quota, QuotaRefused, QuotaSettings, Slot};

fn settings() -> QuotaSettings {
    QuotaSettings { queue_per_caller: 3, wait: Duration::ZERO, learned_max: 1_000_000, ..QuotaSettings::default() }
}

const ORG: BucketId = BucketId::Organization(11);

struct World {
    dir: TempDir,
    clock: Clock,
    runtime: tokio::runtime::Runtime,
    has_run: std::cell::Cell<bool>,
}

impl World {
    fn new() -> Self {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
        Self { dir: tempfile::tempdir().unwrap(), clock: Clock::movable(), runtime, has_run: false.into() }
    }

    fn open(&self) -> Quota {
        Quota::open(settings(), Some((self.dir.path(), self.has_run.replace(true))), self.clock.clone(), None).unwrap()
    }

    fn open_without_journal(&self) -> Quota {
        Quota::open(settings(), None, self.clock.clone(), None).unwrap()
    }

    fn try_take(&self, quota: &Quota, bucket: BucketId) -> Result<Slot, QuotaRefused> {
        let caller: Arc<str> = "the caller".into();
        self.runtime.block_on(quota.acquire(bucket, &caller, 1, self.clock.now()))
    }

    fn spare(&self, quota: &Quota) -> Slot {
        self.runtime.block_on(quota.acquire_spare(ORG)).unwrap()
    }

    fn sync(&self, quota: &Quota) {
        self.runtime.block_on(quota.shared.journal.as_ref().unwrap().sync());
    }

    fn close(&self, quota: &Quota) {
        assert!(self.runtime.block_on(quota.end(Duration::from_secs(60))));
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

/// A write waits for its line here and then for its intent, but is still refused within a second.
#[test]
fn both_waits_of_a_write_are_over_within_a_second() {
    let sample = include_str!("../../../config/makegate.toml");
    let wait = sample.lines().find_map(|line| line.strip_prefix("disk_wait = \"")?.split('"').next()).unwrap();
    assert!(WRITE_WAIT_MAX + crate::config::duration(wait).unwrap() < Duration::from_secs(1), "{wait}");
}

#[test]
fn a_spare_slot_is_left_behind_as_any() {
    let world = World::new();
    let quota = world.open();
    std::mem::forget(world.spare(&quota));
    world.spare(&quota).release_unsent();
    world.sync(&quota);
    drop(quota);
    let quota = world.open();
    let view = quota.view(ORG);
    assert_eq!((view.used, view.callers.len(), view.callers[0].spent), (1, 1, 1));
    world.advance(62);
    assert!(quota.view(ORG).callers.is_empty());
}

/// Whether it was killed or closed, and also if the file was written anew after the clock was set.
#[test]
fn a_clock_that_was_set_forward_makes_no_slot_forgotten() {
    for (is_closed, is_written_anew) in [(false, false), (true, false), (false, true)] {
        let world = World::new();
        let quota = world.open();
        drop(world.take(&quota));
        std::mem::forget(world.take(&quota));
        world.sync(&quota);
        world.clock.step(jiff::SignedDuration::from_hours(48));
        if is_written_anew {
            fs::remove_file(world.dir.path().join(FILE)).unwrap();
            drop(world.take(&quota));
            world.sync(&quota);
        }
        if is_closed {
            world.close(&quota);
        }
        drop(quota);
        let quota = world.open();
        assert_eq!(used(&quota), 2 + u32::from(is_written_anew), "closed: {is_closed}");
        world.advance(62);
        assert_eq!(used(&quota), 0, "they come back as ever");
    }
}

#[test]
fn a_killed_process_leaves_every_slot_behind() {
    let world = World::new();
    let quota = world.open();
    drop(world.take(&quota));
    world.take(&quota).release_unsent();
    world.advance(20);
    drop(world.take(&quota));
    std::mem::forget(world.take(&quota));
    quota.learn_limit(11, 5);
    world.sync(&quota);
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
            let QuotaRefused::TooLong(outlook) = world.try_take(&quota, bucket).unwrap_err() else { panic!() };
            assert!(outlook.after > Duration::from_secs(60) && outlook.after <= Duration::from_secs(61));
        }
    }
    world.advance(61);
    let quota = world.open();
    world.take(&quota);
}

#[test]
fn a_journal_that_somebody_took_away_emptied_or_cut_makes_every_bucket_full_for_a_hold() {
    for damage in ["taken away", "emptied", "cut"] {
        let world = World::new();
        let quota = world.open();
        drop(world.take(&quota));
        world.close(&quota);
        drop(quota);
        let text = world.text();
        match damage {
            "taken away" => fs::remove_file(world.dir.path().join(FILE)).unwrap(),
            "emptied" => world.write(""),
            _ => world.write(&text[..text.len() - 1]),
        }
        let quota = world.open();
        assert!(world.try_take(&quota, ORG).is_err(), "{damage}");
        drop(quota);
        world.advance(61);
        world.take(&world.open());
    }
}

#[test]
fn after_a_clean_stop_another_boot_doubts_nothing() {
    let world = World::new();
    let quota = world.open();
    drop(world.take(&quota));
    world.close(&quota);
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
    quota.learn_limit(11, 1_000_000);
    for _ in 0..30 {
        (0..1_000).for_each(|_| drop(world.take(&quota)));
        // The thread has taken them; it keeps only a limited number for later.
        world.sync(&quota);
    }
    let under_way = world.take(&quota);
    world.sync(&quota);
    assert!(world.text().len() < 1 << 20, "{} of the 1.7 MB that were written", world.text().len());
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
    world.sync(&quota);
    drop(world.take(&quota));
    drop(quota);
    assert_eq!(used(&world.open()), 2);
}

#[test]
fn without_its_journal_the_quota_goes_on_and_a_restart_doubts() {
    let world = World::new();
    drop(world.open());
    let (mut file, _) = SlotsFile::open(world.dir.path(), false, world.clock.clone()).unwrap();
    file.break_for_test();
    let mut quota = world.open_without_journal();
    let journal = SlotJournal::start(file, world.clock.clone()).unwrap();
    Arc::get_mut(&mut quota.shared).unwrap().journal = Some(journal);
    drop(world.take(&quota));
    assert_eq!((used(&quota), quota.journal_failures()), (1, 1));
    world.sync(&quota);
    drop(world.take(&quota));
    assert_eq!(quota.journal_failures(), 2, "the end of the first attempt failed too; then it was written anew");
    drop(quota);
    let refused = world.try_take(&world.open(), ORG).unwrap_err();
    let QuotaRefused::TooLong(outlook) = refused else { panic!("{refused:?}") };
    assert!(outlook.after <= Duration::from_secs(61));
}

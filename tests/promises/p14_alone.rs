//! Promise 14. Nothing that one file or one disk does stops the rest.

use std::fs;
use std::io::Write as _;
use std::os::unix::fs::MetadataExt as _;
use std::time::Duration;

use makegate::clock::Clock;

use rustix::io::Errno;

use crate::support::disk::{Disk, Effect, Fault, Operation};

#[test]
fn the_disk_of_these_tests_does_as_told() {
    let dir = tempfile::tempdir().unwrap();
    let (below, at) = (dir.path().join("below"), dir.path().join("at"));
    fs::create_dir(&below).unwrap();
    fs::create_dir(&at).unwrap();
    let Some(disk) = Disk::mount(&below, &at) else { return };
    fs::write(at.join("one"), "first").unwrap();
    fs::File::options().append(true).open(at.join("one")).unwrap().write_all(b", second").unwrap();
    fs::rename(at.join("one"), at.join("two")).unwrap();
    assert_eq!(fs::read_to_string(below.join("two")).unwrap(), "first, second");
    assert_eq!(fs::metadata(at.join("two")).unwrap().ino(), fs::metadata(below.join("two")).unwrap().ino());
    fs::create_dir(at.join("three")).unwrap();
    let mut names: Vec<_> = fs::read_dir(&at).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    names.sort();
    assert_eq!(names, ["three", "two"]);

    disk.fault(Fault::of("t*o", Operation::Write, Effect::Fail(Errno::NOSPC)));
    let full = fs::File::options().append(true).open(at.join("two")).unwrap().write_all(b"!").unwrap_err();
    assert_eq!(full.raw_os_error(), Some(Errno::NOSPC.raw_os_error()));
    assert_eq!((disk.met(), fs::read_to_string(at.join("two")).unwrap().len()), (1, 13));
    disk.heal();
    disk.fault(Fault::of("two", Operation::Look, Effect::Delay(Duration::from_millis(200))));
    let before = Clock::system().now();
    fs::metadata(at.join("two")).unwrap();
    assert!(before.elapsed() >= Duration::from_millis(200));
    disk.heal();

    disk.fault(Fault::every("two", Effect::Hang));
    let mut hangs = std::process::Command::new("cat").arg(at.join("two")).spawn().unwrap();
    while disk.waiting() == 0 {
        std::thread::sleep(Duration::from_millis(5));
    }
    assert!(hangs.try_wait().unwrap().is_none());
    // What hangs can be killed: no test leaves a process behind.
    hangs.kill().unwrap();
    hangs.wait().unwrap();
    let reading = std::thread::spawn({
        let file = at.join("two");
        move || fs::read_to_string(file)
    });
    while disk.waiting() == 0 {
        std::thread::sleep(Duration::from_millis(5));
    }
    disk.heal();
    assert_eq!(reading.join().unwrap().unwrap(), "first, second");
    drop(disk);
    assert!(fs::read_dir(&at).unwrap().next().is_none(), "it is still mounted");
}

//! Files that commands write: whole, or not at all.

use std::fs;
use std::path::Path;

use super::processes::Demo;
use super::{command, run, stderr, stdout};

/// Everything below this folder.
fn names(folder: &Path) -> Vec<String> {
    let entries = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap());
    let mut names: Vec<_> = entries.map(|entry| entry.file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

#[test]
fn what_fails_leaves_no_file_and_no_folder() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path();
    fs::write(path.join("makegate.toml"), "operator.key_env = \"K\"\nupstream.token_env = \"T\"\n").unwrap();
    fs::write(path.join("old.json"), "what was there\n").unwrap();
    let before = names(path);
    let from_files = ["--config", "makegate.toml"];
    let from_nobody = ["--url", "http://127.0.0.1:1"];
    for source in [&from_files[..], &from_nobody, &["--config", "nowhere.toml"], &["--since", "never"]] {
        for output in ["new.json", "old.json"] {
            let export = run(path, &[&["audit", "export", "--output", output], source].concat());
            assert!(!export.status.success(), "{source:?}: {export:?}");
        }
        for reading in [&["audit", "query"][..], &["audit", "follow"], &["audit", "head"], &["doubts", "list"]] {
            assert!(!run(path, &[reading, source].concat()).status.success(), "{reading:?} {source:?}");
        }
    }
    assert!(!run(path, &["audit", "verify", "audit"]).status.success());
    stderr(2, &run(path, &["cert", "new", "--dir", "tls", "--name", "a b"]));
    stderr(1, &run(path, &["cert", "new", "--dir", "makegate.toml/tls"]));
    stderr(2, &run(path, &["key", "new", "--caller", "a b"]));
    stderr(2, &run(path, &["man", "nosuch"]));
    stderr(1, &run(path, &["man", "--dir", "makegate.toml/man"]));
    assert_eq!(names(path), before);
    assert_eq!(fs::read_to_string(path.join("old.json")).unwrap(), "what was there\n");
}

/// The disk takes nothing more once the folder is made.
#[test]
fn what_cannot_be_written_to_its_end_leaves_no_file_and_no_folder() {
    let temporary = tempfile::tempdir().unwrap();
    let demo = Demo::start(temporary.path());
    let folder = fs::read_dir(temporary.path()).unwrap().next().unwrap().unwrap().path();
    let made = tempfile::tempdir().unwrap();
    let out = |name: &str| made.path().join(name).display().to_string();
    fs::write(made.path().join("old.json"), "what was there\n").unwrap();
    let (tls, man, new, old) = (out("a/tls"), out("a/b/man"), out("new.json"), out("old.json"));
    let export = ["audit", "export", "--config", "makegate.toml", "--output"];
    let to_old = [&export[..], &[&old]].concat();
    let to_new = [&export[..], &[&new]].concat();
    let commands = [&["cert", "new", "--dir", &tls][..], &["man", "--dir", &man], &to_new, &to_old];
    for arguments in commands {
        let made_by = command(&folder, arguments);
        let mut shell = std::process::Command::new("sh");
        shell.args(["-c", "trap '' XFSZ; ulimit -f 0; exec \"$0\" \"$@\""]).arg(made_by.get_program());
        let failed = shell.args(made_by.get_args()).current_dir(&folder).output().unwrap();
        assert!(stderr(1, &failed).contains("error: cannot write"), "{arguments:?}: {failed:?}");
        assert_eq!(names(made.path()), ["old.json"], "{arguments:?}");
        assert_eq!(fs::read_to_string(made.path().join("old.json")).unwrap(), "what was there\n");
    }
    for arguments in commands {
        stdout(0, &run(&folder, arguments));
    }
    assert_eq!(names(made.path()), ["a", "new.json", "old.json"]);
    assert!(fs::read_to_string(made.path().join("old.json")).unwrap().starts_with("{\"seq\":1,"));
    drop(demo);
}

/// The disk is full after some of the files: none is there, however far it came.
#[test]
fn of_several_files_all_are_written_or_none() {
    let folder = tempfile::tempdir().unwrap();
    let made = folder.path().join("man");
    let dir = made.display().to_string();
    let mut failures = 0;
    for blocks in 0..1_000 {
        let made_by = command(folder.path(), &["man", "--dir", &dir]);
        let mut shell = std::process::Command::new("sh");
        let limited = format!("trap '' XFSZ; ulimit -f {blocks}; exec \"$0\" \"$@\"");
        shell.args(["-c", &limited]).arg(made_by.get_program()).args(made_by.get_args());
        let output = shell.current_dir(folder.path()).output().unwrap();
        if output.status.success() {
            break;
        }
        failures += 1;
        assert_eq!(names(folder.path()), [""; 0], "{blocks} blocks: {output:?}");
    }
    let sizes: Vec<_> = names(&made).iter().map(|name| fs::metadata(made.join(name)).unwrap().len()).collect();
    assert!(failures > 1 && sizes.iter().min() < sizes.iter().max(), "all files fail at once, so it proves nothing");
}

/// A pipe or a device is written as it is.
#[test]
fn an_export_goes_to_a_device_or_through_a_link() {
    let temporary = tempfile::tempdir().unwrap();
    let demo = Demo::start(temporary.path());
    let folder = fs::read_dir(temporary.path()).unwrap().next().unwrap().unwrap().path();
    let export = ["audit", "export", "--config", "makegate.toml", "--output"];
    assert!(stdout(0, &run(&folder, &[&export[..], &["/dev/stdout"]].concat())).starts_with("{\"seq\":1,"));
    assert!(stderr(1, &run(&folder, &[&export[..], &["/dev/full"]].concat())).contains("cannot write"));
    fs::write(folder.join("target.json"), "old").unwrap();
    std::os::unix::fs::symlink("target.json", folder.join("link.json")).unwrap();
    stdout(0, &run(&folder, &[&export[..], &["link.json"]].concat()));
    assert!(fs::symlink_metadata(folder.join("link.json")).unwrap().is_symlink());
    assert!(fs::read_to_string(folder.join("target.json")).unwrap().starts_with("{\"seq\":1,"));
    drop(demo);
}

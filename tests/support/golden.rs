//! Golden files: what is expected, in a file of its own. `UPDATE_GOLDEN=1` writes what there is instead of comparing.

#![allow(dead_code, reason = "several test binaries share it, and not each uses all of it")]

use std::fs;
use std::path::{Path, PathBuf};

/// A file of the repository.
pub(crate) fn file(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(path)
}

/// Is this the text of the file?
#[track_caller]
pub(crate) fn compare(path: &str, now: &str) {
    let file = file(path);
    if std::env::var_os("UPDATE_GOLDEN").is_some() {
        fs::create_dir_all(file.parent().unwrap()).unwrap();
        fs::write(&file, now).unwrap();
        return;
    }
    let expected =
        fs::read_to_string(&file).unwrap_or_else(|error| panic!("{path}: {error}; UPDATE_GOLDEN=1 makes it"));
    assert!(
        expected == now,
        "{path} is not what it was; UPDATE_GOLDEN=1 rewrites it. Expected:\n{expected}\nNow:\n{now}"
    );
}

/// Is this what stands between `<!-- NAME -->` and `<!-- /NAME -->` in the file?
#[track_caller]
pub(crate) fn compare_between(path: &str, name: &str, now: &str) {
    let whole = fs::read_to_string(file(path)).unwrap_or_else(|error| panic!("{path}: {error}"));
    let (open, close) = (format!("<!-- {name} -->"), format!("<!-- /{name} -->"));
    let parts = whole.split_once(&open).and_then(|(before, rest)| Some((before, rest.split_once(&close)?.1)));
    let (before, after) = parts.unwrap_or_else(|| panic!("{path} has no {open} … {close}"));
    compare(path, &format!("{before}{open}\n\n{now}\n\n{close}{after}"));
}

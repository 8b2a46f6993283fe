//! The house rules as tests: how the code is laid out, and that tables in documents say what the code does.

#![allow(clippy::disallowed_methods, reason = "a test may wait for files")]
#![expect(clippy::unwrap_used, clippy::panic, reason = "a test that cannot go on fails")]

#[path = "../support/golden.rs"]
mod golden;

mod circles;
mod documents;
mod layout;
mod names;
mod promises;
mod references;
mod security;

use std::fs;
use std::path::{Path, PathBuf};

/// Every Rust file below a folder of the repository, with its text; paths are relative to the repository.
fn sources(folder: &str) -> Vec<(String, String)> {
    let root = golden::file("");
    let mut files = Vec::new();
    collect(&root.join(folder), &mut files);
    files.sort();
    let relative = |path: &Path| path.strip_prefix(&root).unwrap().to_str().unwrap().to_owned();
    files.iter().map(|path| (relative(path), fs::read_to_string(path).unwrap())).collect()
}

fn collect(folder: &Path, files: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            collect(&path, files);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            files.push(path);
        }
    }
}

fn read(path: &str) -> String {
    fs::read_to_string(golden::file(path)).unwrap_or_else(|error| panic!("{path}: {error}"))
}

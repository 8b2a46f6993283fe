//! The file `closed`: the head with which the log was closed, in the format of the file `head`. It exists only while
//! no makegate has the log open.
//!
//! A file-by-file copy made while makegate writes can hold a newer head than records, and then looks like a log whose
//! tail was cut off. A closed log has all the records of its heads in every copy, so a missing record was removed.
//! The file is therefore created once everything else is on disk, and deleted before anything is written: whoever
//! finds it when listing the folder also finds all records.

#![expect(clippy::disallowed_methods, reason = "at startup, and by the thread `audit-writer`")]

use std::io;
use std::path::{Path, PathBuf};

use crate::audit::segment::disk;
use crate::private_files;

pub(crate) fn path(dir: &Path) -> PathBuf {
    dir.join("closed")
}

/// Marks the log as closed. `text` is the head over its last record, preceded by the introductions of its key.
pub(crate) fn close(dir: &Path, text: &str) -> io::Result<()> {
    disk::replace(&path(dir), text.as_bytes(), 0o600)
}

/// Removes the mark before the log is written to.
pub(crate) fn open(dir: &Path) -> io::Result<()> {
    private_files::remove(&path(dir))
}

//! The file `closed`: the head that the log was closed with, in the form of the file `head`. It is there only while no makegate has the log.
//!
//! A copy that is made file by file while makegate writes may have a newer head than records, and looks like a log whose tail was cut
//! off. A log that was closed has all the records of its heads, in every copy: there a record that is missing was taken away. So the
//! file is made when everything else is on disk, and deleted before anything is written: who finds it when he lists the folder finds
//! all records too.

#![expect(clippy::disallowed_methods, reason = "at the start, and by the thread `audit-writer`")]

use std::io;
use std::path::{Path, PathBuf};

use super::super::disk;
use crate::private_files;

/// Where it is.
pub(crate) fn path(dir: &Path) -> PathBuf {
    dir.join("closed")
}

/// The log is closed. `text`: the head of its last record, after the introductions of its key.
pub(crate) fn close(dir: &Path, text: &str) -> io::Result<()> {
    disk::replace(&path(dir), text.as_bytes(), 0o600)
}

/// The log is about to be written to.
pub(crate) fn open(dir: &Path) -> io::Result<()> {
    private_files::remove(&path(dir))
}

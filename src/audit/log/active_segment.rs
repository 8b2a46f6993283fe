//! The segment being written, and how the next one begins.

#![expect(clippy::disallowed_methods, reason = "only the thread `audit-writer` runs this")]

use std::fs::{self, File};
use std::io::{self, Write as _};
use std::path::PathBuf;

use jiff::Timestamp;

use super::shared::LogShared;
use crate::audit::proof::leaves;
use crate::audit::recover;
use crate::audit::segment;
use crate::audit::segment::disk::{self, Disk};
use crate::audit::segment::tree::Hash;

/// The segment being written.
#[derive(Debug)]
pub(crate) struct ActiveSegment {
    pub(crate) first: u64,
    pub(super) path: PathBuf,
    pub(super) file: File,
    pub(super) identity: (u64, u64),
    /// Length that was acknowledged, in bytes.
    pub(super) length: u64,
    /// Length of its first record, which lists all open writes.
    pub(super) opening: u64,
    pub(super) begun: Timestamp,
    /// File for its leaf hashes. `None` once writing it has failed.
    pub(super) leaves: Option<File>,
}

impl ActiveSegment {
    /// A file with hashes missing is useless, so it is not continued.
    pub(super) fn add_leaves(&mut self, leaves: &[Hash]) {
        let added = self.leaves.as_mut().map(|file| file.write_all(leaves.as_flattened()));
        if let Some(Err(error)) = added {
            tracing::warn!(%error, "cannot write leaf hashes of the audit log");
            self.leaves = None;
        }
    }
}

/// Begins the segment with this first record, whose own line has `opening` bytes.
///
/// # Errors
/// If its file cannot be made.
pub(super) fn begin_segment(
    shared: &LogShared,
    disk: &dyn Disk,
    (first, opening): (u64, u64),
) -> io::Result<ActiveSegment> {
    let path = segment::path(&shared.dir, first);
    let file = match disk.create(&path) {
        // A file with this name was acknowledged to nobody, or its number would not be the next.
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
            recover::set_aside(&path, fs::metadata(&path)?.len())?;
            disk.create(&path)?
        }
        created => created?,
    };
    let identity = disk::identity(&file.metadata()?);
    let leaves = leaves::create(&shared.dir, first);
    if let Err(error) = &leaves {
        tracing::warn!(%error, "a segment of the audit log has no leaf hashes");
    }
    let (begun, leaves) = (shared.clock.wall(), leaves.ok());
    Ok(ActiveSegment { first, path, file, identity, length: 0, opening, begun, leaves })
}

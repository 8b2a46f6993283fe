//! A file that only occupies space. When the disk is full it is freed, so that outcomes of writes under way can still
//! be recorded.

#![expect(clippy::disallowed_methods, reason = "only the thread `audit-writer` uses the reserve")]

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

use crate::audit::segment::disk::Disk;
use crate::private_files;

/// Maximum size of the reserve.
const RESERVE_BYTES_MAX: u64 = 64 << 20;

#[derive(Debug, PartialEq, Eq)]
enum ReserveState {
    /// Not on disk, because there is no space for it.
    Missing,
    Held,
    /// Freed when the disk was full.
    Freed,
}

#[derive(Debug)]
pub(crate) struct SpaceReserve {
    path: PathBuf,
    bytes: u64,
    state: ReserveState,
}

impl SpaceReserve {
    pub(crate) fn new(dir: &Path, segment_bytes: u64) -> Self {
        Self { path: dir.join("reserve"), bytes: segment_bytes.min(RESERVE_BYTES_MAX), state: ReserveState::Missing }
    }

    /// Occupies the space if it is available; returns true if it did.
    pub(crate) fn restore(&mut self, disk: &dyn Disk) -> bool {
        if self.state != ReserveState::Held {
            match self.allocate(disk) {
                Ok(()) => self.state = ReserveState::Held,
                Err(error) => {
                    tracing::debug!(%error, "no space for the audit log's reserve");
                    let _it_may_not_be_there = fs::remove_file(&self.path);
                }
            }
        }
        self.state == ReserveState::Held
    }

    fn allocate(&self, disk: &dyn Disk) -> io::Result<()> {
        if fs::symlink_metadata(&self.path).is_ok_and(|about| !about.is_file()) {
            private_files::remove(&self.path)?;
        }
        let file = private_files::open(File::options().write(true).create(true), &self.path)?;
        disk.allocate(&file, self.bytes)
    }

    /// Frees the space if the error says that the disk is full; returns true if it did.
    pub(crate) fn free_for(&mut self, error: &io::Error) -> bool {
        let full = matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded);
        let freed = full && self.state == ReserveState::Held && fs::remove_file(&self.path).is_ok();
        if freed {
            self.state = ReserveState::Freed;
        }
        freed
    }

    pub(crate) fn is_freed(&self) -> bool {
        self.state == ReserveState::Freed
    }
}

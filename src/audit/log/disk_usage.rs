//! How much of the disk the log's folder takes. The index thread measures it now and then: a scrape never waits for a disk.

#![expect(clippy::disallowed_methods, reason = "by the thread `audit-index`, and at the start")]

use std::fs;
use std::path::Path;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Time between two measurements.
const INTERVAL: Duration = Duration::from_secs(10);

/// What the folder takes, and what is left of its disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DiskUsage {
    /// Bytes of all its files.
    pub used_bytes: u64,
    /// Bytes that are free for this user.
    pub free_bytes: u64,
    /// Bytes of the whole disk.
    pub size_bytes: u64,
}

/// With less than this free, a disk is nearly full, unless it is so small that half of it is still free.
const FREE_BYTES_MIN: u64 = 128 << 20;
/// With more than this free, no disk is nearly full, however large it is.
const FREE_BYTES_ENOUGH: u64 = 4 << 30;
/// In between, one with less than this part free is.
const FREE_DIVISOR: u64 = 20;

impl DiskUsage {
    /// Will the disk soon be full?
    #[must_use]
    pub const fn is_nearly_full(&self) -> bool {
        let Self { free_bytes, size_bytes, .. } = *self;
        // A file system that does not tell its size is not full.
        size_bytes > 0
            && free_bytes < FREE_BYTES_ENOUGH
            && ((free_bytes < FREE_BYTES_MIN && free_bytes <= size_bytes / 2) || free_bytes < size_bytes / FREE_DIVISOR)
    }
}

/// The last measurement.
#[derive(Debug, Default)]
pub(crate) struct MeasuredUsage(Mutex<Option<(Instant, DiskUsage)>>);

impl MeasuredUsage {
    pub(crate) fn get(&self) -> Option<DiskUsage> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).map(|(_, usage)| usage)
    }

    /// Measures again if the last measurement is old. One that fails is left out.
    pub(crate) fn refresh(&self, dir: &Path, now: Instant) {
        let measured = self.0.lock().unwrap_or_else(PoisonError::into_inner).map(|(when, _)| when);
        if measured.is_none_or(|when| now.saturating_duration_since(when) >= INTERVAL)
            && let Some(usage) = measure(dir)
        {
            *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some((now, usage));
        }
    }
}

fn measure(dir: &Path) -> Option<DiskUsage> {
    let files = fs::read_dir(dir).ok()?.filter_map(|file| file.ok()?.metadata().ok());
    let used_bytes = files.filter(fs::Metadata::is_file).map(|about| about.len()).sum();
    let disk = rustix::fs::statvfs(dir).ok()?;
    let bytes = |blocks: u64| blocks.saturating_mul(disk.f_frsize);
    Some(DiskUsage { used_bytes, free_bytes: bytes(disk.f_bavail), size_bytes: bytes(disk.f_blocks) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_disk_is_nearly_full_by_what_is_free_of_it() {
        let is_nearly_full =
            |free_bytes, size_bytes| DiskUsage { used_bytes: 0, free_bytes, size_bytes }.is_nearly_full();
        assert!(is_nearly_full(31 << 20, 64 << 20) && !is_nearly_full(59 << 20, 64 << 20));
        assert!(is_nearly_full(100 << 20, 1 << 30) && is_nearly_full(1 << 30, 100 << 30) && is_nearly_full(0, 1));
        assert!(!is_nearly_full(200 << 20, 1 << 30) && !is_nearly_full(5 << 30, 4 << 40) && !is_nearly_full(0, 0));
    }
}

//! How much of the disk the log's folder takes. The index thread measures it now and then: a scrape never waits for a disk.

#![expect(clippy::disallowed_methods, reason = "by the thread `audit-index`")]

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
    Some(DiskUsage { used_bytes, free_bytes: disk.f_bavail.saturating_mul(disk.f_frsize) })
}

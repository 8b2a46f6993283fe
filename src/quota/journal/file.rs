//! The file `quota.slots`, which only the journal's thread touches.

#![expect(clippy::disallowed_methods, reason = "at startup, and by the thread `quota-journal`")]

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::{FileExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};

use super::super::journal_state::JournalState;
use crate::clock::Clock;
use crate::private_files;

pub(super) const FILE: &str = "quota.slots";
const FILE_NEXT: &str = "quota.slots.next";
/// The file is rewritten when it has grown by this much and to twice its live size.
const GROWTH_BYTES: u64 = 1 << 20;

/// The open file.
#[derive(Debug)]
pub(super) struct SlotsFile {
    dir: PathBuf,
    clock: Clock,
    boot: String,
    file: File,
    bytes: u64,
    /// The value of `bytes` when the file was last rewritten.
    bytes_live: u64,
    /// Something was written since the last sync.
    is_dirty: bool,
    /// Lines have been missing since the file was last rewritten.
    is_torn: bool,
}

impl SlotsFile {
    /// Opens the file in `dir`, or creates it, and returns what it remembers. If the gateway `has_run` before there
    /// was a file: removing or emptying it must not make makegate forget what may have been sent.
    pub(super) fn open(dir: &Path, has_run: bool, clock: Clock) -> io::Result<(Self, JournalState)> {
        let boot = fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default().trim().to_owned();
        let now = clock.wall_ms();
        let path = dir.join(FILE);
        let named = |error: io::Error| io::Error::new(error.kind(), format!("{}: {error}", path.display()));
        let mut journal_state = match private_files::read(&path) {
            Ok(bytes) if bytes.is_empty() && has_run => unknown(now, "is empty"),
            Ok(bytes) => read_state(&bytes, &boot, &clock, now),
            Err(error) if error.kind() == io::ErrorKind::NotFound && has_run => unknown(now, "is gone"),
            Err(error) if error.kind() == io::ErrorKind::NotFound => JournalState::default(),
            Err(error) if error.kind() == io::ErrorKind::InvalidData => unknown(now, "is not a regular file"),
            Err(error) => return Err(named(error)),
        };
        journal_state.end_all(now);
        let text = journal_state.text(&boot, now, clock.since_boot_ms());
        let file = replace_file(dir, &text).map_err(named)?;
        let bytes = length(&text);
        let (dir, bytes_live) = (dir.to_owned(), bytes);
        Ok((Self { dir, clock, boot, file, bytes, bytes_live, is_dirty: false, is_torn: false }, journal_state))
    }

    /// Appends lines. A failed append is not repeated: the file stays torn until it is rewritten.
    pub(super) fn append(&mut self, mut lines: Vec<u8>) -> io::Result<()> {
        if lines.is_empty() {
            return Ok(());
        }
        if self.is_torn {
            // The previous line may lack its end.
            lines.insert(0, b'\n');
        }
        self.is_dirty = true;
        let written = match self.file.write(&lines) {
            Ok(written) if written == lines.len() => Ok(()),
            Ok(_) => Err(io::ErrorKind::WriteZero.into()),
            Err(error) => Err(error),
        };
        match &written {
            Ok(()) => self.bytes += length(&lines),
            Err(_) => self.mark_torn(),
        }
        written
    }

    /// Notes that lines are missing, so that the file's reader must doubt it.
    pub(super) fn mark_torn(&mut self) {
        self.is_torn = true;
    }

    /// Syncs all lines, and rewrites the file if it has grown, is torn, or was removed.
    pub(super) fn sync(&mut self) -> io::Result<()> {
        if self.is_dirty {
            self.file.sync_data().inspect_err(|_| self.is_torn = true)?;
            self.is_dirty = false;
        }
        let has_grown = self.bytes >= self.bytes_live + self.bytes_live.max(GROWTH_BYTES);
        if !self.is_torn && !has_grown && self.is_in_place() {
            return Ok(());
        }
        self.write_anew().inspect_err(|_| self.bytes_live = self.bytes)
    }

    /// Rewrites the file in its shortest form.
    fn write_anew(&mut self) -> io::Result<()> {
        let now = self.clock.wall_ms();
        let mut journal_state = read_state(&read_all(&self.file)?, &self.boot, &self.clock, now);
        if self.is_torn {
            journal_state.assume_full(now);
        }
        let text = journal_state.text(&self.boot, now, self.clock.since_boot_ms());
        self.file = replace_file(&self.dir, &text)?;
        self.bytes = length(&text);
        (self.bytes_live, self.is_dirty, self.is_torn) = (self.bytes, false, false);
        Ok(())
    }

    fn is_in_place(&self) -> bool {
        let place = fs::metadata(self.dir.join(FILE)).map(|place| (place.dev(), place.ino()));
        let file = self.file.metadata().map(|file| (file.dev(), file.ino()));
        matches!((place, file), (Ok(place), Ok(file)) if place == file)
    }

    #[cfg(test)]
    pub(super) fn break_for_test(&mut self) {
        self.file = File::open(self.dir.join(FILE)).unwrap();
    }
}

/// What the file says, with times of the clock as it is set now: one that was set forward must not make slots too old.
fn read_state(bytes: &[u8], boot: &str, clock: &Clock, now: i64) -> JournalState {
    let by_file = JournalState::time_by_file(bytes, boot, now, clock.since_boot_ms());
    let mut journal_state = JournalState::read(bytes, boot, by_file);
    journal_state.shift(now.saturating_sub(by_file));
    journal_state
}

/// The state when there is no readable journal.
fn unknown(now: i64, why: &str) -> JournalState {
    tracing::warn!("{FILE} {why}: what was sent before is unknown, so every quota counts as used up until now");
    let mut unknown = JournalState::default();
    unknown.assume_full(now);
    unknown
}

/// Durably replaces the file with this text.
fn replace_file(dir: &Path, text: &[u8]) -> io::Result<File> {
    let next = dir.join(FILE_NEXT);
    private_files::remove(&next)?;
    let mut file = private_files::open(OpenOptions::new().read(true).append(true).create_new(true), &next)?;
    file.write_all(text)?;
    file.sync_data()?;
    private_files::rename(&next, &dir.join(FILE))?;
    File::open(dir)?.sync_all()?;
    Ok(file)
}

fn read_all(file: &File) -> io::Result<Vec<u8>> {
    let mut all = vec![0; usize::try_from(file.metadata()?.len()).unwrap_or(usize::MAX)];
    file.read_exact_at(&mut all, 0)?;
    Ok(all)
}

fn length(text: &[u8]) -> u64 {
    u64::try_from(text.len()).unwrap_or(u64::MAX)
}

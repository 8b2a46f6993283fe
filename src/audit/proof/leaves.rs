//! The leaf hashes of a segment's records, in a file beside it. They are derived and never synced on their own. When
//! a head does not match the log, they show which record was changed.

#![expect(
    clippy::disallowed_methods,
    reason = "startup and the thread `audit-writer` write them, `disk::wait` and commands read them"
)]

use std::fs::File;
use std::io::{self, BufRead as _, BufReader, Write as _};
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};

use crate::audit::segment::tree::{self, Hash};
use crate::audit::segment::{self, disk};
use crate::private_files;

const HASH_BYTES: usize = size_of::<Hash>();

pub(crate) fn path(dir: &Path, first: u64) -> PathBuf {
    segment::path(dir, first).with_extension("leaves")
}

/// Creates a new segment's file for appending.
pub(crate) fn create(dir: &Path, first: u64) -> io::Result<File> {
    let path = path(dir, first);
    private_files::remove(&path)?;
    private_files::open(File::options().append(true).create_new(true), &path)
}

/// Opens a continued segment's file for appending.
pub(crate) fn resume(dir: &Path, first: u64) -> io::Result<File> {
    private_files::open(File::options().append(true), &path(dir, first))
}

/// Rewrites the file from the records after a crash, when nobody knows how much of it was kept, or if an older
/// version made none. After a clean stop the file is evidence and is left alone.
pub(crate) fn mend(dir: &Path, first: u64, leaves: &[Hash], clean: bool) -> io::Result<()> {
    let stored = private_files::read(&path(dir, first)).unwrap_or_default();
    let bytes = leaves.as_flattened();
    if stored == bytes || (clean && stored.len() >= bytes.len()) {
        return Ok(());
    }
    create(dir, first)?.write_all(bytes)
}

/// Reads `count` leaf hashes, starting with record `from`, of the segment that begins with `first`.
pub(crate) fn read(dir: &Path, first: u64, from: u64, count: u64) -> io::Result<Vec<Hash>> {
    let length = usize::try_from(count).map_err(io::Error::other)?;
    let mut leaves = vec![Hash::default(); length];
    let offset = (from - first) * HASH_BYTES as u64;
    let stored = private_files::open_to_read(&path(dir, first));
    match stored.and_then(|file| file.read_exact_at(leaves.as_flattened_mut(), offset)) {
        Ok(()) => Ok(leaves),
        Err(_missing_or_short) => of_lines(dir, first, from, length),
    }
}

/// Computes them from the records themselves.
fn of_lines(dir: &Path, first: u64, from: u64, count: usize) -> io::Result<Vec<Hash>> {
    let lines =
        BufReader::with_capacity(256 << 10, private_files::open_to_read(&segment::path(dir, first))?).split(b'\n');
    let skipped = usize::try_from(from - first).map_err(io::Error::other)?;
    let leaves: Vec<Hash> =
        lines.skip(skipped).take(count).map(|line| Ok(tree::leaf(&line?))).collect::<io::Result<_>>()?;
    if leaves.len() == count { Ok(leaves) } else { Err(io::ErrorKind::UnexpectedEof.into()) }
}

/// The stored leaf hashes of one segment.
#[derive(Debug)]
pub(crate) struct StoredLeaves {
    first: u64,
    leaves: Vec<Hash>,
}

impl StoredLeaves {
    /// Loads all hashes of the segment that begins with `first`; none if there is no file.
    pub(crate) fn load(dir: &Path, first: u64) -> io::Result<Self> {
        disk::about_to_read();
        let bytes = match private_files::read(&path(dir, first)) {
            Ok(bytes) => bytes,
            Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::InvalidData) => Vec::new(),
            Err(error) => return Err(error),
        };
        let (leaves, _cut) = bytes.as_chunks::<HASH_BYTES>();
        Ok(Self { first, leaves: leaves.to_vec() })
    }

    /// The leaf hash of this record. A hole that a power loss left in the file counts as none.
    pub(crate) fn get(&self, seq: u64) -> Option<Hash> {
        let at = usize::try_from(seq.checked_sub(self.first)?).ok()?;
        self.leaves.get(at).copied().filter(|leaf| *leaf != Hash::default())
    }

    /// The last record that has a hash.
    pub(crate) fn last(&self) -> Option<u64> {
        (self.first..).zip(&self.leaves).filter(|(_, leaf)| **leaf != Hash::default()).last().map(|(seq, _)| seq)
    }
}

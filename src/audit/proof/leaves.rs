//! The leaf hashes of a segment's records, in a file beside it. They are derived, and never synced by themselves; when a head
//! does not fit the log, they tell which record is not what it was.

#![expect(
    clippy::disallowed_methods,
    reason = "the start and the thread `audit-writer` write them, `disk::wait` and commands read them"
)]

use std::fs::File;
use std::io::{self, BufRead as _, BufReader, Write as _};
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};

use super::super::tree::{self, Hash};
use super::super::{disk, segment};
use crate::private_files;

/// Bytes of one.
const HASH_BYTES: usize = size_of::<Hash>();

/// Where the leaf hashes of the segment that begins with `first` are.
pub(crate) fn path(dir: &Path, first: u64) -> PathBuf {
    segment::path(dir, first).with_extension("leaves")
}

/// The file of a new segment, to append to.
pub(crate) fn create(dir: &Path, first: u64) -> io::Result<File> {
    let path = path(dir, first);
    private_files::remove(&path)?;
    private_files::open(File::options().append(true).create_new(true), &path)
}

/// The file of a segment that is gone on with, to append to.
pub(crate) fn resume(dir: &Path, first: u64) -> io::Result<File> {
    private_files::open(File::options().append(true), &path(dir, first))
}

/// Brings the file to what the records say: after a crash, as nobody knows how much of it was kept, and where an older
/// makegate made none. After a clean stop what is there is evidence and stays.
pub(crate) fn mend(dir: &Path, first: u64, leaves: &[Hash], clean: bool) -> io::Result<()> {
    let stored = private_files::read(&path(dir, first)).unwrap_or_default();
    let bytes = leaves.as_flattened();
    if stored == bytes || (clean && stored.len() >= bytes.len()) {
        return Ok(());
    }
    create(dir, first)?.write_all(bytes)
}

/// `count` leaf hashes from the record `from` on, of the segment that begins with `first`.
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

/// The same from the records themselves.
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
    /// All that are there of the segment that begins with `first`; none, where there is no file.
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

    /// The leaf hash of this record. A hole that a loss of power left in the file is none.
    pub(crate) fn get(&self, seq: u64) -> Option<Hash> {
        let at = usize::try_from(seq.checked_sub(self.first)?).ok()?;
        self.leaves.get(at).copied().filter(|leaf| *leaf != Hash::default())
    }

    /// The last record that has one.
    pub(crate) fn last(&self) -> Option<u64> {
        (self.first..).zip(&self.leaves).filter(|(_, leaf)| **leaf != Hash::default()).last().map(|(seq, _)| seq)
    }
}

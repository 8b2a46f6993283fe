//! The kernel's FUSE messages, as far as they are needed here (`linux/fuse.h`).

use rustix::fs::{FileType, Stat};
use rustix::io::Errno;

pub(super) const LOOKUP: u32 = 1;
const FORGET: u32 = 2;
pub(super) const GETATTR: u32 = 3;
pub(super) const SETATTR: u32 = 4;
pub(super) const MKDIR: u32 = 9;
pub(super) const UNLINK: u32 = 10;
pub(super) const RMDIR: u32 = 11;
pub(super) const RENAME: u32 = 12;
pub(super) const OPEN: u32 = 14;
pub(super) const READ: u32 = 15;
pub(super) const WRITE: u32 = 16;
pub(super) const STATFS: u32 = 17;
pub(super) const RELEASE: u32 = 18;
pub(super) const FSYNC: u32 = 20;
pub(super) const INIT: u32 = 26;
pub(super) const OPENDIR: u32 = 27;
pub(super) const READDIR: u32 = 28;
pub(super) const RELEASEDIR: u32 = 29;
pub(super) const FSYNCDIR: u32 = 30;
pub(super) const CREATE: u32 = 35;
const INTERRUPT: u32 = 36;
const BATCH_FORGET: u32 = 42;
pub(super) const FALLOCATE: u32 = 43;
pub(super) const RENAME2: u32 = 45;

/// Bits of a SETATTR.
pub(super) const SET_MODE: u32 = 1;
pub(super) const SET_SIZE: u32 = 8;
/// A WRITE that comes from the kernel's own cache and not from a call.
const WRITE_CACHE: u32 = 1;

const HEADER_BYTES: usize = 40;

/// One message of the kernel's.
pub(super) struct Request(Vec<u8>);

impl Request {
    pub(super) fn new(message: Vec<u8>) -> Self {
        assert!(message.len() >= HEADER_BYTES, "a message without its header");
        Self(message)
    }

    fn u32_at(&self, at: usize) -> u32 {
        self.0.get(at..at + 4).map_or(0, |bytes| u32::from_ne_bytes(bytes.try_into().unwrap()))
    }

    fn u64_at(&self, at: usize) -> u64 {
        self.0.get(at..at + 8).map_or(0, |bytes| u64::from_ne_bytes(bytes.try_into().unwrap()))
    }

    pub(super) fn kind(&self) -> u32 {
        self.u32_at(4)
    }

    pub(super) fn unique(&self) -> u64 {
        self.u64_at(8)
    }

    pub(super) fn node(&self) -> u64 {
        self.u64_at(16)
    }

    pub(super) fn wants_answer(&self) -> bool {
        !matches!(self.kind(), FORGET | BATCH_FORGET)
    }

    pub(super) fn is_interrupt(&self) -> bool {
        self.kind() == INTERRUPT
    }

    pub(super) fn interrupted(&self) -> u64 {
        self.long(0)
    }

    /// The number at this place of what follows the header.
    pub(super) fn word(&self, at: usize) -> u32 {
        self.u32_at(HEADER_BYTES + at)
    }

    pub(super) fn long(&self, at: usize) -> u64 {
        self.u64_at(HEADER_BYTES + at)
    }

    /// What follows the header, from this place on.
    pub(super) fn rest(&self, at: usize) -> &[u8] {
        self.0.get(HEADER_BYTES + at..).unwrap_or_default()
    }

    /// The names at this place.
    pub(super) fn names(&self, at: usize) -> Vec<String> {
        self.rest(at).split(|byte| *byte == 0).map(|name| String::from_utf8_lossy(name).into_owned()).collect()
    }

    pub(super) fn name(&self, at: usize) -> String {
        self.names(at).swap_remove(0)
    }

    pub(super) fn is_of_cache(&self) -> bool {
        self.kind() == WRITE && self.word(20) & WRITE_CACHE != 0
    }
}

/// What the kernel is told.
pub(super) fn answer(unique: u64, done: Result<Vec<u8>, Errno>) -> Vec<u8> {
    let (error, body) = done.map_or_else(|error| (-error.raw_os_error(), Vec::new()), |body| (0, body));
    let length = u32::try_from(body.len() + 16).unwrap();
    let mut message = Vec::with_capacity(body.len() + 16);
    message.extend(length.to_ne_bytes());
    message.extend(error.to_ne_bytes());
    message.extend(unique.to_ne_bytes());
    message.extend(body);
    message
}

/// The answer to INIT: this version of the interface, nothing special, 128 KiB a write.
pub(super) fn init() -> Vec<u8> {
    let words: [u32; 16] = [7, 31, 0, 0, 16 | (12 << 16), 128 << 10, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    bytes(&words)
}

pub(super) fn bytes(words: &[u32]) -> Vec<u8> {
    words.iter().flat_map(|word| word.to_ne_bytes()).collect()
}

/// `fuse_attr`.
#[expect(clippy::unnecessary_cast, reason = "the types differ among machines")]
fn attributes(of: &Stat) -> Vec<u8> {
    let mut all = Vec::new();
    for long in [of.st_ino as u64, of.st_size.cast_unsigned() as u64, of.st_blocks.cast_unsigned() as u64] {
        all.extend(long.to_ne_bytes());
    }
    for time in [of.st_atime, of.st_mtime, of.st_ctime] {
        all.extend(time.to_ne_bytes());
    }
    for nanoseconds in [of.st_atime_nsec, of.st_mtime_nsec, of.st_ctime_nsec] {
        all.extend(u32::try_from(nanoseconds).unwrap().to_ne_bytes());
    }
    all.extend(bytes(&[of.st_mode, u32::try_from(of.st_nlink).unwrap(), of.st_uid, of.st_gid, 0, 4096, 0]));
    all
}

/// `fuse_attr_out`: never valid for longer than this once.
pub(super) fn attr_out(of: &Stat) -> Vec<u8> {
    [bytes(&[0; 4]), attributes(of)].concat()
}

/// `fuse_entry_out`: the same.
pub(super) fn entry_out(of: &Stat) -> Vec<u8> {
    #[expect(clippy::unnecessary_cast, reason = "the types differ among machines")]
    let node = (of.st_ino as u64).to_ne_bytes().to_vec();
    [node, bytes(&[0; 8]), attributes(of)].concat()
}

/// `fuse_open_out`.
pub(super) fn open_out(handle: u64) -> Vec<u8> {
    [handle.to_ne_bytes().to_vec(), bytes(&[0; 2])].concat()
}

/// `fuse_statfs_out`: there is room.
pub(super) fn statfs_out() -> Vec<u8> {
    let longs = [1_u64 << 20; 5].iter().flat_map(|long| long.to_ne_bytes()).collect();
    [longs, bytes(&[4096, 255, 4096, 0, 0, 0, 0, 0, 0, 0])].concat()
}

/// `fuse_dirent`.
pub(super) fn dirent(node: u64, next: u64, kind: FileType, name: &str) -> Vec<u8> {
    let kind = if kind == FileType::Directory { 4 } else { 8 };
    let mut entry = [node.to_ne_bytes(), next.to_ne_bytes()].concat();
    entry.extend(bytes(&[u32::try_from(name.len()).unwrap(), kind]));
    entry.extend(name.as_bytes());
    entry.resize(entry.len().next_multiple_of(8), 0);
    entry
}

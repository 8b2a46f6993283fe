//! The fingerprint key, `fingerprint.key`. With a different key, no earlier write or idempotency key is recognized,
//! so a write that was carried out or is in doubt could be carried out again. Each segment therefore names the key it
//! was written with, and makegate refuses to start with a different key or none until an operator allows it.

#![expect(clippy::disallowed_methods, reason = "at startup, and by the thread `audit-key`")]

pub(super) mod field_values;
pub(super) mod key_guard;
mod write_ids;

use std::fmt;
use std::fs;
use std::io::{self, Read as _};
use std::path::{Path, PathBuf};

use aws_lc_rs::hmac;

use crate::audit::record::Record;
use crate::audit::recover::{Recovered, ResumePoint};
use crate::audit::segment::disk::{self, OpenError, with_context};
use crate::clock::Clock;
use crate::hash;
use crate::private_files;

const KEY_BYTES: usize = 32;
/// What is wrong if the replicas' key is not the log's.
const NOT_SHARED: &str = "is not the key in replicas.key_file (`makegate replicas init` beside this log makes that file from it; a replica with \
                          another log needs an audit.dir of its own)";
/// What is wrong with a key file that does not exist.
const MISSING: &str = "is missing";
/// The key, and the name by which segments refer to it.
#[derive(Clone)]
pub(crate) struct FingerprintKey {
    pub(crate) bytes: [u8; KEY_BYTES],
    pub(crate) hmac: hmac::Key,
    pub(crate) name: String,
}

impl fmt::Debug for FingerprintKey {
    /// Hides the key itself.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("FingerprintKey").field(&self.name).finish()
    }
}

impl FingerprintKey {
    fn new(bytes: [u8; KEY_BYTES]) -> Self {
        let digest = hash::sha256_parts(&[b"makegate fingerprint key", &bytes]);
        Self { bytes, hmac: hash::hmac_key(&bytes), name: hash::hex(&digest).chars().take(16).collect() }
    }
}

pub(super) fn path(dir: &Path) -> PathBuf {
    dir.join("fingerprint.key")
}

/// The empty file by which an operator allows earlier keys and writes to be forgotten.
fn forget_path(dir: &Path) -> PathBuf {
    dir.join("fingerprint.key.forget")
}

/// Reads the key file. The inner error says what is wrong with the file.
pub(super) fn read(path: &Path) -> io::Result<Result<[u8; KEY_BYTES], &'static str>> {
    let file = match private_files::open_to_read(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::InvalidData => return Ok(Err("is not a regular file")),
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Err(MISSING)),
        Err(error) => return Err(error),
    };
    let mut bytes = Vec::new();
    file.take(KEY_BYTES as u64 + 1).read_to_end(&mut bytes)?;
    Ok(bytes.try_into().map_err(|_| "is damaged (it should hold 32 bytes)"))
}

/// The log's key; a new log gets a new one, or `shared`, the one that all replicas have. If an operator allows it, or the log is from a version that did not name
/// its key, the log continues with the existing key, or with a new one if there is none. An event records this,
/// because fingerprints made with different keys never match.
pub(crate) fn open(
    dir: &Path,
    clock: &Clock,
    start: &mut ResumePoint,
    recovered: &Recovered,
    shared: Option<[u8; KEY_BYTES]>,
) -> Result<(FingerprintKey, Option<Record<'static>>), OpenError> {
    let path = path(dir);
    let own = read(&path).map_err(with_context("cannot read", &path))?;
    // Another key in the file would be used again once there are no replicas any more.
    let found = shared.map_or(own, Ok).map(FingerprintKey::new);
    let known = start.fingerprint_key.as_ref();
    let is_new = recovered.records == 0;
    let why = match &found {
        // A log that does not name its key was written with the one in its file.
        Ok(key)
            if known.map_or(is_new || own.is_ok_and(|own| own == key.bytes) || shared.is_none(), |known| {
                *known == key.name
            }) =>
        {
            None
        }
        Ok(_) if shared.is_some() => Some(NOT_SHARED),
        Ok(_) => Some("is not the key that this log was written with"),
        Err(why) => Some(*why),
    };
    let may_forget = forget_path(dir);
    let mut event = None;
    let key = match (found, why) {
        (Ok(key), None) => key,
        (Err(MISSING), _) if is_new => make(&path)?,
        // A log from a version that did not name its key: nothing shows that it ever had one here.
        (found, Some(why)) if may_forget.is_file() || (known.is_none() && why == MISSING) => {
            let key = match found {
                Ok(key) => key,
                Err(_) => make(&path)?,
            };
            if may_forget.is_file() {
                fs::remove_file(&may_forget).map_err(with_context("cannot remove", &may_forget))?;
            }
            let detail = format!(
                "fingerprint.key {why}; the log continues without it and does not recognize earlier idempotency keys and equal writes"
            );
            tracing::warn!("{detail}");
            event = Some(Record::event(clock.wall(), "fingerprint-key", detail));
            key
        }
        (_, why) => {
            return Err(OpenError::FingerprintKey { path, why: why.unwrap_or("is damaged"), may_forget });
        }
    };
    if shared.is_some() && own != Ok(key.bytes) {
        write(&path, &key.bytes).map_err(with_context("cannot write", &path))?;
    }
    // All fingerprints in a segment are made with the key that it names, so another key needs a new segment.
    start.resume.take_if(|(_, opening)| opening.fingerprint_key.as_ref() != Some(&key.name));
    Ok((key, event))
}

fn make(path: &Path) -> Result<FingerprintKey, OpenError> {
    let made = hash::random().and_then(|bytes| write(path, &bytes).map(|()| FingerprintKey::new(bytes)));
    made.map_err(with_context("cannot write", path))
}

pub(super) fn write(path: &Path, bytes: &[u8; KEY_BYTES]) -> io::Result<()> {
    disk::replace(path, bytes, 0o600)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::audit::segment::SegmentOpening;

    fn open_in(
        dir: &Path,
        known: Option<&str>,
        records: u64,
    ) -> Result<(FingerprintKey, Option<Record<'static>>), OpenError> {
        open_shared_in(dir, known, records, None)
    }

    fn open_shared_in(
        dir: &Path,
        known: Option<&str>,
        records: u64,
        shared: Option<[u8; KEY_BYTES]>,
    ) -> Result<(FingerprintKey, Option<Record<'static>>), OpenError> {
        let opening = SegmentOpening {
            tree: crate::audit::Tree::default(),
            open: Default::default(),
            time: jiff::Timestamp::UNIX_EPOCH,
            kept: Default::default(),
            fingerprint_key: known.map(str::to_owned),
        };
        let mut start = ResumePoint {
            fingerprint_key: known.map(str::to_owned),
            resume: Some((1, opening)),
            ..ResumePoint::default()
        };
        let opened = open(dir, &Clock::system(), &mut start, &Recovered { records, ..Recovered::default() }, shared);
        if let Ok((key, _)) = &opened {
            assert_eq!(start.resume.is_some(), known == Some(&*key.name), "a different key starts a new segment");
        }
        opened
    }

    #[test]
    fn a_key_is_created_for_a_new_log_and_never_replaced_unasked() {
        let dir = tempfile::tempdir().unwrap();
        let (key, _) = open_in(dir.path(), None, 0).unwrap();
        assert_eq!(open_in(dir.path(), Some(&key.name), 9).unwrap().0.bytes, key.bytes);
        assert_eq!(open_in(dir.path(), None, 9).unwrap().0.bytes, key.bytes, "a log that does not name its key");
        let file = path(dir.path());
        type Damage = fn(&Path);
        let ways: [(&str, Damage); 4] = [
            ("damaged", |file| fs::write(file, "short").unwrap()),
            ("not the key", |file| fs::write(file, [7; 32]).unwrap()),
            ("is missing", |file| fs::remove_file(file).unwrap()),
            ("not a regular file", |file| fs::create_dir(file).unwrap()),
        ];
        for (words, damage) in ways {
            damage(&file);
            let error = open_in(dir.path(), Some(&key.name), 9).err().unwrap().to_string();
            assert!(error.contains(words) && error.contains("fingerprint.key.forget"), "{error}");
        }
        fs::remove_dir(&file).unwrap();
        let (_, event) = open_in(dir.path(), None, 9).unwrap();
        assert!(event.is_some(), "an old log names no key: it continues and records what it forgets");
        fs::write(forget_path(dir.path()), "").unwrap();
        let (other, event) = open_in(dir.path(), Some(&key.name), 9).unwrap();
        assert!(other.bytes != key.bytes && event.is_some());
        assert!(open_in(dir.path(), Some(&key.name), 9).is_err(), "once");
        assert_eq!(open_in(dir.path(), Some(&other.name), 9).unwrap().0.bytes, other.bytes);
    }

    #[test]
    fn a_log_begins_with_the_key_of_all_replicas_and_no_log_changes_its_key_unasked() {
        let dir = tempfile::tempdir().unwrap();
        let shared = Some([9; KEY_BYTES]);
        let (key, _) = open_shared_in(dir.path(), None, 0, shared).unwrap();
        assert_eq!((key.bytes, read(&path(dir.path())).unwrap()), ([9; KEY_BYTES], Ok([9; KEY_BYTES])));
        assert_eq!(open_in(dir.path(), Some(&key.name), 9).unwrap().0.bytes, key.bytes, "also without other replicas");
        fs::remove_file(path(dir.path())).unwrap();
        assert_eq!(open_shared_in(dir.path(), Some(&key.name), 9, shared).unwrap().0.bytes, key.bytes);
        for known in [Some(&*key.name), None] {
            let error = open_shared_in(dir.path(), known, 9, Some([8; KEY_BYTES])).err().unwrap().to_string();
            assert!(error.contains("replicas.key_file") && error.contains("fingerprint.key.forget"), "{error}");
        }
        assert_eq!(read(&path(dir.path())).unwrap(), Ok([9; KEY_BYTES]), "and nothing is written over it");
        fs::write(forget_path(dir.path()), "").unwrap();
        let (other, event) = open_shared_in(dir.path(), Some(&key.name), 9, Some([8; KEY_BYTES])).unwrap();
        assert!(other.bytes == [8; KEY_BYTES] && event.is_some());
        assert_eq!(read(&path(dir.path())).unwrap(), Ok([8; KEY_BYTES]));
    }
}

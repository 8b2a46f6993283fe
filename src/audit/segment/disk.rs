//! The log's folder, and the few disk operations that can fail under the log.

#![expect(clippy::disallowed_methods, reason = "called at startup, by commands, and by threads that own files")]

use std::fmt;
use std::fs::{self, DirBuilder, File, OpenOptions, TryLockError};
use std::io::{self, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::fs::{Access, FallocateFlags, access, fallocate};

use crate::private_files;

/// The disk operations that the log uses. Tests make them fail on demand.
pub trait Disk: Send + Sync + fmt::Debug {
    /// Creates a new file for appending that only its owner can read.
    ///
    /// # Errors
    /// The system's error.
    fn create(&self, path: &Path) -> io::Result<File> {
        private_files::open(OpenOptions::new().append(true).create_new(true), path)
    }

    /// Appends all bytes.
    ///
    /// # Errors
    /// The system's error; some of the bytes may have been written.
    fn write(&self, mut file: &File, bytes: &[u8]) -> io::Result<()> {
        file.write_all(bytes)
    }

    /// Preallocates this much space for the file.
    ///
    /// # Errors
    /// The system's error; the disk may be full.
    fn allocate(&self, file: &File, bytes: u64) -> io::Result<()> {
        Ok(fallocate(file, FallocateFlags::empty(), 0, bytes)?)
    }

    /// Makes what was written durable (fdatasync).
    ///
    /// # Errors
    /// The system's error; any part of what was written may or may not be durable.
    fn sync(&self, file: &File) -> io::Result<()> {
        file.sync_data()
    }
}

/// The real disk.
#[derive(Debug)]
pub struct MachineDisk;

impl Disk for MachineDisk {}

/// Runs `work`, which may block on a disk, on a blocking thread. After `within` the caller stops waiting, but the
/// work goes on and releases what it holds (such as a permit that bounds the number of stuck threads) when it
/// finishes.
///
/// # Errors
/// The work took too long or panicked.
pub(crate) async fn run_blocking<T: Send + 'static>(
    within: Duration,
    work: impl FnOnce() -> T + Send + 'static,
) -> io::Result<T> {
    match tokio::time::timeout(within, tokio::task::spawn_blocking(work)).await {
        Ok(done) => done.map_err(io::Error::other),
        Err(_) => Err(io::Error::new(io::ErrorKind::TimedOut, "the disk is taking too long")),
    }
}

/// Makes the folder's entries durable.
pub(crate) fn sync_folder(dir: &Path) -> io::Result<()> {
    File::open(dir)?.sync_all()
}

/// Tells apart two files of the same name.
pub(crate) fn identity(metadata: &fs::Metadata) -> (u64, u64) {
    (metadata.dev(), metadata.ino())
}

/// Why the log cannot be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// A system call failed.
    #[error("{doing} {path}: {error}")]
    Io {
        /// What was attempted, as a clause (`cannot read the segment`).
        doing: &'static str,
        /// The file or folder it concerned.
        path: PathBuf,
        /// The system's error.
        #[source]
        error: io::Error,
    },
    /// The folder is world-writable.
    #[error("the audit folder {path} is world-writable (mode {mode:03o}): run chmod o-w {path}")]
    Exposed {
        /// The folder.
        path: PathBuf,
        /// Its mode.
        mode: u32,
    },
    /// Another process has locked the folder.
    #[error(
        "another makegate is using the audit folder {path}: stop it, or give this one its own folder ([audit] dir)"
    )]
    Locked {
        /// The folder.
        path: PathBuf,
    },
    /// The folder is on a network file system.
    #[error(
        "the audit folder {path} is on a network file system, which cannot guarantee that a record is stored: use a \
         local disk"
    )]
    Network {
        /// The folder.
        path: PathBuf,
    },
    /// A newer makegate wrote this segment.
    #[error(
        "{path} was written by a newer makegate (log format {format}; this version reads up to {}): use that version",
        crate::audit::segment::FORMAT
    )]
    Newer {
        /// The segment.
        path: PathBuf,
        /// Its log format.
        format: u32,
    },
    /// The key that signs heads is damaged.
    #[error(
        "{path} is damaged: restore it, or delete it to have the log's heads signed by a new key, which the old one \
         does not vouch for"
    )]
    HeadKey {
        /// Its file.
        path: PathBuf,
    },
    /// The fingerprint key is damaged, missing, or not the one the log was written with.
    #[error(
        "{path} {why}: restore it; without it, earlier Idempotency-Keys and writes equal to one in doubt are not \
         recognized, so such a write may be carried out twice; to start anyway, create the empty file {may_forget}"
    )]
    FingerprintKey {
        /// Its file.
        path: PathBuf,
        /// What is wrong with it, as a clause that follows the file's name.
        why: &'static str,
        /// The file that an operator creates to let the log continue anyway.
        may_forget: PathBuf,
    },
}

/// Turns a system error into one that says what was attempted and on which path.
pub(crate) fn with_context(doing: &'static str, path: &Path) -> impl FnOnce(io::Error) -> OpenError {
    move |error| OpenError::Io { doing, path: path.to_owned(), error }
}

/// Whether there is such a folder, or one can be made. Changes nothing.
///
/// # Errors
/// Why there is none and none can be made.
pub fn check_folder(dir: &Path) -> io::Result<()> {
    let is_there = |path: &&Path| path.as_os_str().is_empty() || fs::symlink_metadata(path).is_ok();
    let nearest = dir.ancestors().find(is_there).filter(|path| !path.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let named = |error: io::Error| io::Error::new(error.kind(), format!("{nearest:?}: {error}"));
    if !fs::metadata(nearest).map_err(named)?.is_dir() {
        return Err(named(io::Error::from(io::ErrorKind::NotADirectory)));
    }
    access(nearest, Access::WRITE_OK | Access::EXEC_OK).map_err(|errno| named(errno.into()))
}

/// Creates the folder (0700) if needed, checks it, and locks it for as long as the returned file lives.
pub(crate) fn lock_folder(dir: &Path) -> Result<File, OpenError> {
    check_folder(dir).map_err(with_context("cannot use the audit folder", dir))?;
    let made = DirBuilder::new().recursive(true).mode(0o700).create(dir);
    made.map_err(with_context("cannot create the audit folder", dir))?;
    let mode = fs::metadata(dir).map_err(with_context("cannot read the audit folder", dir))?.mode() & 0o777;
    if mode & 0o002 != 0 {
        return Err(OpenError::Exposed { path: dir.to_owned(), mode });
    }
    if mode & 0o020 != 0 {
        // Kubernetes sets this mode when a pod has an `fsGroup`.
        tracing::warn!(
            folder = %dir.display(),
            "the audit folder is group-writable (mode {mode:03o}), so its group can alter the log: makegate should be the group's only member"
        );
    }
    refuse_network(dir)?;
    let path = dir.join("lock");
    let lock = private_files::open(OpenOptions::new().write(true).create(true), &path);
    let lock = lock.map_err(with_context("cannot open the audit folder's lock", &path))?;
    match lock.try_lock() {
        Ok(()) => Ok(lock),
        Err(TryLockError::WouldBlock) => Err(OpenError::Locked { path: dir.to_owned() }),
        Err(TryLockError::Error(error)) => Err(with_context("cannot lock", &path)(error)),
    }
}

#[cfg(target_os = "linux")]
fn refuse_network(dir: &Path) -> Result<(), OpenError> {
    let kind = rustix::fs::statfs(dir).map(|about| about.f_type);
    match kind.map_err(|error| with_context("cannot determine the file system of", dir)(error.into()))? {
        rustix::fs::NFS_SUPER_MAGIC => Err(OpenError::Network { path: dir.to_owned() }),
        _ => Ok(()),
    }
}

#[cfg(not(target_os = "linux"))]
fn refuse_network(_: &Path) -> Result<(), OpenError> {
    Ok(())
}

/// Atomically and durably replaces the file's content by writing a temporary file first.
pub(crate) fn replace(path: &Path, bytes: &[u8], mode: u32) -> io::Result<()> {
    let mut draft = path.as_os_str().to_owned();
    draft.push(".draft");
    private_files::remove(Path::new(&draft))?;
    let mut file = private_files::open(OpenOptions::new().write(true).create_new(true), Path::new(&draft))?;
    file.set_permissions(fs::Permissions::from_mode(mode))?;
    file.write_all(bytes)?;
    file.sync_all()?;
    private_files::rename(Path::new(&draft), path)?;
    path.parent().map_or(Ok(()), sync_folder)
}

/// Called before a log that may be written at the same time is read. Tests hook in here to continue the writing.
#[inline]
pub(crate) fn about_to_read() {
    #[cfg(test)]
    ABOUT_TO_READ.with_borrow_mut(|writer| writer.as_mut().map_or((), |writer| writer()));
}

#[cfg(test)]
thread_local! {
    /// What happens at the same time as the reading on this thread.
    pub(crate) static ABOUT_TO_READ: std::cell::RefCell<Option<Box<dyn FnMut()>>> = const { std::cell::RefCell::new(None) };
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_has_one_process_and_one_writer() {
        let parent = tempfile::tempdir().unwrap();
        let dir = parent.path().join("deep/audit");
        let lock = lock_folder(&dir).unwrap();
        assert_eq!(fs::metadata(&dir).unwrap().mode() & 0o777, 0o700);
        let words = lock_folder(&dir).unwrap_err().to_string();
        assert!(words.contains("another makegate is using the audit folder"), "{words}");
        drop(lock);
        fs::set_permissions(&dir, fs::Permissions::from_mode(0o2770)).unwrap();
        drop(lock_folder(&dir).unwrap());
        fs::set_permissions(&dir, fs::Permissions::from_mode(0o772)).unwrap();
        let words = lock_folder(&dir).unwrap_err().to_string();
        assert!(words.contains("chmod o-w"), "{words}");
    }
}

//! The folder that the log lives in, and the few operations of the disk that can fail under it.

#![expect(
    clippy::disallowed_methods,
    reason = "whoever calls this is at the start, in a command, or a thread that owns files"
)]

use std::fmt;
use std::fs::{self, DirBuilder, File, OpenOptions, TryLockError};
use std::io::{self, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::fs::{FallocateFlags, fallocate};

use crate::private_files;

/// What the log asks of the disk. The methods do what their names say; a test's disk fails them on demand.
pub trait Disk: Send + Sync + fmt::Debug {
    /// Makes a file that is not there yet, readable for its owner alone, to append to.
    ///
    /// # Errors
    /// Those of the system.
    fn create(&self, path: &Path) -> io::Result<File> {
        private_files::open(OpenOptions::new().append(true).create_new(true), path)
    }

    /// Appends all bytes.
    ///
    /// # Errors
    /// Those of the system; some of the bytes may have been written.
    fn write(&self, mut file: &File, bytes: &[u8]) -> io::Result<()> {
        file.write_all(bytes)
    }

    /// Gives the file this much space.
    ///
    /// # Errors
    /// Those of the system; the disk may be full.
    fn allocate(&self, file: &File, bytes: u64) -> io::Result<()> {
        Ok(fallocate(file, FallocateFlags::empty(), 0, bytes)?)
    }

    /// Makes what was written durable (fdatasync).
    ///
    /// # Errors
    /// Those of the system; then nobody knows what of it is durable.
    fn sync(&self, file: &File) -> io::Result<()> {
        file.sync_data()
    }
}

/// The machine's disk.
#[derive(Debug)]
pub struct MachineDisk;

impl Disk for MachineDisk {}

/// Runs `work`, which may wait for a disk, on a thread that nothing else needs. If it takes longer than `within`, it goes on by
/// itself; what it holds, a permit that bounds how many do so, it gives back when it is done.
///
/// # Errors
/// It takes longer, or panicked.
pub(crate) async fn off_thread<T: Send + 'static>(
    within: Duration,
    work: impl FnOnce() -> T + Send + 'static,
) -> io::Result<T> {
    match tokio::time::timeout(within, tokio::task::spawn_blocking(work)).await {
        Ok(done) => done.map_err(io::Error::other),
        Err(_) => Err(io::Error::new(io::ErrorKind::TimedOut, "the disk takes too long")),
    }
}

/// Makes names in the folder durable.
pub(crate) fn sync_folder(dir: &Path) -> io::Result<()> {
    File::open(dir)?.sync_all()
}

/// What tells two files of the same name apart.
pub(crate) fn identity(metadata: &fs::Metadata) -> (u64, u64) {
    (metadata.dev(), metadata.ino())
}

/// Why the log cannot be opened.
#[derive(Debug)]
pub enum OpenError {
    /// The system refuses something.
    Io {
        /// What was attempted, as a clause (`cannot read the segment`).
        doing: &'static str,
        /// On what.
        path: PathBuf,
        /// Its words.
        error: io::Error,
    },
    /// Everybody may write in the folder.
    Exposed {
        /// The folder.
        path: PathBuf,
        /// Its mode.
        mode: u32,
    },
    /// Another process has the folder.
    Locked {
        /// The folder.
        path: PathBuf,
    },
    /// The folder is on a network file system.
    Network {
        /// The folder.
        path: PathBuf,
    },
    /// A newer makegate wrote this segment.
    Newer {
        /// The segment.
        path: PathBuf,
        /// Its format.
        format: u32,
    },
    /// The key of signed heads is damaged.
    HeadKey {
        /// Its file.
        path: PathBuf,
    },
    /// The key of the fingerprints is damaged, missing, or another one.
    FingerprintKey {
        /// Its file.
        path: PathBuf,
        /// What is wrong with it, as a clause after its name.
        why: &'static str,
        /// The file by which an operator lets the log go on all the same.
        may_forget: PathBuf,
    },
}

impl fmt::Display for OpenError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Io { doing, path, error } => write!(f, "{doing} {}: {error}", path.display()),
            Self::Exposed { path, mode } => {
                let path = path.display();
                write!(
                    f,
                    "everybody may write in the audit folder {path} (mode {mode:03o}): take that away, chmod o-w {path}"
                )
            }
            Self::Locked { path } => write!(
                f,
                "another makegate has the audit folder {}: stop it, or give this one a folder of its own ([audit] dir)",
                path.display()
            ),
            Self::Network { path } => write!(
                f,
                "the audit folder {} is on a network file system, which cannot promise that a record is stored: use a local disk",
                path.display()
            ),
            Self::Newer { path, format } => write!(
                f,
                "{} was written by a newer makegate (log format {format}; this one knows {}): use that version",
                path.display(),
                super::segment::FORMAT
            ),
            Self::HeadKey { path } => write!(
                f,
                "{} is damaged: restore it, or delete it and the log's heads are signed by a new key that the old one does not vouch for",
                path.display()
            ),
            Self::FingerprintKey { path, why, may_forget } => write!(
                f,
                "{} {why}: restore it; without it no Idempotency-Key from before is known, nor a write that equals one in doubt, so that \
                 such a write may be done twice; to go on all the same, create the empty file {}",
                path.display(),
                may_forget.display()
            ),
        }
    }
}

impl std::error::Error for OpenError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::Io { error, .. } => Some(error),
            Self::Exposed { .. }
            | Self::Locked { .. }
            | Self::Network { .. }
            | Self::Newer { .. }
            | Self::HeadKey { .. }
            | Self::FingerprintKey { .. } => None,
        }
    }
}

/// Turns an error of the system into one that says what was attempted on what.
pub(crate) fn while_doing(doing: &'static str, path: &Path) -> impl FnOnce(io::Error) -> OpenError {
    move |error| OpenError::Io { doing, path: path.to_owned(), error }
}

/// The folder, made (0700) if need be, checked, and locked for as long as the file that is returned lives.
pub(crate) fn occupy(dir: &Path) -> Result<File, OpenError> {
    let made = DirBuilder::new().recursive(true).mode(0o700).create(dir);
    made.map_err(while_doing("cannot make the audit folder", dir))?;
    let mode = fs::metadata(dir).map_err(while_doing("cannot read the audit folder", dir))?.mode() & 0o777;
    if mode & 0o002 != 0 {
        return Err(OpenError::Exposed { path: dir.to_owned(), mode });
    }
    if mode & 0o020 != 0 {
        // Kubernetes makes it so where a pod has an `fsGroup`.
        tracing::warn!(
            folder = %dir.display(),
            "the group of the audit folder may write in it (mode {mode:03o}), and so alter the log: nobody else should be in that group"
        );
    }
    refuse_network(dir)?;
    let path = dir.join("lock");
    let lock = private_files::open(OpenOptions::new().write(true).create(true), &path);
    let lock = lock.map_err(while_doing("cannot open the audit folder's lock", &path))?;
    match lock.try_lock() {
        Ok(()) => Ok(lock),
        Err(TryLockError::WouldBlock) => Err(OpenError::Locked { path: dir.to_owned() }),
        Err(TryLockError::Error(error)) => Err(while_doing("cannot lock", &path)(error)),
    }
}

#[cfg(target_os = "linux")]
fn refuse_network(dir: &Path) -> Result<(), OpenError> {
    let kind = rustix::fs::statfs(dir).map(|about| about.f_type);
    match kind.map_err(|error| while_doing("cannot read the file system of", dir)(error.into()))? {
        rustix::fs::NFS_SUPER_MAGIC => Err(OpenError::Network { path: dir.to_owned() }),
        _ => Ok(()),
    }
}

#[cfg(not(target_os = "linux"))]
fn refuse_network(_: &Path) -> Result<(), OpenError> {
    Ok(())
}

/// The file holds these bytes, durably, or what it held before: they are written under another name first.
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

/// Somebody is about to read of a log that may be written to at the same time: here a test goes on with the writing.
#[inline]
pub(crate) fn about_to_read() {
    #[cfg(test)]
    BESIDE.with_borrow_mut(|writer| writer.as_mut().map_or((), |writer| writer()));
}

#[cfg(test)]
thread_local! {
    /// What happens beside whoever reads on this thread.
    pub(super) static BESIDE: std::cell::RefCell<Option<Box<dyn FnMut()>>> = const { std::cell::RefCell::new(None) };
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_has_one_process_and_one_writer() {
        let parent = tempfile::tempdir().unwrap();
        let dir = parent.path().join("deep/audit");
        let lock = occupy(&dir).unwrap();
        assert_eq!(fs::metadata(&dir).unwrap().mode() & 0o777, 0o700);
        let words = occupy(&dir).unwrap_err().to_string();
        assert!(words.contains("another makegate has the audit folder"), "{words}");
        drop(lock);
        fs::set_permissions(&dir, fs::Permissions::from_mode(0o2770)).unwrap();
        drop(occupy(&dir).unwrap());
        fs::set_permissions(&dir, fs::Permissions::from_mode(0o772)).unwrap();
        let words = occupy(&dir).unwrap_err().to_string();
        assert!(words.contains("chmod o-w"), "{words}");
    }
}

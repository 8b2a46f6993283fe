//! The files that the service reads while it runs: its configuration, secrets and certificates.
//!
//! A [`Snapshot`] reads each file once, so that a configuration, a key and a certificate that belong together are
//! checked together. A [`FileThread`] does the reading, so that a hanging file system blocks only that thread.

#![expect(clippy::disallowed_methods, reason = "runs at startup and on the `watched-files` thread")]

use std::collections::BTreeMap;
use std::fmt;
use std::fs::{self, File};
use std::io::{self, Read as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use rustix::fs::OFlags;
use secrecy::zeroize::Zeroizing;
use tokio::sync::oneshot;

use crate::hash;

/// The contents of a file, wiped when the last holder drops them, since some are secrets.
pub type FileContents = Arc<Zeroizing<Vec<u8>>>;

/// The file being read right now, so that a hanging one can be named.
type FileBeingRead = Arc<Mutex<Option<PathBuf>>>;

/// Files as they were when each was first read.
#[derive(Default)]
pub struct Snapshot {
    files: Mutex<BTreeMap<PathBuf, SeenFile>>,
    reading: FileBeingRead,
}

#[derive(Clone)]
struct SeenFile {
    hashed: FileHash,
    contents: Result<FileContents, (io::ErrorKind, String)>,
}

impl SeenFile {
    fn new(path: &Path, bytes_max: u64) -> Self {
        let contents = read(path, bytes_max).map(Arc::new).map_err(|error| (error.kind(), error.to_string()));
        let hash = contents.as_ref().map(|contents| hash::sha256(contents)).map_err(|(kind, _)| *kind);
        Self { hashed: FileHash { bytes_max, contents: hash }, contents }
    }
}

impl Snapshot {
    /// An empty snapshot.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// The contents of a regular file of at most `bytes_max` bytes. Reading it again returns the same.
    ///
    /// # Errors
    /// The file cannot be read, is larger, or is a pipe, a device or a folder.
    pub fn read(&self, path: &Path, bytes_max: u64) -> io::Result<FileContents> {
        let known = lock(&self.files).get(path).cloned();
        let seen = known.unwrap_or_else(|| {
            *lock(&self.reading) = Some(path.to_owned());
            let seen = SeenFile::new(path, bytes_max);
            *lock(&self.reading) = None;
            lock(&self.files).insert(path.to_owned(), seen.clone());
            seen
        });
        seen.contents.map_err(|(kind, why)| io::Error::new(kind, why))
    }

    /// Hashes of what was read: enough to notice a change, without any secret.
    #[must_use]
    pub fn hashes(&self) -> FileHashes {
        FileHashes(lock(&self.files).iter().map(|(path, seen)| (path.clone(), seen.hashed)).collect())
    }
}

impl fmt::Debug for Snapshot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(lock(&self.files).keys()).finish()
    }
}

/// The hashes of some files, and for unreadable ones the reason.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FileHashes(BTreeMap<PathBuf, FileHash>);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct FileHash {
    bytes_max: u64,
    contents: Result<[u8; 32], io::ErrorKind>,
}

impl FileHashes {
    /// Hashes of the same files as they are in `now`.
    #[must_use]
    pub fn rehash(&self, now: &Snapshot) -> Self {
        for (path, hashed) in &self.0 {
            // An unreadable file is remembered as such.
            let _seen = now.read(path, hashed.bytes_max);
        }
        let mut hashes = now.hashes();
        hashes.0.retain(|path, _| self.0.contains_key(path));
        hashes
    }

    /// The hash of this file's contents, if it was readable.
    #[must_use]
    pub fn of(&self, path: &Path) -> Option<[u8; 32]> {
        self.0.get(path)?.contents.ok()
    }
}

fn read(path: &Path, bytes_max: u64) -> io::Result<Zeroizing<Vec<u8>>> {
    // Checked before opening, because opening a device can have side effects.
    require_regular(&fs::metadata(path)?)?;
    let flags = OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
    let file = File::options().read(true).custom_flags(flags.bits().cast_signed()).open(path)?;
    let about = file.metadata()?;
    require_regular(&about)?;
    let too_large = || io::Error::new(io::ErrorKind::FileTooLarge, format!("it is larger than {bytes_max} bytes"));
    if about.len() > bytes_max {
        return Err(too_large());
    }
    // Allocated at once, so that no bytes of a secret are left behind when a vector grows.
    let mut bytes = Zeroizing::new(Vec::with_capacity(usize::try_from(about.len() + 1).unwrap_or(0)));
    file.take(bytes_max + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > bytes_max { Err(too_large()) } else { Ok(bytes) }
}

fn require_regular(about: &fs::Metadata) -> io::Result<()> {
    if about.is_file() {
        return Ok(());
    }
    let kind = if about.is_dir() { io::ErrorKind::IsADirectory } else { io::ErrorKind::InvalidInput };
    Err(io::Error::new(kind, "it is not a regular file"))
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

type FileJob = Box<dyn FnOnce() + Send>;

/// A thread that reads files for tasks, which wait only as long as they choose.
#[derive(Debug)]
pub struct FileThread {
    jobs: SyncSender<FileJob>,
    reading: FileBeingRead,
}

/// Files could not be read in time, so their contents are unknown.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FileReadHangs {
    /// The read of this file does not return.
    #[error("{path} could not be read within {} s: its file system hangs", .waited.as_secs_f64())]
    OneFile {
        /// The file.
        path: PathBuf,
        /// For how long.
        waited: Duration,
    },
    /// All the files together took too long.
    #[error("the configuration and the files that it names could not be read within {} s", .0.as_secs_f64())]
    AllFiles(Duration),
}

impl FileThread {
    /// Starts the thread. It ends with this handle, after the read in progress.
    ///
    /// # Errors
    /// The system cannot create a thread.
    pub fn start() -> io::Result<Self> {
        // One job may wait while another is running; any further one is refused at once.
        let (jobs, taken): (SyncSender<FileJob>, Receiver<FileJob>) = sync_channel(1);
        std::thread::Builder::new().name("watched-files".to_owned()).spawn(move || {
            for job in taken {
                job();
            }
        })?;
        Ok(Self { jobs, reading: FileBeingRead::default() })
    }

    /// Runs `job` with a new snapshot on the thread, and waits at most `within` for it.
    ///
    /// # Errors
    /// [`FileReadHangs`] if it takes longer, or an earlier one still runs. A late result is dropped.
    pub async fn run<T: Send + 'static>(
        &self,
        within: Duration,
        job: impl FnOnce(Snapshot) -> T + Send + 'static,
    ) -> Result<T, FileReadHangs> {
        let (sender, receiver) = oneshot::channel();
        let snapshot = Snapshot { reading: self.reading.clone(), ..Snapshot::default() };
        let job = Box::new(move || {
            if !sender.is_closed() {
                let _nobody_waits_any_more = sender.send(job(snapshot));
            }
        });
        let hangs = || match lock(&self.reading).clone() {
            Some(path) => FileReadHangs::OneFile { path, waited: within },
            None => FileReadHangs::AllFiles(within),
        };
        self.jobs.try_send(job).map_err(|_busy| hangs())?;
        tokio::time::timeout(within, receiver).await.ok().and_then(Result::ok).ok_or_else(hangs)
    }
}

#[cfg(test)]
mod tests {
    use rustix::fs::{CWD, Mode, mkfifoat};

    use super::*;

    #[test]
    fn only_regular_files_of_bounded_size_are_read() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        fs::write(at("file"), "12345").unwrap();
        mkfifoat(CWD, at("pipe"), Mode::RUSR).unwrap();
        let files = Snapshot::new();
        assert_eq!(**files.read(&at("file"), 5).unwrap(), b"12345");
        let why = |path: &Path, bytes_max| Snapshot::new().read(path, bytes_max).unwrap_err().to_string();
        assert_eq!(why(&at("file"), 4), "it is larger than 4 bytes");
        for odd in [&*at("pipe"), dir.path(), Path::new("/dev/zero")] {
            assert_eq!(why(odd, 100), "it is not a regular file", "{odd:?}");
        }
    }

    #[test]
    fn a_snapshot_reads_a_file_once_and_its_hashes_tell_a_change() {
        let dir = tempfile::tempdir().unwrap();
        let (one, two) = (dir.path().join("one"), dir.path().join("two"));
        fs::write(&one, "a").unwrap();
        let files = Snapshot::new();
        assert!(files.read(&one, 10).is_ok() && files.read(&two, 10).is_err());
        fs::write(&one, "b").unwrap();
        assert_eq!(**files.read(&one, 10).unwrap(), b"a");
        let hashes = files.hashes();
        let look = || hashes.rehash(&Snapshot::new());
        assert_ne!(hashes, look());
        fs::write(&one, "a").unwrap();
        assert_eq!(hashes, look());
        fs::write(&two, "").unwrap();
        assert_ne!(hashes, look(), "one that comes into being is a change");
    }

    #[tokio::test]
    async fn one_that_hangs_is_named_and_the_next_look_is_told_at_once() {
        let thread = FileThread::start().unwrap();
        let (go_on, held) = std::sync::mpsc::channel::<()>();
        let reading = thread.reading.clone();
        let hung = thread.run(Duration::from_millis(20), move |_| {
            *lock(&reading) = Some("/mnt/token".into());
            held.recv()
        });
        assert!(hung.await.unwrap_err().to_string().starts_with("/mnt/token could not be read within 0.02 s"));
        assert!(thread.run(Duration::from_millis(20), |_| ()).await.is_err(), "it waits behind the first");
        assert!(thread.run(Duration::from_secs(3600), |_| ()).await.is_err(), "there is no room to wait");
        drop(go_on);
        while thread.run(Duration::from_secs(10), |_| ()).await.is_err() {
            tokio::task::yield_now().await;
        }
    }
}

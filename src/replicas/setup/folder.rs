//! What a data folder says of its replica: while it is one of several, makegate must not start on it alone.

#![expect(clippy::disallowed_methods, reason = "at startup, and by commands")]

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};

use crate::private_files;

fn path(dir: &Path) -> PathBuf {
    dir.join("replica")
}

/// The name of the replica that this data folder belongs to, if it has joined others and not left them.
///
/// # Errors
/// The folder cannot be read.
pub fn joined_as(dir: &Path) -> io::Result<Option<String>> {
    match private_files::read(&path(dir)) {
        Ok(name) => Ok(Some(String::from_utf8_lossy(&name).trim_end().to_owned())),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(named(dir, &error)),
    }
}

/// Notes that this data folder belongs to this replica. The note is on disk when this returns.
///
/// # Errors
/// It cannot be written.
pub fn note_joined(dir: &Path, name: &str) -> io::Result<()> {
    let written = private_files::open(OpenOptions::new().write(true).create(true), &path(dir)).and_then(|mut file| {
        file.set_len(0)?;
        writeln!(file, "{name}")?;
        file.sync_all()
    });
    written.and_then(|()| sync(dir)).map_err(|error| named(dir, &error))
}

/// This data folder belongs to no replica any more.
///
/// # Errors
/// The note cannot be removed.
pub fn note_left(dir: &Path) -> io::Result<()> {
    private_files::remove(&path(dir)).and_then(|()| sync(dir)).map_err(|error| named(dir, &error))
}

fn sync(dir: &Path) -> io::Result<()> {
    File::open(dir)?.sync_all()
}

fn named(dir: &Path, error: &io::Error) -> io::Error {
    io::Error::new(error.kind(), format!("{}: {error}", path(dir).display()))
}

/// Writes the key that all replicas share. What is there stays.
///
/// # Errors
/// There is a file of this name, or it cannot be written.
pub fn write_key(file: &Path, key: &[u8; 32]) -> io::Result<()> {
    let folder = file.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let new = tempfile::Builder::new().prefix(".makegate-").tempfile_in(folder)?; // readable by its owner alone
    fs::write(new.path(), key)?;
    new.as_file().sync_all()?;
    new.persist_noclobber(file).map_err(|failed| failed.error)?;
    sync(folder)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    #[test]
    fn a_folder_knows_its_replica_until_it_leaves() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(joined_as(dir.path()).unwrap(), None);
        note_left(dir.path()).unwrap();
        note_joined(dir.path(), "makegate-10").unwrap();
        note_joined(dir.path(), "makegate-0").unwrap();
        assert_eq!(joined_as(dir.path()).unwrap().as_deref(), Some("makegate-0"));
        note_left(dir.path()).unwrap();
        assert_eq!(joined_as(dir.path()).unwrap(), None);
        let missing = dir.path().join("none");
        assert_eq!(joined_as(&missing).unwrap(), None);
        let told = note_joined(&missing, "a").unwrap_err().to_string();
        assert!(told.contains("none/replica"), "{told}");
    }

    #[test]
    fn a_key_is_written_once_and_for_its_owner_alone() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("replicas.key");
        write_key(&file, &[7; 32]).unwrap();
        assert_eq!(write_key(&file, &[8; 32]).unwrap_err().kind(), io::ErrorKind::AlreadyExists);
        assert_eq!(fs::read(&file).unwrap(), [7; 32]);
        assert_eq!(fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    }
}

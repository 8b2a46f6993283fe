//! Files that a command writes: each is there whole, or not at all.

#![expect(clippy::disallowed_methods, reason = "a command may block on its files")]

use std::fs::{self, File, Permissions};
use std::io::{self, Write as _};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use tempfile::NamedTempFile;

use super::failure::CommandFailure;

/// A file that gets its name once everything is written: a command that fails leaves what was there before.
pub(super) enum NewFile {
    /// Under another name in the same folder, until it is kept.
    Beside(NamedTempFile, PathBuf),
    /// A pipe, a device: nothing that could be replaced.
    Open(File),
}

impl NewFile {
    pub(super) fn create(path: &Path) -> io::Result<Self> {
        // A link stays, and what it leads to is written.
        let path = fs::canonicalize(path).unwrap_or_else(|_| path.to_owned());
        let old = fs::metadata(&path).ok();
        if old.as_ref().is_some_and(|old| !old.is_file()) {
            return Ok(Self::Open(File::create(&path)?));
        }
        let folder = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
        let made = beside(folder, 0o666)?;
        if let Some(old) = old {
            made.as_file().set_permissions(old.permissions())?;
        }
        Ok(Self::Beside(made, path))
    }

    /// A further handle to write with.
    pub(super) fn writer(&self) -> io::Result<File> {
        match self {
            Self::Beside(file, _) => file.as_file().try_clone(),
            Self::Open(file) => file.try_clone(),
        }
    }

    /// Syncs it to disk and gives it its name.
    pub(super) fn keep(self) -> io::Result<()> {
        match self {
            Self::Beside(file, path) => {
                file.as_file().sync_all()?;
                file.persist(path).map(drop).map_err(|failed| failed.error)
            }
            // Devices cannot be synced, and need not be.
            Self::Open(_) => Ok(()),
        }
    }
}

/// A file in this folder that is removed unless it gets another name; its mode is what the umask leaves of this one.
fn beside(folder: &Path, mode: u32) -> io::Result<NamedTempFile> {
    tempfile::Builder::new().prefix(".makegate-").permissions(Permissions::from_mode(mode)).tempfile_in(folder)
}

/// A file to be written: its name in the folder, its mode, its content.
pub(super) type FileContent = (String, u32, Vec<u8>);

/// Writes all these files to the folder, or none; the folder is made if it is not there. `replaces`: files of these names may be there.
pub(super) fn write_all(dir: &Path, files: &[FileContent], replaces: bool) -> Result<(), CommandFailure> {
    let failed = |path: &Path, error| CommandFailure::failed(format!("cannot write {}: {error}", path.display()));
    let is_there = |(name, ..): &&FileContent| fs::symlink_metadata(dir.join(name)).is_ok();
    if let Some((name, ..)) = files.iter().find(is_there).filter(|_| !replaces) {
        let dir = dir.display();
        return Err(CommandFailure::failed(format!("{dir} already has a {name}: remove it, or choose another folder")));
    }
    let made = MadeFolders::make(dir).map_err(|error| failed(dir, error))?;
    let mut written = Vec::new();
    for (name, mode, content) in files {
        let path = dir.join(name);
        let file = beside(dir, *mode).and_then(|mut file| file.write_all(content).map(|()| file));
        written.push((file.map_err(|error| failed(&path, error))?, path));
    }
    for (file, path) in written {
        let kept = if replaces { file.persist(&path) } else { file.persist_noclobber(&path) };
        kept.map_err(|error| failed(&path, error.error))?;
    }
    made.keep();
    Ok(())
}

/// The folders that were made for a command; dropped, those of them that are empty are removed.
struct MadeFolders(Vec<PathBuf>);

impl MadeFolders {
    fn make(dir: &Path) -> io::Result<Self> {
        let missing =
            dir.ancestors().take_while(|dir| !dir.as_os_str().is_empty() && fs::symlink_metadata(dir).is_err());
        let made = Self(missing.map(Path::to_owned).collect());
        fs::create_dir_all(dir)?;
        Ok(made)
    }

    fn keep(mut self) {
        self.0.clear();
    }
}

impl Drop for MadeFolders {
    fn drop(&mut self) {
        for dir in &self.0 {
            // What is not empty, or was never made, stays as it is.
            let _stays = fs::remove_dir(dir);
        }
    }
}

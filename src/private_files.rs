//! Files of makegate's own, in a folder where others may have put something under their names.
//!
//! Nothing is written through a link, to a device or a pipe, or, as root, to a file that is neither root's nor that of the folder's
//! owner: whoever could put it there would choose what makegate overwrites.

#![expect(clippy::disallowed_methods, reason = "whoever calls this is a thread that owns files")]

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read as _};
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use rustix::fs::OFlags;
use rustix::io::Errno;

/// Opens a file to write to it, or makes it (readable for its owner alone) where the options say so. They must not truncate: what is
/// refused is left as it is.
///
/// # Errors
/// Those of the system, and that it is not makegate's own file.
pub fn open(options: &mut OpenOptions, path: &Path) -> io::Result<File> {
    let flags = (OFlags::NOFOLLOW | OFlags::NONBLOCK).bits().cast_signed();
    let opened = options.mode(0o600).custom_flags(flags).open(path);
    let file = opened.map_err(|error| match Errno::from_io_error(&error) {
        Some(Errno::LOOP) => refused("it is a link, and makegate writes through none: put the file itself there"),
        Some(Errno::NXIO) => refused("it is a pipe or a socket, and not a file"),
        _ => error,
    })?;
    let about = file.metadata()?;
    if !about.is_file() {
        return Err(refused("it is not a file"));
    }
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    if rustix::process::geteuid().is_root() && about.uid() != 0 && about.uid() != fs::metadata(folder)?.uid() {
        return Err(refused("it belongs to another user than its folder: chown it, or take it away"));
    }
    Ok(file)
}

/// Opens a file to read it. What is no file is refused, for a pipe may be waited for without end.
///
/// # Errors
/// Those of the system, or of kind `InvalidData`: something else has the name.
pub fn open_to_read(path: &Path) -> io::Result<File> {
    let file = OpenOptions::new().read(true).custom_flags(OFlags::NONBLOCK.bits().cast_signed()).open(path);
    let no_file = || {
        io::Error::new(io::ErrorKind::InvalidData, "it is not a file: put the file back, or move away what is there")
    };
    let file =
        file.map_err(|error| if Errno::from_io_error(&error) == Some(Errno::NXIO) { no_file() } else { error })?;
    if file.metadata()?.is_file() { Ok(file) } else { Err(no_file()) }
}

/// Reads a whole file.
///
/// # Errors
/// As [`open_to_read`].
pub fn read(path: &Path) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    open_to_read(path)?.read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// Nothing has this name any more. A folder that somebody put there is not makegate's to delete: it is moved aside.
///
/// # Errors
/// Those of the system.
pub fn remove(path: &Path) -> io::Result<()> {
    match fs::symlink_metadata(path) {
        Ok(about) if about.is_dir() => move_aside(path),
        Ok(_) => fs::remove_file(path),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(error),
    }
}

/// Gives it the first name `NAME.damaged`, `NAME.damaged-2`, … that is free.
///
/// # Errors
/// Those of the system.
pub fn move_aside(path: &Path) -> io::Result<()> {
    let mut aside = path.as_os_str().to_owned();
    aside.push(".damaged");
    let mut free = PathBuf::from(&aside);
    for n in 2_u32.. {
        if !fs::exists(&free)? {
            break;
        }
        let mut numbered = aside.clone();
        numbered.push(format!("-{n}"));
        free = numbered.into();
    }
    fs::rename(path, free)
}

/// Gives a file a new name. A folder that has that name is moved aside.
///
/// # Errors
/// Those of the system.
pub fn rename(from: &Path, to: &Path) -> io::Result<()> {
    if fs::symlink_metadata(to).is_ok_and(|about| about.is_dir()) {
        move_aside(to)?;
    }
    fs::rename(from, to)
}

fn refused(why: &'static str) -> io::Error {
    io::Error::new(io::ErrorKind::PermissionDenied, why)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{chown, symlink};

    use super::*;

    #[test]
    fn nothing_is_written_through_a_link_to_a_pipe_or_to_a_file_of_somebody_else() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        let write = |name: &str| open(OpenOptions::new().write(true).create(true), &at(name));
        write("own").unwrap();
        write("own").unwrap();
        fs::write(at("victim"), "precious").unwrap();
        symlink(at("victim"), at("link")).unwrap();
        symlink(at("new"), at("dangling")).unwrap();
        for name in ["link", "dangling"] {
            assert!(write(name).unwrap_err().to_string().contains("it is a link"));
        }
        assert!(!at("new").exists());
        rustix::fs::mknodat(rustix::fs::CWD, at("pipe"), rustix::fs::FileType::Fifo, 0o600.into(), 0).unwrap();
        assert!(write("pipe").unwrap_err().to_string().contains("pipe"));
        let _socket = std::os::unix::net::UnixListener::bind(at("socket")).unwrap();
        assert!(write("socket").unwrap_err().to_string().contains("socket"));
        write(".").unwrap_err();
        for name in ["pipe", "socket", "."] {
            assert_eq!(read(&at(name)).unwrap_err().kind(), io::ErrorKind::InvalidData, "{name}");
        }
        assert_eq!(read(&at("link")).unwrap(), b"precious");
        fs::create_dir(at("folder")).unwrap();
        rename(&at("victim"), &at("folder")).unwrap();
        assert!(at("folder").is_file() && at("folder.damaged").is_dir());
        if !rustix::process::geteuid().is_root() {
            println!("not root: files of other users are left out");
            return;
        }
        chown(at("own"), Some(4711), None).unwrap();
        assert!(write("own").unwrap_err().to_string().contains("another user"));
        chown(dir.path(), Some(4711), None).unwrap();
        write("own").unwrap();
    }
}

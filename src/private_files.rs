//! Files that belong to makegate, in a folder where others may have placed something under their names.
//!
//! makegate never writes through a link, or to a device or pipe, or, as root, to a file that belongs neither to root
//! nor to the folder's owner. Otherwise whoever placed it there would choose what makegate overwrites.

#![expect(clippy::disallowed_methods, reason = "called only by threads that own files")]

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read as _};
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use rustix::fs::OFlags;
use rustix::io::Errno;

/// Opens a file for writing, or creates it (readable only by its owner) if the options say so. The options must not
/// truncate: a refused file stays unchanged.
///
/// # Errors
/// System errors, or that the file is not makegate's own.
pub fn open(options: &mut OpenOptions, path: &Path) -> io::Result<File> {
    let flags = (OFlags::NOFOLLOW | OFlags::NONBLOCK).bits().cast_signed();
    let opened = options.mode(0o600).custom_flags(flags).open(path);
    let file = opened.map_err(|error| match Errno::from_io_error(&error) {
        Some(Errno::LOOP) => {
            refused("it is a link, and makegate does not write through links: put the file itself there")
        }
        Some(Errno::NXIO) => refused("it is a pipe or a socket, not a file"),
        _ => error,
    })?;
    let about = file.metadata()?;
    if !about.is_file() {
        return Err(refused("it is not a file"));
    }
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    if rustix::process::geteuid().is_root() && about.uid() != 0 && about.uid() != fs::metadata(folder)?.uid() {
        return Err(refused("it belongs to a different user than its folder: chown it, or remove it"));
    }
    Ok(file)
}

/// Opens a file for reading. Anything but a regular file is refused, since reading a pipe could block forever.
///
/// # Errors
/// System errors, or kind `InvalidData` if the name belongs to something other than a file.
pub fn open_to_read(path: &Path) -> io::Result<File> {
    let file = OpenOptions::new().read(true).custom_flags(OFlags::NONBLOCK.bits().cast_signed()).open(path);
    let no_file = || {
        io::Error::new(
            io::ErrorKind::InvalidData,
            "it is not a file: restore the file, or move whatever is there out of the way",
        )
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

/// Removes whatever has this name. A folder that somebody put there is not makegate's to delete, so it is moved aside.
///
/// # Errors
/// System errors.
pub fn remove(path: &Path) -> io::Result<()> {
    match fs::symlink_metadata(path) {
        Ok(about) if about.is_dir() => move_aside(path),
        Ok(_) => fs::remove_file(path),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(error),
    }
}

/// Renames it to the first of `NAME.damaged`, `NAME.damaged-2`, … that is free.
///
/// # Errors
/// System errors.
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

/// Renames a file. A folder that already has the new name is moved aside.
///
/// # Errors
/// System errors.
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
        assert!(write("own").unwrap_err().to_string().contains("a different user"));
        chown(dir.path(), Some(4711), None).unwrap();
        write("own").unwrap();
    }
}

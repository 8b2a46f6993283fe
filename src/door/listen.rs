//! Listening sockets.

#![expect(clippy::disallowed_methods, reason = "sockets are created at startup and removed at shutdown")]

use std::io::{Error, ErrorKind};
use std::net::{IpAddr, SocketAddr};
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use rustix::fs::{Access, CWD, RenameFlags, access, renameat_with};
use rustix::io::Errno;
use socket2::{Domain, Protocol, Socket, Type};
use tokio::net::{TcpListener, UnixListener};

use super::accounts;
use crate::config::{Listen, SocketAccess};

/// Connections that the kernel queues until they are accepted.
const BACKLOG: i32 = 1024;

pub(super) enum Listener {
    Tcp(TcpListener),
    Unix { socket: UnixListener, _file: Option<SocketFile> },
}

/// A listening socket that somebody else bound, and whose file, if it has one, somebody else removes.
#[derive(Debug)]
pub enum PassedSocket {
    /// A TCP socket.
    Tcp(std::net::TcpListener),
    /// A Unix socket.
    Unix(std::os::unix::net::UnixListener),
}

pub(super) enum Stream {
    Tcp(tokio::net::TcpStream),
    Unix(tokio::net::UnixStream),
}

impl Listener {
    /// Binds `listen`, one of the addresses `all` of this door.
    pub(super) fn bind(listen: &Listen, all: &[Listen], access: &SocketAccess) -> Result<Self, Error> {
        let bound = match listen {
            Listen::Tcp(address) => tcp(*address, all).map(Self::Tcp),
            Listen::Unix(path) => unix(path, access).map(|(socket, file)| Self::Unix { socket, _file: Some(file) }),
        };
        bound.map_err(|error| named(listen, &error))
    }

    /// Whether [`Self::bind`] would succeed now, as far as that can be told without leaving anything behind.
    pub(super) fn check(listen: &Listen, all: &[Listen], access: &SocketAccess) -> Result<(), Error> {
        let checked = match listen {
            Listen::Tcp(address) => tcp_socket(*address, all).map(drop),
            Listen::Unix(path) => SocketPlace::find(path, access).map(drop),
        };
        checked.map_err(|error| named(listen, &error))
    }

    /// Takes over a socket that was passed to this process.
    pub(super) fn passed(socket: PassedSocket) -> Result<Self, Error> {
        match socket {
            PassedSocket::Tcp(socket) => {
                socket.set_nonblocking(true)?;
                TcpListener::from_std(socket).map(Self::Tcp)
            }
            PassedSocket::Unix(socket) => {
                socket.set_nonblocking(true)?;
                UnixListener::from_std(socket).map(|socket| Self::Unix { socket, _file: None })
            }
        }
    }

    pub(super) fn address(&self) -> Option<SocketAddr> {
        match self {
            Self::Tcp(socket) => socket.local_addr().ok(),
            Self::Unix { .. } => None,
        }
    }

    pub(super) async fn accept(&self) -> Result<(Stream, Option<IpAddr>), Error> {
        match self {
            Self::Tcp(socket) => {
                let (stream, address) = socket.accept().await?;
                stream.set_nodelay(true)?;
                Ok((Stream::Tcp(stream), Some(address.ip().to_canonical())))
            }
            Self::Unix { socket, .. } => socket.accept().await.map(|(stream, _)| (Stream::Unix(stream), None)),
        }
    }
}

fn named(listen: &Listen, error: &Error) -> Error {
    let what = match listen {
        Listen::Tcp(address) => address.to_string(),
        Listen::Unix(path) => path.display().to_string(),
    };
    Error::new(error.kind(), format!("cannot listen on {what}: {error}"))
}

fn tcp(address: SocketAddr, all: &[Listen]) -> Result<TcpListener, Error> {
    let socket = tcp_socket(address, all)?;
    socket.listen(BACKLOG)?;
    socket.set_nonblocking(true)?;
    TcpListener::from_std(socket.into())
}

/// A socket that is bound to this address, and that nobody can connect to yet.
fn tcp_socket(address: SocketAddr, all: &[Listen]) -> Result<Socket, Error> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    socket.set_reuse_address(true)?;
    // On its own, [::] also takes IPv4 where the system allows it. If the door also has an IPv4 address on this port, [::] must leave
    // IPv4 to that one.
    let is_ipv4_of_its_port =
        |other: &Listen| matches!(other, Listen::Tcp(other) if other.is_ipv4() && other.port() == address.port());
    if address.is_ipv6() && all.iter().any(is_ipv4_of_its_port) {
        socket.set_only_v6(true)?;
    }
    socket.bind(&address.into())?;
    Ok(socket)
}

/// Where a Unix socket will be, and who will own it.
struct SocketPlace<'p> {
    folder: &'p Path,
    owner: Option<u32>,
    group: Option<u32>,
    /// A socket is there that nobody answers, left behind by a killed process.
    is_taken_by_stale: bool,
}

impl<'p> SocketPlace<'p> {
    /// Finds out without changing anything.
    fn find(path: &'p Path, wanted: &SocketAccess) -> Result<Self, Error> {
        let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
        access(folder, Access::WRITE_OK | Access::EXEC_OK).map_err(|errno| {
            let error = Error::from(errno);
            Error::new(error.kind(), format!("the folder {folder:?}: {error}"))
        })?;
        let owner = wanted.owner.as_deref().map(accounts::user).transpose()?;
        let group = wanted.group.as_deref().map(accounts::group).transpose()?;
        Ok(Self { folder, owner, group, is_taken_by_stale: is_taken_by_stale(path)? })
    }
}

/// Binds in a private folder, sets owner, group and mode, and only then renames the socket to its path, so that nobody else can ever
/// connect. (A umask would also do, but it belongs to the whole process.)
fn unix(path: &Path, access: &SocketAccess) -> Result<(UnixListener, SocketFile), Error> {
    let SocketPlace { folder, owner, group, is_taken_by_stale } = SocketPlace::find(path, access)?;
    if is_taken_by_stale {
        std::fs::remove_file(path)?;
    }
    let private = tempfile::Builder::new().prefix(".").rand_bytes(6).tempdir_in(folder)?;
    let hidden = private.path().join("s");
    let socket = UnixListener::bind(&hidden)?;
    std::os::unix::fs::chown(&hidden, owner, group)?;
    std::fs::set_permissions(&hidden, std::fs::Permissions::from_mode(access.mode))?;
    match renameat_with(CWD, &hidden, CWD, path, RenameFlags::NOREPLACE) {
        // Some file systems do not support RENAME_NOREPLACE.
        Err(Errno::INVAL | Errno::NOSYS) => std::fs::rename(&hidden, path)?,
        renamed => renamed?,
    }
    let file = std::fs::symlink_metadata(path)?;
    Ok((socket, SocketFile { path: path.to_owned(), device: file.dev(), inode: file.ino() }))
}

/// Whether a socket is there that nobody answers. Anything else that is there is an error.
fn is_taken_by_stale(path: &Path) -> Result<bool, Error> {
    let kind = match std::fs::symlink_metadata(path) {
        Ok(file) => file.file_type(),
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(false),
        Err(error) => return Err(error),
    };
    if !kind.is_socket() {
        let what = "a file that is not a socket has this path: move it, or choose another path";
        return Err(Error::new(ErrorKind::AlreadyExists, what));
    }
    match std::os::unix::net::UnixStream::connect(path) {
        Ok(_) => Err(Error::new(ErrorKind::AddrInUse, "another process serves this socket")),
        Err(error) if error.kind() == ErrorKind::ConnectionRefused => Ok(true),
        Err(error) => Err(error),
    }
}

/// The file of a Unix socket. Dropping it removes the file, unless another file has taken its path.
pub(super) struct SocketFile {
    path: PathBuf,
    device: u64,
    inode: u64,
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        let is_own = |file: &std::fs::Metadata| (file.dev(), file.ino()) == (self.device, self.inode);
        let removed = match std::fs::symlink_metadata(&self.path) {
            Ok(file) if is_own(&file) => std::fs::remove_file(&self.path),
            Ok(_) => return,
            Err(error) => Err(error),
        };
        if let Err(error) = removed {
            tracing::debug!(path = %self.path.display(), %error, "cannot remove the socket file");
        }
    }
}

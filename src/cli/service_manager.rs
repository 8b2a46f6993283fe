//! What passes between makegate and systemd, or another service manager with its protocol: sockets that it opened (`LISTEN_FDS`), and how
//! the service is (`NOTIFY_SOCKET`, see sd_notify(3)).

use std::io;
#[cfg(target_os = "linux")]
use std::os::linux::net::SocketAddrExt as _;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::time::Duration;

use listenfd::ListenFd;
use rustix::time::{ClockId, clock_gettime};

use super::failure::CommandFailure;
use crate::door::PassedSocket;
use crate::service::PassedSockets;

/// Takes the sockets that were passed to this process. Names tell which door they are for (`FileDescriptorName=`).
///
/// # Errors
/// If a socket has no door, or is none that a door can accept connections from.
pub(super) fn passed_sockets() -> Result<PassedSockets, CommandFailure> {
    let names = std::env::var("LISTEN_FDNAMES").unwrap_or_default();
    let mut passed = ListenFd::from_env();
    let mut sockets = PassedSockets::default();
    for (at, name) in (0..passed.len()).zip(names.split(':').map(Some).chain(std::iter::repeat(None))) {
        let door = match name {
            Some("gateway") => &mut sockets.gateway,
            Some("operator") => &mut sockets.operator,
            other => {
                let name = other.unwrap_or_default();
                return Err(CommandFailure::usage(format!(
                    "a socket named {name:?} was passed (LISTEN_FDNAMES), but sockets are for doors: name it gateway or operator \
                     (FileDescriptorName= of its .socket unit)"
                )));
            }
        };
        let failed =
            |error: io::Error| CommandFailure::usage(format!("a socket was passed that no door can use: {error}"));
        let socket = match passed.take_tcp_listener(at) {
            Ok(socket) => socket.map(PassedSocket::Tcp),
            Err(_) => passed.take_unix_listener(at).map_err(failed)?.map(PassedSocket::Unix),
        };
        door.extend(socket);
    }
    Ok(sockets)
}

/// Tells the service manager how the service is. Without one, nobody is told.
pub(super) struct ServiceManager {
    socket: Option<(UnixDatagram, SocketAddr)>,
    watchdog: Option<Duration>,
}

impl ServiceManager {
    pub(super) fn from_environment() -> Self {
        let address = std::env::var_os("NOTIFY_SOCKET").and_then(|name| match name.as_bytes() {
            #[cfg(target_os = "linux")]
            [b'@', name @ ..] => SocketAddr::from_abstract_name(name).ok(),
            [b'/', ..] => SocketAddr::from_pathname(&name).ok(),
            _ => None,
        });
        let socket = UnixDatagram::unbound().and_then(|socket| socket.set_nonblocking(true).map(|()| socket)).ok();
        let number = |name| std::env::var(name).ok().and_then(|text| text.parse::<u64>().ok());
        let is_meant = number("WATCHDOG_PID").is_none_or(|pid| pid == u64::from(std::process::id()));
        let watchdog = number("WATCHDOG_USEC").filter(|us| is_meant && *us > 0).map(Duration::from_micros);
        Self { socket: socket.zip(address), watchdog }
    }

    /// How often [`serves_if`](Self::serves_if) has to be told at least; `None`: nobody waits for it.
    pub(super) fn watchdog(&self) -> Option<Duration> {
        self.watchdog.filter(|_| self.socket.is_some())
    }

    /// It is ready, after a start or a reload.
    pub(super) fn ready(&self, status: &str) {
        self.tell(&format!("READY=1\nSTATUS={}", status.replace('\n', " ")));
    }

    pub(super) fn reloading(&self) {
        let now = clock_gettime(ClockId::Monotonic);
        let us = i128::from(now.tv_sec) * 1_000_000 + i128::from(now.tv_nsec) / 1_000;
        self.tell(&format!("RELOADING=1\nMONOTONIC_USEC={us}"));
    }

    pub(super) fn stopping(&self) {
        self.tell("STOPPING=1\nSTATUS=finishing work in progress");
    }

    /// It serves requests, if it answers.
    pub(super) async fn serves_if(&self, answers: impl Future<Output = bool>) {
        if answers.await {
            self.tell("WATCHDOG=1");
        }
    }

    fn tell(&self, message: &str) {
        let Some((socket, address)) = &self.socket else { return };
        if let Err(error) = socket.send_to_addr(message.as_bytes(), address) {
            tracing::debug!(%error, "cannot notify the service manager");
        }
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt as _;

    use super::*;

    #[tokio::test]
    async fn the_watchdog_hears_nothing_of_a_service_that_does_not_answer() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("notify");
        let told = UnixDatagram::bind(&path).unwrap();
        told.set_nonblocking(true).unwrap();
        let socket = (UnixDatagram::unbound().unwrap(), SocketAddr::from_pathname(&path).unwrap());
        let manager = ServiceManager { socket: Some(socket), watchdog: Some(Duration::from_secs(1)) };
        let mut message = [0; 64];
        manager.serves_if(async { false }).await;
        assert!(manager.serves_if(std::future::pending()).now_or_never().is_none());
        assert!(told.recv(&mut message).is_err(), "it was told");
        manager.serves_if(async { true }).await;
        assert_eq!(told.recv(&mut message).unwrap(), b"WATCHDOG=1".len());
    }
}

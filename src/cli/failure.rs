//! How a command fails: its exit code, and the message on stderr.

use std::fmt;
use std::io;

/// Exit code: the command failed.
pub(super) const FAILED: u8 = 1;
/// Exit code: the usage or the configuration is wrong.
pub(super) const USAGE: u8 = 2;
/// Exit code: `explain` says that the request would be refused.
pub(super) const REFUSED: u8 = 3;

#[derive(Debug)]
pub(super) struct CommandFailure {
    pub(super) code: u8,
    /// The message still to be printed; `None` if everything has been printed already.
    pub(super) message: Option<String>,
}

impl CommandFailure {
    pub(super) fn failed(message: impl fmt::Display) -> Self {
        Self { code: FAILED, message: Some(message.to_string()) }
    }

    pub(super) fn usage(message: impl fmt::Display) -> Self {
        Self { code: USAGE, message: Some(message.to_string()) }
    }

    pub(super) const fn reported(code: u8) -> Self {
        Self { code, message: None }
    }
}

/// An error in writing records. It is no failure if the reader has seen enough (`| head`).
impl From<io::Error> for CommandFailure {
    fn from(error: io::Error) -> Self {
        if error.kind() == io::ErrorKind::BrokenPipe {
            return Self::reported(0);
        }
        Self::failed(format!("cannot write the output: {error}"))
    }
}

//! How a command ends that is not done: its exit code, and what is said of it on stderr.

use std::fmt;
use std::io;

/// The command failed.
pub(super) const FAILED: u8 = 1;
/// The command was not understood, or the configuration is none.
pub(super) const USAGE: u8 = 2;

/// Why a command ends early.
#[derive(Debug)]
pub(super) struct CommandFailure {
    /// The exit code.
    pub(super) code: u8,
    /// What is still to be said; `None`: all has been said.
    pub(super) message: Option<String>,
}

impl CommandFailure {
    pub(super) fn failed(message: impl fmt::Display) -> Self {
        Self { code: FAILED, message: Some(message.to_string()) }
    }

    pub(super) fn usage(message: impl fmt::Display) -> Self {
        Self { code: USAGE, message: Some(message.to_string()) }
    }

    pub(super) const fn told(code: u8) -> Self {
        Self { code, message: None }
    }
}

/// Of writing the output. A reader that has seen enough (`| head`) is no failure.
impl From<io::Error> for CommandFailure {
    fn from(error: io::Error) -> Self {
        if error.kind() == io::ErrorKind::BrokenPipe {
            return Self::told(0);
        }
        Self::failed(format!("cannot write the output: {error}"))
    }
}

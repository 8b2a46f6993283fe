//! `makegate key new`: creates a key for a caller.

use std::io::{self, Write as _};

use clap::{Args, Subcommand};

use super::failure::CommandFailure;
use super::output;
use crate::config;
use crate::hash;

/// Creates keys for callers.
#[derive(Debug, Subcommand)]
#[command(after_help = "\
Examples:
  makegate key new --caller dashboard")]
pub(super) enum KeyCommand {
    New(NewKeyCommand),
}

/// Creates a key for a caller.
///
/// The first line on stdout is the key, which is shown only this once; the second is the line for the caller's table in
/// the configuration. makegate stores only the key's hash. The key has the form of a UUID (version 4), because Make's
/// own clients insist on it.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  makegate key new --caller dashboard
  makegate key new --caller dashboard 2>/dev/null | head -1 > dashboard.key")]
pub(super) struct NewKeyCommand {
    /// The caller's name.
    #[arg(long, value_name = "NAME")]
    caller: String,
}

impl KeyCommand {
    pub(super) fn run(&self) -> Result<(), CommandFailure> {
        let Self::New(NewKeyCommand { caller }) = self;
        let caller = config::caller_name(caller).map_err(|wrong| {
            CommandFailure::usage(format!("--caller: {}; {}", wrong.message, wrong.help.unwrap_or_default()))
        })?;
        let key = mint()?;
        let mut words = io::stderr();
        writeln!(words, "Key for {caller}. Give it to the tool; it will not be shown again:")?;
        output::line(&key)?;
        writeln!(words, "Line for its [[caller]] table in the configuration (you can keep an older key in the list):")?;
        output::line(&format!("keys = [\"{}\"]", entry(&key)))?;
        Ok(())
    }
}

/// A new key: 122 random bits in the form of a UUID, version 4.
pub(super) fn mint() -> Result<String, CommandFailure> {
    let random = hash::random().map_err(CommandFailure::failed)?;
    Ok(uuid::Builder::from_random_bytes(random).into_uuid().to_string())
}

/// What the configuration stores for a key: its hash.
pub(super) fn entry(key: &str) -> String {
    format!("sha256:{}", hash::hex(&hash::sha256(key.as_bytes())))
}

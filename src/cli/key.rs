//! `makegate key new`: mints a caller's key.

use std::io::{self, Write as _};

use clap::{Args, Subcommand};

use super::failure::CommandFailure;
use super::output;
use crate::config;
use crate::hash;

/// Mints callers' keys.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  makegate key new --caller dashboard")]
pub(super) struct KeyCommand {
    #[command(subcommand)]
    command: KeySubcommand,
}

#[derive(Debug, Subcommand)]
enum KeySubcommand {
    New(NewKeyCommand),
}

/// Mints a key for a caller.
///
/// It is printed this once, with the line for the configuration. The first line of stdout is the key, the second the line for its caller in the file. Only the key's hash is ever stored. The
/// key has the form of a UUID (version 4), which Make's own clients demand.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  makegate key new --caller dashboard
  makegate key new --caller dashboard 2>/dev/null | head -1 > dashboard.key")]
struct NewKeyCommand {
    /// The caller's name.
    #[arg(long, value_name = "NAME")]
    caller: String,
}

impl KeyCommand {
    pub(super) fn run(&self) -> Result<(), CommandFailure> {
        match &self.command {
            KeySubcommand::New(new) => new.run(),
        }
    }
}

impl NewKeyCommand {
    fn run(&self) -> Result<(), CommandFailure> {
        let caller = config::caller_name(&self.caller).map_err(|wrong| {
            CommandFailure::usage(format!("--caller: {}; {}", wrong.message, wrong.help.unwrap_or_default()))
        })?;
        let key = mint()?;
        let mut words = io::stderr();
        writeln!(words, "The key of {caller}. It is shown this once; give it to the tool:")?;
        output::line(&key)?;
        writeln!(words, "The line for its [[caller]] in the configuration, where an older key may stay beside it:")?;
        output::line(&format!("keys = [\"{}\"]", entry(&key)))?;
        Ok(())
    }
}

/// A new key: 122 random bits in the form of a UUID, version 4.
pub(super) fn mint() -> Result<String, CommandFailure> {
    let random = hash::random().map_err(CommandFailure::failed)?;
    Ok(uuid::Builder::from_random_bytes(random).into_uuid().to_string())
}

/// What the configuration holds of a key.
pub(super) fn entry(key: &str) -> String {
    format!("sha256:{}", hash::hex(&hash::sha256(key.as_bytes())))
}

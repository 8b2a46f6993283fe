//! `makegate key`: creates keys for callers, and says how the configuration names them.

use std::io::{self, Read as _, Write as _};

use clap::{Args, Subcommand};
use serde_json::json;

use super::failure::CommandFailure;
use super::output::{self, ReportFormat};
use crate::config;
use crate::hash;

/// Maximum length of a key on stdin, in bytes: the gateway takes no longer one.
const KEY_BYTES_MAX: u64 = 512;

/// Creates keys for callers.
#[derive(Debug, Subcommand)]
#[command(after_help = "\
Examples:
  makegate key new --caller dashboard")]
pub(super) enum KeyCommand {
    New(NewKeyCommand),
    Hash(HashKeyCommand),
}

/// Creates a key for a caller.
///
/// The first line on stdout is the key, which is shown only this once; the others are the caller's table for the
/// configuration. makegate stores only the key's hash. The key has the form of a UUID (version 4), because Make's own
/// clients insist on it.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  makegate key new --caller dashboard
  makegate key new --caller dashboard 2>/dev/null | head -1 > dashboard.key")]
pub(super) struct NewKeyCommand {
    /// The caller's name.
    #[arg(long, value_name = "NAME")]
    caller: String,
    /// text, or json (one object: caller, key, hash).
    #[arg(short = 'o', long, value_enum, default_value = "text", hide_possible_values = true)]
    format: ReportFormat,
}

/// Prints the hash of a key that exists, as `keys` in the configuration lists it.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  makegate key hash < dashboard.key")]
pub(super) struct HashKeyCommand {
    /// The key. Better leave it out: without it the key is read from stdin, where no list of processes shows it.
    key: Option<String>,
    /// text, or json (one object: hash).
    #[arg(short = 'o', long, value_enum, default_value = "text", hide_possible_values = true)]
    format: ReportFormat,
}

impl KeyCommand {
    pub(super) fn run(&self) -> Result<(), CommandFailure> {
        match self {
            Self::New(new) => new.run(),
            Self::Hash(hash) => hash.run(),
        }
    }
}

impl NewKeyCommand {
    fn run(&self) -> Result<(), CommandFailure> {
        let caller = config::caller_name(&self.caller);
        let caller = caller.map_err(|wrong| CommandFailure::usage(format!("--caller: {wrong}")))?;
        let key = generate()?;
        let entry = entry(&key);
        if self.format == ReportFormat::Json {
            return Ok(output::json(&json!({ "caller": *caller, "key": key, "hash": entry }).to_string())?);
        }
        let mut words = io::stderr();
        writeln!(words, "Key for {caller}. Give it to the tool; it will not be shown again:")?;
        output::line(&key)?;
        writeln!(words, "Its table for the configuration (if the caller has one, add the hash to its keys):")?;
        output::line(&format!(
            "\n[[caller]]\nname = \"{caller}\"\nkeys = [\"{entry}\"]\ngrants = [\"organizations:read\"]   # what it may do"
        ))?;
        Ok(())
    }
}

impl HashKeyCommand {
    fn run(&self) -> Result<(), CommandFailure> {
        let key = match &self.key {
            Some(key) => key.clone(),
            None => {
                let mut text = String::new();
                let read = io::stdin().take(KEY_BYTES_MAX + 2).read_to_string(&mut text);
                read.map_err(|error| CommandFailure::failed(format!("cannot read the key from stdin: {error}")))?;
                text
            }
        };
        let key = key.trim();
        if key.is_empty() || key.len() as u64 > KEY_BYTES_MAX || !key.bytes().all(|byte| byte.is_ascii_graphic()) {
            return Err(CommandFailure::usage(format!(
                "this is not a key: write 1 to {KEY_BYTES_MAX} visible ASCII characters without spaces"
            )));
        }
        match self.format {
            ReportFormat::Text => output::line(&entry(key))?,
            ReportFormat::Json => output::json(&json!({ "hash": entry(key) }).to_string())?,
        }
        Ok(())
    }
}

/// A new key: 122 random bits in the form of a UUID, version 4.
pub(super) fn generate() -> Result<String, CommandFailure> {
    let random = hash::random().map_err(CommandFailure::failed)?;
    Ok(uuid::Builder::from_random_bytes(random).into_uuid().to_string())
}

/// What the configuration stores for a key: its hash.
pub(super) fn entry(key: &str) -> String {
    format!("sha256:{}", hash::hex(&hash::sha256(key.as_bytes())))
}

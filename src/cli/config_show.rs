//! `makegate config show`: prints the configuration in force and where each setting comes from.

use std::io;

use clap::{Args, Subcommand};

use super::failure::CommandFailure;
use super::output::{self, Format};
use super::process::ColorChoice;
use super::{ConfigFile, check};

/// Shows the configuration that is in force.
#[derive(Debug, Subcommand)]
#[command(after_help = "\
Examples:
  makegate config show --config makegate.toml")]
pub(super) enum ConfigCommand {
    Show(ShowCommand),
}

/// Shows every setting in force, with its value and origin.
///
/// The origin is a line of the file, or a default. No secrets are shown; the file holds none.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  makegate config show --config makegate.toml
  makegate config show --config makegate.toml -o json | jq 'select(.origin != \"default\")'")]
pub(super) struct ShowCommand {
    #[command(flatten)]
    config: ConfigFile,
    /// table, json (one object per line) or csv.
    #[arg(short = 'o', long, value_enum, default_value = "table", hide_possible_values = true)]
    format: Format,
}

impl ConfigCommand {
    pub(super) fn run(&self, color: ColorChoice) -> Result<(), CommandFailure> {
        let Self::Show(ShowCommand { config, format }) = self;
        let shown = check::configuration(&config.path, color.colors(&io::stderr()))?.origins.shown();
        let rows: Vec<_> = shown.iter().map(|setting| [&*setting.key, &*setting.value, &*setting.origin]).collect();
        Ok(output::rows(*format, ["key", "value", "origin"], &rows)?)
    }
}

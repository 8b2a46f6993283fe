//! `makegate config show`: what is in force, and from where.

use std::io;

use clap::{Args, Subcommand};

use super::failure::CommandFailure;
use super::output::{self, Format};
use super::process::ColorChoice;
use super::{ConfigFile, check};

/// Shows the configuration that is in force.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  makegate config show --config makegate.toml")]
pub(super) struct ConfigCommand {
    #[command(subcommand)]
    command: ConfigSubcommand,
}

#[derive(Debug, Subcommand)]
enum ConfigSubcommand {
    Show(ShowCommand),
}

/// Shows every setting in force.
///
/// With its value and where it comes from: a line of the file, or a default. It shows no secret: the file holds none.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  makegate config show --config makegate.toml
  makegate config show --config makegate.toml -o json | jq 'select(.origin != \"default\")'")]
struct ShowCommand {
    #[command(flatten)]
    config: ConfigFile,
    /// table, json (one object a line) or csv.
    #[arg(short = 'o', long, value_enum, default_value = "table", hide_possible_values = true)]
    format: Format,
}

impl ConfigCommand {
    pub(super) fn run(&self, color: ColorChoice) -> Result<(), CommandFailure> {
        let ConfigSubcommand::Show(ShowCommand { config, format }) = &self.command;
        let shown = check::configuration(&config.path, color.colors(&io::stderr()))?.origins.shown();
        let rows: Vec<_> = shown.iter().map(|setting| [&*setting.key, &*setting.value, &*setting.origin]).collect();
        Ok(output::rows(*format, ["key", "value", "origin"], &rows)?)
    }
}

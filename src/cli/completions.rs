//! `makegate completions` and `makegate man`, generated from the argument definitions.

use std::io::{self, Write as _};
use std::path::PathBuf;

use clap::{Args, CommandFactory as _};
use clap_complete::Shell;

use super::Cli;
use super::failure::CommandFailure;

/// Prints a shell completion script.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  makegate completions bash > /etc/bash_completion.d/makegate
  makegate completions zsh > ~/.zfunc/_makegate
  makegate completions fish > ~/.config/fish/completions/makegate.fish")]
pub(super) struct CompletionsCommand {
    /// bash, zsh, fish, elvish or powershell.
    #[arg(value_enum, hide_possible_values = true)]
    shell: Shell,
}

impl CompletionsCommand {
    pub(super) fn run(&self) -> Result<(), CommandFailure> {
        let mut script = Vec::new();
        clap_complete::generate(self.shell, &mut Cli::command(), "makegate", &mut script);
        Ok(io::stdout().lock().write_all(&script)?)
    }
}

/// Prints the man page, or writes one per command to a folder.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  makegate man | man -l -
  makegate man --dir /usr/local/share/man/man1")]
pub(super) struct ManCommand {
    /// Write one man page per command to this folder instead.
    #[arg(long, value_name = "DIR")]
    dir: Option<PathBuf>,
}

impl ManCommand {
    pub(super) fn run(&self) -> Result<(), CommandFailure> {
        match &self.dir {
            None => Ok(clap_mangen::Man::new(Cli::command()).render(&mut io::stdout().lock())?),
            Some(dir) => clap_mangen::generate_to(Cli::command(), dir)
                .map_err(|error| CommandFailure::failed(format!("cannot write to {}: {error}", dir.display()))),
        }
    }
}

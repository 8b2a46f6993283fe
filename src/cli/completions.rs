//! `makegate completions` and `makegate man`, generated from the argument definitions.

use std::io::{self, Write as _};
use std::path::PathBuf;

use clap::{Args, Command};
use clap_complete::Shell;
use clap_mangen::Man;

use super::command_line;
use super::failure::CommandFailure;
use super::new_file::{self, FileContent};
use crate::ids::escape_invisible;

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
        clap_complete::generate(self.shell, &mut command_line(), "makegate", &mut script);
        Ok(io::stdout().lock().write_all(&script)?)
    }
}

/// Prints a man page, or writes one per command to a folder.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  makegate man | man -l -
  makegate man audit query | man -l -
  makegate man --dir /usr/local/share/man/man1")]
pub(super) struct ManCommand {
    /// The command whose page to print, such as `audit query`; makegate's own if it is left out.
    #[arg(value_name = "COMMAND", conflicts_with = "dir")]
    command: Vec<String>,
    /// Write one man page per command to this folder instead; the folder is made if it is not there.
    #[arg(long, value_name = "DIR")]
    dir: Option<PathBuf>,
}

impl ManCommand {
    pub(super) fn run(&self) -> Result<(), CommandFailure> {
        let mut command = command_line().disable_help_subcommand(true);
        command.build();
        match &self.dir {
            None => Ok(io::stdout().lock().write_all(&page(self.wanted(&command)?)?)?),
            Some(dir) => {
                let mut files = Vec::new();
                pages(&command, &mut files)?;
                new_file::write_all(dir, &files, true)
            }
        }
    }

    fn wanted<'c>(&self, root: &'c Command) -> Result<&'c Command, CommandFailure> {
        self.command.iter().try_fold(root, |command, name| {
            command.find_subcommand(name).ok_or_else(|| {
                let (path, name) = (command.get_bin_name().unwrap_or("makegate"), escape_invisible(name));
                let known: Vec<_> = command.get_subcommands().map(Command::get_name).collect();
                let known = if known.is_empty() { "no commands below it".to_owned() } else { known.join(", ") };
                CommandFailure::usage(format!("there is no command `{path} {name}`; {path} has {known}"))
            })
        })
    }
}

/// Parts of the help that are sections of their own in a manual, and are shown line by line.
const SECTIONS: [(&str, &str); 4] = [
    (".SH EXTRA\n", ""),
    ("\nExit codes:\n", "\n.SH EXIT STATUS\n.nf\n"),
    ("\nEnvironment:\n", "\n.SH ENVIRONMENT\n.nf\n"),
    ("\nExamples:\n", "\n.SH EXAMPLES\n.nf\n"),
];

fn page(command: &Command) -> Result<Vec<u8>, CommandFailure> {
    let mut page = Vec::new();
    Man::new(command.clone()).render(&mut page)?;
    let page = String::from_utf8(page).map_err(CommandFailure::failed)?;
    Ok(SECTIONS.iter().fold(page, |page, (written, section)| page.replace(written, section)).into_bytes())
}

/// The page of this command and of all below it, as files.
fn pages(command: &Command, files: &mut Vec<FileContent>) -> Result<(), CommandFailure> {
    files.push((Man::new(command.clone()).get_filename(), 0o644, page(command)?));
    command.get_subcommands().try_for_each(|below| pages(below, files))
}

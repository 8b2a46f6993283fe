//! `makegate replicas leave`: this replica takes part no more.

use clap::Args;

use super::SharedEngine;
use crate::cli::failure::CommandFailure;
use crate::cli::process::{self, ColorChoice};
use crate::cli::{ConfigFile, output};
use crate::clock::Clock;
use crate::replicas::setup::folder;
use crate::service::leave::{Left, leave};

/// Takes this replica out of those that share the database.
///
/// Stop it first. While others run, one of them takes over its open writes, and the others no longer expect it to come back. The last one
/// takes over what all others left open, and keeps the answers to their idempotency keys itself: it can go on alone, once you have removed
/// `[replicas]` from its configuration. Its quota begins as if it were used up, so the first minute is slow. A replica that comes back has
/// joined again.
///
/// Exit code 0: it has left; 1: its makegate still runs, or the database cannot be reached; 2: the folder is another replica's.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  makegate replicas leave --config makegate.toml")]
pub(in crate::cli) struct LeaveCommand {
    #[command(flatten)]
    config: ConfigFile,
}

impl LeaveCommand {
    pub(super) fn run(&self, color: ColorChoice) -> Result<(), CommandFailure> {
        let shared = SharedEngine::read(&self.config, color)?;
        let dir = shared.loaded.config.audit.dir.clone();
        let name = shared.name.clone();
        match folder::joined_as(&dir).map_err(CommandFailure::failed)? {
            Some(joined) if *joined == *name => {}
            Some(joined) => {
                return Err(CommandFailure::usage(format!(
                    "the folder {} belongs to the replica {joined}, and replicas.name is {name}: set it to {joined}",
                    dir.display()
                )));
            }
            None => {
                return Err(CommandFailure::failed(format!(
                    "the folder {} has not joined any replicas, or has left them",
                    dir.display()
                )));
            }
        }
        let left = process::serve(async move {
            let left = leave(shared.loaded, Clock::system()).await;
            left.map_err(|error| CommandFailure { code: error.exit_code(), message: Some(error.to_string()) })
        })?;
        match left {
            Left::Others { successor, doubts } => {
                output::line(&format!("{name} has left; {successor} takes over its open writes ({doubts} in doubt)"))?;
                Ok(output::line(
                    "next: do not start a makegate on this folder without [replicas] while the others run",
                )?)
            }
            Left::Last { adopted, keys } => {
                output::line(&format!(
                    "{name} has left, and was the last; it took over {adopted} writes in doubt and {keys} answers"
                ))?;
                Ok(output::line(
                    "next: remove [replicas] from the configuration, and start makegate; its first minute is slow, because the quota counts as used up",
                )?)
            }
        }
    }
}

//! `makegate replicas`: prepares, shows and leaves the database that several replicas share.

#![expect(clippy::disallowed_methods, reason = "a command may block on its files")]

mod leave;
mod status;

use std::fs;
use std::io;
use std::path::Path;
use std::sync::Arc;

use clap::{Args, Subcommand};

use self::leave::LeaveCommand;
use self::status::StatusCommand;
use super::failure::CommandFailure;
use super::process::{self, ColorChoice};
use super::{ConfigFile, check, output};
use crate::config::{Config, LoadedConfig, ReplicasConfig, secret};
use crate::hash;
use crate::private_files;
use crate::replicas::engine::{EngineSession, EngineTarget};
use crate::replicas::setup::{self, PrepareError, SchemaChange, folder, trial};
use crate::replicas::{EngineAccess, schema, shared_key};
use crate::tasks::Tasks;

/// Prepares, shows and leaves the database that several replicas share.
///
/// Several makegates keep their promises together through a PostgreSQL database of their own (version 14 or newer), which `[replicas]` in
/// the configuration names.
#[derive(Debug, Subcommand)]
#[command(after_help = "\
Examples:
  makegate replicas init --config makegate.toml
  makegate replicas status --config makegate.toml
  makegate replicas leave --config makegate.toml")]
pub(super) enum ReplicasCommand {
    Init(InitCommand),
    Status(StatusCommand),
    Leave(LeaveCommand),
}

/// Prepares the database, and makes the key that all replicas share.
///
/// Makes the schema `mg`, or brings it up to date after an upgrade of makegate, and the file that replicas.key_file names: from the key of
/// this folder's log, so that its writes in doubt are still recognized, or anew. What is there already stays as it is, so that the command
/// can be run as often as you like, also while replicas run.
///
/// Exit code 0: the database is ready; 1: it cannot be reached, or refuses; 2: the configuration is wrong, or the key is another than that
/// of the other replicas.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  makegate replicas init --config makegate.toml")]
pub(super) struct InitCommand {
    #[command(flatten)]
    config: ConfigFile,
}

impl ReplicasCommand {
    pub(super) fn run(&self, color: ColorChoice) -> Result<(), CommandFailure> {
        match self {
            Self::Init(init) => init.run(color),
            Self::Status(status) => status.run(color),
            Self::Leave(leave) => leave.run(color),
        }
    }
}

/// A configuration with `[replicas]`, and the engine that it names.
struct SharedEngine {
    loaded: LoadedConfig,
    section: ReplicasConfig,
    target: EngineTarget,
    name: Arc<str>,
}

impl SharedEngine {
    fn read(file: &ConfigFile, color: ColorChoice) -> Result<Self, CommandFailure> {
        let loaded = check::configuration(&file.path, color.colors(&io::stderr()))?;
        let Some(section) = loaded.config.replicas.clone() else {
            let file = file.path.display();
            let help = "add [replicas] with url_file, the file with the URL of the PostgreSQL database";
            return Err(CommandFailure::usage(format!("{file} has no [replicas]: {help}")));
        };
        let access = EngineAccess::read(&section, &loaded.files).map_err(of_section)?;
        let target = access.target().map_err(of_section)?;
        Ok(Self { loaded, section, target, name: access.name })
    }

    /// Connects, if this is an engine that will do.
    async fn connect(&self, tasks: &Tasks) -> Result<EngineSession, CommandFailure> {
        let address = self.target.address();
        let session = EngineSession::connect(&self.target, tasks).await;
        let session = session.map_err(|why| CommandFailure::failed(format!("cannot reach {address}: {why}")))?;
        match trial::check_kind(&session).await.map_err(CommandFailure::failed)? {
            Some(finding) => Err(CommandFailure::failed(format!("{address}: {}: {}", finding.what, finding.help))),
            None => Ok(session),
        }
    }
}

fn of_section(why: impl std::fmt::Display) -> CommandFailure {
    CommandFailure::usage(format!("replicas: {why}"))
}

impl InitCommand {
    fn run(&self, color: ColorChoice) -> Result<(), CommandFailure> {
        let shared = SharedEngine::read(&self.config, color)?;
        let (key_file, address) = (shared.section.key_file.display(), shared.target.address());
        let tasks = Tasks::new();
        let (change, origin) = process::block_on(async {
            let session = shared.connect(&tasks).await?;
            let known = setup::about(&session).await.map_err(CommandFailure::failed)?;
            if let Some(known) = known.as_ref().filter(|known| known.version > schema::VERSION) {
                return Err(refused(PrepareError::Newer(known.version)));
            }
            let (key, origin) = key(&shared, known.map(|known| known.key_sha256))?;
            Ok((setup::prepare(&session, &key).await.map_err(refused)?, origin))
        })?;
        let version = schema::VERSION;
        output::line(&match change {
            SchemaChange::Made => format!("{address} has the schema mg now, version {version}"),
            SchemaChange::Upgraded(older) => {
                format!("the schema mg in {address} has version {version} now, after {older}")
            }
            SchemaChange::None => format!("{address} has the schema mg already, version {version}"),
        })?;
        output::line(&match origin {
            KeyOrigin::Kept => format!("{key_file} is there already, and is the key that all replicas share"),
            KeyOrigin::Folder => format!("{key_file} is made of {}", fingerprint_key(&shared.loaded.config).display()),
            KeyOrigin::New => format!("{key_file} is made anew"),
        })?;
        let copy =
            "copy the key to each replica, readable by makegate alone, as the file that its replicas.key_file names";
        let start = "start the replicas, each with a replicas.name of its own (left out: its host's name) and a folder of its own in audit.dir";
        Ok(output::line(&format!("next: {copy}; then {start}"))?)
    }
}

/// 2 if the configuration or the key must be another one.
fn refused(why: PrepareError) -> CommandFailure {
    match why {
        PrepareError::Newer(_) | PrepareError::Key => CommandFailure::usage(why),
        PrepareError::Forbidden(_) | PrepareError::Engine(_) => CommandFailure::failed(why),
    }
}

/// Where the key comes from.
#[derive(Clone, Copy, Debug)]
enum KeyOrigin {
    /// It was there.
    Kept,
    /// The key of this folder's log.
    Folder,
    New,
}

/// The key that all replicas share. It is written only if the other replicas, of whose key this is the hash, use the same one.
fn key(shared: &SharedEngine, known: Option<Vec<u8>>) -> Result<([u8; 32], KeyOrigin), CommandFailure> {
    let file = &secret::file_or_credential(&shared.section.key_file);
    if fs::symlink_metadata(file).is_ok() {
        let key = shared_key(&shared.section, &shared.loaded.files).map_err(of_section)?;
        return Ok((key, KeyOrigin::Kept));
    }
    let path = fingerprint_key(&shared.loaded.config);
    let (key, origin) = match private_files::read(&path) {
        Ok(bytes) => {
            let damaged = |_| CommandFailure::failed(format!("{} does not hold the 32 bytes of a key", path.display()));
            (<[u8; 32]>::try_from(bytes).map_err(damaged)?, KeyOrigin::Folder)
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            (hash::random().map_err(CommandFailure::failed)?, KeyOrigin::New)
        }
        Err(error) => return Err(CommandFailure::failed(format!("cannot read {}: {error}", path.display()))),
    };
    if known.is_some_and(|known| known != schema::key_sha256(&key)) {
        return Err(refused(PrepareError::Key));
    }
    let written = folder::write_key(file, &key);
    written.map_err(|error| CommandFailure::failed(format!("cannot write {}: {error}", file.display())))?;
    Ok((key, origin))
}

fn fingerprint_key(config: &Config) -> std::path::PathBuf {
    Path::new(&config.audit.dir).join("fingerprint.key")
}

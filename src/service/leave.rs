//! How a replica leaves the others for good, by a command and while its service does not run.

use crate::audit::AuditLog;
use crate::clock::Clock;
use crate::config::LoadedConfig;
use crate::private_files;
use crate::replicas::ReplicasSettings;
use crate::replicas::engine::EngineSession;
use crate::replicas::schema;
use crate::replicas::setup::{self, folder, leaving};
use crate::tasks::Tasks;

use super::StartError;

/// What became of what a replica left open.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Left {
    /// Others go on.
    Others {
        /// Who looks after its writes in doubt.
        successor: String,
        /// How many there were.
        doubts: u64,
    },
    /// It was the last one, and can go on alone.
    Last {
        /// Writes in doubt of others that it took over.
        adopted: usize,
        /// Answers to idempotency keys that it took over.
        keys: usize,
    },
}

/// Takes the replica of this configuration out of those that share the database.
///
/// # Errors
/// Its service runs, or the database, the log or the folder cannot be used. It can be tried again.
pub async fn leave(read: LoadedConfig, clock: Clock) -> Result<Left, StartError> {
    let LoadedConfig { config, files, .. } = read;
    let section = config.replicas.as_ref().ok_or_else(|| StartError::configuration("there is no [replicas]"))?;
    let settings = ReplicasSettings::read(section, &files).map_err(of_section)?;
    let target = settings.target().map_err(of_section)?;
    // From here on no service runs in this folder.
    let (log, _) = AuditLog::open(&config.audit, clock.clone()).map_err(StartError::failed)?;
    let tasks = Tasks::new();
    let session = EngineSession::connect(&target, &tasks).await;
    let session = session.map_err(|why| StartError::failed(format!("cannot reach {}: {why}", target.address())))?;
    let about = setup::about(&session).await.map_err(StartError::failed)?;
    if let Some(fault) = schema::fault(about, Some(&settings.key)) {
        return Err(StartError::configuration(fault));
    }
    let name = settings.name.clone();
    let successor = leaving::live_member(&session, &name, section.lease).await.map_err(StartError::failed)?;
    let left = match successor {
        Some(to) => {
            let doubts = leaving::hand_over(&session, &name, &to).await.map_err(StartError::failed)?;
            Left::Others { successor: to.name, doubts }
        }
        None => {
            leaving::end_all(&session).await.map_err(StartError::failed)?;
            Left::Last { adopted: 0, keys: 0 }
        }
    };
    log.close().await;
    // Nobody here knows what the others sent in the last minute: without this file every quota counts as used up.
    let dir = &config.audit.dir;
    let forgotten = private_files::remove(&dir.join("quota.slots")).and_then(|()| folder::note_left(dir));
    forgotten.map_err(StartError::failed)?;
    Ok(left)
}

fn of_section(why: impl std::fmt::Display) -> StartError {
    StartError::configuration(format!("replicas: {why}"))
}

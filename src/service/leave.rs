//! How a replica leaves the others for good, by a command and while its service does not run.

use std::fs;
use std::io;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use super::{RELEASE, StartError};
use crate::audit::{AuditLog, LogSharing};
use crate::clock::Clock;
use crate::config::{Config, LoadedConfig};
use crate::gateway::{KeyLogAdapter, LeftWrites, Unfinished, leave_writes, tell_writes};
use crate::idempotency::IdempotencyStore;
use crate::replicas::engine::EngineSession;
use crate::replicas::schema;
use crate::replicas::setup::{self, folder, leaving};
use crate::replicas::{Replicas, ReplicasSettings};
use crate::tasks::Tasks;

/// How long the last one takes at most to take over what the others left.
const TAKE_OVER_MAX: Duration = Duration::from_secs(300);

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
    let target = settings.access.target().map_err(of_section)?;
    // From here on no service runs in this folder.
    let sharing = LogSharing { key: settings.key, keep: section.keep };
    let opened = AuditLog::open_shared(&config.audit, clock.clone(), Some(sharing));
    let (log, _) = opened.map_err(StartError::failed)?;
    let tasks = Tasks::new();
    let session = EngineSession::connect(&target, &tasks).await;
    let session = session.map_err(|why| StartError::failed(format!("cannot reach {}: {why}", target.address())))?;
    let about = setup::about(&session).await.map_err(StartError::failed)?;
    if let Some(fault) = schema::fault(about, Some(&settings.key)) {
        return Err(StartError::configuration(fault));
    }
    let name = settings.access.name.clone();
    let successor = leaving::live_member(&session, &name, section.lease).await.map_err(StartError::failed)?;
    let left = match successor {
        Some(to) => {
            let told = async |replicas: &_, answers: &_| tell_writes(replicas, &log, answers, &clock).await;
            take_part(&config, settings, &log, &clock, told).await?;
            let doubts = leaving::hand_over(&session, &name, &to).await.map_err(StartError::failed)?;
            Left::Others { successor: to.name, doubts }
        }
        None => {
            let taken = async |replicas: &_, answers: &_| leave_writes(replicas, &log, answers, &clock).await;
            let LeftWrites { adopted, keys } = take_part(&config, settings, &log, &clock, taken).await?;
            leaving::end_all(&session).await.map_err(StartError::failed)?;
            Left::Last { adopted, keys }
        }
    };
    log.close().await;
    forget_membership(&config.audit.dir).map_err(StartError::failed)?;
    Ok(left)
}

/// Takes part once more, for this work on writes and answers.
async fn take_part<T>(
    config: &Config,
    settings: ReplicasSettings,
    log: &Arc<AuditLog>,
    clock: &Clock,
    work: impl AsyncFnOnce(&Arc<Replicas>, &IdempotencyStore) -> Result<T, Unfinished>,
) -> Result<T, StartError> {
    let keys = Arc::new(KeyLogAdapter::new(log.clone(), clock.clone()));
    let answers = IdempotencyStore::open(&config.audit, &config.limits, clock.clone(), keys);
    let answers = answers.map_err(StartError::failed)?;
    let tasks = Tasks::new();
    let replicas = Replicas::start(settings, RELEASE, clock.clone(), &tasks).map_err(StartError::configuration)?;
    let done = clock.timeout(TAKE_OVER_MAX, work(&replicas, &answers)).await;
    replicas.leave().await;
    tasks.stop();
    answers.close().await;
    done.ok_or_else(|| StartError::failed("the database did not let this replica join within 5 minutes"))?
        .map_err(StartError::failed)
}

/// Nobody here knows what the others sent in the last minute: without its slots every quota counts as used up.
#[expect(clippy::disallowed_methods, reason = "a command may block on its files")]
fn forget_membership(dir: &Path) -> io::Result<()> {
    match fs::remove_file(dir.join("quota.slots")) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        Ok(()) | Err(_) => {}
    }
    folder::note_left(dir)
}

fn of_section(why: impl std::fmt::Display) -> StartError {
    StartError::configuration(format!("replicas: {why}"))
}

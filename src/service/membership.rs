//! Whether a service may start with what its folder and the database say of its replica.

use std::path::Path;
use std::sync::Arc;

use super::{RELEASE, StartError, quota_settings};
use crate::clock::Clock;
use crate::config::Config;
use crate::hash;
use crate::quota::{Quota, SharedQuota};
use crate::replicas::cells::EngineCells;
use crate::replicas::setup::{folder, start};
use crate::replicas::{Replicas, ReplicasSettings};
use crate::tasks::Tasks;

/// Whether folder and database have nothing against this replica. Asked before anything is written to the folder, which would then be bound
/// to what is wrong.
///
/// # Errors
/// Only a person can put right what is wrong.
pub(super) async fn check(dir: &Path, settings: Option<&ReplicasSettings>) -> Result<(), StartError> {
    check_folder(dir, settings)?;
    let Some(settings) = settings else { return Ok(()) };
    let tasks = Tasks::new();
    let objection = start::objection(settings, &tasks).await;
    tasks.stop();
    objection.map_or(Ok(()), |why| Err(StartError::configuration(format!("replicas: {why}"))))
}

/// Whether the folder belongs to this replica, or to a service that is the only one.
///
/// # Errors
/// It belongs to another one, which would not know of what the others do.
fn check_folder(dir: &Path, settings: Option<&ReplicasSettings>) -> Result<(), StartError> {
    let joined = folder::joined_as(dir).map_err(StartError::failed)?;
    let (own, dir) = (settings.map(|settings| &*settings.access.name), dir.display());
    match (joined.as_deref(), own) {
        (None, _) => Ok(()),
        (Some(joined), Some(own)) if joined == own => Ok(()),
        (Some(joined), Some(own)) => Err(StartError::configuration(format!(
            "the folder {dir} belongs to the replica {joined}, and this one is {own}: set replicas.name to \"{joined}\", or give it a folder of its own"
        ))),
        (Some(joined), None) => Err(StartError::configuration(format!(
            "the folder {dir} belongs to the replica {joined}, which shares quota and writes with others: keep [replicas] in the configuration, \
             or run `makegate replicas leave` with it first"
        ))),
    }
}

/// Opens the quota, which is shared with the other replicas if there are any.
///
/// # Errors
/// The folder's journal of slots cannot be used.
pub(super) fn open_quota(
    config: &Config,
    has_run: bool,
    clock: &Clock,
    replicas: Option<&Arc<Replicas>>,
    tasks: &Tasks,
) -> Result<Quota, StartError> {
    let shared = replicas.map(|replicas| shared_quota(config, replicas, tasks));
    let past = Some((&*config.audit.dir, has_run));
    Quota::open(quota_settings(config), past, clock.clone(), shared.as_ref()).map_err(StartError::failed)
}

fn shared_quota(config: &Config, replicas: &Arc<Replicas>, tasks: &Tasks) -> SharedQuota {
    SharedQuota {
        cells: Arc::new(EngineCells::new(replicas.clone())),
        incarnation: replicas.incarnation(),
        attempt_max: config.upstream.attempt.max(config.upstream.write_attempt),
        reserve_percent: replicas.config().reserve_percent,
        replicas_max: replicas.config().max,
        tasks: tasks.clone(),
    }
}

/// Starts to take part, if there are several replicas.
///
/// # Errors
/// The folder cannot be written, or the database's URL cannot be used.
pub(super) fn join(
    settings: Option<ReplicasSettings>,
    (dir, config_hash): (&Path, Option<[u8; 32]>),
    clock: &Clock,
    tasks: &Tasks,
) -> Result<Option<Arc<Replicas>>, StartError> {
    let Some(settings) = settings else { return Ok(None) };
    folder::note_joined(dir, &settings.access.name).map_err(StartError::failed)?;
    let replicas = Replicas::start(settings, RELEASE, clock.clone(), tasks).map_err(StartError::configuration)?;
    config_hash.into_iter().for_each(|hash| replicas.set_config_hash(hash::hex(&hash)));
    Ok(Some(replicas))
}

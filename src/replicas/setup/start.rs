//! Whether a replica may start: what only a person can put right must not be found out by callers.

use std::time::Duration;

use uuid::Uuid;

use crate::replicas::ReplicasSettings;
use crate::replicas::engine::{EngineError, EngineSession};
use crate::replicas::members::watch_time;
use crate::replicas::schema;
use crate::tasks::Tasks;

/// How long a start waits for the engine. If it does not answer, the replica starts and takes part as soon as it does.
const CONNECT_WITHIN: Duration = Duration::from_secs(2);

/// Why this replica must not start; `None`: nothing is known against it.
pub async fn objection(settings: &ReplicasSettings, tasks: &Tasks) -> Option<String> {
    let target = settings.access.target().ok()?;
    let session = tokio::time::timeout(CONNECT_WITHIN, EngineSession::connect(&target, tasks)).await.ok()?.ok()?;
    object(&session, settings).await.ok().flatten()
}

async fn object(session: &EngineSession, settings: &ReplicasSettings) -> Result<Option<String>, EngineError> {
    if let Some(fault) = schema::fault(super::about(session).await?, Some(&settings.key)) {
        return Ok(Some(fault.to_string()));
    }
    let name = &*settings.access.name;
    let others = session.timed(session.query_opt(schema::OTHERS, &[&name])).await?.map_or(0, |row| row.get(0));
    if let Some(why) = schema::too_many(others, settings.config.max) {
        return Ok(Some(why));
    }
    let Some(before) = beat(session, name).await? else { return Ok(None) };
    // A process that was killed is a member until the others, or its successor, have missed its beats for a lease.
    tokio::time::sleep(watch_time(super::longest_lease(session, settings.config.lease).await?)).await;
    let is_alive = beat(session, name).await?.is_some_and(|now| now != before);
    Ok(is_alive
        .then(|| format!("another makegate with the name {name} is running: give each replica its own replicas.name")))
}

/// The last beat of the member with this name.
async fn beat(session: &EngineSession, name: &str) -> Result<Option<(Uuid, i64)>, EngineError> {
    let sql = "select incarnation, beats from mg.member where replica = $1 and not gone";
    let row = session.timed(session.query_opt(sql, &[&name])).await?;
    Ok(row.map(|row| (row.get(0), row.get(1))))
}

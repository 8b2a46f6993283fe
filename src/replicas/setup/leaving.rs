//! A replica that takes part no more: who takes over what it left open, and whom the others no longer expect.

use std::time::Duration;

use uuid::Uuid;

use crate::replicas::engine::{EngineError, EngineSession};
use crate::replicas::members::watch_time;

/// A member that beats.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LiveMember {
    /// Its name.
    pub name: String,
    incarnation: Uuid,
}

/// The first of the other members that beat while this looks, if any does. The process of `own` has ended.
///
/// # Errors
/// [`EngineError`].
pub async fn live_member(
    session: &EngineSession,
    own: &str,
    lease: Duration,
) -> Result<Option<LiveMember>, EngineError> {
    session.timed(session.execute("update mg.member set gone = true where replica = $1", &[&own])).await?;
    let before = members(session, own).await?;
    if before.is_empty() {
        return Ok(None);
    }
    tokio::time::sleep(watch_time(super::longest_lease(session, lease).await?)).await;
    let now = members(session, own).await?;
    let has_beaten = now.into_iter().find(|member| !before.contains(member));
    Ok(has_beaten.map(|(name, incarnation, _)| LiveMember { name, incarnation }))
}

async fn members(session: &EngineSession, own: &str) -> Result<Vec<(String, Uuid, i64)>, EngineError> {
    let sql = "select replica, incarnation, beats from mg.member where replica <> $1 and not gone order by replica";
    let rows = session.timed(session.query(sql, &[&own])).await?;
    Ok(rows.iter().map(|row| (row.get(0), row.get(1), row.get(2))).collect())
}

/// Hands the writes in doubt of a replica to another one, which takes note of them at its next look; those under way it adopts like any
/// that was left behind. Then nobody expects the replica any more. Returns the number of writes in doubt.
///
/// # Errors
/// [`EngineError`].
pub async fn hand_over(session: &EngineSession, own: &str, to: &LiveMember) -> Result<u64, EngineError> {
    let sql = "update mg.write set replica = $2, incarnation = $3 where replica = $1 and state = 'd'";
    let doubts = session.timed(session.execute(sql, &[&own, &to.name, &to.incarnation])).await?;
    let left = "update mg.replica set left_at = clock_timestamp() where name = $1";
    session.timed(session.execute(left, &[&own])).await?;
    Ok(doubts)
}

/// Nobody takes part any more.
///
/// # Errors
/// [`EngineError`].
pub async fn end_all(session: &EngineSession) -> Result<(), EngineError> {
    let sql =
        "update mg.member set gone = true; update mg.replica set left_at = clock_timestamp() where left_at is null";
    session.timed(session.batch_execute(sql)).await
}

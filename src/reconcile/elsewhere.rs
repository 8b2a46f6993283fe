//! Writes in doubt over all replicas: the first verdict counts, whoever gives it, and every replica learns what became of its doubts.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use super::settle::{self, NotSettled, Settlement, shared_verdict};
use crate::audit::{Doubt, Record};
use crate::cache::Invalidation;
use crate::gateway::Gateway;
use crate::gateway::shared::{doubt_elsewhere, shared_doubt, write_end};
use crate::ids::RequestId;
use crate::process_log::ALWAYS;
use crate::replicas::writes::{KnownWrite, SharedState};

/// The event recorded where an operator settles a write that another replica looks after. That replica records the settlement.
const SETTLED: &str = "settled-elsewhere";

/// The writes in doubt that other replicas look after and this log does not know, oldest first.
///
/// # Errors
/// The engine does not answer.
pub async fn doubts_elsewhere(gateway: &Gateway) -> Result<Vec<Doubt>, NotSettled> {
    let Some(shared) = &gateway.shared_writes else { return Ok(Vec::new()) };
    let own: HashSet<_> =
        gateway.log.doubts().list().iter().map(|doubt| shared_doubt(&gateway.log, doubt).id).collect();
    let all = shared.writes.doubts().await.map_err(|_error| NotSettled::NoEngine)?;
    Ok(all.iter().filter(|known| !own.contains(&known.write.id)).map(doubt_elsewhere).collect())
}

/// The write in doubt of another replica with this request id.
///
/// # Errors
/// There is no such write, or the engine does not answer.
pub async fn doubt_elsewhere_of(gateway: &Gateway, request: &RequestId) -> Result<Doubt, NotSettled> {
    let Some(shared) = &gateway.shared_writes else { return Err(NotSettled::NoDoubt) };
    let known = shared.writes.doubt_of(request).await.map_err(|_error| NotSettled::NoEngine)?;
    known.as_ref().map(doubt_elsewhere).ok_or(NotSettled::NoDoubt)
}

/// Settles a write in doubt that another replica looks after. That replica learns it within seconds, and records the settlement; here an
/// event says who decided. When this returns, no replica finds what was read before.
///
/// # Errors
/// As [`settle::settle`].
pub async fn settle_elsewhere(gateway: &Arc<Gateway>, doubt: Doubt, verdict: Settlement) -> Result<(), NotSettled> {
    // In a task of its own: if the caller hangs up, the event and the fence must follow the verdict all the same.
    let task = gateway.tasks.spawn(decide_elsewhere(gateway.clone(), doubt, verdict));
    task.await.unwrap_or(Err(NotSettled::CannotRecord))
}

async fn decide_elsewhere(gateway: Arc<Gateway>, doubt: Doubt, verdict: Settlement) -> Result<(), NotSettled> {
    let room = gateway.log.reserve().ok_or(NotSettled::CannotRecord)?;
    let (Some(shared), Some(counts)) = (&gateway.shared_writes, shared_verdict(&gateway, &verdict)) else {
        return Err(NotSettled::NoDoubt);
    };
    let id = shared_doubt(&gateway.log, &doubt).id;
    match shared.writes.settle(id, &counts).await.map_err(|_error| NotSettled::NoEngine)? {
        Some((_, true)) => {}
        Some((_, false)) | None => return Err(NotSettled::NoDoubt),
    }
    let replica = doubt.adopted.as_ref().map_or("another replica", |adopted| &*adopted.replica);
    let (done, note) = (if verdict.done { "done" } else { "not done" }, verdict.detail.as_deref().unwrap_or_default());
    let colon = if note.is_empty() { "" } else { ": " };
    room.fill(Record {
        request: Some(doubt.request),
        operator: verdict.operator.clone().map(Into::into),
        key: verdict.key,
        peer: verdict.peer.clone(),
        caller: Some(doubt.caller.clone().into()),
        operation: Some(doubt.operation.clone().into()),
        organization: doubt.organization,
        path: Some(doubt.path.clone().into()),
        ..Record::event(
            gateway.clock.wall(),
            SETTLED,
            format!("settled a write in doubt of {replica} as {done}{colon}{note}"),
        )
    });
    tracing::info!(target: ALWAYS, request = %doubt.request, replica, done, "a write in doubt of another replica was settled");
    let after = Invalidation::Settled { settle: gateway.policy().config.cache.settle };
    gateway.fence_doubt(&doubt, after).everywhere_or_later(&gateway.tasks).await;
    Ok(())
}

/// Learns what became of this log's doubts elsewhere: which of them other replicas look after, and which were settled there.
pub(super) async fn learn(gateway: &Arc<Gateway>) {
    let Some(shared) = &gateway.shared_writes else { return };
    let doubts = gateway.log.doubts().list();
    let doubts: HashMap<_, _> =
        doubts.into_iter().map(|doubt| (shared_doubt(&gateway.log, &doubt).id, doubt)).collect();
    let ids: Vec<_> = doubts.keys().copied().collect();
    // What the engine does not say now, it says in the next round.
    let Ok(known) = shared.writes.find(&ids).await else { return };
    let own = shared.writes.replicas().name();
    let is_elsewhere = |known: &&KnownWrite| known.state == SharedState::InDoubt && known.replica != *own;
    let elsewhere = known.iter().filter(is_elsewhere).filter_map(|known| doubts.get(&known.write.id));
    shared.set_elsewhere(elsewhere.map(|doubt| doubt.intent).collect());
    for known in known.iter().filter(|known| known.has_ended()) {
        if let Some(doubt) = doubts.get(&known.write.id) {
            let verdict = told(doubt, known);
            let _again_in_the_next_round =
                settle::settle_as_told(gateway, doubt.intent, verdict, write_end(known)).await;
        }
    }
}

/// The verdict that counts, as this log records it.
fn told(doubt: &Doubt, known: &KnownWrite) -> Settlement {
    let done = known.state == SharedState::Ended && known.done != Some(false);
    let owner = doubt.adopted.as_ref().map_or(&known.replica, |adopted| &adopted.replica);
    let verdict = known.verdict.as_ref();
    let detail = match verdict {
        Some(verdict) => {
            let note = verdict.note.as_deref().unwrap_or_default();
            let colon = if note.is_empty() { "" } else { ": " };
            format!("settled at {}{colon}{note}", verdict.replica)
        }
        None => format!("{owner} has recorded how it ended"),
    };
    Settlement {
        done,
        operator: verdict.and_then(|verdict| verdict.operator.clone()),
        key: None,
        peer: None,
        detail: Some(detail.into()),
        upstream_status: verdict.and_then(|verdict| verdict.upstream_status),
    }
}

//! Settles a write in doubt. There is one way, for operators and for looks.

use std::sync::Arc;

use crate::audit::{CannotRecord, Doubt, Kind, Peer, Record};
use crate::cache::Invalidation;
use crate::gateway::Gateway;
use crate::gateway::shared::shared_doubt;
use crate::idempotency::{KeyedWrite, WriteEnd};
use crate::ids::KeyId;
use crate::process_log::ALWAYS;
use crate::replicas::engine::EngineError;
use crate::replicas::writes::{SharedEnd, SharedVerdict};
use crate::vocabulary::Outcome;

/// How often a verdict is given to the engine, which may have to hear first that the write is in doubt.
const ATTEMPTS: usize = 2;

/// The verdict on a write, and where it comes from.
#[derive(Clone, Debug)]
pub struct Settlement {
    /// Did it take effect?
    pub done: bool,
    /// The operator's name, if one decided.
    pub operator: Option<Arc<str>>,
    /// The operator's key.
    pub key: Option<KeyId>,
    /// Where the operator asked from.
    pub peer: Option<Peer>,
    /// The evidence.
    pub detail: Option<Box<str>>,
    /// The upstream's answer to the look, if there was one.
    pub upstream_status: Option<u16>,
}

/// Why a write was not settled.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NotSettled {
    /// It is not in doubt, or is being settled already.
    NoDoubt,
    /// The settlement could not be written to disk.
    CannotRecord,
    /// The database that the replicas share could not be told, and without it no verdict counts.
    NoEngine,
}

/// Settles the doubt with this intent. When it returns, the settlement is on disk, identical writes are no longer held, and the cache
/// finds nothing that was read before.
pub async fn settle(gateway: &Arc<Gateway>, intent: u64, verdict: Settlement) -> Result<(), NotSettled> {
    // In a task of its own: if the caller hangs up, a settlement that is queued for the disk must not be claimed again.
    let task = gateway.tasks.spawn(claim_and_settle(gateway.clone(), intent, verdict, None));
    task.await.unwrap_or(Err(NotSettled::CannotRecord))
}

/// Records a verdict that counts for all replicas already, of a write that ended like this.
pub(super) async fn settle_as_told(
    gateway: &Arc<Gateway>,
    intent: u64,
    verdict: Settlement,
    told: WriteEnd,
) -> Result<(), NotSettled> {
    let task = gateway.tasks.spawn(claim_and_settle(gateway.clone(), intent, verdict, Some(told)));
    task.await.unwrap_or(Err(NotSettled::CannotRecord))
}

async fn claim_and_settle(
    gateway: Arc<Gateway>,
    intent: u64,
    verdict: Settlement,
    told: Option<WriteEnd>,
) -> Result<(), NotSettled> {
    let claim = gateway.log.doubts().claim(intent).ok_or(NotSettled::NoDoubt)?;
    let doubt = claim.doubt().clone();
    if told.is_none() {
        Box::pin(decide(&gateway, &doubt, &verdict)).await?;
    }
    let keyed = keyed_write(&doubt);
    if let Some(keyed) = keyed.clone().filter(|_| verdict.done) {
        // Before the settlement, because after it the doubt no longer holds the key.
        gateway.idempotency.settle_done(keyed, told.and_then(|ended| ended.answer)).await;
    }
    let by = if verdict.operator.is_some() { "operator" } else { "look" };
    let record = Record {
        intent: Some(intent),
        request: Some(doubt.request),
        operator: verdict.operator.map(Into::into),
        key: verdict.key,
        peer: verdict.peer,
        caller: Some(doubt.caller.clone().into()),
        operation: Some(doubt.operation.clone().into()),
        organization: doubt.organization,
        path: Some(doubt.path.clone().into()),
        outcome: Some(if verdict.done { Outcome::Done } else { Outcome::Rejected }),
        upstream_status: verdict.upstream_status,
        detail: verdict.detail,
        ..Record::new(Kind::Settlement, gateway.clock.wall())
    };
    let recorded = gateway.log.commit(record).await;
    let is_late = recorded.is_err_and(CannotRecord::is_recorded);
    if recorded.is_ok() || is_late {
        let (caller, operation, done) = (&*doubt.caller, &*doubt.operation, verdict.done);
        tracing::info!(target: ALWAYS, request = %doubt.request, caller, operation, done, by, "a write in doubt was settled");
        let after = Invalidation::Settled { settle: gateway.policy().config.cache.settle };
        gateway.fence_doubt(&doubt, after).everywhere().await;
        if let Some(keyed) = keyed.filter(|_| !verdict.done) {
            gateway.idempotency.settle_not_done(keyed.key, keyed.request).await;
        }
    }
    if is_late {
        claim.keep();
    }
    recorded.map(drop).map_err(|_cannot| NotSettled::CannotRecord)
}

/// The verdict as all replicas know it, if there are any.
pub(super) fn shared_verdict(gateway: &Gateway, verdict: &Settlement) -> Option<SharedVerdict> {
    Some(SharedVerdict {
        done: verdict.done,
        operator: verdict.operator.clone(),
        replica: gateway.replicas.as_ref()?.name().clone(),
        note: verdict.detail.clone(),
        upstream_status: verdict.upstream_status,
    })
}

/// Makes this verdict on a doubt of this log the one that counts for all replicas.
///
/// # Errors
/// Another one counts already, or the engine does not answer.
async fn decide(gateway: &Gateway, doubt: &Doubt, verdict: &Settlement) -> Result<(), NotSettled> {
    let (Some(shared), Some(verdict)) = (&gateway.shared_writes, shared_verdict(gateway, verdict)) else {
        return Ok(());
    };
    let write = shared_doubt(&gateway.log, doubt);
    let unreachable = |_error: EngineError| NotSettled::NoEngine;
    for _ in 0..ATTEMPTS {
        match shared.writes.settle(write.id, &verdict).await.map_err(unreachable)? {
            Some((_, true)) => return Ok(()),
            Some((known, false)) if known.has_ended() => return Err(NotSettled::NoDoubt),
            Some((_, false)) => shared.writes.doubt_own(&[write.id]).await.map_err(unreachable)?,
            None => {
                let row = (Arc::new(write.clone()), SharedEnd::IN_DOUBT);
                shared.writes.restore(&[row]).await.map_err(unreachable)?;
            }
        }
    }
    Err(NotSettled::NoEngine)
}

/// The write with its idempotency key, if it has one.
fn keyed_write(doubt: &Doubt) -> Option<KeyedWrite> {
    Some(KeyedWrite {
        key: doubt.idempotency?,
        write: doubt.fingerprint?,
        request: doubt.request,
        caller: doubt.caller.clone(),
    })
}

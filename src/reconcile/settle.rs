//! Settling a write in doubt: one way, whoever says what became of it.

use std::sync::Arc;

use crate::audit::{CannotRecord, Doubt, Kind, Peer, Record};
use crate::cache::Invalidation;
use crate::gateway::Gateway;
use crate::idempotency::KeyedWrite;
use crate::process_log::EACH;
use crate::vocabulary::Outcome;

/// What became of a write, and who says so.
#[derive(Clone, Debug)]
pub struct Settlement {
    /// Did it take effect?
    pub done: bool,
    /// The operator, where one says so.
    pub peer: Option<Peer>,
    /// How it is known.
    pub detail: Option<Box<str>>,
    /// What the upstream answered, where it was looked at.
    pub upstream_status: Option<u16>,
}

/// Why a write was not settled.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NotSettled {
    /// It is not in doubt, or somebody else is settling it.
    NoDoubt,
    /// The settlement is not on disk.
    CannotRecord,
}

/// Ends the doubt with this intent: when this returns, its settlement is on disk, equal writes are held no more, and nothing that was read
/// before is found in memory.
///
/// # Errors
/// [`NotSettled`].
pub async fn settle(gateway: &Arc<Gateway>, intent: u64, verdict: Settlement) -> Result<(), NotSettled> {
    // In a task of its own: whoever hangs up, what was queued for the disk is not claimed a second time.
    let task = gateway.tasks.spawn(claimed(gateway.clone(), intent, verdict));
    task.await.unwrap_or(Err(NotSettled::CannotRecord))
}

async fn claimed(gateway: Arc<Gateway>, intent: u64, verdict: Settlement) -> Result<(), NotSettled> {
    let claim = gateway.log.doubts().claim(intent).ok_or(NotSettled::NoDoubt)?;
    let doubt = claim.doubt().clone();
    let keyed = keyed(&doubt);
    if let Some(keyed) = keyed.clone().filter(|_| verdict.done) {
        // Before the settlement: after it the doubt holds the key no more.
        gateway.idempotency.settle_done(keyed).await;
    }
    let by = if verdict.peer.is_some() { "operator" } else { "look" };
    let record = Record {
        intent: Some(intent),
        request: Some(doubt.request),
        peer: verdict.peer,
        caller: Some(doubt.caller.clone()),
        operation: Some(doubt.operation.clone()),
        organization: doubt.organization,
        path: Some(doubt.path.clone()),
        outcome: Some(if verdict.done { Outcome::Done } else { Outcome::Rejected }),
        upstream_status: verdict.upstream_status,
        detail: verdict.detail,
        ..Record::new(Kind::Settlement, gateway.clock.wall())
    };
    let recorded = gateway.log.commit(record).await;
    let is_late = recorded.is_err_and(CannotRecord::is_recorded);
    if recorded.is_ok() || is_late {
        let (caller, operation, done) = (&*doubt.caller, &*doubt.operation, verdict.done);
        tracing::info!(target: EACH, request = %doubt.request, caller, operation, done, by, "a write in doubt was settled");
        gateway.fence_doubt(&doubt, Invalidation::Settled { settle: gateway.policy().config.cache.settle });
        if let Some(keyed) = keyed.filter(|_| !verdict.done) {
            gateway.idempotency.settle_not_done(keyed.key, keyed.request).await;
        }
    }
    if is_late {
        claim.keep();
    }
    recorded.map(drop).map_err(|_cannot| NotSettled::CannotRecord)
}

/// The write with its idempotency key, where it came with one.
fn keyed(doubt: &Doubt) -> Option<KeyedWrite> {
    Some(KeyedWrite {
        key: doubt.idempotency?,
        write: doubt.fingerprint?,
        request: doubt.request,
        caller: doubt.caller.clone(),
    })
}

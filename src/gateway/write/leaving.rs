//! Fewer replicas: whoever leaves tells what only its log knows. The last one takes over what the others left, and keeps their answers
//! itself.

use std::sync::Arc;
use std::time::Duration;

use super::healing::{HealingRound, Unfinished};
use super::shared::write_end;
use super::writes_of_all::WritesOfAll;
use crate::audit::AuditLog;
use crate::clock::Clock;
use crate::idempotency::{IdempotencyStore, KeyedWrite};
use crate::replicas::{Epoch, Replicas};

/// How often it is looked whether this replica has joined.
const LOOK: Duration = Duration::from_millis(50);

/// What a replica took over that goes on alone.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LeftWrites {
    /// Writes in doubt, which are in this log from now on.
    pub adopted: usize,
    /// Idempotency keys, with their answers where those were kept.
    pub keys: usize,
}

/// Waits until this replica has joined an epoch that will do.
async fn joined(replicas: &Replicas, clock: &Clock, will_do: impl Fn(&Epoch) -> bool) -> Epoch {
    loop {
        let known = *replicas.epoch().borrow();
        match known {
            Some(epoch) if will_do(&epoch) => return epoch,
            Some(_) | None => clock.sleep_until(clock.now() + LOOK).await,
        }
    }
}

/// Tells the engine what only this replica's log and store know: ends, doubts, and idempotency keys with their answers.
///
/// # Errors
/// The engine, the log or the store does not answer.
pub async fn tell_writes(
    replicas: &Arc<Replicas>,
    log: &Arc<AuditLog>,
    answers: &IdempotencyStore,
    clock: &Clock,
) -> Result<(), Unfinished> {
    let shared = WritesOfAll::start(replicas);
    let epoch = joined(replicas, clock, |_| true).await;
    let round = HealingRound { log, answers, shared: &shared, epoch: &epoch, clock, gateway: None };
    round.reassert().await.map(drop)
}

/// Takes over all open writes of replicas that are gone, and copies all idempotency keys and answers into this replica's own store. Waits
/// for a lease, so that a replica that is alive is not taken for gone. The caller closes log and store afterwards, which puts all of it on
/// disk.
///
/// # Errors
/// The engine, the log or the store does not answer. What was taken over is not taken over again.
pub async fn leave_writes(
    replicas: &Arc<Replicas>,
    log: &Arc<AuditLog>,
    answers: &IdempotencyStore,
    clock: &Clock,
) -> Result<LeftWrites, Unfinished> {
    let shared = WritesOfAll::start(replicas);
    let epoch = joined(replicas, clock, |epoch| shared.writes.is_settled(epoch)).await;
    let round = HealingRound { log, answers, shared: &shared, epoch: &epoch, clock, gateway: None };
    round.reassert().await?;
    let mut left = LeftWrites::default();
    loop {
        match round.adopt(true).await? {
            0 => break,
            some => left.adopted += some,
        }
    }
    let mut after = None;
    loop {
        let page = shared.writes.ended_keys(after).await?;
        let Some(last) = page.last() else { break };
        after = last.write.key;
        for known in &page {
            let Some(key) = known.write.key else { continue };
            let (write, request) = (known.write.fingerprint, known.write.request);
            let keyed = KeyedWrite { key, write, request, caller: known.write.caller.clone() };
            let ended = write_end(known);
            if (ended.done || ended.answer.is_some()) && answers.add_end(keyed, ended) {
                left.keys += 1;
            }
        }
    }
    Ok(left)
}

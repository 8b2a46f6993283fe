//! Writes, steps 8 to 12: recognised, given quota, intended on disk, forwarded and settled. From the intent on a write runs
//! in a task of its own: whoever hangs up, its outcome is recorded (promise 12).

use std::sync::Arc;
use std::time::Duration;

use http::{HeaderMap, StatusCode};

use super::account::Account;
use super::answer::{Body, Facts, Reply};
use super::call::{Call, recorded_fields};
use super::fetch::pass;
use super::forward::{Sent, Ticket, forward, ticket, write_answer};
use super::order::Held;
use super::recognise::{self, Identity, Recognised, recognise};
use super::refusal::Refusal;
use super::state::Gateway;
use super::{evidence, tags};
use crate::answers::Claim;
use crate::audit::{self, CannotRecord, Kind, Name, Outcome, Record, Room};
use crate::cache::{CacheStatus, ForwardReason as Forwarded, Invalidation};
use crate::catalogue::Retry;
use crate::process_log::EACH;
use crate::upstream::{Effect, Ending, ProxyError, Why};

/// How long a caller waits for its write's outcome to be on disk. It is queued, and written when the disk is back.
const OUTCOME_WAIT: Duration = Duration::from_secs(1);

/// How a write ended: what its caller is told, and, if it had an intent, what was recorded of it.
type Settled = (Result<Reply, Refusal>, Option<Outcome>);

/// A write from step 8 on. Once it had an intent, its outcome is in the account, and recorded by its own task.
///
/// # Errors
/// Why the gateway answers by itself.
pub(super) async fn write(
    gateway: &Arc<Gateway>,
    account: &mut Account,
    call: Call,
    headers: &HeaderMap,
) -> Result<Reply, Refusal> {
    let identity = match recognise(gateway, &call, headers).await? {
        Recognised::New(identity) => identity,
        Recognised::Replayed(outcome, reply) => {
            account.outcome = Some(outcome);
            return Ok(reply);
        }
    };
    let order = async {
        if call.row.retry == Retry::Idempotent {
            Some(gateway.order.turn(&call.path, call.caller()).await)
        } else {
            None
        }
    };
    let order = tokio::time::timeout(call.patience(&gateway.clock), order).await.map_err(|_| Refusal::NoTurn)?;
    let ticket = ticket(gateway, &call).await?; // before the intent: a crash in the queue must not leave in doubt what was never sent
    identity.held(gateway, &call)?; // an equal write may have ended in doubt meanwhile
    account.record().fields = recorded_fields(&call.row, &call.outgoing.body);
    let call = Arc::new(call);
    let (account_for, place) = (account.hand_over(), account.hand_over_place());
    let task = carry_out(gateway.clone(), call.clone(), account_for, identity, ticket, order);
    let task = gateway.tasks.spawn(async move {
        let _place = place;
        task.await
    });
    match tokio::time::timeout(call.left(&gateway.clock), task).await {
        Ok(Ok((reply, outcome))) => {
            account.outcome = outcome;
            reply
        }
        Ok(Err(_panicked)) => {
            account.outcome = Some(Outcome::InDoubt);
            Err(Refusal::Internal)
        }
        Err(_elapsed) => {
            account.outcome = Some(Outcome::InDoubt);
            // The task goes on and records what comes of it; until then whatever the write touches may change.
            fence(gateway, &call, true, None);
            let why = Why { error: ProxyError::HttpResponseTimeout, text: "no answer came before the deadline".into() };
            Err(Refusal::DoubtTimedOut { why })
        }
    }
}

/// Steps 10 to 12, in a task of their own: from here on a caller who hangs up changes nothing.
async fn carry_out(
    gateway: Arc<Gateway>,
    call: Arc<Call>,
    (record, room, _name): (Record, Option<Room>, Name),
    identity: Identity,
    ticket: Ticket,
    order: Option<Held>,
) -> Settled {
    let intent = match intend(&gateway, &call, &record, &identity).await {
        Ok(intent) => intent,
        Err(cannot) => {
            let refusal = Refusal::CannotRecord;
            if let Some(room) = room.filter(|_| !cannot.is_recorded()) {
                let mut record = record;
                refused(&mut record, &call, &refusal);
                room.fill(record);
            }
            return (Err(refusal), None);
        }
    };
    drop(room); // the intent has room for its outcome
    let record = Some(Record { intent: Some(intent), ..record });
    let mut open = Intended { gateway: gateway.clone(), call: call.clone(), record, claim: identity.claim };
    let Sent { ending, attempts, ambiguous, effect, quota_wait } = forward(&gateway, &call, ticket, || {}).await;
    let upstream_status = ending.as_ref().ok().and_then(Ending::status);
    let outcome = outcome(effect);
    let facts = Facts { attempts, upstream_status, quota_wait, outcome: Some(outcome) };
    let answered = ending.and_then(|ending| write_answer(ending, effect));
    if may_have_effect(effect, upstream_status) || ambiguous {
        let body = answered.as_ref().ok().map(|answered| answered.body.bytes().as_ref());
        fence(&gateway, &call, ambiguous, body);
    }
    drop(order);
    let reply = answered.map(|answered| Reply {
        body: Body::Passed(Arc::new(pass(answered, false, false))),
        cache: Some(CacheStatus::Forward {
            why: Forwarded::Method,
            status: upstream_status,
            stored: false,
            collapsed: false,
        }),
        how: audit::Answer::Forwarded,
        filled_by: None,
        facts,
        validated: false,
    });
    open.settle(outcome, &reply, &facts).await;
    if outcome == Outcome::InDoubt {
        gateway.looks.watch(&gateway, &call.policy.config.cache, intent);
    }
    (reply, Some(outcome))
}

/// Step 10: the intent is on disk before the first byte goes upstream; its number.
async fn intend(gateway: &Gateway, call: &Call, record: &Record, identity: &Identity) -> Result<u64, CannotRecord> {
    let mut intent = record.clone();
    intent.kind = Kind::Intent;
    intent.time = gateway.clock.wall();
    intent.fingerprint = Some(identity.write);
    intent.idempotency = identity.claim.as_ref().map(Claim::key);
    intent.marks = evidence::marks(&gateway.log, &call.row, &call.outgoing.body);
    gateway.log.commit(intent).await
}

fn outcome(effect: Effect) -> Outcome {
    match effect {
        Effect::Done => Outcome::Done,
        Effect::Rejected => Outcome::Rejected,
        Effect::NotSent => Outcome::NotSent,
        Effect::InDoubt => Outcome::InDoubt,
    }
}

/// Only an answer that proves that nothing happened needs no fence (`docs/decisions/fences.md`).
fn may_have_effect(effect: Effect, status: Option<StatusCode>) -> bool {
    let proves_none = |status: StatusCode| matches!(status.as_u16(), 400 | 401 | 403 | 405 | 406 | 415 | 422 | 429);
    match effect {
        Effect::Done | Effect::InDoubt => true,
        Effect::NotSent => false,
        Effect::Rejected => !status.is_some_and(proves_none),
    }
}

/// Step 12, invalidate: from here on nothing that was fetched before is found or joined (promise 3).
fn fence(gateway: &Gateway, call: &Call, ambiguous: bool, answer: Option<&[u8]>) {
    let cache = &call.policy.config.cache;
    let after = if ambiguous {
        Invalidation::InDoubt { settle: cache.settle, doubt: cache.doubt }
    } else {
        Invalidation::Settled { settle: cache.settle }
    };
    gateway.cache.raise(&tags::invalidated(&call.row, &call.parameters, answer), after);
}

fn refused(record: &mut Record, call: &Call, refusal: &Refusal) {
    let row = refusal.row();
    record.status = Some(row.status.as_u16());
    record.answer = Some(audit::Answer::Refused);
    record.refusal = Some(row.code);
    record.bytes = Some(refusal.problem(&call.id).len() as u64);
}

/// An intent without its outcome yet. Dropped so (a panic, a torn down process), the write is in doubt.
struct Intended {
    gateway: Arc<Gateway>,
    call: Arc<Call>,
    record: Option<Record>,
    /// Its idempotency key's: held until the write has ended, or the log knows that it is in doubt.
    claim: Option<Claim>,
}

impl Intended {
    /// Records the outcome. Its caller hears of it when it is on disk; the answer to its idempotency key is there before.
    async fn settle(&mut self, outcome: Outcome, reply: &Result<Reply, Refusal>, facts: &Facts) {
        if let Some(ended) = recognise::kept(outcome, reply, facts)
            && let Some(claim) = self.claim.take()
        {
            claim.end(ended).await;
        }
        let Some(mut record) = self.record.take() else { return };
        record.kind = Kind::Outcome;
        record.time = self.gateway.clock.wall();
        let told = reply.as_ref().map_err(Refusal::clone);
        match told.and_then(|reply| self.call.still_allowed(&self.gateway).map(|()| reply)) {
            Ok(reply) => {
                let (status, _, body) = reply.body.parts();
                record.status = Some(status.as_u16());
                record.answer = Some(reply.how);
                record.bytes = Some(body.len() as u64);
            }
            Err(refusal) => refused(&mut record, &self.call, &refusal),
        }
        super::account::fill(&mut record, facts);
        record.duration_us = Some(super::account::micros(self.call.age(&self.gateway.clock)));
        match tokio::time::timeout(OUTCOME_WAIT, self.gateway.log.commit(record)).await {
            Ok(Ok(_)) => {}
            Ok(Err(cannot)) => {
                tracing::error!(target: EACH, request = %self.call.id, %cannot, "an outcome could not be recorded: the write will be in doubt");
            }
            Err(_) => {
                tracing::error!(request = %self.call.id, "an outcome waits for the log's disk; its caller does not")
            }
        }
    }
}

impl Drop for Intended {
    fn drop(&mut self) {
        let Some(mut record) = self.record.take() else { return };
        fence(&self.gateway, &self.call, true, None);
        record.kind = Kind::Outcome;
        record.time = self.gateway.clock.wall();
        record.outcome = Some(Outcome::InDoubt);
        // Queued by the call itself; nobody can wait here.
        drop(self.gateway.log.commit(record));
    }
}

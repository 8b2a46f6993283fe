//! Steps 8, 10 and 12 of a write over all replicas: what the others know of earlier ones, its intent in the engine, how it ended.

use std::sync::Arc;

use jiff::Timestamp;
use tokio::sync::oneshot;

use super::idempotency::{EarlierWrite, WriteIdentity, replay};
use super::writes_of_all::{OUT_OF_REACH, marks_text, shared_end, uuid_of, write_end};
use crate::audit::{Record, Text};
use crate::gateway::refusal::{EngineShortage, Refusal};
use crate::gateway::request::AuthorizedRequest;
use crate::gateway::response::Reply;
use crate::gateway::state::Gateway;
use crate::idempotency::{KeyClaim, WriteEnd};
use crate::ids::Fingerprint;
use crate::replicas::writes::{
    EarlierQuestion, EarlierWrites, NotIntended, SharedEnd, SharedState, SharedWrite, SharedWrites,
};
use crate::vocabulary::Outcome;

/// The write of this intent as all replicas know it. Its id follows from the intent alone, to the microsecond of its record.
fn shared_intent(
    gateway: &Gateway,
    request: &AuthorizedRequest,
    intent: &Record<'static>,
    write: Fingerprint,
) -> SharedWrite {
    let time = Timestamp::from_microsecond(intent.time.as_microsecond()).unwrap_or(intent.time);
    SharedWrite {
        id: uuid_of(gateway.log.write_id(&request.id, time, Some(write))),
        request: request.id,
        caller: request.caller().clone(),
        operation: request.row.id.clone(),
        organization: request.organization,
        // As the log has it, because another replica may have to look at it.
        path: intent.path.as_ref().map_or_else(|| request.path.clone(), Text::shared),
        fingerprint: write,
        key: intent.idempotency,
        marks: marks_text(intent.marks.as_ref()),
        time,
    }
}

/// What the replicas know of earlier writes.
pub(super) enum EarlierAnywhere {
    /// Nothing that speaks against this one.
    New,
    /// It ended before: its outcome, and its answer again.
    Replayed(Outcome, Reply),
    /// An open write of another replica has this request's id.
    RequestTaken,
}

/// Step 8 over all replicas.
///
/// # Errors
/// If the key is in use by another request, under way or in doubt, if an identical write is in doubt, or if the engine does not answer.
pub(super) async fn find_earlier_anywhere(
    gateway: &Gateway,
    request: &AuthorizedRequest,
    identity: &WriteIdentity,
) -> Result<EarlierAnywhere, Refusal> {
    let Some(shared) = &gateway.shared_writes else { return Ok(EarlierAnywhere::New) };
    shared.check_open()?;
    let asked = EarlierQuestion {
        caller: request.caller(),
        fingerprint: identity.write,
        key: identity.claim.as_ref().map(KeyClaim::key),
        request: &request.id,
    };
    let found = shared.writes.earlier(&asked).await.map_err(|_out_of_reach| OUT_OF_REACH)?;
    judge(found, identity.write)
}

fn judge(found: EarlierWrites, write: Fingerprint) -> Result<EarlierAnywhere, Refusal> {
    if let Some(known) = found.same_key {
        let first = known.write.request;
        return match known.state {
            SharedState::UnderWay | SharedState::InDoubt | SharedState::Ended if known.write.fingerprint != write => {
                Err(Refusal::KeyReused { first })
            }
            SharedState::UnderWay => Err(Refusal::KeyRunning { first }),
            SharedState::InDoubt => Err(Refusal::KeyInDoubt { first }),
            SharedState::Ended => match replay(first, write_end(&known))? {
                EarlierWrite::Replayed(outcome, reply) => Ok(EarlierAnywhere::Replayed(outcome, reply)),
                EarlierWrite::New(_) => Ok(EarlierAnywhere::New),
            },
            SharedState::NotSent => Ok(EarlierAnywhere::New),
        };
    }
    if let Some(known) = found.equal {
        return Err(Refusal::HeldInDoubt { first: known.write.request });
    }
    Ok(if found.same_request.is_some() { EarlierAnywhere::RequestTaken } else { EarlierAnywhere::New })
}

/// The same for a write with this outcome, of which `kept` is kept for its key.
pub(super) fn end_of(outcome: Outcome, kept: Option<&WriteEnd>) -> SharedEnd {
    match (outcome, kept) {
        (Outcome::InDoubt, _) => SharedEnd::IN_DOUBT,
        (_, Some(kept)) => shared_end(kept.done, kept.answer.as_ref()),
        (Outcome::Done, None) => shared_end(true, None),
        (Outcome::Rejected | Outcome::NotSent, None) => SharedEnd::NOT_SENT,
    }
}

/// A write's intent in the engine.
#[derive(Clone)]
pub(super) struct IntendedAnywhere {
    shared: Arc<SharedWrites>,
    write: Arc<SharedWrite>,
}

impl IntendedAnywhere {
    /// The intent of this write, if there are other replicas.
    pub(super) fn of(
        gateway: &Gateway,
        request: &AuthorizedRequest,
        intent: &Record<'static>,
        write: Fingerprint,
    ) -> Option<Self> {
        let shared = gateway.shared_writes.as_ref()?;
        let write = Arc::new(shared_intent(gateway, request, intent, write));
        Some(Self { shared: shared.writes.clone(), write })
    }

    /// Puts it on the engine's disk.
    ///
    /// # Errors
    /// The engine refused it or did not answer: nothing may be sent.
    pub(super) async fn commit(&self) -> Result<(), NotIntended> {
        self.shared.intend(self.write.clone()).await
    }

    /// Tells all replicas how the write ended, as often as it takes.
    pub(super) fn end(&self, end: SharedEnd) -> oneshot::Receiver<()> {
        self.shared.end(self.write.clone(), end)
    }
}

/// Why the engine did not take an intent.
pub(super) async fn why_not_intended(
    gateway: &Gateway,
    request: &AuthorizedRequest,
    identity: &WriteIdentity,
    why: NotIntended,
) -> Refusal {
    match why {
        NotIntended::NoAnswer => OUT_OF_REACH,
        NotIntended::Refused => {
            let found = Box::pin(find_earlier_anywhere(gateway, request, identity)).await;
            // What was in the way has ended since: another attempt finds that out.
            found.err().unwrap_or(Refusal::NoEngine { why: EngineShortage::Healing })
        }
    }
}

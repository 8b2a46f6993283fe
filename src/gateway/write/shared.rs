//! Steps 8, 10 and 12 of a write over all replicas: what the others know of earlier ones, its intent in the engine, how it ended.

use std::sync::Arc;

use jiff::Timestamp;
use tokio::sync::oneshot;
use uuid::Uuid;

use super::idempotency::{EarlierWrite, WriteIdentity, replay};
use crate::audit::{AdoptedWrite, AuditLog, Doubt, FieldHashes, Record, Text};
use crate::gateway::refusal::{EngineShortage, Refusal};
use crate::gateway::request::AuthorizedRequest;
use crate::gateway::response::Reply;
use crate::gateway::state::Gateway;
use crate::idempotency::{FirstAnswer, KeyClaim, WriteEnd};
use crate::ids::Fingerprint;
use crate::replicas::writes::{
    EarlierQuestion, EarlierWrites, KnownWrite, NotIntended, SharedAnswer, SharedEnd, SharedState, SharedWrite,
    SharedWrites,
};
use crate::vocabulary::Outcome;

/// The refusal of a write whose intent or turn the engine could not be asked for.
pub(super) const OUT_OF_REACH: Refusal = Refusal::NoEngine { why: EngineShortage::NoWrites };

pub(crate) fn uuid_of(id: Fingerprint) -> Uuid {
    Uuid::from_bytes(*id.as_bytes())
}

/// A write in doubt of this log as all replicas know it.
pub(crate) fn shared_doubt(log: &AuditLog, doubt: &Doubt) -> SharedWrite {
    SharedWrite {
        id: uuid_of(log.doubt_id(doubt)),
        request: doubt.request,
        sender: doubt.adopted.as_ref().map(|adopted| adopted.replica.clone()),
        caller: doubt.caller.clone(),
        operation: doubt.operation.clone(),
        organization: doubt.organization,
        path: doubt.path.clone(),
        fingerprint: doubt.fingerprint.unwrap_or_else(|| Fingerprint::from_bytes([0; 16])),
        key: doubt.idempotency,
        marks: marks_text(doubt.marks.as_ref()),
        time: doubt.time,
    }
}

/// A write in doubt of another replica, as this log would know it.
pub(crate) fn doubt_elsewhere(known: &KnownWrite) -> Doubt {
    let SharedWrite { id, request, caller, operation, organization, path, fingerprint, key, marks, time, .. } =
        &known.write;
    let id = Fingerprint::from_bytes(id.into_bytes());
    Doubt {
        intent: 0,
        request: *request,
        time: *time,
        caller: caller.clone(),
        operation: operation.clone(),
        organization: *organization,
        path: path.clone(),
        fingerprint: Some(*fingerprint),
        idempotency: *key,
        marks: marks.as_ref().and_then(|marks| serde_json::from_str(marks).ok()),
        adopted: Some(Box::new(AdoptedWrite { id, replica: known.replica.clone(), time: *time })),
    }
}

fn marks_text(marks: Option<&FieldHashes>) -> Option<Box<str>> {
    marks.and_then(|marks| serde_json::to_string(marks).ok()).map(Into::into)
}

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
        sender: None,
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

/// How a write ended that another replica may have sent.
pub(crate) fn write_end(known: &KnownWrite) -> WriteEnd {
    let answer = known.answer.as_ref();
    WriteEnd {
        done: known.done.unwrap_or(true),
        answer: answer.and_then(|answer| FirstAnswer::of_parts(answer.status, &answer.head, answer.body.clone())),
    }
}

/// How a write ended here, for all replicas.
pub(crate) fn shared_end(done: bool, answer: Option<&FirstAnswer>) -> SharedEnd {
    let answer =
        answer.map(|kept| SharedAnswer { status: kept.status.as_u16(), head: kept.head(), body: kept.body.clone() });
    SharedEnd { state: SharedState::Ended, done: Some(done), answer }
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
            // What was in the way may have ended since: another attempt finds that out.
            match Box::pin(find_earlier_anywhere(gateway, request, identity)).await {
                Err(refusal) => refusal,
                Ok(EarlierAnywhere::Replayed(_, Reply { filled_by: Some(first), .. })) => Refusal::KeyRunning { first },
                Ok(_) => Refusal::NoEngine { why: EngineShortage::Healing },
            }
        }
    }
}

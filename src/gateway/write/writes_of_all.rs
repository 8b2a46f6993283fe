//! The writes of all replicas as this gateway needs them, and how this log's doubts and ends are those of all.

use std::collections::HashSet;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use jiff::Timestamp;
use uuid::Uuid;

use crate::audit::{AdoptedWrite, AuditLog, Doubt, FieldHashes};
use crate::gateway::refusal::{EngineShortage, Refusal};
use crate::idempotency::{FirstAnswer, WriteEnd};
use crate::ids::Fingerprint;
use crate::replicas::Replicas;
use crate::replicas::writes::turns::SharedTurns;
use crate::replicas::writes::{KnownWrite, SharedAnswer, SharedEnd, SharedState, SharedWrite, SharedWrites};

/// The writes of all replicas, as this gateway needs them.
pub(crate) struct WritesOfAll {
    pub(crate) writes: Arc<SharedWrites>,
    pub(crate) turns: Arc<SharedTurns>,
    /// The intents of doubts in this log that other replicas look after.
    elsewhere: Mutex<HashSet<u64>>,
    /// The writes whose adoption is on its way to the log's disk.
    adopting: Mutex<HashSet<Uuid>>,
    /// When the oldest part of this log began, before which it knows nothing.
    pub(super) log_began: Timestamp,
}

impl WritesOfAll {
    pub(crate) fn start(replicas: &Arc<Replicas>, log_began: Timestamp) -> Self {
        let writes = SharedWrites::start(replicas.clone(), replicas.tasks());
        let turns = SharedTurns::start(writes.clone(), replicas.tasks());
        Self { turns, writes, elsewhere: Mutex::default(), adopting: Mutex::default(), log_began }
    }

    fn elsewhere(&self) -> MutexGuard<'_, HashSet<u64>> {
        self.elsewhere.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether another replica looks after the doubt with this intent.
    pub(crate) fn is_elsewhere(&self, intent: u64) -> bool {
        self.elsewhere().contains(&intent)
    }

    pub(crate) fn set_elsewhere(&self, intents: HashSet<u64>) {
        *self.elsewhere() = intents;
    }

    pub(super) fn adopting(&self) -> MutexGuard<'_, HashSet<Uuid>> {
        self.adopting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Why writes may not go on now, if they may not.
    fn shortage(&self) -> EngineShortage {
        if self.writes.replicas().lease().holds() { EngineShortage::Healing } else { EngineShortage::NoWrites }
    }

    /// # Errors
    /// Writes may not go on now.
    pub(super) fn check_open(&self) -> Result<(), Refusal> {
        match self.writes.open_epoch() {
            Some(_) => Ok(()),
            None => Err(Refusal::NoEngine { why: self.shortage() }),
        }
    }
}

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
    let SharedWrite { id, request, caller, operation, organization, path, fingerprint, key, marks, time } =
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

pub(super) fn marks_text(marks: Option<&FieldHashes>) -> Option<Box<str>> {
    marks.and_then(|marks| serde_json::to_string(marks).ok()).map(Into::into)
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

//! Open writes, reconstructed from the log's own lines. Every segment begins with the list of writes open at that
//! point, so startup reads only one segment, however old the oldest doubt is.

pub(super) mod doubts;
pub(super) mod request_ids;

use std::collections::BTreeMap;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use self::doubts::{Doubt, in_micros};
use crate::audit::record::field_hashes::FieldHashes;
use crate::audit::record::stored_record::StoredRecord;
use crate::audit::record::{Kind, Record};
use crate::ids::{Fingerprint, RequestId};
use crate::vocabulary::Outcome;

/// The event recorded when a start finds a write without an outcome.
pub(crate) const RECOVERED: &str = "recovered";

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct OpenWrite {
    pub(crate) in_doubt: bool,
    pub(crate) doubt: Doubt,
}

/// All open writes up to some record, by the sequence numbers of their intents.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct OpenWrites {
    writes: BTreeMap<u64, OpenWrite>,
}

/// What a record changes about a write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum WriteStep {
    Begin,
    InDoubt,
    End,
    Settle,
}

impl WriteStep {
    fn of(kind: Option<Kind>, outcome: Option<&str>, event: Option<&str>) -> Option<Self> {
        match kind? {
            Kind::Intent => Some(Self::Begin),
            Kind::Outcome if outcome == Some(Outcome::InDoubt.as_str()) => Some(Self::InDoubt),
            Kind::Outcome => Some(Self::End),
            Kind::Settlement => Some(Self::Settle),
            Kind::Event => (event == Some(RECOVERED)).then_some(Self::InDoubt),
            Kind::Request | Kind::Refusals => None,
        }
    }
}

impl OpenWrites {
    /// In the order of their intents.
    pub(crate) fn list(&self) -> Vec<&OpenWrite> {
        self.writes.values().collect()
    }

    /// The open write that a record is about: the one whose intent it names.
    ///
    /// Records from older versions name no intent, only a request id. For those this is the newest write in the
    /// matching state, or else the newest of all: those logs may hold several open writes with the same id, because
    /// callers chose the ids.
    pub(crate) fn of(&self, intent: Option<u64>, request: &RequestId, settles: bool) -> Option<&OpenWrite> {
        let Some(intent) = intent else {
            let mut of_request = self.writes.values().rev().filter(|write| write.doubt.request == *request);
            let first = of_request.clone().next()?;
            return of_request.find(|write| write.in_doubt == settles).or(Some(first));
        };
        self.writes.get(&intent)
    }

    /// Applies a record that was just stored.
    pub(crate) fn apply(&mut self, seq: u64, record: &Record) {
        let outcome = record.outcome.map(Outcome::as_str);
        if let Some((step, request)) = WriteStep::of(Some(record.kind), outcome, record.event).zip(record.request) {
            self.step(step, (record.intent, request), || Doubt::of(seq, record));
        }
    }

    /// Applies a record that was read from a file.
    pub(crate) fn apply_seen(&mut self, seen: &StoredRecord<'_>) {
        let step = WriteStep::of(Kind::parse(&seen.kind), seen.outcome.as_deref(), seen.event.as_deref());
        if let Some((step, request)) = step.zip(seen.request_id()) {
            self.step(step, (seen.intent, request), || Some(doubt_of(request, seen)));
        }
    }

    fn step(
        &mut self,
        step: WriteStep,
        (intent, request): (Option<u64>, RequestId),
        doubt: impl Fn() -> Option<Doubt>,
    ) {
        if step == WriteStep::Begin {
            self.writes.extend(doubt().map(|doubt| (doubt.intent, OpenWrite { in_doubt: false, doubt })));
            return;
        }
        let Some(intent) = self.of(intent, &request, step == WriteStep::Settle).map(|write| write.doubt.intent) else {
            return;
        };
        if step == WriteStep::InDoubt {
            self.writes.entry(intent).and_modify(|write| write.in_doubt = true);
        } else {
            self.writes.remove(&intent);
        }
    }

    /// In the form used in a segment's first record.
    pub(crate) fn to_stored(&self) -> Vec<StoredOpenWrite> {
        self.writes.values().map(StoredOpenWrite::of).collect()
    }

    /// Returns `None` if this cannot be a segment's list of open writes.
    pub(crate) fn from_stored(stored: Vec<StoredOpenWrite>) -> Option<Self> {
        let writes = stored.into_iter().map(|one| one.into_open().map(|write| (write.doubt.intent, write)));
        writes.collect::<Option<BTreeMap<_, _>>>().map(|writes| Self { writes })
    }
}

fn doubt_of(request: RequestId, seen: &StoredRecord<'_>) -> Doubt {
    Doubt {
        intent: seen.seq,
        request,
        time: seen.time,
        caller: seen.caller.as_deref().unwrap_or_default().into(),
        operation: seen.operation.as_deref().unwrap_or_default().into(),
        organization: seen.organization,
        path: seen.path.as_deref().unwrap_or_default().into(),
        fingerprint: seen.fingerprint.as_deref().and_then(Fingerprint::parse),
        idempotency: seen.idempotency.as_deref().and_then(Fingerprint::parse),
        marks: seen.marks.clone(),
    }
}

/// One element of `open` in a segment's first record.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct StoredOpenWrite {
    seq: u64,
    in_doubt: bool,
    request: String,
    time: Timestamp,
    caller: String,
    operation: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    organization: Option<u64>,
    path: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    fingerprint: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    idempotency: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    marks: Option<FieldHashes>,
}

impl StoredOpenWrite {
    fn of(write: &OpenWrite) -> Self {
        let doubt = &write.doubt;
        Self {
            seq: doubt.intent,
            in_doubt: write.in_doubt,
            request: doubt.request.to_string(),
            time: doubt.time,
            caller: doubt.caller.to_string(),
            operation: doubt.operation.to_string(),
            organization: doubt.organization,
            path: doubt.path.to_string(),
            fingerprint: doubt.fingerprint.map(|fingerprint| fingerprint.to_string()),
            idempotency: doubt.idempotency.map(|idempotency| idempotency.to_string()),
            marks: doubt.marks.clone(),
        }
    }

    fn into_open(self) -> Option<OpenWrite> {
        let doubt = Doubt {
            intent: self.seq,
            request: RequestId::parse(self.request.as_bytes())?,
            time: in_micros(self.time),
            caller: self.caller.into(),
            operation: self.operation.into(),
            organization: self.organization,
            path: self.path.into(),
            fingerprint: self.fingerprint.as_deref().and_then(Fingerprint::parse),
            idempotency: self.idempotency.as_deref().and_then(Fingerprint::parse),
            marks: self.marks,
        };
        Some(OpenWrite { in_doubt: self.in_doubt, doubt })
    }
}

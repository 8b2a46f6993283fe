//! Open writes, reconstructed from the log's own lines. Every segment begins with the list of writes open at that
//! point, so startup reads only one segment, however old the oldest doubt is.

pub(super) mod doubts;
pub(super) mod request_ids;

use std::collections::BTreeMap;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use self::doubts::{Doubt, in_micros};
use crate::audit::record::field_hashes::FieldHashes;
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
    fn of(record: &Record<'_>) -> Option<Self> {
        match record.kind? {
            Kind::Intent => Some(Self::Begin),
            Kind::Outcome if record.outcome == Some(Outcome::InDoubt) => Some(Self::InDoubt),
            Kind::Outcome => Some(Self::End),
            Kind::Settlement => Some(Self::Settle),
            Kind::Event => (record.event.as_deref() == Some(RECOVERED)).then_some(Self::InDoubt),
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

    /// Applies a record that was just stored, or read from a file.
    pub(crate) fn apply(&mut self, record: &Record<'_>) {
        let Some((step, request)) = WriteStep::of(record).zip(record.request) else { return };
        if step == WriteStep::Begin {
            let begun = Doubt::of(record).map(|doubt| (doubt.intent, OpenWrite { in_doubt: false, doubt }));
            self.writes.extend(begun);
            return;
        }
        let write = self.of(record.intent, &request, step == WriteStep::Settle);
        let Some(intent) = write.map(|write| write.doubt.intent) else { return };
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

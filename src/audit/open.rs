//! Open writes as the log's own lines tell of them. Every segment begins with those that are open at its beginning, so that
//! a start reads one segment, however old the oldest doubt is.

use std::collections::HashMap;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::doubts::{Doubt, in_micros};
use super::marks::Marks;
use super::record::{Kind, Outcome, Record};
use super::seen::Seen;
use crate::words::{Fingerprint, RequestId};

/// The event that says that a start found this write without an outcome.
pub(crate) const RECOVERED: &str = "recovered";

/// One open write and where its intent is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct OpenWrite {
    pub(crate) seq: u64,
    pub(crate) in_doubt: bool,
    pub(crate) doubt: Doubt,
}

/// All open writes up to some record.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct OpenWrites {
    writes: HashMap<RequestId, OpenWrite>,
}

/// What a record does to the open writes.
enum Step {
    Begin(Doubt),
    InDoubt(RequestId),
    End(RequestId),
}

impl OpenWrites {
    /// In the order of their intents.
    pub(crate) fn list(&self) -> Vec<&OpenWrite> {
        let mut all: Vec<_> = self.writes.values().collect();
        all.sort_by_key(|write| write.seq);
        all
    }

    /// The open write of this request.
    pub(crate) fn get(&self, request: &RequestId) -> Option<&OpenWrite> {
        self.writes.get(request)
    }

    /// Goes on by a record that was just stored.
    pub(crate) fn apply(&mut self, seq: u64, record: &Record) {
        let Some(request) = record.request else { return };
        let step = match record.kind {
            Kind::Intent => Doubt::of(record).map(Step::Begin),
            Kind::Outcome if record.outcome == Some(Outcome::InDoubt) => Some(Step::InDoubt(request)),
            Kind::Outcome | Kind::Settlement => Some(Step::End(request)),
            Kind::Event if record.event == Some(RECOVERED) => Some(Step::InDoubt(request)),
            Kind::Event | Kind::Request | Kind::Refusals => None,
        };
        self.step(seq, step);
    }

    /// Goes on by a record that was read from a file.
    pub(crate) fn apply_seen(&mut self, seen: &Seen<'_>) {
        let Some(request) = seen.request.as_ref().and_then(|id| RequestId::parse(id.as_bytes())) else { return };
        let step = match Kind::parse(&seen.kind) {
            Some(Kind::Intent) => Some(Step::Begin(doubt_of(request, seen))),
            Some(Kind::Outcome) if seen.outcome.as_deref() == Some(Outcome::InDoubt.as_str()) => {
                Some(Step::InDoubt(request))
            }
            Some(Kind::Outcome | Kind::Settlement) => Some(Step::End(request)),
            Some(Kind::Event) if seen.event.as_deref() == Some(RECOVERED) => Some(Step::InDoubt(request)),
            Some(Kind::Event | Kind::Request | Kind::Refusals) | None => None,
        };
        self.step(seen.seq, step);
    }

    fn step(&mut self, seq: u64, step: Option<Step>) {
        match step {
            Some(Step::Begin(doubt)) => {
                self.writes.insert(doubt.request, OpenWrite { seq, in_doubt: false, doubt });
            }
            Some(Step::InDoubt(request)) => {
                if let Some(write) = self.writes.get_mut(&request) {
                    write.in_doubt = true;
                }
            }
            Some(Step::End(request)) => {
                self.writes.remove(&request);
            }
            None => {}
        }
    }

    /// The form in a segment's first record.
    pub(crate) fn to_stored(&self) -> Vec<StoredOpen> {
        self.list().into_iter().map(StoredOpen::of).collect()
    }

    /// `None`: that is not what a segment's first record says.
    pub(crate) fn from_stored(stored: Vec<StoredOpen>) -> Option<Self> {
        let writes = stored.into_iter().map(|one| one.into_open().map(|write| (write.doubt.request, write)));
        writes.collect::<Option<HashMap<_, _>>>().map(|writes| Self { writes })
    }
}

fn doubt_of(request: RequestId, seen: &Seen<'_>) -> Doubt {
    Doubt {
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

/// One member of `open` in a segment's first record.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct StoredOpen {
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
    marks: Option<Marks>,
}

impl StoredOpen {
    fn of(write: &OpenWrite) -> Self {
        let doubt = &write.doubt;
        Self {
            seq: write.seq,
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
        Some(OpenWrite { seq: self.seq, in_doubt: self.in_doubt, doubt })
    }
}

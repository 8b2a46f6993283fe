//! Open writes, reconstructed from the log's own lines. Every segment begins with the list of writes open at that
//! point, so startup reads only one segment, however old the oldest doubt is.

pub(super) mod doubt_room;
pub(super) mod doubts;
pub(super) mod request_ids;

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use self::doubts::Doubt;
use crate::audit::record::{Kind, Record};
use crate::ids::RequestId;
use crate::vocabulary::Outcome;

/// The event recorded when a start finds a write without an outcome.
pub(crate) const RECOVERED: &str = "recovered";
/// The event recorded when this replica takes over a write in doubt of another. It stands for the write's intent here.
pub(crate) const ADOPTED: &str = "adopted";

/// A write without an end, as a segment's first record lists it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct OpenWrite {
    pub(crate) in_doubt: bool,
    #[serde(flatten)]
    pub(crate) doubt: Doubt,
}

/// All open writes up to some record, by the sequence numbers of their intents.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct OpenWrites {
    writes: BTreeMap<u64, OpenWrite>,
    /// How many of them are in doubt.
    in_doubt: usize,
}

/// What a record changes about a write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum WriteStep {
    Begin,
    /// A write of another replica becomes a doubt of this one.
    Adopt,
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
            Kind::Event => match record.event.as_deref()? {
                RECOVERED => Some(Self::InDoubt),
                ADOPTED => record.adopted.is_some().then_some(Self::Adopt),
                _ => None,
            },
            Kind::Request | Kind::Refusals => None,
        }
    }
}

/// What a record has changed.
pub(crate) enum WriteChange<'w> {
    Begun(&'w Doubt),
    /// In doubt from its first record here on.
    Adopted(&'w Doubt),
    InDoubt(&'w Doubt),
    Closed(Doubt),
}

impl OpenWrites {
    /// In the order of their intents.
    pub(crate) fn list(&self) -> impl Iterator<Item = &OpenWrite> {
        self.writes.values()
    }

    /// Those in doubt.
    pub(crate) fn doubts(&self) -> impl Iterator<Item = &Doubt> {
        self.list().filter(|write| write.in_doubt).map(|write| &write.doubt)
    }

    /// Number of writes in doubt.
    pub(crate) const fn in_doubt(&self) -> usize {
        self.in_doubt
    }

    /// Number of writes under way.
    pub(crate) fn under_way(&self) -> usize {
        self.writes.len() - self.in_doubt
    }

    pub(crate) fn get(&self, intent: u64) -> Option<&OpenWrite> {
        self.writes.get(&intent)
    }

    pub(crate) fn insert(&mut self, write: OpenWrite) {
        self.in_doubt += usize::from(write.in_doubt);
        let before = self.writes.insert(write.doubt.intent, write);
        self.in_doubt -= usize::from(before.is_some_and(|write| write.in_doubt));
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
        self.get(intent)
    }

    /// Applies a record. Returns what changed, if anything.
    pub(crate) fn apply(&mut self, record: &Record<'_>) -> Option<WriteChange<'_>> {
        let (step, request) = WriteStep::of(record).zip(record.request)?;
        if let WriteStep::Begin | WriteStep::Adopt = step {
            let in_doubt = step == WriteStep::Adopt;
            self.insert(OpenWrite { in_doubt, doubt: Doubt::of(record)? });
            let doubt = &self.get(record.seq)?.doubt;
            return Some(if in_doubt { WriteChange::Adopted(doubt) } else { WriteChange::Begun(doubt) });
        }
        let intent = self.of(record.intent, &request, step == WriteStep::Settle)?.doubt.intent;
        if step == WriteStep::InDoubt {
            let write = self.writes.get_mut(&intent)?;
            let is_new = !std::mem::replace(&mut write.in_doubt, true);
            self.in_doubt += usize::from(is_new);
            return is_new.then_some(WriteChange::InDoubt(&write.doubt));
        }
        let write = self.writes.remove(&intent)?;
        self.in_doubt -= usize::from(write.in_doubt);
        Some(WriteChange::Closed(write.doubt))
    }
}

impl FromIterator<OpenWrite> for OpenWrites {
    fn from_iter<W: IntoIterator<Item = OpenWrite>>(writes: W) -> Self {
        writes.into_iter().fold(Self::default(), |mut open, write| {
            open.insert(write);
            open
        })
    }
}

//! A record: what is known about a request at one moment. Building one only copies and counts; it formats nothing.

pub(super) mod csv;
pub(super) mod field_hashes;
mod json_text;
pub(super) mod line;
pub(super) mod stored_record;

use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;

use http::Method;
use jiff::Timestamp;
use serde_json::value::RawValue;

use self::field_hashes::FieldHashes;
use crate::ids::{Fingerprint, KeyId, RequestId};
use crate::vocabulary::{Answer, Outcome, word_enum};

word_enum! {
    /// What a record is about.
    Kind {
        /// A request that changed nothing upstream: a read or a refusal.
        Request = "request",
        /// A write about to go upstream.
        Intent = "intent",
        /// How that write ended.
        Outcome = "outcome",
        /// A write in doubt was settled, by an operator or by reading the upstream.
        Settlement = "settlement",
        /// Something about the gateway itself; `event` names it.
        Event = "event",
        /// Refusals of one peer or caller that are counted instead of recorded one by one.
        Refusals = "refusals",
    }
}

/// The other end of the connection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Peer {
    /// An address.
    Ip(IpAddr),
    /// A Unix socket, as text (`unix`, `unix:uid=1000`).
    Unix(Arc<str>),
    /// Several addresses, as text (`2001:db8::/64`, `others`).
    Several(Box<str>),
}

impl Peer {
    /// The peer at this address, or at a Unix socket if there is none.
    #[must_use]
    pub fn of(address: Option<IpAddr>) -> Self {
        address.map_or_else(|| Self::Unix("unix".into()), Self::Ip)
    }
}

impl fmt::Display for Peer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Ip(ip) => ip.fmt(f),
            Self::Unix(words) => f.write_str(words),
            Self::Several(words) => f.write_str(words),
        }
    }
}

/// Refusals that were counted instead of recorded one by one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CountedRefusals {
    /// Number of refusals.
    pub count: u64,
    /// Number of refusals by code.
    pub codes: Vec<(&'static str, u64)>,
    /// When the first one arrived.
    pub first: Timestamp,
    /// When the last one arrived.
    pub last: Timestamp,
}

/// The counterpart of [`Record::is_refusal`] for a stored record; both must agree.
pub(crate) fn is_refusal(kind: Kind, is_known: bool, refusal: Option<&str>) -> bool {
    match kind {
        Kind::Refusals => true,
        Kind::Request => !is_known || refusal.is_some(),
        Kind::Intent | Kind::Outcome | Kind::Settlement | Kind::Event => false,
    }
}

/// One line of the log before it is numbered. A field that does not apply is `None` and is left out of the line.
#[derive(Clone, Debug)]
pub struct Record {
    /// When it happened.
    pub time: Timestamp,
    /// What it is about.
    pub kind: Kind,
    /// On outcomes, settlements and the event `recovered`: the sequence number of the write's intent. This links
    /// them; a request id only labels the write and may have been used before.
    pub intent: Option<u64>,
    /// The request id. Intents, outcomes and settlements always have one.
    pub request: Option<RequestId>,
    /// The caller's name.
    pub caller: Option<Arc<str>>,
    /// The key that the caller used.
    pub key: Option<KeyId>,
    /// Where the request came from.
    pub peer: Option<Peer>,
    /// The catalogue row's id.
    pub operation: Option<Arc<str>>,
    /// The organization in the path.
    pub organization: Option<u64>,
    /// The method.
    pub method: Option<Method>,
    /// The canonical path, without query.
    pub path: Option<Arc<str>>,
    /// The query parameters that the catalogue row allows to be recorded, as a JSON object; see [`super::object`].
    pub query: Option<Box<RawValue>>,
    /// The body fields of a write that the row allows to be recorded, as a JSON object.
    pub fields: Option<Box<RawValue>>,
    /// The status sent to the caller.
    pub status: Option<u16>,
    /// Where the answer came from.
    pub answer: Option<Answer>,
    /// The refusal's code (`MG…`).
    pub refusal: Option<&'static str>,
    /// The request whose fetch filled the entry that answered.
    pub filled_by: Option<RequestId>,
    /// Number of requests sent upstream for this one.
    pub attempts: Option<u32>,
    /// The last status from upstream.
    pub upstream_status: Option<u16>,
    /// How the write ended.
    pub outcome: Option<Outcome>,
    /// Time spent waiting for quota, in microseconds.
    pub quota_wait_us: Option<u64>,
    /// Time from when the request was read whole to its answer, in microseconds.
    pub duration_us: Option<u64>,
    /// Size of the answer's body, in bytes.
    pub bytes: Option<u64>,
    /// W3C traceparent.
    pub trace: Option<Box<str>>,
    /// The event's name.
    pub event: Option<&'static str>,
    /// An event's description or a settlement's note.
    pub detail: Option<Box<str>>,
    /// On intents: the fingerprint that equal writes share.
    pub fingerprint: Option<Fingerprint>,
    /// On intents: the caller's idempotency key, as a keyed hash.
    pub idempotency: Option<Fingerprint>,
    /// On intents: hashes by which the write's effect can be recognized upstream.
    pub marks: Option<FieldHashes>,
    /// On [`Kind::Refusals`]: what was counted.
    pub counted: Option<Box<CountedRefusals>>,
}

impl Record {
    /// A record of this kind and time, with nothing else set.
    #[must_use]
    pub const fn new(kind: Kind, time: Timestamp) -> Self {
        Self {
            time,
            kind,
            intent: None,
            request: None,
            caller: None,
            key: None,
            peer: None,
            operation: None,
            organization: None,
            method: None,
            path: None,
            query: None,
            fields: None,
            status: None,
            answer: None,
            refusal: None,
            filled_by: None,
            attempts: None,
            upstream_status: None,
            outcome: None,
            quota_wait_us: None,
            duration_us: None,
            bytes: None,
            trace: None,
            event: None,
            detail: None,
            fingerprint: None,
            idempotency: None,
            marks: None,
            counted: None,
        }
    }

    /// An event of the gateway itself, such as a reload or an outage.
    #[must_use]
    pub fn event(time: Timestamp, event: &'static str, detail: impl Into<Box<str>>) -> Self {
        Self { event: Some(event), detail: Some(detail.into()), ..Self::new(Kind::Event, time) }
    }

    /// Whether it counts against the refusals' share of the log's bytes: it changed nothing, and a caller can cause it without limit.
    pub(crate) fn is_refusal(&self) -> bool {
        is_refusal(self.kind, self.caller.is_some(), self.refusal)
    }

    /// Total length of the texts in this record whose length a caller controls, in bytes.
    pub(crate) fn text_bytes(&self) -> usize {
        let raw = |value: &Option<Box<RawValue>>| value.as_ref().map_or(0, |value| value.get().len());
        let text = |value: Option<&str>| value.map_or(0, str::len);
        raw(&self.query)
            + raw(&self.fields)
            + text(self.path.as_deref())
            + text(self.detail.as_deref())
            + text(self.trace.as_deref())
    }

    /// What the record counts for in the buffer, in bytes.
    pub(crate) fn weight(&self) -> usize {
        size_of::<Self>() + self.text_bytes() + self.marks.as_ref().map_or(0, FieldHashes::weight)
    }
}

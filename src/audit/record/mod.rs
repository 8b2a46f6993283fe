//! A record: what is known about a request at one moment. Building one only copies and counts; it formats nothing.

pub(super) mod csv;
pub(super) mod field_hashes;
pub(super) mod formatter;
pub(super) mod line;
pub(super) mod text;

use std::borrow::Cow;
use std::cell::RefCell;
use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;

use http::Method;
use jiff::Timestamp;
use serde::{Deserialize, Serialize, Serializer};
use serde_json::value::RawValue;

use self::field_hashes::FieldHashes;
use self::text::{Text, lenient};
use crate::ids::{Fingerprint, KeyId, RequestId};
use crate::vocabulary::{Answer, CredentialKind, Outcome, word_enum};

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
    /// A Unix socket, with the user id of its process if known (`unix`, `unix:uid=1000`).
    Unix(Option<u32>),
    /// Several addresses, as text (`2001:db8::/64`, `others`).
    Several(Box<str>),
}

impl Peer {
    /// The peer at this address, or at a Unix socket if there is none.
    #[must_use]
    pub fn of(address: Option<IpAddr>) -> Self {
        address.map_or(Self::Unix(None), Self::Ip)
    }
}

impl fmt::Display for Peer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Ip(ip) => ip.fmt(f),
            Self::Unix(None) => f.write_str("unix"),
            Self::Unix(Some(uid)) => write!(f, "unix:uid={uid}"),
            Self::Several(words) => f.write_str(words),
        }
    }
}

thread_local! {
    /// An address with its text. Most records are about the same address as the one before.
    static ADDRESS: RefCell<(Option<IpAddr>, String)> = const { RefCell::new((None, String::new())) };
}

impl Serialize for Peer {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Ip(ip) => ADDRESS.with_borrow_mut(|(known, text)| {
                if *known != Some(*ip) {
                    (*known, *text) = (Some(*ip), ip.to_string());
                }
                serializer.serialize_str(text)
            }),
            Self::Several(text) => serializer.serialize_str(text),
            Self::Unix(_) => serializer.collect_str(self),
        }
    }
}

/// Refusals that were counted instead of recorded one by one.
#[derive(Clone, Debug, Serialize)]
pub struct CountedRefusals {
    /// Number of refusals.
    pub count: u64,
    /// Number of refusals by code.
    #[serde(serialize_with = "text::map")]
    pub codes: Vec<(Text<'static>, u64)>,
    /// When the first one arrived.
    #[serde(serialize_with = "line::micros")]
    pub first: Timestamp,
    /// When the last one arrived.
    #[serde(serialize_with = "line::micros")]
    pub last: Timestamp,
}

/// A write of another replica, which this one looks after from now on.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AdoptedWrite {
    /// Its id over all replicas.
    pub id: Fingerprint,
    /// The replica that sent it.
    pub replica: Arc<str>,
    /// When its intent was recorded there.
    #[serde(serialize_with = "line::micros", deserialize_with = "line::read_micros")]
    pub time: Timestamp,
}

/// A record: one line of the log. A field that does not apply is `None` and is left out of the line.
///
/// Reading a line takes only what the log itself needs, without copying. A word or an id that this version cannot
/// parse counts as absent: another version's record is still a record.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Record<'l> {
    /// Its sequence number; 0 until the log numbers it.
    pub seq: u64,
    /// When it happened.
    #[serde(serialize_with = "line::micros", deserialize_with = "line::read_micros")]
    pub time: Timestamp,
    /// What it is about. `None` if a newer makegate wrote it.
    #[serde(deserialize_with = "lenient")]
    pub kind: Option<Kind>,
    /// On outcomes, settlements and the event `recovered`: the sequence number of the write's intent, or of the event
    /// `adopted`. This links them; a request id only labels the write and may have been used before.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub intent: Option<u64>,
    /// The request id. Intents, outcomes and settlements always have one.
    #[serde(default, deserialize_with = "lenient", skip_serializing_if = "Option::is_none")]
    pub request: Option<RequestId>,
    /// The caller's name.
    #[serde(borrow, skip_serializing_if = "Option::is_none")]
    pub caller: Option<Text<'l>>,
    /// The key that the caller or the operator used, or the beginning of the hash of the caller's token.
    #[serde(default, deserialize_with = "lenient", skip_serializing_if = "Option::is_none")]
    pub key: Option<KeyId>,
    /// What identified the caller, if not a key.
    #[serde(skip_deserializing, skip_serializing_if = "Option::is_none")]
    pub credential: Option<CredentialKind>,
    /// The operator who did it, on events and settlements.
    #[serde(skip_deserializing, skip_serializing_if = "Option::is_none")]
    pub operator: Option<Text<'l>>,
    /// Where the request came from.
    #[serde(skip_deserializing, skip_serializing_if = "Option::is_none")]
    pub peer: Option<Peer>,
    /// The catalogue row's id.
    #[serde(borrow, skip_serializing_if = "Option::is_none")]
    pub operation: Option<Text<'l>>,
    /// The organization in the path.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub organization: Option<u64>,
    /// The method.
    #[serde(skip_deserializing, skip_serializing_if = "Option::is_none", serialize_with = "text::method")]
    pub method: Option<Method>,
    /// The canonical path, without query.
    #[serde(borrow, skip_serializing_if = "Option::is_none")]
    pub path: Option<Text<'l>>,
    /// The query parameters that the catalogue row allows to be recorded, as a JSON object; see [`super::object`].
    #[serde(skip_deserializing, skip_serializing_if = "Option::is_none")]
    pub query: Option<Box<RawValue>>,
    /// The body fields of a write that the row allows to be recorded, as a JSON object.
    #[serde(borrow, default, deserialize_with = "text::raw", skip_serializing_if = "Option::is_none")]
    pub fields: Option<Cow<'l, RawValue>>,
    /// The status sent to the caller.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub status: Option<u16>,
    /// Where the answer came from.
    #[serde(default, deserialize_with = "lenient", skip_serializing_if = "Option::is_none")]
    pub answer: Option<Answer>,
    /// The refusal's code (`MG…`).
    #[serde(borrow, skip_serializing_if = "Option::is_none")]
    pub refusal: Option<Text<'l>>,
    /// The request whose fetch filled the entry that answered.
    #[serde(skip_deserializing, skip_serializing_if = "Option::is_none")]
    pub filled_by: Option<RequestId>,
    /// Number of requests sent upstream for this one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub attempts: Option<u32>,
    /// Number of these that took a slot of the quota, if not all did.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub spent: Option<u32>,
    /// The last status from upstream.
    #[serde(skip_deserializing, skip_serializing_if = "Option::is_none")]
    pub upstream_status: Option<u16>,
    /// How the write ended.
    #[serde(default, deserialize_with = "lenient", skip_serializing_if = "Option::is_none")]
    pub outcome: Option<Outcome>,
    /// Time spent waiting for quota, in microseconds.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub quota_wait_us: Option<u64>,
    /// Time from when the request was read whole to its answer, in microseconds.
    #[serde(skip_deserializing, skip_serializing_if = "Option::is_none")]
    pub duration_us: Option<u64>,
    /// Size of the answer's body, in bytes.
    #[serde(skip_deserializing, skip_serializing_if = "Option::is_none")]
    pub bytes: Option<u64>,
    /// W3C traceparent.
    #[serde(skip_deserializing, skip_serializing_if = "Option::is_none")]
    pub trace: Option<Box<str>>,
    /// The event's name.
    #[serde(borrow, skip_serializing_if = "Option::is_none")]
    pub event: Option<Text<'l>>,
    /// An event's description or a settlement's note.
    #[serde(skip_deserializing, skip_serializing_if = "Option::is_none")]
    pub detail: Option<Box<str>>,
    /// On intents and the event `adopted`: the fingerprint that equal writes share.
    #[serde(default, deserialize_with = "lenient", skip_serializing_if = "Option::is_none")]
    pub fingerprint: Option<Fingerprint>,
    /// On intents and the event `adopted`: the caller's idempotency key, as a keyed hash.
    #[serde(default, deserialize_with = "lenient", skip_serializing_if = "Option::is_none")]
    pub idempotency: Option<Fingerprint>,
    /// On intents and the event `adopted`: hashes by which the write's effect can be recognized upstream.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub marks: Option<FieldHashes>,
    /// On the event `adopted`: which write it is.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub adopted: Option<Box<AdoptedWrite>>,
    /// On [`Kind::Refusals`]: what was counted.
    #[serde(flatten, skip_deserializing)]
    pub counted: Option<Box<CountedRefusals>>,
}

impl<'l> Record<'l> {
    /// A record of this kind and time, with nothing else set.
    #[must_use]
    pub fn new(kind: Kind, time: Timestamp) -> Self {
        Self { time, kind: Some(kind), ..Self::default() }
    }

    /// Reads a line. Returns `None` if it is not a record.
    pub(crate) fn parse(line: &'l [u8]) -> Option<Self> {
        // Checked once as a whole: `from_slice` checks each text by itself.
        serde_json::from_str(std::str::from_utf8(line).ok()?).ok()
    }

    /// An event of the gateway itself, such as a reload or an outage.
    #[must_use]
    pub fn event(time: Timestamp, event: &'static str, detail: impl Into<Box<str>>) -> Self {
        Self { event: Some(event.into()), detail: Some(detail.into()), ..Self::new(Kind::Event, time) }
    }

    /// Whether it counts against the refusals' share of the log's bytes: it changed nothing, and a caller can cause it without limit.
    pub(crate) fn is_refusal(&self) -> bool {
        match self.kind {
            Some(Kind::Refusals) => true,
            Some(Kind::Request) => self.caller.is_none() || self.refusal.is_some(),
            Some(Kind::Intent | Kind::Outcome | Kind::Settlement | Kind::Event) | None => false,
        }
    }

    /// Lengths of the texts in this record whose length a caller controls, in bytes: of `query`, `fields`, `path`,
    /// `detail` and `trace`.
    pub(crate) fn text_sizes(&self) -> [usize; 5] {
        let raw = |value: Option<&RawValue>| value.map_or(0, |value| value.get().len());
        let text = |value: Option<&str>| value.map_or(0, str::len);
        [
            raw(self.query.as_deref()),
            raw(self.fields.as_deref()),
            text(self.path.as_deref()),
            text(self.detail.as_deref()),
            text(self.trace.as_deref()),
        ]
    }

    /// Total length of these texts.
    pub(crate) fn text_bytes(&self) -> usize {
        self.text_sizes().iter().sum()
    }

    /// What the record counts for in the buffer, in bytes.
    pub(crate) fn weight(&self) -> usize {
        size_of::<Self>() + self.text_bytes() + self.marks.as_ref().map_or(0, FieldHashes::weight)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_of_another_version_is_still_a_record() {
        let line = br#"{"seq":7,"time":"2026-07-01T12:00:00Z","kind":"dream","request":"a b","caller":"x\ny","key":"5","peer":{},
            "method":"?","status":null,"answer":"guessed","refusal":"MG999","outcome":"lost","fingerprint":"12","trace":[],"codes":7,"new":1}"#;
        let record = Record::parse(line).unwrap();
        assert_eq!((record.seq, record.caller.as_deref(), record.refusal.as_deref()), (7, Some("x\ny"), Some("MG999")));
        assert_eq!((record.kind, record.request, record.answer, record.outcome), (None, None, None, None));
        assert_eq!((record.status, record.fingerprint), (None, None));
        for no_record in ["", "{}", "{\"seq\":7,\"time\":\"2026-07-01T12:00:00Z\"}", "{\"seq\":7,\"kind\":\"event\"}"] {
            assert!(Record::parse(no_record.as_bytes()).is_none(), "{no_record}");
        }
    }
}

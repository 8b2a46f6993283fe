//! One record: what is known of a request at one moment. Building one copies and counts, it formats nothing.

use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;

use http::Method;
use jiff::Timestamp;
use serde_json::value::RawValue;

use super::field_hashes::FieldHashes;
use crate::ids::{Fingerprint, KeyId, RequestId};

/// A closed set of words: the enum, its words, and the way back.
macro_rules! word_enum {
    ($(#[$doc:meta])* $name:ident { $($(#[$variant_doc:meta])* $variant:ident = $word:literal,)* }) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        pub enum $name { $($(#[$variant_doc])* $variant,)* }

        impl $name {
            /// All of them, in the order of the documentation.
            pub const ALL: &[Self] = &[$(Self::$variant),*];

            /// The word in records and filters.
            #[must_use]
            pub const fn as_str(self) -> &'static str {
                match self { $(Self::$variant => $word),* }
            }

            /// What this word means, if anything.
            #[must_use]
            pub fn parse(word: &str) -> Option<Self> {
                Self::ALL.iter().copied().find(|one| one.as_str() == word)
            }
        }
    };
}

word_enum! {
    /// What a record is about.
    Kind {
        /// A request that changed nothing upstream: a read, or a refusal.
        Request = "request",
        /// A write is about to go upstream.
        Intent = "intent",
        /// How that write ended.
        Outcome = "outcome",
        /// A write in doubt was settled: by an operator, or by a look at the upstream.
        Settlement = "settlement",
        /// Something about the gateway itself; `event` says what.
        Event = "event",
        /// Refusals of one peer or caller that are only counted.
        Refusals = "refusals",
    }
}

word_enum! {
    /// Where an answer came from.
    Answer {
        /// From memory, fresh.
        Hit = "hit",
        /// From memory, past its lifetime.
        Stale = "stale",
        /// From upstream, and kept.
        Miss = "miss",
        /// From upstream, of a class that is not kept; every write.
        Forwarded = "forwarded",
        /// The first answer to the same idempotency key.
        Replayed = "replayed",
        /// The gateway's own.
        Refused = "refused",
    }
}

word_enum! {
    /// How a write ended.
    Outcome {
        /// The upstream did it.
        Done = "done",
        /// The upstream refused it.
        Rejected = "rejected",
        /// It never went upstream, or was provably not processed.
        NotSent = "not-sent",
        /// Nobody knows.
        InDoubt = "in-doubt",
    }
}

/// Who was at the other end of the connection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Peer {
    /// An address.
    Ip(IpAddr),
    /// A Unix socket, in words (`unix`, `unix:uid=1000`).
    Unix(Arc<str>),
    /// Several addresses, in words (`2001:db8::/64`, `others`).
    Several(Box<str>),
}

impl Peer {
    /// Who has this address; without one, somebody at a Unix socket.
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

/// The refusal of a caller that is over its own rate.
pub const OVER_RATE: &str = "MG141";

/// Refusals that are only counted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CountedRefusals {
    /// How many.
    pub count: u64,
    /// How many of each code.
    pub codes: Vec<(&'static str, u64)>,
    /// When the first of them arrived.
    pub first: Timestamp,
    /// When the last of them arrived.
    pub last: Timestamp,
}

/// The same of a record that is read: both must count alike.
pub(crate) fn is_refusal(kind: Kind, is_known: bool, refusal: Option<&str>) -> bool {
    match kind {
        Kind::Refusals => true,
        Kind::Request => !is_known || refusal == Some(OVER_RATE),
        Kind::Intent | Kind::Outcome | Kind::Settlement | Kind::Event => false,
    }
}

/// One line of the log before it has its number. What does not apply is `None` and is left out of the line.
#[derive(Clone, Debug)]
pub struct Record {
    /// When.
    pub time: Timestamp,
    /// What it is about.
    pub kind: Kind,
    /// Of outcomes, settlements and the event `recovered`: the number of the write's intent. It ties them; a request's id only names
    /// the write, and may have been another's before.
    pub intent: Option<u64>,
    /// The request's id. Intents, outcomes and settlements have one.
    pub request: Option<RequestId>,
    /// The caller's name.
    pub caller: Option<Arc<str>>,
    /// The key that it showed.
    pub key: Option<KeyId>,
    /// Where it called from.
    pub peer: Option<Peer>,
    /// The catalogue row's id.
    pub operation: Option<Arc<str>>,
    /// The organization in the path.
    pub organization: Option<u64>,
    /// The method.
    pub method: Option<Method>,
    /// The canonical path, without query.
    pub path: Option<Arc<str>>,
    /// A JSON object of the query parameters that the row allows to be recorded; see [`super::object`].
    pub query: Option<Box<RawValue>>,
    /// The same of a write's body fields.
    pub fields: Option<Box<RawValue>>,
    /// The status that the caller got.
    pub status: Option<u16>,
    /// Where the answer came from.
    pub answer: Option<Answer>,
    /// The refusal's code (`MG…`).
    pub refusal: Option<&'static str>,
    /// The request whose fetch filled the entry that answered.
    pub filled_by: Option<RequestId>,
    /// Requests sent upstream on behalf of this one.
    pub attempts: Option<u32>,
    /// The last of the upstream's statuses.
    pub upstream_status: Option<u16>,
    /// How the write ended.
    pub outcome: Option<Outcome>,
    /// Microseconds of waiting for quota.
    pub quota_wait_us: Option<u64>,
    /// Microseconds from the moment the request was read whole to the answer.
    pub duration_us: Option<u64>,
    /// Bytes of the answer's body.
    pub bytes: Option<u64>,
    /// W3C traceparent.
    pub trace: Option<Box<str>>,
    /// An event's name.
    pub event: Option<&'static str>,
    /// An event, or the note of a settlement, in words.
    pub detail: Option<Box<str>>,
    /// Of intents: what makes two writes equal.
    pub fingerprint: Option<Fingerprint>,
    /// Of intents: the idempotency key that the caller gave, as a keyed hash.
    pub idempotency: Option<Fingerprint>,
    /// Of intents: by what a look at the upstream knows the write's effect again.
    pub marks: Option<FieldHashes>,
    /// Of [`Kind::Refusals`]: what was counted.
    pub counted: Option<Box<CountedRefusals>>,
}

impl Record {
    /// A record of this kind and time, nothing else known yet.
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

    /// Something about the gateway itself: a reload, an outage.
    #[must_use]
    pub fn event(time: Timestamp, event: &'static str, detail: impl Into<Box<str>>) -> Self {
        Self { event: Some(event), detail: Some(detail.into()), ..Self::new(Kind::Event, time) }
    }

    /// Is it of those refusals that whoever is not known, or too fast, can have without end?
    pub(crate) fn is_refusal(&self) -> bool {
        is_refusal(self.kind, self.caller.is_some(), self.refusal)
    }

    /// Bytes of the texts that this record holds on to and that a caller can make long.
    pub(crate) fn text_bytes(&self) -> usize {
        let raw = |value: &Option<Box<RawValue>>| value.as_ref().map_or(0, |value| value.get().len());
        let text = |value: Option<&str>| value.map_or(0, str::len);
        raw(&self.query)
            + raw(&self.fields)
            + text(self.path.as_deref())
            + text(self.detail.as_deref())
            + text(self.trace.as_deref())
    }

    /// What it weighs in the buffer.
    pub(crate) fn weight(&self) -> usize {
        size_of::<Self>() + self.text_bytes() + self.marks.as_ref().map_or(0, FieldHashes::weight)
    }
}

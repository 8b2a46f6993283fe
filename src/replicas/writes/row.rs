//! A write as all replicas know it, and its row in the engine.

use std::sync::Arc;

use bytes::Bytes;
use jiff::Timestamp;
use tokio_postgres::Row;
use uuid::Uuid;

use crate::ids::{Fingerprint, RequestId};

/// A write as all replicas know it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SharedWrite {
    /// Its id over all replicas.
    pub id: Uuid,
    /// Its request.
    pub request: RequestId,
    /// The replica that sent it, whose log has its intent; `None`: this one.
    pub sender: Option<Arc<str>>,
    /// The caller's name.
    pub caller: Arc<str>,
    /// The operation's id; empty where only the key is known.
    pub operation: Arc<str>,
    /// The organization in its path.
    pub organization: Option<u64>,
    /// Its canonical path; empty where only the key is known.
    pub path: Arc<str>,
    /// What equal writes share.
    pub fingerprint: Fingerprint,
    /// The keyed hash of its idempotency key.
    pub key: Option<Fingerprint>,
    /// Hashes by which its effect can be recognized upstream, as JSON.
    pub marks: Option<Box<str>>,
    /// When its intent was recorded.
    pub time: Timestamp,
}

/// How far a write has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SharedState {
    /// Its replica sends it.
    UnderWay,
    /// Nobody knows whether it took effect.
    InDoubt,
    /// It has ended, and its key, if it has one, is used up.
    Ended,
    /// It was not sent, or did not take effect: its key is free.
    NotSent,
}

impl SharedState {
    pub(super) const fn as_str(self) -> &'static str {
        match self {
            Self::UnderWay => "u",
            Self::InDoubt => "d",
            Self::Ended => "e",
            Self::NotSent => "n",
        }
    }

    fn of(text: &str) -> Option<Self> {
        [Self::UnderWay, Self::InDoubt, Self::Ended, Self::NotSent].into_iter().find(|state| state.as_str() == text)
    }
}

/// The answer to a write with an idempotency key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SharedAnswer {
    /// The status.
    pub status: u16,
    /// The header fields, as `name: value` lines.
    pub head: Vec<u8>,
    /// The body.
    pub body: Bytes,
}

/// How a write ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SharedEnd {
    /// What it is from now on; never under way.
    pub state: SharedState,
    /// Whether it took effect, if that is known.
    pub done: Option<bool>,
    /// Its answer, if it is kept.
    pub answer: Option<SharedAnswer>,
}

impl SharedEnd {
    /// Nothing was sent, or nothing of it is left to remember.
    pub const NOT_SENT: Self = Self { state: SharedState::NotSent, done: Some(false), answer: None };
    /// Nobody knows whether it took effect.
    pub const IN_DOUBT: Self = Self { state: SharedState::InDoubt, done: None, answer: None };
}

/// The verdict on a write in doubt.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SharedVerdict {
    /// Did it take effect?
    pub done: bool,
    /// The operator who said so; `None`: a look showed it.
    pub operator: Option<Arc<str>>,
    /// The replica where that was.
    pub replica: Arc<str>,
    /// How that is known.
    pub note: Option<Box<str>>,
    /// The upstream's answer to the look.
    pub upstream_status: Option<u16>,
}

/// What the engine knows of a write.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KnownWrite {
    /// The write.
    pub write: SharedWrite,
    /// The replica that sends it or looks after it.
    pub replica: Arc<str>,
    /// How far it has come.
    pub state: SharedState,
    /// Whether it took effect, if that is known.
    pub done: Option<bool>,
    /// Its answer, if it was kept and asked for.
    pub answer: Option<SharedAnswer>,
    /// The verdict on it, if it was in doubt and was settled.
    pub verdict: Option<SharedVerdict>,
}

impl KnownWrite {
    /// Whether it is known how it ended.
    #[must_use]
    pub const fn has_ended(&self) -> bool {
        matches!(self.state, SharedState::Ended | SharedState::NotSent)
    }
}

/// The columns that [`KnownWrite::of`] reads, answer aside.
macro_rules! known_columns {
    () => {
        "w.id, w.request, w.sender, w.caller, w.operation, w.organization, w.path, w.fingerprint, w.key, w.marks, \
         (extract(epoch from w.time) * 1000000)::bigint as time_us, w.replica, \
         w.state::text as state, w.done, w.settled_at, w.settled_by, w.note, w.upstream_status"
    };
}
pub(super) use known_columns;

fn fingerprint(bytes: &[u8]) -> Option<Fingerprint> {
    bytes.try_into().ok().map(Fingerprint::from_bytes)
}

impl KnownWrite {
    /// Reads a row of [`known_columns`]; `None` if another version wrote something else into it.
    pub(super) fn of(row: &Row) -> Option<Self> {
        let write = SharedWrite {
            id: row.try_get("id").ok()?,
            request: RequestId::parse(row.try_get::<_, &str>("request").ok()?.as_bytes())?,
            sender: Some(row.try_get::<_, &str>("sender").ok()?.into()),
            caller: row.try_get::<_, &str>("caller").ok()?.into(),
            operation: row.try_get::<_, &str>("operation").ok()?.into(),
            organization: row.try_get::<_, Option<i64>>("organization").ok()?.and_then(|id| id.try_into().ok()),
            path: row.try_get::<_, &str>("path").ok()?.into(),
            fingerprint: fingerprint(row.try_get("fingerprint").ok()?)?,
            key: row.try_get::<_, Option<&[u8]>>("key").ok()?.and_then(fingerprint),
            marks: row.try_get::<_, Option<&str>>("marks").ok()?.map(Into::into),
            time: Timestamp::from_microsecond(row.try_get("time_us").ok()?).ok()?,
        };
        let done: Option<bool> = row.try_get("done").ok()?;
        let settled_at: Option<&str> = row.try_get("settled_at").ok()?;
        let verdict = settled_at.zip(done).map(|(replica, done)| SharedVerdict {
            done,
            replica: replica.into(),
            operator: row.try_get::<_, Option<&str>>("settled_by").ok().flatten().map(Into::into),
            note: row.try_get::<_, Option<&str>>("note").ok().flatten().map(Into::into),
            upstream_status: row
                .try_get::<_, Option<i32>>("upstream_status")
                .ok()
                .flatten()
                .and_then(|s| s.try_into().ok()),
        });
        Some(Self {
            write,
            replica: row.try_get::<_, &str>("replica").ok()?.into(),
            state: SharedState::of(row.try_get("state").ok()?)?,
            done,
            answer: None,
            verdict,
        })
    }

    /// Reads a row that has the answer as well.
    pub(super) fn with_answer(row: &Row) -> Option<Self> {
        let status = row.try_get::<_, Option<i16>>("status").ok()?.and_then(|status| status.try_into().ok());
        let answer = status.map(|status| SharedAnswer {
            status,
            head: row.try_get::<_, Option<Vec<u8>>>("head").ok().flatten().unwrap_or_default(),
            body: row.try_get::<_, Option<Vec<u8>>>("body").ok().flatten().unwrap_or_default().into(),
        });
        Some(Self { answer, ..Self::of(row)? })
    }
}

/// Many writes, column by column, as `unnest` takes them.
#[derive(Debug, Default)]
pub(super) struct WriteColumns<'w> {
    pub(super) ids: Vec<Uuid>,
    pub(super) requests: Vec<&'w str>,
    pub(super) senders: Vec<Option<&'w str>>,
    pub(super) callers: Vec<&'w str>,
    pub(super) operations: Vec<&'w str>,
    pub(super) organizations: Vec<Option<i64>>,
    pub(super) paths: Vec<&'w str>,
    pub(super) fingerprints: Vec<&'w [u8]>,
    pub(super) keys: Vec<Option<&'w [u8]>>,
    pub(super) marks: Vec<Option<&'w str>>,
    /// In microseconds since 1970.
    pub(super) times: Vec<i64>,
}

impl<'w> WriteColumns<'w> {
    pub(super) fn of(writes: impl IntoIterator<Item = &'w SharedWrite>) -> Self {
        let mut columns = Self::default();
        for write in writes {
            columns.ids.push(write.id);
            columns.requests.push(write.request.as_str());
            columns.senders.push(write.sender.as_deref());
            columns.callers.push(&write.caller);
            columns.operations.push(&write.operation);
            columns.organizations.push(write.organization.and_then(|id| id.try_into().ok()));
            columns.paths.push(&write.path);
            columns.fingerprints.push(write.fingerprint.as_bytes());
            columns.keys.push(write.key.as_ref().map(|key| key.as_bytes().as_slice()));
            columns.marks.push(write.marks.as_deref());
            columns.times.push(write.time.as_microsecond());
        }
        columns
    }
}

/// How many writes ended, column by column.
#[derive(Debug, Default)]
pub(super) struct EndColumns<'e> {
    pub(super) states: Vec<&'static str>,
    pub(super) done: Vec<Option<bool>>,
    pub(super) statuses: Vec<Option<i16>>,
    pub(super) heads: Vec<Option<&'e [u8]>>,
    pub(super) bodies: Vec<Option<&'e [u8]>>,
}

impl<'e> EndColumns<'e> {
    pub(super) fn of(ends: impl IntoIterator<Item = &'e SharedEnd>) -> Self {
        let mut columns = Self::default();
        for SharedEnd { state, done, answer } in ends {
            let answer = answer.as_ref();
            columns.states.push(state.as_str());
            columns.done.push(*done);
            columns.statuses.push(answer.and_then(|answer| answer.status.try_into().ok()));
            columns.heads.push(answer.map(|answer| answer.head.as_slice()));
            columns.bodies.push(answer.map(|answer| answer.body.as_ref()));
        }
        columns
    }
}

//! What a line of the log says, as far as the log itself needs to know when it reads its own files.

use std::borrow::Cow;

use jiff::Timestamp;
use serde::Deserialize;
use serde_json::value::RawValue;

use super::marks::Marks;

/// A stored record's fields that recovery, the index and filters look at.
#[derive(Debug, Deserialize)]
pub(crate) struct Seen<'l> {
    pub(crate) seq: u64,
    pub(crate) time: Timestamp,
    #[serde(borrow)]
    pub(crate) kind: Cow<'l, str>,
    #[serde(borrow)]
    pub(crate) request: Option<Cow<'l, str>>,
    #[serde(borrow)]
    pub(crate) caller: Option<Cow<'l, str>>,
    #[serde(borrow)]
    pub(crate) operation: Option<Cow<'l, str>>,
    pub(crate) organization: Option<u64>,
    #[serde(borrow)]
    pub(crate) path: Option<Cow<'l, str>>,
    pub(crate) status: Option<u16>,
    #[serde(borrow)]
    pub(crate) answer: Option<Cow<'l, str>>,
    #[serde(borrow)]
    pub(crate) outcome: Option<Cow<'l, str>>,
    #[serde(borrow)]
    pub(crate) event: Option<Cow<'l, str>>,
    #[serde(borrow)]
    pub(crate) fingerprint: Option<Cow<'l, str>>,
    #[serde(borrow)]
    pub(crate) idempotency: Option<Cow<'l, str>>,
    pub(crate) marks: Option<Marks>,
    #[serde(borrow)]
    pub(crate) fields: Option<&'l RawValue>,
}

impl<'l> Seen<'l> {
    /// `None`: this line is no record.
    pub(crate) fn parse(line: &'l [u8]) -> Option<Self> {
        serde_json::from_slice(line).ok()
    }
}

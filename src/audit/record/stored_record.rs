//! The parts of a log line that the log itself needs when it reads its own files.

use std::borrow::Cow;
use std::fmt;
use std::ops::Deref;

use jiff::Timestamp;
use serde::de::{Error, Visitor};
use serde::{Deserialize, Deserializer};
use serde_json::value::RawValue;

use super::field_hashes::FieldHashes;
use super::{Kind, is_refusal};
use crate::ids::RequestId;

/// The fields of a stored record used by recovery, the index and filters.
#[derive(Debug, Deserialize)]
pub(crate) struct StoredRecord<'l> {
    pub(crate) seq: u64,
    pub(crate) time: Timestamp,
    #[serde(borrow)]
    pub(crate) kind: BorrowedText<'l>,
    pub(crate) intent: Option<u64>,
    #[serde(borrow)]
    pub(crate) request: Option<BorrowedText<'l>>,
    #[serde(borrow)]
    pub(crate) caller: Option<BorrowedText<'l>>,
    #[serde(borrow)]
    pub(crate) operation: Option<BorrowedText<'l>>,
    pub(crate) organization: Option<u64>,
    #[serde(borrow)]
    pub(crate) path: Option<BorrowedText<'l>>,
    pub(crate) status: Option<u16>,
    #[serde(borrow)]
    pub(crate) answer: Option<BorrowedText<'l>>,
    #[serde(borrow)]
    pub(crate) refusal: Option<BorrowedText<'l>>,
    #[serde(borrow)]
    pub(crate) outcome: Option<BorrowedText<'l>>,
    #[serde(borrow)]
    pub(crate) event: Option<BorrowedText<'l>>,
    #[serde(borrow)]
    pub(crate) fingerprint: Option<BorrowedText<'l>>,
    #[serde(borrow)]
    pub(crate) idempotency: Option<BorrowedText<'l>>,
    pub(crate) marks: Option<FieldHashes>,
    #[serde(borrow)]
    pub(crate) fields: Option<&'l RawValue>,
}

impl<'l> StoredRecord<'l> {
    /// Returns `None` if the line is not a record.
    pub(crate) fn parse(line: &'l [u8]) -> Option<Self> {
        serde_json::from_slice(line).ok()
    }

    pub(crate) fn request_id(&self) -> Option<RequestId> {
        self.request.as_ref().and_then(|id| RequestId::parse(id.as_bytes()))
    }

    /// Like [`crate::audit::record::Record::is_refusal`].
    pub(crate) fn is_refusal(&self) -> bool {
        let kind = Kind::parse(&self.kind);
        kind.is_some_and(|kind| is_refusal(kind, self.caller.is_some(), self.refusal.as_deref()))
    }
}

/// Text borrowed from a line unless it contains escapes. (Inside an `Option`, serde always copies a `Cow`.)
#[derive(Debug)]
pub(crate) struct BorrowedText<'l>(Cow<'l, str>);

impl Deref for BorrowedText<'_> {
    type Target = str;

    fn deref(&self) -> &str {
        &self.0
    }
}

impl<'de: 'l, 'l> Deserialize<'de> for BorrowedText<'l> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_str(Borrowing).map(BorrowedText)
    }
}

struct Borrowing;

impl<'de> Visitor<'de> for Borrowing {
    type Value = Cow<'de, str>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a string")
    }

    fn visit_borrowed_str<E: Error>(self, text: &'de str) -> Result<Self::Value, E> {
        Ok(Cow::Borrowed(text))
    }

    fn visit_str<E: Error>(self, text: &str) -> Result<Self::Value, E> {
        Ok(Cow::Owned(text.to_owned()))
    }
}

//! What the log may contain of a path, a query and a body. Callers write these freely, so a value that its field cannot have, a long text
//! and whatever may be an e-mail address is there as a keyed hash: the same value can be recognized, but not read.

use std::borrow::Cow;
use std::sync::Arc;

use serde::{Serialize, Serializer};
use serde_json::value::RawValue;
use serde_json::{Map, Value};

use super::admit::target::Target;
use crate::audit::{self, AuditLog, Text};
use crate::catalogue::{Operation, RecordedKind};
use crate::json_members::JsonMembers;

/// What the hash of a hidden value is preceded by.
const HIDDEN: &str = "hidden:";
/// Maximum length of a recorded text, in bytes.
const TEXT_BYTES_MAX: usize = 256;
/// Maximum length of a number that is given as a text, in bytes.
const NUMBER_BYTES_MAX: usize = 20;
/// Maximum number of values in a recorded list.
const LIST_MAX: usize = 64;
/// Other spellings of `@`: percent-encoded twice, and its Unicode compatibility forms.
const AT_SIGNS: [&str; 3] = ["%40", "\u{ff20}", "\u{fe6b}"];

/// What is recorded of one query parameter.
#[derive(Serialize)]
#[serde(untagged)]
enum QueryValue {
    One(String),
    /// A parameter that has a single value may not be given twice; what is recorded shows it.
    Several(Vec<String>),
}

/// The query parameters that the operation allows to be logged, as an object.
pub(crate) fn query(log: &AuditLog, row: &Operation, target: &Target<'_>) -> Option<Box<RawValue>> {
    if target.query.is_empty() {
        return None;
    }
    let mut members = Vec::new();
    for field in &row.record {
        let of_one = kind_of_one(field.kind);
        let mut values = target.values(&field.name);
        let Some(first) = values.next() else { continue };
        let mut values: Vec<String> = values.collect();
        let value = if values.is_empty() {
            QueryValue::One(recorded_text(log, of_one, first))
        } else if values.len() < LIST_MAX {
            values.insert(0, first);
            QueryValue::Several(values.into_iter().map(|value| recorded_text(log, of_one, value)).collect())
        } else {
            values.insert(0, first);
            QueryValue::One(hidden(log, &Value::from(values).to_string()))
        };
        members.push((&*field.name, value));
    }
    (!members.is_empty()).then(|| audit::object(&ObjectMembers(members)))
}

/// Members that are written in this order.
struct ObjectMembers<'n>(Vec<(&'n str, QueryValue)>);

impl Serialize for ObjectMembers<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_map(self.0.iter().map(|(name, value)| (name, value)))
    }
}

/// The body's fields that the operation allows to be logged, as an object.
pub(crate) fn fields(log: &AuditLog, row: &Operation, body: &[u8]) -> Option<Box<RawValue>> {
    if row.record.is_empty() || body.is_empty() {
        return None;
    }
    // Only the recorded fields are read further: nothing else in the body can keep them out of the log.
    let body: JsonMembers<'_> = serde_json::from_slice(body).ok()?;
    let mut members = Map::new();
    for (name, raw) in &body.0 {
        if let Some(kind) = row.recorded_kind(name) {
            // serde_json reads no value that is nested too deeply for it.
            let value = serde_json::from_str(raw.get()).ok().map(|value| recorded(log, kind, value));
            members.insert(name.to_string(), value.unwrap_or_else(|| hidden(log, raw.get()).into()));
        }
    }
    (!members.is_empty()).then(|| audit::object(&members))
}

/// The path as it is recorded.
pub(crate) fn path(log: &AuditLog, path: &Arc<str>) -> Text<'static> {
    match may_be_address(path) {
        false => path.clone().into(), // looked at once: nearly every path
        true => with_hidden_segments(log, path, may_be_address).into_owned().into(),
    }
}

/// The path of an unidentified caller or an unknown operation as it is recorded. No row tells what its segments are, so those that look
/// like an invitation's hash are hidden, too.
pub(crate) fn unknown_path<'p>(log: &AuditLog, path: &'p str) -> Cow<'p, str> {
    with_hidden_segments(log, path, |segment| may_be_address(segment) || uuid::Uuid::try_parse(segment).is_ok())
}

/// Whether this part of a recorded path stands for one that is hidden.
pub(crate) fn is_hidden(segment: &str) -> bool {
    segment.starts_with(HIDDEN)
}

fn with_hidden_segments<'p>(log: &AuditLog, path: &'p str, is_private: impl Fn(&str) -> bool) -> Cow<'p, str> {
    if !path.split('/').any(&is_private) {
        return Cow::Borrowed(path);
    }
    let shown = path.split('/').map(|segment| match is_private(segment) {
        true => Cow::Owned(hidden(log, segment)),
        false => Cow::Borrowed(segment),
    });
    Cow::Owned(shown.collect::<Vec<_>>().join("/"))
}

/// The value, or its hash if a field of this kind cannot have it.
fn recorded(log: &AuditLog, kind: RecordedKind, value: Value) -> Value {
    match (kind, value) {
        (RecordedKind::Set | RecordedKind::Numbers, Value::Array(values)) => list(log, kind, values),
        (kind, Value::String(text)) => recorded_text(log, kind_of_one(kind), text).into(),
        (kind, value) if fits(kind_of_one(kind), &value) => value,
        (_, value) => hidden(log, &value.to_string()).into(),
    }
}

/// The same for a text.
fn recorded_text(log: &AuditLog, kind: RecordedKind, text: String) -> String {
    if text_fits(kind, &text) { text } else { hidden(log, &text) }
}

fn list(log: &AuditLog, kind: RecordedKind, values: Vec<Value>) -> Value {
    if values.len() > LIST_MAX {
        return hidden(log, &Value::Array(values).to_string()).into();
    }
    values.into_iter().map(|value| recorded(log, kind_of_one(kind), value)).collect()
}

/// The kind of each value of a list.
const fn kind_of_one(kind: RecordedKind) -> RecordedKind {
    match kind {
        RecordedKind::Set => RecordedKind::Scalar,
        RecordedKind::Numbers => RecordedKind::Number,
        RecordedKind::Scalar | RecordedKind::Number | RecordedKind::Flag => kind,
    }
}

/// Whether the log may contain this value, which is neither a text nor in a list, of a field of this kind.
const fn fits(kind: RecordedKind, value: &Value) -> bool {
    match (kind, value) {
        (_, Value::Null) => true,
        (_, Value::Array(_) | Value::Object(_)) => false,
        (RecordedKind::Flag, Value::Number(_)) | (RecordedKind::Number | RecordedKind::Numbers, Value::Bool(_)) => {
            false
        }
        (_, Value::Bool(_) | Value::Number(_) | Value::String(_)) => true,
    }
}

fn text_fits(kind: RecordedKind, text: &str) -> bool {
    match kind {
        RecordedKind::Number | RecordedKind::Numbers => {
            text.len() <= NUMBER_BYTES_MAX && text.bytes().all(|byte| byte.is_ascii_digit())
        }
        RecordedKind::Flag => matches!(text, "true" | "false"),
        RecordedKind::Scalar | RecordedKind::Set => text.len() <= TEXT_BYTES_MAX && !may_be_address(text),
    }
}

fn may_be_address(text: &str) -> bool {
    let may_spell_it = !text.is_ascii() || text.contains('%');
    text.contains('@') || (may_spell_it && AT_SIGNS.iter().any(|sign| text.contains(sign)))
}

fn hidden(log: &AuditLog, text: &str) -> String {
    format!("{HIDDEN}{}", log.fingerprint(&[b"hidden", text.as_bytes()]))
}

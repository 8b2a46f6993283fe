//! What the log may contain of a path, a query and a body. Callers write these freely, so a value that its field cannot have, a long text
//! and whatever may be an e-mail address is there as a keyed hash: the same value can be recognized, but not read.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::sync::Arc;

use serde_json::Value;
use serde_json::value::RawValue;

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

/// The query parameters that the operation allows to be logged, as an object.
pub(crate) fn query(log: &AuditLog, row: &Operation, target: &Target<'_>) -> Option<Box<RawValue>> {
    if target.query.is_empty() {
        return None;
    }
    let mut members = BTreeMap::new();
    for field in &row.record {
        let mut values: Vec<Value> = target.values(&field.name).map(Value::from).collect();
        let value = match values.len() {
            0 => continue,
            1 => recorded(log, field.kind, values.remove(0)),
            // A parameter that has a single value may not be given twice; what is recorded shows it.
            _ => list(log, field.kind, values),
        };
        members.insert(&*field.name, value);
    }
    (!members.is_empty()).then(|| audit::object(&members))
}

/// The body's fields that the operation allows to be logged, as an object.
pub(crate) fn fields(log: &AuditLog, row: &Operation, body: &[u8]) -> Option<Box<RawValue>> {
    if row.record.is_empty() || body.is_empty() {
        return None;
    }
    // Only the recorded fields are read further: nothing else in the body can keep them out of the log.
    let body: JsonMembers<'_> = serde_json::from_slice(body).ok()?;
    let mut members = BTreeMap::new();
    for (name, raw) in &body.0 {
        if let Some(kind) = row.recorded_kind(name) {
            // serde_json reads no value that is nested too deeply for it.
            let value = serde_json::from_str(raw.get()).ok().map(|value| recorded(log, kind, value));
            members.insert(&**name, value.unwrap_or_else(|| hidden(log, raw.get()).into()));
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
    let one = match (kind, value) {
        (RecordedKind::Set | RecordedKind::Numbers, Value::Array(values)) => return list(log, kind, values),
        (RecordedKind::Set, value) => (RecordedKind::Scalar, value),
        (RecordedKind::Numbers, value) => (RecordedKind::Number, value),
        (RecordedKind::Scalar | RecordedKind::Number | RecordedKind::Flag, value) => (kind, value),
    };
    match one {
        (kind, value) if fits(kind, &value) => value,
        (_, Value::String(text)) => hidden(log, &text).into(),
        (_, value) => hidden(log, &value.to_string()).into(),
    }
}

fn list(log: &AuditLog, kind: RecordedKind, values: Vec<Value>) -> Value {
    let of_one = match kind {
        RecordedKind::Set => RecordedKind::Scalar,
        RecordedKind::Numbers => RecordedKind::Number,
        RecordedKind::Scalar | RecordedKind::Number | RecordedKind::Flag => kind,
    };
    if values.len() > LIST_MAX {
        return hidden(log, &Value::Array(values).to_string()).into();
    }
    values.into_iter().map(|value| recorded(log, of_one, value)).collect()
}

/// Whether the log may contain this value of one that `kind` allows; lists are looked at one by one.
fn fits(kind: RecordedKind, value: &Value) -> bool {
    match (kind, value) {
        (_, Value::Null) => true,
        (_, Value::Array(_) | Value::Object(_)) => false,
        (RecordedKind::Number | RecordedKind::Numbers, Value::String(text)) => {
            text.len() <= NUMBER_BYTES_MAX && text.bytes().all(|byte| byte.is_ascii_digit())
        }
        (RecordedKind::Flag, Value::String(text)) => matches!(&**text, "true" | "false"),
        (RecordedKind::Scalar | RecordedKind::Set, Value::String(text)) => {
            text.len() <= TEXT_BYTES_MAX && !may_be_address(text)
        }
        (RecordedKind::Flag, Value::Number(_)) | (RecordedKind::Number | RecordedKind::Numbers, Value::Bool(_)) => {
            false
        }
        (_, Value::Bool(_) | Value::Number(_)) => true,
    }
}

fn may_be_address(text: &str) -> bool {
    let may_spell_it = !text.is_ascii() || text.contains('%');
    text.contains('@') || (may_spell_it && AT_SIGNS.iter().any(|sign| text.contains(sign)))
}

fn hidden(log: &AuditLog, text: &str) -> String {
    format!("{HIDDEN}{}", log.fingerprint(&[b"hidden", text.as_bytes()]))
}

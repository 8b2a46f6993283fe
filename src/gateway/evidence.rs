//! What a look at the upstream proves of a write in doubt, and what of its body is kept to know its effect again.

use http::StatusCode;
use serde_json::{Number, Value};

use super::tags::{self, Parameters};
use crate::audit::{Fingerprint, Log, Marks};
use crate::catalogue::{Look, Operation, Proves};

/// Beyond this a fraction cannot be told from a whole number.
const WHOLE_MAX: f64 = 9_007_199_254_740_992.0;

/// What an answer says about the write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Evidence {
    /// It took effect, for this reason.
    Done(&'static str),
    /// It did not, for this reason.
    NotDone(&'static str),
    /// It may have or not.
    Nothing,
}

/// What is asked of an answer.
pub(super) struct Question<'a> {
    pub(super) look: &'a Look,
    /// The parameters of the write's path.
    pub(super) parameters: &'a Parameters,
    pub(super) marks: Option<&'a Marks>,
    /// Did the look begin after the write could still take effect?
    pub(super) too_late: bool,
}

/// By what a later look knows this write's effect again. `None`: no look will, as nothing is asked for by fields, or there are
/// too many of them, or some whose equality is no plain matter.
pub(super) fn marks(log: &Log, row: &Operation, body: &[u8]) -> Option<Marks> {
    row.look.as_ref().filter(|look| look.proves == Proves::Fields)?;
    let Ok(Value::Object(members)) = serde_json::from_slice(body) else { return None };
    let marked = members.iter().map(|(name, value)| Some((name.as_str().into(), mark(log, name, value)?)));
    Marks::new(marked.collect::<Option<Vec<_>>>()?)
}

fn mark(log: &Log, name: &str, value: &Value) -> Option<Fingerprint> {
    Some(log.fingerprint(&[b"mark", name.as_bytes(), canonical(value)?.as_bytes()]))
}

/// The one text of a plain value: `1`, `1.0` and `1e0` are the same number.
fn canonical(value: &Value) -> Option<String> {
    match value {
        Value::Null | Value::Bool(_) | Value::String(_) => Some(value.to_string()),
        Value::Number(number) => Some(canonical_number(number)),
        Value::Array(_) | Value::Object(_) => None,
    }
}

fn canonical_number(number: &Number) -> String {
    match number.as_f64() {
        Some(float) if number.is_f64() && float.fract() == 0.0 && float.abs() < WHOLE_MAX => format!("{float:.0}"),
        Some(_) | None => number.to_string(),
    }
}

impl Question<'_> {
    /// What this answer proves. `body`: only if it is JSON, so that nothing but Make itself is believed.
    pub(super) fn judge(&self, log: &Log, status: StatusCode, body: Option<&Value>) -> Evidence {
        let Some(body) = body else { return Evidence::Nothing };
        if self.look.proves == Proves::Gone && status == StatusCode::NOT_FOUND {
            return Evidence::Done("so it is gone");
        }
        let (Some(found), true) = (body.pointer(&self.look.at), status.is_success()) else { return Evidence::Nothing };
        let objects = match found {
            Value::Array(all) => all.as_slice(),
            one => std::slice::from_ref(one),
        };
        let Some(wanted) = self.wanted() else { return Evidence::Nothing };
        let mut meant = objects.iter().filter(|object| wanted.iter().all(|(name, value)| has(object, name, value)));
        match self.look.proves {
            Proves::Fields if meant.any(|object| self.has_marks(log, object)) => {
                Evidence::Done("and all that the write asked for is there")
            }
            Proves::Gone if self.too_late && meant.next().is_some() => {
                Evidence::NotDone("after the doubt window, so it was not done")
            }
            // Whether one is not there is known only where each says which one it is.
            Proves::Absent if found.is_array() && meant.next().is_none() && all_named(objects, &wanted) => {
                Evidence::Done("and it is not there any more")
            }
            Proves::Fields | Proves::Gone | Proves::Absent => Evidence::Nothing,
        }
    }

    fn wanted(&self) -> Option<Vec<(&str, String)>> {
        let member = self.look.member.iter();
        member.map(|(name, value)| Some((&**name, tags::rendered(value, self.parameters)?))).collect()
    }

    fn has_marks(&self, log: &Log, object: &Value) -> bool {
        let equal = |(name, marked): (&str, Fingerprint)| {
            object.get(name).and_then(|value| mark(log, name, value)).is_some_and(|found| found == marked)
        };
        self.marks.is_some_and(|marks| marks.iter().all(equal))
    }
}

fn has(object: &Value, name: &str, value: &str) -> bool {
    object.get(name).and_then(text).is_some_and(|found| found == value)
}

fn all_named(objects: &[Value], wanted: &[(&str, String)]) -> bool {
    objects.iter().all(|object| wanted.iter().all(|(name, _)| object.get(name).and_then(text).is_some()))
}

/// A plain value as a path spells it.
fn text(value: &Value) -> Option<String> {
    match value {
        Value::String(text) => Some(text.clone()),
        Value::Bool(_) => Some(value.to_string()),
        Value::Number(number) => Some(canonical_number(number)),
        Value::Null | Value::Array(_) | Value::Object(_) => None,
    }
}

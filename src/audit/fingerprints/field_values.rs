//! Keyed hashes of a body's fields, the only form in which the log knows their values.

use serde_json::value::RawValue;
use serde_json::{Number, Value};

use crate::audit::log::AuditLog;
use crate::audit::record::field_hashes::FieldHashes;
use crate::ids::Fingerprint;
use crate::json_members::JsonMembers;

/// From here on a float cannot represent fractions.
const WHOLE_MAX: f64 = 9_007_199_254_740_992.0;

impl AuditLog {
    /// The hashes of all fields of this body. Returns `None` if it is not an object, has too many fields or one of them
    /// twice, or has a list or an object as a field.
    #[must_use]
    pub fn field_hashes(&self, body: &[u8]) -> Option<FieldHashes> {
        let body: JsonMembers<'_> = serde_json::from_slice(body).ok()?;
        let value = |raw: &RawValue| serde_json::from_str::<Value>(raw.get()).ok();
        let members: Vec<_> = body.0.iter().map(|(name, raw)| Some((name, value(raw)?))).collect::<Option<_>>()?;
        let plain = members.iter().all(|(_, value)| !value.is_array() && !value.is_object());
        // Lazy, so that only the first few fields of a body with too many are hashed.
        let hashed =
            members.iter().filter_map(|(name, value)| Some((name.as_ref().into(), self.field_hash(name, value)?)));
        plain.then(|| FieldHashes::new(hashed)).flatten()
    }

    /// The hash of a field. Returns `None` if it is a list or an object.
    #[must_use]
    pub fn field_hash(&self, name: &str, value: &Value) -> Option<Fingerprint> {
        Some(self.fingerprint(&[b"mark", name.as_bytes(), canonical(value)?.as_bytes()]))
    }
}

/// The canonical text of a plain value: `1`, `1.0` and `1e0` are the same number.
fn canonical(value: &Value) -> Option<String> {
    match value {
        Value::Null | Value::Bool(_) | Value::String(_) => Some(value.to_string()),
        Value::Number(number) => Some(canonical_number(number)),
        Value::Array(_) | Value::Object(_) => None,
    }
}

/// The canonical text of a number.
#[must_use]
pub fn canonical_number(number: &Number) -> String {
    match number.as_f64() {
        Some(float) if number.is_f64() && float.fract() == 0.0 && float.abs() < WHOLE_MAX => format!("{float:.0}"),
        Some(_) | None => number.to_string(),
    }
}

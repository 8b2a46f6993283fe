//! JSON objects whose values keep their exact text, and whether all readers understand an object alike.

use std::borrow::Cow;
use std::collections::HashSet;
use std::fmt;

use serde::de::{Error as _, MapAccess, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer};
use serde_json::Value;
use serde_json::value::RawValue;

/// The members of a JSON object in order, each value as its original text.
pub(crate) struct JsonMembers<'a>(pub(crate) Vec<(Cow<'a, str>, &'a RawValue)>);

/// Maximum number of members among which repeated names are looked for. Make's objects have about thirty.
const COMPARED_MAX: usize = 128;

impl JsonMembers<'_> {
    pub(crate) fn get(&self, name: &str) -> Option<&RawValue> {
        self.0.iter().find(|(n, _)| n == name).map(|(_, value)| *value)
    }

    /// The value of a member whose name occurs once, in whatever case: some readers ignore the case, and take the last one.
    pub(crate) fn get_only(&self, name: &str) -> Option<&RawValue> {
        let mut named = self.0.iter().filter(|(n, _)| n.eq_ignore_ascii_case(name));
        let (spelled, value) = named.next()?;
        (named.next().is_none() && spelled == name).then_some(*value)
    }

    /// Could a reader take another member for one of these names than the gateway does?
    pub(crate) fn may_repeat_names(&self) -> bool {
        let names = self.0.iter().enumerate();
        let is_seen = |at: usize, name: &str| self.0.iter().take(at).any(|(earlier, _)| earlier == name);
        self.0.len() > COMPARED_MAX || names.into_iter().any(|(at, (name, _))| is_seen(at, name))
    }

    /// Writes the object with the values that `spell` returns; `None` leaves a member out.
    pub(crate) fn render_with<'s>(&'s self, spell: impl Fn(&str, &'s RawValue) -> Option<Cow<'s, str>>) -> String {
        let mut out = String::from("{");
        for (name, value) in &self.0 {
            let Some(value) = spell(name, value) else { continue };
            if out.len() > 1 {
                out.push(',');
            }
            out.push_str(&Value::from(&**name).to_string());
            out.push(':');
            out.push_str(&value);
        }
        out.push('}');
        out
    }

    /// Writes the object with only the members to keep.
    pub(crate) fn render_only(&self, keep: impl Fn(&str) -> bool) -> String {
        self.render_with(|name, value| keep(name).then(|| value.get().into()))
    }
}

impl<'de: 'a, 'a> Deserialize<'de> for JsonMembers<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Members;
        impl<'de> Visitor<'de> for Members {
            type Value = Vec<(Cow<'de, str>, &'de RawValue)>;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a JSON object")
            }
            fn visit_map<M: MapAccess<'de>>(self, mut map: M) -> Result<Self::Value, M::Error> {
                let mut members = Vec::new();
                while let Some(name) = map.next_key::<MemberName<'de>>()? {
                    members.push((name.0, map.next_value()?));
                }
                Ok(members)
            }
        }
        deserializer.deserialize_map(Members).map(JsonMembers)
    }
}

/// A member's name, borrowed if it contains no escapes.
#[derive(Deserialize)]
#[serde(transparent)]
struct MemberName<'a>(#[serde(borrow)] Cow<'a, str>);

/// Does every reader understand this object alike? Not if it has, at any depth, a member twice, text with half of a surrogate pair, or a
/// number that is too large for many readers.
pub(crate) fn is_unambiguous(members: &JsonMembers<'_>) -> bool {
    let mut names = HashSet::new();
    members
        .0
        .iter()
        .all(|(name, value)| names.insert(&**name) && serde_json::from_str::<UnambiguousValue>(value.get()).is_ok())
}

/// A value that can be read in one way only; any other is an error.
struct UnambiguousValue;

impl<'de> Deserialize<'de> for UnambiguousValue {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Any;
        impl<'de> Visitor<'de> for Any {
            type Value = UnambiguousValue;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a JSON value")
            }
            fn visit_unit<E>(self) -> Result<Self::Value, E> {
                Ok(UnambiguousValue)
            }
            fn visit_bool<E>(self, _: bool) -> Result<Self::Value, E> {
                Ok(UnambiguousValue)
            }
            fn visit_i64<E>(self, _: i64) -> Result<Self::Value, E> {
                Ok(UnambiguousValue)
            }
            fn visit_u64<E>(self, _: u64) -> Result<Self::Value, E> {
                Ok(UnambiguousValue)
            }
            fn visit_f64<E>(self, _: f64) -> Result<Self::Value, E> {
                Ok(UnambiguousValue)
            }
            fn visit_str<E>(self, _: &str) -> Result<Self::Value, E> {
                Ok(UnambiguousValue)
            }
            fn visit_seq<S: SeqAccess<'de>>(self, mut values: S) -> Result<Self::Value, S::Error> {
                while values.next_element::<UnambiguousValue>()?.is_some() {}
                Ok(UnambiguousValue)
            }
            fn visit_map<M: MapAccess<'de>>(self, mut map: M) -> Result<Self::Value, M::Error> {
                let mut names = HashSet::new();
                while let Some((MemberName(name), _)) = map.next_entry::<MemberName<'de>, UnambiguousValue>()? {
                    if !names.insert(name) {
                        return Err(M::Error::custom("a member is there twice"));
                    }
                }
                Ok(UnambiguousValue)
            }
        }
        deserializer.deserialize_any(Any)
    }
}

//! A record's texts, and how its fields are written and read.

use std::borrow::Cow;
use std::fmt;
use std::ops::Deref;
use std::sync::Arc;

use http::Method;
use serde::de::value::StrDeserializer;
use serde::de::{DeserializeOwned, Error, Visitor};
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use serde_json::value::RawValue;

/// Text of a record: borrowed from its line or from the program, or shared with whoever else has it.
#[derive(Clone, Debug)]
pub enum Text<'l> {
    /// Part of something else.
    Borrowed(&'l str),
    /// Also what a text with escapes is copied to when it is read.
    Shared(Arc<str>),
}

impl Text<'_> {
    /// The text if it is shared.
    #[must_use]
    pub const fn as_shared(&self) -> Option<&Arc<str>> {
        match self {
            Self::Borrowed(_) => None,
            Self::Shared(text) => Some(text),
        }
    }

    /// The text on its own.
    #[must_use]
    pub fn shared(&self) -> Arc<str> {
        match self {
            Self::Borrowed(text) => (*text).into(),
            Self::Shared(text) => text.clone(),
        }
    }
}

impl Deref for Text<'_> {
    type Target = str;

    fn deref(&self) -> &str {
        match self {
            Self::Borrowed(text) => text,
            Self::Shared(text) => text,
        }
    }
}

impl From<Arc<str>> for Text<'_> {
    fn from(text: Arc<str>) -> Self {
        Self::Shared(text)
    }
}

impl<'l> From<&'l str> for Text<'l> {
    fn from(text: &'l str) -> Self {
        Self::Borrowed(text)
    }
}

impl From<String> for Text<'_> {
    fn from(text: String) -> Self {
        Self::Shared(text.into())
    }
}

impl Serialize for Text<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self)
    }
}

impl<'de: 'l, 'l> Deserialize<'de> for Text<'l> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_str(TextVisitor)
    }
}

struct TextVisitor;

impl<'de> Visitor<'de> for TextVisitor {
    type Value = Text<'de>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a string")
    }

    fn visit_borrowed_str<E: Error>(self, text: &'de str) -> Result<Self::Value, E> {
        Ok(Text::Borrowed(text))
    }

    fn visit_str<E: Error>(self, text: &str) -> Result<Self::Value, E> {
        Ok(Text::Shared(text.into()))
    }
}

/// Reads a word or an id; one that cannot be parsed counts as absent.
pub(crate) fn lenient<'de, D, T>(deserializer: D) -> Result<Option<T>, D::Error>
where
    D: Deserializer<'de>,
    T: DeserializeOwned,
{
    let text = Option::<Text<'_>>::deserialize(deserializer)?;
    Ok(text.and_then(|text| T::deserialize(StrDeserializer::<D::Error>::new(&text)).ok()))
}

/// Reads JSON without copying it, which serde does not do inside an `Option`.
pub(crate) fn raw<'de: 'l, 'l, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Cow<'l, RawValue>>, D::Error> {
    Ok(Option::<&RawValue>::deserialize(deserializer)?.map(Cow::Borrowed))
}

/// Writes a method.
pub(crate) fn method<S: Serializer>(method: &Option<Method>, serializer: S) -> Result<S::Ok, S::Error> {
    method.as_ref().map(Method::as_str).serialize(serializer)
}

/// Writes pairs as an object.
pub(crate) fn map<S: Serializer>(pairs: &[(Text<'_>, u64)], serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_map(pairs.iter().map(|(name, number)| (name, number)))
}

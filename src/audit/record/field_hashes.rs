//! Keyed hashes of the fields that a write asked for, used later to recognize the write's effect upstream. The values
//! themselves may be personal or secret, so they are never logged.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::ids::Fingerprint;

/// Maximum number of fields; a write with more cannot be recognized.
const MEMBERS_MAX: usize = 16;
/// Maximum length of a field name, in bytes.
const NAME_BYTES_MAX: usize = 64;

/// The fields that a write asked for, each with the keyed hash of its value ([`AuditLog::fingerprint`](crate::audit::AuditLog::fingerprint)).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FieldHashes(Arc<BTreeMap<Box<str>, Fingerprint>>);

impl FieldHashes {
    /// Returns `None` if there are no fields, too many, two of one name, or one whose name is too long.
    #[must_use]
    pub fn new(members: impl IntoIterator<Item = (Box<str>, Fingerprint)>) -> Option<Self> {
        let mut marks = BTreeMap::new();
        for (name, mark) in members {
            if marks.len() == MEMBERS_MAX || name.len() > NAME_BYTES_MAX {
                return None;
            }
            if marks.insert(name, mark).is_some() {
                return None;
            }
        }
        (!marks.is_empty()).then(|| Self(Arc::new(marks)))
    }

    /// The field names and their hashes.
    pub fn iter(&self) -> impl Iterator<Item = (&str, Fingerprint)> {
        self.0.iter().map(|(name, mark)| (&**name, *mark))
    }

    /// Bytes of memory it occupies.
    pub(crate) fn weight(&self) -> usize {
        self.0.keys().map(|name| name.len() + 2 * size_of::<Box<str>>() + size_of::<Fingerprint>()).sum()
    }
}

impl Serialize for FieldHashes {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_map(self.iter())
    }
}

impl<'de> Deserialize<'de> for FieldHashes {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let members = BTreeMap::<Box<str>, Fingerprint>::deserialize(deserializer)?;
        Self::new(members).ok_or_else(|| D::Error::custom("these are not field hashes"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::hash;

    #[test]
    fn field_hashes_read_back_what_they_wrote_and_are_bounded() {
        let mark = Fingerprint::of(&hash::hmac_key(b"key"), &[b"value"]);
        let marks = FieldHashes::new([("name".into(), mark), ("a \"b\"".into(), mark)]).unwrap();
        let text = serde_json::to_vec(&marks).unwrap();
        assert_eq!(serde_json::from_slice::<FieldHashes>(&text).unwrap(), marks);
        assert_eq!(FieldHashes::new([]), None);
        assert_eq!(FieldHashes::new((0..17).map(|n| (n.to_string().into(), mark))), None);
        assert_eq!(FieldHashes::new([("x".repeat(65).into(), mark)]), None);
    }
}

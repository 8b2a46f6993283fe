//! Defines which read shows whether a write in doubt took effect, and what its answer proves.

use std::sync::Arc;

use http::Method;

use super::rows::ID;
use super::{BodyKind, Catalogue, PathTemplate, TagTemplate};
use crate::toml_reader::{InvalidValue, Table, TableItem, ValueKind, one_of, unknown_word};
use crate::vocabulary::word_enum;

/// Where to look after a write in doubt, and how to interpret the answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EffectCheck {
    /// Id of the read operation.
    pub read: Arc<str>,
    /// JSON pointer (RFC 6901) into the answer, to an object or an array of objects.
    pub at: Arc<str>,
    /// What the answer proves.
    pub proves: Proves,
    /// Selects the object: members and their values, from the write's path. Empty: any object.
    pub member: Vec<(Arc<str>, TagTemplate)>,
    /// The body's member that says which object the write changes, if the path does not.
    pub named_by: Option<Arc<str>>,
}

word_enum! {
    /// How an answer proves the effect of a write.
    Proves {
        /// An object that has every member the write's body set proves that what the write asked for is done. A difference
        /// proves nothing, because someone else may have written since. This is no proof of a create: an object with these
        /// members may have been there before.
        Fields = "fields",
        /// A 404 proves that the write is done. If the object is still there after the doubt window, the write is not done,
        /// because ids are never reused.
        Gone = "gone",
        /// An array without the object proves that the write is done. Its presence proves nothing, because someone else may
        /// have created it since.
        Absent = "absent",
    }
}

impl EffectCheck {
    /// Checks that this look is possible for `write`.
    ///
    /// # Errors
    /// What is wrong and what to write instead, if the catalogue has no suitable read.
    pub fn check(&self, write: &PathTemplate, catalogue: &Catalogue) -> Result<(), InvalidValue> {
        let Some(read) = catalogue.row(&self.read) else {
            let reads = catalogue.rows().iter().filter(|row| !row.is_write() && within(&row.path, write));
            let ids: Vec<&str> = reads.map(|row| &*row.id).collect();
            return Err(unknown_word(&self.read, "GET operation", &ids));
        };
        if read.is_write() {
            let message = format!("{} is a {}, but a look must be a read", self.read, read.method);
            return Err(InvalidValue::new(message, "name a GET"));
        }
        if within(&read.path, write) {
            return Ok(());
        }
        let message = format!("{} has path parameters that the write lacks: {}", self.read, read.path);
        Err(InvalidValue::new(message, "name a GET that uses only path parameters of the write"))
    }
}

/// Whether `outer` has all parameters of `inner`.
fn within(inner: &PathTemplate, outer: &PathTemplate) -> bool {
    inner.parameters().all(|name| outer.has(name))
}

/// Reads the table `look`.
pub(super) fn read(table: &Table<'_>) -> Option<EffectCheck> {
    let (read, at, proves) =
        (table.required("read", ID), table.required("at", POINTER), table.required("proves", PROVES));
    let member = table.table("member", |member| member.items().iter().filter_map(named).collect());
    let named_by = table.optional("named_by", MEMBER);
    Some(EffectCheck { read: read?, at: at?, proves: proves?, member, named_by })
}

fn named(item: &TableItem<'_>) -> Option<(Arc<str>, TagTemplate)> {
    Some((Arc::from(item.key()), item.scalar(VALUE)?))
}

/// Reports what does not fit the rest of the row.
pub(super) fn check_row(table: &Table<'_>, look: &EffectCheck, method: &Method, path: &PathTemplate, body: BodyKind) {
    let wrong = |key: &str, message: &str, help: &str| table.wrong_at(&["look", key], message, help);
    if *method == Method::GET {
        wrong("read", "a GET is never in doubt", "leave look out");
    }
    if look.proves == Proves::Fields && body == BodyKind::None {
        wrong("proves", "this write has no body whose fields a look could compare", "write \"gone\" or \"absent\"");
    } else if look.proves == Proves::Fields && *method == Method::POST {
        let message = "an object with these fields may have been there before this write";
        wrong("proves", message, "leave look out: no look proves a create");
    }
    if look.proves == Proves::Absent && look.member.is_empty() {
        let help = "add for example member = { name = \"{variableName}\" }";
        wrong("proves", "absent needs a member that identifies the object", help);
    }
    for (name, value) in &look.member {
        for wrong in path.lacking(value) {
            table.invalid(table.span_at(&["look", "member", name]), wrong);
        }
    }
}

const POINTER: ValueKind<Arc<str>> = ValueKind::text("a JSON pointer", "\"/organization\"", |text| {
    let is_pointer = text.is_empty() || text.starts_with('/');
    let wrong = || InvalidValue::quoting(text, "is not a JSON pointer", format!("write \"/{text}\""));
    is_pointer.then(|| Arc::from(text)).ok_or_else(wrong)
});

const MEMBER: ValueKind<Arc<str>> = ValueKind::text("the name of a member of the body", "\"id\"", |text| {
    let wrong = || InvalidValue::new("is empty", "write for example \"id\"");
    if text.is_empty() { Err(wrong()) } else { Ok(Arc::from(text)) }
});

const PROVES: ValueKind<Proves> = ValueKind::text("what the read proves", "\"fields\"", |text| {
    one_of(text, "kind of proof", Proves::ALL, Proves::as_str)
});

const VALUE: ValueKind<TagTemplate> = ValueKind::text("a path parameter or a string", "\"{variableName}\"", |text| {
    let help = "write a path parameter, such as \"{variableName}\"";
    let wrong = || InvalidValue::quoting(text, "is not a valid value", help);
    TagTemplate::parse(text).ok().filter(|template| !template.needs_answer()).ok_or_else(wrong)
});

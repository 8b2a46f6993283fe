//! Which query parameters and body fields the log may contain, and what values they can have.

use std::sync::Arc;

use super::{Parameter, ParameterKind};
use crate::toml_reader::{InvalidValue, Table, TableItem, ValueKind, one_of};
use crate::vocabulary::word_enum;

/// Fields that no row may record, because they are secrets or addresses.
const NEVER_RECORDED: [&str; 4] = ["hash", "couponCode", "email", "customer"];

word_enum! {
    /// The values of a recorded field that the log may contain. Any other value is hidden.
    RecordedKind {
        /// A number, `true`, `false` or a short text.
        Scalar = "scalar",
        /// A number, or a text that is a plain decimal.
        Number = "number",
        /// `true` or `false`, or such a text.
        Flag = "flag",
        /// One scalar or a list of them.
        Set = "set",
        /// One number or a list of them.
        Numbers = "numbers",
    }
}

impl From<ParameterKind> for RecordedKind {
    fn from(kind: ParameterKind) -> Self {
        match kind {
            ParameterKind::Set => Self::Set,
            ParameterKind::Scalar => Self::Scalar,
            ParameterKind::Number => Self::Number,
            ParameterKind::Flag | ParameterKind::Refresh => Self::Flag,
        }
    }
}

/// A query parameter or body field that the log may contain.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RecordedField {
    /// Its name.
    pub name: Arc<str>,
    /// The values that it can have.
    pub kind: RecordedKind,
}

/// Reads `record`: a list of names, or a table of names and kinds. In a list, a parameter of the query has its kind there, and any other
/// name is a scalar.
pub(super) fn read(row: &Table<'_>, query: &[Parameter]) -> Vec<RecordedField> {
    if row.is_table("record") {
        return row.table("record", |record| {
            let field = |item: &TableItem<'_>| {
                let (kind, name) = (item.scalar(KIND)?, Arc::from(item.key()));
                if let Err(wrong) = check_name(&name) {
                    record.invalid(item.key_place(), wrong);
                }
                Some(RecordedField { name, kind })
            };
            record.items().iter().filter_map(field).collect()
        });
    }
    let kind_of = |name: &str| query.iter().find(|parameter| *parameter.name == *name).map(|known| known.kind.into());
    let names = row.list("record", NAME).unwrap_or_default().into_iter().map(|placed| placed.value);
    names.map(|name| RecordedField { kind: kind_of(&name).unwrap_or(RecordedKind::Scalar), name }).collect()
}

fn check_name(name: &str) -> Result<(), InvalidValue> {
    if NEVER_RECORDED.contains(&name) {
        let help = "leave it out: it may hold a secret or personal data";
        return Err(InvalidValue::new(format!("{name} is never recorded"), help));
    }
    Ok(())
}

const NAME: ValueKind<Arc<str>> =
    ValueKind::text("the name of a parameter or field", "\"name\"", |name| check_name(name).map(|()| Arc::from(name)));

const KIND: ValueKind<RecordedKind> = ValueKind::text("a kind of recorded field", "\"scalar\"", |text| {
    one_of(text, "kind of recorded field", RecordedKind::ALL, RecordedKind::as_str)
});

//! Reads a TOML document with positions: every value knows where it is in the text, and mistakes are collected without
//! stopping.
//!
//! A table is read by a function that asks for its keys by name; any key that is never asked for is reported as
//! unknown. So the reading code is the single list of a table's keys, their defaults and types.

mod diagnostic;
mod diagnostics;
mod masking;
mod table;
mod value_kind;

pub use diagnostic::{Diagnostic, Severity};
pub use diagnostics::{Setting, SettingOrigin};
pub use masking::{looks_like_a_secret, mask_secrets};
pub use table::{Table, TableItem, WithSpan};
pub use value_kind::{FLAG, InvalidValue, TEXT, TomlForm, ValueKind, number};

use std::ops::Range;
use std::sync::Arc;

use toml::Spanned;
use toml::de::DeTable;

use diagnostics::Diagnostics;

/// A position: a range of bytes of the text.
pub type TextSpan = Range<usize>;

/// The results of a walk.
#[derive(Clone, Debug)]
pub struct WalkResult {
    /// Every mistake and warning, in text order.
    pub mistakes: Vec<Diagnostic>,
    /// Every setting that was read, in the order of reading.
    pub settings: Vec<Setting>,
    /// The text with possible secrets blotted out and positions unchanged: safe to show.
    pub text: String,
}

impl WalkResult {
    /// Whether there is any error, not only warnings.
    #[must_use]
    pub fn failed(&self) -> bool {
        self.mistakes.iter().any(|mistake| mistake.severity == Severity::Error)
    }
}

/// Parses `text` as TOML and passes the root table to `read`. Always returns both the value (with defaults in place of
/// mistakes) and what was found.
pub fn walk<T>(text: &str, read: impl FnOnce(&Table<'_>) -> T) -> (T, WalkResult) {
    let notes = Diagnostics::new(text);
    let (document, syntax) = DeTable::parse_recoverable(text);
    match without_unparsable_lines(text, &syntax) {
        None => (read_document(&notes, &document, &syntax, read), notes.finish()),
        Some(open) => {
            note_syntax(&notes, &syntax);
            let (document, syntax) = DeTable::parse_recoverable(&open);
            (read_document(&notes, &document, &syntax, read), notes.finish())
        }
    }
}

fn read_document<'d, T>(
    notes: &'d Diagnostics<'d>,
    document: &'d Spanned<DeTable<'d>>,
    syntax: &[toml::de::Error],
    read: impl FnOnce(&Table<'d>) -> T,
) -> T {
    note_syntax(notes, syntax);
    Table::new(notes, Arc::from(""), 0..0, Some(document.get_ref())).read(read)
}

fn note_syntax(notes: &Diagnostics<'_>, errors: &[toml::de::Error]) {
    // An unclosed list or inline table swallows the lines below it, with an error for each: report only the first.
    let mut open = false;
    for error in errors {
        let of_open = OPEN.iter().any(|message| error.message().starts_with(message));
        if !(open && of_open) {
            notes.syntax(error.span().unwrap_or_default(), error.message());
        }
        open |= of_open;
    }
}

/// The parser's messages about what follows an unclosed list or inline table.
const OPEN: [&str; 2] = ["missing comma between", "unexpected `=` in array"];

/// The parser's message about a line after which it cannot parse the rest.
const UNPARSABLE_LINE: &str = "key with no value";

/// Blanks the lines that stop the parser, if there are any, so that mistakes after them are found too.
fn without_unparsable_lines(text: &str, syntax: &[toml::de::Error]) -> Option<String> {
    let unparsable_lines = syntax.iter().filter(|error| error.message().starts_with(UNPARSABLE_LINE));
    let offsets: Vec<usize> = unparsable_lines.filter_map(|error| Some(error.span()?.start)).collect();
    let mut bytes = text.as_bytes().to_vec();
    for offset in &offsets {
        let start = text.get(..*offset)?.rfind('\n').map_or(0, |newline| newline + 1);
        let end = text.get(start..)?.find('\n').map_or(text.len(), |length| start + length);
        bytes.get_mut(start..end)?.fill(b' ');
    }
    (!offsets.is_empty()).then(|| String::from_utf8(bytes).ok())?
}

/// Quotes a text from the file for a message: escaped, truncated if long, and without what looks like a secret.
#[must_use]
pub fn quoted(text: &str) -> String {
    let text = &*mask_secrets(text);
    const SHOWN_CHARS_MAX: usize = 60;
    match text.char_indices().nth(SHOWN_CHARS_MAX) {
        Some((end, _)) => format!("{:?}", format!("{}…", text.get(..end).unwrap_or_default())),
        None => format!("{text:?}"),
    }
}

/// The entry of `known` that `given` most likely means, if any is close.
pub fn nearest<'k>(given: &str, known: impl IntoIterator<Item = &'k str>) -> Option<&'k str> {
    let lower = given.to_ascii_lowercase();
    known
        .into_iter()
        .map(|candidate| (strsim::damerau_levenshtein(&lower, &candidate.to_ascii_lowercase()), candidate))
        .filter(|(distance, candidate)| *distance <= 1 + candidate.chars().count() / 4)
        .min()
        .map(|(_, candidate)| candidate)
}

/// The mistake of a word that is none of the `known` words. `what` names their kind, as in "not a method".
#[must_use]
pub fn unknown_word(given: &str, what: &str, known: &[&str]) -> InvalidValue {
    let help = match nearest(given, known.iter().copied()) {
        Some(near) => format!("did you mean \"{near}\"?"),
        None => format!("write one of {}", known.join(", ")),
    };
    let article = if what.starts_with(['a', 'e', 'i', 'o', 'u']) { "an" } else { "a" };
    InvalidValue::quoting(given, &format!("is not {article} {what}"), help)
}

/// The one of `all` whose word is `given`.
///
/// # Errors
/// As [`unknown_word`].
pub fn one_of<T: Copy>(given: &str, what: &str, all: &[T], word: fn(T) -> &'static str) -> Result<T, InvalidValue> {
    let found = all.iter().copied().find(|one| word(*one) == given);
    found.ok_or_else(|| unknown_word(given, what, &all.iter().copied().map(word).collect::<Vec<_>>()))
}

//! A TOML document, walked with places: every value knows where it stands, every mistake is noted and none ends the walk.
//!
//! A table is read by a function that asks for its keys by name; what nobody asked for is an unknown key. So the
//! reading code is the one list of a table's keys, their defaults and what they take.

mod diagnostic;
mod diagnostics;
mod table;
mod value_kind;

pub use diagnostic::{Diagnostic, Severity};
pub use diagnostics::{Setting, SettingOrigin};
pub use table::{Table, TableItem, WithSpan};
pub use value_kind::{FLAG, InvalidValue, TEXT, TomlForm, ValueKind, number};

use std::ops::Range;

use toml::Spanned;
use toml::de::DeTable;

use diagnostics::Diagnostics;

/// Where something stands: a range of bytes of the text.
pub type TextSpan = Range<usize>;

/// What a walk found.
#[derive(Clone, Debug)]
pub struct WalkResult {
    /// Every mistake and warning, in the order of the text.
    pub mistakes: Vec<Diagnostic>,
    /// Every setting that was asked for, in the order of asking.
    pub settings: Vec<Setting>,
    /// The text with what may be a secret blotted out, length and lines kept: fit to be shown.
    pub text: String,
}

impl WalkResult {
    /// Is there any mistake that is more than a warning?
    #[must_use]
    pub fn failed(&self) -> bool {
        self.mistakes.iter().any(|mistake| mistake.severity == Severity::Error)
    }
}

/// Reads `text` as TOML with `read`, which is given the root table. It always comes back with both: what was read (where
/// there was a mistake, with a default in its stead) and what was found.
pub fn walk<T>(text: &str, read: impl FnOnce(&Table<'_>) -> T) -> (T, WalkResult) {
    let notes = Diagnostics::new(text);
    let (document, syntax) = DeTable::parse_recoverable(text);
    match without_dead_ends(text, &syntax) {
        None => (read_noted(&notes, &document, &syntax, read), notes.finish()),
        Some(open) => {
            note_syntax(&notes, &syntax);
            let (document, syntax) = DeTable::parse_recoverable(&open);
            (read_noted(&notes, &document, &syntax, read), notes.finish())
        }
    }
}

fn read_noted<'d, T>(
    notes: &'d Diagnostics<'d>,
    document: &'d Spanned<DeTable<'d>>,
    syntax: &[toml::de::Error],
    read: impl FnOnce(&Table<'d>) -> T,
) -> T {
    note_syntax(notes, syntax);
    Table::root(notes, document.get_ref()).read(read)
}

fn note_syntax(notes: &Diagnostics<'_>, errors: &[toml::de::Error]) {
    // An open list or inline table takes in the lines below it, each with an error of its own: only the first is one.
    let mut open = false;
    for error in errors {
        let of_open = OPEN.iter().any(|message| error.message().starts_with(message));
        if !(open && of_open) {
            notes.syntax(error.span().unwrap_or_default(), error.message());
        }
        open |= of_open;
    }
}

/// How the parser complains about what follows an open list or inline table.
const OPEN: [&str; 2] = ["missing comma between", "unexpected `=` in array"];

/// How it complains about a line after which it makes nothing of the rest.
const DEAD_END: &str = "key with no value";

/// The text with the lines blanked that end the parser's reading, if there are any: the rest has mistakes to tell of, too.
fn without_dead_ends(text: &str, syntax: &[toml::de::Error]) -> Option<String> {
    let dead_ends = syntax.iter().filter(|error| error.message().starts_with(DEAD_END));
    let offsets: Vec<usize> = dead_ends.filter_map(|error| Some(error.span()?.start)).collect();
    let mut bytes = text.as_bytes().to_vec();
    for offset in &offsets {
        let start = text.get(..*offset)?.rfind('\n').map_or(0, |newline| newline + 1);
        let end = text.get(start..)?.find('\n').map_or(text.len(), |length| start + length);
        bytes.get_mut(start..end)?.fill(b' ');
    }
    (!offsets.is_empty()).then(|| String::from_utf8(bytes).ok())?
}

/// A text of the file as messages quote it: escaped, and cut when long.
#[must_use]
pub fn quoted(text: &str) -> String {
    const SHOWN_CHARS_MAX: usize = 60;
    match text.char_indices().nth(SHOWN_CHARS_MAX) {
        Some((end, _)) => format!("{:?}", format!("{}…", text.get(..end).unwrap_or_default())),
        None => format!("{text:?}"),
    }
}

/// The one of `known` that `given` most likely stands for, if any is near.
pub fn nearest<'k>(given: &str, known: impl IntoIterator<Item = &'k str>) -> Option<&'k str> {
    let lower = given.to_ascii_lowercase();
    known
        .into_iter()
        .map(|candidate| (strsim::damerau_levenshtein(&lower, &candidate.to_ascii_lowercase()), candidate))
        .filter(|(distance, candidate)| *distance <= 1 + candidate.chars().count() / 4)
        .min()
        .map(|(_, candidate)| candidate)
}

/// The word's mistake where only `known` words may stand: `what` is what they are, as in "not a method".
#[must_use]
pub fn no_such(given: &str, what: &str, known: &[&str]) -> InvalidValue {
    let help = match nearest(given, known.iter().copied()) {
        Some(near) => format!("did you mean \"{near}\"?"),
        None => format!("write one of {}", known.join(", ")),
    };
    let article = if what.starts_with(['a', 'e', 'i', 'o', 'u']) { "an" } else { "a" };
    InvalidValue::new(format!("{} is not {article} {what}", quoted(given)), help)
}

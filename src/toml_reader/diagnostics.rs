//! Collects what a walk finds: mistakes, settings, unknown keys, and what must not be shown.

use std::borrow::Cow;
use std::cell::RefCell;
use std::collections::{BTreeSet, HashMap, HashSet};
use std::sync::Arc;

use super::masking::{hidden_words, mask, mask_secrets};
use super::{Diagnostic, InvalidValue, Severity, TextSpan, WalkResult, nearest, quoted};

/// A setting that was read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Setting {
    /// The table (`cache`, `caller.finance`; empty: the root).
    pub path: Arc<str>,
    /// The key in that table.
    pub key: Cow<'static, str>,
    /// Where its value comes from.
    pub written: SettingOrigin,
}

/// Where a setting's value comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SettingOrigin {
    /// The setting is left out; this is its default.
    Default(Cow<'static, str>),
    /// The setting is at this position.
    At(TextSpan),
}

/// A key that was never asked for.
struct UnknownKey {
    place: TextSpan,
    path: Arc<str>,
    key: String,
    known: Vec<&'static str>,
}

pub(super) struct Diagnostics<'t> {
    text: &'t str,
    /// The offset of each line.
    lines: Vec<usize>,
    /// Lines with a syntax error; further mistakes on them may only be its consequences.
    broken: RefCell<BTreeSet<usize>>,
    mistakes: RefCell<Vec<Diagnostic>>,
    settings: RefCell<Vec<Setting>>,
    unknown: RefCell<Vec<UnknownKey>>,
    hidden: RefCell<Vec<TextSpan>>,
}

impl<'t> Diagnostics<'t> {
    pub(super) fn new(text: &'t str) -> Self {
        let lines = std::iter::once(0).chain(text.match_indices('\n').map(|(newline, _)| newline + 1)).collect();
        Self {
            text,
            lines,
            broken: RefCell::default(),
            mistakes: RefCell::default(),
            settings: RefCell::default(),
            unknown: RefCell::default(),
            hidden: RefCell::default(),
        }
    }

    pub(super) fn syntax(&self, place: TextSpan, message: &str) {
        let (line, _) = self.line_column(place.start);
        // One error per line: the parser's later ones are mostly consequences of the first.
        if self.broken.borrow_mut().insert(line) {
            self.hide_broken_secret(line);
            let (message, help) = rephrase(message);
            self.push(Severity::Error, place, message, help);
        }
    }

    /// Hides what follows `=` on a broken line if the key sounds like a secret's.
    fn hide_broken_secret(&self, line: usize) {
        let start = line.checked_sub(1).and_then(|index| self.lines.get(index)).copied().unwrap_or_default();
        let end = self.lines.get(line).copied().unwrap_or(self.text.len());
        let text = self.text.get(start..end).unwrap_or_default();
        if let Some((key, _)) = text.split_once('=')
            && looks_secret(key)
        {
            self.hide(start + key.len() + 1..end);
        }
    }

    /// Whether the position touches a line with a syntax error.
    pub(super) fn is_broken(&self, place: &TextSpan) -> bool {
        let broken = self.broken.borrow();
        let (first, last) = (self.line_of(place.start), self.line_of(place.end));
        broken.range(first..=last.max(first)).next().is_some()
    }

    pub(super) fn note(&self, severity: Severity, place: TextSpan, message: String, help: Option<String>) {
        if !self.is_broken(&place) {
            self.push(severity, place, message, help);
        }
    }

    pub(super) fn invalid(&self, place: TextSpan, InvalidValue { message, help, secret }: InvalidValue) {
        if secret {
            self.hide(place.clone());
        }
        self.note(Severity::Error, place, message, help);
    }

    /// Reports that something is missing, unless a syntax error may have swallowed it.
    pub(super) fn missing(&self, severity: Severity, place: TextSpan, message: String, help: String) {
        if self.broken.borrow().is_empty() {
            self.push(severity, place, message, Some(help));
        }
    }

    fn push(&self, severity: Severity, place: TextSpan, message: String, help: Option<String>) {
        let (line, column) = self.line_column(place.start);
        // Messages quote values and names, and any of them may be a secret that was put in the wrong place.
        let (message, help) = (mask_secrets(&message), help.as_deref().map(mask_secrets));
        self.mistakes.borrow_mut().push(Diagnostic { severity, line, column, span: place, message, help });
    }

    pub(super) fn setting(&self, setting: Setting) {
        self.settings.borrow_mut().push(setting);
    }

    pub(super) fn unknown(
        &self,
        place: TextSpan,
        path: &Arc<str>,
        key: &str,
        value: TextSpan,
        known: Vec<&'static str>,
    ) {
        self.hide_if_secret(key, &value);
        self.unknown.borrow_mut().push(UnknownKey { place, path: path.clone(), key: key.to_owned(), known });
    }

    /// Hides the value at this position if the key sounds like a secret's.
    pub(super) fn hide_if_secret(&self, key: &str, value: &TextSpan) {
        if looks_secret(key) {
            self.hide(value.clone());
        }
    }

    pub(super) fn hide(&self, place: TextSpan) {
        self.hidden.borrow_mut().push(place);
    }

    fn line_of(&self, offset: usize) -> usize {
        self.lines.partition_point(|start| *start <= offset)
    }

    /// The line and column (in characters) of an offset, both starting at 1.
    fn line_column(&self, offset: usize) -> (usize, usize) {
        let line = self.line_of(offset);
        let start = self.lines.get(line.saturating_sub(1)).copied().unwrap_or(0);
        let column = self.text.get(start..offset).map_or(0, |before| before.chars().count());
        (line, column + 1)
    }

    pub(super) fn finish(self) -> WalkResult {
        self.report_unknown();
        let mut mistakes = self.mistakes.into_inner();
        mistakes.sort_by_key(|mistake| (mistake.span.start, mistake.severity));
        let hidden = self.hidden.into_inner();
        // Where a text has no end, the parser takes what is in it for keys and values, which messages quote.
        for word in hidden_words(self.text, &hidden) {
            let blot = "*".repeat(word.len());
            for mistake in &mut mistakes {
                mistake.message = mistake.message.replace(word, &blot);
                mistake.help = mistake.help.as_deref().map(|help| help.replace(word, &blot));
            }
        }
        let text = mask(self.text, &hidden);
        WalkResult { mistakes, settings: self.settings.into_inner(), text }
    }

    /// Runs last, when every table's keys are known, to say where a misplaced key belongs.
    fn report_unknown(&self) {
        let unknown = self.unknown.take();
        if unknown.is_empty() {
            return;
        }
        let settings = self.settings.borrow();
        let in_sections = || settings.iter().filter(|setting| !setting.path.contains('.'));
        let sections: HashSet<&str> = in_sections().map(|setting| &*setting.path).collect();
        let mut homes: HashMap<&str, &str> = HashMap::new();
        for setting in in_sections() {
            homes.entry(&setting.key).or_insert(&setting.path);
        }
        for UnknownKey { place, path, key, known } in unknown {
            let source_of = |source: &'static str| ["_file", "_env"].iter().find_map(|end| source.strip_suffix(end));
            let is_twin = |source: &&'static str| source_of(source) == Some(&*key);
            let has_twin = known.iter().any(&is_twin);
            let is_source = |source: &&'static str| {
                if has_twin { is_twin(source) } else { looks_secret(source) && source_of(source).is_some() }
            };
            let sources = known.iter().copied().filter(is_source).collect::<Vec<_>>().join(" or ");
            let help = match (nearest(&key, known.iter().copied()), homes.get(&*key)) {
                _ if has_twin => format!("this file must not contain secrets; use {sources}"),
                _ if sections.contains(&*key) => format!("write [{key}] on its own line, with its keys below"),
                (Some(near), _) => format!("did you mean \"{near}\"?"),
                (None, _) if looks_secret(&key) && !sources.is_empty() => {
                    format!("this file must not contain secrets; use {sources}")
                }
                (None, Some(&"")) => format!("{key} belongs at the top, before the first [section]"),
                (None, Some(home)) => format!("{key} belongs under [{home}]"),
                (None, None) => format!("valid keys: {}", known.join(", ")),
            };
            let where_ = if path.is_empty() { "at the top".to_owned() } else { format!("in {path}") };
            self.note(Severity::Error, place, format!("unknown key {} {where_}", quoted(&key)), Some(help));
        }
    }
}

/// Whether an unknown key of this name may hold a secret.
fn looks_secret(key: &str) -> bool {
    let key = key.to_ascii_lowercase();
    ["key", "token", "secret", "password", "credential"].iter().any(|word| key.contains(word))
}

/// Replaces the parser's messages where ours give better advice.
fn rephrase(message: &str) -> (String, Option<String>) {
    let ours = [
        ("duplicate key", "this key appears twice", "keep one; for several callers, write several [[caller]] tables"),
        ("invalid basic string, expected `\"`", "this string has no end", "close it with \""),
        ("invalid literal string, expected `'`", "this string has no end", "close it with '"),
        (
            "string values must be quoted",
            "the value is missing, or is a string without quotes",
            "put strings in \"quotes\"",
        ),
        ("key with no value", "this key has no value", "write key = value"),
        ("missing comma between", "a comma is missing, or a list or { } before this is not closed", "add , or ] or }"),
    ];
    match ours.iter().find(|(theirs, ..)| message.starts_with(theirs)) {
        Some((_, message, help)) => ((*message).to_owned(), Some((*help).to_owned())),
        None => (message.to_owned(), None),
    }
}

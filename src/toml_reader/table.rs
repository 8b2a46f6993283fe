//! Tables and their items.

use std::borrow::Cow;
use std::cell::{Cell, RefCell};
use std::sync::Arc;

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::diagnostics::Diagnostics;
use super::{InvalidValue, Setting, SettingOrigin, Severity, TextSpan, TomlForm, ValueKind};

/// A value and its position.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WithSpan<T> {
    /// The value.
    pub value: T,
    /// Its position.
    pub place: TextSpan,
}

/// A table of the document, or one that is left out.
pub struct Table<'d> {
    notes: &'d Diagnostics<'d>,
    path: Arc<str>,
    place: TextSpan,
    entries: Option<&'d DeTable<'d>>,
    /// Whether it is an element of a list, which is shown as one setting.
    is_element: bool,
    known: RefCell<Vec<&'static str>>,
    has_any_keys: Cell<bool>,
}

impl<'d> Table<'d> {
    pub(super) fn new(
        notes: &'d Diagnostics<'d>,
        path: Arc<str>,
        place: TextSpan,
        entries: Option<&'d DeTable<'d>>,
    ) -> Self {
        let (known, has_any_keys) = (RefCell::default(), Cell::new(false));
        Self { notes, path, place, entries, is_element: false, known, has_any_keys }
    }

    /// Reads the table, then reports every key that was not asked for.
    pub(super) fn read<T>(self, read: impl FnOnce(&Self) -> T) -> T {
        let value = read(&self);
        let known = self.known.take();
        let entries = self.entries.into_iter().flat_map(DeTable::iter).filter(|_| !self.has_any_keys.get());
        for (key, value) in entries.filter(|(key, _)| !known.contains(&key.get_ref().as_ref())) {
            self.notes.unknown(key.span(), &self.path, key.get_ref(), value.span(), known.clone());
        }
        value
    }

    /// The position of the table's heading, or of its parent's if the table is left out.
    #[must_use]
    pub fn place(&self) -> TextSpan {
        self.place.clone()
    }

    /// The position of the value at this path of keys, or of the nearest existing table around it.
    #[must_use]
    pub fn span_at(&self, path: &[&str]) -> TextSpan {
        self.descend(path).1
    }

    /// Whether there is a value at this path of keys.
    #[must_use]
    pub fn has_path(&self, path: &[&str]) -> bool {
        self.descend(path).0 == path.len()
    }

    /// How many of these nested keys exist, and the position of the last of them.
    fn descend(&self, path: &[&str]) -> (usize, TextSpan) {
        let (mut steps, mut place, mut entries) = (0, self.place(), self.entries);
        for key in path {
            let Some(value) = entries.and_then(|entries| entries.get(*key)) else { break };
            (steps, place, entries) = (steps + 1, value.span(), value.get_ref().as_table());
        }
        (steps, place)
    }

    /// Whether `key` exists.
    #[must_use]
    pub fn has(&self, key: &str) -> bool {
        self.entries.is_some_and(|entries| entries.contains_key(key))
    }

    /// Whether `key` is a table.
    #[must_use]
    pub fn is_table(&self, key: &str) -> bool {
        self.entries.and_then(|entries| entries.get(key)).is_some_and(|value| value.get_ref().is_table())
    }

    /// Whether `key` is an empty list.
    #[must_use]
    pub fn is_empty_list(&self, key: &str) -> bool {
        let value = self.entries.and_then(|entries| entries.get(key));
        value.and_then(|value| value.get_ref().as_array()).is_some_and(|elements| elements.is_empty())
    }

    /// Reports a mistake.
    pub fn wrong(&self, place: TextSpan, message: impl Into<String>, help: impl Into<String>) {
        self.invalid(place, InvalidValue::new(message, help));
    }

    /// Reports a mistake in the value at this path of keys.
    pub fn wrong_at(&self, path: &[&str], message: impl Into<String>, help: impl Into<String>) {
        self.wrong(self.span_at(path), message, help);
    }

    /// Reports an invalid value.
    pub fn invalid(&self, place: TextSpan, wrong: InvalidValue) {
        self.notes.invalid(place, wrong);
    }

    /// Reports a warning.
    pub fn warn(&self, place: TextSpan, message: impl Into<String>, help: impl Into<String>) {
        self.notes.note(Severity::Warning, place, message.into(), Some(help.into()));
    }

    /// Reports a warning about the value at this path of keys.
    pub fn warn_at(&self, path: &[&str], message: impl Into<String>, help: impl Into<String>) {
        self.warn(self.span_at(path), message, help);
    }

    /// Reports that something is missing.
    pub fn missing(&self, message: impl Into<String>, help: impl Into<String>) {
        self.notes.missing(Severity::Error, self.place(), message.into(), help.into());
    }

    /// Warns that something is missing.
    pub fn warn_missing(&self, message: impl Into<String>, help: impl Into<String>) {
        self.notes.missing(Severity::Warning, self.place(), message.into(), help.into());
    }

    /// Hides this position from everything that is shown.
    pub fn hide(&self, place: TextSpan) {
        self.notes.hide(place);
    }

    /// Records the value of a setting that is left out and derived from others.
    pub fn record_derived(&self, key: &'static str, value: String) {
        self.left_out(key, Cow::Owned(value));
    }

    fn left_out(&self, key: &'static str, value: Cow<'static, str>) {
        let written = SettingOrigin::Default(value);
        self.notes.setting(Setting { path: self.path.clone(), key: Cow::Borrowed(key), written });
    }

    fn item(&self, key: &'static str) -> Option<TableItem<'d>> {
        self.known.borrow_mut().push(key);
        let (name, value) = self.entries?.get_key_value(key)?;
        Some(self.named(Cow::Borrowed(key), name.span(), value))
    }

    fn named(&self, key: Cow<'static, str>, key_place: TextSpan, value: &'d Spanned<DeValue<'d>>) -> TableItem<'d> {
        TableItem { notes: self.notes, path: self.path.clone(), is_element: self.is_element, key, key_place, value }
    }

    /// All items of a table with arbitrary keys.
    #[must_use]
    pub fn items(&self) -> Vec<TableItem<'d>> {
        self.has_any_keys.set(true);
        let entries = self.entries.into_iter().flat_map(DeTable::iter);
        entries.map(|(name, value)| self.named(name.get_ref().to_string().into(), name.span(), value)).collect()
    }

    /// The value of `key`. If it is left out (or wrong, which is reported): the default, written as in the file.
    pub fn value<T: Default>(&self, key: &'static str, default: &'static str, kind: ValueKind<T>) -> T {
        let given = self.item(key);
        if given.is_none() {
            self.left_out(key, Cow::Borrowed(default));
        }
        given
            .and_then(|item| item.scalar_like(kind, Some(default)))
            .or_else(|| (kind.parse)(default).ok())
            .unwrap_or_default()
    }

    /// The value of `key`, if it exists and is valid.
    pub fn optional<T>(&self, key: &'static str, kind: ValueKind<T>) -> Option<T> {
        self.item(key)?.scalar(kind)
    }

    /// As [`Table::optional`], where another example than the kind's helps more.
    pub fn optional_like<T>(&self, key: &'static str, example: &str, kind: ValueKind<T>) -> Option<T> {
        self.item(key)?.scalar_like(kind, Some(example))
    }

    /// The value of `key`, which is required.
    pub fn required<T>(&self, key: &'static str, kind: ValueKind<T>) -> Option<T> {
        let Some(item) = self.item(key) else {
            self.missing(format!("{key} is missing{}", self.inside()), format!("add {key} = {}", kind.example));
            return None;
        };
        item.scalar(kind)
    }

    /// As [`Table::required`], where another example than the kind's helps more.
    pub fn required_like<T>(&self, key: &'static str, example: &str, kind: ValueKind<T>) -> Option<T> {
        let Some(item) = self.item(key) else {
            self.missing(
                format!("{key} is missing{}", self.inside()),
                format!("add {key} = {}", kind.written(example)),
            );
            return None;
        };
        item.scalar_like(kind, Some(example))
    }

    fn inside(&self) -> String {
        if self.path.is_empty() { String::new() } else { format!(" in {}", self.path) }
    }

    /// The array `key`, without invalid elements.
    pub fn list<T>(&self, key: &'static str, kind: ValueKind<T>) -> Option<Vec<WithSpan<T>>> {
        self.item(key)?.list(kind)
    }

    /// The array `key`, whose elements are values of `kind` or tables for `read`, without invalid elements.
    pub fn list_or_tables<T>(
        &self,
        key: &'static str,
        kind: ValueKind<T>,
        mut read: impl FnMut(&Table<'d>) -> Option<T>,
    ) -> Option<Vec<WithSpan<T>>> {
        let item = self.item(key)?;
        item.set();
        let mut read_element = |element: &'d Spanned<DeValue<'d>>| {
            let value = match element.get_ref().as_table() {
                Some(entries) => {
                    let table = Table::new(self.notes, self.sub_path(key), element.span(), Some(entries));
                    Table { is_element: true, ..table }.read(&mut read)
                }
                None => item.parse(element, kind, false, None),
            };
            value.map(|value| WithSpan { value, place: element.span() })
        };
        Some(item.elements(kind)?.iter().filter_map(&mut read_element).collect())
    }

    /// The value or array of values `key`; if left out, the single default.
    pub fn one_or_more<T>(&self, key: &'static str, default: &'static str, kind: ValueKind<T>) -> Vec<WithSpan<T>> {
        let Some(item) = self.item(key) else {
            self.left_out(key, Cow::Borrowed(default));
            return (kind.parse)(default).into_iter().map(|value| WithSpan { value, place: self.place() }).collect();
        };
        if item.value.get_ref().is_array() {
            if self.is_empty_list(key) {
                let help = format!("write {key} = {}, or leave it out", kind.written(default));
                self.wrong(item.place(), format!("{key} is empty"), help);
            }
            return item.list_like(kind, Some(default)).unwrap_or_default();
        }
        item.scalar_like(kind, Some(default)).into_iter().map(|value| WithSpan { value, place: item.place() }).collect()
    }

    /// Reads the table `key` with `read`; if left out, as an empty table.
    pub fn table<T>(&self, key: &'static str, read: impl FnOnce(&Table<'d>) -> T) -> T {
        let item = self.item(key);
        let entries = item.as_ref().and_then(TableItem::entries);
        let place = item.map_or_else(|| self.place(), |item| item.place());
        Table::new(self.notes, self.sub_path(key), place, entries).read(read)
    }

    /// Reads the table `key` with `read`, if it exists.
    pub fn optional_table<T>(&self, key: &'static str, read: impl FnOnce(&Table<'d>) -> T) -> Option<T> {
        self.has(key).then(|| self.table(key, read))
    }

    /// Reads each table `[[key]]` with `read`. Its path ends in the value of `name` if there is one.
    pub fn tables<T>(&self, key: &'static str, name: &str, mut read: impl FnMut(&Table<'d>) -> T) -> Vec<T> {
        let Some(item) = self.item(key) else { return Vec::new() };
        let DeValue::Array(elements) = item.value.get_ref() else {
            self.not_tables(key, item.place());
            return Vec::new();
        };
        let mut read_element = |(index, element): (usize, &'d Spanned<DeValue<'d>>)| {
            let DeValue::Table(entries) = element.get_ref() else {
                self.not_tables(key, element.span());
                return None;
            };
            let named = entries.get(name).and_then(|value| value.get_ref().as_str());
            let last = named.map_or_else(|| (index + 1).to_string(), str::to_owned);
            let path = self.sub_path(&format!("{key}.{last}"));
            Some(Table::new(self.notes, path, element.span(), Some(entries)).read(&mut read))
        };
        elements.iter().enumerate().filter_map(&mut read_element).collect()
    }

    fn not_tables(&self, key: &str, place: TextSpan) {
        self.notes.hide_if_secret(key, &place);
        self.wrong(place, format!("{key} must be a list of tables"), format!("write [[{}]]", self.sub_path(key)));
    }

    fn sub_path(&self, key: &str) -> Arc<str> {
        if self.path.is_empty() { Arc::from(key) } else { Arc::from(format!("{}.{key}", self.path)) }
    }
}

/// One key and its value.
pub struct TableItem<'d> {
    notes: &'d Diagnostics<'d>,
    path: Arc<str>,
    is_element: bool,
    key: Cow<'static, str>,
    key_place: TextSpan,
    value: &'d Spanned<DeValue<'d>>,
}

impl<'d> TableItem<'d> {
    /// The key.
    #[must_use]
    pub fn key(&self) -> &str {
        &self.key
    }

    /// The key's position.
    #[must_use]
    pub fn key_place(&self) -> TextSpan {
        self.key_place.clone()
    }

    /// The value's position.
    #[must_use]
    pub fn place(&self) -> TextSpan {
        self.value.span()
    }

    /// Whether the value is a table.
    #[must_use]
    pub fn is_table(&self) -> bool {
        self.value.get_ref().is_table()
    }

    /// The value, if it is valid.
    #[must_use]
    pub fn scalar<T>(&self, kind: ValueKind<T>) -> Option<T> {
        self.scalar_like(kind, None)
    }

    /// As [`TableItem::scalar`]; what to write instead is this `example`, such as the key's default.
    fn scalar_like<T>(&self, kind: ValueKind<T>, example: Option<&str>) -> Option<T> {
        self.set();
        self.parse(self.value, kind, true, example)
    }

    /// The array, without invalid elements.
    #[must_use]
    pub fn list<T>(&self, kind: ValueKind<T>) -> Option<Vec<WithSpan<T>>> {
        self.list_like(kind, None)
    }

    fn list_like<T>(&self, kind: ValueKind<T>, example: Option<&str>) -> Option<Vec<WithSpan<T>>> {
        self.set();
        let elements = self.elements(kind)?;
        let placed = |element: &'d Spanned<DeValue<'d>>| {
            self.parse(element, kind, false, example).map(|value| WithSpan { value, place: element.span() })
        };
        Some(elements.iter().filter_map(placed).collect())
    }

    fn elements<T>(&self, kind: ValueKind<T>) -> Option<&'d [Spanned<DeValue<'d>>]> {
        let DeValue::Array(elements) = self.value.get_ref() else {
            let message = format!("{} must be a list, not {}", self.key, described(self.value.get_ref()));
            self.notes.hide_if_secret(&self.key, &self.place());
            self.wrong(self.place(), message, format!("write {} = [{}]", self.key, kind.example));
            return None;
        };
        Some(elements)
    }

    /// Reads the table with `read`.
    pub fn table<T>(&self, read: impl FnOnce(&Table<'d>) -> T) -> T {
        let path = Arc::from(format!("{}.{}", self.path, self.key));
        Table::new(self.notes, path, self.place(), self.entries()).read(read)
    }

    /// Reports a mistake.
    pub fn wrong(&self, place: TextSpan, message: impl Into<String>, help: impl Into<String>) {
        self.notes.invalid(place, InvalidValue::new(message, help));
    }

    /// Reports that the value is invalid.
    pub fn invalid(&self, wrong: InvalidValue) {
        self.notes.invalid(self.place(), wrong);
    }

    fn set(&self) {
        if self.is_element {
            return;
        }
        let written = SettingOrigin::At(self.place());
        self.notes.setting(Setting { path: self.path.clone(), key: self.key.clone(), written });
    }

    fn entries(&self) -> Option<&'d DeTable<'d>> {
        let entries = self.value.get_ref().as_table();
        if entries.is_none() {
            let message = format!("{} must be a table, not {}", self.key, described(self.value.get_ref()));
            self.notes.hide_if_secret(&self.key, &self.place());
            self.wrong(self.place(), message, format!("write [{}] on its own line, with its keys below", self.key));
        }
        entries
    }

    fn parse<T>(
        &self,
        value: &Spanned<DeValue<'_>>,
        kind: ValueKind<T>,
        alone: bool,
        example: Option<&str>,
    ) -> Option<T> {
        let found = match (kind.form, value.get_ref()) {
            (TomlForm::Text, DeValue::String(text)) => (kind.parse)(text),
            (TomlForm::Integer, DeValue::Integer(integer)) => {
                match i128::from_str_radix(integer.as_str(), integer.radix()) {
                    Ok(number) => (kind.parse)(&number.to_string()),
                    Err(_) => (kind.parse)(integer.as_str()),
                }
            }
            (TomlForm::Flag, DeValue::Boolean(flag)) => (kind.parse)(if *flag { "true" } else { "false" }),
            (TomlForm::Text | TomlForm::Integer | TomlForm::Flag, other) => {
                let example = example.map_or_else(|| kind.example.to_owned(), |example| kind.written(example));
                Err(self.wrong_form(other, kind.what, &example, alone))
            }
        };
        found
            .map_err(|wrong| {
                if kind.form == TomlForm::Text {
                    self.notes.hide_if_secret(&self.key, &value.span());
                }
                let wrong = match example {
                    Some(example) if kind.form == TomlForm::Text => {
                        wrong.suggesting(kind.example, &kind.written(example))
                    }
                    Some(_) | None => wrong,
                };
                self.notes.invalid(value.span(), wrong);
            })
            .ok()
    }

    fn wrong_form(&self, found: &DeValue<'_>, kind: &str, example: &str, alone: bool) -> InvalidValue {
        let what = if alone { self.key.to_string() } else { format!("each of {}", self.key) };
        let write = if alone { format!("{} = {example}", self.key) } else { example.to_owned() };
        InvalidValue::new(format!("{what} must be {kind}, not {}", described(found)), format!("write {write}"))
    }
}

fn described(value: &DeValue<'_>) -> &'static str {
    match value {
        DeValue::String(_) => "a string",
        DeValue::Integer(_) => "an integer",
        DeValue::Float(_) => "a float",
        DeValue::Boolean(_) => "a boolean",
        DeValue::Datetime(_) => "a date",
        DeValue::Array(_) => "a list",
        DeValue::Table(_) => "a table",
    }
}

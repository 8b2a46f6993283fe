//! Kinds of values: the TOML form of each, and how to parse its text.

use super::quoted;

/// The form of a TOML value in the file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TomlForm {
    /// `"text"`.
    Text,
    /// `5`.
    Integer,
    /// `true`, `false`.
    Flag,
}

/// A kind of scalar values. Defaults are written as the same text and parsed by the same function.
#[derive(Debug)]
pub struct ValueKind<T> {
    /// The TOML form.
    pub form: TomlForm,
    /// What it is, with its article: `a size`.
    pub what: &'static str,
    /// An example, as TOML: `"64MiB"`.
    pub example: &'static str,
    /// Parses the text (for an integer its decimal digits, for a flag its word).
    pub parse: fn(&str) -> Result<T, InvalidValue>,
}

impl<T> ValueKind<T> {
    /// A kind of strings.
    #[must_use]
    pub const fn text(what: &'static str, example: &'static str, parse: fn(&str) -> Result<T, InvalidValue>) -> Self {
        Self { form: TomlForm::Text, what, example, parse }
    }

    /// A value of this kind as TOML.
    pub(super) fn written(&self, text: &str) -> String {
        match self.form {
            TomlForm::Text => format!("\"{text}\""),
            TomlForm::Integer | TomlForm::Flag => text.to_owned(),
        }
    }
}

impl<T> Clone for ValueKind<T> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<T> Copy for ValueKind<T> {}

/// What is wrong with a value, and what to write instead.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message}{}", .help.as_ref().map(|help| format!("; {help}")).unwrap_or_default())]
pub struct InvalidValue {
    /// What is wrong.
    pub message: String,
    /// What to write instead.
    pub help: Option<String>,
    /// Whether the value may be a secret, which must not be shown.
    pub secret: bool,
}

impl InvalidValue {
    /// An invalid value, and what to write instead.
    #[must_use]
    pub fn new(message: impl Into<String>, help: impl Into<String>) -> Self {
        Self { message: message.into(), help: Some(help.into()), secret: false }
    }

    /// As [`InvalidValue::new`], for a message that begins with the value itself, which must not be a secret.
    #[must_use]
    pub fn quoting(value: &str, message: &str, help: impl Into<String>) -> Self {
        Self::new(format!("{} {message}", quoted(value)), help)
    }

    /// The same, with another example of what to write instead.
    pub(super) fn suggesting(mut self, example: &str, better: &str) -> Self {
        self.help = self.help.map(|help| help.replace(example, better));
        self
    }

    /// Marks the value as a possible secret, to be blotted out of everything shown.
    #[must_use]
    pub fn secret(self) -> Self {
        Self { secret: true, ..self }
    }
}

impl From<String> for InvalidValue {
    fn from(message: String) -> Self {
        Self { message, help: None, secret: false }
    }
}

/// A nonempty string.
pub const TEXT: ValueKind<String> = ValueKind::text("a string", "\"…\"", |text| match text {
    "" => Err("this must not be empty".to_owned().into()),
    _ => Ok(text.to_owned()),
});

/// `true` or `false`.
pub const FLAG: ValueKind<bool> =
    ValueKind { form: TomlForm::Flag, what: "true or false", example: "true", parse: |text| Ok(text == "true") };

/// An integer from 0 to the maximum of the type.
#[must_use]
pub const fn number<T: TryFrom<u64>>() -> ValueKind<T> {
    ValueKind { form: TomlForm::Integer, what: "an integer", example: "10", parse: whole }
}

fn whole<T: TryFrom<u64>>(text: &str) -> Result<T, InvalidValue> {
    if text.starts_with('-') {
        return Err(InvalidValue::new(format!("{text} is negative"), "write 0 or more"));
    }
    let number = text.parse::<u64>().ok().and_then(|n| T::try_from(n).ok());
    number.ok_or_else(|| InvalidValue::new(format!("{text} is too large"), "write a smaller number"))
}

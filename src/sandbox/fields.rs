//! Reads a request's JSON body field by field and collects every mistake for Make's suberrors.

use serde_json::{Map, Value};

use super::answer::MakeError;

/// The object in a request's body, and the mistakes found so far.
#[derive(Debug)]
pub(super) struct BodyFields<'a> {
    object: &'a Map<String, Value>,
    errors: Vec<String>,
}

impl<'a> BodyFields<'a> {
    pub(super) const fn new(object: &'a Map<String, Value>) -> Self {
        Self { object, errors: Vec::new() }
    }

    /// A required field: text that is not empty.
    pub(super) fn text(&mut self, name: &str) -> Option<&'a str> {
        self.required(name)?;
        self.optional_text(name)
    }

    /// A required field: an integer, 0 or more.
    pub(super) fn number(&mut self, name: &str) -> Option<u64> {
        self.required(name)?;
        self.optional_number(name)
    }

    /// A required field: true or false.
    pub(super) fn flag(&mut self, name: &str) -> Option<bool> {
        self.required(name)?;
        self.optional_flag(name)
    }

    /// A required field of any type.
    pub(super) fn value(&mut self, name: &str) -> Option<&'a Value> {
        self.required(name)
    }

    pub(super) fn optional_text(&mut self, name: &str) -> Option<&'a str> {
        self.typed(name, "text that is not empty", |value| value.as_str().filter(|text| !text.trim().is_empty()))
    }

    pub(super) fn optional_number(&mut self, name: &str) -> Option<u64> {
        self.typed(name, "a whole number", Value::as_u64)
    }

    pub(super) fn optional_flag(&mut self, name: &str) -> Option<bool> {
        self.typed(name, "true or false", Value::as_bool)
    }

    pub(super) fn optional_numbers(&mut self, name: &str) -> Option<Vec<u64>> {
        self.typed(name, "a list of whole numbers", |value| value.as_array()?.iter().map(Value::as_u64).collect())
    }

    pub(super) fn optional_value(&self, name: &str) -> Option<&'a Value> {
        self.object.get(name)
    }

    /// Checks `customer`, which every payment carries, field by field.
    pub(super) fn customer(&mut self) {
        let Some(value) = self.required("customer") else { return };
        let Some(customer) = value.as_object() else {
            return self.wrong("customer", "an object");
        };
        let mut inner = BodyFields::new(customer);
        for name in ["email", "name", "city", "line1"] {
            inner.text(name);
        }
        inner.number("countryId");
        inner.optional_flag("isBusiness");
        inner.optional_text("line2");
        self.errors.extend(inner.errors.into_iter().map(|error| format!("customer: {error}")));
    }

    pub(super) fn wrong(&mut self, name: &str, write: &str) {
        self.errors.push(format!("Invalid value of parameter '{name}': write {write}."));
    }

    /// Finishes; an error if anything was wrong.
    pub(super) fn done(self) -> Result<(), MakeError> {
        self.all(Some(()))
    }

    /// As [`Self::done`], with the required fields: `None` if one of them is missing.
    pub(super) fn all<T>(self, required: Option<T>) -> Result<T, MakeError> {
        required.filter(|_| self.errors.is_empty()).ok_or(MakeError::Invalid(self.errors))
    }

    fn required(&mut self, name: &str) -> Option<&'a Value> {
        let value = self.object.get(name).filter(|value| !value.is_null());
        if value.is_none() {
            self.errors.push(format!("Missing value of required parameter '{name}'."));
        }
        value
    }

    /// For an optional field, `null` means the same as leaving it out.
    fn typed<T>(&mut self, name: &str, write: &str, read: impl FnOnce(&'a Value) -> Option<T>) -> Option<T> {
        let value = self.object.get(name).filter(|value| !value.is_null())?;
        let read = read(value);
        if read.is_none() {
            self.wrong(name, write);
        }
        read
    }
}

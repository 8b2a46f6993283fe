//! Conditions on the fields of a record that the log itself does not read: they are looked up in the record's line.

use std::borrow::Cow;
use std::collections::HashMap;
use std::net::IpAddr;

use serde_json::value::RawValue;

use super::filter::{StatusFilter, number, write};
use crate::config;
use crate::ids::RequestId;
use crate::vocabulary::CredentialKind;

/// One condition.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OtherFilter {
    field: &'static str,
    wanted: Wanted,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Wanted {
    Text(String),
    Prefix(String),
    /// A whole traceparent, or the trace id in it.
    Trace(String),
    Number(u64),
    AtLeast(u64),
    Status(StatusFilter),
}

impl OtherFilter {
    /// Parses the filter of this name; `None` if there is none.
    ///
    /// # Errors
    /// What to write instead.
    pub(super) fn parse(name: &str, value: &str) -> Result<Option<Self>, String> {
        let text = |is_valid: bool, text: String, expected: &str| match is_valid {
            true => Ok(Wanted::Text(text)),
            false => Err(write(value, expected)),
        };
        let (field, wanted) = match name {
            "peer" => {
                let address = value.parse::<IpAddr>().map_or_else(|_| value.to_owned(), |address| address.to_string());
                ("peer", text(!value.is_empty(), address, "an address such as 10.0.0.7, or unix")?)
            }
            "method" => {
                let is_valid = !value.is_empty() && value.bytes().all(|byte| byte.is_ascii_alphabetic());
                ("method", text(is_valid, value.to_ascii_uppercase(), "a method such as GET")?)
            }
            "credential" => {
                let expected = "one of token, certificate, peer";
                ("credential", text(CredentialKind::parse(value).is_some(), value.to_owned(), expected)?)
            }
            "operator" => ("operator", text(!value.is_empty(), value.to_owned(), "an operator's name")?),
            "filled_by" => {
                let is_valid = RequestId::parse(value.as_bytes()).is_some();
                ("filled_by", text(is_valid, value.to_owned(), "a request id as in the answer's X-Request-Id")?)
            }
            "path" if value.starts_with('/') => ("path", Wanted::Prefix(value.to_owned())),
            "path" => return Err(write(value, "a path that begins with /, or its beginning")),
            "trace" if !value.is_empty() => ("trace", Wanted::Trace(value.to_ascii_lowercase())),
            "trace" => return Err(write(value, "a traceparent or a trace id")),
            "upstream_status" => {
                let status = StatusFilter::parse(value).ok_or_else(|| write(value, "a status such as 404, or 4xx"))?;
                ("upstream_status", Wanted::Status(status))
            }
            "min_duration" => {
                let least = config::duration(value).map_err(|wrong| wrong.to_string())?;
                ("duration_us", Wanted::AtLeast(u64::try_from(least.as_micros()).unwrap_or(u64::MAX)))
            }
            "attempts" => ("attempts", Wanted::Number(number(value, "a whole number")?)),
            "spent" => ("spent", Wanted::Number(number(value, "a whole number")?)),
            "duration_us" => ("duration_us", Wanted::Number(number(value, "a whole number of microseconds")?)),
            "quota_wait_us" => ("quota_wait_us", Wanted::Number(number(value, "a whole number of microseconds")?)),
            "bytes" => ("bytes", Wanted::Number(number(value, "a whole number of bytes")?)),
            _ => return Ok(None),
        };
        Ok(Some(Self { field, wanted }))
    }

    /// The text that this field of a matching record consists of.
    pub(super) fn text(&self) -> Option<&str> {
        match &self.wanted {
            Wanted::Text(text) => Some(text),
            Wanted::Prefix(_) | Wanted::Trace(_) | Wanted::Number(_) | Wanted::AtLeast(_) | Wanted::Status(_) => None,
        }
    }

    /// Whether the record of this line meets all of these conditions.
    pub(super) fn all_match(all: &[Self], line: &[u8]) -> bool {
        if all.is_empty() {
            return true;
        }
        let fields: HashMap<Cow<'_, str>, &RawValue> = serde_json::from_slice(line).unwrap_or_default();
        all.iter().all(|one| fields.get(one.field).is_some_and(|value| one.wanted.is_met(value.get())))
    }
}

impl Wanted {
    fn is_met(&self, value: &str) -> bool {
        let text = || serde_json::from_str::<Cow<'_, str>>(value).ok();
        let number = || value.parse::<u64>().ok();
        match self {
            Self::Text(wanted) => text().is_some_and(|text| text == wanted.as_str()),
            Self::Prefix(prefix) => text().is_some_and(|text| text.starts_with(&**prefix)),
            Self::Trace(wanted) => {
                text().is_some_and(|text| text == wanted.as_str() || text.split('-').nth(1) == Some(wanted))
            }
            Self::Number(wanted) => number() == Some(*wanted),
            Self::AtLeast(least) => number().is_some_and(|number| number >= *least),
            Self::Status(status) => {
                let (from, to) = status.range();
                number().is_some_and(|number| (u64::from(from)..=u64::from(to)).contains(&number))
            }
        }
    }
}

//! Filters that select records: the parameters of `/audit` and the options of `makegate audit`.

use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use jiff::civil::Date;
use memchr::memmem::Finder;

use crate::audit::record::Kind;
use crate::audit::record::Record;
use crate::ids::{KeyId, RequestId};
use crate::vocabulary::Answer;

/// Default number of records per page.
pub const LIMIT_DEFAULT: usize = 100;
/// Maximum number of records per page.
pub const LIMIT_MAX: usize = 10_000;

/// Names of the filter parameters.
pub const FILTERS: [&str; 13] = [
    "caller",
    "key",
    "operation",
    "organization",
    "status",
    "answer",
    "kind",
    "intent",
    "request",
    "since",
    "until",
    "limit",
    "after",
];

/// A status code or a class of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StatusFilter {
    /// `404`.
    Exact(u16),
    /// `4xx`, by its first digit.
    Class(u16),
}

impl StatusFilter {
    /// The lowest and highest status it covers.
    pub(crate) const fn range(self) -> (u16, u16) {
        match self {
            Self::Exact(status) => (status, status),
            Self::Class(digit) => (digit * 100, digit * 100 + 99),
        }
    }

    fn parse(text: &str) -> Option<Self> {
        let digit =
            |c: char| c.to_digit(10).and_then(|digit| u16::try_from(digit).ok()).filter(|d| (1..=5).contains(d));
        if let Some(class) = text.strip_suffix("xx") {
            let mut digits = class.chars();
            return digit(digits.next()?).filter(|_| digits.next().is_none()).map(Self::Class);
        }
        let plain = text.len() == 3 && text.bytes().all(|b| b.is_ascii_digit());
        text.parse().ok().filter(|_| plain && text.starts_with(['1', '2', '3', '4', '5'])).map(Self::Exact)
    }
}

/// The conditions that a record must meet. The default matches all records.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Filter {
    /// Caller's name.
    pub caller: Option<Arc<str>>,
    /// The caller's key.
    pub key: Option<KeyId>,
    /// Operation id.
    pub operation: Option<Arc<str>>,
    /// Organization id.
    pub organization: Option<u64>,
    /// Status or status class.
    pub status: Option<StatusFilter>,
    /// Where the answer came from.
    pub answer: Option<Answer>,
    /// Kind of record.
    pub kind: Option<Kind>,
    /// Sequence number of a write's intent; matches its outcome and settlement.
    pub intent: Option<u64>,
    /// Request id.
    pub request: Option<RequestId>,
    /// Earliest time, inclusive.
    pub since: Option<Timestamp>,
    /// Latest time, exclusive.
    pub until: Option<Timestamp>,
    /// Maximum number of records per page.
    pub limit: usize,
    /// Only records older than this sequence number: the previous page's `next`.
    pub after: Option<u64>,
}

impl Default for Filter {
    fn default() -> Self {
        Self {
            caller: None,
            key: None,
            operation: None,
            organization: None,
            status: None,
            answer: None,
            kind: None,
            intent: None,
            request: None,
            since: None,
            until: None,
            limit: LIMIT_DEFAULT,
            after: None,
        }
    }
}

/// An invalid parameter, with what to write instead.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{name}: {message}")]
pub struct BadFilter {
    /// The parameter.
    pub name: String,
    /// What is wrong with it and what to write.
    pub message: String,
}

impl Filter {
    /// Parses decoded names and values. Relative times count back from `now`.
    ///
    /// # Errors
    /// The first parameter that is unknown, repeated or invalid.
    pub fn parse<'p>(pairs: impl IntoIterator<Item = (&'p str, &'p str)>, now: Timestamp) -> Result<Self, BadFilter> {
        let mut filter = Self::default();
        let mut given = Vec::new();
        for (name, value) in pairs {
            let bad = |message| BadFilter { name: name.to_owned(), message };
            if given.contains(&name) {
                return Err(bad("given twice; give it once".to_owned()));
            }
            given.push(name);
            filter.set(name, value, now).map_err(bad)?;
        }
        Ok(filter)
    }

    fn set(&mut self, name: &str, value: &str, now: Timestamp) -> Result<(), String> {
        match name {
            "caller" => self.caller = Some(name_of(value, "a caller's name")?),
            "key" => {
                let expected = "a key as in records: the first 8 hex digits of its hash";
                self.key = Some(KeyId::parse(value).ok_or_else(|| write(value, expected))?);
            }
            "operation" => self.operation = Some(name_of(value, "an operation such as organizations.get")?),
            "organization" => self.organization = Some(number(value, "an organization's id such as 11")?),
            "status" => {
                self.status =
                    Some(StatusFilter::parse(value).ok_or_else(|| write(value, "a status such as 404, or 4xx"))?)
            }
            "answer" => self.answer = Some(word(value, Answer::parse(value), Answer::ALL, Answer::as_str)?),
            "kind" => self.kind = Some(word(value, Kind::parse(value), Kind::ALL, Kind::as_str)?),
            "intent" => self.intent = Some(number(value, "the seq of a write's intent, such as 42")?),
            "request" => {
                let id = RequestId::parse(value.as_bytes());
                self.request = Some(id.ok_or_else(|| write(value, "a request id as in the answer's X-Request-Id"))?);
            }
            "since" => self.since = Some(time(value, now)?),
            "until" => self.until = Some(time(value, now)?),
            "limit" => {
                let expected = "a number from 1 to 10000";
                let limit = number(value, expected)?;
                let limit = usize::try_from(limit).ok().filter(|limit| (1..=LIMIT_MAX).contains(limit));
                self.limit = limit.ok_or_else(|| write(value, expected))?;
            }
            "after" => self.after = Some(number(value, "the previous page's next")?),
            _ => return Err(unknown(name)),
        }
        Ok(())
    }

    /// Text that the line of every matching record is sure to contain: the request's id or the caller's name.
    pub(crate) fn needle(&self) -> Option<Finder<'static>> {
        let text = self.request.as_ref().map(RequestId::as_str).or(self.caller.as_deref())?;
        // Plain text has only one spelling in JSON; another writer may escape anything else as it likes.
        let plain = text.bytes().all(|byte| matches!(byte, b' '..=b'~') && !matches!(byte, b'"' | b'\\' | b'/'));
        plain.then(|| Finder::new(&format!("\"{text}\"")).into_owned())
    }

    /// Whether this stored record matches. Ignores `limit` and `after`.
    pub(crate) fn matches(&self, record: &Record<'_>) -> bool {
        let is = |wanted: Option<&str>, text: Option<&str>| wanted.is_none_or(|wanted| text == Some(wanted));
        let in_range = |range: (u16, u16)| record.status.is_some_and(|status| (range.0..=range.1).contains(&status));
        is(self.caller.as_deref(), record.caller.as_deref())
            && self.key.is_none_or(|wanted| record.key == Some(wanted))
            && is(self.operation.as_deref(), record.operation.as_deref())
            && self.organization.is_none_or(|wanted| record.organization == Some(wanted))
            && self.status.is_none_or(|wanted| in_range(wanted.range()))
            && self.answer.is_none_or(|wanted| record.answer == Some(wanted))
            && self.kind.is_none_or(|wanted| record.kind == Some(wanted))
            && self.intent.is_none_or(|wanted| record.intent == Some(wanted))
            && self.request.is_none_or(|wanted| record.request == Some(wanted))
            && self.since.is_none_or(|since| record.time >= since)
            && self.until.is_none_or(|until| record.time < until)
    }
}

fn write(value: &str, expected: &str) -> String {
    format!("\"{}\" is not valid here; write {expected}", value.escape_debug())
}

fn unknown(name: &str) -> String {
    let nearest = FILTERS.iter().map(|known| (strsim::damerau_levenshtein(known, name), known)).min();
    match nearest {
        Some((0..=2, known)) => format!("no such filter; did you mean {known}?"),
        Some(_) | None => format!("no such filter; the filters are {}", FILTERS.join(", ")),
    }
}

fn name_of(value: &str, expected: &str) -> Result<Arc<str>, String> {
    if value.is_empty() { Err(write(value, expected)) } else { Ok(value.into()) }
}

fn number(value: &str, expected: &str) -> Result<u64, String> {
    let plain = value.bytes().all(|b| b.is_ascii_digit());
    value.parse().ok().filter(|_| plain).ok_or_else(|| write(value, expected))
}

fn word<T: Copy>(value: &str, parsed: Option<T>, all: &[T], word: fn(T) -> &'static str) -> Result<T, String> {
    let words = || all.iter().map(|one| word(*one)).collect::<Vec<_>>().join(", ");
    parsed.ok_or_else(|| write(value, &format!("one of {}", words())))
}

/// Accepts RFC 3339, a date (midnight UTC), or how long ago.
fn time(value: &str, now: Timestamp) -> Result<Timestamp, String> {
    let expected = "a time such as 2026-07-01T12:00:00Z, a date such as 2026-07-01, or an age such as 15m, 1h or 7d";
    let parsed = ago(value)
        .and_then(|ago| now.checked_sub(ago).ok())
        .or_else(|| value.parse().ok())
        .or_else(|| value.parse::<Date>().ok().and_then(|date| format!("{date}T00:00:00Z").parse().ok()));
    parsed.ok_or_else(|| write(value, expected))
}

fn ago(value: &str) -> Option<Duration> {
    let value = value.strip_suffix(" ago").unwrap_or(value);
    let unit = value.char_indices().next_back()?;
    let seconds = match unit.1 {
        's' => 1,
        'm' => 60,
        'h' => 3600,
        'd' => 24 * 3600,
        'w' => 7 * 24 * 3600,
        _ => return None,
    };
    let count = value.get(..unit.0).filter(|count| !count.is_empty() && count.bytes().all(|b| b.is_ascii_digit()))?;
    count.parse::<u64>().ok()?.checked_mul(seconds).map(Duration::from_secs)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(pairs: &[(&str, &str)]) -> Result<Filter, String> {
        let now = "2026-07-08T12:00:00Z".parse().unwrap();
        Filter::parse(pairs.iter().copied(), now).map_err(|bad| bad.to_string())
    }

    #[test]
    fn times_are_exact_dates_or_ago() {
        let since = |text| parse(&[("since", text)]).map(|filter| filter.since.unwrap().to_string());
        assert_eq!(since("2026-07-01T14:00:00+02:00").unwrap(), "2026-07-01T12:00:00Z");
        assert_eq!(since("2026-07-01").unwrap(), "2026-07-01T00:00:00Z");
        assert_eq!(since("90m").unwrap(), "2026-07-08T10:30:00Z");
        assert_eq!(since("7d ago").unwrap(), "2026-07-01T12:00:00Z");
        for bad in ["yesterday", "", "h", "-1h", "1y", "99999999999999999w"] {
            assert!(since(bad).unwrap_err().contains("an age such as 15m, 1h or 7d"), "{bad}");
        }
    }

    #[test]
    fn a_status_is_exact_or_a_class() {
        let status = |text| parse(&[("status", text)]).map(|filter| filter.status.unwrap());
        assert_eq!(status("404"), Ok(StatusFilter::Exact(404)));
        assert_eq!(status("4xx"), Ok(StatusFilter::Class(4)));
        for bad in ["40", "0xx", "44xx", "xx", "+40", "604", "4XX"] {
            assert!(status(bad).unwrap_err().contains("write a status such as 404, or 4xx"), "{bad}");
        }
    }

    #[test]
    fn errors_say_what_to_write() {
        let message = |name, value| parse(&[(name, value)]).unwrap_err();
        assert_eq!(message("calller", "x"), "calller: no such filter; did you mean caller?");
        assert!(message("colour", "x").starts_with("colour: no such filter; the filters are caller, key, operation"));
        assert_eq!(
            message("kind", "write"),
            "kind: \"write\" is not valid here; write one of request, intent, outcome, settlement, event, refusals"
        );
        assert!(
            message("limit", "0").contains("from 1 to 10000") && message("limit", "10001").contains("from 1 to 10000")
        );
        assert!(message("organization", "+11").contains("an organization's id"));
        assert!(message("request", "a b").contains("X-Request-Id"));
        assert_eq!(parse(&[("caller", "a"), ("caller", "b")]).unwrap_err(), "caller: given twice; give it once");
    }
}

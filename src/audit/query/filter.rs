//! Filters that select records: the parameters of `/audit` and the options of `makegate audit`.

use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use jiff::tz::TimeZone;
use memchr::memmem::Finder;

use super::other_filter::OtherFilter;
use crate::audit::record::Kind;
use crate::audit::record::Record;
use crate::ids::{KeyId, RequestId};
use crate::vocabulary::{Answer, Outcome};

/// Default number of records per page.
pub const LIMIT_DEFAULT: usize = 100;
/// Maximum number of records per page.
pub const LIMIT_MAX: usize = 10_000;

/// A filter: its name, which is that of the field it is about, and what is written for it.
#[derive(Clone, Copy, Debug)]
pub struct FilterName {
    /// The parameter's name.
    pub name: &'static str,
    /// What kind of value it takes, as the commands' help shows it.
    pub value: &'static str,
    /// What it selects, as the commands' help says it.
    pub help: &'static str,
}

const fn filter(name: &'static str, value: &'static str, help: &'static str) -> FilterName {
    FilterName { name, value, help }
}

/// Every filter by a field.
pub const FIELD_FILTERS: [FilterName; 27] = [
    filter("caller", "NAME", "Only records of this caller"),
    filter("operation", "ID", "Only records of this operation, such as organizations.get"),
    filter("organization", "ID", "Only records of this organization"),
    filter("status", "STATUS", "Only records with this status: 404, or 4xx"),
    filter("answer", "ANSWER", "Only records with this answer: hit, stale, miss, forwarded, replayed or refused"),
    filter("kind", "KIND", "Only records of this kind: request, intent, outcome, settlement, event or refusals"),
    filter("intent", "SEQ", "Only the outcome and settlement of the write whose intent has this number"),
    filter("request", "ID", "Only records of the request with this id (X-Request-Id in the answer)"),
    filter("seq", "SEQ", "Only the record with this number"),
    filter("outcome", "OUTCOME", "Only writes that ended so: done, rejected, not-sent or in-doubt"),
    filter("refusal", "CODE", "Only refusals with this code, such as MG131"),
    filter("event", "NAME", "Only events of this name, such as reload"),
    filter("operator", "NAME", "Only records of what this operator did"),
    filter("key", "ID", "Only records of the key whose SHA-256 begins with these 8 hex digits"),
    filter(
        "credential",
        "KIND",
        "Only records of callers known by a credential of this kind: token, certificate or peer",
    ),
    filter("peer", "ADDRESS", "Only records of requests that came from this address"),
    filter("method", "METHOD", "Only records of requests with this method"),
    filter("path", "PREFIX", "Only records of requests whose path begins so"),
    filter("filled_by", "ID", "Only records of answers from the entry that this request's fetch filled"),
    filter("attempts", "N", "Only records of requests that were sent upstream so many times"),
    filter("spent", "N", "Only records of requests of whose attempts not all but so many took a slot of quota"),
    filter("upstream_status", "STATUS", "Only records with this last status of Make: 404, or 4xx"),
    filter("trace", "ID", "Only records with this traceparent, or with this trace id in it"),
    filter("min_duration", "TIME", "Only records of requests that took at least this long: 250ms, 2s"),
    filter("duration_us", "N", "Only records of requests that took exactly so many microseconds"),
    filter("quota_wait_us", "N", "Only records of requests that waited so many microseconds for quota"),
    filter("bytes", "N", "Only records of answers whose body has so many bytes"),
];

/// The filters that are not by a field's value.
const OTHER_FILTERS: [&str; 4] = ["since", "until", "limit", "after"];

fn names() -> impl Iterator<Item = &'static str> {
    FIELD_FILTERS.iter().map(|filter| filter.name).chain(OTHER_FILTERS)
}

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

    pub(super) fn parse(text: &str) -> Option<Self> {
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
    /// Sequence number.
    pub seq: Option<u64>,
    /// How the write ended.
    pub outcome: Option<Outcome>,
    /// The refusal's code.
    pub refusal: Option<Arc<str>>,
    /// The event's name.
    pub event: Option<Arc<str>>,
    /// The conditions on fields that the log itself does not read.
    pub others: Vec<OtherFilter>,
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
            seq: None,
            outcome: None,
            refusal: None,
            event: None,
            others: Vec::new(),
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

/// Sets each of these parameters, none of which may be given twice.
///
/// # Errors
/// The first one that is repeated, or that `set` finds wrong.
pub(super) fn set_each<'p>(
    pairs: impl IntoIterator<Item = (&'p str, &'p str)>,
    mut set: impl FnMut(&str, &str) -> Result<(), String>,
) -> Result<(), BadFilter> {
    let mut given = Vec::new();
    for (name, value) in pairs {
        let bad = |message| BadFilter { name: name.to_owned(), message };
        if given.contains(&name) {
            return Err(bad("given twice; give it once".to_owned()));
        }
        given.push(name);
        set(name, value).map_err(bad)?;
    }
    Ok(())
}

impl Filter {
    /// Parses decoded names and values. Relative times count back from `now`.
    ///
    /// # Errors
    /// The first parameter that is unknown, repeated or invalid.
    pub fn parse<'p>(pairs: impl IntoIterator<Item = (&'p str, &'p str)>, now: Timestamp) -> Result<Self, BadFilter> {
        let mut filter = Self::default();
        set_each(pairs, |name, value| filter.set(name, value, now))?;
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
            "seq" => self.seq = Some(number(value, "a record's number, such as 42")?),
            "outcome" => self.outcome = Some(word(value, Outcome::parse(value), Outcome::ALL, Outcome::as_str)?),
            "refusal" => self.refusal = Some(name_of(&value.to_ascii_uppercase(), "a refusal's code such as MG131")?),
            "event" => self.event = Some(name_of(value, "an event's name such as reload")?),
            "since" => self.since = Some(time(value, now)?),
            "until" => self.until = Some(time(value, now)?),
            "limit" => {
                let expected = "a number from 1 to 10000";
                let limit = number(value, expected)?;
                let limit = usize::try_from(limit).ok().filter(|limit| (1..=LIMIT_MAX).contains(limit));
                self.limit = limit.ok_or_else(|| write(value, expected))?;
            }
            "after" => self.after = Some(number(value, "the previous page's next")?),
            _ => self.others.push(OtherFilter::parse(name, value)?.ok_or_else(|| unknown(name))?),
        }
        Ok(())
    }

    /// Only records below this number can match.
    pub(crate) fn below(&self) -> u64 {
        let seq = self.seq.map_or(u64::MAX, |seq| seq.saturating_add(1));
        self.after.unwrap_or(u64::MAX).min(seq)
    }

    /// Only records above this number can match.
    pub(crate) fn floor(&self) -> u64 {
        self.seq.map_or(0, |seq| seq.saturating_sub(1))
    }

    /// Finds the text of [`Filter::needle_text`].
    pub(crate) fn needle(&self) -> Option<Finder<'static>> {
        self.needle_text().map(|text| Finder::new(&*text).into_owned())
    }

    /// Text that the line of every matching record is sure to contain: the request's id, the caller's name, or another value.
    pub(crate) fn needle_text(&self) -> Option<Box<str>> {
        let other = || self.others.iter().find_map(OtherFilter::text);
        let text = self.request.as_ref().map(RequestId::as_str).or(self.caller.as_deref()).or_else(other)?;
        // Plain text has only one spelling in JSON; another writer may escape anything else as it likes.
        let plain = text.bytes().all(|byte| matches!(byte, b' '..=b'~') && !matches!(byte, b'"' | b'\\' | b'/'));
        plain.then(|| format!("\"{text}\"").into())
    }

    /// Whether this stored record, read from this line, matches. Ignores `limit` and `after`.
    pub(crate) fn matches(&self, record: &Record<'_>, line: &[u8]) -> bool {
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
            && self.seq.is_none_or(|wanted| record.seq == wanted)
            && self.outcome.is_none_or(|wanted| record.outcome == Some(wanted))
            && is(self.refusal.as_deref(), record.refusal.as_deref())
            && is(self.event.as_deref(), record.event.as_deref())
            && OtherFilter::all_match(&self.others, line)
    }
}

pub(super) fn write(value: &str, expected: &str) -> String {
    format!("\"{}\" is not valid here; write {expected}", value.escape_debug())
}

fn unknown(name: &str) -> String {
    let nearest = names().map(|known| (strsim::damerau_levenshtein(known, name), known)).min();
    match nearest {
        Some((0..=2, known)) => format!("no such filter; did you mean {known}?"),
        Some(_) | None => format!("no such filter; the filters are {}", names().collect::<Vec<_>>().join(", ")),
    }
}

pub(super) fn name_of(value: &str, expected: &str) -> Result<Arc<str>, String> {
    if value.is_empty() { Err(write(value, expected)) } else { Ok(value.into()) }
}

pub(super) fn number(value: &str, expected: &str) -> Result<u64, String> {
    let plain = value.bytes().all(|b| b.is_ascii_digit());
    value.parse().ok().filter(|_| plain).ok_or_else(|| write(value, expected))
}

pub(super) fn word<T: Copy>(
    value: &str,
    parsed: Option<T>,
    all: &[T],
    word: fn(T) -> &'static str,
) -> Result<T, String> {
    let words = || all.iter().map(|one| word(*one)).collect::<Vec<_>>().join(", ");
    parsed.ok_or_else(|| write(value, &format!("one of {}", words())))
}

/// Accepts RFC 3339, a date (midnight UTC), or how long ago.
pub(super) fn time(value: &str, now: Timestamp) -> Result<Timestamp, String> {
    let expected = "a time such as 2026-07-01T12:00:00Z, a date such as 2026-07-01, or an age such as 15m, 1h or 7d";
    let parsed = ago(value)
        .and_then(|ago| now.checked_sub(ago).ok())
        .or_else(|| value.parse().ok())
        .or_else(|| TimeZone::UTC.to_timestamp(value.parse().ok()?).ok());
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
        for utc in ["2026-07-01T14:05:00", "2026-07-01T14:05", "2026-07-01 14:05:00"] {
            assert_eq!(since(utc).unwrap(), "2026-07-01T14:05:00Z", "{utc}");
        }
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
        assert!(message("colour", "x").starts_with("colour: no such filter; the filters are caller, operation"));
        assert_eq!(
            message("kind", "write"),
            "kind: \"write\" is not valid here; write one of request, intent, outcome, settlement, event, refusals"
        );
        assert!(
            message("limit", "0").contains("from 1 to 10000") && message("limit", "10001").contains("from 1 to 10000")
        );
        assert!(message("organization", "+11").contains("an organization's id"));
        assert!(message("request", "a b").contains("X-Request-Id"));
        assert!(message("key", "abc").contains("8 hex digits") && message("attempts", "x").contains("a whole number"));
        assert!(message("min_duration", "5").contains("write \"5s\" for seconds"), "{}", message("min_duration", "5"));
        assert!(message("path", "api").contains("a path that begins with /"));
        assert_eq!(parse(&[("caller", "a"), ("caller", "b")]).unwrap_err(), "caller: given twice; give it once");
    }
}

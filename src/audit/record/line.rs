//! Renders a record as its line: JSON of bounded length whose strings can neither break the line nor manipulate a
//! terminal.

use std::cell::Cell;
use std::fmt::Display;
use std::io::Write as _;
use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;

use jiff::Timestamp;
use serde_json::value::RawValue;
use serde_json::{Map, Value};

use super::json_text::write_text;
use super::{CountedRefusals, Peer, Record};
use crate::ids::{RequestId, write_decimal};
use crate::vocabulary::{Answer, Outcome};

/// Maximum length that truncation adds to a text (`…[12345 bytes cut]`).
const MARK_BYTES: usize = 32;
/// Maximum number of truncations before all texts are dropped; only an object with very many members needs more.
const CUTS_MAX: usize = 64;

/// Appends the record's line, without a newline, to `out`. It is at most `max` bytes (at least a KiB is always
/// allowed): a longer one has its longest texts visibly truncated and stays valid JSON.
pub(crate) fn render(record: &Record, seq: u64, max: usize, out: &mut Vec<u8>) {
    let start = out.len();
    write(record, seq, out);
    if out.len() - start > max {
        let mut cut = record.clone();
        fit(&mut cut, max);
        out.truncate(start);
        write(&cut, seq, out);
    }
}

/// Truncates the longest texts of a record until its line is at most `max` bytes long.
pub(crate) fn fit(record: &mut Record, max: usize) {
    let mut line = Vec::new();
    for _ in 0..CUTS_MAX {
        line.clear();
        write(record, u64::MAX, &mut line);
        if line.len() <= max || record.text_bytes() == 0 {
            return;
        }
        cut_longest(record, line.len() - max);
    }
    (record.query, record.fields, record.detail, record.trace) = (None, None, Some("…[cut]".into()), None);
}

fn cut_longest(record: &mut Record, excess: usize) {
    let raw = |value: &Option<Box<RawValue>>| value.as_ref().map_or(0, |value| value.get().len());
    let text = |value: Option<&str>| value.map_or(0, str::len);
    let sizes = [
        raw(&record.query),
        raw(&record.fields),
        text(record.path.as_deref()),
        text(record.detail.as_deref()),
        text(record.trace.as_deref()),
    ];
    let longest = sizes.iter().max().copied().unwrap_or(0);
    match sizes.iter().position(|size| *size == longest) {
        Some(0) => record.query = record.query.take().map(|object| cut_object(&object, excess)),
        Some(1) => record.fields = record.fields.take().map(|object| cut_object(&object, excess)),
        Some(2) => record.path = record.path.take().map(|path| cut_text(&path, excess).into()),
        Some(3) => record.detail = record.detail.take().map(|detail| cut_text(&detail, excess).into()),
        _ => record.trace = None,
    }
}

/// `text`, visibly truncated if it exceeds `bytes_max`.
pub fn at_most(text: &str, bytes_max: usize) -> Arc<str> {
    match text.len().checked_sub(bytes_max) {
        None | Some(0) => text.into(),
        Some(excess) => cut_text(text, excess).into(),
    }
}

/// Shortens `text` by at least `excess` bytes if it is that long, and appends the mark.
fn cut_text(text: &str, excess: usize) -> String {
    let keep = text.floor_char_boundary(text.len().saturating_sub(excess.saturating_add(MARK_BYTES)));
    let kept = text.get(..keep).unwrap_or_default();
    format!("{kept}…[{} bytes cut]", text.len() - kept.len())
}

/// Truncates the object's longest member. What is not an object, or has nothing long in it, is replaced by a mark as
/// a whole.
fn cut_object(object: &RawValue, excess: usize) -> Box<RawValue> {
    let whole = || Value::from(cut_text(object.get(), object.get().len()));
    let mut members: Map<String, Value> = serde_json::from_str(object.get()).unwrap_or_default();
    let longest = members.iter_mut().map(|(_, value)| (value.to_string().len(), value)).max_by_key(|(len, _)| *len);
    match longest {
        Some((len, value)) if len > MARK_BYTES => {
            let text = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
            *value = cut_text(&text, excess).into();
        }
        Some(_) | None => members = Map::from_iter([("cut".to_owned(), whole())]),
    }
    raw(&Value::Object(members))
}

/// A JSON object with these members, for `query` and `fields`.
#[must_use]
pub fn object(members: &Map<String, Value>) -> Box<RawValue> {
    raw(&Value::Object(members.clone()))
}

fn raw(value: &Value) -> Box<RawValue> {
    let mut out = Vec::new();
    write_value(value, &mut out);
    String::from_utf8(out).ok().and_then(|text| RawValue::from_string(text).ok()).unwrap_or_default()
}

/// Writes one object; so far `{"a":1`.
struct ObjectWriter<'o> {
    out: &'o mut Vec<u8>,
    separator: u8,
}

impl ObjectWriter<'_> {
    fn name(&mut self, name: &str) {
        self.out.push(self.separator);
        self.separator = b',';
        self.out.push(b'"');
        self.out.extend_from_slice(name.as_bytes());
        self.out.extend_from_slice(b"\":");
    }

    fn text(&mut self, name: &str, value: Option<&str>) {
        if let Some(value) = value {
            self.name(name);
            write_text(value, self.out);
        }
    }

    /// For text that needs no escaping: ids and words.
    fn word(&mut self, name: &str, value: Option<&str>) {
        if let Some(value) = value {
            self.name(name);
            self.out.push(b'"');
            self.out.extend_from_slice(value.as_bytes());
            self.out.push(b'"');
        }
    }

    /// For values whose text needs no escaping: hashes and addresses.
    fn plain(&mut self, name: &str, value: Option<impl Display>) {
        if let Some(value) = value {
            self.name(name);
            let _infallible = write!(self.out, "\"{value}\"");
        }
    }

    fn number(&mut self, name: &str, value: Option<impl Into<u64>>) {
        if let Some(value) = value {
            self.name(name);
            write_number(value.into(), self.out);
        }
    }

    fn address(&mut self, name: &str, value: Ipv4Addr) {
        self.name(name);
        let mut separator = b'"';
        for part in value.octets() {
            self.out.push(separator);
            write_number(part.into(), self.out);
            separator = b'.';
        }
        self.out.push(b'"');
    }

    /// In UTC with microseconds.
    fn time(&mut self, name: &str, value: Timestamp) {
        self.name(name);
        self.out.push(b'"');
        write_time(value, self.out);
        self.out.push(b'"');
    }

    fn counted(&mut self, counted: &CountedRefusals) {
        self.number("count", Some(counted.count));
        self.name("codes");
        let mut codes = ObjectWriter { out: self.out, separator: b'{' };
        counted.codes.iter().for_each(|(code, count)| codes.number(code, Some(*count)));
        self.out.push(b'}');
        self.time("first", counted.first);
        self.time("last", counted.last);
    }

    fn raw(&mut self, name: &str, value: Option<&RawValue>) {
        let Some(value) = value else { return };
        self.name(name);
        if value.get().bytes().all(|b| matches!(b, 0x20..=0x7e)) {
            self.out.extend_from_slice(value.get().as_bytes());
        } else {
            write_value(&serde_json::from_str(value.get()).unwrap_or_default(), self.out);
        }
    }
}

/// The fields in the order of the documentation.
fn write(record: &Record, seq: u64, out: &mut Vec<u8>) {
    let mut line = ObjectWriter { out, separator: b'{' };
    line.number("seq", Some(seq));
    line.time("time", record.time);
    line.word("kind", Some(record.kind.as_str()));
    line.number("intent", record.intent);
    line.word("request", record.request.as_ref().map(RequestId::as_str));
    line.text("caller", record.caller.as_deref());
    line.plain("key", record.key);
    match &record.peer {
        Some(Peer::Ip(IpAddr::V4(address))) => line.address("peer", *address),
        Some(Peer::Ip(IpAddr::V6(address))) => line.plain("peer", Some(address)),
        Some(Peer::Unix(words)) => line.text("peer", Some(words)),
        Some(Peer::Several(words)) => line.text("peer", Some(words)),
        None => {}
    }
    line.text("operation", record.operation.as_deref());
    line.number("organization", record.organization);
    line.text("method", record.method.as_ref().map(http::Method::as_str));
    line.text("path", record.path.as_deref());
    line.raw("query", record.query.as_deref());
    line.raw("fields", record.fields.as_deref());
    line.number("status", record.status);
    line.word("answer", record.answer.map(Answer::as_str));
    line.text("refusal", record.refusal);
    line.word("filled_by", record.filled_by.as_ref().map(RequestId::as_str));
    line.number("attempts", record.attempts);
    line.number("upstream_status", record.upstream_status);
    line.word("outcome", record.outcome.map(Outcome::as_str));
    line.number("quota_wait_us", record.quota_wait_us);
    line.number("duration_us", record.duration_us);
    line.number("bytes", record.bytes);
    line.text("trace", record.trace.as_deref());
    line.text("event", record.event);
    line.text("detail", record.detail.as_deref());
    line.plain("fingerprint", record.fingerprint);
    line.plain("idempotency", record.idempotency);
    if let Some(marks) = &record.marks {
        line.name("marks");
        marks.render(line.out);
    }
    if let Some(counted) = &record.counted {
        line.counted(counted);
    }
    out.push(b'}');
}

fn write_number(number: u64, out: &mut Vec<u8>) {
    out.extend_from_slice(write_decimal(number, &mut [0; 20]));
}

/// Seconds since 1970, with their text without the zone. Most records fall in the same second as the one before.
type CachedSecond = (i64, [u8; 19]);

thread_local! {
    static SECOND: Cell<Option<CachedSecond>> = const { Cell::new(None) };
}

/// Writes what `{:.6}` would, at a fraction of the cost.
fn write_time(time: Timestamp, out: &mut Vec<u8>) {
    let (second, micros) = (time.as_microsecond().div_euclid(1_000_000), time.as_microsecond().rem_euclid(1_000_000));
    let known = SECOND.get().filter(|(of, _)| *of == second).or_else(|| {
        let text = Timestamp::from_second(second).ok()?.to_string();
        let text = text.strip_suffix('Z')?.as_bytes().try_into().ok()?;
        Some((second, text))
    });
    SECOND.set(known);
    match known {
        Some((_, text)) => {
            out.extend_from_slice(&text);
            // A leading one makes all six digits appear; the point then replaces it.
            let point = out.len();
            write_number(1_000_000 + micros.unsigned_abs(), out);
            out.iter_mut().skip(point).take(1).for_each(|one| *one = b'.');
            out.push(b'Z');
        }
        // Negative years have a sign and six digits.
        None => drop(write!(out, "{time:.6}")),
    }
}

/// Writes any JSON, with its strings escaped as in [`render`].
pub(crate) fn write_value(value: &Value, out: &mut Vec<u8>) {
    match value {
        Value::Null | Value::Bool(_) | Value::Number(_) => {
            let _infallible = write!(out, "{value}");
        }
        Value::String(text) => write_text(text, out),
        Value::Array(items) => {
            out.push(b'[');
            for (at, item) in items.iter().enumerate() {
                if at > 0 {
                    out.push(b',');
                }
                write_value(item, out);
            }
            out.push(b']');
        }
        Value::Object(members) => {
            out.push(b'{');
            for (at, (name, member)) in members.iter().enumerate() {
                if at > 0 {
                    out.push(b',');
                }
                write_text(name, out);
                out.push(b':');
                write_value(member, out);
            }
            out.push(b'}');
        }
    }
}

#[cfg(test)]
mod tests {
    use std::net::{IpAddr, Ipv4Addr};

    use super::*;
    use crate::audit::record::json_text::is_invisible;
    use crate::audit::{FieldHashes, Kind, Peer};
    use crate::ids::{Fingerprint, KeyId, RequestId};
    use crate::vocabulary::{Answer, Outcome};

    fn full() -> Record {
        let members = serde_json::from_str(r#"{"cols[]": ["id", "name"], "wait": "true"}"#).unwrap();
        Record {
            intent: Some(41),
            request: RequestId::parse(b"0197c9a0-req"),
            caller: Some("billing".into()),
            key: Some(KeyId::of(&[0xab; 32])),
            peer: Some(Peer::Ip(IpAddr::V4(Ipv4Addr::new(203, 0, 113, 4)))),
            operation: Some("payments.create".into()),
            organization: Some(11),
            method: Some(http::Method::POST),
            path: Some("/api/v2/organizations/11/payments".into()),
            query: Some(object(&members)),
            fields: RawValue::from_string("{\"price\":\n 3}".to_owned()).ok(),
            status: Some(200),
            answer: Some(Answer::Forwarded),
            refusal: Some("MG401"),
            filled_by: RequestId::parse(b"r0"),
            attempts: Some(2),
            upstream_status: Some(201),
            outcome: Some(Outcome::Done),
            quota_wait_us: Some(1500),
            duration_us: Some(73_000),
            bytes: Some(512),
            trace: Some("00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01".into()),
            event: Some("example"),
            detail: Some("says \"hi\"\n\u{1b}[31m\u{202e}\u{85}é".into()),
            fingerprint: Some(Fingerprint::of(b"key", &[])),
            idempotency: Some(Fingerprint::of(b"key", &[])),
            marks: Some(FieldHashes::new([("name".into(), Fingerprint::of(b"key", &[]))]).unwrap()),
            counted: Some(Box::new(CountedRefusals {
                count: 3,
                codes: vec![("MG111", 2), ("MG112", 1)],
                first: "2026-07-01T11:59:00Z".parse().unwrap(),
                last: "2026-07-01T11:59:59.25Z".parse().unwrap(),
            })),
            ..Record::new(Kind::Outcome, "2026-07-01T12:00:00.5Z".parse().unwrap())
        }
    }

    fn line(record: &Record, max: usize) -> String {
        let mut out = b"before".to_vec();
        render(record, 42, max, &mut out);
        String::from_utf8(out).unwrap().strip_prefix("before").unwrap().to_owned()
    }

    #[test]
    fn the_line_of_a_record_with_everything() {
        let golden = concat!(
            r#"{"seq":42,"time":"2026-07-01T12:00:00.500000Z","kind":"outcome","intent":41,"request":"0197c9a0-req","#,
            r#""caller":"billing","key":"abababab","peer":"203.0.113.4","operation":"payments.create","#,
            r#""organization":11,"method":"POST","path":"/api/v2/organizations/11/payments","#,
            r#""query":{"cols[]":["id","name"],"wait":"true"},"fields":{"price":3},"status":200,"#,
            r#""answer":"forwarded","refusal":"MG401","filled_by":"r0","attempts":2,"upstream_status":201,"#,
            r#""outcome":"done","quota_wait_us":1500,"duration_us":73000,"bytes":512,"#,
            r#""trace":"00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01","event":"example","#,
            r#""detail":"says \"hi\"\u000a\u001b[31m\u202e\u0085é","fingerprint":"FINGERPRINT","idempotency":"FINGERPRINT","marks":{"name":"FINGERPRINT"},"#,
            r#""count":3,"codes":{"MG111":2,"MG112":1},"first":"2026-07-01T11:59:00.000000Z","last":"2026-07-01T11:59:59.250000Z"}"#,
        );
        let fingerprint = Fingerprint::of(b"key", &[]).to_string();
        assert_eq!(line(&full(), 8192), golden.replace("FINGERPRINT", &fingerprint));
        let names: Vec<_> = serde_json::from_str::<Map<String, Value>>(golden).unwrap().keys().cloned().collect();
        assert_eq!(names, crate::audit::COLUMNS, "the CSV columns are the fields");
    }

    #[test]
    fn times_and_numbers_are_written_as_the_standard_library_writes_them() {
        for micros in [
            0,
            1,
            999_999,
            1_000_000,
            1_793_000_000_123_456,
            -1,
            -62_000_000_000_000_001,
            -70_000_000_000_000_001,
            253_402_207_199_999_999,
        ] {
            let time = Timestamp::from_microsecond(micros).unwrap();
            let mut out = Vec::new();
            for _ in 0..2 {
                write_time(time, &mut out);
            }
            assert_eq!(String::from_utf8(out).unwrap(), format!("{time:.6}{time:.6}"));
        }
        for number in [0, 9, 10, 12_345_678_901, u64::MAX] {
            let mut out = Vec::new();
            write_number(number, &mut out);
            assert_eq!(String::from_utf8(out).unwrap(), number.to_string());
        }
    }

    #[test]
    fn fields_that_do_not_apply_are_left_out() {
        let bare = Record::new(Kind::Request, jiff::Timestamp::UNIX_EPOCH);
        assert_eq!(line(&bare, 8192), r#"{"seq":42,"time":"1970-01-01T00:00:00.000000Z","kind":"request"}"#);
    }

    #[test]
    fn a_long_record_is_cut_visibly_and_stays_json() {
        let members = |count: usize, long: usize| {
            let members = (0..count).map(|n| (format!("name{n}"), Value::from("\u{1}ä".repeat(long))));
            Some(object(&members.collect()))
        };
        let long = |bytes: usize| "/é".repeat(bytes / 3);
        let records = [
            Record { path: Some(long(100_000).into()), ..full() },
            Record { query: members(1, 100_000), ..full() },
            Record { query: members(3000, 3), fields: members(3, 9000), ..full() },
            Record {
                path: Some(long(9000).into()),
                query: members(2, 5000),
                detail: Some("\n".repeat(9000).into()),
                ..full()
            },
            Record { trace: Some("x".repeat(50_000).into()), ..full() },
            Record { query: RawValue::from_string(format!("\"{}\"", "x".repeat(9000))).ok(), ..full() },
        ];
        for (at, record) in records.iter().enumerate() {
            let line = line(record, 2048);
            assert!(line.len() <= 2048, "{at}: {}", line.len());
            let value: Value = serde_json::from_str(&line).unwrap();
            assert!(line.contains("bytes cut]") || value["trace"].is_null(), "{at}: {line}");
            assert_eq!((&value["kind"], &value["status"]), (&"outcome".into(), &200.into()));
        }
    }

    #[test]
    fn no_text_can_break_the_line() {
        for c in ('\u{0}'..='\u{2fff}').chain(['\u{feff}', '😀']) {
            let line = line(&Record { caller: Some(format!("a{c}b").into()), ..full() }, 8192);
            assert!(!line.chars().any(|c| c.is_control() || is_invisible(c)), "{c:?}: {line}");
            assert_eq!(serde_json::from_str::<Value>(&line).unwrap()["caller"], format!("a{c}b"));
        }
    }
}

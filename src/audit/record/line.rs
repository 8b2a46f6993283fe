//! Renders a record as its line: JSON of bounded length whose strings can neither break the line nor manipulate a
//! terminal.

use std::borrow::Cow;
use std::cell::RefCell;
use std::sync::Arc;

use jiff::Timestamp;
use serde::de::Error as _;
use serde::{Deserialize as _, Deserializer, Serialize, Serializer};
use serde_json::value::{RawValue, to_raw_value};
use serde_json::{Map, Value};

use super::Record;
use super::formatter::write_json;
use super::text::Text;

/// Maximum length that truncation adds to a text (`…[12345 bytes cut]`).
const MARK_BYTES: usize = 32;
/// Maximum number of truncations before all texts are dropped; only an object with very many members needs more.
const CUTS_MAX: usize = 64;

/// Appends the record's line, without a newline, to `out`. It is at most `max` bytes (at least a KiB is always
/// allowed): a longer one has its longest texts visibly truncated and stays valid JSON.
pub(crate) fn render(record: &Record<'_>, max: usize, out: &mut Vec<u8>) {
    let start = out.len();
    write_json(record, out);
    if out.len() - start > max {
        let mut cut = record.clone();
        truncate_to_fit(&mut cut, max);
        out.truncate(start);
        write_json(&Record { seq: record.seq, ..cut }, out);
    }
}

/// Truncates the longest texts of a record until its line is at most `max` bytes long, whatever its number is.
pub(crate) fn truncate_to_fit(record: &mut Record<'_>, max: usize) {
    let mut line = Vec::new();
    record.seq = u64::MAX;
    for _ in 0..CUTS_MAX {
        line.clear();
        write_json(record, &mut line);
        if line.len() <= max || record.text_bytes() == 0 {
            return;
        }
        cut_longest(record, line.len() - max);
    }
    (record.query, record.fields, record.detail, record.trace) = (None, None, Some("…[cut]".into()), None);
}

fn cut_longest(record: &mut Record<'_>, excess: usize) {
    let sizes = record.text_sizes();
    let longest = sizes.iter().max().copied().unwrap_or(0);
    match sizes.iter().position(|size| *size == longest) {
        Some(0) => record.query = record.query.take().map(|object| cut_object(&object, excess)),
        Some(1) => record.fields = record.fields.take().map(|object| Cow::Owned(cut_object(&object, excess))),
        Some(2) => record.path = record.path.take().map(|path| cut_text(&path, excess).into()),
        Some(3) => record.detail = record.detail.take().map(|detail| cut_text(&detail, excess).into()),
        _ => record.trace = None,
    }
}

/// `text`, visibly truncated if it exceeds `bytes_max`.
pub fn truncate(text: &str, bytes_max: usize) -> Arc<str> {
    match text.len().checked_sub(bytes_max) {
        None | Some(0) => text.into(),
        Some(excess) => cut_text_by(text, excess, char::len_utf8).into(),
    }
}

/// Shortens `text` by at least `excess` bytes of its line, where escapes make it longer, if it is that long.
fn cut_text(text: &str, excess: usize) -> String {
    let mut escaped = Vec::new();
    cut_text_by(text, excess, |c| {
        escaped.clear();
        write_json(&c, &mut escaped);
        escaped.len().saturating_sub(2) // without the quotes
    })
}

/// Shortens `text` by at least `excess` bytes as `length` counts them, and appends the mark.
fn cut_text_by(text: &str, excess: usize, mut length: impl FnMut(char) -> usize) -> String {
    let mut left = excess.saturating_add(MARK_BYTES);
    let mut kept = text.chars();
    while left > 0
        && let Some(c) = kept.next_back()
    {
        left = left.saturating_sub(length(c));
    }
    let kept = kept.as_str();
    format!("{kept}…[{} bytes cut]", text.len() - kept.len())
}

/// Truncates the object's longest member. What is not an object, or has nothing long in it, is replaced by a mark as
/// a whole.
fn cut_object(original: &RawValue, excess: usize) -> Box<RawValue> {
    let whole = || Value::from(cut_text(original.get(), original.get().len()));
    let mut members: Map<String, Value> = serde_json::from_str(original.get()).unwrap_or_default();
    let longest = members.iter_mut().map(|(_, value)| (value.to_string().len(), value)).max_by_key(|(len, _)| *len);
    match longest {
        Some((len, value)) if len > MARK_BYTES => {
            let text = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
            *value = cut_text(&text, excess).into();
        }
        Some(_) | None => members = Map::from_iter([("cut".to_owned(), whole())]),
    }
    object(&members)
}

/// A JSON object with these members, for `query` and `fields`.
#[must_use]
pub fn object(members: &impl Serialize) -> Box<RawValue> {
    to_raw_value(members).unwrap_or_default()
}

thread_local! {
    /// Seconds since 1970, with their text without the zone. Most records fall in the same second as the one before.
    static SECOND: RefCell<(i64, String)> = const { RefCell::new((i64::MIN, String::new())) };
}

/// Calls `with` with the text of this second.
fn with_second<R>(second: i64, with: impl FnOnce(&mut String) -> R) -> R {
    SECOND.with_borrow_mut(|(known, text)| {
        if *known != second {
            let whole = Timestamp::from_second(second).unwrap_or_default();
            (*known, *text) = (second, whole.to_string().trim_end_matches('Z').to_owned());
        }
        with(text)
    })
}

fn split(time: &Timestamp) -> (i64, i64) {
    (time.as_microsecond().div_euclid(1_000_000), time.as_microsecond().rem_euclid(1_000_000))
}

/// Writes what `{:.6}` would (UTC with microseconds), at a fraction of the cost.
pub(crate) fn micros<S: Serializer>(time: &Timestamp, serializer: S) -> Result<S::Ok, S::Error> {
    let (second, micros) = split(time);
    with_second(second, |text| {
        let length = text.len();
        let (mut left, mut fraction) = (micros, *b".000000Z");
        for digit in fraction.iter_mut().skip(1).take(6).rev() {
            *digit = b'0' + u8::try_from(left % 10).unwrap_or(0);
            left /= 10;
        }
        text.push_str(str::from_utf8(&fraction).unwrap_or_default());
        let written = serializer.serialize_str(text);
        text.truncate(length);
        written
    })
}

/// Reads a time, and what [`micros`] wrote at a fraction of the cost.
pub(crate) fn read_micros<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Timestamp, D::Error> {
    let text = Text::deserialize(deserializer)?;
    let known = SECOND.with_borrow(|(second, known)| {
        let micros = text.strip_prefix(known.as_str())?.strip_prefix('.')?.strip_suffix('Z')?;
        let plain = !known.is_empty() && micros.len() == 6 && micros.bytes().all(|b| b.is_ascii_digit());
        plain.then(|| Timestamp::from_microsecond(second * 1_000_000 + micros.parse::<i64>().ok()?).ok())?
    });
    known.map_or_else(|| text.parse().inspect(|time| with_second(split(time).0, |_| ())).map_err(D::Error::custom), Ok)
}

#[cfg(test)]
mod tests {
    use std::net::{IpAddr, Ipv4Addr};

    use super::*;
    use crate::audit::record::AdoptedWrite;
    use crate::audit::{CountedRefusals, FieldHashes, Kind, Peer};
    use crate::hash;
    use crate::ids::{Fingerprint, KeyId, RequestId, is_invisible};
    use crate::vocabulary::{Answer, CredentialKind, Outcome};

    fn full() -> Record<'static> {
        let members: Map<String, Value> =
            serde_json::from_str(r#"{"cols[]": ["id", "name"], "wait": "true"}"#).unwrap();
        Record {
            intent: Some(41),
            request: RequestId::parse(b"0197c9a0-req"),
            caller: Some("billing".into()),
            key: Some(KeyId::of(&[0xab; 32])),
            credential: Some(CredentialKind::Token),
            operator: Some("anna".into()),
            peer: Some(Peer::Ip(IpAddr::V4(Ipv4Addr::new(203, 0, 113, 4)))),
            operation: Some("payments.create".into()),
            organization: Some(11),
            method: Some(http::Method::POST),
            path: Some("/api/v2/organizations/11/payments".into()),
            query: Some(object(&members)),
            fields: RawValue::from_string("{\"price\":\n 3}".to_owned()).ok().map(Cow::Owned),
            status: Some(200),
            answer: Some(Answer::Forwarded),
            refusal: Some("MG401".into()),
            filled_by: RequestId::parse(b"r0"),
            attempts: Some(2),
            spent: Some(1),
            upstream_status: Some(201),
            outcome: Some(Outcome::Done),
            quota_wait_us: Some(1500),
            duration_us: Some(73_000),
            bytes: Some(512),
            trace: Some("00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01".into()),
            event: Some("example".into()),
            detail: Some("says \"hi\"\n\u{1b}[31m\u{202e}\u{85}é".into()),
            fingerprint: Some(Fingerprint::of(&hash::hmac_key(b"key"), &[])),
            idempotency: Some(Fingerprint::of(&hash::hmac_key(b"key"), &[])),
            marks: Some(FieldHashes::new([("name".into(), Fingerprint::of(&hash::hmac_key(b"key"), &[]))]).unwrap()),
            adopted: Some(Box::new(AdoptedWrite {
                id: Fingerprint::of(&hash::hmac_key(b"key"), &[]),
                replica: "makegate-1".into(),
                time: "2026-07-01T11:58:00Z".parse().unwrap(),
            })),
            counted: Some(Box::new(CountedRefusals {
                count: 3,
                codes: vec![("MG111".into(), 2), ("MG112".into(), 1)],
                first: "2026-07-01T11:59:00Z".parse().unwrap(),
                last: "2026-07-01T11:59:59.25Z".parse().unwrap(),
            })),
            ..Record::new(Kind::Outcome, "2026-07-01T12:00:00.5Z".parse().unwrap())
        }
    }

    fn line(record: &Record<'_>, max: usize) -> String {
        let mut out = b"before".to_vec();
        render(&Record { seq: 42, ..record.clone() }, max, &mut out);
        String::from_utf8(out).unwrap().strip_prefix("before").unwrap().to_owned()
    }

    #[test]
    fn the_line_of_a_record_with_everything() {
        let golden = concat!(
            r#"{"seq":42,"time":"2026-07-01T12:00:00.500000Z","kind":"outcome","intent":41,"request":"0197c9a0-req","#,
            r#""caller":"billing","key":"abababab","credential":"token","operator":"anna","peer":"203.0.113.4","operation":"payments.create","#,
            r#""organization":11,"method":"POST","path":"/api/v2/organizations/11/payments","#,
            r#""query":{"cols[]":["id","name"],"wait":"true"},"fields":{"price":3},"status":200,"#,
            r#""answer":"forwarded","refusal":"MG401","filled_by":"r0","attempts":2,"spent":1,"upstream_status":201,"#,
            r#""outcome":"done","quota_wait_us":1500,"duration_us":73000,"bytes":512,"#,
            r#""trace":"00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01","event":"example","#,
            r#""detail":"says \"hi\"\u000a\u001b[31m\u202e\u0085é","fingerprint":"FINGERPRINT","idempotency":"FINGERPRINT","marks":{"name":"FINGERPRINT"},"#,
            r#""adopted":{"id":"FINGERPRINT","replica":"makegate-1","time":"2026-07-01T11:58:00.000000Z"},"#,
            r#""count":3,"codes":{"MG111":2,"MG112":1},"first":"2026-07-01T11:59:00.000000Z","last":"2026-07-01T11:59:59.250000Z"}"#,
        );
        let fingerprint = Fingerprint::of(&hash::hmac_key(b"key"), &[]).to_string();
        assert_eq!(line(&full(), 8192), golden.replace("FINGERPRINT", &fingerprint));
        let names: Vec<_> = serde_json::from_str::<Map<String, Value>>(golden).unwrap().keys().cloned().collect();
        assert_eq!(names, crate::audit::COLUMNS, "the CSV columns are the fields");
    }

    #[test]
    fn times_are_written_as_their_own_display_writes_them() {
        for micros in [
            0, 1, 999_999, 1_000_000, 1_793_000_000_123_456, -1, -62_000_000_000_000_001, -70_000_000_000_000_001,
            253_402_207_199_999_999,
        ] {
            let time = Timestamp::from_microsecond(micros).unwrap();
            let lines: Vec<_> = (0..2).map(|_| line(&Record::new(Kind::Request, time), 8192)).collect();
            assert!(lines.iter().all(|line| line.contains(&format!("\"time\":\"{time:.6}\""))), "{lines:?}");
            let read = lines.iter().chain(&lines).map(|line| Record::parse(line.as_bytes()).unwrap().time);
            assert!(read.into_iter().all(|read| read == time), "{lines:?}");
        }
        let of = |text: &str| {
            let line = format!(r#"{{"seq":1,"time":"{text}","kind":"event"}}"#);
            Record::parse(line.as_bytes()).map(|record| record.time)
        };
        for text in ["2026-07-01T12:00:00.5Z", "2026-07-01T12:00:00.123456Z", "2026-07-01T12:00:00.000001+02:00"] {
            assert_eq!(of(text), text.parse().ok());
        }
        for text in [".123456Z", "2026-07-01T12:00:00.+12345Z", "2026-07-01T12:00:00.-12345Z", ""] {
            assert!(of(text).is_none(), "{text}");
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
            Some(object(&members.collect::<Map<_, _>>()))
        };
        let long = |bytes: usize| "/é".repeat(bytes / 3);
        let records = [
            Record { path: Some(long(100_000).into()), ..full() },
            Record { query: members(1, 100_000), ..full() },
            Record { query: members(3000, 3), fields: members(3, 9000).map(Cow::Owned), ..full() },
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

    /// Escapes make a text longer than its bytes; only what exceeds the line is cut.
    #[test]
    fn a_text_that_must_be_escaped_is_cut_no_further_than_the_line_demands() {
        for text in ["\u{1}\u{85}", "\"", "a\u{202e}", "\u{1}ééé", "😀\u{e0001}"] {
            let note = text.repeat(3900 / text.len());
            let line = line(
                &Record { detail: Some(note.clone().into()), ..Record::new(Kind::Settlement, Timestamp::UNIX_EPOCH) },
                2048,
            );
            let value: Value = serde_json::from_str(&line).unwrap();
            let (kept, mark) = value["detail"].as_str().unwrap().rsplit_once('…').unwrap();
            assert!(note.starts_with(kept) && mark.ends_with("bytes cut]"), "{text:?}: {mark}");
            assert!(line.len() <= 2048 && line.len() > 1900, "{text:?}: {}", line.len());
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

//! How one value looks to people: times, lengths of time, sizes, parts of a whole, ids, sentences.

use jiff::Timestamp;
use maud::{Markup, html};

use super::query::encode;
use crate::ids::escape_invisible;

/// A longer id is shown by its end.
const ID_CHARS_MAX: usize = 16;
const ID_END_CHARS: usize = 12;
/// Words that are longer may be broken anywhere.
const WORD_CHARS_MAX: usize = 32;

const MINUTE: u64 = 60;
const HOUR: u64 = 60 * MINUTE;
const DAY: u64 = 24 * HOUR;
/// From so many seconds on, a date says more than the number of days.
const DATE_FROM: u64 = 30 * DAY;

/// Has it a word that would make its column too wide?
pub(super) fn is_long(text: &str) -> bool {
    time_of(text).is_none() && text.split(' ').any(|word| word.len() > WORD_CHARS_MAX)
}

/// The text of a cell; a time is short.
pub(super) fn text(text: &str, now: Timestamp) -> Markup {
    time_of(text).map_or_else(|| text_of(text), |at| written_time(at, text, now))
}

/// The text; a long one may break after each slash.
fn text_of(text: &str) -> Markup {
    html! {
        @if is_long(text) {
            @for part in escape_invisible(text).split_inclusive('/') { (part) wbr; }
        } @else {
            (sentence(text))
        }
    }
}

/// The time, if the text is one as records have it.
fn time_of(text: &str) -> Option<Timestamp> {
    let is_one = text.starts_with(|first: char| first.is_ascii_digit()) && text.ends_with('Z');
    is_one.then(|| text.parse().ok()).flatten()
}

/// A time: `3 min ago`, and on hover `2026-11-30 01:38:18.313405 UTC`. The script counts on from there.
pub(super) fn time(at: Timestamp, now: Timestamp) -> Markup {
    written_time(at, &at.to_string(), now)
}

/// The same of a time that is written so in a record.
fn written_time(at: Timestamp, written: &str, now: Timestamp) -> Markup {
    html! { time.ago datetime=(written) title=(whole_time(written)) { (ago(at, now)) } }
}

/// An hour that something is counted by: `Nov 30 01:00`.
pub(super) fn hour(at: Timestamp) -> Markup {
    let written = at.to_string();
    html! { time datetime=(written) title=(whole_time(&written)) { (hour_text(at)) } }
}

/// The same as text.
pub(super) fn hour_text(at: Timestamp) -> String {
    at.strftime("%b %-d %H:%M").to_string()
}

fn whole_time(written: &str) -> String {
    written.replace('T', " ").replace('Z', " UTC")
}

/// How long ago it was, or how soon it comes; a date if that is long. The script has the same.
fn ago(at: Timestamp, now: Timestamp) -> String {
    let seconds = now.duration_since(at).as_secs();
    let length = match seconds.unsigned_abs() {
        0 => return "now".to_owned(),
        short @ ..MINUTE => format!("{short} s"),
        minutes @ MINUTE..HOUR => format!("{} min", minutes / MINUTE),
        hours if hours < 2 * DAY => format!("{} h", hours / HOUR),
        days if days < DATE_FROM => format!("{} d", days / DAY),
        _ => return at.strftime("%Y-%m-%d").to_string(),
    };
    if seconds > 0 { format!("{length} ago") } else { format!("in {length}") }
}

/// A sentence; what stands in backticks is code.
pub(super) fn sentence(text: &str) -> Markup {
    let text = escape_invisible(text);
    html! {
        @for (at, part) in text.split('`').enumerate() {
            @if at % 2 == 0 { (part) } @else { code { (part) } }
        }
    }
}

/// A request's id, which leads to its story. Only its end is shown: ids begin with their time.
pub(super) fn request(id: &str) -> Markup {
    let shown = match id.char_indices().nth_back(ID_END_CHARS - 1) {
        Some((at, _)) if id.len() > ID_CHARS_MAX => format!("…{}", id.get(at..).unwrap_or_default()),
        _ => id.to_owned(),
    };
    let id = escape_invisible(id);
    html! {
        span.id data-copy=(id) {
            a href={ "/audit/record?request=" (encode(&id)) } title=(id) { code { (escape_invisible(&shown)) } }
        }
    }
}

/// Whose quota: an organization's, or the account's.
pub(super) fn quota_name(organization: Option<u64>) -> String {
    organization.map_or_else(|| "the account".to_owned(), |id| format!("organization {id}"))
}

/// A length of time with three digits: `940 µs`, `3.34 ms`, `1.20 s`, `2 min 5 s`, `3 h 10 min`.
pub(super) fn duration(us: u64) -> String {
    let seconds = us / 1_000_000;
    match us {
        0 => "0".to_owned(),
        1..1_000 => format!("{us} µs"),
        1_000..1_000_000 => format!("{} ms", three_digits(us as f64 / 1e3)),
        1_000_000..60_000_000 => format!("{} s", three_digits(us as f64 / 1e6)),
        60_000_000..3_600_000_000 => format!("{} min {} s", seconds / 60, seconds % 60),
        3_600_000_000.. => format!("{} h {} min", seconds / 3600, seconds / 60 % 60),
    }
}

/// `≤ 2.50 ms`: the upper bound of a bucket of durations, or a dash if there is none.
pub(super) fn bound(us: Option<u64>) -> String {
    us.map_or_else(|| "–".to_owned(), |us| format!("≤ {}", duration(us)))
}

/// A number of bytes with three digits: `512 B`, `64.0 KiB`, `1.50 GiB`.
pub(super) fn bytes(count: u64) -> String {
    const UNITS: [&str; 5] = ["KiB", "MiB", "GiB", "TiB", "PiB"];
    if count < 1024 {
        return format!("{count} B");
    }
    let mut size = count as f64 / 1024.0;
    let mut unit = 0;
    while size >= 1024.0 && unit + 1 < UNITS.len() {
        size /= 1024.0;
        unit += 1;
    }
    format!("{} {}", three_digits(size), UNITS.get(unit).copied().unwrap_or_default())
}

fn three_digits(value: f64) -> String {
    let places = match value {
        ..9.995 => 2,
        ..99.95 => 1,
        _ => 0,
    };
    format!("{value:.places$}")
}

/// A part of a whole, if there is a whole.
pub(super) fn ratio(part: u64, whole: u64) -> Option<f64> {
    (whole > 0).then(|| part as f64 / whole as f64)
}

/// `87 %`, or a dash if there was nothing.
pub(super) fn percent(ratio: Option<f64>) -> String {
    ratio.map_or_else(|| "–".to_owned(), |ratio| format!("{:.0} %", ratio * 100.0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_told_by_how_long_ago_they_were_and_whole_on_hover() {
        let now: Timestamp = "2026-11-30T01:41:20Z".parse().unwrap();
        let shown = text("2026-11-30T01:38:18.313405Z", now).into_string();
        let expected = r#"<time class="ago" datetime="2026-11-30T01:38:18.313405Z" title="2026-11-30 01:38:18.313405 UTC">3 min ago</time>"#;
        assert_eq!(shown, expected);
        let told = |seconds: i64| ago(now - jiff::SignedDuration::from_secs(seconds), now);
        let past = [0, 1, 59, 60, 3599, 3600, 172_799, 172_800, 2_591_999, 2_592_000].map(told);
        let expected = [
            "now", "1 s ago", "59 s ago", "1 min ago", "59 min ago", "1 h ago", "47 h ago", "2 d ago", "29 d ago",
            "2026-10-31",
        ];
        assert_eq!(past, expected);
        assert_eq!([-5, -7_200].map(told), ["in 5 s", "in 2 h"]);
        assert!(hour("2026-11-30T09:00:00Z".parse().unwrap()).into_string().ends_with(">Nov 30 09:00</time>"));
    }

    #[test]
    fn ids_lead_to_their_stories_whatever_they_hold() {
        let shown = request("01a22a16-761a-742f-94c9-7fad181eb422").into_string();
        let link = r#"href="/audit/record?request=01a22a16%2D761a%2D742f%2D94c9%2D7fad181eb422""#;
        assert!(shown.contains(link) && shown.contains("<code>…7fad181eb422</code>"), "{shown}");
        assert!(request("deploy-7.1").into_string().contains("<code>deploy-7.1</code>"));
        let strange = request("éééééééééééééééé\u{202e}\"<b>").into_string();
        assert!(!strange.contains("<b>") && !strange.contains('\u{202e}'), "{strange}");
    }

    #[test]
    fn what_stands_in_backticks_is_code() {
        let shown = text("see `keys` & more", Timestamp::UNIX_EPOCH).into_string();
        assert_eq!(shown, "see <code>keys</code> &amp; more");
    }

    #[test]
    fn durations_and_sizes_have_three_digits() {
        let durations = [0, 940, 3_339, 11_394, 999_900, 1_200_000, 125_000_000, 11_400_000_000].map(duration);
        let expected = ["0", "940 µs", "3.34 ms", "11.4 ms", "1000 ms", "1.20 s", "2 min 5 s", "3 h 10 min"];
        assert_eq!(durations, expected);
        assert_eq!([None, Some(250), Some(2_500)].map(bound), ["–", "≤ 250 µs", "≤ 2.50 ms"]);
        assert_eq!([0, 1023, 65_536, 1_610_612_736].map(bytes), ["0 B", "1023 B", "64.0 KiB", "1.50 GiB"]);
    }
}

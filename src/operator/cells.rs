//! How the cell of a table looks to people. What it holds is told by the name of its column, and times by how they are written.

use jiff::Timestamp;
use maud::{Markup, html};

use super::query::encode;
use crate::ids::escape_invisible;

/// A longer id is shown by its end.
const ID_CHARS_MAX: usize = 16;
const ID_END_CHARS: usize = 12;
/// Words that are longer may be broken anywhere.
const WORD_CHARS_MAX: usize = 32;

/// What a column holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum CellKind {
    /// The id of a request.
    Request,
    /// What records can be searched by.
    Searched,
    /// A length of time, in so many microseconds.
    Duration {
        unit_us: u64,
    },
    Bytes,
    /// An HTTP status.
    Status,
    Other,
}

/// A column as people see it.
pub(super) struct ColumnView {
    name: &'static str,
    kind: CellKind,
    is_number: bool,
}

impl ColumnView {
    /// The column of this name, with the cells in it.
    pub(super) fn of<'a>(name: &'static str, cells: impl Iterator<Item = &'a str>) -> Self {
        let kind = match name {
            "request" => CellKind::Request,
            "caller" | "organization" => CellKind::Searched,
            "status" => CellKind::Status,
            _ if name.ends_with("_us") => CellKind::Duration { unit_us: 1 },
            _ if name.ends_with("_ms") => CellKind::Duration { unit_us: 1000 },
            _ if name == "bytes" || name.ends_with("_bytes") => CellKind::Bytes,
            _ => CellKind::Other,
        };
        let is_number = match kind {
            CellKind::Request | CellKind::Searched | CellKind::Status => false,
            CellKind::Duration { .. } | CellKind::Bytes => true,
            CellKind::Other => {
                let mut filled = cells.filter(|cell| !cell.is_empty()).peekable();
                filled.peek().is_some() && filled.all(is_number)
            }
        };
        Self { name, kind, is_number }
    }

    /// Its heading: units stand with the numbers.
    pub(super) fn heading(&self) -> String {
        let unit = ["_us", "_ms"].into_iter().find_map(|unit| self.name.strip_suffix(unit));
        unit.unwrap_or(self.name).replace('_', " ")
    }

    pub(super) fn head(&self) -> Markup {
        html! { th scope="col" class=[self.is_number.then_some("n")] { (self.heading()) } }
    }

    /// A cell of it. In a narrow window each cell stands beside its label.
    pub(super) fn cell(&self, text: &str) -> Markup {
        let is_status = self.kind == CellKind::Status;
        let class = if self.is_number {
            Some("n")
        } else if is_status && text >= "500" {
            Some("bad")
        } else if is_status && text >= "400" {
            Some("warn")
        } else {
            (self.kind != CellKind::Request && is_long(text)).then_some("long")
        };
        let label = (!text.is_empty()).then(|| self.heading());
        html! { td class=[class] data-label=[label] { @if !text.is_empty() { (self.content(text)) } } }
    }

    fn content(&self, text: &str) -> Markup {
        let number = text.parse::<u64>().ok();
        match (self.kind, number) {
            (CellKind::Request, _) => request(text),
            (CellKind::Searched, id) if self.name == "caller" || id.is_some() => {
                html! { a.plain href={ "/audit?" (self.name) "=" (encode(text)) } { (escape_invisible(text)) } }
            }
            (CellKind::Duration { unit_us }, Some(count)) => {
                html! { span title={ (count) " " (self.unit()) } { (duration(count.saturating_mul(unit_us))) } }
            }
            (CellKind::Bytes, Some(count)) => html! { span title={ (count) " bytes" } { (bytes(count)) } },
            _ => self::text(text),
        }
    }

    fn unit(&self) -> &'static str {
        if self.name.ends_with("_us") { "µs" } else { "ms" }
    }
}

/// Has it a word that would make its column too wide?
pub(super) fn is_long(text: &str) -> bool {
    time_of(text).is_none() && text.split(' ').any(|word| word.len() > WORD_CHARS_MAX)
}

/// The text of a cell; a time is short.
pub(super) fn text(text: &str) -> Markup {
    time_of(text).map_or_else(|| text_of(text), |at| written_time(at, text))
}

/// The text; a long one may break after each slash.
fn text_of(text: &str) -> Markup {
    let text = escape_invisible(text);
    html! {
        @if is_long(&text) {
            @for part in text.split_inclusive('/') { (part) wbr; }
        } @else {
            (sentence(&text))
        }
    }
}

/// `17`, `0.5`, `50 %` or `600/min`.
fn is_number(cell: &str) -> bool {
    let number = cell.split('/').next().unwrap_or_default().trim_end_matches(" %");
    number.bytes().all(|byte| byte.is_ascii_digit() || byte == b'.') && number.parse::<f64>().is_ok()
}

/// The time, if the text is one as records have it.
fn time_of(text: &str) -> Option<Timestamp> {
    let is_one = text.starts_with(|first: char| first.is_ascii_digit()) && text.ends_with('Z');
    is_one.then(|| text.parse().ok()).flatten()
}

/// A time: `Nov 30 01:38:18`, and on hover `2026-11-30 01:38:18.313405 UTC`.
pub(super) fn time(at: Timestamp) -> Markup {
    written_time(at, &at.to_string())
}

/// The same of a time that is written so in a record.
fn written_time(at: Timestamp, written: &str) -> Markup {
    let whole = written.replace('T', " ").replace('Z', " UTC");
    html! { time datetime=(written) title=(whole) { (at.strftime("%b %-d %H:%M:%S")) } }
}

/// A sentence; what stands in backticks is code.
pub(super) fn sentence(text: &str) -> Markup {
    html! {
        @for (at, part) in text.split('`').enumerate() {
            @if at % 2 == 0 { (part) } @else { code { (part) } }
        }
    }
}

/// A request's id, which leads to its records. Only its end is shown: ids begin with their time.
pub(super) fn request(id: &str) -> Markup {
    let shown = match id.char_indices().nth_back(ID_END_CHARS - 1) {
        Some((at, _)) if id.len() > ID_CHARS_MAX => format!("…{}", id.get(at..).unwrap_or_default()),
        _ => id.to_owned(),
    };
    let id = escape_invisible(id);
    html! {
        span.id data-copy=(id) {
            a href={ "/audit?request=" (encode(&id)) } title=(id) { code { (escape_invisible(&shown)) } }
        }
    }
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

#[cfg(test)]
mod tests {
    use super::*;

    fn cell(name: &'static str, text: &str) -> String {
        ColumnView::of(name, std::iter::once(text)).cell(text).into_string()
    }

    #[test]
    fn numbers_stand_to_the_right_with_their_units() {
        assert_eq!(cell("spent", "17"), r#"<td class="n" data-label="spent">17</td>"#);
        assert_eq!(
            cell("waited_us", "3339"),
            r#"<td class="n" data-label="waited"><span title="3339 µs">3.34 ms</span></td>"#
        );
        assert_eq!(cell("rate", "600/min"), r#"<td class="n" data-label="rate">600/min</td>"#);
        assert_eq!(cell("rate_used", "50 %"), r#"<td class="n" data-label="rate used">50 %</td>"#);
        assert_eq!(cell("detail", "17 of 20"), r#"<td data-label="detail">17 of 20</td>"#);
        assert_eq!(cell("detail", ""), "<td></td>");
        let mixed = ColumnView::of("value", ["17", "seventeen"].into_iter());
        assert!(!mixed.is_number);
    }

    #[test]
    fn times_are_short_and_whole_on_hover() {
        let shown = cell("time", "2026-11-30T01:38:18.313405Z");
        let expected = r#"<td data-label="time"><time datetime="2026-11-30T01:38:18.313405Z" title="2026-11-30 01:38:18.313405 UTC">Nov 30 01:38:18</time></td>"#;
        assert_eq!(shown, expected);
    }

    #[test]
    fn what_stands_in_backticks_is_code() {
        assert!(cell("why", "see `keys` & more").contains(">see <code>keys</code> &amp; more<"));
    }

    #[test]
    fn ids_lead_to_their_records_whatever_they_hold() {
        let shown = cell("request", "01a22a16-761a-742f-94c9-7fad181eb422");
        assert!(shown.contains(r#"href="/audit?request=01a22a16%2D761a%2D742f%2D94c9%2D7fad181eb422""#), "{shown}");
        assert!(shown.contains("<code>…7fad181eb422</code>"), "{shown}");
        assert!(cell("request", "deploy-7.1").contains("<code>deploy-7.1</code>"));
        let strange = cell("request", "éééééééééééééééé\u{202e}\"<b>");
        assert!(!strange.contains("<b>") && !strange.contains('\u{202e}'), "{strange}");
        assert!(cell("caller", "a&b").contains(r#"href="/audit?caller=a%26b""#));
        assert!(cell("organization", "11").contains("href") && !cell("organization", "account").contains("href"));
    }

    #[test]
    fn durations_and_sizes_have_three_digits() {
        let durations = [0, 940, 3_339, 11_394, 999_900, 1_200_000, 125_000_000, 11_400_000_000].map(duration);
        let expected = ["0", "940 µs", "3.34 ms", "11.4 ms", "1000 ms", "1.20 s", "2 min 5 s", "3 h 10 min"];
        assert_eq!(durations, expected);
        assert_eq!([0, 1023, 65_536, 1_610_612_736].map(bytes), ["0 B", "1023 B", "64.0 KiB", "1.50 GiB"]);
    }
}

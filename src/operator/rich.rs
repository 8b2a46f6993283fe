//! Tables and lists whose cells lead somewhere.

use maud::{Markup, html};

use super::cells;
use crate::ids::escape_invisible;

/// A cell as people see it.
#[derive(Clone, Debug)]
pub(super) enum RichCell {
    Text(String),
    /// A text that leads to this address.
    Link(String, String),
}

impl RichCell {
    pub(super) fn text(text: impl ToString) -> Self {
        Self::Text(text.to_string())
    }

    pub(super) fn link(text: impl ToString, to: impl Into<String>) -> Self {
        Self::Link(text.to_string(), to.into())
    }

    fn shown(&self) -> &str {
        match self {
            Self::Text(text) | Self::Link(text, _) => text,
        }
    }
}

/// The table, or the hint if it has no rows. In a narrow window each cell stands beside its label.
pub(super) fn table(columns: &[&str], rows: &[Vec<RichCell>], hint: &str) -> Markup {
    let headings: Vec<String> = columns.iter().map(|column| column.replace('_', " ")).collect();
    html! {
        @if rows.is_empty() {
            p.empty { (hint) }
        } @else {
            div.wide tabindex="0" role="region" aria-label={ "Table by " (headings.first().map_or("", String::as_str)) } {
                table {
                    thead { tr { @for heading in &headings { th scope="col" { (heading) } } } }
                    tbody {
                        @for row in rows {
                            tr { @for (heading, cell) in headings.iter().zip(row) { (data(heading, cell)) } }
                        }
                    }
                }
            }
        }
    }
}

fn data(heading: &str, cell: &RichCell) -> Markup {
    let shown = cell.shown();
    let number = shown.starts_with(|first: char| first.is_ascii_digit()) && shown.len() < 16 && !shown.contains('-');
    html! {
        td class=[if number { Some("n") } else { cells::is_long(shown).then_some("long") }] data-label=[(!shown.is_empty()).then_some(heading)] {
            @match cell {
                RichCell::Text(text) => (cells::text(text)),
                RichCell::Link(text, to) => a href=(to) { (cells::text(text)) },
            }
        }
    }
}

/// A sentence with what stands in backticks as code.
pub(super) fn in_code(sentence: &str) -> Markup {
    cells::sentence(&escape_invisible(sentence))
}

/// `≤ 2.5 ms`: the upper bound of a bucket of durations.
pub(super) fn bound_text(bound_us: Option<u64>) -> String {
    match bound_us {
        None => "–".to_owned(),
        Some(us) if us < 1000 => format!("≤ {us} µs"),
        Some(us) if us < 1_000_000 => format!("≤ {} ms", us as f64 / 1e3),
        Some(us) => format!("≤ {} s", us as f64 / 1e6),
    }
}

/// `1.25 s`: a length of time.
pub(super) fn duration_text(us: u64) -> String {
    match us {
        0..1_000 => format!("{us} µs"),
        1_000..1_000_000 => format!("{:.1} ms", us as f64 / 1e3),
        _ => format!("{:.1} s", us as f64 / 1e6),
    }
}

/// A part of a whole, if there is a whole.
pub(super) fn ratio(part: u64, whole: u64) -> Option<f64> {
    (whole > 0).then(|| part as f64 / whole as f64)
}

/// `87 %`, or a dash if there was nothing.
pub(super) fn percent_text(ratio: Option<f64>) -> String {
    ratio.map_or_else(|| "–".to_owned(), |ratio| format!("{:.0} %", ratio * 100.0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_in_a_cell_is_text_and_its_address_too() {
        let rows = [vec![RichCell::link("<b>\u{202e}", "/a?b=\"<c>"), RichCell::text("=1")]];
        let shown = table(&["one", "two"], &rows, "none").into_string();
        assert!(shown.contains("href=\"/a?b=&quot;&lt;c&gt;\"") && shown.contains("&lt;b&gt;\\u{202e}"), "{shown}");
        assert_eq!(table(&["one"], &[], "none").into_string(), "<p class=\"empty\">none</p>");
        assert_eq!(in_code("see `a<b`.").into_string(), "see <code>a&lt;b</code>.");
    }

    #[test]
    fn latency_is_told_in_fitting_units() {
        let texts = [None, Some(250), Some(2500), Some(10_000_000)].map(bound_text);
        assert_eq!(texts, ["–", "≤ 250 µs", "≤ 2.5 ms", "≤ 10 s"]);
        assert_eq!([999, 2_500, 1_250_000].map(duration_text), ["999 µs", "2.5 ms", "1.2 s"]);
    }
}

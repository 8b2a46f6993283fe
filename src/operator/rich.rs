//! Tables as people see them: cells lead somewhere, numbers stand to the right with their units, times are short. What a column holds is
//! told by its name where its cells do not tell it.

use jiff::Timestamp;
use maud::{Markup, html};

use super::cells;
use super::query::encode;
use super::table::PageTable;

/// Columns whose cells are names, even if they are made of digits alone.
const NAMES: [&str; 6] = ["caller", "organization", "status", "request", "key", "code"];

/// A cell as people see it.
#[derive(Clone, Debug)]
pub(super) enum RichCell {
    Text(String),
    /// A text that leads to this address.
    Link(String, String),
    /// The id of a request.
    Request(String),
    /// A length of time, in microseconds.
    Duration(u64),
    Bytes(u64),
    /// A number with its unit.
    Quantity(String),
    /// An hour that something is counted by, which leads to this address.
    Hour(Timestamp, String),
}

impl RichCell {
    pub(super) fn text(text: impl ToString) -> Self {
        Self::Text(text.to_string())
    }

    pub(super) fn link(text: impl ToString, to: impl Into<String>) -> Self {
        Self::Link(text.to_string(), to.into())
    }

    pub(super) fn request(id: impl ToString) -> Self {
        Self::Request(id.to_string())
    }

    /// A caller, which leads to its page.
    pub(super) fn caller(name: &str) -> Self {
        Self::link(name, format!("/callers?name={}", encode(name)))
    }

    /// An organization, which leads to its records; or words for several, or none.
    pub(super) fn organization(text: &str) -> Self {
        match text.parse::<u64>() {
            Ok(id) => Self::link(id, format!("/audit?organization={id}")),
            Err(_) => Self::text(text),
        }
    }

    /// What stands in this column of a table for spreadsheets.
    fn of(column: &str, text: &str) -> Self {
        let number = text.parse::<u64>().ok();
        match (column, number) {
            _ if text.is_empty() => Self::text(""),
            ("request", _) => Self::request(text),
            ("caller", _) => Self::caller(text),
            ("organization", _) => Self::organization(text),
            (_, Some(us)) if column.ends_with("_us") => Self::Duration(us),
            (_, Some(ms)) if column.ends_with("_ms") => Self::Duration(ms.saturating_mul(1000)),
            ("bytes", Some(count)) => Self::Bytes(count),
            (_, Some(count)) if column.ends_with("_bytes") => Self::Bytes(count),
            _ => Self::text(text),
        }
    }

    fn words(&self) -> &str {
        match self {
            Self::Text(text) | Self::Link(text, _) | Self::Quantity(text) => text,
            Self::Request(_) | Self::Duration(_) | Self::Bytes(_) | Self::Hour(..) => "",
        }
    }

    fn is_empty(&self) -> bool {
        matches!(self, Self::Text(text) | Self::Link(text, _) | Self::Request(text) if text.is_empty())
    }

    fn is_quantity(&self) -> bool {
        match self {
            Self::Text(text) | Self::Link(text, _) => is_number(text),
            Self::Duration(_) | Self::Bytes(_) | Self::Quantity(_) => true,
            Self::Request(_) | Self::Hour(..) => false,
        }
    }

    fn html(&self, now: Timestamp) -> Markup {
        match self {
            Self::Text(text) | Self::Quantity(text) => cells::text(text, now),
            Self::Link(text, to) => html! { a href=(to) { (cells::text(text, now)) } },
            Self::Request(id) => cells::request(id),
            Self::Duration(us) => html! { span title={ (us) " µs" } { (cells::duration(*us)) } },
            Self::Bytes(count) => html! { span title={ (count) " bytes" } { (cells::bytes(*count)) } },
            Self::Hour(at, to) => html! { a href=(to) { (cells::hour(*at)) } },
        }
    }
}

/// `17`, `0.5`, `50 %` or `600/min`.
fn is_number(text: &str) -> bool {
    let number = text.split('/').next().unwrap_or_default().trim_end_matches(" %");
    number.bytes().all(|byte| byte.is_ascii_digit() || byte == b'.') && number.parse::<f64>().is_ok()
}

/// A column as people see it.
struct RichColumn {
    heading: String,
    is_number: bool,
    is_status: bool,
}

impl RichColumn {
    /// The column of this name, with the cells in it.
    fn of<'a>(name: &str, cells: impl Iterator<Item = &'a RichCell>) -> Self {
        let mut filled = cells.filter(|cell| !cell.is_empty()).peekable();
        let is_number = !NAMES.contains(&name) && filled.peek().is_some() && filled.all(RichCell::is_quantity);
        // Units stand with the numbers.
        let unit = ["_us", "_ms"].into_iter().find_map(|unit| name.strip_suffix(unit));
        Self { heading: unit.unwrap_or(name).replace('_', " "), is_number, is_status: name == "status" }
    }

    fn head(&self) -> Markup {
        html! { th scope="col" class=[self.is_number.then_some("n")] { (self.heading) } }
    }

    /// A cell of it. In a narrow window each cell stands beside its label.
    fn cell(&self, cell: &RichCell, now: Timestamp) -> Markup {
        let class = match cell.words() {
            _ if self.is_number => Some("n"),
            status if self.is_status && status >= "500" => Some("bad"),
            status if self.is_status && status >= "400" => Some("warn"),
            words => cells::is_long(words).then_some("long"),
        };
        let label = (!cell.is_empty()).then_some(&self.heading);
        html! { td class=[class] data-label=[label] { @if !cell.is_empty() { (cell.html(now)) } } }
    }
}

/// The table, or the hint if it has no rows. It scrolls in a box of its own if it is too wide.
pub(super) fn table(columns: &[&str], rows: &[Vec<RichCell>], hint: &str, now: Timestamp) -> Markup {
    let column = |(at, name): (usize, &&str)| RichColumn::of(name, rows.iter().filter_map(move |row| row.get(at)));
    let columns: Vec<_> = columns.iter().enumerate().map(column).collect();
    html! {
        @if rows.is_empty() {
            p.empty { (hint) }
        } @else {
            div.wide tabindex="0" role="region" aria-label={ "Table by " (columns.first().map_or("", |first| &first.heading)) } {
                table {
                    thead { tr { @for column in &columns { (column.head()) } } }
                    tbody { @for row in rows { tr { @for (column, cell) in columns.iter().zip(row) { (column.cell(cell, now)) } } } }
                }
            }
        }
    }
}

/// The same of the rows for spreadsheets.
pub(super) fn table_of(table: &PageTable, hint: &str, now: Timestamp) -> Markup {
    let row = |row: &Vec<String>| table.columns.iter().zip(row).map(|(name, text)| RichCell::of(name, text)).collect();
    let rows: Vec<_> = table.rows.iter().map(row).collect();
    self::table(table.columns, &rows, hint, now)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cell(name: &str, text: &str) -> String {
        let rows = [vec![RichCell::of(name, text)]];
        let shown = table(&[name], &rows, "none", Timestamp::UNIX_EPOCH).into_string();
        format!("<td{}</td>", shown.split("<td").nth(1).unwrap().split("</td>").next().unwrap())
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
        assert_eq!(cell("status", "503"), r#"<td class="bad" data-label="status">503</td>"#);
        let column = |cells: [&str; 2]| RichColumn::of("value", cells.map(RichCell::text).iter()).is_number;
        assert!(column(["17", "18"]) && !column(["17", "seventeen"]));
    }

    #[test]
    fn what_is_in_a_cell_is_text_and_its_address_too() {
        let now = Timestamp::UNIX_EPOCH;
        let rows = [vec![RichCell::link("<b>\u{202e}", "/a?b=\"<c>"), RichCell::text("<script>a\u{1b}[31m")]];
        let shown = table(&["one", "two"], &rows, "none", now).into_string();
        assert!(shown.contains("href=\"/a?b=&quot;&lt;c&gt;\"") && shown.contains("&lt;b&gt;\\u{202e}"), "{shown}");
        assert!(shown.contains("&lt;script&gt;a\\u{1b}[31m"), "{shown}");
        assert!(cell("caller", "a&b").contains(r#"href="/callers?name=a%26b""#));
        assert!(cell("organization", "11").contains("href") && !cell("organization", "account").contains("href"));
    }

    #[test]
    fn a_table_without_rows_says_what_would_be_there() {
        let shown = table(&["one"], &[], "No write is in doubt.", Timestamp::UNIX_EPOCH).into_string();
        assert_eq!(shown, "<p class=\"empty\">No write is in doubt.</p>");
    }
}

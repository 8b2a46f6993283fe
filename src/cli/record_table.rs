//! Records as a table that fits the terminal: which columns, how wide, and in which colors.

use clap::builder::styling::{AnsiColor, Style};
use jiff::{SignedDuration, Timestamp};
use rustix::termios::tcgetwinsize;
use serde_json::{Map, Value};

use super::process::ColorChoice;
use super::source::variable;
use crate::clock::Clock;
use crate::ids::escape_invisible;
use crate::operator::json_cell;

/// The width where nobody says one: not on a terminal, and COLUMNS is not set.
const USUAL_WIDTH: usize = 80;
const GAP: &str = "  ";

/// A column of the table that fits. JSON, CSV and the wide table show all other fields.
struct RecordColumn {
    name: &'static str,
    /// How narrow it may become; `None`: it is shown whole, or not at all.
    least: Option<usize>,
    /// Its usual width, for records that are still to come.
    usual: usize,
    is_number: bool,
    /// The columns with low ranks get room first.
    rank: u8,
}

const fn column(name: &'static str, rank: u8, usual: usize) -> RecordColumn {
    RecordColumn { name, least: None, usual, is_number: false, rank }
}

/// Whose record it is; only records of several replicas have it.
const REPLICA: &str = "replica";

const COLUMNS: [RecordColumn; 11] = [
    RecordColumn { is_number: true, ..column("seq", 2, 6) },
    RecordColumn { least: Some(9), ..column(REPLICA, 2, 0) },
    column("time", 0, 20),
    column("kind", 9, 10),
    RecordColumn { least: Some(10), ..column("caller", 3, 18) },
    RecordColumn { least: Some(17), ..column("operation", 4, 22) },
    RecordColumn { is_number: true, ..column("org", 6, 5) },
    RecordColumn { is_number: true, ..column("status", 5, 6) },
    RecordColumn { least: Some(9), ..column("result", 1, 10) },
    RecordColumn { is_number: true, ..column("ms", 7, 9) },
    column("request", 8, 36),
];

/// The columns of the wide table with their minimum widths.
const WIDE: [(&str, usize); 11] = [
    ("seq", 7),
    ("time", 27),
    ("kind", 7),
    ("caller", 18),
    ("operation", 22),
    ("organization", 12),
    ("status", 6),
    ("result", 14),
    ("refusal", 7),
    ("ms", 8),
    ("request", 0),
];

type Members = Map<String, Value>;

/// How a table, or a story, is shown to whoever reads it.
pub(super) struct TableView {
    pub(super) width: usize,
    pub(super) has_colors: bool,
    /// If set, times are told as how long before this they were.
    pub(super) now: Option<Timestamp>,
}

impl TableView {
    /// For a file: as wide as usual and without colors.
    pub(super) const FILE: Self = Self { width: USUAL_WIDTH, has_colors: false, now: None };

    /// For stdout: as wide as the terminal, where times are relative unless the table goes on and on.
    pub(super) fn stdout(color: ColorChoice, goes_on: bool) -> Self {
        let stdout = std::io::stdout();
        let terminal = tcgetwinsize(&stdout).ok();
        let told = variable("COLUMNS").and_then(|columns| columns.parse().ok());
        let own = terminal.map(|size| usize::from(size.ws_col));
        let width = told.or(own).filter(|width| *width > 0).unwrap_or(USUAL_WIDTH);
        let now = terminal.filter(|_| !goes_on).map(|_| Clock::system().wall());
        Self { width, has_colors: color.colors(&stdout), now }
    }
}

/// A table whose rows are printed one at a time.
pub(super) struct RecordTable {
    view: TableView,
    /// The width of each column; 0: not shown.
    widths: [usize; COLUMNS.len()],
}

impl RecordTable {
    /// A table for records that are still to come.
    pub(super) fn of_any(view: TableView) -> Self {
        let widths = fit(view.width, COLUMNS.map(|column| column.usual));
        Self { view, widths }
    }

    /// A table for these records.
    pub(super) fn of<'l>(view: TableView, records: impl Iterator<Item = &'l str>) -> Self {
        let mut natural = [0; COLUMNS.len()];
        for line in records {
            let members = members(line);
            for (natural, column) in natural.iter_mut().zip(&COLUMNS) {
                *natural = cell(&members, column.name, view.now).chars().count().max(*natural);
            }
        }
        let widths = fit(view.width, natural);
        Self { view, widths }
    }

    pub(super) fn header(&self) -> String {
        let bold = Style::new().bold();
        self.row(|column| (column.name.to_uppercase(), bold))
    }

    /// One record, given as its line in the log.
    pub(super) fn record(&self, line: &str) -> String {
        let members = members(line);
        self.row(|column| (cell(&members, column.name, self.view.now), style(&members, column.name)))
    }

    fn row(&self, cell: impl Fn(&RecordColumn) -> (String, Style)) -> String {
        let shown = COLUMNS.iter().zip(self.widths).filter(|(_, width)| *width > 0);
        let mut row = String::new();
        let mut gap = 0;
        for (column, width) in shown {
            let (text, style) = cell(column);
            let text = if column.least.is_some() { cut(text, width) } else { text };
            let missing = width.saturating_sub(text.chars().count());
            let (before, after) = if column.is_number { (missing, 0) } else { (0, missing) };
            if text.is_empty() {
                gap += width + GAP.len();
                continue;
            }
            row.extend(std::iter::repeat_n(' ', gap + before));
            if self.view.has_colors && style != Style::new() {
                row += &format!("{style}{text}{style:#}");
            } else {
                row += &text;
            }
            gap = after + GAP.len();
        }
        row
    }
}

/// The ranks of the columns that are there only if those before them need not be cut for it.
const FURTHER: u8 = 7;

/// The widths of the columns within this width, given how wide their widest cells are. First the important columns by rank, each as narrow
/// as it may be; what is left makes them as wide as they would be, the least important one first because it was cut most, and then adds
/// further columns.
fn fit(width: usize, natural: [usize; COLUMNS.len()]) -> [usize; COLUMNS.len()] {
    let mut widths = [0; COLUMNS.len()];
    let columns = widths.iter_mut().zip(&COLUMNS).zip(natural);
    let columns = columns.filter(|((_, column), natural)| *natural > 0 || column.name != REPLICA);
    let mut by_rank: Vec<_> =
        columns.map(|((width, column), natural)| (column, natural.max(column.name.len()), width)).collect();
    by_rank.sort_by_key(|(column, ..)| column.rank);
    let further = by_rank.partition_point(|(column, ..)| column.rank < FURTHER);
    let (important, further) = by_rank.split_at_mut(further);
    let mut left = width + GAP.len();
    for (column, natural, width) in important.iter_mut() {
        let least = column.least.map_or(*natural, |least| least.min(*natural));
        match left.checked_sub(least + GAP.len()) {
            Some(rest) => (left, **width) = (rest, least),
            // The first column is there in any case.
            None if column.rank == 0 => (left, **width) = (0, least),
            None => break,
        }
    }
    for (_, natural, width) in important.iter_mut().rev().filter(|(.., width)| **width > 0) {
        let more = natural.saturating_sub(**width).min(left);
        (left, **width) = (left - more, **width + more);
    }
    for (_, natural, width) in further {
        let Some(rest) = left.checked_sub(*natural + GAP.len()) else { break };
        (left, **width) = (rest, *natural);
    }
    widths
}

/// The text, or as much of it as fits and an ellipsis.
fn cut(text: String, width: usize) -> String {
    if text.chars().count() <= width {
        return text;
    }
    text.chars().take(width.saturating_sub(1)).chain(['…']).collect()
}

pub(super) fn wide_header() -> String {
    wide_row(WIDE.map(|(name, _)| name.to_uppercase()))
}

/// One record, given as its line in the log, with whole times and nothing cut.
pub(super) fn wide_record(line: &str) -> String {
    let members = members(line);
    wide_row(WIDE.map(|(name, _)| match name {
        "time" => text(&members, "time"),
        "result" => text_of_first(&members, &RESULT),
        name => cell(&members, name, None),
    }))
}

fn wide_row(cells: [String; WIDE.len()]) -> String {
    let padded = cells.iter().zip(WIDE).map(|(cell, (_, width))| format!("{cell:width$}"));
    padded.collect::<Vec<_>>().join(GAP).trim_end().to_owned()
}

fn members(line: &str) -> Members {
    serde_json::from_str(line).unwrap_or_default()
}

/// A write has an outcome, a request an answer, an event a name, and `refusals` a count.
const RESULT: [&str; 4] = ["outcome", "answer", "event", "count"];

fn text(record: &Members, name: &str) -> String {
    escape_invisible(&json_cell(record.get(name)))
}

fn text_of_first(record: &Members, names: &[&str]) -> String {
    names.iter().map(|name| text(record, name)).find(|found| !found.is_empty()).unwrap_or_default()
}

fn cell(record: &Members, column: &str, now: Option<Timestamp>) -> String {
    match column {
        "time" => time(&text(record, "time"), now),
        "caller" if record.contains_key("count") => text_of_first(record, &["caller", "peer"]),
        "org" => text(record, "organization"),
        // There is no column of its own for the code of a refusal, or for what only an intent is.
        "result" => match (text(record, "outcome"), text(record, "refusal")) {
            (outcome, code) if !outcome.is_empty() => format!("{outcome} {code}").trim_end().to_owned(),
            (_, code) if !code.is_empty() => code,
            (..) => text_of_first(record, &["answer", "event", "count", "kind"]),
        },
        "ms" => match record.get("duration_us").and_then(Value::as_u64) {
            Some(micros) => format!("{}.{:03}", micros / 1000, micros % 1000),
            None => String::new(),
        },
        name => text(record, name),
    }
}

/// A record's time: how long ago it was, or to the second.
fn time(written: &str, now: Option<Timestamp>) -> String {
    let Ok(time) = written.parse::<Timestamp>() else { return written.to_owned() };
    match now {
        Some(now) => ago(now.duration_since(time)).unwrap_or_else(|| format!("{time:.0}").chars().take(10).collect()),
        None => format!("{time:.0}"),
    }
}

/// `None`: so long ago that the date says more.
pub(super) fn ago(time: SignedDuration) -> Option<String> {
    match time.as_secs() {
        ..=0 => Some("now".to_owned()),
        seconds @ 1..60 => Some(format!("{seconds}s ago")),
        seconds @ 60..3600 => Some(format!("{}m ago", seconds / 60)),
        seconds @ 3600..172_800 => Some(format!("{}h ago", seconds / 3600)),
        seconds @ 172_800..2_592_000 => Some(format!("{}d ago", seconds / 86_400)),
        _ => None,
    }
}

/// What is wrong stands out, what came from memory is green.
fn style(record: &Members, column: &str) -> Style {
    let word = |name: &str| record.get(name).and_then(Value::as_str).unwrap_or_default();
    let color = |color: AnsiColor| Style::new().fg_color(Some(color.into()));
    match column {
        "seq" | "time" | "request" => Style::new().dimmed(),
        "status" => match record.get("status").and_then(Value::as_u64) {
            Some(500..) => color(AnsiColor::Red),
            Some(400..) => color(AnsiColor::Yellow),
            Some(_) | None => Style::new(),
        },
        "result" => match (word("outcome"), word("answer")) {
            ("in-doubt", _) => color(AnsiColor::Red).bold(),
            ("rejected" | "not-sent", _) | (_, "refused" | "stale") => color(AnsiColor::Yellow),
            ("done", _) | (_, "hit") => color(AnsiColor::Green),
            (_, _) => Style::new(),
        },
        _ => Style::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const RECORD: &str = r#"{"seq":7,"time":"2026-07-01T12:00:00.000000Z","kind":"outcome","request":"r\u001b[2J","caller":"a",
        "operation":"payments.create","organization":11,"status":200,"answer":"forwarded","outcome":"done","duration_us":1250}"#;

    #[test]
    fn a_row_shows_what_became_of_a_record_and_nothing_that_a_terminal_would_obey() {
        let words = |row: &str| row.split_whitespace().map(str::to_owned).collect::<Vec<_>>();
        let time = "2026-07-01T12:00:00.000000Z";
        let shown = ["7", time, "outcome", "a", "payments.create", "11", "200", "done", "1.250", "r\\u{1b}[2J"];
        assert_eq!(words(&wide_record(RECORD)), shown);
        let table = RecordTable::of_any(TableView { width: 200, has_colors: false, now: None });
        let shown = ["7", "2026-07-01T12:00:00Z", "outcome", "a", "payments.create", "11", "200", "done", "1.250"];
        assert_eq!(words(&table.record(RECORD)), [&shown[..], &["r\\u{1b}[2J"]].concat());
    }

    #[test]
    fn a_table_fits_every_width_and_takes_what_there_is() {
        let long =
            RECORD.replace("payments.create", &"o".repeat(60)).replace("\"a\"", &format!("\"{}\"", "c".repeat(60)));
        for width in 40..300 {
            let view = || TableView { width, has_colors: false, now: None };
            for table in [RecordTable::of_any(view()), RecordTable::of(view(), [&*long].into_iter())] {
                let rows = [table.header(), table.record(RECORD), table.record(&long)];
                assert!(rows.iter().all(|row| row.chars().count() <= width), "{width}: {rows:#?}");
                assert!(rows[1].contains("2026-07-01T12:00:00Z") && rows[1].contains("done"), "{width}: {rows:#?}");
            }
        }
        let view = |width| TableView { width, has_colors: false, now: None };
        assert!(RecordTable::of(view(80), [&*long].into_iter()).record(&long).contains("ccccc…"));
        assert!(RecordTable::of(view(240), [&*long].into_iter()).record(&long).contains(&"o".repeat(60)));
    }

    #[test]
    fn times_are_told_by_their_distance() {
        let now: Timestamp = "2026-07-01T12:00:00Z".parse().unwrap();
        let told =
            |before: i64| time(&now.checked_sub(SignedDuration::from_secs(before)).unwrap().to_string(), Some(now));
        let times = [-5, 0, 59, 60, 3599, 7200, 86_400 * 3, 86_400 * 40].map(told);
        assert_eq!(times, ["now", "now", "59s ago", "1m ago", "59m ago", "2h ago", "3d ago", "2026-05-22"]);
    }
}

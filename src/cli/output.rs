//! Output on stdout: tables for people, one JSON object per line, or CSV.

use std::fmt::Write as _;
use std::io::{self, Write as _};

use clap::ValueEnum;
use comfy_table::{Table, presets};
use serde_json::{Map, Value};

use crate::audit::csv_cell;
use crate::ids::{escape_invisible, escape_invisible_in_json, escape_invisible_in_lines};
use crate::process_log::NonBlockingWriter;

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(super) enum Format {
    /// Aligned columns for people.
    Table,
    /// One JSON object per line.
    Json,
    /// Comma-separated values with a header (RFC 4180).
    Csv,
}

/// The form of a report.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(super) enum ReportFormat {
    /// For people.
    Text,
    /// For programs.
    Json,
}

/// Prints a line for people.
pub(super) fn line(text: &str) -> io::Result<()> {
    styled(&escape_invisible_in_lines(text))
}

/// Prints a line of JSON.
pub(super) fn json(text: &str) -> io::Result<()> {
    styled(&escape_invisible_in_json(text))
}

/// Prints a line that has colors, and in which everything hidden is escaped already.
pub(super) fn styled(text: &str) -> io::Result<()> {
    print(&format!("{text}\n"))
}

/// Prints text. If the reader has seen enough (`| head`), the rest is dropped: the command goes on, and its exit code still tells its result.
fn print(text: &str) -> io::Result<()> {
    let mut out = io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        printed => printed,
    }
}

/// Stdout of a service, which keeps running even if nobody reads its output.
pub(super) struct ServiceOutput(NonBlockingWriter);

impl ServiceOutput {
    pub(super) fn begin() -> Self {
        Self(NonBlockingWriter::begin("stdout", io::stdout(), |_, _| {}))
    }

    pub(super) fn line(&self, text: &str) {
        self.0.put(format!("{text}\n"));
    }
}

/// Prints rows under these columns.
pub(super) fn rows<const N: usize>(format: Format, columns: [&str; N], rows: &[[&str; N]]) -> io::Result<()> {
    let text = match format {
        Format::Table => table(columns, rows),
        Format::Json => rows.iter().fold(String::new(), |mut text, row| {
            let members = columns.iter().zip(row).map(|(name, value)| ((*name).to_owned(), Value::from(*value)));
            let object = Value::Object(members.collect::<Map<_, _>>()).to_string();
            let _infallible = writeln!(text, "{}", escape_invisible_in_json(&object));
            text
        }),
        Format::Csv => rows.iter().fold(columns.join(",") + "\n", |mut text, row| {
            let _infallible = writeln!(text, "{}", row.map(csv_cell).join(","));
            text
        }),
    };
    print(&text)
}

fn table<const N: usize>(columns: [&str; N], rows: &[[&str; N]]) -> String {
    let mut table = Table::new();
    table.load_style(presets::NOTHING).set_header(columns.map(str::to_uppercase));
    table.add_rows(rows.iter().map(|row| row.map(escape_invisible)));
    table.column_iter_mut().for_each(|column| {
        column.set_padding((0, 2));
    });
    table.trim_fmt() + "\n"
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tables_have_columns_and_no_control_characters() {
        let shown = table(["key", "why"], &[["a", "plain é"], ["longer", "\u{1b}[31mred\nnext\u{202e}"]]);
        assert_eq!(shown, "KEY     WHY\na       plain é\nlonger  \\u{1b}[31mred\\u{a}next\\u{202e}\n");
    }
}

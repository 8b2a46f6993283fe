//! Prints records of the log to stdout or a file, one at a time.

#![expect(clippy::disallowed_methods, reason = "a command may block on its files")]

use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::path::Path;

use serde_json::{Map, Value};

use super::failure::CommandFailure;
use super::output::Format;
use crate::audit::{csv, csv_header};
use crate::ids::{escape_invisible, escape_invisible_in_json};
use crate::operator::json_cell;

/// Table columns with their minimum widths. JSON and CSV show all other fields.
const COLUMNS: [(&str, usize); 11] = [
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

pub(super) struct RecordPrinter {
    format: Format,
    out: Box<dyn Write>,
    file: Option<File>,
}

impl RecordPrinter {
    /// Prints to stdout and flushes every line.
    pub(super) fn on_stdout(format: Format) -> io::Result<Self> {
        Self::begin(format, Box::new(io::LineWriter::new(io::stdout())), None)
    }

    /// Prints to stdout or a file, buffered.
    pub(super) fn in_bulk(format: Format, path: Option<&Path>) -> Result<Self, CommandFailure> {
        let Some(path) = path else {
            return Ok(Self::begin(format, Box::new(BufWriter::new(io::stdout())), None)?);
        };
        let create = || File::create(path).and_then(|file| Ok((file.try_clone()?, file)));
        let (file, same) =
            create().map_err(|error| CommandFailure::failed(format!("--output {}: {error}", path.display())))?;
        Ok(Self::begin(format, Box::new(BufWriter::new(same)), Some(file))?)
    }

    fn begin(format: Format, mut out: Box<dyn Write>, file: Option<File>) -> io::Result<Self> {
        match format {
            Format::Table => writeln!(out, "{}", row(COLUMNS.map(|(name, _)| name.to_uppercase())))?,
            Format::Csv => writeln!(out, "{}", csv_header())?,
            Format::Json => {}
        }
        Ok(Self { format, out, file })
    }

    /// Prints one record, given as its line in the log.
    pub(super) fn print(&mut self, line: &str) -> io::Result<()> {
        match self.format {
            Format::Json => writeln!(self.out, "{}", escape_invisible_in_json(line)),
            Format::Csv => writeln!(self.out, "{}", csv(line)),
            Format::Table => {
                let record: Map<String, Value> = serde_json::from_str(line).unwrap_or_default();
                writeln!(self.out, "{}", row(COLUMNS.map(|(name, _)| cell(&record, name))))
            }
        }
    }

    /// Flushes the output, and syncs a file to disk.
    pub(super) fn end(mut self) -> io::Result<()> {
        self.out.flush()?;
        self.file.map_or(Ok(()), |file| file.sync_all())
    }
}

fn row(cells: [String; COLUMNS.len()]) -> String {
    let padded = cells.iter().zip(COLUMNS).map(|(cell, (_, width))| format!("{cell:width$}"));
    padded.collect::<Vec<_>>().join("  ").trim_end().to_owned()
}

fn cell(record: &Map<String, Value>, column: &str) -> String {
    let text = |name: &str| escape_invisible(&json_cell(record.get(name)));
    let first_of = |names: &[&str]| names.iter().map(|name| text(name)).find(|found| !found.is_empty());
    match column {
        "caller" if record.contains_key("count") => first_of(&["caller", "peer"]).unwrap_or_default(),
        // A write has an outcome, a request an answer, an event a name, and `refusals` a count.
        "result" => first_of(&["outcome", "answer", "event", "count"]).unwrap_or_default(),
        "ms" => match record.get("duration_us").and_then(Value::as_u64) {
            Some(micros) => format!("{}.{:03}", micros / 1000, micros % 1000),
            None => String::new(),
        },
        name => text(name),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_row_shows_what_became_of_a_record_and_nothing_that_a_terminal_would_obey() {
        let record = r#"{"seq":7,"time":"2026-07-01T12:00:00.000000Z","kind":"outcome","request":"r\u001b[2J","caller":"a",
            "operation":"payments.create","organization":11,"status":200,"answer":"forwarded","outcome":"done","duration_us":1250}"#;
        let record: Map<String, Value> = serde_json::from_str(record).unwrap();
        let cells = COLUMNS.map(|(name, _)| cell(&record, name));
        let shown: Vec<_> = row(cells).split_whitespace().map(str::to_owned).collect();
        let time = "2026-07-01T12:00:00.000000Z";
        assert_eq!(shown, ["7", time, "outcome", "a", "payments.create", "11", "200", "done", "1.250", "r\\u{1b}[2J"]);
    }
}

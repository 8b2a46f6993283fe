//! Prints records of the log to stdout or a file, one at a time.

use std::io::{self, BufWriter, Write};
use std::path::Path;

use clap::ValueEnum;
use serde_json::value::RawValue;
use serde_json::{Map, Value};

use super::failure::CommandFailure;
use super::new_file::NewFile;
use super::process::ColorChoice;
use super::record_table::{RecordTable, TableView, wide_header, wide_record};
use crate::audit::{csv, csv_cell, csv_header};
use crate::ids::escape_invisible_in_json;

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(super) enum RecordFormat {
    /// The columns that fit.
    Table,
    /// All columns, however wide.
    Wide,
    /// One JSON object per line.
    Json,
    /// Comma-separated values with a header (RFC 4180).
    Csv,
}

/// How a record becomes a line.
enum RecordForm {
    Table(RecordTable),
    Wide,
    Json,
    Csv,
}

impl RecordForm {
    fn new(format: RecordFormat, table: impl FnOnce() -> RecordTable) -> Self {
        match format {
            RecordFormat::Table => Self::Table(table()),
            RecordFormat::Wide => Self::Wide,
            RecordFormat::Json => Self::Json,
            RecordFormat::Csv => Self::Csv,
        }
    }

    fn header(&self) -> Option<String> {
        match self {
            Self::Table(table) => Some(table.header()),
            Self::Wide => Some(wide_header()),
            // The first record says whether there are several replicas.
            Self::Csv | Self::Json => None,
        }
    }

    fn record(&self, line: &str) -> String {
        match self {
            Self::Table(table) => table.record(line),
            Self::Wide => wide_record(line),
            Self::Csv => csv(line),
            Self::Json => escape_invisible_in_json(line),
        }
    }
}

pub(super) struct RecordPrinter {
    form: RecordForm,
    out: Box<dyn Write>,
    file: Option<NewFile>,
    /// CSV has its header, with a column for replicas or without.
    csv_replicas: Option<bool>,
}

/// The column of CSV that says whose record it is.
const REPLICA: &str = "replica";

/// The replica of a record, if it has one.
fn replica_of(line: &str) -> Option<String> {
    let record: Map<String, Value> = serde_json::from_str(line).ok()?;
    record.get(REPLICA).and_then(Value::as_str).map(str::to_owned)
}

impl RecordPrinter {
    /// Prints records of one replica as they come to stdout, and flushes every line.
    pub(super) fn on_stdout(format: RecordFormat, color: ColorChoice) -> io::Result<Self> {
        let form = RecordForm::new(format, || RecordTable::of_any(TableView::stdout(color, true)));
        let mut printer = Self::begin(form, Box::new(io::LineWriter::new(io::stdout())), None)?;
        if matches!(printer.form, RecordForm::Csv) {
            // Whoever reads it sees at once that it has begun.
            printer.csv_head(false)?;
        }
        Ok(printer)
    }

    /// Prints these records to stdout.
    pub(super) fn page(format: RecordFormat, color: ColorChoice, records: &[Box<RawValue>]) -> io::Result<()> {
        let records = || records.iter().map(|record| record.get());
        let form = RecordForm::new(format, || RecordTable::of(TableView::stdout(color, false), records()));
        let mut printer = Self::begin(form, Box::new(BufWriter::new(io::stdout())), None)?;
        records().try_for_each(|record| printer.print(record))?;
        printer.end()
    }

    /// Prints to stdout or a file, buffered. The file is there once [`RecordPrinter::end`] was called.
    pub(super) fn in_bulk(
        format: RecordFormat,
        color: ColorChoice,
        path: Option<&Path>,
    ) -> Result<Self, CommandFailure> {
        let table = |view| RecordForm::new(format, || RecordTable::of_any(view));
        let Some(path) = path else {
            let form = table(TableView::stdout(color, true));
            return Ok(Self::begin(form, Box::new(BufWriter::new(io::stdout())), None)?);
        };
        let create = || NewFile::create(path).and_then(|file| Ok((file.writer()?, file)));
        let (writer, file) =
            create().map_err(|error| CommandFailure::failed(format!("--output {}: {error}", path.display())))?;
        Ok(Self::begin(table(TableView::FILE), Box::new(BufWriter::new(writer)), Some(file))?)
    }

    fn begin(form: RecordForm, mut out: Box<dyn Write>, file: Option<NewFile>) -> io::Result<Self> {
        if let Some(header) = form.header() {
            writeln!(out, "{header}")?;
        }
        Ok(Self { form, out, file, csv_replicas: None })
    }

    /// Prints one record, given as its line in the log.
    pub(super) fn print(&mut self, line: &str) -> io::Result<()> {
        if !matches!(self.form, RecordForm::Csv) {
            return writeln!(self.out, "{}", self.form.record(line));
        }
        let replica = replica_of(line);
        match self.csv_head(replica.is_some())? {
            true => writeln!(self.out, "{},{}", self.form.record(line), csv_cell(&replica.unwrap_or_default())),
            false => writeln!(self.out, "{}", self.form.record(line)),
        }
    }

    /// Writes the header once. Returns whether it has a column for replicas.
    fn csv_head(&mut self, has_replicas: bool) -> io::Result<bool> {
        if let Some(known) = self.csv_replicas {
            return Ok(known);
        }
        self.csv_replicas = Some(has_replicas);
        let last = if has_replicas { format!(",{REPLICA}") } else { String::new() };
        writeln!(self.out, "{}{last}", csv_header())?;
        Ok(has_replicas)
    }

    /// Flushes the output. A file is synced to disk and gets its name.
    pub(super) fn end(mut self) -> io::Result<()> {
        if matches!(self.form, RecordForm::Csv) {
            self.csv_head(false)?;
        }
        self.out.flush()?;
        self.file.map_or(Ok(()), NewFile::keep)
    }
}

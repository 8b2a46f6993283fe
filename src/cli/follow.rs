//! `makegate audit follow`: records as they come, from a running gateway or from its files.

#![expect(clippy::disallowed_methods, reason = "a command may block on its files")]

use std::io;
use std::path::Path;
use std::thread;
use std::time::Duration;

use clap::Args;

use super::client::OperatorClient;
use super::failure::CommandFailure;
use super::filter_options::{FieldOptions, FilterPairs, filter};
use super::process::{self, ColorChoice};
use super::record_printer::{RecordFormat, RecordPrinter};
use super::record_source::{self, ExportedPart, number, target, unreadable};
use super::source::{DataSource, SourceOptions};
use crate::audit::FileFollower;

/// How often to look for new records in the files.
const LOOK_AGAIN: Duration = Duration::from_millis(200);

/// Shows new records as they come, until interrupted.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  makegate audit follow --url http://127.0.0.1:8081
  makegate audit follow --url http://127.0.0.1:8081 --since 10m --kind outcome
  makegate audit follow --config makegate.toml --answer refused -o json | jq .refusal
  makegate audit follow --config makegate.toml --caller dashboard --limit 1")]
pub(super) struct FollowCommand {
    #[command(flatten)]
    source_options: SourceOptions,
    #[command(flatten)]
    wanted: FieldOptions,
    /// First show the records from this time on: 2026-07-01T12:00:00Z, 2026-07-01, or how long ago (15m, 1h, 7d).
    #[arg(long, value_name = "TIME")]
    since: Option<String>,
    /// End after N records.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    limit: Option<u64>,
    /// table (as many columns as fit), wide (all columns), json (one object per line) or csv.
    #[arg(short = 'o', long, value_enum, default_value = "table", hide_possible_values = true)]
    format: RecordFormat,
}

impl FollowCommand {
    pub(super) fn run(&self, color: ColorChoice) -> Result<(), CommandFailure> {
        let pairs = self.wanted.pairs();
        let mut earlier = pairs.clone();
        earlier.extend(self.since.as_deref().map(|since| ("since", since)));
        filter(&earlier)?;
        let source = self.source_options.source(color)?;
        let printer = RecordPrinter::on_stdout(self.format, color)?;
        let mut shown = ShownRecords { printer, left: self.limit.unwrap_or(u64::MAX), newest: 0 };
        let earlier = self.since.is_some().then_some(&earlier);
        match source {
            DataSource::Files(read) => follow_files(&read.config.audit.dir, &pairs, earlier, &mut shown),
            DataSource::Running(client) => process::block_on(follow_running(&client, &pairs, earlier, &mut shown)),
        }
    }
}

/// What is shown so far, and how much more is wanted.
struct ShownRecords {
    printer: RecordPrinter,
    left: u64,
    /// The number of the newest record that was shown.
    newest: u64,
}

impl ShownRecords {
    /// Shows a record, unless it was shown already.
    fn show(&mut self, line: &str) -> io::Result<()> {
        match number(line) {
            Some(number) if number <= self.newest => return Ok(()),
            Some(number) => self.newest = number,
            None => return self.printer.print(line),
        }
        self.printer.print(line)?;
        self.left -= 1;
        // As if the reader had closed the pipe: it has seen enough.
        if self.left == 0 { Err(io::ErrorKind::BrokenPipe.into()) } else { Ok(()) }
    }
}

/// First from where the files end now, so that nothing is missing in between, then what was there before.
fn follow_files(
    dir: &Path,
    pairs: &FilterPairs<'_>,
    earlier: Option<&FilterPairs<'_>>,
    shown: &mut ShownRecords,
) -> Result<(), CommandFailure> {
    let mut follow = FileFollower::open(dir, filter(pairs)?).map_err(|error| unreadable(dir, &error))?;
    if let Some(earlier) = earlier {
        record_source::of_files(dir, &filter(earlier)?, ExportedPart::default(), &mut |line| shown.show(line))?;
    }
    loop {
        match follow.poll().map_err(|error| unreadable(dir, &error))? {
            Some(line) => shown.show(&line)?,
            None => thread::sleep(LOOK_AGAIN),
        }
    }
}

/// The same from a running gateway, until it ends.
async fn follow_running(
    client: &OperatorClient,
    pairs: &FilterPairs<'_>,
    earlier: Option<&FilterPairs<'_>>,
    shown: &mut ShownRecords,
) -> Result<(), CommandFailure> {
    let mut lines = client.lines(&target("/audit/follow", pairs)).await?;
    if let Some(earlier) = earlier {
        // What is new is that replica's alone.
        let mut earlier = earlier.clone();
        let own = record_source::own_replica(client).await?;
        earlier.extend(own.as_deref().map(|name| (record_source::REPLICA, name)));
        let end = record_source::before_newest(client, &earlier, false).await?;
        let part = ExportedPart::default();
        record_source::of_running(client, &earlier, part, end, &mut |line| shown.show(line)).await?;
    }
    while let Some(line) = lines.next().await? {
        shown.show(&line)?;
    }
    Ok(())
}

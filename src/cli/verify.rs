//! `makegate audit verify` and `makegate audit head`: verifies the log, and exports the head that proves it later.

#![expect(clippy::disallowed_methods, reason = "a command may block on its files")]

use std::fs;
use std::io::{self, IsTerminal as _, Write as _};
use std::path::{Path, PathBuf};

use clap::Args;
use serde::Deserialize;

use super::failure::{CommandFailure, FAILED};
use super::filter_options::FilterPairs;
use super::output::{self, ReportFormat};
use super::process::{self, ColorChoice};
use super::record_source::{REPLICA, require_running, target};
use super::source::{DataSource, SourceOptions};
use crate::audit::{self, AuditorInput, Head, Verifier, VerifyReport};
use crate::ids::escape_invisible;

/// Verifies that no record was altered, removed, added or moved.
///
/// DIR is the folder in audit.dir, or a copy of it; a gateway may be running. The folder's own signed head covers all
/// but the newest records. Anyone who can write to the folder can forge the head together with its key, or restore an
/// old copy; a head that you exported (`makegate audit head`) and keep elsewhere detects that too. Exit code 1: the log
/// was altered, or cannot be read.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  makegate audit verify audit/
  makegate audit verify audit/ --head 2026-06-30.head --key head.pub
  makegate audit verify audit/ -o json | jq .problems")]
pub(super) struct VerifyCommand {
    /// The log's folder.
    #[arg(value_name = "DIR")]
    dir: PathBuf,
    /// An exported head that the log must match: the note, or the JSON of /audit/head.json. Can be repeated.
    #[arg(long = "head", value_name = "FILE")]
    heads: Vec<PathBuf>,
    /// A public key to trust, with the keys it introduced, instead of the folder's first key. Can be repeated.
    #[arg(long = "key", value_name = "FILE")]
    keys: Vec<PathBuf>,
    /// text or json.
    #[arg(short = 'o', long, value_enum, default_value = "text", hide_possible_values = true)]
    format: ReportFormat,
}

impl VerifyCommand {
    pub(super) fn run(&self) -> Result<(), CommandFailure> {
        let heads = self.heads.iter().map(|file| heads_of(file)).collect::<Result<Vec<_>, _>>()?;
        let keys = self.keys.iter().map(|file| keys_of(file)).collect::<Result<Vec<_>, _>>()?;
        let brought = AuditorInput { heads: heads.concat(), keys: keys.concat() };
        let mut progress = ProgressLine { is_shown: io::stderr().is_terminal(), percent: None };
        let report = audit::verify(&self.dir, &brought, &mut |read, all| progress.show(read, all));
        progress.wipe();
        let report = report.map_err(|error| CommandFailure::failed(format!("{}: {error}", self.dir.display())))?;
        output::line(&match self.format {
            ReportFormat::Json => serde_json::to_string(&report).map_err(CommandFailure::failed)?,
            ReportFormat::Text => text(&report),
        })?;
        if report.problems.is_empty() { Ok(()) } else { Err(CommandFailure::reported(FAILED)) }
    }
}

/// A progress line on the terminal.
struct ProgressLine {
    is_shown: bool,
    percent: Option<u64>,
}

impl ProgressLine {
    fn show(&mut self, read: u64, all: u64) {
        let percent = read.saturating_mul(100) / all.max(1);
        if self.is_shown && self.percent != Some(percent) {
            self.percent = Some(percent);
            let _nobody_watches = write!(io::stderr(), "\rverifying: {percent} %");
        }
    }

    fn wipe(&self) {
        if self.percent.is_some() {
            let _nobody_watches = write!(io::stderr(), "\r\x1b[K");
        }
    }
}

/// `/audit/head.json`.
#[derive(Deserialize)]
struct ServedHead {
    head: String,
}

fn read(file: &Path) -> Result<String, CommandFailure> {
    fs::read_to_string(file).map_err(|error| CommandFailure::usage(format!("{}: {error}", file.display())))
}

/// Reads the heads from a file: notes one after the other, or the JSON of the operator door.
fn heads_of(file: &Path) -> Result<Vec<(String, Head)>, CommandFailure> {
    let text = read(file)?;
    let note = serde_json::from_str(&text).map_or(text, |ServedHead { head }| head);
    let heads = audit::heads(&note).filter(|heads| !heads.is_empty());
    let wrong = || {
        let form =
            "expected the output of `makegate audit head`: a name, a size, a hash, an empty line and a signature";
        CommandFailure::usage(format!("{} is not a signed head; {form}", file.display()))
    };
    let name = file.display().to_string();
    Ok(heads.ok_or_else(wrong)?.into_iter().map(|head| (name.clone(), head)).collect())
}

fn keys_of(file: &Path) -> Result<Vec<Verifier>, CommandFailure> {
    let text = read(file)?;
    let lines = text.lines().filter(|line| !line.trim().is_empty());
    let keys: Option<Vec<Verifier>> = lines.map(|line| Verifier::parse(line.trim())).collect();
    keys.filter(|keys| !keys.is_empty()).ok_or_else(|| {
        let form = "expected the content of head.pub: NAME+ID+BASE64";
        CommandFailure::usage(format!("{} is not a public key for signed heads; {form}", file.display()))
    })
}

/// The report as text: problems, then notes, then what is proven.
fn text(report: &VerifyReport) -> String {
    let mut lines: Vec<String> = report.problems.iter().map(|problem| escape_invisible(&problem.to_string())).collect();
    if report.further_problems > 0 {
        lines.push(format!("and {} more problems", report.further_problems));
    }
    lines.extend(report.notes.iter().map(|note| format!("note: {}", escape_invisible(note))));
    let VerifyReport { records, oldest, segments, proven, unproven, in_doubt, under_way, .. } = report;
    lines.push(format!(
        "{segments} segments, records {oldest} to {records}; open writes: {under_way} in progress, {in_doubt} in doubt"
    ));
    let until = report.proven_time.map(|time| format!(", of {time:.6},")).unwrap_or_default();
    let heads = if report.heads == 1 {
        "a signed head proves".to_owned()
    } else {
        format!("{} signed heads prove", report.heads)
    };
    lines.push(match (report.heads, unproven) {
        (0, _) => "no signed head covers any of it".to_owned(),
        (_, 0) => format!("{heads} all of it"),
        (_, _) => format!("{heads} it up to record {proven}{until} but not the {unproven} records after that"),
    });
    lines.extend(report.keys.iter().map(|key| format!("key: {}", escape_invisible(key))));
    let verdict = if report.problems.is_empty() {
        "ok: the log is what was recorded"
    } else {
        "TAMPERED: the log is not what was recorded"
    };
    lines.push(verdict.to_owned());
    lines.join("\n")
}

/// Prints a signed head, which later proves that nothing was removed from the log.
///
/// Keep it where nobody who can write to the log can change it: in another system, an e-mail, a ticket. A running
/// makegate (--url) signs everything recorded so far; with --config, you get the newest stored head.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  makegate audit head --url http://127.0.0.1:8081 > \"$(date +%F).head\"
  makegate audit head --config makegate.toml
  makegate audit head --url http://127.0.0.1:8081 --replica makegate-1 > makegate-1.head")]
pub(super) struct HeadCommand {
    #[command(flatten)]
    source_options: SourceOptions,
    /// The newest head of this replica that the replicas' database has, from --url.
    #[arg(long, value_name = "NAME")]
    replica: Option<String>,
}

impl HeadCommand {
    pub(super) fn run(&self, color: ColorChoice) -> Result<(), CommandFailure> {
        let pairs: FilterPairs<'_> = self.replica.as_deref().map(|name| (REPLICA, name)).into_iter().collect();
        let note = match self.source_options.source(color)? {
            DataSource::Running(client) => {
                let text = process::block_on(client.text(&target("/audit/head.json", &pairs)))?;
                let served: ServedHead =
                    serde_json::from_str(&text).map_err(|_| client.failed("the response is not a signed head"))?;
                served.head
            }
            DataSource::Files(read) => {
                require_running(&pairs)?;
                let dir = &read.config.audit.dir;
                let none = || CommandFailure::failed(format!("{}: no signed head stored there", dir.display()));
                audit::stored_head(dir).ok_or_else(none)?.to_string()
            }
        };
        output::line(note.trim_end()).map_err(CommandFailure::from)
    }
}

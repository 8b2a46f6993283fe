//! Checks whether the log is what was recorded. One pass over its files, in record order, checks every line, every
//! sequence number, the tree that each segment begins with, every signed head, and each write's intent and outcome.
//!
//! It reads files that others may have forged, and trusts only signatures: either the records match what a key
//! signed, or there is a problem, reported with the record at fault as far as the files show it. It changes nothing,
//! and may run beside a gateway.

#![expect(clippy::disallowed_methods, reason = "only commands verify")]

mod pass;
mod trust;
mod writes;

use std::borrow::Cow;
use std::fmt;
use std::io;
use std::path::Path;
use std::time::Duration;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::super::disk::OpenError;
use super::super::{recover, segment};
use super::note::{Head, Verifier};
use pass::SegmentPass;

/// How long to wait before keys and heads that do not match each other are read again.
const LOOK_AGAIN: Duration = Duration::from_millis(50);
/// Maximum number of attempts to read a log that keeps changing.
const LOOKS_MAX: u32 = 5;
/// Maximum number of problems reported; more are only counted.
const TOLD_MAX: usize = 200;

/// What an auditor supplies from outside the log's folder.
#[derive(Clone, Debug, Default)]
pub struct AuditorInput {
    /// Exported heads, each with its source.
    pub heads: Vec<(String, Head)>,
    /// The only keys to trust, along with any that they introduced. If empty, the folder's first key is trusted.
    pub keys: Vec<Verifier>,
}

/// Something that an untouched log does not have.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct VerifyProblem {
    /// One of `altered`, `unreadable`, `missing`, `misplaced`, `cut`, `head`, `key`, `write`, `event`.
    pub what: Cow<'static, str>,
    /// The file concerned.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub file: Option<String>,
    /// The (first) record concerned.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub seq: Option<u64>,
    /// A description.
    pub detail: String,
}

impl fmt::Display for VerifyProblem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.file {
            Some(file) => write!(f, "{}: {file}: {}", self.what, self.detail),
            None => write!(f, "{}: {}", self.what, self.detail),
        }
    }
}

/// The result of verifying a log.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct VerifyReport {
    /// `ok` or `tampered`.
    pub result: Cow<'static, str>,
    /// The newest record's sequence number.
    pub records: u64,
    /// The oldest record still there; earlier ones are past the retention.
    pub oldest: u64,
    /// Number of segments.
    pub segments: usize,
    /// Size of the segments, in bytes.
    pub bytes: u64,
    /// The last record covered by a signed head.
    pub proven: u64,
    /// That record's time.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub proven_time: Option<Timestamp>,
    /// Number of records after it. Nothing proves that there were not more of them.
    pub unproven: u64,
    /// Number of heads that match.
    pub heads: usize,
    /// The keys that were trusted.
    pub keys: Vec<String>,
    /// Number of writes in doubt.
    pub in_doubt: usize,
    /// Number of writes without an outcome: under way, or in doubt after the next start.
    pub under_way: usize,
    /// What is wrong.
    pub problems: Vec<VerifyProblem>,
    /// Number of problems found beyond those.
    pub further_problems: u64,
    /// Observations that are not problems.
    pub notes: Vec<String>,
}

/// Why a log could not be verified at all.
#[derive(Debug)]
pub enum VerifyError {
    /// The folder holds no log.
    NoLog,
    /// The folder cannot be read, or a newer makegate wrote the log.
    Open(OpenError),
    /// A file cannot be read.
    Io(io::Error),
}

impl fmt::Display for VerifyError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoLog => f.write_str("there is no log segment (such as 00000000000000000001.jsonl)"),
            Self::Open(error) => error.fmt(f),
            Self::Io(error) => error.fmt(f),
        }
    }
}

impl std::error::Error for VerifyError {}

impl From<io::Error> for VerifyError {
    fn from(error: io::Error) -> Self {
        Self::Io(error)
    }
}

impl From<OpenError> for VerifyError {
    fn from(error: OpenError) -> Self {
        Self::Open(error)
    }
}

/// What has been found so far.
#[derive(Debug, Default)]
struct VerifyFindings {
    problems: Vec<VerifyProblem>,
    further: u64,
    notes: Vec<String>,
}

impl VerifyFindings {
    fn problem(&mut self, what: &'static str, file: Option<&str>, seq: Option<u64>, detail: impl Into<String>) {
        if self.problems.len() < TOLD_MAX {
            self.problems.push(VerifyProblem {
                what: what.into(),
                file: file.map(str::to_owned),
                seq,
                detail: detail.into(),
            });
        } else {
            self.further += 1;
        }
    }

    fn note(&mut self, note: impl Into<String>) {
        if self.notes.len() < TOLD_MAX {
            self.notes.push(note.into());
        }
    }

    fn is_clean(&self) -> bool {
        self.problems.is_empty()
    }
}

/// Verifies the log in this folder. `progress` receives the number of bytes read so far and the total.
///
/// # Errors
/// [`VerifyError`]: there is no log, or it cannot be read. An altered log is not an error but a [`VerifyReport`] with
/// problems.
pub fn verify(
    dir: &Path,
    brought: &AuditorInput,
    progress: &mut dyn FnMut(u64, u64),
) -> Result<VerifyReport, VerifyError> {
    let mut looks = 1;
    loop {
        let (report, has_changed) = look(dir, brought, progress)?;
        if !has_changed || looks == LOOKS_MAX {
            return Ok(report);
        }
        looks += 1;
    }
}

/// Reads all files once; returns true if problems may be due to the files changing meanwhile.
fn look(
    dir: &Path,
    brought: &AuditorInput,
    progress: &mut dyn FnMut(u64, u64),
) -> Result<(VerifyReport, bool), VerifyError> {
    let mut findings = VerifyFindings::default();
    // Read the heads first: one signed while the segments are read may cover more than was read.
    let mut trust = trust::gather(dir, brought, &mut findings)?;
    if !findings.is_clean() {
        // A gateway that starts or rotates its key replaces these files one after the other.
        std::thread::sleep(LOOK_AGAIN);
        findings = VerifyFindings::default();
        trust = trust::gather(dir, brought, &mut findings)?;
    }
    let segments = segment::list(dir)?;
    let Some(newest) = segments.last() else { return Err(VerifyError::NoLog) };
    match recover::read_opening(dir, *newest) {
        // A starting makegate puts aside a last segment that contains no record.
        Err(OpenError::Io { error, .. }) if error.kind() == io::ErrorKind::NotFound => {}
        read => drop(read?), // refuses a newer makegate's log
    }
    let sizes =
        segments.iter().map(|first| std::fs::metadata(segment::path(dir, *first)).map_or(0, |about| about.len()));
    let bytes = sizes.sum();
    let keys = trust.keys.iter().map(|key| key.verifier.to_string()).collect();
    let mut pass = SegmentPass::new(dir, trust, &mut findings);
    let mut read = 0;
    let mut tell = |more| {
        read += more;
        progress(read.min(bytes), bytes);
    };
    for (at, first) in segments.iter().enumerate() {
        pass.unlisted(*first, &mut tell)?;
        pass.segment(*first, segments.get(at + 1).copied(), &mut tell)?;
    }
    let passed = pass.finish();
    let VerifyFindings { problems, further, notes } = findings;
    let report = VerifyReport {
        result: if problems.is_empty() { "ok" } else { "tampered" }.into(),
        records: passed.records,
        oldest: passed.oldest,
        segments: segments.len(),
        bytes,
        proven: passed.proven,
        proven_time: passed.proven_time,
        unproven: passed.records.saturating_sub(passed.proven),
        heads: passed.heads,
        keys,
        in_doubt: passed.in_doubt,
        under_way: passed.under_way,
        problems,
        further_problems: further,
        notes,
    };
    Ok((report, passed.has_changed))
}

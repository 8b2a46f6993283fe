//! Is the log what was recorded? One pass over its files, in the order of the records: every line, every number, the tree
//! that each segment begins with, every signed head, and each write's intent and end.
//!
//! It reads what others may have forged, and trusts nothing but signatures: what a key signed fits the records, or there is a
//! problem, said with the record that is wrong as far as the files tell. It changes nothing, and may run beside a gateway.

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

/// Keys and heads that do not fit each other are looked at again after this.
const LOOK_AGAIN: Duration = Duration::from_millis(50);
/// How often a log is looked at that changes meanwhile.
const LOOKS_MAX: u32 = 5;
/// Problems that are told; more are counted.
const TOLD_MAX: usize = 200;

/// What an auditor brings: nothing of it is in the log's folder.
#[derive(Clone, Debug, Default)]
pub struct AuditorInput {
    /// Heads that were exported, and where each comes from.
    pub heads: Vec<(String, Head)>,
    /// The only keys to be trusted, and whatever keys they introduced; none: the first key of the folder is.
    pub keys: Vec<Verifier>,
}

/// Something that an untouched log does not have.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct VerifyProblem {
    /// Of what kind: `altered`, `unreadable`, `missing`, `misplaced`, `cut`, `head`, `key`, `write`, `event`.
    pub what: Cow<'static, str>,
    /// The file.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub file: Option<String>,
    /// The (first) record.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub seq: Option<u64>,
    /// In words.
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

/// What was found.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct VerifyReport {
    /// `ok` or `tampered`.
    pub result: Cow<'static, str>,
    /// The newest record's number.
    pub records: u64,
    /// The oldest record that is still there; the ones before are past the retention.
    pub oldest: u64,
    /// Segments.
    pub segments: usize,
    /// Their bytes.
    pub bytes: u64,
    /// Up to this record a signed head proves the log.
    pub proven: u64,
    /// That record's time.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub proven_time: Option<Timestamp>,
    /// Records after it: nothing proves that there were not more of them.
    pub unproven: u64,
    /// Heads that fit.
    pub heads: usize,
    /// The keys that were trusted.
    pub keys: Vec<String>,
    /// Writes whose effect nobody knows.
    pub in_doubt: usize,
    /// Writes without an outcome: under way, or in doubt at the next start.
    pub under_way: usize,
    /// What is wrong.
    pub problems: Vec<VerifyProblem>,
    /// Problems beyond those.
    pub further_problems: u64,
    /// What is worth knowing, and right.
    pub notes: Vec<String>,
}

/// Why nothing could be verified.
#[derive(Debug)]
pub enum VerifyError {
    /// The folder holds no log.
    NoLog,
    /// A newer makegate wrote it; or it cannot be read.
    Open(OpenError),
    /// It cannot be read.
    Io(io::Error),
}

impl fmt::Display for VerifyError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoLog => f.write_str("no segment of a log is there (00000000000000000001.jsonl, say)"),
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

/// Verifies the log of this folder. `progress` hears how many bytes have been read of how many.
///
/// # Errors
/// [`VerifyError`]: there is no log, or it cannot be read. A log that was altered is no error, but a [`VerifyReport`] with problems.
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

/// One look at all files; `true`: what is wrong may be that they changed meanwhile.
fn look(
    dir: &Path,
    brought: &AuditorInput,
    progress: &mut dyn FnMut(u64, u64),
) -> Result<(VerifyReport, bool), VerifyError> {
    let mut findings = VerifyFindings::default();
    // Heads first: one that is signed while the segments are read may cover more than was read.
    let mut trust = trust::gather(dir, brought, &mut findings)?;
    if !findings.is_clean() {
        // A gateway that starts, or exchanges its key, replaces these files one after the other.
        std::thread::sleep(LOOK_AGAIN);
        findings = VerifyFindings::default();
        trust = trust::gather(dir, brought, &mut findings)?;
    }
    let segments = segment::list(dir)?;
    let Some(newest) = segments.last() else { return Err(VerifyError::NoLog) };
    match recover::read_opening(dir, *newest) {
        // A makegate that starts puts aside a last segment in which there is no record.
        Err(OpenError::Io { error, .. }) if error.kind() == io::ErrorKind::NotFound => {}
        read => drop(read?), // a newer makegate's log is refused
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

//! Checks whether the log is what was recorded. One pass over its files, in record order, checks every line, every
//! sequence number, the tree that each segment begins with, every signed head, and each write's intent and outcome.
//!
//! It reads files that others may have forged, and trusts only signatures: either the records match what a key
//! signed, or there is a problem, reported with the record at fault as far as the files show it. It changes nothing,
//! and may run beside a gateway.

#![expect(clippy::disallowed_methods, reason = "only commands verify")]

mod findings;
mod pass;
mod trust;
mod writes;

use std::io;
use std::path::Path;
use std::time::Duration;

use crate::audit::segment::disk::OpenError;
use crate::audit::{recover, segment};
use findings::VerifyFindings;
use pass::SegmentPass;

pub use findings::{AuditorInput, VerifyProblem, VerifyReport};

/// How long to wait before keys and heads that do not match each other are read again.
const REREAD_PAUSE: Duration = Duration::from_millis(50);
/// Maximum number of attempts to read a log that keeps changing.
const READS_MAX: u32 = 5;

/// Why a log could not be verified at all.
#[derive(Debug, thiserror::Error)]
pub enum VerifyError {
    /// The folder holds no log.
    #[error("there is no log segment (such as 00000000000000000001.jsonl)")]
    NoLog,
    /// The folder cannot be read, or a newer makegate wrote the log.
    #[error(transparent)]
    Open(#[from] OpenError),
    /// A file cannot be read.
    #[error(transparent)]
    Io(#[from] io::Error),
}

/// Verifies the log in this folder. `progress` receives the number of bytes read so far and the total.
///
/// # Errors
/// [`VerifyError`]: there is no log, or it cannot be read. An altered log is not an error but a [`VerifyReport`] with
/// problems.
pub fn verify(
    dir: &Path,
    auditor_input: &AuditorInput,
    progress: &mut dyn FnMut(u64, u64),
) -> Result<VerifyReport, VerifyError> {
    let mut reads = 1;
    loop {
        let (report, has_changed) = read_once(dir, auditor_input, progress)?;
        if !has_changed || reads == READS_MAX {
            return Ok(report);
        }
        reads += 1;
    }
}

/// Reads all files once; returns true if problems may be due to the files changing meanwhile.
fn read_once(
    dir: &Path,
    auditor_input: &AuditorInput,
    progress: &mut dyn FnMut(u64, u64),
) -> Result<(VerifyReport, bool), VerifyError> {
    let mut findings = VerifyFindings::default();
    // Read the heads first: one signed while the segments are read may cover more than was read.
    let mut trust = trust::gather(dir, auditor_input, &mut findings)?;
    if !findings.is_clean() {
        // A gateway that starts or rotates its key replaces these files one after the other.
        std::thread::sleep(REREAD_PAUSE);
        findings = VerifyFindings::default();
        trust = trust::gather(dir, auditor_input, &mut findings)?;
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
    for name in segment::impostors(dir)? {
        let words = "is named like a segment, but no segment has this name: makegate did not write it";
        findings.problem("misplaced", Some(&name), None, words);
    }
    let mut pass = SegmentPass::new(dir, trust, &mut findings);
    let mut read = 0;
    let mut on_read = |more| {
        read += more;
        progress(read.min(bytes), bytes);
    };
    for (at, first) in segments.iter().enumerate() {
        pass.unlisted(*first, &mut on_read)?;
        pass.segment(*first, segments.get(at + 1).copied(), &mut on_read)?;
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

//! What an auditor brings, and what verification finds.

use std::borrow::Cow;
use std::fmt;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::super::note::{Head, Verifier};

/// Maximum number of problems reported; more are only counted.
const PROBLEMS_MAX: usize = 200;

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

/// What has been found so far.
#[derive(Debug, Default)]
pub(super) struct VerifyFindings {
    pub(super) problems: Vec<VerifyProblem>,
    pub(super) further: u64,
    pub(super) notes: Vec<String>,
}

impl VerifyFindings {
    pub(super) fn problem(
        &mut self,
        what: &'static str,
        file: Option<&str>,
        seq: Option<u64>,
        detail: impl Into<String>,
    ) {
        if self.problems.len() < PROBLEMS_MAX {
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

    pub(super) fn note(&mut self, note: impl Into<String>) {
        if self.notes.len() < PROBLEMS_MAX {
            self.notes.push(note.into());
        }
    }

    pub(super) fn is_clean(&self) -> bool {
        self.problems.is_empty()
    }
}

//! One point of the history.

use std::time::{Duration, Instant};

use jiff::Timestamp;

use crate::counters::DurationCounts;
use crate::vocabulary::Answer;

/// The most kinds of errors in a point, the most frequent ones; the others are counted together.
pub(super) const ERRORS_MAX: usize = 16;

/// What went wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(in super::super) enum ErrorKind {
    /// A refusal, by its code.
    Code(&'static str),
    /// An answer of the upstream's from 400 on.
    Status(u16),
}

impl std::fmt::Display for ErrorKind {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Code(code) => f.write_str(code),
            Self::Status(status) => write!(f, "{status}"),
        }
    }
}

/// How full a quota was.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in super::super) struct QuotaUse {
    /// `None`: the account.
    pub(in super::super) organization: Option<u64>,
    pub(in super::super) used: u32,
    pub(in super::super) limit: u32,
}

/// What happened between two looks, the later of which was at `at`.
#[derive(Clone, Debug)]
pub(in super::super) struct HistoryPoint {
    pub(in super::super) at: Instant,
    pub(in super::super) time: Timestamp,
    pub(in super::super) length: Duration,
    /// Answers, in the order of [`Answer::ALL`].
    pub(in super::super) answers: [u64; Answer::ALL.len()],
    /// Reads that looked in memory, and found something or nothing.
    pub(in super::super) hits: u64,
    pub(in super::super) misses: u64,
    /// The time that answers took, refusals apart.
    pub(in super::super) durations: DurationCounts,
    /// The time that attempts at the upstream took.
    pub(in super::super) upstream: DurationCounts,
    pub(in super::super) errors: Vec<(ErrorKind, u64)>,
    pub(in super::super) other_errors: u64,
    pub(in super::super) quota: Vec<QuotaUse>,
}

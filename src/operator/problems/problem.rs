//! One problem: what is wrong, since when, and what to do about it.

use jiff::Timestamp;
use serde::{Serialize, Serializer};

/// The most problems of one kind that have a line each; the others are counted.
pub(super) const LINES_MAX: usize = 10;

/// How bad a problem is, the worst first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub(in super::super) enum Severity {
    /// No reason to send requests here; see [`Gateway::is_ready`](crate::gateway::Gateway::is_ready).
    Failed,
    /// Some requests are refused or delayed, or what they rely on is about to end.
    Degraded,
    /// Worth a look; all requests are answered.
    Warning,
}

impl Severity {
    pub(in super::super) const fn as_str(self) -> &'static str {
        match self {
            Self::Failed => "failed",
            Self::Degraded => "degraded",
            Self::Warning => "warning",
        }
    }
}

/// What `/readyz` checks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in super::super) enum Check {
    Config,
    Log,
    Draining,
    Upstream,
    Token,
    /// The room for writes in doubt.
    Doubts,
    Telemetry,
    Quota,
    Certificates,
    /// The keys of callers.
    Keys,
    /// What replicas share.
    Replicas,
}

impl Check {
    /// In the order of `/readyz`.
    pub(in super::super) const ALL: [Self; 11] = [
        Self::Config,
        Self::Log,
        Self::Draining,
        Self::Upstream,
        Self::Token,
        Self::Doubts,
        Self::Telemetry,
        Self::Quota,
        Self::Certificates,
        Self::Keys,
        Self::Replicas,
    ];

    pub(in super::super) const fn as_str(self) -> &'static str {
        match self {
            Self::Config => "config",
            Self::Log => "log",
            Self::Draining => "draining",
            Self::Upstream => "upstream",
            Self::Token => "token",
            Self::Doubts => "doubts",
            Self::Telemetry => "telemetry",
            Self::Quota => "quota",
            Self::Certificates => "certificates",
            Self::Keys => "keys",
            Self::Replicas => "replicas",
        }
    }
}

/// One thing that is wrong.
#[derive(Clone, Debug, Serialize)]
pub(in super::super) struct Problem {
    /// Its kind, in words that do not change: `token-refused`.
    pub(in super::super) name: &'static str,
    pub(in super::super) severity: Severity,
    /// What is wrong, in a sentence.
    pub(in super::super) what: String,
    #[serde(serialize_with = "with_milliseconds")]
    pub(in super::super) since: Option<Timestamp>,
    /// What to do about it, in a sentence.
    pub(in super::super) todo: String,
    /// The page that shows more of it.
    pub(in super::super) page: String,
    /// The section of `docs/runbooks.md` that says more, if one does.
    pub(in super::super) runbook: Option<&'static str>,
    /// The check of `/readyz` that it spoils, and what that says: it names nobody, because it needs no key.
    #[serde(skip)]
    pub(in super::super) readiness: Option<(Check, &'static str)>,
}

impl Problem {
    /// Something that all requests are answered in spite of.
    pub(super) fn warning(name: &'static str, what: impl Into<String>) -> Self {
        let (what, todo, page) = (what.into(), String::new(), "/".to_owned());
        let runbook = super::runbooks::runbook(name);
        Self { name, severity: Severity::Warning, what, since: None, todo, page, runbook, readiness: None }
    }

    /// Something that `/readyz?verbose` tells, too: whatever is worse than a warning.
    pub(super) fn spoiling(
        (check, why): (Check, &'static str),
        severity: Severity,
        name: &'static str,
        what: impl Into<String>,
    ) -> Self {
        Self { severity, readiness: Some((check, why)), ..Self::warning(name, what) }
    }

    pub(super) fn since(self, since: Option<Timestamp>) -> Self {
        Self { since, ..self }
    }

    pub(super) fn todo(self, todo: impl Into<String>, page: impl Into<String>) -> Self {
        Self { todo: todo.into(), page: page.into(), ..self }
    }
}

#[expect(clippy::ref_option, reason = "serde passes the field itself")]
fn with_milliseconds<S: Serializer>(time: &Option<Timestamp>, serializer: S) -> Result<S::Ok, S::Error> {
    time.map(|time| format!("{time:.3}")).serialize(serializer)
}

/// A day and minute within a sentence.
pub(super) fn minute(at: Timestamp) -> String {
    at.strftime("%Y-%m-%d %H:%M UTC").to_string()
}

/// `1 write`, `2 writes`.
pub(super) fn counted(count: impl TryInto<u64>, one: &str, many: &str) -> String {
    match count.try_into().unwrap_or(u64::MAX) {
        1 => format!("1 {one}"),
        count => format!("{count} {many}"),
    }
}

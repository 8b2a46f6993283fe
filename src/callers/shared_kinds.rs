//! The kinds of things that callers share, apart from Make's quota.

use std::sync::Arc;

use crate::config::Limits;
use crate::shares::{ShareHolder, SharedLimit};

/// A kind of thing that callers share.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SharedKind {
    /// Requests under way (`limits.in_flight`).
    Requests,
    /// Requests waiting for another request's fetch (`limits.joined`).
    Joined,
    /// Connections (`limits.connections`).
    Connections,
    /// Bytes of request bodies (`limits.bodies_bytes`).
    Bodies,
    /// Bytes of answers under way (`limits.answers_bytes`).
    Answers,
    /// Bytes of the log's buffer (`audit.buffer_bytes`).
    Records,
    /// Writes under way or in doubt (`limits.doubts`). The log counts these, because they outlive the process.
    Doubts,
}

impl SharedKind {
    /// The name in metrics.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Requests => "requests",
            Self::Joined => "joined",
            Self::Connections => "connections",
            Self::Bodies => "body_bytes",
            Self::Answers => "answer_bytes",
            Self::Records => "record_bytes",
            Self::Doubts => "doubts",
        }
    }
}

/// One value for each kind.
#[derive(Debug)]
pub struct PerKind<T> {
    /// For requests under way.
    pub requests: T,
    /// For requests waiting for another request's fetch.
    pub joined: T,
    /// For connections.
    pub connections: T,
    /// For bytes of request bodies.
    pub bodies: T,
    /// For bytes of answers under way.
    pub answers: T,
    /// For bytes in the log's buffer.
    pub records: T,
}

impl<T> PerKind<T> {
    /// All values with their kinds.
    pub fn iter(&self) -> impl Iterator<Item = (SharedKind, &T)> {
        let Self { requests, joined, connections, bodies, answers, records } = self;
        let counts =
            [(SharedKind::Requests, requests), (SharedKind::Joined, joined), (SharedKind::Connections, connections)];
        let bytes = [(SharedKind::Bodies, bodies), (SharedKind::Answers, answers), (SharedKind::Records, records)];
        counts.into_iter().chain(bytes)
    }
}

impl PerKind<Arc<SharedLimit>> {
    /// Without limits.
    pub(super) fn unlimited() -> Self {
        let new = || SharedLimit::new(u64::MAX);
        Self { requests: new(), joined: new(), connections: new(), bodies: new(), answers: new(), records: new() }
    }

    /// Sets all limits but those of connections and the log's buffer, which are fixed at startup.
    pub(super) fn set_limits(&self, limits: &Limits) {
        let amount = |limit| u64::try_from(limit).unwrap_or(u64::MAX);
        self.requests.set_limit(amount(limits.in_flight));
        self.joined.set_limit(amount(limits.joined));
        self.bodies.set_limit(amount(limits.bodies_bytes));
        self.answers.set_limit(amount(limits.answers_bytes));
    }

    /// Creates a holder of each.
    pub(super) fn holders(&self) -> PerKind<Arc<ShareHolder>> {
        PerKind {
            requests: self.requests.holder(),
            joined: self.joined.holder(),
            connections: self.connections.holder(),
            bodies: self.bodies.holder(),
            answers: self.answers.holder(),
            records: self.records.holder(),
        }
    }
}

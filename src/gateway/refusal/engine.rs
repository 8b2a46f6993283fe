//! What a replica refuses while it cannot reach the database that all replicas share.

/// What it lacks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EngineShortage {
    /// It may not answer from memory, and cannot ask the upstream either.
    NoLease,
    /// It does not know what the others have sent.
    NoQuota,
    /// A write could be lost or doubled.
    NoWrites,
    /// The database has lost its soft state, or is an older one: the replicas are telling it what they know.
    Healing,
}

impl EngineShortage {
    pub(super) const fn detail(self) -> &'static str {
        match self {
            Self::NoLease => {
                "makegate cannot reach the database that its replicas share, and what it remembers may have changed. Nothing was sent; try again soon."
            }
            Self::NoQuota => {
                "makegate cannot reach the database that its replicas share, and does not know what they have sent. Nothing was sent; try again soon."
            }
            Self::NoWrites => {
                "makegate cannot reach the database that its replicas share, without which a write could be lost or doubled. Nothing was sent; try again soon."
            }
            Self::Healing => {
                "The database that the replicas share has lost what it kept in memory, and they are telling it what they know. Nothing was sent; try again soon."
            }
        }
    }
}

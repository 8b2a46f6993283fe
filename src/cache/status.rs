//! `Cache-Status` (RFC 9211): what the cache did for an answer.

use std::fmt;

use http::StatusCode;

/// Why a request went upstream (RFC 9211, section 2.2).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ForwardReason {
    /// The cache must not be used: a class that is not stored, an unknown parameter, or `no-store`.
    Bypass,
    /// The request is a write.
    Method,
    /// There was no usable entry.
    Miss,
    /// The entry was stale.
    Stale,
    /// The entry was fresh, but did not satisfy the request's directives.
    Request,
}

impl ForwardReason {
    /// The header's token.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Bypass => "bypass",
            Self::Method => "method",
            Self::Miss => "miss",
            Self::Stale => "stale",
            Self::Request => "request",
        }
    }
}

/// What else is to be said of an answer (RFC 9211, section 2.8), while this replica may have missed other replicas' writes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum CacheDetail {
    /// Nothing in memory was allowed to answer.
    NoLease,
    /// Memory was allowed to answer, and may not know of a write.
    Unfenced,
}

impl CacheDetail {
    /// The header's parameter.
    const fn parameter(self) -> &'static str {
        match self {
            Self::NoLease => "; detail=no-lease",
            Self::Unfenced => "; detail=unfenced",
        }
    }
}

/// A member of `Cache-Status`. Its `Display` is the header's value. `hit` and `fwd` exclude each other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CacheStatus {
    /// Answered from the cache without asking the upstream.
    Hit {
        /// Remaining freshness in seconds; negative when stale.
        ttl: i64,
        /// What else is to be said.
        detail: Option<CacheDetail>,
    },
    /// The upstream was asked, or would have been. This includes a stale entry that answers for a failed upstream,
    /// with `why` stale.
    Forward {
        /// Why.
        why: ForwardReason,
        /// The upstream's status, if it answered.
        status: Option<StatusCode>,
        /// Whether the answer was stored.
        stored: bool,
        /// Whether it shared another request's fetch.
        collapsed: bool,
        /// What else is to be said.
        detail: Option<CacheDetail>,
    },
}

impl CacheStatus {
    /// Writes the header's value. A text for each of its parts is cheaper than one that is formatted.
    ///
    /// # Errors
    /// Those of `out`.
    pub fn write(&self, out: &mut impl fmt::Write) -> fmt::Result {
        match *self {
            Self::Hit { ttl, detail } => {
                write!(out, "makegate; hit; ttl={ttl}")?;
                out.write_str(detail.map_or("", CacheDetail::parameter))
            }
            Self::Forward { why, status, stored, collapsed, detail } => {
                out.write_str("makegate; fwd=")?;
                out.write_str(why.as_str())?;
                if let Some(status) = status {
                    out.write_str("; fwd-status=")?;
                    out.write_str(status.as_str())?;
                }
                out.write_str(if stored { "; stored" } else { "" })?;
                out.write_str(if collapsed { "; collapsed" } else { "" })?;
                out.write_str(detail.map_or("", CacheDetail::parameter))
            }
        }
    }
}

impl fmt::Display for CacheStatus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.write(f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_as_rfc_9211_has_them() {
        let forward = |why, status, stored, collapsed| {
            let status = Some(status).filter(|s| *s > 0).and_then(|s| StatusCode::from_u16(s).ok());
            CacheStatus::Forward { why, status, stored, collapsed, detail: None }.to_string()
        };
        let hit = |ttl, detail| CacheStatus::Hit { ttl, detail }.to_string();
        assert_eq!(hit(299, None), "makegate; hit; ttl=299");
        assert_eq!(hit(-12, None), "makegate; hit; ttl=-12");
        assert_eq!(hit(299, Some(CacheDetail::Unfenced)), "makegate; hit; ttl=299; detail=unfenced");
        let unleased = CacheStatus::Forward {
            why: ForwardReason::Miss,
            status: Some(StatusCode::OK),
            stored: true,
            collapsed: false,
            detail: Some(CacheDetail::NoLease),
        };
        assert_eq!(unleased.to_string(), "makegate; fwd=miss; fwd-status=200; stored; detail=no-lease");
        assert_eq!(forward(ForwardReason::Miss, 200, true, false), "makegate; fwd=miss; fwd-status=200; stored");
        assert_eq!(forward(ForwardReason::Miss, 200, false, true), "makegate; fwd=miss; fwd-status=200; collapsed");
        assert_eq!(forward(ForwardReason::Stale, 503, false, false), "makegate; fwd=stale; fwd-status=503");
        assert_eq!(forward(ForwardReason::Request, 0, false, false), "makegate; fwd=request");
        assert_eq!(forward(ForwardReason::Bypass, 0, false, false), "makegate; fwd=bypass");
        assert_eq!(forward(ForwardReason::Method, 0, false, false), "makegate; fwd=method");
    }
}

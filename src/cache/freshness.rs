//! What a caller's `Cache-Control` asks for, and whether an entry satisfies it (RFC 9111, sections 4.2 and 5.2.1;
//! `docs/decisions/lifetimes.md`). Pure: no clock, no map.

use std::time::{Duration, Instant};

use http::HeaderMap;
use http::header::CACHE_CONTROL;

use super::directives;
use super::entry::Entry;
use super::status::ForwardReason;

/// A request's `Cache-Control` directives. The default has none.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RequestDirectives {
    /// Must not be answered from the cache.
    pub no_cache: bool,
    /// Nothing may be stored, and the request is forwarded on its own.
    pub no_store: bool,
    /// Must be answered from the cache.
    pub only_if_cached: bool,
    /// Maximum age of the answer.
    pub max_age: Option<Duration>,
    /// How much longer the answer must be fresh.
    pub min_fresh: Option<Duration>,
    /// How stale the answer may be; [`Duration::MAX`] for any.
    pub max_stale: Option<Duration>,
}

impl RequestDirectives {
    /// Parses the directives of these request headers. Ignores unknown directives. An unreadable value counts as the
    /// strictest, and of several values the strictest counts.
    #[must_use]
    pub fn of(headers: &HeaderMap) -> Self {
        let mut request_directives = Self::default();
        if !headers.contains_key(CACHE_CONTROL) {
            return request_directives;
        }
        directives::for_each(headers, CACHE_CONTROL, |name, value| {
            let is = |known: &str| name.eq_ignore_ascii_case(known);
            let seconds = value.and_then(directives::seconds);
            if is("no-cache") {
                request_directives.no_cache = true;
            } else if is("no-store") {
                request_directives.no_store = true;
            } else if is("only-if-cached") {
                request_directives.only_if_cached = true;
            } else if is("max-age") {
                let age = seconds.unwrap_or_default();
                request_directives.max_age = Some(request_directives.max_age.map_or(age, |known| known.min(age)));
            } else if is("min-fresh") {
                request_directives.min_fresh = request_directives.min_fresh.max(Some(seconds.unwrap_or(Duration::MAX)));
            } else if is("max-stale") {
                let stale = if value.is_none() { Duration::MAX } else { seconds.unwrap_or_default() };
                request_directives.max_stale =
                    Some(request_directives.max_stale.map_or(stale, |known| known.min(stale)));
            }
        });
        request_directives
    }

    /// The earliest start of a fetch under way that would satisfy a caller who came at `now`; its entry, had it been
    /// stored by now, would do. `None` means that any usable fetch will do.
    #[must_use]
    pub fn oldest_acceptable_fetch(&self, refresh_policy: &RefreshPolicy, now: Instant) -> Option<Instant> {
        if !refresh_policy.may_refresh {
            return None;
        }
        let floor = self.no_cache.then_some(refresh_policy.refresh_floor);
        now.checked_sub(floor.into_iter().chain(self.max_age).min()?)
    }
}

/// How far a caller's directives are honoured, because refreshing spends everybody's quota.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RefreshPolicy {
    /// `[cache] refresh_floor`: an entry this young satisfies `no-cache`.
    pub refresh_floor: Duration,
    /// The caller's `may_refresh`. Without it, no directive makes the gateway fetch what the cache holds.
    pub may_refresh: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum EntryVerdict {
    /// The entry answers the request.
    Hit,
    /// The upstream must be asked. If that fails, the entry may answer unless the caller ruled it out.
    Fetch { why: ForwardReason, fallback: bool },
}

/// Judges an entry that its fences allow.
pub(super) fn judge(
    entry: &Entry,
    request_directives: &RequestDirectives,
    refresh_policy: &RefreshPolicy,
    now: Instant,
) -> EntryVerdict {
    let binding = refresh_policy.may_refresh;
    let refreshes = request_directives.no_cache && entry.since_fetch(now) >= refresh_policy.refresh_floor;
    let ruled_out = binding && (refreshes || request_directives.max_age.is_some_and(|max| entry.age(now) > max));
    match entry.freshness(now) {
        _ if ruled_out => EntryVerdict::Fetch { why: ForwardReason::Request, fallback: false },
        Ok(left) if binding && request_directives.min_fresh.is_some_and(|min| left < min) => {
            EntryVerdict::Fetch { why: ForwardReason::Request, fallback: true }
        }
        Err(over) if request_directives.max_stale.is_none_or(|max| over > max) => {
            EntryVerdict::Fetch { why: ForwardReason::Stale, fallback: true }
        }
        Err(_) if request_directives.min_fresh.is_some() => {
            EntryVerdict::Fetch { why: ForwardReason::Stale, fallback: true }
        }
        Ok(_) | Err(_) => EntryVerdict::Hit,
    }
}

//! What a caller's `Cache-Control` asks for, and whether an entry will do (RFC 9111 sections 4.2 and 5.2.1;
//! `docs/decisions/lifetimes.md`). Pure: no clock, no map.

use std::time::{Duration, Instant};

use http::HeaderMap;
use http::header::CACHE_CONTROL;

use super::directives;
use super::entry::Entry;
use super::status::ForwardReason;

/// What a request's `Cache-Control` asks for. Without directives, nothing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RequestDirectives {
    /// Not from memory.
    pub no_cache: bool,
    /// Nothing of this is to be stored; it is forwarded by itself.
    pub no_store: bool,
    /// Only from memory.
    pub only_if_cached: bool,
    /// Not older than this.
    pub max_age: Option<Duration>,
    /// Still fresh for so long.
    pub min_fresh: Option<Duration>,
    /// Stale will do: by so much at most, [`Duration::MAX`] for any.
    pub max_stale: Option<Duration>,
}

impl RequestDirectives {
    /// What these request headers ask for. Unknown directives are ignored; a value that cannot be read counts as the
    /// strictest, and so does the strictest of several.
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

    /// The oldest fetch under way that will do for a caller who came at `now`: one whose entry, had it been stored by
    /// now, would do. `None`: any usable one.
    #[must_use]
    pub fn oldest_acceptable_fetch(&self, refresh_policy: &RefreshPolicy, now: Instant) -> Option<Instant> {
        if !refresh_policy.may_refresh {
            return None;
        }
        let floor = self.no_cache.then_some(refresh_policy.refresh_floor);
        now.checked_sub(floor.into_iter().chain(self.max_age).min()?)
    }
}

/// How far a caller's directives count: refreshing spends the quota of all.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RefreshPolicy {
    /// `[cache] refresh_floor`: `no-cache` is content with an entry this young.
    pub refresh_floor: Duration,
    /// The caller's `may_refresh`: without it, no directive makes the gateway fetch what it has in memory.
    pub may_refresh: bool,
}

/// Will an entry do?
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum EntryVerdict {
    /// It answers.
    Hit,
    /// The upstream is to be asked; when that fails, the entry may answer unless the caller has ruled it out.
    Fetch { why: ForwardReason, fallback: bool },
}

/// Judges an entry that is usable as far as its fences go.
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

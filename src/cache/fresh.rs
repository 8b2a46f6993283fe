//! What a caller's `Cache-Control` asks for, and whether an entry will do (RFC 9111 sections 4.2 and 5.2.1;
//! `docs/decisions/lifetimes.md`). Pure: no clock, no map.

use std::time::{Duration, Instant};

use http::HeaderMap;
use http::header::CACHE_CONTROL;

use super::directives;
use super::entry::Entry;
use super::status::Why;

/// A caller's request directives. Without any, nothing is asked for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Wish {
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

impl Wish {
    /// What these request headers ask for. Unknown directives are ignored; a value that cannot be read counts as the
    /// strictest, and so does the strictest of several.
    #[must_use]
    pub fn of(headers: &HeaderMap) -> Self {
        let mut wish = Self::default();
        if !headers.contains_key(CACHE_CONTROL) {
            return wish;
        }
        directives::for_each(headers, CACHE_CONTROL, |name, value| {
            let is = |known: &str| name.eq_ignore_ascii_case(known);
            let seconds = value.and_then(directives::seconds);
            if is("no-cache") {
                wish.no_cache = true;
            } else if is("no-store") {
                wish.no_store = true;
            } else if is("only-if-cached") {
                wish.only_if_cached = true;
            } else if is("max-age") {
                let age = seconds.unwrap_or_default();
                wish.max_age = Some(wish.max_age.map_or(age, |known| known.min(age)));
            } else if is("min-fresh") {
                wish.min_fresh = wish.min_fresh.max(Some(seconds.unwrap_or(Duration::MAX)));
            } else if is("max-stale") {
                let stale = if value.is_none() { Duration::MAX } else { seconds.unwrap_or_default() };
                wish.max_stale = Some(wish.max_stale.map_or(stale, |known| known.min(stale)));
            }
        });
        wish
    }

    /// The oldest fetch under way that will do for a caller who came at `now`: one whose entry, had it been stored by
    /// now, would do. `None`: any usable one.
    #[must_use]
    pub fn since(&self, terms: &Terms, now: Instant) -> Option<Instant> {
        if !terms.may_refresh {
            return None;
        }
        let floor = self.no_cache.then_some(terms.refresh_floor);
        now.checked_sub(floor.into_iter().chain(self.max_age).min()?)
    }
}

/// How far a caller's wishes go. Refreshing spends the quota of all.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Terms {
    /// `[cache] refresh_floor`: `no-cache` is content with an entry this young.
    pub refresh_floor: Duration,
    /// The caller's `may_refresh`: without it, no wish makes the gateway fetch what it has in memory.
    pub may_refresh: bool,
}

/// Will an entry do?
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    /// It answers.
    Hit,
    /// The upstream is to be asked; when that fails, the entry may answer unless the caller has ruled it out.
    Fetch { why: Why, fallback: bool },
}

/// Judges an entry that is usable as far as its fences go.
pub(super) fn judge(entry: &Entry, wish: &Wish, terms: &Terms, now: Instant) -> Verdict {
    let binding = terms.may_refresh;
    let refreshes = wish.no_cache && entry.since_birth(now) >= terms.refresh_floor;
    let ruled_out = binding && (refreshes || wish.max_age.is_some_and(|max| entry.age(now) > max));
    match entry.freshness(now) {
        _ if ruled_out => Verdict::Fetch { why: Why::Request, fallback: false },
        Ok(left) if binding && wish.min_fresh.is_some_and(|min| left < min) => {
            Verdict::Fetch { why: Why::Request, fallback: true }
        }
        Err(over) if wish.max_stale.is_none_or(|max| over > max) => Verdict::Fetch { why: Why::Stale, fallback: true },
        Err(_) if wish.min_fresh.is_some() => Verdict::Fetch { why: Why::Stale, fallback: true },
        Ok(_) | Err(_) => Verdict::Hit,
    }
}

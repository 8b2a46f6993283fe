//! Step 8, recall: what memory has for a read that is already authorized. No caller is part of the key.

use std::borrow::Cow;
use std::sync::Arc;
use std::time::Instant;

use http::header::IF_MATCH;
use http::{HeaderMap, StatusCode};

use super::answer::{Body, Facts, Reply, strong_etag};
use super::fetch::narrow;
use super::narrow::Page;
use super::policy::{Member, Policy};
use super::refusal::Refusal;
use super::state::Gateway;
use super::target::{Plan, Target};
use crate::audit;
use crate::cache::{CacheStatus, Entry, ForwardReason, JoinGroup, Lookup, RefreshPolicy, RequestDirectives};
use crate::catalogue::Matched;

/// What a read needs from the upstream.
pub(super) struct Wanted {
    /// The cache key, where it may be stored.
    pub(super) key: Arc<str>,
    /// What goes upstream.
    pub(super) target: String,
    /// May it be shared with others and stored?
    pub(super) together: bool,
    pub(super) group: JoinGroup,
    /// Only a fetch begun at this instant or later will do.
    pub(super) since: Option<Instant>,
    pub(super) why: ForwardReason,
    /// What may answer if the upstream fails.
    pub(super) fallback: Option<Arc<Entry>>,
    /// The caller's page of a list that is taken whole.
    pub(super) page: Option<Page>,
}

/// What memory says.
pub(super) enum Recalled {
    Answer {
        reply: Reply,
        /// What is worth being fetched meanwhile, without anybody waiting for it.
        ahead: Option<Box<Wanted>>,
    },
    Fetch(Wanted),
}

/// A read as recall sees it.
pub(super) struct Asked<'a> {
    pub(super) policy: &'a Policy,
    pub(super) member: &'a Member,
    pub(super) matched: &'a Matched<'a, 'a>,
    pub(super) target: &'a Target<'a>,
    pub(super) plan: &'a Plan<'a>,
    pub(super) headers: &'a HeaderMap,
}

/// Looks the answer up. `now`: when the request was read whole.
///
/// # Errors
/// `only-if-cached` with nothing usable; a stored list that cannot be narrowed.
pub(super) fn recall(gateway: &Gateway, asked: &Asked<'_>, now: Instant) -> Result<Recalled, Refusal> {
    let scope = &asked.member.config.organizations;
    let array = asked.matched.operation.narrow.as_deref();
    let page = array.filter(|_| !scope.is_all()).map(|_| Page::of(asked.target));
    let (key, target) = key_and_target(asked, page.as_ref());
    let request_directives = RequestDirectives::of(asked.headers);
    let stored = asked.policy.storing(asked.matched.index).is_some()
        && (asked.plan.keyed || page.is_some())
        && !asked.headers.contains_key(IF_MATCH);
    let alone = |why, page| Wanted {
        key: Arc::from(&*key),
        target: target.clone().into_owned(),
        together: false,
        group: JoinGroup::Normal,
        since: None,
        why,
        fallback: None,
        page,
    };
    if !stored {
        return if request_directives.only_if_cached {
            Err(Refusal::NotCached)
        } else {
            Ok(Recalled::Fetch(alone(ForwardReason::Bypass, page)))
        };
    }
    if asked.plan.refresh {
        let mut wanted =
            Wanted { together: true, group: JoinGroup::Wait, since: Some(now), ..alone(ForwardReason::Request, page) };
        if request_directives.only_if_cached {
            return Err(Refusal::NotCached);
        }
        wanted.together = !request_directives.no_store;
        return Ok(Recalled::Fetch(wanted));
    }
    let found = held(gateway, asked, &key, &request_directives, now);
    gateway.cache.count(&found);
    match found {
        Lookup::Hit(entry) => {
            let ttl = entry.ttl(now);
            let how = if ttl < 0 { audit::Answer::Stale } else { audit::Answer::Hit };
            let filled_by = Some(entry.filled_by);
            let cache = Some(CacheStatus::Hit { ttl });
            let ahead = (asked.policy.config.cache.refresh_ahead && entry.goes_ahead(now))
                .then(|| Box::new(Wanted { together: true, ..alone(ForwardReason::Request, None) }));
            let reply =
                Reply { body: Body::Entry(entry), cache, how, filled_by, facts: Facts::default(), validated: true };
            let reply = match &page {
                Some(page) => narrow(scope, array, page, reply)?,
                None => reply,
            };
            Ok(Recalled::Answer { reply, ahead })
        }
        Lookup::Fetch { why, fallback, since } => {
            Ok(Recalled::Fetch(Wanted { together: true, since, fallback, ..alone(why, page) }))
        }
        Lookup::Bypass => Ok(Recalled::Fetch(alone(ForwardReason::Bypass, page))),
        Lookup::NotHeld => Err(Refusal::NotCached),
    }
}

/// What memory has under this key, or can make of what it has.
pub(super) fn held(
    gateway: &Gateway,
    asked: &Asked<'_>,
    key: &str,
    request_directives: &RequestDirectives,
    now: Instant,
) -> Lookup {
    let refresh_policy = RefreshPolicy {
        refresh_floor: asked.policy.config.cache.refresh_floor,
        may_refresh: asked.member.config.may_refresh,
    };
    let peek = |key: &str| gateway.cache.lookup(key, request_directives, &refresh_policy, now);
    match peek(key) {
        found @ (Lookup::Fetch { .. } | Lookup::NotHeld) if asked.policy.config.cache.column_subsets => {
            fewer_columns(gateway, asked, key, peek).map_or(found, Lookup::Hit)
        }
        found @ (Lookup::Hit(_) | Lookup::Fetch { .. } | Lookup::Bypass | Lookup::NotHeld) => found,
    }
}

/// An entry cut from one that has more columns; it is as old as that one, and stored for who asks next.
fn fewer_columns(gateway: &Gateway, asked: &Asked<'_>, key: &str, peek: impl Fn(&str) -> Lookup) -> Option<Arc<Entry>> {
    let array = asked.matched.operation.columns.as_deref()?;
    let held = |key: &str| match peek(key) {
        Lookup::Hit(entry) if entry.status == StatusCode::OK => Some((entry.clone(), entry.body.clone())),
        Lookup::Hit(_) | Lookup::Fetch { .. } | Lookup::Bypass | Lookup::NotHeld => None,
    };
    let (entry, body) = gateway.columns.cut(key, array, held)?;
    let etag = strong_etag(&HeaderMap::new(), &body);
    Some(gateway.cache.store_part(key, &entry, body.into(), etag))
}

/// A narrowed list is taken whole: one entry for the callers of all scopes.
pub(super) fn key_and_target<'a>(asked: &'a Asked<'_>, page: Option<&Page>) -> (Cow<'a, str>, Cow<'a, str>) {
    match page {
        Some(page) => {
            let whole: Cow<'_, str> = Cow::Owned(format!("{}?{}", asked.target.path, page.whole_query()));
            (whole.clone(), whole)
        }
        None => (Cow::Borrowed(asked.plan.key()), Cow::Borrowed(&*asked.plan.target)),
    }
}

//! Step 8, look up: what the cache has for a read that is already authorized. No caller is part of the key.

use std::borrow::Cow;
use std::sync::Arc;
use std::time::Instant;

use http::HeaderMap;
use http::header::IF_MATCH;

use super::list_scope::ListPage;
use crate::cache::{
    Cache, CacheDetail, CacheStatus, Entry, ForwardReason, JoinGroup, Lookup, RefreshPolicy, RequestDirectives,
};
use crate::catalogue::MatchedOperation;
use crate::gateway::admit::policy::{Caller, Policy};
use crate::gateway::admit::target::{CacheKeyPlan, Target};
use crate::gateway::fences::MemoryUse;
use crate::gateway::refusal::Refusal;
use crate::gateway::response::{ForwardFacts, Reply, ReplyBody};
use crate::gateway::state::Gateway;
use crate::vocabulary::Answer;

/// What a read must fetch from the upstream.
pub(crate) struct FetchPlan {
    pub(crate) key: Arc<str>,
    /// Path and query that go upstream.
    pub(crate) target: String,
    /// May it be shared with other requests and stored?
    pub(crate) may_share: bool,
    pub(crate) group: JoinGroup,
    /// Only a fetch that starts at this instant or later is fresh enough.
    pub(crate) since: Option<Instant>,
    pub(crate) why: ForwardReason,
    /// What else its answer says of the cache.
    pub(crate) detail: Option<CacheDetail>,
    /// A stale entry that may answer if the upstream fails.
    pub(crate) fallback: Option<Arc<Entry>>,
    /// The caller's page of a list that is fetched completely.
    pub(crate) page: Option<ListPage>,
}

pub(crate) enum LookupResult {
    Answer {
        reply: Reply,
        /// A refresh worth fetching now, although nobody waits for it.
        ahead: Option<Box<FetchPlan>>,
    },
    /// A list in the cache, of which the caller may see a part.
    List(Box<CachedList>),
    Fetch(FetchPlan),
}

/// A complete list from the cache.
pub(crate) struct CachedList {
    pub(crate) reply: Reply,
    /// The caller's page, and how the list is fetched again if it cannot be cut out of this one.
    pub(crate) again: FetchPlan,
    pub(crate) only_if_cached: bool,
    /// As for an answer.
    pub(crate) ahead: Option<Box<FetchPlan>>,
}

/// A read request, as the lookup needs it.
pub(crate) struct ReadRequest<'a> {
    pub(crate) policy: &'a Policy,
    pub(crate) caller: &'a Caller,
    pub(crate) matched: &'a MatchedOperation<'a, 'a>,
    pub(crate) target: &'a Target<'a>,
    pub(crate) plan: &'a CacheKeyPlan<'a>,
    pub(crate) headers: &'a HeaderMap,
}

/// Looks up the answer. `now` is when the request was read completely.
///
/// # Errors
/// If `only-if-cached` finds nothing usable.
pub(crate) fn lookup(gateway: &Gateway, read: &ReadRequest<'_>, now: Instant) -> Result<LookupResult, Refusal> {
    let scope = &read.caller.config.organizations;
    let array = read.matched.operation.narrow.as_deref();
    let page = array.filter(|_| !scope.is_all()).map(|_| ListPage::of(read.target));
    let (key, target) = key_and_target(read, page.as_ref());
    let request_directives = RequestDirectives::of(read.headers);
    // Before the lookup: what the lease covers is in the fences by now.
    let memory = gateway.memory_use();
    let stored = read.policy.store_policy(read.matched.index).is_some()
        && page.as_ref().map_or(read.plan.keyed, ListPage::is_keyed)
        && !read.headers.contains_key(IF_MATCH);
    let unshared = |why, page| FetchPlan {
        key: Arc::from(&*key),
        target: target.clone().into_owned(),
        may_share: false,
        group: JoinGroup::Normal,
        since: None,
        why,
        detail: memory.detail(),
        fallback: None,
        page,
    };
    if !stored {
        return if request_directives.only_if_cached {
            Err(Refusal::NotCached)
        } else {
            Ok(LookupResult::Fetch(unshared(ForwardReason::Bypass, page)))
        };
    }
    if read.plan.refresh {
        let mut fetch_plan = FetchPlan {
            may_share: true,
            group: JoinGroup::Wait,
            since: Some(now),
            ..unshared(ForwardReason::Request, page)
        };
        if request_directives.only_if_cached {
            return Err(Refusal::NotCached);
        }
        fetch_plan.may_share = !request_directives.no_store;
        return Ok(LookupResult::Fetch(fetch_plan));
    }
    let found = entry_for(gateway, (read, memory), &key, &request_directives, now);
    gateway.cache.count(&found);
    match found {
        Lookup::Hit(entry) => {
            let ahead = (read.policy.config.cache.refresh_ahead && entry.claim_refresh_ahead(now))
                .then(|| Box::new(FetchPlan { may_share: true, ..unshared(ForwardReason::Request, page.clone()) }));
            let Some(page) = page else {
                return Ok(LookupResult::Answer { reply: hit(entry, now, memory.detail()), ahead });
            };
            let again = unshared(ForwardReason::Miss, Some(page));
            let again = FetchPlan { may_share: !request_directives.no_store, ..again };
            let only_if_cached = request_directives.only_if_cached;
            let reply = hit(entry, now, memory.detail());
            Ok(LookupResult::List(Box::new(CachedList { reply, again, only_if_cached, ahead })))
        }
        Lookup::Fetch { why, fallback, since } => {
            Ok(LookupResult::Fetch(FetchPlan { may_share: true, since, fallback, ..unshared(why, page) }))
        }
        Lookup::Bypass => Ok(LookupResult::Fetch(unshared(ForwardReason::Bypass, page))),
        Lookup::NotHeld => Err(Refusal::NotCached),
    }
}

/// The answer from an entry.
fn hit(entry: Arc<Entry>, now: Instant, detail: Option<CacheDetail>) -> Reply {
    let ttl = entry.ttl(now);
    Reply {
        cache: Some(CacheStatus::Hit { ttl, detail }),
        answer: if ttl < 0 { Answer::Stale } else { Answer::Hit },
        filled_by: Some(entry.filled_by),
        body: ReplyBody::Entry(entry),
        facts: ForwardFacts::default(),
        may_be_not_modified: true,
    }
}

/// Looks up the entry with this key.
pub(crate) fn entry_for(
    gateway: &Gateway,
    (read, memory): (&ReadRequest<'_>, MemoryUse),
    key: &str,
    request_directives: &RequestDirectives,
    now: Instant,
) -> Lookup {
    if memory == MemoryUse::Forbidden {
        return Cache::lookup_nothing(request_directives, now);
    }
    let refresh_policy = RefreshPolicy {
        refresh_floor: read.policy.config.cache.refresh_floor,
        may_refresh: read.caller.config.may_refresh,
    };
    gateway.cache.lookup(key, request_directives, &refresh_policy, now)
}

/// The cache key and the upstream's target. A list that is narrowed is fetched completely: one entry for callers of all scopes.
pub(crate) fn key_and_target<'a>(read: &'a ReadRequest<'_>, page: Option<&ListPage>) -> (Cow<'a, str>, Cow<'a, str>) {
    match page {
        Some(page) => {
            let whole: Cow<'_, str> = Cow::Owned(format!("{}?{}", read.target.path, page.whole_query()));
            (whole.clone(), whole)
        }
        None => (Cow::Borrowed(read.plan.key()), Cow::Borrowed(&*read.plan.target)),
    }
}

//! Reads that the cache does not answer. They join a fetch of the same key or are forwarded; answers are stored only if the fence allows;
//! a stale answer stands in while the upstream fails.

use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use http::StatusCode;

use super::answer_form::check_answer;
use super::list_scope::{ListPage, Narrowing};
use super::lookup::{CachedList, FetchPlan};
use crate::cache::{
    CacheDetail, CacheStatus, Entry, FetchHandle, FetchLost, FetchStamp, FetchWaiter, JoinRequest, NewEntry, storable,
};
use crate::callers::SharedKind;
use crate::gateway::admit::steps;
use crate::gateway::etag::strong_etag;
use crate::gateway::forward::{
    ForwardPermit, Forwarded, forward, forward_permit, forward_permit_with_connection, read_answer,
    spare_forward_permit,
};
use crate::gateway::large_work::LARGE_BYTES;
use crate::gateway::recorder::{self, RequestRecorder};
use crate::gateway::refusal::{EngineShortage, Refusal};
use crate::gateway::request::AuthorizedRequest;
use crate::gateway::request_trace::WaitStep;
use crate::gateway::response::{ForwardFacts, Reply, ReplyBody, passed_answer, stored_headers};
use crate::gateway::state::Gateway;
use crate::gateway::tags;
use crate::list_index::ListIndex;
use crate::shares::HeldShare;
use crate::upstream::UpstreamAnswer;
use crate::vocabulary::Answer;

/// How long to wait for a fetch queued under another caller's name before also waiting for a turn of one's own.
const OWN_TURN_DELAY: Duration = Duration::from_millis(50);

/// Steps 8 to 12 of a read that needs the upstream.
///
/// # Errors
/// The refusal, if no stale answer can stand in.
pub(crate) async fn fetch(
    gateway: &Arc<Gateway>,
    recorder: &mut RequestRecorder,
    request: AuthorizedRequest,
    plan: FetchPlan,
) -> Result<Reply, Refusal> {
    let request = Arc::new(request);
    let fetched = fetch_or_join(gateway, recorder, &request, &plan).await;
    let has_failed = match &fetched {
        Ok(fetched) => is_failure(fetched.body.status()),
        Err(refusal) => refusal.row().stale_may_answer,
    };
    if has_failed
        && let Some(stale) = stale_reply(gateway, &plan, fetched.as_ref().map_err(|_| request.facts()))
        && let Ok(stale) = narrowed(gateway, &request, plan.page.as_ref(), stale).await
    {
        return Ok(stale);
    }
    let reply = match fetched {
        Ok(fetched) => narrowed(gateway, &request, plan.page.as_ref(), fetched).await,
        // Memory would have answered, if it were allowed to.
        Err(Refusal::NoEngine { .. }) if plan.detail == Some(CacheDetail::NoLease) => {
            Err(Refusal::NoEngine { why: EngineShortage::NoLease })
        }
        Err(refusal) => Err(refusal),
    };
    reply.inspect_err(|_| recorder::fill_refused_facts(recorder.record(), &request.facts()))
}

/// What the caller may see of a reply.
///
/// # Errors
/// If the reply cannot be narrowed, or not before the deadline.
async fn narrowed(
    gateway: &Gateway,
    request: &AuthorizedRequest,
    page: Option<&ListPage>,
    reply: Reply,
) -> Result<Reply, Refusal> {
    let Some(page) = page else { return Ok(reply) };
    let narrowing = Narrowing::new(&request.caller.config.organizations, request.row.narrow.as_deref(), page, reply);
    let narrowed = gateway.large_work.run(request.caller(), narrowing.bytes(), || narrowing.narrow());
    tokio::time::timeout(request.time_left(&gateway.clock), narrowed).await.map_err(|_| Refusal::Late)?
}

/// Answers with a caller's page of a list in the cache.
///
/// # Errors
/// The refusal, if the list cannot be narrowed and a new one cannot either, or must not be asked for.
pub(crate) async fn answer_page(
    gateway: &Arc<Gateway>,
    recorder: &mut RequestRecorder,
    request: AuthorizedRequest,
    list: CachedList,
) -> Result<Reply, Refusal> {
    let CachedList { reply, again, only_if_cached, ahead } = list;
    let entry = reply.body.entry().cloned();
    match narrowed(gateway, &request, again.page.as_ref(), reply).await {
        Ok(reply) => {
            gateway.quota.count_saved(request.bucket, request.caller());
            if let Some(fetch_plan) = ahead {
                fetch_ahead(gateway, request, &fetch_plan);
            }
            Ok(reply)
        }
        Err(Refusal::NotNarrowable { .. }) if only_if_cached => Err(Refusal::NotCached),
        // A caller without a scope had it stored. Asked for anew; if the new one is no better, that is refused, and not stored.
        Err(Refusal::NotNarrowable { .. }) => {
            entry.iter().for_each(|entry| gateway.cache.drop_entry(&again.key, entry));
            fetch(gateway, recorder, request, again).await
        }
        Err(refusal) => Err(refusal),
    }
}

async fn fetch_or_join(
    gateway: &Arc<Gateway>,
    recorder: &mut RequestRecorder,
    request: &Arc<AuthorizedRequest>,
    plan: &FetchPlan,
) -> Result<Reply, Refusal> {
    let late = Refusal::Late;
    if !plan.may_share {
        let alone = tokio::time::timeout(
            request.time_left(&gateway.clock),
            run_fetch(gateway.clone(), request.clone(), None, None),
        )
        .await;
        return Ok(reply(request, plan, alone.map_err(|_| late)??, false));
    }
    let (mut goes_itself, mut permit) = (false, None);
    let mut under_way = recorder.hand_over_share();
    loop {
        let fence_set = gateway.cache.fence_set(&tags::stored(&request.row, &request.parameters));
        let ready = goes_itself || permit.is_some();
        let join_request = JoinRequest { caller: request.caller(), group: plan.group, since: plan.since, ready };
        let fetch = {
            let (gateway, request, fill) = (gateway.clone(), request.clone(), FillPlan::of(plan));
            let (permit, under_way) = (permit.take(), under_way.take());
            move |handle| async move {
                let _under_way = under_way;
                run_fetch(gateway, request, permit, Some((fill, handle))).await
            }
        };
        let Some(waiter) =
            gateway.shared_fetches.join_or_start(&gateway.tasks, &plan.key, fence_set, &join_request, fetch)
        else {
            return Err(Refusal::Busy);
        };
        let collapsed = waiter.collapsed();
        // While joined, a request is not counted as under way; `limits.joined` bounds how many can wait like this.
        let _joined = if collapsed { Some(count_joined(request)?) } else { None };
        let _waiting = if collapsed { request.step(WaitStep::SharedFetch) } else { None };
        let waited = pin!(wait_for_fetch(gateway, request, waiter));
        match tokio::time::timeout(request.time_left(&gateway.clock), waited).await {
            Err(_) => return Err(late),
            Ok(FetchWait::Turn(own)) => (permit, under_way) = (Some(own.permit), Some(own.under_way)),
            Ok(FetchWait::Ended(Ok(Ok(fetched)))) => {
                if collapsed {
                    gateway.quota.count_saved(request.bucket, request.caller());
                }
                return Ok(reply(request, plan, fetched, collapsed));
            }
            // A failure that concerns only the other request. From now on this one waits for no other's turn, where there might be
            // another such failure.
            Ok(FetchWait::Ended(result)) if collapsed && is_owners_failure(&result) => {
                goes_itself = true;
                under_way = Some(steps::count_under_way(&request.caller, request.policy.limits())?);
            }
            Ok(FetchWait::Ended(Ok(Err(refusal)))) => return Err(refusal),
            Ok(FetchWait::Ended(Err(FetchLost))) => return Err(Refusal::Internal),
        }
    }
}

/// Counts a request as joined to another request's fetch.
fn count_joined(request: &AuthorizedRequest) -> Result<HeldShare, Refusal> {
    let joined = request.caller.state.share_holders.joined.take(1);
    joined.map_err(|short| Refusal::Short { of: SharedKind::Joined, short })
}

/// Did the fetch fail for a reason that concerns only the request that started it?
fn is_owners_failure(result: &Result<Result<Reply, Refusal>, FetchLost>) -> bool {
    match result {
        Ok(Ok(_)) => false,
        Ok(Err(refusal)) => refusal.row().is_own,
        Err(FetchLost) => true,
    }
}

enum FetchWait {
    /// The shared fetch ended.
    Ended(Result<Result<Reply, Refusal>, FetchLost>),
    /// This request got a turn of its own, while the shared fetch is still queued under another caller's name.
    Turn(Box<OwnTurn>),
}

/// What a request needs to fetch on its own.
struct OwnTurn {
    permit: ForwardPermit,
    /// Counts it as under way.
    under_way: HeldShare,
}

/// Waits for a shared fetch. If the fetch is queued under another caller's name, where many requests may be ahead of it, this also waits
/// for a turn of its own, and takes whichever comes first.
async fn wait_for_fetch(
    gateway: &Gateway,
    request: &AuthorizedRequest,
    mut waiter: FetchWaiter<Result<Reply, Refusal>>,
) -> FetchWait {
    if !waiter.collapsed() {
        return FetchWait::Ended(waiter.await);
    }
    if let Ok(result) = tokio::time::timeout(OWN_TURN_DELAY, &mut waiter).await {
        return FetchWait::Ended(result);
    }
    if !waiter.is_queued_for_another(request.caller()) {
        return FetchWait::Ended(waiter.await);
    }
    let own_turn = async {
        let under_way = steps::count_under_way(&request.caller, request.policy.limits()).ok()?;
        Some(OwnTurn { permit: forward_permit_with_connection(gateway, request).await.ok()?, under_way })
    };
    tokio::select! {
        result = &mut waiter => FetchWait::Ended(result),
        Some(own) = own_turn => FetchWait::Turn(Box::new(own)),
    }
}

/// Refreshes an entry that is still in demand before it becomes stale. Nobody waits for this fetch and it takes nothing from others: it
/// uses only spare quota, runs only while most connections are free, and few run at once.
pub(crate) fn fetch_ahead(gateway: &Arc<Gateway>, request: AuthorizedRequest, plan: &FetchPlan) {
    let Ok(turn) = gateway.refresh_permits.clone().try_acquire_owned() else { return };
    let fence_set = gateway.cache.fence_set(&tags::stored(&request.row, &request.parameters));
    let caller = request.caller().clone();
    let fetch = {
        let (gateway, request, fill) = (gateway.clone(), Arc::new(request), FillPlan::of(plan));
        move |handle| async move {
            let _turn = turn;
            let permit = spare_forward_permit(&gateway, &request).await?;
            gateway.metrics.ahead.fetch_add(1, Ordering::Relaxed);
            forward_and_store(gateway, request, permit, Some((fill, handle))).await
        }
    };
    let join_request = JoinRequest { caller: &caller, group: plan.group, since: None, ready: false };
    let joined = gateway.shared_fetches.join_or_start(&gateway.tasks, &plan.key, fence_set, &join_request, fetch);
    if let Some(waiter) = joined.filter(|waiter| !waiter.collapsed()) {
        // Someone must wait, or the shared fetch is cancelled. The result does not matter.
        gateway.tasks.spawn(async move { drop(waiter.await) });
    }
}

/// Where an answer is stored.
struct FillPlan {
    key: Arc<str>,
    /// Is it a whole list, which callers of every scope are to be given their part of?
    is_whole_list: bool,
}

impl FillPlan {
    fn of(plan: &FetchPlan) -> Self {
        Self { key: plan.key.clone(), is_whole_list: plan.page.is_some() }
    }

    /// Stores an answer, if its status and headers allow it and its body can be an answer of the operation.
    fn store(
        self,
        gateway: &Gateway,
        request: &AuthorizedRequest,
        answered: &UpstreamAnswer,
        stamp: FetchStamp,
    ) -> Option<Arc<Entry>> {
        let policy = request.policy.store_policy(request.index)?;
        let lifetime = storable(answered.status, &answered.headers, policy).filter(|_| answered.framed)?;
        let list = match self.check_body(request, answered) {
            Ok(list) => list,
            Err(why) => {
                gateway.metrics.odd.fetch_add(1, Ordering::Relaxed);
                tracing::warn!(operation = %request.row.id, why, "an answer of the upstream was passed on but not stored");
                return None;
            }
        };
        if lifetime.overruled {
            gateway.metrics.overruled.fetch_add(1, Ordering::Relaxed);
        }
        gateway.cache.store(NewEntry {
            key: self.key,
            status: answered.status,
            headers: stored_headers(&answered.headers),
            etag: strong_etag(&answered.headers, answered.body.bytes()),
            body: answered.body.bytes().clone(),
            list,
            path: request.path.clone(),
            filled_by: request.id,
            lifetime,
            stamp,
        })
    }

    /// Checks that the body can be an answer of the operation. A list that is narrowed gets an index, and so does a large one, whoever asked
    /// for it: callers of every scope may find it under the same key.
    fn check_body(
        &self,
        request: &AuthorizedRequest,
        answered: &UpstreamAnswer,
    ) -> Result<Option<ListIndex>, &'static str> {
        let (row, body) = (&request.row, answered.body.bytes());
        let is_indexed = answered.status == StatusCode::OK && (self.is_whole_list || body.len() >= LARGE_BYTES);
        let array = row.narrow.as_deref().filter(|_| is_indexed);
        match array.map(|array| ListIndex::of(body, array)) {
            Some(Ok(list)) => Ok(Some(list)),
            Some(Err(_)) if self.is_whole_list => Err("the list cannot be narrowed"),
            Some(Err(_)) | None => check_answer(row, answered.status, body).map(|()| None),
        }
    }
}

/// Steps 9, 11 and 12 of a fetch. With a handle, its answer is stored.
async fn run_fetch(
    gateway: Arc<Gateway>,
    request: Arc<AuthorizedRequest>,
    ready: Option<ForwardPermit>,
    fill: Option<(FillPlan, FetchHandle)>,
) -> Result<Reply, Refusal> {
    let permit = match ready {
        Some(permit) => permit,
        None => forward_permit(&gateway, &request).await?,
    };
    forward_and_store(gateway, request, permit, fill).await
}

/// Steps 11 and 12 of a fetch.
async fn forward_and_store(
    gateway: Arc<Gateway>,
    request: Arc<AuthorizedRequest>,
    permit: ForwardPermit,
    fill: Option<(FillPlan, FetchHandle)>,
) -> Result<Reply, Refusal> {
    let is_shared = fill.is_some();
    let on_start = || fill.iter().for_each(|(_, handle)| drop(handle.mark_sent()));
    let Forwarded { ending, facts, .. } = forward(&gateway, &request, permit, on_start).await;
    let fill = fill.map(|(fill, handle)| (fill, handle.mark_sent()));
    let answered = read_answer(ending?)?;
    let bytes = answered.body.bytes().len();
    let work = || {
        let stored = fill.and_then(|(fill, stamp)| fill.store(&gateway, &request, &answered, stamp));
        let pass = || ReplyBody::Passed(Arc::new(passed_answer(answered, true, is_shared)));
        stored.map_or_else(pass, ReplyBody::Entry)
    };
    Ok(Reply {
        body: gateway.large_work.run(request.caller(), bytes, work).await,
        cache: None,
        answer: if is_shared { Answer::Miss } else { Answer::Forwarded },
        filled_by: Some(request.id),
        facts,
        may_be_not_modified: true,
    })
}

/// Does this answer count as a failure of the upstream (`docs/decisions/stale-answers.md`)?
fn is_failure(status: StatusCode) -> bool {
    status.is_server_error() || status == StatusCode::TOO_MANY_REQUESTS
}

/// The stale answer that stands in for a failure, if there is one.
fn stale_reply(gateway: &Gateway, plan: &FetchPlan, failed: Result<&Reply, ForwardFacts>) -> Option<Reply> {
    let is_good =
        |entry: &Arc<Entry>| entry.is_usable(gateway.clock.now()) && !gateway.cache.is_purged(&plan.key, entry);
    let entry = plan.fallback.clone().filter(is_good)?;
    let status = failed.ok().map(|failed| failed.body.status());
    Some(Reply {
        cache: Some(CacheStatus::Forward {
            why: plan.why,
            status,
            stored: false,
            collapsed: false,
            detail: plan.detail,
        }),
        answer: Answer::Stale,
        filled_by: Some(entry.filled_by),
        body: ReplyBody::Entry(entry),
        facts: failed.map_or_else(|facts| facts, |failed| failed.facts),
        may_be_not_modified: true,
    })
}

/// What a fetch means for this request: its own, or (`collapsed`) another's.
fn reply(request: &AuthorizedRequest, plan: &FetchPlan, fetched: Reply, collapsed: bool) -> Reply {
    let stored = fetched.body.entry().is_some() && !collapsed;
    let status = Some(fetched.body.status());
    Reply {
        cache: Some(CacheStatus::Forward { why: plan.why, status, stored, collapsed, detail: plan.detail }),
        filled_by: fetched.filled_by.filter(|by| *by != request.id),
        facts: if collapsed {
            ForwardFacts { upstream_status: fetched.facts.upstream_status, ..ForwardFacts::default() }
        } else {
            fetched.facts
        },
        ..fetched
    }
}

//! Reads that the cache does not answer. They join a fetch of the same key or are forwarded; answers are stored only if the fence allows;
//! a stale answer stands in while the upstream fails.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use http::StatusCode;

use super::list_scope::narrow;
use super::lookup::FetchPlan;
use crate::cache::{CacheStatus, FetchHandle, FetchLost, FetchWaiter, JoinRequest, NewEntry, storable};
use crate::callers::SharedKind;
use crate::gateway::admit::steps;
use crate::gateway::etag::strong_etag;
use crate::gateway::forward::{
    ForwardPermit, Forwarded, forward, forward_permit, forward_permit_with_connection, read_answer,
    spare_forward_permit,
};
use crate::gateway::recorder::RequestRecorder;
use crate::gateway::refusal::Refusal;
use crate::gateway::request::AuthorizedRequest;
use crate::gateway::response::{ForwardFacts, Reply, ReplyBody, passed_answer, stored_headers};
use crate::gateway::state::Gateway;
use crate::gateway::tags;
use crate::shares::HeldShare;
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
    let page = plan.page.clone();
    let reply = match fetch_or_join(gateway, recorder, &request, &plan).await {
        Ok(fetched) if is_failure(fetched.body.status()) && may_serve_stale(gateway, &plan) => {
            stale_reply(&plan, Some(fetched.body.status()), fetched.facts)
        }
        Ok(fetched) => Ok(fetched),
        Err(refusal) if refusal.row().stale_may_answer && may_serve_stale(gateway, &plan) => {
            stale_reply(&plan, None, ForwardFacts::default())
        }
        Err(refusal) => Err(refusal),
    }?;
    match page {
        Some(page) => narrow(&request.caller.config.organizations, request.row.narrow.as_deref(), &page, reply),
        None => Ok(reply),
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
    let (mut own_turn, mut permit) = (false, None);
    let mut under_way = recorder.hand_over_share();
    loop {
        let fence_set = gateway.cache.fence_set(&tags::stored(&request.row, &request.parameters));
        let join_request =
            JoinRequest { caller: request.caller(), group: plan.group, since: plan.since, ready: permit.is_some() };
        let fetch = {
            let (gateway, request, key) = (gateway.clone(), request.clone(), plan.key.clone());
            let (permit, under_way) = (permit.take(), under_way.take());
            move |handle| async move {
                let _under_way = under_way;
                run_fetch(gateway, request, permit, Some((key, handle))).await
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
        match tokio::time::timeout(request.time_left(&gateway.clock), wait_for_fetch(gateway, request, waiter)).await {
            Err(_) => return Err(late),
            Ok(FetchWait::Turn(own)) => (permit, under_way) = (Some(own.permit), Some(own.under_way)),
            Ok(FetchWait::Ended(Ok(Ok(fetched)))) => {
                if collapsed {
                    gateway.quota.count_saved(request.bucket, request.caller());
                }
                return Ok(reply(request, plan, fetched, collapsed));
            }
            // A failure that concerns only the other request: try once more, with a turn of one's own.
            Ok(FetchWait::Ended(result)) if collapsed && !own_turn && is_owners_failure(&result) => {
                (own_turn, under_way) = (true, Some(steps::count_under_way(&request.caller, request.policy.limits())?));
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
        let (gateway, request, key) = (gateway.clone(), Arc::new(request), plan.key.clone());
        move |handle| async move {
            let _turn = turn;
            let permit = spare_forward_permit(&gateway, &request).await?;
            gateway.metrics.ahead.fetch_add(1, Ordering::Relaxed);
            forward_and_store(gateway, request, permit, Some((key, handle))).await
        }
    };
    let join_request = JoinRequest { caller: &caller, group: plan.group, since: None, ready: false };
    let joined = gateway.shared_fetches.join_or_start(&gateway.tasks, &plan.key, fence_set, &join_request, fetch);
    if let Some(waiter) = joined.filter(|waiter| !waiter.collapsed()) {
        // Someone must wait, or the shared fetch is cancelled. The result does not matter.
        gateway.tasks.spawn(async move { drop(waiter.await) });
    }
}

/// Steps 9, 11 and 12 of a fetch. With a handle, its answer is stored.
async fn run_fetch(
    gateway: Arc<Gateway>,
    request: Arc<AuthorizedRequest>,
    ready: Option<ForwardPermit>,
    fill: Option<(Arc<str>, FetchHandle)>,
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
    fill: Option<(Arc<str>, FetchHandle)>,
) -> Result<Reply, Refusal> {
    let is_shared = fill.is_some();
    let on_start = || fill.iter().for_each(|(_, handle)| drop(handle.mark_sent()));
    let Forwarded { ending, facts, .. } = forward(&gateway, &request, permit, on_start).await;
    let fill = fill.map(|(key, handle)| (key, handle.mark_sent()));
    let answered = read_answer(ending?)?;
    let stored = fill.and_then(|(key, stamp)| {
        let policy = request.policy.store_policy(request.index)?;
        let lifetime = storable(answered.status, &answered.headers, policy).filter(|_| answered.framed)?;
        if lifetime.overruled {
            gateway.metrics.overruled.fetch_add(1, Ordering::Relaxed);
        }
        gateway.cache.store(NewEntry {
            key,
            status: answered.status,
            headers: stored_headers(&answered.headers),
            etag: strong_etag(&answered.headers, answered.body.bytes()),
            body: answered.body.bytes().clone(),
            path: request.path.clone(),
            filled_by: request.id,
            lifetime,
            stamp,
        })
    });
    let pass = |answered| ReplyBody::Passed(Arc::new(passed_answer(answered, true, is_shared)));
    Ok(Reply {
        body: stored.map_or_else(|| pass(answered), ReplyBody::Entry),
        cache: None,
        answer: if is_shared { Answer::Miss } else { Answer::Forwarded },
        filled_by: Some(request.id),
        facts,
        may_be_not_modified: request.row.cache.is_some(),
    })
}

/// Does this answer count as a failure of the upstream (`docs/decisions/stale-answers.md`)?
fn is_failure(status: StatusCode) -> bool {
    status.is_server_error() || status == StatusCode::TOO_MANY_REQUESTS
}

fn may_serve_stale(gateway: &Gateway, plan: &FetchPlan) -> bool {
    plan.fallback.as_ref().is_some_and(|entry| entry.is_usable(gateway.clock.now()))
}

fn stale_reply(plan: &FetchPlan, status: Option<StatusCode>, facts: ForwardFacts) -> Result<Reply, Refusal> {
    let entry = plan.fallback.clone().ok_or(Refusal::Internal)?;
    let cache = CacheStatus::Forward { why: plan.why, status, stored: false, collapsed: false };
    let filled_by = Some(entry.filled_by);
    Ok(Reply {
        body: ReplyBody::Entry(entry),
        cache: Some(cache),
        answer: Answer::Stale,
        filled_by,
        facts,
        may_be_not_modified: true,
    })
}

/// What a fetch means for this request: its own, or (`collapsed`) another's.
fn reply(request: &AuthorizedRequest, plan: &FetchPlan, fetched: Reply, collapsed: bool) -> Reply {
    let stored = fetched.body.entry().is_some() && !collapsed;
    let status = Some(fetched.body.status());
    Reply {
        cache: Some(CacheStatus::Forward { why: plan.why, status, stored, collapsed }),
        filled_by: fetched.filled_by.filter(|by| *by != request.id),
        facts: if collapsed {
            ForwardFacts { upstream_status: fetched.facts.upstream_status, ..ForwardFacts::default() }
        } else {
            fetched.facts
        },
        ..fetched
    }
}

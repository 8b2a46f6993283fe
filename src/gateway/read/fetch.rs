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
use crate::gateway::forward::{
    ForwardPermit, Forwarded, forward, forward_permit, forward_permit_with_connection, read_answer,
    spare_forward_permit,
};
use crate::gateway::recorder::RequestRecorder;
use crate::gateway::refusal::Refusal;
use crate::gateway::request::AuthorizedRequest;
use crate::gateway::response::{ForwardFacts, Reply, ReplyBody, passed_answer, stored_headers, strong_etag};
use crate::gateway::state::Gateway;
use crate::gateway::tags;
use crate::shares::HeldShare;
use crate::vocabulary::Answer;

/// How long to wait for a fetch queued under another caller's name before also waiting for a turn of one's own.
const QUEUED_FOR_ANOTHER: Duration = Duration::from_millis(50);

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
        Ok(fetched) if fails(fetched.body.status()) && stale_will_do(gateway, &plan) => {
            stale(&plan, Some(fetched.body.status()), fetched.facts)
        }
        Ok(fetched) => Ok(fetched),
        Err(refusal) if refusal.row().stale_may_answer && stale_will_do(gateway, &plan) => {
            stale(&plan, None, ForwardFacts::default())
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
    if !plan.together {
        let alone =
            tokio::time::timeout(request.left(&gateway.clock), run_fetch(gateway.clone(), request.clone(), None, None))
                .await;
        return Ok(reply(request, plan, alone.map_err(|_| late)??, false));
    }
    let (mut own_turn, mut permit) = (false, None);
    let mut place = recorder.hand_over_slot();
    loop {
        let fence_set = gateway.cache.fence_set(&tags::stored(&request.row, &request.parameters));
        let join_request =
            JoinRequest { caller: request.caller(), group: plan.group, since: plan.since, ready: permit.is_some() };
        let fetch = {
            let (gateway, request, key) = (gateway.clone(), request.clone(), plan.key.clone());
            let (permit, place) = (permit.take(), place.take());
            move |handle| async move {
                let _place = place;
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
        let _joined = if collapsed { Some(joined(request)?) } else { None };
        match tokio::time::timeout(request.left(&gateway.clock), wait_for_fetch(gateway, request, waiter)).await {
            Err(_) => return Err(late),
            Ok(FetchWait::Turn(own)) => (permit, place) = (Some(own.permit), Some(own.place)),
            Ok(FetchWait::Over(Ok(Ok(fetched)))) => {
                if collapsed {
                    gateway.quota.saved(request.bucket, request.caller());
                }
                return Ok(reply(request, plan, fetched, collapsed));
            }
            // A failure that concerns only the other request: try once more, with a turn of one's own.
            Ok(FetchWait::Over(over)) if collapsed && !own_turn && concerns_its_owner(&over) => {
                (own_turn, place) = (true, Some(steps::place(&request.caller, request.policy.limits())?));
            }
            Ok(FetchWait::Over(Ok(Err(refusal)))) => return Err(refusal),
            Ok(FetchWait::Over(Err(FetchLost))) => return Err(Refusal::Internal),
        }
    }
}

/// Counts a request as joined to another request's fetch.
fn joined(request: &AuthorizedRequest) -> Result<HeldShare, Refusal> {
    let joined = request.caller.state.holds.joined.take(1);
    joined.map_err(|short| Refusal::Short { of: SharedKind::Joined, short })
}

/// Did the fetch fail for a reason that concerns only the request that started it?
fn concerns_its_owner(over: &Result<Result<Reply, Refusal>, FetchLost>) -> bool {
    match over {
        Ok(Ok(_)) => false,
        Ok(Err(refusal)) => refusal.row().is_own,
        Err(FetchLost) => true,
    }
}

enum FetchWait {
    /// The shared fetch ended.
    Over(Result<Result<Reply, Refusal>, FetchLost>),
    /// This request got a turn of its own, while the shared fetch is still queued under another caller's name.
    Turn(Box<OwnTurn>),
}

/// What a request needs to fetch on its own.
struct OwnTurn {
    permit: ForwardPermit,
    /// Counts it as under way.
    place: HeldShare,
}

/// Waits for a shared fetch. If the fetch is queued under another caller's name, where many requests may be ahead of it, this also waits
/// for a turn of its own, and takes whichever comes first.
async fn wait_for_fetch(
    gateway: &Gateway,
    request: &AuthorizedRequest,
    mut waiter: FetchWaiter<Result<Reply, Refusal>>,
) -> FetchWait {
    if !waiter.collapsed() {
        return FetchWait::Over(waiter.await);
    }
    if let Ok(over) = tokio::time::timeout(QUEUED_FOR_ANOTHER, &mut waiter).await {
        return FetchWait::Over(over);
    }
    if !waiter.is_queued_for_another(request.caller()) {
        return FetchWait::Over(waiter.await);
    }
    let own_turn = async {
        let place = steps::place(&request.caller, request.policy.limits()).ok()?;
        Some(OwnTurn { permit: forward_permit_with_connection(gateway, request).await.ok()?, place })
    };
    tokio::select! {
        over = &mut waiter => FetchWait::Over(over),
        Some(own) = own_turn => FetchWait::Turn(Box::new(own)),
    }
}

/// Refreshes an entry that is still in demand before it becomes stale. Nobody waits for this fetch and it takes nothing from others: it
/// uses only spare quota, runs only while most connections are free, and few run at once.
pub(crate) fn fetch_ahead(gateway: &Arc<Gateway>, request: AuthorizedRequest, plan: &FetchPlan) {
    let Ok(turn) = gateway.ahead.clone().try_acquire_owned() else { return };
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
    let flown = gateway.shared_fetches.join_or_start(&gateway.tasks, &plan.key, fence_set, &join_request, fetch);
    if let Some(waiter) = flown.filter(|waiter| !waiter.collapsed()) {
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
    let begins = || fill.iter().for_each(|(_, handle)| drop(handle.mark_sent()));
    let Forwarded { ending, facts, .. } = forward(&gateway, &request, permit, begins).await;
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
    let pass = |answered| ReplyBody::Passed(Arc::new(passed_answer(answered, request.row.cache.is_some(), is_shared)));
    Ok(Reply {
        body: stored.map_or_else(|| pass(answered), ReplyBody::Entry),
        cache: None,
        how: if is_shared { Answer::Miss } else { Answer::Forwarded },
        filled_by: Some(request.id),
        facts,
        validated: request.row.cache.is_some(),
    })
}

/// Does this answer count as a failure of the upstream (`docs/decisions/stale-answers.md`)?
fn fails(status: StatusCode) -> bool {
    status.is_server_error() || status == StatusCode::TOO_MANY_REQUESTS
}

fn stale_will_do(gateway: &Gateway, plan: &FetchPlan) -> bool {
    plan.fallback.as_ref().is_some_and(|entry| entry.usable(gateway.clock.now()))
}

fn stale(plan: &FetchPlan, status: Option<StatusCode>, facts: ForwardFacts) -> Result<Reply, Refusal> {
    let entry = plan.fallback.clone().ok_or(Refusal::Internal)?;
    let cache = CacheStatus::Forward { why: plan.why, status, stored: false, collapsed: false };
    let filled_by = Some(entry.filled_by);
    Ok(Reply {
        body: ReplyBody::Entry(entry),
        cache: Some(cache),
        how: Answer::Stale,
        filled_by,
        facts,
        validated: true,
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

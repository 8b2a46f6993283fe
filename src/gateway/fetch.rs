//! Reads that memory does not answer: joined to a fetch of the same key where there is one, else forwarded; stored behind
//! the fence; answered stale while the upstream fails.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, StatusCode};

use super::account::Account;
use super::answer::{Body, Facts, Passed, Reply, passed_headers, stored_headers, strong_etag};
use super::call::Call;
use super::forward::{Sent, Ticket, forward, read_answer, spare_ticket, ticket, whole_ticket};
use super::narrow::Page;
use super::recall::Wanted;
use super::refusal::Refusal;
use super::state::Gateway;
use super::{steps, tags};
use crate::audit;
use crate::cache::{CacheStatus, FetchHandle, FetchLost, FetchWaiter, JoinRequest, NewEntry, storable};
use crate::callers::Kind;
use crate::shares::Held;
use crate::upstream::{Answered, Ending};
use crate::words::RequestId;

/// A fetch that is queued in another caller's name is waited for so long before an own turn is waited for as well.
const QUEUED_FOR_ANOTHER: Duration = Duration::from_millis(50);

/// What a fetch brings to everybody who waits for it.
#[derive(Clone)]
pub struct Landing {
    body: Body,
    by: RequestId,
    facts: Facts,
}

/// Steps 8 to 12 of a read that needs the upstream.
///
/// # Errors
/// Why there is no answer, and no stored one that may stand in.
pub(super) async fn fetch(
    gateway: &Arc<Gateway>,
    account: &mut Account,
    call: Call,
    wanted: Wanted,
) -> Result<Reply, Refusal> {
    let call = Arc::new(call);
    let page = wanted.page.clone();
    let reply = match fetched(gateway, account, &call, &wanted).await {
        Ok((landing, _)) if fails(landing.body.status()) && stale_will_do(gateway, &wanted) => {
            stale(&wanted, Some(landing.body.status()), landing.facts)
        }
        Ok((landing, collapsed)) => Ok(landed(&call, &wanted, landing, collapsed)),
        Err(refusal) if refusal.stale_may_answer() && stale_will_do(gateway, &wanted) => {
            stale(&wanted, None, Facts::default())
        }
        Err(refusal) => Err(refusal),
    }?;
    match page {
        Some(page) => narrow(&call.member.config.organizations, call.row.narrow.as_deref(), &page, reply),
        None => Ok(reply),
    }
}

async fn fetched(
    gateway: &Arc<Gateway>,
    account: &mut Account,
    call: &Arc<Call>,
    wanted: &Wanted,
) -> Result<(Landing, bool), Refusal> {
    let late = Refusal::Late;
    if !wanted.together {
        let alone =
            tokio::time::timeout(call.left(&gateway.clock), go(gateway.clone(), call.clone(), None, None)).await;
        return Ok((alone.map_err(|_| late)??, false));
    }
    let (mut own_turn, mut ticket) = (false, None);
    let mut place = account.hand_over_place();
    loop {
        let fence_set = gateway.cache.fence_set(&tags::stored(&call.row, &call.parameters));
        let join_request =
            JoinRequest { caller: call.caller(), group: wanted.group, since: wanted.since, ready: ticket.is_some() };
        let fetch = {
            let (gateway, call, key) = (gateway.clone(), call.clone(), wanted.key.clone());
            let (ticket, place) = (ticket.take(), place.take());
            move |handle| async move {
                let _place = place;
                go(gateway, call, ticket, Some((key, handle))).await
            }
        };
        let Some(waiter) =
            gateway.shared_fetches.join_or_start(&gateway.tasks, &wanted.key, fence_set, &join_request, fetch)
        else {
            return Err(Refusal::Busy);
        };
        let collapsed = waiter.collapsed();
        // It has given its place among the requests under way to others; how many wait so has a bound of its own.
        let _joined = if collapsed { Some(joined(call)?) } else { None };
        match tokio::time::timeout(call.left(&gateway.clock), landing(gateway, call, waiter)).await {
            Err(_) => return Err(late),
            Ok(Wait::Turn(own)) => (ticket, place) = (Some(own.0), Some(own.1)),
            Ok(Wait::Over(Ok(Ok(landing)))) => {
                if collapsed {
                    gateway.quota.saved(call.bucket, call.caller());
                }
                return Ok((landing, collapsed));
            }
            // Another request's own failure is not this one's: once more, with a turn of its own.
            Ok(Wait::Over(over)) if collapsed && !own_turn && concerns_its_owner(&over) => {
                (own_turn, place) = (true, Some(steps::place(&call.member, call.policy.limits())?));
            }
            Ok(Wait::Over(Ok(Err(refusal)))) => return Err(refusal),
            Ok(Wait::Over(Err(FetchLost))) => return Err(Refusal::Internal),
        }
    }
}

/// The right to wait for the fetch of another request.
fn joined(call: &Call) -> Result<Held, Refusal> {
    let joined = call.member.state.holds.joined.take(1);
    joined.map_err(|short| Refusal::Short { of: Kind::Joined, short })
}

/// Did the fetch fail for a reason that is no reason for those who only joined it?
fn concerns_its_owner(over: &Result<Result<Landing, Refusal>, FetchLost>) -> bool {
    match over {
        Ok(Ok(_)) => false,
        Ok(Err(refusal)) => refusal.is_own(),
        Err(FetchLost) => true,
    }
}

/// How a wait for a shared fetch ends.
enum Wait {
    /// With what it brings.
    Over(Result<Result<Landing, Refusal>, FetchLost>),
    /// With a turn of this request's own, while the shared fetch still waits for one in another caller's name.
    Turn(Box<(Ticket, Held)>),
}

/// Waits for a shared fetch. One that is queued in the name of another caller, who may have many before it, is no reason to wait
/// longer than for an own turn.
async fn landing(gateway: &Gateway, call: &Call, mut waiter: FetchWaiter<Result<Landing, Refusal>>) -> Wait {
    if !waiter.collapsed() {
        return Wait::Over(waiter.await);
    }
    if let Ok(over) = tokio::time::timeout(QUEUED_FOR_ANOTHER, &mut waiter).await {
        return Wait::Over(over);
    }
    if !waiter.is_queued_for_another(call.caller()) {
        return Wait::Over(waiter.await);
    }
    let own_turn = async {
        let place = steps::place(&call.member, call.policy.limits()).ok()?;
        Some((whole_ticket(gateway, call).await.ok()?, place))
    };
    tokio::select! {
        over = &mut waiter => Wait::Over(over),
        Some(own) = own_turn => Wait::Turn(Box::new(own)),
    }
}

/// Fetches anew what is still asked for, before it is stale. Nobody waits for this, and it takes nothing from anybody: it goes
/// only with quota that nobody wants, while most connections are free, and few do so at once.
pub(super) fn fetch_ahead(gateway: &Arc<Gateway>, call: Call, wanted: &Wanted) {
    let Ok(turn) = gateway.ahead.clone().try_acquire_owned() else { return };
    let fence_set = gateway.cache.fence_set(&tags::stored(&call.row, &call.parameters));
    let caller = call.caller().clone();
    let fetch = {
        let (gateway, call, key) = (gateway.clone(), Arc::new(call), wanted.key.clone());
        move |handle| async move {
            let _turn = turn;
            let ticket = spare_ticket(&gateway, &call).await?;
            gateway.meters.ahead.fetch_add(1, Ordering::Relaxed);
            land(gateway, call, ticket, Some((key, handle))).await
        }
    };
    let join_request = JoinRequest { caller: &caller, group: wanted.group, since: None, ready: false };
    let flown = gateway.shared_fetches.join_or_start(&gateway.tasks, &wanted.key, fence_set, &join_request, fetch);
    if let Some(waiter) = flown.filter(|waiter| !waiter.collapsed()) {
        // Somebody must wait, or the shared fetch is called off. What becomes of it matters to nobody.
        gateway.tasks.spawn(async move { drop(waiter.await) });
    }
}

/// One fetch: steps 9, 11 and 12. With a handle its answer fills the cache.
async fn go(
    gateway: Arc<Gateway>,
    call: Arc<Call>,
    ready: Option<Ticket>,
    fill: Option<(Arc<str>, FetchHandle)>,
) -> Result<Landing, Refusal> {
    let ticket = match ready {
        Some(ticket) => ticket,
        None => ticket(&gateway, &call).await?,
    };
    land(gateway, call, ticket, fill).await
}

/// Steps 11 and 12 of a fetch.
async fn land(
    gateway: Arc<Gateway>,
    call: Arc<Call>,
    ticket: Ticket,
    fill: Option<(Arc<str>, FetchHandle)>,
) -> Result<Landing, Refusal> {
    let is_shared = fill.is_some();
    let begins = || fill.iter().for_each(|(_, handle)| drop(handle.mark_sent()));
    let Sent { ending, attempts, quota_wait, .. } = forward(&gateway, &call, ticket, begins).await;
    let fill = fill.map(|(key, handle)| (key, handle.mark_sent()));
    let facts =
        Facts { attempts, upstream_status: ending.as_ref().ok().and_then(Ending::status), quota_wait, outcome: None };
    let answered = read_answer(ending?)?;
    let stored = fill.and_then(|(key, stamp)| {
        let policy = call.policy.storing(call.index)?;
        let lifetime = storable(answered.status, &answered.headers, policy).filter(|_| answered.framed)?;
        if lifetime.overruled {
            gateway.meters.overruled.fetch_add(1, Ordering::Relaxed);
        }
        if call.row.columns.is_some() && call.policy.config.cache.column_subsets {
            gateway.columns.stored(&key);
        }
        gateway.cache.store(NewEntry {
            key,
            status: answered.status,
            headers: stored_headers(&answered.headers),
            etag: strong_etag(&answered.headers, answered.body.bytes()),
            body: answered.body.bytes().clone(),
            path: call.path.clone(),
            filled_by: call.id,
            lifetime,
            stamp,
        })
    });
    let pass = |answered| Body::Passed(Arc::new(pass(answered, call.row.cache.is_some(), is_shared)));
    Ok(Landing { body: stored.map_or_else(|| pass(answered), Body::Entry), by: call.id, facts })
}

/// An upstream answer as it goes on. One that several may wait for counts against the share of each that reads it, no longer
/// against that of whoever began the fetch.
pub(super) fn pass(answered: Answered, validated: bool, is_shared: bool) -> Passed {
    let Answered { status, headers, body, .. } = answered;
    let etag = (validated && status == StatusCode::OK).then(|| strong_etag(&headers, body.bytes()));
    let body = if is_shared { body.bytes().clone() } else { body.into_counted() };
    Passed { status, headers: passed_headers(&headers), body, etag, is_counted: !is_shared }
}

/// Does the upstream fail with this answer (`docs/decisions/stale-answers.md`)?
fn fails(status: StatusCode) -> bool {
    status.is_server_error() || status == StatusCode::TOO_MANY_REQUESTS
}

fn stale_will_do(gateway: &Gateway, wanted: &Wanted) -> bool {
    wanted.fallback.as_ref().is_some_and(|entry| entry.usable(gateway.clock.now()))
}

fn stale(wanted: &Wanted, status: Option<StatusCode>, facts: Facts) -> Result<Reply, Refusal> {
    let entry = wanted.fallback.clone().ok_or(Refusal::Internal)?;
    let cache = CacheStatus::Forward { why: wanted.why, status, stored: false, collapsed: false };
    let filled_by = Some(entry.filled_by);
    Ok(Reply {
        body: Body::Entry(entry),
        cache: Some(cache),
        how: audit::Answer::Stale,
        filled_by,
        facts,
        validated: true,
    })
}

fn landed(call: &Call, wanted: &Wanted, landing: Landing, collapsed: bool) -> Reply {
    let Landing { body, by, facts } = landing;
    let stored = body.entry().is_some() && !collapsed;
    let cache = CacheStatus::Forward { why: wanted.why, status: Some(body.status()), stored, collapsed };
    Reply {
        body,
        cache: Some(cache),
        how: if wanted.together { audit::Answer::Miss } else { audit::Answer::Forwarded },
        filled_by: (by != call.id).then_some(by),
        facts: if collapsed { Facts { attempts: 0, quota_wait: Duration::ZERO, ..facts } } else { facts },
        validated: call.row.cache.is_some(),
    }
}

/// The caller's own page of a whole list.
///
/// # Errors
/// The list cannot be narrowed.
pub(super) fn narrow(
    scope: &crate::config::Scope,
    array: Option<&str>,
    page: &Page,
    mut reply: Reply,
) -> Result<Reply, Refusal> {
    let (status, headers, whole): (_, &HeaderMap, &Bytes) = reply.body.parts();
    if status != StatusCode::OK {
        return Ok(reply);
    }
    let body = page.cut(whole, array.unwrap_or_default(), scope).map_err(|why| Refusal::NotNarrowable { why })?;
    let body = Bytes::from(body);
    let (headers, etag) = (headers.clone(), Some(strong_etag(&HeaderMap::new(), &body)));
    let age = reply.body.entry().cloned();
    reply.body = Body::Made { passed: Arc::new(Passed { status, headers, body, etag, is_counted: false }), of: age };
    Ok(reply)
}

//! The life of every request, top to bottom. [`answer`] owns the one answer and the one record; [`life`] is the list of
//! steps in their order, each one call, each refusal a value.

use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use futures_util::FutureExt as _;
use http::request::Parts;
use http::{Request, Response};
use hyper::body::Body as _;
use hyper::body::Incoming;

use super::account::Account;
use super::answer::{AnswerBody, Reply};
use super::call::{Call, is_read, outgoing, recorded_query};
use super::door::{Busy, Names, Peer};
use super::fetch::{fetch, fetch_ahead};
use super::policy::{Policy, bucket};
use super::recall::{Asked, Recalled, recall};
use super::refusal::Refusal;
use super::state::Gateway;
use super::write::write;
use super::{body, steps, tags};
use crate::callers::Kind;

/// Answers one request: whatever happens inside, there is one answer and one record. The account is opened by the call
/// itself: a caller who hangs up before the first poll leaves a record too.
pub fn answer(
    gateway: Arc<Gateway>,
    peer: &Peer,
    request: Request<Incoming>,
) -> impl Future<Output = Response<AnswerBody>> + Send + use<> {
    let busy = peer.busy(); // 1: the door has accepted it
    let mut account = Account::open(&gateway, peer, &request);
    let names = peer.names.clone();
    let (head, body) = request.into_parts();
    // A block, not a function: a function's future would hold its arguments twice.
    async move {
        let policy = gateway.policy(); // one snapshot for the whole life
        let lived =
            AssertUnwindSafe(life(&gateway, &policy, &mut account, &head, body, (&names, &busy))).catch_unwind().await;
        let reply = lived.unwrap_or_else(|_| {
            gateway.meters.faults.fetch_add(1, Ordering::Relaxed);
            Err(Refusal::Internal)
        });
        // An answer reaches only a caller whose rights cover it at this moment.
        let reply = match reply {
            Ok(reply) if !policy.is_in_force() => account.covered(&gateway.policy()).map(|()| reply),
            reply => reply,
        };
        account.close(reply, head.headers, busy) // 13
    }
}

/// Steps 2 to 12.
///
/// # Errors
/// Why the gateway answers by itself.
async fn life(
    gateway: &Arc<Gateway>,
    policy: &Arc<Policy>,
    account: &mut Account,
    head: &Parts,
    body: Incoming,
    (names, busy): (&Names, &Busy),
) -> Result<Reply, Refusal> {
    if account.room.is_none() {
        return Err(Refusal::LogFull);
    }
    // 2 target: one canonical form of path and query
    let target = steps::target(&head.method, &head.uri, policy.limits())?;
    // 3 identify
    let credential = steps::identify(policy, &head.headers, names).inspect_err(|_| account.unknown_at(&target.path))?;
    let member = credential.member();
    account.known(&credential);
    let path: Arc<str> = Arc::from(&*target.path);
    account.record().path = (!path.is_empty()).then(|| path.clone());
    let (caller, holds) = (member.state.id, &member.state.holds);
    busy.is_of(caller, &holds.connections).map_err(|short| Refusal::Short { of: Kind::Connections, short })?;
    // 4 classify
    let matched = steps::classify(policy, &head.method, &target)?;
    let row = matched.operation;
    account.classified(&row.id, matched.organization);
    account.record().query = recorded_query(row, &target);
    let plan = steps::plan(&target, row, &matched)?;
    // 5 authorize
    steps::authorize(member, &matched)?;
    // 6 admit
    let (under_way, remaining) = steps::admit(member, policy.limits()).map_err(|(refusal, remaining)| {
        remaining.into_iter().for_each(|remaining| account.remaining(remaining));
        refusal
    })?;
    account.remaining(remaining);
    account.admitted(under_way);
    // 7 read the body
    let has_body = !body.is_end_stream();
    let incoming = body::Reading { row, headers: &head.headers, limits: policy.limits(), holder: &holds.bodies };
    let body = incoming.whole(body, &gateway.clock).await?;
    let read = account.read_whole(has_body);
    let id = account.id();
    let call = |goes: &str, within| Call {
        id,
        member: member.clone(),
        by: credential.by(),
        row: row.clone(),
        index: matched.index,
        bucket: bucket(&matched),
        organization: matched.organization,
        parameters: tags::parameters(&matched),
        path,
        outgoing: outgoing(row, goes.to_owned(), &head.headers, body, &holds.answers),
        read,
        deadline: read + within,
        policy: policy.clone(),
    };
    let upstream = &policy.config.upstream;
    // 8 to 12; boxed, so that what only they need does not weigh on every hit
    if !is_read(&head.method) {
        let call = call(&plan.target, upstream.write_deadline);
        return Box::pin(write(gateway, account, call, &head.headers)).await;
    }
    // 8 recall: authorized first, no caller is part of the key
    let headers = &head.headers;
    let asked = Asked { policy, member, matched: &matched, target: &target, plan: &plan, headers };
    match recall(gateway, &asked, read)? {
        Recalled::Answer { reply, ahead } => {
            gateway.quota.saved(bucket(&matched), &member.config.name);
            if let Some(wanted) = ahead {
                fetch_ahead(gateway, call(&wanted.target, upstream.deadline), &wanted);
            }
            Ok(reply)
        }
        Recalled::Fetch(wanted) => {
            let call = call(&wanted.target, upstream.deadline);
            Box::pin(fetch(gateway, account, call, wanted)).await
        }
    }
}

//! The life of every request, from top to bottom. [`answer`] owns the only answer and the only record. [`life`] is the list of steps in
//! order; each is one call, and each refusal is a value.

use std::convert::Infallible;
use std::panic::AssertUnwindSafe;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use futures_util::FutureExt as _;
use futures_util::future::{Either, ready};
use http::request::Parts;
use http::{Request, Response, StatusCode};
use tower::Service;

use super::admit::policy::{Policy, bucket};
use super::admit::{body, identify, steps};
use super::outgoing::outgoing;
use super::read::fetch::{answer_page, fetch, fetch_ahead};
use super::read::lookup::{LookupResult, ReadRequest, lookup};
use super::recorded;
use super::recorder::RequestRecorder;
use super::refusal::Refusal;
use super::request::{AuthorizedRequest, is_read};
use super::response::{self, AnswerBody, Reply};
use super::state::Gateway;
use super::tags;
use super::write::write;
use crate::callers::{Admission, SharedKind};
use crate::door::{self, BusyGuard, PeerConnection, PeerIdentity, RequestBody, Unreadable};
use crate::ids::RequestId;

/// Answers the requests of one connection.
pub fn service<B: RequestBody>(
    gateway: Arc<Gateway>,
    peer: PeerConnection,
) -> impl Service<Request<B>, Response = Response<AnswerBody>, Error = Infallible, Future: Send> + Clone + Send {
    tower::service_fn(move |request| {
        let answer = match probe(&gateway, &peer, &request) {
            Some(probed) => Either::Left(ready(probed)),
            None => Either::Right(answer(gateway.clone(), &peer, request)),
        };
        answer.map(Ok) // an async block would have room for the future twice
    })
}

/// Answers a load balancer's `/livez` or `/readyz`, by status alone: it has no key, names any host and leaves no record.
fn probe<B>(gateway: &Gateway, peer: &PeerConnection, request: &Request<B>) -> Option<Response<AnswerBody>> {
    let status = match request.uri().path() {
        "/livez" => StatusCode::OK,
        "/readyz" if gateway.is_ready() => StatusCode::OK,
        "/readyz" => StatusCode::SERVICE_UNAVAILABLE,
        _ => return None,
    };
    let is_probe = is_read(request.method()) && !door::has_unknown_transfer_coding(request.headers());
    is_probe.then(|| response::status_alone(status, &RequestId::new(&gateway.clock), peer.busy()))
}

/// Answers a request that could not be read. Nothing is known of it, so it leaves no record; the door counts it.
pub fn answer_unread(gateway: &Gateway, why: Unreadable) -> Response<Bytes> {
    let policy = gateway.policy();
    let refusal = match why {
        Unreadable::HeadTooLarge => steps::head_too_large(policy.limits()),
        Unreadable::TargetTooLong => Refusal::TargetTooLong { bytes_max: policy.limits().target_bytes },
        Unreadable::NotHttp => Refusal::NotHttp,
    };
    response::unrecorded(&refusal, &RequestId::new(&gateway.clock))
}

/// Answers one request: whatever happens inside, there is one answer and one record. The recorder starts before the first poll, so that a
/// caller that hangs up before it leaves a record, too.
fn answer<B: RequestBody>(
    gateway: Arc<Gateway>,
    peer: &PeerConnection,
    request: Request<B>,
) -> impl Future<Output = Response<AnswerBody>> + Send + use<B> {
    let busy = peer.busy(); // 1: the door has accepted it
    let mut recorder = RequestRecorder::start(&gateway, peer, &request);
    let peer = peer.identity();
    let (head, body) = request.into_parts();
    // A block, not a function: a function's future would store its arguments twice.
    async move {
        let policy = gateway.policy(); // one snapshot for the whole life
        let lived =
            AssertUnwindSafe(life(&gateway, &policy, &mut recorder, &head, body, (&peer, &busy))).catch_unwind().await;
        let reply = lived.unwrap_or_else(|_| {
            gateway.metrics.faults.fetch_add(1, Ordering::Relaxed);
            Err(Refusal::Internal)
        });
        // A caller gets an answer only if its rights still cover it.
        let reply = match reply {
            Ok(reply) if !policy.is_in_force() || recorder.may_have_ended() => {
                recorder.recheck_rights(&gateway.policy()).map(|()| reply)
            }
            reply => reply,
        };
        recorder.finish(reply, head.headers, busy) // 13
    }
}

/// Steps 2 to 12.
///
/// # Errors
/// The refusal, if the gateway answers itself.
async fn life<B: RequestBody>(
    gateway: &Arc<Gateway>,
    policy: &Arc<Policy>,
    recorder: &mut RequestRecorder,
    head: &Parts,
    body: B,
    (peer, busy): (&PeerIdentity, &BusyGuard),
) -> Result<Reply, Refusal> {
    recorder.room.as_ref().ok_or(Refusal::LogFull)?;
    steps::check_head(head, !body.is_end_stream(), policy.limits())?;
    // 2 target: one canonical form of path and query
    let target = steps::target(&head.method, &head.uri, policy.limits())?;
    steps::no_key_in_target(policy, &head.headers, &target)?;
    // 3 identify
    let identified = identify::identify(gateway, policy, head, peer).await;
    let credential = identified.inspect_err(|refusal| recorder.unidentified(refusal, &target.path))?;
    let caller = credential.caller();
    recorder.identified(&credential, peer);
    let path: Arc<str> = Arc::from(&*target.path);
    recorder.record().path = (!path.is_empty()).then(|| recorded::path(&gateway.log, &path));
    let (caller_id, share_holders) = (caller.state.id, &caller.state.share_holders);
    recorder.charge_to(&share_holders.records)?;
    busy.assign_to(caller_id, &share_holders.connections)
        .map_err(|short| Refusal::Short { of: SharedKind::Connections, short })?;
    // 4 classify
    let matched = steps::classify(policy, &head.method, &target).inspect_err(|_| recorder.cut_path(&target.path))?;
    let row = matched.operation;
    recorder.classified(&row.id, matched.organization);
    recorder.record().query = recorded::query(&gateway.log, row, &target);
    let plan = steps::plan(&target, row, &matched)?;
    // 5 authorize
    steps::authorize(caller, &matched)?;
    // 6 admit
    let rate = match caller.state.admit() {
        Admission::Told(told) => told,
        Admission::Ask(asked) => asked.await,
    };
    recorder.admitted(steps::admit(caller, rate, policy.limits()))?;
    // 7 read the body
    let has_body = !body.is_end_stream();
    let (limits, large_work, trace) = (policy.limits(), &gateway.large_work, recorder.trace());
    let incoming = body::BodyReader { row, headers: &head.headers, limits, caller, large_work, trace };
    let body = incoming.read_and_check(body, &gateway.clock).await?;
    let (read, id, trace) = (recorder.read_whole(has_body), recorder.id(), recorder.trace().cloned());
    let call = |goes: &str, within| AuthorizedRequest {
        id,
        caller: caller.clone(),
        by: credential.id(peer),
        row: row.clone(),
        index: matched.index,
        bucket: bucket(&matched),
        organization: matched.organization,
        parameters: tags::parameters(&matched),
        path,
        outgoing: outgoing(row, goes.to_owned(), &head.headers, body, &share_holders.answers),
        read,
        deadline: read + within,
        facts: Mutex::default(),
        policy: policy.clone(),
        trace: trace.clone(),
    };
    let upstream = &policy.config.upstream;
    // 8 to 12; boxed, so that a hit does not pay for their state
    if !is_read(&head.method) {
        return Box::pin(write(gateway, recorder, call(&plan.target, upstream.write_deadline), &head.headers)).await;
    }
    // 8 look up: authorized first, no caller is part of the key
    let (headers, within) = (&head.headers, upstream.deadline);
    let read_request = ReadRequest { policy, caller, matched: &matched, target: &target, plan: &plan, headers };
    match lookup(gateway, &read_request, read)? {
        LookupResult::Answer { reply, ahead } => {
            gateway.quota.count_saved(bucket(&matched), &caller.config.name);
            if let Some(fetch_plan) = ahead {
                fetch_ahead(gateway, call(&fetch_plan.target, within), &fetch_plan);
            }
            Ok(reply)
        }
        LookupResult::List(list) => {
            Box::pin(answer_page(gateway, recorder, call(&list.again.target, within), *list)).await
        }
        LookupResult::Fetch(fetch_plan) => {
            Box::pin(fetch(gateway, recorder, call(&fetch_plan.target, within), fetch_plan)).await
        }
    }
}

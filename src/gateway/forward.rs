//! Step 11, forward: attempts under one deadline, each with its own quota slot, for as long as the retry table and the budget allow. The
//! result says what the attempts prove.

use std::sync::Arc;
use std::time::{Duration, Instant};

use http::StatusCode;

use super::learned_quota;
use super::recorded;
use super::refusal::{EngineShortage, Refusal};
use super::request::AuthorizedRequest;
use super::request_trace::{AttemptSpan, WaitStep};
use super::response::ForwardFacts;
use super::state::Gateway;
use crate::callers::SharedKind;
use crate::catalogue::{Operation, RetryClass};
use crate::ids::RequestId;
use crate::quota::{BucketId, QuotaOutlook, QuotaRefused, Slot};
use crate::upstream::{
    AttemptError, BreakerOpen, BreakerPermit, BreakerReport, BreakerScope, ConnectionPermit, EndedAttempt, Ending,
    ProxyError, RetryDecision, Upstream, UpstreamAnswer, ambiguous, effect, retry_after,
};
use crate::vocabulary::Outcome;

/// Time reserved for answering after the last attempt.
const ANSWER_RESERVE: Duration = Duration::from_millis(20);

/// Minimum time for a retry: a shorter attempt would find out nothing, and would hide how the previous one ended.
const RETRY_TIME_MIN: Duration = Duration::from_millis(50);

/// Permission to go upstream: from the breaker, with a quota slot and, if already acquired, a connection. Dropping it unused spends
/// nothing.
pub(crate) struct ForwardPermit {
    breaker_permit: Option<UpstreamPermit<BreakerPermit>>,
    slot: Option<Slot>,
    /// Time spent waiting for the slot.
    waited: Duration,
    connection: Option<UpstreamPermit<ConnectionPermit>>,
    /// Of a write, if there are other replicas: the term of the lease in which its turn and its intent are taken.
    pub(crate) term: Option<u64>,
}

/// A permit, and the upstream that it is for: a reload may put another in force while a request waits.
struct UpstreamPermit<P> {
    upstream: Arc<Upstream>,
    permit: P,
}

impl ForwardPermit {
    fn new(breaker_permit: UpstreamPermit<BreakerPermit>, slot: Slot) -> Self {
        Self {
            breaker_permit: Some(breaker_permit),
            waited: slot.waited(),
            slot: Some(slot),
            connection: None,
            term: None,
        }
    }
}

impl Drop for ForwardPermit {
    fn drop(&mut self) {
        if let Some(slot) = self.slot.take() {
            slot.release_unsent();
        }
    }
}

/// The result of forwarding a request.
#[derive(Debug)]
pub(crate) struct Forwarded {
    /// How the last attempt ended, or why there was none.
    pub(crate) ending: Result<Ending, Refusal>,
    pub(crate) facts: ForwardFacts,
    /// Was the effect of any attempt unknown? (A later one may have clarified it.)
    pub(crate) ambiguous: bool,
    /// The effect of a write.
    pub(crate) outcome: Outcome,
}

/// Step 9, wait for quota: fairly among callers and for a limited time, but not at all while the breaker is open.
///
/// # Errors
/// If the breaker is open, or no slot becomes free in time.
pub(crate) async fn forward_permit(gateway: &Gateway, request: &AuthorizedRequest) -> Result<ForwardPermit, Refusal> {
    let breaker_permit = breaker_permit(gateway, request).await?;
    let permit = ForwardPermit::new(breaker_permit, quota_slot(gateway, request).await?);
    gateway.metrics.quota_waits.add(permit.waited);
    Ok(permit)
}

/// Like [`forward_permit`], but with a connection, so that its owner can send immediately.
///
/// # Errors
/// Additionally, if no connection becomes free in time.
pub(crate) async fn forward_permit_with_connection(
    gateway: &Gateway,
    request: &AuthorizedRequest,
) -> Result<ForwardPermit, Refusal> {
    let mut permit = forward_permit(gateway, request).await?;
    permit.connection = Some(acquire_connection(gateway, request).await?);
    Ok(permit)
}

/// Waits for a connection to the upstream in force. If a reload puts another in force meanwhile, waits for one to that.
async fn acquire_connection(
    gateway: &Gateway,
    request: &AuthorizedRequest,
) -> Result<UpstreamPermit<ConnectionPermit>, Refusal> {
    let _waiting = request.step(WaitStep::Connection);
    loop {
        let upstream = gateway.upstream();
        let permit = upstream.acquire_connection(Some(request.caller()), request.patience(&gateway.clock)).await;
        match permit {
            _ if !upstream.is_in_force() => {}
            Some(permit) => return Ok(UpstreamPermit { upstream, permit }),
            None => return Err(Refusal::NoConnection),
        }
    }
}

/// Gets all that the next attempt needs apart from its quota slot: a connection to the upstream in force, whose breaker permits the
/// request, while the caller's rights still cover it.
async fn ready_connection(
    gateway: &Gateway,
    request: &AuthorizedRequest,
    permit: &mut ForwardPermit,
) -> Result<UpstreamPermit<ConnectionPermit>, Refusal> {
    loop {
        let connection = match permit.connection.take().filter(|ready| ready.upstream.is_in_force()) {
            Some(ready) => ready,
            None => acquire_connection(gateway, request).await?,
        };
        request.recheck_rights(gateway)?; // they may have changed during the wait
        check_lease(gateway, request, permit.term)?;
        let is_its = |asked: &UpstreamPermit<_>| Arc::ptr_eq(&asked.upstream, &connection.upstream);
        if permit.breaker_permit.as_ref().is_some_and(is_its) {
            return Ok(connection);
        }
        permit.breaker_permit = Some(breaker_permit(gateway, request).await?);
        permit.connection = Some(connection);
    }
}

/// A write is sent in the term of the lease in which its turn and its intent were taken, and in no later one: where there was a gap,
/// another replica may look after the write and find that it had no effect, or may have its turn.
fn check_lease(gateway: &Gateway, request: &AuthorizedRequest, term: Option<u64>) -> Result<(), Refusal> {
    match &gateway.replicas {
        Some(replicas) if request.row.is_write() && (term.is_none() || replicas.lease().term() != term) => {
            Err(Refusal::NoEngine { why: EngineShortage::NoWrites })
        }
        Some(_) | None => Ok(()),
    }
}

/// Like [`forward_permit`], but without waiting, and only if it takes nothing from others; see
/// [`Quota::acquire_spare`](crate::quota::Quota::acquire_spare).
///
/// # Errors
/// If there is none to spare. Other requests must not fail for that reason.
pub(crate) async fn spare_forward_permit(
    gateway: &Gateway,
    request: &AuthorizedRequest,
) -> Result<ForwardPermit, Refusal> {
    let upstream = gateway.upstream();
    let none = || Refusal::NoQuota { outlook: QuotaOutlook::UNKNOWN };
    let permit = upstream.breaker().permit(RetryClass::Safe, &request.breaker_key()).map_err(|_open| none())?;
    let slot =
        if upstream.is_quiet() { gateway.quota.acquire_spare(request.bucket).await } else { None }.ok_or_else(none)?;
    Ok(ForwardPermit::new(UpstreamPermit { upstream, permit }, slot))
}

/// Asks the breaker. A read may test whether the upstream is reachable again; a write, which could end in doubt, tests it with a bare
/// connection first.
async fn breaker_permit(
    gateway: &Gateway,
    request: &AuthorizedRequest,
) -> Result<UpstreamPermit<BreakerPermit>, Refusal> {
    let (upstream, part) = (gateway.upstream(), request.breaker_key());
    let breaker = upstream.breaker();
    let open = match breaker.permit(request.row.retry, &part) {
        Ok(permit) => return Ok(UpstreamPermit { upstream, permit }),
        Err(open) => open,
    };
    if open.what == BreakerScope::All
        && request.row.retry != RetryClass::Safe
        && let Ok(probe) = breaker.permit(RetryClass::Safe, &part)
    {
        let reached = upstream.check_connection(request.policy.config.upstream.connect).await;
        breaker.report(probe, reached.map_or_else(|why| why.breaker_report(), |()| BreakerReport::Connected));
        let permit = breaker.permit(request.row.retry, &part).map_err(breaker_refusal)?;
        return Ok(UpstreamPermit { upstream, permit });
    }
    Err(breaker_refusal(open))
}

pub(crate) fn breaker_refusal(open: BreakerOpen) -> Refusal {
    Refusal::BreakerOpen { what: open.what, retry_after: open.retry_after }
}

async fn quota_slot(gateway: &Gateway, request: &AuthorizedRequest) -> Result<Slot, Refusal> {
    let _waiting = request.step(WaitStep::Quota);
    let wait = request.patience(&gateway.clock).min(request.policy.config.upstream.quota_wait);
    let began = gateway.clock.now();
    let eligible = request.policy.eligible(request.bucket);
    let turn = gateway.quota.acquire(request.bucket, request.caller(), eligible, began + wait).await;
    let slot = turn.map_err(|refused| {
        request.note_vain_wait(gateway.clock.now().saturating_duration_since(began));
        quota_refusal(refused)
    })?;
    match request.recheck_rights(gateway) {
        Ok(()) => Ok(slot),
        Err(refusal) => {
            slot.release_unsent();
            Err(refusal)
        }
    }
}

pub(crate) fn quota_refusal(refused: QuotaRefused) -> Refusal {
    match refused {
        QuotaRefused::QueueFull(outlook) => Refusal::QuotaQueueFull { outlook },
        QuotaRefused::TooLong(outlook) => Refusal::NoQuota { outlook },
        QuotaRefused::EngineUnreachable => Refusal::NoEngine { why: EngineShortage::NoQuota },
    }
}

/// Sends the request, and retries it where that is safe, until its ending is final. Calls `on_start` when there is nothing left to wait
/// for.
pub(crate) async fn forward(
    gateway: &Gateway,
    request: &AuthorizedRequest,
    mut permit: ForwardPermit,
    on_start: impl FnOnce(),
) -> Forwarded {
    let mut on_start = Some(on_start);
    let mut facts = ForwardFacts { quota_wait: permit.waited, ..ForwardFacts::default() };
    let (mut unsure, mut silent) = (false, false);
    let mut last = None;
    let ended = loop {
        let UpstreamPermit { upstream, permit: connection } =
            match ready_connection(gateway, request, &mut permit).await {
                Ok(connection) => connection,
                Err(refusal) => break last.ok_or(refusal),
            };
        let time = attempt_time(request, gateway);
        if time < RETRY_TIME_MIN
            && let Some(last) = last
        {
            break Ok(last);
        }
        on_start.take().into_iter().for_each(|on_start| on_start());
        let (generation, began) = (upstream.token_generation(), gateway.clock.now());
        let Some(ending) = attempt(gateway, request, (&upstream, connection), time, facts.attempts).await else {
            continue; // this upstream got nothing, so the one in its place may get it
        };
        facts.attempts += 1;
        facts.unsent += u32::from(gives_slot_back(&ending));
        request.note_facts(facts);
        // An attempt cut short because of earlier waits proves nothing about the upstream.
        silent |= ending.breaker_report() == BreakerReport::Silent && time >= request.attempt_time_max() / 2;
        let about = AttemptContext::of(request, began);
        report_attempt(gateway, &about, permit.slot.take(), &ending).await;
        let attempted = EndedAttempt {
            class: request.row.retry,
            number: facts.attempts,
            ending: &ending,
            token_changed: upstream.token_generation() != generation,
            left: request.sending_time_left(&gateway.clock),
        };
        let RetryDecision::Retry { pause } = upstream.decide_retry(request.caller(), &attempted) else {
            break Ok((upstream, ending));
        };
        tokio::time::sleep(pause).await;
        match quota_slot(gateway, request).await {
            Ok(next) => {
                facts.quota_wait += next.waited();
                permit.slot = Some(next);
            }
            Err(_) => break Ok((upstream, ending)),
        }
        unsure |= ambiguous(&ending);
        last = Some((upstream, ending));
    };
    let (upstream, ending) = match ended {
        Ok(ended) => ended,
        Err(refusal) => {
            return Forwarded { ending: Err(refusal), facts, ambiguous: false, outcome: Outcome::NotSent };
        }
    };
    facts.upstream_status = ending.status();
    request.note_facts(facts);
    if let Some(UpstreamPermit { permit, .. }) =
        permit.breaker_permit.take().filter(|asked| Arc::ptr_eq(&asked.upstream, &upstream))
    {
        let report = if ending.breaker_report() == BreakerReport::Silent && !silent {
            BreakerReport::Nothing
        } else {
            ending.breaker_report()
        };
        upstream.breaker().report(permit, report);
    }
    let outcome = effect(request.row.retry, unsure, &ending);
    Forwarded { facts, ambiguous: unsure || ambiguous(&ending), outcome, ending: Ok(ending) }
}

/// Makes one attempt, which is not the first if there were `earlier` ones. `None`: another upstream took the place of this one, which
/// had got nothing.
async fn attempt(
    gateway: &Gateway,
    request: &AuthorizedRequest,
    (upstream, connection): (&Upstream, ConnectionPermit),
    time: Duration,
    earlier: u32,
) -> Option<Ending> {
    let span = request.trace.as_ref().and_then(|trace| {
        let path = recorded::path(&gateway.log, &request.path);
        trace.attempt(upstream.url(), &request.row, (&request.outgoing, &path), earlier)
    });
    let traced = span.as_ref().map(|span| span.outgoing(&request.outgoing));
    let outgoing = traced.as_ref().unwrap_or(&request.outgoing);
    let ending = upstream.attempt(connection, outgoing, time, request.row.retry == RetryClass::Once).await;
    if matches!(ending, Ending::NotSent(_)) && !upstream.is_in_force() {
        span.into_iter().for_each(AttemptSpan::forget);
        return None;
    }
    span.into_iter().for_each(|span| span.end(&ending));
    Some(ending)
}

fn attempt_time(request: &AuthorizedRequest, gateway: &Gateway) -> Duration {
    // Ends a little before the deadline, so that the answer says how the attempt ended.
    let left = request.sending_time_left(&gateway.clock);
    request.attempt_time_max().min(left.saturating_sub(ANSWER_RESERVE.min(left / 10)))
}

/// What an attempt was made for.
pub(crate) struct AttemptContext<'a> {
    pub(crate) request: &'a RequestId,
    pub(crate) row: &'a Operation,
    pub(crate) bucket: BucketId,
    pub(crate) caller: &'a Arc<str>,
    pub(crate) began: Instant,
}

impl<'a> AttemptContext<'a> {
    fn of(request: &'a AuthorizedRequest, began: Instant) -> Self {
        Self { request: &request.id, row: &request.row, bucket: request.bucket, caller: request.caller(), began }
    }
}

/// Whether the upstream got nothing of an attempt that ended so, and it counts against no quota.
fn gives_slot_back(ending: &Ending) -> bool {
    matches!(ending, Ending::NotSent(_) | Ending::NoRoom { status: None, .. })
}

/// Reports an attempt to the quota and the metrics.
pub(crate) async fn report_attempt(gateway: &Gateway, about: &AttemptContext<'_>, slot: Option<Slot>, ending: &Ending) {
    let now = gateway.clock.now();
    gateway.metrics.attempt(&about.row.id, ending, (now.saturating_duration_since(about.began), now));
    // The slot is held until its 429 has closed the bucket: a slot released earlier would count as proof that the upstream accepts more.
    let held = match slot {
        Some(slot) if gives_slot_back(ending) => {
            slot.release_unsent();
            None
        }
        slot => slot,
    };
    let Ending::Answered(answered) = ending else {
        if matches!(ending, Ending::Leaked { .. }) {
            gateway.metrics.leaks.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
            tracing::error!(request = %about.request, operation = %about.row.id, "an answer contained the token and was withheld");
        }
        return;
    };
    match answered.status {
        StatusCode::TOO_MANY_REQUESTS => {
            tracing::warn!(operation = %about.row.id, "the upstream answered 429: its quota is closed for a while");
            gateway.quota.close(about.bucket, retry_after(&answered.headers, gateway.clock.wall()));
        }
        StatusCode::UNAUTHORIZED => {
            gateway.metrics.token_refused.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        }
        StatusCode::FORBIDDEN if !answered.is_from_make() => {
            gateway.metrics.edge_refused.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        }
        _ => {}
    }
    if !answered.status.is_server_error() {
        gateway.metrics.answers.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
    }
    drop(held);
    let learn = || learned_quota::learn(gateway, about.row, about.bucket, answered);
    gateway.large_work.run(about.caller, answered.body.bytes().len(), learn).await;
}

/// The answer to pass on for a read.
///
/// # Errors
/// The refusal to answer with instead.
pub(crate) fn read_answer(ending: Ending) -> Result<UpstreamAnswer, Refusal> {
    match ending {
        Ending::Answered(answered) => passable(answered),
        Ending::NotSent(why) => Err(Refusal::Unreachable { why }),
        Ending::TimedOut(why) => Err(Refusal::TimedOut { why }),
        Ending::Lost(why) | Ending::Cut { why, .. } => Err(Refusal::Cut { why }),
        Ending::Leaked { .. } => Err(Refusal::Leaked),
        Ending::Unusable { why, .. } => Err(Refusal::Unusable { why }),
        Ending::NoRoom { short, .. } => Err(Refusal::Short { of: SharedKind::Answers, short }),
    }
}

/// The answer to pass on for a write; its effect decides what the caller is told.
///
/// # Errors
/// The refusal to answer with instead.
pub(crate) fn write_answer(ending: Ending, effect: Outcome) -> Result<UpstreamAnswer, Refusal> {
    let lost = |why: AttemptError| match effect {
        Outcome::InDoubt => Refusal::DoubtCut { why },
        Outcome::Done => Refusal::AnswerLost { why },
        Outcome::Rejected => Refusal::Cut { why },
        Outcome::NotSent => Refusal::Unreachable { why },
    };
    match ending {
        Ending::Answered(answered) => passable(answered),
        Ending::TimedOut(why) if effect == Outcome::InDoubt => Err(Refusal::DoubtTimedOut { why }),
        Ending::NotSent(why) | Ending::TimedOut(why) | Ending::Lost(why) | Ending::Cut { why, .. } => Err(lost(why)),
        Ending::Leaked { .. } => Err(Refusal::Leaked),
        Ending::Unusable { status: None, why } => Err(lost(why)),
        Ending::Unusable { status: Some(_), why } => Err(Refusal::Unusable { why }),
        Ending::NoRoom { status: None, short } => Err(Refusal::Short { of: SharedKind::Answers, short }),
        Ending::NoRoom { status: Some(_), .. } => Err(lost(AttemptError {
            error: ProxyError::ConnectionLimitReached,
            text: "there was no memory for the answer".into(),
        })),
    }
}

fn passable(answered: UpstreamAnswer) -> Result<UpstreamAnswer, Refusal> {
    match answered.status {
        StatusCode::UNAUTHORIZED => Err(Refusal::TokenRefused),
        status if status.is_redirection() => Err(Refusal::Redirected { status }),
        _ => Ok(answered),
    }
}

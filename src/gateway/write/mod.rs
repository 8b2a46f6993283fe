//! Steps 8 to 12 of a write: check for an earlier one, wait for quota, intend, forward, settle. From the intent on, a write runs in its
//! own task, so that its outcome is recorded even if the caller hangs up (promise 12).

pub(crate) mod healing;
mod idempotency;
pub(crate) mod leaving;
pub(crate) mod order;
mod precondition;
pub(crate) mod shared;
pub(crate) mod writes_of_all;

use std::borrow::Cow;
use std::sync::Arc;
use std::time::Duration;

use http::{HeaderMap, Method, StatusCode};

use self::idempotency::{EarlierWrite, WriteIdentity, find_earlier_write};
use crate::audit::{CannotRecord, HeldRequestId, Kind, Record, RecordRoom};
use crate::cache::{CacheStatus, ForwardReason, Invalidation};
use crate::callers::SharedKind;
use crate::gateway::fences::RaisedFence;
use crate::gateway::forward::{ForwardPermit, Forwarded, forward, forward_permit, write_answer};
use crate::gateway::recorded;
use crate::gateway::recorder::{self, RequestRecorder};
use crate::gateway::refusal::Refusal;
use crate::gateway::request::AuthorizedRequest;
use crate::gateway::request_trace::WaitStep;
use crate::gateway::response::{ForwardFacts, Reply, ReplyBody, passed_answer};
use crate::gateway::state::Gateway;
use crate::gateway::tags;
use crate::idempotency::KeyClaim;
use crate::process_log::ALWAYS;
use crate::replicas::writes::{NotIntended, SharedEnd};
use crate::upstream::{AttemptError, ProxyError};
use crate::vocabulary::{Answer, Outcome};
use order::HeldTurns;
use precondition::Precondition;
use shared::{EarlierAnywhere, IntendedAnywhere, OUT_OF_REACH, end_of, find_earlier_anywhere, why_not_intended};

/// How long a caller waits for its write's outcome to reach the disk. If that takes longer, it is written once the disk is back.
const OUTCOME_WAIT: Duration = Duration::from_secs(1);

/// The answer to a write's caller and, if it had an intent, the recorded outcome.
type EndedWrite = (Result<Reply, Refusal>, Option<Outcome>);

/// A write from step 8 on. Once it has an intent, its own task records the outcome, and the recorder knows it, too.
///
/// # Errors
/// The refusal, if the gateway answers itself.
pub(crate) async fn write(
    gateway: &Arc<Gateway>,
    recorder: &mut RequestRecorder,
    mut request: AuthorizedRequest,
    headers: &HeaderMap,
) -> Result<Reply, Refusal> {
    let identity = match find_earlier(gateway, recorder, &mut request, headers).await? {
        EarlierWrite::New(identity) => identity,
        EarlierWrite::Replayed(outcome, reply) => {
            recorder.outcome = Some(outcome);
            return Ok(reply);
        }
    };
    let term = gateway.replicas.as_ref().and_then(|replicas| replicas.lease().term());
    let precondition = Precondition::of(headers)?;
    let order = async {
        // Creates are independent of each other; whatever else names a resource waits for the writes to it.
        if request.row.method != Method::POST || precondition.is_some() {
            let _waiting = request.step(WaitStep::Turn);
            turns(gateway, &request, term).await.map(Some)
        } else {
            Ok(None)
        }
    };
    let order = tokio::time::timeout(request.patience(&gateway.clock), order).await.map_err(|_| Refusal::NoTurn)??;
    if let Some(precondition) = precondition {
        Box::pin(precondition.check(gateway, recorder, &request)).await?;
    }
    // Before the intent: a crash while queued must not leave an unsent write in doubt.
    let permit = forward_permit(gateway, &request).await;
    let mut permit = permit.inspect_err(|_| recorder::fill_refused_facts(recorder.record(), &request.facts()))?;
    permit.term = term;
    identity.refuse_if_in_doubt(gateway, &request)?; // an identical write may have ended in doubt meanwhile
    let fields = recorded::fields(&gateway.log, &request.row, &request.outgoing.body);
    recorder.record().fields = fields.map(Cow::Owned);
    let request = Arc::new(request);
    let (recording, under_way) = (recorder.hand_over(), recorder.hand_over_share());
    let task = carry_out(gateway.clone(), request.clone(), recording, identity, permit, order);
    let task = gateway.tasks.spawn(async move {
        let _under_way = under_way;
        task.await
    });
    match tokio::time::timeout(request.time_left(&gateway.clock), task).await {
        Ok(Ok((reply, outcome))) => {
            recorder.outcome = outcome;
            reply
        }
        Ok(Err(_panicked)) => {
            recorder.outcome = Some(Outcome::InDoubt);
            Err(Refusal::Internal)
        }
        Err(_elapsed) => {
            recorder.outcome = Some(Outcome::InDoubt);
            // The task continues and records the outcome; until then, what the write touches may change.
            fence(gateway, &request, true, None).in_background(&gateway.tasks);
            if let Some(shared) = &gateway.shared_writes {
                shared.writes.doubt_meanwhile(&request.id);
            }
            let why = AttemptError {
                error: ProxyError::HttpResponseTimeout,
                text: "no answer came before the deadline".into(),
            };
            Err(Refusal::DoubtTimedOut { why })
        }
    }
}

/// Step 8: what is known of earlier writes, first here, then at all replicas. A write whose request id is that of an open write of another
/// replica gets a new one, before anything is recorded.
async fn find_earlier(
    gateway: &Gateway,
    recorder: &mut RequestRecorder,
    request: &mut AuthorizedRequest,
    headers: &HeaderMap,
) -> Result<EarlierWrite, Refusal> {
    loop {
        let identity = match find_earlier_write(gateway, request, headers).await? {
            EarlierWrite::New(identity) => identity,
            replayed @ EarlierWrite::Replayed(..) => return Ok(replayed),
        };
        match Box::pin(find_earlier_anywhere(gateway, request, &identity)).await? {
            EarlierAnywhere::New => return Ok(EarlierWrite::New(identity)),
            EarlierAnywhere::Replayed(outcome, reply) => return Ok(EarlierWrite::Replayed(outcome, reply)),
            EarlierAnywhere::RequestTaken => request.id = recorder.rename(),
        }
    }
}

/// Waits for the write's turn at its path, first here, then over all replicas.
async fn turns(gateway: &Gateway, request: &AuthorizedRequest, term: Option<u64>) -> Result<HeldTurns, Refusal> {
    let here = gateway.write_order.turn(&request.path, request.caller()).await;
    let anywhere = match &gateway.shared_writes {
        Some(shared) => {
            let turn = shared.turns.turn(&request.path, term.ok_or(OUT_OF_REACH)?);
            Some(Box::pin(turn).await.map_err(|_out_of_reach| OUT_OF_REACH)?)
        }
        None => None,
    };
    Ok(HeldTurns { _anywhere: anywhere, _here: here })
}

/// Steps 10 to 12, in a task of their own: from here on it does not matter if the caller hangs up.
async fn carry_out(
    gateway: Arc<Gateway>,
    request: Arc<AuthorizedRequest>,
    (record, room, _held_id): (Record<'static>, Option<RecordRoom>, HeldRequestId),
    identity: WriteIdentity,
    permit: ForwardPermit,
    order: Option<HeldTurns>,
) -> EndedWrite {
    let (intent, anywhere) = match intend(&gateway, &request, &record, &identity).await {
        Ok(intended) => intended,
        Err(why) => return without_intent(gateway, request, (record, room), identity, why).await,
    };
    drop(room); // the intent has room for its outcome
    let record = Some(Record { intent: Some(intent), ..record });
    let claim = identity.claim;
    let mut open = IntendedWrite { gateway: gateway.clone(), request: request.clone(), record, claim, anywhere };
    let Forwarded { ending, facts, ambiguous, outcome } = forward(&gateway, &request, permit, || {}).await;
    let answered = ending.and_then(|ending| write_answer(ending, outcome));
    let fenced = if may_have_effect(outcome, facts.upstream_status) || ambiguous {
        let body = answered.as_ref().ok().map(|answered| answered.body.bytes().as_ref());
        let bytes = body.map_or(0, <[u8]>::len);
        Some(gateway.large_work.run(request.caller(), bytes, || fence(&gateway, &request, ambiguous, body)).await)
    } else {
        None
    };
    drop(order);
    if let Some(fenced) = fenced {
        fenced.everywhere().await;
    }
    let reply = answered.map(|answered| Reply {
        body: ReplyBody::Passed(Arc::new(passed_answer(answered, false, false))),
        cache: Some(CacheStatus::Forward {
            why: ForwardReason::Method,
            status: facts.upstream_status,
            stored: false,
            collapsed: false,
            detail: None,
        }),
        answer: Answer::Forwarded,
        filled_by: None,
        facts,
        may_be_not_modified: false,
    });
    open.settle(outcome, &reply, &facts).await;
    (reply, Some(outcome))
}

/// Nothing is sent: the write has no intent, or not everywhere. It has a record all the same.
async fn without_intent(
    gateway: Arc<Gateway>,
    request: Arc<AuthorizedRequest>,
    (mut record, room): (Record<'static>, Option<RecordRoom>),
    identity: WriteIdentity,
    why: NoIntent,
) -> EndedWrite {
    match why {
        NoIntent::Here(cannot) => {
            let refusal = match cannot {
                CannotRecord::Doubts(short) => Refusal::Short { of: SharedKind::Doubts, short },
                CannotRecord::Full | CannotRecord::Failed | CannotRecord::Slow => Refusal::CannotRecord,
            };
            if let Some(room) = room.filter(|_| !cannot.is_recorded()) {
                fill_refusal(&mut record, &request, &refusal, None);
                room.fill(record);
            }
            (Err(refusal), None)
        }
        NoIntent::Anywhere { intent, why } => {
            drop(room); // the intent has room for its outcome
            let refusal = why_not_intended(&gateway, &request, &identity, why).await;
            let (record, claim) = (Some(Record { intent: Some(intent), ..record }), identity.claim);
            let mut open = IntendedWrite { gateway, request, record, claim, anywhere: None };
            open.settle(Outcome::NotSent, &Err(refusal.clone()), &ForwardFacts::default()).await;
            (Err(refusal), Some(Outcome::NotSent))
        }
    }
}

/// Why a write has no intent.
enum NoIntent {
    /// The log cannot record it.
    Here(CannotRecord),
    /// It is in the log, but not in the engine, so that it is not sent.
    Anywhere { intent: u64, why: NotIntended },
}

/// Step 10, intend: puts the intent on disk, here and in the engine, before the first byte goes upstream. Returns its number.
async fn intend(
    gateway: &Gateway,
    request: &AuthorizedRequest,
    record: &Record<'static>,
    identity: &WriteIdentity,
) -> Result<(u64, Option<IntendedAnywhere>), NoIntent> {
    let mut intent = record.clone();
    intent.kind = Some(Kind::Intent);
    intent.time = gateway.clock.wall();
    intent.fingerprint = Some(identity.write);
    intent.idempotency = identity.claim.as_ref().map(KeyClaim::key);
    intent.marks =
        request.row.is_proved_by_fields().then(|| gateway.log.field_hashes(&request.outgoing.body)).flatten();
    let _waiting = request.step(WaitStep::Intent);
    let Some(anywhere) = IntendedAnywhere::of(gateway, request, &intent, identity.write) else {
        return gateway.log.commit(intent).await.map(|intent| (intent, None)).map_err(NoIntent::Here);
    };
    match tokio::join!(gateway.log.commit(intent), anywhere.commit()) {
        (Ok(intent), Ok(())) => Ok((intent, Some(anywhere))),
        (Ok(intent), Err(why)) => Err(NoIntent::Anywhere { intent, why }),
        (Err(cannot), there) => {
            if there.is_ok() {
                drop(anywhere.end(SharedEnd::NOT_SENT));
            }
            Err(NoIntent::Here(cannot))
        }
    }
}

/// Skip the fence only if the answer proves that nothing changed (`docs/decisions/fences.md`).
fn may_have_effect(outcome: Outcome, status: Option<StatusCode>) -> bool {
    let proves_none = |status: StatusCode| matches!(status.as_u16(), 400 | 401 | 403 | 405 | 406 | 415 | 422 | 429);
    match outcome {
        Outcome::Done | Outcome::InDoubt => true,
        Outcome::NotSent => false,
        Outcome::Rejected => !status.is_some_and(proves_none),
    }
}

/// Step 12, invalidate: from now on, no earlier fetch can be found or joined here (promise 3), and at no replica once the fence is raised
/// everywhere.
fn fence(gateway: &Gateway, request: &AuthorizedRequest, ambiguous: bool, answer: Option<&[u8]>) -> RaisedFence {
    let cache = &request.policy.config.cache;
    let after = if ambiguous {
        Invalidation::InDoubt { settle: cache.settle, doubt: cache.doubt }
    } else {
        Invalidation::Settled { settle: cache.settle }
    };
    gateway.raise(tags::invalidated(&request.row, &request.parameters, answer), after)
}

fn fill_refusal(record: &mut Record<'_>, request: &AuthorizedRequest, refusal: &Refusal, outcome: Option<Outcome>) {
    let row = refusal.row();
    record.status = Some(row.status.as_u16());
    record.answer = Some(Answer::Refused);
    record.refusal = Some(row.code.into());
    record.bytes = Some(refusal.problem(&request.id, outcome).len() as u64);
}

/// An intent without an outcome. If it is dropped like that (a panic, a shutdown), the write is in doubt.
struct IntendedWrite {
    gateway: Arc<Gateway>,
    request: Arc<AuthorizedRequest>,
    record: Option<Record<'static>>,
    /// The claim to its idempotency key, held until the write has ended or the log knows that it is in doubt.
    claim: Option<KeyClaim>,
    /// Its intent in the engine.
    anywhere: Option<IntendedAnywhere>,
}

impl IntendedWrite {
    /// Records the outcome. The answer for the idempotency key is stored first; the caller is told once the outcome is on disk, here and in
    /// the engine.
    async fn settle(&mut self, outcome: Outcome, reply: &Result<Reply, Refusal>, facts: &ForwardFacts) {
        let ended = idempotency::result_to_keep(outcome, reply, facts);
        let kept = ended.and_then(|ended| self.claim.as_ref()?.kept(ended));
        let anywhere = self.anywhere.take().map(|anywhere| anywhere.end(end_of(outcome, kept.as_ref())));
        if let Some(kept) = kept
            && let Some(claim) = self.claim.take()
        {
            claim.end(kept).await;
        }
        let Some(mut record) = self.record.take() else { return };
        record.kind = Some(Kind::Outcome);
        record.time = self.gateway.clock.wall();
        let sent = reply.as_ref().map_err(Refusal::clone);
        match sent.and_then(|reply| self.request.recheck_rights(&self.gateway).map(|()| reply)) {
            Ok(reply) => {
                let (status, _, body) = reply.body.parts();
                record.status = Some(status.as_u16());
                record.answer = Some(reply.answer);
                record.bytes = Some(body.len() as u64);
            }
            Err(refusal) => fill_refusal(&mut record, &self.request, &refusal, Some(outcome)),
        }
        record.outcome = Some(outcome);
        recorder::fill_facts(&mut record, facts);
        record.duration_us = Some(recorder::micros(self.request.age(&self.gateway.clock)));
        let _waiting = self.request.step(WaitStep::Outcome);
        let recorded = self.gateway.log.commit(record);
        let everywhere = async {
            match anywhere {
                Some(told) => tokio::join!(recorded, told).0,
                None => recorded.await,
            }
        };
        match tokio::time::timeout(OUTCOME_WAIT, everywhere).await {
            Ok(Ok(_)) => {}
            Ok(Err(cannot)) => {
                tracing::error!(target: ALWAYS, request = %self.request.id, %cannot, "an outcome could not be recorded: the write will be in doubt");
            }
            Err(_) => {
                tracing::error!(request = %self.request.id, "an outcome is still waiting for the log's disk, or for the replicas' database; its caller is answered now")
            }
        }
    }
}

impl Drop for IntendedWrite {
    fn drop(&mut self) {
        let Some(mut record) = self.record.take() else { return };
        fence(&self.gateway, &self.request, true, None).in_background(&self.gateway.tasks);
        record.kind = Some(Kind::Outcome);
        record.time = self.gateway.clock.wall();
        record.outcome = Some(Outcome::InDoubt);
        // The call queues the record; it cannot be awaited here.
        drop(self.gateway.log.commit(record));
        if let Some(anywhere) = self.anywhere.take() {
            drop(anywhere.end(SharedEnd::IN_DOUBT));
        }
    }
}

//! Owns a request's id, its room in the log, its only answer and its only record. Dropped without an answer (because the caller hung up),
//! it still leaves the record.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::header::{self, GetAll, HeaderName};
use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode, Version};

use super::admit::identify::{Credential, CredentialId};
use super::admit::policy::{Caller, Policy};
use super::admit::steps::{self, Rights};
use super::outgoing::is_traceparent;
use super::recorded;
use super::refusal::{Refusal, seconds};
use super::refusal_tally::RefusedParty;
use super::request::is_read;
use super::request_trace::RequestTrace;
use super::response::{self, AnswerBody, ForwardFacts, PIECE_BYTES, Reply, ResponseContext, put_header};
use super::state::Gateway;
use crate::audit::{self, HeldRequestId, Kind, Record, RecordRoom};
use crate::callers::{Remaining, SharedKind};
use crate::counters::AnswerKind;
use crate::door::{BusyGuard, PeerConnection, PeerIdentity};
use crate::ids::{KeyId, RequestId};
use crate::otel::Otel;
use crate::shares::{HeldShare, ShareHolder};
use crate::vocabulary::{Answer, Outcome};

const RATE_LIMIT: HeaderName = HeaderName::from_static("ratelimit");
const RATE_POLICY: HeaderName = HeaderName::from_static("ratelimit-policy");
const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
const TRACEPARENT: HeaderName = HeaderName::from_static("traceparent");

/// Maximum bytes of the path in the record of an unidentified caller or an unknown operation.
const UNKNOWN_PATH_BYTES_MAX: usize = 256;

/// Records one request.
pub(crate) struct RequestRecorder {
    gateway: Arc<Gateway>,
    held_id: HeldRequestId,
    began: Instant,
    /// `None` once it was handed to the log.
    record: Option<Box<Record<'static>>>,
    /// Room for the record; a write's intent takes it.
    pub(crate) room: Option<RecordRoom>,
    caller: Option<Arc<Caller>>,
    by: Option<CredentialId>,
    remaining: Option<Remaining>,
    /// Counts the request as under way.
    under_way: Option<HeldShare>,
    /// Only for a write with an intent.
    pub(crate) outcome: Option<Outcome>,
    is_read: bool,
    is_head: bool,
    if_none_match: Option<HeaderValue>,
    counted: bool,
    /// Refused for a reason that the caller can cause as often as it likes.
    is_repeatable_refusal: bool,
    handed_over: bool,
    /// If the request's trace is sent.
    trace: Option<Arc<RequestTrace>>,
}

impl RequestRecorder {
    pub(crate) fn start<B>(gateway: &Arc<Gateway>, peer: &PeerConnection, request: &Request<B>) -> Self {
        let headers = request.headers();
        let time = gateway.clock.wall();
        let is_read = is_read(request.method());
        let own_id = headers.get(REQUEST_ID).map(HeaderValue::as_bytes).filter(|id| !steps::has_own_key(headers, id));
        let held_id = gateway.assign_request_id(own_id, is_read, time);
        let mut record = Box::new(Record::new(Kind::Request, time));
        record.request = Some(*held_id.id());
        record.peer = Some(peer.address.map_or(audit::Peer::Unix(peer.uid), audit::Peer::Ip));
        record.method = Some(steps::cut_method(request.method()));
        record.trace = valid_traceparent(headers);
        let otel = gateway.otel.as_ref();
        let trace = otel.and_then(|otel| begin_trace(gateway, otel, &mut record, request.version()));
        Self {
            room: gateway.log.reserve(),
            gateway: gateway.clone(),
            held_id,
            began: gateway.clock.now(),
            record: Some(record),
            caller: None,
            by: None,
            remaining: None,
            under_way: None,
            outcome: None,
            is_read,
            is_head: request.method() == Method::HEAD,
            if_none_match: joined(headers.get_all(header::IF_NONE_MATCH)),
            counted: false,
            is_repeatable_refusal: false,
            handed_over: false,
            trace,
        }
    }

    pub(crate) fn id(&self) -> RequestId {
        *self.held_id.id()
    }

    /// Gives the request a new id, before anything was recorded under the old one.
    pub(crate) fn rename(&mut self) -> RequestId {
        self.held_id = self.gateway.log.request_ids().make(self.gateway.clock.wall());
        let id = self.id();
        self.record().request = Some(id);
        id
    }

    /// The record so far.
    pub(crate) fn record(&mut self) -> &mut Record<'static> {
        self.record.get_or_insert_with(|| Box::new(Record::new(Kind::Request, self.gateway.clock.wall())))
    }

    /// The caller is unidentified or the path unknown: the record stores only the beginning of the path.
    pub(crate) fn cut_path(&mut self, path: &str) {
        let shown = recorded::unknown_path(&self.gateway.log, path);
        self.record().path = (!path.is_empty()).then(|| audit::truncate(&shown, UNKNOWN_PATH_BYTES_MAX).into());
    }

    /// The caller was not identified. If its key is known, the record names it.
    pub(crate) fn unidentified(&mut self, refusal: &Refusal, path: &str) {
        self.cut_path(path);
        if let Refusal::Credential { why } = refusal {
            self.record().key = why.key();
        }
    }

    /// Counts the record's room against the caller's share of the log's buffer.
    ///
    /// # Errors
    /// If the share is used up.
    pub(crate) fn charge_to(&mut self, records: &Arc<ShareHolder>) -> Result<(), Refusal> {
        let counted = self.room.as_mut().map_or(Ok(()), |room| room.charge_to(records));
        counted.map_err(|short| Refusal::Short { of: SharedKind::Records, short })
    }

    /// The caller was identified.
    pub(crate) fn identified(&mut self, credential: &Credential<'_>, peer: &PeerIdentity) {
        let (record, caller) = (self.record(), credential.caller());
        record.caller = Some(caller.config.name.clone().into());
        if let Credential::Key(key, _) = credential {
            record.key = Some(key.key);
            key.last_used.store(record.time.as_millisecond(), Ordering::Relaxed);
        }
        if let Credential::Token(_, token) = credential {
            record.key = Some(KeyId::of(&token.hash));
        }
        record.credential = credential.kind();
        self.by = Some(credential.id(peer));
        self.caller = Some(caller.clone());
    }

    /// Whether the caller's credential may have ended since it was checked.
    pub(crate) fn may_have_ended(&self) -> bool {
        self.by.as_ref().is_some_and(CredentialId::ends_by_itself)
    }

    /// Checks the caller's rights under the policy in force, after the request was authorized.
    ///
    /// # Errors
    /// If they no longer cover the answer.
    pub(crate) fn recheck_rights(&mut self, policy: &Policy) -> Result<(), Refusal> {
        let record = self.record();
        let (operation, organization) = (record.operation.clone(), record.organization);
        match (&self.by, &self.caller, operation) {
            (Some(by), Some(caller), Some(operation)) => {
                let rights = Rights { by, caller, operation: &operation, organization };
                steps::recheck_rights(policy, &rights, &self.gateway.clock)
            }
            _ => Ok(()),
        }
    }

    /// The operation was found.
    pub(crate) fn classified(&mut self, operation: &Arc<str>, organization: Option<u64>) {
        let record = self.record();
        record.operation = Some(operation.clone().into());
        record.organization = organization;
    }

    /// What the spans of the request's steps belong to, if its trace is sent.
    pub(crate) const fn trace(&self) -> Option<&Arc<RequestTrace>> {
        self.trace.as_ref()
    }

    /// Notes whether the request was admitted, and what remains of the caller's rate.
    ///
    /// # Errors
    /// It was not.
    pub(crate) fn admitted(
        &mut self,
        admitted: Result<(HeldShare, Remaining), (Refusal, Option<Remaining>)>,
    ) -> Result<(), Refusal> {
        let (under_way, remaining, refusal) = match admitted {
            Ok((under_way, remaining)) => (Some(under_way), Some(remaining), Ok(())),
            Err((refusal, remaining)) => (None, remaining, Err(refusal)),
        };
        (self.under_way, self.remaining) = (under_way, remaining);
        refusal
    }

    /// Hands the under-way count to the task that does the work, so that a caller that hangs up frees nothing before the work is done.
    pub(crate) fn hand_over_share(&mut self) -> Option<HeldShare> {
        self.under_way.take()
    }

    /// The request was read completely. Its duration counts from now, or from the start if it has no body.
    pub(crate) fn read_whole(&mut self, had_body: bool) -> Instant {
        if had_body {
            self.began = self.gateway.clock.now();
        }
        self.began
    }

    /// Hands the record to a write's task, which always leaves it. The task also holds the request's id.
    pub(crate) fn hand_over(&mut self) -> (Record<'static>, Option<RecordRoom>, HeldRequestId) {
        self.handed_over = true;
        (self.record().clone(), self.room.take(), self.held_id.add_holder())
    }

    /// Makes the answer, and leaves the record unless a write's task does. The answer's headers reuse the request's map.
    pub(crate) fn finish(
        mut self,
        mut reply: Result<Reply, Refusal>,
        mut headers: HeaderMap,
        busy: BusyGuard,
    ) -> Response<AnswerBody> {
        headers.clear();
        let now = self.gateway.clock.now();
        let mut response = self.response(&reply, headers, now);
        let room = match self.room_for(&reply, response.body()) {
            Ok(room) => room,
            Err(refusal) => {
                reply = Err(refusal);
                response = self.response(&reply, HeaderMap::new(), now);
                None
            }
        };
        let answer = reply.as_ref().map_or(Answer::Refused, |reply| reply.answer);
        self.note(&response, &reply, answer, now);
        response::complete(response, self.held_id.id(), busy, room)
    }

    fn response(&self, reply: &Result<Reply, Refusal>, headers: HeaderMap, now: Instant) -> Response<Bytes> {
        let context = ResponseContext { if_none_match: self.if_none_match.as_ref(), is_read: self.is_read, now };
        let mut response = match reply {
            Ok(reply) => reply.response(&context, headers),
            Err(refusal) => response::refused(refusal, self.held_id.id(), self.outcome, headers),
        };
        self.add_headers(response.status(), response.headers_mut(), reply.is_err());
        if self.is_head {
            response::leave_out_body(&mut response);
        }
        response
    }

    /// A large body that is shared (a cache entry, or a shared fetch) counts against the share of each of its readers. Otherwise a body
    /// that one caller is slow to read would burden everyone.
    ///
    /// # Errors
    /// If the caller's share of answers is used up.
    fn room_for(&self, reply: &Result<Reply, Refusal>, body: &Bytes) -> Result<Option<HeldShare>, Refusal> {
        let (Ok(reply), Some(caller), true) = (reply, &self.caller, body.len() > PIECE_BYTES) else { return Ok(None) };
        if reply.body.is_counted() {
            return Ok(None);
        }
        let amount = u64::try_from(body.len()).unwrap_or(u64::MAX);
        let room = caller.state.share_holders.answers.take(amount);
        room.map(Some).map_err(|short| Refusal::Short { of: SharedKind::Answers, short })
    }

    fn add_headers(&self, status: StatusCode, headers: &mut HeaderMap, is_refused: bool) {
        let says_rate = is_refused && headers.contains_key(RATE_LIMIT);
        if let Some(caller) = &self.caller
            && let Some(remaining) = &self.remaining
            && !says_rate
        {
            headers.insert(RATE_POLICY, caller.rate_policy.clone());
            let whole = if remaining.whole_in.is_zero() { 0 } else { seconds(remaining.whole_in) };
            let left = u64::from(remaining.left);
            put_header(headers, &RATE_LIMIT, |writer| {
                writer.text("\"caller\";r=").number(left).text(";t=").number(whole)
            });
        }
        if let Some(outcome) = self.outcome {
            response::set_outcome(headers, outcome);
        }
        // The gateway's own refusals know when to come back.
        if status == StatusCode::TOO_MANY_REQUESTS && !is_refused && self.outcome != Some(Outcome::InDoubt) {
            response::set_retry_after(headers, self.gateway.clock.wall());
        }
    }

    fn note(&mut self, response: &Response<Bytes>, reply: &Result<Reply, Refusal>, answer: Answer, now: Instant) {
        let taken = now.saturating_duration_since(self.began);
        self.gateway.metrics.add_duration(answer, taken);
        let code = reply.as_ref().err().map(|refusal| refusal.row().code);
        self.count(AnswerKind::new(answer, response.status(), code));
        self.is_repeatable_refusal =
            matches!(reply, Err(Refusal::TooFast { .. } | Refusal::Short { of: SharedKind::Records, .. }));
        let record = self.record();
        record.status = Some(response.status().as_u16());
        record.answer = Some(answer);
        record.bytes = Some(response.body().len() as u64);
        record.duration_us = Some(micros(taken));
        match reply {
            Ok(reply) => {
                record.filled_by = reply.filled_by;
                fill_facts(record, &reply.facts);
            }
            Err(refusal) => record.refusal = Some(refusal.row().code.into()),
        }
    }

    /// Who is refused, if refusals like this could repeat without end; [`RefusalTally`](super::refusal_tally::RefusalTally) bounds their
    /// records.
    fn tallied_party(&self, record: &Record<'_>) -> Option<RefusedParty> {
        match &self.caller {
            None => record.peer.clone().map(RefusedParty::Peer),
            Some(caller) => {
                // Once refusals have used up their share of the log, none may push the records of writes out.
                let is_over = record.refusal.is_some() && !self.gateway.log.refusals_fit();
                (self.is_repeatable_refusal || is_over).then(|| RefusedParty::Caller(caller.config.name.clone()))
            }
        }
    }

    fn count(&mut self, kind: AnswerKind) {
        self.counted = true;
        let operation = self.record.as_ref().and_then(|record| record.operation.as_ref()?.as_shared());
        match &self.caller {
            Some(caller) => caller.state.answers.add(operation, kind),
            None => self.gateway.metrics.unidentified.add(None, kind),
        }
    }
}

impl Drop for RequestRecorder {
    fn drop(&mut self) {
        if !self.counted {
            let taken = self.gateway.clock.now().saturating_duration_since(self.began);
            self.record().duration_us = Some(micros(taken));
        }
        if let Some(trace) = self.trace.take() {
            let outcome = self.outcome;
            let policy = self.gateway.policy();
            let record = self.record();
            let row = record.operation.as_deref().and_then(|operation| policy.catalogue().row(operation));
            trace.end(record, outcome, row.map(|row| &**row));
        }
        let (Some(record), false) = (self.record.take(), self.handed_over) else { return };
        let room = self.room.take();
        if room.is_none() {
            self.gateway.metrics.unrecorded.fetch_add(1, Ordering::Relaxed);
        }
        match (self.tallied_party(&record), room) {
            (Some(who), room) => {
                self.gateway.refusal_tally.tally(&self.gateway.log, who, room, record, self.gateway.clock.now())
            }
            (None, Some(room)) => room.fill(record),
            (None, None) => {}
        }
    }
}

/// Begins the request's trace. Where the caller brings none, the record names the one that begins here.
fn begin_trace(
    gateway: &Gateway,
    otel: &Arc<Otel>,
    record: &mut Record<'_>,
    version: Version,
) -> Option<Arc<RequestTrace>> {
    let trace = RequestTrace::begin(gateway, otel, record.trace.as_deref(), version)?;
    record.trace.get_or_insert_with(|| trace.traceparent().into());
    Some(trace)
}

/// Joins all field lines into one list (RFC 9110 section 5.3).
fn joined(values: GetAll<'_, HeaderValue>) -> Option<HeaderValue> {
    let mut lines = values.iter();
    let (first, second) = (lines.next()?, lines.next());
    if second.is_none() {
        return Some(first.clone());
    }
    let all: Vec<&[u8]> = values.iter().map(HeaderValue::as_bytes).collect();
    HeaderValue::from_bytes(&all.join(&b',')).ok()
}

/// Copies the facts into a record.
pub(crate) fn fill_facts(record: &mut Record<'static>, facts: &ForwardFacts) {
    record.attempts = (facts.attempts > 0).then_some(facts.attempts);
    record.spent = (facts.unsent > 0).then(|| facts.attempts.saturating_sub(facts.unsent));
    record.upstream_status = facts.upstream_status.map(|status| status.as_u16());
    record.quota_wait_us = (facts.attempts > 0).then(|| micros(facts.quota_wait));
}

/// The same for a request that is refused: it may have waited for quota in vain.
pub(crate) fn fill_refused_facts(record: &mut Record<'static>, facts: &ForwardFacts) {
    fill_facts(record, facts);
    let waited = Some(facts.quota_wait).filter(|wait| !wait.is_zero());
    record.quota_wait_us = record.quota_wait_us.or(waited.map(micros));
}

pub(crate) fn micros(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)
}

fn valid_traceparent(headers: &HeaderMap) -> Option<Box<str>> {
    let value = headers.get(TRACEPARENT)?;
    is_traceparent(value.as_bytes()).then(|| value.to_str().ok().map(Into::into)).flatten()
}

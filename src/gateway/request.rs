//! An authorized request that was read completely. The steps that wait own it, so that a fetch or a write can outlive the caller's
//! connection.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use http::Method;

use super::admit::identify::CredentialId;
use super::admit::policy::{Caller, Policy};
use super::admit::steps::{self, Rights};
use super::refusal::Refusal;
use super::request_trace::{RequestTrace, StepSpan, WaitStep};
use super::response::ForwardFacts;
use super::state::Gateway;
use super::tags::Parameters;
use crate::catalogue::Operation;
use crate::clock::Clock;
use crate::ids::RequestId;
use crate::quota::BucketId;
use crate::replicas::fences::longest_wait;
use crate::upstream::{BreakerKey, Outgoing};

pub(crate) struct AuthorizedRequest {
    pub(crate) id: RequestId,
    pub(crate) policy: Arc<Policy>,
    pub(crate) caller: Arc<Caller>,
    pub(crate) by: CredentialId,
    pub(crate) row: Arc<Operation>,
    pub(crate) index: usize,
    pub(crate) bucket: BucketId,
    /// The organization in the path.
    pub(crate) organization: Option<u64>,
    pub(crate) parameters: Parameters,
    /// The canonical path.
    pub(crate) path: Arc<str>,
    pub(crate) outgoing: Outgoing,
    /// When the request was read completely.
    pub(crate) read: Instant,
    /// The answer is due by then.
    pub(crate) deadline: Instant,
    /// If its trace is sent.
    pub(crate) trace: Option<Arc<RequestTrace>>,
    /// What its attempts came to so far: its record says so however it ends.
    pub(crate) facts: Mutex<ForwardFacts>,
}

impl AuthorizedRequest {
    /// Time since the request was read completely.
    pub(crate) fn age(&self, clock: &Clock) -> Duration {
        clock.now().saturating_duration_since(self.read)
    }

    /// Checks the caller's rights again, because they end at once when they are revoked or their credential expires.
    ///
    /// # Errors
    /// The refusal, if they no longer cover the request.
    pub(crate) fn recheck_rights(&self, gateway: &Gateway) -> Result<(), Refusal> {
        if self.policy.is_in_force() && !self.by.ends_by_itself() {
            return Ok(());
        }
        let Self { by, caller, row, organization, .. } = self;
        let rights = Rights { by, caller, operation: &row.id, organization: *organization };
        steps::recheck_rights(&gateway.policy(), &rights, &gateway.clock)
    }

    pub(crate) fn time_left(&self, clock: &Clock) -> Duration {
        self.deadline.saturating_duration_since(clock.now())
    }

    /// Time left for attempts. Those of a write end early enough for its fence to be raised at the other replicas before the answer is due.
    pub(crate) fn sending_time_left(&self, clock: &Clock) -> Duration {
        self.time_left(clock).saturating_sub(fence_time(&self.policy, &self.row))
    }

    /// Times a step until the returned value is dropped, if the trace is sent.
    pub(crate) fn step(&self, step: WaitStep) -> Option<StepSpan<'_>> {
        self.trace.as_ref().map(|trace| trace.step(step))
    }

    /// What its attempts came to so far.
    pub(crate) fn facts(&self) -> ForwardFacts {
        *self.facts.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn note_facts(&self, facts: ForwardFacts) {
        *self.facts.lock().unwrap_or_else(PoisonError::into_inner) = facts;
    }

    /// It waited for quota in vain.
    pub(crate) fn note_vain_wait(&self, waited: Duration) {
        self.facts.lock().unwrap_or_else(PoisonError::into_inner).quota_wait += waited;
    }

    /// Name of the caller that it queues under.
    pub(crate) fn caller(&self) -> &Arc<str> {
        &self.caller.config.name
    }

    /// Its key in the circuit breaker.
    pub(crate) fn breaker_key(&self) -> BreakerKey {
        BreakerKey { operation: self.row.id.clone(), organization: self.organization }
    }

    /// Maximum time for one attempt.
    pub(crate) fn attempt_time_max(&self) -> Duration {
        let upstream = &self.policy.config.upstream;
        let most = if self.row.is_write() { upstream.write_attempt } else { upstream.attempt };
        most.min(self.deadline.saturating_duration_since(self.read).saturating_sub(fence_time(&self.policy, &self.row)))
    }

    /// How long it may still wait in queues.
    pub(crate) fn patience(&self, clock: &Clock) -> Duration {
        patience(self.sending_time_left(clock), self.attempt_time_max())
    }
}

/// How long a request with this much time left may wait in queues. This leaves an attempt at least an eighth of its time: with less, a
/// write would only end in doubt.
pub(crate) fn patience(left: Duration, attempt_max: Duration) -> Duration {
    left.saturating_sub(attempt_max / 8)
}

/// How long before its deadline a request stops sending, because the fence of a write may wait for the other replicas' leases.
pub(crate) fn fence_time(policy: &Policy, row: &Operation) -> Duration {
    let replicas = policy.config.replicas.as_ref().filter(|_| row.is_write());
    replicas.map_or(Duration::ZERO, |replicas| longest_wait(replicas.lease))
}

/// Can the answer come from the cache?
pub(crate) fn is_read(method: &Method) -> bool {
    method == Method::GET || method == Method::HEAD
}

//! One look: sends the read that the catalogue names for a write in doubt, and settles what its answer proves.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use bytes::Bytes;
use http::{HeaderMap, Method};
use serde_json::Value;

use super::evidence::{Evidence, EvidenceQuestion};
use super::settle::{Settlement, settle};
use super::watched::DoubtReason;
use crate::audit::Doubt;
use crate::catalogue::{BodyKind, EffectCheck, Operation, Proves, RetryClass};
use crate::gateway::Gateway;
use crate::gateway::admit::policy::{Policy, bucket_of};
use crate::gateway::admit::target::path_with;
use crate::gateway::forward::{AttemptContext, report_attempt};
use crate::gateway::outgoing::outgoing_headers;
use crate::gateway::tags::{self, Parameters};
use crate::quota::{BucketId, Slot};
use crate::upstream::{BreakerKey, BreakerPermit, Ending, Outgoing, Upstream, UpstreamAnswer, is_json};

/// The name that looks queue under, beside those of callers.
const OWN_NAME: &str = "(makegate)";

/// A look that can be sent.
pub(super) struct LookPlan<'p> {
    policy: &'p Policy,
    doubt: &'p Doubt,
    check: &'p EffectCheck,
    parameters: Parameters,
    read: &'p Operation,
    target: String,
    bucket: BucketId,
    organization: Option<u64>,
}

/// Permission to send a look. It takes no quota that anyone else wants.
pub(super) struct LookPermit {
    upstream: Arc<Upstream>,
    breaker: BreakerPermit,
    slot: Slot,
}

impl LookPermit {
    /// Returns the slot; nothing was sent.
    pub(super) fn give_back(self) {
        self.slot.release_unsent();
    }
}

impl<'p> LookPlan<'p> {
    /// Plans how to find out what became of this write.
    ///
    /// # Errors
    /// If looking is off, or no look can prove anything about this write.
    pub(super) fn of(policy: &'p Policy, doubt: &'p Doubt) -> Result<Self, DoubtReason> {
        if !policy.config.upstream.look {
            return Err(DoubtReason::Off);
        }
        Self::provable(policy, doubt).ok_or(DoubtReason::Unprovable)
    }

    fn provable(policy: &'p Policy, doubt: &'p Doubt) -> Option<Self> {
        let row = policy.catalogue().row(&doubt.operation)?;
        let check = row.look.as_ref().filter(|look| look.proves != Proves::Fields || doubt.marks.is_some())?;
        let read = policy.catalogue().row(&check.read)?;
        let parameters = tags::parameters_in(row, &doubt.path)?;
        let value = |name: &str| parameters.iter().find(|(known, _)| known == name).map_or("", |(_, value)| value);
        let target = path_with(read, value);
        let organization = doubt.organization.filter(|_| read.has_organization());
        let bucket = bucket_of(read, organization);
        Some(Self { policy, doubt, check, read, target, bucket, organization, parameters })
    }

    /// Gets permission to send the look, without waiting.
    ///
    /// # Errors
    /// If the breaker is open, or there is no spare quota.
    pub(super) async fn permit(&self, gateway: &Gateway) -> Result<LookPermit, DoubtReason> {
        let upstream = gateway.upstream();
        let key = BreakerKey { operation: self.read.id.clone(), organization: self.organization };
        let breaker = upstream.breaker().permit(RetryClass::Safe, &key).map_err(|_open| DoubtReason::Unanswered)?;
        let slot = gateway.quota.acquire_spare(self.bucket).await.ok_or(DoubtReason::NoQuota)?;
        Ok(LookPermit { upstream, breaker, slot })
    }

    /// Sends the look and settles what it proves. Returns why the doubt remains, if it does. `too_late`: the write can no longer take
    /// effect.
    pub(super) async fn look(&self, gateway: &Arc<Gateway>, permit: LookPermit, too_late: bool) -> DoubtReason {
        let LookPermit { upstream, breaker, slot } = permit;
        let headers = outgoing_headers(BodyKind::None, &HeaderMap::new(), false);
        let answers = gateway.callers.own.answers.clone();
        let outgoing =
            Outgoing { method: Method::GET, target: self.target.clone(), headers, body: Bytes::new(), answers };
        let time = self.policy.config.upstream.attempt;
        let Some(connection) = upstream.acquire_connection(None, time).await else {
            slot.release_unsent();
            return DoubtReason::Failed;
        };
        let began = gateway.clock.now();
        let ending = upstream.attempt(connection, &outgoing, time, false).await;
        gateway.metrics.looks.fetch_add(1, Ordering::Relaxed);
        let caller = Arc::from(OWN_NAME);
        let about = AttemptContext {
            request: &self.doubt.request,
            row: self.read,
            bucket: self.bucket,
            caller: &caller,
            began,
        };
        report_attempt(gateway, &about, Some(slot), &ending).await;
        upstream.breaker().report(breaker, ending.breaker_report());
        let Ending::Answered(answered) = ending else { return DoubtReason::Failed };
        let judge = || self.judge(gateway, &answered, too_late);
        let evidence = gateway.large_work.run(&caller, answered.body.bytes().len(), judge).await;
        self.settle(gateway, &answered, evidence).await
    }

    /// What the answer proves.
    fn judge(&self, gateway: &Gateway, answered: &UpstreamAnswer, too_late: bool) -> Evidence {
        let body: Option<Value> =
            is_json(&answered.headers).then(|| serde_json::from_slice(answered.body.bytes()).ok()).flatten();
        let question = EvidenceQuestion {
            look: self.check,
            parameters: &self.parameters,
            marks: self.doubt.marks.as_ref(),
            too_late,
        };
        question.judge(&gateway.log, answered.status, body.as_ref())
    }

    async fn settle(&self, gateway: &Arc<Gateway>, answered: &UpstreamAnswer, evidence: Evidence) -> DoubtReason {
        let (done, because) = match evidence {
            Evidence::Done(because) => (true, because),
            Evidence::NotDone(because) => (false, because),
            Evidence::Nothing if answered.status.is_success() => return DoubtReason::Unproved,
            Evidence::Nothing => return DoubtReason::Failed,
        };
        let status = answered.status.as_u16();
        let verdict = Settlement {
            operator: None,
            key: None,
            done,
            peer: None,
            detail: Some(format!("looked: GET {} answered {status}, {because}", self.target).into()),
            upstream_status: Some(status),
        };
        if settle(gateway, self.doubt.intent, verdict).await.is_ok() {
            gateway.metrics.settled_by_look.fetch_add(1, Ordering::Relaxed);
        }
        DoubtReason::Unproved
    }
}

//! An authorized request that was read completely. The steps that wait own it, so that a fetch or a write can outlive the caller's
//! connection.

use std::sync::Arc;
use std::time::{Duration, Instant};

use http::Method;
use serde_json::value::RawValue;
use serde_json::{Map, Value};

use super::admit::identify::CredentialId;
use super::admit::policy::{Caller, Policy};
use super::admit::steps::{self, Rights};
use super::admit::target::Target;
use super::refusal::Refusal;
use super::state::Gateway;
use super::tags::Parameters;
use crate::audit;
use crate::catalogue::Operation;
use crate::clock::Clock;
use crate::ids::RequestId;
use crate::json_members::JsonMembers;
use crate::quota::BucketId;
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
    /// The canonical path, as in records.
    pub(crate) path: Arc<str>,
    pub(crate) outgoing: Outgoing,
    /// When the request was read completely.
    pub(crate) read: Instant,
    /// The answer is due by then.
    pub(crate) deadline: Instant,
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
        most.min(self.deadline.saturating_duration_since(self.read))
    }

    /// How long it may still wait in queues.
    pub(crate) fn patience(&self, clock: &Clock) -> Duration {
        patience(self.time_left(clock), self.attempt_time_max())
    }
}

/// How long a request with this much time left may wait in queues. This leaves an attempt at least an eighth of its time: with less, a
/// write would only end in doubt.
pub(crate) fn patience(left: Duration, attempt_max: Duration) -> Duration {
    left.saturating_sub(attempt_max / 8)
}

/// The query parameters that the operation allows to be logged, as an object.
pub(crate) fn recorded_query(row: &Operation, target: &Target<'_>) -> Option<Box<RawValue>> {
    if target.query.is_empty() {
        return None;
    }
    let mut members = Map::new();
    for name in &row.record {
        let mut values: Vec<Value> = target.values(name).map(Value::from).collect();
        match values.len() {
            0 => {}
            1 => drop(members.insert(name.to_string(), values.remove(0))),
            _ => drop(members.insert(name.to_string(), Value::Array(values))),
        }
    }
    (!members.is_empty()).then(|| audit::object(&members))
}

/// The body's fields that the operation allows to be logged, as an object.
pub(crate) fn recorded_fields(row: &Operation, body: &[u8]) -> Option<Box<RawValue>> {
    if row.record.is_empty() || body.is_empty() {
        return None;
    }
    // Only the recorded fields are read further: nothing else in the body can keep them out of the log.
    let body: JsonMembers<'_> = serde_json::from_slice(body).ok()?;
    let recorded = body.0.iter().filter(|(name, _)| row.record.iter().any(|allowed| **allowed == **name));
    let members: Map<_, _> = recorded.map(|(name, value)| (name.to_string(), recorded_value(value))).collect();
    (!members.is_empty()).then(|| audit::object(&members))
}

/// A value as it is recorded: itself, or its text, if it is nested so deeply that the record could not be read.
fn recorded_value(value: &RawValue) -> Value {
    const BRACKETS_MAX: usize = 64;
    let text = value.get();
    let brackets = text.bytes().filter(|byte| matches!(byte, b'[' | b'{')).take(BRACKETS_MAX + 1).count();
    let is_shallow = text.starts_with('"') || brackets <= BRACKETS_MAX;
    let plain = is_shallow.then(|| serde_json::from_str(text).ok()).flatten();
    plain.unwrap_or_else(|| text.into())
}

/// Can the answer come from the cache?
pub(crate) fn is_read(method: &Method) -> bool {
    method == Method::GET || method == Method::HEAD
}

//! A call: a request that is known, permitted and read whole, as the steps that wait need it. Owned, so that a fetch or a
//! write can outlive its caller.

use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::{HeaderMap, Method};
use serde_json::value::RawValue;
use serde_json::{Map, Value};

use super::forward::outgoing_headers;
use super::policy::{Caller, Policy};
use super::refusal::Refusal;
use super::state::Gateway;
use super::steps::{self, CredentialId, Rights};
use super::tags::Parameters;
use super::target::Target;
use crate::audit;
use crate::catalogue::Operation;
use crate::clock::Clock;
use crate::ids::RequestId;
use crate::quota::BucketId;
use crate::shares::ShareHolder;
use crate::upstream::{BreakerKey, Outgoing};

/// The call.
pub(super) struct AuthorizedRequest {
    pub(super) id: RequestId,
    pub(super) policy: Arc<Policy>,
    pub(super) caller: Arc<Caller>,
    pub(super) by: CredentialId,
    pub(super) row: Arc<Operation>,
    pub(super) index: usize,
    pub(super) bucket: BucketId,
    /// The organization in its path.
    pub(super) organization: Option<u64>,
    pub(super) parameters: Parameters,
    /// The canonical path, as records have it.
    pub(super) path: Arc<str>,
    pub(super) outgoing: Outgoing,
    /// When the request was read whole.
    pub(super) read: Instant,
    /// No answer comes later.
    pub(super) deadline: Instant,
}

impl AuthorizedRequest {
    /// Time since the request was read whole.
    pub(super) fn age(&self, clock: &Clock) -> Duration {
        clock.now().saturating_duration_since(self.read)
    }

    /// Rights that are taken away act at once: may the caller still have this done?
    ///
    /// # Errors
    /// Why not.
    pub(super) fn still_allowed(&self, gateway: &Gateway) -> Result<(), Refusal> {
        if self.policy.is_in_force() {
            return Ok(());
        }
        let Self { by, caller, row, organization, .. } = self;
        let rights = Rights { by, caller, operation: &row.id, organization: *organization };
        steps::still_allowed(&gateway.policy(), &rights)
    }

    /// Time left until the deadline.
    pub(super) fn left(&self, clock: &Clock) -> Duration {
        self.deadline.saturating_duration_since(clock.now())
    }

    /// In whose name it waits.
    pub(super) fn caller(&self) -> &Arc<str> {
        &self.caller.config.name
    }

    /// What the breaker knows it by.
    pub(super) fn part(&self) -> BreakerKey {
        BreakerKey { operation: self.row.id.clone(), organization: self.organization }
    }

    /// The most time that one attempt gets.
    pub(super) fn attempt(&self) -> Duration {
        let upstream = &self.policy.config.upstream;
        let most = if self.row.is_write() { upstream.write_attempt } else { upstream.attempt };
        most.min(self.deadline.saturating_duration_since(self.read))
    }

    /// How long it may still wait for its turn at anything. An attempt that begins has an eighth of its time left at least:
    /// with less, a write would only end in doubt.
    pub(super) fn patience(&self, clock: &Clock) -> Duration {
        self.left(clock).saturating_sub(self.attempt() / 8)
    }
}

/// What goes upstream.
pub(super) fn outgoing(
    row: &Operation,
    target: String,
    headers: &HeaderMap,
    body: Bytes,
    answers: &Arc<ShareHolder>,
) -> Outgoing {
    let headers = outgoing_headers(headers, !body.is_empty());
    Outgoing { method: row.method.clone(), target, headers, body, answers: answers.clone() }
}

/// The query parameters that the row's allow-list lets the log hold, as an object.
pub(super) fn recorded_query(row: &Operation, target: &Target<'_>) -> Option<Box<RawValue>> {
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

/// The same of the body's fields.
pub(super) fn recorded_fields(row: &Operation, body: &[u8]) -> Option<Box<RawValue>> {
    if row.record.is_empty() || body.is_empty() {
        return None;
    }
    let Ok(Value::Object(body)) = serde_json::from_slice(body) else { return None };
    let members: Map<_, _> =
        body.into_iter().filter(|(name, _)| row.record.iter().any(|allowed| **allowed == **name)).collect();
    (!members.is_empty()).then(|| audit::object(&members))
}

/// Is it a method whose answer may have a body from memory?
pub(super) fn is_read(method: &Method) -> bool {
    method == Method::GET || method == Method::HEAD
}

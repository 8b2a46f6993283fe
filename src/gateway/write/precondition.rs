//! Step 8 of writes, `If-Match` and `If-Unmodified-Since` (RFC 9110 section 13.1): the resource is read anew under its turn, so that no
//! other PATCH, PUT or DELETE of the same path comes between the look and the write. What is changed through another path, or in Make
//! itself, can.

use std::sync::{Arc, Mutex};
use std::time::SystemTime;

use bytes::Bytes;
use http::header::{IF_MATCH, IF_UNMODIFIED_SINCE, LAST_MODIFIED};
use http::{HeaderMap, HeaderValue, StatusCode};

use crate::catalogue::MatchedOperation;
use crate::gateway::admit::policy::bucket;
use crate::gateway::admit::steps;
use crate::gateway::etag::{lists_strongly, strong_etag};
use crate::gateway::forward::{Forwarded, forward, forward_permit, read_answer};
use crate::gateway::outgoing::outgoing;
use crate::gateway::recorder::{self, RequestRecorder};
use crate::gateway::refusal::Refusal;
use crate::gateway::request::AuthorizedRequest;
use crate::gateway::state::Gateway;
use crate::upstream::UpstreamAnswer;

/// What the caller says of the resource that it wants to change.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Precondition {
    /// Its current answer has one of these entity tags, or (`*`) there is one.
    Match(Vec<HeaderValue>),
    /// It has not changed since then.
    UnmodifiedSince(SystemTime),
}

impl Precondition {
    /// The precondition in these headers. `If-Match` takes precedence.
    ///
    /// # Errors
    /// If the date is not one.
    pub(super) fn of(headers: &HeaderMap) -> Result<Option<Self>, Refusal> {
        if headers.contains_key(IF_MATCH) {
            return Ok(Some(Self::Match(headers.get_all(IF_MATCH).iter().cloned().collect())));
        }
        let Some(date) = headers.get(IF_UNMODIFIED_SINCE) else { return Ok(None) };
        let why = "If-Unmodified-Since is not an HTTP date";
        http_date(date).map(|date| Some(Self::UnmodifiedSince(date))).ok_or(Refusal::UncheckablePrecondition { why })
    }

    /// Reads the resource and checks that the precondition holds.
    ///
    /// # Errors
    /// If it does not hold, or the resource cannot be read.
    pub(super) async fn check(
        &self,
        gateway: &Gateway,
        recorder: &mut RequestRecorder,
        request: &AuthorizedRequest,
    ) -> Result<(), Refusal> {
        let catalogue = request.policy.catalogue();
        let read = catalogue.classify(&http::Method::GET, &request.path).ok();
        let why = "the catalogue has no read of this resource that it could be compared with";
        let read =
            read.filter(|read| read.operation.narrow.is_none()).ok_or(Refusal::UncheckablePrecondition { why })?;
        // Whoever may not read the resource learns nothing of it by guessing.
        steps::authorize(&request.caller, &read)?;
        let read = read_of(request, &read);
        let permit = forward_permit(gateway, &read).await?;
        let Forwarded { ending, facts, .. } = forward(gateway, &read, permit, || {}).await;
        let checked = match ending.and_then(read_answer) {
            Ok(answered) => {
                let bytes = answered.body.bytes().len();
                let check = gateway.large_work.run(request.caller(), bytes, || self.check_answer(&answered));
                let checked = tokio::time::timeout(request.patience(&gateway.clock), check).await;
                checked.unwrap_or(Err(Refusal::Late))
            }
            Err(refusal) => Err(refusal),
        };
        // The record of a refused write has what the look cost; that of a write that goes on has its own attempts.
        checked.inspect_err(|_| recorder::fill_facts(recorder.record(), &facts))
    }

    fn check_answer(&self, answered: &UpstreamAnswer) -> Result<(), Refusal> {
        match answered.status {
            StatusCode::OK => self.holds(answered).map_err(|why| Refusal::PreconditionFailed { why }),
            StatusCode::NOT_FOUND if answered.is_from_make() => {
                Err(Refusal::PreconditionFailed { why: "Make does not know this resource" })
            }
            status => Err(Refusal::UnreadResource { status }),
        }
    }

    fn holds(&self, answered: &UpstreamAnswer) -> Result<(), &'static str> {
        match self {
            Self::Match(wanted) => {
                let etag = strong_etag(&answered.headers, answered.body.bytes());
                if wanted.iter().any(|list| lists_strongly(list, &etag)) {
                    Ok(())
                } else {
                    Err("the resource has changed: read it again")
                }
            }
            Self::UnmodifiedSince(date) => match answered.headers.get(LAST_MODIFIED).and_then(http_date) {
                Some(modified) if modified <= *date => Ok(()),
                Some(_) => Err("the resource has changed: read it again"),
                None => Err("Make does not say when the resource was last changed: use If-Match with its ETag"),
            },
        }
    }
}

fn http_date(value: &HeaderValue) -> Option<SystemTime> {
    httpdate::parse_http_date(value.to_str().ok()?).ok()
}

/// The read of the resource that a write changes, on behalf of the same request.
fn read_of(request: &AuthorizedRequest, read: &MatchedOperation<'_, '_>) -> AuthorizedRequest {
    let row = read.operation;
    let path = request.outgoing.target.split('?').next().unwrap_or_default();
    let answers = &request.outgoing.answers;
    AuthorizedRequest {
        id: request.id,
        policy: request.policy.clone(),
        caller: request.caller.clone(),
        by: request.by.clone(),
        row: Arc::clone(row),
        index: read.index,
        bucket: bucket(read),
        organization: request.organization,
        parameters: Vec::new(),
        path: request.path.clone(),
        outgoing: outgoing(row, path.to_owned(), &HeaderMap::new(), Bytes::new(), answers),
        read: request.read,
        deadline: request.deadline,
        trace: request.trace.clone(),
        facts: Mutex::default(),
    }
}

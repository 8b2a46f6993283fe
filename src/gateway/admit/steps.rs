//! Steps 2 to 6: from a request head to an admitted caller. None of them waits, spends quota, or allocates without need.

use std::borrow::Cow;
use std::cmp::Ordering;

use http::header::{AUTHORIZATION, HeaderMap};
use http::request::Parts;
use http::{Method, Uri};
use memchr::memmem;

use super::identify::{CredentialId, scheme_and_key};
use super::policy::{Caller, Policy};
use super::target::{CacheKeyPlan, QueryPair, Target, decoded};
use crate::callers::{OverRate, Remaining, SharedKind};
use crate::catalogue::{MatchedOperation, NoMatch, Operation};
use crate::clock::Clock;
use crate::config::{Limits, Scope};
use crate::door;
use crate::gateway::refusal::Refusal;
use crate::hash;
use crate::shares::{HeldShare, Shortage};

/// Maximum length of a method. No operation has a longer one, and records store no more of it.
pub(crate) const METHOD_BYTES_MAX: usize = 32;
/// Query values shorter than this are not looked up as keys: hashing them all would burden every hit.
const KEY_BYTES_MIN: usize = 16;
/// Names of query parameters in which clients send keys.
const KEY_PARAMETERS: [&str; 5] = ["token", "api_key", "apikey", "access_token", "auth_token"];

/// Step 1: the head keeps within its limits over HTTP/2 too.
///
/// # Errors
/// If it is too large.
pub fn check_head(head: &Parts, has_body: bool, limits: &Limits) -> Result<(), Refusal> {
    if door::is_head_too_large(head, limits) {
        return Err(head_too_large(limits));
    }
    // Without a body there is no coding, and a hit need not look for one.
    if has_body && door::has_unknown_transfer_coding(&head.headers) { Err(Refusal::TransferCoding) } else { Ok(()) }
}

/// The refusal of a head that exceeds these limits.
pub(crate) const fn head_too_large(limits: &Limits) -> Refusal {
    Refusal::HeadTooLarge { bytes_max: limits.head_bytes, fields_max: limits.head_fields }
}

/// Step 2: the target's canonical form. CONNECT has none: its target is an authority, and step 4 refuses it.
///
/// # Errors
/// If it is too long, or can be read in two ways.
pub fn target<'u>(method: &Method, uri: &'u Uri, limits: &Limits) -> Result<Target<'u>, Refusal> {
    if method == Method::CONNECT {
        return Ok(Target { path: Cow::Borrowed(""), query: Vec::new() });
    }
    let bytes = uri.path().len() + uri.query().map_or(0, |query| query.len() + 1);
    if bytes > limits.target_bytes {
        return Err(Refusal::TargetTooLong { bytes_max: limits.target_bytes });
    }
    Target::parse(uri).map_err(|why| Refusal::Ambiguous { why })
}

/// Step 2: a key must not be in the target, where every log on the way would keep it.
///
/// # Errors
/// If the request's own key is anywhere in the target, or a parameter is named like a key or has the key of another caller as its value.
pub fn no_key_in_target(policy: &Policy, headers: &HeaderMap, target: &Target<'_>) -> Result<(), Refusal> {
    let own = own_key(headers);
    let is_key = |pair: &QueryPair<'_>| {
        let value = plain(pair.value.as_deref().unwrap_or_default());
        KEY_PARAMETERS.iter().any(|name| pair.name.eq_ignore_ascii_case(name))
            || has_key(&value, own)
            || has_key(&plain(&pair.name), own)
            || (value.len() >= KEY_BYTES_MIN && policy.caller_key(&hash::sha256(value.as_bytes())).is_some())
    };
    let refused = has_key(&target.path, own) || target.query.iter().any(is_key);
    if refused { Err(Refusal::KeyInTarget) } else { Ok(()) }
}

fn own_key(headers: &HeaderMap) -> Option<&[u8]> {
    headers.get(AUTHORIZATION).and_then(scheme_and_key).map(|(_, key)| key).filter(|key| !key.is_empty())
}

/// Is this text the key, or does it contain it? A short key may be part of anything.
fn has_key(text: &str, key: Option<&[u8]>) -> bool {
    key.is_some_and(|key| match text.len().cmp(&key.len()) {
        Ordering::Less => false,
        Ordering::Equal => text.as_bytes() == key,
        Ordering::Greater => key.len() >= KEY_BYTES_MIN && memmem::find(text.as_bytes(), key).is_some(),
    })
}

fn plain(text: &str) -> Cow<'_, str> {
    if text.contains(['%', '+']) { Cow::Owned(decoded(text)) } else { Cow::Borrowed(text) }
}

/// Does the id that a caller wants for its request contain its key? It would be in every log.
pub(crate) fn has_own_key(headers: &HeaderMap, id: &[u8]) -> bool {
    str::from_utf8(id).is_ok_and(|id| has_key(id, own_key(headers)))
}

/// What a request was authorized for. The policy may have changed since.
#[derive(Clone, Copy, Debug)]
pub struct Rights<'r> {
    /// The caller's credential.
    pub by: &'r CredentialId,
    /// The caller as it was then.
    pub caller: &'r Caller,
    /// The operation's id.
    pub operation: &'r str,
    /// The organization in its path.
    pub organization: Option<u64>,
}

/// Repeats steps 3 to 5 after the request was authorized: under a policy that came into force since, or because the credential may have
/// ended.
///
/// # Errors
/// If the credential is gone, has ended or belongs to another caller, the operation is gone, or the grants or the scope no longer cover
/// the request.
pub fn recheck_rights(policy: &Policy, rights: &Rights<'_>, clock: &Clock) -> Result<(), Refusal> {
    let (name, before) = (&rights.caller.config.name, &rights.caller.config.organizations);
    let caller = rights.by.caller(policy, clock)?;
    if caller.config.name != *name {
        return Err(Refusal::UnknownKey);
    }
    let row = policy.catalogue().row(rights.operation).ok_or(Refusal::NoOperation)?;
    check_grant(caller.config.grants.cover(&row.grant), row)?;
    let scope = &caller.config.organizations;
    check_scope(scope, row, rights.organization)?;
    // A list was narrowed to the organizations that the caller could access then.
    match (before, row.narrow.is_some() && !scope.is_all()) {
        (Scope::All, true) => Err(Refusal::Unscoped),
        (Scope::Only(ids), true) => ids.iter().try_for_each(|id| check_scope(scope, row, Some(*id))),
        (_, false) => Ok(()),
    }
}

/// Could any operation have this method?
pub(crate) fn is_implemented(method: &Method) -> bool {
    method.as_str().len() <= METHOD_BYTES_MAX && !matches!(*method, Method::CONNECT | Method::TRACE)
}

/// Step 4: find the operation.
///
/// # Errors
/// If no operation has this path, or none on it has this method, or no operation can have such a method.
pub fn classify<'c, 'p>(
    policy: &'c Policy,
    method: &Method,
    target: &'p Target<'_>,
) -> Result<MatchedOperation<'c, 'p>, Refusal> {
    if !is_implemented(method) {
        return Err(Refusal::NotImplemented);
    }
    policy.catalogue().classify(method, &target.path).map_err(|miss| match miss {
        NoMatch::Path => Refusal::NoOperation,
        NoMatch::Method(allowed) => Refusal::NoMethod { allowed },
    })
}

/// Step 2, part two: the meaning of the target's parameters, now that the operation is known.
///
/// # Errors
/// If a single-valued parameter of the operation is given twice.
pub fn plan<'u>(
    target: &'u Target<'_>,
    row: &Operation,
    matched: &MatchedOperation<'_, '_>,
) -> Result<CacheKeyPlan<'u>, Refusal> {
    target.plan(row, matched).map_err(|parameter| Refusal::Repeated { parameter })
}

/// The part of the method that a record stores.
pub(crate) fn cut_method(method: &Method) -> Method {
    let cut = method.as_str().as_bytes().get(..METHOD_BYTES_MAX);
    cut.and_then(|cut| Method::from_bytes(cut).ok()).unwrap_or_else(|| method.clone())
}

/// Step 5: may the caller use this operation, here?
///
/// # Errors
/// If its grants or its scope do not cover it.
pub fn authorize(caller: &Caller, matched: &MatchedOperation<'_, '_>) -> Result<(), Refusal> {
    check_grant(caller.may_use(matched.index), matched.operation)?;
    check_scope(&caller.config.organizations, matched.operation, matched.organization)
}

fn check_grant(is_granted: bool, row: &Operation) -> Result<(), Refusal> {
    if is_granted { Ok(()) } else { Err(Refusal::NotGranted { grant: row.grant.to_string() }) }
}

fn check_scope(scope: &Scope, row: &Operation, organization: Option<u64>) -> Result<(), Refusal> {
    match organization {
        Some(organization) if scope.covers(organization) => Ok(()),
        Some(organization) => Err(Refusal::OutOfScope { organization }),
        None if row.scoped || row.narrow.is_some() || scope.is_all() => Ok(()),
        None => Err(Refusal::Unscoped),
    }
}

/// Step 6: check the caller's rate, of which this is known, and its number of requests under way.
///
/// # Errors
/// If either is exceeded. Includes what remains of the rate, for the headers.
pub fn admit(
    caller: &Caller,
    rate: Result<Remaining, OverRate>,
    limits: &Limits,
) -> Result<(HeldShare, Remaining), (Refusal, Option<Remaining>)> {
    let remaining = rate.map_err(|OverRate { retry_after, remaining, one_of }| {
        (Refusal::TooFast { retry_after, one_of }, Some(remaining))
    })?;
    let under_way = count_under_way(caller, limits).map_err(|refusal| (refusal, Some(remaining)))?;
    Ok((under_way, remaining))
}

/// Counts a request as under way.
///
/// # Errors
/// If the caller, or all callers together, have reached the limit.
pub fn count_under_way(caller: &Caller, limits: &Limits) -> Result<HeldShare, Refusal> {
    let most = limits.in_flight_per_caller;
    caller.state.count_under_way(most).map_err(|short| match short {
        Shortage::HolderMax => Refusal::TooMany { most },
        Shortage::Share => Refusal::Short { of: SharedKind::Requests, short },
        Shortage::All => Refusal::Busy,
    })
}

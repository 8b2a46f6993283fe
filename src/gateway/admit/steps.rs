//! Steps 2 to 6: from a head to a caller who may. None of them waits, spends or allocates without need.

use std::borrow::Cow;
use std::sync::Arc;

use http::header::{AUTHORIZATION, HeaderMap, HeaderValue};
use http::{Method, Uri};

use super::policy::{Caller, CallerKey, Policy};
use super::target::{CacheKeyPlan, Target};
use crate::callers::{Remaining, SharedKind};
use crate::catalogue::{MatchedOperation, NoMatch, Operation};
use crate::config::{Limits, Scope};
use crate::door::CertificateNames;
use crate::gateway::refusal::Refusal;
use crate::hash;
use crate::ids::KeyHash;
use crate::shares::{HeldShare, Shortage};

/// No method that an operation can have is longer. Records hold no more of one.
pub(crate) const METHOD_BYTES_MAX: usize = 32;
/// No key is longer; hashing is cheap, hashing without bound is not.
const KEY_BYTES_MAX: usize = 512;

/// Step 2: the target's one canonical form. CONNECT has none: its target is an authority, and step 4 refuses it.
///
/// # Errors
/// It is too long, or could be read two ways.
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

/// Step 3: who calls? `names`: what the peer's certificate calls it.
///
/// # Errors
/// No key and no caller's certificate, two of them, or a key that nobody has.
pub fn identify<'p>(
    policy: &'p Policy,
    headers: &HeaderMap,
    names: &'p CertificateNames,
) -> Result<Credential<'p>, Refusal> {
    let mut given = headers.get_all(AUTHORIZATION).iter();
    let mut certified = policy.certified(names.as_deref().unwrap_or_default());
    let (credential, certified_as) = (given.next(), certified.next());
    let is_another = |caller| certified_as.is_some_and(|first| !Arc::ptr_eq(first, caller));
    if given.next().is_some() || (credential.is_some() && certified_as.is_some()) || certified.any(is_another) {
        return Err(Refusal::TwoCredentials);
    }
    match (credential, certified_as) {
        (None, Some(caller)) => Ok(Credential::Certificate(caller, names)),
        (credential, _) => of_key(policy, credential.ok_or(Refusal::NoKey)?),
    }
}

/// How a caller was identified.
#[derive(Debug)]
pub enum Credential<'p> {
    /// By this key, which has this hash.
    Key(&'p CallerKey, KeyHash),
    /// By a certificate with these names.
    Certificate(&'p Arc<Caller>, &'p CertificateNames),
}

impl Credential<'_> {
    /// Who it is.
    #[must_use]
    pub fn caller(&self) -> &Arc<Caller> {
        match self {
            Self::Key(known, _) => &known.caller,
            Self::Certificate(caller, _) => caller,
        }
    }

    /// What to ask another policy by.
    #[must_use]
    pub fn id(&self) -> CredentialId {
        match self {
            Self::Key(_, hash) => CredentialId::Key(*hash),
            Self::Certificate(_, names) => CredentialId::Certificate((*names).clone()),
        }
    }
}

/// What a caller was identified by, without what the policy made of it.
#[derive(Clone, Debug)]
pub enum CredentialId {
    /// The key with this hash.
    Key(KeyHash),
    /// A certificate with these names.
    Certificate(CertificateNames),
}

/// What a request was let in for. The policy may have changed since.
#[derive(Clone, Copy, Debug)]
pub struct Rights<'r> {
    /// What its caller was identified by.
    pub by: &'r CredentialId,
    /// Its caller, as it was then.
    pub caller: &'r Caller,
    /// The operation's id.
    pub operation: &'r str,
    /// The organization in its path.
    pub organization: Option<u64>,
}

/// Steps 3 to 5 once more, by a policy that came into force after the request was let in.
///
/// # Errors
/// The key is gone or another caller's, the operation is gone, or the grants or the scope do not cover it any more.
pub fn still_allowed(policy: &Policy, rights: &Rights<'_>) -> Result<(), Refusal> {
    let (name, before) = (&rights.caller.config.name, &rights.caller.config.organizations);
    let caller = match rights.by {
        CredentialId::Key(hash) => policy.caller_key(hash).map(|known| &known.caller),
        CredentialId::Certificate(names) => policy.certified(names.as_deref().unwrap_or_default()).next(),
    };
    let caller = caller.filter(|caller| caller.config.name == *name).ok_or(Refusal::UnknownKey)?;
    let row = policy.catalogue().row(rights.operation).ok_or(Refusal::NoOperation)?;
    granted(caller.config.grants.cover(&row.grant), row)?;
    let scope = &caller.config.organizations;
    in_scope(scope, row, rights.organization)?;
    // A list was narrowed to the organizations that the caller had then.
    match (before, row.narrow.is_some() && !scope.is_all()) {
        (Scope::All, true) => Err(Refusal::Unscoped),
        (Scope::Only(ids), true) => ids.iter().try_for_each(|id| in_scope(scope, row, Some(*id))),
        (_, false) => Ok(()),
    }
}

fn of_key<'p>(policy: &'p Policy, credential: &HeaderValue) -> Result<Credential<'p>, Refusal> {
    let (scheme, key) = split_once(credential.as_bytes(), b' ').ok_or(Refusal::NoKey)?;
    let key = key.trim_ascii();
    if !(scheme.eq_ignore_ascii_case(b"token") || scheme.eq_ignore_ascii_case(b"bearer")) || key.is_empty() {
        return Err(Refusal::NoKey);
    }
    if key.len() > KEY_BYTES_MAX {
        return Err(Refusal::UnknownKey);
    }
    let hash = hash::sha256(key);
    let known = policy.caller_key(&hash).ok_or(Refusal::UnknownKey)?;
    Ok(Credential::Key(known, hash))
}

fn split_once(bytes: &[u8], at: u8) -> Option<(&[u8], &[u8])> {
    let (before, after) = bytes.split_at_checked(memchr::memchr(at, bytes)?)?;
    Some((before, after.get(1..)?))
}

/// Step 4: which operation is it?
///
/// # Errors
/// None with this path, none with this method, or a method that none could have.
pub fn classify<'c, 'p>(
    policy: &'c Policy,
    method: &Method,
    target: &'p Target<'_>,
) -> Result<MatchedOperation<'c, 'p>, Refusal> {
    if method.as_str().len() > METHOD_BYTES_MAX || matches!(*method, Method::CONNECT | Method::TRACE) {
        return Err(Refusal::NotImplemented);
    }
    policy.catalogue().classify(method, &target.path).map_err(|miss| match miss {
        NoMatch::Path => Refusal::NoOperation,
        NoMatch::Method(allowed) => Refusal::NoMethod { allowed },
    })
}

/// Step 2 again, now that the row is known: what the target's parameters mean to it.
///
/// # Errors
/// A single-valued parameter of the row is given twice.
pub fn plan<'u>(
    target: &'u Target<'_>,
    row: &Operation,
    matched: &MatchedOperation<'_, '_>,
) -> Result<CacheKeyPlan<'u>, Refusal> {
    target.plan(row, matched).map_err(|parameter| Refusal::Repeated { parameter })
}

/// What a record holds of the method.
pub(crate) fn cut_method(method: &Method) -> Method {
    let cut = method.as_str().as_bytes().get(..METHOD_BYTES_MAX);
    cut.and_then(|cut| Method::from_bytes(cut).ok()).unwrap_or_else(|| method.clone())
}

/// Step 5: may the caller do this, here?
///
/// # Errors
/// Its grants or its scope do not cover it.
pub fn authorize(caller: &Caller, matched: &MatchedOperation<'_, '_>) -> Result<(), Refusal> {
    granted(caller.may(matched.index), matched.operation)?;
    in_scope(&caller.config.organizations, matched.operation, matched.organization)
}

fn granted(is_granted: bool, row: &Operation) -> Result<(), Refusal> {
    if is_granted { Ok(()) } else { Err(Refusal::NotGranted { grant: row.grant.to_string() }) }
}

fn in_scope(scope: &Scope, row: &Operation, organization: Option<u64>) -> Result<(), Refusal> {
    match organization {
        Some(organization) if scope.covers(organization) => Ok(()),
        Some(organization) => Err(Refusal::OutOfScope { organization }),
        None if row.scoped || row.narrow.is_some() || scope.is_all() => Ok(()),
        None => Err(Refusal::Unscoped),
    }
}

/// Step 6: is it within the caller's rate, and are few enough of its requests under way?
///
/// # Errors
/// Too fast, or too many; with what is left of the rate for the headers.
pub fn admit(caller: &Caller, limits: &Limits) -> Result<(HeldShare, Remaining), (Refusal, Option<Remaining>)> {
    let remaining = caller
        .state
        .admit()
        .map_err(|fast| (Refusal::TooFast { retry_after: fast.retry_after }, Some(fast.remaining)))?;
    let under_way = place(caller, limits).map_err(|refusal| (refusal, Some(remaining)))?;
    Ok((under_way, remaining))
}

/// A place among the requests under way.
///
/// # Errors
/// As many are under way as the caller, or all together, may have.
pub fn place(caller: &Caller, limits: &Limits) -> Result<HeldShare, Refusal> {
    let most = limits.in_flight_per_caller;
    caller.state.enter(most).map_err(|short| match short {
        Shortage::Most => Refusal::TooMany { most },
        Shortage::Share => Refusal::Short { of: SharedKind::Requests, short },
        Shortage::All => Refusal::Busy,
    })
}

//! Step 3: who calls. A caller is known by its key, by a platform's token, by its certificate or, over a Unix socket, by its user id.

use std::net::IpAddr;
use std::sync::Arc;

use http::Method;
use http::header::{AUTHORIZATION, CONTENT_TYPE, HeaderName, HeaderValue, ORIGIN};
use http::request::Parts;
use jiff::Timestamp;

use super::body::is_json;
use super::policy::{Caller, CallerKey, Policy};
use crate::clock::Clock;
use crate::door::{BadAuthority, ClientCertificate, PeerIdentity, RequestAuthority};
use crate::gateway::refusal::{CredentialFault, Refusal};
use crate::gateway::state::Gateway;
use crate::hash;
use crate::ids::KeyHash;
use crate::issuers::{TokenFault, VerifiedToken, is_token};
use crate::vocabulary::CredentialKind;

/// Maximum length of a key: hashing is cheap only if its input is bounded.
const KEY_BYTES_MAX: usize = 512;
const SEC_FETCH_SITE: HeaderName = HeaderName::from_static("sec-fetch-site");

/// How a caller was identified.
#[derive(Debug)]
pub enum Credential<'p> {
    /// By this key, with its hash.
    Key(&'p CallerKey, KeyHash),
    /// By this token of a platform.
    Token(&'p Arc<Caller>, Arc<VerifiedToken>),
    /// By this certificate.
    Certificate(&'p Arc<Caller>, &'p Arc<ClientCertificate>),
    /// By the user id of the process at the other end of a Unix socket.
    Uid(&'p Arc<Caller>, u32),
}

impl Credential<'_> {
    /// The caller that it identifies.
    #[must_use]
    pub fn caller(&self) -> &Arc<Caller> {
        match self {
            Self::Key(known, _) => &known.caller,
            Self::Token(caller, _) | Self::Certificate(caller, _) | Self::Uid(caller, _) => caller,
        }
    }

    /// What identifies the caller in another policy, and later.
    #[must_use]
    pub fn id(&self, peer: &PeerIdentity) -> CredentialId {
        let (proof, ends) = match self {
            Self::Key(known, hash) => (IdentityProof::Key(*hash), known.ends()),
            Self::Token(_, token) => (IdentityProof::Token(token.clone()), Some(token.ends)),
            Self::Certificate(_, certificate) => (IdentityProof::Certificate((*certificate).clone()), None),
            Self::Uid(_, uid) => (IdentityProof::Uid(*uid), None),
        };
        CredentialId { proof, address: peer.address, ends }
    }

    /// The word for its kind. `None` for a key, which the record names anyway.
    #[must_use]
    pub const fn kind(&self) -> Option<CredentialKind> {
        match self {
            Self::Key(..) => None,
            Self::Token(..) => Some(CredentialKind::Token),
            Self::Certificate(..) => Some(CredentialKind::Certificate),
            Self::Uid(..) => Some(CredentialKind::Peer),
        }
    }
}

/// A caller's credential, independent of any policy.
#[derive(Clone, Debug)]
pub struct CredentialId {
    proof: IdentityProof,
    address: Option<IpAddr>,
    /// When it ends by itself.
    ends: Option<Timestamp>,
}

#[derive(Clone, Debug)]
enum IdentityProof {
    Key(KeyHash),
    Token(Arc<VerifiedToken>),
    Certificate(Arc<ClientCertificate>),
    Uid(u32),
}

impl CredentialId {
    /// Whether it may end although the configuration stays the same.
    #[must_use]
    pub const fn ends_by_itself(&self) -> bool {
        self.ends.is_some()
    }

    /// The caller that it identifies under this policy, now.
    ///
    /// # Errors
    /// If it identifies nobody any more.
    pub fn caller<'p>(&self, policy: &'p Policy, clock: &Clock) -> Result<&'p Arc<Caller>, Refusal> {
        match &self.proof {
            IdentityProof::Key(hash) => {
                let known = policy.caller_key(hash).ok_or(Refusal::UnknownKey)?;
                known.check(self.address, clock)?;
                Ok(&known.caller)
            }
            IdentityProof::Token(token) if token.ends <= clock.wall() => {
                Err(CredentialFault::InvalidToken { why: TokenFault::Expired }.into())
            }
            IdentityProof::Token(token) => policy.caller_of_token(token).ok_or_else(|| token_of_nobody(token)),
            IdentityProof::Certificate(certificate) => {
                policy.certified(certificate.names()).next().ok_or_else(|| of_nobody(certificate))
            }
            IdentityProof::Uid(uid) => policy.caller_of_uid(*uid).ok_or(Refusal::NoKey),
        }
    }
}

/// Step 3: check that the request is for this door, and identify the caller. Waits only for the keys of a token's issuer.
///
/// # Errors
/// If it is for another host, or if there is no credential, more than one, or one that identifies nobody.
pub async fn identify<'p>(
    gateway: &Gateway,
    policy: &'p Policy,
    head: &Parts,
    peer: &'p PeerIdentity,
) -> Result<Credential<'p>, Refusal> {
    check_authority(policy, head, peer)?;
    let mut given = head.headers.get_all(AUTHORIZATION).iter();
    let mut certified = policy.certified(peer.certificate.as_deref().map_or(&[], ClientCertificate::names));
    let (credential, certified_as) = (given.next(), certified.next());
    let is_another = |caller| certified_as.is_some_and(|first| !Arc::ptr_eq(first, caller));
    if given.next().is_some() || (credential.is_some() && certified_as.is_some()) || certified.any(is_another) {
        return Err(Refusal::TwoCredentials);
    }
    match (credential, certified_as, &peer.certificate) {
        (Some(credential), ..) => match by_key(policy, credential, peer, &gateway.clock) {
            // Boxed, so that a request with a key does not pay for its state.
            Ok(KeyOrToken::Token(token)) => Box::pin(by_token(gateway, policy, token)).await,
            Ok(KeyOrToken::Key(known, hash)) => Ok(Credential::Key(known, hash)),
            Err(refusal) => Err(refusal),
        },
        (None, Some(caller), Some(certificate)) => {
            require_own_page(head)?;
            Ok(Credential::Certificate(caller, certificate))
        }
        (None, _, certificate) => match peer.uid.and_then(|uid| Some((policy.caller_of_uid(uid)?, uid))) {
            Some((caller, uid)) => Ok(Credential::Uid(caller, uid)),
            None => Err(certificate.as_ref().map_or(Refusal::NoKey, of_nobody)),
        },
    }
}

/// The request must be for this door. With a certificate, which a browser shows to whatever page asks, the host must be one of the
/// door's even if the configuration names none.
fn check_authority(policy: &Policy, head: &Parts, peer: &PeerIdentity) -> Result<(), Refusal> {
    if head.method == Method::CONNECT {
        return Ok(()); // its target is an authority; step 4 refuses it
    }
    let gateway = &policy.config.gateway;
    let authority = RequestAuthority::of(&head.uri, &head.headers).map_err(|bad| match bad {
        BadAuthority::Missing => "The request names no host: send one Host header",
        BadAuthority::Double => "The request names two hosts: send one Host header, the same as in the target",
        BadAuthority::Malformed => "The host is not a name or an address with an optional port",
    });
    let is_open = gateway.names.is_empty() && peer.certificate.is_none();
    match authority {
        Ok(authority) if is_open || authority.is_of_door(&gateway.listen, &gateway.names) => Ok(()),
        Ok(_) => Err("The host is not one of this door's; an operator can add it to gateway.names"),
        Err(why) => Err(why),
    }
    .map_err(|why| Refusal::BadAuthority { why })
}

fn of_nobody(certificate: &Arc<ClientCertificate>) -> Refusal {
    CredentialFault::CertificateOfNobody { names: certificate.shared_names() }.into()
}

/// What an `Authorization` header has.
enum KeyOrToken<'p, 'h> {
    Key(&'p CallerKey, KeyHash),
    /// Something in the form of a token, while there are issuers.
    Token(&'h [u8]),
}

fn by_key<'p, 'h>(
    policy: &'p Policy,
    credential: &'h HeaderValue,
    peer: &PeerIdentity,
    clock: &Clock,
) -> Result<KeyOrToken<'p, 'h>, Refusal> {
    let (scheme, key) = scheme_and_key(credential).ok_or(Refusal::NoKey)?;
    if !(scheme.eq_ignore_ascii_case(b"token") || scheme.eq_ignore_ascii_case(b"bearer")) || key.is_empty() {
        return Err(Refusal::NoKey);
    }
    let found = || {
        let hash = (key.len() <= KEY_BYTES_MAX).then(|| hash::sha256(key))?;
        Some((policy.caller_key(&hash)?, hash))
    };
    match found() {
        Some((known, hash)) => {
            known.check(peer.address, clock)?;
            Ok(KeyOrToken::Key(known, hash))
        }
        None if !policy.issuers.is_empty() && is_token(key) => Ok(KeyOrToken::Token(key)),
        None => Err(Refusal::UnknownKey),
    }
}

async fn by_token<'p>(gateway: &Gateway, policy: &'p Policy, token: &[u8]) -> Result<Credential<'p>, Refusal> {
    let verified = gateway.verified_tokens.verify(token, &policy.issuers, &gateway.clock).await;
    let token = verified.map_err(CredentialFault::from)?;
    let caller = policy.caller_of_token(&token).ok_or_else(|| token_of_nobody(&token))?;
    Ok(Credential::Token(caller, token))
}

fn token_of_nobody(token: &Arc<VerifiedToken>) -> Refusal {
    CredentialFault::TokenOfNobody { token: token.clone() }.into()
}

pub(super) fn scheme_and_key(credential: &HeaderValue) -> Option<(&[u8], &[u8])> {
    let bytes = credential.as_bytes();
    let (scheme, key) = bytes.split_at_checked(memchr::memchr(b' ', bytes)?)?;
    Some((scheme, key.trim_ascii()))
}

/// A browser shows its certificate to this door whichever page sends the request. Nothing but the browser's own headers, and the type of
/// a body that a form cannot send, tell such a request from one of the door's own pages or of another client.
fn require_own_page(head: &Parts) -> Result<(), Refusal> {
    let foreign = |why| Err(CredentialFault::ForeignPage { why }.into());
    let all = |name: HeaderName, is_own: &dyn Fn(&HeaderValue) -> bool| head.headers.get_all(name).iter().all(is_own);
    if !all(ORIGIN, &|origin| is_own_origin(origin, head)) {
        return foreign("`Origin` must be this door's own");
    }
    if !all(SEC_FETCH_SITE, &|site| matches!(site.as_bytes(), b"same-origin" | b"none")) {
        return foreign("`Sec-Fetch-Site` must be `same-origin` or `none`");
    }
    if !head.method.is_safe() && !all(CONTENT_TYPE, &is_json) {
        return foreign("the `Content-Type` of a write must be JSON");
    }
    Ok(())
}

/// Whether the origin is `https://` and the host that the request names, which is one of the door's.
fn is_own_origin(origin: &HeaderValue, head: &Parts) -> bool {
    const HTTPS_PORT: u16 = 443;
    let authority = origin.to_str().ok().and_then(|origin| origin.strip_prefix("https://"));
    let Some(origin) = authority.and_then(RequestAuthority::parse) else { return false };
    RequestAuthority::of(&head.uri, &head.headers).is_ok_and(|own| {
        let port = |authority: RequestAuthority<'_>| authority.port.unwrap_or(HTTPS_PORT);
        own.host.eq_ignore_ascii_case(origin.host) && port(own) == port(origin)
    })
}

//! The configuration in force, as one immutable snapshot per request. A reload makes a new one. Nothing else is kept per caller, except
//! for its state.

use std::collections::HashMap;
use std::hash::{BuildHasherDefault, Hasher};
use std::net::IpAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};

use bytes::Bytes;
use http::HeaderValue;
use jiff::Timestamp;

use crate::cache;
use crate::callers::{CallerState, Callers, LastUsed};
use crate::catalogue::openapi::openapi;
use crate::catalogue::{BucketKind, Catalogue, MatchedOperation, Operation};
use crate::clock::Clock;
use crate::config::{self, CertificateName, Config, KeyConfig, Limits, Network, Scope, TlsFiles};
use crate::gateway::refusal::CredentialFault;
use crate::ids::{KeyHash, KeyId};
use crate::issuers::{Issuer, VerifiedToken};
use crate::quota::BucketId;

/// A caller in this snapshot, with the state that outlives snapshots.
#[derive(Debug)]
pub struct Caller {
    /// Its configuration.
    pub config: config::CallerConfig,
    /// Its rate and counters.
    pub state: Arc<CallerState>,
    /// `RateLimit-Policy` header of its rate.
    pub rate_policy: HeaderValue,
    /// Which rows its grants cover, by index.
    rows: Arc<[bool]>,
}

impl Caller {
    /// Do its grants cover the row at this index?
    #[must_use]
    pub fn may_use(&self, row: usize) -> bool {
        self.rows.get(row).copied().unwrap_or(false)
    }
}

/// Values that callers with equal settings share, so that they stay in the processor's caches.
struct CallerProfile<'c> {
    catalogue: &'c Catalogue,
    policies: HashMap<config::Rate, HeaderValue>,
    rows: HashMap<config::Grants, Arc<[bool]>>,
}

impl<'c> CallerProfile<'c> {
    fn new(catalogue: &'c Catalogue) -> Self {
        Self { catalogue, policies: HashMap::new(), rows: HashMap::new() }
    }

    fn caller(&mut self, config: &config::CallerConfig, callers: &Callers) -> Caller {
        Caller {
            config: config.clone(),
            state: callers.get_or_make(config),
            rate_policy: self.rate_policy(config.rate),
            rows: self.rows(&config.grants),
        }
    }

    fn rate_policy(&mut self, rate: config::Rate) -> HeaderValue {
        let made = || {
            let policy = format!("\"caller\";q={};w={}", rate.requests, rate.per.as_secs().max(1));
            HeaderValue::try_from(policy).unwrap_or(HeaderValue::from_static("\"caller\""))
        };
        self.policies.entry(rate).or_insert_with(made).clone()
    }

    fn rows(&mut self, grants: &config::Grants) -> Arc<[bool]> {
        if let Some(rows) = self.rows.get(grants) {
            return rows.clone();
        }
        let rows: Arc<[bool]> = self.catalogue.rows().iter().map(|row| grants.cover(&row.grant)).collect();
        self.rows.insert(grants.clone(), rows.clone());
        rows
    }
}

/// A caller's key.
#[derive(Clone, Debug)]
pub struct CallerKey {
    /// Its owner.
    pub caller: Arc<Caller>,
    /// Its id in records.
    pub key: KeyId,
    /// When it was last used.
    pub last_used: LastUsed,
    /// When and from where it may be used; `None`: always and from anywhere.
    terms: Option<Arc<KeyTerms>>,
}

#[derive(Debug)]
struct KeyTerms {
    expires: Option<Timestamp>,
    from: Vec<Network>,
}

impl CallerKey {
    fn new(caller: &Arc<Caller>, config: &KeyConfig) -> Self {
        let key = KeyId::of(&config.hash);
        let KeyConfig { expires, from, .. } = config;
        let has_terms = expires.is_some() || !from.is_empty();
        let terms = has_terms
            .then(|| Arc::new(KeyTerms { expires: expires.as_ref().map(|expiry| expiry.at), from: from.clone() }));
        Self { caller: caller.clone(), key, last_used: caller.state.last_used(key), terms }
    }

    /// When it expires, if ever.
    #[must_use]
    pub fn ends(&self) -> Option<Timestamp> {
        self.terms.as_ref()?.expires
    }

    /// Checks that it may be used now, and from this peer (`None`: a Unix socket).
    ///
    /// # Errors
    /// If it may not. From elsewhere nobody learns whether it has expired.
    pub fn check(&self, address: Option<IpAddr>, clock: &Clock) -> Result<(), CredentialFault> {
        let (Some(terms), key) = (&self.terms, self.key) else { return Ok(()) };
        if !terms.from.is_empty()
            && !address.is_some_and(|address| terms.from.iter().any(|from| from.contains(address)))
        {
            return Err(CredentialFault::KeyFromElsewhere { key });
        }
        match terms.expires.filter(|expires| *expires <= clock.wall()) {
            Some(since) => Err(CredentialFault::KeyExpired { key, since }),
            None => Ok(()),
        }
    }
}

/// SHA-256 hashes are uniform already, so their first bytes serve as the hash.
#[derive(Default)]
pub struct FirstBytes(u64);

impl Hasher for FirstBytes {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        if let Some(first) = bytes.first_chunk::<8>() {
            self.0 = u64::from_ne_bytes(*first);
        }
    }

    fn write_usize(&mut self, _: usize) {}
}

/// The configuration in force, prepared for requests.
#[derive(Debug)]
pub struct Policy {
    /// The complete configuration.
    pub config: Config,
    /// All callers, in the configuration's order.
    pub callers: Vec<Arc<Caller>>,
    keys: HashMap<KeyHash, CallerKey, BuildHasherDefault<FirstBytes>>,
    /// The platforms whose tokens are accepted.
    pub issuers: Vec<Arc<Issuer>>,
    /// Callers by issuer and subject of the tokens that identify them.
    identities: HashMap<Arc<str>, HashMap<Arc<str>, Arc<Caller>>>,
    /// Callers by the user ids that identify them over a Unix socket.
    uids: HashMap<u32, Arc<Caller>>,
    /// Callers by the names in certificates that identify them, if certificates may: their own, and those listed.
    certificates: HashMap<CertificateName, Arc<Caller>>,
    /// How each row's answers are stored, by index; `None` if they are not.
    store_policies: Box<[Option<cache::StorePolicy>]>,
    unscoped_callers: usize,
    callers_by_organization: HashMap<u64, usize>,
    openapi: OnceLock<Bytes>,
    /// A newer snapshot has replaced it.
    retired: AtomicBool,
}

impl Policy {
    /// Makes a snapshot of `config`, whose issuers are `issuers`; callers keep their state in `callers`.
    #[must_use]
    pub fn new(config: Config, issuers: Vec<Arc<Issuer>>, callers: &Callers) -> Self {
        let (catalogue, mut profiles) = (&config.catalogue, CallerProfile::new(&config.catalogue));
        let all_callers: Vec<_> =
            config.callers.iter().map(|caller| Arc::new(profiles.caller(caller, callers))).collect();
        let mut keys = HashMap::with_capacity_and_hasher(all_callers.len(), BuildHasherDefault::default());
        let (mut uids, mut identities) = (HashMap::new(), HashMap::<_, HashMap<_, _>>::new());
        let (mut unscoped_callers, mut callers_by_organization) = (0, HashMap::new());
        for caller in &all_callers {
            keys.extend(caller.config.keys.iter().map(|key| (key.hash, CallerKey::new(caller, key))));
            for identity in &caller.config.identities {
                let subjects = identities.entry(identity.issuer.clone()).or_default();
                subjects.insert(identity.subject.clone(), caller.clone());
            }
            uids.extend(caller.config.uids.iter().map(|uid| (*uid, caller.clone())));
            match &caller.config.organizations {
                Scope::All => unscoped_callers += 1,
                Scope::Only(ids) => ids.iter().for_each(|id| *callers_by_organization.entry(*id).or_default() += 1),
            }
        }
        let certificates = match &config.gateway.tls {
            Some(TlsFiles { client_ca: Some(_), .. }) => {
                let names = |caller: &Arc<Caller>| {
                    let own = std::iter::once(CertificateName::dns(&caller.config.name));
                    let names: Vec<_> = own.chain(caller.config.certificates.iter().cloned()).collect();
                    names.into_iter().map(|name| (name, caller.clone())).collect::<Vec<_>>()
                };
                all_callers.iter().flat_map(names).collect()
            }
            Some(_) | None => HashMap::new(),
        };
        let store_policies = catalogue.rows().iter().map(|row| store_policy_of(row, &config.cache)).collect();
        let (openapi, retired) = (OnceLock::new(), AtomicBool::new(false));
        Self {
            callers: all_callers,
            keys,
            issuers,
            identities,
            uids,
            certificates,
            store_policies,
            unscoped_callers,
            callers_by_organization,
            openapi,
            retired,
            config,
        }
    }

    /// The OpenAPI document of the gateway door, generated on first use. `servers` are the door's URLs.
    pub fn openapi(&self, servers: impl FnOnce() -> Vec<String>) -> Bytes {
        self.openapi.get_or_init(|| openapi(self.catalogue(), &servers()).to_string().into()).clone()
    }

    /// Do new requests still use this snapshot? Cheap enough to ask for every answer.
    #[must_use]
    pub fn is_in_force(&self) -> bool {
        !self.retired.load(Ordering::Acquire)
    }

    /// A newer snapshot is in force from now on.
    pub(crate) fn retire(&self) {
        self.retired.store(true, Ordering::Release);
    }

    /// The operations of this configuration.
    #[must_use]
    pub fn catalogue(&self) -> &Catalogue {
        &self.config.catalogue
    }

    /// The limits of this configuration.
    #[must_use]
    pub fn limits(&self) -> &Limits {
        &self.config.limits
    }

    /// Looks up a key by its hash.
    #[must_use]
    pub fn caller_key(&self, hash: &KeyHash) -> Option<&CallerKey> {
        self.keys.get(hash)
    }

    /// Callers that a certificate with these names identifies: none, one or several.
    pub fn certified<'p>(&'p self, names: &[CertificateName]) -> impl Iterator<Item = &'p Arc<Caller>> {
        names.iter().filter_map(|name| self.certificates.get(name))
    }

    /// Whether client certificates identify callers.
    #[must_use]
    pub fn takes_certificates(&self) -> bool {
        !self.certificates.is_empty()
    }

    /// Looks up the caller that a token identifies, if its issuer still stands by it.
    #[must_use]
    pub fn caller_of_token(&self, token: &VerifiedToken) -> Option<&Arc<Caller>> {
        let issuer = self.issuers.iter().find(|issuer| issuer.config().name == token.issuer)?;
        self.identities.get(&token.issuer)?.get(&*token.subject).filter(|_| issuer.stands_by(token))
    }

    /// Looks up the caller that this user id identifies.
    #[must_use]
    pub fn caller_of_uid(&self, uid: u32) -> Option<&Arc<Caller>> {
        self.uids.get(&uid)
    }

    /// Looks up a caller by name.
    #[must_use]
    pub fn caller(&self, name: &str) -> Option<&Arc<Caller>> {
        self.callers.iter().find(|caller| &*caller.config.name == name)
    }

    /// How answers of the row at this index are stored; `None` if they are not.
    #[must_use]
    pub fn store_policy(&self, row: usize) -> Option<&cache::StorePolicy> {
        self.store_policies.get(row)?.as_ref()
    }

    /// Number of callers that may use this bucket; fair shares are computed from it.
    #[must_use]
    pub fn eligible(&self, bucket: BucketId) -> usize {
        match bucket {
            BucketId::Account => self.callers.len(),
            BucketId::Organization(id) => {
                self.unscoped_callers + self.callers_by_organization.get(&id).copied().unwrap_or(0)
            }
        }
    }
}

fn store_policy_of(row: &Operation, cache: &config::CacheConfig) -> Option<cache::StorePolicy> {
    let lifetime = *cache.lifetime.get(row.cache.as_deref()?)?;
    let (stale_if_error, negative) = (cache.stale_if_error, cache.negative);
    (!lifetime.is_zero()).then_some(cache::StorePolicy { freshness: row.freshness, lifetime, stale_if_error, negative })
}

/// The quota bucket that a request spends from.
#[must_use]
pub fn bucket(matched: &MatchedOperation<'_, '_>) -> BucketId {
    bucket_of(matched.operation, matched.organization)
}

/// The quota bucket for a row and the organization in its path.
#[must_use]
pub fn bucket_of(row: &Operation, organization: Option<u64>) -> BucketId {
    match (row.quota, organization) {
        (BucketKind::Organization, Some(id)) => BucketId::Organization(id),
        (BucketKind::Organization, None) | (BucketKind::Account, _) => BucketId::Account,
    }
}

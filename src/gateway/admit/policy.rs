//! What is in force: one immutable snapshot a request. A reload makes a new one; nothing is remembered per caller beside it.

use std::collections::HashMap;
use std::hash::{BuildHasherDefault, Hasher};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};

use bytes::Bytes;
use http::HeaderValue;

use crate::cache;
use crate::callers::{CallerState, Callers, LastUsed};
use crate::catalogue::openapi::openapi;
use crate::catalogue::{BucketKind, Catalogue, MatchedOperation, Operation};
use crate::config::{self, Config, Limits, Scope, TlsFiles};
use crate::ids::{KeyHash, KeyId};
use crate::quota::BucketId;

/// A caller as this snapshot has it, with the state that outlives snapshots.
#[derive(Debug)]
pub struct Caller {
    /// What is configured of it.
    pub config: config::CallerConfig,
    /// Its rate, its counters.
    pub state: Arc<CallerState>,
    /// `RateLimit-Policy` of its rate.
    pub rate_policy: HeaderValue,
    /// Which rows its grants cover, by index.
    rows: Arc<[bool]>,
}

impl Caller {
    /// Do its grants cover the row with this index?
    #[must_use]
    pub fn may(&self, row: usize) -> bool {
        self.rows.get(row).copied().unwrap_or(false)
    }
}

/// What callers of the same terms share, so that it is in the processor's caches for all of them.
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

/// A key that a caller has.
#[derive(Clone, Debug)]
pub struct CallerKey {
    /// Whose it is.
    pub caller: Arc<Caller>,
    /// How records name it.
    pub key: KeyId,
    /// Where its last use is noted.
    pub last_used: LastUsed,
}

/// SHA-256 hashes are random already: their first bytes are hash enough.
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

/// The snapshot.
#[derive(Debug)]
pub struct Policy {
    /// All of the configuration.
    pub config: Config,
    /// All callers, in the configuration's order.
    pub members: Vec<Arc<Caller>>,
    keys: HashMap<KeyHash, CallerKey, BuildHasherDefault<FirstBytes>>,
    /// By name, where certificates name callers.
    names: HashMap<Arc<str>, Arc<Caller>>,
    /// How long each row's answers are kept, by index; `None`: not stored.
    storing: Box<[Option<cache::StorePolicy>]>,
    unscoped: usize,
    scoped: HashMap<u64, usize>,
    openapi: OnceLock<Bytes>,
    /// Another is in force.
    retired: AtomicBool,
}

impl Policy {
    /// The snapshot of `config`; callers keep their state in `callers`.
    #[must_use]
    pub fn new(config: Config, callers: &Callers) -> Self {
        let (catalogue, mut alike) = (&config.catalogue, CallerProfile::new(&config.catalogue));
        let members: Vec<_> = config.callers.iter().map(|caller| Arc::new(alike.caller(caller, callers))).collect();
        let mut keys = HashMap::with_capacity_and_hasher(members.len(), BuildHasherDefault::default());
        let (mut unscoped, mut scoped) = (0, HashMap::new());
        for caller in &members {
            for hash in &caller.config.keys {
                let key = KeyId::of(hash);
                keys.insert(*hash, CallerKey { caller: caller.clone(), key, last_used: caller.state.last_used(key) });
            }
            match &caller.config.organizations {
                Scope::All => unscoped += 1,
                Scope::Only(ids) => ids.iter().for_each(|id| *scoped.entry(*id).or_default() += 1),
            }
        }
        let names = match &config.gateway.tls {
            Some(TlsFiles { client_ca: Some(_), .. }) => {
                members.iter().map(|caller| (caller.config.name.clone(), caller.clone())).collect()
            }
            Some(_) | None => HashMap::new(),
        };
        let storing = catalogue.rows().iter().map(|row| storing(row, &config.cache)).collect();
        let (openapi, retired) = (OnceLock::new(), AtomicBool::new(false));
        Self { members, keys, names, storing, unscoped, scoped, openapi, retired, config }
    }

    /// The OpenAPI document of the gateway door, made when it is first asked for.
    pub fn openapi(&self) -> Bytes {
        self.openapi.get_or_init(|| openapi(self.catalogue()).to_string().into()).clone()
    }

    /// Is this still the one that new requests are judged by? Cheap: asked for every answer.
    #[must_use]
    pub fn is_in_force(&self) -> bool {
        !self.retired.load(Ordering::Acquire)
    }

    /// Another is in force from now on.
    pub(crate) fn retire(&self) {
        self.retired.store(true, Ordering::Release);
    }

    /// All rows.
    #[must_use]
    pub fn catalogue(&self) -> &Catalogue {
        &self.config.catalogue
    }

    /// Every bound.
    #[must_use]
    pub fn limits(&self) -> &Limits {
        &self.config.limits
    }

    /// Who has the key with this hash?
    #[must_use]
    pub fn caller_key(&self, hash: &KeyHash) -> Option<&CallerKey> {
        self.keys.get(hash)
    }

    /// Whom a certificate with these names belongs to: none, one, or several.
    pub fn certified<'p>(&'p self, names: &[Box<str>]) -> impl Iterator<Item = &'p Arc<Caller>> {
        names.iter().filter_map(|name| self.names.get(&**name))
    }

    /// The caller of this name.
    #[must_use]
    pub fn caller(&self, name: &str) -> Option<&Arc<Caller>> {
        self.members.iter().find(|caller| &*caller.config.name == name)
    }

    /// How the answers of the row with this index are stored; `None`: they are not.
    #[must_use]
    pub fn store_policy(&self, row: usize) -> Option<&cache::StorePolicy> {
        self.storing.get(row)?.as_ref()
    }

    /// How many callers may spend this bucket at all: what fairness is measured by.
    #[must_use]
    pub fn eligible(&self, bucket: BucketId) -> usize {
        match bucket {
            BucketId::Account => self.members.len(),
            BucketId::Organization(id) => self.unscoped + self.scoped.get(&id).copied().unwrap_or(0),
        }
    }
}

fn storing(row: &Operation, cache: &config::CacheConfig) -> Option<cache::StorePolicy> {
    let lifetime = *cache.lifetime.get(row.cache.as_deref()?)?;
    let (stale_if_error, negative) = (cache.stale_if_error, cache.negative);
    (!lifetime.is_zero()).then_some(cache::StorePolicy { freshness: row.freshness, lifetime, stale_if_error, negative })
}

/// Whose quota a request spends.
#[must_use]
pub fn bucket(matched: &MatchedOperation<'_, '_>) -> BucketId {
    bucket_of(matched.operation, matched.organization)
}

/// The same of a row and the organization in its path.
#[must_use]
pub fn bucket_of(row: &Operation, organization: Option<u64>) -> BucketId {
    match (row.quota, organization) {
        (BucketKind::Organization, Some(id)) => BucketId::Organization(id),
        (BucketKind::Organization, None) | (BucketKind::Account, _) => BucketId::Account,
    }
}

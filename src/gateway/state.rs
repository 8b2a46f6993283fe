//! State that all requests share: the policy in force, the engines, and a few counters.

use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use arc_swap::ArcSwap;
use jiff::Timestamp;
use tokio::sync::Semaphore;

use super::admit::policy::Policy;
use super::large_work::LargeWork;
use super::metrics::GatewayMetrics;
use super::refusal::Refusal;
use super::refusal_tally::RefusalTally;
use super::response::Reply;
use super::write::order::WriteOrder;
use super::write::writes_of_all::WritesOfAll;
use crate::audit::{AuditLog, HeldRequestId, Recovered};
use crate::cache::{Cache, Invalidation, SharedFetches};
use crate::callers::Callers;
use crate::clock::Clock;
use crate::config::Config;
use crate::idempotency::IdempotencyStore;
use crate::ids::RequestId;
use crate::issuers::{Issuer, VerifiedTokens};
use crate::otel::Otel;
use crate::quota::Quota;
use crate::replicas::Replicas;
use crate::tasks::Tasks;
use crate::upstream::Upstream;

/// Maximum number of concurrent fetches that nobody waits for.
const REFRESH_AHEAD_MAX: usize = 4;

/// The parts that a gateway is built from.
pub struct Engines {
    /// The audit log.
    pub log: Arc<AuditLog>,
    /// First answers by idempotency key.
    pub idempotency: IdempotencyStore,
    /// The cache.
    pub cache: Cache,
    /// The quota.
    pub quota: Quota,
    /// The connections to Make.
    pub upstream: Arc<Upstream>,
    /// The platforms whose tokens are accepted.
    pub issuers: Vec<Arc<Issuer>>,
    /// What sends telemetry, if anything does.
    pub otel: Option<Arc<Otel>>,
    /// What is shared with other replicas, if there are any.
    pub replicas: Option<Arc<Replicas>>,
    /// The source of time.
    pub clock: Clock,
    /// Where background tasks run.
    pub tasks: Tasks,
}

/// State that all requests share.
pub struct Gateway {
    policy: ArcSwap<Policy>,
    upstream: ArcSwap<Upstream>,
    /// The audit log.
    pub log: Arc<AuditLog>,
    /// First answers by idempotency key.
    pub idempotency: IdempotencyStore,
    /// The cache.
    pub cache: Cache,
    /// Fetches that reads share.
    pub shared_fetches: SharedFetches<Result<Reply, Refusal>>,
    /// The quota.
    pub quota: Quota,
    /// Platforms' tokens that were verified.
    pub verified_tokens: VerifiedTokens,
    /// What sends telemetry, if anything does.
    pub otel: Option<Arc<Otel>>,
    /// What is shared with other replicas, if there are any.
    pub replicas: Option<Arc<Replicas>>,
    /// The callers' state.
    pub callers: Callers,
    /// Counters of everything that belongs to no caller.
    pub metrics: GatewayMetrics,
    /// Bounds the records of refusals.
    pub refusal_tally: RefusalTally,
    /// The source of time.
    pub clock: Clock,
    /// Where background tasks run.
    pub tasks: Tasks,
    pub(crate) write_order: WriteOrder,
    /// The writes of all replicas, if there are other replicas.
    pub(crate) shared_writes: Option<WritesOfAll>,
    /// Permits for fetches that nobody waits for.
    pub(crate) refresh_permits: Arc<Semaphore>,
    /// Work on large bodies.
    pub(crate) large_work: LargeWork,
    draining: AtomicBool,
}

impl Gateway {
    /// Makes a gateway with `config` in force.
    #[must_use]
    pub fn new(config: Config, engines: Engines) -> Arc<Self> {
        let Engines { log, idempotency: answers, cache, quota, upstream, issuers, otel, replicas, clock, tasks } =
            engines;
        let shared_writes = replicas.as_ref().map(WritesOfAll::start);
        issuers.iter().for_each(|issuer| issuer.follow(&tasks, &clock));
        let callers = Callers::new(clock.clone(), replicas.clone());
        callers.set_limits(&config.limits);
        log.doubts().room().set_limit(config.limits.doubts);
        Arc::new(Self {
            policy: ArcSwap::from_pointee(Policy::new(config, issuers, &callers)),
            upstream: ArcSwap::new(upstream),
            shared_fetches: SharedFetches::new(&cache),
            log,
            idempotency: answers,
            cache,
            quota,
            verified_tokens: VerifiedTokens::default(),
            otel,
            replicas,
            callers,
            metrics: GatewayMetrics::default(),
            refusal_tally: RefusalTally::default(),
            clock,
            tasks,
            write_order: WriteOrder::default(),
            shared_writes,
            refresh_permits: Arc::new(Semaphore::new(REFRESH_AHEAD_MAX)),
            large_work: LargeWork::new(),
            draining: AtomicBool::new(false),
        })
    }

    /// The policy in force. A request takes it once and keeps it.
    #[must_use]
    pub fn policy(&self) -> Arc<Policy> {
        self.policy.load_full()
    }

    /// The upstream in force. Whoever has waited since it took one asks whether that one [is still in force](Upstream::is_in_force).
    #[must_use]
    pub fn upstream(&self) -> Arc<Upstream> {
        self.upstream.load_full()
    }

    /// Puts a new configuration in force for all requests from now on; remaining callers keep their rate. Purges the cache if the
    /// upstream, the operations or the cache's settings changed.
    pub fn apply_config(&self, config: Config, issuers: Vec<Arc<Issuer>>, upstream: Option<Arc<Upstream>>) {
        let before = self.policy();
        let forget = upstream.is_some()
            || before.config.catalogue.rows() != config.catalogue.rows()
            || before.config.cache != config.cache;
        self.callers.set_limits(&config.limits);
        self.log.doubts().room().set_limit(config.limits.doubts);
        issuers.iter().for_each(|issuer| issuer.follow(&self.tasks, &self.clock));
        self.policy.store(Arc::new(Policy::new(config, issuers, &self.callers)));
        before.retire();
        let policy = self.policy();
        let names: HashSet<&str> = policy.callers.iter().map(|caller| &*caller.config.name).collect();
        self.callers.retain(|name| names.contains(name));
        if let Some(upstream) = upstream {
            // Retired only once the other one is there, and before the purge: what is sent until then was stamped before the purge, and
            // is not stored.
            self.upstream.swap(upstream).retire();
        }
        if forget {
            self.purge(None).1.in_background(&self.tasks);
        }
    }

    /// Takes over from an earlier run. Make may still lag behind its last writes, whatever they touched, so what is
    /// fetched during the settle time lives no longer than that. What its doubts touch may change until they are
    /// settled.
    pub fn take_over(&self, recovered: &Recovered) {
        let policy = self.policy();
        let cache = &policy.config.cache;
        if recovered.records > 0 {
            self.cache.raise::<&str>(&[], Invalidation::Settled { settle: cache.settle });
        }
        for doubt in &recovered.doubts {
            self.fence_in_doubt(doubt).in_background(&self.tasks);
        }
    }

    /// Reports not ready from now on. Requests are still answered, but no new ones should come.
    pub fn drain(&self) {
        self.draining.store(true, Ordering::Relaxed);
    }

    /// Should requests be sent here?
    #[must_use]
    pub fn is_ready(&self) -> bool {
        !self.is_draining() && self.log.has_room()
    }

    /// Has shutdown begun?
    #[must_use]
    pub fn is_draining(&self) -> bool {
        self.draining.load(Ordering::Relaxed)
    }

    /// Number of requests under way.
    #[must_use]
    pub fn under_way(&self) -> u64 {
        self.callers.shared.requests.taken()
    }

    /// Number of writes that wait for earlier writes to the same resource.
    #[must_use]
    pub fn queued_writes(&self) -> usize {
        self.write_order.waiting()
    }

    /// Assigns a request's id: the caller's own if it is plain and unused, else a new one. A read's new id is not registered, so that a
    /// hit needs no lookup: nobody learns it before the answer. A write's is registered, because the log and its idempotency key reveal
    /// it while the write is under way.
    pub(crate) fn assign_request_id(&self, own: Option<&[u8]>, is_read: bool, now: Timestamp) -> HeldRequestId {
        let names = self.log.request_ids();
        let own = own.and_then(RequestId::parse).and_then(|id| names.take(id));
        own.unwrap_or_else(|| if is_read { HeldRequestId::unregistered(now) } else { names.make(now) })
    }
}

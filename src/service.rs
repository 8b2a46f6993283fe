//! A running makegate: wires up the engines, opens the doors, watches configuration and secrets, and shuts down
//! gracefully.

mod config_changes;
mod doors;
pub mod leave;
mod membership;
mod preparation;
mod reload;

use std::collections::BTreeSet;
use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::{Request, StatusCode, Uri};
use http_body_util::Empty;
use tokio::time::timeout;
use tower::Service as _;

use crate::audit::{AuditLog, LogSharing, LogShipper, ShipSettings};
use crate::cache::Cache;
use crate::clock::Clock;
use crate::config::{Config, LoadedConfig};
use crate::door::{Certificate, OpenDoor, PeerConnection};
use crate::gateway::key_expiry::log_key_expiry;
use crate::gateway::{Engines, Gateway, KeyLogAdapter, life, recall_last_uses};
use crate::hash;
use crate::idempotency::IdempotencyStore;
use crate::issuers::Issuer;
use crate::operator::{self, OperatorState};
use crate::otel::{Otel, SpanQueue};
use crate::process_log::ALWAYS;
use crate::quota;
use crate::reconcile::Reconciler;
use crate::tasks::Tasks;
use crate::watched_files::Snapshot;

use doors::{BoundDoors, DoorCertificates};
use reload::Watch;

pub use doors::PassedSockets;
pub use preparation::{MachineFault, MachineFaultKind, Preparation, machine_faults};
pub use reload::ReloadError;

/// How often the cache drops expired entries and the quota counts what the cache saved.
const MAINTENANCE_INTERVAL: Duration = Duration::from_secs(1);
/// How often the doors' certificates and the callers' keys are checked for whether they expire soon.
const EXPIRY_CHECK_INTERVAL: Duration = Duration::from_secs(24 * 3600);
/// How long connections that were cut, and the operator door, have to close.
const CLOSE_TIME_MAX: Duration = Duration::from_millis(200);
/// The process ends at most this long after the drain time, whatever a disk does.
const EXIT_DELAY_MAX: Duration = Duration::from_millis(700);
/// How long the end waits for the receiver of telemetry.
const LAST_EXPORT_TIME_MAX: Duration = Duration::from_millis(500);
/// How long the end waits for the database to take the last records.
const LAST_SHIPPING_TIME_MAX: Duration = Duration::from_secs(1);
/// How long the doors stay open after the drain begins, so that load balancers see `not ready` first.
const NOT_READY_TIME: Duration = Duration::from_millis(200);

/// The version that other replicas' operators are shown.
const RELEASE: &str = env!("CARGO_PKG_VERSION");

/// Why the service failed to start.
#[derive(Debug, thiserror::Error)]
#[error("{what}")]
pub struct StartError {
    what: String,
    configuration: bool,
}

impl StartError {
    fn configuration(what: impl fmt::Display) -> Self {
        Self { what: what.to_string(), configuration: true }
    }

    fn failed(what: impl fmt::Display) -> Self {
        Self { what: what.to_string(), configuration: false }
    }

    /// 2 if the configuration or a secret must be fixed, otherwise 1.
    #[must_use]
    pub const fn exit_code(&self) -> u8 {
        if self.configuration { 2 } else { 1 }
    }
}

/// The running service.
pub struct Service {
    inner: Arc<ServiceInner>,
    gateway_door: OpenDoor,
    operator_door: OpenDoor,
    metrics_door: Option<OpenDoor>,
}

struct ServiceInner {
    gateway: Arc<Gateway>,
    reconciler: Arc<Reconciler>,
    operator_state: Arc<OperatorState>,
    /// The operator door has its own tasks: it reports `not ready` until the gateway's tasks are done.
    operator_tasks: Tasks,
    /// What sends telemetry has its own tasks: it still sends when all requests are done, and nothing waits for it but the end.
    otel_tasks: Tasks,
    /// What speaks with the other replicas, whom requests need until they are done.
    replica_tasks: Tasks,
    /// What ships the log goes on until the log has ended.
    ship_tasks: Tasks,
    file: PathBuf,
    certificates: DoorCertificates<Certificate>,
    watch: Watch,
}

impl Service {
    /// Reads the secrets, opens the log, binds the doors and starts to serve.
    ///
    /// # Errors
    /// [`StartError`]: what is wrong and what to do.
    pub async fn start(read: LoadedConfig, clock: Clock) -> Result<Self, StartError> {
        Self::start_on(read, PassedSockets::default(), clock).await
    }

    /// As [`Self::start`], on sockets that were passed to this process.
    ///
    /// # Errors
    /// As [`Self::start`].
    pub async fn start_on(read: LoadedConfig, sockets: PassedSockets, clock: Clock) -> Result<Self, StartError> {
        let LoadedConfig { config, origins, files, .. } = read;
        let file = origins.file.clone();
        if config.upstream.url.tls || config.gateway.tls.is_some() || config.operator.tls.is_some() {
            hash::warm_tls();
        }
        let (upstream, prepared) = Preparation::read(&config, &files, &clock).complete()?;
        let Preparation { issuers, operators, certificates, otel, replicas, warnings, .. } = prepared;
        membership::check(&config.audit.dir, replicas.as_ref()).await?;
        warnings.iter().for_each(|warning| tracing::warn!(target: ALWAYS, "{warning}"));
        let otel = otel.map(|settings| Otel::new(settings, clock.clone())).transpose().map_err(StartError::failed)?;
        let (otel, span_queue) = otel.unzip();
        let watch = Watch::new(&files).map_err(StartError::failed)?;
        let (tasks, operator_tasks) = (Tasks::new(), Tasks::new());
        let doors = BoundDoors::bind(&config, sockets, certificates, &clock, [&tasks, &operator_tasks])?;
        let shared = replicas.as_ref().map(|settings| LogSharing { key: settings.key, keep: settings.config.keep });
        let opened = AuditLog::open_shared(&config.audit, clock.clone(), shared);
        let (log, recovered) = opened.map_err(StartError::failed)?;
        let keys = Arc::new(KeyLogAdapter::new(log.clone(), clock.clone()));
        let answers =
            IdempotencyStore::open(&config.audit, &config.limits, clock.clone(), keys).map_err(StartError::failed)?;
        let replica_tasks = Tasks::new();
        let config_hash = files.hashes().of(&file);
        let replicas = membership::join(replicas, (&config.audit.dir, config_hash), &clock, &replica_tasks)?;
        let quota = membership::open_quota(&config, recovered.records > 0, &clock, replicas.as_ref(), &replica_tasks)?;
        let buffer_bytes = config.audit.buffer_bytes;
        let cache = Cache::new(&config.cache, config.limits.stored_bytes, clock.clone());
        let engines = Engines {
            log,
            idempotency: answers,
            cache,
            quota,
            upstream: Arc::new(upstream),
            issuers,
            otel,
            replicas,
            clock,
            tasks,
        };
        let gateway = Gateway::new(config, engines);
        let amount = |limit| u64::try_from(limit).unwrap_or(u64::MAX);
        gateway.callers.shared.connections.set_limit(amount(doors.callers));
        gateway.callers.shared.records.set_limit(amount(buffer_bytes));
        gateway.follow_fences();
        gateway.take_over(&recovered);
        let reconciler = Reconciler::new(gateway.clone());
        let operator_state = OperatorState::new(reconciler.clone(), &operators, Some(file.clone()), origins);
        let inner = Arc::new(ServiceInner {
            gateway: gateway.clone(),
            reconciler,
            operator_state: operator_state.clone(),
            operator_tasks,
            otel_tasks: Tasks::new(),
            replica_tasks,
            ship_tasks: Tasks::new(),
            file,
            certificates: doors.certificates(),
            watch,
        });
        let of_unread = gateway.clone();
        let unread = Box::new(move |why| life::answer_unread(&of_unread, why));
        let gateway_door = doors.gateway.open(move |peer| life::service(gateway.clone(), peer), unread);
        operator_state.register_door("gateway", gateway_door.clone());
        let metrics_door = doors.metrics.map(|door| operator::open_to_scrapers(door, operator_state.clone()));
        let operator_door = operator::open(doors.operator, operator_state);
        inner.clone().start_background_tasks();
        span_queue.into_iter().for_each(|queue| inner.start_otel(queue));
        Ok(Self { inner, gateway_door, operator_door, metrics_door })
    }

    /// The addresses for callers.
    #[must_use]
    pub fn gateway_addresses(&self) -> &[SocketAddr] {
        self.gateway_door.addresses()
    }

    /// The addresses for operators.
    #[must_use]
    pub fn operator_addresses(&self) -> &[SocketAddr] {
        self.operator_door.addresses()
    }

    /// The process can read nowhere but in these folders: reloads that name files elsewhere are rejected with that reason.
    pub fn note_readable(&self, folders: BTreeSet<PathBuf>) {
        self.inner.watch.readable.get_or_init(|| folders);
    }

    /// The addresses for scrapers; none unless the configuration has some.
    #[must_use]
    pub fn metrics_addresses(&self) -> &[SocketAddr] {
        self.metrics_door.as_ref().map_or(&[], OpenDoor::addresses)
    }

    /// The gateway, for tests and the demo.
    #[must_use]
    pub fn gateway(&self) -> &Arc<Gateway> {
        &self.inner.gateway
    }

    /// The reconciler of writes in doubt, for tests.
    #[must_use]
    pub fn reconciler(&self) -> &Arc<Reconciler> {
        &self.inner.reconciler
    }

    /// Applies the current contents of the configuration file and the secrets: all of it or nothing.
    ///
    /// # Errors
    /// Why nothing changed.
    pub async fn reload(&self) -> Result<(), ReloadError> {
        self.inner.reload().await
    }

    /// Reloads in the background; both logs report the result, and then `then` is told.
    pub fn begin_reload(&self, then: impl FnOnce(Result<(), ReloadError>) + Send + 'static) {
        let inner = self.inner.clone();
        self.inner.gateway.tasks.spawn_until_stop(async move { then(inner.reload().await) });
    }

    /// Does the service answer? Asks the gateway as a load balancer would, but without a socket, which a flood might keep from it. What
    /// does not answer here hangs: no task of it runs, or a lock is never given back.
    pub async fn answers(&self) -> bool {
        let gateway = self.inner.gateway.clone();
        let asked = self.inner.operator_tasks.spawn(async move {
            let peer = PeerConnection::detached(None, None, &gateway.clock);
            let mut request = Request::new(Empty::<Bytes>::new());
            *request.uri_mut() = Uri::from_static("/livez");
            let answer = life::service(gateway, peer).call(request).await;
            answer.is_ok_and(|answer| answer.status() == StatusCode::OK)
        });
        // Counting takes each door's lock.
        let _counts = [&self.gateway_door, &self.operator_door].map(OpenDoor::connections);
        asked.await.unwrap_or(false)
    }

    /// Reports not ready, closes the doors and gives work in progress the drain time to finish. `true` if all of it
    /// did.
    pub async fn shut_down(self) -> bool {
        let gateway = &self.inner.gateway;
        let limit = gateway.policy().limits().drain;
        let end = gateway.clock.now() + limit + EXIT_DELAY_MAX;
        gateway.drain();
        let not_ready = NOT_READY_TIME.min(limit);
        tokio::time::sleep(not_ready).await;
        self.gateway_door.close();
        gateway.tasks.stop();
        let finished = gateway.tasks.drained(limit - not_ready).await;
        // Requests cut off now still leave a record; a write without an outcome is in doubt at the next start.
        self.gateway_door.drop_connections();
        gateway.tasks.drained(CLOSE_TIME_MAX).await;
        self.operator_door.close();
        self.metrics_door.iter().for_each(OpenDoor::close);
        self.inner.operator_tasks.stop();
        self.inner.operator_tasks.drained(CLOSE_TIME_MAX).await;
        tokio::join!(self.close_files(end), self.inner.end_otel(end));
        self.inner.end_replicas(end).await;
        finished
    }

    /// Syncs everything to disk, as far as the disk allows until `end`. The log, which has the most to write, gets half
    /// of the time for itself.
    async fn close_files(&self, end: Instant) {
        let gateway = &self.inner.gateway;
        let left = || end.saturating_duration_since(gateway.clock.now());
        let within = left() / 2;
        let (slots, answers) = tokio::join!(gateway.quota.end(within), timeout(within, gateway.idempotency.close()));
        if !slots || answers.is_err() {
            tracing::error!(
                "the disk is too slow: makegate exits before quota.slots and answers.sqlite are completely written"
            );
        }
        gateway.refusal_tally.record_counts(&gateway.log, (gateway.clock.now(), gateway.clock.wall()), true);
        if timeout(left(), gateway.log.close()).await.is_err() {
            let records = gateway.log.backlog();
            tracing::error!(records, "the disk is too slow: makegate exits before the audit log is completely written");
        }
    }
}

impl ServiceInner {
    /// Tells the process log which credentials expire soon.
    fn log_expiry(&self) {
        let now = self.gateway.clock.wall();
        self.certificates.log_expiry(now);
        log_key_expiry(&self.gateway.policy(), now);
    }

    /// Sends telemetry until the end.
    fn start_otel(&self, queue: SpanQueue) {
        let Some(otel) = self.gateway.otel.clone() else { return };
        let (state, stop) = (self.operator_state.clone(), self.otel_tasks.stop_token());
        let (spans, metrics) = (otel.clone(), otel);
        let stop_spans = stop.clone();
        self.otel_tasks.spawn(async move { spans.send_spans(queue, stop_spans).await });
        self.otel_tasks.spawn(async move { metrics.send_metrics(|| operator::metric_families(&state), stop).await });
    }

    /// Sends what is left, for a limited time, at the latest until `end`.
    async fn end_otel(&self, end: Instant) {
        let Some(otel) = &self.gateway.otel else { return };
        self.otel_tasks.stop();
        let left = end.saturating_duration_since(self.gateway.clock.now());
        if !self.otel_tasks.drained(left.min(LAST_EXPORT_TIME_MAX)).await {
            let spans = otel.pending();
            tracing::warn!(target: ALWAYS, spans, "the receiver of telemetry is too slow: makegate exits before it has taken everything");
        }
    }

    /// Ships the log's records to the database of all replicas, until the log has ended.
    fn start_shipping(&self) {
        let Some(replicas) = &self.gateway.replicas else { return };
        let settings = ShipSettings {
            engine: replicas.engine().clone(),
            replica: replicas.name().clone(),
            records: replicas.config().records,
            keep: replicas.config().keep,
        };
        self.ship_tasks.spawn(LogShipper::new(self.gateway.log.clone(), settings).run());
    }

    /// Ships what was recorded last, if the database takes it soon, and leaves the other replicas. Until then this one still takes note of
    /// what they announce, so nobody waits for it.
    async fn end_replicas(&self, end: Instant) {
        let Some(replicas) = &self.gateway.replicas else { return };
        let left = end.saturating_duration_since(self.gateway.clock.now());
        self.ship_tasks.drained(left.min(LAST_SHIPPING_TIME_MAX)).await;
        let _told = timeout(CLOSE_TIME_MAX, replicas.leave()).await;
        self.replica_tasks.stop();
    }

    /// Periodic housekeeping.
    fn start_background_tasks(self: Arc<Self>) {
        self.start_shipping();
        let gateway = self.gateway.clone();
        self.gateway.tasks.spawn_until_stop(async move {
            loop {
                tokio::time::sleep(MAINTENANCE_INTERVAL).await;
                gateway.cache.maintain();
                gateway.quota.maintain();
                gateway.callers.maintain();
                gateway.refusal_tally.record_counts(&gateway.log, (gateway.clock.now(), gateway.clock.wall()), false);
            }
        });
        self.gateway.tasks.spawn_until_stop(operator::keep_history(self.operator_state.clone()));
        self.gateway.tasks.spawn_until_stop(self.reconciler.clone().run());
        if let Some(replicas) = &self.gateway.replicas {
            replicas.tasks().spawn_until_stop(self.gateway.clone().keep_shared_writes());
        }
        self.gateway.tasks.spawn_until_stop(recall_last_uses(self.gateway.clone()));
        self.gateway.tasks.spawn_until_stop(self.gateway.clone().record_replica_changes());
        let (inner, clock) = (self.clone(), self.gateway.clock.clone());
        self.gateway.tasks.spawn_until_stop(async move {
            loop {
                inner.log_expiry();
                clock.sleep_until(clock.now() + EXPIRY_CHECK_INTERVAL).await;
            }
        });
        let tasks = self.gateway.tasks.clone();
        tasks.spawn_until_stop(self.follow_files());
    }
}

/// Reads the issuers' keys, or prepares to fetch them; those of `before` are kept where they are the same.
fn read_issuers(config: &Config, files: &Snapshot, before: &[Arc<Issuer>]) -> io::Result<Vec<Arc<Issuer>>> {
    config.issuers.iter().map(|issuer| Issuer::read(issuer, files, before).map(Arc::new)).collect()
}

fn quota_settings(config: &Config) -> quota::QuotaSettings {
    let upstream = &config.upstream;
    quota::QuotaSettings {
        setting: upstream.quota,
        of_organizations: Arc::new(upstream.quotas.clone()),
        learned_max: upstream.quota_max,
        queue_per_caller: config.limits.quota_queue,
        wait: upstream.quota_wait,
    }
}

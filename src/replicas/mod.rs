//! What several replicas of makegate share through a PostgreSQL database: who takes part, fences, quota, rates, writes and records.
//!
//! This module speaks with the database and knows no engine of makegate: those ask it, or hand it what it calls back
//! ([`FenceTarget`]). Soft state (leases, fences, quota, rates, turns) lies in unlogged tables under one epoch, and is lost together;
//! what must not be lost (writes, records, heads) is logged. `docs/decisions/replicas.md` says why it is made like this.

pub mod cells;
mod changes;
mod copy_rows;
pub mod engine;
pub mod fences;
pub mod heads;
mod lease;
mod ledger;
mod members;
pub mod permits;
pub mod records;
mod roster;
pub mod schema;
mod settings;
pub mod setup;
pub mod shipping;
pub mod writes;

use std::io;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::{Notify, watch};
use uuid::Uuid;

use self::cells::EngineClock;
use self::changes::ReplicaChanges;
use self::engine::Engine;
use self::fences::{AckPolls, AppliedFences, FenceTarget};
use self::members::{BeatSender, outlasting};
use self::permits::Permits;
use self::roster::RosterBoard;
use crate::clock::Clock;
use crate::config::ReplicasConfig;
use crate::counters::DurationHistogram;
use crate::hash;
use crate::tasks::Tasks;

pub use changes::ReplicaChange;
pub use copy_rows::{CopyRows, SharedRecord, day_of};
pub use lease::Lease;
pub use ledger::{LedgerGroup, LedgerSearch};
pub use roster::{ListedReplica, Roster, TakesPart};
pub use settings::{EngineAccess, ReplicasSettings, shared_key};

/// One life of the engine's soft state.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Epoch {
    /// Its id.
    pub id: Uuid,
    /// When this replica first saw it, since the machine's start: not before it began.
    pub seen: Duration,
}

/// What was counted since the start.
#[derive(Debug, Default)]
pub struct ReplicaCounters {
    /// Members that are alive, with this one.
    pub members: AtomicU64,
    /// Members that this one has given up.
    pub given_up: AtomicU64,
    /// Epochs that this replica has seen begin, or has joined.
    pub epochs: AtomicU64,
    /// Raises that ended because all members had applied them.
    pub fence_acks: AtomicU64,
    /// Raises that ended because a lease had passed.
    pub fence_leases: AtomicU64,
    /// How long raises took.
    pub fence_waits: DurationHistogram,
    /// Swaps of a quota's state that were carried out.
    pub swaps_won: AtomicU64,
    /// Those that another replica was faster than.
    pub swaps_lost: AtomicU64,
    /// Times that the engine's clock was set, as far as this replica has noticed.
    pub clock_steps: AtomicU64,
}

/// Why this replica does not take part.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ReplicasTrouble {
    /// In words.
    pub why: String,
    /// Since when it does not, whatever the reason was at first.
    pub since: Instant,
}

/// This replica's part in what all share.
#[derive(Debug)]
pub struct Replicas {
    config: ReplicasConfig,
    name: Arc<str>,
    /// This process among all that had the name.
    incarnation: Uuid,
    key: [u8; 32],
    clock: Clock,
    engine: Arc<Engine>,
    engine_clock: EngineClock,
    lease: Lease,
    /// The longest lease of all replicas that this one has heard of, in milliseconds.
    lease_max_ms: AtomicU64,
    epoch: watch::Sender<Option<Epoch>>,
    fences: AppliedFences,
    polls: AckPolls,
    permits: Arc<Permits>,
    beat_now: Notify,
    /// No further beat may be sent.
    is_leaving: AtomicBool,
    /// The version of makegate and the hash of the configuration in force.
    described: Mutex<(String, String)>,
    trouble: Mutex<Option<ReplicasTrouble>>,
    counters: ReplicaCounters,
    tasks: Tasks,
    changes: ReplicaChanges,
    board: RosterBoard,
}

impl Replicas {
    /// Begins to take part, in the background: nothing here waits for the engine.
    ///
    /// # Errors
    /// The URL cannot be used, or the machine has no random numbers.
    pub fn start(settings: ReplicasSettings, version: &str, clock: Clock, tasks: &Tasks) -> io::Result<Arc<Self>> {
        let target = settings.access.target().map_err(io::Error::other)?;
        let ReplicasSettings { config, access, key } = settings;
        let incarnation = uuid::Builder::from_random_bytes(hash::random()?).into_uuid();
        let (engine, announced) = Engine::start(target, clock.clone(), tasks);
        let permits = Permits::new(clock.clone());
        let replicas = Arc::new(Self {
            config,
            name: access.name,
            incarnation,
            key,
            engine,
            engine_clock: EngineClock::default(),
            lease: Lease::new(clock.clone()),
            lease_max_ms: AtomicU64::new(0),
            changes: ReplicaChanges::new(clock.now()),
            board: RosterBoard::default(),
            clock,
            epoch: watch::Sender::new(None),
            fences: AppliedFences::new(incarnation),
            polls: AckPolls::default(),
            permits,
            beat_now: Notify::new(),
            is_leaving: AtomicBool::new(false),
            described: Mutex::new((version.to_owned(), String::new())),
            trouble: Mutex::default(),
            counters: ReplicaCounters::default(),
            tasks: tasks.clone(),
        });
        tasks.spawn_until_stop(BeatSender::new(replicas.clone()).run());
        tasks.spawn_until_stop(replicas.clone().watch_lease());
        tasks.spawn_until_stop(replicas.clone().keep_roster());
        tasks.spawn_until_stop(replicas.clone().hear_fences(announced));
        tasks.spawn_until_stop(replicas.clone().acknowledge_fences());
        tasks.spawn_until_stop(replicas.clone().ask_for_fences());
        tasks.spawn_until_stop(replicas.clone().prune());
        tasks.spawn_until_stop(replicas.clone().poll_acks());
        tasks.spawn_until_stop(replicas.clone().fill_purses());
        Ok(replicas)
    }

    /// Says what the fences guard. Until then there is nothing to guard.
    pub fn set_fence_target(&self, target: Arc<dyn FenceTarget>) {
        self.fences.set_target(target);
    }

    /// Says which configuration is in force, for the other replicas' operators.
    pub fn set_config_hash(&self, sha256: String) {
        self.described.lock().unwrap_or_else(PoisonError::into_inner).1 = sha256;
    }

    /// This replica's name.
    #[must_use]
    pub const fn name(&self) -> &Arc<str> {
        &self.name
    }

    /// This process among all that had the name.
    #[must_use]
    pub const fn incarnation(&self) -> Uuid {
        self.incarnation
    }

    /// `[replicas]`.
    #[must_use]
    pub const fn config(&self) -> &ReplicasConfig {
        &self.config
    }

    /// Where what speaks with the engine runs: until all requests are done.
    #[must_use]
    pub const fn tasks(&self) -> &Tasks {
        &self.tasks
    }

    /// The engine.
    #[must_use]
    pub fn engine(&self) -> &Arc<Engine> {
        &self.engine
    }

    /// The right to answer from memory.
    #[must_use]
    pub const fn lease(&self) -> &Lease {
        &self.lease
    }

    /// What this replica may spend of the callers' rates.
    #[must_use]
    pub const fn permits(&self) -> &Arc<Permits> {
        &self.permits
    }

    /// The epoch that this replica has joined, as it changes.
    #[must_use]
    pub fn epoch(&self) -> watch::Receiver<Option<Epoch>> {
        self.epoch.subscribe()
    }

    /// What was counted.
    #[must_use]
    pub const fn counters(&self) -> &ReplicaCounters {
        &self.counters
    }

    /// Why this replica does not take part now, if it does not.
    #[must_use]
    pub fn trouble(&self) -> Option<String> {
        let told = self.engine_lost().map(|trouble| trouble.why);
        told.or_else(|| self.engine.trouble(engine::Line::Quick))
    }

    /// Ends taking part: nobody waits for this replica any more.
    pub async fn leave(&self) {
        self.is_leaving.store(true, Ordering::SeqCst);
        members::leave(self).await;
    }

    /// The version of makegate and the hash of the configuration that are in force here.
    #[must_use]
    pub fn described(&self) -> (String, String) {
        self.described.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Notes a trouble, and tells the process log when it begins, changes or ends.
    fn note_trouble(&self, why: Option<String>) {
        let mut known = self.trouble.lock().unwrap_or_else(PoisonError::into_inner);
        if known.as_ref().map(|known| &known.why) == why.as_ref() {
            return;
        }
        match (&why, &*known) {
            (Some(why), before) => {
                tracing::warn!(%why, "this replica does not take part: it shares nothing with the others");
                if before.is_none() {
                    self.changes.note(ReplicaChange::EngineLost(why.clone()));
                }
            }
            (None, _) => {
                tracing::info!(engine = self.engine.address(), "this replica takes part again");
                self.changes.note(ReplicaChange::EngineBack);
            }
        }
        let since = known.as_ref().map_or_else(|| self.clock.now(), |known| known.since);
        *known = why.map(|why| ReplicasTrouble { why, since });
    }

    /// This replica is a member of an epoch, from the beginning of its membership on.
    fn join(&self, epoch: Epoch) {
        self.counters.epochs.fetch_add(1, Ordering::Relaxed);
        tracing::info!(epoch = %epoch.id, replica = &*self.name, "this replica has joined the others");
        let before = self.epoch.send_replace(Some(epoch));
        if before.is_some_and(|before| before.id != epoch.id) {
            // Another engine may have another clock.
            self.engine_clock.forget();
            self.changes.note(ReplicaChange::NewEpoch(epoch.id));
        }
    }

    /// How long a lease of any replica lasts at most, by this machine's clock: they may have been configured with different ones.
    fn longest_lease(&self) -> Duration {
        let others = Duration::from_millis(self.lease_max_ms.load(Ordering::SeqCst));
        outlasting(self.config.lease.max(others))
    }

    /// A replica has a lease this long.
    fn note_lease(&self, lease_ms: Option<i64>) {
        let lease_ms = lease_ms.and_then(|ms| u64::try_from(ms).ok()).unwrap_or(0);
        self.lease_max_ms.fetch_max(lease_ms, Ordering::SeqCst);
    }

    /// A beat that was sent at this time since the machine's start gives a lease.
    fn extend_lease(&self, sent: Duration) {
        self.lease.extend(sent, self.config.lease);
        self.changes.lease_extended.notify_one();
    }

    /// Whether the engine can be used, as far as is known.
    #[must_use]
    pub fn is_engine_up(&self) -> bool {
        self.engine.is_connected(engine::Line::Quick) && self.engine_lost().is_none()
    }

    /// Names of the live replicas in `listed` whose version, and whose configuration, is not this one's.
    #[must_use]
    pub fn unlike<'l>(&self, listed: &'l [ListedReplica]) -> [Vec<&'l str>; 2] {
        let (version, config) = self.described();
        let others = || listed.iter().filter(|one| one.state == TakesPart::Live && one.name != *self.name);
        let differs =
            |theirs: &Option<String>, own: &str| theirs.as_ref().is_some_and(|theirs| !own.is_empty() && theirs != own);
        [
            others().filter(|one| differs(&one.version, &version)).map(|one| &*one.name).collect(),
            others().filter(|one| differs(&one.config_sha256, &config)).map(|one| &*one.name).collect(),
        ]
    }

    async fn fill_purses(self: Arc<Self>) {
        self.permits.run(&self.engine, || self.lease.holds()).await;
    }

    /// Whether other replicas are alive, as far as is known.
    fn has_others(&self) -> bool {
        self.counters.members.load(Ordering::Relaxed) > 1
    }
}

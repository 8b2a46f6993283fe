//! Settles writes in doubt by looking. Where the catalogue names a read that can tell, that read is sent with spare quota once Make
//! answers again, and the doubt is settled if its answer proves something. No write is ever repeated here; what is not proved stays in
//! doubt.
//!
//! This is a task of its own; no request calls it. It learns from the log which writes are in doubt.

pub mod elsewhere;
mod evidence;
mod look;
pub mod settle;
mod watched;

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use crate::audit::Doubt;
use crate::gateway::Gateway;
use crate::gateway::admit::policy::Policy;
use look::LookPlan;
use watched::WatchedDoubt;

pub use watched::DoubtReason;

/// Time between two rounds through the doubts.
const ROUND: Duration = Duration::from_secs(1);

/// Watches a gateway's doubts and tries to settle them.
pub struct Reconciler {
    gateway: Arc<Gateway>,
    /// Keyed by intent.
    watched: Mutex<HashMap<u64, WatchedDoubt>>,
}

/// What was tried to settle a doubt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DoubtProgress {
    /// Number of looks so far.
    pub looks: u32,
    /// Why it is still in doubt.
    pub why: DoubtReason,
}

impl Reconciler {
    /// Creates a reconciler that watches nothing yet.
    #[must_use]
    pub fn new(gateway: Arc<Gateway>) -> Arc<Self> {
        Arc::new(Self { gateway, watched: Mutex::default() })
    }

    /// The gateway that it works for.
    #[must_use]
    pub const fn gateway(&self) -> &Arc<Gateway> {
        &self.gateway
    }

    /// Runs for as long as the service does.
    pub async fn run(self: Arc<Self>) {
        tokio::join!(self.watch(), self.look(), self.learn());
    }

    /// What was tried for this doubt.
    #[must_use]
    pub fn progress(&self, policy: &Policy, doubt: &Doubt) -> DoubtProgress {
        let watched = self.watched().get(&doubt.intent).copied();
        let why = LookPlan::of(policy, doubt).err().or(watched.map(|watched| watched.why));
        DoubtProgress { looks: watched.map_or(0, |watched| watched.looks), why: why.unwrap_or(DoubtReason::Early) }
    }

    fn watched(&self) -> MutexGuard<'_, HashMap<u64, WatchedDoubt>> {
        self.watched.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Watches each doubt from the moment it arises, even during a look, because what the upstream answers after that counts.
    async fn watch(&self) {
        loop {
            self.watch_all();
            self.gateway.log.doubts().added().await;
        }
    }

    fn watch_all(&self) {
        let policy = self.gateway.policy();
        let open: HashSet<u64> = self.gateway.log.doubts().intents();
        let mut watched = self.watched();
        watched.retain(|intent, _| open.contains(intent));
        for intent in open {
            watched.entry(intent).or_insert_with(|| WatchedDoubt::begin(&self.gateway, &policy.config.cache));
        }
    }

    /// Learns what became of doubts at other replicas, also while a look takes long.
    async fn learn(&self) {
        let clock = &self.gateway.clock;
        while self.gateway.shared_writes.is_some() {
            elsewhere::learn(&self.gateway).await;
            clock.sleep_until(clock.now() + ROUND).await;
        }
    }

    /// Sends looks, one at a time.
    async fn look(&self) {
        let clock = &self.gateway.clock;
        loop {
            clock.sleep_until(clock.now() + ROUND).await;
            self.watch_all();
            for doubt in self.gateway.log.doubts().list() {
                let looked = self.look_if_due(&self.gateway.policy(), &doubt).await;
                if let (Err(why), Some(watched)) = (looked, self.watched().get_mut(&doubt.intent)) {
                    watched.why = why;
                }
            }
        }
    }

    /// Looks at one doubt if that is possible now.
    ///
    /// # Errors
    /// The reason, if it is not.
    async fn look_if_due(&self, policy: &Policy, doubt: &Doubt) -> Result<(), DoubtReason> {
        let plan = LookPlan::of(policy, doubt)?;
        if self.gateway.shared_writes.as_ref().is_some_and(|shared| shared.is_elsewhere(doubt.intent)) {
            return Err(DoubtReason::Elsewhere);
        }
        let Some(watched) = self.watched().get(&doubt.intent).copied() else { return Ok(()) };
        let cache = &policy.config.cache;
        let too_late = watched.may_look(&self.gateway, cache)?;
        let permit = plan.permit(&self.gateway).await?;
        if self.gateway.is_draining() || !self.gateway.log.doubts().contains(doubt.intent) {
            permit.give_back();
            return Ok(());
        }
        let why = plan.look(&self.gateway, permit, too_late).await;
        if let Some(watched) = self.watched().get_mut(&doubt.intent) {
            watched.note_look(self.gateway.clock.now(), cache, why);
        }
        Ok(())
    }
}

//! The writes of all replicas, as a gateway needs them.

use std::collections::HashSet;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use uuid::Uuid;

use crate::gateway::refusal::{EngineShortage, Refusal};
use crate::replicas::Replicas;
use crate::replicas::writes::SharedWrites;
use crate::replicas::writes::turns::SharedTurns;

/// The writes of all replicas, as this gateway needs them.
pub(crate) struct WritesOfAll {
    pub(crate) writes: Arc<SharedWrites>,
    pub(crate) turns: Arc<SharedTurns>,
    /// The intents of doubts in this log that other replicas look after.
    elsewhere: Mutex<HashSet<u64>>,
    /// The writes whose adoption is on its way to the log's disk.
    adopting: Mutex<HashSet<Uuid>>,
}

impl WritesOfAll {
    pub(crate) fn start(replicas: &Arc<Replicas>) -> Self {
        let writes = SharedWrites::start(replicas.clone(), replicas.tasks());
        let turns = SharedTurns::start(writes.clone(), replicas.tasks());
        Self { turns, writes, elsewhere: Mutex::default(), adopting: Mutex::default() }
    }

    fn elsewhere(&self) -> MutexGuard<'_, HashSet<u64>> {
        self.elsewhere.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether another replica looks after the doubt with this intent.
    pub(crate) fn is_elsewhere(&self, intent: u64) -> bool {
        self.elsewhere().contains(&intent)
    }

    pub(crate) fn set_elsewhere(&self, intents: HashSet<u64>) {
        *self.elsewhere() = intents;
    }

    pub(super) fn adopting(&self) -> MutexGuard<'_, HashSet<Uuid>> {
        self.adopting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Why writes may not go on now, if they may not.
    fn shortage(&self) -> EngineShortage {
        if self.writes.replicas().lease().holds() { EngineShortage::Healing } else { EngineShortage::NoWrites }
    }

    /// # Errors
    /// Writes may not go on now.
    pub(super) fn check_open(&self) -> Result<(), Refusal> {
        match self.writes.open_epoch() {
            Some(_) => Ok(()),
            None => Err(Refusal::NoEngine { why: self.shortage() }),
        }
    }
}

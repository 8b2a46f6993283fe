//! Writes to one path (but creates) run one at a time, including their retries: otherwise a retried older PATCH could undo a newer one. One
//! caller's writes keep their order; callers take turns.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use crate::fair_semaphore::{FairPermit, FairSemaphore};
use crate::replicas::writes::turns::SharedTurn;

type Resources = Arc<Mutex<HashMap<Arc<str>, FairSemaphore>>>;

/// The resources with writes under way.
#[derive(Default)]
pub(crate) struct WriteOrder {
    resources: Resources,
}

/// The right to write to a resource; held until dropped.
pub(crate) struct WriteTurn {
    resources: Resources,
    path: Arc<str>,
    turn: Option<FairPermit>,
}

/// The turns of a write at this replica and over all replicas. The latter goes first.
pub(super) struct HeldTurns {
    pub(super) _anywhere: Option<SharedTurn>,
    pub(super) _here: WriteTurn,
}

impl WriteOrder {
    /// Waits for the caller's turn at a resource.
    pub(crate) async fn turn(&self, path: &Arc<str>, caller: &Arc<str>) -> WriteTurn {
        let mut held = WriteTurn { resources: self.resources.clone(), path: path.clone(), turn: None };
        let resource = {
            let mut resources = self.resources.lock().unwrap_or_else(PoisonError::into_inner);
            resources.entry(path.clone()).or_insert_with(|| FairSemaphore::new(1)).clone()
        };
        held.turn = Some(resource.acquire(caller).await);
        held
    }

    /// Number of writes waiting for their turn.
    pub(crate) fn waiting(&self) -> usize {
        self.resources.lock().unwrap_or_else(PoisonError::into_inner).values().map(FairSemaphore::waiting).sum()
    }
}

impl Drop for WriteTurn {
    fn drop(&mut self) {
        self.turn = None;
        let mut resources = self.resources.lock().unwrap_or_else(PoisonError::into_inner);
        // Only the map still refers to it: nobody holds or awaits a turn.
        if resources.get(&self.path).is_some_and(FairSemaphore::is_unused) {
            resources.remove(&self.path);
        }
    }
}

//! Writes to one resource go one after the other, over all their attempts: else a re-sent older PATCH could undo a newer one.
//! One caller's go in the order they came; among callers turns go round.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use crate::fair_semaphore::{FairPermit, FairSemaphore};

type Resources = Arc<Mutex<HashMap<Arc<str>, FairSemaphore>>>;

/// The resources that are being written to.
#[derive(Default)]
pub(crate) struct WriteOrder {
    resources: Resources,
}

/// The right to write to a resource, until dropped.
pub(crate) struct WriteTurn {
    resources: Resources,
    path: Arc<str>,
    turn: Option<FairPermit>,
}

impl WriteOrder {
    /// Waits for this caller's turn at this resource.
    pub(crate) async fn turn(&self, path: &Arc<str>, caller: &Arc<str>) -> WriteTurn {
        let mut held = WriteTurn { resources: self.resources.clone(), path: path.clone(), turn: None };
        let resource = {
            let mut resources = self.resources.lock().unwrap_or_else(PoisonError::into_inner);
            resources.entry(path.clone()).or_insert_with(|| FairSemaphore::new(1)).clone()
        };
        held.turn = Some(resource.acquire(caller).await);
        held
    }

    /// How many wait for a turn.
    pub(crate) fn waiting(&self) -> usize {
        self.resources.lock().unwrap_or_else(PoisonError::into_inner).values().map(FairSemaphore::waiting).sum()
    }
}

impl Drop for WriteTurn {
    fn drop(&mut self) {
        self.turn = None;
        let mut resources = self.resources.lock().unwrap_or_else(PoisonError::into_inner);
        // The map's own handle is the last one: nobody holds or awaits the turn.
        if resources.get(&self.path).is_some_and(FairSemaphore::is_unused) {
            resources.remove(&self.path);
        }
    }
}

//! Writes to one resource go one after the other, in the order of their arrival and over all their attempts: else a re-sent
//! older PATCH could undo a newer one.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::OwnedMutexGuard;

type Turn = Arc<tokio::sync::Mutex<()>>;

/// The resources that are being written to.
#[derive(Default)]
pub(super) struct Order {
    resources: Arc<Mutex<HashMap<Arc<str>, Turn>>>,
}

/// The right to write to a resource, until dropped.
pub(super) struct Held {
    resources: Arc<Mutex<HashMap<Arc<str>, Turn>>>,
    path: Arc<str>,
    turn: Option<OwnedMutexGuard<()>>,
}

impl Order {
    /// Waits until every earlier write to this resource has ended. Turns are first come, first served.
    pub(super) async fn turn(&self, path: &Arc<str>) -> Held {
        let mut held = Held { resources: self.resources.clone(), path: path.clone(), turn: None };
        let turn =
            self.resources.lock().unwrap_or_else(PoisonError::into_inner).entry(path.clone()).or_default().clone();
        held.turn = Some(turn.lock_owned().await);
        held
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.turn = None;
        let mut resources = self.resources.lock().unwrap_or_else(PoisonError::into_inner);
        // The map's own reference is the last one: nobody holds or awaits the turn.
        if resources.get(&self.path).is_some_and(|turn| Arc::strong_count(turn) == 1) {
            resources.remove(&self.path);
        }
    }
}

//! What callers share and take turns at, so many at once: the connections to the upstream, the right to write to a resource.
//!
//! The quota hands out something else, slots that come back by the clock and cannot be held, so it has rules of its own.

mod place_queue;
#[cfg(test)]
mod tests;

use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::oneshot;

use place_queue::PlaceQueue;

/// Places that callers share: whoever holds the fewest goes first, the requests of one caller in the order they came.
///
/// A free place costs a lock and a counter. Cloning gives another handle to the same places.
#[derive(Clone)]
pub struct FairSemaphore(Arc<Mutex<PlaceQueue<oneshot::Sender<FairPermit>>>>);

/// One place, until dropped.
#[derive(Debug)]
pub struct FairPermit {
    /// `None`: it was given back already.
    fair: Option<FairSemaphore>,
    caller: Arc<str>,
}

impl FairSemaphore {
    /// So many places (at least one), all free.
    #[must_use]
    pub fn new(places: usize) -> Self {
        Self(Arc::new(Mutex::new(PlaceQueue::new(places))))
    }

    /// Waits for a place. Dropping the future leaves the queue, or gives the place on to the next. How many wait is for those
    /// to bound who ask.
    pub async fn acquire(&self, caller: &Arc<str>) -> FairPermit {
        loop {
            let mut waiting = {
                let mut line = self.line();
                if line.take(caller) {
                    return self.granted(caller.clone());
                }
                let (wake, woken) = oneshot::channel();
                QueuedWaiter { fair: self, caller, ticket: line.queue(caller, wake), woken }
            };
            // Nobody drops the sender of a ticket that waits; if it were so, it would ask anew.
            if let Ok(turn) = (&mut waiting.woken).await {
                return turn;
            }
        }
    }

    /// Places that nobody holds.
    #[must_use]
    pub fn free(&self) -> usize {
        self.line().free()
    }

    /// How many requests wait.
    #[must_use]
    pub fn waiting(&self) -> usize {
        self.line().waiting()
    }

    /// Is this the only handle, with no turn under way?
    #[must_use]
    pub fn is_unused(&self) -> bool {
        Arc::strong_count(&self.0) == 1
    }

    fn granted(&self, caller: Arc<str>) -> FairPermit {
        FairPermit { fair: Some(self.clone()), caller }
    }

    /// Gives this caller's place to those who wait.
    fn hand_on(&self, caller: &Arc<str>) {
        self.line().release(caller);
        loop {
            // A statement of its own: the lock must not be held while a waiter is woken.
            let next = self.line().next();
            let Some((caller, wake)) = next else { return };
            if let Err(mut turn) = wake.send(self.granted(caller)) {
                // Its waiter has just gone. Given back here, since a drop would come back to this loop.
                turn.fair = None;
                self.line().release(&turn.caller);
            }
        }
    }

    fn line(&self) -> MutexGuard<'_, PlaceQueue<oneshot::Sender<FairPermit>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for FairPermit {
    fn drop(&mut self) {
        if let Some(fair) = self.fair.take() {
            fair.hand_on(&self.caller);
        }
    }
}

/// A request in the queue.
struct QueuedWaiter<'a> {
    fair: &'a FairSemaphore,
    caller: &'a Arc<str>,
    ticket: u64,
    woken: oneshot::Receiver<FairPermit>,
}

impl Drop for QueuedWaiter<'_> {
    fn drop(&mut self) {
        // A turn that was granted and not taken is in the receiver, and is given on when that is dropped.
        self.fair.line().leave(self.caller, self.ticket);
    }
}

impl fmt::Debug for FairSemaphore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let line = self.line();
        f.debug_struct("Fair").field("free", &line.free()).field("waiting", &line.waiting()).finish()
    }
}

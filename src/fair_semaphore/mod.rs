//! A bounded number of places that callers share and take turns at: connections to the upstream, the right to
//! write to a resource, or what operators look at.
//!
//! The quota is different: its slots come back with time and cannot be held, so it has rules of its own.

mod place_queue;
#[cfg(test)]
mod tests;

use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::oneshot;

use place_queue::PlaceQueue;

/// Places that callers share. The caller holding the fewest goes first; each caller's own requests are served in
/// order.
///
/// Taking a free place costs a lock and a counter. Clones share the same places.
#[derive(Clone)]
pub struct FairSemaphore(Arc<Mutex<PlaceQueue<oneshot::Sender<FairPermit>>>>);

/// One place, held until dropped.
#[derive(Debug)]
pub struct FairPermit {
    /// `None` once the place was given back.
    semaphore: Option<FairSemaphore>,
    caller: Arc<str>,
}

impl FairSemaphore {
    /// Creates this many places (at least one), all free.
    #[must_use]
    pub fn new(places: usize) -> Self {
        Self(Arc::new(Mutex::new(PlaceQueue::new(places))))
    }

    /// Waits for a place. Dropping the future leaves the queue, or passes the place on. Callers of this function must
    /// bound how many requests wait.
    pub async fn acquire(&self, caller: &Arc<str>) -> FairPermit {
        loop {
            let mut waiting = {
                let mut queue = self.queue();
                if queue.take(caller) {
                    return self.granted(caller.clone());
                }
                let (wake, permit) = oneshot::channel();
                QueuedWaiter { semaphore: self, caller, ticket: queue.queue(caller, wake), permit }
            };
            // The sender of a waiting ticket is never dropped; if it were, this would queue again.
            if let Ok(turn) = (&mut waiting.permit).await {
                return turn;
            }
        }
    }

    /// Takes a place if this caller may have one now, without waiting.
    #[must_use]
    pub fn try_acquire(&self, caller: &Arc<str>) -> Option<FairPermit> {
        let may = self.queue().take(caller);
        may.then(|| self.granted(caller.clone()))
    }

    /// Number of free places.
    #[must_use]
    pub fn free(&self) -> usize {
        self.queue().free()
    }

    /// Number of waiting requests.
    #[must_use]
    pub fn waiting(&self) -> usize {
        self.queue().waiting()
    }

    /// Whether this is the only handle and no place is held.
    #[must_use]
    pub fn is_unused(&self) -> bool {
        Arc::strong_count(&self.0) == 1
    }

    fn granted(&self, caller: Arc<str>) -> FairPermit {
        FairPermit { semaphore: Some(self.clone()), caller }
    }

    /// Gives back this caller's place and passes it to those who wait.
    fn release(&self, caller: &Arc<str>) {
        self.queue().release(caller);
        loop {
            // A separate statement, because the lock must not be held while a waiter is woken.
            let next = self.queue().next();
            let Some((caller, wake)) = next else { return };
            if let Err(mut turn) = wake.send(self.granted(caller)) {
                // The waiter has just gone. Give the place back here, because dropping the permit would re-enter this
                // loop.
                turn.semaphore = None;
                self.queue().release(&turn.caller);
            }
        }
    }

    fn queue(&self) -> MutexGuard<'_, PlaceQueue<oneshot::Sender<FairPermit>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for FairPermit {
    fn drop(&mut self) {
        if let Some(semaphore) = self.semaphore.take() {
            semaphore.release(&self.caller);
        }
    }
}

/// A waiting request.
struct QueuedWaiter<'a> {
    semaphore: &'a FairSemaphore,
    caller: &'a Arc<str>,
    ticket: u64,
    permit: oneshot::Receiver<FairPermit>,
}

impl Drop for QueuedWaiter<'_> {
    fn drop(&mut self) {
        // A place that was granted but not taken is in the receiver, and is passed on when that is dropped.
        self.semaphore.queue().leave(self.caller, self.ticket);
    }
}

impl fmt::Debug for FairSemaphore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let queue = self.queue();
        f.debug_struct("Fair").field("free", &queue.free()).field("waiting", &queue.waiting()).finish()
    }
}
